"""Rules, budgets, silences and owners from a file: the difference, and nothing the second time."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import pytest
from sqlmodel import Session, select

from collector import rulebook
from collector.applying import apply, read_file, referred
from collector.cli import main
from collector.mappings import MappingRow, put_mapping
from collector.reports import schedules
from collector.webhooks.setup import Telling
from models import ledger
from models.alerts import AlertRule, AuditEntry, Budget, Silence
from models.errors import InvalidInput
from models.meters import MappedKind
from models.notices import Format, Receiver
from models.resources import Owner
from models.store import Store
from tests import factories

NOW = factories.NOW
TELLING = Telling(resolver=lambda _host, _port: ["93.184.215.14"])
SECRETS = tuple("whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
RECEIVERS = """
receivers:
  - {name: night, format: standard, url: "https://hooks.example.com/night", secret_env: NIGHT_SECRET, default: true, severities: [error, critical]}
  - {name: team, format: slack, url_file: slack-url, matchers: [{name: workspace, value: ws-east}]}
  - {name: pager, format: pagerduty, url: "https://events.pagerduty.com/v2/enqueue", routing_key_env: PAGER_KEY}
rules:
  - {name: Chat, kind: tokens_per_minute, threshold: 5, receivers: [team, pager]}
"""
FILE = """
rules:
  - name: Chat is fast
    kind: tokens_per_minute
    scope: {workspace: ws-east}
    threshold_percent: 80
    severity: warning
budgets:
  - name: Search
    scope: {team: search}
    amount: 100.10
    currency: USD
    period: month
    time_zone: Europe/Berlin
silences:
  - matchers: [{name: workspace, value: ws-test}]
    starts_at: 2026-01-01T00:00:00Z
    ends_at: 2027-01-01T00:00:00Z
    weekly: {days: [saturday], from: 22:00, to: 02:00, time_zone: Europe/Berlin}
owners:
  - {workspace: ws-east, deployment: llama-chat, team: search}
