"""What one identity has learnt about others, and must not forget: the trust file.

One JSON file an identity, shared by all its processes under a lock: for each client the
certificate key it was first seen with and the highest version of its key record, and for each
authority the highest number of its revocation lists. Without it a broker could go back to an old
key, or bring back a revoked certificate, after every restart.

A missing file is a new identity's. A damaged one is an error: starting over would trust whoever
comes first, which is what the file is there to prevent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.directory import records
from ciphermq.directory.records import VerifiedRecord
from ciphermq.errors import CertificateKeyChanged, RevocationListStale, StoreError
from ciphermq.pki.revocation import RevocationList
from ciphermq.pki.verify import ChainVerifier

T = TypeVar("T")

_FORMAT: Final = 1
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Known(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is remembered of one client."""

    pin: _Digest
    """SHA-256 of its certificate key, hexadecimal."""
    version: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Highest version of its key record seen under that key."""
    since_ms: int = 0
    by_hand: bool = False
    """A person compared the fingerprint; otherwise it was taken on first sight."""
    offered: _Digest | None = None
    """Another certificate key that was shown since, and refused."""


class _Content(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    format: int = _FORMAT
    clients: dict[str, Known] = {}
    revocation_lists: dict[_Digest, int] = {}
    """By SHA-256 of the authority's certificate."""
    one_x: dict[str, _Digest] = {}
    """Fingerprints of keys of CipherMQ 1.x that a person confirmed, by client."""


class TrustFile:
    """The trust file at `path`. Every call reads it afresh, so processes see each other's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f"{path.name}.lock")

    def known(self, client: str) -> Known | None:
        """What is remembered of `client`; None when it was never seen."""
        return self._read().clients.get(client)

    def clients(self) -> dict[str, Known]:
        """Everybody ever seen, by name."""
        return dict(sorted(self._read().clients.items()))

    def accept(
        self, record: bytes, *, expected_client: str, verifier: ChainVerifier, now_ms: int
    ) -> VerifiedRecord:
        """Verify a key record against all that is remembered, and remember what it adds.

        Raises as `directory.records.verify` does. A client's first certificate key is taken as
        its own; from then on another one is refused until `trust`.
        """
        verified = records.verify(
            record, expected_client=expected_client, verifier=verifier, now_ms=now_ms
        )
        return self._change(lambda content: _learn(content, verified, now_ms))

    def trust(self, client: str, certificate_key_sha256: bytes, now_ms: int) -> None:
        """From now on `client` is whoever holds this certificate key: a person said so.

        Its versions start anew: those of another key say nothing about this one's.
        """
        pin = certificate_key_sha256.hex()

        def change(content: _Content) -> None:
            before = content.clients.get(client)
            version = before.version if before is not None and before.pin == pin else 0
            content.clients[client] = Known(pin, version, now_ms, by_hand=True)

        self._change(change)

    def onex_pin(self, client: str) -> str | None:
        """The fingerprint of the client's 1.x key that a person confirmed, if one did."""
        return self._read().one_x.get(client)

    def onex_pins(self) -> dict[str, str]:
        """All of them, by client."""
        return dict(sorted(self._read().one_x.items()))

    def trust_onex(self, client: str, fingerprint: bytes) -> None:
        """From now on the 1.x key of `client` is the one with this fingerprint, and no other: a
        person said so. On first sight none is ever trusted."""

        def change(content: _Content) -> None:
            content.one_x[client] = fingerprint.hex()

        self._change(change)

    def forget_onex(self, client: str) -> bool:
        """No 1.x key of `client` is trusted any more; whether one was."""
        return self._change(lambda content: content.one_x.pop(client, None)) is not None

    def lowest_crl_number(self, authority_sha256: bytes) -> int:
        """The highest number seen of that authority's lists: none below it counts."""
        return self._read().revocation_lists.get(authority_sha256.hex(), 0)

    def note_crl(self, crl: RevocationList) -> None:
        """Remember the list's number; `RevocationListStale` when a higher one was seen."""

        def change(content: _Content) -> None:
            issuer = crl.issuer_sha256.hex()
            highest = content.revocation_lists.get(issuer, 0)
            if crl.number < highest:
                raise RevocationListStale(
                    f"revocation list {crl.number} is older than {highest}, which was seen "
                    "before: get the newest crl.pem from the authority"
                )
            content.revocation_lists[issuer] = crl.number

        self._change(change)

    def _change(self, change: Callable[[_Content], T]) -> T:
        """Apply `change` to the newest content; write it when that made a difference.

        What `change` did to the content is kept even when it then raises.
        """
        with disk.locked(self._lock):
            content = self._read()
            before = msgspec.json.encode(content)
            try:
                return change(content)
            finally:
                if msgspec.json.encode(content) != before:
                    self._write(content)

    def _read(self) -> _Content:
        try:
            data = (
                disk.read_private(self.path, limit=limits.MAX_TRUST_FILE)
                if self.path.exists()
                else b"{}"
            )
            content = msgspec.json.decode(data, type=_Content)
        except msgspec.DecodeError as error:
            raise StoreError(
                f"the trust file {self.path} is damaged ({error}): restore it from a backup. "
                "Remove it only if every pin in it may be taken anew from whoever comes first"
            ) from error
        if content.format != _FORMAT:
            raise StoreError(
                f"the trust file {self.path} has format {content.format}, this program knows "
                f"{_FORMAT}: upgrade it"
            )
        return content

    def _write(self, content: _Content) -> None:
        text = json.dumps(msgspec.to_builtins(content), indent=1, sort_keys=True)
        disk.write_file(self.path, text.encode() + b"\n", replace=True)


def _learn(content: _Content, verified: VerifiedRecord, now_ms: int) -> VerifiedRecord:
    seen = content.clients.get(verified.client)
    if seen is None:
        pin = verified.certificate_key_sha256.hex()
        content.clients[verified.client] = Known(pin, verified.version, now_ms)
        return verified
    try:
        records.check_pin(verified, bytes.fromhex(seen.pin))
    except CertificateKeyChanged:
        offered = verified.certificate_key_sha256.hex()
        content.clients[verified.client] = msgspec.structs.replace(seen, offered=offered)
        raise
    records.check_version(verified, seen.version)
    if verified.version > seen.version:
        content.clients[verified.client] = msgspec.structs.replace(seen, version=verified.version)
    return verified
