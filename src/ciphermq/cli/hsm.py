"""``ciphermq hsm``: hardware tokens, and what they keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ciphermq.cli import passphrases, tokens
from ciphermq.cli.common import (
    HomeOption,
    JsonOption,
    PassphraseFileOption,
    home_directory,
)
from ciphermq.cli.completing import identities
from ciphermq.cli.enrolment import NoPassphraseOption, check_new
from ciphermq.cli.output import print_json, print_table
from ciphermq.cli.tokens import (
    IdOption,
    ModuleOption,
    PinFileOption,
    PinSourceOption,
    Pkcs1Option,
    TokenOption,
)

if TYPE_CHECKING:
    from ciphermq.custody.pkcs11.desk import KeyInfo
    from ciphermq.custody.pkcs11.survey import ModuleInfo

_FileArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FILE]",
        help="A private file, such as the broker's at-rest.key.",
        show_default=False,
    ),
]
_IdentityOption = Annotated[
    str | None,
    typer.Option(
        "--identity",
        "-i",
        help="An identity's directory or name, in place of a file.",
        autocompletion=identities,
        show_default=False,
    ),
]
_OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="A new file.  [default: in place of FILE]", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Keys on a hardware token (PKCS#11).")
    group.command("list")(list_)
    group.command()(roundtrip)
    group.command("make-key")(make_key)
    group.command()(wrap)
    group.command()(unwrap)
    app.add_typer(group, name="hsm")


def list_(
    module: ModuleOption = None,
    token: TokenOption = None,
    pin_file: PinFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Modules, slots and tokens; with --token (it asks the PIN) the keys there, and what each may
    be used for here."""
    from ciphermq.custody.pkcs11 import library, survey

    paths = [str(module.absolute())] if module is not None else library.known()
    found = survey.look_at_all(paths)
    keys = None
    if token is not None:
        keys = tokens.open_token(module, token, pin_file).private_keys()
    if as_json:
        print_json(
            {
                "modules": [_module(each) for each in found],
                "keys": None if keys is None else [_key(each) for each in keys],
            }
        )
        return
    if not found:
        print("No PKCS#11 module is installed where they usually are: name one with --module.")
    for each in found:
        if each.fault:
            print(f"{each.path}\n  can't be used: {each.fault}")
            continue
        print(f"{each.path}\n  {each.description}")
        rows = [(one.slot, one.label or "-", one.serial, _state(one)) for one in each.tokens]
        if rows:
            print_table(("slot", "token", "serial", "state"), rows)
        else:
            print("  no token is plugged in")
    if keys is not None:
        print()
        print_table(
            ("id", "key", "label", "can be", "leaves the token"),
            [
                (
                    key.id,
                    key.kind,
                    key.label,
                    ", ".join(survey.uses(key)) or "nothing here",
                    "yes" if key.extractable else "never",
                )
                for key in keys
            ],
        )
    elif any(each.tokens for each in found):
        print("\nKeys: ciphermq hsm list --token LABEL")


def roundtrip(
    key_id: IdOption,
    module: ModuleOption = None,
    token: TokenOption = None,
    pin_file: PinFileOption = None,
    pkcs1: Pkcs1Option = False,
    as_json: JsonOption = False,
) -> None:
    """Encrypt on this machine, decrypt on the token, compare; each step is shown."""
    from ciphermq.custody.pkcs11 import survey

    address = tokens.find_address(module, token)
    pin = tokens.pin(pin_file, str(address))
    steps = []
    for step in survey.round_trip(address, pin, tokens.key_id(key_id), pkcs1=pkcs1):
        steps.append(step)
        if not as_json:
            print(f"{len(steps)}. {step}", flush=True)
    if as_json:
        print_json({"steps": steps, "equal": True})


