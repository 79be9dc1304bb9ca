"""``ciphermq identity export|import|request``: identities that go to, or come from, elsewhere."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ciphermq.cli import passphrases, tokens
from ciphermq.cli.common import HomeOption, JsonOption, PassphraseFileOption, home_directory
from ciphermq.cli.enrolment import (
    NameArgument,
    NoPassphraseOption,
    SuiteOption,
    check_new,
    describe,
    now_ms,
    suite_named,
    until,
    write_new,
)
from ciphermq.cli.output import print_json

_ToOption = Annotated[
    Path | None,
    typer.Option(
        "--to",
        help="The identity's directory.  [default: NAME in ~/.config/ciphermq/identities, or in "
        "--home where that is given]",
        show_default=False,
    ),
]


def export(
    name: NameArgument,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="A new file.  [default: NAME.identity]", show_default=False
        ),
    ] = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    no_passphrase: NoPassphraseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write all that a client's machine needs to one file, under a passphrase of its own."""
    from ciphermq.client import enrol, layout, places

    path = places.find(name, home_directory(home))
    file = check_new(file or Path(f"{path.name}.identity"))
    phrase = None
    if not no_passphrase:
        phrase = passphrases.new_file(passphrase_file, f"the file {file}")
    write_new(file, enrol.export(path, phrase))
    clear = phrase is None and not (path / layout.WRAPPED).exists()
    if as_json:
        print_json({"file": str(file), "encrypted": phrase is not None, "keys_in_clear": clear})
        return
    if clear:
        print(
            f"warning: {file} holds private keys in the clear; whoever reads it is {path.name}",
            file=sys.stderr,
        )
    print(f"Wrote {file}. Next, on the other machine:\n  ciphermq identity import {file}")


def import_(
    file: Annotated[
        Path,
        typer.Argument(help="What `identity export`, `identity renew` or `ca sign` wrote."),
    ],
    to: _ToOption = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over an identity, or the certificate for one that made its request here."""
    from ciphermq.client import bundle, enrol, layout
    from ciphermq.client.enrol import fingerprint_of
    from ciphermq.directory.records import fingerprint
    from ciphermq.errors import UsageError
    from ciphermq.pki import names

    text = bundle.read(file)
    needed = bundle.needs_passphrase(text)
    got = bundle.unpack(text, passphrases.existing(passphrase_file, str(file), needed=needed))
    path = to or _own_place(got.name, home, required=got.kind == "certificate")
    if got.kind == "certificate":
        enrol.install_certificate(got, path, now_ms())
    else:
        if path.exists() and any(path.iterdir()):
            raise UsageError(
                f"{path} exists, and nothing is overwritten. To renew its certificate alone, "
                f"import what `ciphermq identity renew {got.name} --out FILE` writes"
            )
        enrol.import_identity(got, path, now_ms())
    entry = describe(path)
    authority = fingerprint_of(names.load(layout.read_authorities(path)[0]))
    if as_json:
        print_json({**entry, "authority_fingerprint": authority.hex()})
        return
    what = "the certificate of " if got.kind == "certificate" else ""
    print(f"Took over {what}{got.name} in {path}, {until(entry)}; its broker is {entry['url']}")
    print("It believes the authority with this fingerprint. Compare it with `ciphermq ca status`:")
    print(f"  {fingerprint(authority)}")
    print(f"Next:\n  ciphermq receive --identity {shlex.quote(str(to or got.name))}")


def request(
    name: NameArgument,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Where to write the request.  [default: NAME.request]",
            show_default=False,
        ),
    ] = None,
    to: _ToOption = None,
    suite: SuiteOption = "MLKEM768_X25519",
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    no_passphrase: NoPassphraseOption = False,
    token: tokens.KeepOnTokenOption = None,
    key: tokens.KeyOption = None,
    signing_key: tokens.SigningKeyOption = None,
    module: tokens.ModuleOption = None,
    pin_file: tokens.PinFileOption = None,
    pin_source: tokens.PinSourceOption = "prompt",
    as_json: JsonOption = False,
) -> None:
    """Make an identity where it will live. Only the request for its certificate leaves here.

    For an identity that exists, a request to renew its certificate.
    """
    from ciphermq.client import enrol, layout
    from ciphermq.directory.records import fingerprint as spell
    from ciphermq.pki.authority import load_request, request_key
    from ciphermq.pki.names import check_issuable
    from ciphermq.pki.verify import key_sha256

    check_issuable(name)
    path = to or _own_place(name, home, required=False)
    file = check_new(file or Path(f"{name}.request"))
    plan = None
    if (path / layout.SETTINGS).is_file():
        needed = (path / layout.WRAPPED).exists()
        phrase = passphrases.existing(passphrase_file, name, needed=needed)
        text = enrol.request_again(path, phrase, tokens.identity_pin(path, pin_file))
        done = f"{path} has its keys already: this request is to have the same key certified."
    else:
        phrase = None
        if not no_passphrase:
            phrase = passphrases.new_file(passphrase_file, f"the keys of {name!r}")
        plan = tokens.plan(module, token, pin_file, key, signing_key, pin_source)
        text = enrol.request(
            path, name=name, passphrase=phrase, suite=suite_named(suite), plan=plan
        )
        done = f"Made the keys of {name} in {path}."
    write_new(file, text)
    digest = key_sha256(request_key(load_request(text)))
    if as_json:
        result = {"name": name, "directory": str(path), "request": str(file)}
        print_json({**result, "certificate_key": digest.hex()})
        return
    tokens.say_what_is_kept(plan)
    print(f"{done}\nFingerprint of its certificate key, for whoever signs:\n  {spell(digest)}")
    print("Next, where the authority is (the file holds no secret):")
    print(f"  ciphermq ca sign {file}\nand then, here, with what that wrote:")
    print(f"  ciphermq identity import {name}.signed")


def _own_place(name: str, home: Path | None, *, required: bool) -> Path:
    """Where the identity is; or, unless it is `required`, where a new one of that name goes."""
    from ciphermq.client import places
    from ciphermq.errors import IdentityNotFound
    from ciphermq.pki.names import check_issuable

    check_issuable(name)
    try:
        return places.find(name, home_directory(home))
    except IdentityNotFound:
        if required:
            raise
    return home / "identities" / name if home is not None else places.user_directory() / name
