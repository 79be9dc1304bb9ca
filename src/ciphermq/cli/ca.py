"""``ciphermq ca``: what only the authority can do for identities made elsewhere and for brokers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ciphermq.cli import passphrases, revocation
from ciphermq.cli.common import HomeOption, JsonOption, home_directory
from ciphermq.cli.enrolment import (
    NoPassphraseOption,
    check_new,
    home_words,
    now_ms,
    open_authority,
    write_new,
)
from ciphermq.cli.output import print_fields, print_json

if TYPE_CHECKING:
    from ciphermq.cli.deployment import Deployment
    from ciphermq.pki.revocation import RevocationList


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="Certify requests, take certificates back, look closely."
    )
    group.command()(sign)
    group.command("list")(revocation.list_)
    group.command()(revocation.revoke)
    group.command()(revocation.crl)
    group.command()(server)
    group.command()(status)
    group.command()(make)
    group.command()(adopt)
    app.add_typer(group, name="ca")


def sign(
    request: Annotated[Path, typer.Argument(help="What `ciphermq identity request` wrote.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="A new file.  [default: NAME.signed]", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The name it must ask for, if you know.", show_default=False),
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(
            help="The fingerprint its key must have, as its maker told you by another road.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="The broker's URL.  [default: the deployment's]", show_default=False),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Although the authority knows the name with another, lost key."
        ),
    ] = False,
    home: HomeOption = None,
    passphrase_file: passphrases.AuthorityPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Certify an identity that was made on its own machine.

    Only the name and the key are taken from the request. Be sure that it is from whom it says.
    """
    from ciphermq import limits
    from ciphermq.cli.deployment import Deployment
    from ciphermq.client import enrol, view
    from ciphermq.directory import records
    from ciphermq.errors import CertificateError
    from ciphermq.net.address import parse_url
    from ciphermq.pki import names
    from ciphermq.pki.authority import (
        check_companion,
        load_companion,
        load_request,
        request_key,
    )
    from ciphermq.pki.verify import key_sha256

    deployment = Deployment(home_directory(home))
    with request.open("rb") as stream:
        data = stream.read(limits.MAX_KEY_FILE)
    asked, companion = load_request(data), load_companion(data)
    found = names.request_name(asked)
    digest = key_sha256(request_key(asked))
    if name is not None and found != name:
        raise CertificateError(f"{request} asks for the name {found!r}, not for {name!r}")
    if fingerprint is not None and digest != records.parse_fingerprint(fingerprint):
        raise CertificateError(
            f"the key in {request} has another fingerprint: {records.fingerprint(digest)}. "
            "Somebody may have put another request in the place of this one"
        )
    broker = (url, "") if url else deployment.broker()
    parse_url(broker[0])
    file = check_new(file or Path(f"{found}.signed"))
    authority = open_authority(deployment, passphrase_file)
    now = now_ms()
    if companion is not None:
        check_companion(asked, companion)
    certificate = authority.sign_request(asked, now_ms=now, replace=replace)
    second = None
    if companion is not None:
        second = authority.sign_companion(asked, companion, now_ms=now, replace=replace)
    write_new(file, enrol.answer(authority, certificate, *broker, second=second))
    end = certificate.not_valid_after_utc
    if as_json:
        print_json(
            {
                "name": found,
                "file": str(file),
                "serial": names.spell_serial(certificate.serial_number),
                "not_after": view.spell(end),
                "certificate_key": digest.hex(),
            }
        )
        return
    print(f"Certified {found} until {end:%Y-%m-%d}: {file} (it holds no secret).")
    if second is not None:
        print(
            "With it a second certificate, for TLS alone, whose key the first request vouches for."
        )
    print(f"Its key's fingerprint, to compare with its maker's:\n  {records.fingerprint(digest)}")
    print(f"Next, where {found} lives:\n  ciphermq identity import {file}")


def server(
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host names and addresses for the certificate; repeat it for more.  "
            "[default: those it has]",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = None,
    passphrase_file: passphrases.AuthorityPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the broker a new certificate for another year; its key stays."""
    from ciphermq.cli import deployment as layout
    from ciphermq.client import view

    deployment = layout.Deployment(home_directory(home))
    authority = open_authority(deployment, passphrase_file)
    certificate = layout.renew_server(
        deployment, authority, now_ms=now_ms(), hosts=tuple(host or ())
    )
    hosts = layout.server_hosts(certificate)
    path = deployment.server / layout.SERVER_CERTIFICATE
    end = certificate.not_valid_after_utc
    if as_json:
        print_json({"file": str(path), "hosts": hosts, "not_after": view.spell(end)})
        return
    print(f"Renewed {path} until {end:%Y-%m-%d}, for {', '.join(hosts)}.")
    print(
        "A running broker takes it within seconds, without a restart. If it is on another machine, "
        "copy the file there."
    )


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The authority's fingerprint and dates, its revocation list, and what ends soon."""
    from ciphermq.cli.deployment import Deployment
    from ciphermq.client import view
    from ciphermq.client.enrol import fingerprint_of
    from ciphermq.directory.records import fingerprint

    deployment = Deployment(home_directory(home))
    authority = deployment.authority()
    newest = authority.revocation_list()
    issued = authority.issued()
    digest = fingerprint_of(authority.certificate)
    warnings = _warnings(deployment, newest)
    about: dict[str, Any] = {
        "authority": authority.certificate.subject.rfc4514_string(),
        "directory": str(authority.path),
        "fingerprint": digest.hex(),
        "encrypted": authority.encrypted,
        "not_after": view.spell(authority.certificate.not_valid_after_utc),
        "clients": len({item.name for item in issued if item.is_client}),
        "certificates": len(issued),
        "revocation_list": revocation.about(newest),
    }
    if as_json:
        print_json({**about, "warnings": warnings})
        return
    crl_fields = about.pop("revocation_list")
    about["fingerprint"] = fingerprint(digest)
    print_fields({**about, **{f"crl_{key}": value for key, value in crl_fields.items()}})
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr)


