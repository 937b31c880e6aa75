"""The pages of operations: what an admin may do from them, that nobody else may, and that they draw in a real browser."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask.testing import FlaskClient
from playwright.sync_api import expect, sync_playwright
from plotly.utils import PlotlyJSONEncoder
from sqlmodel import select

from collector.desk import Desk
from collector.webhooks.setup import Telling
from dashboard import pages
from dashboard.access import Viewer
from dashboard.app import create_dashboard, ledger_over
from dashboard.filters import Selection
from dashboard.shell import View
from models import ledger
from models.alerts import Alert, AlertRule, AlertState, AuditEntry, Budget, Kind, Severity, Silence
from models.notices import Delivery, DeliveryStatus, Format, Receiver
from models.periods import Period
from models.store import Store
from models.trials import Firing, Line, Trial
from tests import factories as make
from tests.dashboard import fakes
from tests.dashboard.serve import mount, serving

NOW = fakes.NOW
RULE = {"name": "Tokens of chat", "kind": "tokens_per_minute", "workspace": "ws-a", "deployment": "chat", "threshold": "1000", "for_seconds": "60"}
BUDGET = {"name": "Research", "amount": "250.50", "currency": "usd", "period": "month", "workspace": "ws-a", "steps": "50, 90", "hard": "no"}
SAME_SITE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    with sqlite_store.write() as session:
        session.add(
            Alert(
                id="al-1",
                seq=1,
                rule_id="rule-1",
                rule="Tokens of chat",
                kind=Kind.TOKENS_PER_MINUTE,
                state=AlertState.FIRING,
                severity=Severity.CRITICAL,
                scope={"workspace": "ws-a", "deployment": "chat"},
                open_key="rule-1 chat",
                subject="ws-a/chat",
                value=Decimal(1200),
                threshold=Decimal(1000),
                why="1,200 tokens in a minute, above 1,000",
                sample={},
                receivers=[],
                pending_at=NOW - timedelta(hours=2),
                fired_at=NOW - timedelta(hours=1),
            )
        )
        for name, number in (("Night shift", 1), ("Old pager", 2)):
            session.add(
                Receiver(
                    id=f"hook-{number}",
                    name=name,
                    url="https://hooks.example/x",
                    format=Format.SLACK,
                    workspaces=[],
                    is_default=number == 1,
                    is_enabled=number == 1,
                    disabled_reason="" if number == 1 else "it answered 410",
                    created_at=NOW,
                    updated_at=NOW,
                )
            )
    return sqlite_store


def client(store: Store, scope: str = "", *, with_desk: bool = True) -> FlaskClient:
    """A browser of somebody with a key of this scope; without one in open mode."""
    access = fakes.FakeAccess(keyless=not scope, viewers={"secret": Viewer("k1", "olga", scope, None)} if scope else {})
    app = create_dashboard(
        open_ledger=ledger_over(store.read), access=access, now=lambda: NOW, desk=Desk(store, now=lambda: NOW, telling=TELLING) if with_desk else None
    )
    found: FlaskClient = app.server.test_client()
    if scope:
        answer = found.post("/login", data={"key": "secret"}, headers=SAME_SITE)
        assert answer.status_code == 303
        # Below the mount the browser sees /dashboard/…; this client asks the server behind it.
        cookie = answer.headers["Set-Cookie"].partition(";")[0].partition("=")[2]
        found.set_cookie("meterbridge_session", cookie, path="/")
    return found


def act(browser: FlaskClient, what: str, **said: str) -> int:
    return browser.post(f"/act/{what}?back=alerts", data=said, headers=SAME_SITE).status_code


def rows(store: Store, table: type[Any]) -> list[Any]:
    with store.read() as session:
        found: list[Any] = list(session.exec(select(table)))
        session.expunge_all()
        return found


def actors(store: Store) -> list[tuple[str, str, str]]:
    return [(row.actor, row.action, row.kind) for row in rows(store, AuditEntry)]


def test_an_acknowledgement_is_the_routes_own_and_names_who_made_it(store: Store) -> None:
    browser = client(store, "admin")
    answer = browser.post("/act/acknowledge?back=alerts&id=al-1", headers=SAME_SITE)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/dashboard/alerts")
    (alert,) = rows(store, Alert)
    assert (alert.acknowledged_at, alert.acknowledged_by) == (NOW, "olga (k1)")
    assert actors(store) == [("olga (k1)", "acknowledge", "alert")]


def test_a_silence_covers_the_rule_at_its_place_for_so_long(store: Store) -> None:
    assert act(client(store), "silence", id="al-1", hours="4") == 303
    (silence,) = rows(store, Silence)
    assert sorted((one["name"], one["value"]) for one in silence.matchers) == [("deployment", "chat"), ("rule_id", "rule-1"), ("workspace", "ws-a")]
    assert (silence.starts_at, silence.ends_at) == (NOW, NOW + timedelta(hours=4))
    assert actors(store) == [("open mode", "create", "silence")]


def test_a_silence_of_a_receiver_that_is_not_reached_is_of_this_receiver_only(store: Store) -> None:
    with store.write() as session:
        alert = session.get(Alert, "al-1")
        assert alert is not None
        alert.kind, alert.scope, alert.sample = Kind.UNREACHED_RECEIVER, {"receiver": "hook-1"}, {"receiver": "Night shift"}
        session.add(alert)
    assert act(client(store), "silence", id="al-1", hours="4") == 303
    (silence,) = rows(store, Silence)
    assert sorted((one["name"], one["value"]) for one in silence.matchers) == [("receiver", "hook-1"), ("rule_id", "rule-1")]


@pytest.mark.parametrize("hours", ["0", "169", "-1", "1.5", "", "four"])
def test_a_silence_of_no_such_length_is_refused(store: Store, hours: str) -> None:
    assert act(client(store), "silence", id="al-1", hours=hours) == 422
    assert rows(store, Silence) == []


def test_a_rule_is_made_changed_and_deleted(store: Store) -> None:
    browser = client(store, "admin")
    assert act(browser, "create-rule", **RULE) == 303
    (rule,) = rows(store, AlertRule)
    assert (rule.name, rule.threshold, rule.for_seconds, rule.scope) == ("Tokens of chat", Decimal(1000), 60, {"workspace": "ws-a", "deployment": "chat"})
    with store.write() as session:
        kept = session.get(AlertRule, rule.id)
        assert kept is not None
        kept.keep_firing_for_seconds, kept.receivers = 300, ["hook-1"]
        session.add(kept)
    assert act(browser, "replace-rule", id=rule.id, name="Tokens", threshold="2000.5", threshold_percent="", enabled="no") == 303
    (rule,) = rows(store, AlertRule)
    # What the form does not show stays as it was.
    assert (rule.name, rule.threshold, rule.is_enabled, rule.keep_firing_for_seconds, rule.receivers) == ("Tokens", Decimal("2000.5"), False, 300, ["hook-1"])
    assert rule.scope == {"workspace": "ws-a", "deployment": "chat"}
    assert act(browser, "delete-rule", id=rule.id) == 303
    assert [action for _, action, _ in actors(store)] == ["create", "update", "delete"]
    assert act(browser, "delete-rule", id=rule.id) == 404


def test_a_budget_is_made_changed_and_deleted(store: Store) -> None:
    browser = client(store, "admin")
    assert act(browser, "create-budget", **BUDGET) == 303
    (budget,) = rows(store, Budget)
    assert (budget.amount, budget.currency, budget.steps, budget.scope, budget.is_hard) == (Decimal("250.50"), "USD", [50, 90], {"workspace": "ws-a"}, False)
    assert act(browser, "replace-budget", id=budget.id, name="Research", amount="300", steps="80") == 303
    (budget,) = rows(store, Budget)
    assert (budget.amount, budget.currency, budget.steps, budget.period) == (Decimal(300), "USD", [80], "month")
    assert act(browser, "delete-budget", id=budget.id) == 303
    assert [kind for _, _, kind in actors(store)] == ["budget"] * 3


def test_a_scope_is_changed_and_what_the_form_does_not_show_of_it_stays(store: Store) -> None:
    browser = client(store, "admin")
    assert act(browser, "create-rule", **RULE | {"tags": "env=prod, env=test, owner=a"}) == 303
    (rule,) = rows(store, AlertRule)
    assert rule.scope == {"workspace": "ws-a", "deployment": "chat", "tag:env": ["prod", "test"], "tag:owner": "a"}
    with store.write() as session:
        kept = session.get(AlertRule, rule.id)
        assert kept is not None
        kept.scope = {"mode": "serverless", "team": ["a, b", "c"], "workspace": "ws-a"}
        session.add(kept)
    said = {"workspace": "", "deployment": "chat, mail", "model": "", "application": "", "team": "a, b, c", "tags": "env=prod"}
    assert act(browser, "replace-rule", id=rule.id, **said) == 303
    (rule,) = rows(store, AlertRule)
    # A name with a comma is kept as it was shown; the mode has no field.
    assert rule.scope == {"mode": "serverless", "team": ["a, b", "c"], "deployment": ["chat", "mail"], "tag:env": "prod"}
    assert rule.revision == 2
    assert act(browser, "create-budget", **BUDGET) == 303
    (budget,) = rows(store, Budget)
    assert act(browser, "replace-budget", id=budget.id, workspace="ws-a, ws-b", team="search") == 303
    assert [(one.scope, one.amount) for one in rows(store, Budget)] == [({"workspace": ["ws-a", "ws-b"], "team": "search"}, Decimal("250.50"))]


def test_a_limit_is_set_and_taken_back_by_a_form(store: Store) -> None:
    browser = client(store, "admin")
    with store.write() as session:
        make.serverless(session, "chat", workspace="ws-a")
    pool = "ws-a/chat:tokens_per_minute"
    for limit, counting, expected in (("5000", "admitted", (5000, "user", "admitted")), ("", "billed", (400_000, "default", "billed"))):
        assert act(browser, "set-limit", id=pool, limit=limit, counting=counting) == 303
        with store.read() as session:
            found = next(one for one in ledger.quotas(session, ledger.Filters(), now=NOW) if one.id == pool)
        assert (found.limit, found.limit_source, found.counting) == expected
    assert act(browser, "set-limit", id="nowhere:tokens_per_minute", limit="5") == 404


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("create-rule", RULE | {"threshold": "many"}),
        ("create-rule", RULE | {"threshold": ""}),
        ("create-rule", RULE | {"kind": "moon"}),
        ("create-rule", RULE | {"name": "a\0b"}),
        ("create-rule", RULE | {"for_seconds": "-5"}),
        ("create-budget", BUDGET | {"amount": "-1"}),
        ("create-budget", BUDGET | {"currency": "money"}),
        ("create-budget", BUDGET | {"steps": "half"}),
        ("create-budget", BUDGET | {"name": "x" * 5000}),
    ],
)
def test_what_cannot_be_meant_changes_nothing_and_says_why(store: Store, what: str, said: dict[str, str]) -> None:
    answer = client(store).post(f"/act/{what}?back=rules", data=said, headers=SAME_SITE)
    assert answer.status_code == 422
    assert "Nothing was changed" in answer.text
    assert 'href="/dashboard/rules"' in answer.text
    assert rows(store, AlertRule) == []
    assert rows(store, Budget) == []
    assert actors(store) == []


def test_a_test_notice_and_its_replay_go_through_the_outbox(store: Store) -> None:
    browser = client(store, "admin")
    assert act(browser, "test-receiver", id="hook-1") == 303
    (delivery,) = rows(store, Delivery)
    assert (delivery.type, delivery.status) == ("webhook.test", DeliveryStatus.PENDING)
    with store.write() as session:
        row = session.get(Delivery, delivery.seq)
        assert row is not None
        row.status = DeliveryStatus.FAILED
        session.add(row)
    assert act(browser, "replay", id="hook-1", delivery=delivery.id) == 303
    assert [one.status for one in rows(store, Delivery)] == [DeliveryStatus.PENDING]
    assert act(browser, "replay", id="hook-1", delivery="other") == 404
    assert act(browser, "test-receiver", id="hook-2") == 409  # disabled


HOOK = {
    "name": "Standby",
    "format": "standard",
    "url": "https://hooks.example.com/standby",
    "default": "no",
    "severities": "",
    "workspaces": "",
    "matchers": "",
}
TELLING = Telling(resolver=lambda _host, _port: ["93.184.215.14"])


def by_script(browser: FlaskClient, what: str, said: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """An act as the page's script does it."""
    answer = browser.post(f"/act/{what}?back=receivers", data=said, headers=SAME_SITE | {"Accept": "application/json"})
    return answer.status_code, answer.get_json()


