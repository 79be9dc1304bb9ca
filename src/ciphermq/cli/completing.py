"""What a shell is offered for TAB. Nothing may be printed here, and nothing raised."""

from __future__ import annotations

import typer


def identities(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the identities on this machine that begin with `incomplete`."""
    from ciphermq.cli.common import home_directory
    from ciphermq.client import places

    # With --home before it on the line, or from the environment; later words are not read yet.
    home = ctx.params.get("home")
    try:
        found = [path.name for path in places.known(home_directory(home))]
    except OSError:  # a directory that may not be read has nothing to offer
        return []
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete)]
