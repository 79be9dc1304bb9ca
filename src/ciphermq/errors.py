"""Every error this package raises, in one tree.

::

    CipherMQError
    ├── UsageError                     the caller's own mistake: fix the call
    │   └── LocalProtocolError         this side tried to send what the protocol forbids
    ├── ConfigError                    a setting: which file, key, value; what is allowed
    ├── IdentityError                  certificates and private keys on this machine
    │   ├── IdentityNotFound
    │   ├── PassphraseError
    │   ├── CertificateError           expired, not yet valid, wrong usage, wrong name
    │   ├── AuthorityError             the certificate authority's own directory
    │   └── TokenError                 a hardware token, until somebody does something about it
    │       ├── PinError               missing, wrong, locked; a wrong one is never tried again
    │       └── TokenKeyUnclear        no key of that id, or several: which there are
    ├── BatchError                     a fault of the batch: it goes to the dead letters
    │   ├── MalformedBatch
    │   │   ├── UnsupportedVersion
    │   │   └── UnsupportedSuite
    │   ├── BatchTooLarge
    │   ├── UntrustedSender            the chain does not lead to our authority
    │   │   ├── SenderCertificateNotValid   not valid when the batch was made
    │   │   ├── SenderMayNotSign       no signing usage
    │   │   └── SenderRevoked
    │   ├── SenderMismatch             the header names another than the certificate
    │   ├── NotForThisReceiver
    │   ├── UnknownKey                 names a key that this receiver never had
    │   ├── BatchTooOld
    │   ├── BatchExpired
    │   ├── BatchFromTheFuture
    │   ├── BadSignature
    │   ├── WrapRefused                the session key does not open
    │   ├── CommitmentMismatch         the session key is not the one committed to
    │   ├── BodyRefused                the body does not open
    │   ├── OnexNotEnabled             a 1.x message, at an identity that takes none
    │   └── DuplicateConflict          one batch id, two contents
    ├── ReceiverFault                  a fault of the receiver: it stops, the queue is left as it is
    │   ├── ClockWrong
    │   ├── RevocationListStale
    │   ├── KeyMissing
    │   ├── TokenAway                  pulled out or silent: what needs it waits until it is back
    │   └── InboxError
    ├── KeyRecordError                 a receiver's public key can't be trusted
    │   ├── UnknownReceiver
    │   ├── KeyRecordMalformed
    │   ├── KeyRecordForged            signature or chain is wrong
    │   ├── KeyRecordSwapped           it belongs to somebody else
    │   ├── KeyRecordExpired
    │   ├── KeyRecordNotYetValid
    │   ├── KeyRecordRolledBack        older than one already seen
    │   ├── KeyRecordRevoked
    │   ├── CertificateKeyChanged      until `ciphermq keys trust`
    │   ├── KeyNotPinned               a 1.x key whose fingerprint nobody has confirmed
    │   └── PinnedKeyChanged           a 1.x key other than the one confirmed
    ├── RemoteProtocolError            the peer sent what the protocol forbids
    │   ├── FrameTooLarge
    │   ├── UnknownFrame
    │   └── MalformedFrame
    ├── TransportError                 the connection
    │   ├── ConnectFailed              refused, unreachable
    │   │   └── HostUnknown            the name has no address
    │   ├── TlsFailed                  wrong authority, expired, no certificate, not TLS
    │   ├── ProtocolNotOffered         the server does not speak cmq/2
    │   ├── ConnectionLost
    │   └── WaitTimeout                names what was waited for
    ├── Refused                        the broker said no (has a wire code)
    │   ├── AccessRefused
    │   ├── NotFound
    │   ├── PreconditionFailed
    │   ├── Unroutable
    │   ├── QueueFull
    │   ├── NoSpace
    │   ├── AfterRefusal
    │   ├── ConflictingDuplicate
    │   ├── ResourceLimit
    │   ├── BadRequest
    │   ├── Superseded                 a newer consumer of that name took over
    │   ├── Unavailable                the broker is stopping, or its log has failed
    │   └── InternalError
    ├── JournalError                   the durable log
    │   ├── JournalDamaged             which file, which offset, what salvages it
    │   ├── JournalInUse               another broker has it open
    │   ├── JournalFailed              a write or sync failed: the broker stops
    │   ├── JournalFull                no space left on the device
    │   ├── PayloadDamaged             one payload fails its checksum
    │   └── SegmentDropped             the payload is at another place by now: look it up again
    ├── CatalogError                   public keys and metadata
    ├── StoreError                     Inbox and Outbox files on a client's machine
    ├── AlreadyDone                    its effect is committed in the Inbox: skip it
    └── Unfinished                     it ended before all that was asked for was done

A message says what happened, to what, and what to do. `code` is the stable, machine-readable
name: it is on the wire for `Refused`, in dead letters for `BatchError`, in ``--json`` for all.
"""

