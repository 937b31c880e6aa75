"""One process owns a database; the others find it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collector.locks import DatabaseLock, Running
from models.errors import Conflict, InvalidInput


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    first, second = DatabaseLock(tmp_path / "t.db"), DatabaseLock(tmp_path / "t.db")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
    second.release()


def test_the_owner_is_found_where_it_listens(tmp_path: Path) -> None:
    owner, command = DatabaseLock(tmp_path / "t.db"), DatabaseLock(tmp_path / "t.db")
    owner.acquire()
    owner.announce("http://127.0.0.1:8000")
    assert command.acquire_or_find() == Running(os.getpid(), "http://127.0.0.1:8000", owner.token)
    assert owner.token != command.token
    assert owner.path.stat().st_mode & 0o077 == 0
    owner.release()
    assert command.acquire_or_find() is None
    command.release()


def test_a_command_that_does_not_end_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    busy = DatabaseLock(tmp_path / "t.db")
    busy.acquire()
    with pytest.raises(Conflict, match=r"another meterbridge command is using the database .*t\.db\.lock"):
        DatabaseLock(tmp_path / "t.db").acquire_or_find(wait_seconds=0)
    busy.release()


@pytest.mark.parametrize("left", [b"", b"words", b"[]", b'{"pid": "x"}', b'{"url": "u"}', b"\xff"])
def test_what_a_lock_file_says_is_believed_only_if_it_is_whole(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "t.db.lock").write_bytes(left)
    assert DatabaseLock(tmp_path / "t.db").running() is None


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, signal, pathlib; from collector.locks import DatabaseLock; lock = DatabaseLock(pathlib.Path('t.db'));"
        "assert lock.acquire(); lock.announce('http://127.0.0.1:1'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, check=False, timeout=60)
    lock = DatabaseLock(tmp_path / "t.db")
    assert json.loads(lock.path.read_text())["url"] == "http://127.0.0.1:1"
    assert lock.acquire_or_find() is None
    assert lock.path.read_text() == ""
    lock.release()


def test_a_lock_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"file/t\.db\.lock cannot be made"):
        DatabaseLock(tmp_path / "file" / "t.db").acquire()


def test_a_lock_is_for_its_owners_eyes_and_not_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "old.db.lock").touch(mode=0o644)
    assert DatabaseLock(tmp_path / "old.db").acquire()
    assert (tmp_path / "old.db.lock").stat().st_mode & 0o777 == 0o600
    victim = tmp_path / "victim.txt"
    victim.write_text("mine", encoding="utf-8")
    (tmp_path / "new.db.lock").symlink_to(victim)
    with pytest.raises(InvalidInput, match="cannot be made"):
        DatabaseLock(tmp_path / "new.db").acquire()
    assert victim.read_text(encoding="utf-8") == "mine"
