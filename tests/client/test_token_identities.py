"""Identities whose keys are on a token: made, certified, sending, receiving, and without it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pkcs11 import exceptions

from ciphermq import limits
from ciphermq.client import Client, bundle, enrol, layout, view, wrapping
from ciphermq.client.identity import Identity
from ciphermq.client.layout import IdentitySettings, TokenSettings
from ciphermq.client.tokens import TokenPlan
from ciphermq.custody.files import FileSigner, is_elsewhere
from ciphermq.custody.passphrase import CHEAP
from ciphermq.errors import (
    AuthorityError,
    CertificateError,
    ConfigError,
    IdentityError,
    PassphraseError,
    PinError,
    SenderMayNotSign,
    TokenAway,
    TokenError,
    TokenKeyUnclear,
    UnknownReceiver,
    UsageError,
    WaitTimeout,
)
from ciphermq.model.suites import Suite
from ciphermq.pki import keyfile, names
from ciphermq.pki.authority import key_digest, load_companion, load_request, request_key
from ciphermq.wire.cmq2 import frames
from support.broker import Broker
from support.deployment import Deployment, now_ms
from support.faulty import Faults, put_between
from support.softhsm import PIN, SoftHsm, make_softhsm

Join = Callable[..., Awaitable[Client]]
URL = "cmq://queue.example.org:7443"


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    monkeypatch.setenv("CIPHERMQ_PIN", PIN)
    return make_softhsm(tmp_path / "hsm", monkeypatch)


@pytest.fixture
def faults(hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> Faults:
    monkeypatch.setattr(limits, "TOKEN_POLL", 0.02)
    return put_between(monkeypatch)


def add(deployment: Deployment, name: str, plan: TokenPlan, **options: str) -> Path:
    """What `ciphermq identity add --token` does."""
    path = deployment.identity(name)
    url, server_name = deployment.made.broker()
    enrol.create(
        path,
        name=name,
        url=url,
        server_name=server_name,
        authority=deployment.authority,
        now_ms=now_ms(),
        cost=CHEAP,
        plan=plan,
        **options,  # type: ignore[arg-type]
    )
    return path


def spent(hsm: SoftHsm, before: dict[str, int]) -> dict[str, int]:
    """Calls to the token since `before`, by what for."""
    now = hsm.token().call_counts()
    return {what: now[what] - before.get(what, 0) for what in now if now[what] != before.get(what)}


# --- receiving ------------------------------------------------------------------------------------


async def test_a_batch_costs_one_call_and_a_message_none(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, alice: Client
) -> None:
    """Senders need know nothing: alice's are as ever."""
    path = add(deployment, "carol", TokenPlan(token=hsm.token()))
    settings = IdentitySettings.read(path)
    assert (settings.custody, settings.suite) == ("pkcs11", "P256")
    (file,) = (path / "sealing").glob("*.key")
    assert is_elsewhere(file.read_bytes())
    carol = await join("carol")
    await carol.register_key()
    payloads = [b"%d" % number for number in range(500)]
    before = hsm.token().call_counts()
    async with alice.sender("carol", batch_bytes=1000) as sender:
        await sender.send_many(payloads)
    batches = 0
    got: list[bytes] = []
    async with carol.receiver(limit=len(payloads)) as receiver:
        async for batch in receiver.batches():
            batches += 1
            got += batch.payloads
    assert got == payloads
    assert 1 < batches < 100
    # No call that is not an ECDH, but for the session that was opened and the key looked up in it.
    assert spent(hsm, before)["ecdh"] == batches


