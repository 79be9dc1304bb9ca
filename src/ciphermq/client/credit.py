"""How many messages a receiver asks the broker for: decisions only.

Credit counts messages, memory counts bytes, and a message may have one byte or a million. So a
receiver begins with a little credit, learns from what comes how large messages are, and from
then on keeps as many in hand or promised as its bytes allow, at most its prefetch.
"""

from __future__ import annotations

from ciphermq import limits
from ciphermq.errors import RemoteProtocolError

_KEPT: float = 7 / 8
"""Share of the old average in the new one: a few batches decide."""


class Credit:
    """One consumer's account with the broker."""

    def __init__(self, prefetch: int, budget: int = limits.PREFETCH_BYTES) -> None:
        """`prefetch` messages and about `budget` bytes in hand, at most."""
        self._prefetch = prefetch
        self._budget = budget
        self._average = 0.0
        self.promised = 0
        """Given to the broker and not used yet. Below zero when the last batch had more."""
        self.in_hand = 0
        """Messages that came and are not settled."""

    def successor(self) -> Credit:
        """The account of the same receiver's consumer on the next connection: it knows already
        how large messages are."""
        credit = Credit(self._prefetch, self._budget)
        credit._average = self._average
        return credit

    def open(self) -> int:
        """The credit to begin with."""
        self.promised = self._target()
        return self.promised

    def delivered(self, messages: int, size: int) -> None:
        """A delivery of so many live messages came, with a sealed batch of `size` bytes.

        Raises `RemoteProtocolError` when the promise was used up before it."""
        if self.promised <= 0:
            raise RemoteProtocolError(
                f"the broker delivered {messages} messages more than it was given credit for"
            )
        self.promised -= messages
        self.in_hand += messages
        each = size / max(1, messages)
        self._average = self._average * _KEPT + each * (1 - _KEPT) if self._average else each

    def settled(self, messages: int) -> int:
        """So many are settled; the credit to give now, mostly none."""
        self.in_hand -= messages
        return self.top_up()

    def top_up(self) -> int:
        """The credit to give now: all that is missing, once that is half of what there may be."""
        target = self._target()
        # A batch may overdraw the promise. The debt counts too: the broker pays it off first.
        missing = target - self.promised - self.in_hand
        if missing * 2 < target:
            return 0
        self.promised += missing
        return missing

    def _target(self) -> int:
        if not self._average:
            return min(self._prefetch, limits.FIRST_CREDIT)
        return max(1, min(self._prefetch, int(self._budget / self._average)))
