"""Well-formed batches without any cryptography, for tests of whoever only passes them on."""

from __future__ import annotations

from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.model import envelope
from ciphermq.model.envelope import MAX_TIME_MS, Header, ReceiverRef
from ciphermq.model.ids import is_client_id
from ciphermq.model.suites import Suite

ALPHABET = "ABCXYZabcxyz0189._-"

client_ids = st.text(ALPHABET, min_size=1, max_size=limits.MAX_CLIENT_ID).filter(is_client_id)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=limits.MAX_NAME
).filter(lambda name: len(name.encode()) <= limits.MAX_NAME)
hashes = st.binary(min_size=32, max_size=32)
times = st.integers(0, MAX_TIME_MS)


@st.composite
def batch_ids(draw: st.DrawFn) -> bytes:
    value = int.from_bytes(draw(st.binary(min_size=16, max_size=16)), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0b11 << 62) | 0b10 << 62
    return (value & ~0x3FF).to_bytes(16, "big")


@st.composite
def headers(draw: st.DrawFn, most_receivers: int = limits.MAX_RECEIVERS) -> Header:
    clients = draw(st.sets(client_ids, min_size=1, max_size=most_receivers))
    receivers = [
        ReceiverRef(
            client, draw(st.binary(min_size=16, max_size=16)), draw(st.sampled_from(list(Suite)))
        )
        for client in sorted(clients)
    ]
    return Header(
        sender=draw(client_ids),
        certificate_sha256=draw(hashes),
        batch_id=draw(batch_ids()),
        created_ms=draw(times),
        expires_ms=draw(times),
        exchange=draw(names),
        routing_key=draw(names),
        count=draw(st.integers(1, limits.MAX_BATCH_MESSAGES)),
        commitment=draw(hashes),
        receivers=tuple(receivers),
    )


@st.composite
def batches(draw: st.DrawFn, most_receivers: int = 3) -> bytes:
    header = draw(headers(most_receivers))
    least = 19 + 16 * header.count
    return envelope.build(
        envelope.encode_header(header),
        bytes(sum(ref.suite.wrap_size for ref in header.receivers)),
        draw(st.binary(max_size=100)).ljust(least, b"b"),
        tuple(draw(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=3))),
        draw(st.binary(min_size=1, max_size=limits.MAX_SIGNATURE)),
    )