async def test_a_wrong_pin_is_told_at_the_start(
    deployment: Deployment,
    broker: Broker,
    join: Join,
    hsm: SoftHsm,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = add(deployment, "carol", TokenPlan(token=hsm.token()))
    # As another process would: through a module that nobody has logged in to.
    other = tmp_path / "another.so"
    shutil.copyfile(hsm.module, other)
    settings = IdentitySettings.read(path)
    assert settings.token is not None
    moved = msgspec.structs.replace(settings.token, module=str(other))
    msgspec.structs.replace(settings, token=moved).write(path)
    monkeypatch.setenv("CIPHERMQ_PIN", "1111")
    for _ in range(3):
        with pytest.raises(PinError, match="refuses the PIN"):
            await join("carol")


async def test_a_token_may_be_away_at_the_start(
    deployment: Deployment,
    broker: Broker,
    join: Join,
    hsm: SoftHsm,
    faults: Faults,
    alice: Client,
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token()))
    await (await join("carol")).register_key()
    await alice.sender("carol").send(b"x")
    faults.always("*", exceptions.TokenNotPresent())
    carol = await join("carol")
    async with carol.receiver(limit=1) as messages:
        waiting = asyncio.create_task(messages.next())
        seen = faults.calls["get_slots"]
        while faults.calls["get_slots"] < seen + 2:
            assert not waiting.done()
            await asyncio.sleep(0.01)
        faults.mend()
        message = await waiting
        assert message is not None
        message.ack()


async def test_a_redelivery_costs_no_call(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, alice: Client
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token()))
    carol = await join("carol")
    await carol.register_key()
    await alice.sender("carol").send(b"again")
    async with carol.receiver() as messages:
        (await messages.next()).nack()  # type: ignore[union-attr]
        before = hsm.token().call_counts()
        again = await messages.next()
        assert again is not None
        assert again.payload == b"again"
        assert spent(hsm, before) == {}
        again.ack()


async def test_messages_wait_for_a_token_and_go_on(
    deployment: Deployment,
    broker: Broker,
    join: Join,
    hsm: SoftHsm,
    faults: Faults,
    alice: Client,
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token()))
    carol = await join("carol")
    await carol.register_key()
    faults.always("*", exceptions.DeviceRemoved())
    await alice.sender("carol").send(b"while it is away")
    async with carol.receiver() as messages:
        waiting = asyncio.create_task(messages.next())
        # It asks again and again, and neither fails nor gives the message up.
        seen = faults.calls["get_slots"]
        while faults.calls["get_slots"] < seen + 3:
            assert not waiting.done()
            await asyncio.sleep(0.01)
        assert broker.queue("carol")[0] + broker.queue("carol")[1] == 1
        assert messages.refused == 0
        faults.mend()
        message = await waiting
        assert message is not None
        assert message.payload == b"while it is away"
        assert message.redeliveries == 0
        message.ack()
        await alice.sender("carol").send(b"and on")
        again = await messages.next()
        assert again is not None
        assert again.payload == b"and on"


async def test_who_waits_for_a_token_does_not_spin(
    deployment: Deployment,
    broker: Broker,
    join: Join,
    hsm: SoftHsm,
    faults: Faults,
    alice: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When what waited went with its connection, there is nothing to look at again and again."""
    monkeypatch.setattr(limits, "TOKEN_POLL", 0.02)
    add(deployment, "carol", TokenPlan(token=hsm.token()))
    carol = await join("carol")
    await carol.register_key()
    faults.always("*", exceptions.DeviceRemoved())
    await alice.sender("carol").send(b"while it is away")
    async with carol.receiver() as messages:
        waiting = asyncio.create_task(messages.next())
        source = messages._source
        while source._away_until is None:
            await asyncio.sleep(0.005)
        kept = list(source._feed._buffer)
        source._feed._buffer.clear()
        while source._away_until is not None:
            assert not waiting.done()
            await asyncio.sleep(0.005)
        faults.mend()
        source._feed.put_back(kept)
        source._feed.arrived.set()
        message = await waiting
        assert message is not None
        message.ack()


async def test_a_token_is_really_pulled_out_and_put_back(
    deployment: Deployment,
    broker: Broker,
    join: Join,
    hsm: SoftHsm,
    alice: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No layer of ours between: SoftHSM itself misses it."""
    monkeypatch.setattr(limits, "TOKEN_POLL", 0.02)
    add(deployment, "carol", TokenPlan(token=hsm.token()))
    carol = await join("carol")
    await carol.register_key()
    async with carol.receiver() as messages:
        for number in range(3):
            hsm.pull_out()
            await alice.sender("carol").send(b"%d" % number)
            waiting = asyncio.create_task(messages.next())
            while not messages._source._missed:
                assert not waiting.done()
                await asyncio.sleep(0.01)
            hsm.put_back()
            message = await waiting
            assert message is not None
            assert message.payload == b"%d" % number
            assert message.redeliveries == 0
            message.ack()
    assert messages.refused == 0


async def test_a_receivers_own_time_out_still_counts(
    deployment: Deployment,
    broker: Broker,
    join: Join,
    hsm: SoftHsm,
    faults: Faults,
    alice: Client,
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token()))
    carol = await join("carol")
    await carol.register_key()
    faults.always("*", exceptions.DeviceRemoved())
    await alice.sender("carol").send(b"while it is away")
    async with carol.receiver(timeout=0.3) as messages:
        with pytest.raises(WaitTimeout):
            await messages.next()
    async with carol.receiver() as messages:
        waiting = asyncio.create_task(messages.next())
        while faults.calls["get_slots"] < 3:
            await asyncio.sleep(0.01)
        messages.stop()
        assert await waiting is None


