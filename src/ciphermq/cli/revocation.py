"""``ciphermq ca list``, ``revoke`` and ``crl``: what was issued, what was taken back, and the list
that says so."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ciphermq.cli import passphrases
from ciphermq.cli.common import HomeOption, JsonOption, home_directory
from ciphermq.cli.enrolment import home_words, now_ms, open_authority
from ciphermq.cli.output import counted, print_json, print_table, printable

if TYPE_CHECKING:
    from cryptography import x509

    from ciphermq.cli.deployment import Deployment
    from ciphermq.pki.authority import AuthorityDirectory, Issued
    from ciphermq.pki.revocation import RevocationList
    from ciphermq.pki.revoking import Standing, Target


def list_(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="These clients only.", show_default=False),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every certificate that the authority issued: whose, until when, and whether it is revoked.

    What is revoked and not remembered (an adopted authority's) is at the end, without a name.
    """
    from ciphermq.cli.deployment import Deployment
    from ciphermq.pki import revoking

    authority = Deployment(home_directory(home)).authority()
    found = [_described(each) for each in revoking.standing(authority)]
    if names:
        found = [entry for entry in found if entry["name"] in names]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            entry["name"],
            entry["use"],
            entry["serial"],
            entry["not_after"] and entry["not_after"][:10],
            entry["status"] if entry["revoked"] is None else _since(entry),
        )
        for entry in found
    ]
    print_table(("name", "use", "serial", "valid until", "status"), rows)


def revoke(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME_OR_SERIAL...",
            help="Clients, of which all certificates are revoked; serial numbers; or certificate "
            "files.",
            show_default=False,
        ),
    ],
    reason: Annotated[
        str,
        typer.Option(
            help="unspecified, keyCompromise, affiliationChanged, superseded, "
            "cessationOfOperation or privilegeWithdrawn."
        ),
    ] = "unspecified",
    unknown: Annotated[
        bool,
        typer.Option(
            "--unknown",
            help="Also serial numbers that the authority does not remember: an adopted one's.",
        ),
    ] = False,
    home: HomeOption = None,
    passphrase_file: passphrases.AuthorityPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take certificates back, for good: write the next revocation list and put it where it is
    needed here.

    A running broker ends their connections within seconds of having the list; clients refuse what
    they signed. Nothing is done when one of the words means nothing. May be repeated.
    """
    from ciphermq.cli.deployment import Deployment
    from ciphermq.pki import revoking

    deployment = Deployment(home_directory(home))
    flag = revoking.reason_named(reason)
    targets = revoking.find(deployment.authority(), what, unknown=unknown)
    authority = open_authority(deployment, passphrase_file)
    crl = authority.revocation_list()
    fresh = [target for target in targets if target.serial not in crl.serials]
    if fresh:
        serials = [target.serial for target in fresh]
        crl = authority.issue_crl(now_ms=now_ms(), revoke=serials, reason=flag)
    # Also when nothing is new: an earlier run may have been stopped before it came to that.
    places, missed = _hand_out(deployment, authority)
    if as_json:
        entries = [
            {**_facts(target.serial, target.issued), "already": target not in fresh}
            for target in targets
        ]
        print_json({"revoked": entries, "revocation_list": about(crl), "installed": places})
    else:
        for target in targets:
            _say(target, already=target not in fresh)
        _say_list(crl, places, deployment, issued=bool(fresh))
    _warn(deployment, targets, home_words(home))
    _check_handed_out(missed)


def crl(
    home: HomeOption = None,
    passphrase_file: passphrases.AuthorityPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Issue the next revocation list, for another 30 days, and put it where it is needed here."""
    from ciphermq.cli.deployment import Deployment

    deployment = Deployment(home_directory(home))
    authority = open_authority(deployment, passphrase_file)
    new = authority.issue_crl(now_ms=now_ms())
    places, missed = _hand_out(deployment, authority)
    if as_json:
        print_json({**about(new), "installed": places})
    else:
        _say_list(new, places, deployment, issued=True)
    _check_handed_out(missed)


def about(crl: RevocationList) -> dict[str, Any]:
    """A revocation list in facts."""
    from ciphermq.client import view
    from ciphermq.pki import dates

    return {
        "number": crl.number,
        "revoked": len(crl.serials),
        "issued": view.spell(dates.from_ms(crl.this_update_ms)),
        "expires": view.spell(dates.from_ms(crl.next_update_ms)),
    }


