"""The configuration as a TOML file: read whole, checked, and written so that it is never half.

::

    datacenter = "dc1"

    [backends.rmq1]
    datacenter = "dc1"
    host = "rmq1.example.org"
    port = 5672

    [farms.main]
    backends = ["rmq1"]

    [maps]
    "/" = { farm = "main" }

    [[listeners]]
    port = 5672

What is not said is as in a proxy that was just started. What is not known, or can't be, is a
`ConfigError` that names file, key and what is allowed, and then nothing of the file is used.
A backend's looked-up address is not in the file: a name is looked up again at the next start.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ciphermq import limits
from ciphermq.errors import ConfigError, ProxyError
from ciphermq.proxy.change import AddFarm, StartListening, check_limit, check_names
from ciphermq.proxy.model import DEFAULT_SELECTOR, Configuration, Target, in_order
from ciphermq.proxy.partitions import PARTITIONS
from ciphermq.proxy.selectors import SELECTORS
from ciphermq.proxy.timeouts import Timeouts

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
HEAD: Final = (
    "# The proxy's configuration. CONFIG SAVE writes this file anew, without comments.\n\n"
)


# --- as tables -------------------------------------------------------------------------------


def as_tables(configuration: Configuration) -> dict[str, Any]:
    """As TOML's types: names are keys and nowhere else, what is not set is not there.

    The same configuration gives the same tables, whatever order its commands came in.
    """
    tables: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(configuration))
    for group in ("backends", "farms", "maps", "vhosts", "limits", "external", "timeouts"):
        if group in tables:
            tables[group] = dict(sorted(tables[group].items()))
    for limit in tables.get("limits", {}).values():
        limit.update({"vhosts": dict(sorted(limit["vhosts"].items()))} if "vhosts" in limit else {})
    for group in ("backends", "farms"):
        for member in tables.get(group, {}).values():
            del member["name"]
            member.pop("address", None)
    for name, farm in tables.get("farms", {}).items():
        # Left out or not by the default's identity, which is not the same in every process.
        tables["farms"][name] = {"selector": DEFAULT_SELECTOR, **farm}
    for vhost, target in tables.get("maps", {}).items():
        tables["maps"][vhost] = {target["kind"]: target["name"]}
    if configuration.default is not None:
        tables["default"] = {configuration.default.kind: configuration.default.name}
    return {name: value for name, value in tables.items() if value not in (None, {}, [])}


def from_tables(tables: Mapping[str, Any]) -> Configuration:
    """The configuration that tables say. `ProxyError` or `msgspec.ValidationError` if they can't
    be one."""
    tables = dict(tables)
    for group in ("backends", "farms"):
        members = tables.get(group)
        if isinstance(members, dict):
            tables[group] = {name: _named(name, one) for name, one in members.items()}
    if isinstance(tables.get("maps"), dict):
        tables["maps"] = {
            vhost: _target(f"maps.{vhost}", one) for vhost, one in tables["maps"].items()
        }
    if "default" in tables:
        tables["default"] = _target("default", tables["default"])
    configuration = msgspec.convert(tables, Configuration)
    check(configuration)
    return in_order(configuration)


def _named(name: str, member: object) -> object:
    if not isinstance(member, dict):
        return member
    if "name" in member:
        raise ProxyError(f"'{name}' has its name as its key, and no other.")
    return {"name": name, **member}


def _target(key: str, value: object) -> Target:
    if isinstance(value, dict) and len(value) == 1:
        kind, name = next(iter(value.items()))
        if kind in ("backend", "farm") and isinstance(name, str):
            return Target(kind, name)
    raise ProxyError(f'{key} must be {{ backend = "NAME" }} or {{ farm = "NAME" }}.')


def check(configuration: Configuration) -> None:
    """Raise `ProxyError` for what no sequence of commands could have made."""
    for group in (
        configuration.backends,
        configuration.farms,
        configuration.maps,
        configuration.vhosts,
        configuration.external,
        configuration.timeouts,
    ):
        check_names(group)
    for farm in configuration.farms.values():
        SELECTORS.find(farm.selector)
        for policy in farm.partitions:
            PARTITIONS.find(policy)
        AddFarm(farm).apply(configuration)
    bare = Configuration()
    for listener in configuration.listeners:
        bare = StartListening(listener).apply(bare)
    for kind, limit in configuration.limits.items():
        check_names(limit.vhosts)
        for value in [*limit.vhosts.values(), *([] if limit.default is None else [limit.default])]:
            check_limit(kind, value)
    phases = [field.name for field in fields(Timeouts)]
    for name, seconds in configuration.timeouts.items():
        if name not in phases:
            raise ProxyError(f"timeouts.{name} is not known; there are {', '.join(phases)}.")
        if not 0 < seconds <= limits.DAY:
            raise ProxyError(f"timeouts.{name} must be above 0 and at most {limits.DAY}.")


# --- as TOML ---------------------------------------------------------------------------------


def dumps(configuration: Configuration) -> str:
    """As TOML, without `HEAD`. The same configuration is always the same text."""
    return "".join(_table((), as_tables(configuration))).lstrip("\n")


def loads(text: str) -> Configuration:
    """The inverse of `dumps`. `ConfigError` names line or key."""
    try:
        return from_tables(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"It is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$")
        raise ConfigError(f"{key.strip('.`') or 'The file'}: {what}") from None
    except ProxyError as error:
        raise ConfigError(str(error)) from None


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    nested = {key: value for key, value in table.items() if _is_table(path, key, value)}
    if path and (len(nested) < len(table) or not table):
        yield f"\n[{_dotted(path)}]\n"
    for key, value in table.items():
        if key not in nested:
            yield f"{_key(key)} = {_value(value)}\n"
    for key, value in nested.items():
        if isinstance(value, list):
            for one in value:
                yield f"\n[[{_dotted((*path, key))}]]\n"
                for name, member in one.items():
                    yield f"{_key(name)} = {_value(member)}\n"
        else:
            yield from _table((*path, key), value)


def _is_table(path: tuple[str, ...], key: str, value: object) -> bool:
    """Whether a value stands under a heading of its own; targets of maps stand in their line."""
    if isinstance(value, dict):
        return path != ("maps",) and (path, key) != ((), "default")
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(map(_key, path))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_value(one)}' for key, one in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's strings, numbers and booleans are TOML's, but that TOML wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- as a file -------------------------------------------------------------------------------


def load(path: Path, *, missing_ok: bool = False) -> Configuration:
    """Read a file. `ConfigError` if it can't be read, or is not a configuration."""
    try:
        with path.open(encoding="utf-8") as file:
            _trust(os.fstat(file.fileno()))
            return loads(file.read())
    except FileNotFoundError:
        if missing_ok:
            return Configuration()
        raise ConfigError(f"{path} is not there: CONFIG SAVE writes it.") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _trust(status: os.stat_result) -> None:
    """Refuse what others may have written: whoever writes this file decides where passwords go.

    The usual place is beside the control socket, which may be a directory for everybody.
    """
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
        raise ConfigError("Others may write this file, so it is not believed: chown and chmod it.")


def save(path: Path, configuration: Configuration) -> None:
    """Write a file, whole or not at all, readable by its owner only. `ProxyError` if it can't be.

    It says which accounts and key files are used where, so others need not read it.
    """
    text = HEAD + dumps(configuration)
    place = path.resolve()  # what is linked to is written, and the link stays
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ProxyError(f"{path} can't be written: {error.strerror}") from None


# --- differences -----------------------------------------------------------------------------


class Difference(NamedTuple):
    """One key on which a file and the running configuration differ; None where it is not set."""

    key: str
    file: Any
    running: Any

    def __str__(self) -> str:
        lines = [("-", self.file), ("+", self.running)]
        return "".join(
            f"{sign} {self.key} = {_value(value)}\n" for sign, value in lines if value is not None
        )


def diff(file: Configuration, running: Configuration) -> list[Difference]:
    """Every key on which they differ."""
    before, after = dict(_flat(as_tables(file))), dict(_flat(as_tables(running)))
    return [
        Difference(key, before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _flat(
    table: Mapping[str, Any], path: tuple[str, ...] = (), prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and _is_table(path, key, value):
            yield from _flat(value, (*path, key), f"{prefix}{_key(key)}.")
        else:
            yield prefix + _key(key), value
