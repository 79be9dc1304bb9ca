"""A server's configuration: what it becomes, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciphermq import limits
from ciphermq.errors import ConfigError
from ciphermq.settings import Address, load_server_settings, render_config, render_settings
from ciphermq.settings.server import sections


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("CIPHERMQ_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def fault(config: Path, text: str) -> str:
    """What is said about this file."""
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_server_settings(config)
    return str(caught.value)


def test_an_empty_file_gives_the_defaults_beside_it(config: Path) -> None:
    config.write_text("")
    settings = load_server_settings(config)
    assert settings.server.address == Address("127.0.0.1", 7443)
    assert settings.server.max_connections == limits.MAX_CONNECTIONS
    assert settings.tls.cert_path == config.parent / "server.crt"
    assert settings.storage.directory == config.parent / "data"
    assert settings.logging.directory == config.parent / "logs"
    assert settings.access.administrators == ("admin",)


def test_the_written_file_is_the_defaults_and_complete(config: Path) -> None:
    config.write_text("")
    defaults = load_server_settings(config)
    text = render_config()
    config.write_text(text)
    assert load_server_settings(config) == defaults
    head, body = text.split("\n\n", 1)
    assert all(line.startswith("#") for line in head.splitlines())
    config.write_text("\n" + body.replace("\n# ", "\n"))
    assert load_server_settings(config) == defaults, "each commented default is what it says"
    for name, section in sections().items():
        assert f"[{name}]" in text
        for key in section.model_fields:
            assert f"{key} = " in text


def test_the_written_file_has_the_address_asked_for(config: Path) -> None:
    config.write_text(render_config(address="[::1]:0"))
    assert load_server_settings(config).server.address == Address("::1", 0)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:1", Address("localhost", 1)),
        ("localhost", Address("localhost", 7443)),
        ("0.0.0.0:7443", Address("0.0.0.0", 7443)),
        ("[::]:7443", Address("::", 7443)),
        ("[::1]", Address("::1", 7443)),
    ],
)
def test_addresses(config: Path, text: str, address: Address) -> None:
    config.write_text(f'[server]\naddress = "{text}"')
    found = load_server_settings(config).server.address
    assert found == address
    assert Address(*found) == address


def test_zeromq_is_listened_on_only_where_it_is_said(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, address in (
        ("", None),
        ('[server]\nzmq_address = ""', None),
        ('[server]\nzmq_address = "0.0.0.0:7444"', Address("0.0.0.0", 7444)),
    ):
        config.write_text(text)
        settings = load_server_settings(config)
        assert settings.server.zmq_address == address
        config.write_text(render_settings(settings))
        assert load_server_settings(config).server.zmq_address == address
    monkeypatch.setenv("CIPHERMQ_SERVER__ZMQ_ADDRESS", "[::1]:1")
    assert load_server_settings(config).server.zmq_address == Address("::1", 1)
    monkeypatch.delenv("CIPHERMQ_SERVER__ZMQ_ADDRESS")
    assert "no port" in fault(config, '[server]\nzmq_address = "host:port"')


def test_an_address_is_written_as_it_is_read() -> None:
    assert str(Address("::1", 7443)) == "[::1]:7443"
    assert str(Address("localhost", 1)) == "localhost:1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("localhost:99999", "'99999' is no port"),
        ("localhost:", "'' is no port"),
        (":7443", "the host is missing"),
        ("::1:7443", "stands in brackets"),
        ("[::1:7443", "the bracket is not closed"),
        ("a b:1", "spaces"),
    ],
)
def test_a_bad_address_is_shown_with_what_is_allowed(config: Path, text: str, why: str) -> None:
    said = fault(config, f'# mine\n[server]\naddress = "{text}"\n')
    assert said.startswith(f'{config}, line 3: server.address = "{text}": ')
    assert why in said
    assert "allowed: HOST:PORT" in said


def test_paths_in_the_file_are_relative_to_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    config.write_text('[storage]\ndirectory = "elsewhere"\n[tls]\ncert_path = "/abs/x.crt"\n')
    settings = load_server_settings(config)
    assert settings.storage.directory == config.parent / "elsewhere"
    assert settings.tls.cert_path == Path("/abs/x.crt")


def test_a_relative_path_to_the_file_itself(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("")
    monkeypatch.chdir(config.parent)
    assert load_server_settings(Path("config.toml")).storage.directory == config.parent / "data"


def test_no_log_files(config: Path) -> None:
    config.write_text('[logging]\ndirectory = ""\n')
    assert load_server_settings(config).logging.directory is None


def test_the_environment_goes_before_the_file(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('[server]\naddress = "localhost:1"\nmax_connections = 7\n')
    monkeypatch.setenv("CIPHERMQ_SERVER__ADDRESS", "localhost:2")
    monkeypatch.setenv("CIPHERMQ_STORAGE__DIRECTORY", "here")
    monkeypatch.setenv("CIPHERMQ_LOGGING__CONSOLE", "no")
    monkeypatch.setenv("CIPHERMQ_ACCESS__ADMINISTRATORS", "root, boss")
    monkeypatch.setenv("CIPHERMQ_HOME", "/somewhere")
    monkeypatch.setenv("CIPHERMQ_PASSPHRASE", "hush")
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    settings = load_server_settings(config)
    assert settings.server.address == Address("localhost", 2)
    assert settings.server.max_connections == 7
    assert settings.storage.directory == working / "here"
    assert settings.logging.console is False
    assert settings.access.administrators == ("root", "boss")
    assert "hush" not in repr(settings)


def test_a_bad_override_names_the_variable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIPHERMQ_SERVER__MAX_CONNECTIONS", "many")
    said = fault(config, "[server]\nmax_connections = 5\n")
    assert said.startswith("environment variable CIPHERMQ_SERVER__MAX_CONNECTIONS: ")
    assert '"many"' in said


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("CIPHERMQ_SERVR__ADDRESS", "did you mean 'server'?"),
        ("CIPHERMQ_SERVER__ADRESS", "did you mean 'address'?"),
        ("CIPHERMQ_SERVER", "'server'"),
    ],
)
def test_a_misspelt_override_is_an_error(
    config: Path, monkeypatch: pytest.MonkeyPatch, variable: str, hint: str
) -> None:
    monkeypatch.setenv(variable, "localhost:1")
    said = fault(config, "")
    assert hint.replace("'", '"') in said or hint in said
    assert "CIPHERMQ_" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[server]\n\nadress = 1\n",
            "line 3: [server] has no key 'adress'; did you mean 'address'?",
        ),
        ("[servr]\n", "line 1: there is no section [servr]; did you mean 'server'?"),
        ("xyzzy = 1\n", "line 1: there is no section [xyzzy]; there are: server, tls,"),
        ("[tls]\nxyzzy = 1\n", "[tls] has no key 'xyzzy'; there are: cert_path, key_path,"),
        ("server = 3\n", "line 1: [server] must be a section with keys, not 3"),
        ("server = { address = 5 }\n", "line 1: server.address = 5: an address is text"),
        ("server.address = 5\n", "line 1: server.address = 5"),
        ("[limits]\nmax_queues = 0\n", "line 2: limits.max_queues = 0: input should be greater"),
        ("[logging]\nlevel = 'loud'\n", "level = \"loud\": input should be 'debug', 'info'"),
        ("[access]\nadministrators = ['']\n", "line 2: access.administrators = "),
        ("[server]\ndrain_seconds = nan\n", "line 2: server.drain_seconds = nan"),
        ("[limits]\nmax_queues = 0\nmax_exchanges = 0\n", "(and 1 more fault)"),
    ],
)
def test_what_is_wrong_is_said_exactly(config: Path, text: str, said: str) -> None:
    assert said in fault(config, text)


def test_a_syntax_error_has_its_line(config: Path) -> None:
    assert "not TOML" in (said := fault(config, "[server]\naddress = \n"))
    assert "line 2" in said


def test_a_missing_file_says_how_to_make_one(config: Path) -> None:
    with pytest.raises(ConfigError, match="ciphermq init"):
        load_server_settings(config)


def test_a_file_that_is_no_text(config: Path) -> None:
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_server_settings(config)


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load_server_settings(tmp_path)


def test_what_may_be_a_secret_is_not_shown(config: Path) -> None:
    said = fault(config, '[server]\npassphrase = "hunter2"\n')
    assert "hunter2" not in said
    assert "no key 'passphrase'" in said


def test_a_long_value_is_cut(config: Path) -> None:
    assert len(fault(config, f'[server]\naddress = "{"x" * 5000}:y"\n')) < 1000
