"""Rules, budgets, silences and owners from a file: the difference, and nothing the second time."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from sqlmodel import Session, select

from collector import rulebook
from collector.applying import apply
from collector.cli import main
from models.alerts import AlertRule, Budget, Silence
from models.errors import InvalidInput
from models.resources import Owner
from models.store import Store
from tests import factories

NOW = factories.NOW
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


def applied(store: Store, path: Path, text: str, *, dry_run: bool = False, prune: bool = False, now: datetime = NOW) -> list[str]:
    file = path / "alerts.yaml"
    file.write_text(text, encoding="utf-8")
    said: list[str] = []
    assert apply(store, file, now=now, author="ops", say=said.append, dry_run=dry_run, prune=prune) == 0
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
    from models.notices import Format, Receiver

    with sqlite_store.write() as session:
        facts = {"url": "https://example.com", "format": Format.SLACK, "workspaces": [], "created_at": NOW, "updated_at": NOW}
        session.add(Receiver(id="hook_1", name="oncall", **facts))  # type: ignore[arg-type]
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
    assert applied(sqlite_store, tmp_path, "rules: []\n") == ["nothing to change (0 as the file says)"]
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
        ("receivers:\n  - {name: x}\n", "POST /v1/webhooks"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_changes_nothing(sqlite_store: Store, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match="(?s)" + said.replace("[", r"\[").replace("]", r"\]")):
        applied(sqlite_store, tmp_path, text)
    with sqlite_store.read() as session:
        assert names(session) == {"rules": [], "budgets": []}


def test_the_command_applies_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, file = f"sqlite:///{tmp_path / 'own.db'}", tmp_path / "alerts.yaml"
    file.write_text(FILE, encoding="utf-8")
    assert main(["apply", "-f", str(file), "--database-url", url]) == 0
    assert "+ budget Search" in capsys.readouterr().out
    assert main(["apply", "-f", str(file), "--database-url", url]) == 0
    assert main(["apply", "-f", str(tmp_path / "missing.yaml"), "--database-url", url]) == 2
    assert "there is no file" in capsys.readouterr().err
    store = Store(url)
    with store.read() as session:
        assert names(session) == {"rules": ["Chat is fast"], "budgets": ["Search"]}
    store.close()
