"""The command line as a person meets it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from collector import cli
from collector.locks import DatabaseLock

ROOT = Path(__file__).parents[2]
EVENT = {"id": "call-1", "time": "2026-11-19T09:00:00Z", "workspace": "ws-east", "deployment": "llama-chat", "input_tokens": 5, "output_tokens": 6}
COMMANDS = [
    ["up"], ["serve"], ["work"], ["dashboard"], ["import"], ["keys"], ["keys", "create"], ["keys", "list"], ["keys", "revoke"],
    ["verify"], ["doctor"], ["migrate"], ["demo"], ["version"],
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own, and with the log as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def database(sqlite_url: str) -> str:
    """The URL of a migrated file."""
    return sqlite_url


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    code = cli.main(list(words))
    found = capsys.readouterr()
    return code, found.out, found.err


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """What a refused command says: one line, on stderr."""
    given, out, err = run(capsys, *words)
    assert (given, out, err.count("\n")) == (code, "", 1), err
    assert err.startswith("meterbridge: ")
    assert "Traceback" not in err
    return err


def separately(*words: str, stdin: bytes = b"", folder: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "collector.cli", *words], input=stdin, capture_output=True, timeout=120, check=False, cwd=folder, env=_environment()
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Running:
    """A service in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        self.url = ""
        assert process.stderr is not None
        for line in process.stderr:
            self.said.append(line)
            found = re.search(r" on (http://\S+)", line)
            if found:
                self.url = found.group(1)
            if line.startswith("database ") or "dashboard on" in line or " jobs on " in line:
                break
        # What it says from now on must not fill the pipe.
        self._reader = threading.Thread(target=lambda: self.said.extend(process.stderr or ()), daemon=True)
        self._reader.start()

    def end(self, sign: signal.Signals) -> int:
        """The exit code after the signal; a machine that is busy with other tests gets some time."""
        self.process.send_signal(sign)
        code = self.process.wait(30)
        self._reader.join(10)
        return code


@contextmanager
def service(*words: str) -> Iterator[Running]:
    with subprocess.Popen(
        [sys.executable, "-m", "collector.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        running = Running(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(20)
            running._reader.join(10)


# -- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], *COMMANDS], ids=" ".join)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith(f"usage: meterbridge {' '.join(words)}".rstrip())
    assert len(out.splitlines()) > 4


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert {words[0] for words in COMMANDS} <= set(re.findall(r"^    (\w+)\b", out, re.MULTILINE))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"meterbridge \S+\n", out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["fly"], "fly"),
        (["import"], "kind"),
        (["import", "songs", "a.csv"], "songs"),
        (["import", "usage"], "FILE"),
        (["import", "usage", "nowhere.ndjson"], "there is no file nowhere.ndjson"),
        (["import", "charges", "."], ". is not a file"),
        (["keys"], "ACTION"),
        (["keys", "create", "--name", "x"], "--scope"),
        (["keys", "create", "--name", "x", "--scope", "root"], "root"),
        (["keys", "create", "--name", "", "--scope", "admin"], "name"),
        (["keys", "create", "--name", "x", "--scope", "admin", "--workspace", "w"], "every workspace"),
        (["keys", "revoke"], "ID"),
        (["keys", "list"], "there is no database at"),
        (["verify"], "there is no database at"),
        (["doctor"], "there is no database at"),
        (["up", "--port", "http"], "--port"),
        (["up", "--port", "65536"], "65535"),
        (["up", "--what"], "--what"),
        (["up", "--database-url", "mysql://db/x"], "mysql"),
        (["up", "--database-url", "x.db"], "sqlite:///path"),
        (["up", "--database-url", "postgresql://db:x/y"], "postgresql://"),
        (["migrate", "--database-url", "sqlite://"], "needs a file"),
        (["demo", "--seed", "x"], "--seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage_is_one_clear_line(capsys: pytest.CaptureFixture[str], words: Sequence[str], said: str) -> None:
    assert said in refused(capsys, *words)


def test_a_misspelt_file_makes_no_database(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capsys, "import", "usage", "nowhere.ndjson")
    refused(capsys, "verify")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_setting_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERBRIDGE_LOG_LEVEL", "loud")
    assert "METERBRIDGE_LOG_LEVEL" in refused(capsys, "version")


@pytest.mark.walk
def test_a_process_of_its_own_says_the_same() -> None:
    done = separately("fly")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert done.stderr.startswith(b"meterbridge: ")


# -- databases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["up", "--port", "0"], ["serve", "--port", "0"], ["work"], ["dashboard"], ["verify"], ["migrate"], ["keys", "list"]], ids=" ".join
)
def test_a_newer_database_is_refused(capsys: pytest.CaptureFixture[str], database: str, words: list[str]) -> None:
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as found:
        found.execute("UPDATE alembic_version SET version_num = '9999'")
        found.commit()
    assert "newer than this meterbridge" in refused(capsys, *words, "--database-url", database)


def test_a_file_that_is_no_database_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "t.db").write_text("words " * 500)
    assert "file is not a database" in refused(capsys, "migrate", "--database-url", "sqlite:///t.db", code=1)


