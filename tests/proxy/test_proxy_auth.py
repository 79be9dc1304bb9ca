"""The authentication service's protobuf: bytes pinned, anything else refused in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.errors import ProxyError
from ciphermq.proxy.auth import (
    Answer,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from ciphermq.proxy.gate import Credentials, Opening


def opening(vhost: str, mechanism: str, credentials: bytes, client: str, name: str) -> Opening:
    return Opening(
        vhost=vhost,
        client=client,
        client_port=1,
        connection_name=name,
        mechanism=mechanism,
        credentials=Credentials(credentials),
        listen_port=5672,
        tls=False,
        certificate_name=None,
    )


def test_the_request_is_what_protobuf_makes_of_it() -> None:
    asked = encode_request(opening("/", "PLAIN", b"\0u\0p", "10.0.0.1", "app"))
    assert asked == (
        b"\x0a\x01/" + b"\x12\x0d\x0a\x05PLAIN\x12\x04\0u\0p" + b"\x1a\x0810.0.0.1" + b"\x22\x03app"
    )


def test_what_is_empty_is_left_out() -> None:
    assert encode_request(opening("", "", b"", "", "")) == b"\x12\x00"
    assert encode_answer(True) == b""
    assert decode_answer(b"") == Answer(True)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\x08\x00\x12\x02ok", Answer(True, "ok")),
        (b"\x08\x01\x12\x02no", Answer(False, "no")),
        (b"\x1a\x09\x0a\x05PLAIN\x12\x00", Answer(True, "", "PLAIN", Credentials(b""))),
        (b"\x50\x96\x01\x5a\x01x\x65abcd\x69abcdefgh\x08\x01", Answer(False)),  # unknown fields
        (b"\x08\x01\x08\x00", Answer(True)),  # the last one counts
    ],
)
def test_answers_are_read(data: bytes, answer: Answer) -> None:
    assert decode_answer(data) == answer


@pytest.mark.parametrize(
    "data",
    [b"\x08", b"\x12\x05abc", b"\x0b", b"\x08" + b"\xff" * 10, b"\x08\x02", b"\x1a\x02\x0a\x05"],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ProxyError):
        decode_answer(data)


@given(st.binary(max_size=200))
def test_nothing_but_a_refusal_comes_of_any_bytes(data: bytes) -> None:
    try:
        decode_answer(data)
    except ProxyError:
        return


@given(
    st.booleans(), st.text(max_size=300), st.none() | st.tuples(st.text(max_size=9), st.binary())
)
def test_answers_come_back_as_they_went(
    allowed: bool, reason: str, sasl: tuple[str, bytes] | None
) -> None:
    answer = decode_answer(encode_answer(allowed, reason, sasl))
    assert (answer.allowed, answer.reason) == (allowed, reason)
    assert (answer.mechanism, answer.credentials) == (sasl or (None, None))


@given(st.text(), st.text(max_size=20), st.binary(), st.text(max_size=40), st.text())
def test_requests_come_back_as_they_went(
    vhost: str, mechanism: str, credentials: bytes, client: str, name: str
) -> None:
    asked = decode_request(encode_request(opening(vhost, mechanism, credentials, client, name)))
    assert asked == {
        "vhost": vhost.encode(),
        "mechanism": mechanism.encode(),
        "credentials": credentials,
        "client": client.encode(),
        "connection_name": name.encode(),
    }
