"""An authority in memory, its clients, and batches made by hand as an attacker would make them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ciphermq import limits
from ciphermq.custody import keys, signatures
from ciphermq.custody.face import Signer
from ciphermq.custody.files import FileOpener, FileSigner
from ciphermq.custody.keyring import Keyring
from ciphermq.model import envelope
from ciphermq.model.body import Body
from ciphermq.model.envelope import Header, ReceiverRef
from ciphermq.model.message import OutgoingMessage
from ciphermq.model.suites import Suite
from ciphermq.pki import profiles
from ciphermq.pki.verify import ChainVerifier
from ciphermq.sealing import derivation
from ciphermq.sealing.seal import ReceiverKey

NOW_MS = 1_800_000_000_000
DAY_MS = limits.DAY * 1000
BATCH_ID = bytes.fromhex("01a3185c5000700080000000000f0000")
SESSION_KEY = bytes(range(32))
DER = serialization.Encoding.DER


class DeterministicSigner(FileSigner):
    """Signs without randomness (RFC 6979), so that vectors have one right answer."""

    _HASHES: ClassVar = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}

    def sign(self, data: bytes) -> bytes:
        algorithm = ec.ECDSA(self._HASHES[self._key.curve.name], deterministic_signing=True)
        return signatures.canonical(self._key.sign(data, algorithm), self._key.curve)


@dataclass(frozen=True)
class Party:
    """A client: its certificate's key and one sealing key."""

    name: str
    signer: FileSigner
    opener: FileOpener

    @property
    def keyring(self) -> Keyring:
        return Keyring([self.opener])

    @property
    def receiver_key(self) -> ReceiverKey:
        opener = self.opener
        return ReceiverKey(self.name, opener.key_id, opener.suite, opener.public_key)

    @property
    def ref(self) -> ReceiverRef:
        return ReceiverRef(self.name, self.opener.key_id, self.opener.suite)


class MemoryAuthority:
    """Issues as the real one does, without files."""

    def __init__(self, now_ms: int = NOW_MS - DAY_MS) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.issuer = profiles.Issuer(profiles.authority_certificate(key, now_ms), key)
        self.now_ms = now_ms

    @property
    def der(self) -> bytes:
        return self.issuer.certificate.public_bytes(DER)

    def party(
        self,
        name: str,
        suite: Suite = Suite.X25519,
        *,
        curve: ec.EllipticCurve | None = None,
        now_ms: int | None = None,
        lifetime: int = limits.CERTIFICATE_LIFETIME,
    ) -> Party:
        key = ec.generate_private_key(curve or ec.SECP256R1())
        certificate = profiles.client_certificate(
            self.issuer, name, key.public_key(), now_ms or self.now_ms, lifetime
        )
        signer = FileSigner(key, (certificate.public_bytes(DER),))
        return Party(name, signer, FileOpener(suite, keys.generate(suite)))

    def crl(self, *serials: int, number: int = 1, now_ms: int | None = None) -> bytes:
        at_ms = now_ms or self.now_ms
        entries = [profiles.revoked_entry(serial, at_ms) for serial in serials]
        return profiles.revocation_list(self.issuer, number, entries, at_ms).public_bytes(DER)

    def verifier(self, *revoked: int) -> ChainVerifier:
        return ChainVerifier([self.der], self.crl(*revoked))


@dataclass
class Recipe:
    """A batch and every choice in its making, so that each can be made wrongly.

    Left alone it makes a valid batch; what is set is used in place of what would be right.
    """

    sender: Party
    receivers: Sequence[Party]
    name: str | None = None
    """The header's sender."""
    certificate_sha256: bytes | None = None
    chain: tuple[bytes, ...] | None = None
    signer: Signer | None = None
    """Who signs, whatever the header says."""
    created_ms: int = NOW_MS
    expires_ms: int = 0
    exchange: str = ""
    routing_key: str = "inbox"
    count: int | None = None
    commitment: bytes | None = None
    refs: tuple[ReceiverRef, ...] | None = None
    wrapped_key: bytes | None = None
    """The session key inside the wraps, if another than the body's."""
    wraps: bytes | None = None
    plaintext: bytes = field(
        default_factory=lambda: (
            Body.of(
                [OutgoingMessage(b"one", sent_ms=NOW_MS), OutgoingMessage(b"two", sent_ms=NOW_MS)]
            ).data
        )
    )
    body: bytes | None = None
    signature: bytes | None = None
    session_key: bytes = SESSION_KEY

    def but(self, **changes: object) -> Recipe:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def header(self) -> Header:
        signer = self.sender.signer
        refs = tuple(party.ref for party in sorted(self.receivers, key=lambda party: party.name))
        return Header(
            sender=self.name or self.sender.name,
            certificate_sha256=self.certificate_sha256 or signer.certificate_sha256,
            batch_id=BATCH_ID,
            created_ms=self.created_ms,
            expires_ms=self.expires_ms,
            exchange=self.exchange,
            routing_key=self.routing_key,
            count=self.count or int.from_bytes(self.plaintext[1:3], "big"),
            commitment=self.commitment or derivation.derive(self.session_key).commitment,
            receivers=self.refs or refs,
        )

    def make(self) -> bytes:
        header = self.header()
        header_bytes = envelope.encode_header(header)
        wraps = self.wraps
        if wraps is None:
            publics = {party.name: party.opener.public_key for party in self.receivers}
            wraps = b"".join(
                keys.wrap(
                    ref.suite,
                    publics[ref.client],
                    self.wrapped_key or self.session_key,
                    derivation.wrap_info(header_bytes, ref.client, ref.key_id),
                )
                for ref in header.receivers
            )
        bound = derivation.binding(header_bytes, wraps)
        body = self.body
        if body is None:
            cipher = AESGCM(derivation.derive(self.session_key).body)
            body = cipher.encrypt(bytes(12), self.plaintext, bound)
        signer = self.signer or self.sender.signer
        signature = self.signature or signer.sign(derivation.signed_bytes(bound, body))
        chain = self.chain or signer.chain
        return envelope.build(header_bytes, wraps, body, chain, signature)
