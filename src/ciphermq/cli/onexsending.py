"""How ``ciphermq send`` sends to a client of CipherMQ 1.x, whose key a person has pinned."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ciphermq.cli.lines import Lines, read_whole
from ciphermq.errors import Unroutable, UsageError

if TYPE_CHECKING:
    from ciphermq.cli.inputs import Input
    from ciphermq.cli.send import Plan
    from ciphermq.cli.sending import Advance
    from ciphermq.client import Client, Identity


def goes_as_onex(identity: Identity, plan: Plan) -> bool:
    """Whether this is sealed as 1.x does it: to one whose 1.x key was pinned, and who was never
    seen with a key of `cmq/2`. The broker has no say in it.

    `UsageError` for what 1.x can't do, or for receivers of both kinds at once."""
    pins, known = identity.trust.onex_pins(), identity.trust.clients()
    old = [name for name in plan.to if name in pins and name not in known]
    if not old:
        return False
    if len(plan.to) > 1:
        raise UsageError(
            f"{', '.join(old)}: a message for a client of CipherMQ 1.x has one receiver; send to "
            "each by itself"
        )
    if plan.queue is not None and (plan.exchange or plan.key):
        raise UsageError("messages go to a queue, or to an exchange with a key, not to both")
    wanted = {
        "--header": plan.headers,
        "--content-type": plan.content_type,
        "--ttl": plan.ttl,
        "--outbox": plan.outbox,
    }
    for option, value in wanted.items():
        if value:
            raise UsageError(
                f"{option}: {old[0]} is a client of CipherMQ 1.x (its pinned key says so), and "
                "messages of 1.x have no such thing"
            )
    return True


class OnexSending:
    """One run, counted as `ciphermq.cli.sending.Sending` does it."""

    def __init__(self, plan: Plan, source: Input, advance: Advance | None) -> None:
        self.confirmed = 0
        self.total = 0
        self._plan = plan
        self._source = source
        self._advance = advance
        self._key = plan.queue or plan.key or ("" if plan.exchange else None)
        """Where it goes; None: that is to be found."""

    async def at_once(self, client: Client) -> None:
        """Send all, each confirmed; raises what keeps one from being sent."""
        if self._plan.whole:
            whole = await self._source.reading(lambda: read_whole(self._source))
            await self._send(client, [whole])
            return
        lines = Lines(self._source)
        while found := await self._source.reading(lines.read):
            if self._advance is not None:
                self._advance(lines.offset, self._source.size)
            # The end of the line is not the message's: receivers of 1.x put one there.
            await self._send(
                client, [line.removesuffix(b"\n").removesuffix(b"\r") for line in found]
            )

    async def _send(self, client: Client, payloads: list[bytes]) -> None:
        """Send these in order, and wait for them; raises the first error."""
        if self._key is None:
            first, *payloads = payloads
            self._key = await self._find_queue(client, first)
        answers: list[asyncio.Future[str]] = []
        try:
            for payload in payloads:
                answer = await self._post(client, payload, self._key)
                answers.append(answer)
            await asyncio.gather(*answers)
        finally:
            # Who waits no longer takes back what has not been sent yet.
            for answer in answers:
                answer.cancel()

    async def _find_queue(self, client: Client, payload: bytes) -> str:
        """The receiver's queue, by where its first message can go: its own name's, or the one that
        clients of 1.x name after it."""
        (to,) = self._plan.to
        try:
            await (await self._post(client, payload, to))
            return to
        except Unroutable as error:
            usual = f"{to}_queue"
            try:
                await (await self._post(client, payload, usual))
            except Unroutable:
                raise Unroutable(
                    f"there is no queue {to!r} and no queue {usual!r}: say --queue, or the "
                    "--exchange and --key that its receiver has bound"
                ) from error
            return usual

    async def _post(self, client: Client, payload: bytes, key: str) -> asyncio.Future[str]:
        (to,) = self._plan.to
        _check_is_text(payload)
        answer = await client.onex.post(to, payload, exchange=self._plan.exchange, routing_key=key)
        answer.add_done_callback(self._landed)
        return answer

    def _landed(self, answer: asyncio.Future[str]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self.confirmed += 1
            self.total = self.confirmed


def _check_is_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"{payload[:40]!r} is not UTF-8 text, and receivers of CipherMQ 1.x show nothing else"
        ) from None
