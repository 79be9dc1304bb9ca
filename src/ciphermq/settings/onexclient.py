"""``config.json``: what the sender and the receiver of CipherMQ 1.x are configured by.

There were three generations of it, told apart by what stands in the file::

    1.4.0   neither of the two below; a sender may have ``queue_name`` and ``routing_key``
    1.4     ``bindings``, ``logging``
    1.5     a section ``sender``

Each is taken as it is. Relative paths count from the directory of the file, which is where 1.x had
to be started. A key that is not known is told and ignored, as 1.x ignored it; a value that can't
be used is an error that names file, key, value and what is allowed.

One section is ours, and 1.x passes over it: ``one_x``, for what a peer speaks where the file's
generation does not say it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ciphermq import limits
from ciphermq.errors import ConfigError
from ciphermq.settings.server import LoggingSection

FileT = TypeVar("FileT", bound="ClientFile")

_LONGEST_SHOWN: Final = 80


class Generation(StrEnum):
    """Which 1.x a file was written for."""

    V1_4_0 = "1.4.0"
    V1_4 = "1.4"
    V1_5 = "1.5"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    """A field's value as it reads in the file; a list or an object is none."""
    return json.dumps(value) if isinstance(value, int | float) else value


Name = Annotated[str, Field(pattern=r"^\S+$", max_length=limits.MAX_NAME)]
ClientId = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=limits.MAX_CLIENT_ID)
]
_NAME: Final = f"one word of at most {limits.MAX_NAME} characters"


class _Part(BaseModel):
    """A section: what is not known in it is told by `ClientFile.unknown`."""

    model_config = ConfigDict(extra="ignore", frozen=True, validate_default=False)


class TlsPart(_Part):
    """``tls``. The server's certificate is always verified; only its name may go unchecked."""

    certificate_path: Path = Field(description="the authority's certificate, a PEM file")
    client_cert_path: Path = Field(description="the client's certificate, a PEM file")
    client_key_path: Path = Field(description="the private key of that certificate, a PEM file")
    protocol: Literal["PROTOCOL_TLS_CLIENT", "PROTOCOL_TLS", "PROTOCOL_TLSv1_2"] = Field(
        default="PROTOCOL_TLS_CLIENT",
        description="PROTOCOL_TLS_CLIENT, PROTOCOL_TLS or PROTOCOL_TLSv1_2",
    )
    verify_mode: Literal["CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"] = Field(
        default="CERT_REQUIRED", description="CERT_REQUIRED, CERT_OPTIONAL or CERT_NONE"
    )
    check_hostname: bool = Field(default=False, description="true or false")


class LoggingPart(LoggingSection):
    """``logging``: the files; what is shown on the console does not depend on it."""

    model_config = ConfigDict(extra="ignore")

    directory: Path | None = Field(default=None, exclude=True, description="not in this file")
    console: bool = Field(default=False, exclude=True, description="not in this file")


class OnexPart(_Part):
    """``one_x``, ours: what the peers speak."""

    dialect: Literal["ciphermq-1.4", "ciphermq-1.5"] | None = Field(
        default=None, description="ciphermq-1.4 or ciphermq-1.5"
    )
    cipher: Literal["chacha20-poly1305", "aes-256-gcm"] | None = Field(
        default=None, description="chacha20-poly1305 or aes-256-gcm"
    )
    separate_tag: bool | None = Field(default=None, description="true or false")


class BindingPart(_Part):
    """One of ``bindings``: what a sender declares."""

    queue_name: Name = Field(description=_NAME)
    exchange_name: Name = Field(description=_NAME)
    routing_key: Name = Field(description=_NAME)


class MessagePart(_Part):
    """``sender.message``: what is sent."""

    content_template: str = Field(
        default="{sender_id}-CipherMQ Sample message with ID: {correlation_id}",
        description="text with {sender_id}, {correlation_id}, {timestamp}, {seq} and extra fields",
    )
    extra_fields: dict[str, Annotated[str, BeforeValidator(_as_text)]] = Field(
        default_factory=dict, description="texts by their names"
    )

    def render(self, **values: str) -> str:
        """The text with these values and the extra fields in place of their names."""
        text = self.content_template
        for name, value in {**values, **self.extra_fields}.items():
            text = text.replace(f"{{{name}}}", value)
        return text


class SenderPart(_Part):
    """``sender``: how much is sent, and how fast."""

    num_messages: int = Field(default=100, ge=0, description="messages, from 0")
    max_inflight: int = Field(default=20, ge=1, description="messages, from 1")
    max_retries: int = Field(default=3, ge=1, description="tries, from 1")
    ack_timeout_secs: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="seconds, above 0"
    )
    tcp_connect_timeout_secs: float = Field(
        default=120.0, gt=0, allow_inf_nan=False, description="seconds, above 0"
    )
    batch_size: int = Field(default=10, ge=1, description="messages, from 1")
    batch_delay_ms: float = Field(
        default=10.0, ge=0, allow_inf_nan=False, description="milliseconds, from 0"
    )
    message: MessagePart = Field(default_factory=MessagePart, description="a section")


_BEFORE: Final[Mapping[Generation, SenderPart]] = {
    # Ten in one `publish_batch`, the next ones a tenth of a second later.
    Generation.V1_4_0: SenderPart(
        num_messages=10, max_inflight=10, ack_timeout_secs=10.0, batch_delay_ms=100.0
    ),
    # One at a time.
    Generation.V1_4: SenderPart(max_inflight=1),
    Generation.V1_5: SenderPart(),
}
"""What senders did whose file has no section ``sender``."""


