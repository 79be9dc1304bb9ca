"""Private keys in files and in memory."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ciphermq import limits
from ciphermq.custody import disk, keys, passphrase, signatures
from ciphermq.custody.files import FileOpener, FileSigner, decode_key, encode_key, is_encrypted
from ciphermq.errors import CertificateError, IdentityError, PassphraseError
from ciphermq.model.suites import Suite
from support.sealing import MemoryAuthority

SECRET = b"correct horse battery staple"
CHEAP = passphrase.CHEAP


@pytest.fixture(params=list(Suite), ids=lambda suite: suite.name)
def suite(request: pytest.FixtureRequest) -> Suite:
    return request.param


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_key_file_gives_back_its_key(tmp_path: Path, suite: Suite, secret: bytes | None) -> None:
    private = keys.generate(suite)
    path = tmp_path / "sealing.key"
    disk.write_file(path, encode_key(suite, private, secret, CHEAP))
    assert is_encrypted(path.read_bytes(), "it") == (secret is not None)
    opener = FileOpener.load(path, secret)
    assert opener.suite is suite
    assert opener.public_key == keys.public_bytes(suite, private)
    assert opener.key_id == keys.key_id(suite, opener.public_key)
    wrapped = keys.wrap(suite, opener.public_key, bytes(32), b"info")
    assert opener.unwrap(wrapped, b"info") == bytes(32)


def test_a_plain_key_file_is_the_documented_one() -> None:
    private = keys.generate(Suite.X25519)
    text = encode_key(Suite.X25519, private).decode()
    first, *body, last = text.splitlines()
    assert first == "-----BEGIN CIPHERMQ PRIVATE KEY-----"
    assert last == "-----END CIPHERMQ PRIVATE KEY-----"
    key_id = keys.key_id(Suite.X25519, keys.public_bytes(Suite.X25519, private))
    assert base64.b64decode("".join(body)) == b"\x02" + key_id + private


def test_an_encrypted_key_file_shows_its_name_and_nothing_of_the_key(suite: Suite) -> None:
    private = keys.generate(suite)
    text = encode_key(suite, private, SECRET, CHEAP).decode()
    assert text.startswith("-----BEGIN CIPHERMQ ENCRYPTED PRIVATE KEY-----\n")
    content = base64.b64decode("".join(text.splitlines()[1:-1]))
    assert content[1:17] == keys.key_id(suite, keys.public_bytes(suite, private))
    assert private[:16] not in content


def test_a_wrong_or_missing_passphrase_is_told() -> None:
    data = encode_key(Suite.X25519, keys.generate(Suite.X25519), SECRET, CHEAP)
    with pytest.raises(PassphraseError, match=r"bob\.key is encrypted: give its passphrase"):
        decode_key(data, "bob.key")
    with pytest.raises(PassphraseError, match=r"does not open bob\.key"):
        decode_key(data, "bob.key", b"wrong")
    plain = encode_key(Suite.X25519, keys.generate(Suite.X25519))
    assert decode_key(plain, "bob.key", b"not needed").suite is Suite.X25519


def armoured(label: str, content: bytes) -> bytes:
    text = base64.b64encode(content).decode()
    return f"-----BEGIN {label}-----\n{text}\n-----END {label}-----\n".encode()


def test_every_changed_byte_of_a_key_file_is_told(suite: Suite) -> None:
    private = keys.generate(suite)
    head = bytes([suite]) + keys.key_id(suite, keys.public_bytes(suite, private))
    content = head + private
    # The seed's second half (FIPS 203's z) is in no public key: it only makes up the answer to a
    # wrap that does not fit, so a change of it is harmless, and can't be told.
    harmless = range(17 + 32, 17 + 64) if suite is Suite.MLKEM768_X25519 else ()
    for at in set(range(len(content))).difference(harmless):
        changed = bytearray(content)
        changed[at] ^= 0x08
        with pytest.raises(IdentityError, match=r"^it (is damaged|holds a key of a suite)"):
            decode_key(armoured("CIPHERMQ PRIVATE KEY", bytes(changed)), "it")


def test_an_encrypted_key_opens_only_as_the_key_it_names() -> None:
    mine, yours = (keys.generate(Suite.X25519) for _ in range(2))
    parts = []
    for private in (mine, yours):
        text = encode_key(Suite.X25519, private, SECRET, CHEAP).decode()
        parts.append(base64.b64decode("".join(text.splitlines()[1:-1])))
    swapped = parts[0][:17] + parts[1][17:]
    with pytest.raises(PassphraseError):
        decode_key(armoured("CIPHERMQ ENCRYPTED PRIVATE KEY", swapped), "it", SECRET)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\xff\xfe",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN CIPHERMQ PRIVATE KEY-----\n",
        b"-----BEGIN CIPHERMQ PRIVATE KEY-----\n!!!!\n-----END CIPHERMQ PRIVATE KEY-----\n",
        armoured("CIPHERMQ PRIVATE KEY", b""),
        armoured("CIPHERMQ PRIVATE KEY", b"\x02"),
        armoured("CIPHERMQ PRIVATE KEY", b"\x63" + bytes(48)),
        armoured("CIPHERMQ PRIVATE KEY", b"\x03" + bytes(48)),
    ],
)
def test_what_is_no_key_file_is_told(data: bytes) -> None:
    with pytest.raises(IdentityError, match=r"^it "):
        decode_key(data, "it")


def test_files_are_named_in_errors(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"none\.key is missing"):
        FileOpener.load(tmp_path / "none.key")
    large = tmp_path / "large.key"
    disk.write_file(large, bytes(limits.MAX_KEY_FILE + 1))
    with pytest.raises(IdentityError, match=r"large\.key has more than"):
        FileOpener.load(large)
    exposed = tmp_path / "exposed.key"
    disk.write_file(exposed, encode_key(Suite.P256, keys.generate(Suite.P256)), mode=0o644)
    with pytest.raises(IdentityError, match="open to others"):
        FileOpener.load(exposed)


def test_an_opener_shows_no_key_when_it_is_printed() -> None:
    private = keys.generate(Suite.X25519)
    opener = FileOpener(Suite.X25519, private)
    assert repr(opener) == f"<X25519 private key {opener.key_id.hex()}>"


# --- signers ------------------------------------------------------------------------------------


def test_a_signer_is_its_certificate_and_key() -> None:
    signer = MemoryAuthority().party("alice").signer
    assert len(signer.chain) == 1
    assert len(signer.certificate_sha256) == 32
    assert signer.sign(b"data") != signer.sign(b"other")


def test_a_signer_of_the_wrong_kind_is_refused() -> None:
    authority = MemoryAuthority()
    chain = authority.party("alice").signer.chain
    with pytest.raises(CertificateError, match="not that of the certificate"):
        FileSigner(ec.generate_private_key(ec.SECP256R1()), chain)
    with pytest.raises(CertificateError, match="needs its certificate"):
        FileSigner(ec.generate_private_key(ec.SECP256R1()), ())
    with pytest.raises(CertificateError, match="can't be read"):
        FileSigner(ec.generate_private_key(ec.SECP256R1()), (b"nonsense",))
    with pytest.raises(CertificateError, match=r"secp256k1; it must be on P-256"):
        FileSigner(ec.generate_private_key(ec.SECP256K1()), chain)
    assert "secp256k1" not in signatures.CURVES
