"""What a malicious broker, client, co-receiver or sender tries, and that it is refused.

The broker holds the bytes and no key. A client of the same authority has a genuine certificate. A
co-receiver knows the session key as well. The sender itself may be the liar.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import assume, given
from hypothesis import strategies as st

from ciphermq.custody.keyring import Keyring
from ciphermq.errors import (
    BadSignature,
    BatchError,
    BatchTooLarge,
    BodyRefused,
    CommitmentMismatch,
    MalformedBatch,
    NotForThisReceiver,
    SenderMismatch,
    UntrustedSender,
    WrapRefused,
)
from ciphermq.model import envelope
from ciphermq.model.body import Body
from ciphermq.pki.verify import ChainVerifier
from ciphermq.sealing import derivation
from ciphermq.sealing.open import OpenedBatch, open_batch
from support.sealing import BATCH_ID, NOW_MS, Party, Recipe


class Parts(NamedTuple):
    """The parts of a batch, for who takes it apart and puts it together otherwise."""

    header: bytes
    wraps: bytes
    body: bytes
    chain: tuple[bytes, ...]
    signature: bytes

    @classmethod
    def of(cls, sealed: bytes) -> Parts:
        parsed = envelope.parse(sealed)
        return cls(
            parsed.header_bytes,
            bytes(parsed.wraps),
            bytes(parsed.body),
            parsed.chain,
            parsed.signature,
        )

    def sealed(self) -> bytes:
        return envelope.build(*self)


def open_as(receiver: Party, sealed: bytes, verifier: ChainVerifier) -> OpenedBatch:
    return open_batch(
        sealed,
        receiver=receiver.name,
        keyring=receiver.keyring,
        verifier=verifier,
        now_ms=NOW_MS,
    )


@pytest.fixture(scope="module")
def genuine(alice: Party, bob: Party, carol: Party) -> bytes:
    return Recipe(alice, [bob, carol]).make()


@pytest.fixture(scope="module")
def another(alice: Party, bob: Party, carol: Party) -> bytes:
    """A second genuine batch, of the same sender to the same receivers."""
    return Recipe(alice, [bob, carol], session_key=b"\x77" * 32, routing_key="other").make()


# --- the broker ---------------------------------------------------------------------------------


# A flipped bit may make a serial number negative, which the library warns of before it refuses.
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_flipped_bit_is_accepted_or_stops_a_receiver(
    genuine: bytes, bob: Party, verifier: ChainVerifier
) -> None:
    """Every bit of a batch, one after the other. A `ReceiverFault` would let a broker stop who
    it likes."""
    parts = Parts.of(genuine)
    wraps = 20 + len(parts.header)
    chain = wraps + len(parts.wraps) + len(parts.body)
    for bit in range(8 * len(genuine)):
        at = bit // 8
        changed = bytearray(genuine)
        changed[at] ^= 1 << bit % 8
        with pytest.raises(BatchError) as caught:
            open_as(bob, bytes(changed), verifier)
        if wraps <= at < chain or at >= len(genuine) - len(parts.signature):
            assert type(caught.value) is BadSignature, at
        elif at < 20:
            assert isinstance(caught.value, MalformedBatch | BatchTooLarge), at
        elif at >= chain:
            expected = MalformedBatch | UntrustedSender | SenderMismatch
            assert isinstance(caught.value, expected), at


@pytest.mark.parametrize("cut", ["front", "back"])
def test_no_truncated_batch_is_accepted(
    genuine: bytes, bob: Party, verifier: ChainVerifier, cut: str
) -> None:
    for size in range(len(genuine)):
        part = genuine[:size] if cut == "back" else genuine[len(genuine) - size :]
        with pytest.raises(MalformedBatch):
            open_as(bob, part, verifier)


def test_no_extended_batch_is_accepted(genuine: bytes, bob: Party, verifier: ChainVerifier) -> None:
    for tail in (b"\0", genuine[:1], genuine, bytes(4096)):
        with pytest.raises(MalformedBatch):
            open_as(bob, genuine + tail, verifier)
        with pytest.raises(MalformedBatch):
            open_as(bob, tail + genuine, verifier)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(data=st.data())
def test_no_other_bytes_are_accepted(
    genuine: bytes, bob: Party, verifier: ChainVerifier, data: st.DataObject
) -> None:
    """Bytes cut out, doubled, moved and overwritten, as often as hypothesis likes."""
    changed = genuine
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)))
        end = min(len(changed), start + data.draw(st.integers(0, 64)))
        piece = data.draw(st.sampled_from([b"", changed[start:end] * 2]) | st.binary(max_size=64))
        changed = changed[:start] + piece + changed[end:]
    assume(changed != genuine)
    with pytest.raises(BatchError):
        open_as(bob, changed, verifier)


@pytest.mark.parametrize("taken", list(product([False, True], repeat=5)))
def test_parts_of_two_genuine_batches_make_no_third(
    genuine: bytes,
    another: bytes,
    bob: Party,
    carol: Party,
    verifier: ChainVerifier,
    taken: tuple[bool, ...],
) -> None:
    pairs = zip(Parts.of(genuine), Parts.of(another), taken, strict=True)
    spliced = Parts(*(new if take else old for old, new, take in pairs)).sealed()
    for receiver in (bob, carol):
        if spliced in (genuine, another):
            open_as(receiver, spliced, verifier)
        else:
            with pytest.raises(BadSignature):
                open_as(receiver, spliced, verifier)


def test_wraps_cannot_be_swapped_moved_dropped_or_repeated(
    genuine: bytes, another: bytes, bob: Party, carol: Party, verifier: ChainVerifier
) -> None:
    parts = Parts.of(genuine)
    header = envelope.parse(genuine).header
    of_bob, of_carol = parts.wraps[:80], parts.wraps[80:]
    # Moved: the same receiver's wrap out of another batch.
    moved = parts._replace(wraps=Parts.of(another).wraps[:80] + of_carol).sealed()
    with pytest.raises(BadSignature):
        open_as(bob, moved, verifier)
    # Swapped and repeated, by bytes alone: the sizes no longer fit the suites.
    for wraps in (of_carol + of_bob, of_bob + of_bob, of_bob, b""):
        head = genuine[:20]
        if len(wraps) == len(parts.wraps):
            sealed = parts._replace(wraps=wraps).sealed()
            with pytest.raises(BadSignature):
                open_as(bob, sealed, verifier)
        else:
            sizes = head[:8] + len(wraps).to_bytes(4, "big") + head[12:]
            rest = genuine[20 + len(parts.header) + len(parts.wraps) :]
            with pytest.raises(MalformedBatch, match="wraps have"):
                open_as(bob, sizes + parts.header + wraps + rest, verifier)
    # Dropped together with its receiver.
    alone = envelope.encode_header(
        envelope.Header(
            **{name: getattr(header, name) for name in header.__struct_fields__[:-1]},
            receivers=header.receivers[:1],
        )
    )
    with pytest.raises(BadSignature):
        open_as(bob, parts._replace(header=alone, wraps=of_bob).sealed(), verifier)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exchange", "elsewhere"),
        ("routing_key", "elsewhere"),
        ("batch_id", BATCH_ID[:8] + b"\x81" + BATCH_ID[9:]),
        ("created_ms", NOW_MS - 1),
        ("expires_ms", NOW_MS + 1),
        ("count", 1),
        ("commitment", bytes(32)),
    ],
)
def test_nothing_in_the_header_can_be_changed(
    genuine: bytes, bob: Party, verifier: ChainVerifier, field: str, value: object
) -> None:
    fields = envelope.read_header(genuine)
    changed = envelope.encode_header(
        envelope.Header(
            **{
                name: value if name == field else getattr(fields, name)
                for name in fields.__struct_fields__
            }
        )
    )
    with pytest.raises(BadSignature):
        open_as(bob, Parts.of(genuine)._replace(header=changed).sealed(), verifier)


def test_a_batch_in_the_wrong_queue_is_not_opened(
    genuine: bytes, mallory: Party, verifier: ChainVerifier
) -> None:
    with pytest.raises(NotForThisReceiver):
        open_as(mallory, genuine, verifier)


def test_renaming_a_receiver_lets_nobody_in(
    genuine: bytes, mallory: Party, verifier: ChainVerifier
) -> None:
    """Bob's wrap under mallory's name, with mallory's key or with bob's."""
    header = envelope.read_header(genuine)
    for key_id in (mallory.opener.key_id, header.receivers[0].key_id):
        renamed = envelope.encode_header(
            envelope.Header(
                **{name: getattr(header, name) for name in header.__struct_fields__[:-1]},
                receivers=(
                    header.receivers[1],
                    envelope.ReceiverRef("mallory", key_id, header.receivers[0].suite),
                ),
            )
        )
        parts = Parts.of(genuine)
        swapped = parts.wraps[80:] + parts.wraps[:80]
        with pytest.raises(BadSignature):
            sealed = parts._replace(header=renamed, wraps=swapped).sealed()
            open_as(mallory, sealed, verifier)


def test_a_signature_has_one_spelling(genuine: bytes, bob: Party, verifier: ChainVerifier) -> None:
    """(r, n - s) is as good a signature as (r, s) to ECDSA, and anyone can make it."""
    parts = Parts.of(genuine)
    r, s = decode_dss_signature(parts.signature)
    twin = encode_dss_signature(r, ec.SECP256R1().group_order - s)
    with pytest.raises(BadSignature):
        open_as(bob, parts._replace(signature=twin).sealed(), verifier)


def test_a_signature_made_for_another_purpose_is_none(
    alice: Party, bob: Party, genuine: bytes, verifier: ChainVerifier
) -> None:
    parts = Parts.of(genuine)
    bound = derivation.binding(parts.header, parts.wraps)
    right = derivation.signed_bytes(bound, parts.body)
    for signed in (
        right.replace(b"batch", b"key record"),
        right.removeprefix(b"\x20" * 64),
        right[:-32],
        right + b"\0",
    ):
        forged = parts._replace(signature=alice.signer.sign(signed)).sealed()
        with pytest.raises(BadSignature):
            open_as(bob, forged, verifier)


# --- another client of the same authority -------------------------------------------------------


def test_another_clients_signature_is_no_senders(
    alice: Party, bob: Party, mallory: Party, verifier: ChainVerifier
) -> None:
    """Mallory signs what says it is from alice, with more and more of it hers."""
    by_mallory = Recipe(alice, [bob], signer=mallory.signer)
    with pytest.raises(BadSignature):
        open_as(bob, by_mallory.but(chain=alice.signer.chain).make(), verifier)
    with pytest.raises(SenderMismatch, match="another certificate"):
        open_as(bob, by_mallory.make(), verifier)
    hers = mallory.signer.certificate_sha256
    with pytest.raises(SenderMismatch, match="its certificate is that of 'mallory'"):
        open_as(bob, by_mallory.but(certificate_sha256=hers).make(), verifier)


def test_a_batch_cannot_be_passed_off_as_ones_own(
    genuine: bytes, bob: Party, mallory: Party, verifier: ChainVerifier
) -> None:
    """Mallory can't read alice's batch, but would send it as hers and look well informed. The
    wraps are bound to the header that names alice."""
    parts = Parts.of(genuine)
    header = envelope.read_header(genuine)
    hers = envelope.encode_header(
        envelope.Header(
            "mallory",
            mallory.signer.certificate_sha256,
            *(getattr(header, name) for name in header.__struct_fields__[2:]),
        )
    )
    signed = derivation.signed_bytes(derivation.binding(hers, parts.wraps), parts.body)
    stolen = parts._replace(
        header=hers, chain=mallory.signer.chain, signature=mallory.signer.sign(signed)
    )
    with pytest.raises(WrapRefused):
        open_as(bob, stolen.sealed(), verifier)


# --- a co-receiver, who knows the session key ---------------------------------------------------


def session_key_of(sealed: bytes, receiver: Party) -> bytes:
    parsed = envelope.parse(sealed)
    index = [ref.client for ref in parsed.header.receivers].index(receiver.name)
    info = derivation.wrap_info(parsed.header_bytes, receiver.name, receiver.opener.key_id)
    return receiver.opener.unwrap(parsed.wrap_of(index), info)


def test_a_co_receiver_cannot_change_the_messages(
    alice: Party, bob: Party, mallory: Party, verifier: ChainVerifier
) -> None:
    sealed = Recipe(alice, [bob, mallory]).make()
    parts = Parts.of(sealed)
    bound = derivation.binding(parts.header, parts.wraps)
    body_key = derivation.derive(session_key_of(sealed, mallory)).body
    forged = AESGCM(body_key).encrypt(
        derivation.BODY_NONCE, Body.of_payloads([b"pay", b"mallory"], NOW_MS).data, bound
    )
    # The cipher alone would take it: this is what the signature over the body is for.
    assert AESGCM(body_key).decrypt(derivation.BODY_NONCE, forged, bound)
    with pytest.raises(BadSignature):
        open_as(bob, parts._replace(body=forged).sealed(), verifier)
    own = mallory.signer.sign(derivation.signed_bytes(bound, forged))
    with pytest.raises(BadSignature):
        open_as(bob, parts._replace(body=forged, signature=own).sealed(), verifier)
    with pytest.raises(SenderMismatch):
        stolen = parts._replace(body=forged, signature=own, chain=mallory.signer.chain)
        open_as(bob, stolen.sealed(), verifier)


def test_a_co_receiver_cannot_pass_the_batch_on_in_its_senders_name(
    alice: Party, bob: Party, mallory: Party, verifier: ChainVerifier
) -> None:
    """Mallory, to whom alice wrote, seals the same session key for bob as if alice had."""
    sealed = Recipe(alice, [mallory]).make()
    session_key = session_key_of(sealed, mallory)
    genuine_signature = Parts.of(sealed).signature
    for recipe in (
        Recipe(alice, [bob], signature=genuine_signature),
        Recipe(alice, [bob, mallory], signature=genuine_signature),
        Recipe(alice, [bob], signer=mallory.signer, chain=alice.signer.chain),
    ):
        with pytest.raises(BadSignature):
            open_as(bob, recipe.but(session_key=session_key).make(), verifier)


# --- the sender itself --------------------------------------------------------------------------


def test_a_sender_cannot_show_two_receivers_two_texts(
    alice: Party, bob: Party, carol: Party, verifier: ChainVerifier
) -> None:
    """AES-GCM lets one body open under two keys; the commitment names one of them."""
    good = Recipe(alice, [bob, carol])
    bad = good.but(wrapped_key=b"\x99" * 32)
    header = envelope.encode_header(good.header())
    ours, theirs = (envelope.parse(recipe.make()) for recipe in (good, bad))
    wraps = ours.wrap_of(0) + theirs.wrap_of(1)
    assert ours.header_bytes == theirs.header_bytes == header
    sealed = good.but(wraps=wraps).make()
    assert open_as(bob, sealed, verifier).messages.payloads() == [b"one", b"two"]
    with pytest.raises(CommitmentMismatch, match="'alice' wrapped another session key"):
        open_as(carol, sealed, verifier)


@pytest.mark.parametrize(
    ("plaintext", "why"),
    [
        (b"\x01\x00\x02" + bytes(20), "too short for its 2 messages"),
        (b"\x01\x00\x01" + bytes(17), "do not add up"),
        (b"\x01\x00\x01" + b"\xff" * 16, "do not add up"),
        (b"\x02\x00\x01" + bytes(16), "layout 2"),
        (b"\x01\x00\x00" + bytes(16), "0 messages"),
        (b"\x01\x04\x01" + bytes(16), "1025 messages"),
        (b"\x01\x00\x02" + bytes(32), "2 messages, the header says 1"),
        (b"\x01\x00\x01" + b"\xff" * 8 + bytes(8), "year 9999"),
        (b"\x01\x00\x01" + bytes(8) + b"\0\0\0\4" + bytes(8), "headers are not well formed"),
    ],
)
def test_a_body_that_is_not_well_formed_is_refused_whole(
    alice: Party, bob: Party, verifier: ChainVerifier, plaintext: bytes, why: str
) -> None:
    """Sealed and signed by its sender all the same."""
    recipe = Recipe(alice, [bob], plaintext=plaintext, count=1)
    with pytest.raises(BodyRefused, match=why):
        open_as(bob, recipe.make(), verifier)


def test_a_body_for_another_header_does_not_open(
    alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    """Signed by its sender, with the right session key, but bound to other wraps."""
    other = envelope.parse(Recipe(alice, [bob]).make())
    recipe = Recipe(alice, [bob], body=bytes(other.body))
    with pytest.raises(BodyRefused, match="does not open with its session key"):
        open_as(bob, recipe.make(), verifier)
    with pytest.raises(InvalidTag):
        AESGCM(derivation.derive(recipe.session_key).body).decrypt(bytes(12), other.body, b"")


def test_a_batch_for_oneself_is_like_any_other(alice: Party, verifier: ChainVerifier) -> None:
    sealed = Recipe(alice, [alice]).make()
    opened = open_batch(
        sealed,
        receiver="alice",
        keyring=Keyring([alice.opener]),
        verifier=verifier,
        now_ms=NOW_MS,
    )
    assert opened.messages.payloads() == [b"one", b"two"]
