"""TLS towards clients and towards brokers, made of the configuration.

Files are read when a context is first asked for, so a file that is missing stops those who need
it, with its name, and nobody else. A changed configuration makes new `Contexts`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ciphermq.errors import ConfigError
from ciphermq.proxy.model import Backend, Configuration, Listener, TlsSettings

_OPTIONS: Final = ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
"""Renegotiation lets a peer change who it is, and make us compute at will."""


class Contexts:
    """Implements `gate.Contexts`."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def ingress(self, listener: Listener) -> ssl.SSLContext:
        """See `gate.Contexts`. Every secure listener has the same."""
        return self._ingress

    def egress(self, backend: Backend) -> ssl.SSLContext:
        """See `gate.Contexts`. Every backend has the same; its name is checked at the handshake,
        where its certificate is."""
        return self._egress

    @cached_property
    def _ingress(self) -> ssl.SSLContext:
        settings = self._configuration.ingress
        context = _server(settings, settings.chain_file, settings.key_file)
        named = {
            one.server_name: _server(settings, one.chain_file, one.key_file)
            for one in settings.certificates
        }
        if named:
            context.sni_callback = _choose(named)
        return context

    @cached_property
    def _egress(self) -> ssl.SSLContext:
        settings = self._configuration.egress
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.options |= _OPTIONS
        if not _verifies(settings):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif settings.ca_file:
            _authorities(context, settings.ca_file)
        else:
            context.load_default_certs()
        if settings.chain_file:
            _own(context, settings.chain_file, settings.key_file)
        _ciphers(context, settings)
        return context


def _server(settings: TlsSettings, chain_file: str, key_file: str) -> ssl.SSLContext:
    if not chain_file:
        raise ConfigError(
            "TLS towards clients has no certificate: set TLS INGRESS CERT_CHAIN_FILE and KEY_FILE"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= _OPTIONS
    # A resumed session would come without its certificate being looked at again.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    _own(context, chain_file, key_file)
    if settings.ca_file:
        _authorities(context, settings.ca_file)
    if _verifies(settings):
        strict = "fail_if_no_peer_cert" in settings.verify
        context.verify_mode = ssl.CERT_REQUIRED if strict else ssl.CERT_OPTIONAL
    if settings.dh_file:
        _read(settings.dh_file, lambda: context.load_dh_params(settings.dh_file))
    _ciphers(context, settings)
    return context


def _verifies(settings: TlsSettings) -> bool:
    """Whether the peer's certificate is looked at. ``NONE`` is the default, as in amqpprox."""
    return bool(set(settings.verify) - {"none"})


def _choose(named: dict[str, ssl.SSLContext]) -> Callable[[Any, str | None, Any], None]:
    def chosen(sock: ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        name = (name or "").lower()
        wild = "*." + name.partition(".")[2]
        if (context := named.get(name) or named.get(wild)) is not None:
            sock.context = context

    return chosen


def _own(context: ssl.SSLContext, chain_file: str, key_file: str) -> None:
    def no_passphrase() -> str:
        # Without this OpenSSL would ask on the terminal.
        raise ConfigError(f"the private key {key_file or chain_file} is encrypted: decrypt it")

    _read(
        f"{chain_file} with {key_file}" if key_file else chain_file,
        lambda: context.load_cert_chain(chain_file, key_file or None, no_passphrase),
    )


def _authorities(context: ssl.SSLContext, ca_file: str) -> None:
    where = {"capath": ca_file} if Path(ca_file).is_dir() else {"cafile": ca_file}
    _read(ca_file, lambda: context.load_verify_locations(**where))


def _ciphers(context: ssl.SSLContext, settings: TlsSettings) -> None:
    if settings.ciphers:
        _read(f"cipher list {settings.ciphers}", lambda: context.set_ciphers(settings.ciphers))


def _read(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except OSError as error:
        raise ConfigError(f"TLS can't use {what}: {error.strerror or error}") from error