async def test_what_waits_for_no_token_is_told(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, faults: Faults, alice: Client
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token()))
    carol = await join("carol")
    await carol.register_key()
    await alice.sender("carol").send(b"x")
    faults.always("derive_key", exceptions.MechanismInvalid())
    async with carol.receiver() as messages:
        with pytest.raises(TokenError, match="mechanism invalid"):
            await messages.next()
    await broker.until(lambda broker: broker.queue("carol") == (1, 0))


async def test_a_new_sealing_key_is_made_on_the_token_and_the_former_still_opens(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, alice: Client
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token()))
    carol = await join("carol")
    await carol.register_key()
    await alice.sender("carol").send(b"to the first")
    identity = deployment.load("carol")
    before = {key.id for key in hsm.token().private_keys()}
    identity.rotate_key(now_ms())
    assert len({key.id for key in hsm.token().private_keys()} - before) == 1
    carol = await join("carol")
    await carol.register_key()
    await (await join("bob")).sender("carol").send(b"to the second")
    async with carol.receiver(limit=2) as messages:
        assert [message.payload async for message in messages] == [
            b"to the first",
            b"to the second",
        ]


# --- signing --------------------------------------------------------------------------------------


async def test_an_identity_all_of_whose_keys_are_on_a_token(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, bob: Client
) -> None:
    path = add(deployment, "carol", TokenPlan(token=hsm.token(), signing=True))
    assert not (path / "key.pem").exists()
    signs = layout.read_certificate(path)
    connects = layout.read_certificate(path, layout.TLS_CERTIFICATE)
    assert names.client_id_of(signs) == names.client_id_of(connects) == "carol"
    assert (names.may_sign(signs), names.may_sign(connects)) == (True, False)
    assert signs.public_key() != connects.public_key()
    carol = await join("carol")
    await carol.register_key()
    before = hsm.token().call_counts()
    async with carol.sender("bob", batch_bytes=1000) as sender:
        await sender.send_many([b"%d" % number for number in range(200)])
    await bob.sender("carol").send(b"and back")
    async with bob.receiver(limit=200) as messages:
        got = [(message.sender, message.payload) async for message in messages]
    assert got == [("carol", b"%d" % number) for number in range(200)]
    async with carol.receiver(limit=1) as messages:
        assert [message.payload async for message in messages] == [b"and back"]
    calls = spent(hsm, before)
    assert calls["ecdh"] == 1
    assert 1 < calls["sign"] < 50


async def test_a_stolen_tls_key_signs_nothing(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, bob: Client
) -> None:
    path = add(deployment, "carol", TokenPlan(token=hsm.token(), signing=True))
    thief = deployment.load("carol")
    der = layout.read_certificate(path, layout.TLS_CERTIFICATE)
    stolen = keyfile.read_key(path / layout.TLS_KEY, None)
    thief.signer = FileSigner(stolen, (der.public_bytes(Encoding.DER),))
    thief.certificate = der
    with pytest.raises(SenderMayNotSign):
        thief.verifier.check_signer(thief.signer.chain, now_ms(), now_ms())
    forged = thief.make_key_record(now_ms())
    carol = await join("carol")
    with pytest.raises(Exception, match="may not sign") as caught:
        await carol.ask(frames.KeyPut, record=forged)
    assert caught.value.code in {"access-refused", "bad-request", "key-record-forged"}


