"""`Guarded`: no way to the data but under the lock, and none back to it afterwards."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ciphermq.custody.guarded import Guarded, View

USES: dict[str, Callable[[View[str, int]], Any]] = {
    "get": lambda view: view["a"],
    "get or": lambda view: view.get("a"),
    "set": lambda view: view.__setitem__("a", 2),
    "delete": lambda view: view.__delitem__("a"),
    "pop": lambda view: view.pop("a"),
    "update": lambda view: view.update(b=2),
    "clear": lambda view: view.clear(),
    "length": len,
    "contains": lambda view: "a" in view,
    "keys": lambda view: list(view),
    "values": lambda view: list(view.values()),
    "items": lambda view: list(view.items()),
    "equal": lambda view: view == {"a": 1},
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_view_is_dead_when_its_lock_is_released(use: Callable[[View[str, int]], Any]) -> None:
    guarded = Guarded({"a": 1})
    with guarded.lock() as view:
        assert dict(view) == {"a": 1}
    with pytest.raises(RuntimeError, match="released"):
        use(view)
    with guarded.lock() as again:
        assert dict(again) == {"a": 1}, "what came too late changed nothing"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_view_does_its_work_while_the_lock_is_held(use: Callable[[View[str, int]], Any]) -> None:
    with Guarded({"a": 1}).lock() as view:
        use(view)


@pytest.mark.parametrize("part", ["keys", "values", "items"])
def test_whatever_was_made_from_a_view_dies_with_it(part: str) -> None:
    guarded = Guarded({"a": 1, "b": 2})
    with guarded.lock() as view:
        kept = getattr(view, part)()
        begun = iter(kept)
        next(begun)
    for attempt in (lambda: next(begun), lambda: list(kept), lambda: len(kept)):
        with pytest.raises(RuntimeError, match="released"):
            attempt()


def test_the_documents_chain_holds_the_lock_to_its_end() -> None:
    guarded = Guarded({50: 1, 150: 2, 250: 3})
    with guarded.lock() as view:
        total = 0
        for _, value in filter(lambda item: item[0] > 100, view.items()):
            assert not _other_thread_gets(guarded, 0.02)
            total += value
    assert total == 5
    assert _other_thread_gets(guarded, 60)


def test_it_is_released_however_the_block_ends() -> None:
    guarded = Guarded({"a": 1})
    with pytest.raises(ZeroDivisionError), guarded.lock() as view:
        view["a"] = 1 // 0
    with pytest.raises(RuntimeError, match="released"):
        len(view)
    with guarded.lock() as view:
        assert dict(view) == {"a": 1}


def test_a_view_is_of_no_use_to_another_thread() -> None:
    guarded = Guarded({"a": 1})
    said: list[str] = []

    def use(view: View[str, int]) -> None:
        try:
            len(view)
        except RuntimeError as error:
            said.append(str(error))

    with guarded.lock() as view:
        thread = threading.Thread(target=use, args=(view,))
        thread.start()
        thread.join()
    assert said == ["another thread holds the lock: this view is not yours"]


def test_a_thread_does_not_wait_for_itself() -> None:
    guarded = Guarded({"a": 1})
    with guarded.lock() as view:
        with pytest.raises(RuntimeError, match="holds the lock already"), guarded.lock():
            pass
        assert view["a"] == 1, "the lock is still held"


def test_a_child_finds_the_lock_free() -> None:
    """Whatever another thread did with it when the child was forked."""
    program = """
        import os, threading
        from ciphermq.custody.guarded import Guarded
        guarded = Guarded({"n": 0}).kept_at_forks()
        stop = threading.Event()
        def use():
            while not stop.is_set():
                with guarded.lock() as view:
                    view["n"] += 1
        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                with guarded.lock() as view:
                    os._exit(0 if view["n"] >= 0 else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=100)


def test_what_was_given_in_is_no_other_way_in() -> None:
    content = {"a": 1}
    guarded = Guarded(content)
    content["a"] = 2
    with guarded.lock() as view:
        assert view["a"] == 1
    assert "1" not in repr(guarded)
    assert not hasattr(guarded, "__dict__")


def test_many_threads_count_to_the_right_number() -> None:
    guarded: Guarded[str, int] = Guarded({"n": 0})

    def count() -> None:
        for _ in range(500):
            with guarded.lock() as view:
                view["n"] = view["n"] + 1

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with guarded.lock() as view:
        assert view["n"] == 4000


def _other_thread_gets(guarded: Guarded[int, int], seconds: float) -> bool:
    """Whether another thread gets the lock in so many seconds."""
    entered = threading.Event()

    def enter() -> None:
        with guarded.lock():
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    return entered.wait(seconds)
