"""The PostgreSQL catalog's tables and statements.

Two tables are those of 1.x, in their own shape, so that 1.x can be gone back to, and whatever reads
them goes on: ``message_metadata`` and ``public_keys``. The others are ours, ``ciphermq_…``, by
version; each step takes the one before it, and an older program refuses a newer catalog.

Events name a 1.x message by `ciphermq.model.onex.internal_id`, which its row has no column for. An
index over an expression finds it: over the bytes of the hash that the id is made of and that the
marks of a UUIDv8 leave alone, seven at the end (in the index) and six at the beginning.

All statements take one array a column, so that a thousand rows are one statement.
"""

from __future__ import annotations

from typing import Final

from ciphermq.catalog.schema import TRACE_COLUMNS
from ciphermq.model.onex import ID_LABEL

LOCK: Final = 0x43_69_70_68_65_72_4D_51
"""Of advisory locks: "CipherMQ". Two servers don't migrate at once."""

OLDEST_SERVER: Final = 110_000
"""PostgreSQL 11: the first with sha256()."""

ONEX_TABLES: Final = {
    "message_metadata": (
        *("message_id", "client_id", "exchange_name", "routing_key"),
        *("sent_time", "delivered_time", "acknowledged_time"),
    ),
    "public_keys": ("client_id", "public_key_ciphertext", "nonce", "tag"),
}
"""What 1.x has, all of it text."""

# decode() takes the text's bytes as they are, once its backslashes are doubled; convert_to() would
# not do in an index, since it is not immutable.
_HASH: Final = (
    f"sha256('\\x{ID_LABEL.hex()}'::bytea || decode(replace({{column}}, '\\', '\\\\'), 'escape'))"
)
_HEAD: Final = f"substring({_HASH} from 1 for 6)"
_TAIL: Final = f"substring({_HASH} from 10 for 7)"

_STEPS: Final = (
    f"""
    CREATE TABLE IF NOT EXISTS message_metadata (
        message_id text PRIMARY KEY,
        client_id text,
        exchange_name text,
        routing_key text,
        sent_time text,
        delivered_time text,
        acknowledged_time text
    );
    CREATE INDEX ciphermq_message_metadata_by_id
        ON message_metadata (({_TAIL.format(column="message_id")}));
    CREATE TABLE IF NOT EXISTS public_keys (
        client_id text PRIMARY KEY,
        public_key_ciphertext text NOT NULL,
        nonce text NOT NULL,
        tag text NOT NULL
    );
    CREATE TABLE ciphermq_settings (name text PRIMARY KEY, value bytea NOT NULL);
    CREATE TABLE ciphermq_keys (
        client text PRIMARY KEY,
        version bytea NOT NULL,
        sealed bytea NOT NULL,
        stored_ms bigint NOT NULL
    );
    CREATE TABLE ciphermq_batches (
        batch_id bytea PRIMARY KEY,
        client text,
        exchange text,
        routing_key text,
        messages bigint,
        size bigint,
        published_ms bigint,
        delivered bigint NOT NULL,
        first_delivered_ms bigint,
        last_delivered_ms bigint,
        acked bigint NOT NULL,
        first_acked_ms bigint,
        last_acked_ms bigint,
        dead bigint NOT NULL,
        first_dead_ms bigint,
        last_dead_ms bigint,
        conflicts bigint NOT NULL,
        noted_ms bigint NOT NULL
    );
    CREATE INDEX ciphermq_batches_by_age ON ciphermq_batches (noted_ms);
    CREATE TABLE ciphermq_writers (writer bytea PRIMARY KEY, seq bigint, seen_ms bigint);
    """,
)
VERSION: Final = len(_STEPS)

VERSIONS: Final = "CREATE TABLE IF NOT EXISTS ciphermq_schema (version integer PRIMARY KEY)"
FOUND_VERSION: Final = "SELECT max(version) FROM ciphermq_schema"
REACHED_VERSION: Final = "INSERT INTO ciphermq_schema VALUES ($1)"


def step(version: int) -> str:
    """What leads from `version` to the next."""
    return _STEPS[version]


COLUMNS: Final = """
    SELECT column_name::text, data_type::text FROM information_schema.columns
    WHERE table_schema = current_schema() AND table_name = $1
"""

# --- keys -------------------------------------------------------------------------------------

GET_SETTING: Final = "SELECT value FROM ciphermq_settings WHERE name = $1"
PUT_SETTING: Final = "INSERT INTO ciphermq_settings VALUES ($1, $2)"

GET_KEY: Final = "SELECT version, sealed FROM ciphermq_keys WHERE client = $1"
LIST_KEYS: Final = "SELECT client, version, stored_ms FROM ciphermq_keys ORDER BY client"
PUT_KEY: Final = """
    INSERT INTO ciphermq_keys AS k VALUES ($1, $2, $3, $4)
    ON CONFLICT (client) DO UPDATE
        SET version = excluded.version, sealed = excluded.sealed, stored_ms = excluded.stored_ms
        WHERE k.version < excluded.version
    RETURNING 1
"""
"""Nothing comes back when it is not newer."""

_ONEX_KEY: Final = "public_key_ciphertext, nonce, tag FROM public_keys"
GET_ONEX_KEY: Final = f"SELECT {_ONEX_KEY} WHERE client_id = $1"
SOME_ONEX_KEYS: Final = f"SELECT client_id, {_ONEX_KEY} LIMIT 20"
PUT_ONEX_KEY: Final = """
    INSERT INTO public_keys (client_id, public_key_ciphertext, nonce, tag) VALUES ($1, $2, $3, $4)
    ON CONFLICT (client_id) DO UPDATE SET
        public_key_ciphertext = excluded.public_key_ciphertext,
        nonce = excluded.nonce,
        tag = excluded.tag
"""