def test_a_receiver_is_made_changed_switched_off_and_deleted_and_its_secret_is_shown_once(store: Store) -> None:
    browser = client(store, "admin")
    status, said = by_script(browser, "create-receiver", HOOK | {"severities": "critical, error", "matchers": "deployment=chat, deployment=search"})
    assert (status, said["go"], said["secret"][:6]) == (200, "/dashboard/receivers", "whsec_")
    made = next(row for row in rows(store, Receiver) if row.name == "Standby")
    assert (made.secret, made.severities, [one["value"] for one in made.matchers]) == (said["secret"], ["critical", "error"], ["chat", "search"])
    # Nothing typed into what is secret: it stays.
    assert act(browser, "replace-receiver", id=made.id, name="On call", url="", secret="", default="yes", severities="", matchers="") == 303
    changed = next(row for row in rows(store, Receiver) if row.id == made.id)
    assert (changed.name, changed.url, changed.secret, changed.is_default, changed.severities) == ("On call", HOOK["url"], made.secret, True, [])
    status, said = by_script(browser, "rotate-receiver", {"id": made.id})
    rotated = next(row for row in rows(store, Receiver) if row.id == made.id)
    assert (status, said["secret"], rotated.previous_secret) == (200, rotated.secret, made.secret)
    assert act(browser, "disable-receiver", id=made.id) == 303
    assert act(browser, "test-receiver", id=made.id) == 409
    assert act(browser, "enable-receiver", id=made.id) == 303
    assert act(browser, "test-receiver", id=made.id) == 303
    assert act(browser, "delete-receiver", id=made.id) == 303
    assert act(browser, "delete-receiver", id=made.id) == 404
    assert [action for _, action, _ in actors(store)] == ["create", "update", "rotate", "update", "update", "test", "delete"]
    for page in ("receivers", "alerts", "rules"):
        with ledger_over(store.read)() as opened:
            view = View(Selection(), opened, NOW, None, "/dashboard/", page, "http://x", is_open=True, may_act=True)
            drawn = json.dumps(getattr(pages, page).layout(view), cls=PlotlyJSONEncoder)
        assert not any(secret in drawn for secret in (made.secret, rotated.secret, "/standby", "hooks.example/x"))


