"""``ciphermq server``: run a broker until a signal ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ciphermq.cli.common import HomeOption, JsonOption

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The server's config.toml.  [default: server/config.toml of the deployment]",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(server)


def server(
    config: ConfigOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Run a broker. Prints one line when it is ready, and its log to standard error; SIGTERM or
    Ctrl-C ends it in order.

    Certificates and revocation lists that are replaced are taken over within seconds, on SIGHUP at
    once.

    Every value of the configuration can be overridden by CIPHERMQ_SECTION__KEY in the
    environment.
    """
    import signal

    from ciphermq.cli.common import home_directory, run
    from ciphermq.cli.serving import serve
    from ciphermq.errors import CipherMQError
    from ciphermq.settings import check_files, load_server_settings
    from ciphermq.telemetry import get_logger
    from ciphermq.telemetry.logs import start_logging

    # Who asks for a reload while it starts or ends would kill it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    path = config if config is not None else home_directory(home) / "server" / "config.toml"
    settings = load_server_settings(path)
    check_files(settings, path)
    logs = start_logging(settings.logging)
    try:
        run(serve(settings, logs, as_json=as_json))
    except CipherMQError as error:
        get_logger("server").error("the server ends", reason=str(error))
        raise
    finally:
        logs.stop()
