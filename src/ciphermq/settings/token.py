"""``[token]``: the hardware token that opens the server's at-rest key."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ciphermq.settings.section import Section


class TokenSection(Section):
    """``[token]``: where the key is under which the at-rest key was put by `ciphermq hsm wrap`."""

    module_path: Path = Field(
        default=Path("/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so"),
        description="the PKCS#11 module through which the token is reached, a shared object",
    )
    label: str = Field(default="", description="the token's label; or give serial")
    serial: str = Field(default="", description="the token's serial number")
    pin: str = Field(
        default="env:CIPHERMQ_PIN",
        description='where its PIN comes from, "env:NAME" or "file:PATH" (a relative path is one '
        "beside the at-rest key); never the PIN itself",
    )
