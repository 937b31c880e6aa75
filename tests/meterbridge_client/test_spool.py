"""Waiting places: what survives whose death, what is dropped, and what several processes make of one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meterbridge_client import spool
from meterbridge_client.spool import DiskFirst, DiskSpool, MemorySpool, Refused
from tests.walks.service import ROOT


def lines(first: int, last: int) -> list[bytes]:
    return [json.dumps({"id": f"call-{number}", "time": "2026-11-20T10:00:00Z"}).encode() for number in range(first, last)]


def drained(found: DiskSpool | MemorySpool | DiskFirst, *, most: int = 100) -> list[str]:
    """The ids of everything that waits, delivered."""
    ids: list[str] = []
    while (batch := found.batch(most=most, most_bytes=1 << 20)) is not None:
        ids += [json.loads(line)["id"] for line in batch.lines]
        found.done(batch)
    return ids


def ids(first: int, last: int) -> list[str]:
    return [f"call-{number}" for number in range(first, last)]


def test_what_is_not_delivered_is_there_for_the_next_process(tmp_path: Path) -> None:
    before = DiskSpool(tmp_path)
    assert before.append(lines(0, 5))
    batch = before.batch(most=2, most_bytes=1 << 20)
    assert batch is not None
    before.done(batch)
    assert before.waiting() == 3
    before.close()

    after = DiskSpool(tmp_path)

    # The whole segment again: the service counts an id once.
    assert drained(after) == ids(0, 5)
    assert after.waiting() == 0
    assert list(tmp_path.iterdir()) == []
    after.close()


def test_a_batch_that_is_not_done_comes_again(tmp_path: Path) -> None:
    found = DiskSpool(tmp_path)
    found.append(lines(0, 3))
    assert found.batch(most=2, most_bytes=1 << 20) is not None
    assert drained(found, most=2) == ids(0, 3)
    found.append(lines(3, 4))
    assert drained(found) == ids(3, 4)
    found.close()
    assert list(tmp_path.iterdir()) == []


def test_a_batch_is_bounded_in_lines_and_bytes(tmp_path: Path) -> None:
    found = DiskSpool(tmp_path)
    found.append(lines(0, 50))
    length = len(lines(0, 1)[0]) + 1
    by_lines, by_bytes = found.batch(most=7, most_bytes=1 << 20), found.batch(most=100, most_bytes=3 * length)
    assert by_lines is not None
    assert by_bytes is not None
    assert (len(by_lines.lines), len(by_bytes.lines)) == (7, 3)
    found.close()


def test_segments_are_rolled_over_and_removed_when_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 500)
    found = DiskSpool(tmp_path)
    for number in range(0, 40, 2):
        found.append(lines(number, number + 2))
    assert len(list(tmp_path.glob("*.ndjson"))) > 3
    assert drained(found, most=5) == ids(0, 40)
    assert len(list(tmp_path.glob("*.ndjson"))) == 1
    found.close()


def test_a_full_folder_drops_its_oldest_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 500)
    found = DiskSpool(tmp_path, max_bytes=2_000)
    for number in range(200):
        found.append(lines(number, number + 1))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000
    kept = drained(found)
    assert kept == ids(200 - len(kept), 200)
    assert found.dropped == 200 - len(kept) > 100
    found.close()


def test_two_processes_share_a_folder_and_neither_touches_the_other_s_lines(tmp_path: Path) -> None:
    one, other = DiskSpool(tmp_path), DiskSpool(tmp_path)
    one.append(lines(0, 3))
    other.append(lines(3, 6))
    assert drained(one) == ids(0, 3)
    assert drained(other) == ids(3, 6)
    one.append(lines(6, 8))
    one.close()
    other._looked_at = 0.0  # it looks around once a second
    assert drained(other) == ids(6, 8)
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_half_a_line_of_a_power_cut_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "00000000000000000001-1-aaaaaaaa.ndjson").write_bytes(b"\n".join(lines(0, 2)) + b'\n\0\0\0\0\n{"id": "cal')
    found = DiskSpool(tmp_path)
    assert drained(found) == ids(0, 2)
    found.append(lines(2, 3))
    assert drained(found) == ids(2, 3)
    found.close()
    assert list(tmp_path.iterdir()) == []


def test_refused_lines_are_set_aside_with_their_reason(tmp_path: Path) -> None:
    found = DiskSpool(tmp_path)
    found.append(lines(0, 3))
    batch = found.batch(most=10, most_bytes=1 << 20)
    assert batch is not None
    found.done(batch, [Refused(1, "invalid_time", "time is before 2023")])
    assert found.waiting() == 0
    assert [json.loads(line) for line in (tmp_path / "rejected.log").read_text().splitlines()] == [
        {"error": "invalid_time", "detail": "time is before 2023", "event": {"id": "call-1", "time": "2026-11-20T10:00:00Z"}}
    ]
    found.close()


def test_a_disk_that_cannot_be_written_leaves_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = DiskFirst(DiskSpool(tmp_path))
    assert found.append(lines(0, 2))
    with monkeypatch.context() as patch:
        patch.setattr("meterbridge_client.spool.os.fsync", lambda _file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert not found.append(lines(2, 4))
    assert found.append(lines(4, 6))
    assert sorted(drained(found)) == ids(0, 6)
    found.close()


def test_memory_is_bounded_and_counts_what_it_drops() -> None:
    found = MemorySpool(max_events=3)
    found.append(lines(0, 5))
    batch = found.batch(most=2, most_bytes=1 << 20)
    assert batch is not None
    found.append(lines(5, 7))  # drops 2 and 3, the batch under way among them
    found.done(batch)
    assert drained(found) == ids(4, 7)
    assert found.dropped == 4
    found.append(lines(7, 8))
    found.close()
    assert found.dropped == 5


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    found = DiskSpool(folder)
    found.append(lines(0, 1))
    assert [path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir())] == [0, 0]
    found.close()


WRITER = """
import sys
from pathlib import Path
from meterbridge_client.spool import DiskSpool
spool = DiskSpool(Path(sys.argv[1]))
for number in range(100_000):
    spool.append([b'{"id": "call-%d", "time": "2026-11-20T10:00:00Z"}' % number])
    print(number, flush=True)
"""


def test_what_a_killed_process_was_told_is_kept_is_kept(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().splitlines()]
    process.stdout.close()
    process.wait()

    found = DiskSpool(tmp_path)
    kept = drained(found)
    assert kept[: len(told)] == ids(0, len(told))
    assert len(told) <= len(kept) <= len(told) + 1
    found.close()
