"""Commands and replies to lines, and back. What they look like is in the docstring of `speech`.

A line that is made here is one line, whatever stands in it: a name, an id or a reason that comes
from another client can end neither the line nor, where more follows, the word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from ciphermq import limits
from ciphermq.errors import BatchError, FrameTooLarge, LocalProtocolError, MalformedBatch
from ciphermq.model.onex import check_message_id, shortened
from ciphermq.wire.lines.speech import (
    Ack,
    Acknowledged,
    Bind,
    Command,
    Consume,
    DeclareExchange,
    DeclareQueue,
    Failed,
    Fetch,
    GetKey,
    InvalidBatch,
    InvalidMessage,
    Message,
    Other,
    PublicKey,
    Publish,
    PublishBatch,
    RegisterKey,
    Reply,
    Resend,
    Said,
    Stored,
    Wrong,
)


class Rule(NamedTuple):
    """One command: its words, what is said without them, and how long its line may be."""

    read: Callable[[list[bytes]], Command]
    words: int
    missing: Said
    longest: int = limits.MAX_LINE


def _register(words: list[bytes]) -> RegisterKey:
    client, _, public_key = words[0].decode().rpartition(" ")
    return RegisterKey(public_key, client or None)


def _id(word: bytes) -> str:
    return check_message_id(word.decode())


_GET_KEY: Final = Rule(lambda words: GetKey(words[0].decode()), 1, Said.MISSING_CLIENT)

RULES: Final[Mapping[bytes, Rule]] = {
    b"declare_queue": Rule(lambda words: DeclareQueue(words[0].decode()), 1, Said.MISSING_QUEUE),
    b"declare_exchange": Rule(
        lambda words: DeclareExchange(words[0].decode()), 1, Said.MISSING_EXCHANGE
    ),
    b"bind": Rule(
        lambda words: Bind(words[0].decode(), words[1].decode(), words[2].decode()),
        3,
        Said.MISSING_PARAMETERS,
    ),
    b"publish": Rule(
        lambda words: Publish(words[0].decode(), words[1].decode(), words[2]),
        3,
        Said.MISSING_PARAMETERS,
        limits.MAX_LINE + limits.MAX_ONEX_MESSAGE,
    ),
    b"publish_batch": Rule(
        lambda words: PublishBatch(words[0].decode(), words[1].decode(), words[2]),
        3,
        Said.MISSING_PARAMETERS,
        limits.MAX_BATCH_LINE,
    ),
    b"consume": Rule(lambda words: Consume(words[0].decode()), 1, Said.MISSING_QUEUE),
    b"fetch": Rule(lambda words: Fetch(words[0].decode()), 1, Said.MISSING_QUEUE),
    b"ack": Rule(lambda words: Ack(_id(words[0])), 1, Said.MISSING_MESSAGE_ID),
    b"resend": Rule(lambda words: Resend(_id(words[0])), 1, Said.MISSING_MESSAGE_ID),
    b"register_public_key": Rule(lambda words: RegisterKey(words[0].decode()), 1, Said.MISSING_KEY),
    b"register_key": Rule(_register, 1, Said.MISSING_KEY),
    b"get_public_key": _GET_KEY,
    b"get_key": _GET_KEY,
}

_ROUTING_KEY: Final = 1
"""The one word that may be empty, where a message follows it."""
_LONGEST_VERB: Final = max(map(len, RULES))


# --- commands ---------------------------------------------------------------------------------


def longest_command(line: bytes | bytearray) -> int:
    """How long a line may get that begins with these bytes; all of them, if there are few."""
    verb, space, _ = line[: _LONGEST_VERB + 1].partition(b" ")
    rule = RULES.get(bytes(verb)) if space else None
    return limits.MAX_LINE if rule is None else rule.longest


def decode_command(line: bytes) -> Command | Wrong:
    """What a client says with this line, which has no end of line any more."""
    verb, _, rest = line.partition(b" ")
    rule = RULES.get(verb)
    if rule is None:
        return Wrong(Said.UNKNOWN_COMMAND)
    words = rest.split(b" ", rule.words - 1)
    words[-1] = words[-1].strip(b" ")
    if len(words) < rule.words or not _filled(words, rule):
        return Wrong(rule.missing)
    try:
        return rule.read(words)
    except UnicodeDecodeError as error:
        return Wrong(Failed(f"the command is not UTF-8 text: {error.reason}"))
    except MalformedBatch as error:
        return Wrong(Failed(str(error)))


def _filled(words: list[bytes], rule: Rule) -> bool:
    may_be_empty = _ROUTING_KEY if rule.longest > limits.MAX_LINE else None
    return all(word or at == may_be_empty for at, word in enumerate(words))


def command_too_long(line: bytes | bytearray) -> Wrong:
    """What is said to a command that begins with these bytes and is longer than it may be."""
    verb, _, _ = bytes(line[: _LONGEST_VERB + 1]).partition(b" ")
    most = longest_command(line)
    if verb == b"publish":
        return Wrong(Failed(f"a message has {limits.MAX_ONEX_MESSAGE} bytes at most"))
    if verb == b"publish_batch":
        return Wrong(Failed(f"a batch of messages has {most} bytes at most: publish it in parts"))
    return Wrong(Failed(f"a command has {most} bytes at most"))


def encode_command(command: Command) -> bytes:
    """The line, with its end. `LocalProtocolError` for what no line can say."""
    verb, writers = _SPELLINGS[type(command)]
    values = msgspec.structs.astuple(command)
    if isinstance(command, RegisterKey):
        if command.client is None:
            verb, values = b"register_public_key", values[:1]
        else:
            values = values[::-1]
    words = [write(value) for write, value in zip(writers[-len(values) :], values, strict=True)]
    line = b" ".join((verb, *words)) + b"\n"
    most = longest_command(line)
    if len(line) > most:
        raise LocalProtocolError(f"a command of {len(line)} bytes; {most} at most")
    return line


# --- replies ----------------------------------------------------------------------------------

_FIXED: Final = {said.value.encode(): said for said in Said}
_STORED: Final = b"ACK "
_ACKNOWLEDGED: Final = b"ACK_CONFIRMED "
_MESSAGE: Final = b"Message: "
_PUBLIC_KEY: Final = b"Public key: "
_FAILED: Final = b"Error: "
_INVALID_MESSAGE: Final = b"Invalid message format: "
_INVALID_BATCH: Final = b"Invalid batch format: "

_REPLIES: Final[Mapping[bytes, Callable[[bytes], Reply]]] = {
    _STORED: lambda rest: Stored(rest.decode()),
    _ACKNOWLEDGED: lambda rest: Acknowledged(rest.decode()),
    _PUBLIC_KEY: lambda rest: PublicKey(rest.decode()),
    _FAILED: lambda rest: Failed(rest.decode()),
    _INVALID_MESSAGE: lambda rest: InvalidMessage(rest.decode()),
    _INVALID_BATCH: lambda rest: InvalidBatch(rest.decode()),
}


def longest_reply(line: bytes | bytearray) -> int:
    """How long a line may get that begins with these bytes; all of them, if there are few."""
    return limits.MAX_LINE + (limits.MAX_ONEX_MESSAGE if line.startswith(_MESSAGE) else 0)


def reply_too_long(line: bytes | bytearray) -> NoReturn:
    """`FrameTooLarge`: a line that begins with these bytes and is longer than it may be."""
    raise FrameTooLarge(f"the server sent a line of more than {longest_reply(line)} bytes")


def decode_reply(line: bytes) -> Reply:
    """What a server says with this line, which has no end of line any more."""
    said = _FIXED.get(line)
    if said is not None:
        return said
    try:
        if line.startswith(_MESSAGE):
            message_id, _, message = line[len(_MESSAGE) :].partition(b" ")
            return Message(message_id.decode(), message)
        for prefix, read in _REPLIES.items():
            if line.startswith(prefix):
                return read(line[len(prefix) :])
    except UnicodeDecodeError:
        pass
    return Other(line.decode(errors="replace"))


def encode_reply(reply: Reply) -> bytes:
    """The line, with its end. `LocalProtocolError` for what no line can say."""
    match reply:
        case Said():
            return reply.value.encode() + b"\n"
        case Stored(message_id):
            return _STORED + _sent_id(message_id) + b"\n"
        case Acknowledged(message_id):
            return _ACKNOWLEDGED + _sent_id(message_id) + b"\n"
        case Message(message_id, message):
            return _MESSAGE + _sent_id(message_id) + b" " + _json(message) + b"\n"
        case PublicKey(public_key):
            return _PUBLIC_KEY + _word(public_key) + b"\n"
        case Failed(reason, None):
            return _FAILED + _harmless(reason) + b"\n"
        case Failed(reason, message_id):
            named = _harmless(message_id or "", limits.MAX_ONEX_ID)
            return _FAILED + _harmless(reason) + b" for message " + named + b"\n"
        case InvalidMessage(reason):
            return _INVALID_MESSAGE + _harmless(reason) + b"\n"
        case InvalidBatch(reason):
            return _INVALID_BATCH + _harmless(reason) + b"\n"
        case Other(text):
            raise LocalProtocolError(f"no server says {shortened(text)!r}")


# --- words ------------------------------------------------------------------------------------


def _last(text: str) -> bytes:
    """`text` as the rest of a line."""
    if not text or text != text.strip(" ") or text.splitlines() != [text]:
        raise LocalProtocolError(f"{shortened(text)!r} can't stand at the end of a line")
    return _utf8(text)


def _word(text: str) -> bytes:
    """`text` as one word."""
    if text.split() != [text]:
        raise LocalProtocolError(f"{shortened(text)!r} is not one word")
    return _utf8(text)


def _word_or_nothing(text: str) -> bytes:
    return _word(text) if text else b""


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"{shortened(text)!r} is no text: {error.reason}") from error


def _sent_id(message_id: str) -> bytes:
    try:
        return check_message_id(message_id).encode()
    except BatchError as error:
        raise LocalProtocolError(f"can't be sent: {error}") from error


def _json(message: bytes) -> bytes:
    """A message as its sender wrote it, which `ciphermq.model.onex` has found to be one line."""
    if not message or b"\n" in message or b"\r" in message:
        raise LocalProtocolError("a message is empty or more than one line")
    return message


def _harmless(reason: str, most: int = limits.MAX_REASON) -> bytes:
    """A reason in one line. It may quote names and ids of others, line breaks and all."""
    text = "".join(
        each if each.isprintable() else repr(each)[1:-1] for each in shortened(reason, most)
    )
    return shortened(text, most).encode()


_SPELLINGS: Final[Mapping[type[Command], tuple[bytes, tuple[Callable[[Any], bytes], ...]]]] = {
    DeclareQueue: (b"declare_queue", (_last,)),
    DeclareExchange: (b"declare_exchange", (_last,)),
    Bind: (b"bind", (_word, _word, _last)),
    Publish: (b"publish", (_word, _word_or_nothing, _json)),
    PublishBatch: (b"publish_batch", (_word, _word_or_nothing, _json)),
    Consume: (b"consume", (_last,)),
    Fetch: (b"fetch", (_last,)),
    Ack: (b"ack", (_sent_id,)),
    Resend: (b"resend", (_sent_id,)),
    RegisterKey: (b"register_key", (_word, _word)),
    GetKey: (b"get_public_key", (_last,)),
}
"""Each command's newest verb (but for a key, see `encode_command`), and how its members become
words, in their order."""