@pytest.mark.parametrize(
    ("what", "said", "field", "words"),
    [
        ("create-receiver", HOOK | {"url": "https://10.0.0.1/"}, "url", "not a public address"),
        ("create-receiver", HOOK | {"url": ""}, "url", "required"),
        ("create-receiver", HOOK | {"format": "pagerduty"}, "routing_key", "integration's key"),
        ("create-receiver", HOOK | {"secret": "hunter2"}, "secret", "openssl rand"),
        ("create-receiver", HOOK | {"matchers": "chat"}, "matchers", "label=value"),
        ("create-receiver", HOOK | {"matchers": "colour=red"}, "matchers", "no alert has a label 'colour'"),
        ("create-rule", RULE | {"threshold": "many"}, "threshold", "a number such as"),
        ("create-rule", RULE | {"threshold": ""}, "threshold", "give either threshold or threshold_percent"),
        ("create-rule", RULE | {"clear_threshold": "2000"}, "clear_threshold", "quiet side"),
        ("create-rule", RULE | {"receivers": "hook-9"}, "receivers", "there is no receiver"),
        ("create-rule", RULE | {"runbook_url": "javascript:alert(1)"}, "runbook_url", "http or https"),
        ("create-budget", BUDGET | {"time_zone": "Europe/Nowhere"}, "time_zone", "Nowhere"),
        ("create-rule", RULE | {"tags": "prod"}, "tags", "key=value"),
        ("create-budget", BUDGET | {"tags": "=prod"}, "tags", "key=value"),
        ("set-limit", {"id": "ws-a/chat:tokens_per_minute", "limit": "many"}, "limit", "a whole number"),
        ("set-limit", {"id": "ws-a/chat:tokens_per_minute", "limit": "0"}, "limit", "greater than 0"),
        ("set-limit", {"id": "ws-a/chat:tokens_per_minute", "limit": "5", "counting": "twice"}, "counting", "admitted"),
        ("create-silence", {"matchers": "deployment=chat", "hours": "1000"}, "hours", "from 1 to 168"),
        ("create-silence", {"matchers": "", "hours": "1"}, "matchers", "at least 1"),
        ("create-silence", {"matchers": "deployment=chat", "starts_at": "soon", "hours": "1"}, "starts_at", "2026-11-20 22:00"),
        ("create-silence", {"matchers": "deployment=chat", "hours": "1", "days": "monday", "from": "25:00", "to": "2:00"}, "from", "time of day"),
    ],
)
def test_what_cannot_be_meant_is_said_at_its_field(store: Store, what: str, said: dict[str, Any], field: str, words: str) -> None:
    status, answer = by_script(client(store), what, said)
    assert (status, answer["field"]) == (422, field)
    assert words in answer["message"]
    assert "hunter2" not in str(answer)
    assert actors(store) == []


