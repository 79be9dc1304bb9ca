"""Where a 1.x client's server is, as whom it comes there, and what both programs say to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography import x509

from ciphermq import limits
from ciphermq.client.onexline import OnexLine
from ciphermq.errors import ConfigError, IdentityError
from ciphermq.model.onex import Dialect, PayloadCipher, SessionSeal
from ciphermq.net.tls import onex_client_context
from ciphermq.pki import names
from ciphermq.settings.onexclient import BindingPart, ClientFile, Generation
from ciphermq.wire.lines import speech
from ciphermq.wire.lines.codec import encode_reply
from ciphermq.wire.lines.speech import Command, Other, Reply

LOCALHOST: Final = "localhost"
"""The server's name, whatever its address: so 1.x says it."""
RETRY_PAUSE: Final = 1.0
"""Seconds before a client connects again."""


class Says(Protocol):
    """How a program tells what it does: a line for the console, the same as facts for programs."""

    def __call__(self, event: str, line: str, /, **facts: Any) -> None:
        """`event`: one word for what happened; `line`: as the document of 1.x spells it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One server, and who comes to it."""

    host: str
    port: int
    client: str
    """The client's id: the CN of its certificate."""
    context: ssl.SSLContext
    """Of the files as they were at the start."""
    server_name: str
    read_context: Callable[[], ssl.SSLContext]
    """Of the files as they are now."""

    @classmethod
    def of(cls, file: ClientFile) -> Peer:
        """What a configuration says. `ConfigError` or `IdentityError` for files that are none."""
        tls = file.tls
        read_context = partial(
            onex_client_context,
            certificate=tls.client_cert_path,
            key=tls.client_key_path,
            authority=tls.certificate_path,
            check_name=tls.check_hostname,
            only_1_2=tls.protocol == "PROTOCOL_TLSv1_2",
        )
        # The senders of 1.5 ask for the address that they connect to; all others for this.
        named = file.server_address if file.generation is Generation.V1_5 else LOCALHOST
        return cls(
            file.server_address,
            file.server_port,
            _client_id(tls.client_cert_path),
            read_context(),
            named if tls.check_hostname else LOCALHOST,
            read_context,
        )

    async def connect(self, limit: float) -> OnexLine:
        """A connection, by the files as they are now; raises as `OnexLine.open`."""
        where, context = (self.host, self.port), await asyncio.to_thread(self._newest)
        return await OnexLine.open(where, context, server_name=self.server_name, limit=limit)

    def _newest(self) -> ssl.SSLContext:
        try:
            return self.read_context()
        except IdentityError:
            return self.context  # they are being replaced, and the former ones may still do


def check_files(file: ClientFile, path: Path) -> None:
    """`ConfigError` for the first file that the configuration at `path` names in vain."""
    for name, field in type(file.tls).model_fields.items():
        value = getattr(file.tls, name)
        if isinstance(value, Path) and not value.is_file():
            raise ConfigError(
                f'{path}: tls.{name} = "{value}": there is no such file; '
                f"allowed: {field.description}"
            )


def dialect_of(file: ClientFile, dialect: str | None, *, v1_5: bool) -> Dialect:
    """What is spoken: the one that is asked for, or the file's, or else its generation's.

    `v1_5`: whether what is there besides the file is of 1.5."""
    said, generation = file.one_x, file.generation
    newest = v1_5 or generation is Generation.V1_5
    usual = SessionSeal.V1_5 if newest else SessionSeal.V1_4
    apart = generation is Generation.V1_4_0 if said.separate_tag is None else said.separate_tag
    return Dialect(
        SessionSeal(dialect or said.dialect or usual),
        PayloadCipher(said.cipher or PayloadCipher.CHACHA20_POLY1305),
        apart,
    )


async def declare(line: OnexLine, binding: BindingPart, say: Says) -> None:
    """Declare a queue, an exchange and their binding. Refusals are told and passed over, as 1.x
    does: what follows tells whether they matter."""
    queue, exchange = binding.queue_name, binding.exchange_name
    commands: list[tuple[str, Command]] = [
        ("queue declaration", speech.DeclareQueue(queue)),
        ("exchange declaration", speech.DeclareExchange(exchange)),
        ("binding", speech.Bind(queue, exchange, binding.routing_key)),
    ]
    for what, command in commands:
        reply = await line.ask(command, limits.REQUEST_TIMEOUT)
        say("declared", f"Server response for {what}: {spell(reply)}", reply=spell(reply))


def spell(reply: Reply) -> str:
    """A reply as the server has said it."""
    return reply.text if isinstance(reply, Other) else encode_reply(reply).decode().rstrip("\n")


def _client_id(path: Path) -> str:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *names.UNREADABLE) as error:
        raise IdentityError(f"{path} can't be read as a certificate: {error}") from error
    return names.client_id_of(certificate, usage_required=False)
