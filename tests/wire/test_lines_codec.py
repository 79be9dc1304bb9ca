"""Commands and replies of the 1.x protocol as lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import LocalProtocolError
from ciphermq.wire.lines.codec import (
    RULES,
    decode_command,
    decode_reply,
    encode_command,
    encode_reply,
)
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
from support.lines import commands, hostile_replies, replies

JSON = b'{"message_id": "a b", "x":  1}'
KEY = "q4s2kb3o1mPqVn2xkH7S9H1V9m0d2m8e4JYw3xgk9Hc="

UNKNOWN = Wrong(Said.UNKNOWN_COMMAND)
NO_QUEUE = Wrong(Said.MISSING_QUEUE)
NO_EXCHANGE = Wrong(Said.MISSING_EXCHANGE)
NO_PARAMETERS = Wrong(Said.MISSING_PARAMETERS)
NO_ID = Wrong(Said.MISSING_MESSAGE_ID)
NO_KEY = Wrong(Said.MISSING_KEY)
NO_CLIENT = Wrong(Said.MISSING_CLIENT)

HEARD: dict[bytes, Command | Wrong] = {
    b"declare_queue q": DeclareQueue("q"),
    b"declare_queue a queue": DeclareQueue("a queue"),
    b"declare_queue  q ": DeclareQueue("q"),
    b"declare_queue": NO_QUEUE,
    b"declare_queue ": NO_QUEUE,
    b"declare_exchange x": DeclareExchange("x"),
    b"declare_exchange": NO_EXCHANGE,
    b"bind q x k": Bind("q", "x", "k"),
    b"bind q x a key": Bind("q", "x", "a key"),
    b"bind q x": NO_PARAMETERS,
    b"bind q x ": NO_PARAMETERS,
    b"bind q  k": NO_PARAMETERS,
    b"bind  x k": NO_PARAMETERS,
    b"bind": NO_PARAMETERS,
    b"publish x k " + JSON: Publish("x", "k", JSON),
    b"publish x k  " + JSON + b" ": Publish("x", "k", JSON),
    b"publish x  " + JSON: Publish("x", "", JSON),
    b"publish x k not json": Publish("x", "k", b"not json"),
    b"publish x k \xff": Publish("x", "k", b"\xff"),
    b"publish x k": NO_PARAMETERS,
    b"publish x k ": NO_PARAMETERS,
    b"publish  k " + JSON: NO_PARAMETERS,
    b"publish": NO_PARAMETERS,
    b"publish_batch x k [" + JSON + b", {}]": PublishBatch("x", "k", b"[" + JSON + b", {}]"),
    b"publish_batch x k": NO_PARAMETERS,
    b"consume q": Consume("q"),
    b"consume": NO_QUEUE,
    b"fetch q": Fetch("q"),
    b"fetch ": NO_QUEUE,
    b"ack sender_1-1a2b3c4d-receiver_1": Ack("sender_1-1a2b3c4d-receiver_1"),
    "ack Grüße".encode(): Ack("Grüße"),
    b"ack": NO_ID,
    b"resend a": Resend("a"),
    b"resend ": NO_ID,
    b"register_public_key " + KEY.encode(): RegisterKey(KEY),
    b"register_public_key": NO_KEY,
    b"register_key " + KEY.encode(): RegisterKey(KEY),
    b"register_key receiver_1 " + KEY.encode(): RegisterKey(KEY, "receiver_1"),
    b"register_key": NO_KEY,
    b"get_public_key receiver_1": GetKey("receiver_1"),
    b"get_public_key": NO_CLIENT,
    b"get_key receiver_1": GetKey("receiver_1"),
    b"get_key ": NO_CLIENT,
    b"": UNKNOWN,
    b" ": UNKNOWN,
    b" consume q": UNKNOWN,
    b"CONSUME q": UNKNOWN,
    b"consumes q": UNKNOWN,
    b"consume\tq": UNKNOWN,
    b"quit": UNKNOWN,
    b"GET / HTTP/1.1": UNKNOWN,
    b"\xff\xfe": UNKNOWN,
}


@pytest.mark.parametrize("line", list(HEARD), ids=lambda line: line.decode(errors="replace"))
def test_what_a_server_hears(line: bytes) -> None:
    assert decode_command(line) == HEARD[line]


def test_every_command_is_in_the_table_above_with_and_without_its_words() -> None:
    for verb, rule in RULES.items():
        heard = [found for line, found in HEARD.items() if line.partition(b" ")[0] == verb]
        assert Wrong(rule.missing) in heard
        assert any(not isinstance(found, Wrong) for found in heard)


@pytest.mark.parametrize("verb", ["ack", "resend"])
@pytest.mark.parametrize("text", ["two words", "a\x85", "a\u2028b", "\x1b[2J", "x" * 300])
def test_what_can_be_no_id_is_said_so(verb: str, text: str) -> None:
    heard = decode_command(f"{verb} {text}".encode())
    assert isinstance(heard, Wrong)
    assert isinstance(heard.reply, Failed)
    assert "message_id" in heard.reply.reason
    assert encode_reply(heard.reply).decode()[:-1].isprintable()


@pytest.mark.parametrize(
    "line", [b"consume \xff", b"bind q \xff k", b"ack \xff", b"publish \xff k {}"]
)
def test_a_name_that_is_not_text_is_said_so(line: bytes) -> None:
    heard = decode_command(line)
    assert isinstance(heard, Wrong)
    assert isinstance(heard.reply, Failed)
    assert "UTF-8" in heard.reply.reason


@given(commands)
def test_what_a_client_says_is_what_a_server_hears(command: Command) -> None:
    line = encode_command(command)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_command(line[:-1]) == command


@pytest.mark.parametrize(
    "command",
    [
        DeclareQueue(""),
        DeclareQueue(" q"),
        DeclareQueue("q\nack a"),
        DeclareQueue("q\r"),
        DeclareQueue("q\u2028"),
        DeclareQueue("\ud800"),
        DeclareQueue("q" * limits.MAX_LINE),
        Bind("a queue", "x", "k"),
        Bind("q", "", "k"),
        Bind("q", "x", ""),
        Publish("", "k", JSON),
        Publish("x", "a key", JSON),
        Publish("x", "k", b""),
        Publish("x", "k", b"{\n}"),
        Publish("x", "k", b"{}\r"),
        Publish("x", "k", b"x" * (limits.MAX_ONEX_MESSAGE + limits.MAX_LINE)),
        PublishBatch("x", "k", b"x" * limits.MAX_BATCH_LINE),
        Ack(""),
        Ack("a b"),
        RegisterKey("a\nb"),
        RegisterKey(KEY, ""),
        RegisterKey(KEY, "a b"),
        GetKey(""),
    ],
    ids=lambda command: repr(command)[:60],
)
def test_what_no_line_can_say_is_not_said(command: Command) -> None:
    with pytest.raises(LocalProtocolError):
        encode_command(command)


# --- replies ------------------------------------------------------------------------------------

SAID: dict[bytes, Reply] = {
    b"Queue declared": Said.QUEUE_DECLARED,
    b"Missing queue name": Said.MISSING_QUEUE,
    b"Exchange declared": Said.EXCHANGE_DECLARED,
    b"Missing exchange name": Said.MISSING_EXCHANGE,
    b"Queue bound": Said.QUEUE_BOUND,
    b"Missing parameters": Said.MISSING_PARAMETERS,
    b"ACK a-1": Stored("a-1"),
    b"Error: no such exchange": Failed("no such exchange"),
    b"Error: it is full for message a-1": Failed("it is full", "a-1"),
    b"Invalid message format: not JSON": InvalidMessage("not JSON"),
    b"Invalid batch format: not JSON": InvalidBatch("not JSON"),
    b"Subscribed to queue": Said.SUBSCRIBED,
    b"Message: a-1 " + JSON: Message("a-1", JSON),
    b"No messages": Said.NO_MESSAGES,
    b"ACK_CONFIRMED a-1": Acknowledged("a-1"),
    b"Missing message ID": Said.MISSING_MESSAGE_ID,
    b"Resend requested": Said.RESEND_REQUESTED,
    b"Unauthorized resend request": Said.RESEND_UNAUTHORISED,
    b"Message ID not found": Said.MESSAGE_NOT_FOUND,
    b"Public key registered": Said.KEY_REGISTERED,
    b"Missing public key": Said.MISSING_KEY,
    b"Public key: " + KEY.encode(): PublicKey(KEY),
    b"Public key not found": Said.KEY_NOT_FOUND,
    b"Missing client ID": Said.MISSING_CLIENT,
    b"Unknown command": Said.UNKNOWN_COMMAND,
}


@pytest.mark.parametrize("line", list(SAID), ids=lambda line: line.decode())
def test_replies_to_the_letter(line: bytes) -> None:
    assert encode_reply(SAID[line]) == line + b"\n"


def test_every_fixed_reply_is_among_them() -> None:
    assert {reply for reply in SAID.values() if isinstance(reply, Said)} == set(Said)


@given(replies)
def test_what_a_server_says_is_what_a_client_hears(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)[:-1]) == reply


def test_a_client_hears_the_id_of_a_failed_message_in_its_reason() -> None:
    heard = decode_reply(encode_reply(Failed("it is full", "a-1"))[:-1])
    assert heard == Failed("it is full for message a-1")


@pytest.mark.parametrize("line", [b"", b"ACK", b"ack a", b"queue declared", b"ACK \xff", b"\xff"])
def test_anything_else_is_something_else_to_a_client(line: bytes) -> None:
    assert decode_reply(line) == Other(line.decode(errors="replace"))


@given(hostile_replies)
def test_whatever_a_reply_quotes_it_is_one_line(reply: Reply) -> None:
    try:
        line = encode_reply(reply)
    except LocalProtocolError:
        return
    assert line.endswith(b"\n")
    assert len(line.decode().splitlines()) == 1
    heard = decode_reply(line[:-1])
    assert type(heard) is type(reply)
    if isinstance(reply, Stored | Acknowledged | Message):
        assert heard == reply


@pytest.mark.parametrize(
    "reply",
    [
        Stored("a\nACK b"),
        Stored("a b"),
        Acknowledged("a\r"),
        Message("a {}", JSON),
        Message("a", b""),
        Message("a", b"{}\nACK b"),
        Message("a", b"{}\r"),
        PublicKey("a\nb"),
        Other("anything"),
    ],
)
def test_what_could_be_heard_as_something_else_is_not_said(reply: Reply) -> None:
    with pytest.raises(LocalProtocolError):
        encode_reply(reply)


def test_a_reason_is_shown_and_not_obeyed() -> None:
    line = encode_reply(Failed("queue 'q\r\nACK b\x1b[2J\u2028'", "a\nACK b"))
    assert line == b"Error: queue 'q\\r\\nACK b\\x1b[2J\\u2028' for message a\\nACK b\n"


@given(st.text(min_size=1, max_size=9).map(lambda text: text * 5000))
def test_a_reason_is_no_longer_than_a_line(text: str) -> None:
    longest = max(len(encode_reply(Failed(text, text))), len(encode_reply(InvalidMessage(text))))
    assert longest <= limits.MAX_LINE
