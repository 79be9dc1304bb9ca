"""From an admitted client to a broker that has taken it in: one backend after another."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ciphermq.errors import CipherMQError
from ciphermq.proxy.dial import dial
from ciphermq.proxy.egress import Approach, Declined, Opened, Replay
from ciphermq.proxy.end import End
from ciphermq.proxy.gate import Admission, Contexts, Gate, Opening, Refusal
from ciphermq.proxy.ingress import Ingress
from ciphermq.proxy.model import Backend
from ciphermq.proxy.proxyheader import Source
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.wire.amqp import closing, properties

if TYPE_CHECKING:
    from ciphermq.proxy.session import Session

_HERE: Final = socket.gethostname()
_OWN: Final = frozenset(
    {b"amqpprox_client", b"amqpprox_host", b"amqpprox_auth", b"amqpprox_certificate"}
)
"""Client properties that brokers may take for the proxy's word: a client's own go no further."""


class Found(NamedTuple):
    """A broker that gave an answer: OpenOk, or its refusal."""

    backend: Backend
    end: End
    outcome: Opened | Declined


async def admit(gate: Gate, opening: Opening, session: Session) -> Admission:
    """What the gate says; never EXTERNAL in the client's name. Raises `Refusal`."""
    admission = await gate.admit(opening, session)
    if opening.mechanism == "EXTERNAL" and admission.mechanism in (None, "EXTERNAL"):
        # To the broker the certificate would be the proxy's own: the client would be it.
        raise Refusal(
            closing.ACCESS_REFUSED,
            "ACCESS_REFUSED - Login was refused using authentication mechanism EXTERNAL.",
            "denied",
        )
    return admission


async def find_broker(
    ingress: Ingress,
    opening: Opening,
    admission: Admission,
    source: Source,
    gate: Gate,
    contexts: Contexts,
    timeouts: Timeouts,
) -> Found:
    """The first backend of the gate's order that answers. Raises `Refusal` when none does.

    A backend that fails before its OpenOk costs nothing but time: the client has heard nothing
    of it, and what it said to us is said to the next. `source` is the client as PROXY headers
    name it.
    """
    tried = 0
    for backend in gate.route(opening):
        tried += 1
        end: End | None = None
        try:
            end = await dial(backend, source, contexts, timeouts)
            replay = _replay(ingress, opening, admission, end)
            approach = Approach(end, backend, replay, timeouts, partial(gate.connected, backend))
            return Found(backend, end, await approach.run())
        except (CipherMQError, OSError) as error:
            gate.failed(backend, error)
            if end is not None:
                end.close()
        except BaseException:
            if end is not None:
                end.close()
            raise
    raise Refusal(
        closing.CONNECTION_FORCED,
        f"CONNECTION_FORCED - no broker for vhost '{opening.vhost}' can be reached, {tried} tried",
    )


def _replay(ingress: Ingress, opening: Opening, admission: Admission, end: End) -> Replay:
    """The client's handshake, with what the proxy adds to it."""
    start_ok = ingress.start_ok
    client = f"{admission.client_name or opening.client}:{opening.client_port}"
    port = end.sock.getsockname()[1]
    added = {
        "amqpprox_client": f"{client} TLS" if opening.tls else client,
        "amqpprox_host": f"(:{opening.listen_port}) {_HERE}:{port}",
    }
    if admission.auth_reason is not None:
        added["amqpprox_auth"] = admission.auth_reason
    if opening.certificate_name is not None:
        added["amqpprox_certificate"] = opening.certificate_name
    if not _OWN.isdisjoint(start_ok.fields):
        kept = properties.without(start_ok.properties, _OWN)
        start_ok = start_ok._replace(properties=kept)
    if admission.mechanism is not None:
        start_ok = start_ok._replace(mechanism=admission.mechanism)
    if admission.credentials is not None:
        start_ok = start_ok._replace(response=admission.credentials)
    return Replay(
        properties.write_start_ok(start_ok, added) + ingress.tune_ok + ingress.open,
        properties.capability(start_ok.fields, b"authentication_failure_close"),
    )
