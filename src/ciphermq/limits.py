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

# --- hardware tokens ---------------------------------------------------------------------------

TOKEN_TIMEOUT: Final = 30.0
"""For one piece of work on a token, and what stands before it: RSA-4096 takes seconds on a smart
card, and a few of them may wait."""

TOKEN_KEY_TIMEOUT: Final = 600.0
"""For making a key on a token: an RSA key takes a smart card minutes."""

TOKEN_POLL: Final = 2.0
"""How often a token that is away is looked for: seldom enough for a slow module, often enough for
a person who has just put it back."""

TOKEN_SESSION_KEYS: Final = 64
"""Session keys kept for redeliveries by who has its key on a token: each lies in memory, which is
what the token is there to avoid."""

TOKEN_SESSION_KEY_LIFETIME: Final = 120.0
"""How long: a redelivery after a lost connection or a nack comes within `NACK_BACKOFF_MOST`."""

MAX_TOKEN_KEY_ID: Final = 64
"""Bytes of a key's id on a token; tools use one or two, or a hash of 20 to 32."""

MAX_PIN: Final = 64
"""Bytes of a PIN: smart cards take 6 to 16 characters."""

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

KEPT_MEMORY: Final = 4 * MIB
"""Half of the freed memory that a process keeps to itself at most: what it has of batches under
way, in and out."""

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

TRUST_POLL: Final = 5.0
"""How often a broker looks whether its certificate, key, authority or revocation list was replaced:
soon enough for a key that was stolen, and five calls of the system are nothing."""

EXPEL_SLICE: Final = 64
"""Connections whose certificates are judged by new files before others have their turn: 2 µs for
each, or 0.4 ms where an authority is gone, so that signatures have to be looked at."""

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
"""Bytes of a ZeroMQ message, more or less: so many that the cost of ZeroMQ's own queues vanishes
beside that of encryption."""

ZMQ_PIECE: Final = 256 * KIB
"""Bytes for one TLS write or one look for records: fewer and longer calls than TCP's, for which
OpenSSL's memory of a session grows to as much."""

ZMQ_PACKET_OF_CLIENT: Final = MIB
"""The same for a client with much under way: every packet wakes four threads on its way. OpenSSL
keeps memory for the largest one as long as the session lasts, which a server has too many of."""

ZMQ_PACKET_MESSAGES: Final = 524_288
"""Messages in one of ZeroMQ's: more than the empty ones that fit into what we send. In memory each
takes some hundred bytes, and in TLS three."""

ZMQ_BUSY: Final = 2 * MIB
"""Bytes under way from which that is much: with fewer, the receiver would have to wait for the end
of a large packet before it can begin."""

ZMQ_LOCAL_BUFFER: Final = 512 * KIB
"""What the kernel holds of a connection on the loopback, of which it would hold megabytes: enough
for a road without delay, and few enough that all of it stays in the processor's caches."""

ZMQ_TURN_FROM: Final = 128 * KIB
"""Bytes of a frame after which a sender gives ZeroMQ's thread a turn at the processor: encrypting
the next would keep it from sending this one."""

ZMQ_TURN: Final = 0.0005
"""How long such a turn takes at most: ZeroMQ hands a megabyte to the kernel in a third of that. If
it took longer, others were given the processor."""

ZMQ_TURNS_LEFT_OUT: Final = 256
"""Packets for which no turn is given where others would take it: at the most milliseconds that the
system's scheduler gives them, a turn costs one in a hundred."""

MAX_ZMQ_FRAME: Final = 4 * MIB
"""What a ZeroMQ socket takes in one frame before it cuts the peer off: an answer to a REQ comes in
one message however large it is, in frames of 256 KiB."""

MAX_HOPS: Final = 16
"""Frames of a routing envelope: more devices than that are a loop."""

MAX_HOP_SIZE: Final = 255
"""Bytes of each: ZeroMQ's routing ids have no more, and a session is kept under its envelope,
before anybody knows whose it is."""

MAX_PARTS: Final = 4096
"""Parts of one message: far more than any envelope and payload need."""

