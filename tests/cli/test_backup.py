"""Backups: made while a broker writes, checked, put back, and never over anything."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
from pathlib import Path

import pytest

from ciphermq.catalog import AtRestKey, SqliteCatalog
from ciphermq.cli.main import run
from ciphermq.journal import tools
from ciphermq.journal.format import BLOCK_SIZE
from cli.stored import Writer, damage, run_json, write_state
from support.deployment import Deployment, make_deployment


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = make_deployment(tmp_path)
    write_state(made.server_dir)
    return made


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm", "lock"))
    }


def backed_up(deployment: Deployment, target: Path) -> Path:
    assert run(["backup", str(deployment.server_dir), str(target)]) == 0
    return target


def test_what_is_backed_up_comes_back(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup, restored = tmp_path / "backup", tmp_path / "restored"
    status, done = run_json(capsys, "backup", deployment.server_dir, backup)
    assert (status, done["keys"]) == (0, 2)
    assert done["directory"] == str(backup)
    assert done["records"] >= 40
    status, again = run_json(capsys, "restore", backup, restored)
    assert status == 0
    assert again == {**done, "directory": str(restored)}
    before, after = contents(deployment.server_dir), contents(restored)
    assert set(after) == set(before)
    del before["data/catalog.db"], after["data/catalog.db"]
    assert after == before

    async def keys() -> list[bytes | None]:
        catalog = SqliteCatalog(
            restored / "data" / "catalog.db", AtRestKey.load(restored / "at-rest.key")
        )
        await catalog.start()
        found = [await catalog.get_key("alice"), await catalog.get_key("bob")]
        await catalog.stop()
        return found

    assert asyncio.run(keys()) == [b"record of alice", b"record of bob"]


def test_a_backup_is_private(deployment: Deployment, tmp_path: Path) -> None:
    backup = backed_up(deployment, tmp_path / "backup")
    for path in [backup, *backup.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_running_broker_can_be_backed_up(deployment: Deployment, tmp_path: Path) -> None:
    writer = Writer(deployment.server_dir / "data" / "journal")
    writer.write(20)
    records = tools.verify(deployment.server_dir / "data" / "journal").records
    backup = backed_up(deployment, tmp_path / "backup")
    writer.write(20)
    writer.journal.close()
    assert run(["restore", str(backup), str(tmp_path / "restored")]) == 0
    found = tools.verify(tmp_path / "restored" / "data" / "journal")
    assert found.records == records
    assert found.problems == []


def test_a_broker_that_never_ran_can_be_backed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = make_deployment(tmp_path)
    status, done = run_json(capsys, "backup", deployment.server_dir, tmp_path / "backup")
    assert (status, done["records"], done["keys"]) == (0, 0, 0)
    assert run(["restore", str(tmp_path / "backup"), str(tmp_path / "restored")]) == 0


def test_parts_that_are_elsewhere_go_back_there(deployment: Deployment, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (deployment.server_dir / "data").rename(elsewhere)
    text = deployment.config.read_text()
    deployment.config.write_text(text.replace('"data"', json.dumps(str(elsewhere))))
    before = contents(elsewhere / "journal")
    backup = backed_up(deployment, tmp_path / "backup")
    restored = tmp_path / "restored"
    assert run(["restore", str(backup), str(restored)]) == 2, "the old ones are still there"
    assert not restored.exists()
    shutil.rmtree(elsewhere)
    assert run(["restore", str(backup), str(restored)]) == 0
    assert contents(elsewhere / "journal") == before


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_nothing_is_overwritten(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    source = deployment.server_dir
    if command == "restore":
        source = backed_up(deployment, tmp_path / "backup")
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("mine")
    status, said = run_json(capsys, command, source, target)
    assert (status, said["error"]) == (2, "usage")
    assert str(target) in said["message"]
    assert contents(target) == {"precious": b"mine"}


def test_an_empty_directory_will_do(deployment: Deployment, tmp_path: Path) -> None:
    for name in ("backup", "restored"):
        (tmp_path / name).mkdir()
    backup = backed_up(deployment, tmp_path / "backup")
    assert run(["restore", str(backup), str(tmp_path / "restored")]) == 0


@pytest.mark.parametrize(
    "name", ["config.toml", "server.key", "at-rest.key", "catalog.db", "journal"]
)
def test_a_damaged_backup_is_not_put_back(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    backup = backed_up(deployment, tmp_path / "backup")
    path = backup / name
    if path.is_dir():
        path = sorted(path.iterdir())[-1]
    changed = bytearray(path.read_bytes())
    changed[-2] ^= 1
    path.write_bytes(changed)
    status, said = run_json(capsys, "restore", backup, tmp_path / "restored")
    assert status in (2, 6)
    assert path.name in said["message"] or "config.toml" in said["message"]
    assert [entry.name for entry in tmp_path.iterdir() if "restored" in entry.name] == []


def test_a_backup_with_a_part_missing(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = backed_up(deployment, tmp_path / "backup")
    (backup / "catalog.db").unlink()
    status, said = run_json(capsys, "restore", backup, tmp_path / "restored")
    assert (status, said["error"]) == (6, "store")
    assert "catalog.db" in said["message"]


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (None, "is missing"),
        ("{", "can't be read"),
        ('{"format": 9, "made": "", "software": "", "files": {}}', "format 9"),
        ('{"format": 1, "made": "", "software": "", "files": {}}', "names no config.toml"),
    ],
)
def test_a_manifest_that_can_not_be_believed(
    deployment: Deployment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    manifest: str | None,
    why: str,
) -> None:
    backup = backed_up(deployment, tmp_path / "backup")
    (backup / "MANIFEST.json").unlink()
    if manifest is not None:
        (backup / "MANIFEST.json").write_text(manifest)
    status, said = run_json(capsys, "restore", backup, tmp_path / "restored")
    assert status == 6
    assert why in said["message"]


@pytest.mark.parametrize(
    "name", ["../evil", "journal/../../evil", "/evil", "journal/", "evil", "journal/a/b"]
)
def test_a_manifest_can_not_make_it_write_elsewhere(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    backup = backed_up(deployment, tmp_path / "backup")
    path = backup / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"]["server.crt"]
    path.write_text(json.dumps(manifest))
    status, said = run_json(capsys, "restore", backup, tmp_path / "restored")
    assert status == 6
    assert "which no backup of ours holds" in said["message"]
    assert not any("evil" in str(found) for found in tmp_path.rglob("*"))


def test_a_damaged_journal_is_not_backed_up(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = damage(deployment.server_dir / "data" / "journal", at=BLOCK_SIZE)
    status, said = run_json(capsys, "backup", deployment.server_dir, tmp_path / "backup")
    assert (status, said["error"]) == (6, "journal-damaged")
    assert segment.name in said["message"]
    assert not (tmp_path / "backup").exists()


def test_a_damaged_payload_is_no_reason_to_have_no_backup(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = damage(deployment.server_dir / "data" / "journal")
    status, done = run_json(capsys, "backup", deployment.server_dir, tmp_path / "backup")
    assert status == 6
    assert f"journal/{segment.name}" in done["damaged"][0]
    assert run(["restore", str(tmp_path / "backup"), str(tmp_path / "restored")]) == 6
    assert "damaged before it was copied: journal/segment-" in capsys.readouterr().out
    assert contents(tmp_path / "restored")[f"data/journal/{segment.name}"] == segment.read_bytes()


def test_a_part_that_can_not_be_read_is_named(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (deployment.server_dir / "crl.pem").unlink()
    status, said = run_json(capsys, "backup", deployment.server_dir, tmp_path / "backup")
    assert status == 6
    assert "crl.pem: the backup failed: No such file" in said["message"]


def test_a_catalog_in_postgresql_is_left_to_its_own_tools(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What opens it is in the backup all the same, and the command says what is not."""
    server = deployment.server_dir
    (server / "aes.base64").write_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
    (server / "password.txt").write_text("hunter2\n")
    with deployment.config.open("a") as file:
        file.write('\n[encryption]\naes_key_path = "aes.base64"\n')
        file.write(
            '\n[database]\nhost = "db.example"\nport = 5432\nuser = "ciphermq"\n'
            'dbname = "broker"\npassword_path = "password.txt"\n'
        )
    backup, restored = tmp_path / "backup", tmp_path / "restored"
    status, done = run_json(capsys, "backup", server, backup)
    assert (status, done["keys"]) == (0, 0)
    assert done["elsewhere"] == "the PostgreSQL database 'broker' at db.example:5432"
    assert not (backup / "catalog.db").exists()
    assert run(["restore", str(backup), str(restored)]) == 0
    said = capsys.readouterr().out
    assert "not in it: the PostgreSQL database 'broker' at db.example:5432" in said
    assert "pg_dump" in said
    for name in ("aes.base64", "password.txt"):
        assert (restored / name).read_bytes() == (server / name).read_bytes()
        assert stat.S_IMODE((restored / name).stat().st_mode) == 0o600
