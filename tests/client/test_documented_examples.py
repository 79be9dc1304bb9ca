"""The programs in the documentation run, and do what is said of them."""

from __future__ import annotations

import ast
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ciphermq
from ciphermq.client.onexpeers import OnexPeers
from support.background import background_broker
from support.deployment import Deployment

DOCS = Path(__file__).resolve().parents[2] / "docs"


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    """What is in a database that another process writes to; nothing while it isn't there."""
    if not database.exists():
        return []
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def test_exactly_once_from_data_to_data(deployment: Deployment, tmp_path: Path) -> None:
    deployment.add("shop")
    deployment.add("billing")
    selling, billing = programs("how-to/exactly-once.md")
    (tmp_path / "billing.py").write_text(billing)
    (tmp_path / "selling.py").write_text(selling)
    with background_broker(deployment) as broker:
        environment = {
            **os.environ,
            "CIPHERMQ_HOME": str(deployment.home),
            "CIPHERMQ_URL": broker.url,
        }
        receiver = subprocess.Popen(
            [sys.executable, "billing.py"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
        )
        try:
            deadline = time.monotonic() + 30
            while broker.queue("billing") == (-1, -1):
                assert time.monotonic() < deadline
                assert receiver.poll() is None, receiver.stderr and receiver.stderr.read()
                time.sleep(0.02)
            subprocess.run(
                [sys.executable, "selling.py"], cwd=tmp_path, env=environment, check=True
            )
            query = "SELECT what FROM bills ORDER BY message"
            while len(found := rows(tmp_path / "billing.db", query)) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            receiver.send_signal(signal.SIGINT)
            receiver.communicate(timeout=20)
    assert found == [("tea",), ("milk",), ("sugar",)]
    assert rows(tmp_path / "shop.db", "SELECT what FROM orders") == found


@pytest.mark.parametrize("page", ["reference/api.md", "how-to/exactly-once.md"])
def test_examples_are_python(page: str) -> None:
    for program in programs(page):
        compile(program, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_method_in_the_reference_is_there() -> None:
    """Words in the first column of the tables of methods, and in the list of the client's."""
    text = (DOCS / "reference" / "api.md").read_text()
    known = set()
    for thing in (
        ciphermq.Client,
        ciphermq.Sender,
        ciphermq.Receiver,
        ciphermq.Message,
        ciphermq.Batch,
        ciphermq.Inbox,
        ciphermq.Outbox,
        OnexPeers,
    ):
        known |= set(dir(thing))
    named = set()
    for cell in re.findall(r"^\| (`[^|]+) \|", text, re.M):
        named |= set(re.findall(r"(\w+)\(", cell))
    section = text.split("## Queues and exchanges")[1].split("## Without async")[0]
    named |= set(re.findall(r"`(\w+)\(", section))
    assert named - known - {"connect", "drained"} == set()