from __future__ import annotations

import re
from typing import ClassVar


class CipherMQError(Exception):
    """Root of everything this package raises on purpose."""

    code: ClassVar[str] = "error"
    """The class's name in words (``QueueFull``: ``queue-full``) unless it says another."""

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            words = re.findall("[A-Z][a-z]*", cls.__name__.removesuffix("Error"))
            cls.code = "-".join(words).lower()


# --- the caller's own mistakes ---------------------------------------------------------------


class UsageError(CipherMQError):
    """The call can't be right whatever the state of the system."""

    code = "usage"


class LocalProtocolError(UsageError):
    """This side tried to send what the protocol forbids."""


class ConfigError(CipherMQError):
    """A setting is wrong. Names the file, the key, the value and what is allowed."""


# --- certificates and keys on this machine -----------------------------------------------------


class IdentityError(CipherMQError):
    """A certificate or private key on this machine is unusable."""


class IdentityNotFound(IdentityError):
    """No identity of that name at that place."""


class PassphraseError(IdentityError):
    """A passphrase is missing or wrong."""


class CertificateError(IdentityError):
    """A certificate is expired, not yet valid, of the wrong usage or of another name."""


class AuthorityError(IdentityError):
    """The certificate authority's directory is missing, damaged or not openable."""


class TokenError(IdentityError):
    """A hardware token, or its module, refuses what is asked of it. Waiting mends nothing."""


class PinError(TokenError):
    """A token's PIN is missing, wrong or locked. It is never tried again by itself."""


class TokenKeyUnclear(TokenError):
    """No key of that id is on the token, or several. Lists what there is."""


# --- faults of a batch: to the dead letters ----------------------------------------------------


class BatchError(CipherMQError):
    """The batch itself is at fault: it is dead-lettered with this reason."""


class MalformedBatch(BatchError):
    """The bytes are not a sealed batch."""


class UnsupportedVersion(MalformedBatch):
    """A format version this program does not know."""


class UnsupportedSuite(MalformedBatch):
    """A cryptographic suite this program does not know."""


class BatchTooLarge(BatchError):
    """Over one of the limits on a batch; the limit is named."""


class UntrustedSender(BatchError):
    """The sender's certificate chain does not lead to our authority."""


class SenderCertificateNotValid(UntrustedSender):
    """The sender's certificate was not valid when the batch was made."""


class SenderMayNotSign(UntrustedSender):
    """The sender's certificate lacks CipherMQ's signing usage."""


class SenderRevoked(UntrustedSender):
    """The sender's certificate is on the revocation list."""


class SenderMismatch(BatchError):
    """The header names another sender than the certificate."""


class NotForThisReceiver(BatchError):
    """This receiver is not among the batch's receivers."""


class UnknownKey(BatchError):
    """It names a key of this receiver that this receiver never had."""


class BatchTooOld(BatchError):
    """Older than the greatest message age."""


class BatchExpired(BatchError):
    """Past the time to live its sender gave it."""


class BatchFromTheFuture(BatchError):
    """Made later than now, beyond the allowed skew."""


class BadSignature(BatchError):
    """The sender's signature does not verify: some byte was changed on the way."""


class WrapRefused(BatchError):
    """The session key does not open with the key the batch names."""


class CommitmentMismatch(BatchError):
    """The session key opened is not the one the header commits to."""


class BodyRefused(BatchError):
    """The body does not open, or what is inside is not well formed."""


class OnexNotEnabled(BatchError):
    """A message of CipherMQ 1.x, which nobody can verify, and this identity takes none."""


class DuplicateConflict(BatchError):
    """One batch id with two different contents."""


# --- faults of the receiver: it stops ----------------------------------------------------------


class ReceiverFault(CipherMQError):
    """The receiver can't judge or open batches now: it stops and leaves the queue as it is."""


class ClockWrong(ReceiverFault):
    """This machine's clock can't be right."""


class RevocationListStale(ReceiverFault):
    """The revocation list is missing, expired or not signed by our authority."""


class KeyMissing(ReceiverFault):
    """The private key that a batch names is not on this machine."""


class TokenAway(ReceiverFault):
    """A hardware token is not there, or does not answer in time. It may be back later."""


class InboxError(ReceiverFault):
    """The Inbox can't be read or written."""


# --- key records --------------------------------------------------------------------------------


class KeyRecordError(CipherMQError):
    """A receiver's public key can't be trusted, so nothing is sealed to it."""


class UnknownReceiver(KeyRecordError):
    """Nobody of that name has registered a key."""


class KeyRecordMalformed(KeyRecordError):
    """The bytes are not a key record."""


class KeyRecordForged(KeyRecordError):
    """Its signature or its certificate chain is wrong."""


