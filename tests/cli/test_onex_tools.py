"""What the scripts of CipherMQ 1.x made: `ciphermq ca make` and `ciphermq keys make`."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from ciphermq.cli.main import run
from ciphermq.custody import onex
from ciphermq.errors import CertificateError
from ciphermq.pki import names

Capture = pytest.CaptureFixture[str]


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


# --- ca make --------------------------------------------------------------------------------------


def test_a_deployment_as_1x_has_it(tmp_path: Path) -> None:
    certs = tmp_path / "a" / "certs"
    assert run(["ca", "make", "--out", str(certs), "sender_1", "receiver_1"]) == 0
    assert sorted(files(certs)) == [
        "ca.crt",
        "ca.key",
        "clients/receiver_1/client.crt",
        "clients/receiver_1/client.key",
        "clients/sender_1/client.crt",
        "clients/sender_1/client.key",
        "server.crt",
        "server.key",
    ]
    authority = certificate(certs / "ca.crt")
    for path in certs.rglob("*.crt"):
        found = certificate(path)
        found.verify_directly_issued_by(authority)
        key = load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp384r1"
        assert key.public_key() == found.public_key()
        assert stat.S_IMODE(path.with_suffix(".key").stat().st_mode) == 0o600


def test_a_client_is_one_by_its_cn_alone(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    assert run(["ca", "make", "--out", str(certs), "sender_1"]) == 0
    found = certificate(certs / "clients" / "sender_1" / "client.crt")
    assert found.subject.rfc4514_string() == "CN=sender_1"
    assert names.client_id_of(found, usage_required=False) == "sender_1"
    assert not names.may_sign(found)
    for extension in (x509.ExtendedKeyUsage, x509.SubjectAlternativeName):
        with pytest.raises(x509.ExtensionNotFound):
            found.extensions.get_extension_for_class(extension)


def test_the_server_s_certificate_is_no_client_s(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    assert run(["ca", "make", "--out", str(certs), "--host", "queue.example"]) == 0
    found = certificate(certs / "server.crt")
    usages = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["queue.example"]
    with pytest.raises(CertificateError):
        names.client_id_of(found, usage_required=False)


def test_nothing_is_ever_made_over(tmp_path: Path, capsys: Capture) -> None:
    certs = tmp_path / "certs"
    assert run(["ca", "make", "--out", str(certs), "sender_1"]) == 0
    before = files(certs)
    assert run(["ca", "make", "--out", str(certs), "receiver_1"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert files(certs) == before


@pytest.mark.parametrize("bad", ["a/b", "..", "dead.a", "a b", ""])
def test_a_name_that_no_client_may_have(tmp_path: Path, bad: str) -> None:
    assert run(["ca", "make", "--out", str(tmp_path / "certs"), "sender_1", bad]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_there_twice(tmp_path: Path, capsys: Capture) -> None:
    assert run(["ca", "make", "--out", str(tmp_path / "certs"), "Sender", "sender"]) == 2
    assert "named twice" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_is_told(tmp_path: Path, capsys: Capture) -> None:
    assert run(["ca", "make", "--out", str(tmp_path / "certs"), "alice", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).is_file() for path in told["certificates"]] == [True] * 3
    assert run(["ca", "make", "--out", str(tmp_path / "others")]) == 0
    assert "ca.key, which is not encrypted" in capsys.readouterr().out


# --- keys make ------------------------------------------------------------------------------------


def test_a_pair_of_keys(tmp_path: Path, capsys: Capture) -> None:
    keys = tmp_path / "keys"
    assert run(["keys", "make", "--out", str(keys)]) == 0
    said = capsys.readouterr().out
    private = keys / "receiver_private.key"
    public = keys / "receiver_public.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert len(base64.b64decode(private.read_bytes(), validate=True)) == 32
    made = onex.OnexKey.load(private).public_key
    assert onex.load_public_key(public) == made
    assert onex.fingerprint(made) in said
    assert private.read_text() not in said


def test_a_pair_is_not_made_over_another(tmp_path: Path, capsys: Capture) -> None:
    assert run(["keys", "make", "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    made = onex.load_public_key(tmp_path / "receiver_public.key")
    assert told["fingerprint"] == onex.fingerprint(made)
    before = files(tmp_path)
    assert run(["keys", "make", "--out", str(tmp_path)]) != 0
    assert "there already" in capsys.readouterr().err
    assert files(tmp_path) == before
