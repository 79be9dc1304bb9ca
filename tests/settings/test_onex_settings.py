"""Configuration files of CipherMQ 1.x, and the sections that came with them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from ciphermq.errors import ConfigError
from ciphermq.settings import Address, ServerSettings, load_server_settings
from ciphermq.settings.source import check_files

KEY = bytes(range(32))
KEY_TEXT = base64.b64encode(KEY).decode()

ONE_X = f"""
[server]
address = "127.0.0.1:5672"
connection_type = "tls"

[tls]
cert_path = "certs/server.crt"
key_path = "./certs/server.key"
ca_cert_path = "/abs/ca.crt"

[logging]
level = "INFO"
info_file_path = "logs/server_info.log"
debug_file_path = "logs/server_debug.log"
error_file_path = "logs/server_error.log"
rotation = "daily"
max_size_mb = 100

[database]
host = "db.example"
port = 5433
user = "mq"
password = "hunter2"
dbname = "queue"

[encryption]
algorithm = "x25519_chacha20_poly1305"
aes_key = "{KEY_TEXT}"
"""


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("CIPHERMQ_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def loaded(config: Path, text: str) -> ServerSettings:
    config.write_text(text)
    return load_server_settings(config)


def fault(config: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(config, text)
    return str(caught.value)


def test_a_file_of_1x_is_taken_as_it_is(config: Path) -> None:
    settings = loaded(config, ONE_X)
    here = config.parent
    assert settings.server.address == Address("127.0.0.1", 5672)
    assert settings.tls.cert_path == here / "certs/server.crt"
    assert settings.tls.key_path == here / "certs/server.key"
    assert settings.tls.ca_cert_path == Path("/abs/ca.crt")
    assert settings.logging.level == "info"
    assert settings.logging.info_file_path == here / "logs/server_info.log"
    assert settings.logging.error_file_path == here / "logs/server_error.log"
    assert settings.logging.rotation == "daily"
    assert settings.logging.max_size_mb == 100
    assert settings.database is not None
    assert (settings.database.host, settings.database.port) == ("db.example", 5433)
    assert (settings.database.user, settings.database.dbname) == ("mq", "queue")
    assert settings.database.secret() == "hunter2"
    assert settings.encryption is not None
    assert settings.encryption.key() == KEY


def test_it_implies_what_1x_did(config: Path) -> None:
    settings = loaded(config, ONE_X)
    assert settings.one_x.enabled
    assert settings.one_x.tls_1_2
    assert settings.access.allow_all
    assert settings.tls.crl_path is None
    assert settings.logging.directory is None
    assert settings.storage.at_rest_key_path is None
    assert settings.storage.directory == config.parent / "data"


def test_a_new_file_implies_none_of_it(config: Path) -> None:
    settings = loaded(config, "")
    assert not settings.one_x.enabled
    assert not settings.one_x.tls_1_2
    assert not settings.access.allow_all
    assert settings.tls.crl_path == config.parent / "crl.pem"
    assert settings.storage.at_rest_key_path == config.parent / "at-rest.key"
    assert settings.database is None
    assert settings.encryption is None


def test_what_a_file_of_1x_says_for_itself_stands(config: Path) -> None:
    text = ONE_X.replace('ca_cert_path = "/abs/ca.crt"', 'crl_path = "crl.pem"')
    text = text.replace("[logging]", '[logging]\ndirectory = "mine"')
    text += "\n[one_x]\ntls_1_2 = false\n[access]\nallow_all = false\n"
    text += '[storage]\nat_rest_key_path = "at-rest.key"\n'
    settings = loaded(config, text)
    assert settings.one_x.enabled
    assert not settings.one_x.tls_1_2
    assert not settings.access.allow_all
    assert settings.tls.crl_path == config.parent / "crl.pem"
    assert settings.logging.directory == config.parent / "mine"
    assert settings.storage.at_rest_key_path == config.parent / "at-rest.key"


def test_a_file_of_1x_without_a_database_uses_the_embedded_catalog(config: Path) -> None:
    text = ONE_X.split("[database]", maxsplit=1)[0] + "[encryption]\naes_key = '" + KEY_TEXT + "'\n"
    settings = loaded(config, text)
    assert settings.database is None
    assert settings.encryption is not None
    bare = loaded(config, ONE_X.split("[database]", maxsplit=1)[0])
    assert bare.encryption is None
    assert bare.storage.at_rest_key_path == config.parent / "at-rest.key"


@pytest.mark.parametrize(("level", "found"), [("WARN", "warning"), ("Trace", "debug")])
def test_levels_as_1x_spells_them(config: Path, level: str, found: str) -> None:
    assert loaded(config, f"[logging]\nlevel = '{level}'\n").logging.level == found


@pytest.mark.parametrize(
    ("was", "now", "found"),
    [
        ('level = "INFO"', 'level = ""', ("info", "daily", 100)),
        ('level = "INFO"', 'level = "info,tokio=warn"', ("info", "daily", 100)),
        ('"daily"', '""', ("info", "daily", 100)),
        ('"daily"', '"weekly"', ("info", "never", 100)),
        ("mb = 100", "mb = 0", ("info", "daily", 10)),
        ("mb = 100", "mb = 1000000", ("info", "daily", 10_240)),
    ],
)
def test_what_1x_started_with_starts(
    config: Path, was: str, now: str, found: tuple[str, str, int]
) -> None:
    logging = loaded(config, ONE_X.replace(was, now)).logging
    assert (logging.level, logging.rotation, logging.max_size_mb) == found


def test_sections_of_later_1x_servers_are_said_to_have_no_effect(config: Path) -> None:
    text = ONE_X + "[acl]\nadmin_cns = ['a']\n[rate_limit]\nenabled = true\n"
    settings = loaded(config, text)
    assert [sentence.partition(":")[0] for sentence in settings.left_out] == [
        "[rate_limit] of 1.x has no effect",
        "[acl] of 1.x has no effect",
    ]
    assert loaded(config, ONE_X).left_out == ()


def test_the_environment_goes_before_a_file_of_1x(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERMQ_DATABASE__PASSWORD", "correct horse")
    monkeypatch.setenv("CIPHERMQ_DATABASE__PORT", "6000")
    monkeypatch.setenv("CIPHERMQ_ONE_X__TLS_1_2", "false")
    settings = loaded(config, ONE_X)
    assert settings.database is not None
    assert settings.database.secret() == "correct horse"
    assert (settings.database.host, settings.database.port) == ("db.example", 6000)
    assert not settings.one_x.tls_1_2
    assert settings.one_x.enabled


def test_the_environment_alone_can_name_a_database(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERMQ_DATABASE__HOST", "db.example")
    settings = loaded(config, "")
    assert settings.database is not None
    assert (settings.database.host, settings.database.user) == ("db.example", "ciphermq")


def test_secrets_may_be_files(config: Path) -> None:
    (config.parent / "password").write_text("correct horse \n")
    (config.parent / "aes").write_text(KEY_TEXT + "\n")
    text = ONE_X.replace('password = "hunter2"', 'password_path = "password"')
    text = text.replace(f'aes_key = "{KEY_TEXT}"', 'aes_key_path = "aes"')
    settings = loaded(config, text)
    assert settings.database is not None
    assert settings.encryption is not None
    assert settings.database.secret() == "correct horse "
    assert settings.encryption.key() == KEY
    assert settings.storage.at_rest_key_path is None


def test_secrets_are_never_shown(config: Path) -> None:
    shown = repr(loaded(config, ONE_X)) + str(loaded(config, ONE_X).model_dump(mode="json"))
    assert "hunter2" not in shown
    assert KEY_TEXT not in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            ONE_X.replace(KEY_TEXT, "YOUR_BASE64_ENCODED_32_BYTE_AES_KEY"),
            "encryption.aes_key is not base64; allowed: 32 bytes",
        ),
        (ONE_X.replace(KEY_TEXT, "aHVudGVyMg=="), "encryption.aes_key has 7 bytes; allowed: 32"),
        ("[encryption]\n", "encryption.aes_key is missing; "),
        (
            ONE_X.split("[encryption]", maxsplit=1)[0],
            "[database] and one_x.enabled are given without encryption.aes_key",
        ),
        (
            "[one_x]\nenabled = true\n[database]\n",
            "[database] and one_x.enabled are given without encryption.aes_key",
        ),
        (ONE_X + "[acls]\n", "there is no section [acls]"),
        ("[acl]\n", "there is no section [acl]"),
        (ONE_X.replace('password = "h', 'password_path = "x"\npassword = "h'), "both given"),
        (ONE_X.replace('password = "hunter2"', 'password_path = "x"'), "can't be read"),
        (ONE_X.replace('"hunter2"', "2"), "database.password = (not shown): input should be"),
        (ONE_X.replace("5433", "70000"), "line 21: database.port = 70000: input should be less"),
        ("[database]\ntls = 'yes'\n", "line 2: database.tls = \"yes\": input should be 'auto'"),
        ("[database]\npasword = 'hunter2'\n", "did you mean 'password'?"),
        ("database = 'hunter2'\n", "[database] must be a section with keys, not (not shown)"),
        ("[one_x]\nenable = true\n", "did you mean 'enabled'?"),
        ("[logging]\nrotation = 'weekly'\n", 'line 2: logging.rotation = "weekly"'),
        ("[storage]\nat_rest_key_path = ''\n", "storage.at_rest_key_path is empty"),
    ],
)
def test_what_is_wrong_is_said_and_no_secret_with_it(config: Path, text: str, said: str) -> None:
    found = fault(config, text)
    assert said in found
    assert found.startswith(str(config))
    for secret in ("hunter2", KEY_TEXT, "aHVudGVyMg"):
        assert secret not in found


def test_a_secret_s_file_is_no_endless_thing(config: Path) -> None:
    (config.parent / "password").write_text("x" * 5000)
    text = "[database]\npassword_path = 'password'\n"
    assert "too long" in fault(config, text)


@pytest.mark.parametrize(
    ("text", "verified"),
    [
        ("", False),
        ("ca_cert_path = 'ca.crt'", True),
        ("ca_cert_path = ''", False),
        ("tls = 'verify'", True),
        ("tls = 'off'\nca_cert_path = 'ca.crt'", False),
        ("tls = 'prefer'\nca_cert_path = 'ca.crt'", False),
    ],
)
def test_when_the_database_must_prove_who_it_is(config: Path, text: str, verified: bool) -> None:
    database = loaded(config, f"[database]\n{text}\n").database
    assert database is not None
    assert database.verified == verified


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("/var/run/postgresql", True),
        ("10.0.0.1", False),
        ("db.example", False),
    ],
)
def test_what_is_on_this_machine(config: Path, host: str, local: bool) -> None:
    database = loaded(config, f"[database]\nhost = '{host}'\n").database
    assert database is not None
    assert database.local == local


def test_the_files_it_reads_must_be_there_and_those_it_writes_need_not(config: Path) -> None:
    certs = config.parent / "certs"
    certs.mkdir()
    text = ONE_X.replace('"/abs/ca.crt"', '"certs/ca.crt"')
    settings = loaded(config, text)
    with pytest.raises(ConfigError, match=r"line 7: tls\.cert_path"):
        check_files(settings, config)
    for name in ("server.crt", "server.key", "ca.crt"):
        (certs / name).touch()
    check_files(settings, config)
    text = text.replace("[encryption]", "ca_cert_path = 'db.crt'\n[encryption]")
    with pytest.raises(ConfigError, match=r"database\.ca_cert_path"):
        check_files(loaded(config, text), config)