def test_silences_and_maintenance_windows_are_made_moved_and_ended(store: Store) -> None:
    browser = client(store, "admin")
    assert act(browser, "create-silence", matchers="deployment=chat", hours="4", comment="a drill") == 303
    window = {
        "matchers": "workspace=ws-a",
        "days": ["saturday", "sunday"],
        "from": "22:00",
        "to": "02:00",
        "time_zone": "Europe/Berlin",
        "ends_at": "2027-11-20 12:00",
    }
    assert by_script(browser, "create-silence", window)[0] == 200
    drill, weekly = sorted(rows(store, Silence), key=lambda row: row.ends_at)
    assert (drill.starts_at, drill.ends_at, drill.comment, drill.author) == (NOW, NOW + timedelta(hours=4), "a drill", "olga (k1)")
    assert weekly.weekly == {"days": ["saturday", "sunday"], "from": "22:00", "to": "02:00", "time_zone": "Europe/Berlin"}
    assert act(browser, "replace-silence", id=drill.id, ends_at="2026-11-20 15:30") == 303
    assert act(browser, "end-silence", id=weekly.id) == 303
    ends = {row.id: row.ends_at for row in rows(store, Silence)}
    assert (ends[drill.id], ends[weekly.id]) == (NOW + timedelta(hours=3, minutes=30), NOW)
    with ledger_over(store.read)() as opened:
        view = View(Selection(), opened, NOW, None, "/dashboard/", "alerts", "http://x", is_open=True, may_act=True)
        page = json.dumps(pages.alerts.layout(view), cls=PlotlyJSONEncoder)
    # The alert of deployment chat is marked, and still there.
    for words in (
        "silenced until 20 Nov 2026, 15:30 UTC",
        "1,200 tokens in a minute",
        "1 silenced",
        "every saturday, sunday 22:00 to 02:00 (Europe/Berlin)",
        "past",
        "active",
    ):
        assert words in page


