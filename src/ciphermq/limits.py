"""Every bound in the system, each with its reason.

Sizes are bytes, times are seconds unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
DAY: Final = 86_400

# --- the sealed batch -----------------------------------------------------------------------

MAX_BATCH_MESSAGES: Final = 1024
"""The message's index has ten bits of the message id."""

MAX_PLAINTEXT: Final = 1 * MIB
"""All of a batch's messages with their framing. Big enough that the cost of sealing and signing
vanishes beside the bytes, small enough that both ends hold a few dozen in memory."""

MAX_RECEIVERS: Final = 32
"""One wrap each, 1.2 kB with ML-KEM: more receivers want a fan-out of their own."""

MAX_CHAIN: Final = 4 * KIB
"""The sender's certificate chain: two P-384 certificates are about 1.5 kB."""

MAX_SIGNATURE: Final = 160
"""A DER ECDSA signature on P-521 has at most 139 bytes."""

MAX_NAME: Final = 255
"""Exchange, queue and routing key: AMQP's shortstr, so that an engine on RabbitMQ can keep them."""

MAX_CLIENT_ID: Final = 64
"""The certificate's CN: X.520 allows no more."""

MAX_HEADER_P: Final = 4 * KIB
"""32 receivers of 64-character ids take 2.7 kB, the two names 0.5 kB, the rest 0.2 kB."""

MAX_SEALED: Final = MAX_PLAINTEXT + 16 + MAX_HEADER_P + MAX_RECEIVERS * 1200 + MAX_CHAIN + 1024
"""A whole sealed batch: what a PUBLISH may carry and a journal record may hold."""

MAX_PROPERTIES: Final = 16 * KIB
"""One message's headers and content type, encoded."""

MAX_HEADERS: Final = 100
"""One message's headers, by count: the same as most HTTP servers allow."""

MAX_MESSAGE_AGE: Final = 30 * DAY
"""How long after sealing a batch is still taken. The Inbox remembers ids for this and a day."""

CLOCK_SKEW: Final = 300
"""How far two honest clocks may differ."""

# --- key records and certificates ------------------------------------------------------------

KEY_RECORD_LIFETIME: Final = 30 * DAY
"""How far back a stolen sealing key can read is this and the greatest message age."""

MAX_KEY_RECORD_LIFETIME: Final = 365 * DAY
"""No longer than the certificate that vouches for it."""

MAX_KEY_RECORD: Final = 16 * KIB
"""A record is a public key (1,216 bytes with ML-KEM), a chain and a signature."""

MAX_KEY_FILE: Final = 64 * KIB
"""A private key's file on a client's machine: a few hundred bytes, whatever the kind."""

MAX_TRUST_FILE: Final = 16 * MIB
"""What an identity has learnt about others: about 150 bytes a client, so 100,000 of them."""

MAX_IDENTITY_FILE: Final = 32 * MIB
"""An exported identity, keys, revocation list and trust file in base64. Read before anything in
it can be believed, so it must fit in memory several times."""

MAX_IDENTITY_PARTS: Final = 1024
"""Files in an exported identity: a dozen, and one for each sealing key that is still kept."""

MAX_SCRYPT_MEMORY: Final = 1024 * MIB
"""What opening a file under a passphrase may take: eight times what ours do. A stranger's file
must not take all of the machine's."""

MAX_SCRYPT_PASSES: Final = 16
"""As above, for its time: at most this many times what its memory costs."""

MAX_SIGNERS: Final = 1024
"""Certificates remembered as verified, 2 kB each: as many as send to one receiver in a while."""

AUTHORITY_LIFETIME: Final = 10 * 365 * DAY
"""Replacing an authority takes a visit to every client; its key signs little and stays offline."""

CERTIFICATE_LIFETIME: Final = 365 * DAY
"""A year: long enough to renew by hand, short enough that it is not forgotten."""

CERTIFICATE_WARNING: Final = 30 * DAY
"""From how long before its end a certificate is warned about."""

