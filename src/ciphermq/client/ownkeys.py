"""An identity's own sealing keys: the one in use, those it replaced, and the record of it.

::

    sealing/<key id>.key    a private key each, as `ciphermq.custody.files` spells it, or where on a
                            token it is
    sealing/keys.json       which is current, the last record's version, until when each may be met
    sealing/record.pem      the newest key record, signed

All processes of an identity share these under one lock. What a record promises is on disk before
the record leaves: a version is never used twice, and no key is dropped while batches sealed to
it may still come.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from ciphermq import limits
from ciphermq.custody import disk, keys, passphrase
from ciphermq.custody.armour import armour, strip_armour
from ciphermq.custody.face import Opener, Signer
from ciphermq.custody.files import FileOpener, decode_key, encode_key, is_elsewhere
from ciphermq.custody.keyring import Keyring
from ciphermq.directory import records
from ciphermq.errors import IdentityError, KeyRecordMalformed
from ciphermq.model import keyrecord
from ciphermq.model.suites import Suite

if TYPE_CHECKING:
    # Loaded where a token is: python-pkcs11 is no concern of who has none.
    from ciphermq.custody.pkcs11.opener import TokenOpener
    from ciphermq.custody.pkcs11.token import Token

STATE: Final = "keys.json"
RECORD: Final = "record.pem"
KEY_SUFFIX: Final = ".key"
_LOCK: Final = ".lock"
_RECORD_LABEL: Final = "CIPHERMQ KEY RECORD"
_FORMAT: Final = 1
_KEEP_MS: Final = (limits.MAX_MESSAGE_AGE + limits.DAY) * 1000
"""How long after its last record's end a key is kept: a batch may be sealed in the last second,
and be taken `MAX_MESSAGE_AGE` later."""

_KeyId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class State(msgspec.Struct, forbid_unknown_fields=True):
    """What is known of the keys without opening any."""

    current: _KeyId
    """Key id of the one in use."""
    version: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Of the last record made."""
    ends_ms: dict[_KeyId, int] = {}
    """Latest end of any record made for the key; 0: none was made."""
    format: int = _FORMAT


