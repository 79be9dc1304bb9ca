"""LISTEN, TLS, LIMIT, AUTH, TIMEOUT: who comes in, and how."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import stat
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec import to_builtins

from ciphermq import limits
from ciphermq.errors import ProxyError
from ciphermq.proxy.change import (
    AddCertificate,
    DeleteCertificate,
    ResetTls,
    SetAuth,
    SetCiphers,
    SetExternal,
    SetLimit,
    SetTimeout,
    SetTlsFile,
    SetVerify,
    StartListening,
    StopListening,
    TlsFile,
)
from ciphermq.proxy.control.grammar import Call
from ciphermq.proxy.control.rules import Answer, rule
from ciphermq.proxy.model import (
    AuthService,
    Certificate,
    ExternalUser,
    LimitKind,
    Listener,
    Side,
    TlsSettings,
    VerifyMode,
)
from ciphermq.proxy.office import Office
from ciphermq.proxy.timeouts import Timeouts

# --- LISTEN ----------------------------------------------------------------------------------


@rule("LISTEN START|START_SECURE port [ADDRESS address] [PROXY]")
async def start_listening(office: Office, call: Call) -> None:
    """Take clients at a port (with TLS); PROXY: behind a balancer that sends the PROXY header.

    Without an address it listens on all of both families. A port that is in use is an error, and
    nothing else changes.
    """
    listener = Listener(
        port=call["port"],
        address=call.get("address") or "",
        secure=call.keywords[1] == "START_SECURE",
        proxy_header="PROXY" in call.keywords,
    )
    await office.change(StartListening(listener))


@rule("LISTEN STOP [port] [ADDRESS address]")
async def stop_listening(office: Office, call: Call) -> None:
    """Take no more clients at a port, or at any; sessions go on."""
    await office.change(StopListening(call.get("port"), call.get("address")))


@rule("LISTEN PRINT")
async def print_listeners(office: Office, call: Call) -> Answer:
    """Show where clients are taken."""
    listeners = sorted(office.configuration.listeners, key=lambda one: one.key)
    lines = [
        f"{'START_SECURE' if one.secure else 'START'} {one.port}"
        f"{f' ADDRESS {one.address}' if one.address else ''}"
        f"{' PROXY' if one.proxy_header else ''}\n"
        for one in listeners
    ]
    return Answer("".join(lines), to_builtins(listeners))


# --- TLS -------------------------------------------------------------------------------------


def _side(call: Call) -> Side:
    return "ingress" if call.keywords[1] == "INGRESS" else "egress"


_FILES: Final[dict[str, TlsFile]] = {
    "KEY_FILE": "key_file",
    "RSA_KEY_FILE": "key_file",
    "CERT_CHAIN_FILE": "chain_file",
    "TMP_DH_FILE": "dh_file",
    "CA_CERT_FILE": "ca_file",
}


def _read(path: str) -> tuple[Path, bytes]:
    """A file's absolute path, which still holds after a restart elsewhere, and what is in it."""
    whole = Path(path).absolute()
    try:
        if not stat.S_ISREG(whole.stat().st_mode):  # a pipe would be waited for
            raise ProxyError(f"{whole} is not a file.")
        with whole.open("rb") as file:
            content = file.read(limits.PROXY_PEM + 1)
    except OSError as error:
        raise ProxyError(f"{whole} can't be read: {error.strerror}") from None
    if len(content) > limits.PROXY_PEM:
        raise ProxyError(f"{whole} has more than {limits.PROXY_PEM} bytes.")
    return whole, content


async def _pem(path: str, member: TlsFile) -> str:
    """The absolute path of a file that is what it should be. `ProxyError` if it isn't.

    A chain is not compared with the key beside it: when both are renewed, one comes first.
    """
    whole, content = await asyncio.to_thread(_read, path)
    try:
        if member == "key_file":
            load_pem_private_key(content, None)
        elif member != "dh_file":
            x509.load_pem_x509_certificates(content)
    except TypeError:
        raise ProxyError(f"{whole} has a passphrase, which the proxy can't be told.") from None
    except ValueError as error:
        wanted = "private key" if member == "key_file" else "certificates"
        raise ProxyError(f"{whole} has no {wanted} in PEM: {error}") from None
    return str(whole)


