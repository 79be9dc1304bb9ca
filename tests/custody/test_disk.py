"""Files that are private, whole or absent."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from ciphermq.custody import disk
from ciphermq.errors import IdentityError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o177])
def test_modes_are_what_was_asked_for_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        disk.write_file(tmp_path / "secret", b"s")
        disk.write_file(tmp_path / "public", b"p", mode=disk.PUBLIC)
    finally:
        os.umask(before)
    assert mode(tmp_path / "secret") == 0o600
    assert mode(tmp_path / "public") == 0o644


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    disk.write_file(path, b"first")
    with pytest.raises(FileExistsError):
        disk.write_file(path, b"second")
    assert path.read_bytes() == b"first"
    disk.write_file(path, b"second", replace=True)
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        disk.write_file(tmp_path / "link", b"x")
    disk.write_file(tmp_path / "link", b"x", replace=True)
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "link").is_symlink()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    disk.write_file(path, b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(5, "no luck")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no luck"):
        disk.write_file(path, b"new", replace=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bits", [0o604, 0o602, 0o620, 0o601])
def test_what_others_could_read_or_change_is_no_secret(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "secret"
    disk.write_file(path, b"s")
    path.chmod(bits)
    with pytest.raises(IdentityError, match=rf"mode {bits:04o}.*chmod 600"):
        disk.read_private(path, limit=10)


@pytest.mark.parametrize("bits", [0o600, 0o400, 0o640])
def test_modes_that_are_private_enough(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "secret"
    disk.write_file(path, b"s")
    path.chmod(bits)
    assert disk.read_private(path, limit=10) == b"s"


def test_secrets_that_are_missing_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="is missing"):
        disk.read_private(tmp_path / "none", limit=10)
    disk.write_file(tmp_path / "large", b"x" * 11)
    with pytest.raises(IdentityError, match="more than 10 bytes"):
        disk.read_private(tmp_path / "large", limit=10)
    with pytest.raises(IdentityError, match="can't be read"):
        disk.read_private(tmp_path, limit=10)


def test_directories_are_private_and_old_ones_stay_as_they_are(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    disk.make_private_directory(tmp_path / "a" / "b")
    disk.make_private_directory(tmp_path / "a" / "b")
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700
    assert mode(tmp_path) == 0o755


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new"
    with disk.new_directory(target) as directory:
        disk.write_file(directory / "file", b"x")
        assert not target.exists()
    assert (target / "file").read_bytes() == b"x"
    assert mode(target) == 0o700
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_directory_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), disk.new_directory(tmp_path / "new") as directory:
        disk.write_file(directory / "file", b"x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_new_directory_takes_nobody_s_place(tmp_path: Path) -> None:
    target = tmp_path / "there"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(FileExistsError), disk.new_directory(target):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError), disk.new_directory(tmp_path / "file"):
        pass
    with pytest.raises(OSError), disk.new_directory(tmp_path / "raced") as directory:
        disk.write_file(directory / "file", b"x")
        (tmp_path / "raced" / "quicker").mkdir(parents=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "raced", "there"]


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with disk.new_directory(tmp_path / "empty") as directory:
        disk.write_file(directory / "file", b"x")
    assert (tmp_path / "empty" / "file").exists()


def test_one_holds_the_lock_at_a_time(tmp_path: Path) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with disk.locked(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
