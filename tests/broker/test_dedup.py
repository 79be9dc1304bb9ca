from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ciphermq.broker import records
from ciphermq.broker.dedup import Dedup
from ciphermq.broker.records import DedupRecord

WINDOW = 10_000


def test_a_batch_forgotten_and_seen_again_lives_its_whole_window() -> None:
    # A publish refused for want of space is tried again later: the first one's slice must not
    # take the second one's memory with it.
    dedup = Dedup(WINDOW, 1000)
    dedup.add("ann", 1, 7, 1, now=0)
    dedup.forget("ann", 1)
    assert dedup.find("ann", 1) is None
    dedup.forget("ann", 1)
    dedup.add("ann", 1, 7, 2, now=9_000)
    assert dedup.sweep(WINDOW)
    assert dedup.find("ann", 1) == 7
    assert not dedup.sweep(WINDOW + 8_999)
    assert dedup.sweep(WINDOW + 9_000)
    assert dedup.find("ann", 1) is None
    assert dedup.entries == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["ann", "bob"]), st.integers(1, 30), st.integers(0, 3000)),
        max_size=60,
    ),
    st.integers(0, 60),
)
def test_what_is_written_down_again_is_what_was_remembered(
    published: list[tuple[str, int, int]], before: int
) -> None:
    """Records before `before` are lost with their segment; copies make up for them."""
    dedup = Dedup(WINDOW, 1000)
    log: list[tuple[int, str, int, int] | DedupRecord] = []
    now = 0
    for client, batch_id, pause in published:
        now += pause
        while dedup.sweep(now):
            pass
        if dedup.find(client, batch_id) is None:
            log.append((now, client, batch_id, batch_id + 100))
            dedup.add(client, batch_id, batch_id + 100, len(log), now)
    before = min(before, len(log) + 1)
    for piece in dedup.before(before):
        log.append(records.decode_dedup(records.encode(dedup.record(piece))))
        piece.lsn = len(log)
    again = Dedup(WINDOW, 1000)
    for lsn, each in enumerate(log, 1):
        if lsn < before:
            continue
        if isinstance(each, DedupRecord):
            again.replay(each, lsn)
        else:
            at_ms, client, batch_id, fingerprint = each
            again.add(client, batch_id, fingerprint, lsn, at_ms)
    again.recovered(now)
    for client in ("ann", "bob"):
        for batch_id in range(31):
            # A slice is remembered until its last member's window ends, so a little longer is fine.
            expected = dedup.find(client, batch_id)
            assert again.find(client, batch_id) == expected or expected is None
    # And in the end all is forgotten.
    while again.sweep(now + WINDOW):
        pass
    assert again.entries == 0
    assert again.next_deadline() is None