async def test_sending_waits_for_a_token_and_goes_on(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, faults: Faults, bob: Client
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token(), signing=True))
    carol = await join("carol")
    faults.always("*", exceptions.TokenNotPresent())
    sending = asyncio.create_task(carol.sender("bob").send(b"patience"))
    while faults.calls["get_slots"] < 3:
        assert not sending.done()
        await asyncio.sleep(0.01)
    faults.mend()
    await sending
    async with bob.receiver(limit=1) as messages:
        assert [message.payload async for message in messages] == [b"patience"]


async def test_sending_gives_up_after_its_patience(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, faults: Faults, bob: Client
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token(), signing=True))
    carol = await join("carol", send_timeout=0.2)
    faults.always("*", exceptions.TokenNotPresent())
    with pytest.raises((WaitTimeout, TokenAway)):
        await carol.sender("bob").send(b"in vain")
    with pytest.raises((WaitTimeout, TokenAway)):
        await carol.sender("bob").send_many([b"in vain"])
    faults.mend()
    await carol.sender("bob").send(b"at last")
    async with bob.receiver(limit=1) as messages:
        assert [message.payload async for message in messages] == [b"at last"]


async def test_registering_waits_too(
    deployment: Deployment, broker: Broker, join: Join, hsm: SoftHsm, faults: Faults, alice: Client
) -> None:
    add(deployment, "carol", TokenPlan(token=hsm.token(), signing=True))
    carol = await join("carol")
    faults.always("*", exceptions.TokenNotPresent())
    async with carol.receiver() as messages:
        waiting = asyncio.create_task(messages.next())
        while faults.calls["get_slots"] < 3:
            assert not waiting.done()
            await asyncio.sleep(0.01)
        faults.mend()
        while True:
            try:
                await alice.sender("carol").send(b"hello")
                break
            except UnknownReceiver:
                await asyncio.sleep(0.02)  # not registered yet
        message = await waiting
        assert message is not None
        assert message.payload == b"hello"


# --- certified elsewhere --------------------------------------------------------------------------


def requested(tmp_path: Path, plan: TokenPlan, passphrase: str | None = None) -> Path:
    path = tmp_path / "laptop" / "carol"
    enrol.request(path, name="carol", passphrase=passphrase, cost=CHEAP, plan=plan)
    return path


def signed(deployment: Deployment, data: bytes) -> bytes:
    """What ``ciphermq ca sign`` does."""
    asked, companion = load_request(data), load_companion(data)
    assert companion is not None
    certificate = deployment.authority.sign_request(asked, now_ms=now_ms())
    second = deployment.authority.sign_companion(asked, companion, now_ms=now_ms())
    return enrol.answer(deployment.authority, certificate, URL, second=second)


def test_a_request_is_signed_on_the_token(
    tmp_path: Path, deployment: Deployment, hsm: SoftHsm
) -> None:
    path = requested(tmp_path, TokenPlan(token=hsm.token(), signing=True), passphrase="mine")
    data = (path / "request.pem").read_bytes()
    assert data.count(b"BEGIN CERTIFICATE REQUEST") == 2
    answer = signed(deployment, data)
    enrol.install_certificate(bundle.unpack(answer), path, now_ms())
    loaded = Identity.load(path, "mine")
    loaded.check(now_ms())
    loaded.ssl_context()
    assert loaded.signer.blocking
    assert loaded.key_record(now_ms())
    about = view.describe(path, now_ms())
    assert about["token"]["keeps"] == ["sealing", "signing"]
    # Again, for the same two keys, when they end.
    again = enrol.request_again(path, "mine")
    answer = signed(deployment, again)
    enrol.install_certificate(bundle.unpack(answer), path, now_ms())
    assert Identity.load(path, "mine").certificate.public_key() == loaded.certificate.public_key()
    renewed = enrol.renew_elsewhere("carol", authority=deployment.authority, now_ms=now_ms())
    assert renewed.second is not None
    answer = enrol.answer(deployment.authority, renewed.certificate, URL, second=renewed.second)
    enrol.install_certificate(bundle.unpack(answer), path, now_ms())


