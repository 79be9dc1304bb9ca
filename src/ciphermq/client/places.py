"""Where identities are: in a deployment, in a user's own directory, or wherever a path says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ciphermq.client.layout import SETTINGS
from ciphermq.errors import IdentityNotFound, UsageError


def user_directory() -> Path:
    """Where this user's own identities are: ``~/.config/ciphermq/identities``."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "ciphermq" / "identities"


def find(selector: str | None, home: Path) -> Path:
    """The directory of the identity that a user means by a path, a name, or nothing at all.

    A name is looked up in the deployment `home`, then in `user_directory`; nothing means the only
    identity there is. Raises `IdentityNotFound` or `UsageError`, saying where it was looked for.
    """
    if selector is None:
        return _only_one(home)
    if (Path(selector) / SETTINGS).is_file():
        return Path(selector)
    if os.sep not in selector:
        for directory in _places(selector, home):
            if (directory / SETTINGS).is_file():
                return directory
    looked = ", ".join(str(place) for place in [Path(selector), *_places(selector, home)])
    raise IdentityNotFound(f"no identity {selector!r}: looked in {looked}")


def known(home: Path) -> Iterator[Path]:
    """The directories of all identities that `find` would find by name."""
    yield from _in((home / "admin",))
    for parent in (home / "identities", user_directory()):
        if parent.is_dir():
            yield from _in(sorted(parent.iterdir()))


def _in(directories: Iterable[Path]) -> Iterator[Path]:
    return (directory for directory in directories if (directory / SETTINGS).is_file())


def _places(name: str, home: Path) -> list[Path]:
    places = [home / "identities" / name, user_directory() / name]
    return [home / "admin", *places] if name == "admin" else places


def _only_one(home: Path) -> Path:
    found = list(known(home))
    if len(found) == 1:
        return found[0]
    if not found:
        raise IdentityNotFound(
            f"no identity in {home} or {user_directory()}: make one with `ciphermq init` and "
            "`ciphermq identity add`, or say where it is with --identity"
        )
    listed = ", ".join(dict.fromkeys(path.name for path in found))
    raise UsageError(f"which identity? There are {listed}: say --identity NAME")