# --- metadata ---------------------------------------------------------------------------------

ADVANCE: Final = """
    INSERT INTO ciphermq_writers AS w VALUES ($1, $2, $3)
    ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq, seen_ms = excluded.seen_ms
        WHERE w.seq < excluded.seq
    RETURNING 1
"""
"""Nothing comes back when what has this number was committed before: the connection was lost
between that and the answer, and the numbers of deliveries must not be added twice."""

LEAVE: Final = "DELETE FROM ciphermq_writers WHERE writer = $1 OR seen_ms < $2"

_TYPES: Final = {
    **dict.fromkeys(TRACE_COLUMNS, "bigint"),
    **dict.fromkeys(("client", "exchange", "routing_key"), "text"),
    "batch_id": "bytea",
    "noted_ms": "bigint",
}
_ARRAYS: Final = ", ".join(f"${at}::{kind}[]" for at, kind in enumerate(_TYPES.values(), 1))

MERGE_BATCHES: Final = f"""
    INSERT INTO ciphermq_batches AS b SELECT * FROM unnest({_ARRAYS})
    ON CONFLICT (batch_id) DO UPDATE SET
        client = COALESCE(b.client, excluded.client),
        exchange = COALESCE(b.exchange, excluded.exchange),
        routing_key = COALESCE(b.routing_key, excluded.routing_key),
        messages = COALESCE(b.messages, excluded.messages),
        size = COALESCE(b.size, excluded.size),
        published_ms = COALESCE(b.published_ms, excluded.published_ms),
        delivered = b.delivered + excluded.delivered,
        first_delivered_ms = COALESCE(b.first_delivered_ms, excluded.first_delivered_ms),
        last_delivered_ms = COALESCE(excluded.last_delivered_ms, b.last_delivered_ms),
        acked = b.acked + excluded.acked,
        first_acked_ms = COALESCE(b.first_acked_ms, excluded.first_acked_ms),
        last_acked_ms = COALESCE(excluded.last_acked_ms, b.last_acked_ms),
        dead = b.dead + excluded.dead,
        first_dead_ms = COALESCE(b.first_dead_ms, excluded.first_dead_ms),
        last_dead_ms = COALESCE(excluded.last_dead_ms, b.last_dead_ms),
        conflicts = b.conflicts + excluded.conflicts
            + COALESCE((b.client <> excluded.client)::int, 0),
        noted_ms = GREATEST(b.noted_ms, excluded.noted_ms)
"""  # noqa: S608  (only our own columns are put in)

_ADD: Final = """
    INSERT INTO message_metadata AS m (message_id, client_id, exchange_name, routing_key,
        sent_time, delivered_time, acknowledged_time)
    SELECT * FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    ON CONFLICT (message_id) DO UPDATE SET
"""

ADD_MESSAGES: Final = f"""{_ADD}
        exchange_name = excluded.exchange_name,
        routing_key = excluded.routing_key,
        sent_time = excluded.sent_time,
        delivered_time = CASE WHEN m.sent_time = excluded.sent_time
            THEN COALESCE(m.delivered_time, excluded.delivered_time)
            ELSE excluded.delivered_time END,
        acknowledged_time = CASE WHEN m.sent_time = excluded.sent_time
            THEN COALESCE(excluded.acknowledged_time, m.acknowledged_time)
            ELSE excluded.acknowledged_time END
        WHERE m.client_id IS NOT DISTINCT FROM excluded.client_id
"""
"""An id that its own client uses again is another message's from then on, as in 1.x. The same id
of the same time is the same message, noted twice: by a broker that was killed before it knew that
the database has it, and by the next. Such a note may be all that the next one read of it."""

ADD_MISSING: Final = f"""{_ADD}
        delivered_time = COALESCE(m.delivered_time, excluded.delivered_time),
        acknowledged_time = COALESCE(excluded.acknowledged_time, m.acknowledged_time)
        WHERE m.client_id IS NOT DISTINCT FROM excluded.client_id
"""
"""A message that came again: its row, if it is there, is of the first time."""

UPDATE_MESSAGES: Final = f"""
    UPDATE message_metadata AS m SET
        delivered_time = COALESCE(m.delivered_time, e.delivered),
        acknowledged_time = COALESCE(e.acked, m.acknowledged_time)
    FROM unnest($1::bytea[], $2::bytea[], $3::text[], $4::text[])
        AS e (head, tail, delivered, acked)
    WHERE {_TAIL.format(column="m.message_id")} = e.tail
        AND {_HEAD.format(column="m.message_id")} = e.head
    RETURNING e.head, e.tail
"""  # noqa: S608

TRACE: Final = f"SELECT {', '.join(TRACE_COLUMNS)} FROM ciphermq_batches WHERE batch_id = $1"  # noqa: S608
TRACE_MESSAGE: Final = """
    SELECT message_id, client_id AS client, exchange_name AS exchange, routing_key,
        sent_time, delivered_time, acknowledged_time
    FROM message_metadata WHERE message_id = $1
"""

PRUNE: Final = """
    DELETE FROM ciphermq_batches WHERE batch_id IN (
        SELECT batch_id FROM ciphermq_batches WHERE noted_ms < $1 ORDER BY noted_ms LIMIT $2)
"""


def parts(internal_id: bytes) -> tuple[bytes, bytes]:
    """The two parts of an internal id by which a row of 1.x's is found."""
    return internal_id[:6], internal_id[9:16]