@rule("TLS INGRESS|EGRESS KEY_FILE|RSA_KEY_FILE|CERT_CHAIN_FILE|CA_CERT_FILE|TMP_DH_FILE file")
async def set_tls_file(office: Office, call: Call) -> None:
    """Set a file of PEM, or have it read anew; ingress is from clients, egress to brokers.

    The file must be there, in PEM and without a passphrase. A renewed one is read when the command
    is said again, or the configuration is reloaded.
    """
    member = _FILES[call.keywords[2]]
    await office.change(SetTlsFile(_side(call), member, await _pem(call["file"], member)))


@rule("TLS INGRESS|EGRESS VERIFY_MODE NONE|PEER|FAIL_IF_NO_PEER_CERT|CLIENT_ONCE...")
async def set_verify(office: Office, call: Call) -> None:
    """Say what is asked of the other side's certificate.

    NONE asks for nothing; PEER checks one that is shown (a broker's always is); with
    FAIL_IF_NO_PEER_CERT clients must show one. CLIENT_ONCE changes nothing here: there is no
    renegotiation.
    """
    words: dict[str, VerifyMode] = {
        "NONE": "none",
        "PEER": "peer",
        "FAIL_IF_NO_PEER_CERT": "fail_if_no_peer_cert",
        "CLIENT_ONCE": "client_once",
    }
    modes = tuple(words[word] for word in call.keywords[3:])
    await office.change(SetVerify(_side(call), modes))


