"""``POST /v1/usage`` and ``/v1/usage/openai``: what arrives, in which wrapping, and what is answered."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from collector.api import ingest as routes
from models.errors import InvalidInput, Unavailable
from models.store import Store
from tests.collector.api.serving import NOW, Service, bearer, serving

DATA = Path(__file__).parents[2] / "data" / "openai"
LINES = {"content-type": "application/x-ndjson"}
MIB = 1024 * 1024


def event(event_id: str = "call-1", **overrides: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": event_id,
        "time": "2026-11-20T09:59:00Z",
        "workspace": "ws-east",
        "deployment": "llama-chat",
        "model": "Llama-3.3-70B-Instruct",
        "input_tokens": 1000,
        "output_tokens": 200,
    }
    return {name: value for name, value in (facts | overrides).items() if value is not ...}


def events(count: int) -> list[dict[str, Any]]:
    return [event(f"call-{number}") for number in range(count)]


def stored(service: Service) -> list[str]:
    with service.store.read() as session:
        return list(session.execute(sa.text("SELECT event_id FROM usage_event ORDER BY seq")).scalars())


def send(service: Service, content: bytes | str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.client.post("/v1/usage", content=content, headers={"content-type": "application/json"} | named)


def problem(answer: httpx.Response, status: int, error: str) -> str:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    body = answer.json()
    assert (body["status"], body["error"], body["type"]) == (status, error, "about:blank")
    return str(body["detail"])


# -- wrappings --------------------------------------------------------------------------------------


def test_one_event_is_stored_and_answered(service_on_both: Service) -> None:
    answer = service_on_both.client.post("/v1/usage", json=event())
    assert answer.status_code == 200
    assert answer.json() == {
        "accepted": 1,
        "duplicates": 0,
        "rejected": [],
        "events": [{"index": 0, "duplicate": False, "flags": [], "tokens_quality": "reported"}],
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert service_on_both.client.post("/v1/usage", json=event()).json()["duplicates"] == 1
    assert stored(service_on_both) == ["call-1"]


def _lines(count: int) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in events(count))


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        pytest.param(json.dumps(events(3)).encode(), {}, id="array"),
        pytest.param(json.dumps(events(3)).encode(), {"content-type": "application/json; charset=utf-8"}, id="charset"),
        pytest.param(_lines(3), LINES, id="lines"),
        pytest.param(_lines(3) + b"\r\n\r\n", LINES, id="lines with blank ones"),
        pytest.param(_lines(3), {}, id="lines said to be json"),
        pytest.param(b"\xef\xbb\xbf" + json.dumps(events(3)).encode(), {}, id="byte order mark"),
        pytest.param(gzip.compress(json.dumps(events(3)).encode()), {"content-encoding": "gzip"}, id="gzip"),
        pytest.param(gzip.compress(_lines(3)), {"content-encoding": "GZIP", **LINES}, id="gzip lines"),
        pytest.param(b"".join(gzip.compress(line + b"\n") for line in _lines(3).split(b"\n")), {"content-encoding": "gzip", **LINES}, id="gzip members"),
        pytest.param(json.dumps(events(3)).encode(), {"content-encoding": "identity"}, id="identity"),
    ],
)
def test_every_wrapping_of_the_same_events_is_read(service: Service, content: bytes, headers: dict[str, str]) -> None:
    answer = service.client.post("/v1/usage", content=content, headers={"content-type": "application/json"} | headers)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 3)
    assert stored(service) == ["call-0", "call-1", "call-2"]


def test_a_body_without_a_content_type_is_read(service: Service) -> None:
    assert service.client.post("/v1/usage", content=json.dumps(event())).json()["accepted"] == 1


@pytest.mark.parametrize(("content", "headers"), [(b"[]", {}), (b"", LINES), (b"\n\n", LINES)])
def test_nothing_is_stored_of_nothing(service: Service, content: bytes, headers: dict[str, str]) -> None:
    answer = service.client.post("/v1/usage", content=content, headers={"content-type": "application/json"} | headers)
    assert (answer.status_code, answer.json()) == (200, {"accepted": 0, "duplicates": 0, "rejected": [], "events": []})


def test_a_long_array_is_read_beside_the_loop_and_answered_whole(service: Service) -> None:
    many = [event(f"call-{number}", input_tokens=-1 if number % 2 else 5) for number in range(5000)]
    answer = service.client.post("/v1/usage", json=many).json()
    assert (answer["accepted"], len(answer["rejected"]), answer["rejected"][-1]["index"]) == (2500, 2500, 4999)


# -- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "named"),
    [
        (event("bad", id=...), "schema_invalid", "id"),
        (event("bad", time=...), "schema_invalid", "time"),
        (event("bad", workspace=...), "schema_invalid", "workspace"),
        (event("bad", deployment=...), "schema_invalid", "deployment"),
        (event("bad", prompt="secret words"), "schema_invalid", "prompt"),
        (event("bad", input_tokens="12"), "schema_invalid", "input_tokens"),
        (event("bad", input_tokens=1.5), "schema_invalid", "input_tokens"),
        (event("bad", input_tokens=-1), "invalid_value", "input_tokens"),
        (event("bad", output_tokens=2**53), "invalid_value", "output_tokens"),
        (event("bad", model="m" * 257), "invalid_value", "model"),
        (event("bad", status="gone"), "invalid_value", "status"),
        (event("bad", tags={"a": {"b": "c"}}), "schema_invalid", "tags"),
        (event("bad", team="a\x00b"), "invalid_value", "team"),
        (event("bad", time="2026-11-20 10:00"), "invalid_time", "time"),
        (event("bad", time="2026-11-20T10:00:00"), "invalid_time", "time"),
        (event("bad", time="2026-02-30T10:00:00Z"), "invalid_time", "time"),
        (event("bad", time="2022-12-31T23:59:59Z"), "invalid_time", "time"),
        (event("bad", time="2026-12-20T10:00:01Z"), "invalid_time", "time"),
        (event("good-0", input_tokens=999), "conflict", "id"),
        ("words", "schema_invalid", "object"),
    ],
)
def test_a_refused_item_is_named_and_its_neighbours_are_stored(service: Service, bad: Any, error: str, named: str) -> None:
    answer = service.client.post("/v1/usage", json=[event("good-0"), bad, event("good-1")])
    assert (answer.status_code, answer.json()["accepted"]) == (200, 2)
    assert [(one["index"], one["error"]) for one in answer.json()["rejected"]] == [(1, error)]
    assert named in answer.json()["rejected"][0]["detail"]
    assert "secret words" not in answer.text
    assert stored(service) == ["good-0", "good-1"]


def test_a_broken_line_costs_only_itself(service: Service) -> None:
    body = b'{"id": "cut, \n' + json.dumps(event()).encode() + b"\nwords\n"
    answer = service.client.post("/v1/usage", content=body, headers=LINES).json()
    assert (answer["accepted"], [(one["index"], one["error"]) for one in answer["rejected"]]) == (1, [(0, "malformed"), (2, "malformed")])


def test_a_conflict_does_not_show_what_stands(service: Service) -> None:
    service.client.post("/v1/usage", json=event(team="team-secret", input_tokens=4711))
    answer = service.client.post("/v1/usage", json=event())
    assert (answer.status_code, answer.json()["rejected"][0]["error"]) == (422, "conflict")
    assert "4711" not in answer.text
    assert "team-secret" not in answer.text


def test_a_batch_in_which_all_is_refused_is_422_with_the_same_body(service: Service) -> None:
    answer = service.client.post("/v1/usage", json=[event(time="later"), event(input_tokens=-1)])
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/json")
    assert [one["error"] for one in answer.json()["rejected"]] == ["invalid_time", "invalid_value"]


@pytest.mark.parametrize(
    "content",
    [b"{", b"words", b"", b'[{"id": 1', b'{"id": "\xff"}', b"[" * 100_000, b'{"a":' * 50_000],
    ids=["brace", "words", "empty", "cut", "no utf-8", "deep array", "deep object"],
)
def test_a_body_that_is_no_json_is_malformed(service: Service, content: bytes) -> None:
    problem(send(service, content), 400, "malformed")


def test_a_deep_item_costs_only_itself(service: Service) -> None:
    deep = '{"id":"d","tags":' + '{"a":' * 5000 + "1" + "}" * 5000 + "}"
    answer = send(service, f"[{json.dumps(event())},{deep}]")
    assert (answer.json()["accepted"], answer.json()["rejected"][0]["index"]) == (1, 1)


def test_a_body_that_says_it_is_too_large_is_refused_unread(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1])), timeout=20) as link:
        head = f"POST /v1/usage HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {16 * MIB + 1}\r\n\r\n"
        link.sendall(head.encode())
        assert link.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_sixteen_mebibytes_are_read_and_one_byte_more_is_not(service: Service) -> None:
    body = json.dumps(event()).encode()
    assert send(service, body + b" " * (16 * MIB - len(body))).json()["accepted"] == 1

    def chunks() -> Any:
        yield body + b" " * (16 * MIB - len(body))
        yield b" "

    answer = service.client.post("/v1/usage", content=chunks(), headers={"content-type": "application/json"})
    assert "16 MiB" in problem(answer, 413, "too_large")


def test_a_gzip_bomb_is_refused_within_bounds() -> None:
    bomb = gzip.compress(bytes(400 * MIB), 9)
    tracemalloc.start()
    with pytest.raises(InvalidInput) as refused:
        routes.unpacked(bomb, routes.MAX_BODY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.error == "too_large"
    assert peak < 3 * routes.MAX_BODY


def test_what_is_too_large_once_unpacked_is_413(service: Service) -> None:
    problem(send(service, gzip.compress(b" " * (16 * MIB + 1)), content_encoding="gzip"), 413, "too_large")
    many = gzip.compress(b" " * MIB) * 17
    problem(send(service, many, content_encoding="gzip"), 413, "too_large")


def test_thousands_of_tiny_gzip_members_are_read_in_order() -> None:
    lines = [b"%d\n" % number for number in range(20_000)]
    assert routes.unpacked(b"".join(gzip.compress(line, 1) for line in lines), MIB) == b"".join(lines)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"{}")[:-3], gzip.compress(b"{}") + b"junk", gzip.compress(json.dumps(event()).encode())[:40]],
    ids=["plain", "without its end", "with something after it", "cut"],
)
def test_broken_gzip_is_malformed(service: Service, content: bytes) -> None:
    problem(send(service, content, content_encoding="gzip"), 400, "malformed")


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"content-type": "text/html"}, "unsupported_media_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"content-type": "text/plain"}, "unsupported_media_type"),
        ({"content-encoding": "br"}, "unsupported_encoding"),
        ({"content-encoding": "gzip, gzip"}, "unsupported_encoding"),
    ],
)
def test_what_is_not_read_here_is_415_with_its_class(service: Service, headers: dict[str, str], error: str) -> None:
    answer = service.client.post("/v1/usage", content=json.dumps(event()), headers={"content-type": "application/json"} | headers)
    problem(answer, 415, error)
    assert stored(service) == []


def test_a_half_sent_body_stores_nothing_and_the_service_goes_on(service: Service) -> None:
    body = json.dumps(event()).encode()
    with socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1])), timeout=20) as link:
        head = f"POST /v1/usage HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        link.sendall(head.encode() + body[:-10])
    assert service.client.post("/v1/usage", json=event("call-2")).json()["accepted"] == 1
    assert stored(service) == ["call-2"]


def test_a_body_that_does_not_arrive_in_time_is_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_BODY_SECONDS", 0.05)
    with socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1])), timeout=20) as link:
        link.sendall(b"POST /v1/usage HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        assert link.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_many_bodies_at_once_are_bounded() -> None:
    held = routes.Held(10)
    held.take(6)
    held.take(4)
    with pytest.raises(Unavailable, match="too many bodies"):
        held.take(1)
    held.give(4)
    held.take(1)
    assert held.size == 7


def test_what_was_held_is_let_go_whatever_happens(service: Service) -> None:
    found: list[routes.Held] = []
    taken = routes.Held.take

    def watched(self: routes.Held, size: int) -> None:
        found.append(self)
        taken(self, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes.Held, "take", watched)
        send(service, json.dumps(event()))
        send(service, b"{")
        send(service, gzip.compress(b" " * 17 * MIB), content_encoding="gzip")
    assert len(set(map(id, found))) == 1
    assert found[0].size == 0


# -- headers ----------------------------------------------------------------------------------------


def test_headers_say_what_events_do_not(service: Service) -> None:
    bare = event(workspace=..., deployment=..., model=...)
    answer = service.client.post(
        "/v1/usage",
        json=[bare, event("call-2", workspace="ws-own", deployment="own")],
        headers={
            "x-meterbridge-workspace": "ws-h%C3%A4user",
            "x-meterbridge-deployment": "llama-chat",
            "X-Meterbridge-Source": "gateway",
            "x-meterbridge-model": "Llama-4-Scout",
            "x-meterbridge-team": "search",
        },
    )
    assert answer.json()["accepted"] == 2
    items = service.client.get("/v1/usage").json()["items"]
    assert {(one["workspace"], one["deployment"], one["source"], one["model"], one["team"]) for one in items} == {
        ("ws-häuser", "llama-chat", "gateway", "Llama-4-Scout", "search"),
        ("ws-own", "own", "gateway", "Llama-3.3-70B-Instruct", "search"),
    }


@pytest.mark.parametrize("value", ["%ff", "a%00b", "x" * 257])
def test_a_header_that_is_no_name_is_refused_by_name(service: Service, value: str) -> None:
    answer = service.client.post("/v1/usage", json=event(workspace=...), headers={"x-meterbridge-workspace": value})
    assert "x-meterbridge-workspace" in problem(answer, 422, "invalid_value")


def test_flags_and_quality_stand_in_the_answer(service: Service) -> None:
    sent = [event("ahead", time="2026-11-20T10:06:00Z"), event("unknown", output_tokens=None), event("late", time="2025-01-01T00:00:00Z")]
    assert [(one["flags"], one["tokens_quality"]) for one in service.client.post("/v1/usage", json=sent).json()["events"]] == [
        (["clock_skew"], "reported"),
        (["usage_missing"], "missing"),
        ([], "reported"),
    ]
    again = service.client.post("/v1/usage", json=event("late", time="2025-01-01T00:30:00Z")).json()
    assert again["events"] == [{"index": 0, "duplicate": True, "flags": ["restamped"], "tokens_quality": "reported"}]


# -- who may ----------------------------------------------------------------------------------------


def test_a_key_writes_its_own_workspaces_only(service: Service) -> None:
    secret = service.key("ingest", "ws-east")
    sent = [event("a", workspace=...), event("b", workspace="ws-west"), event("c")]
    answer = service.client.post("/v1/usage", json=sent, headers=bearer(secret))
    assert (answer.json()["accepted"], answer.json()["rejected"][0]["index"], answer.json()["rejected"][0]["error"]) == (2, 1, "forbidden_workspace")
    with service.store.read() as session:
        assert session.execute(sa.text("SELECT name FROM workspace")).scalars().all() == ["ws-east"]


def test_the_key_of_a_sender_is_no_part_of_an_identity(service: Service) -> None:
    first, second = service.key("ingest", "ws-east"), service.key("ingest", "ws-east", "ws-west")
    answers = [service.client.post("/v1/usage", json=event("a"), headers=bearer(secret)).json() for secret in (first, second)]
    assert [(one["accepted"], one["duplicates"]) for one in answers] == [(1, 0), (0, 1)]


@pytest.mark.parametrize(("scope", "status"), [(None, 401), ("read", 403)])
def test_who_may_not_write_is_told_before_the_body_is_read(service: Service, scope: Any, status: int) -> None:
    secret = service.key("read") if scope else service.key("admin") + "x"
    with socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1])), timeout=20) as link:
        link.sendall(f"POST /v1/usage HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {secret}\r\nContent-Length: 100\r\n\r\n".encode())
        assert link.recv(4096).startswith(f"HTTP/1.1 {status} ".encode())


# -- storage away -----------------------------------------------------------------------------------


def test_postgresql_that_is_away_is_503_and_comes_back_by_itself(postgresql_url: str) -> None:
    store, other = Store(postgresql_url), Store(postgresql_url)
    name = store.url.database
    with serving(store) as service:
        assert service.client.post("/v1/usage", json=event("a")).json()["accepted"] == 1
        other.engine.dispose()
        admin = sa.create_engine(store.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            # The same to a client as a stopped server: sessions end, none can begin.
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            for path in ("/v1/costs", "/readyz", "/metrics"):
                answer = service.client.get(path)
                problem(answer, 503, "unavailable")
                assert re.fullmatch(r"[1-9]\d*", answer.headers["retry-after"])
            answer = service.client.post("/v1/usage", json=event("b"))
            detail = problem(answer, 503, "unavailable")
            assert re.fullmatch(r"[1-9]\d*", answer.headers["retry-after"])
            assert str(name) not in detail  # what the database says of itself is for the log
            service.later(seconds=3)  # the keys have to be read again too
            problem(service.client.post("/v1/usage", json=event("b")), 503, "unavailable")
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        service.later(seconds=3)
        assert service.client.post("/v1/usage", json=[event("a"), event("b")]).json()["accepted"] == 1
        assert service.client.get("/readyz").status_code == 200
        admin.dispose()
    store.close()
    other.close()


def test_sqlite_that_cannot_be_written_is_503_and_comes_back_by_itself(service: Service) -> None:
    service.client.post("/v1/usage", json=event("a"))

    def read_only(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA query_only = ON")

    sa.event.listen(service.store.engine, "connect", read_only)
    service.store.close()
    answer = service.client.post("/v1/usage", json=event("b"))
    problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "5"
    assert service.client.get("/v1/usage").json()["items"][0]["id"] == "a"
    sa.event.remove(service.store.engine, "connect", read_only)
    service.store.close()
    assert service.client.post("/v1/usage", json=[event("a"), event("b")]).json()["duplicates"] == 1
    assert stored(service) == ["a", "b"]


def test_a_fault_of_our_own_is_a_problem_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_request: routes.Request) -> Any:
        raise RuntimeError("secret words")

    monkeypatch.setattr(routes, "ROUTES", {"/v1/usage": (broken, frozenset({"application/json"}))})
    # With a header that the short way does not know: whether the body comes with its head, and could take that way, is luck.
    answer = service.client.post("/v1/usage", json=event(), headers={"x-meterbridge-source": "gateway"})
    problem(answer, 500, "internal")
    assert "secret words" not in answer.text


def test_senders_at_the_same_time_are_each_answered(service_on_both: Service) -> None:
    verdicts: list[int] = []

    def work(thread: int) -> None:
        with httpx.Client(base_url=service_on_both.url, trust_env=False, timeout=60) as client:
            verdicts.extend(
                client.post("/v1/usage", json=[event(f"call-{number}"), event(f"own-{thread}-{number}")]).json()["accepted"] for number in range(10)
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(verdicts), sum(verdicts)) == (80, 90)


# -- raw responses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "media_type", "tokens"),
    [
        ("mslearn-serverless-chat.json", "application/json", (19, 72, None)),
        ("azure-openai-chat-2026.json", "application/json", (16, 22, 0)),
        ("synthetic-n3-cached.json", "application/json", (1500, 96, 1408)),
        ("synthetic-stream-include-usage.sse", "text/event-stream", (11, 2, None)),
    ],
)
def test_a_raw_response_is_counted(service: Service, file: str, media_type: str, tokens: tuple[int, int, int | None]) -> None:
    content = (DATA / file).read_bytes()
    headers = {"content-type": media_type, "x-meterbridge-workspace": "ws-east", "x-meterbridge-deployment": "llama-chat"}
    for expected in ((1, 0), (0, 1)):
        answer = service.client.post("/v1/usage/openai", content=content, headers=headers).json()
        assert (answer["accepted"], answer["duplicates"], answer["rejected"]) == (*expected, [])
    service.later(seconds=1)
    items = service.client.get("/v1/usage", params={"from": "2023-01-01"}).json()["items"]
    assert [(one["input_tokens"], one["output_tokens"], one["cached_input_tokens"], one["tokens_quality"]) for one in items] == [(*tokens, "reported")]


def test_no_words_of_a_prompt_or_answer_are_kept(service: Service) -> None:
    body = json.loads((DATA / "azure-openai-chat-2026.json").read_text())
    body["choices"][0]["message"]["content"] = "canary-words"
    envelope = {
        "request": {"messages": [{"role": "user", "content": "canary-words"}], "user": "u-1"},
        "response": body,
        "status": 200,
        "headers": {"api-key": "canary-words"},
        "workspace": "ws-east",
        "deployment": "llama-chat",
    }
    assert service.client.post("/v1/usage/openai", json=envelope).json()["accepted"] == 1
    service.ingest.stop()
    service.store.close()
    assert service.store.path is not None
    for file in service.store.path.parent.glob(f"{service.store.path.name}*"):
        assert b"canary-words" not in file.read_bytes()


def test_envelopes_one_a_line_are_judged_one_by_one(service: Service) -> None:
    body = json.loads((DATA / "mslearn-serverless-chat.json").read_text())
    sent = [{"response": {**body, "id": f"r-{number}"}, "workspace": "ws-east", "deployment": "llama-chat"} for number in range(2)]
    lines = b"\n".join([json.dumps(sent[0]).encode(), b"words", json.dumps(sent[1]).encode()])
    answer = service.client.post("/v1/usage/openai", content=lines, headers=LINES)
    assert (answer.json()["accepted"], [one["index"] for one in answer.json()["rejected"]]) == (2, [1])


def test_a_foreign_time_that_is_absent_is_the_arrival(service: Service) -> None:
    body = {
        "object": "chat.completion",
        "id": "r-1",
        "model": "Llama",
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
    }
    headers = {"x-meterbridge-workspace": "ws-east", "x-meterbridge-deployment": "llama-chat"}
    answer = service.client.post("/v1/usage/openai", json=body, headers=headers).json()
    assert "time_received" in answer["events"][0]["flags"]
    service.later(days=1)
    assert service.client.post("/v1/usage/openai", json=body, headers=headers).json()["duplicates"] == 1
    found = service.client.get("/v1/usage").json()["items"][0]["time"]
    assert datetime.fromisoformat(found).astimezone(UTC) - NOW < timedelta(seconds=1)


@pytest.mark.parametrize(("path", "status"), [("/v1/usage/", 405), ("/v1/usage/other", 405), ("/v2/usage", 404)])
def test_other_paths_are_problems(service: Service, path: str, status: int) -> None:
    problem(service.client.post(path, json=event()), status, {404: "not_found", 405: "method_not_allowed"}[status])
