"""``ciphermq identity``: make, look at, move and renew identities."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ciphermq.cli import moving, passphrases, tokens
from ciphermq.cli.common import HomeOption, JsonOption, home_directory
from ciphermq.cli.completing import identities
from ciphermq.cli.enrolment import (
    NameArgument,
    NoPassphraseOption,
    SuiteOption,
    check_new,
    describe,
    home_words,
    now_ms,
    open_authority,
    suite_named,
    until,
    write_new,
)
from ciphermq.cli.output import print_fields, print_json, print_table

if TYPE_CHECKING:
    from ciphermq.cli.deployment import Deployment


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Make, look at, move and renew identities.")
    group.command()(add)
    group.command("list")(list_)
    group.command()(show)
    group.command()(renew)
    group.command()(moving.export)
    group.command("import")(moving.import_)
    group.command()(moving.request)
    app.add_typer(group, name="identity")


def add(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="One or more new names.")],
    url: Annotated[
        str | None,
        typer.Option(help="The broker's URL.  [default: the deployment's]", show_default=False),
    ] = None,
    suite: SuiteOption = "MLKEM768_X25519",
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Although the authority knows the name with another, lost key."
        ),
    ] = False,
    home: HomeOption = None,
    passphrase_file: passphrases.AuthorityPassphraseOption = None,
    identity_passphrase_file: passphrases.IdentityPassphraseOption = None,
    no_passphrase: NoPassphraseOption = False,
    token: tokens.KeepOnTokenOption = None,
    key: tokens.KeyOption = None,
    signing_key: tokens.SigningKeyOption = None,
    module: tokens.ModuleOption = None,
    pin_file: tokens.PinFileOption = None,
    pin_source: tokens.PinSourceOption = "prompt",
    as_json: JsonOption = False,
) -> None:
    """Make an identity here, beside the authority: certificate, keys, all that a client needs."""
    from ciphermq.cli.deployment import Deployment
    from ciphermq.client import enrol
    from ciphermq.errors import UsageError
    from ciphermq.net.address import parse_url

    deployment = Deployment(home_directory(home))
    known_url, server_name = ("", "") if url else deployment.broker()
    url = url or known_url
    parse_url(url)
    paths = {name: deployment.identity(name) for name in names}
    for name, path in paths.items():
        if path.exists():
            raise UsageError(f"{path} exists: {name!r} is made already; nothing is overwritten")
    plan = tokens.plan(module, token, pin_file, key, signing_key, pin_source)
    if len(names) > 1 and (key or signing_key not in {None, "new"}):
        raise UsageError("a key on a token is one identity's: name one, or let new keys be made")
    authority = open_authority(deployment, passphrase_file)
    made = []
    for name, path in paths.items():
        phrase = None
        if not no_passphrase:
            phrase = passphrases.new_identity(identity_passphrase_file, f"the keys of {name!r}")
        enrol.create(
            path,
            name=name,
            url=url,
            server_name=server_name,
            authority=authority,
            now_ms=now_ms(),
            passphrase=phrase,
            suite=suite_named(suite),
            replace=replace,
            plan=plan,
        )
        made.append(describe(path))
    if as_json:
        print_json(made)
        return
    for entry in made:
        print(f"Made {entry['name']} in {entry['directory']}, {until(entry)}.")
    tokens.say_what_is_kept(plan)
    name = shlex.quote(names[0])
    at = home_words(home)
    print(f"\nNext:\n  ciphermq receive --identity {name}{at}")
    print(f"  ciphermq identity export {name}{at}       to take it to another machine")


def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """All identities on this machine, and where the authority is here, those it knows elsewhere."""
    from ciphermq.cli.deployment import Deployment
    from ciphermq.client import places

    deployment = Deployment(home_directory(home))
    found = [_described(path) for path in places.known(deployment.home)]
    found += _elsewhere(deployment, {entry["name"] for entry in found})
    if as_json:
        print_json(found)
        return
    rows = [
        (entry["name"], entry["status"], entry["not_after"], entry["directory"]) for entry in found
    ]
    print_table(("name", "status", "valid until", "directory"), rows)


def show(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Name or directory.",
            autocompletion=identities,
            show_default=False,
        ),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """An identity's certificate, keys and dates. Opens no private key, asks no passphrase."""
    from ciphermq.client import places

    entry = describe(places.find(name, home_directory(home)))
    if as_json:
        print_json(entry)
        return
    warnings = entry.pop("warnings")
    keys = entry.pop("sealing_keys")
    if (token := entry["token"]) is not None:
        entry["token"] = f"{token['label'] or token['serial']}: {', '.join(token['keeps'])}"
    print_fields({**entry, "sealing_keys": f"{len(keys)}: {', '.join(keys)}"})
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr)


