"""Read a server's configuration: the file, then the environment over it.

Relative paths in the file are relative to the file, those in the environment to the working
directory. Whatever is wrong ends in one `ConfigError` that says where, which key, which value
and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from ciphermq.errors import ConfigError
from ciphermq.settings import onex
from ciphermq.settings.server import (
    ENVIRONMENT_DELIMITER,
    ENVIRONMENT_PREFIX,
    ServerSettings,
    sections,
)

_HEADER: Final = re.compile(r"\s*\[\s*(?P<name>[\w.-]+)\s*\]")
_KEY: Final = re.compile(r"\s*(?P<name>[\w.-]+)\s*=")
_SECRET: Final = re.compile(r"pass|secret|token|(^|_)key$", re.IGNORECASE)
_WRITTEN: Final = "logging"
"""The section whose files the server makes."""
_SECRET_SECTIONS: Final = frozenset({"database", "encryption"})
_LONGEST_SHOWN: Final = 80


def load_server_settings(path: Path, *, secrets: bool = True) -> ServerSettings:
    """The configuration in `path` with the environment's overrides; `ConfigError` if wrong.

    Without `secrets` the files that hold some need not be there: a restore puts them there."""
    path = path.absolute()
    text = _read(path)
    values = _parse(path, text)
    left_out: tuple[str, ...] = ()
    if onex.is_onex_config(values):
        left_out = onex.set_aside(values)
        onex.imply(values)
    _check_environment(os.environ)
    _resolve_paths(values, path.parent)
    try:
        settings = ServerSettings(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error, path, text)) from None
    except SettingsError as error:
        raise ConfigError(f"the environment's {ENVIRONMENT_PREFIX} settings: {error}") from None
    settings = _with_absolute_paths(settings, path.parent).with_left_out(left_out)
    if secrets:
        _check_secrets(settings, path)
    return settings


def _check_secrets(settings: ServerSettings, path: Path) -> None:
    """Find out now, and not when they are needed, that secrets are missing or no such thing."""
    try:
        if settings.database is not None:
            settings.database.secret()
        if settings.encryption is not None:
            settings.encryption.key()
        elif settings.database is not None and settings.one_x.enabled:
            raise ConfigError(
                "[database] and one_x.enabled are given without encryption.aes_key: keys of 1.x "
                "clients are kept as 1.x keeps them, encrypted with it; give the 32 bytes in "
                "base64 that 1.x had, or new ones as `openssl rand -base64 32` makes them"
            )
        elif settings.storage.at_rest_key_path is None:
            raise ConfigError(
                "storage.at_rest_key_path is empty, and there is no encryption.aes_key to derive "
                "the key from: give one of the two"
            )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_files(settings: ServerSettings, path: Path) -> None:
    """`ConfigError`, with the line in `path`, for the first file it names that is not there.

    `load_server_settings` doesn't ask that: a backup may be of a server that never ran.
    """
    path = path.absolute()
    for name, kind in sections().items():
        if name == _WRITTEN:
            continue
        for key, field in kind.model_fields.items():
            value = getattr(getattr(settings, name), key, None)
            if key.endswith("_path") and isinstance(value, Path) and not value.is_file():
                where = _where([name, key], path, _read(path))
                raise ConfigError(
                    f'{where}: {name}.{key} = "{value}": there is no such file; '
                    f"allowed: {field.description}"
                )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `ciphermq init DIR` makes one in DIR/server/config.toml"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: this is not UTF-8 text, so it is no configuration") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # Its text has the line already: "Invalid value (at line 2, column 11)".
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _is_path(field: FieldInfo) -> bool:
    return field.annotation in (Path, Path | None)


def _resolve_paths(values: dict[str, Any], base: Path) -> None:
    """Make the file's relative paths absolute, beside the file."""
    for name, section in sections().items():
        given = values.get(name)
        if not isinstance(given, dict):
            continue
        for key, field in section.model_fields.items():
            if _is_path(field) and isinstance(given.get(key), str) and given[key]:
                given[key] = str(base / Path(given[key]).expanduser())


def _with_absolute_paths(settings: ServerSettings, base: Path) -> ServerSettings:
    """Defaults beside the file; what came from the environment from the working directory."""
    changed = {}
    for name, kind in sections().items():
        section = getattr(settings, name)
        if section is None:
            continue
        paths = {}
        for key, field in kind.model_fields.items():
            value = getattr(section, key)
            if not isinstance(value, Path) or not _is_path(field):
                continue
            given = key in section.model_fields_set
            paths[key] = value.expanduser().absolute() if given else base / value
        if paths:
            changed[name] = section.model_copy(update=paths)
    return settings.model_copy(update=changed)


def _check_environment(environment: Mapping[str, str]) -> None:
    """Refuse an override of a section that does not exist: a typo must not pass in silence."""
    known = sections()
    for variable in environment:
        if not variable.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        section, delimiter, _ = variable[len(ENVIRONMENT_PREFIX) :].partition(ENVIRONMENT_DELIMITER)
        if delimiter and section.lower() not in known:
            raise ConfigError(
                f"environment variable {variable}: there is no section "
                f"{section.lower()!r}{_suggestion(section.lower(), known)}"
            )


def _explain(error: ValidationError, path: Path, text: str) -> str:
    """The first fault in a sentence, and how many more there are."""
    faults = error.errors(include_url=False, include_context=False)
    more = (
        f" (and {len(faults) - 1} more fault{'s' if len(faults) > 2 else ''})"
        if len(faults) > 1
        else ""
    )
    return _describe(faults[0], path, text) + more


def _describe(fault: ErrorDetails, path: Path, text: str) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location[:2])
    where = _where(location[:2], path, text)
    known = sections()
    if location[0] not in known:
        return f"{where}: there is no section [{location[0]}]{_suggestion(location[0], known)}"
    section = known[location[0]]
    if len(location) == 1:
        shown = "(not shown)" if location[0] in _SECRET_SECTIONS else _shown(key, fault)
        return f"{where}: [{location[0]}] must be a section with keys, not {shown}"
    if fault["type"] == "extra_forbidden":
        hint = _suggestion(location[1], section.model_fields)
        return f"{where}: [{location[0]}] has no key {location[1]!r}{hint}"
    allowed = section.model_fields[location[1]].description
    return f"{where}: {key} = {_shown(key, fault)}: {_reason(fault)}; allowed: {allowed}"


def _where(location: list[str], path: Path, text: str) -> str:
    """The environment variable that set it, or the file and (where found) the line."""
    variable = ENVIRONMENT_PREFIX + ENVIRONMENT_DELIMITER.join(location).upper()
    for name in os.environ:
        if name.upper() == variable:
            return f"environment variable {name}"
    line = find_line(text, location)
    return f"{path}, line {line}" if line else str(path)


def find_line(text: str, location: list[str]) -> int | None:
    """The line (from 1) on which the section or the section's key stands in the file."""
    wanted = ".".join(location)
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = header["name"]
            if section == wanted:
                return number
        elif key := _KEY.match(line):
            name = f"{section}.{key['name']}" if section else key["name"]
            # `server = { address = … }` holds its keys on the section's own line.
            if name == wanted or (not section and name == location[0]):
                return number
    return None


def _shown(key: str, fault: ErrorDetails) -> str:
    """The value as the reader wrote it; never one that may be a secret."""
    if _SECRET.search(key):
        return "(not shown)"
    value = fault["input"]
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "…"


def _reason(fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    """``; did you mean …?`` or all the names there are."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(known)}"