CRL_LIFETIME: Final = 30 * DAY
"""How long a broker can hold back a newer list before clients notice."""

CRL_WARNING: Final = 10 * DAY
"""A warning from day 20 of 30."""

MAX_CRL: Final = 4 * MIB
"""About 100,000 revoked certificates."""

# --- CipherMQ 1.x ---------------------------------------------------------------------------

MAX_ONEX_MESSAGE: Final = 1 * MIB
"""One message of 1.x as JSON, so three quarters of that as text: it fits where a batch does."""

MAX_ONEX_ID: Final = 255
"""Its id: those of 1.x clients have about 40 characters. PostgreSQL has them in an index."""

MAX_ONEX_BATCH: Final = 20_000
"""Messages in one ``publish_batch``: the largest batch that 1.x was ever measured with."""

MAX_LINE: Final = 4 * KIB
"""A line of the 1.x protocol that carries no message: three names, or a key."""

ONEX_WINDOW: Final = 1000
"""Messages that a 1.x consumer may have before it acks any. It is not asked; it reads on always."""

MAX_ONEX_COMMANDS: Final = 1000
"""Commands of one 1.x connection that wait for their turn or their answer: more aren't read. Those
clients have 100 in flight."""

KEEPALIVE_IDLE: Final = 30
"""Seconds of silence until TCP asks for a sign of life: 1.x has no heartbeat, and what a dead peer
holds must return."""

KEEPALIVE_INTERVAL: Final = 10
"""Seconds between such questions."""

KEEPALIVE_COUNT: Final = 3
"""Unanswered ones, and the peer is dead."""

MAX_BATCH_LINE: Final = 12 * MIB
"""A ``publish_batch``: `MAX_ONEX_BATCH` messages as small as those that 1.x was measured with."""

MAX_REASON: Final = 500
"""Characters of an error in the 1.x protocol, which may quote what the client sent: in any script
it fits a line together with an id."""

# --- frames and connections ------------------------------------------------------------------

MAX_REQUEST_FRAME: Final = 32 * KIB
"""What a client may ask: names and numbers, or a key record with its chain."""

MAX_ANSWER_FRAME: Final = MAX_CRL + 64 * KIB
"""What a server may answer: at most the revocation list."""

MAX_LISTING: Final = 1000
"""Rows in one LIST answer, so that it fits a small frame; the rest comes by page."""

MAX_FRAME: Final = MAX_SEALED + 64 * KIB
"""PUBLISH and DELIVER: a sealed batch and what stands beside it."""

READ_BUFFER: Final = 64 * KIB
"""Shared by a loop's connections: twenty batches of one a read, and little to copy of a big one."""

NETWORK_BUFFER: Final = 256 * KIB
"""Shared likewise: what one read takes from the network, still encrypted."""

HANDSHAKE_TIMEOUT: Final = 10.0
"""TLS and HELLO together: a silent peer holds a descriptor no longer than this."""

FRAME_TIMEOUT: Final = 60.0
"""From a frame's first byte to its last: a peer that drips one byte a second is cut off."""

HEARTBEAT: Final = 20.0
"""A PING after this much silence; a peer silent for three of them is gone."""

WRITE_STALL_TIMEOUT: Final = 60.0
"""A peer that takes nothing for this long is cut off and its deliveries return."""

LINGER: Final = 2.0
"""How long after its own CLOSE a side waits for the other's: closing a socket with unread bytes
resets it, and the last frames would be lost with it."""

WRITE_HIGH_WATER: Final = 4 * MIB
"""Above this a connection is given no more deliveries: a few batches keep a fast link busy."""

MAX_UNTAKEN: Final = 16 * MIB
"""Above this a client isn't read and its requests wait: a question has twenty bytes and its answer
may have a million, so who asked without reading could have the broker hold any amount."""

LISTEN_BACKLOG: Final = 512
"""Connections the kernel keeps for us until they are accepted; it allows 4096 at most."""