def make(
    out: Annotated[Path, typer.Option("--out", help="A new directory.", show_default=False)],
    clients: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Clients.", show_default=False),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host names and addresses of the server; repeat it for more.  "
            "[default: localhost, 127.0.0.1, ::1]",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the certificates of a CipherMQ 1.x deployment: authority, server, clients.

    For going on with 1.x clients only. What `ciphermq init` makes is safer in every respect.
    """
    from ciphermq.cli.deployment import DEFAULT_HOSTS
    from ciphermq.pki import onex

    names = clients or []
    onex.make(out, names, hosts=host or DEFAULT_HOSTS, now_ms=now_ms())
    files = [out / "ca.crt", out / "server.crt"]
    files += [out / onex.CLIENTS / name / "client.crt" for name in names]
    if as_json:
        print_json({"directory": str(out), "certificates": [str(file) for file in files]})
        return
    print("Made, each with its key beside it (.key):")
    for file in files:
        print(f"  {file}")
    print(
        f"Whoever has {out / 'ca.key'}, which is not encrypted, can be any client: take it away "
        "from here."
    )


def adopt(
    certificate: Annotated[
        Path,
        typer.Argument(metavar="CERTIFICATE", help="Its ca.crt, a PEM file.", show_default=False),
    ],
    key: Annotated[
        Path,
        typer.Argument(
            metavar="KEY", help="Its ca.key, a PEM file, unencrypted.", show_default=False
        ),
    ],
    no_passphrase: NoPassphraseOption = False,
    home: HomeOption = None,
    passphrase_file: passphrases.AuthorityPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over the authority of a CipherMQ 1.x deployment, to make identities for its server.

    Makes ca/ in the deployment directory, with its first revocation list. The two files stay as
    they are. What it has certified so far is not known here: give no client's name again.
    """
    from cryptography import x509

    from ciphermq.cli.deployment import Deployment
    from ciphermq.errors import AuthorityError
    from ciphermq.pki import keyfile, names
    from ciphermq.pki.authority import Authority

    deployment = Deployment(home_directory(home))
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, *names.UNREADABLE) as error:
        raise AuthorityError(f"{certificate} can't be read as a certificate: {error}") from error
    opened = keyfile.read_key(key, None)
    passphrase = None if no_passphrase else passphrases.new_authority(passphrase_file)
    try:
        Authority.adopt(deployment.ca, found, opened, passphrase=passphrase, now_ms=now_ms())
    except FileExistsError as error:
        raise AuthorityError(f"{deployment.ca} is there already, with something in it") from error
    files = [deployment.ca / name for name in ("ca.crt", "ca.key", "crl.pem")]
    if as_json:
        print_json({"directory": str(deployment.ca), "files": [str(file) for file in files]})
        return
    print(f"Made {deployment.ca} of {found.subject.rfc4514_string()}. Next:")
    print("  ciphermq identity add admin --url cmq://HOST:PORT" + home_words(home))


def _warnings(deployment: Deployment, newest: RevocationList) -> list[str]:
    """What ends soon: authority, list, broker, and the newest certificate of each client."""
    from cryptography import x509

    from ciphermq.cli.deployment import SERVER_CERTIFICATE
    from ciphermq.pki import dates

    now = now_ms()
    authority = deployment.authority()
    found = [
        dates.certificate_warning(authority.certificate, "the authority", now),
        newest.warning(now),
    ]
    server_path = deployment.server / SERVER_CERTIFICATE
    if server_path.is_file():
        certificate = x509.load_pem_x509_certificate(server_path.read_bytes())
        said = dates.certificate_warning(certificate, "the broker's certificate", now)
        found.append(said and f"{said}: run `ciphermq ca server`")
    for name, item in sorted(
        {item.name: item for item in authority.issued() if item.is_client}.items()
    ):
        said = dates.certificate_warning(item.certificate, f"the certificate of {name!r}", now)
        found.append(said and f"{said}: run `ciphermq identity renew {name}`")
    return [sentence for sentence in found if sentence]
