"""TLS through memory: what gets across, what is counted, what is said when it fails."""

from __future__ import annotations

import ssl
from collections.abc import Iterable

import pytest

from ciphermq.wire.tls import RECORD, TlsPump
from support.certificates import Certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def pumps(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[TlsPump, TlsPump]:
    return TlsPump(client, server_name="localhost"), TlsPump(server)


def exchange(one: TlsPump, other: TlsPump, *, cut: int = 10**6) -> list[str]:
    """Run both handshakes; each side's first error, by reason."""
    errors: dict[TlsPump, str] = {}
    for _ in range(4):
        for here, there in ((one, other), (other, one)):
            try:
                if here.established:
                    here.fill(memoryview(bytearray(10)))
                else:
                    here.handshake()
            except ssl.SSLError as error:
                errors.setdefault(here, str(error.reason))
            data = here.outgoing()
            for at in range(0, len(data), cut):
                there.receive(data[at : at + cut])
    return list(errors.values())


@pytest.fixture
def pair(certificates: Certificates) -> tuple[TlsPump, TlsPump]:
    client, server = pumps(certificates.client("alice"), certificates.server())
    assert exchange(client, server) == []
    return client, server


def drain(pump: TlsPump, sizes: Iterable[int] = (100_000,)) -> bytes:
    found = b""
    for size in [*sizes, 10**6]:
        room = memoryview(bytearray(size))
        found += room[: pump.fill(room)]
    return found


def test_both_sides_agree(pair: tuple[TlsPump, TlsPump], certificates: Certificates) -> None:
    client, server = pair
    assert client.established
    assert server.established
    assert (client.protocol, server.protocol) == ("cmq/2", "cmq/2")
    assert server.peer_certificate
    assert client.peer_certificate
    assert server.peer_certificate != client.peer_certificate


def test_bytes_get_across_in_any_cut(pair: tuple[TlsPump, TlsPump]) -> None:
    client, server = pair
    data = bytes(range(256)) * 400
    client.write(data)
    cipher = client.outgoing()
    assert data[:64] not in cipher
    found = b""
    for at in range(0, len(cipher), 7001):
        server.receive(cipher[at : at + 7001])
        found += drain(server, [1, 2, 3])
    assert found == data


def test_records_are_counted(pair: tuple[TlsPump, TlsPump]) -> None:
    client, server = pair
    for size in (1, RECORD, RECORD + 1, 0, 5 * RECORD):
        client.write(bytes(size))
    assert client.records_out == 1 + 1 + 2 + 0 + 5
    server.receive(client.outgoing())
    drain(server)
    assert server.records_in >= client.records_out


def test_the_end_in_order(pair: tuple[TlsPump, TlsPump]) -> None:
    client, server = pair
    client.write(b"last words")
    client.end()
    server.receive(client.outgoing())
    assert drain(server) == b"last words"
    assert server.ended
    server.write(b"and mine")
    client.receive(server.outgoing())
    assert drain(client) == b"and mine"


def test_what_comes_before_damage_counts_and_the_damage_is_not_forgotten(
    pair: tuple[TlsPump, TlsPump],
) -> None:
    client, server = pair
    client.write(b"good")
    good = client.outgoing()
    client.write(b"changed on the way")
    bad = bytearray(client.outgoing())
    bad[-1] ^= 1
    server.receive(good + bytes(bad))
    room = memoryview(bytearray(100))
    assert server.fill(room) == 4
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            server.fill(room)
    assert server.outgoing()  # the alert, for the client


def test_an_alert_gets_out_when_the_client_is_refused(certificates: Certificates) -> None:
    client, server = pumps(certificates.client("old", days=(-300, -2)), certificates.server())
    assert exchange(client, server) == [
        "CERTIFICATE_VERIFY_FAILED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    ]


def test_an_alert_gets_out_when_the_server_is_refused(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = Certificates(tmp_path_factory.mktemp("stranger"))
    client, server = pumps(stranger.client("mallory"), certificates.server())
    assert exchange(client, server) == ["CERTIFICATE_VERIFY_FAILED", "TLSV1_ALERT_UNKNOWN_CA"]


def test_a_handshake_byte_by_byte(certificates: Certificates) -> None:
    client, server = pumps(certificates.client("alice"), certificates.server())
    assert exchange(client, server, cut=1) == []
    assert client.established
    assert server.established


def test_an_end_without_notice(pair: tuple[TlsPump, TlsPump]) -> None:
    _, server = pair
    server.receive_eof()
    with pytest.raises(ssl.SSLEOFError):
        server.fill(memoryview(bytearray(10)))
