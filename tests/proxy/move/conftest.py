"""A vhost to move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.moving import Site
from support.proxy import Proxy
from support.rabbitmq import Node


@pytest.fixture
def site(blue: Node, green: Node, tmp_path: Path) -> Iterator[Site]:
    with Proxy() as proxy, blue.vhost() as vhost:
        made = Site(proxy, vhost, green, tmp_path / "state")
        try:
            yield made
        finally:
            made.close()
