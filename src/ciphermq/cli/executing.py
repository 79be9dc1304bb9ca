"""Run a command for each message: payload on standard input, what is known in the environment.

Status 0 acknowledges the message; anything else gives it back, to come again after a while and,
after enough tries, to go to the dead letters. A crash between the command's end and the
acknowledgement runs it again: at least once, whatever Inbox there is.

The command stays in our process group, so that a Ctrl-C or a kill of the group reaches both. Who
kills us alone with SIGKILL leaves it running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from ciphermq import limits
from ciphermq.cli.common import PASSPHRASE_VARIABLE
from ciphermq.cli.output import moment
from ciphermq.cli.passphrases import IDENTITY_VARIABLE

if TYPE_CHECKING:
    from ciphermq.client.messages import Message

_SHELL: Final = "/bin/sh"
_SECRETS: Final = frozenset({PASSPHRASE_VARIABLE, IDENTITY_VARIABLE})
_NOT_IN_NAMES: Final = re.compile(r"[^A-Z0-9]")


async def execute(command: str, message: Message, renew: Callable[[], None]) -> int:
    """The exit status of `command` for `message`; a signal that ended it counts as negative.

    `renew` is called now and then while it runs, so that the broker does not take the message
    back from a command that takes long.
    """
    with _in_memory(message.payload) as payload:
        process = await asyncio.create_subprocess_exec(
            _SHELL, "-c", command, stdin=payload, env=environment(message, os.environ)
        )
    renewing = asyncio.create_task(_renew(renew))
    try:
        return await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    finally:
        renewing.cancel()


@contextlib.contextmanager
def _in_memory(payload: bytes) -> Iterator[int]:
    """A file of these bytes that is on no disk. Unlike a pipe it needs nobody to feed it, and
    does not care whether the command reads it to its end, or at all."""
    descriptor = os.memfd_create("message")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(payload)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def _renew(renew: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(limits.ACK_RENEWAL)
        renew()


def environment(message: Message, base: Mapping[str, str]) -> dict[str, str]:
    """`base`, and the message's properties as ``CIPHERMQ_…``.

    Only the command's own text is read by the shell: what a sender wrote is data, in variables
    of a prefix of their own, so that no header can pose as another variable.
    """
    known = {
        "CIPHERMQ_MESSAGE_ID": message.id,
        "CIPHERMQ_SENDER": message.sender or "",
        "CIPHERMQ_QUEUE": message.queue,
        "CIPHERMQ_SENT": moment(message.sent_ms) or "",
        "CIPHERMQ_CONTENT_TYPE": message.content_type or "",
        "CIPHERMQ_REDELIVERIES": str(message.redeliveries),
    }
    for name, value in message.headers.items():
        known[f"CIPHERMQ_HEADER_{_NOT_IN_NAMES.sub('_', name.upper())}"] = value
    # No environment can hold a NUL, and the command has no business with our passphrases.
    known = {name: value.replace("\0", "") for name, value in known.items()}
    return {name: base[name] for name in base if name not in _SECRETS} | known