"""


def applied(
    store: Store,
    path: Path,
    text: str,
    *,
    dry_run: bool = False,
    prune: bool = False,
    now: datetime = NOW,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    file = path / "alerts.yaml"
    file.write_text(text, encoding="utf-8")
    said: list[str] = []
    secrets = referred(read_file(file), folder=path, environ=environ)
    assert apply(store, file, now=now, author="ops", say=said.append, dry_run=dry_run, prune=prune, secrets=secrets, telling=TELLING) == 0
    return said


def names(session: Session) -> dict[str, list[str]]:
    return {
        "rules": [row.name for row in rulebook.standing(session, AlertRule)],
        "budgets": [row.name for row in rulebook.standing(session, Budget)],
    }


def test_a_file_is_made_so_once_and_changes_nothing_the_second_time(store: Store, tmp_path: Path) -> None:
    assert applied(store, tmp_path, FILE) == [
        '+ rule Chat is fast: {"kind":"tokens_per_minute","scope":{"workspace":"ws-east"},"threshold_percent":80}',
        '+ budget Search: {"amount":"100.10","currency":"USD","period":"month","scope":{"team":"search"},"steps":[50,80,100]}',
        "+ silence workspace=ws-test: until 2027-01-01T00:00:00Z",
        "~ owners: 1 added, 0 changed, 0 unchanged",
        "4 changed, 0 unchanged",
    ]
    assert applied(store, tmp_path, FILE) == ["nothing to change (4 as the file says)"]
    with store.read() as session:
        (budget,) = rulebook.standing(session, Budget)
        (quiet,) = rulebook.standing(session, Silence)
        assert (budget.amount, budget.origin) == (Decimal("100.1"), "apply")
        assert quiet.weekly == {"days": ["saturday"], "from": "22:00", "to": "02:00", "time_zone": "Europe/Berlin"}
        assert [owner.team for owner in session.exec(select(Owner))] == ["search"]


def test_a_change_shows_what_was_and_what_will_be(sqlite_store: Store, tmp_path: Path) -> None:
    applied(sqlite_store, tmp_path, FILE)
    other = FILE.replace("threshold_percent: 80", "threshold_percent: 85").replace("amount: 100.10", "amount: 90")
    expected = ["~ rule Chat is fast: threshold_percent 80 → 85", "~ budget Search: amount 100.10 → 90.00"]
    assert applied(sqlite_store, tmp_path, other, dry_run=True) == [*expected, "2 to change, 2 unchanged; nothing was done (--dry-run)"]
    assert applied(sqlite_store, tmp_path, other) == [*expected, "2 changed, 2 unchanged"]
    with sqlite_store.read() as session:
        assert [(row.revision, row.threshold_percent) for row in rulebook.standing(session, AlertRule)] == [(2, Decimal(85))]


def test_receivers_are_named_by_name_or_id(sqlite_store: Store, tmp_path: Path) -> None:
    with sqlite_store.write() as session:
        factories.receiver(session, "hook_1", name="oncall")
    text = "rules:\n  - {name: x, kind: unpriced_usage, threshold: 1, receivers: [oncall]}\n"
    assert applied(sqlite_store, tmp_path, text)[-1] == "1 changed, 0 unchanged"
    assert applied(sqlite_store, tmp_path, text.replace("oncall", "hook_1")) == ["nothing to change (1 as the file says)"]
    with sqlite_store.read() as session:
        assert [row.receivers for row in rulebook.standing(session, AlertRule)] == [["hook_1"]]


def test_prune_ends_what_a_file_made_and_nothing_else(sqlite_store: Store, tmp_path: Path) -> None:
    with sqlite_store.write() as session:
        body = rulebook.RuleBody.model_validate({"name": "By hand", "kind": "unpriced_usage", "threshold": 1})
        rulebook.create_rule(session, body, by=rulebook.Author("a person"), now=NOW)
    applied(sqlite_store, tmp_path, FILE)
    left = "  rule Chat is fast is no longer in the file; it stays (--prune ends it)"
    assert applied(sqlite_store, tmp_path, "rules: []\n") == [left, "nothing to change (0 as the file says)"]
    assert applied(sqlite_store, tmp_path, "rules: []\n", prune=True) == ["- rule Chat is fast", "1 changed, 0 unchanged"]
    with sqlite_store.read() as session:
        assert names(session) == {"rules": ["By hand"], "budgets": ["Search"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [", "line 1: expected the node content"),
        ("rule: []", "does not know the section 'rule'"),
        ("- 1", "must have the sections"),
        ("rules:\n  - name: x\n    name: y\n", "line 3: 'name' is said twice"),
        ("rules:\n  - {name: x, kind: nothing, threshold: 1}\n", "rules[0].kind"),
        ("budgets:\n  - {name: x, amount: ten, currency: USD, period: month}\n", "budgets[0].amount"),
        ("rules:\n  - &a {name: x, kind: unpriced_usage, threshold: 1}\n  - *a\n", "in the file twice"),
        ("receivers:\n  - {name: x}\n", "receivers[0].url"),
        ("schedules:\n  - {name: x, report: hourly, folder: x}\n", "schedules[0].report"),
        ("schedules:\n  - {name: x, report: weekly, folder: /etc}\n", "schedules[0]: "),
        ("schedules:\n  - {name: x, report: weekly, receivers: [nobody]}\n", "schedules[0].receivers: there is no receiver 'nobody'"),
        ("schedules:\n  - {name: x, report: close, time_zone: Europe/Berlin, folder: x}\n", "schedules[0]: a month is closed in UTC"),
        ("receivers:\n  - {name: x, format: slack, url: 'https://10.0.0.1/'}\n", "receivers[0].url: 10.0.0.1, which is not a public address"),
        ("receivers:\n  - {name: x, format: standard, url: 'https://hooks.example.com/'}\n", "needs secret_env or secret_file"),
        (
            "receivers:\n  - {name: x, format: standard, url: 'https://hooks.example.com/', secret: whsec_AAAA}\n",
            "receivers[0].secret: it belongs into no file",
        ),
        ("receivers:\n  - {name: x, format: slack, url: 'https://hooks.example.com/', url_env: X}\n", "give either url or url_env"),
        ("receivers:\n  - {name: x, format: slack, url_env: NO_SUCH}\n", "receivers[0].url_env: there is no environment variable 'NO_SUCH'"),
        ("receivers:\n  - {name: x, format: slack, url_file: no-such}\n", "receivers[0].url_file: no-such cannot be read"),
        ("meters:\n  - {meter: x, kind: input, unit: 1 hour}\n", "meters item 1: unit is '1 hour'; a meter of kind input has 1K tokens or 1M tokens"),
        ("meters:\n  - {meter: x, kind: tokens}\n", "meters item 1: kind is 'tokens'; it must be one of input"),
        ("meters:\n  - {meter: x}\n", "meters item 1: kind is missing"),
        ("meters:\n  - {meter: x, kind: input}\n  - {meter: X, kind: output}\n", "maps the same meter as"),
        ("rules:\n  - {name: x, kind: unpriced_usage, threshold: 1, receivers: [nobody]}\n", "rules[0].receivers: there is no receiver 'nobody'"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_changes_nothing(sqlite_store: Store, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match="(?s)" + said.replace("[", r"\[").replace("]", r"\]")):
        applied(sqlite_store, tmp_path, text)
    with sqlite_store.read() as session:
        assert names(session) == {"rules": [], "budgets": []}


METERS = """
meters:
  - {meter: Llama tokens In, kind: input, unit: 1M tokens, note: price sheet}
  - {meter: paygo-*-in, offer: meta-llama-4-scout, kind: fine_tuned_input, valid_from: 2026-10-01}