def test_a_trial_says_what_is_wrong_at_its_field_and_needs_an_admin(store: Store) -> None:
    desk = Desk(store, now=lambda: NOW)
    for said, words in (
        ({"what": "rule", "name": "Try", "kind": "tokens_per_minute", "threshold": "1000", "days": "7"}, "It would not have fired"),
        ({"what": "rule", "name": "Try", "kind": "tokens_per_minute", "threshold": "many", "days": "7"}, "a number such as 80"),
        ({"what": "rule", "name": "Try", "kind": "heartbeat", "days": "7"}, "no history to test"),
        ({"what": "rule", "name": "Try", "kind": "tokens_per_minute", "threshold": "1", "days": "92"}, "31 days at once"),
        ({"what": "budget", "name": "Try", "amount": "10", "currency": "USD", "period": "month", "days": "31"}, "It would not have fired"),
        ({}, "Fill in a rule or budget"),
    ):
        for may_act in (True, False):
            with ledger_over(store.read)() as opened:
                tried = desk.tried if may_act else None
                view = View(Selection(), opened, NOW, None, "/dashboard/", "backtest", "http://x", is_open=True, may_act=may_act, said=said, tried=tried)
                page = json.dumps(pages.backtest.layout(view), cls=PlotlyJSONEncoder)
            assert (words in page) == may_act
            assert ("admin key" in page) != may_act
    assert rows(store, AlertRule) == []