class ClientFile(_Part):
    """What both sides' files have."""

    exchange_name: Name = Field(description=_NAME)
    server_address: str = Field(
        pattern=r"^\S+$", description="a host's name or address, without the port"
    )
    server_port: int = Field(ge=1, le=65_535, description="a port, 1 to 65535")
    tls: TlsPart = Field(description="a section")
    logging: LoggingPart | None = Field(default=None, description="a section")
    one_x: OnexPart = Field(default_factory=OnexPart, description="a section")

    @property
    def generation(self) -> Generation:
        """Which 1.x the file is of."""
        return Generation.V1_4_0 if self.logging is None else Generation.V1_4


class ReceiverFile(ClientFile):
    """A receiver's. Those of 1.4 and 1.5 look the same."""

    queue_name: Name = Field(description=_NAME)
    routing_key: Name = Field(description=_NAME)


class SenderFile(ClientFile):
    """A sender's."""

    receiver_client_ids: Annotated[tuple[ClientId, ...], BeforeValidator(_listed)] = Field(
        default=("receiver_1",), min_length=1, description="a client's id, or a list of them"
    )
    bindings: tuple[BindingPart, ...] = Field(
        default=(), description="a list of sections with queue_name, exchange_name, routing_key"
    )
    queue_name: Name | None = Field(default=None, description=_NAME)
    routing_key: Name | None = Field(default=None, description=_NAME)
    sender: SenderPart | None = Field(default=None, description="a section")

    @property
    def generation(self) -> Generation:
        """Which 1.x the file is of."""
        if self.sender is not None:
            return Generation.V1_5
        return Generation.V1_4 if self.bindings else super().generation

    @property
    def pace(self) -> SenderPart:
        """The section ``sender``, or what was done before there was one."""
        return _BEFORE[self.generation] if self.sender is None else self.sender

    @property
    def declared(self) -> tuple[BindingPart, ...]:
        """What the sender declares: ``bindings``, or the one of 1.4.0."""
        if self.bindings or self.queue_name is None or self.routing_key is None:
            return self.bindings
        one = {"queue_name": self.queue_name, "routing_key": self.routing_key}
        return (BindingPart(exchange_name=self.exchange_name, **one),)

    def key_for(self, receiver: str) -> str:
        """The routing key of what is for `receiver`: that of the queue ``RECEIVER_queue``, if it
        is bound, else the one of 1.4.0, else ``RECEIVER_key``."""
        queue = f"{receiver}_queue"
        keys = {each.queue_name: each.routing_key for each in self.bindings}
        return keys.get(queue) or self.routing_key or f"{receiver}_key"


def load_client_file(path: Path, kind: type[FileT]) -> tuple[FileT, list[str]]:
    """The file `path` of this `kind`, its paths made absolute, and sentences about what in it is
    not known. `ConfigError` when it can't be used."""
    path = path.absolute()
    values = _parse(path)
    try:
        file = kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, path, kind)) from None
    unknown = [
        f"{path}: there is nothing called {name!r}{_suggestion(name, known)}; it is ignored"
        for name, known in _unknown(values, kind)
    ]
    return _with_absolute_paths(file, path.parent), unknown


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name the client's with --config") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: this is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a client's configuration is a JSON object")
    return values


def _with_absolute_paths(file: FileT, base: Path) -> FileT:
    changed: dict[str, Any] = {"tls": _absolute(file.tls, base)}
    if file.logging is not None:
        ours = {"directory": None, "console": False}  # whatever stands in the file
        changed["logging"] = _absolute(file.logging, base).model_copy(update=ours)
    return file.model_copy(update=changed)


PartT = TypeVar("PartT", bound=BaseModel)


def _absolute(part: PartT, base: Path) -> PartT:
    paths = {
        name: base / value.expanduser()
        for name in type(part).model_fields
        if isinstance(value := getattr(part, name), Path)
    }
    return part.model_copy(update=paths)


def _explain(error: ValidationError, path: Path, kind: type[ClientFile]) -> str:
    """The first fault in a sentence, and how many more there are."""
    faults = error.errors(include_url=False, include_context=False)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{path}: {_describe(faults[0], kind)}{more}"


def _describe(fault: ErrorDetails, kind: type[ClientFile]) -> str:
    location = fault["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    key, allowed = key.lstrip("."), _allowed(location, kind)
    if fault["type"] == "missing":
        return f"{key} is missing; allowed: {allowed}"
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{key} = {_shown(fault['input'])}: {reason[:1].lower()}{reason[1:]}; allowed: {allowed}"


def _allowed(location: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    """What the innermost key of `location` that the file's types know may be."""
    model: type[BaseModel] | None = kind
    allowed = ""
    for part in location:
        if model is None or not isinstance(part, str) or part not in model.model_fields:
            continue
        allowed = model.model_fields[part].description or allowed
        model = _model_in(model, part)
    return allowed


def _model_in(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section that a field holds, or holds a list of."""
    annotation = model.model_fields[name].annotation
    kinds = (annotation, *get_args(annotation))
    return next(
        (one for one in kinds if isinstance(one, type) and issubclass(one, _SECTIONS)), None
    )


_SECTIONS: Final = (_Part, LoggingPart)


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "…"


def _unknown(
    values: Mapping[str, Any], kind: type[BaseModel], inside: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Names of what `kind` does not know, and the names that it knows there."""
    known = [name for name, field in kind.model_fields.items() if not field.exclude]
    for name, value in values.items():
        if name not in known:
            yield f"{inside}{name}", [f"{inside}{each}" for each in known]
            continue
        model = _model_in(kind, name)
        if model is None:
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from _unknown(part, model, f"{inside}{name}.")


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {close[0]!r}?" if close else ""
