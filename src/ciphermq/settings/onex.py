"""The configuration files of CipherMQ 1.x, which start this server as they are.

One is known by ``server.connection_type``: 1.x can't do without it, and nothing else has it. What
it says keeps its meaning; what it can't say is set here, to what 1.x did, where the file itself
does not say otherwise. So whoever adds one of our keys to it gets what the key says.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from ciphermq.settings.section import Section

MARK: Final = ("server", "connection_type")

_IMPLIED: Final[dict[str, dict[str, Any]]] = {
    "one_x": {"enabled": True, "tls_1_2": True},
    # 1.x knows no revocation and no grants, and makes all its keys in one directory.
    "tls": {"crl_path": "", "allow_authority_key": True},
    "access": {"allow_all": True},
    # Its log files have paths of their own.
    "logging": {"directory": ""},
}
_IMPLIED_BY_KEY: Final = {"storage": {"at_rest_key_path": ""}}
"""Where there is an ``aes_key``, from which the key for the rest is derived."""


_NOT_HERE: Final = {
    "performance": "what bounds queues and connections is in [limits] and [server]",
    "admin": "administration is `ciphermq` with an identity of [access] administrators",
    "rate_limit": "rates are not limited; connections are, in [server]",
    "acl": "who may do what is in [access], and as long as that says nothing everyone may do all",
}
"""Sections of later 1.x servers, each optional there, and where its matter is dealt with."""

_ROTATIONS: Final = frozenset({"hourly", "daily", "never"})
_LEVELS: Final = frozenset({"trace", "debug", "info", "warn", "warning", "error"})
_LARGEST_LOG_MB: Final = 10_240


class OnexSection(Section):
    """``[one_x]``: clients of CipherMQ 1.x."""

    enabled: bool = Field(
        default=False,
        description="true or false: the text protocol of 1.x on the same port; whoever uses it is "
        "told apart by offering no protocol in TLS",
    )
    tls_1_2: bool = Field(
        default=False, description="true or false: TLS 1.2 for them; cmq/2 is TLS 1.3 always"
    )


def is_onex_config(values: dict[str, Any]) -> bool:
    """Whether a parsed file is one of 1.x."""
    section = values.get(MARK[0])
    return isinstance(section, dict) and bool(section.get(MARK[1]))


def imply(values: dict[str, Any]) -> None:
    """Add to a 1.x file's values what 1.x did without saying."""
    implied = [_IMPLIED]
    encryption = values.get("encryption")
    if isinstance(encryption, dict) and {"aes_key", "aes_key_path"} & encryption.keys():
        implied.append(_IMPLIED_BY_KEY)
    for sections in implied:
        for name, members in sections.items():
            section = values.setdefault(name, {})
            if isinstance(section, dict):
                for key, value in members.items():
                    section.setdefault(key, value)
    _mend_logging(values.get("logging"))


def set_aside(values: dict[str, Any]) -> tuple[str, ...]:
    """Take out the sections that have no meaning here; a sentence for each that was there.

    A name that 1.x did not have stays in, and is refused as the slip that it is."""
    found = [name for name in _NOT_HERE if values.pop(name, None) is not None]
    return tuple(f"[{name}] of 1.x has no effect: {_NOT_HERE[name]}" for name in found)


def _mend_logging(section: Any) -> None:
    """What 1.x started with all the same: nothing for its defaults, and words that it took for
    `never` and `info`. How large a file may be was read there and not applied."""
    if not isinstance(section, dict):
        return
    rotation, level = section.get("rotation"), section.get("level")
    if isinstance(rotation, str) and rotation not in _ROTATIONS:
        section["rotation"] = "never" if rotation else "daily"
    if isinstance(level, str) and level.lower() not in _LEVELS:
        section["level"] = "info"
    size = section.get("max_size_mb")
    if type(size) is int and size >= 0:
        section["max_size_mb"] = min(size, _LARGEST_LOG_MB) or 10
