"""RabbitMQ's management API, as far as a move needs it: definitions, users, connections."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from ciphermq import limits
from ciphermq.errors import ConnectFailed, MoveError

Json = dict[str, Any]
EVERYTHING: Final = {"configure": ".*", "write": ".*", "read": ".*"}

_QUEUE_COLUMNS: Final = (
    "name,type,durable,auto_delete,exclusive,arguments,effective_policy_definition"
)


class Management:
    """One broker's API. All paths are below its ``/api``; names in them are quoted here."""

    def __init__(
        self, url: str, user: str, password: str, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.user = user
        self._client = httpx.AsyncClient(
            base_url=f"{self.url}/api/",
            auth=(user, password),
            timeout=limits.MOVE_ANSWER_TIMEOUT,
            verify=tls if tls is not None else True,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def ask(self, method: str, *path: str, body: object = None, columns: str = "") -> Any:
        """What the API answers; None where it knows no such thing.

        Raises ConnectFailed, and MoveError with the API's own reason when it refuses.
        """
        where = "/".join(quote(part, safe="") for part in path)
        params = {"columns": columns} if columns else None
        return await self._request(method, where, json=body, params=params)

    async def _request(self, method: str, where: str, **more: Any) -> Any:
        try:
            answer = await self._client.request(method, where, **more)
        except httpx.HTTPError as error:
            raise ConnectFailed(
                f"The management API at {self.url} can't be reached: "
                f"{str(error) or type(error).__name__}"
            ) from error
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise MoveError(
                f"The management API at {self.url} refuses {method} {where} to user {self.user!r}, "
                f"whose password may be wrong or who may lack the tag administrator: "
                f"{_reason(answer)}"
            )
        if answer.is_error:
            raise MoveError(
                f"The management API at {self.url} refused {method} {where}: {_reason(answer)}"
            )
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise MoveError(
                f"{self.url} is not a management API: it answers {where} with something else"
            ) from error

    # --- what is there --------------------------------------------------------------------------

    async def identity(self) -> tuple[str, str, bool]:
        """The cluster's name, its version, and whether our user may publish in others' names.

        Raises MoveError when our user is no administrator: it could see only a part.
        """
        who = await self.ask("GET", "whoami")
        tags = who["tags"] if isinstance(who["tags"], list) else who["tags"].split(",")
        if "administrator" not in tags:
            raise MoveError(
                f"User {self.user!r} at {self.url} lacks the tag administrator: a move needs it to "
                "see all definitions and users"
            )
        overview = await self.ask("GET", "overview")
        node = f"{overview.get('cluster_name', '')} {overview.get('node', '')}".strip()
        return node, str(overview["rabbitmq_version"]), "impersonator" in tags

    async def queues(self, vhost: str) -> list[Json]:
        """All queues, exclusive ones too, with the policies that count for them."""
        found: list[Json] = await self.ask("GET", "queues", vhost, columns=_QUEUE_COLUMNS)
        return found

    async def connections(self, vhost: str) -> list[Json]:
        """Who is connected. A new connection appears within five seconds; one that has ended is
        gone at once."""
        columns = "name,user,peer_host,peer_port,client_properties"
        found: list[Json] = await self.ask("GET", "vhosts", vhost, "connections", columns=columns)
        return found

    async def permissions(self, vhost: str) -> dict[str, Json]:
        """Who may do what in the vhost, by user."""
        listed = await self.ask("GET", "vhosts", vhost, "permissions") or []
        return {each["user"]: {name: each[name] for name in EVERYTHING} for each in listed}

    async def topic_permissions(self, vhost: str) -> list[Json]:
        """Who may do what with topics."""
        listed = await self.ask("GET", "vhosts", vhost, "topic-permissions") or []
        return [
            {name: each[name] for name in ("user", "exchange", "write", "read")} for each in listed
        ]

    # --- what is changed ------------------------------------------------------------------------

    async def make_vhost(self, vhost: str, like: Mapping[str, Any]) -> None:
        """A virtual host with the description and tags of another broker's."""
        metadata = like.get("metadata") or {}
        body: Json = {"tracing": bool(like.get("tracing"))}
        if description := metadata.get("description"):
            body["description"] = description
        if tags := metadata.get("tags"):
            body["tags"] = ",".join(tags)
        kind = like.get("default_queue_type")
        if kind and kind != "undefined":
            body["default_queue_type"] = kind
        await self.ask("PUT", "vhosts", vhost, body=body)

    async def permit(self, vhost: str, user: str, rights: Mapping[str, str]) -> None:
        """Let a user into the vhost."""
        await self.ask("PUT", "permissions", vhost, user, body=dict(rights))

    async def delete_queue(self, vhost: str, queue: str) -> None:
        """Delete a queue that has neither messages nor consumers."""
        where = "/".join(quote(part, safe="") for part in ("queues", vhost, queue))
        await self._request("DELETE", where, params={"if-empty": "true", "if-unused": "true"})

    async def close_connection(self, name: str) -> None:
        """End a client's connection, with a reason that it is told."""
        headers = {"X-Reason": "the virtual host is moving"}
        await self._request("DELETE", f"connections/{quote(name, safe='')}", headers=headers)


def _reason(answer: httpx.Response) -> str:
    """What the API says is wrong, or at least its status."""
    try:
        said = answer.json()
        return f"{answer.status_code} {said.get('reason') or said.get('error')}"
    except (ValueError, AttributeError):
        return f"{answer.status_code} {answer.text[:200]}"
