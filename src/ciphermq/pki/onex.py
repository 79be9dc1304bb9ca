"""The certificates of a deployment as the tools of CipherMQ 1.x make them.

::

    ca.crt      ca.key              the authority; its key is not encrypted
    server.crt  server.key
    clients/NAME/client.crt  clients/NAME/client.key

All keys are ECDSA P-384. A client's certificate has its id as CN and no extended key usage. The
server's has one, for servers: without it, whoever stole its key could be a client, too.

There is no revocation list, no register of what was issued, and no certificate that may sign: that
is what `ciphermq init` makes, for those who need not go on with 1.x.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.errors import AuthorityError, UsageError
from ciphermq.pki import keyfile, names, profiles

CLIENTS: Final = "clients"


def make(directory: Path, clients: Sequence[str], *, hosts: Sequence[str], now_ms: int) -> None:
    """Make `directory` with an authority, a server at `hosts`, and these clients: whole, or not
    at all.

    Raises `AuthorityError` when there is something at that place, `UsageError` for a name that no
    client may have, or that is there twice.
    """
    for name in clients:
        names.check_issuable(name)
    if len({name.casefold() for name in clients}) != len(clients):
        # Some disks take them for one directory.
        raise UsageError("a client is named twice (upper and lower case are not told apart here)")
    try:
        with disk.new_directory(directory) as made:
            _fill(made, clients, hosts, now_ms)
    except FileExistsError as error:
        raise AuthorityError(
            f"{directory} is there already, with something in it; a new authority can't take its "
            "place: name a directory that is not there"
        ) from error
    except OSError as error:
        raise AuthorityError(f"{directory} can't be written: {error.strerror}") from error


def _fill(directory: Path, clients: Sequence[str], hosts: Sequence[str], now_ms: int) -> None:
    key = _new_key()
    issuer = profiles.Issuer(profiles.authority_certificate(key, now_ms), key)
    _write(directory / "ca", issuer.certificate, key)
    key = _new_key()
    certificate = profiles.server_certificate(
        issuer, hosts, key.public_key(), now_ms, limits.CERTIFICATE_LIFETIME
    )
    _write(directory / "server", certificate, key)
    for name in clients:
        key = _new_key()
        certificate = profiles.onex_client_certificate(
            issuer, name, key.public_key(), now_ms, limits.CERTIFICATE_LIFETIME
        )
        disk.make_private_directory(directory / CLIENTS / name)
        _write(directory / CLIENTS / name / "client", certificate, key)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return keyfile.new_key(ec.SECP384R1())


def _write(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    text = certificate.public_bytes(Encoding.PEM)
    disk.write_file(stem.with_name(f"{stem.name}.crt"), text, mode=disk.PUBLIC)
    keyfile.write_key(stem.with_name(f"{stem.name}.key"), key, None)