def _suites(ciphers: str) -> list[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if ciphers:
        try:
            context.set_ciphers(ciphers)
        except (ssl.SSLError, ValueError):
            raise ProxyError(f"OpenSSL knows none of these ciphers: {ciphers}") from None
    return [str(suite["name"]) for suite in context.get_ciphers()]


@rule("TLS INGRESS|EGRESS CIPHERS PRINT")
async def print_ciphers(office: Office, call: Call) -> Answer:
    """Show which cipher suites are taken."""
    suites = _suites(getattr(office.configuration, _side(call)).ciphers)
    return Answer("Ciphers:\n" + "".join(f"{suite}\n" for suite in suites), suites)


@rule("TLS INGRESS|EGRESS CIPHERS SET ciphers")
async def set_ciphers(office: Office, call: Call) -> None:
    """Say which cipher suites of TLS 1.2 are taken.

    Those of TLS 1.3 are always taken.
    """
    _suites(call["ciphers"])
    await office.change(SetCiphers(_side(call), call["ciphers"]))


@rule("TLS INGRESS SNI ADD server_name chain_file key_file")
async def add_certificate(office: Office, call: Call) -> None:
    """Show clients that ask for this name a certificate of its own.

    `*.example.org` stands for any label before that.
    """
    certificate = Certificate(
        server_name=call["server_name"].lower(),
        chain_file=await _pem(call["chain_file"], "chain_file"),
        key_file=await _pem(call["key_file"], "key_file"),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate.chain_file, certificate.key_file)
    except ssl.SSLError:
        raise ProxyError(
            f"{certificate.key_file} is not the key of {certificate.chain_file}."
        ) from None
    await office.change(AddCertificate(certificate))


@rule("TLS INGRESS SNI DELETE server_name")
async def delete_certificate(office: Office, call: Call) -> None:
    """Show clients that ask for this name the usual one."""
    await office.change(DeleteCertificate(call["server_name"].lower()))


@rule("TLS INGRESS|EGRESS RESET")
async def reset_tls(office: Office, call: Call) -> None:
    """Forget all of one side's files, names, ciphers and modes."""
    await office.change(ResetTls(_side(call)))


@rule("TLS INGRESS|EGRESS PRINT")
async def print_tls(office: Office, call: Call) -> Answer:
    """Show one side's TLS."""
    settings: TlsSettings = getattr(office.configuration, _side(call))
    members = {
        "KEY_FILE": settings.key_file,
        "CERT_CHAIN_FILE": settings.chain_file,
        "CA_CERT_FILE": settings.ca_file,
        "TMP_DH_FILE": settings.dh_file,
        "VERIFY_MODE": " ".join(settings.verify).upper(),
        "CIPHERS": settings.ciphers,
    }
    lines = [f"{name} {value}\n" for name, value in members.items() if value]
    lines += [
        f"SNI {one.server_name} {one.chain_file} {one.key_file}\n" for one in settings.certificates
    ]
    return Answer("".join(lines), to_builtins(settings))


# --- LIMIT -----------------------------------------------------------------------------------

_KINDS: Final[dict[str, LimitKind]] = {
    "CONN_RATE": "conn_rate",
    "CONN_RATE_ALARM": "conn_rate_alarm",
    "CONNECTIONS": "connections",
    "TOTAL_CONN": "connections",
    "CONNECTIONS_ALARM": "connections_alarm",
    "TOTAL_CONN_ALARM": "connections_alarm",
    "DATA_RATE": "data_rate",
    "DATA_RATE_ALARM": "data_rate_alarm",
}
_UNITS: Final[dict[LimitKind, str]] = {
    "conn_rate": "connections a second",
    "conn_rate_alarm": "connections a second, beyond which it is logged",
    "connections": "connections at a time",
    "connections_alarm": "connections at a time, beyond which it is logged",
    "data_rate": "bytes a second from each client",
    "data_rate_alarm": "bytes a second from each client, beyond which it is logged",
}


@rule(
    "LIMIT DATA_RATE|DATA_RATE_ALARM VHOST vhost bytes",
    "Limit what each client of one vhost sends; this goes before the default",
)
@rule(
    "LIMIT DATA_RATE|DATA_RATE_ALARM DEFAULT bytes",
    "Limit what each client of any vhost sends, in bytes a second; alarms only log",
)
@rule(
    "LIMIT CONN_RATE|CONN_RATE_ALARM|CONNECTIONS|CONNECTIONS_ALARM|TOTAL_CONN|TOTAL_CONN_ALARM"
    " VHOST vhost number",
    "Limit one vhost's connections; this goes before the default",
)
@rule(
    "LIMIT CONN_RATE|CONN_RATE_ALARM|CONNECTIONS|CONNECTIONS_ALARM|TOTAL_CONN|TOTAL_CONN_ALARM"
    " DEFAULT number",
    "Limit every vhost's connections, a second or at a time; alarms only log",
)
async def set_limit(office: Office, call: Call) -> None:
    """Beyond a limit of connections a client is closed with 506; data is paced, not cut.

    Limits of connections hold for the whole proxy, those of data for each connection. TOTAL_CONN
    is another word for CONNECTIONS.
    """
    value = call.get("bytes")
    if value is None:
        value = call["number"]
    await office.change(SetLimit(_KINDS[call.keywords[1]], call.get("vhost"), value))


@rule(f"LIMIT DISABLE {'|'.join(_KINDS)} VHOST vhost", "Take away a vhost's own limit")
@rule(f"LIMIT DISABLE {'|'.join(_KINDS)} DEFAULT", "Take away a limit of every vhost")
async def disable_limit(office: Office, call: Call) -> None:
    """A vhost without one of its own has the default."""
    await office.change(SetLimit(_KINDS[call.keywords[2]], call.get("vhost"), None))


@rule("LIMIT PRINT [vhost]")
async def print_limits(office: Office, call: Call) -> Answer:
    """Show all limits, or those that hold for a vhost."""
    now = office.configuration
    vhost = call.get("vhost")
    if vhost is not None:
        held = {kind: now.limit(kind, vhost) for kind in _UNITS}
        value = {kind: number for kind, number in held.items() if number is not None}
        lines = [f"{kind.upper()}: {value[kind]} {_UNITS[kind]}\n" for kind in value]
        return Answer("".join(lines) or f"No limits hold for vhost {vhost}.\n", value)
    lines = []
    for kind, unit in _UNITS.items():
        limit = now.limits.get(kind)
        if limit is None:
            continue
        if limit.default is not None:
            lines.append(f"{kind.upper()} DEFAULT: {limit.default} {unit}\n")
        lines += [
            f"{kind.upper()} VHOST {vhost}: {number} {unit}\n"
            for vhost, number in sorted(limit.vhosts.items())
        ]
    return Answer("".join(lines) or "No limits are set.\n", to_builtins(now.limits))


# --- AUTH ------------------------------------------------------------------------------------


@rule("AUTH SERVICE host port target")
async def set_auth(office: Office, call: Call) -> None:
    """Ask an HTTP service about every new session.

    It is sent a protobuf over HTTP. Clients it denies, and all of them while it can't be reached,
    are closed with 403.
    """
    await office.change(SetAuth(AuthService(call["host"], call["port"], call["target"])))


@rule("AUTH ALWAYS_ALLOW")
async def always_allow(office: Office, call: Call) -> None:
    """Ask nobody: the broker decides alone."""
    await office.change(SetAuth(None))


@rule("AUTH EXTERNAL ADD certificate user password_file")
async def add_external(office: Office, call: Call) -> None:
    """Log clients with this certificate's name and mechanism EXTERNAL in at the broker as a user.

    The client proves the certificate's common name by TLS; the proxy logs in at the broker with
    PLAIN. The password's file is read when it is needed, and never shown.
    """
    path, _ = await asyncio.to_thread(_read, call["password_file"])
    await office.change(SetExternal(call["certificate"], ExternalUser(call["user"], str(path))))


@rule("AUTH EXTERNAL DELETE certificate")
async def delete_external(office: Office, call: Call) -> None:
    """Log clients with this certificate's name in no more."""
    await office.change(SetExternal(call["certificate"], None))


@rule("AUTH PRINT")
async def print_auth(office: Office, call: Call) -> Answer:
    """Show who is asked about new sessions."""
    now = office.configuration
    service = now.auth
    lines = [
        f"SERVICE {service.host} {service.port} {service.target}\n" if service else "ALWAYS_ALLOW\n"
    ]
    lines += [
        f"EXTERNAL {name} {user.user} {user.password_file}\n"
        for name, user in sorted(now.external.items())
    ]
    return Answer(
        "".join(lines), {"service": to_builtins(service), "external": to_builtins(now.external)}
    )


# --- TIMEOUT ---------------------------------------------------------------------------------

_PHASES: Final = {field.name: field.default for field in dataclasses.fields(Timeouts)}


def _phase(call: Call) -> str:
    name: str = call["phase"].lower()
    if name not in _PHASES:
        raise ProxyError(f"No phase '{name}'; there are {', '.join(_PHASES)}.")
    return name


@rule("TIMEOUT SET phase seconds")
async def set_timeout(office: Office, call: Call) -> None:
    """Say how long a phase of a session may take.

    TIMEOUT PRINT shows the phases.
    """
    await office.change(SetTimeout(_phase(call), call["seconds"]))


@rule("TIMEOUT RESET phase")
async def reset_timeout(office: Office, call: Call) -> None:
    """Let a phase take as long as it does by itself."""
    await office.change(SetTimeout(_phase(call), None))


@rule("TIMEOUT PRINT")
async def print_timeouts(office: Office, call: Call) -> Answer:
    """Show how long phases may take, in seconds."""
    value = {**_PHASES, **office.configuration.timeouts}
    return Answer("".join(f"{name} = {seconds:g}\n" for name, seconds in value.items()), value)
