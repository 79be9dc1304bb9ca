"""How ``ciphermq send`` sends to a client of CipherMQ 1.x, whose key a person has pinned."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ciphermq.cli.lines import Lines, read_whole
from ciphermq.errors import UsageError

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

    async def at_once(self, client: Client) -> None:
        """Send all, each confirmed; raises what keeps one from being sent."""
        if self._plan.whole:
            whole = await self._source.reading(lambda: read_whole(self._source))
            await self._post(client, [whole])
            return
        lines = Lines(self._source)
        while found := await self._source.reading(lines.read):
            if self._advance is not None:
                self._advance(lines.offset, self._source.size)
            # The end of the line is not the message's: receivers of 1.x put one there.
            await self._post(client, [line.rstrip(b"\r\n") for line in found])

    async def _post(self, client: Client, payloads: list[bytes]) -> None:
        """Send these in order, and wait for them; raises the first error."""
        plan = self._plan
        (to,) = plan.to
        # By default into the receiver's own queue.
        key = plan.queue or (plan.key if plan.exchange else plan.key or None)
        answers: list[asyncio.Future[str]] = []
        try:
            for payload in payloads:
                self.total += 1
                _check_is_text(payload, self.total)
                answer = await client.onex.post(
                    to, payload, exchange=plan.exchange, routing_key=key
                )
                answer.add_done_callback(self._landed)
                answers.append(answer)
        finally:
            ended = await asyncio.gather(*answers, return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    def _landed(self, answer: asyncio.Future[str]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self.confirmed += 1


def _check_is_text(payload: bytes, number: int) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"message {number} is not UTF-8 text, and receivers of CipherMQ 1.x show nothing else"
        ) from None