MAX_HANDSHAKES: Final = 512
"""Connections in their TLS handshake at once: strangers may not take the places of clients."""

MAX_CONNECTIONS: Final = 10_000
"""A descriptor and TLS buffers each: what one process can serve, not what it can open."""

MAX_CONNECTIONS_PER_CLIENT: Final = 256
"""One client can't take the descriptors of all the others."""

MAX_REQUESTS_IN_WORK: Final = 256
"""Of one connection; above it the connection isn't read until half of them are answered."""

MAX_PENDING_BYTES: Final = 64 * MIB
"""Published but not yet durable, of all connections: above it publishers aren't read. A fast disk
needs about 10 ms for a group of 8 MiB, and this is eight of them."""

MAX_HELD_BATCHES: Final = 65_536
"""Delivered to a connection and not settled: above it, it is given no more, however much credit it
gives, so that one who never acks can't make the broker hold a whole queue in his name."""

MAX_CONSUMERS_PER_CONNECTION: Final = 256
"""A consumer costs the broker memory; more want a connection of their own."""

TLS_RECORDS_BEFORE_RECONNECT: Final = 1 << 23
"""Half of the 2**24.5 records after which AES-GCM's confidentiality bound is reached
(RFC 8446 section 5.5). Python's ssl has no key update, so the connection is replaced."""

# --- TLS over ZeroMQ --------------------------------------------------------------------------

ZMQ_WINDOW: Final = 8 * MIB
"""Bytes a session has under way until the peer has taken some: what a fast network holds, and what
a peer that takes nothing costs."""

ZMQ_WINDOW_MESSAGES: Final = 256
"""The same in ZeroMQ messages. A ROUTER drops in silence what goes over its high-water mark, which
is 1000 for a peer by default, so a session stays well below."""

ZMQ_PACKET: Final = 256 * KIB
"""Bytes of a ZeroMQ message, more or less: several TLS writes, so that the cost of ZeroMQ's own
queues vanishes beside that of encryption."""

MAX_ZMQ_FRAME: Final = 4 * MIB
"""What a ZeroMQ socket takes in one frame before it cuts the peer off: an answer to a REQ comes in
one message however large it is, in frames of 64 KiB."""

MAX_HOPS: Final = 16
"""Frames of a routing envelope: more devices than that are a loop."""

MAX_PARTS: Final = 4096
"""Parts of one message: far more than any envelope and payload need."""

MAX_ZMQ_MESSAGE: Final = 64 * MIB
"""All parts of one message: it is in memory on both sides, whole."""

ZMQ_SPARE: Final = 4 * MIB
"""Memory for a large message that a socket keeps for the next one."""

MAX_ZMQ_WAITING: Final = 8 * MIB
"""Bytes that wait in a socket for the window to open; above it `send` waits, as ZeroMQ's does at
its high-water mark."""

ZMQ_COALESCE: Final = 64 * KIB
"""Small messages that share a TLS write: four full records."""

ZMQ_TAIL_DELAY: Final = 0.001
"""How long a small message waits at most for others to share its TLS write."""

ZMQ_TAKE: Final = 64
"""ZeroMQ messages taken in at a time, before the application is given what is in them."""

ZMQ_INBOX: Final = 65_536
"""Messages that wait for an application on an event loop before its socket is read no more; by
bytes the windows of its sessions bound them."""

MAX_ZMQ_SESSIONS: Final = 10_000
"""TLS buffers for each, about 40 kB, and up to 400 kB of one that has carried large messages."""

ZMQ_KEEPALIVE: Final = 20.0
"""A sign of life after so much silence; three unanswered ones, and the session is lost."""

ZMQ_IDLE: Final = 300.0
"""A session from which nothing comes for so long is dropped: nobody is there, or it will make a new
one."""

ZMQ_RETIRE: Final = 60.0
"""How long a replaced session may go on receiving answers."""

