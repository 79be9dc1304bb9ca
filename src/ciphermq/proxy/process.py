"""What a process of the proxy wants of the system it runs on."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
from pathlib import Path

from ciphermq import limits
from ciphermq.errors import ListenFailed
from ciphermq.proxy.statistics import Process


def raise_open_files() -> int:
    """Allow this process, and those it starts, as many descriptors as the system lets it have;
    how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = limits.PROXY_OPEN_FILES
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return int(soft)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return int(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def process_now() -> Process:
    """What this process has used."""
    times = os.times()
    with Path("/proc/self/statm").open("rb") as statm:
        pages = int(statm.read().split()[1])
    return Process(
        times.user,
        times.system,
        pages * resource.getpagesize() // limits.KIB,
        len(list(Path("/proc/self/fd").iterdir())),
    )


def claim_control(path: Path) -> socket.socket:
    """A control socket at `path`, which listens; only who runs this process may open it, and its
    group where the umask allows that.

    One that nobody answers at is left from a process that died, and replaced. `ListenFailed` when
    somebody does answer, or the path can't be had.
    """
    try:
        _remove_dead(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        former = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(former)
        path.chmod(0o770 & ~former)
    except OSError as error:
        raise ListenFailed(
            f"The control socket {path} can't be made: {error.strerror or error}"
        ) from error
    sock.setblocking(False)
    sock.listen(limits.PROXY_CONTROL_CLIENTS)
    return sock


def _remove_dead(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenFailed(f"{path} is there, and is no socket: choose another path.")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # its queue is full: somebody is there
    raise ListenFailed(
        f"A proxy runs with the control socket {path} already. To replace it while it serves, "
        "start with --take-over."
    )


def notify(state: str) -> None:
    """Tell systemd (sd_notify); nothing where there is none."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.setblocking(False)
        sock.sendto(state.encode(), address)
