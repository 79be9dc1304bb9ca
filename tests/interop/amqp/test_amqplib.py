"""Node's amqplib, unchanged, through the proxy and without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest

from support.roads import Road, Roads

HERE = Path(__file__).parent / "node"


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with amqplib in it, as package-lock.json says, every package checked by its hash."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("Node is not installed (on Debian: apt install nodejs npm)")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    made = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=110, check=False
    )
    if made.returncode != 0:
        missing(f"amqplib can't be installed: {made.stderr[-500:]}")
    return folder


def missing(why: str) -> NoReturn:
    """Skipped on a laptop, an error where nothing may be left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def run(modules: Path, scenario: str, road: Road) -> Any:
    """What the client has seen."""
    words = ["node", str(HERE / "client.mjs"), scenario, road.url]
    words += [road.authority] if road.authority else []
    ended = subprocess.run(
        words, cwd=modules, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_conversation_is_the_same(modules: Path, roads: Roads) -> None:
    direct = run(modules, "converse", roads.direct)
    assert [message[2] for message in direct["messages"]] == [2, 2, 2]
    assert run(modules, "converse", roads.proxied) == direct


def test_a_refusal_of_a_vhost_is_the_same(modules: Path, roads: Roads) -> None:
    elsewhere = roads.otherwise(vhost="no such vhost")
    direct = run(modules, "refusal", elsewhere.direct)
    assert direct["message"] == "Expected ConnectionOpenOk; got <ConnectionClose channel:0>"
    assert run(modules, "refusal", elsewhere.proxied) == direct


def test_a_refused_login_comes_one_step_later(modules: Path, roads: Roads) -> None:
    """Which broker is asked depends on the vhost, so the proxy has tuned the connection before it
    can know. amqplib tells a Close in that step by its kind only."""
    elsewhere = roads.otherwise(password="wrong")
    direct = run(modules, "refusal", elsewhere.direct)
    proxied = run(modules, "refusal", elsewhere.proxied)
    assert "403 (ACCESS-REFUSED)" in direct["message"]
    assert proxied["message"] == "Expected ConnectionOpenOk; got <ConnectionClose channel:0>"


@pytest.mark.parametrize("roads", ["plain"], indirect=True)
def test_heartbeats_keep_an_idle_connection(modules: Path, roads: Roads) -> None:
    assert run(modules, "idle", roads.proxied) == {"heartbeat": 1, "usable": True}