class OwnKeys:
    """The sealing keys in `directory`, open."""

    def __init__(
        self,
        directory: Path,
        secret: bytes | None,
        *,
        token: Token | None = None,
        on_token: bool = False,
    ) -> None:
        """`secret` opens the key files, where they are encrypted; `token` holds the keys that are
        not in files, and new ones where they are made `on_token`. It is not called: it may be away.
        Raises `IdentityError`."""
        self.directory = directory
        self._secret = secret
        self._token = token
        self._on_token = on_token
        self.keyring = Keyring()
        self._current: Opener
        self._load()

    @classmethod
    def create(cls, directory: Path, suite: Suite, secret: bytes | None) -> OwnKeys:
        """Make the directory with one key of `suite`."""
        disk.make_private_directory(directory)
        opener = _write_new_key(directory, suite, secret)
        _write_state(directory, State(opener.key_id.hex(), ends_ms={opener.key_id.hex(): 0}))
        return cls(directory, secret)

    @classmethod
    def create_on_token(cls, directory: Path, opener: TokenOpener) -> OwnKeys:
        """Make the directory for a key that is on a token."""
        disk.make_private_directory(directory)
        _write_reference(directory, opener)
        _write_state(directory, State(opener.key_id.hex(), ends_ms={opener.key_id.hex(): 0}))
        return cls(directory, None, token=opener.token, on_token=True)

    @property
    def current(self) -> Opener:
        """The key that new batches should be sealed to."""
        return self._current

    def reload(self) -> None:
        """Take in the keys that another process of this identity has made since."""
        self._load()

    def lost(self) -> list[str]:
        """Key ids of keys that batches may still name, and whose files are gone."""
        known = read_state(self.directory).ends_ms
        return [key_id for key_id in known if bytes.fromhex(key_id) not in self.keyring]

    def rotate(self, suite: Suite | None = None) -> Opener:
        """Take a fresh key into use, of `suite` or like the former; the former is kept."""
        with self._locked():
            state = read_state(self.directory)
            opener = self._make(suite or self._current.suite)
            state.current = opener.key_id.hex()
            state.ends_ms[state.current] = 0
            _write_state(self.directory, state)
        self.keyring.add(opener)
        self._current = opener
        return opener

    def _make(self, suite: Suite) -> Opener:
        if self._token is None or not self._on_token:
            return _write_new_key(self.directory, suite, self._secret)
        from ciphermq.custody.pkcs11.opener import TokenOpener

        opener = TokenOpener.make(self._token)
        _write_reference(self.directory, opener)
        return opener

    def prune(self, now_ms: int) -> list[bytes]:
        """Delete the former keys that no batch can name any more; their key ids.

        What is on a token stays there: other uses of it are not known here."""
        with self._locked():
            state = read_state(self.directory)
            gone = [
                key_id
                for key_id, end_ms in state.ends_ms.items()
                if key_id != state.current and end_ms + _KEEP_MS < now_ms
            ]
            for key_id in gone:
                (self.directory / f"{key_id}{KEY_SUFFIX}").unlink(missing_ok=True)
                del state.ends_ms[key_id]
                self.keyring.remove(bytes.fromhex(key_id))
            if gone:
                _write_state(self.directory, state)
        return [bytes.fromhex(key_id) for key_id in gone]

    def record(self, signer: Signer, client: str, now_ms: int, not_after_ms: int) -> bytes:
        """The record to register: the last one while half of its life is left, else a new one.

        A new one counts until `not_after_ms`.
        """
        last = read_record(self.directory)
        if last is not None and self._still_good(last, signer, client, now_ms):
            return last
        return self.new_record(signer, client, now_ms, not_after_ms)

    def new_record(self, signer: Signer, client: str, now_ms: int, not_after_ms: int) -> bytes:
        """A new record of the current key, of a version above all before it."""
        with self._locked():
            # Another process may have taken a new key into use since this one loaded.
            self._load()
            state = read_state(self.directory)
            state.version = records.next_version(state.version, now_ms)
            ends = state.ends_ms
            ends[state.current] = max(ends.get(state.current, 0), not_after_ms)
            record = records.make(
                signer,
                client=client,
                suite=self._current.suite,
                public_key=self._current.public_key,
                version=state.version,
                not_before_ms=now_ms,
                not_after_ms=not_after_ms,
            )
            _write_state(self.directory, state)
            text = armour(_RECORD_LABEL, record)
            disk.write_file(self.directory / RECORD, text, replace=True)
        return record

    def _still_good(self, record: bytes, signer: Signer, client: str, now_ms: int) -> bool:
        try:
            said = keyrecord.parse(record).record
        except KeyRecordMalformed:
            return False
        half = (said.not_before_ms + said.not_after_ms) // 2
        return (
            said.client == client
            and said.key_id == self._current.key_id
            and said.certificate_sha256 == signer.certificate_sha256
            and said.not_before_ms <= now_ms <= half
        )

    def _load(self) -> None:
        for path in sorted(self.directory.glob(f"*{KEY_SUFFIX}")):
            if path.stem not in {opener.key_id.hex() for opener in self.keyring}:
                self.keyring.add(self._read(path))
        current = bytes.fromhex(read_state(self.directory).current)
        if current not in self.keyring:
            raise IdentityError(
                f"the private key {self.directory / current.hex()}{KEY_SUFFIX} is missing: restore "
                "it from a backup, or what was sealed to it can't be read"
            )
        self._current = self.keyring.find(current)

    def _read(self, path: Path) -> Opener:
        data = disk.read_private(path, limit=limits.MAX_KEY_FILE)
        if not is_elsewhere(data):
            return decode_key(data, str(path), self._secret)
        from ciphermq.custody.pkcs11 import reference

        return reference.decode(data, str(path), self._token)

    def _locked(self) -> AbstractContextManager[None]:
        return disk.locked(self.directory / _LOCK)


def read_state(directory: Path) -> State:
    """The state of the keys in `directory`; `IdentityError` when it can't be used."""
    path = directory / STATE
    try:
        state = msgspec.json.decode(disk.read_private(path, limit=limits.MAX_KEY_FILE), type=State)
    except msgspec.DecodeError as error:
        raise IdentityError(f"{path} is damaged ({error}): restore it from a backup") from error
    if state.format != _FORMAT:
        raise IdentityError(f"{path} has format {state.format}: upgrade this program")
    return state


def read_record(directory: Path) -> bytes | None:
    """The newest record made of the keys in `directory`; None when none was made."""
    path = directory / RECORD
    if not path.exists():
        return None
    try:
        text = disk.read_private(path, limit=limits.MAX_KEY_FILE)
        return strip_armour(_RECORD_LABEL, text)
    except ValueError as error:
        raise IdentityError(f"{path}: {error}; remove it, a new one is made") from error


def _write_new_key(directory: Path, suite: Suite, secret: bytes | None) -> FileOpener:
    private_key = keys.generate(suite)
    opener = FileOpener(suite, private_key)
    # The secret is 256 random bits: stretching it would only make each start slower.
    text = encode_key(suite, private_key, secret, passphrase.CHEAP)
    disk.write_file(directory / f"{opener.key_id.hex()}{KEY_SUFFIX}", text)
    return opener


def _write_reference(directory: Path, opener: TokenOpener) -> None:
    from ciphermq.custody.pkcs11 import reference

    disk.write_file(directory / f"{opener.key_id.hex()}{KEY_SUFFIX}", reference.encode(opener))


def _write_state(directory: Path, state: State) -> None:
    disk.write_file(directory / STATE, msgspec.json.encode(state) + b"\n", replace=True)
