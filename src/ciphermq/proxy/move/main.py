"""``ciphermq-proxy-ctl SOCKET vhost move …``: find out what is to be done, and do it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from ciphermq.errors import CipherMQError, MoveRefused, MoveStopped, TransportError, UsageError
from ciphermq.proxy.model import Target
from ciphermq.proxy.move import arguments, progress
from ciphermq.proxy.move.arguments import Login
from ciphermq.proxy.move.broker import Broker, trust
from ciphermq.proxy.move.control import Proxy
from ciphermq.proxy.move.mover import Mover
from ciphermq.proxy.move.plan import Options, Plan, make_plan
from ciphermq.proxy.move.record import Record, Shelf, Side

DONE: Final = 0
WRONG_USAGE: Final = 1
UNREACHABLE: Final = 2
REFUSED: Final = 3
STOPPED: Final = 4


def main(socket: str, words: Sequence[str]) -> int:
    """Do what ``vhost move`` and these words say, by the proxy at `socket`; the exit code."""
    as_json = "--json" in words
    try:
        args = arguments.read(words)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(Path(socket), args))
    except UsageError as error:
        return _failed(error, WRONG_USAGE, as_json=as_json)
    except TransportError as error:
        return _failed(error, UNREACHABLE, as_json=as_json)
    except MoveStopped as error:
        return _failed(error, STOPPED, as_json=as_json)
    except CipherMQError as error:
        return _failed(error, REFUSED, as_json=as_json)
    except KeyboardInterrupt:
        return _failed(MoveRefused("Interrupted; nothing was changed"), REFUSED, as_json=as_json)
    return DONE


def _failed(error: CipherMQError, code: int, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": error.code, "message": str(error)}, ensure_ascii=False))
    else:
        print(error, file=sys.stderr)
    return code


async def _run(socket: Path, args: argparse.Namespace) -> None:
    shelf = Shelf(args.state, args.vhost)
    with shelf.claimed():
        work = asyncio.create_task(_Command(Proxy(socket), shelf, args).run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        await work


class _Command:
    """One call of the command."""

    def __init__(self, proxy: Proxy, shelf: Shelf, args: argparse.Namespace) -> None:
        self._proxy = proxy
        self._shelf = shelf
        self._args = args
        self._options = Options(
            leave_behind=args.leave_behind, close_others=args.close_others, prune=args.prune
        )

    async def run(self) -> None:
        """Begin a move, go on with one, or take one back."""
        args, known = self._args, self._shelf.read()
        logins = self._logins(known)
        under_way = known is not None and not known.finished and known.step != "prepared"
        if args.back:
            if known is None or known.step in {"undone", "prepared"}:
                raise MoveRefused(f"There is no move of vhost {args.vhost!r} to go back from")
            if known.step in {"done", "remapped"}:
                await self._begin(known.turned(), logins)
            else:
                await self._take_up(known, logins, back=True)
        elif known is not None and under_way:
            if known.target.name != args.to:
                raise MoveRefused(
                    f"Vhost {args.vhost!r} is on its way to {known.target}: finish that with --to "
                    f"{known.target.name}, or undo it with --back"
                )
            await self._take_up(known, logins, back=False)
        else:
            await self._begin(await self._new(logins, known), logins)

    # --- who and where --------------------------------------------------------------------------

    def _logins(self, known: Record | None) -> list[Login]:
        """Of the source and the target: as said now, or as they were said for the last move."""
        args, found = self._args, []
        for side in ("source", "target"):
            recorded: Side | None = getattr(known, side) if known is not None else None
            url = getattr(args, side)
            if url is None and recorded is None:
                raise UsageError(f"Say --{side} URL: the management API at that side")
            file = getattr(args, f"{side}_password_file")
            variable = arguments.SOURCE_VARIABLE if side == "source" else arguments.TARGET_VARIABLE
            if url is None and recorded is not None:
                found.append(arguments.login(recorded.management, recorded.user, file, variable))
            else:
                found.append(arguments.login(url, None, file, variable))
        return found

    async def _new(self, logins: list[Login], known: Record | None) -> Record:
        args = self._args
        now = await self._proxy.target(args.vhost)
        then = Target("farm", args.to)
        if now == then:
            raise MoveRefused(f"Vhost {args.vhost!r} is mapped to farm {args.to} already")
        return Record(
            vhost=args.vhost,
            source=await self._side(now, logins[0], args.source_amqp),
            target=await self._side(then, logins[1], args.target_amqp),
            granted=known.granted if known is not None else set(),
        )

    async def _side(self, target: Target, login: Login, said: list[str]) -> Side:
        addresses = [arguments.address(each) for each in said]
        if not addresses:
            backends = await self._proxy.backends(target)
            if wanting := [each.name for each in backends if each.proxy_protocol]:
                option = "--source-amqp or --target-amqp"
                raise MoveRefused(
                    f"Backend {wanting[0]!r} takes only connections with a PROXY header: say with "
                    f"{option} by which address its messages can be moved"
                )
            addresses = [(each.host, each.port, each.tls) for each in backends]
        return Side(
            kind=target.kind,
            name=target.name,
            management=login.url,
            user=login.user,
            addresses=tuple(addresses),
        )

    # --- what is done ---------------------------------------------------------------------------

    async def _begin(self, record: Record, logins: list[Login]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            source, target = [
                await stack.enter_async_context(each) for each in self._brokers(record, logins)
            ]
            plan = await make_plan(self._args.vhost, source, target, self._options)
            if self._args.json and (self._args.dry_run or plan.problems):
                _print_json(plan)
            elif not self._args.json:
                _print_plan(plan)
            if plan.problems:
                raise MoveRefused(f"Not moved: {'; '.join(plan.problems)}")
            if not self._args.dry_run:
                self._shelf.write(record)
                await self._move(self._mover(record, source, target), back=False)

    async def _take_up(self, record: Record, logins: list[Login], *, back: bool) -> None:
        where = f"Move of vhost {record.vhost!r} from {record.source} to {record.target}"
        if self._args.dry_run:
            print(f"{where}: {record.step}; would {'be undone' if back else 'go on'}")
            return
        print(f"{where}: {'back' if back else 'goes on'}", file=sys.stderr)
        async with contextlib.AsyncExitStack() as stack:
            source, target = [
                await stack.enter_async_context(each) for each in self._brokers(record, logins)
            ]
            await source.greet()
            await target.greet()
            await self._move(self._mover(record, source, target), back=back)

    def _brokers(self, record: Record, logins: list[Login]) -> list[Broker]:
        """With the login that belongs to each: a record may be the other way round."""
        tls, found = trust(self._args.ca), []
        for side in (record.source, record.target):
            login = next((each for each in logins if each.url == side.management), None)
            if login is None:
                raise UsageError(
                    f"The move of vhost {record.vhost!r} is between {record.source.management} "
                    f"and {record.target.management}: say these as --source and --target, or none"
                )
            found.append(Broker(side, login.password, tls))
        return found

    def _mover(self, record: Record, source: Broker, target: Broker) -> Mover:
        shown = progress.Lines() if self._args.json else progress.choose()
        brokers = (source, target)
        return Mover(record, self._shelf, self._proxy, brokers, self._options, shown)

    async def _move(self, mover: Mover, *, back: bool) -> None:
        began = time.monotonic()
        moved = await (mover.undo() if back else mover.go_on())
        seconds = round(time.monotonic() - began, 1)
        record = mover.record
        if self._args.json:
            side = record.source if record.step == "undone" else record.target
            result = {"vhost": record.vhost, "at": str(side), "messages": moved}
            print(json.dumps(result | {"seconds": seconds}))
        elif record.step == "undone":
            print(f"Vhost {record.vhost!r} is at {record.source}, as before ({seconds} s)")
        else:
            print(f"Vhost {record.vhost!r} is at {record.target} now ({seconds} s)")


def _print_json(plan: Plan) -> None:
    print(msgspec.json.format(msgspec.json.encode(plan), indent=2).decode())


def _print_plan(plan: Plan) -> None:
    for line in plan.lines():
        print(line)