def make_key(
    kind: Annotated[
        str, typer.Option("--type", help="p256 (to receive, or to sign), or rsa (to wrap).")
    ] = "p256",
    sign: Annotated[
        bool, typer.Option("--sign", help="A P-256 key that signs: for a certificate.")
    ] = False,
    bits: Annotated[int, typer.Option(min=2048, max=4096, help="Of an RSA key.")] = 3072,
    key_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="In hexadecimal.  [default: a random one]"),
    ] = None,
    label: Annotated[str, typer.Option(help="What tools show beside it.")] = "CipherMQ",
    module: ModuleOption = None,
    token: TokenOption = None,
    pin_file: PinFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key on the token, which it will never leave."""
    from ciphermq.errors import UsageError

    if kind not in {"p256", "rsa"} or (kind == "rsa" and sign):
        raise UsageError("--type is p256, with or without --sign, or rsa, which only wraps")
    chosen = tokens.key_id(key_id) if key_id is not None else None
    desk = tokens.open_token(module, token, pin_file)
    if kind == "rsa":
        made = desk.make_rsa(label, bits, key_id=chosen)
    else:
        made = desk.make_p256(label, may=("sign" if sign else "derive",), key_id=chosen)
    about = next(each for each in desk.private_keys() if each.id == made.hex())
    if as_json:
        print_json(_key(about))
    else:
        print(f"Made the key {made.hex()} ({about.kind}) on {desk}.")


def wrap(
    key_id: IdOption,
    file: _FileArgument = None,
    identity: _IdentityOption = None,
    out: _OutOption = None,
    module: ModuleOption = None,
    token: TokenOption = None,
    pin_file: PinFileOption = None,
    pin_source: PinSourceOption = "prompt",
    pkcs1: Pkcs1Option = False,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a private file, or all of an identity's, under a key of the token.

    From then on it is opened once at each start, by the token and its PIN. What is in place of a
    file is not wiped from the disk's free space: wrap before it holds anything worth it.
    """
    from ciphermq.client import layout, places, wrapping
    from ciphermq.custody.pkcs11.pin import check_source

    _one_of(file, identity, out)
    check_source(pin_source, "--pin-source")
    desk = tokens.open_token(module, token, pin_file)
    chosen = tokens.key_id(key_id)
    if identity is not None:
        path = places.find(identity, home_directory(home))
        needed = (path / layout.WRAPPED).exists()
        phrase = passphrases.existing(passphrase_file, f"the identity {path.name!r}", needed=needed)
        wrapping.wrap_identity(
            path, desk, chosen, phrase=phrase, pin_source=pin_source, pkcs1=pkcs1
        )
        done = path
    else:
        assert file is not None  # noqa: S101 - `_one_of` saw to it
        done = check_new(out) if out is not None else file
        wrapping.wrap_file(file, done, desk, chosen, pkcs1=pkcs1)
    if as_json:
        print_json({"path": str(done), "token": desk.address.label, "id": chosen.hex()})
        return
    print(f"{done} is now opened by the key {chosen.hex()} on {desk}, and by nothing else.")
    if identity is None:
        print("A server needs to know the token: a section [token] in its config.toml.")


def unwrap(
    file: _FileArgument = None,
    identity: _IdentityOption = None,
    out: _OutOption = None,
    module: ModuleOption = None,
    token: TokenOption = None,
    pin_file: PinFileOption = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    no_passphrase: NoPassphraseOption = False,
    as_json: JsonOption = False,
) -> None:
    """The reverse of `wrap`: a file in the clear, an identity under a passphrase (or in the
    clear)."""
    from ciphermq.client import places, wrapping
    from ciphermq.client.layout import IdentitySettings
    from ciphermq.client.tokens import open_token

    _one_of(file, identity, out)
    if identity is not None:
        path = places.find(identity, home_directory(home))
        held = IdentitySettings.read(path).token
        desk = (
            open_token(path, held, tokens.pin(pin_file, str(held.address())))
            if held is not None
            else tokens.open_token(module, token, pin_file)
        )
        phrase = None
        if not no_passphrase:
            phrase = passphrases.new_file(passphrase_file, f"the keys of {path.name!r}")
        wrapping.unwrap_identity(path, desk, phrase=phrase)
        done, state = path, "in the clear" if phrase is None else "under its passphrase"
    else:
        assert file is not None  # noqa: S101 - `_one_of` saw to it
        desk = tokens.open_token(module, token, pin_file)
        done, state = check_new(out) if out is not None else file, "in the clear"
        wrapping.unwrap_file(file, done, desk)
    if as_json:
        print_json({"path": str(done), "in_clear": state == "in the clear"})
        return
    print(f"{done} is {state}.")


def _one_of(file: Path | None, identity: str | None, out: Path | None) -> None:
    from ciphermq.errors import UsageError

    if (file is None) == (identity is None):
        raise UsageError("name a file, or an identity with --identity: one of the two")
    if identity is not None and out is not None:
        raise UsageError("an identity stays where it is: --out is for a file")


def _module(module: ModuleInfo) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(module)
    return found


def _key(key: KeyInfo) -> dict[str, Any]:
    import msgspec

    from ciphermq.custody.pkcs11 import survey

    return {**msgspec.to_builtins(key), "uses": survey.uses(key)}


def _state(token: Any) -> str:
    if not token.initialised:
        return "not initialised"
    if token.pin_locked:
        return "PIN locked"
    return "one try left for the PIN" if token.pin_last_try else "ready"
