"""What every catalog must do. An implementation's tests subclass `CatalogConformance` and give
`open_catalog`, which opens the same stored catalog each time it is called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest

from ciphermq.catalog import Catalog, OnexPublication, Publication
from ciphermq.errors import CatalogError, KeyRecordRolledBack
from ciphermq.model.ids import new_batch_id
from ciphermq.model.onex import internal_id

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000


class Opener(Protocol):
    """Opens the stored catalog; options as of the implementation, these among them."""

    def __call__(
        self,
        *,
        metadata_days: float = 30.0,
        clock: Callable[[], float] = lambda: NOW_MS / 1000,
        max_pending: int = 1000,
    ) -> AbstractAsyncContextManager[Catalog]: ...


def publication(batch_id: bytes, client: str = "sender", at_ms: int = NOW_MS) -> Publication:
    return Publication(batch_id, client, "news", "a.b", 10, 2048, at_ms)


def message(message_id: str, client: str = "sender", at_ms: int = NOW_MS) -> OnexPublication:
    return OnexPublication(message_id, client, "news", "a.b", at_ms)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what the catalog does behind the path."""
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.02)


class CatalogConformance:
    """The suite."""

    async def test_a_key_is_kept_and_found(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            assert await catalog.get_key("nobody") is None
            await catalog.put_key("b", 1, b"first")
            await catalog.put_key("a", 7, b"other")
            assert await catalog.get_key("b") == b"first"
            assert [(entry.client, entry.version) for entry in await catalog.keys()] == [
                ("a", 7),
                ("b", 1),
            ]
            assert {entry.stored_ms for entry in await catalog.keys()} == {NOW_MS}

    async def test_keys_survive_a_restart(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            await catalog.put_key("a", 2**64 - 1, b"record" * 500)
        async with open_catalog() as catalog:
            assert await catalog.get_key("a") == b"record" * 500
            assert [entry.version for entry in await catalog.keys()] == [2**64 - 1]

    async def test_a_newer_key_takes_the_place_of_an_older_one(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            await catalog.put_key("a", 1, b"first")
            await catalog.put_key("a", 5, b"second")
            assert await catalog.get_key("a") == b"second"
            assert len(await catalog.keys()) == 1

    async def test_an_older_key_does_not(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            await catalog.put_key("a", 5, b"second")
            with pytest.raises(KeyRecordRolledBack, match="version 4"):
                await catalog.put_key("a", 4, b"first")
            assert await catalog.get_key("a") == b"second"

    async def test_the_same_again_is_no_error(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            await catalog.put_key("a", 5, b"same")
            await catalog.put_key("a", 5, b"same")
            with pytest.raises(KeyRecordRolledBack):
                await catalog.put_key("a", 5, b"other")
            assert await catalog.get_key("a") == b"same"

    async def test_puts_at_once_end_with_the_highest(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            puts = [catalog.put_key("a", version, b"%d" % version) for version in (3, 9, 5)]
            await asyncio.gather(*puts, return_exceptions=True)
            assert await catalog.get_key("a") == b"9"

    async def test_a_batch_is_traced_from_end_to_end(self, open_catalog: Opener) -> None:
        batch_id = new_batch_id(NOW_MS)
        async with open_catalog() as catalog:
            catalog.note_published(publication(batch_id))
            catalog.note_event("published", batch_id, 10, NOW_MS)
            catalog.note_event("delivered", batch_id, 10, NOW_MS + 5)
            catalog.note_event("delivered", batch_id, 3, NOW_MS + 50)
            catalog.note_event("acked", batch_id, 9, NOW_MS + 60)
            catalog.note_event("dead", batch_id, 1, NOW_MS + 70)
            catalog.note_event("something later", batch_id, 1, NOW_MS + 80)
            assert await catalog.trace(batch_id) == {
                "batch_id": batch_id,
                "client": "sender",
                "exchange": "news",
                "routing_key": "a.b",
                "messages": 10,
                "size": 2048,
                "published_ms": NOW_MS,
                "delivered": 13,
                "first_delivered_ms": NOW_MS + 5,
                "last_delivered_ms": NOW_MS + 50,
                "acked": 9,
                "first_acked_ms": NOW_MS + 60,
                "last_acked_ms": NOW_MS + 60,
                "dead": 1,
                "first_dead_ms": NOW_MS + 70,
                "last_dead_ms": NOW_MS + 70,
                "conflicts": 0,
            }

    async def test_news_of_a_batch_written_before_is_added(self, open_catalog: Opener) -> None:
        batch_id = new_batch_id(NOW_MS)
        async with open_catalog() as catalog:
            catalog.note_published(publication(batch_id))
            catalog.note_event("delivered", batch_id, 4, NOW_MS + 1)
        async with open_catalog() as catalog:
            catalog.note_event("delivered", batch_id, 6, NOW_MS + 2)
            catalog.note_event("acked", batch_id, 10, NOW_MS + 3)
            found = await catalog.trace(batch_id)
        assert found is not None
        assert (found["client"], found["delivered"], found["acked"]) == ("sender", 10, 10)
        assert (found["first_delivered_ms"], found["last_delivered_ms"]) == (
            NOW_MS + 1,
            NOW_MS + 2,
        )

    async def test_an_unknown_batch(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            assert await catalog.trace(new_batch_id(NOW_MS)) is None

    @pytest.mark.parametrize("apart", [False, True])
    async def test_the_first_to_use_a_batch_id_stands(
        self, open_catalog: Opener, apart: bool
    ) -> None:
        batch_id = new_batch_id(NOW_MS)
        async with open_catalog() as catalog:
            catalog.note_published(publication(batch_id, "honest"))
            if apart:
                await catalog.trace(batch_id)
            catalog.note_published(publication(batch_id, "liar"))
            catalog.note_published(publication(batch_id, "honest"))
            found = await catalog.trace(batch_id)
        assert found is not None
        assert found["client"] == "honest"
        assert found["conflicts"] > 0

    async def test_too_much_metadata_is_dropped_and_counted(self, open_catalog: Opener) -> None:
        ids = [new_batch_id(NOW_MS) for _ in range(30)]
        async with open_catalog(max_pending=10) as catalog:
            for batch_id in ids:  # no await: the catalog's thread may take some all the same
                catalog.note_published(publication(batch_id))
            dropped = catalog.stats()["metadata_rows_dropped"]
            kept = [batch_id for batch_id in ids if await catalog.trace(batch_id)]
        assert isinstance(dropped, int)
        assert len(kept) + dropped == len(ids)
        assert dropped > 0
        assert kept[:10] == ids[:10]

    async def test_metadata_is_written_without_being_asked_for(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            catalog.note_published(publication(new_batch_id(NOW_MS)))

            async def written() -> bool:
                return catalog.stats()["metadata_rows_written"] == 1

            await eventually(written)
            assert catalog.stats()["metadata_rows_waiting"] == 0

    async def test_metadata_that_makes_no_sense_harms_nothing_else(
        self, open_catalog: Opener
    ) -> None:
        async with open_catalog() as catalog:
            catalog.note_published(publication(new_batch_id(NOW_MS), at_ms=2**70))
            assert await catalog.trace(new_batch_id(NOW_MS)) is None
            await catalog.put_key("a", 1, b"record")
            assert await catalog.get_key("a") == b"record"
            assert catalog.stats()["metadata_rows_failed"] == 1

    async def test_old_metadata_is_pruned(self, open_catalog: Opener) -> None:
        old, fresh = new_batch_id(NOW_MS), new_batch_id(NOW_MS)
        async with open_catalog(metadata_days=1) as catalog:
            catalog.note_published(publication(old))
            catalog.note_published(publication(fresh))
            catalog.note_event("delivered", fresh, 10, NOW_MS + DAY_MS)
        later = (NOW_MS + 1.5 * DAY_MS) / 1000
        async with open_catalog(metadata_days=1, clock=lambda: later) as catalog:

            async def pruned() -> bool:
                return await catalog.trace(old) is None

            await eventually(pruned)
            assert await catalog.trace(fresh) is not None
            assert catalog.stats()["metadata_rows_pruned"] == 1

    # --- 1.x ------------------------------------------------------------------------------------

    async def test_a_1x_key_is_kept_and_found(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            assert await catalog.get_onex_key("a") is None
            await catalog.put_onex_key("a", bytes(range(32)))
            await catalog.put_onex_key("b", b"b" * 32)
            await catalog.put_key("a", 1, b"a record beside it")
            assert await catalog.get_onex_key("a") == bytes(range(32))
        async with open_catalog() as catalog:
            assert await catalog.get_onex_key("a") == bytes(range(32))
            assert await catalog.get_onex_key("b") == b"b" * 32
            assert await catalog.get_key("a") == b"a record beside it"
            assert [entry.client for entry in await catalog.keys()] == ["a"]

    async def test_a_1x_key_takes_the_place_of_the_one_before(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            await catalog.put_onex_key("a", b"1" * 32)
            await catalog.put_onex_key("a", b"2" * 32)
            await catalog.put_onex_key("a", b"1" * 32)
            assert await catalog.get_onex_key("a") == b"1" * 32

    @pytest.mark.parametrize(
        "message_id", ["sender_1-1a2b-r", "Grüße/№", "back\\slash\\x41", "😀'\""]
    )
    async def test_a_1x_message_is_traced_from_end_to_end(
        self, open_catalog: Opener, message_id: str
    ) -> None:
        name = internal_id(message_id)
        async with open_catalog() as catalog:
            assert await catalog.trace_message(message_id) is None
            catalog.note_message(message(message_id))
            catalog.note_event("published", name, 1, NOW_MS)
            expected = {
                "message_id": message_id,
                "client": "sender",
                "exchange": "news",
                "routing_key": "a.b",
                "sent_time": "2027-01-15T08:00:00.000+00:00",
                "delivered_time": None,
                "acknowledged_time": None,
            }
            assert await catalog.trace_message(message_id) == expected
            catalog.note_event("delivered", name, 1, NOW_MS + 5)
            catalog.note_event("delivered", name, 1, NOW_MS + 50)
            expected["delivered_time"] = "2027-01-15T08:00:00.005+00:00"
            assert await catalog.trace_message(message_id) == expected
        async with open_catalog() as catalog:
            catalog.note_event("delivered", name, 1, NOW_MS + 500)
            catalog.note_event("acked", name, 1, NOW_MS + 60)
            catalog.note_event("dead", name, 1, NOW_MS + 70)
            expected["acknowledged_time"] = "2027-01-15T08:00:00.060+00:00"
            assert await catalog.trace_message(message_id) == expected
            assert await catalog.trace(name) is None

    async def test_a_delivery_may_be_noted_before_the_message(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            catalog.note_event("delivered", internal_id("a"), 1, NOW_MS + 5)
            assert await catalog.trace_message("a") is None
            catalog.note_message(message("a"))
            found = await catalog.trace_message("a")
        assert found is not None
        assert found["delivered_time"] == "2027-01-15T08:00:00.005+00:00"

    @pytest.mark.parametrize("apart", [False, True])
    async def test_the_first_to_use_a_message_id_stands(
        self, open_catalog: Opener, apart: bool
    ) -> None:
        async with open_catalog() as catalog:
            catalog.note_message(message("a", "first"))
            if apart:
                await catalog.trace_message("a")
            catalog.note_message(message("a", "second"))
            found = await catalog.trace_message("a")
        assert found is not None
        assert found["client"] == "first"

    async def test_many_1x_messages_at_once(self, open_catalog: Opener) -> None:
        names = [f"m-{number}" for number in range(900)]
        async with open_catalog() as catalog:
            for name in names:
                catalog.note_message(message(name))
            for name in names[::2]:
                catalog.note_event("delivered", internal_id(name), 1, NOW_MS)
            for name in names[::3]:
                catalog.note_event("acked", internal_id(name), 1, NOW_MS)
            for number in (0, 1, 2, 3, 898, 899):
                found = await catalog.trace_message(names[number])
                assert found is not None
                assert (found["delivered_time"] is not None) == (number % 2 == 0)
                assert (found["acknowledged_time"] is not None) == (number % 3 == 0)
            assert catalog.stats()["metadata_rows_waiting"] == 0
            assert catalog.stats()["metadata_rows_written"] == 900

    async def test_no_metadata_where_none_is_wanted(self, open_catalog: Opener) -> None:
        batch_id = new_batch_id(NOW_MS)
        async with open_catalog(metadata_days=0) as catalog:
            catalog.note_published(publication(batch_id))
            catalog.note_event("acked", batch_id, 10, NOW_MS)
            catalog.note_message(message("a"))
            assert await catalog.trace(batch_id) is None
            assert await catalog.trace_message("a") is None

    async def test_a_closed_catalog_says_so(self, open_catalog: Opener) -> None:
        async with open_catalog() as catalog:
            await catalog.stop()
            await catalog.stop()
            with pytest.raises(CatalogError, match="not open"):
                await catalog.get_key("a")