MAX_ZMQ_BARE: Final = MAX_ZMQ_FRAME - 64 * KIB
"""A message of the bare protocol, which is one frame: TLS adds 22 bytes to 16 KiB."""

MAX_ZMQ_MESSAGE: Final = 64 * MIB
"""All parts of one message: it is in memory on both sides, whole."""

MAX_ZMQ_LARGE: Final = 256 * MIB
"""Of one client's large messages under way, in all its sessions: their memory is there as soon as
they have come in part, so somebody who never finishes them could have any amount."""

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
"""TLS buffers for each, about 40 kB, and up to 600 kB of one that has carried large messages."""

ZMQ_KEEPALIVE: Final = 20.0
"""A sign of life after so much silence; three unanswered ones, and the session is lost."""

ZMQ_IDLE: Final = 300.0
"""A session from which nothing comes for so long is dropped: nobody is there, or it will make a new
one."""

ZMQ_OWED: Final = 12
"""Times as long as others a session of a REQ socket may be quiet while its server works on the
answer, for which it waits without a word."""

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

# --- the AMQP proxy ----------------------------------------------------------------------------

AMQP_FRAME: Final = 128 * KIB
"""The greatest frame-max the proxy offers and takes: RabbitMQ's own default."""

AMQP_HANDSHAKE_FRAME: Final = AMQP_FRAME
"""A frame of the handshake; a token among the client's credentials can make StartOk long."""

AMQP_FIELDS: Final = 1024
"""Client properties in a StartOk, each of which costs far more memory than its bytes: real clients
send about ten, and 128 KiB of the shortest would cost 5 MB before anybody has logged in."""

AMQP_NAME: Final = 1024
"""Characters of a client's `connection_name` that are kept and shown: it is in every log line and
CONN, for as long as the session lives."""

PROXY_HANDSHAKE_BYTES: Final = 2 * AMQP_FRAME
"""What a client may send before its broker's OpenOk. Clients that pipeline send less than a
frame; what is more waits in the socket."""

PROXY_BEGUN: Final = 64 * MIB
"""What all clients of a worker may have sent, together, before they were open. Beyond it a client
that sends more than `PROXY_SMALL_BEGINNING` is refused: nobody has logged in yet."""

PROXY_SMALL_BEGINNING: Final = 16 * KIB
"""A client's handshake for which there is always room: real ones take half a KiB."""

PROXY_BUFFER: Final = 256 * KIB
"""Read at a time, by whichever session has something; a worker has one such buffer."""

PROXY_SMALL_BUFFER: Final = 16 * KIB
"""Read at a time while slow peers together have left more than"""

PROXY_KEPT: Final = 64 * MIB
"""bytes in a worker: each slow session then holds a TLS record's worth at most."""

PROXY_CLIENT_TIMEOUT: Final = 10.0
"""RabbitMQ gives clients the same for their handshake."""

PROXY_ADMISSION_TIMEOUT: Final = 10.0
"""Clients give up a connection attempt after 10 to 60 seconds."""

PROXY_PAUSED_HOLD: Final = 600.0
"""Long enough to move a vhost; clients that wait less long come again by themselves."""

PROXY_CONNECT_TIMEOUT: Final = 3.0
"""One lost SYN (sent again after one second) and then two thirds of the next; the client
waits while a farm's backends are tried one after another."""

PROXY_BROKER_TIMEOUT: Final = 5.0
"""A broker that doesn't even say Start within this is passed over for the next."""

PROXY_OPEN_OK_TIMEOUT: Final = 30.0
"""The broker asks its own authentication backends before OpenOk."""

PROXY_CLOSE_OK_TIMEOUT: Final = 5.0
"""Whoever hasn't answered a Close by then won't."""

PROXY_STALL_TIMEOUT: Final = 60.0
"""AMQP's own heartbeats find a dead peer sooner; this is for connections without them."""

PROXY_DRAIN: Final = 30.0
"""How long an exit or restart waits for clients to finish after their Close."""

# --- the AMQP proxy's configuration and control -----------------------------------------------

MAX_PROXY_NAME: Final = 255
"""Of a vhost, backend, farm…: a vhost is AMQP's shortstr, the others need no more."""

