"""Each fault has its own error, and of two faults the one that is checked first is told.

The order is the design's. It decides whether a batch goes to the dead letters or the receiver
stops, so it is pinned here by every pair of faults there is.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
from cryptography import x509

from ciphermq import errors, limits
from ciphermq.custody.keyring import Keyring
from ciphermq.model.envelope import ReceiverRef
from ciphermq.model.suites import Suite
from ciphermq.pki.verify import ChainVerifier
from ciphermq.sealing.open import open_batch
from support.sealing import DAY_MS, NOW_MS, MemoryAuthority, Party, Recipe

MAX_AGE_MS = limits.MAX_MESSAGE_AGE * 1000
SKEW_MS = limits.CLOCK_SKEW * 1000


class Scene:
    """A batch in the making and the receiver that will judge it."""

    def __init__(self, recipe: Recipe, bob: Party, authority: MemoryAuthority) -> None:
        self.recipe = recipe
        self.bob = bob
        self.authority = authority
        self.receiver = bob.name
        self.keyring = bob.keyring
        self.verifier = authority.verifier()
        self.now_ms = NOW_MS
        self.tail = b""

    def open(self) -> None:
        sealed = self.recipe.make() + self.tail
        open_batch(
            sealed,
            receiver=self.receiver,
            keyring=self.keyring,
            verifier=self.verifier,
            now_ms=self.now_ms,
        )


def trailing_byte(scene: Scene) -> None:
    scene.tail = b"\0"


def strange_authority(scene: Scene) -> None:
    scene.verifier = MemoryAuthority().verifier()


def revoked(scene: Scene) -> None:
    serial = serial_of(scene.recipe.sender)
    if scene.verifier.authorities == scene.authority.verifier().authorities:
        scene.verifier = scene.authority.verifier(serial)


def another_name(scene: Scene) -> None:
    scene.recipe = scene.recipe.but(name="alicia")


def not_ours(scene: Scene) -> None:
    scene.receiver = "dave"


def expired(scene: Scene) -> None:
    scene.recipe = scene.recipe.but(expires_ms=NOW_MS)


def bad_signature(scene: Scene) -> None:
    scene.recipe = scene.recipe.but(signature=scene.recipe.sender.signer.sign(b"something else"))


def bad_wrap(scene: Scene) -> None:
    scene.recipe = scene.recipe.but(wraps=bytes(80 + 1168))


def other_session_key(scene: Scene) -> None:
    scene.recipe = scene.recipe.but(wrapped_key=b"\x55" * 32)


def bad_body(scene: Scene) -> None:
    scene.recipe = scene.recipe.but(body=bytes(100))


def bad_count(scene: Scene) -> None:
    scene.recipe = scene.recipe.but(count=1)


def serial_of(party: Party) -> int:
    return x509.load_der_x509_certificate(party.signer.chain[0]).serial_number


IN_ORDER: list[tuple[Callable[[Scene], None], type[errors.CipherMQError]]] = [
    (trailing_byte, errors.MalformedBatch),
    (strange_authority, errors.UntrustedSender),
    (revoked, errors.SenderRevoked),
    (another_name, errors.SenderMismatch),
    (not_ours, errors.NotForThisReceiver),
    (expired, errors.BatchExpired),
    (bad_signature, errors.BadSignature),
    (bad_wrap, errors.WrapRefused),
    (other_session_key, errors.CommitmentMismatch),
    (bad_body, errors.BodyRefused),
    (bad_count, errors.BodyRefused),
]


@pytest.fixture
def scene(recipe: Recipe, bob: Party, authority: MemoryAuthority) -> Scene:
    return Scene(recipe, bob, authority)


def test_the_recipe_is_good_when_nothing_is_spoilt(scene: Scene) -> None:
    scene.open()


@pytest.mark.parametrize(("spoil", "error"), IN_ORDER)
def test_every_fault_has_its_error(
    scene: Scene, spoil: Callable[[Scene], None], error: type[errors.CipherMQError]
) -> None:
    spoil(scene)
    with pytest.raises(error) as caught:
        scene.open()
    assert type(caught.value) is error


@pytest.mark.parametrize(("first", "second"), list(combinations(IN_ORDER, 2)))
def test_of_two_faults_the_earlier_is_told(
    scene: Scene,
    first: tuple[Callable[[Scene], None], type[errors.CipherMQError]],
    second: tuple[Callable[[Scene], None], type[errors.CipherMQError]],
) -> None:
    first[0](scene)
    second[0](scene)
    with pytest.raises(first[1]) as caught:
        scene.open()
    assert type(caught.value) is first[1]


# --- age, and the clock that judges it ----------------------------------------------------------


def open_at(
    made_ms: int,
    now_ms: int,
    alice: Party,
    bob: Party,
    verifier: ChainVerifier,
    expires_ms: int = 0,
) -> None:
    sealed = Recipe(alice, [bob], created_ms=made_ms, expires_ms=expires_ms).make()
    open_batch(sealed, receiver="bob", keyring=bob.keyring, verifier=verifier, now_ms=now_ms)


@pytest.mark.parametrize(
    ("age_ms", "error"),
    [
        (-SKEW_MS - 1, errors.BatchFromTheFuture),
        (-SKEW_MS, None),
        (0, None),
        (MAX_AGE_MS, None),
        (MAX_AGE_MS + 1, errors.BatchTooOld),
    ],
)
def test_the_bounds_of_age(
    authority: MemoryAuthority,
    bob: Party,
    age_ms: int,
    error: type[errors.BatchError] | None,
) -> None:
    sender = authority.party("sender", now_ms=NOW_MS)
    now_ms = NOW_MS + MAX_AGE_MS
    verifier = ChainVerifier([authority.der], authority.crl(now_ms=now_ms - DAY_MS))
    if error is None:
        open_at(now_ms - age_ms, now_ms, sender, bob, verifier)
    else:
        with pytest.raises(error):
            open_at(now_ms - age_ms, now_ms, sender, bob, verifier)


def test_a_batch_expires_at_the_moment_it_says(
    alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    open_at(NOW_MS, NOW_MS + 9, alice, bob, verifier, expires_ms=NOW_MS + 10)
    with pytest.raises(errors.BatchExpired):
        open_at(NOW_MS, NOW_MS + 10, alice, bob, verifier, expires_ms=NOW_MS + 10)


def test_a_clock_that_is_off_stops_the_receiver_and_spares_the_queue(
    alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    """Reset to 1970 or set to the far future, it would send every batch to the dead letters."""
    with pytest.raises(errors.ClockWrong):
        open_at(NOW_MS, 86_400_000, alice, bob, verifier)
    with pytest.raises(errors.RevocationListStale):
        open_at(NOW_MS, NOW_MS + 400 * DAY_MS, alice, bob, verifier)


def test_without_a_revocation_list_nothing_is_judged(
    authority: MemoryAuthority, alice: Party, bob: Party
) -> None:
    with pytest.raises(errors.RevocationListStale):
        open_at(NOW_MS, NOW_MS, alice, bob, ChainVerifier([authority.der]))


# --- whose certificate --------------------------------------------------------------------------


def test_the_certificate_was_valid_when_the_batch_was_made(
    authority: MemoryAuthority, bob: Party, verifier: ChainVerifier
) -> None:
    """Made in time, it is good after the certificate has ended; made later, it never is."""
    sender = authority.party("sender", now_ms=NOW_MS - DAY_MS, lifetime=limits.DAY)
    open_at(NOW_MS, NOW_MS + 10 * DAY_MS, sender, bob, verifier)
    open_at(NOW_MS + SKEW_MS, NOW_MS + 10 * DAY_MS, sender, bob, verifier)
    for made_ms in (NOW_MS + SKEW_MS + 1000, NOW_MS - 3 * DAY_MS):
        with pytest.raises(errors.SenderCertificateNotValid):
            open_at(made_ms, NOW_MS + 10 * DAY_MS, sender, bob, verifier)


def test_revocation_counts_whatever_date_the_batch_has(
    authority: MemoryAuthority, alice: Party, bob: Party
) -> None:
    """A thief of a key would write a date before the theft."""
    verifier = authority.verifier(serial_of(alice))
    with pytest.raises(errors.SenderRevoked):
        open_at(NOW_MS - 1000, NOW_MS, alice, bob, verifier)


def test_two_certificates_of_one_client_are_two_senders(
    authority: MemoryAuthority, alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    renewed = authority.party("alice")
    sealed = Recipe(alice, [bob], chain=renewed.signer.chain, signer=renewed.signer).make()
    with pytest.raises(errors.SenderMismatch, match="another certificate"):
        open_batch(sealed, receiver="bob", keyring=bob.keyring, verifier=verifier, now_ms=NOW_MS)


# --- what the private key finds -----------------------------------------------------------------


def test_the_suite_must_be_that_of_the_key(
    alice: Party, bob: Party, verifier: ChainVerifier
) -> None:
    wrong = ReceiverRef("bob", bob.opener.key_id, Suite.P256)
    sealed = Recipe(alice, [bob], refs=(wrong,), wraps=bytes(Suite.P256.wrap_size)).make()
    with pytest.raises(errors.WrapRefused, match="suite P256; it is one of suite X25519"):
        open_batch(sealed, receiver="bob", keyring=bob.keyring, verifier=verifier, now_ms=NOW_MS)


def test_every_fault_above_is_the_batchs() -> None:
    assert all(issubclass(error, errors.BatchError) for _, error in IN_ORDER)


def test_a_key_that_is_not_here_is_the_receivers_fault(scene: Scene) -> None:
    scene.keyring = Keyring()
    with pytest.raises(errors.ReceiverFault) as caught:
        scene.open()
    assert type(caught.value) is errors.KeyMissing