ZMQ_TICK: Final = 0.25
"""How often a socket looks at its clocks."""

# --- delivery ---------------------------------------------------------------------------------

DEDUP_WINDOW: Final = 600.0
"""Longer than any client goes on retrying one batch."""

MAX_DEDUP_ENTRIES: Final = 1_000_000
"""1,600 batches a second over the whole window."""

MAX_TRIES: Final = 20
"""With back-off about ten minutes: a restart of what the receiver needs fits in."""

ACK_TIMEOUT: Final = 300.0
"""Restarted by each ack of the batch."""

NACK_BACKOFF_FIRST: Final = 1.0
"""Doubled at each try. Soon enough for a passing fault,"""

NACK_BACKOFF_MOST: Final = 60.0
"""and rare enough that a lasting one costs nothing."""

DEFAULT_PREFETCH: Final = 4096
"""Messages a consumer is given before it acks: a few full batches."""

MAX_CREDIT: Final = 1 << 31
"""Fits the wire's integers with room to add; nobody holds this many messages."""

MAX_PUBLISH_WINDOW: Final = 64
"""Unconfirmed batches a connection may have: 64 MiB at most."""

MAX_QUEUE_MESSAGES: Final = 100_000_000
"""A backstop: at 100 bytes each most disks are full before."""

MAX_QUEUE_BYTES: Final = 1 << 40
"""1 TiB: a backstop where a queue was given no bound of its own."""

MAX_QUEUES: Final = 100_000
"""Each is a row in every snapshot, so in every segment of the journal."""

MAX_EXCHANGES: Final = 10_000
"""As for queues."""

MAX_BINDINGS: Final = 200_000
"""As for queues; two for each."""

MAX_TARGETS: Final = 1024
"""Queues one publish may go to: its journal record lists all of them."""

MAX_QUEUE_TTL: Final = 365 * DAY
"""Greatest time to live and ack time-out that a queue may set: what is longer means none."""

MAX_QUEUE_TRIES: Final = 1_000_000
"""Most tries that a queue may allow: with back-off that is two years."""

MAX_DEAD_REASON: Final = 64
"""Characters of a dead letter's reason: an error's code."""

MAX_DEAD_DETAIL: Final = 512
"""Characters of its detail: a sentence or two, kept in memory while the dead letter is."""

MAX_PEEK: Final = 100
"""Batches one look into a queue may show: each is read from disk."""

# --- the journal ------------------------------------------------------------------------------

SEGMENT_SIZE: Final = 64 * MIB
"""What compaction has to move at once at most, and what a start has to list."""

JOURNAL_RESERVE: Final = 128 * MIB
"""Preallocated, so that acks and compaction go on when the disk is full."""

MAX_GROUP: Final = 8 * MIB
"""Payload bytes in one group: about 10 ms of a fast disk, which bounds a confirm's wait."""

FRESH_PAYLOADS: Final = 32 * MIB
"""Payloads just written, kept for the consumers that wait for them; older ones are read back."""

READ_AHEAD: Final = 2 * MIB
"""Payloads being read back for one consumer: a few large batches, a thousand small ones."""

# --- the catalog and the logs -----------------------------------------------------------------

MAX_PENDING_METADATA: Final = 65_536
"""Batches whose metadata waits to be written, about 30 MB: a minute of a fast broker while the
disk is stalled. More are counted and not kept; the batches themselves are not concerned."""

METADATA_FLUSH: Final = 0.25
"""How long metadata is gathered, so that a batch's whole life is often one row written once."""

METADATA_PRUNE: Final = 600.0
"""How often metadata past its age is looked for."""

DATABASE_TIMEOUT: Final = 10.0
"""For one statement, or one attempt to connect: a database that takes longer is as good as away."""

DATABASE_ROWS: Final = 1000
"""Rows of metadata in one statement: some milliseconds of the event loop's time."""

WAITING_METADATA: Final = 64 * MIB
"""Notes of 1.x messages in a file, until PostgreSQL has them: more than `MAX_PENDING_METADATA` rows
need, unless one message is given out again without end."""