MAX_PROXY_ENTRIES: Final = 100_000
"""Backends, farms, maps or a kind's limits: every worker holds them all, about 200 bytes each."""

MAX_PROXY_FARM: Final = 1024
"""Backends of one farm: all of them are ordered anew for each session."""

MAX_PROXY_LISTENERS: Final = 256
"""Each is a socket in every worker."""

MAX_PROXY_CERTIFICATES: Final = 1024
"""Server names with a certificate of their own: each holds a TLS context, some 50 kB, a worker."""

MAX_PROXY_LIMIT: Final = 2**53 - 1
"""A limit's number: what JSON and Lua readers keep exactly."""

# --- the AMQP proxy's processes ----------------------------------------------------------------

PROXY_WORKERS: Final = 64
"""At most; by itself there is one a core, four at most: brokers need cores as well."""

PROXY_WORKERS_DEFAULT: Final = 4
"""See `PROXY_WORKERS`."""

PROXY_PACKET: Final = 64 * KIB
"""A piece of what processes say to each other: Linux takes 208 KiB a packet unless told less."""

PROXY_PACKETS_AT_ONCE: Final = 16
"""Read at a time, so that a long answer doesn't hold up the sessions."""

PROXY_DESCRIPTORS: Final = 250
"""Descriptors that travel in one packet: Linux takes 253."""

PROXY_BACKLOG: Final = 4096
"""Connections that wait to be accepted, a socket; Linux's own default for the most there may be
(net.core.somaxconn)."""

PROXY_ACCEPTS_AT_ONCE: Final = 64
"""Accepted at a time, so that a storm of new connections leaves turns to those that are open."""

PROXY_ACCEPT_PAUSE: Final = 1.0
"""How long nothing is accepted once descriptors have run out."""

PROXY_DESCRIPTOR_RESERVE: Final = 64
"""Descriptors of a worker that are not for sessions: listening sockets, DNS, logs, splices."""

PROXY_OPEN_FILES: Final = 1 << 20
"""Descriptors a process asks for, where the system allows as many: half a million sessions."""

PROXY_SOURCES: Final = 10_000
"""Client machines with statistics of their own, a worker: some 500 bytes each."""

PROXY_VHOSTS: Final = 10_000
"""Virtual hosts with statistics of their own, a worker. Sessions of others are in the sums only."""

PROXY_STATISTICS_PERIOD: Final = 1.0
"""Statistics are of one second, as amqpprox's are."""

PROXY_WORKER_START: Final = 30.0
"""A worker that hasn't begun by then is ended and started anew; half a second is usual."""

PROXY_WORKER_PAUSE: Final = 1.0
"""Before a worker is started that ended sooner than `PROXY_WORKER_STEADY` after its start."""

PROXY_WORKER_STEADY: Final = 10.0
"""See `PROXY_WORKER_PAUSE`."""

PROXY_WORKER_KILL: Final = 5.0
"""Beyond the drain time: a worker that hasn't ended by then is killed."""

PROXY_HANDOVER_DRAIN: Final = 600.0
"""How long the sessions of a proxy that handed over go on before they get Close 320: consumers
rarely end by themselves, and all of them coming again at once is what nobody wants."""

PROXY_HANDOVER_TIMEOUT: Final = 60.0
"""For a successor to start its workers, once it has been given everything."""

PROXY_HANDOVER_NUMBERS: Final = 100_000
"""Sessions that the old process may still number while its successor starts: each number is to
mean one session of both."""

PROXY_CONTROL_LINE: Final = 64 * KIB
"""One command: a farm of a thousand backends fits."""

PROXY_CONTROL_TIMEOUT: Final = 10.0
"""For a control client to send its command, or to take a piece of the answer."""

PROXY_CONTROL_CLIENTS: Final = 256
"""At a time; further ones wait to be accepted."""

PROXY_LOG_DELAY: Final = 0.05
"""How long lines are gathered before they are written."""

PROXY_LOG_QUEUE: Final = 1024
"""Gatherings of lines that wait for the disk or terminal; what is more is dropped, and counted."""

