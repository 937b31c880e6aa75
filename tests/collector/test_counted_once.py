"""Counted once: what docs/counted-once.md promises of witnesses, twins and voids, case by case."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from collector.capture.event import CapturedEvent
from collector.corrections import reverse_twins
from collector.ingest import Batch, Ingest
from models import audit, ledger
from models.audit import Question
from models.columns import to_microseconds
from models.ledger import CostQuery, Filters
from models.periods import Period, day_start, utc_day
from models.store import Store
from models.usage import Quality
from tests import factories as make
from tests.collector.api.serving import Service, serving

NOW = make.NOW
DAY = Period(day_start(utc_day(NOW)) - timedelta(days=40), NOW)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ingest(store: Store, clock: Clock) -> Iterator[Ingest]:
    with store.write() as session:
        make.serverless(session, known_from=NOW - timedelta(days=100))
        make.token_prices(session, "1.00", "2.00", known_from=NOW - timedelta(days=100))
    running = Ingest(store, now=clock)
    running.start()
    yield running
    running.stop()


def event(name: str, **facts: Any) -> CapturedEvent:
    known: dict[str, Any] = {
        "id": name,
        "time": to_microseconds(NOW - timedelta(minutes=10)),
        "workspace": "ws-east",
        "deployment": "llama-chat",
        "model": make.MODEL,
        "input_tokens": 1000,
        "output_tokens": 100,
        "details": {"response_id": "chatcmpl-1"},
    }
    return CapturedEvent(**known | facts)


def span(name: str = "span-1", **facts: Any) -> CapturedEvent:
    return event(name, **{"source": "sdk", "details": {"response_id": "chatcmpl-1", "source_format": "otlp_span"}} | facts)


def gateway(name: str = "gw-1", **facts: Any) -> CapturedEvent:
    return event(name, **{"source": "gateway", "details": {"response_id": "chatcmpl-1", "source_format": "litellm"}} | facts)


def counted(store: Store, as_of: datetime | None = None, now: datetime = NOW) -> tuple[int, int, int]:
    """(requests, input, output) as the ledger has them; the plain books must agree."""
    with store.read() as session:
        table = ledger.costs(session, CostQuery(DAY, "none", (), "metered", as_of=as_of), now=now)
        books = audit.recompute(session, now=now, as_of=as_of, period=Period(DAY.start, day_start(utc_day(NOW)) + timedelta(days=1)))
        plain = books.costs(Question(Period(DAY.start, day_start(utc_day(NOW)) + timedelta(days=1)), "none", (), "metered", as_of))
    ours = [(one.requests, one.input_tokens, one.output_tokens, one.metered_cost) for one in table.totals if one.requests]
    assert ours == [(one.requests, one.input_tokens, one.output_tokens, one.metered_cost) for one in plain.totals if one.requests]
    return (sum(one[0] for one in ours), sum(one[1] for one in ours), sum(one[2] for one in ours))


def verified(store: Store) -> None:
    with store.read() as session:

        def ask(question: Question) -> ledger.CostTable:
            return ledger.costs(session, CostQuery(question.period, question.granularity, question.group_by, question.basis, as_of=question.as_of), now=NOW)  # type: ignore[arg-type]

        assert audit.verify(session, now=NOW, ask=ask).differences == []


def shown(store: Store) -> dict[str, tuple[bool, str | None]]:
    with store.read() as session:
        page = ledger.usage_list(session, period=DAY, filters=Filters(), limit=100, cursor=None, now=NOW)
    return {record.id: (record.counted, record.reason) for record in page.items}


# -- several witnesses of one call ------------------------------------------------------------------


def test_of_several_witnesses_of_a_call_the_best_informed_one_counts(store: Store, ingest: Ingest) -> None:
    ingest.accept(Batch([span(input_tokens=990, quality=Quality.ESTIMATED)]))
    assert counted(store) == (1, 990, 100)
    ingest.accept(Batch([gateway()]))
    assert counted(store) == (1, 1000, 100)
    found = shown(store)
    assert found["gw-1"] == (True, None)
    assert found["span-1"][0] is False
    assert "another witness" in (found["span-1"][1] or "")
    verified(store)


def test_of_equally_informed_witnesses_the_one_nearest_to_the_bill_counts(store: Store, ingest: Ingest) -> None:
    ingest.accept(Batch([gateway(), span()]))
    assert counted(store) == (1, 1000, 100)
    assert {name: one[0] for name, one in shown(store).items()} == {"gw-1": True, "span-1": False}


def test_witnesses_in_hours_beside_each_other_meet_and_those_farther_apart_do_not(store: Store, ingest: Ingest) -> None:
    at = to_microseconds(NOW)
    hour = 3_600_000_000
    ingest.accept(Batch([span(time=at - 3 * hour), gateway(time=at - 2 * hour - 1), gateway("gw-2", time=at - 12 * hour)]))
    assert counted(store)[0] == 2


def test_a_chain_of_hours_is_one_call_whichever_of_its_hours_come_last(store: Store, ingest: Ingest) -> None:
    hour = 3_600_000_000
    at = to_microseconds(NOW) - 10 * hour

    def of(*hours: int) -> Batch:
        return Batch([gateway(f"gw-{one}", time=at + one * hour) for one in hours])

    ingest.accept(of(1, 2, 3))
    # The ends of the chain at once: the hour in its midst is beside neither of them.
    ingest.accept(of(0, 4))
    assert counted(store)[0] == 1
    verified(store)


@pytest.mark.parametrize(
    "other",
    [
        {"workspace": "ws-west"},
        {"deployment": "llama-other"},
        {"details": {"response_id": "chatcmpl-2", "source_format": "litellm"}},
        {"billable": False},
    ],
)
def test_other_calls_are_other_calls(store: Store, ingest: Ingest, other: dict[str, Any]) -> None:
    ingest.accept(Batch([span(), gateway(**other)]))
    assert counted(store)[0] == 2


def test_calls_without_a_name_never_meet(store: Store, ingest: Ingest) -> None:
    ingest.accept(Batch([span(details={}), gateway(details={})]))
    assert counted(store)[0] == 2


def test_which_witness_counts_does_not_hang_on_order_or_batches(sqlite_store: Store, clock: Clock, tmp_path_factory: pytest.TempPathFactory) -> None:
    witnesses = [
        span(quality=Quality.ESTIMATED, input_tokens=900),
        gateway(),
        event("log-1", source="logs", details={"response_id": "chatcmpl-1", "source_format": "otlp_log"}, input_tokens=1001),
        span("span-2", details={"response_id": "chatcmpl-2", "source_format": "otlp_span"}),
        event("native-2", source="app", details={"response_id": "chatcmpl-2"}, input_tokens=1002),
    ]
    answers = set()
    chance = random.Random(7)
    for order in itertools.islice(itertools.permutations(witnesses), 0, 120, 7):
        store = Store(f"sqlite:///{tmp_path_factory.mktemp('order')}/t.db")
        store.migrate()
        with store.write() as session:
            make.token_prices(session, "1.00", "2.00", known_from=NOW - timedelta(days=100))
        running = Ingest(store, now=clock)
        running.start()
        left = list(order)
        while left:
            size = chance.randint(1, len(left))
            running.accept(Batch(left[:size]))
            if chance.random() < 0.5:
                running.accept(Batch(left[:size]))  # sent again
            left = left[size:]
        running.stop()
        answers.add((counted(store), tuple(sorted((name, one[0]) for name, one in shown(store).items()))))
        store.close()
    assert len(answers) == 1
    assert answers.pop()[0] == (2, 2000, 200)


def test_what_was_known_before_a_better_witness_came_is_answered_still(store: Store, ingest: Ingest, clock: Clock) -> None:
    clock.now = NOW - timedelta(minutes=5)
    ingest.accept(Batch([span(input_tokens=990, quality=Quality.ESTIMATED)]))
    clock.now = NOW - timedelta(minutes=1)
    ingest.accept(Batch([gateway()]))
    assert counted(store, as_of=NOW - timedelta(minutes=3)) == (1, 990, 100)
    assert counted(store, as_of=NOW) == (1, 1000, 100)


def test_the_authoritative_source_of_a_deployment_counts(sqlite_store: Store, clock: Clock) -> None:
    with serving(sqlite_store) as service:
        with sqlite_store.write() as session:
            make.serverless(session, known_from=NOW - timedelta(days=100))
        assert service.client.put("/v1/deployments/llama-chat", json={"authoritative_source": "sdk"}).status_code == 200
        running = Ingest(sqlite_store, now=clock)
        running.start()
        running.accept(Batch([gateway(), span()]))
        running.stop()
        assert {name: one[0] for name, one in shown(sqlite_store).items()} == {"gw-1": False, "span-1": True}


# -- twins ------------------------------------------------------------------------------------------


def test_the_same_call_sent_again_hours_later_is_found_in_the_night(store: Store, ingest: Ingest) -> None:
    plain: dict[str, Any] = {"details": {}}
    ingest.accept(Batch([event("call-1", **plain)]))
    ingest.accept(Batch([event("call-1", time=to_microseconds(NOW - timedelta(hours=5)), **plain)]))
    assert counted(store)[0] == 2
    assert reverse_twins(store, now=NOW) == 1
    assert counted(store)[0] == 1
    assert reverse_twins(store, now=NOW) == 0
    with store.read() as session:
        page = ledger.usage_list(session, period=DAY, filters=Filters(), limit=10, cursor=None, now=NOW)
    assert sorted((record.counted, record.time) for record in page.items) == [(False, NOW - timedelta(hours=5)), (True, NOW - timedelta(minutes=10))]
    verified(store)


# -- voids ------------------------------------------------------------------------------------------


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "2.00")
    with serving(sqlite_store) as running:
        yield running


def native(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "id": name,
        "time": "2026-11-20T09:50:00Z",
        "workspace": "ws-east",
        "deployment": "llama-chat",
        "input_tokens": 1_000_000,
        "output_tokens": 0,
    } | facts


def total(service: Service) -> dict[str, Any]:
    (figures,) = service.client.get("/v1/costs?granularity=none&basis=metered").json()["totals"]
    found: dict[str, Any] = figures
    return found


def test_a_void_is_previewed_then_posted_once_and_a_retry_stays_a_duplicate(service: Service) -> None:
    service.client.post("/v1/usage", json=[native("a"), native("b")])
    asked = {"workspace": "ws-east", "ids": ["a", "nobody"], "reason": "a load test"}
    preview = service.client.post("/v1/usage/void", json={**asked, "dry_run": True}).json()
    assert (preview["dry_run"], preview["batch"], [one["id"] for one in preview["reversed"]], preview["not_found"]) == (True, None, ["a"], ["nobody"])
    assert preview["totals"] == [{"currency": "USD", "metered_cost": "-1", "requests": -1, "input_tokens": -1_000_000, "output_tokens": 0}]
    assert total(service)["cost"] == "2"
    done = service.client.post("/v1/usage/void", json=asked).json()
    assert (done["totals"], total(service)["cost"], total(service)["requests"]) == (preview["totals"], "1", 1)
    again = service.client.post("/v1/usage/void", json=asked).json()
    assert (again["reversed"], [one["id"] for one in again["already_void"]], again["totals"], total(service)["cost"]) == ([], ["a"], [], "1")
    retry = service.client.post("/v1/usage", json=native("a")).json()
    assert (retry["accepted"], retry["duplicates"], total(service)["cost"]) == (0, 1, "1")
    listed = {one["id"]: (one["counted"], one["reason"]) for one in service.client.get("/v1/usage").json()["items"]}
    assert listed["a"][0] is False
    assert "a load test" in listed["a"][1]
    assert listed["b"] == (True, None)
    assert [one["kind"] for one in service.client.get("/v1/usage/postings").json()["items"]] == ["void"]
    verified(service.store)


def test_a_source_is_voided_by_span(service: Service) -> None:
    service.client.post("/v1/usage", json=[native("a", source="bad"), native("b", source="bad", time="2026-11-20T08:00:00Z"), native("c")])
    asked = {"workspace": "ws-east", "source": "bad", "from": "2026-11-20T09:00:00Z", "to": "2026-11-20T10:00:00Z"}
    assert [one["id"] for one in service.client.post("/v1/usage/void", json=asked).json()["reversed"]] == ["a"]
    assert total(service)["requests"] == 2


def test_voiding_the_witness_that_counts_takes_back_the_call(service: Service) -> None:
    service.client.post("/v1/usage", json=[native("a", response_id="r-1", source="one"), native("b", response_id="r-1", source="two")])
    assert total(service)["requests"] == 1
    counts = next(one["id"] for one in service.client.get("/v1/usage").json()["items"] if one["counted"])
    service.client.post("/v1/usage/void", json={"workspace": "ws-east", "ids": [counts]})
    service.client.post("/v1/usage", json=native("c", response_id="r-2"))
    assert total(service)["requests"] == 1
    verified(service.store)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"workspace": "ws-east"}, 422),
        ({"ids": ["a"]}, 422),
        ({"workspace": "ws-east", "ids": []}, 422),
        ({"workspace": "ws-east", "ids": ["a"], "from": "2026-11-20"}, 422),
        ({"workspace": "ws-east", "source": "x", "from": "2026-11-21", "to": "2026-11-20"}, 422),
        ({"workspace": "nowhere", "ids": ["a"]}, 404),
        ({"workspace": "ws-east", "ids": ["a"], "source": "nobody"}, 404),
        ({"workspace": "ws-east", "ids": ["a"], "typo": 1}, 422),
    ],
)
def test_a_void_that_cannot_be_meant_is_refused(service: Service, body: dict[str, Any], status: int) -> None:
    service.client.post("/v1/usage", json=native("a"))
    assert service.client.post("/v1/usage/void", json=body).status_code == status
    assert total(service)["requests"] == 1


# -- conflicts and sources that look alike ----------------------------------------------------------


def test_conflicts_are_listed_with_what_differs(service: Service) -> None:
    service.client.post("/v1/usage", json=native("a"))
    assert service.client.post("/v1/usage", json=native("a", input_tokens=5)).status_code == 422
    (conflict,) = service.client.get("/v1/usage/conflicts").json()["items"]
    assert (conflict["id"], conflict["workspace"], conflict["differs"]) == ("a", "ws-east", [{"field": "input_tokens", "stands": 1_000_000, "sent": 5}])
    assert service.client.get("/v1/usage/conflicts?workspace=ws-west").json()["items"] == []


def test_two_sources_that_look_like_the_same_traffic_are_named(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        for source in ("sdk", "gateway", "other"):
            of = make.series(session, source_name=source)
            for hour in range(1, 6):
                for call in range(25 if source != "other" else 40):
                    make.event(session, of, time=NOW - timedelta(hours=hour, minutes=call), input_tokens=100)
    with sqlite_store.read() as session:
        (found,) = ledger.double_sources(session, now=NOW)
    assert (found.workspace, found.deployment, set(found.sources)) == ("ws-east", "llama-chat", {"sdk", "gateway"})
    assert found.hours >= 3
    assert found.share > Decimal(50)


def test_a_receipt_says_unknown_tokens_are_unknown_and_names_other_witnesses(service: Service) -> None:
    service.client.post("/v1/usage", json=[native("a", output_tokens=None, response_id="r-9"), native("b", source="two", response_id="r-9", output_tokens=3)])
    receipt = service.client.get("/v1/usage/a").json()
    lines = {line["meter"]: line for line in receipt["lines"]}
    assert (lines["output"]["quantity"], lines["output"]["amount"], "did not say" in lines["output"]["reason"]) == (None, None, True)
    assert (receipt["counted"], len(receipt["witnesses"])) == (False, 1)
