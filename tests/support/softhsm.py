"""SoftHSM in a test's own folder: a token that Debian's own tools see too.

Each test gets a copy of the module, which the loader takes for another one: with its own state,
configuration and owner thread. So no test sees another's token, in whatever order they run.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ciphermq.custody.pkcs11.address import Address
from ciphermq.custody.pkcs11.pin import Pin
from ciphermq.custody.pkcs11.token import Token

PIN = "271828"
SO_PIN = "31415926"
_PLACES = ("/usr/lib/softhsm", "/usr/lib64/softhsm", "/usr/lib", "/usr/local/lib/softhsm")
_number = itertools.count()


def installed() -> Path | None:
    """SoftHSM's module on this machine, if it and the tools are there."""
    if shutil.which("softhsm2-util") is None or shutil.which("pkcs11-tool") is None:
        return None
    found = (Path(place, "libsofthsm2.so") for place in _PLACES)
    return next((path for path in found if path.is_file()), None)


def require() -> Path:
    """The module; skips the test on a machine without it, never in CI."""
    module = installed()
    if module is None and os.environ.get("CI") == "true":
        pytest.fail("SoftHSM and opensc are missing: tests/services installs them")
    if module is None:
        pytest.skip("needs softhsm2 and opensc (Debian: apt install softhsm2 opensc)")
    return module


class SoftHsm:
    """One SoftHSM with one token, in a folder."""

    def __init__(self, directory: Path, *, label: str = "test token") -> None:
        self.directory = directory
        self.tokens = directory / "tokens"
        self.tokens.mkdir(parents=True)
        self.config = directory / "softhsm2.conf"
        self.config.write_text(
            f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self.module = directory / f"libsofthsm2-{next(_number)}.so"
        shutil.copyfile(require(), self.module)
        self.label = label
        self.environment = {"SOFTHSM2_CONF": str(self.config)}
        self.init_token(label)

    @property
    def address(self) -> Address:
        """Where the token is."""
        return Address(str(self.module), self.label)

    def token(self, pin: str = PIN, **options: float) -> Token:
        """The token, as the program uses it."""
        return Token(self.address, Pin(pin), **options)

    def init_token(self, label: str) -> None:
        """One more token. Seen only by who loads the module afterwards."""
        self._run(
            "softhsm2-util", "--module", self.module, "--init-token", "--free", "--label", label,
            "--pin", PIN, "--so-pin", SO_PIN,
        )  # fmt: skip

    def tool(self, *words: object) -> str:
        """What ``pkcs11-tool`` prints, logged in on the token."""
        login = ("--token-label", self.label, "--login", "--pin", PIN)
        return self._run("pkcs11-tool", "--module", self.module, *login, *words)

    def make_ec(self, key_id: str, *, label: str = "by pkcs11-tool") -> None:
        """A P-256 key, made by the other tool."""
        self.tool(
            "--keypairgen", "--key-type", "EC:prime256v1", "--id", key_id, "--label", label,
            "--usage-derive", "--usage-sign",
        )  # fmt: skip

    def make_rsa(self, key_id: str, bits: int = 2048) -> None:
        """An RSA key, made by the other tool."""
        self.tool(
            "--keypairgen", "--key-type", f"rsa:{bits}", "--id", key_id, "--label", "rsa",
            "--usage-decrypt",
        )  # fmt: skip

    def pull_out(self) -> None:
        """Take the token away from whoever starts now."""
        self.tokens.rename(self.directory / "in a pocket")

    def put_back(self) -> None:
        """The reverse."""
        (self.directory / "in a pocket").rename(self.tokens)

    def _run(self, *words: object) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"
        return done.stdout


def make_softhsm(directory: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    """A SoftHSM that this process uses when it loads the module."""
    made = SoftHsm(directory)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made
