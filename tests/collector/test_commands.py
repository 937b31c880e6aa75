"""The commands that write, as plain data in and plain lines out; alone and through a running service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from collector import commands
from collector.commands import Command, CreateKey, Desk, Import, RevokeKey
from collector.ingest import Ingest
from models.errors import Conflict, InvalidInput, NotFound
from models.store import Store
from tests.collector.api.serving import Service, bearer, serving

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)


@pytest.fixture
def desk(sqlite_store: Store) -> Iterator[tuple[Desk, list[str]]]:
    said: list[str] = []
    ingest = Ingest(sqlite_store, now=lambda: NOW)
    ingest.start()
    yield Desk(sqlite_store, ingest, lambda: NOW, said.append, lambda _done, _whole: None), said
    ingest.stop()


def event(number: int, **overrides: Any) -> dict[str, Any]:
    facts = {"id": f"call-{number}", "time": "2026-11-20T09:00:00Z", "workspace": "ws-east", "deployment": "llama-chat", "input_tokens": 5, "output_tokens": 6}
    return facts | overrides


def written(folder: Path, content: bytes | str, name: str = "usage.ndjson") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\n".join(json.dumps(event(number)) for number in range(3)), id="lines"),
        pytest.param("\ufeff" + "\r\n\r\n".join(json.dumps(event(number)) for number in range(3)) + "\r\n", id="lines of Windows"),
        pytest.param(json.dumps([event(number) for number in range(3)], indent=2), id="array"),
        pytest.param("\n  " + json.dumps([event(number) for number in range(3)]), id="array after white space"),
    ],
)
def test_usage_is_read_as_people_have_it(desk: tuple[Desk, list[str]], tmp_path: Path, content: str) -> None:
    file = written(tmp_path, content)
    assert commands.run(Import("usage", [file]), desk[0]) == 0
    assert commands.run(Import("usage", [file]), desk[0]) == 0
    assert desk[1] == ["usage: 3 events stored, 0 were there already, 0 refused", "usage: 0 events stored, 3 were there already, 0 refused"]


def test_one_event_over_several_lines_is_one_event(desk: tuple[Desk, list[str]], tmp_path: Path) -> None:
    assert commands.run(Import("usage", [written(tmp_path, json.dumps(event(1), indent=2))]), desk[0]) == 0
    assert desk[1] == ["usage: 1 events stored, 0 were there already, 0 refused"]


def test_a_refused_line_is_named_by_its_place_in_the_file(desk: tuple[Desk, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_USAGE_SLICE", 200)  # about a line
    monkeypatch.setattr(commands, "_MOST_TOGETHER", 1)
    lines = [json.dumps(event(0)), "", json.dumps(event(1, input_tokens=-1)), json.dumps(event(2)), "words", ""]
    assert commands.run(Import("usage", [written(tmp_path, "\n".join(lines))]), desk[0]) == 1
    assert [text.split(":")[0] for text in desk[1]] == ["usage.ndjson, line 3", "usage.ndjson, line 5", "usage"]
    assert desk[1][-1] == "usage: 2 events stored, 0 were there already, 2 refused"


def test_of_many_refused_items_the_first_are_shown(desk: tuple[Desk, list[str]], tmp_path: Path) -> None:
    file = written(tmp_path, json.dumps([event(number, input_tokens=-1) for number in range(50)]))
    assert commands.run(Import("usage", [file]), desk[0]) == 1
    assert (len(desk[1]), desk[1][0].split(":")[0], desk[1][20]) == (22, "usage.ndjson, item 1", "and 30 more refused")


@pytest.mark.parametrize("kind", commands.KINDS)
def test_a_file_that_is_not_there_is_named_and_nothing_is_done(desk: tuple[Desk, list[str]], tmp_path: Path, kind: commands.Kind) -> None:
    with pytest.raises(InvalidInput, match=r"there is no file .*missing\.csv"):
        commands.run(Import(kind, [str(tmp_path / "missing.csv")]), desk[0])
    with pytest.raises(InvalidInput, match="is not a file"):
        commands.run(Import(kind, [str(tmp_path)]), desk[0])
    assert desk[1] == []


def test_prices_of_several_files_replace_only_what_stood_before(desk: tuple[Desk, list[str]], tmp_path: Path) -> None:
    head = "model,meter,unit_price,currency,unit\n"
    first = written(tmp_path, head + "Llama-A,input_tokens,0.5,USD,1M tokens\n", "a.csv")
    second = written(tmp_path, head + "Llama-B,input_tokens,0.7,USD,1M tokens\n", "b.csv")
    assert commands.run(Import("prices", [first, second], replace=True), desk[0]) == 0
    with desk[0].store.read() as session:
        found = session.execute(sa.text("SELECT model FROM price WHERE origin = 'imported' AND known_to IS NULL ORDER BY model")).scalars().all()
    assert found == ["Llama-A", "Llama-B"]


def test_keys_are_made_and_ended_in_words(desk: tuple[Desk, list[str]]) -> None:
    with pytest.raises(Conflict, match="first key"):
        commands.run(CreateKey("gateway", "ingest"), desk[0])
    commands.run(CreateKey("me", "admin"), desk[0])
    commands.run(CreateKey("gateway", "ingest", ["ws-east"]), desk[0])
    key_id = desk[1][2].split()[1]
    assert desk[1][2] == f"key {key_id} (ingest for ws-east), shown this once:"
    assert desk[1][3].startswith(f"mb_{key_id}_")
    commands.run(RevokeKey(key_id), desk[0])
    assert desk[1][4] == f"key {key_id} (gateway) is revoked since 2026-11-20T10:00:00Z"
    with pytest.raises(NotFound):
        commands.run(RevokeKey("nobody"), desk[0])


@pytest.mark.parametrize("command", [Import("usage", ["a"], True), CreateKey("me", "admin", ["w"]), RevokeKey("x")])
def test_a_command_survives_its_way_to_the_service(command: Command) -> None:
    assert msgspec.json.decode(msgspec.json.encode(commands.described(command)), type=Command) == command


# -- through a running service ----------------------------------------------------------------------


def _given(service: Service, command: Command, token: str = "token") -> tuple[int, list[dict[str, Any]]]:
    answer = service.client.post("/v1/control", json=commands.described(command), headers=bearer(token))
    return answer.status_code, [json.loads(line) for line in answer.text.splitlines()] if answer.status_code == 200 else [answer.json()]


def test_a_command_runs_in_the_service_and_says_so_as_it_goes(sqlite_store: Store, tmp_path: Path) -> None:
    file = written(tmp_path, json.dumps([event(1), event(2, input_tokens=-1)]))
    with serving(sqlite_store, control_token="token") as service:
        status, lines = _given(service, Import("usage", [file]))
        assert (status, lines[-1]) == (200, {"exit": 1})
        assert [line["say"].split(":")[0] for line in lines if "say" in line] == ["usage.ndjson, item 2", "usage"]
        _, lines = _given(service, CreateKey("me", "admin"))
        # Effective at once: the service that made it knows it.
        assert service.client.get("/v1/costs").status_code == 401
        assert service.client.get("/v1/costs", headers=bearer(lines[1]["say"])).status_code == 200
        assert _given(service, RevokeKey("nobody"))[1][-1]["kind"] == "NotFound"
        assert "there is no file" in _given(service, Import("charges", ["/nowhere.csv"]))[1][-1]["error"]
    assert not [thread for thread in threading.enumerate() if thread.name == "command"]


@pytest.mark.parametrize("token", ["", "wrong", "tok\xe9n"])
def test_only_the_holder_of_the_token_gives_commands(sqlite_store: Store, token: str) -> None:
    with serving(sqlite_store, control_token="token") as service:
        headers = {"authorization": f"Bearer {token}".strip().encode("latin-1")}
        answer = service.client.post("/v1/control", json=commands.described(CreateKey("me", "admin")), headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
    with serving(sqlite_store) as service:  # one that owns no SQLite file has no token and takes none
        assert _given(service, CreateKey("me", "admin"), "token")[0] == 401


def test_a_command_of_another_version_is_refused(sqlite_store: Store) -> None:
    with serving(sqlite_store, control_token="token") as service:
        answer = service.client.post("/v1/control", json={"type": "fly"}, headers=bearer("token"))
        assert (answer.status_code, "is it another version?" in answer.json()["detail"]) == (422, True)


def test_a_fault_of_our_own_is_said_without_its_words(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_command: Command, _desk: Desk) -> int:
        raise RuntimeError("secret words")

    monkeypatch.setattr(commands, "run", broken)
    with serving(sqlite_store, control_token="token") as service:
        lines = _given(service, RevokeKey("x"))[1]
    assert lines[-1] == {"error": "the service failed at this command (RuntimeError); its log says more", "kind": "InvariantBroken"}


def test_a_reader_that_goes_away_does_not_hold_the_command(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, done = threading.Event(), threading.Event()

    def long(_command: Command, desk: Desk) -> int:
        desk.say("begun")
        assert gone.wait(30)
        for number in range(100_000):
            desk.progress(number, None)
        done.set()
        return 0

    monkeypatch.setattr(commands, "run", long)
    with serving(sqlite_store, control_token="token") as service:
        described = commands.described(RevokeKey("x"))
        with service.client.stream("POST", "/v1/control", json=described, headers=bearer("token")) as answer:
            assert next(answer.iter_lines()) == '{"say": "begun"}'
        gone.set()
        assert done.wait(30)