def test_a_trial_counts_the_firings_that_it_does_not_list(store: Store) -> None:
    fired = [Firing({"deployment": "chat"}, NOW, None, Decimal(5), "why")] * 1000
    trial = Trial(Period(NOW - timedelta(days=7), NOW), "tokens a minute", fired, [Line({}, Decimal(1), [(NOW, Decimal(5))])], more_firings=5_439)
    with ledger_over(store.read)() as opened:
        view = View(
            Selection(), opened, NOW, None, "/dashboard/", "backtest", "http://x", is_open=True, may_act=True, said={"name": "x"}, tried=lambda *_said: trial
        )
        page = json.dumps(pages.backtest.layout(view), cls=PlotlyJSONEncoder)
    assert "It would have fired 6,439 times in 7 days" in page
    assert "The first 25 of 6,439." in page


EVERY_ACT: tuple[tuple[str, dict[str, str]], ...] = (
    ("set-limit", {"id": "ws-a/chat:tokens_per_minute", "limit": "5"}),
    ("acknowledge", {"id": "al-1"}),
    ("silence", {"id": "al-1", "hours": "4"}),
    ("create-rule", RULE),
    ("create-budget", BUDGET),
    ("test-receiver", {"id": "hook-1"}),
    ("create-receiver", HOOK),
    ("disable-receiver", {"id": "hook-1"}),
    ("delete-receiver", {"id": "hook-1"}),
    ("create-silence", {"matchers": "deployment=chat", "hours": "4"}),
    ("nonsense", {}),
)


@pytest.mark.parametrize(("what", "said"), EVERY_ACT)
def test_a_read_key_changes_nothing(store: Store, what: str, said: dict[str, str]) -> None:
    assert act(client(store, "read"), what, **said) == 403
    assert actors(store) == []
    assert rows(store, Delivery) == []
    assert rows(store, Silence) == []


@pytest.mark.parametrize(("what", "said"), EVERY_ACT)
@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}])
def test_another_site_changes_nothing(store: Store, what: str, said: dict[str, str], headers: dict[str, str]) -> None:
    for browser in (client(store), client(store, "admin")):
        assert browser.post(f"/act/{what}", data=said, headers=headers).status_code == 403
    assert actors(store) == []
    assert rows(store, Delivery) == []
    assert rows(store, Silence) == []


def test_nobody_signed_in_a_get_and_no_desk_change_nothing(store: Store) -> None:
    fresh = create_dashboard(
        open_ledger=ledger_over(store.read), access=fakes.FakeAccess(keyless=False), now=lambda: NOW, desk=Desk(store, now=lambda: NOW)
    ).server.test_client()
    assert act(fresh, "acknowledge", id="al-1") == 401
    client(store).get("/act/acknowledge?id=al-1")
    assert act(client(store, with_desk=False), "acknowledge", id="al-1") == 403
    assert act(client(store), "no-such-act") == 404
    assert actors(store) == []
    assert rows(store, Alert)[0].acknowledged_at is None


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example", "/\\evil.example", "a/../../x"])
def test_the_way_back_stays_on_this_site(store: Store, back: str) -> None:
    answer = client(store).post("/act/acknowledge", query_string={"back": back, "id": "al-1"}, headers=SAME_SITE)
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/dashboard/")


