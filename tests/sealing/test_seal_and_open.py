"""What is sealed comes out at every receiver, and only there."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.custody.keyring import Keyring
from ciphermq.errors import (
    BatchTooLarge,
    CommitmentMismatch,
    KeyMissing,
    KeyRecordMalformed,
    NotForThisReceiver,
    UsageError,
)
from ciphermq.model import envelope, ids
from ciphermq.model.body import Body
from ciphermq.model.message import OutgoingMessage
from ciphermq.model.suites import Suite
from ciphermq.pki.verify import ChainVerifier
from ciphermq.sealing.open import OpenedBatch, SessionKeys, judge, open_batch
from ciphermq.sealing.seal import ReceiverKey, seal
from support.sealing import NOW_MS, MemoryAuthority, Party

MESSAGES = [
    OutgoingMessage(b"plain", sent_ms=NOW_MS - 5),
    OutgoingMessage(b"", {"trace": "7", "priority": "high"}, "text/plain; charset=utf-8", NOW_MS),
    OutgoingMessage(bytes(range(256)) * 40, content_type="application/octet-stream"),
]


def seal_for(
    sender: Party, *receivers: Party, messages: object = MESSAGES, **more: object
) -> bytes:
    options: dict[str, object] = {
        "exchange": "",
        "routing_key": "",
        "batch_id": ids.new_batch_id(NOW_MS),
        "created_ms": NOW_MS,
        "sender": sender.name,
        "signer": sender.signer,
        "receivers": [receiver.receiver_key for receiver in receivers],
    }
    return seal(messages, **(options | more))  # type: ignore[arg-type]


def open_as(receiver: Party, sealed: bytes, verifier: ChainVerifier, **more: object) -> OpenedBatch:
    options: dict[str, object] = {
        "receiver": receiver.name,
        "keyring": receiver.keyring,
        "verifier": verifier,
        "now_ms": NOW_MS,
    }
    return open_batch(sealed, **(options | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_certificate_on_each_curve_can_send(
    authority: MemoryAuthority, verifier: ChainVerifier, bob: Party, curve: ec.EllipticCurve
) -> None:
    sender = authority.party("sender", curve=curve)
    opened = open_as(bob, seal_for(sender, bob), verifier)
    assert opened.signer.client_id == opened.header.sender == "sender"


@pytest.mark.parametrize("suite", list(Suite))
def test_a_receiver_of_each_suite_reads_every_message(
    authority: MemoryAuthority, verifier: ChainVerifier, alice: Party, suite: Suite
) -> None:
    receiver = authority.party("receiver", suite)
    opened = open_as(receiver, seal_for(alice, receiver), verifier)
    assert [message.payload for message in opened.messages] == [m.payload for m in MESSAGES]
    assert [message.sent_ms for message in opened.messages] == [m.sent_ms for m in MESSAGES]
    properties = [message.properties for message in opened.messages]
    assert [found.content_type for found in properties] == [m.content_type for m in MESSAGES]
    assert [dict(found.headers) for found in properties] == [dict(m.headers) for m in MESSAGES]


def test_many_receivers_of_different_suites_open_one_batch(
    authority: MemoryAuthority, verifier: ChainVerifier, alice: Party
) -> None:
    suites = list(Suite)
    receivers = [
        authority.party(f"r{number:02}", suites[number % 3])
        for number in range(limits.MAX_RECEIVERS)
    ]
    sealed = seal_for(alice, *reversed(receivers))
    header = envelope.read_header(sealed)
    assert [ref.client for ref in header.receivers] == [party.name for party in receivers]
    for receiver in receivers:
        assert open_as(receiver, sealed, verifier).messages[0].payload == b"plain"


def test_the_header_carries_what_was_said(alice: Party, bob: Party) -> None:
    batch_id = ids.new_batch_id(NOW_MS)
    sealed = seal_for(
        alice,
        bob,
        exchange="prices",
        routing_key="eu.gas",
        batch_id=batch_id,
        expires_ms=NOW_MS + 1,
    )
    header = envelope.read_header(sealed)
    assert (header.exchange, header.routing_key) == ("prices", "eu.gas")
    assert (header.batch_id, header.created_ms) == (batch_id, NOW_MS)
    assert (header.expires_ms, header.count) == (NOW_MS + 1, 3)
    assert header.certificate_sha256 == alice.signer.certificate_sha256


def test_no_byte_of_a_payload_is_readable_in_the_batch(alice: Party, bob: Party) -> None:
    marker = b"the quick brown fox jumps over the lazy dog"
    message = OutgoingMessage(marker, {"the-header": marker.decode()}, "text/the-content-type")
    sealed = seal_for(alice, bob, messages=[message])
    assert marker not in sealed
    assert b"the-header" not in sealed
    assert b"the-content-type" not in sealed


def test_sealing_twice_shares_nothing(alice: Party, bob: Party) -> None:
    batch_id = ids.new_batch_id(NOW_MS)
    first, second = (envelope.parse(seal_for(alice, bob, batch_id=batch_id)) for _ in range(2))
    assert first.header.commitment != second.header.commitment
    assert bytes(first.wraps) != bytes(second.wraps)
    assert bytes(first.body) != bytes(second.body)


def test_the_full_batch_and_not_one_byte_more(
    alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    most = limits.MAX_PLAINTEXT - 3 - 16
    sealed = seal_for(alice, bob, messages=[OutgoingMessage(b"\xaa" * most)])
    assert len(sealed) <= limits.MAX_SEALED
    assert open_as(bob, sealed, verifier).messages[0].payload == b"\xaa" * most
    with pytest.raises(BatchTooLarge, match="1048576 at most"):
        seal_for(alice, bob, messages=[OutgoingMessage(b"\xaa" * (most + 1))])


def test_a_body_can_be_prepared_and_kept(alice: Party, bob: Party, verifier: ChainVerifier) -> None:
    kept = Body.of(MESSAGES).data
    opened = open_as(bob, seal_for(alice, bob, messages=Body(kept)), verifier)
    assert [message.payload for message in opened.messages] == [m.payload for m in MESSAGES]


@given(payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=40))
def test_any_payloads_come_out_as_they_went_in(
    alice: Party, bob: Party, verifier: ChainVerifier, payloads: list[bytes]
) -> None:
    sealed = seal_for(alice, bob, messages=Body.of_payloads(payloads, NOW_MS))
    assert open_as(bob, sealed, verifier).messages.payloads() == payloads


def test_the_sender_cannot_open_what_it_sent(
    alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    with pytest.raises(NotForThisReceiver, match="sealed for bob; this is alice"):
        open_as(alice, seal_for(alice, bob), verifier)


def test_a_missing_private_key_stops_the_receiver(
    authority: MemoryAuthority, alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    sealed = seal_for(alice, bob)
    with pytest.raises(KeyMissing, match=bob.opener.key_id.hex()):
        open_as(bob, sealed, verifier, keyring=Keyring())
    other = authority.party("bob")
    with pytest.raises(KeyMissing, match=other.opener.key_id.hex()):
        open_as(bob, sealed, verifier, keyring=other.keyring)


def test_a_former_key_still_opens(
    authority: MemoryAuthority, alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    renewed = authority.party("bob", Suite.MLKEM768_X25519)
    both = Keyring([renewed.opener, bob.opener])
    for party in (bob, renewed):
        opened = open_as(bob, seal_for(alice, party), verifier, keyring=both)
        assert opened.messages[0].payload == b"plain"


def test_a_redelivery_is_not_unwrapped_again_but_is_verified_again(
    authority: MemoryAuthority, alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    remembered = SessionKeys()
    sealed = seal_for(alice, bob)
    first = open_as(bob, sealed, verifier, session_keys=remembered)
    # An empty keyring shows that no private key was asked.
    again = open_as(bob, sealed, verifier, keyring=Keyring(), session_keys=remembered)
    assert again.messages.payloads() == first.messages.payloads()
    assert again.digest == first.digest
    stranger = MemoryAuthority().verifier()
    with pytest.raises(Exception, match="does not lead to our authority"):
        open_as(bob, sealed, stranger, session_keys=remembered)


def test_remembered_session_keys_are_bounded(
    alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    remembered = SessionKeys(size=2)
    batches = [seal_for(alice, bob) for _ in range(3)]
    for sealed in batches:
        open_as(bob, sealed, verifier, session_keys=remembered)
    for sealed in batches[1:]:
        open_as(bob, sealed, verifier, keyring=Keyring(), session_keys=remembered)
    with pytest.raises(KeyMissing):
        open_as(bob, batches[0], verifier, keyring=Keyring(), session_keys=remembered)


def test_remembered_session_keys_are_short_lived() -> None:
    now = [100.0]
    remembered = SessionKeys(size=3, lifetime=10.0, clock=lambda: now[0])
    remembered.put(b"a", b"key a")
    now[0] = 105.0
    remembered.put(b"b", b"key b")
    now[0] = 109.9
    assert remembered.get(b"a") == b"key a"
    now[0] = 110.0
    assert (remembered.get(b"a"), remembered.get(b"b")) == (None, b"key b")
    # Not only unseen: gone from memory, also when nobody asks.
    now[0] = 115.0
    remembered.prune()
    assert len(remembered) == 0
    kept = SessionKeys(clock=lambda: now[0])
    kept.put(b"a", b"key a")
    now[0] = 1e9
    assert kept.get(b"a") == b"key a"


def test_a_batch_is_judged_before_any_private_key_is_asked(
    alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    """So that the one step that may wait for a device can be made elsewhere."""
    sealed = seal_for(alice, bob)
    judged = judge(sealed, receiver=bob.name, verifier=verifier, now_ms=NOW_MS)
    remembered = SessionKeys()
    assert not judged.blocks(bob.keyring)
    assert judged.known(remembered) is None
    with pytest.raises(KeyMissing):
        judged.blocks(Keyring())
    key = judged.unwrap(bob.keyring, remembered)
    assert judged.unwrap(Keyring(), remembered) == key
    assert judged.known(remembered) is not None
    assert judged.open(key).header.sender == alice.name
    with pytest.raises(CommitmentMismatch):
        judged.open(bytes(32))


def test_batches_differ_in_their_digest(alice: Party, bob: Party, verifier: ChainVerifier) -> None:
    batch_id = ids.new_batch_id(NOW_MS)
    digests = {
        open_as(bob, seal_for(alice, bob, batch_id=batch_id), verifier).digest for _ in range(3)
    }
    assert len(digests) == 3


def test_what_cannot_be_sealed_is_told_before_anything_is_sent(
    authority: MemoryAuthority, alice: Party, bob: Party
) -> None:
    with pytest.raises(UsageError, match="in order, each once"):
        seal_for(alice, bob, bob)
    with pytest.raises(UsageError, match="no receivers"):
        seal_for(alice)
    crowd = [authority.party(f"r{number:02}") for number in range(limits.MAX_RECEIVERS + 1)]
    with pytest.raises(BatchTooLarge, match="33 receivers; 32 at most"):
        seal_for(alice, *crowd)
    with pytest.raises(BatchTooLarge, match="1 to 1024 messages; these are 0"):
        seal_for(alice, bob, messages=[])
    with pytest.raises(UsageError, match="over 255 bytes"):
        seal_for(alice, bob, routing_key="k" * 256)
    with pytest.raises(UsageError, match="UUIDv7"):
        seal_for(alice, bob, batch_id=bytes(16))
    nobody = ReceiverKey("nobody", bytes(16), Suite.X25519, bytes(32))
    with pytest.raises(KeyRecordMalformed, match="nothing can be sealed to this X25519 key"):
        seal_for(alice, receivers=[nobody])
