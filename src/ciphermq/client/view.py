"""What can be told of an identity without opening its private keys."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from ciphermq.client import layout, ownkeys
from ciphermq.client.layout import IdentitySettings
from ciphermq.model import keyrecord
from ciphermq.pki import dates, names
from ciphermq.pki.verify import key_sha256


def describe(path: Path, now_ms: int) -> dict[str, Any]:
    """The identity in directory `path` as plain values; times are RFC 3339.

    Raises `IdentityNotFound` when there is none. What is wrong with one that is there is told in
    `status` and `warnings`.
    """
    settings = IdentitySettings.read(path)
    state = ownkeys.read_state(path / layout.SEALING)
    record = ownkeys.read_record(path / layout.SEALING)
    said = keyrecord.parse(record).record if record is not None else None
    about: dict[str, Any] = {
        "name": settings.name,
        "directory": str(path),
        "status": "ok",
        "url": settings.url,
        "server_name": settings.server_name or None,
        "suite": settings.suite,
        "encrypted": (path / layout.WRAPPED).exists() or (path / layout.HSM_WRAPPED).exists(),
        "token": _token(settings, path),
        "serial": None,
        "not_before": None,
        "not_after": None,
        "certificate_key_sha256": None,
        "sealing_keys": [state.current, *sorted(state.ends_ms.keys() - {state.current})],
        "key_record_version": said.version if said else None,
        "key_record_not_after": spell(dates.from_ms(said.not_after_ms)) if said else None,
        "warnings": [],
    }
    if not (path / layout.CERTIFICATE).exists() and (path / layout.REQUEST).exists():
        about["status"] = "waits for its certificate"
        return about
    certificate = layout.read_certificate(path)
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        about["certificate_key_sha256"] = key_sha256(key).hex()
    about["serial"] = names.spell_serial(certificate.serial_number)
    about["not_before"] = spell(certificate.not_valid_before_utc)
    about["not_after"] = spell(certificate.not_valid_after_utc)
    about["warnings"] = layout.warnings(path, now_ms)
    if about["warnings"]:
        about["status"] = "see warnings"
    if dates.to_ms(certificate.not_valid_after_utc) <= now_ms:
        about["status"] = "expired"
    if (found := layout.revocation(path)) is not None:
        about["status"] = "revoked"
        about["warnings"].insert(0, f"{found}: {layout.ANOTHER_KEY.format(settings.name)}")
    return about


def _token(settings: IdentitySettings, path: Path) -> dict[str, Any] | None:
    """What of it a hardware token keeps."""
    token = settings.token
    if token is None:
        return None
    keeps = {
        "sealing": settings.custody == layout.PKCS11,
        "signing": token.signing_id is not None,
        "files": (path / layout.HSM_WRAPPED).exists(),
    }
    return {
        "module": token.module,
        "label": token.label or None,
        "serial": token.serial or None,
        "keeps": [what for what, kept in keeps.items() if kept],
    }


def spell(when: datetime) -> str:
    """RFC 3339, in UTC."""
    return when.isoformat().replace("+00:00", "Z")
