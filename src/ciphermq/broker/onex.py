"""Messages of CipherMQ 1.x by their ids: their senders may ask for one to be given again.

Sealed batches need no such index, since nobody asks for one by its id.
"""

from __future__ import annotations

from ciphermq.broker.entries import Batch
from ciphermq.errors import AccessRefused, NotFound


class OnexIndex:
    """All that are in any queue. An id is its sender's choice, so several may have chosen one."""

    def __init__(self) -> None:
        self._batches: dict[int, Batch | list[Batch]] = {}

    def add(self, batch: Batch) -> None:
        """A message has come."""
        known = self._batches.get(batch.id)
        if known is None:
            self._batches[batch.id] = batch
        elif isinstance(known, list):
            known.append(batch)
        else:
            self._batches[batch.id] = [known, batch]

    def drop(self, batch: Batch) -> None:
        """A message is in no queue any more."""
        left = [each for each in self._all(batch.id) if each is not batch]
        if left:
            self._batches[batch.id] = left
        else:
            self._batches.pop(batch.id, None)

    def find(self, sender: str, batch_id: int) -> Batch:
        """The sender's latest; `AccessRefused` if it is only others', `NotFound` if nobody's."""
        known = self._all(batch_id)
        if not known:
            raise NotFound("no message with this id waits in any queue")
        mine = [batch for batch in known if batch.sender == sender]
        if not mine:
            raise AccessRefused("a message can only be sent again by its sender")
        return mine[-1]

    def _all(self, batch_id: int) -> list[Batch]:
        known = self._batches.get(batch_id, [])
        return known if isinstance(known, list) else [known]
