"""``vhost move`` between two real nodes, behind the real proxy, as an operator calls it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiormq
import pytest

from ciphermq import limits
from ciphermq.proxy.move.drain import is_ours
from ciphermq.proxy.move.main import DONE, REFUSED, STOPPED, UNREACHABLE
from support.moving import Site
from support.rabbitmq import wait_until
from support.traffic import Consumer, Publisher


@pytest.fixture
async def running() -> AsyncIterator[asyncio.TaskGroup]:
    """Applications that are ended with the test, if they have not ended by themselves."""
    async with asyncio.TaskGroup() as group:
        yield group
        for task in tuple(group._tasks):
            task.cancel()


async def finished(*clients: Publisher | Consumer, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not all(client.done for client in clients):
            await asyncio.sleep(0.05)


# --- there and back ------------------------------------------------------------------------------


async def test_there_and_back_while_applications_work(
    site: Site, running: asyncio.TaskGroup
) -> None:
    count, moves = 3000, 4
    site.queue("busy")
    site.queue("kept")
    publishers = [Publisher(site.url, "busy", count), Publisher(site.url, "kept", count)]
    consumer = Consumer(site.url, "busy", count)
    for client in (*publishers, consumer):
        running.create_task(client.run())
    for number in range(moves):
        for publisher in publishers:
            publisher.allow(count * (number + 1) // moves)
        there = number % 2 == 0
        await site.move(*(("--to", "green") if there else ("--back",)))
        assert site.farm == ("green" if there else "blue")
        assert not site.paused
    await finished(*publishers, consumer)
    assert consumer.in_order == list(range(count))
    assert site.green.counts() == {"busy": 0, "kept": 0}
    late = Consumer(site.url, "kept", count)
    await late.run()
    assert late.in_order == list(range(count))
    assert consumer.connections > 1
    for vhost in (site.blue, site.green):
        exchanges = vhost.node.api("GET", f"exchanges/{vhost.quoted}")
        assert not any(is_ours(each["name"]) for each in exchanges)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_ten_times_there_and_back_under_load(site: Site, running: asyncio.TaskGroup) -> None:
    """100,000 numbered messages, all arrive, in the order of each queue."""
    moves, count = 20, 25_000
    busy, kept = ["one", "two", "three"], "four"
    for name in (*busy, kept):
        site.queue(name)
    publishers = [Publisher(site.url, name, count) for name in (*busy, kept)]
    consumers = [Consumer(site.url, name, count) for name in busy]
    for client in (*publishers, *consumers):
        running.create_task(client.run())
    for number in range(moves):
        # Each move meets publishers that have work to do, on a fast machine as on a slow one.
        for publisher in publishers:
            publisher.allow(count * (number + 1) // moves)
        await site.move(*(("--to", "green") if number % 2 == 0 else ("--back",)))
    await finished(*publishers, *consumers, seconds=200)
    last = Consumer(site.url, kept, count)
    await last.run()
    for consumer in (*consumers, last):
        assert consumer.in_order == list(range(count))
    assert sum(site.blue.counts().values()) == 0


# --- what is copied ------------------------------------------------------------------------------


async def test_all_definitions_are_copied(site: Site) -> None:
    blue, green, vhost = site.blue.node, site.green.node, site.blue.quoted
    blue.api("PUT", f"vhosts/{vhost}", {"description": "for orders", "tags": "eu,production"})
    site.queue("classic", arguments={"x-max-priority": 5, "x-dead-letter-exchange": "dead"})
    site.queue("quorum", arguments={"x-queue-type": "quorum", "x-delivery-limit": 3})
    site.queue("lazy", arguments={"x-queue-mode": "lazy"})
    site.queue("brief", durable=False)
    fallback = {"type": "topic", "durable": True, "arguments": {"alternate-exchange": "dead"}}
    blue.api("PUT", f"exchanges/{vhost}/orders", fallback)
    blue.api("PUT", f"exchanges/{vhost}/dead", {"type": "fanout", "durable": True})
    blue.api("PUT", f"exchanges/{vhost}/inner", {"type": "headers", "internal": True})
    by_header = {"routing_key": "", "arguments": {"x-match": "all", "n": 1}}
    blue.api("POST", f"bindings/{vhost}/e/inner/q/classic", by_header)
    blue.api("POST", f"bindings/{vhost}/e/orders/q/classic", {"routing_key": "order.#"})
    blue.api("POST", f"bindings/{vhost}/e/orders/e/inner", {"routing_key": "inner.*"})
    blue.api("POST", f"bindings/{vhost}/e/amq.topic/q/quorum", {"routing_key": "#"})
    policy = {"pattern": "^l", "definition": {"max-length": 99}, "apply-to": "queues"}
    blue.api("PUT", f"policies/{vhost}/limit", policy | {"priority": 3})
    blue.api("PUT", f"operator-policies/{vhost}/cap", policy)
    blue.api("PUT", f"vhost-limits/{vhost}/max-connections", {"value": 500})
    topics = {"exchange": "orders", "write": "^a", "read": "^b"}
    blue.api("PUT", f"topic-permissions/{vhost}/{site.user}", topics)
    before = blue.api("GET", f"definitions/{vhost}")

    await site.move("--to", "green")

    after = green.api("GET", f"definitions/{vhost}")
    for kind in ("exchanges", "queues", "bindings", "policies", "parameters"):
        found, wanted = (
            sorted(json.dumps(each, sort_keys=True) for each in side[kind])
            for side in (after, before)
        )
        assert found == wanted, kind
    for what in (f"permissions/{vhost}/{site.user}", f"topic-permissions/{vhost}/{site.user}"):
        assert green.api("GET", what) == blue.api("GET", what)
    for what in ("password_hash", "hashing_algorithm", "tags"):
        users = [node.api("GET", f"users/{site.user}")[what] for node in (blue, green)]
        assert users[0] == users[1]
    metadata = {"description": "for orders", "tags": ["eu", "production"]}
    assert green.api("GET", f"vhosts/{vhost}")["metadata"].items() >= metadata.items()


async def test_the_movers_own_user_is_let_in_for_the_time_being_only(site: Site) -> None:
    green, operator = site.green.node, f"operator-{site.vhost}"
    green.api("PUT", f"users/{operator}", {"password": "op", "tags": "administrator"})
    try:
        site.queue("kept")
        await site.fill("kept", 10)
        file = site.proxy.directory / "password"
        file.write_text("op")
        url = f"http://{operator}@127.0.0.1:{green.management}"
        await site.move("--to", "green", "--target", url, "--target-password-file", str(file))
        assert green.api("GET", f"permissions/{site.blue.quoted}/{operator}") is None
        await check_all_there(site, "kept", 10)
    finally:
        green.api("DELETE", f"users/{operator}")


async def test_what_was_declared_during_the_move_is_copied_before_the_remap(site: Site) -> None:
    """Definitions are copied twice: what came between the copies is there as well."""
    site.queue("kept")
    await site.fill("kept", 10)
    process = await site.start("--to", "green")
    await site.seen(process, "Copy definitions")
    site.queue("late")
    await process.communicate()
    assert process.returncode == DONE
    made = site.green.counts()
    # Whether it came before the second copy or after it, it is where its declarer could have used
    # it: the vhost was still the blue node's.
    assert made["kept"] == 10
    assert set(made) <= {"kept", "late"}


async def test_exclusive_queues_end_and_are_not_copied(site: Site) -> None:
    connection = await aiormq.connect(site.url)
    channel = await connection.channel()
    declared = await channel.queue_declare("", exclusive=True)
    plan = json.loads(await site.move("--to", "green", "--dry-run", "--json"))
    fates = {queue["name"]: queue["fate"] for queue in plan["queues"]}
    assert fates == {declared.queue: "ends"}
    assert "exclusive, so it ends with its connection" in plan["notes"][0]
    await site.move("--to", "green")
    assert site.green.counts() == {}
    await asyncio.gather(connection.close(), return_exceptions=True)


async def test_auto_delete_queues_keep_their_messages(site: Site) -> None:
    """They would go with their last consumer, which the move sends away."""
    count = 500
    connection = await aiormq.connect(site.url)
    channel = await connection.channel()
    await channel.queue_declare("brief", auto_delete=True)
    await channel.basic_qos(prefetch_count=20)
    held = []

    async def take(message: aiormq.abc.DeliveredMessage) -> None:
        held.append(message)  # and never acknowledge: all of it is to come again

    await channel.basic_consume("brief", take)
    await site.fill("brief", count)
    await site.move("--to", "green")
    await asyncio.gather(connection.close(), return_exceptions=True)
    assert held
    assert site.green.counts() == {"brief": count}
    assert site.blue.counts() == {}
    await check_all_there(site, "brief", count)


# --- the plan ------------------------------------------------------------------------------------


async def test_a_dry_run_says_what_would_be_and_changes_nothing(site: Site) -> None:
    site.queue("kept")
    await site.fill("kept", 123)
    text = await site.move("--to", "green", "--dry-run")
    assert "farm blue -> farm green" in text
    assert "queues to move: 1 classic; 123 messages" in text
    assert f"users copied, with their passwords: {site.user}" in text
    plan = json.loads(await site.move("--to", "green", "--dry-run", "--json"))
    assert (plan["messages"], plan["create"]["queues"], plan["problems"]) == (123, 1, [])
    assert site.green.node.api("GET", f"vhosts/{site.blue.quoted}") is None
    assert site.green.node.api("GET", f"users/{site.user}") is None
    assert (site.farm, site.paused) == ("blue", False)
    assert not list(site.state.glob("*.json"))


async def test_a_result_as_json(site: Site) -> None:
    site.queue("kept")
    await site.fill("kept", 5)
    process = await site.start("--to", "green", "--json")
    out, _ = await process.communicate()
    result = json.loads(out)
    assert result.pop("seconds") >= 0
    assert result == {"vhost": site.vhost, "at": "farm green", "messages": 5}


async def test_what_can_not_be_moved_is_left_only_when_that_is_said(site: Site) -> None:
    site.queue("log", arguments={"x-queue-type": "stream"})
    await site.fill("log", 3)
    connection = await aiormq.connect(site.blue.node.url(site.vhost))
    channel = await connection.channel()
    named = await channel.queue_declare("", durable=True)
    await channel.queue_bind(named.queue, "amq.topic", "#")
    await connection.close()
    text = await site.move("--to", "green", expect=REFUSED)
    assert "log: a stream keeps what was read" in text
    assert f"{named.queue}: named by the server" in text
    text = await site.move("--to", "green", "--leave-behind")
    assert "queue 'log' (stream): left behind" in text
    (made,) = site.green.node.api("GET", f"queues/{site.blue.quoted}")
    assert (made["name"], made["type"]) == ("log", "stream")
    assert set(site.blue.counts()) == {"log", named.queue}


async def test_a_client_that_is_not_behind_the_proxy_is_in_the_way(site: Site) -> None:
    connection = await aiormq.connect(site.blue.node.url(site.vhost))
    where = f"vhosts/{site.blue.quoted}/connections"
    while not site.blue.node.api("GET", where):
        await asyncio.sleep(0.1)  # its node lists it within five seconds
    text = await site.move("--to", "green", expect=REFUSED)
    assert "connected to farm blue directly and not through this proxy" in text
    assert "--close-others" in text
    await site.move("--to", "green", "--close-others")
    assert site.blue.node.api("GET", where) == []
    await asyncio.gather(connection.close(), return_exceptions=True)


async def test_a_queue_that_is_otherwise_at_the_target_is_in_the_way(site: Site) -> None:
    with site.green.node.vhost(site.vhost):
        site.queue("kept")
        site.queue("kept", at=site.green, arguments={"x-max-length": 5})
        text = await site.move("--to", "green", expect=REFUSED)
        assert "queue 'kept': argument x-max-length is not set at the source and 5" in text
        assert (site.farm, site.paused) == ("blue", False)


async def test_what_only_the_target_has_is_pruned_only_when_that_is_said(site: Site) -> None:
    with site.green.node.vhost(site.vhost) as green:
        site.queue("kept")
        site.queue("stale", at=green)
        site.queue("kept", at=green)
        stale = {"routing_key": "old", "arguments": {"a": 1}}
        where = f"{green.quoted}/e/amq.topic/q/kept"
        green.node.api("POST", f"bindings/{where}", stale)
        text = await site.move("--to", "green", expect=REFUSED)
        assert "the target has 1 queues, 1 bindings that the source doesn't" in text
        assert "(stale, amq.topic -> kept (old))" in text
        await site.move("--to", "green", "--prune")
        assert set(green.counts()) == {"kept"}
        assert green.node.api("GET", f"bindings/{where}") == []


async def test_messages_at_the_target_are_never_mixed_with(site: Site) -> None:
    with site.green.node.vhost(site.vhost) as green:
        site.queue("kept")
        site.queue("kept", at=green)
        connection = await aiormq.connect(green.node.url(site.vhost))
        channel = await connection.channel(publisher_confirms=True)
        await channel.basic_publish(b"mine", routing_key="kept")
        await connection.close()
        text = await site.move("--to", "green", expect=REFUSED)
        assert "the target has messages already, in kept" in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--to", "nowhere"], REFUSED, "The proxy has no farm 'nowhere'"),
        (["--to", "blue"], REFUSED, "is mapped to farm blue already"),
        (["--back"], REFUSED, "There is no move of vhost"),
        (["--to", "green", "--ca", "missing.pem"], REFUSED, "missing.pem: no certificates"),
        (["--to", "green", "--target", "http://me@127.0.0.1:9"], UNREACHABLE, "can't be reached"),
        (["--to", "green", "--target-amqp", "127.0.0.1:9"], DONE, "0 messages"),
    ],
)
async def test_what_can_not_be_done_is_said_at_once(
    site: Site, words: list[str], code: int, said: str
) -> None:
    assert said in await site.move(*words, "--dry-run", expect=code)
    assert (site.farm, site.paused) == ("blue", False)


async def test_wrong_passwords_are_told_of(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    text = await site.move("--to", "green", "--target-password-file", str(file), expect=REFUSED)
    assert "refuses GET whoami to user 'keeper', whose password may be wrong" in text


async def test_without_a_proxy_nothing_is_done(site: Site, tmp_path: Path) -> None:
    text = await site.move("--to", "green", socket=tmp_path / "none", expect=UNREACHABLE)
    assert "The proxy can't be reached" in text


async def test_one_broker_is_not_two(site: Site) -> None:
    site.proxy("FARM", "ADD", "again", "round-robin", "blue-blue")  # the same node once more
    blue = site.blue.node
    url = f"http://{blue.user}@127.0.0.1:{blue.management}"
    file = site.proxy.directory / "password"
    file.write_text(blue.password)
    words = ["--to", "again", "--target", url, "--target-password-file", str(file)]
    assert "are the same broker" in await site.move(*words, expect=REFUSED)


async def test_a_failure_before_the_first_message_lets_clients_go_on(site: Site) -> None:
    site.queue("kept")
    await site.fill("kept", 10)
    text = await site.move("--to", "green", "--target-amqp", "127.0.0.1:9", expect=REFUSED)
    assert "was not moved, and its clients go on at farm blue: farm green: 127.0.0.1:9" in text
    assert (site.farm, site.paused) == ("blue", False)
    await site.move("--to", "green")
    await check_all_there(site, "kept", 10)


async def test_a_file_that_was_up_to_date_stays_so(site: Site) -> None:
    """A proxy that is restarted during or after a move must not send clients to the old place."""
    site.queue("kept")
    await site.fill("kept", 10)
    assert "CONFIG SAVE, or a restart sends" in await site.move("--to", "green")
    site.proxy("CONFIG", "SAVE")
    process = await site.start("--back")
    await site.seen(process, "Move messages")
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert site.proxy("CONFIG", "DIFF") == ""
    await finish(site, "--to", "blue")
    assert site.proxy("CONFIG", "DIFF") == ""
    assert (site.farm, site.paused) == ("blue", False)


# --- interrupted ---------------------------------------------------------------------------------

BACKLOG = 8000


async def check_all_there(site: Site, queue: str, count: int) -> None:
    """Every number is there, in order; some perhaps twice, as many as were on their way."""
    consumer = Consumer(site.url, queue, count)
    async with asyncio.timeout(60):
        await consumer.run()
    assert consumer.in_order == list(range(count))
    assert len(consumer.seen) <= count + limits.MOVE_PREFETCH


async def finish(site: Site, *words: str) -> None:
    """Run the same command again, unless the first had come to its end after all."""
    if site.record()["step"] not in {"done", "undone"}:
        await site.move(*words)


@pytest.mark.parametrize(
    "words",
    [
        "Copy definitions",
        "Pause vhost",
        "Ask 1 clients",
        "Move messages",
        "messages moved",
        "Map to",
        "Unpause",
    ],
)
async def test_a_mover_that_is_killed_goes_on_where_it_was(site: Site, words: str) -> None:
    site.queue("kept")
    await site.fill("kept", 3000)
    publisher = Publisher(site.url, "other", 1)  # connected, so that there is a session to end
    waiting = asyncio.create_task(publisher.run())
    while not site.proxy.sessions(site.vhost, "open"):
        await asyncio.sleep(0.01)
    process = await site.start("--to", "green")
    await site.seen(process, words)
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.communicate()
    waiting.cancel()
    await finish(site, "--to", "green")
    assert (site.farm, site.paused) == ("green", False)
    await check_all_there(site, "kept", 3000)


async def drained_a_little(site: Site, queue: str) -> None:
    """Wait until some messages have arrived at the green node."""
    while not site.green.counts().get(queue):
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("way", ["on", "back"])
async def test_a_mover_that_is_killed_amid_messages(site: Site, way: str) -> None:
    site.queue("kept")
    await site.fill("kept", BACKLOG)
    process = await site.start("--to", "green")
    await site.seen(process, "Move messages")
    await drained_a_little(site, "kept")
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.communicate()
    if way == "on":
        await finish(site, "--to", "green")
        assert (site.farm, site.paused) == ("green", False)
    else:
        await site.move("--back")
        assert (site.farm, site.paused) == ("blue", False)
        assert sum(site.green.counts().values()) == 0
    await check_all_there(site, "kept", BACKLOG)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_an_interrupted_move_leaves_each_message_once(site: Site, number: int) -> None:
    site.queue("kept")
    await site.fill("kept", BACKLOG)
    process = await site.start("--to", "green")
    await site.seen(process, "Move messages")
    await drained_a_little(site, "kept")
    if process.returncode is None:
        process.send_signal(number)
    _, said = await process.communicate()
    if process.returncode != DONE:
        assert process.returncode == STOPPED
        assert b"run the same command again to go on, or with --back to undo it" in said
        assert (site.farm, site.paused) == ("blue", True)
    there = site.green.counts()["kept"]
    wait_until(lambda: site.blue.counts()["kept"] == BACKLOG - there)
    await site.move("--back")
    assert (site.farm, site.paused) == ("blue", False)
    await check_all_there(site, "kept", BACKLOG)


async def test_an_interrupt_before_the_first_message_changes_nothing(site: Site) -> None:
    site.queue("kept")
    await site.fill("kept", 10)
    process = await site.start("--to", "green")
    await site.seen(process, "Copy definitions")
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
    await process.communicate()
    if process.returncode == REFUSED:
        assert (site.farm, site.paused) == ("blue", False)
        assert site.blue.counts() == {"kept": 10}
    await finish(site, "--to", "green")
    await check_all_there(site, "kept", 10)