"""


def test_what_meters_count_is_kept_as_a_file_too(store: Store, tmp_path: Path) -> None:
    with store.write() as session:
        put_mapping(session, MappingRow("By hand", MappedKind.OTHER), now=NOW, author="a person")
    by_hand = "  meter By hand is not in the file; it stays (--prune ends it)"
    made = ["+ meter Llama tokens In: input, 1M tokens", "+ meter paygo-*-in of meta-llama-4-scout: fine_tuned_input"]
    assert applied(store, tmp_path, METERS, dry_run=True) == [*made, by_hand, "2 to change, 0 unchanged; nothing was done (--dry-run)"]
    assert applied(store, tmp_path, METERS) == [*made, by_hand, "2 changed, 0 unchanged"]
    assert applied(store, tmp_path, METERS) == [by_hand, "nothing to change (2 as the file says)"]
    other = METERS.replace("1M tokens", "1K tokens").replace("fine_tuned_input", "input")
    changed = ["~ meter Llama tokens In: unit 1M tokens → 1K tokens", "~ meter paygo-*-in of meta-llama-4-scout: kind fine_tuned_input → input"]
    assert applied(store, tmp_path, other, now=NOW + timedelta(hours=1)) == [*changed, by_hand, "2 changed, 0 unchanged"]
    fewer = "".join(other.splitlines(keepends=True)[:-1])
    gone = ["- meter By hand", "- meter paygo-*-in of meta-llama-4-scout", "2 changed, 1 unchanged"]
    assert applied(store, tmp_path, fewer, prune=True, now=NOW + timedelta(hours=2)) == gone
    assert applied(store, tmp_path, "rules: []\n", prune=True) == ["nothing to change (0 as the file says)"]
    with store.read() as session:
        (left,) = ledger.meter_mappings(session)
        assert (left.meter, left.kind, left.unit, left.note, left.author) == ("Llama tokens In", MappedKind.INPUT, "1K tokens", "price sheet", "ops")


def test_receivers_of_a_file_refer_to_their_secrets_and_show_none(store: Store, tmp_path: Path) -> None:
    (tmp_path / "slack-url").write_text("https://hooks.slack.com/services/T1/B2/hidden\n")
    environ = {"NIGHT_SECRET": SECRETS[0], "PAGER_KEY": "R" * 32}
    assert applied(store, tmp_path, RECEIVERS, environ=environ) == [
        "+ receiver night: standard https://hooks.example.com/…",
        "+ receiver team: slack https://hooks.slack.com/…",
        "+ receiver pager: pagerduty https://events.pagerduty.com/…",
        '+ rule Chat: {"kind":"tokens_per_minute","threshold":5}',
        "4 changed, 0 unchanged",
    ]
    assert applied(store, tmp_path, RECEIVERS, environ=environ) == ["nothing to change (4 as the file says)"]
    with store.read() as session:
        kept = {row.name: row for row in session.exec(select(Receiver))}
        (rule,) = rulebook.standing(session, AlertRule)
        assert rule.receivers == [kept["team"].id, kept["pager"].id]
        assert (kept["night"].secret, kept["night"].severities, kept["night"].is_default, kept["night"].origin) == (
            SECRETS[0],
            ["critical", "error"],
            True,
            "apply",
        )
        assert (kept["team"].url, kept["team"].format) == ("https://hooks.slack.com/services/T1/B2/hidden", Format.SLACK)
        assert kept["pager"].routing_key == "R" * 32
    later = NOW + timedelta(hours=1)
    lines = applied(store, tmp_path, RECEIVERS.replace("default: true", "default: false"), environ=environ | {"NIGHT_SECRET": SECRETS[1]}, now=later)
    assert lines[0] == "~ receiver night: default True → False; secret changes; the one before signs too until 2026-11-21T11:00:00Z"
    with store.read() as session:
        night = session.exec(select(Receiver).where(Receiver.name == "night")).one()
        assert (night.secret, night.previous_secret, night.previous_until) == (SECRETS[1], SECRETS[0], NOW + timedelta(hours=25))
        trail = "".join(f"{entry.before}{entry.after}" for entry in session.exec(select(AuditEntry)))
        for secret in (*SECRETS, "R" * 32, "hidden"):
            assert secret not in trail + "".join(lines)


SCHEDULES = """
receivers:
  - {name: finance, format: slack, url_file: slack-url}
