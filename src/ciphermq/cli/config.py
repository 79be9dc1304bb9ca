"""``ciphermq config``: look at a server's configuration before the server does."""

from __future__ import annotations

import typer

from ciphermq.cli.common import HomeOption, JsonOption
from ciphermq.cli.server import ConfigOption


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Look at a server's configuration, as the server would take it.", no_args_is_help=True
    )
    group.command()(check)
    group.command()(show)
    app.add_typer(group, name="config")


def check(
    config: ConfigOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Say whether a server would start with this configuration and this environment.

    Reads the files that it names too, but connects to no database and opens no journal.
    """
    from ciphermq.catalog.configured import configured_catalog
    from ciphermq.cli.common import home_directory
    from ciphermq.cli.output import print_json
    from ciphermq.cli.serving import check_dates
    from ciphermq.net.address import ZMQ_SCHEME
    from ciphermq.settings import check_files, load_server_settings

    path = config if config is not None else home_directory(home) / "server" / "config.toml"
    settings = load_server_settings(path)
    check_files(settings, path)
    check_dates(settings)
    catalog = configured_catalog(settings).stats()["kind"]
    zmq = settings.server.zmq_address
    over_zmq = f"{ZMQ_SCHEME}://{zmq}" if zmq is not None else None
    if as_json:
        facts = {"address": str(settings.server.address), "zmq_address": over_zmq}
        print_json({"good": True, "config": str(path), **facts, "one_x": settings.one_x.enabled})
        return
    where = " and ".join(filter(None, (str(settings.server.address), over_zmq)))
    typer.echo(f"{path} is good: {where}, catalog in {catalog}")
    if settings.server.connection_type is not None:
        typer.echo(
            "It is a configuration of CipherMQ 1.x, so its clients are served, with TLS 1.2 where "
            "they want it; every client may do everything, and nobody is revoked. `ciphermq "
            "config show` shows all of it."
        )
    for sentence in settings.left_out:
        typer.echo(sentence)


def show(config: ConfigOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Print every value that counts: from the file, from the environment over it, by default.

    Passwords and keys are not shown.
    """
    from ciphermq.cli.common import home_directory
    from ciphermq.cli.output import print_json
    from ciphermq.settings import load_server_settings, render_settings

    path = config if config is not None else home_directory(home) / "server" / "config.toml"
    settings = load_server_settings(path)
    if as_json:
        print_json(settings.model_dump(mode="json"))
    else:
        typer.echo(render_settings(settings), nl=False)
