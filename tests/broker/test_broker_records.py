from __future__ import annotations

import re
from pathlib import Path

from ciphermq.broker import records
from ciphermq.broker.records import Kind
from ciphermq.model.topology import Binding, DeadInfo, ExchangeSpec, QueueSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "records.md"


def test_the_page_lists_every_kind() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(kind, kind.name) for kind in Kind]


def test_records_on_disk_keep_their_bytes() -> None:
    """A change here makes the journals of running brokers unreadable: give it a new kind."""
    encode = records.encode
    death = DeadInfo("q", "no", "why", 5)
    assert encode(records.AckRecord(2, 3, b"\x05")).hex() == "930203c40105"
    assert encode(records.TryRecord(2, 3, b"")).hex() == "930203c400"
    assert encode(records.PurgeRecord(2, [(3, b"\x01")])).hex() == "9202919203c40101"
    assert encode(records.RedriveRecord(2, 3, b"", 4, 5)).hex() == "950203c4000405"
    assert encode(records.DedupRecord(5, {"a": b"b"})).hex() == "920581a161c40162"
    assert (
        encode(records.BatchRecord("s", b"i", b"f", 1, 0, 2, "k", [7])).hex()
        == "98a173c40169c40166010002a16b9107"
    )
    assert (
        encode(records.DeadRecord(2, 3, b"", [4], death)).hex()
        == "950203c400910484a57175657565a171a6726561736f6ea26e6f"
        "a664657461696ca3776879a561745f6d7305"
    )
    entry = records.CopiedEntry(2, 3, b"", 5, {1: b"\x01"}, None)
    assert (
        encode(records.CopyRecord(1, "s", b"i", 1, 0, 2, "k", [entry])).hex()
        == "9801a173c40169010002a16b91960203c4000581" + "01c40101c0"
    )
    snapshot = records.Snapshot(
        b"k", [(7, QueueSpec("q", ttl_ms=5))], [ExchangeSpec("e")], [Binding("e", "q", "k")]
    )
    assert records.decode_snapshot(encode(snapshot)) == snapshot