PROXY_LOG_BACKLOG: Final = 4 * MIB
"""Bytes of lines a worker keeps for a supervisor that doesn't take them."""

PROXY_LOG_STOP: Final = 5.0
"""How long the end waits for the log to be written."""

PROXY_LOG_FILE: Final = 32 * MIB
"""A log file's size; amqpprox has the same."""

PROXY_LOG_FILES: Final = 1024 * MIB
"""All log files of a program in one directory; amqpprox has the same."""

# --- moving a vhost ---------------------------------------------------------------------------

MOVE_FRAME_MAX: Final = 128 * KIB
"""What RabbitMQ offers: its frames go out again as they came in."""

MOVE_HEARTBEAT: Final = 30
"""A broker that is silent for twice as long is gone; moving its messages starts again elsewhere."""

MOVE_CONNECT_TIMEOUT: Final = 30.0
"""To open a connection to a broker, which may be busy starting up."""

MOVE_ANSWER_TIMEOUT: Final = 60.0
"""For one answer of a management API or of the proxy: importing 10,000 queues takes 20 s."""

MOVE_PREFETCH: Final = 1000
"""Messages of a queue on their way. RabbitMQ syncs confirms every 25 ms or sooner, so this allows
40,000 messages a second a queue; it is also how many a SIGKILL can double, of the move or of the
broker it leads to. A broker it leads from that is killed also forgets acknowledgements that were
not on its disk yet, as many as these are."""

MOVE_IN_FLIGHT: Final = 16 * MIB
"""Bytes of a queue on their way, and a message more: its memory, whatever the messages' size."""

MOVE_QUEUES_AT_ONCE: Final = 8
"""Queues whose messages are moved at the same time: RabbitMQ has one process a queue, so this keeps
eight cores busy at either side."""

MOVE_CLOSE_TIMEOUT: Final = 15.0
"""How long clients may take to answer their Close before their connections are cut."""

MOVE_QUIET_TIMEOUT: Final = 60.0
"""How long a broker may take to notice that its connections have ended."""

PROXY_REST_FIRST: Final = 1.0
"""A backend that failed is left alone for this long: about what a broker's restart of its
listener takes. It doubles with each further failure."""

PROXY_REST_LONGEST: Final = 60.0
"""So that a backend which was away for a day is used within a minute of its return."""

PROXY_PROBE: Final = 15.0
"""How long the one session that tries a failed backend again keeps the others from it: longer
than its connection, TLS and Start may take together."""

PROXY_RATES: Final = 10_000
"""Vhosts whose rate is remembered at a time; one whose second is over need not be."""

PROXY_PEM: Final = 4 * MIB
"""A file of certificates named in a command: all public authorities together are 250 kB."""

PROXY_RESOLVE_TIMEOUT: Final = 5.0
"""For a name given in a command: whoever typed it is waiting."""

PROXY_AUTH_TIMEOUT: Final = 8.0
"""For the authentication service's answer: less than `PROXY_ADMISSION_TIMEOUT`, so that the client
is told whose fault it is."""

PROXY_AUTH_ANSWER: Final = 64 * KIB
"""A reason that fits a Close has 255 bytes; credentials may be a long token."""

PROXY_AUTH_CONNECTIONS: Final = 32
"""Questions to the authentication service at a time, a worker; the others wait in line."""

PROXY_NAME_TIMEOUT: Final = 1.0
"""How long a session waits for its client's name; it has the address otherwise."""

PROXY_NAME_LIFETIME: Final = 300.0
"""How long a name is believed."""

PROXY_NAMES_AT_ONCE: Final = 2
"""Names asked for at a time: the resolver has four threads, and backends need it too."""

PROXY_METRICS_REQUEST: Final = 16 * KIB
"""A scraper's request, of which only the first line is read."""

PROXY_ANSWER_TIMEOUT: Final = 30.0
"""For a worker to do what the supervisor asks: it is between two sessions within milliseconds."""

PROXY_DRAIN_STEP: Final = 0.1
"""Sessions that are closed over a while are closed this often, some at a time."""

PROXY_HANDOVER_SPREAD: Final = 30.0
"""Over how long those are closed that a handover's patience was not enough for."""
