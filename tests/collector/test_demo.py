"""The sample world: always the same, true to the wire contract, and with a bill that follows from its traffic."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from collector.azure.simulator.estate import COST_DETAILS_COLUMNS as COLUMNS
from collector.demo import World, estate, feed, places
from collector.demo import run as running
from collector.demo.traffic import OUTCOMES, Traffic
from models.errors import InvalidInput, Unavailable
from models.ledger.rates import DEFAULT_TOKENS_PER_MINUTE
from models.resources import Route

NOW = datetime(2026, 11, 20, 15, 30, tzinfo=UTC)
START = datetime(2026, 9, 21, tzinfo=UTC)  # sixty days before the day of NOW
SCALE = 0.02

TEXT = frozenset({"id", "time", "source", "workspace", "endpoint", "deployment", "model", "operation", "application", "team", "status"}) | {
    "finish_reason",
    "throttled_by",
}
COUNTS = frozenset({"input_tokens", "output_tokens", "cached_input_tokens", "max_tokens", "http_status", "duration_ms", "ratelimit_remaining_tokens"})


def small(*, seed: int = 7, now: datetime = NOW, opened_on: date | None = None) -> World:
    return World(seed, now, scale=SCALE, opened_on=opened_on)


def events(world: World, start: datetime = START, end: datetime = NOW) -> list[dict[str, Any]]:
    return [json.loads(line) for body in world.usage(start, end) for line in body.splitlines()]


def table(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def billed(world: World, now: datetime = NOW) -> list[dict[str, str]]:
    return [row for _, data in world.bills(now) for row in table(data)]


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    return events(small())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return billed(small())


# -- as Azure would have let it be ----------------------------------------------------------------


@pytest.mark.parametrize("each", [one for one in places.DEPLOYMENTS if one.size is None], ids=lambda one: one.name)
def test_only_the_incident_comes_near_a_limit(each: places.Deployment) -> None:
    # The built-in rule of 80 %: whoever sees it fire on ordinary days believes it no longer.
    marketplace = running._RAISED_LIMIT if "scout" in each.name else DEFAULT_TOKENS_PER_MINUTE
    limit = 1000 * estate._CAPACITY.get(each.name, 200) if each.route is Route.FOUNDRY else marketplace
    story = places.Story.told(opened_on=NOW.date(), days=60)
    traffic = Traffic(each, story, seed=7, scale=1)
    near = {day for day in (story.first_day + timedelta(days=number) for number in range(60)) if fullest_minute(traffic, day) >= limit * 8 // 10}
    assert near == ({story.incident_on} if each.name == "llama-33-70b" else set())


def fullest_minute(traffic: Traffic, day: date) -> int:
    """The most tokens that instruments saw in any 60 seconds of the day."""
    calls = [(call.at_ms, call.input_tokens + call.output_tokens) for call in traffic.calls(day) if OUTCOMES[call.outcome].shows_tokens]
    most = held = first = 0
    for at, tokens in calls:
        held += tokens
        while calls[first][0] <= at - 60_000:
            held -= calls[first][1]
            first += 1
        most = max(most, held)
    return most


# -- always the same -------------------------------------------------------------------------------


def test_same_seed_and_day_give_the_same_bytes() -> None:
    one, other = small(), small()
    assert list(one.usage(START, NOW)) == list(other.usage(START, NOW))
    assert one.bills(NOW) == other.bills(NOW)
    assert (one.inventory(), one.owners(), one.prices()) == (other.inventory(), other.owners(), other.prices())


def test_another_seed_is_another_world() -> None:
    assert b"".join(small().usage(START, NOW)) != b"".join(small(seed=8).usage(START, NOW))


def test_later_on_the_same_day_the_past_is_the_same_and_more_has_happened() -> None:
    later = NOW + timedelta(hours=6)
    before, after = b"".join(small().usage(START, NOW)), b"".join(small(now=later).usage(START, later))
    assert after.startswith(before)
    assert len(after) > len(before)
    assert small().bills(NOW) == small(now=later).bills(later)


def test_a_world_reopened_days_later_keeps_its_past() -> None:
    later = NOW + timedelta(days=3)
    again = small(now=later, opened_on=NOW.date())
    assert b"".join(again.usage(START, NOW)) == b"".join(small().usage(START, NOW))
    assert again.starts_at == START
    old = dict(small().bills(NOW))
    new = dict(again.bills(later))
    assert new["cost-details-contoso-ai-2026-10.csv"] == old["cost-details-contoso-ai-2026-10.csv"]
    grown = table(new["cost-details-contoso-ai-2026-11.csv"])
    assert all(row in grown for row in table(old["cost-details-contoso-ai-2026-11.csv"]))


def test_live_gives_the_events_that_the_history_has_for_that_time() -> None:
    world, half_an_hour_ago = small(), NOW - timedelta(minutes=30)
    assert world.live(NOW, half_an_hour_ago) == b"".join(world.usage(half_an_hour_ago, NOW))
    assert world.live(NOW, NOW) == b""
    pieces = [world.live(NOW - timedelta(minutes=minute), NOW - timedelta(minutes=minute + 1)) for minute in range(239, -1, -1)]
    assert b"".join(pieces) == world.live(NOW, NOW - timedelta(hours=4))
    assert b"".join(pieces).count(b"\n") > 10


def test_events_that_end_at_the_same_instant_are_cut_by_a_half_open_period() -> None:
    world = small()
    instant = datetime.fromisoformat(events(world)[100]["time"])
    assert world.live(instant + timedelta(milliseconds=1), instant) != b""
    assert datetime.fromisoformat(json.loads(world.live(instant + timedelta(milliseconds=1), instant).splitlines()[0])["time"]) == instant
    assert all(datetime.fromisoformat(event["time"]) < instant for event in events(world, START, instant))


# -- what the events look like ---------------------------------------------------------------------


def test_every_event_keeps_the_wire_contract(told: list[dict[str, Any]]) -> None:
    for event in told:
        assert set(event) <= TEXT | COUNTS | {"tags", "stream"}
        assert {"id", "time", "workspace", "deployment", "model", "status"} <= set(event)
        assert all(isinstance(event[name], str) and 0 < len(event[name]) <= 256 for name in TEXT & set(event))
        assert all(type(event[name]) is int and event[name] >= 0 for name in COUNTS & set(event))
        assert type(event["stream"]) is bool
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in event["tags"].items())
        assert re.fullmatch(r"2026-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert START <= datetime.fromisoformat(event["time"]) < NOW
        assert event["status"] in {"success", "error", "throttled", "filtered", "incomplete"}
        assert event["operation"] == "chat"
        assert event.get("cached_input_tokens", 0) <= event.get("input_tokens", 0)
        assert ("input_tokens" in event) == ("output_tokens" in event)


def test_ids_are_unique_and_times_in_order(told: list[dict[str, Any]]) -> None:
    assert len({(event["workspace"], event["id"]) for event in told}) == len(told)
    assert [event["time"] for event in told] == sorted(event["time"] for event in told)


def test_bodies_are_of_five_thousand_events_and_count_knows_how_many() -> None:
    world = small()
    lines = [body.count(b"\n") for body in world.usage(START, NOW)]
    assert lines[:-1] == [5000] * (len(lines) - 1)
    assert world.count(START, NOW) == sum(lines)
    assert world.count(NOW, NOW) == 0


def test_every_kind_of_ending_occurs_and_few_calls_hide_their_tokens() -> None:
    week = events(World(7, NOW, scale=0.3), NOW - timedelta(days=7))
    endings = Counter((event["status"], event["http_status"], "input_tokens" in event) for event in week)
    assert {("success", 200, True), ("success", 200, False), ("incomplete", 200, False), ("filtered", 200, True), ("filtered", 400, False)} < set(endings)
    assert {("error", 500, False), ("throttled", 429, False)} < set(endings)
    hidden = endings["success", 200, False] + endings["incomplete", 200, False]
    assert 0.002 < hidden / len(week) < 0.009


def test_the_full_world_has_about_a_quarter_of_a_million_events() -> None:
    assert 230_000 < World(7, NOW).count(START, NOW) < 280_000


# -- who there is and what happens -----------------------------------------------------------------


def test_there_are_four_workspaces_and_eleven_deployments(told: list[dict[str, Any]]) -> None:
    inventory = table(small().inventory())
    known = {(row["workspace"], row["endpoint"], row["deployment"]) for row in inventory}
    assert {row["workspace"] for row in inventory} == {"ws-assist-prod", "proj-research", "ws-emea", "aif-contoso"}
    assert len(known) == 11
    assert {(event["workspace"], event.get("endpoint", event["deployment"]), event["deployment"]) for event in told} == known
    assert {event["model"] for event in told} == {row["model"] for row in inventory}
    assert {row["workspace"] for row in inventory if row["workspace_kind"] == "foundry_account"} == {"aif-contoso"}
    assert len({event["application"] for event in told}) == 9


def test_an_inventory_history_has_no_gap_and_no_overlap() -> None:
    histories = defaultdict(list)
    for row in table(small().inventory()):
        histories[row["workspace"], row["endpoint"], row["deployment"]].append((row["valid_from"], row["valid_to"], row["instance_count"]))
    assert histories["ws-assist-prod", "llama-8b", "blue"] == [
        ("", "2026-09-21T00:00:00Z", "0"),
        ("2026-09-21T00:00:00Z", "2026-10-16T10:00:00Z", "1"),
        ("2026-10-16T10:00:00Z", "", "2"),
    ]
    for history in histories.values():
        assert history[0][0] == ""
        assert history[-1][1] == ""
        assert [row[1] for row in history[:-1]] == [row[0] for row in history[1:]]


def test_the_retired_model_winds_down_and_stops(told: list[dict[str, Any]]) -> None:
    days = Counter(event["time"][:10] for event in told if event["deployment"] == "llama-31-405b")
    assert max(days) <= "2026-10-29"  # retired on the 30th at midnight
    assert sum(days[f"2026-10-{day}"] for day in range(23, 30)) < sum(days[f"2026-10-{day:02d}"] for day in range(1, 8)) / 2
    states = [(row["state"], row["retires_at"], row["valid_from"]) for row in table(small().inventory()) if row["deployment"] == "llama-31-405b"]
    assert states == [("Online", "2026-10-30T00:00:00Z", ""), ("Suspended", "2026-10-30T00:00:00Z", "2026-10-30T00:00:00Z")]


def test_one_day_runs_into_the_limit() -> None:
    world = World(7, NOW, scale=0.2)
    day = datetime(2026, 11, 3, tzinfo=UTC)
    throttled = Counter((event["deployment"], event["time"][11:13]) for event in events(world, day, day + timedelta(days=1)) if event["status"] == "throttled")
    assert {(name, hour) for (name, hour), count in throttled.items() if count > 20} == {("llama-33-70b", "13"), ("llama-33-70b", "14"), ("llama-33-70b", "15")}
    usual = [event for event in events(world, day + timedelta(days=1), day + timedelta(days=2)) if event["status"] == "throttled"]
    assert len(usual) < 10


def test_weekends_are_quiet_and_traffic_grows() -> None:
    world = small()
    counts = [world.count(START + timedelta(days=day), START + timedelta(days=day + 1)) for day in range(60)]
    assert START.weekday() == 0
    weekdays = [counts[week * 7 + day] for week in range(8) for day in range(5)]
    weekends = [counts[week * 7 + day] for week in range(8) for day in (5, 6)]
    assert max(weekends) < min(weekdays)
    # Without the model that goes away:
    kept = Counter(event["time"][:7] for event in events(world) if event["deployment"] == "llama-4-maverick")
    assert kept["2026-11"] / 20 > kept["2026-10"] / 31


# -- bills -----------------------------------------------------------------------------------------


def test_bills_are_one_file_per_subscription_and_month_in_the_mca_layout() -> None:
    files = small().bills(NOW)
    assert [name for name, _ in files] == [
        f"cost-details-{name}-{month}.csv" for month in ("2026-09", "2026-10", "2026-11") for name in ("contoso-ai", "contoso-ai-emea")
    ]
    assert len(COLUMNS) == 65
    for _, data in files:
        assert data.startswith(b"\xef\xbb\xbfinvoiceId,previousInvoiceId,billingAccountId,")
        assert data.count(b"\r\n") == data.count(b"\n")
        read = table(data)
        assert tuple(read[0]) == COLUMNS
        assert len({(row["SubscriptionId"], row["billingPeriodStartDate"]) for row in read}) == 1


def test_every_row_costs_quantity_times_price_times_rate(rows: list[dict[str, str]]) -> None:
    for row in rows:
        if row["chargeType"] == "RoundingAdjustment" or row["billingCurrency"] == "CHF":
            continue
        in_usd = Decimal(row["quantity"]) * Decimal(row["effectivePrice"])
        rate = {"USD": Decimal(1), "EUR": Decimal("0.92")}[row["billingCurrency"]]
        assert Decimal(row["exchangeRatePricingToBilling"]) == rate
        assert Decimal(row["costInPricingCurrency"]) == Decimal(row["costInUsd"]) == in_usd
        assert Decimal(row["costInBillingCurrency"]) == in_usd * rate


def test_token_rows_bill_exactly_the_tokens_of_the_day(rows: list[dict[str, str]], told: list[dict[str, Any]]) -> None:
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for event in told:
        day = seen[event["deployment"], event["time"][:10]]
        day["hidden"] += event["http_status"] == 200 and "input_tokens" not in event
        day["input"] += event.get("input_tokens", 0) - event.get("cached_input_tokens", 0)
        day["cached"] += event.get("cached_input_tokens", 0)
        day["output"] += event.get("output_tokens", 0)
    kinds = {"Inp": "input", "cached": "cached", "Outp": "output"}
    exact = more = 0
    for row in rows:
        if row["meterCategory"] != "Foundry Models" or "canary" in row["tags"] or "trial" in row["tags"]:
            continue  # what is planted there has tests of its own
        found = re.search(r" (cached|Inp|Outp) ", row["meterName"])
        assert found is not None
        month, number, year = row["date"].split("/")
        tokens = seen[json.loads(row["tags"])["deployment"], f"{year}-{month}-{number}"]
        thousands = Decimal(tokens[kinds[found[1]]]) / 1000
        if tokens["hidden"]:
            assert Decimal(row["quantity"]) >= thousands
            more += 1
        else:
            assert Decimal(row["quantity"]) == thousands
            exact += 1
    assert exact > 300
    assert more > 3


def test_azure_counts_the_calls_that_the_senders_report(told: list[dict[str, Any]]) -> None:
    # The second witness of the sample world: it would be a poor one if it disagreed with every deployment.
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for event in told:
        if event["workspace"] == "aif-contoso":
            seen[event["deployment"]] += Counter(
                requests=1,
                hidden="input_tokens" not in event and event["http_status"] == 200,
                input=event.get("input_tokens", 0),
                output=event.get("output_tokens", 0),
            )
    account = next(place.resource_id for place in places.WORKSPACES if place.name == "aif-contoso")
    found = small().estate().requests(account, START, NOW)
    assert len(seen) >= 3
    for deployment, counted in seen.items():
        minutes = found[deployment]
        assert sum(minute.requests for minute in minutes) == counted["requests"]
        for told_tokens, ours in (
            (sum(minute.input_tokens for minute in minutes), counted["input"]),
            (sum(minute.output_tokens for minute in minutes), counted["output"]),
        ):
            # More only by the calls that hide their tokens.
            assert (told_tokens > ours) if counted["hidden"] else (told_tokens == ours)
            assert told_tokens < ours * Decimal("1.02")


def test_one_deployment_is_billed_about_six_percent_above_its_events(rows: list[dict[str, str]], told: list[dict[str, Any]]) -> None:
    bill = sum(
        Decimal(row["quantity"]) * 1000
        for row in rows
        if "Scout" in row["meterName"] and row["meterName"].endswith("input-tokens") and row["SubscriptionId"].startswith("a0c0")
    )
    metered = sum(event.get("input_tokens", 0) for event in told if event["deployment"] == "llama-4-scout" and event["time"] < "2026-11-19")
    assert Decimal("1.05") < bill / metered < Decimal("1.08")


def test_bills_reach_yesterday_and_marketplace_the_day_before(rows: list[dict[str, str]]) -> None:
    reached: dict[str, str] = {}
    for row in rows:
        reached[row["meterCategory"]] = max(reached.get(row["meterCategory"], ""), row["date"])
    assert reached["SaaS"] == "11/18/2026"
    assert reached["Foundry Models"] == reached["Virtual Machines"] == "11/19/2026"


def test_instance_hours_follow_the_scale_up(rows: list[dict[str, str]]) -> None:
    blue = {row["date"]: row["quantity"] for row in rows if '"azuremldeployment": "blue"' in row["tags"]}
    assert [blue[f"10/{day}/2026"] for day in (15, 16, 17)] == ["24", "38", "48"]  # 24 + 14 hours of the second instance
    assert len(blue) == 60


def test_what_the_bill_adds_of_its_own(rows: list[dict[str, str]]) -> None:
    refunds = [(row["date"], row["quantity"], row["costInBillingCurrency"]) for row in rows if row["chargeType"] == "Refund"]
    assert refunds == [("10/20/2026", "-250", "-4")]
    untagged = [(row["date"], row["quantity"]) for row in rows if row["meterCategory"] == "Virtual Machines" and not row["tags"]]
    assert untagged == [("11/11/2026", "24")]
    adjustments = [(row["date"], row["billingCurrency"], row["costInBillingCurrency"]) for row in rows if row["chargeType"] == "RoundingAdjustment"]
    assert adjustments == [
        ("09/30/2026", "USD", "-0.01"),
        ("09/30/2026", "EUR", "0.01"),
        ("10/31/2026", "USD", "-0.01"),
        ("10/31/2026", "EUR", "0.01"),
    ]
    maverick = {(row["date"] >= "11/08/2026", row["effectivePrice"]) for row in rows if row["meterName"] == "Llama 4 Maverick Outp glbl Tokens"}
    assert maverick == {(False, "0.001"), (True, "0.0011")}
    assert {row["meterCategory"] for row in rows if row["billingCurrency"] == "EUR"} == {"SaaS", "Virtual Machines", ""}
    assert [row["costInUsd"] for row in rows if row["meterCategory"] == "Storage"] == ["8.58", "8.58", "8.58"]


def test_saas_charges_name_the_resources_of_the_inventory(rows: list[dict[str, str]]) -> None:
    known = {row["saas_resource_id"] for row in table(small().inventory()) if row["saas_resource_id"]}
    assert len(known) == 3
    assert {row["ResourceId"] for row in rows if row["publisherType"] == "Marketplace"} == known


def test_on_the_first_of_a_month_its_bill_is_not_there_yet() -> None:
    first = datetime(2026, 11, 1, 9, tzinfo=UTC)
    world = World(7, first, scale=SCALE, days=5)
    assert [name for name, _ in world.bills(first)] == ["cost-details-contoso-ai-2026-10.csv", "cost-details-contoso-ai-emea-2026-10.csv"]


# -- the runner ------------------------------------------------------------------------------------


class Service(ThreadingHTTPServer):
    """Takes usage as the service does: remembers ids, answers verdicts; the first answers can be scripted."""

    def __init__(self, answers: list[tuple[int, dict[str, str], str]] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers or []
        self.bodies: list[list[str]] = []
        self.known: set[str] = set()
        self.headers_seen: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/readyz" else 404, {}, "{}")

    def do_POST(self) -> None:
        body = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
            if self.server.answers:
                self.answer(*self.server.answers.pop(0))
                return
            lines = body.decode().splitlines()
            new = set(lines) - self.server.known
            self.server.known |= new
            self.server.bodies.append(lines)
        self.answer(200, {}, json.dumps({"accepted": len(new), "duplicates": len(lines) - len(new), "rejected": []}))

    def answer(self, status: int, headers: dict[str, str], text: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join()
        service.server_close()


def run(service: Service, *, ticks: int = 3, api_key: str | None = None) -> tuple[list[str], list[tuple[str, str]]]:
    """Feed a twenty-day world; the clock moves half an hour a tick and stops the feed after so many."""
    said: list[str] = []
    imported: list[tuple[str, str]] = []
    stop = threading.Event()
    times = iter([NOW + timedelta(minutes=30 * tick) for tick in range(ticks)])

    def clock() -> datetime:
        now = next(times, None)
        if now is None:
            stop.set()
        return now or NOW

    feed(
        service.url,
        World(7, NOW, scale=SCALE, days=20),
        api_key=api_key,
        say=said.append,
        stop=stop,
        import_bill=lambda kind, name, data: imported.append((kind, name)) if data else None,
        clock=clock,
        tick_seconds=0,
    )
    return said, imported


def test_feed_brings_everything_in_and_goes_on_live() -> None:
    with serving(Service()) as service:
        said, imported = run(service, api_key="mb_secret")
    world = World(7, NOW, scale=SCALE, days=20)
    end = NOW + timedelta(hours=1)
    assert sorted(line for body in service.bodies for line in body) == sorted(b"".join(world.usage(world.starts_at, end)).decode().splitlines())
    assert imported == [
        ("inventory", "inventory.csv"),
        ("owners", "owners.csv"),
        ("prices", "prices.csv"),
        ("charges", "cost-details-contoso-ai-2026-10.csv"),
        ("charges", "cost-details-contoso-ai-emea-2026-10.csv"),
        ("charges", "cost-details-contoso-ai-2026-11.csv"),
        ("charges", "cost-details-contoso-ai-emea-2026-11.csv"),
    ]
    newest = json.loads(service.bodies[0][0])["time"]
    assert newest >= "2026-11-13T15:30:00"  # the newest week first
    total = world.count(world.starts_at, NOW)
    assert any(line.startswith(f"usage: {total:,} of {total:,} events, ") for line in said)
    assert {headers["authorization"] for headers in service.headers_seen} == {"Bearer mb_secret"}
    assert {headers["content-type"] for headers in service.headers_seen} == {"application/x-ndjson"}


def test_feed_again_sends_the_same_events() -> None:
    with serving(Service()) as service:
        run(service)
        first = set(service.known)
        run(service)
    assert service.known == first


def test_feed_waits_when_the_service_is_busy() -> None:
    with serving(Service([(503, {"retry-after": "0"}, "{}"), (429, {"retry-after": "0"}, "{}")])) as service:
        run(service, ticks=1)
    world = World(7, NOW, scale=SCALE, days=20)
    assert len(service.known) == world.count(world.starts_at, NOW)


def test_feed_says_why_events_were_refused_and_goes_on() -> None:
    refusal = json.dumps({"accepted": 0, "duplicates": 0, "rejected": [{"index": 0, "error": "conflict", "detail": "id x has other content"}]})
    with serving(Service([(422, {}, refusal)])) as service:
        said, imported = run(service, ticks=1)
    assert "usage: some events were refused, the first with conflict: id x has other content; use a fresh database for another seed" in said
    assert imported[-1][0] == "charges"


def test_feed_stops_with_a_reason_when_it_may_not_send() -> None:
    with serving(Service([(401, {}, "no key")] * 10)) as service, pytest.raises(InvalidInput, match="with 401: no key"):
        run(service)


def test_feed_told_to_stop_sends_nothing() -> None:
    stop = threading.Event()
    stop.set()
    sent: list[str] = []
    with serving(Service()) as service:
        feed(
            service.url,
            World(7, NOW, scale=SCALE, days=2),
            api_key=None,
            say=sent.append,
            stop=stop,
            import_bill=lambda kind, _name, _data: sent.append(kind),
            clock=lambda: NOW,
        )
    assert (sent, service.bodies) == ([], [])


def test_feed_gives_up_on_a_service_that_never_gets_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.demo.run.READY_WITHIN_SECONDS", -1.0)
    service = Service()
    url = service.url
    service.server_close()
    with pytest.raises(Unavailable, match="was not ready within"):
        feed(
            url,
            World(7, NOW, scale=SCALE, days=2),
            api_key=None,
            say=lambda _line: None,
            stop=threading.Event(),
            import_bill=lambda _kind, _name, _data: None,
            clock=lambda: NOW,
        )