def test_migrate_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "migrate", "--database-url", "sqlite:///made/t.db")
    assert (code, out.strip().endswith(", was none")) == (0, True)
    assert run(capsys, "migrate", "--database-url", "sqlite:///made/t.db")[1].strip().endswith("(nothing to do)")


def test_a_missing_server_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "the database does not answer" in refused(capsys, "migrate", "--database-url", f"postgresql://u:canary@/x?host={tmp_path}", code=1)


# -- what starts a service --------------------------------------------------------------------------


def test_a_port_in_use_is_said(capsys: pytest.CaptureFixture[str], database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1 port {port}" in refused(capsys, "up", "--port", port, "--database-url", database)


@pytest.mark.parametrize("command", ["up", "serve", "dashboard"])
def test_others_are_not_served_without_a_key(capsys: pytest.CaptureFixture[str], database: str, command: str) -> None:
    said = refused(capsys, command, "--host", "0.0.0.0", "--port", "0", "--database-url", database)
    assert "listening on 0.0.0.0 needs a key first: meterbridge keys create" in said


def test_a_database_in_use_says_by_whom(capsys: pytest.CaptureFixture[str], database: str) -> None:
    lock = DatabaseLock(Path(database.removeprefix("sqlite:///")))
    assert lock.acquire()
    lock.announce("http://127.0.0.1:1234")
    for words in (["up"], ["work"], ["migrate"]):
        assert f"process {os.getpid()}" in refused(capsys, *words, "--database-url", database, code=1)
    # Found, but not there: what a command says when the service hangs.
    said = refused(capsys, "keys", "create", "--name", "x", "--scope", "admin", "--database-url", database, code=1)
    assert "does not answer" in said
    lock.release()


# -- keys, import, doctor, verify -------------------------------------------------------------------


def test_keys_from_the_first_to_the_last(capsys: pytest.CaptureFixture[str], database: str) -> None:
    url = ("--database-url", database)
    assert "first key must be an admin key" in refused(capsys, "keys", "create", "--name", "x", "--scope", "read", *url, code=1)
    code, out, _ = run(capsys, "keys", "create", "--name", "me", "--scope", "admin", *url)
    secret = max(out.split(), key=len)
    assert (code, re.fullmatch(r"mb_[0-9a-f]{8}_[\w-]{43}", secret) is not None) == (0, True)
    run(capsys, "keys", "create", "--name", "gate way", "--scope", "ingest", "--workspace", "ws-b", "--workspace", "ws-a", *url)
    _, out, _ = run(capsys, "keys", "list", *url)
    lines = [line.split() for line in out.splitlines()]
    assert sorted(line[1] for line in lines) == ["admin", "ingest"]
    mine = next(line[0] for line in lines if line[1] == "admin")
    assert secret.startswith(f"mb_{mine}_")
    assert secret not in out
    assert "ws-a,ws-b  gate way" in out
    assert run(capsys, "keys", "revoke", mine, *url)[0] == 0
    assert f"{mine}  admin   revoked 20" in run(capsys, "keys", "list", *url)[1]
    assert "no key 'nobody'" in refused(capsys, "keys", "revoke", "nobody", *url, code=1)


def test_an_import_of_usage_and_its_exit_codes(capsys: pytest.CaptureFixture[str], database: str, tmp_path: Path) -> None:
    (tmp_path / "good.ndjson").write_text(json.dumps(EVENT))
    (tmp_path / "bad.ndjson").write_text(json.dumps({**EVENT, "input_tokens": "5"}))
    assert run(capsys, "import", "usage", "good.ndjson", "--database-url", database)[:2] == (0, "usage: 1 events stored, 0 were there already, 0 refused\n")
    code, out, _ = run(capsys, "import", "usage", "good.ndjson", "bad.ndjson", "--database-url", database)
    assert (code, out.splitlines()[-1]) == (1, "usage: 0 events stored, 1 were there already, 1 refused")
    assert out.startswith("bad.ndjson, item 1: schema_invalid: input_tokens")


def test_doctor_and_verify(capsys: pytest.CaptureFixture[str], database: str, tmp_path: Path) -> None:
    (tmp_path / "good.ndjson").write_text(json.dumps(EVENT))
    run(capsys, "import", "usage", "good.ndjson", "--database-url", database)
    code, out, _ = run(capsys, "doctor", "--database-url", database)
    assert code == 0
    assert "FAILURE" not in out
    assert "warning  no bill has landed yet\n          fix: meterbridge import charges FILE" in out
    code, out, _ = run(capsys, "verify", "--database-url", database)
    assert (code, out.endswith("all agree\n")) == (0, True)
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as found:
        found.execute("UPDATE usage_quarter SET input_tokens = input_tokens + 1")
        found.commit()
    code, out, _ = run(capsys, "verify", "--database-url", database)
    assert (code, out.splitlines()[-1].endswith("differ")) == (1, True)


def test_doctor_fails_on_what_is_wrong(capsys: pytest.CaptureFixture[str], database: str) -> None:
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as found:
        found.execute("DELETE FROM alembic_version")
        found.commit()
    code, out, _ = run(capsys, "doctor", "--database-url", database)
    assert (code, "FAILURE" in out, "fix: meterbridge migrate" in out) == (1, True, True)


# -- a running service ------------------------------------------------------------------------------


@pytest.mark.walk
def test_up_from_start_to_end(database: str, tmp_path: Path) -> None:
    url = ("--database-url", database)
    (tmp_path / "more.ndjson").write_text(json.dumps({**EVENT, "id": "call-2"}))
    with service("up", "--port", "0", *url) as up, httpx.Client(base_url=up.url, trust_env=False, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/usage", json=EVENT).json()["accepted"] == 1
        assert client.get("/dashboard/").status_code == 200
        # Commands go through the service that owns the file.
        done = separately("import", "usage", "more.ndjson", *url, folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, b"usage: 1 events stored, 0 were there already, 0 refused\n")
        done = separately("import", "usage", "-", *url, stdin=json.dumps(EVENT).encode())
        assert (done.returncode, done.stdout) == (0, b"usage: 0 events stored, 1 were there already, 0 refused\n")
        done = separately("import", "charges", str(tmp_path / "more.ndjson"), *url)
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
        made = separately("keys", "create", "--name", "me", "--scope", "admin", *url)
        secret = max(made.stdout.decode().split(), key=len)
        assert client.get("/v1/usage").status_code == 401
        items = client.get("/v1/usage", headers={"authorization": f"Bearer {secret}"}).json()["items"]
        assert {item["id"] for item in items} == {"call-1", "call-2"}
        assert up.end(signal.SIGINT) == 0
    said = "".join(up.said)
    assert "Open: no key has been created" in said
    assert "Traceback" not in said
    assert DatabaseLock(Path(database.removeprefix("sqlite:///"))).path.read_text() == ""


@pytest.mark.walk
@pytest.mark.parametrize("command", [["up", "--port", "0"], ["serve", "--port", "0"], ["dashboard", "--port", "0"], ["work"]], ids=lambda words: words[0])
def test_sigterm_ends_a_service_as_it_should(database: str, command: list[str]) -> None:
    with service(*command, "--database-url", database) as running:
        assert running.end(signal.SIGTERM) == 0
    assert "Traceback" not in "".join(running.said)


_INTERRUPTED_WHERE_NOTHING_CAN_BE_RAISED = """
import gc, os, signal, sys
from collector import cli

def interrupt(phase, _):
    if sys._getframe(1).f_code.co_name == "_serve_until_signal":
        gc.callbacks.remove(interrupt)
        os.kill(os.getpid(), signal.{sign})

gc.callbacks.append(interrupt)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.walk
@pytest.mark.parametrize("sign", ["SIGTERM", "SIGINT"])
def test_a_signal_that_no_exception_can_carry_ends_a_service_all_the_same(database: str, sign: str) -> None:
    # What is raised while garbage is collected is told to stderr and then forgotten.
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_WHERE_NOTHING_CAN_BE_RAISED.format(sign=sign), "serve", "--port", "0", "--database-url", database],
        capture_output=True,
        timeout=60,
        check=False,
        env=_environment(),
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


@pytest.mark.walk
def test_a_half_sent_request_does_not_hold_the_end(database: str) -> None:
    with (
        service("up", "--port", "0", "--database-url", database) as up,
        socket.create_connection(("127.0.0.1", int(up.url.rsplit(":", 1)[1])), timeout=20) as link,
    ):
        link.sendall(b"POST /v1/usage HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.get(f"{up.url}/readyz", trust_env=False).status_code == 200
        assert up.end(signal.SIGINT) == 0
