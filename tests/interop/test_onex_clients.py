"""The client programs of 1.x do what 1.x's do, to the letter, over TLS 1.2 and 1.3."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nacl import bindings

from ciphermq.custody.onex import OnexKey
from ciphermq.model import onex
from ciphermq.model.onex import Dialect, SessionSeal
from ciphermq.sealing import onex as sealing
from interop.little_server import LittleServer
from interop.onex_clients import (
    TLS_1_2,
    TLS_1_3,
    Binding,
    PipelinedSender,
    Place,
    Receiver,
    Sender,
    connect,
    encode,
    make_message,
    open_message,
)
from support.certificates import Certificates

BINDING = Binding("receiver_1_queue", "CipherMQ_exchange", "receiver_1_key")
PRIVATE = bytes(range(32))
PUBLIC = bindings.crypto_scalarmult_base(PRIVATE)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    found = Certificates(tmp_path_factory.mktemp("certificates"))
    for name in ("sender_1", "receiver_1"):
        found.client(name)
    return found


@pytest.fixture
async def server(certificates: Certificates) -> AsyncIterator[LittleServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates.authority.path / "ca.crt")
    context.load_cert_chain(certificates.path("server", "crt"), certificates.path("server", "key"))
    running = LittleServer(context)
    await running.start()
    yield running
    await running.stop()


Places = Callable[[str], Place]


@pytest.fixture(params=[TLS_1_2, TLS_1_3], ids=["TLS 1.2", "TLS 1.3"])
def place(
    request: pytest.FixtureRequest, server: LittleServer, certificates: Certificates
) -> Places:
    def found(name: str) -> Place:
        authority: Path = certificates.authority.path / "ca.crt"
        files = (certificates.path(name, kind) for kind in ("crt", "key"))
        return Place(server.port, authority, *files, tls=request.param)

    return found


@asynccontextmanager
async def receiving(receiver: Receiver) -> AsyncIterator[None]:
    task = asyncio.create_task(receiver.run())
    try:
        await until(lambda: "Subscribed to queue" in receiver.heard)
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def senders(place: Places, version: str) -> Sender:
    kind = PipelinedSender if version == "1.5" else Sender
    return kind(
        place("sender_1"), "sender_1", "receiver_1", BINDING, version, pause=0.01, patience=5
    )


TEXTS = [f"message {number}: 21.5 °C" for number in range(60)]


@pytest.mark.parametrize("version", ["1.4.0", "1.4", "1.5"])
async def test_messages_go_from_one_to_the_other(
    server: LittleServer, place: Places, version: str
) -> None:
    receiver = Receiver(place("receiver_1"), "receiver_1", BINDING, PRIVATE, version)
    async with receiving(receiver):
        sender = senders(place, version)
        await sender.run(TEXTS)
        await until(lambda: len(receiver.received) == len(TEXTS))
        await until(lambda: not server.queues[BINDING.queue])
    assert [text for _, text in receiver.received] == TEXTS
    assert sender.sent == dict(receiver.received)
    assert sender.given_up == sender.replies == receiver.repeated == []
    acked = [line for line in receiver.heard if line.startswith("ACK_CONFIRMED ")]
    assert len(acked) <= len(TEXTS)


@pytest.mark.parametrize("version", ["1.4", "1.5"])
async def test_none_is_lost_and_none_shown_twice_when_all_goes_wrong(
    server: LittleServer, place: Places, version: str
) -> None:
    receiver = Receiver(place("receiver_1"), "receiver_1", BINDING, PRIVATE, version, pause=0.01)
    async with receiving(receiver):
        server.silent_acks, server.deaf_acks = 2, 3
        sender = senders(place, version)
        sender.tries = 50
        sending = asyncio.create_task(sender.run(TEXTS))
        await until(lambda: len(receiver.received) > 20)
        for _ in range(2):
            await server.stop()
            await asyncio.sleep(0.02)
            await server.start()
            await asyncio.sleep(0.05)
        await sending
        await until(lambda: len(receiver.received) == len(TEXTS))
    assert sorted(text for _, text in receiver.received) == sorted(TEXTS)
    assert sender.given_up == []
    assert receiver.connections > 3


async def test_the_order_of_a_sender_s_commands(server: LittleServer, place: Places) -> None:
    server.keys["receiver_1"] = encode(PUBLIC)
    await senders(place, "1.4").run(["a", "b"])
    declared = ["DeclareQueue", "DeclareExchange", "Bind"]
    assert server.commands == [*declared, "GetKey", *declared, "Publish", "Publish"]


async def test_the_order_of_a_receiver_s_commands(server: LittleServer, place: Places) -> None:
    async with receiving(Receiver(place("receiver_1"), "receiver_1", BINDING, PRIVATE)):
        pass
    declared = ["DeclareQueue", "DeclareExchange", "Bind"]
    assert server.commands == ["RegisterKey", *declared, "Consume"]


@pytest.mark.parametrize("version", ["1.4", "1.5"])
async def test_a_sender_gives_up_after_its_tries(
    server: LittleServer, place: Places, version: str
) -> None:
    server.keys["receiver_1"] = encode(PUBLIC)
    server.refusal = "the queue is full"
    sender = senders(place, version)
    await sender.run(["a", "b"])
    assert sender.given_up == ["a", "b"]
    assert server.commands.count("Publish") == 6
    assert sender.replies == ["Error: the queue is full"] * 6


async def test_a_sender_without_a_receiver_s_key(place: Places) -> None:
    with pytest.raises(LookupError, match="Public key not found"):
        await senders(place, "1.4").run(["a"])


async def test_older_spellings(server: LittleServer, place: Places) -> None:
    receiver = Receiver(place("receiver_1"), "receiver_1", BINDING, PRIVATE)
    receiver.register = "register_key receiver_1"
    async with receiving(receiver):
        sender = senders(place, "1.4")
        sender.ask_for_key = "get_key"
        await sender.run(["a"])
        await until(lambda: len(receiver.received) == 1)


async def test_what_a_receiver_has_seen_it_neither_shows_nor_acks(
    server: LittleServer, place: Places
) -> None:
    receiver = Receiver(place("receiver_1"), "receiver_1", BINDING, PRIVATE, pause=0.01)
    async with receiving(receiver):
        server.deaf_acks = 1
        sender = senders(place, "1.4")
        await sender.run(["a"])
        await until(lambda: bool(receiver.repeated))
        await asyncio.sleep(0.05)
    assert [text for _, text in receiver.received] == ["a"]
    assert receiver.repeated == list(sender.sent)
    assert server.commands.count("Ack") == 1
    assert list(server.queues[BINDING.queue]) == list(sender.sent)


async def test_the_version_of_tls_is_the_one_meant(place: Places) -> None:
    lines = await connect(place("sender_1"))
    assert lines.tls == {TLS_1_2: "TLSv1.2", TLS_1_3: "TLSv1.3"}[place("sender_1").tls]
    assert await lines.ask("nonsense") == "Unknown command"
    await lines.close()


@pytest.mark.parametrize("version", ["1.4.0", "1.4", "1.5"])
def test_a_version_opens_its_own_messages_only(version: str) -> None:
    message = make_message(version, "sender_1", "receiver_1", PUBLIC, "text")
    assert ("tag" in message) == (version == "1.4.0")
    for other in ("1.4", "1.5"):
        if other == version[:3]:
            assert open_message(other, PRIVATE, message) == "text"
        else:
            with pytest.raises(Exception, match=r"(?i)decrypt"):
                open_message(other, PRIVATE, message)


# --- and ours with theirs -------------------------------------------------------------------------

DIALECTS = {
    "1.4.0": Dialect(SessionSeal.V1_4, separate_tag=True),
    "1.4": Dialect(SessionSeal.V1_4),
    "1.5": Dialect(SessionSeal.V1_5),
}


@pytest.mark.parametrize("version", DIALECTS)
def test_we_open_what_they_seal(version: str) -> None:
    made = make_message(version, "sender_1", "receiver_1", PUBLIC, "21.5 °C")
    text = sealing.open_message(
        onex.parse(json.dumps(made).encode()),
        receiver="receiver_1",
        key=OnexKey(PRIVATE),
        dialect=DIALECTS[version],
    )
    assert text.decode() == "21.5 °C"


@pytest.mark.parametrize("version", DIALECTS)
def test_they_open_what_we_seal(version: str) -> None:
    data = sealing.seal_message(
        "21.5 °C".encode(),
        message_id="sender_1-1-receiver_1",
        receiver="receiver_1",
        public_key=PUBLIC,
        dialect=DIALECTS[version],
    )
    assert open_message(version, PRIVATE, json.loads(data)) == "21.5 °C"
