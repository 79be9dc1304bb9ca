"""``ciphermq config``: what a server would make of a configuration."""

from __future__ import annotations

import base64
import json
import tomllib
from pathlib import Path

import pytest

from ciphermq.cli.main import run
from support.deployment import Deployment, make_deployment
from support.onex_certificates import make_certificates

AES_KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return make_deployment(tmp_path)


@pytest.fixture
def one_x(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "certs")
    config = tmp_path / "config.toml"
    config.write_text(f"""
[server]
address = "127.0.0.1:5672"
connection_type = "tls"
[tls]
cert_path = "certs/server.crt"
key_path = "certs/server.key"
ca_cert_path = "certs/ca.crt"
[database]
password = "hunter2"
[encryption]
aes_key = "{AES_KEY}"
""")
    return config


def test_a_good_one(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "check", "--home", str(deployment.home)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{deployment.config} is good: 127.0.0.1:")
    assert "sqlite" in said
    assert "1.x" not in said
    assert not (deployment.server_dir / "data" / "catalog.db").exists()


def test_one_of_1x(one_x: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "check", "--config", str(one_x)]) == 0
    said = capsys.readouterr().out
    assert "127.0.0.1:5672, catalog in postgresql" in said
    assert "It is a configuration of CipherMQ 1.x" in said
    assert run(["config", "check", "--config", str(one_x), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "good": True,
        "config": str(one_x),
        "address": "127.0.0.1:5672",
        "zmq_address": None,
        "one_x": True,
    }


def test_one_that_listens_over_zeromq_too(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERMQ_SERVER__ADDRESS", "127.0.0.1:7443")
    monkeypatch.setenv("CIPHERMQ_SERVER__ZMQ_ADDRESS", "[::1]:7444")
    words = ["config", "check", "--home", str(deployment.home)]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert said.endswith(" is good: 127.0.0.1:7443 and zmq+tls://[::1]:7444, catalog in sqlite\n")
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["zmq_address"] == "zmq+tls://[::1]:7444"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("5672", "99999", "line 3: server.address"),
        ("certs/ca.crt", "certs/missing.crt", "line 8: tls.ca_cert_path"),
        ("certs/server.key", "certs/ca.key", "is not that of"),
        (AES_KEY, "c2hvcnQ=", "encryption.aes_key has 5 bytes"),
        ("password = ", "pasword = ", "did you mean 'password'?"),
    ],
)
def test_a_bad_one(
    one_x: Path, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one_x.write_text(one_x.read_text().replace(old, new))
    assert run(["config", "check", "--config", str(one_x)]) != 0
    found = capsys.readouterr().err
    assert said in found
    assert "hunter2" not in found


def test_what_counts_is_shown(
    one_x: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERMQ_DATABASE__HOST", "db.example")
    assert run(["config", "show", "--config", str(one_x)]) == 0
    text = capsys.readouterr().out
    found = tomllib.loads(text)
    assert found["server"]["address"] == "127.0.0.1:5672"
    assert found["tls"]["cert_path"] == str(one_x.parent / "certs" / "server.crt")
    assert found["tls"]["crl_path"] == ""
    assert found["one_x"] == {"enabled": True, "tls_1_2": True}
    assert found["access"]["allow_all"] is True
    assert found["database"]["host"] == "db.example"
    assert found["limits"]["max_publish_window"] == 64
    assert run(["config", "show", "--config", str(one_x), "--json"]) == 0
    as_json = capsys.readouterr().out
    assert json.loads(as_json)["database"]["host"] == "db.example"
    for secret in ("hunter2", AES_KEY):
        assert secret not in text + as_json


def test_what_is_shown_is_a_configuration(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "show", "--config", str(deployment.config)]) == 0
    deployment.config.write_text(capsys.readouterr().out)
    assert run(["config", "check", "--config", str(deployment.config)]) == 0


def test_what_has_no_effect_of_a_file_of_1x(
    one_x: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_x.write_text(one_x.read_text() + "[acl]\nadmin_cns = ['admin']\n")
    assert run(["config", "check", "--config", str(one_x)]) == 0
    assert "[acl] of 1.x has no effect" in capsys.readouterr().out