def test_nobody_puts_a_key_of_his_own_beside_a_genuine_request(
    tmp_path: Path, deployment: Deployment, hsm: SoftHsm
) -> None:
    path = requested(tmp_path, TokenPlan(token=hsm.token(), signing=True))
    genuine = load_request((path / "request.pem").read_bytes())
    thief = enrol.companion.request("carol", ec.generate_private_key(ec.SECP256R1()), None)
    with pytest.raises(CertificateError, match="not the one that 'carol' made"):
        deployment.authority.sign_companion(genuine, load_request(thief), now_ms=now_ms())
    plain = load_request(thief)
    with pytest.raises(CertificateError, match="not the one"):
        deployment.authority.sign_companion(plain, plain, now_ms=now_ms())
    with pytest.raises(CertificateError, match="one request or two"):
        load_companion(thief * 3)
    assert load_companion(thief) is None


def test_nobody_gets_a_second_certificate_of_anothers_name(
    tmp_path: Path, deployment: Deployment, hsm: SoftHsm
) -> None:
    """Neither by a pair of requests of his own, nor by one that he wrote another digest into."""
    authority = deployment.authority
    own, tls = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pair = enrol.companion.request("bob", own, tls)
    companion = load_companion(pair)
    assert companion is not None
    with pytest.raises(AuthorityError, match="has no certificate for the key of this request"):
        authority.sign_companion(load_request(pair), companion, now_ms=now_ms())
    path = requested(tmp_path, TokenPlan(token=hsm.token(), signing=True))
    genuine = load_request((path / "request.pem").read_bytes())
    authority.sign_request(genuine, now_ms=now_ms())
    kept = load_companion((path / "request.pem").read_bytes())
    thief = load_companion(enrol.companion.request("carol", own, tls))
    assert kept is not None
    assert thief is not None
    before, after = (key_digest(request_key(each)).encode() for each in (kept, thief))
    der = genuine.public_bytes(Encoding.DER)
    assert der.count(before) == 1
    with pytest.raises(CertificateError, match="not signed by the key it names"):
        authority.sign_companion(load_request(der.replace(before, after)), thief, now_ms=now_ms())
    assert authority.newest("carol", only_connects=True) is None
    assert authority.sign_companion(genuine, kept, now_ms=now_ms())


def test_each_kind_of_certificate_has_its_own_last_key(
    deployment: Deployment, hsm: SoftHsm
) -> None:
    path = add(deployment, "carol", TokenPlan(token=hsm.token(), signing=True))
    authority = deployment.authority
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    for only_connects in (False, True):
        with pytest.raises(AuthorityError, match="another key"):
            authority.issue_client("carol", other, now_ms=now_ms(), only_connects=only_connects)
    second = authority.newest("carol", only_connects=True)
    first = authority.newest("carol")
    assert first is not None
    assert second is not None
    assert first.certificate == layout.read_certificate(path)
    assert second.certificate == layout.read_certificate(path, layout.TLS_CERTIFICATE)
    renewed = enrol.renew(path, authority=authority, now_ms=now_ms())
    assert renewed.second is not None
    assert renewed.second.public_key() == second.certificate.public_key()
    with pytest.raises(UsageError, match="a token keeps the certificate's key"):
        enrol.renew_with_new_key(path, authority=authority, now_ms=now_ms(), passphrase=None)


def test_an_identity_that_comes_to_nothing_leaves_no_key_behind(
    deployment: Deployment, hsm: SoftHsm
) -> None:
    kept = hsm.token().make_p256("another's", may=("derive",))
    plan = TokenPlan(token=hsm.token(), signing=True)
    with pytest.raises(AuthorityError, match="another key"):
        enrol.create(
            deployment.identity("new"),
            name="alice",
            url=URL,
            authority=deployment.authority,
            now_ms=now_ms(),
            plan=plan,
        )
    assert [key.id for key in hsm.token().private_keys()] == [kept.hex()]
    add(deployment, "carol", plan)
    assert len(hsm.token().private_keys()) == 3
    with pytest.raises(FileExistsError):
        add(deployment, "carol", plan)
    assert len(hsm.token().private_keys()) == 3
    taken = TokenPlan(token=hsm.token(), sealing_id=kept, signing=True, signing_id=b"\x77")
    with pytest.raises(TokenKeyUnclear):
        add(deployment, "dora", taken)
    assert len(hsm.token().private_keys()) == 3, "what was there before is nobody's to delete"
    Identity.load(deployment.identity("carol")).check_token()


