"""The ``config.toml`` that a new deployment gets: every key, its default, what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ciphermq.settings.server import ServerSettings, optional_sections, sections

_ALWAYS: Final = {
    ("server", "address"),
    ("tls", "cert_path"),
    ("tls", "key_path"),
    ("tls", "ca_cert_path"),
    ("tls", "crl_path"),
    ("storage", "directory"),
    ("storage", "at_rest_key_path"),
    ("logging", "level"),
    ("logging", "directory"),
}
"""Written out; the other keys are there as comments, so that a later default still counts."""

_HEAD: Final = """\
# CipherMQ server. Relative paths are relative to this file.
# Any value can be overridden by the environment: CIPHERMQ_SECTION__KEY, such as
# CIPHERMQ_SERVER__ADDRESS. Commented keys show their defaults; commented sections are absent.
"""


def render_config(*, address: str = "127.0.0.1:7443") -> str:
    """A complete, commented configuration that listens on `address`."""
    lines = [_HEAD]
    for name, section in sections().items():
        absent = name in optional_sections()
        lines.append(f"#[{name}]" if absent else f"[{name}]")
        for key, member in section.model_fields.items():
            value = address if (name, key) == ("server", "address") else member.default
            mark = "#" if absent else "" if (name, key) in _ALWAYS else "# "
            lines.append(f"{mark}{key} = {_toml(value)}  # {member.description}")
        lines.append("")
    return "\n".join(lines)


def render_settings(settings: ServerSettings) -> str:
    """Every value of `settings`, as a file would say it, but for the secrets."""
    lines = []
    for name, section in settings.model_dump(mode="json").items():
        if section is not None:
            lines += [f"[{name}]", *(f"{key} = {_toml(section[key])}" for key in section), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """`value` in TOML's spelling, which for these kinds is JSON's."""
    if value is None:
        return '""'
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