def _hand_out(deployment: Deployment, authority: AuthorityDirectory) -> tuple[list[str], list[str]]:
    """Put the newest list into the broker's directory and the identities that are here: where it
    is now, and where it could not be put, with the reason."""
    from ciphermq.client import enrol
    from ciphermq.custody import disk
    from ciphermq.errors import CipherMQError
    from ciphermq.pki.authority import REVOCATION_LIST

    # Two commands at once must not have the broker end up with the older list.
    with authority.newest_list() as crl:
        text = (authority.path / REVOCATION_LIST).read_bytes()
        places, missed = [], []
        broker = [deployment.server] if deployment.server.is_dir() else []
        for path in [*broker, *deployment.identity_directories()]:
            try:
                if path == deployment.server:
                    name = path / REVOCATION_LIST
                    disk.write_file(name, text, mode=disk.PUBLIC, replace=True)
                else:
                    enrol.install_crl(path, crl)
            except (CipherMQError, OSError) as error:
                missed.append(f"{path} ({error})")
            else:
                places.append(str(path))
    return places, missed


def _check_handed_out(missed: list[str]) -> None:
    """`IdentityError` naming where the new list could not be put."""
    from ciphermq.errors import IdentityError

    if missed:
        raise IdentityError(
            "the revocation list is issued and counts, but could not be put into "
            f"{', '.join(missed)}: put that right and repeat the command"
        )


# --- in words -------------------------------------------------------------------------------------


def _say(target: Target, *, already: bool) -> None:
    facts = _facts(target.serial, target.issued)
    whose = facts["name"] or "a certificate that the authority does not remember"
    until = f", valid until {facts['not_after'][:10]}" if facts["not_after"] else ""
    done = "Was revoked already" if already else "Revoked"
    print(f"{done}: {printable(whose)}, serial {facts['serial']}{until}.")


def _say_list(
    crl: RevocationList, places: list[str], deployment: Deployment, *, issued: bool
) -> None:
    from ciphermq.pki import dates
    from ciphermq.pki.authority import REVOCATION_LIST

    done = "Issued" if issued else "It is on"
    print(
        f"{done} revocation list {crl.number}, until {dates.spell(crl.next_update_ms)}, with "
        f"{counted(len(crl.serials), 'certificate')} on it."
    )
    for place in places:
        print(f"  installed in {place}")
    print(
        f"A broker on another machine needs {deployment.ca / REVOCATION_LIST} too, in the place of "
        "its own; it takes\nit within seconds, without a restart. Clients get it from their broker."
    )


def _warn(deployment: Deployment, targets: list[Target], at: str) -> None:
    """What may not have been meant."""
    from cryptography import x509

    from ciphermq.cli.deployment import ADMINISTRATOR, SERVER_CERTIFICATE
    from ciphermq.pki import names, revoking

    serials = {target.serial for target in targets}
    path = deployment.server / SERVER_CERTIFICATE
    said = []
    try:
        server: x509.Certificate | None = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *names.UNREADABLE):
        server = None
    if server is not None and server.serial_number in serials:
        said.append(
            "that is the certificate the broker has now, and clients refuse it: give it another "
            f"with `ciphermq ca server{at}`"
        )
    left = [
        each
        for each in revoking.standing(deployment.authority())
        if each.issued is not None and each.issued.is_client and each.revoked_ms is None
    ]
    named = {target.issued.name for target in targets if target.issued and target.issued.is_client}
    for name in sorted(named):
        others = [each for each in left if each.issued and each.issued.name == name]
        if others:
            numbers = ", ".join(names.spell_serial(each.serial) for each in others)
            said.append(f"{name} still has a certificate that counts: {numbers}")
    if ADMINISTRATOR in named and not any(
        each.issued and each.issued.name == ADMINISTRATOR for each in left
    ):
        said.append("nobody is the administrator any more, until that identity is made anew")
    for sentence in said:
        print(f"warning: {sentence}", file=sys.stderr)


# --- facts ----------------------------------------------------------------------------------------


def _facts(serial: int, issued: Issued | None) -> dict[str, Any]:
    from ciphermq.client import view
    from ciphermq.pki import names

    spelt = names.spell_serial(serial)
    if issued is None:
        return {"name": None, "use": None, "serial": spelt, "not_after": None}
    use = "connects" if issued.only_connects else "client" if issued.is_client else "server"
    end = view.spell(issued.certificate.not_valid_after_utc)
    return {"name": issued.name, "use": use, "serial": spelt, "not_after": end}


def _described(each: Standing) -> dict[str, Any]:
    from ciphermq.client import view
    from ciphermq.pki import dates

    when = each.revoked_ms
    return {
        **_facts(each.serial, each.issued),
        "status": each.state(now_ms()),
        "revoked": None if when is None else view.spell(dates.from_ms(when)),
        "reason": each.reason,
    }


def _since(entry: dict[str, Any]) -> str:
    reason = f" ({entry['reason']})" if entry["reason"] else ""
    return f"revoked {entry['revoked'][:10]}{reason}"
