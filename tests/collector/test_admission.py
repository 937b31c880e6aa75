"""May a call go: from what the last minute used, and from hard budgets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session

from collector import rulebook
from collector.admission import Admission, Asked, Verdict
from collector.rulebook import Author, BudgetBody
from models.limits import Counting, LimitSource, set_limit
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving
from tests.walks.service import until

NOW = make.NOW


class Clock:
    def __init__(self) -> None:
        self.now = NOW
        self.ticks = 0.0

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.ticks

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.ticks += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def desk(store: Store, clock: Clock) -> Admission:
    found = Admission(store, now=clock, monotonic=clock.monotonic)
    found.refresh()
    return found


def test_a_call_goes_while_the_minute_holds_it_and_waits_until_it_does(store: Store, clock: Clock) -> None:
    with store.write() as session:
        make.serverless(session)
        make.event(session, time=NOW - timedelta(seconds=40), input_tokens=300_000, output_tokens=0)
        make.event(session, time=NOW - timedelta(seconds=10), input_tokens=60_000, output_tokens=20_000)
    found = desk(store, clock)
    fits = found.judge(Asked("ws-east", "llama-chat", 20_000))
    over = found.judge(Asked("ws-east", "llama-chat", 20_001))
    assert (fits.allow, fits.remaining, fits.reason) == (True, 20_000, None)
    # The 300,000 of forty seconds ago are gone in twenty.
    assert (over.allow, over.retry_after_seconds, over.remaining) == (False, 20, 20_000)
    assert over.reason is not None
    assert over.reason.startswith("quota: 380,000 of 400,000 tokens a minute are used (default)")
    assert [(one.deployment, one.retry_after_seconds) for one in found.denied()] == []
    clock.pass_seconds(20)
    assert found.judge(Asked("ws-east", "LLAMA-CHAT", 320_000)).allow


def test_requests_count_too_and_a_limit_of_the_owner_wins(sqlite_store: Store, clock: Clock) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        set_limit(
            session, workspace="ws-east", deployment="llama-chat", measure="requests_per_minute", value=3,
            source=LimitSource.USER, counting=Counting.BILLED, author="", now=NOW - timedelta(hours=1),
        )  # fmt: skip
        for second in (50, 30, 5):
            make.event(session, time=NOW - timedelta(seconds=second), input_tokens=1, output_tokens=1)
    found = desk(sqlite_store, clock)
    verdict = found.judge(Asked("ws-east", "llama-chat", 1))
    assert (verdict.allow, verdict.retry_after_seconds) == (False, 10)
    assert "3 of 3 requests a minute are used (user)" in (verdict.reason or "")
    assert [(one.workspace, one.deployment) for one in found.denied()] == [("ws-east", "llama-chat")]


def test_what_nobody_knows_has_the_default_limit_and_own_instances_have_none(sqlite_store: Store, clock: Clock) -> None:
    with sqlite_store.write() as session:
        make.managed(session)
        make.event(session, make.series(session, endpoint="llama-online", deployment="blue"), time=NOW, input_tokens=900_000, output_tokens=0)
    found = desk(sqlite_store, clock)
    assert found.judge(Asked("nowhere", "new", 400_000)).remaining == 400_000
    assert not found.judge(Asked("nowhere", "new", 400_001)).allow
    assert found.judge(Asked("ws-east", "llama-online/blue", 500_000)).allow


def test_what_was_read_stays_fresh_for_a_quarter_of_a_second(sqlite_store: Store, clock: Clock) -> None:
    found = desk(sqlite_store, clock)
    states = [found.is_stale]
    clock.pass_seconds(0.3)
    states.append(found.is_stale)
    found.refresh()
    assert [*states, found.is_stale] == [False, True, False]


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "1.00")
    with serving(sqlite_store) as running:
        yield running


def test_quotas_and_admission_over_http(service: Service) -> None:
    asked = {"workspace": "ws-east", "deployment": "llama-chat", "tokens": 1000}
    assert service.client.post("/v1/admission", json=asked).json()["allow"] is True
    tokens, requests = service.client.get("/v1/quotas").json()["items"]
    assert (tokens["id"], tokens["limit"], tokens["limit_source"], tokens["counting"]) == ("ws-east/llama-chat:tokens_per_minute", 400_000, "default", "billed")
    assert (requests["measure"], requests["limit"], requests["used"], requests["headroom"]) == ("requests_per_minute", 1000, 0, 1000)
    told = service.client.put(f"/v1/quotas/{tokens['id']}", json={"limit": 500})
    assert (told.status_code, told.json()["limit"], told.json()["limit_source"]) == (200, 500, "user")
    assert service.client.put("/v1/quotas/ws-east/llama-chat:tokens_per_minute", json={"limit": None}).json()["limit"] == 400_000
    assert service.client.put("/v1/quotas/nope", json={"limit": 5}).status_code == 404
    assert service.client.put(f"/v1/quotas/{tokens['id']}", json={"limit": 0}).status_code == 422
    assert service.client.post("/v1/admission", json={"workspace": "ws-east"}).status_code == 422
    assert "not counted" in service.client.post("/v1/admission", json=asked).json()["overshoot"]
    wrong = service.client.post("/v1/admission", json=asked | {"tokens": "many"})
    assert (wrong.status_code, wrong.json()["error"], "body.tokens" in wrong.json()["detail"]) == (422, "schema_invalid", True)
    assert service.client.post("/v1/admission", content=b"{").status_code == 422
    first = service.client.get("/v1/admission/denied")
    assert (first.status_code, first.json()) == (200, {"items": []})
    assert service.client.get("/v1/admission/denied", headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_the_peak_is_the_highest_minute_and_users_are_named(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        chat = make.series(session, application="chat")
        for minutes, tokens in ((3000, 9_000), (3001, 7_000), (1000, 12_000), (1014, 3_000)):
            make.event(session, chat, time=NOW - timedelta(minutes=minutes), input_tokens=tokens, output_tokens=0)
        make.event(session, chat, time=NOW - timedelta(seconds=5), input_tokens=10, output_tokens=5)
        make.event(session, time=NOW - timedelta(days=9), input_tokens=90_000, output_tokens=0)
    with serving(sqlite_store) as service:
        tokens, requests = service.client.get("/v1/quotas?workspace=ws-east").json()["items"]
    assert (tokens["peak"], tokens["peak_at"], tokens["used"]) == (12_000, "2026-11-19T17:20:00Z", 15)
    assert (tokens["users"], requests["users"], requests["peak"]) == ([{"name": "chat", "used": 15}], [{"name": "chat", "used": 1}], 1)


def test_the_peak_of_admitted_tokens_stands_beside_the_billed_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.write() as session:
        make.serverless(session)
        chat, mail = make.series(session, application="chat"), make.series(session, application="mail")
        # Two calls that begin in one minute and end in others, one of another day that used more than it was admitted for then, one of long ago.
        for series, minutes, lasted, used, most in (
            (chat, 1000, 70, 100, 9_000),
            (mail, 1001, 10, 100, 4_000),
            (chat, 4000, 5, 9_500, 100),
            (chat, 11_000, 5, 1, 90_000),
        ):
            at = NOW - timedelta(minutes=minutes) + timedelta(seconds=30)
            details = {"max_tokens": most}
            make.event(session, series, time=at, started_at=at - timedelta(seconds=lasted), input_tokens=used, output_tokens=0, details=details)
    with serving(store) as service:
        tokens, requests = service.client.get("/v1/quotas?workspace=ws-east").json()["items"]
        # The newest calls first, by whole quarters of an hour.
        monkeypatch.setattr(sys.modules["models.ledger.quotas"], "_MOST_CALLS", 2)
        less = service.client.get("/v1/quotas?workspace=ws-east").json()["items"][0]
    assert (tokens["peak"], requests["admitted_peak"]) == (9_500, None)
    assert tokens["admitted_peak"] == {"value": 13_200, "at": "2026-11-19T17:19:00Z", "since": "2026-11-13T10:00:00Z"}
    assert less["admitted_peak"] == {"value": 13_200, "at": "2026-11-19T17:19:00Z", "since": "2026-11-17T15:30:00Z"}


def spent_budget(session: Session, scope: dict[str, Any], name: str = "hard") -> None:
    body = BudgetBody.model_validate(
        {"name": name, "scope": scope, "amount": "0.01", "currency": "USD", "period": "month", "basis": "best", "steps": [100], "hard": True}
    )
    rulebook.create_budget(session, body, by=Author("tests"), now=NOW)


def test_the_list_names_what_is_denied_whoever_calls_and_stays_the_same_while_nothing_changes(store: Store, clock: Clock) -> None:
    with store.write() as session:
        make.serverless(session)
        make.managed(session)
        make.token_prices(session, "1.00", "1.00")
        make.event(session, time=NOW - timedelta(seconds=30), input_tokens=400_000, output_tokens=0)
        # More than a serverless limit holds, and one's own instances have none.
        make.event(session, make.series(session, endpoint="llama-online", deployment="blue"), time=NOW, input_tokens=900_000, output_tokens=0)
    found = desk(store, clock)
    listed = found.denied()
    assert [(one.workspace, one.deployment, one.reason, one.retry_after_seconds) for one in listed] == [
        ("ws-east", "llama-chat", "quota: the limit of the minute is reached", 30)
    ]
    clock.pass_seconds(1)
    with store.write() as session:
        make.event(session, time=clock.now, input_tokens=5_000, output_tokens=0)
    found.refresh()
    assert [(one.deployment, one.reason, one.retry_after_seconds) for one in found.denied()] == [("llama-chat", listed[0].reason, 29)]
    clock.pass_seconds(60)
    found.refresh()
    assert found.denied() == []


def test_a_spent_budget_of_callers_denies_only_them_and_one_of_a_model_names_its_deployments(sqlite_store: Store, clock: Clock) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.serverless(session, "other", model="Llama-3.2-90B-Vision-Instruct")
        make.token_prices(session, "1000000", "1000000")
        make.event(session, make.series(session, application="chat", team="search"), time=NOW - timedelta(hours=2), input_tokens=10, output_tokens=0)
        spent_budget(session, {"team": "search"})
    found = desk(sqlite_store, clock)
    assert not found.judge(Asked("ws-east", "llama-chat", 1, team="search")).allow
    assert found.judge(Asked("ws-east", "llama-chat", 1, team="chat")).allow
    assert found.judge(Asked("ws-east", "llama-chat", 1)).allow
    assert found.denied() == []  # a list of places would deny everybody
    with sqlite_store.write() as session:
        spent_budget(session, {"model": "meta-llama-3.3-70b-instruct"}, name="of the model")
    clock.pass_seconds(3)
    found.refresh()
    assert [(one.workspace, one.deployment) for one in found.denied()] == [("ws-east", "llama-chat")]
    assert not found.judge(Asked("ws-east", "llama-chat", 1)).allow
    assert found.judge(Asked("ws-east", "other", 1)).allow


def test_a_limit_of_admitted_tokens_is_judged_by_what_calls_may_use(sqlite_store: Store, clock: Clock) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        set_limit(
            session, workspace="ws-east", deployment="llama-chat", measure="tokens_per_minute", value=10_000,
            source=LimitSource.USER, counting=Counting.ADMITTED, author="", now=NOW - timedelta(hours=1),
        )  # fmt: skip
        # It ended just now, and began more than a minute ago.
        make.event(session, time=NOW, input_tokens=6_000, output_tokens=10, started_at=NOW - timedelta(seconds=70), details={"max_tokens": 3_000})
        make.event(session, time=NOW, input_tokens=1_000, output_tokens=10, started_at=NOW - timedelta(seconds=20), details={"max_tokens": 500, "best_of": 4})
    found = desk(sqlite_store, clock)
    verdict = found.judge(Asked("ws-east", "llama-chat", 7_000))
    assert (verdict.allow, verdict.remaining) == (True, 7_000)  # 1,000 + 4 x 500
    assert not found.judge(Asked("ws-east", "llama-chat", 7_001)).allow


def ask(desk: Admission, times: int) -> None:
    for _ in range(times):
        assert not desk.must_wait()
        desk.judge(Asked("ws-east", "llama-chat", 1))


def test_under_load_hard_budgets_are_read_by_a_process_of_their_own(sqlite_store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1000000", "1000000")
        spent_budget(session, {})
    found = desk(sqlite_store, clock)
    monkeypatch.setattr("collector.admission.hard_standings", refuse)
    ask(found, 6)
    with sqlite_store.write() as session:
        make.event(session, time=NOW, input_tokens=10, output_tokens=0)
    clock.pass_seconds(1.9)
    # The overshoot: what was used since the last look at budgets stops no call.
    ask(found, 1)
    reason = until(lambda: later(found, clock).reason, within=30, pause=0.3, what="the answer of the process")
    found.end()
    assert reason == "budget: hard has spent 10.00 USD of 0.01 USD; it begins anew at 2026-12-01T00:00:00Z"


def later(desk: Admission, clock: Clock) -> Verdict:
    """Asked again, by many, when it is time for another look."""
    clock.pass_seconds(0.3)
    for _ in range(6):
        desk.must_wait()
    return desk.judge(Asked("ws-east", "llama-chat", 1))


def refuse(*_: object, **__: object) -> list[object]:
    raise AssertionError("hard budgets were read by the thread that looks")


def test_where_that_process_fails_the_thread_that_looks_reads_budgets_itself(
    sqlite_store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1000000", "1000000")
        spent_budget(session, {})
    found = desk(sqlite_store, clock)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    ask(found, 6)
    with sqlite_store.write() as session:
        make.event(session, time=NOW, input_tokens=10, output_tokens=0)
    clock.pass_seconds(1.9)
    ask(found, 1)
    until(lambda: later(found, clock).reason, within=30, pause=0.3, what="a look of its own")
    found.end()
    assert "the process that reads hard budgets does not answer" in caplog.text


def test_under_load_a_thread_looks_and_nobody_waits(sqlite_store: Store, clock: Clock) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
    found = desk(sqlite_store, clock)
    ask(found, 6)
    clock.pass_seconds(0.3)
    with sqlite_store.write() as session:
        make.event(session, time=clock.now, input_tokens=1_000, output_tokens=0)
    assert not found.must_wait()
    until(lambda: found.judge(Asked("ws-east", "llama-chat", 1)).remaining == 399_000, within=20, what="a look by the thread")
    found.end()
    clock.pass_seconds(5.1)
    assert found.must_wait()  # too old to answer from, whoever looks
    found.refresh()
    clock.pass_seconds(0.3)
    assert found.must_wait()  # few ask: each has what is so now


def under_load(store: Store, clock: Clock) -> Admission:
    """A desk that a thread looks after, right after a look."""
    with store.write() as session:
        make.serverless(session)
    found = desk(store, clock)
    ask(found, 6)
    clock.pass_seconds(0.3)
    assert not found.must_wait()
    until(lambda: not found.is_stale, within=20, what="a look by the thread")
    return found


def test_a_load_that_comes_back_does_not_queue_up_behind_a_look(sqlite_store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.admission._IDLE_SECONDS", 600)
    found = under_load(sqlite_store, clock)
    clock.pass_seconds(10)
    until(lambda: not found.is_stale, within=20, what="a look while nobody asks")
    clock.pass_seconds(1)
    assert [found.must_wait() for _ in range(8)] == [True] * 5 + [False] * 3
    until(lambda: not found.is_stale, within=20, what="a look as soon as many ask")
    found.end()


def test_a_minute_after_the_load_nobody_looks_any_more(sqlite_store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.admission._IDLE_SECONDS", 0.01)
    found = under_load(sqlite_store, clock)
    clock.pass_seconds(30)
    until(lambda: not found.is_stale, within=20, what="a look half a minute later")
    clock.pass_seconds(31)
    until(lambda: not found._is_looked_after(), within=20, what="the end of the thread")
    assert found.must_wait()
    found.end()


def test_between_looks_at_the_whole_minute_its_last_seconds_are_read_again(sqlite_store: Store, clock: Clock) -> None:
    with sqlite_store.write() as session:
        make.serverless(session)
        for seconds in (55, 20, 3):
            make.event(session, time=NOW - timedelta(seconds=seconds), input_tokens=1_000, output_tokens=0)
    found = desk(sqlite_store, clock)
    clock.pass_seconds(0.5)
    with sqlite_store.write() as session:
        make.event(session, time=NOW - timedelta(seconds=2), input_tokens=10, output_tokens=0)
        make.event(session, time=NOW - timedelta(seconds=15), input_tokens=100, output_tokens=0)
    found.refresh()
    assert found.judge(Asked("ws-east", "llama-chat", 1)).remaining == 400_000 - 3_010
    clock.pass_seconds(0.6)
    found.refresh()
    assert found.judge(Asked("ws-east", "llama-chat", 1)).remaining == 400_000 - 3_110