def test_an_answer_must_bring_both(tmp_path: Path, deployment: Deployment, hsm: SoftHsm) -> None:
    path = requested(tmp_path, TokenPlan(token=hsm.token(), signing=True))
    data = (path / "request.pem").read_bytes()
    certificate = deployment.authority.sign_request(load_request(data), now_ms=now_ms())

    def install(second: x509.Certificate | None) -> None:
        answer = enrol.answer(deployment.authority, certificate, URL, second=second)
        enrol.install_certificate(bundle.unpack(answer), path, now_ms())

    with pytest.raises(CertificateError, match="needs a second one"):
        install(None)
    with pytest.raises(CertificateError, match="may sign"):
        install(certificate)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    wrong = deployment.authority.issue_client("carol", other, now_ms=now_ms(), only_connects=True)
    with pytest.raises(CertificateError, match="not for the TLS key"):
        install(wrong)
    with pytest.raises(CertificateError, match="not for 'carol'"):
        install(layout.read_certificate(deployment.identity("alice")))


# --- files that a token opens ---------------------------------------------------------------------


@pytest.mark.parametrize("phrase", [None, "mine"])
def test_any_identity_is_wrapped_and_unwrapped(
    deployment: Deployment, hsm: SoftHsm, phrase: str | None
) -> None:
    path = deployment.add("carol", passphrase=phrase)
    key = keyfile.read_key(
        path / "key.pem", keyfile.read_password(path / "key.pass", phrase, layout.PURPOSE)
    )
    token = hsm.token()
    wraps = token.make_rsa("kek", 2048)
    wrapping.wrap_identity(path, token, wraps, phrase=phrase)
    assert not (path / "key.pass").exists()
    assert b"ENCRYPTED" in (path / "key.pem").read_bytes()
    for file in (path / "sealing").glob("*.key"):
        assert b"ENCRYPTED" in file.read_bytes()
    loaded = Identity.load(path)
    assert loaded.certificate.public_key() == key.public_key()
    loaded.key_record(now_ms())
    loaded.ssl_context()
    wrapping.wrap_identity(path, token, wraps, phrase=None)  # ends what was stopped in the middle
    Identity.load(path)
    with pytest.raises(UsageError, match=f"opened by the key {wraps.hex()} already"):
        wrapping.wrap_identity(path, token, token.make_rsa("other", 2048), phrase=None)
    wrapping.unwrap_identity(path, token, phrase="another", cost=CHEAP)
    with pytest.raises(PassphraseError):
        Identity.load(path)
    Identity.load(path, "another").ssl_context()
    wrapping.wrap_identity(path, token, token.make_p256("k", may=("derive",)), phrase="another")
    wrapping.unwrap_identity(path, token, phrase=None)
    assert b"ENCRYPTED" not in (path / "key.pem").read_bytes()
    assert Identity.load(path).suite is Suite.MLKEM768_X25519
    with pytest.raises(UsageError, match="not opened by a token"):
        wrapping.unwrap_identity(path, token, phrase=None)


