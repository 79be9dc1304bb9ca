"""StartOk and Open: read, and written back with nothing changed but what is added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.frame import unmarshal

from ciphermq import limits
from ciphermq.errors import AmqpFault
from ciphermq.wire.amqp import closing, properties
from ciphermq.wire.amqp.frames import FrameReader
from support.sessions import CAPABLE, long, method, open_, short, start_ok, text, tune_ok

EVERY_TYPE = b"".join(
    short(b"field-" + bytes([letter])) + bytes([letter]) + value
    for letter, value in [
        (ord("t"), b"\1"),
        (ord("b"), b"\xff"),
        (ord("B"), b"\xff"),
        (ord("s"), b"\xff\xfe"),
        (ord("U"), b"\xff\xfe"),
        (ord("u"), b"\xff\xfe"),
        (ord("I"), b"\1\2\3\4"),
        (ord("i"), b"\1\2\3\4"),
        (ord("l"), bytes(8)),
        (ord("L"), bytes(8)),
        (ord("f"), bytes(4)),
        (ord("d"), bytes(8)),
        (ord("D"), b"\2\0\0\0\7"),
        (ord("S"), long("text ü".encode())),
        (ord("x"), long(b"\xff\xfe")),
        (ord("A"), long(b"t\1I\0\0\0\1")),
        (ord("T"), bytes(8)),
        (ord("F"), long(text(b"inner", b"table"))),
        (ord("V"), b""),
    ]
)


def payload(frame: bytes) -> bytes:
    reader = FrameReader()
    reader.feed(frame)
    found = reader.next()
    assert found is not None
    return found.payload


def by_name(table: bytes) -> dict[bytes, properties.Field]:
    return {field.name: field for field in properties.fields(table)}


def test_every_field_type_is_kept_byte_by_byte() -> None:
    read = properties.read_start_ok(payload(start_ok(EVERY_TYPE)))
    written = properties.write_start_ok(read, {"amqpprox_client": "10.0.0.1:5 TLS"})
    again = properties.read_start_ok(payload(written))
    assert again.properties == EVERY_TYPE + text(b"amqpprox_client", b"10.0.0.1:5 TLS")
    assert again[1:4] == read[1:4]


def test_what_is_written_is_what_pamqp_reads() -> None:
    table = text(b"product", b"test") + CAPABLE
    read = properties.read_start_ok(payload(start_ok(table)))
    written = properties.write_start_ok(read, {"amqpprox_host": "(:5672) here:40000"})
    _, channel, made = unmarshal(written)
    assert channel == 0
    assert isinstance(made, commands.Connection.StartOk)
    assert made.client_properties == {
        "product": "test",
        "capabilities": {"authentication_failure_close": True},
        "amqpprox_host": "(:5672) here:40000",
    }
    assert (made.mechanism, made.locale) == ("PLAIN", "en_US")
    assert made.response == "\0user\0a very secret password"


def test_fields_are_left_out_by_name_and_the_others_stay_byte_by_byte() -> None:
    table = text(b"mine", b"1") + EVERY_TYPE + text(b"mine", b"2") + CAPABLE
    assert properties.without(table, {b"mine"}) == EVERY_TYPE + CAPABLE
    assert properties.without(table, {b"other"}) == table
    for name in by_name(EVERY_TYPE):
        left = properties.without(EVERY_TYPE, {name})
        assert by_name(left).keys() == by_name(EVERY_TYPE).keys() - {name}


def test_so_many_properties_are_refused_that_they_cost_more_than_their_bytes() -> None:
    most = b"".join(short(number.to_bytes(2, "big")) + b"V" for number in range(limits.AMQP_FIELDS))
    assert len(properties.read_start_ok(payload(start_ok(most))).fields) == limits.AMQP_FIELDS
    with pytest.raises(AmqpFault, match="more than 1024 client properties") as caught:
        properties.read_start_ok(payload(start_ok(most + short(b"one") + b"V")))
    assert caught.value.reply == closing.SYNTAX_ERROR


def test_without_additions_nothing_changes() -> None:
    frame = start_ok(EVERY_TYPE, response=bytes(range(256)))
    assert properties.write_start_ok(properties.read_start_ok(payload(frame)), {}) == frame


@given(data=st.binary(max_size=80))
def test_a_damaged_table_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    frame = start_ok(data)
    try:
        read = properties.read_start_ok(payload(frame))
    except AmqpFault as fault:
        assert fault.reply == closing.SYNTAX_ERROR  # noqa: PT017
    else:
        assert properties.write_start_ok(read, {}) == frame


@given(cut=st.integers(0, len(payload(start_ok(EVERY_TYPE))) - 1))
def test_a_start_ok_that_is_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(AmqpFault) as caught:
        properties.read_start_ok(payload(start_ok(EVERY_TYPE))[:cut])
    assert caught.value.reply == closing.SYNTAX_ERROR


def test_bytes_behind_a_start_ok_are_refused() -> None:
    with pytest.raises(AmqpFault, match="behind its end"):
        properties.read_start_ok(payload(start_ok()) + b"x")


def test_text_fields_and_capabilities() -> None:
    table = text(b"connection_name", "Büro".encode()) + CAPABLE
    found = by_name(table)
    assert properties.text_field(found, b"connection_name") == "Büro"
    assert properties.text_field(found, b"product") == ""
    assert properties.capability(found, b"authentication_failure_close")
    assert not properties.capability(found, b"basic.nack")
    assert not properties.capability({}, b"basic.nack")
    said_no = short(b"capabilities") + b"F" + long(short(b"basic.nack") + b"t\0")
    assert not properties.capability(by_name(said_no), b"basic.nack")
    assert not properties.capability(by_name(text(b"capabilities", b"all")), b"basic.nack")


def test_no_representation_shows_a_password() -> None:
    read = properties.read_start_ok(payload(start_ok()))
    assert "secret" not in repr(read)
    assert "secret" not in f"{read} {[read]}"


def test_open_and_tune_ok_and_close() -> None:
    assert properties.read_open(payload(open_("Büro".encode()))) == "Büro"
    with pytest.raises(AmqpFault, match="not UTF-8"):
        properties.read_open(payload(open_(b"\xff\xfe")))
    assert properties.read_heartbeat(payload(tune_ok(580))) == 580
    with pytest.raises(AmqpFault, match="12 bytes"):
        properties.read_heartbeat(payload(method(31, b"\0\0")))
    assert properties.read_close(payload(closing.close(320, "why"))) == (320, "why")


def test_the_proxys_own_methods() -> None:
    _, _, made = unmarshal(closing.start("PLAIN", "EXTERNAL"))
    assert isinstance(made, commands.Connection.Start)
    assert (made.version_major, made.version_minor) == (0, 9)
    assert (made.mechanisms, made.locales) == ("PLAIN EXTERNAL", "en_US")
    assert made.server_properties is not None
    assert made.server_properties["capabilities"] == dict.fromkeys(closing.CAPABILITIES, True)
    _, _, tune = unmarshal(closing.TUNE)
    assert isinstance(tune, commands.Connection.Tune)
    assert (tune.channel_max, tune.frame_max, tune.heartbeat) == (2047, 131_072, 60)


def test_a_reply_text_is_cut_to_what_fits() -> None:
    _, _, made = unmarshal(closing.close(541, "ü" * 300))
    assert isinstance(made, commands.Connection.Close)
    assert made.reply_text == "ü" * 127
    assert made.reply_code == 541
