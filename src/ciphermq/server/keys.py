"""The key directory: takes each client's own key record, and gives it to whoever asks.

Records are verified as they come in, so that what is plainly wrong is told to its owner at once.
Nobody has to trust that: whoever fetches a record verifies it again.
"""

from __future__ import annotations

from collections.abc import Callable

from ciphermq import limits
from ciphermq.catalog.face import Catalog
from ciphermq.directory import records
from ciphermq.engines.face import Engine
from ciphermq.errors import (
    AccessRefused,
    BadRequest,
    KeyRecordError,
    KeyRecordRolledBack,
    KeyRecordSwapped,
    NotFound,
    PreconditionFailed,
    ReceiverFault,
    Unavailable,
)
from ciphermq.model.ids import is_client_id
from ciphermq.model.topology import QueueSpec
from ciphermq.pki.verify import ChainVerifier
from ciphermq.telemetry import get_logger

_log = get_logger("server")


class KeyDirectory:
    """Key records and the revocation list, for clients."""

    def __init__(
        self, engine: Engine, catalog: Catalog, verifier: Callable[[], ChainVerifier]
    ) -> None:
        """`verifier` is asked for the one that counts now."""
        self._engine = engine
        self._catalog = catalog
        self._verifier = verifier

    @property
    def crl_number(self) -> int:
        """The newest revocation list's number."""
        return self._verifier().crl_number

    def crl(self) -> bytes:
        """The newest revocation list (DER); `NotFound` without any."""
        newest = max(self._verifier().revocation_lists, key=lambda crl: crl.number, default=None)
        if newest is None:
            raise NotFound("this broker has no revocation list")
        return newest.der

    async def put(self, client: str, record: bytes, now_ms: int) -> None:
        """Take `client`'s own record, once it proves to be that; make its inbox.

        Raises `Refused` kinds: `AccessRefused` for another's record, `PreconditionFailed` for an
        old version or a queue in the inbox's place, `BadRequest` for what nobody would accept.
        """
        if len(record) > limits.MAX_KEY_RECORD:
            raise BadRequest(
                f"a key record of {len(record)} bytes; {limits.MAX_KEY_RECORD} at most"
            )
        try:
            verified = records.verify(
                record, expected_client=client, verifier=self._verifier(), now_ms=now_ms
            )
        except KeyRecordSwapped as error:
            raise AccessRefused(
                f"{client!r} can only register a key of its own, not this one: {error}"
            ) from error
        except KeyRecordError as error:
            raise BadRequest(f"the key record was not accepted: {error}") from error
        except ReceiverFault as error:
            raise Unavailable(f"the broker can't judge key records now: {error}") from error
        # The inbox first: a key without an inbox would have senders seal for nowhere.
        await self._make_inbox(client)
        try:
            await self._catalog.put_key(client, verified.version, record)
        except KeyRecordRolledBack as error:
            raise PreconditionFailed(f"the key record was not accepted: {error}") from error
        _log.info("key registered", client=client, version=verified.version)

    async def registered(self, client: str) -> bool:
        """Whether a client of that name has ever registered a key, so that others seal for it."""
        return await self._record(client) is not None

    async def get(self, client: str) -> bytes:
        """The newest record of `client`; `NotFound` if it never registered one."""
        record = await self._record(client)
        if record is None:
            raise NotFound(f"no client {client[: limits.MAX_CLIENT_ID]!r} has registered a key")
        return record

    async def _record(self, client: str) -> bytes | None:
        return await self._catalog.get_key(client) if is_client_id(client) else None

    async def _make_inbox(self, client: str) -> None:
        info = self._engine.queue(client)
        if info is not None and info.spec.inbox:
            return
        if info is not None:
            raise PreconditionFailed(
                f"the queue {client!r}, declared by {info.spec.owner or 'an administrator'!r}, "
                "stands where your inbox must be: have its owner or an administrator delete it"
            )
        await self._engine.declare_queue(QueueSpec(name=client, owner=client, inbox=True))
