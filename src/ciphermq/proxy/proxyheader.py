"""The PROXY protocol, versions 1 and 2: who the client really is, said by the proxy before us,
and said by us to a broker that wants to know.

https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

from ciphermq.errors import BadProxyHeader

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""Version 2 begins with it."""

_MOST_1: Final = 107
"""Bytes of a version 1 header, its line break included (section 2.1)."""
_MOST_2: Final = 1024
"""Bytes behind the first sixteen of version 2: two addresses, and what else a balancer adds."""
_FIXED_2: Final = 16
_SIZES: Final = {0x11: (4, 12), 0x21: (16, 36)}
"""Family and protocol to the bytes of one address and of the whole block (section 2.2)."""


class Source(NamedTuple):
    """Who connected, and where to."""

    address: str
    port: int
    to_address: str
    to_port: int


class HeaderReader:
    """Takes in one header and not a byte more: what follows may be TLS, which is not ours to read.

    `wants` says how many bytes may be taken from the socket, after looking at (MSG_PEEK) up to
    that many.
    """

    def __init__(self) -> None:
        self._bytes = b""
        self.done = False
        self.source: Source | None = None
        """None if the header says that the sender speaks for itself (LOCAL, UNKNOWN)."""

    @property
    def most(self) -> int:
        """So many bytes are to be looked at."""
        if self._is_2():
            return self._length_2() - len(self._bytes)
        return _MOST_1 + 1 - len(self._bytes)

    def wants(self, seen: bytes) -> int:
        """How many of the bytes that were looked at belong to the header, as far as one knows.

        Raises `BadProxyHeader`.
        """
        held = self._bytes + seen
        if SIGNATURE.startswith(held[:12]):
            return min(
                len(seen), (16 if len(held) < _FIXED_2 else _length(held)) - len(self._bytes)
            )
        if not b"PROXY ".startswith(held[:6]):
            raise BadProxyHeader("no PROXY header: is the balancer in front told to send one?")
        end = held.find(b"\r\n")
        if end < 0 and len(held) >= _MOST_1:
            raise BadProxyHeader(f"a PROXY header of more than {_MOST_1} bytes")
        return len(seen) if end < 0 else end + 2 - len(self._bytes)

    def take(self, data: bytes) -> None:
        """These were taken from the socket. Raises `BadProxyHeader`."""
        self._bytes = held = self._bytes + data
        if self._is_2():
            if len(held) >= _FIXED_2 and len(held) >= _length(held):
                self.source, self.done = _read_2(held), True
        elif held.endswith(b"\r\n") and held.startswith(b"PROXY"):
            self.source, self.done = _read_1(held), True

    def _is_2(self) -> bool:
        return bool(self._bytes) and SIGNATURE.startswith(self._bytes[:12])

    def _length_2(self) -> int:
        return _FIXED_2 if len(self._bytes) < _FIXED_2 else _length(self._bytes)


def write(version: int, source: Source) -> bytes:
    """The header of that version for a client."""
    address = ipaddress.ip_address(source.address)
    to = ipaddress.ip_address(source.to_address)
    if address.version != to.version:  # a v4 client of a v6 socket, or the other way round
        address, to = _six(address), _six(to)
    if version == 1:
        ports = f"{source.port} {source.to_port}"
        return f"PROXY TCP{address.version} {address} {to} {ports}\r\n".encode()
    block = b"".join(
        (
            address.packed,
            to.packed,
            source.port.to_bytes(2, "big"),
            source.to_port.to_bytes(2, "big"),
        )
    )
    family = 0x11 if address.version == 4 else 0x21
    return SIGNATURE + bytes((0x21, family)) + len(block).to_bytes(2, "big") + block


def _length(held: bytes) -> int:
    length = int.from_bytes(held[14:16], "big")
    if length > _MOST_2:
        raise BadProxyHeader(f"a PROXY header of {length} bytes; at most {_MOST_2} are taken")
    return _FIXED_2 + length


def _read_1(line: bytes) -> Source | None:
    words = line[:-2].split(b" ")
    if words[:2] == [b"PROXY", b"UNKNOWN"]:
        return None
    try:
        _, family, address, to, port, to_port = words
        version = {b"TCP4": 4, b"TCP6": 6}[family]
        if b"%" in line:  # a zone is any text, and means something on the sender's machine only
            raise ValueError(line)
        addresses = [ipaddress.ip_address(one.decode("ascii")) for one in (address, to)]
        if any(one.version != version for one in addresses):
            raise ValueError(version)
        return Source(str(addresses[0]), _port(port), str(addresses[1]), _port(to_port))
    except (ValueError, KeyError):
        raise BadProxyHeader(f"a PROXY header that makes no sense: {line[:-2]!r}") from None


def _port(text: bytes) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 65_535:
        raise ValueError(text)
    return int(text)


def _read_2(held: bytes) -> Source | None:
    command, family = held[12], held[13]
    if command not in (0x20, 0x21):
        raise BadProxyHeader(f"a PROXY header of version {command >> 4}, command {command & 15}")
    if command == 0x20 or family not in _SIZES:  # LOCAL, or no TCP over IP: the sender's own
        return None
    size, whole = _SIZES[family]
    block = held[_FIXED_2:]
    if len(block) < whole:
        raise BadProxyHeader("a PROXY header too short for its addresses")
    ports = block[2 * size : whole]
    return Source(
        str(ipaddress.ip_address(block[:size])),
        int.from_bytes(ports[:2], "big"),
        str(ipaddress.ip_address(block[size : 2 * size])),
        int.from_bytes(ports[2:], "big"),
    )


def _six(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(f"::ffff:{address}") if address.version == 4 else address
