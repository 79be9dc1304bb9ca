"""What every custody promises, held to by each: keys in files, keys on a token."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from ciphermq.custody import keys, signatures
from ciphermq.custody.face import Opener, Signer
from ciphermq.custody.files import FileOpener, FileSigner
from ciphermq.custody.keyring import Keyring
from ciphermq.custody.pkcs11.opener import TokenOpener
from ciphermq.custody.pkcs11.signer import TokenSigner, TokenSigningKey
from ciphermq.errors import CertificateError, WrapRefused
from ciphermq.model.suites import SESSION_KEY_SIZE, Suite
from ciphermq.pki import profiles
from support.softhsm import make_softhsm, require

INFO = b"a batch, a receiver, a key"
SESSION_KEY = bytes(range(SESSION_KEY_SIZE))
ORDER = ec.SECP256R1().group_order


@pytest.fixture(params=["files", "pkcs11"])
def custody(request: pytest.FixtureRequest) -> str:
    if request.param == "pkcs11":
        require()
    return request.param


@pytest.fixture
def opener(custody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    if custody == "files":
        return FileOpener(Suite.P256, keys.generate(Suite.P256))
    return TokenOpener.make(make_softhsm(tmp_path / "hsm", monkeypatch).token())


@pytest.fixture
def make_signer(
    custody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Signer]:
    def certified(public: ec.EllipticCurvePublicKey) -> tuple[bytes, ...]:
        authority = ec.generate_private_key(ec.SECP384R1())
        now_ms = int(time.time() * 1000)
        issuer = profiles.Issuer(profiles.authority_certificate(authority, now_ms), authority)
        made = profiles.client_certificate(issuer, "alice", public, now_ms, 3600)
        return (made.public_bytes(Encoding.DER),)

    def make() -> Signer:
        if custody == "files":
            key = ec.generate_private_key(ec.SECP256R1())
            return FileSigner(key, certified(key.public_key()))
        token = make_softhsm(tmp_path / "hsm", monkeypatch).token()
        made = token.make_p256("signs", may=("sign",))
        public = TokenSigningKey.find(token, made).public_key()
        return TokenSigner(token, made, certified(public))

    return make


def test_an_opener_opens_what_was_sealed_to_it(opener: Opener) -> None:
    assert opener.suite is Suite.P256
    assert opener.key_id == keys.key_id(opener.suite, opener.public_key)
    wrapped = keys.wrap(opener.suite, opener.public_key, SESSION_KEY, INFO)
    assert opener.unwrap(wrapped, INFO) == SESSION_KEY


def test_an_opener_opens_many(opener: Opener) -> None:
    """A shared secret begins with a zero byte once in 256 times: devices drop it, or don't."""
    for number in range(300):
        session_key = number.to_bytes(SESSION_KEY_SIZE, "big")
        wrapped = keys.wrap(opener.suite, opener.public_key, session_key, INFO)
        assert opener.unwrap(wrapped, INFO) == session_key


@pytest.mark.parametrize(
    "change",
    [
        lambda wrap: wrap[:-1],
        lambda wrap: wrap + b"\0",
        lambda wrap: b"",
        lambda wrap: wrap[:-1] + bytes([wrap[-1] ^ 1]),
        lambda wrap: wrap[:70] + bytes([wrap[70] ^ 1]) + wrap[71:],
        lambda wrap: bytes(65) + wrap[65:],
        lambda wrap: b"\x02" + wrap[1:],
        lambda wrap: wrap[:64] + bytes([wrap[64] ^ 1]) + wrap[65:],
        lambda wrap: b"\x04" + b"\xff" * 64 + wrap[65:],
    ],
    ids=[
        "cut", "longer", "empty", "tag", "ciphertext", "no point", "compressed", "off the curve",
        "out of the field",
    ],
)  # fmt: skip
def test_an_opener_blames_the_batch_for_what_does_not_open(
    opener: Opener, change: Callable[[bytes], bytes]
) -> None:
    wrapped = keys.wrap(opener.suite, opener.public_key, SESSION_KEY, INFO)
    with pytest.raises(WrapRefused):
        opener.unwrap(change(wrapped), INFO)
    assert opener.unwrap(wrapped, INFO) == SESSION_KEY, "and goes on"


def test_an_opener_holds_to_its_info_and_its_key(opener: Opener) -> None:
    wrapped = keys.wrap(opener.suite, opener.public_key, SESSION_KEY, INFO)
    with pytest.raises(WrapRefused):
        opener.unwrap(wrapped, b"another batch")
    stranger = keys.public_bytes(Suite.P256, keys.generate(Suite.P256))
    with pytest.raises(WrapRefused):
        opener.unwrap(keys.wrap(Suite.P256, stranger, SESSION_KEY, INFO), INFO)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_an_opener_gives_out_session_keys_only(opener: Opener, size: int) -> None:
    wrapped = keys.wrap(opener.suite, opener.public_key, bytes(size), INFO)
    with pytest.raises(WrapRefused):
        opener.unwrap(wrapped, INFO)


def test_a_keyring_takes_it(opener: Opener) -> None:
    keyring = Keyring([opener])
    assert keyring.find(opener.key_id) is opener


def test_an_openers_words_hold_no_secret(opener: Opener, custody: str) -> None:
    assert opener.key_id.hex() in repr(opener)
    assert opener.blocking is (custody == "pkcs11")


def test_a_signature_is_the_certificates_and_has_one_spelling(
    make_signer: Callable[[], Signer], custody: str
) -> None:
    signer = make_signer()
    certificate = x509.load_der_x509_certificate(signer.chain[0])
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert signer.certificate_sha256 == certificate.fingerprint(signatures.hashes.SHA256())
    assert signer.blocking is (custody == "pkcs11")
    for number in range(24):  # half of all signatures have the higher s until it is put right
        data = bytes([number]) * number
        made = signer.sign(data)
        assert signatures.verifies(public, made, data)
        assert decode_dss_signature(made)[1] <= ORDER // 2
        assert not signatures.verifies(public, made, data + b"!")


def test_a_signer_needs_a_certificate_that_can_sign(custody: str, tmp_path: Path) -> None:
    if custody == "files":
        key = ec.generate_private_key(ec.SECP256R1())
        with pytest.raises(CertificateError, match="needs its certificate"):
            FileSigner(key, ())
        with pytest.raises(CertificateError, match="can't be read"):
            FileSigner(key, (b"no certificate",))
        return
    from ciphermq.custody.pkcs11.address import Address
    from ciphermq.custody.pkcs11.token import Token

    token = Token(Address(str(tmp_path / "none.so"), "t"), None)
    with pytest.raises(CertificateError, match="needs its certificate"):
        TokenSigner(token, b"\x01", ())
    with pytest.raises(CertificateError, match="can't be read"):
        TokenSigner(token, b"\x01", (b"no certificate",))