schedules:
  - {name: Board, report: weekly, time_zone: Europe/Berlin, teams: [search], receivers: [finance], folder: board//weekly}
  - {name: Close, report: close, hours_after: 130, attach: [pdf, csv], folder: close}
"""


def test_schedules_of_reports_are_kept_as_a_file_too(store: Store, tmp_path: Path) -> None:
    (tmp_path / "slack-url").write_text("https://hooks.slack.com/services/T1/B2/hidden\n")
    assert applied(store, tmp_path, SCHEDULES) == [
        "+ receiver finance: slack https://hooks.slack.com/…",
        '+ schedule Board: {"folder":"board/weekly","report":"weekly","teams":["search"]}',
        '+ schedule Close: {"folder":"close","report":"close"}',
        "3 changed, 0 unchanged",
    ]
    assert applied(store, tmp_path, SCHEDULES) == ["nothing to change (3 as the file says)"]
    with store.read() as session:
        (finance,) = session.exec(select(Receiver)).all()
        board, close = sorted(schedules.standing(session), key=lambda row: row.name)
        assert (board.receivers, board.time_zone, board.origin, close.hours_after, close.attach) == (
            [finance.id],
            "Europe/Berlin",
            "apply",
            130,
            ["pdf", "csv"],
        )
    other = SCHEDULES.replace("hours_after: 130", "hours_after: 140").replace("  - {name: Board", "  - {name: Directors")
    lines = applied(store, tmp_path, other, prune=True)
    assert lines == [
        '+ schedule Directors: {"folder":"board/weekly","report":"weekly","teams":["search"]}',
        "~ schedule Close: hours_after 130 → 140",
        "- schedule Board",
        "3 changed, 1 unchanged",
    ]
    with store.read() as session:
        assert [(row.name, row.hours_after) for row in sorted(schedules.standing(session), key=lambda row: row.name)] == [("Close", 140), ("Directors", 7)]


def test_a_receiver_that_answered_410_stays_off_however_often_a_file_is_applied(sqlite_store: Store, tmp_path: Path) -> None:
    text = "receivers:\n  - {name: team, format: slack, url: 'https://hooks.example.com/x'}\n"
    applied(sqlite_store, tmp_path, text)
    with sqlite_store.write() as session:
        row = session.exec(select(Receiver)).one()
        row.is_enabled, row.disabled_reason = False, "it answered 410 Gone"
        session.add(row)
    assert applied(sqlite_store, tmp_path, text) == ["nothing to change (1 as the file says)"]
    assert applied(sqlite_store, tmp_path, text.replace("/x'", "/x', enabled: true"))[0] == "~ receiver team: enabled False → True"


def test_a_receiver_that_a_file_no_longer_has_is_shown_before_it_is_removed(sqlite_store: Store, tmp_path: Path) -> None:
    applied(sqlite_store, tmp_path, "receivers:\n  - {name: team, format: slack, url: 'https://hooks.example.com/x'}\n")
    left = "  receiver team is no longer in the file; it stays (--prune ends it)"
    assert applied(sqlite_store, tmp_path, "receivers: []\n") == [left, "nothing to change (0 as the file says)"]
    assert applied(sqlite_store, tmp_path, "receivers: []\n", prune=True, dry_run=True)[0] == "- receiver team"
    with sqlite_store.read() as session:
        assert session.exec(select(Receiver)).one().deleted_at is None
    assert applied(sqlite_store, tmp_path, "receivers: []\n", prune=True) == ["- receiver team", "1 changed, 0 unchanged"]
    with sqlite_store.read() as session:
        assert session.exec(select(Receiver)).one().deleted_at == NOW


def test_the_command_applies_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, file = f"sqlite:///{tmp_path / 'own.db'}", tmp_path / "alerts.yaml"
    file.write_text(FILE, encoding="utf-8")
    assert main(["apply", "-f", str(file), "--database-url", url]) == 0
    assert "+ budget Search" in capsys.readouterr().out
    assert main(["apply", "-f", str(file), "--database-url", url]) == 0
    hook = "receivers:\n  - {name: night, format: standard, url: 'https://93.184.215.14/', secret_env: NIGHT_SECRET}\n"
    file.write_text(hook, encoding="utf-8")
    assert main(["apply", "-f", str(file), "--database-url", url]) == 2
    assert "receivers[0].secret_env: there is no environment variable 'NIGHT_SECRET'" in capsys.readouterr().err
    monkeypatch.setenv("NIGHT_SECRET", SECRETS[0])
    assert main(["apply", "-f", str(file), "--database-url", url]) == 0
    said = capsys.readouterr()
    assert "+ receiver night: standard https://93.184.215.14/…" in said.out
    assert SECRETS[0] not in said.out + said.err
    assert main(["apply", "-f", str(tmp_path / "missing.yaml"), "--database-url", url]) == 2
    assert "there is no file" in capsys.readouterr().err
    store = Store(url)
    with store.read() as session:
        assert names(session) == {"rules": ["Chat is fast"], "budgets": ["Search"]}
    store.close()
