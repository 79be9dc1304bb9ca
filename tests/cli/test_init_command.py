"""`ciphermq init`: all of a deployment, or nothing, and a word on what comes next."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ciphermq.cli.deployment import Deployment, server_hosts
from ciphermq.cli.main import run
from ciphermq.client.identity import Identity
from ciphermq.errors import PassphraseError
from ciphermq.pki.authority import Authority
from ciphermq.settings import Address, load_server_settings
from support.deployment import now_ms
from support.terminal import Terminal


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("CIPHERMQ_HOME", "CIPHERMQ_PASSPHRASE", "CIPHERMQ_IDENTITY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def init(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    status = run(["init", *map(str, words), "--no-passphrase", "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out or err)


def certificate_of(deployment: Deployment) -> x509.Certificate:
    return x509.load_pem_x509_certificate((deployment.server / "server.crt").read_bytes())


def test_everything_is_there_and_the_server_can_read_it(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, made = init(capsys, "here")
    assert status == 0
    assert made["url"] == "cmq://localhost:7443"
    assert made["hosts"] == ["localhost", "127.0.0.1", "::1"]
    assert not made["authority_encrypted"]
    deployment = Deployment(directory / "here")
    settings = load_server_settings(deployment.config)
    assert settings.server.address == Address("127.0.0.1", 7443)
    for path in (
        settings.tls.cert_path,
        settings.tls.key_path,
        settings.tls.ca_cert_path,
        settings.tls.crl_path,
        settings.storage.at_rest_key_path,
        settings.storage.directory,
    ):
        assert path is not None
        assert path.exists()
        assert path.is_relative_to(deployment.server)
    assert Identity.load(deployment.admin).name == "admin"
    assert settings.access.administrators == ("admin",)


def test_the_broker_s_certificate_is_for_its_hosts_and_for_nothing_else(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, made = init(
        capsys, "d", "--host", "queue.example.org", "--host", "10.0.0.5", "--port", 9000
    )
    assert status == 0
    assert made["url"] == "cmq://queue.example.org:9000"
    certificate = certificate_of(Deployment(directory / "d"))
    assert server_hosts(certificate) == ["queue.example.org", "10.0.0.5"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    settings = load_server_settings(directory / "d" / "server" / "config.toml")
    assert settings.server.address == Address("0.0.0.0", 9000)


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["--host", "localhost"], Address("127.0.0.1", 7443)),
        (["--host", "app.localhost", "--host", "127.0.0.2"], Address("127.0.0.1", 7443)),
        (["--host", "[::1]"], Address("127.0.0.1", 7443)),
        (["--host", "q.example.org", "--listen", "10.1.1.1"], Address("10.1.1.1", 7443)),
        (["--listen", "::", "--port", "0"], Address("::", 0)),
    ],
)
def test_it_listens_where_its_clients_are(
    directory: Path, capsys: pytest.CaptureFixture[str], words: list[str], address: Address
) -> None:
    assert init(capsys, "d", *words)[0] == 0
    settings = load_server_settings(directory / "d" / "server" / "config.toml")
    assert settings.server.address == address


def test_what_is_secret_is_private(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(capsys, "d")
    public = {"ca.crt", "crl.pem", "server.crt", "config.toml", "cert.pem", "identity.toml"}
    for path in [directory / "d", *(directory / "d").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif path.name not in public and path.parent.name != "issued":
            assert mode == 0o600, path


def test_nothing_is_overwritten(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(capsys, "d")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    status, error = init(capsys, "d")
    assert status == 2
    assert "is not empty: nothing is overwritten" in error["message"]
    assert before == {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    (directory / "file").write_text("mine")
    assert init(capsys, "file")[0] != 0
    assert (directory / "file").read_text() == "mine"


def test_a_mistake_leaves_nothing_behind(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = init(capsys, "d", "--host", "not a host")
    assert status == 2
    assert "'not a host' is neither an IP address nor a host name" in error["message"]
    assert list(directory.iterdir()) == []


def test_people_are_told_what_is_what_and_what_is_next(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "--no-passphrase"]) == 0
    said = capsys.readouterr().out
    assert "IN THE CLEAR" in said
    assert "ciphermq server\n" in said
    assert "ciphermq identity add alice\n" in said
    assert (directory / "ciphermq" / "ca").is_dir()
    assert run(["init", "my home", "--no-passphrase"]) == 0
    assert "--home 'my home'" in capsys.readouterr().out


def test_the_environment_may_say_where(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERMQ_HOME", str(directory / "elsewhere"))
    assert init(capsys)[1]["home"] == str(directory / "elsewhere")


def test_a_passphrase_comes_from_a_file_or_the_environment(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "phrase").write_text("from a file\nand no more\n")
    monkeypatch.setenv("CIPHERMQ_IDENTITY_PASSPHRASE", "the admin's")
    assert run(["init", "d", "--passphrase-file", "phrase", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["authority_encrypted"]
    deployment = Deployment(directory / "d")
    authority = Authority.open(deployment.ca, "from a file")
    assert [item.name for item in authority.issued() if item.is_client] == ["admin"]
    with pytest.raises(PassphraseError):
        Identity.load(deployment.admin)
    assert Identity.load(deployment.admin, "the admin's").name == "admin"
    assert b"ENCRYPTED" in (deployment.ca / "ca.key").read_bytes()


def test_without_a_terminal_it_says_how_to_give_a_passphrase(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "d"]) == 2
    said = capsys.readouterr().err
    assert "--passphrase-file or in CIPHERMQ_PASSPHRASE" in said
    assert not (directory / "d").exists()
    (directory / "empty").write_text("\n")
    assert run(["init", "d", "--passphrase-file", "empty"]) == 2
    assert "the passphrase is empty" in capsys.readouterr().err
    assert run(["init", "d", "--passphrase-file", "missing"]) == 2
    assert "can't be read" in capsys.readouterr().err


def test_at_a_terminal_it_asks(directory: Path) -> None:
    with Terminal("init", "d", cwd=directory) as terminal:
        terminal.expect("New passphrase for the authority:")
        terminal.type("correct horse", hidden=True)
        terminal.expect("Repeat for confirmation:")
        terminal.type("correct house", hidden=True)
        terminal.expect("do not match")
        terminal.expect("New passphrase for the authority:")
        terminal.type("correct horse", hidden=True)
        terminal.expect("Repeat for confirmation:")
        terminal.type("correct horse", hidden=True)
        terminal.expect("administrator's keys (empty: none):")
        terminal.type("", hidden=True)
        terminal.expect("its key is under your passphrase")
        assert terminal.wait() == 0
        assert "correct" not in terminal.output
    deployment = Deployment(directory / "d")
    assert Authority.open(deployment.ca, "correct horse")
    Identity.load(deployment.admin).check(now_ms())
