"""Options of the commands that use a hardware token, and its PIN: from a file, the environment, or
the person at the terminal. There is no option that takes a PIN: command lines are there for all to
read."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ciphermq.client.tokens import TokenPlan
    from ciphermq.custody.pkcs11.address import Address
    from ciphermq.custody.pkcs11.pin import Pin
    from ciphermq.custody.pkcs11.token import Token

PinFileOption = Annotated[
    Path | None,
    typer.Option(
        "--pin-file",
        help="File whose first line is the token's PIN. Otherwise CIPHERMQ_PIN, otherwise a "
        "prompt.",
        show_default=False,
    ),
]
ModuleOption = Annotated[
    Path | None,
    typer.Option(
        "--module",
        envvar="CIPHERMQ_PKCS11_MODULE",
        help="The PKCS#11 module, a shared object.  [default: the only one that shows the token]",
        show_default=False,
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="The hardware token's label, or its serial number.  [default: the only one]",
        show_default=False,
    ),
]
KeepOnTokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="Keep keys on the hardware token of this label or serial number: what is sealed to "
        "the identity is opened there (suite P256).",
        show_default=False,
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="ID",
        help="The P-256 key on the token to receive with.  [default: a new one]",
        show_default=False,
    ),
]
SigningKeyOption = Annotated[
    str | None,
    typer.Option(
        "--signing-key",
        metavar="ID",
        help="Keep the certificate's key on the token too: this one, or `new`.",
        show_default=False,
    ),
]
PinSourceOption = Annotated[
    str,
    typer.Option(
        "--pin-source",
        help="Where the PIN comes from later on: prompt, env:NAME or file:PATH. Goes into "
        "identity.toml.",
    ),
]
IdOption = Annotated[
    str, typer.Option("--id", metavar="ID", help="The key's id on the token, in hexadecimal.")
]
Pkcs1Option = Annotated[
    bool,
    typer.Option("--pkcs1", help="For an RSA key of an old device: PKCS#1 v1.5 instead of OAEP."),
]


def pin(file: Path | None, what: str) -> Pin:
    """The PIN of `what`."""
    from ciphermq.custody.pkcs11 import pin as pins
    from ciphermq.errors import PinError

    if file is not None:
        return pins.read_file(file)
    if (value := os.environ.get(pins.VARIABLE)) is not None:
        return pins.Pin(value)
    if not sys.stdin.isatty():
        raise PinError(
            f"the PIN of {what}: there is no terminal to ask at; give it with --pin-file or in "
            f"{pins.VARIABLE}"
        )
    return pins.Pin(str(typer.prompt(f"PIN of {what}", hide_input=True, err=True)))


def identity_pin(path: Path, file: Path | None) -> Pin | None:
    """The PIN that the identity in directory `path` is to be opened with; None where it has no
    token, or its settings say whence the PIN comes and nothing else was given."""
    from ciphermq.client.layout import IdentitySettings
    from ciphermq.custody.pkcs11.pin import PROMPT

    settings = IdentitySettings.read(path)
    if settings.token is None or (file is None and settings.token.pin != PROMPT):
        return None
    return pin(file, str(settings.token.address()))


def key_id(text: str) -> bytes:
    """The id that an option gives."""
    from ciphermq import limits
    from ciphermq.errors import UsageError

    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if not 0 < len(found) <= limits.MAX_TOKEN_KEY_ID:
        raise UsageError(f"{text!r} is no key's id: pairs of hexadecimal digits, such as 01")
    return found


def find_module(module: Path | None) -> str:
    """The module that is meant; `UsageError` when it can't be told."""
    from ciphermq.custody.pkcs11 import library
    from ciphermq.errors import UsageError

    if module is not None:
        return str(module.absolute())
    found = library.known()
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            "no PKCS#11 module is installed where they usually are: install one (Debian: "
            "opensc-pkcs11 for smart cards, softhsm2), or name it with --module"
        )
    raise UsageError(f"there are several PKCS#11 modules, {', '.join(found)}: say --module")


def find_address(module: Path | None, token: str | None) -> Address:
    """The token that is meant: by label or serial number, or the only one."""
    from ciphermq.custody.pkcs11 import survey
    from ciphermq.custody.pkcs11.address import Address
    from ciphermq.errors import TokenAway, UsageError

    path = _module_with(token) if module is None else find_module(module)
    there = [each for each in survey.look(path).tokens if each.initialised]
    fits = [each for each in there if token in {None, each.label, each.serial}]
    if token is None and len(fits) > 1:
        names = ", ".join(repr(each.label) for each in fits)
        raise UsageError(f"there are several tokens, {names}: say --token")
    if not fits:
        named = f"no token {token!r}" if token else "no token"
        others = ", ".join(repr(each.label) for each in there) or "none at all"
        raise TokenAway(f"{path} shows {named}: there is {others}")
    if len(fits) > 1:
        serials = ", ".join(each.serial for each in fits)
        raise UsageError(
            f"several tokens are labelled {token!r}: say --token with one of {serials}"
        )
    found = fits[0]
    if found.label and token in {None, found.label}:
        # Not by its serial number too, so that a spare of the same label can take its place.
        return Address(path, label=found.label)
    return Address(path, serial=found.serial)


def _module_with(token: str | None) -> str:
    """The one of the machine's modules that shows the token; `UsageError` when it can't be told."""
    from ciphermq.custody.pkcs11 import library, survey

    found = library.known()
    if len(found) > 1:
        found = [
            each.path
            for each in survey.look_at_all(found)
            if any(
                one.initialised and token in {None, one.label, one.serial} for one in each.tokens
            )
        ]
    return found[0] if len(found) == 1 else find_module(None)


def open_token(module: Path | None, token: str | None, pin_file: Path | None) -> Token:
    """The token that is meant, with its PIN."""
    from ciphermq.custody.pkcs11.token import Token

    address = find_address(module, token)
    return Token(address, pin(pin_file, str(address)))


def plan(
    module: Path | None,
    token: str | None,
    pin_file: Path | None,
    key: str | None,
    signing_key: str | None,
    pin_source: str,
) -> TokenPlan | None:
    """What of a new identity goes to a token; None where no token is named."""
    from ciphermq.client.tokens import TokenPlan
    from ciphermq.custody.pkcs11.pin import check_source
    from ciphermq.errors import UsageError

    if token is None:
        for option, value in (("--key", key), ("--signing-key", signing_key)):
            if value is not None:
                raise UsageError(f"{option} names a key on a token: say which with --token")
        return None
    check_source(pin_source, "--pin-source")
    signing_id = key_id(signing_key) if signing_key not in {None, "new"} and signing_key else None
    return TokenPlan(
        token=open_token(module, token, pin_file),
        pin_source=pin_source,
        sealing_id=key_id(key) if key is not None else None,
        signing=signing_key is not None,
        signing_id=signing_id,
    )


def say_what_is_kept(plan: TokenPlan | None) -> None:
    """For whoever has just made an identity: what is on the token, and what can't be."""
    if plan is None:
        return
    print(
        f"Its receiving key is on {plan.token}; nothing but that token opens what is sealed to it."
    )
    if plan.signing:
        print(
            "Its certificate's key is there too. Python's TLS can't use it, so there is a second\n"
            "certificate of the same name, which connects and can't sign (tls-cert.pem)."
        )