@pytest.mark.walk
@pytest.mark.browser
def test_the_pages_of_operations_draw_and_their_buttons_work(store: Store) -> None:
    desk = Desk(store, now=lambda: NOW)
    admin = Viewer("k1", "olga", "admin", None)
    desk("create-budget", BUDGET, admin)
    desk("create-rule", RULE, admin)
    with store.write() as session:
        make.serverless(session, "chat", workspace="ws-a")
    desk("test-receiver", {"id": "hook-1"}, admin)
    viewers = {"look": Viewer("k2", "rita", "read", None), "do": admin}
    app = create_dashboard(open_ledger=ledger_over(store.read), access=fakes.FakeAccess(viewers=viewers), now=lambda: NOW, desk=desk, tried=desk.tried)
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with serving(mount(app)) as origin, sync_playwright() as playwright:
        driven = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        for key in ("look", "do"):
            page = driven.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.set_default_timeout(30_000)
            page.goto(f"{origin}/dashboard/login")
            page.locator("#key").fill(key)
            page.locator("main button").click()
            for path, heading, words in (
                ("quotas", "Quotas", "Metered until"),
                ("alerts", "Alerts", "1,200 tokens in a minute"),
                ("rules", "Rules and budgets", "Research"),
                ("receivers", "Receivers", "off: it answered 410"),
            ):
                page.goto(f"{origin}/dashboard/{path}")
                expect(page.locator("main h1")).to_have_text(heading, timeout=30_000)
                expect(page.locator("main")).to_contain_text(words)
                expect(page.locator("main .failure")).to_have_count(0)
                if key == "look":
                    expect(page.locator("main form")).to_have_count(0)
            expect(page.locator("nav [role=group] > .hidden")).to_have_text(["Money", "Operations", "Data"])
        page.goto(f"{origin}/dashboard/alerts")
        page.get_by_role("button", name="Acknowledge").click()
        expect(page.locator("main table").first).to_contain_text("olga (k1)", timeout=30_000)
        expect(page.get_by_role("button", name="Acknowledge")).to_have_count(0)
        page.goto(f"{origin}/dashboard/receivers")
        new = page.locator("section", has=page.get_by_role("heading", name="A new receiver"))
        new.locator("input[name=name]").fill("Standby")
        new.locator("input[name=url]").fill("https://10.0.0.1/")
        new.get_by_role("button").click()
        # The fault is at its field, and what was typed is still there.
        expect(new.locator("label", has=page.locator("input[name=url]")).locator(".field-fault")).to_contain_text("not a public address", timeout=30_000)
        expect(new.locator("input[name=name]")).to_have_value("Standby")
        new.locator("input[name=url]").fill("https://93.184.215.14/hook")
        new.get_by_role("button").click()
        expect(page.locator("dialog pre")).to_contain_text("whsec_", timeout=30_000)
        page.get_by_role("button", name="I have kept it").click()
        row = page.locator("tr", has_text="Standby").first
        row.locator("summary", has_text="Edit").click()
        expect(row.locator(".panel input[name=name]")).to_have_value("Standby")
        page.keyboard.press("Escape")
        expect(row.locator(".panel")).to_be_hidden()
        page.goto(f"{origin}/dashboard/rules")
        new = page.locator("section", has=page.get_by_role("heading", name="A new rule"))
        new.locator("input[name=name]").fill("Tried")
        new.locator("input[name=threshold]").fill("500")
        new.get_by_role("button", name="Try on the past").click()
        expect(page.locator("main h1")).to_have_text("Tried on the past", timeout=30_000)
        expect(page.locator("main h2").first).to_contain_text("It would not have fired", timeout=30_000)
        expect(page.locator("main input[name=threshold]")).to_have_value("500")
        page.goto(f"{origin}/dashboard/rules")
        new = page.locator("section", has=page.get_by_role("heading", name="A new budget"))
        new.locator("input[name=name]").fill("Support")
        new.locator("input[name=amount]").fill("99.95")
        new.get_by_role("button", name="Make the budget").click()
        expect(page.locator("main table").first).to_contain_text("Support", timeout=30_000)
        row = page.locator("section", has=page.get_by_role("heading", name="Rules", exact=True)).locator("tr", has_text="Tokens of chat").first
        row.locator("summary", has_text="Edit").click()
        panel = row.locator(".panel")
        expect(panel.locator("input[name=deployment]")).to_have_value("chat")
        panel.locator("input[name=deployment]").fill("chat, mail")
        panel.locator("input[name=tags]").fill("prod")
        panel.get_by_role("button", name="Save").click()
        expect(panel.locator("label", has=page.locator("input[name=tags]")).locator(".field-fault")).to_contain_text("key=value", timeout=30_000)
        panel.locator("input[name=tags]").fill("env=prod")
        panel.get_by_role("button", name="Save").click()
        expect(page.locator("main")).to_contain_text("deployment chat or mail, tag:env prod", timeout=30_000)
        page.goto(f"{origin}/dashboard/quotas")
        row = page.locator("tr", has_text="chat · ws-a (tokens/min)").first
        row.locator("summary", has_text="Limit").click()
        row.locator("input[name=limit]").fill("plenty")
        row.get_by_role("button", name="Set the limit").click()
        expect(row.locator(".field-fault")).to_contain_text("a whole number", timeout=30_000)
        row.locator("input[name=limit]").fill("123456")
        row.get_by_role("button", name="Set the limit").click()
        expect(page.locator("main table", has_text="Pool").first).to_contain_text("123,456", timeout=30_000)
        driven.close()
    assert [one.amount for one in rows(store, Budget) if one.name == "Support"] == [Decimal("99.95")]
