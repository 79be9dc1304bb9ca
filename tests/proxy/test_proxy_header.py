"""The PROXY protocol: headers read from any cut, and written so that others read them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.errors import BadProxyHeader
from ciphermq.proxy.proxyheader import SIGNATURE, HeaderReader, Source, write

FOUR = Source("192.0.2.7", 50_000, "198.51.100.1", 5672)
SIX = Source("2001:db8::7", 50_000, "2001:db8::1", 5671)
BEHIND = b"AMQP\0\0\x09\x01"

addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)
ports = st.integers(0, 65_535)


def plain(address: str) -> object:
    """An address without the clothes of the other family."""
    found = ipaddress.ip_address(address)
    return getattr(found, "ipv4_mapped", None) or found


def read(data: bytes, sizes: list[int]) -> tuple[HeaderReader, bytes]:
    """As a session reads it: looks at what is there, takes only what is the header's. What is left
    is what follows."""
    reader, at, there = HeaderReader(), 0, 0
    steps = iter(sizes)
    while not reader.done:
        there = max(at + 1, min(len(data), there + next(steps, len(data))))
        assert there <= len(data), "it wants more than a header"
        seen = data[at:there][: reader.most]
        wants = reader.wants(seen)
        assert 0 <= wants <= len(seen)
        reader.take(data[at : at + wants])
        at += wants
        if at == len(data):
            break
    return reader, data[at:]


@pytest.mark.parametrize("source", [FOUR, SIX])
@pytest.mark.parametrize("version", [1, 2])
def test_what_is_written_is_read(version: int, source: Source) -> None:
    reader, rest = read(write(version, source) + BEHIND, [])
    assert reader.source == source
    assert rest == BEHIND


@given(
    version=st.sampled_from([1, 2]),
    source=st.builds(Source, addresses.map(str), ports, addresses.map(str), ports),
    sizes=st.lists(st.integers(1, 30), max_size=40),
)
def test_any_cut_and_any_mixture_of_families(
    version: int, source: Source, sizes: list[int]
) -> None:
    reader, rest = read(write(version, source) + BEHIND, sizes)
    assert rest == BEHIND
    assert reader.source is not None
    assert (reader.source.port, reader.source.to_port) == (source.port, source.to_port)
    assert plain(reader.source.address) == plain(source.address)
    assert plain(reader.source.to_address) == plain(source.to_address)


def test_version_1_is_what_the_document_shows() -> None:
    header = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 5672\r\n"
    assert write(1, FOUR) == header
    assert write(1, SIX) == b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 5671\r\n"


def test_version_2_is_what_the_document_shows() -> None:
    assert write(2, FOUR) == (
        SIGNATURE
        + b"\x21\x11\x00\x0c"
        + bytes([192, 0, 2, 7, 198, 51, 100, 1])
        + b"\xc3\x50\x16\x28"
    )


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        SIGNATURE + b"\x20\x00\x00\x00",
        SIGNATURE + b"\x21\x00\x00\x03abc",
        SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
    ],
)
def test_a_sender_that_speaks_for_itself(header: bytes) -> None:
    reader, rest = read(header + BEHIND, [])
    assert reader.done
    assert reader.source is None
    assert rest == BEHIND


def test_what_a_balancer_adds_to_version_2_is_skipped() -> None:
    extra = b"\x04\x00\x05extra"
    plain = write(2, FOUR)
    length = (12 + len(extra)).to_bytes(2, "big")
    reader, rest = read(plain[:14] + length + plain[16:] + extra + BEHIND, [3, 9, 1, 1, 5])
    assert reader.source == FOUR
    assert rest == BEHIND


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (BEHIND, "no PROXY header: is the balancer in front told to send one"),
        (b"PROXYTCP4 1.2.3.4", "no PROXY header"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", "makes no sense"),
        (b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n", "makes no sense"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", "makes no sense"),
        (b"PROXY TCP6 fe80::1%anything ::1 1 2\r\n", "makes no sense"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 +2\r\n", "makes no sense"),
        (b"PROXY TCP4 1.2.3.\xff 5.6.7.8 1 2\r\n", "makes no sense"),
        (b"PROXY TCP4 " + b"1" * 200, "more than 107 bytes"),
        (SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12), "of version 3, command 1"),
        (SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11), "too short for its addresses"),
        (SIGNATURE + b"\x21\x11\xff\xff", "of 65535 bytes; at most 1024"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_bad_headers_are_refused(header: bytes, sentence: str, size: int) -> None:
    with pytest.raises(BadProxyHeader, match=sentence):
        read(header, [size] * 400)


@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"PROXY ", SIGNATURE]))
def test_nothing_else_is_raised(data: bytes, start: bytes) -> None:
    reader = HeaderReader()
    said = start + data
    at = 0
    try:
        while at < len(said) and not reader.done:
            wants = reader.wants(said[at : at + reader.most])
            assert wants > 0
            reader.take(said[at : at + wants])
            at += wants
    except BadProxyHeader:
        pass
