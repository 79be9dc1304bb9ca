"""The files that an identity is made of, and those of them that hold no secret.

::

    identity.toml           name, url, server_name, suite, [token], [one_x]: may be edited
    cert.pem  key.pem       the certificate and its key; the key signs and does TLS
    key.pass                what the passphrase opens; absent: the keys are in the clear
    key.wrapped             in its place: what a hardware token opens
    tls-cert.pem  -key.pem  for TLS alone, where the key of cert.pem is on a token
    ca.crt    crl.pem       whom it believes, and whom no longer
    sealing/                the keys that messages are sealed to
    one_x/                  the key that messages of CipherMQ 1.x are sealed to, if it takes any
    trust.json              what it has learnt about others
    request.pem             while it waits for its certificate: what the authority is to sign

Files with secrets are 0600 in a directory of 0700.
"""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.custody.pkcs11.address import Address
from ciphermq.custody.pkcs11.pin import PROMPT, check_source
from ciphermq.errors import (
    CertificateError,
    ConfigError,
    IdentityError,
    IdentityNotFound,
    RevocationListStale,
)
from ciphermq.model import ids
from ciphermq.model.onex import Dialect, PayloadCipher, SessionSeal
from ciphermq.model.suites import DEFAULT_SUITE, Suite
from ciphermq.pki import dates, names, pem
from ciphermq.pki.revocation import RevocationList
from ciphermq.pki.verify import ChainVerifier

SETTINGS: Final = "identity.toml"
CERTIFICATE: Final = "cert.pem"
KEY: Final = "key.pem"
WRAPPED: Final = "key.pass"
HSM_WRAPPED: Final = "key.wrapped"
TLS_CERTIFICATE: Final = "tls-cert.pem"
TLS_KEY: Final = "tls-key.pem"
AUTHORITY: Final = "ca.crt"
REVOCATION_LIST: Final = "crl.pem"
SEALING: Final = "sealing"
ONEX: Final = "one_x"
TRUST: Final = "trust.json"
REQUEST: Final = "request.pem"
PURPOSE: Final = "CipherMQ identity key"
ANOTHER_KEY: Final = (
    "it needs a new key, with `ciphermq identity renew {} --new-key` where the authority is, or an "
    "identity made anew"
)
"""What to do about a certificate that is revoked."""
LOCK: Final = ".lock"

FILES: Final = "files"
PKCS11: Final = "pkcs11"


class OnexSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[one_x]`` in ``identity.toml``: whether it takes messages of CipherMQ 1.x, which anybody
    can forge, and how its peers of 1.x seal them."""

    dialect: str
    """A `SessionSeal`. Nothing is assumed: the two can't read each other."""
    enabled: bool = False
    """Whether such messages are opened; otherwise they go to the dead letters."""
    cipher: str = PayloadCipher.CHACHA20_POLY1305.value
    separate_tag: bool = False
    """Whether what is sealed here has its tag in a member of its own, as 1.4.0 wants it."""
    keys: str = ONEX
    """The directory of the key, from that of the identity on; only the default one is exported."""

    def to_dialect(self) -> Dialect:
        """What the peers speak."""
        return Dialect(SessionSeal(self.dialect), PayloadCipher(self.cipher), self.separate_tag)


class TokenSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[token]`` in ``identity.toml``: the hardware token that holds keys of this identity."""

    module: str
    """The PKCS#11 module (a shared object) through which it is reached."""
    label: str = ""
    serial: str = ""
    """Which token: one of the two is enough."""
    pin: str = PROMPT
    """Where its PIN comes from: ``env:NAME``, ``file:PATH`` (from the identity's directory on), or
    ``prompt``, which $CIPHERMQ_PIN answers too."""
    signing_key: str = ""
    """The id there of the certificate's key, in hexadecimal; empty: that key is in ``key.pem``."""

    @property
    def signing_id(self) -> bytes | None:
        """`signing_key` as bytes; None when it is not on the token."""
        return bytes.fromhex(self.signing_key) or None

    def address(self) -> Address:
        """Where the token is."""
        return Address(self.module, self.label, self.serial)


class IdentitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``identity.toml``."""

    name: str
    url: str
    """The broker's address, ``cmq://host:port``; empty while it waits for its certificate."""
    server_name: str = ""
    """What the broker's certificate must be for; empty: the host in `url`."""
    suite: str = DEFAULT_SUITE.name
    custody: str = FILES
    """Where sealing keys made from now on live: ``files``, or ``pkcs11``, the hardware token of
    ``[token]``."""
    token: TokenSettings | None = None
    one_x: OnexSettings | None = None

    @property
    def signs_on_token(self) -> bool:
        """Whether the certificate's key is on the token; then there is a second one for TLS."""
        return self.token is not None and self.token.signing_id is not None

    @classmethod
    def read(cls, directory: Path) -> IdentitySettings:
        """Raises `IdentityNotFound` when there is no identity, `ConfigError` for a bad value."""
        path = directory / SETTINGS
        try:
            return cls.parse(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise IdentityNotFound(
                f"there is no identity in {directory}: make one with `ciphermq identity add`, or "
                "take over a file from its maker with `ciphermq identity import`"
            ) from None
        except OSError as error:
            raise IdentityError(f"{path} can't be read: {error.strerror}") from error

    @classmethod
    def parse(cls, text: bytes, where: str) -> IdentitySettings:
        """Raises `ConfigError`, which names `where`."""
        try:
            settings = msgspec.convert(tomllib.loads(text.decode()), cls)
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            raise ConfigError(f"{where}: {error}") from error
        for key in ("url", "server_name"):
            # They are shown, and may come in a stranger's file.
            if not (value := getattr(settings, key)).isprintable():
                raise ConfigError(f"{where}: {key} = {value!r} has control characters")
        if not ids.is_client_id(settings.name):
            raise ConfigError(f"{where}: name = {settings.name!r} is not a client id")
        if settings.suite not in Suite.__members__:
            allowed = ", ".join(Suite.__members__)
            raise ConfigError(f"{where}: suite = {settings.suite!r} is not one of {allowed}")
        _check_custody(settings, where)
        if settings.token is not None:
            _check_token(settings.token, where)
        if settings.one_x is not None:
            _check_onex(settings.one_x, where)
        return settings

    def to_toml(self) -> bytes:
        """The file's text."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        # For such strings JSON's spelling is TOML's.
        sections = {name: values.pop(name) for name in ("token", "one_x")}
        if values["custody"] == FILES:
            del values["custody"]  # as before there were tokens
        lines = _lines(values)
        for name, section in sections.items():
            if section is not None:
                lines += ["", f"[{name}]", *_lines(section)]
        return "\n".join(["# A CipherMQ identity.", *lines, ""]).encode()

    def write(self, directory: Path) -> None:
        """Write ``identity.toml``, in place of the one that is there."""
        disk.write_file(directory / SETTINGS, self.to_toml(), mode=disk.PUBLIC, replace=True)


def _lines(values: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def _check_custody(settings: IdentitySettings, where: str) -> None:
    if settings.custody not in {FILES, PKCS11}:
        raise ConfigError(
            f"{where}: custody = {settings.custody!r} is not one of {FILES}, {PKCS11}"
        )
    if settings.custody == PKCS11 and settings.token is None:
        raise ConfigError(f'{where}: custody = "{PKCS11}" needs a section [token]')
    if settings.custody == PKCS11 and settings.suite != Suite.P256.name:
        raise ConfigError(
            f'{where}: custody = "{PKCS11}" needs suite = "{Suite.P256.name}", not '
            f"{settings.suite!r}: tokens know no other"
        )


def _check_token(settings: TokenSettings, where: str) -> None:
    for key in ("module", "label", "serial"):
        if not (value := getattr(settings, key)).isprintable():
            raise ConfigError(f"{where}: token.{key} = {value!r} has control characters")
    if not settings.module:
        raise ConfigError(f"{where}: token.module is empty; it must be a PKCS#11 module's path")
    if not settings.label and not settings.serial:
        raise ConfigError(f"{where}: [token] needs a label or a serial, or it could be any token")
    check_source(settings.pin, f"{where}: token.pin")
    try:
        size = len(bytes.fromhex(settings.signing_key))
    except ValueError:
        size = limits.MAX_TOKEN_KEY_ID + 1
    if size > limits.MAX_TOKEN_KEY_ID:
        raise ConfigError(
            f"{where}: token.signing_key = {settings.signing_key!r} is no key's id in hexadecimal"
        )


def _check_onex(settings: OnexSettings, where: str) -> None:
    for key, kind in (("dialect", SessionSeal), ("cipher", PayloadCipher)):
        value = getattr(settings, key)
        allowed = [str(member) for member in kind]
        if value not in allowed:
            raise ConfigError(
                f"{where}: one_x.{key} = {value!r} is not one of {', '.join(allowed)}"
            )
    if not settings.keys or not settings.keys.isprintable():
        raise ConfigError(f"{where}: one_x.keys = {settings.keys!r} is no directory's name")


def read_certificate(directory: Path, name: str = CERTIFICATE) -> x509.Certificate:
    """The identity's own certificate, or the other one of that file's name."""
    path = directory / name
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        if (directory / REQUEST).exists():
            raise IdentityError(
                f"{directory} waits for its certificate: send {directory / REQUEST} to whoever "
                "runs the authority (`ciphermq ca sign`) and take the answer over with "
                "`ciphermq identity import`"
            ) from None
        raise IdentityError(f"{path} is missing: restore it from a backup") from None
    except (OSError, *names.UNREADABLE) as error:
        raise IdentityError(f"{path} can't be read: {error}") from error


def read_authorities(directory: Path) -> tuple[bytes, ...]:
    """The authorities' certificates in ``ca.crt``, DER."""
    path = directory / AUTHORITY
    try:
        found = pem.blocks("CERTIFICATE", path.read_bytes())
    except OSError as error:
        raise IdentityError(f"{path} can't be read: {error.strerror}") from error
    if not found:
        raise IdentityError(f"{path} holds no certificate: get it from the authority again")
    return found


def read_revocation_lists(directory: Path) -> tuple[bytes, ...]:
    """The revocation lists in ``crl.pem``, DER; none when the file is missing."""
    path = directory / REVOCATION_LIST
    try:
        return pem.blocks("X509 CRL", path.read_bytes()) if path.exists() else ()
    except OSError as error:
        raise IdentityError(f"{path} can't be read: {error.strerror}") from error


def write_revocation_lists(directory: Path, new: RevocationList) -> None:
    """Put `new` into ``crl.pem``, in the place of that authority's former list."""
    others = [
        der
        for der in read_revocation_lists(directory)
        if x509.load_der_x509_crl(der).issuer != new.issuer.subject
    ]
    text = b"".join(pem.block("X509 CRL", der) for der in [*others, new.der])
    disk.write_file(directory / REVOCATION_LIST, text, mode=disk.PUBLIC, replace=True)


def revocation(directory: Path) -> CertificateError | None:
    """That a certificate of its own has been revoked, says a list in ``crl.pem``; None: none has.

    A list that no authority of this identity has signed says nothing.
    """
    verifier = ChainVerifier(read_authorities(directory))
    for der in read_revocation_lists(directory):
        with suppress(RevocationListStale):
            verifier.use_crl(der)
    try:
        for name in (CERTIFICATE, TLS_CERTIFICATE):
            if (directory / name).exists():
                verifier.check_not_revoked(read_certificate(directory, name))
    except CertificateError as error:
        return error
    return None


def warnings(directory: Path, now_ms: int) -> list[str]:
    """Sentences for the owner: what ends soon, or has ended, or is missing."""
    certificate = read_certificate(directory)
    authorities = [names.load(der) for der in read_authorities(directory)]
    title = f"the certificate of {names.client_id_of(certificate)!r}"
    found = [dates.certificate_warning(certificate, title, now_ms)]
    if (directory / TLS_CERTIFICATE).exists():
        second = read_certificate(directory, TLS_CERTIFICATE)
        found.append(dates.certificate_warning(second, f"{title} for TLS", now_ms))
    found += [dates.certificate_warning(one, "the authority", now_ms) for one in authorities]
    try:
        lists = [RevocationList(der, authorities) for der in read_revocation_lists(directory)]
    except RevocationListStale as error:
        return [*filter(None, found), str(error)]
    if not lists:
        found.append("there is no revocation list (crl.pem), so nobody can be judged")
    found += [crl.warning(now_ms) for crl in lists]
    return [sentence for sentence in found if sentence]