class KeyRecordSwapped(KeyRecordError):
    """It is genuine, but belongs to another client than the one asked for."""


class KeyRecordExpired(KeyRecordError):
    """Past its own 'not after'."""


class KeyRecordNotYetValid(KeyRecordError):
    """Before its own 'not before'."""


class KeyRecordRolledBack(KeyRecordError):
    """Older than a version this identity has already seen."""


class KeyRecordRevoked(KeyRecordError):
    """Its owner's certificate is on the revocation list."""


class CertificateKeyChanged(KeyRecordError):
    """The owner's certificate key is not the one seen first; a person must decide."""


class KeyNotPinned(KeyRecordError):
    """A key of CipherMQ 1.x, for which nobody vouches, and no person has confirmed it."""


class PinnedKeyChanged(KeyRecordError):
    """A key of CipherMQ 1.x that is not the one a person has confirmed."""


# --- the peer and the road ----------------------------------------------------------------------


class RemoteProtocolError(CipherMQError):
    """The peer sent what the protocol forbids."""

    code = "protocol"


class FrameTooLarge(RemoteProtocolError):
    """A frame announces more bytes than its type may have."""


class UnknownFrame(RemoteProtocolError):
    """A frame of a type this side does not know."""


class MalformedFrame(RemoteProtocolError):
    """A frame whose body is not what its type demands."""


class TransportError(CipherMQError):
    """The connection could not be made, or ended."""


class ConnectFailed(TransportError):
    """Refused or unreachable: the server may be there later."""


class HostUnknown(ConnectFailed):
    """The server's name has no address: it is probably misspelt."""


class TlsFailed(TransportError):
    """TLS was refused by one side; the message says which and why."""


class ProtocolNotOffered(TransportError):
    """The server does not speak cmq/2."""


class ConnectionLost(TransportError):
    """The connection ended before the answer came."""


class WaitTimeout(TransportError):
    """A wait reached its limit; the message names what was waited for and how long."""

    code = "timeout"


# --- the broker's refusals ----------------------------------------------------------------------


class Refused(CipherMQError):
    """The broker said no."""


class AccessRefused(Refused):
    """This client may not do that."""


class NotFound(Refused):
    """No queue, exchange, message or client of that name."""


class PreconditionFailed(Refused):
    """It exists with other properties, is not empty, or is in use."""


class Unroutable(Refused):
    """No binding matches: the batch is returned, nothing was stored."""


class QueueFull(Refused):
    """One of the queues it goes to is full: nothing was stored in any."""


class NoSpace(Refused):
    """The broker's disk is full: nothing was stored."""


class AfterRefusal(Refused):
    """Refused because an earlier one on this connection was, to keep the order."""


class ConflictingDuplicate(Refused):
    """The broker has that batch id with other bytes."""


class ResourceLimit(Refused):
    """Over one of the broker's limits; the limit is named."""


class BadRequest(Refused):
    """The request makes no sense; the message says what would."""


class Superseded(Refused):
    """A newer consumer with the same client and name has taken over."""


class Unavailable(Refused):
    """The broker is stopping, its journal has failed, or its catalog is away."""


class InternalError(Refused):
    """The broker failed in a way it did not foresee; its log says more."""


# --- stores ------------------------------------------------------------------------------------


class JournalError(CipherMQError):
    """The durable log."""


class JournalDamaged(JournalError):
    """Bad bytes before good ones. Names file, offset and the command that salvages."""


class JournalInUse(JournalError):
    """Another broker has this directory open."""


class JournalFailed(JournalError):
    """A write or a sync failed; nothing after it is confirmed and the broker stops."""


class JournalFull(JournalError):
    """No space left on the device."""


class PayloadDamaged(JournalError):
    """One stored payload fails its checksum."""


class SegmentDropped(JournalError):
    """A payload's place was compacted away meanwhile; what is live has a newer place."""


class CatalogError(CipherMQError):
    """The catalog of public keys and metadata can't be read or written."""


class StoreError(CipherMQError):
    """An Outbox or trust file on a client's machine can't be read or written."""


class AlreadyDone(CipherMQError):
    """Another receiver has committed this message's effect meanwhile: skip it, it is acked."""


class Unfinished(CipherMQError):
    """A command or process ended before all that was asked for was done."""


def _walk(cls: type[Refused]) -> list[type[Refused]]:
    return [cls] + [found for sub in cls.__subclasses__() for found in _walk(sub)]


REFUSALS: dict[str, type[Refused]] = {cls.code: cls for cls in _walk(Refused)}
"""Wire code to exception, for the side that receives a refusal."""


def refusal(code: str, message: str) -> Refused:
    """The exception for a refusal that came over the wire; unknown codes become `Refused`."""
    return REFUSALS.get(code, Refused)(message)