def renew(
    name: NameArgument,
    new_key: Annotated[
        bool,
        typer.Option(
            "--new-key",
            help="Also replace the certificate's key. Everybody who knows the old one must run "
            "`ciphermq keys trust`.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the certificate to this file, for `ciphermq identity import` where "
            "the identity lives.  [default: NAME.signed, if it lives elsewhere]",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="The broker's URL for that file.", show_default=False)
    ] = None,
    home: HomeOption = None,
    passphrase_file: passphrases.AuthorityPassphraseOption = None,
    identity_passphrase_file: passphrases.IdentityPassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an identity a new certificate for another year; its key stays."""
    from ciphermq.cli.deployment import Deployment
    from ciphermq.client import enrol, layout, view
    from ciphermq.errors import UsageError
    from ciphermq.pki import names

    deployment = Deployment(home_directory(home))
    path = deployment.identity(name)
    here = (path / layout.SETTINGS).is_file()
    if new_key and not here:
        raise UsageError(f"the key of {name!r} is not in {path}: renew it where it lives")
    if out is None and not here:
        out = Path(f"{name}.signed")
    if out is not None:
        check_new(out)
    authority = open_authority(deployment, passphrase_file)
    if new_key:
        phrase = passphrases.existing_identity(
            identity_passphrase_file,
            f"the keys of {name!r}",
            needed=(path / layout.WRAPPED).exists(),
        )
        renewed = enrol.renew_with_new_key(
            path, authority=authority, now_ms=now_ms(), passphrase=phrase
        )
    elif here:
        renewed = enrol.renew(path, authority=authority, now_ms=now_ms())
    else:
        renewed = enrol.renew_elsewhere(name, authority=authority, now_ms=now_ms())
    certificate = renewed.certificate
    if out is not None:
        broker = (url, "") if url else deployment.broker()
        write_new(out, enrol.answer(authority, certificate, *broker, second=renewed.second))
    end = certificate.not_valid_after_utc
    if as_json:
        result = {"name": name, "not_after": view.spell(end), "file": out and str(out)}
        print_json({**result, "serial": names.spell_serial(certificate.serial_number)})
        return
    print(f"Renewed {name} until {end:%Y-%m-%d}.")
    if out is not None:
        print(f"Next, where {name} lives:\n  ciphermq identity import {out}")
    if new_key:
        print(
            "Its certificate key is new: clients that know the old one stop sending to it until "
            f"they run\n  ciphermq keys trust {name}"
        )


def _described(path: Path) -> dict[str, Any]:
    """As `describe`; one that is damaged must not hide the others."""
    from ciphermq.errors import CipherMQError

    try:
        return describe(path)
    except CipherMQError as error:
        unusable = {"name": path.name, "status": "unusable", "not_after": None}
        return {**unusable, "directory": str(path), "warnings": [str(error)]}


def _elsewhere(deployment: Deployment, here: set[str]) -> list[dict[str, Any]]:
    """Clients that the authority certified and that live on other machines."""
    from ciphermq.client import view
    from ciphermq.errors import AuthorityError
    from ciphermq.pki import revoking

    try:
        certified = revoking.standing(deployment.authority())
    except AuthorityError:
        return []
    newest = {
        each.issued.name: each
        for each in certified
        if each.issued is not None and each.issued.is_client and each.issued.name not in here
    }
    now = now_ms()
    return [
        {
            "name": name,
            "status": "elsewhere" if (state := each.state(now)) == "valid" else state,
            "not_after": view.spell(each.issued.certificate.not_valid_after_utc),
            "directory": None,
        }
        for name, each in sorted(newest.items())
        if each.issued is not None
    ]
