"""What is received into a file is in it once, whatever goes wrong when."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciphermq.cli.outputs import KeptFile
from ciphermq.client import Batch, Inbox
from ciphermq.client.inbox import Arrival
from ciphermq.client.origin import Origin
from ciphermq.client.settling import Settling, Teller
from ciphermq.errors import InboxError
from ciphermq.model import bitmap, body, ids
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.body import Body


class Delivered:
    """A delivery that nobody asks about."""

    lost = False

    def ack(self, bits: Bitmap) -> None: ...
    def nack(self, bits: Bitmap, *, requeue: bool, reason: str, detail: str) -> None: ...
    def release(self, bits: Bitmap) -> None: ...


def admitted(inbox: Inbox, payload: bytes) -> list[Batch]:
    messages = body.decode(Body.of_payloads([payload], 0).data)
    origin = Origin("bob", "alice", ids.new_batch_id(1000), 1, b"d" * 32)
    return inbox.admit([Arrival(messages, origin, bitmap.full(1), Delivered())], Teller(inbox))


def render(batch: Batch) -> bytes:
    return b"".join(batch.payloads)


@pytest.mark.parametrize("when", ["before the commit", "after it"])
def test_an_error_leaves_the_file_as_the_inbox_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path, known = tmp_path / "file", tmp_path / "inbox.db"

    def fails(*_: object) -> None:
        raise InboxError("database or disk is full")

    with Inbox(known) as inbox:
        output = KeptFile(path, render, inbox, known)
        output.write(admitted(inbox, b"first "))
        assert path.read_bytes() == b"first "
        batches = admitted(inbox, b"second ")
        with monkeypatch.context() as patch:
            if when == "after it":
                patch.setattr(Settling, "forget", fails)
            else:
                patch.setattr(inbox, "_mark", fails)
            with pytest.raises(InboxError, match="full"):
                output.write(batches)
        if when == "before the commit":
            assert path.read_bytes() == b"first "
            output.write(batches)
        output.write(admitted(inbox, b"third "))
        output.close()
        assert path.read_bytes() == b"first second third "
        KeptFile(path, render, inbox, known).close()
