"""A token of SoftHSM in a directory of its own: for the demo and the bench, where no device is.

It keeps its keys in files, so it protects nothing. It is spoken to exactly as a device is.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Final

from ciphermq.client.tokens import TokenPlan
from ciphermq.custody import disk
from ciphermq.custody.pkcs11 import library
from ciphermq.custody.pkcs11.address import Address
from ciphermq.custody.pkcs11.pin import Pin
from ciphermq.custody.pkcs11.token import Token
from ciphermq.errors import Unfinished, UsageError

_TOOL: Final = "softhsm2-util"
_CONFIG_VARIABLE: Final = "SOFTHSM2_CONF"


class SoftToken:
    """A token in `directory`, which this process and those that it starts find."""

    def __init__(self, directory: Path, label: str = "CipherMQ") -> None:
        """Makes it. `UsageError` where SoftHSM is not installed."""
        module = next((path for path in library.KNOWN_MODULES if _is_softhsm(path)), None)
        if module is None or shutil.which(_TOOL) is None:
            raise UsageError(
                "SoftHSM is not installed here: install it (Debian: apt install softhsm2), or go "
                "without a token"
            )
        disk.make_private_directory(directory / "tokens")
        config = directory / "softhsm2.conf"
        config.write_text(
            f"directories.tokendir = {directory / 'tokens'}\nobjectstore.backend = file\n"
            "log.level = ERROR\n"
        )
        os.environ[_CONFIG_VARIABLE] = str(config)
        self.pin_file = directory / "pin"
        self.token = _make(Address(module, label), self.pin_file)

    def plan(self, *, signing: bool = False) -> TokenPlan:
        """What makes an identity whose receiving key is there, and where it is `signing` its
        certificate's too."""
        return TokenPlan(token=self.token, pin_source=f"file:{self.pin_file}", signing=signing)


def _make(address: Address, pin_file: Path) -> Token:
    # The tool takes PINs on its command line, for all to see: so its own does not stay.
    first, final = (Pin(secrets.token_hex(16)) for _ in range(2))
    words = ["--init-token", "--free", "--label", address.label]
    words += ["--pin", first.reveal(), "--so-pin", secrets.token_hex(16)]
    made = subprocess.run(  # noqa: S603 - words of our own, no shell
        [_TOOL, "--module", address.module, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise Unfinished(f"{_TOOL} could not make a token: {made.stdout}{made.stderr}")
    Token(address, first).change_pin(final)
    disk.write_file(pin_file, final.reveal().encode() + b"\n")
    return Token(address, final)


def _is_softhsm(path: str) -> bool:
    return "softhsm" in Path(path).name and Path(path).is_file()
