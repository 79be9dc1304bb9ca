"""What went wrong in TLS, in words that tell the reader what to do.

Three kinds of failure reach either side: the peer's certificate did not pass our own check, the
peer sent an alert because ours did not pass its check, or what came was not TLS 1.3 at all. In
TLS 1.3 a client has finished its handshake before the server judges its certificate, so a
server's alert comes with the first read.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final

from ciphermq.errors import TlsFailed
from ciphermq.wire.cmq2.table import Role

_WRONG_AUTHORITY: Final = "was not issued by the authority this side trusts: wrong CA?"
_CLOCK: Final = "(or this machine's clock is wrong)"
_CRL: Final = "fetch a new one from the authority"

_CHECKS: Final[Mapping[int, str]] = {
    # X509_V_ERR_* of OpenSSL's x509_vfy.h
    2: f"certificate {_WRONG_AUTHORITY}",
    7: f"certificate {_WRONG_AUTHORITY}",
    18: f"certificate {_WRONG_AUTHORITY}",
    19: f"certificate {_WRONG_AUTHORITY}",
    20: f"certificate {_WRONG_AUTHORITY}",
    21: f"certificate {_WRONG_AUTHORITY}",
    9: f"certificate is not valid yet {_CLOCK}",
    10: f"certificate has expired {_CLOCK}: it must be renewed",
    23: "certificate has been revoked",
    26: "certificate is not made for this side of a connection",
    3: f"certificate can't be checked: there is no revocation list of its authority; {_CRL}",
    8: "certificate can't be checked: the revocation list is not signed by its authority",
    11: f"certificate can't be checked: the revocation list is not valid yet {_CLOCK}",
    12: f"certificate can't be checked: the revocation list has expired; {_CRL}",
}
"""Our own check of the peer's certificate failed: OpenSSL's code to "the peer's ..."."""

_NAME_MISMATCH: Final = frozenset({62, 64})

_ALERTS: Final[Mapping[str, str]] = {
    "CERTIFICATE_REQUIRED": "demands a certificate, and none was sent",
    "UNKNOWN_CA": "doesn't trust the authority that issued this side's certificate: wrong CA?",
    "CERTIFICATE_EXPIRED": "says that this side's certificate has expired, or can't judge it "
    "because its own revocation list has",
    "CERTIFICATE_REVOKED": "says that this side's certificate has been revoked",
    "BAD_CERTIFICATE": "refuses this side's certificate: not valid yet, or damaged",
    "UNSUPPORTED_CERTIFICATE": "refuses this side's certificate: not made for this use",
    "CERTIFICATE_UNKNOWN": "refuses this side's certificate",
    "DECRYPT_ERROR": "could not verify this side's signature: its key is not the certificate's",
    "PROTOCOL_VERSION": "doesn't speak TLS 1.3, which is required",
    "HANDSHAKE_FAILURE": "found no cipher that both sides have",
    "NO_APPLICATION_PROTOCOL": "speaks none of the protocols that were offered",
    "ACCESS_DENIED": "refuses this side's certificate",
    "INTERNAL_ERROR": "failed inside its own TLS",
}
"""The peer's alert (RFC 8446 section 6.2), without OpenSSL's prefix, to "the peer ..."."""

_UNEXPLAINED: Final = frozenset({"CERTIFICATE_UNKNOWN", "ACCESS_DENIED", "INTERNAL_ERROR"})
"""Alerts whose reason only the peer can tell."""

_NOT_TLS: Final = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "BAD_RECORD_TYPE",
        "UNEXPECTED_MESSAGE",
        "NO_PROTOCOLS_AVAILABLE",
        "INVALID_RECORD_TYPE",
    }
)

_OLD_TLS: Final = frozenset({"UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW"})


def explain(error: BaseException, peer: Role, where: str) -> TlsFailed:
    """`error`, of the handshake or after, with the `peer` that is at `where`."""
    return TlsFailed(f"TLS with the {peer.value} at {where} failed: {_sentence(error, peer)}")


def _sentence(error: BaseException, peer: Role) -> str:
    who = f"the {peer.value}"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME_MISMATCH:
            return f"{who}'s certificate is for another name: {error.verify_message}"
        found = _CHECKS.get(error.verify_code)
        return f"{who}'s {found}" if found else f"{who}'s certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return _of_library(error, peer)
    if isinstance(error, TimeoutError | ConnectionAbortedError):
        ours = str(error) if error.errno is None else ""  # how long it was waited for
        return f"{who} did not finish the handshake {ours or 'in time'}"
    if isinstance(error, ConnectionError | EOFError):
        return f"{who} ended the connection{where_to_look(peer)}"
    return f"{who}: {error}"


def where_to_look(peer: Role) -> str:
    """The rest of a sentence about something that only the peer can explain."""
    # A client's log, if it has one, is on a machine that a server's operator may never see.
    return "; its log says why" if peer is Role.SERVER else ""


def _of_library(error: ssl.SSLError, peer: Role) -> str:
    who, reason = f"the {peer.value}", error.reason or ""
    alert = reason.partition("_ALERT_")[2]
    if alert:
        said = f"{who} {_ALERTS.get(alert, f'sent the alert {alert.lower()}')}"
        if alert == "BAD_CERTIFICATE" and peer is Role.CLIENT:
            said += ", or for another name than it connected to"  # which only clients check
        return said + where_to_look(peer) if alert in _UNEXPLAINED else said
    if reason in _NOT_TLS:
        return f"{who} doesn't speak TLS there: plain TCP, or another protocol"
    if reason in _OLD_TLS:
        return f"{who} doesn't speak TLS 1.3, which is required"
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return f"{who} sent no certificate, which is required"
    if reason == "UNEXPECTED_EOF_WHILE_READING" or isinstance(error, ssl.SSLEOFError):
        return f"{who} ended the connection{where_to_look(peer)}"
    return f"{who}: {reason.lower().replace('_', ' ') or error}"