DATABASE_GRACE: Final = 10.0
"""How long news of a 1.x message waits for the message itself, which is noted a moment later."""

LOG_QUEUE: Final = 10_000
"""Log lines that wait for a slow disk or terminal before more are dropped (and counted)."""

LOG_NOTES: Final = 65_536
"""Lines about messages that wait likewise: a second's worth at full speed, 30 MB at the most."""

LOG_CHUNK: Final = 1024
"""Of these, so many are handed to the log's thread at once: a millisecond of its work."""

LOG_FLUSH: Final = 0.1
"""Seconds after which fewer are handed over too."""

# --- the client -------------------------------------------------------------------------------

CONNECT_TIMEOUT: Final = 10.0
"""One attempt; there is another after it."""

REQUEST_TIMEOUT: Final = 30.0
"""A request waits behind one fsync and one full connection, not behind a reconnect."""

SEND_TIMEOUT: Final = 60.0
"""From send to confirm, through a broker's restart."""

RECONNECT_FIRST: Final = 0.1
"""Doubled at each try: a restarted broker is found at once,"""

RECONNECT_MOST: Final = 5.0
"""and one that is down is not hammered."""

CLOSE_TIMEOUT: Final = 30.0
"""To settle what is in flight; then the connection is dropped."""

RETIRE_POLL: Final = 0.05
"""How often a replaced connection is looked at: whether all answers on it have come."""

CLIENT_ROUND: Final = 3600.0
"""How often a client asks for a newer revocation list and looks whether its key record must be
renewed, on a connection that lasts."""

KEY_CACHE_LIFETIME: Final = 300.0
"""How long a verified key record is used before the directory is asked again."""

ONEX_KEY_CACHE: Final = 1000
"""Keys of 1.x receivers that a client keeps for so long: more receivers than it sends to."""

SEND_WINDOW: Final = 16
"""Unconfirmed batches a client has under way, unless its server allows fewer: enough for a few
groups of the journal, few enough that a killed sender has little to say again."""

SEND_BATCH: Final = 512 * KIB
"""Plaintext a sender puts into one batch while more is waiting. Sealing has cost its share by
then, and sender, broker and receiver work on different batches at the same time."""

SEND_BUFFER: Final = 16 * MIB
"""Bytes that wait in a sender before `send` waits too."""

SEND_BUFFER_MESSAGES: Final = 65_536
"""The same by count: a message that waits takes about half a kilobyte besides its own bytes."""

EXPIRY_GRAIN: Final = 1.0
"""Messages whose times to live end this close to each other share a batch, and end with the
first of them."""

PREFETCH_BYTES: Final = 32 * MIB
"""Sealed bytes a receiver has in memory; credit is counted in messages, so it is given in the
measure of their size lately."""

FIRST_CREDIT: Final = 64
"""Messages a receiver asks for before it knows their size: at most 64 MiB."""

ACK_INTERVAL: Final = 1.0
"""At least this often a receiver tells the broker which messages of a batch are done."""

ACK_RENEWAL: Final = 60.0
"""While its application makes progress, a receiver says this often that it still wants the
batches that wait, or the broker would give them to another after `ACK_TIMEOUT`."""

STORE_TIMEOUT: Final = 30.0
"""How long an Inbox or Outbox waits for another process that is writing to it."""

OUTBOX_POLL: Final = 0.05
"""How often a relay with nothing to do looks into its Outbox, which any process may add to."""

OUTBOX_HOLD: Final = 10.0
"""How long a patient relay leaves a route alone that can't be used now: an unknown receiver, a
changed key, no binding. A person has to do something about it."""

OUTBOX_WIPE: Final = 1.0
"""How long a relay has nothing to write before it wipes what was sent out of the Outbox's log."""

STORE_PRUNE: Final = 3600.0
"""How often an Inbox looks for ids that are older than any message may be."""
