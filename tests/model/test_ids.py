"""Ids of clients, batches and messages."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.errors import UsageError
from ciphermq.model import ids


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 64, ".", "dead", "deadline", "a.dead.b"])
def test_names_that_are_client_ids(name: str) -> None:
    assert ids.is_client_id(name)
    assert ids.check_client_id(name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 65, "a b", "a/b", "dead.", "dead.x", "ä", "a\n", "a\0", "١"]
)
def test_names_that_are_none(name: str) -> None:
    assert not ids.is_client_id(name)
    with pytest.raises(UsageError, match="can't be a client id"):
        ids.check_client_id(name)


@given(st.integers(0, (1 << 48) - 1))
def test_a_new_batch_id_is_a_uuid_of_version_7(now_ms: int) -> None:
    batch_id = ids.new_batch_id(now_ms)
    as_uuid = uuid.UUID(bytes=batch_id)
    assert as_uuid.version == 7
    assert as_uuid.variant == uuid.RFC_4122
    assert as_uuid.int >> 80 == now_ms
    assert as_uuid.int & 1023 == 0
    assert ids.is_batch_id(batch_id)


def test_batch_ids_differ_and_follow_the_clock() -> None:
    found = [ids.new_batch_id(1_000 + number) for number in range(500)]
    assert found == sorted(found)
    assert len({ids.new_batch_id(7) for _ in range(500)}) == 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(15),
        bytes(16),
        bytes.fromhex("01a3185c5000700080000000000f0000") + b"\0",
        bytes.fromhex("7b1f9c2e4d5a4e8f9b6c1d2e3f405162"),
        bytes.fromhex("01a3185c5000700080000000000f0001"),
        bytes.fromhex("01a3185c5000700080000000000f0200"),
        bytes.fromhex("01a3185c5000600080000000000f0000"),
        bytes.fromhex("01a3185c50007000c0000000000f0000"),
    ],
)
def test_what_is_no_batch_id(data: bytes) -> None:
    assert not ids.is_batch_id(data)


@given(st.integers(0, 1023))
def test_a_message_id_leads_back_to_its_batch(index: int) -> None:
    batch_id = ids.new_batch_id(123_456_789)
    text = ids.message_id(batch_id, index)
    assert uuid.UUID(text).version == 7
    assert ids.parse_message_id(text) == (batch_id, index)


@pytest.mark.parametrize("text", ["", "nonsense", "01a3185c", str(uuid.UUID(int=0))])
def test_what_is_no_message_id(text: str) -> None:
    with pytest.raises(UsageError, match="message id"):
        ids.parse_message_id(text)