def test_what_was_unwrapped_asks_for_no_pin(
    deployment: Deployment, hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = deployment.identity("alice")
    token = hsm.token()
    wraps = token.make_p256("k", may=("derive",))
    wrapping.wrap_identity(path, token, wraps, phrase=None)
    assert IdentitySettings.read(path).token is not None
    wrapping.unwrap_identity(path, token, phrase=None)
    # One that receives with the token goes on doing so.
    carol = add(deployment, "carol", TokenPlan(token=token))
    wrapping.wrap_identity(carol, token, wraps, phrase=None)
    wrapping.unwrap_identity(carol, token, phrase=None)
    assert IdentitySettings.read(carol).token is not None
    monkeypatch.delenv("CIPHERMQ_PIN")
    assert IdentitySettings.read(path).token is None
    Identity.load(path).ssl_context()


def test_wrapping_that_was_stopped_leaves_nothing_in_the_clear(
    deployment: Deployment, hsm: SoftHsm
) -> None:
    path = deployment.identity("alice")
    clear = {file: file.read_bytes() for file in path.rglob("*key*") if file.is_file()}
    token = hsm.token()
    wrapping.wrap_identity(path, token, token.make_p256("k", may=("derive",)), phrase=None)
    for file, data in clear.items():  # as if it had ended before these
        if file.suffix in {".pem", ".key"}:
            file.write_bytes(data)
    wrapping.unwrap_identity(path, token, phrase="mine", cost=CHEAP)
    files = [path / "key.pem", *(path / "sealing").glob("*.key")]
    assert len(files) == 2
    assert all(b"ENCRYPTED" in file.read_bytes() for file in files)
    Identity.load(path, "mine").ssl_context()


def test_a_wrapped_identity_without_its_token_is_told(
    deployment: Deployment, hsm: SoftHsm, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = deployment.identity("alice")
    token = hsm.token()
    wrapping.wrap_identity(path, token, token.make_p256("k", may=("derive",)), phrase=None)
    faults.always("*", exceptions.TokenNotPresent())
    with pytest.raises(TokenAway):
        Identity.load(path)
    faults.mend()
    assert faults.calls["derive_key"] > 0
    monkeypatch.delenv("CIPHERMQ_PIN")
    with pytest.raises(PinError, match="missing"):
        Identity.load(path)
    settings = IdentitySettings.read(path)
    (path / "identity.toml").write_bytes(settings.to_toml().partition(b"[token]")[0])
    with pytest.raises(IdentityError, match="names none"):
        Identity.load(path)


def test_one_identity_has_one_token(deployment: Deployment, hsm: SoftHsm) -> None:
    path = add(deployment, "carol", TokenPlan(token=hsm.token()))
    other = TokenSettings(module="/other.so", label="other")
    settings = IdentitySettings.read(path)
    other_path = deployment.identity("alice")
    alice = IdentitySettings.read(other_path)
    IdentitySettings(alice.name, alice.url, alice.server_name, alice.suite, token=other).write(
        other_path
    )
    with pytest.raises(UsageError, match="uses the token 'other' already"):
        wrapping.wrap_identity(other_path, hsm.token(), b"\x01", phrase=None)
    assert settings.token is not None
    assert settings.token.address() == hsm.address


# --- identity.toml --------------------------------------------------------------------------------


def test_the_settings_come_back(tmp_path: Path) -> None:
    token = TokenSettings(
        module="/usr/lib/opensc-pkcs11.so", serial="DENK0100", pin="env:PIN", signing_key="0a"
    )
    settings = IdentitySettings("carol", URL, "", "P256", custody="pkcs11", token=token)
    assert IdentitySettings.parse(settings.to_toml(), "it") == settings
    assert b"custody" not in IdentitySettings("carol", URL).to_toml()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('custody = "cloud"', "custody = 'cloud' is not one of files, pkcs11"),
        ('custody = "pkcs11"\nsuite = "P256"', r"needs a section \[token\]"),
        (
            'custody = "pkcs11"\n[token]\nmodule = "/m.so"\nlabel = "t"',
            'needs suite = "P256"',
        ),
        ("[token]\n", "module"),
        ('[token]\nmodule = ""\nlabel = "t"', "token.module is empty"),
        ('[token]\nmodule = "/m.so"', "a label or a serial"),
        ('[token]\nmodule = "/m.so"\nlabel = "t"\npin = "1234"', "never the PIN itself"),
        ('[token]\nmodule = "/m.so"\nlabel = "\\u0007"', "control characters"),
        ('[token]\nmodule = "/m.so"\nlabel = "t"\nsigning_key = "xyz"', "hexadecimal"),
        ('[token]\nmodule = "/m.so"\nlabel = "t"\nkey = "01"', "key"),
    ],
)
def test_settings_that_make_no_sense(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        IdentitySettings.parse(f'name = "carol"\nurl = ""\n{text}\n'.encode(), "it")
    assert "1234" not in str(caught.value)


# --- exported -------------------------------------------------------------------------------------


def test_an_export_takes_the_references_along(
    tmp_path: Path, deployment: Deployment, hsm: SoftHsm
) -> None:
    """Who has the token too is the identity, on another machine."""
    path = add(deployment, "carol", TokenPlan(token=hsm.token(), signing=True))
    exported = bundle.unpack(enrol.export(path, "phrase", CHEAP), "phrase")
    moved = tmp_path / "moved"
    enrol.import_identity(exported, moved, now_ms())
    loaded = Identity.load(moved)
    loaded.ssl_context()
    assert loaded.current_key.key_id == deployment.load("carol").current_key.key_id
