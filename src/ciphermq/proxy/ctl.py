"""``ciphermq-proxy-ctl``: says one command to a running proxy and shows the answer.

Exit statuses: 0 done, 1 wrong usage, 2 no connection, 3 the proxy says that it could not be done.
Installed as ``amqpprox_ctl`` too, where it does what amqpprox's does and no more: all words are
joined by spaces, no option is understood, and 3 does not occur.

Scripts call it by the hundred, so it starts with what the interpreter has loaded anyway and
`socket`; ``vhost move``, which is more than a command, brings its own.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Sequence

from ciphermq.proxy.control.words import JSON, STATUS, quote

DONE, USAGE, UNREACHABLE, FAILED = 0, 1, 2, 3
OLD_NAME = "amqpprox_ctl"
_PIECE = 64 * 1024


def main() -> None:
    """What the installed commands call."""
    # As any Unix tool ends when its reader has seen enough, or at Ctrl-C: without a word.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(run(sys.argv[0].rpartition("/")[2], sys.argv[1:]))


def run(program: str, arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit status."""
    old, words = program == OLD_NAME, list(arguments)
    flags = set()
    while not old and words and words[0].startswith("--"):
        flags.add(words.pop(0))
    path = words.pop(0) if words else ""
    # Behind the socket too: `… conn --json` is what fingers type.
    for place in (0, -1):
        if not old and words and words[place] == JSON:
            flags.add(words.pop(place))
    if flags == {"--help"} or flags - {JSON} or not words:
        return _usage(program, asked=flags == {"--help"})
    if not old and [word.lower() for word in words[:2]] == ["vhost", "move"]:
        return _move(path, [*words[2:], *flags])
    # A single argument may be a whole command.
    line = " ".join(words if old or len(words) == 1 else map(quote, words))
    if "\n" in line:
        sys.stderr.write("A command is one line.\n")
        return USAGE
    marks = "" if old else f"{STATUS} " + (f"{JSON} " if JSON in flags else "")
    return _say(path, f"{marks}{line}\n".encode(errors="surrogateescape"), old=old)


def _move(path: str, words: Sequence[str]) -> int:
    from ciphermq.proxy.move.main import main as move

    # It has something to put in order when it is interrupted.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return move(path, words)


def _usage(program: str, *, asked: bool) -> int:
    options = "" if program == OLD_NAME else "[--json] "
    text = (
        f"Usage: {program} {options}CONTROL_SOCKET WORD...\n"
        "The words are a command; HELP shows all of them.\n"
    )
    if program != OLD_NAME:
        text += "Beyond these: vhost move; vhost move --help explains it.\n"
    (sys.stdout if asked else sys.stderr).write(text)
    return DONE if asked else USAGE


def _say(path: str, line: bytes, *, old: bool) -> int:
    with socket.socket(socket.AF_UNIX) as proxy:
        try:
            proxy.connect(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            sys.stderr.write(f"No proxy answers at {path}: {reason}\n")
            return UNREACHABLE
        with contextlib.suppress(OSError):  # it may have said why it listens no longer
            proxy.sendall(line, socket.MSG_NOSIGNAL)
        status = _show(proxy, old=old)
    if old or status == b"0":
        return DONE
    if not status:
        sys.stderr.write("The proxy ended before it had answered.\n")
    return FAILED


def _show(proxy: socket.socket, *, old: bool) -> bytes:
    """Print what comes until the end; what came after a NUL, which is the status."""
    out, status = sys.stdout.buffer, b""
    ended = False
    while True:
        try:
            piece = proxy.recv(_PIECE)
        except OSError:
            return status
        if not piece:
            return status
        if ended:
            status += piece
            continue
        if not old:
            piece, nul, status = piece.partition(b"\0")
            ended = bool(nul)
        if piece:
            out.write(piece)
            out.flush()


if __name__ == "__main__":
    main()
