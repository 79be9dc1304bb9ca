"""How a command ends: exit statuses, and errors as one clear line (or one JSON object).

====== =====================================================================================
0      done
1      something else: not all that was asked for came, or whoever read our output has gone
2      usage or configuration: fix the command line, the file, the identity
3      the broker refused
4      connection, TLS or protocol; or the hardware token is away
5      trust: a key record, a certificate or a batch was refused
6      stored data: journal, catalog, Inbox or Outbox
130    interrupted by Ctrl-C
====== =====================================================================================
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from ciphermq import errors
from ciphermq.cli.output import json_text, printable

OTHER: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
CONNECTION: Final = 4
TRUST: Final = 5
STORED: Final = 6
INTERRUPTED: Final = 130

_STATUSES: Final[tuple[tuple[type[errors.CipherMQError], int], ...]] = (
    (errors.UsageError, USAGE),
    (errors.ConfigError, USAGE),
    (errors.CertificateError, TRUST),
    (errors.IdentityError, USAGE),
    (errors.InboxError, STORED),
    # It passes by itself, so what starts services may try again; a refused PIN, which is a 2, not.
    (errors.TokenAway, CONNECTION),
    (errors.Refused, REFUSED),
    (errors.TransportError, CONNECTION),
    (errors.RemoteProtocolError, CONNECTION),
    (errors.KeyRecordError, TRUST),
    (errors.BatchTooLarge, USAGE),  # what one sends; a receiver's goes to the dead letters
    (errors.BatchError, TRUST),
    (errors.ReceiverFault, TRUST),
    (errors.JournalError, STORED),
    (errors.CatalogError, STORED),
    (errors.StoreError, STORED),
)
"""First match counts, so kinds stand before what they are kinds of."""


class Ending:
    """A run's exit status, as far as it is known."""

    def __init__(self) -> None:
        self.status = 0


def exit_status(error: errors.CipherMQError) -> int:
    """The status that tells a script what kind of trouble it was."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), OTHER)


def show_error(message: str, code: str, *, as_json: bool) -> None:
    """One line on standard error."""
    if as_json:
        line = json_text({"error": code, "message": message})
    else:
        # It may quote a broker's words, or another client's.
        line = printable(f"ciphermq: {' '.join(message.split())}")
    print(line, file=sys.stderr)


def _show_usage_error(error: typer.TyperException, *, as_json: bool) -> None:
    message = error.format_message().rstrip(".")
    if not message:
        return  # no arguments at all: the help has been shown
    context: typer.Context | None = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ciphermq"
    see = " See" if message.endswith("?") else "; see"
    show_error(f"{message}{see} `{command} --help`", errors.UsageError.code, as_json=as_json)


@contextmanager
def ending(as_json: bool) -> Iterator[Ending]:
    """Turn whatever ends the block into a status and, for an error, a line."""
    end = Ending()
    try:
        yield end
        sys.stdout.flush()
    except typer.Exit as request:
        end.status = request.exit_code
    except (typer.Abort, KeyboardInterrupt):
        end.status = INTERRUPTED
    except typer.TyperException as error:
        _show_usage_error(error, as_json=as_json)
        end.status = error.exit_code
    except errors.CipherMQError as error:
        show_error(str(error), error.code, as_json=as_json)
        end.status = exit_status(error)
    except BrokenPipeError:
        # Python flushes standard output once more as it ends; there must be something to take it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        end.status = OTHER
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        show_error(f"{where}{error.strerror or error}", "system", as_json=as_json)
        end.status = OTHER
    except Exception as error:
        if os.environ.get("CIPHERMQ_DEBUG"):
            raise
        hint = "this is a defect; CIPHERMQ_DEBUG=1 shows where"
        show_error(f"{type(error).__name__}: {error} ({hint})", "internal", as_json=as_json)
        end.status = OTHER
