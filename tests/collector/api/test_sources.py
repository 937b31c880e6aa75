"""Sources and metrics over HTTP."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, date, datetime, timedelta

import pytest

from models import leases, sources
from models.charges import ChargeClass
from models.sources import PullState
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import serving

NOW = make.NOW


def filled(store: Store) -> None:
    with store.write() as session:
        make.workspace_fact(session)
        make.foundry(session)
        make.token_prices(session, "1.00", "1.00")
        make.event(
            session,
            make.series(session, deployment="llama-foundry", application='a"\\\nb'),
            time=NOW - timedelta(minutes=10),
            input_tokens=500_000,
            output_tokens=0,
        )
        make.charge(session, make.bill_part(session), make.charge_item(session, ChargeClass.FOUNDRY), "1.00", quantity="1")
        run = sources.begin(session, "costs", "subscriptions/s1", now=NOW - timedelta(hours=2))
        sources.finish(
            session, run.id or 0, PullState.DONE, now=NOW - timedelta(hours=1), rows=7, calls=3, data_until=NOW - timedelta(days=1), message="landed 7 rows"
        )
        again = sources.begin(session, "costs", "subscriptions/s1", now=NOW - timedelta(minutes=30))
        sources.finish(
            session, again.id or 0, PullState.RESCHEDULED, now=NOW, calls=1, throttles=1, next_at=NOW + timedelta(hours=1), message="Azure throttles"
        )
        sources.begin(session, "quotas", "", now=NOW - timedelta(hours=5))
        leases.take(session, "twins", every=timedelta(days=1), holder="a", now=NOW, lasts=timedelta(hours=1))


def test_every_source_says_its_last_word(sqlite_store: Store) -> None:
    filled(sqlite_store)
    with serving(sqlite_store) as service:
        items = service.client.get("/v1/sources").json()["items"]
    found = {(one["kind"], one["name"]): one for one in items}
    costs = found["azure", "costs · subscriptions/s1"]
    assert (costs["state"], costs["calls"], costs["throttles"], costs["message"]) == ("rescheduled", 1, 1, "Azure throttles")
    assert (costs["last_success"], costs["next_run"], costs["data_until"]) == ("2026-11-20T09:00:00Z", "2026-11-20T11:00:00Z", "2026-11-19T10:00:00Z")
    assert (found["azure", "quotas"]["state"], found["job", "twins"]["state"]) == ("interrupted", "running")
    # The schedule's own word, where Azure has said nothing: the next UTC day.
    assert found["job", "twins"]["next_run"] == "2026-11-21T00:00:00Z"
    assert {kind for kind, _ in found} == {"azure", "bill", "usage", "job"}


def test_a_look_at_a_settled_month_does_not_take_back_how_far_the_bill_reaches(sqlite_store: Store) -> None:
    filled(sqlite_store)
    with sqlite_store.write() as session:
        for month, until in ((date(2026, 11, 1), NOW - timedelta(hours=12)), (date(2026, 3, 1), datetime(2026, 4, 1, tzinfo=UTC)), (date(2020, 1, 1), None)):
            run = sources.begin(session, "costs", "subscriptions/s2", month=month, now=NOW - timedelta(minutes=5))
            sources.finish(session, run.id or 0, PullState.DONE, now=NOW, rows=7, calls=3, data_until=until, message="as it was")
    with serving(sqlite_store) as service:
        (costs,) = [one for one in service.client.get("/v1/sources").json()["items"] if "subscriptions/s2" in one["name"]]
    assert (costs["name"], costs["data_until"], costs["state"]) == ("costs · subscriptions/s2 2020-01", "2026-11-19T22:00:00Z", "ok")


def test_metrics_are_prometheus_metrics(sqlite_store: Store) -> None:
    filled(sqlite_store)
    with serving(sqlite_store) as service:
        text = service.client.get("/metrics").text
    lines = text.splitlines()
    assert 'meterbridge_month_cost{workspace="ws-east",deployment="llama-foundry",currency="USD",basis="best"} 1.5' in lines
    assert 'meterbridge_month_cost{workspace="ws-east",deployment="llama-foundry",currency="USD",basis="billed"} 1' in lines
    assert 'meterbridge_month_tokens{workspace="ws-east",deployment="llama-foundry",kind="input"} 500000' in lines
    assert 'meterbridge_source_throttles{kind="azure",source="costs · subscriptions/s1"} 1' in lines
    assert 'meterbridge_month_standing{workspace="ws-east",deployment="llama-foundry",currency="USD",standing="provisional"} 1' in lines
    headroom = next(line for line in lines if line.startswith('meterbridge_quota_headroom{pool="ws-east/llama-foundry:tokens_per_minute"'))
    assert headroom.endswith(" 400000")
    assert any(line.startswith('meterbridge_quota_limit{pool="ws-east/llama-foundry:tokens_per_minute"') for line in lines)
    judge = shutil.which("promtool")
    if judge is None:
        pytest.fail("promtool is missing: apt-get install prometheus")
    done = subprocess.run([judge, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr  # 3: only words on style
    assert "error" not in done.stderr.casefold()


def test_a_key_of_one_workspace_sees_its_own(sqlite_store: Store) -> None:
    from collector.auth import create_key

    filled(sqlite_store)
    with sqlite_store.write() as session:
        create_key(session, name="root", scope="admin", workspaces=[], now=NOW)
        _, secret = create_key(session, name="west", scope="read", workspaces=["ws-west"], now=NOW)
    with serving(sqlite_store) as service:
        said = {"Authorization": f"Bearer {secret}"}
        assert "ws-east" not in service.client.get("/metrics", headers=said).text
        assert service.client.get("/v1/sources", headers=said).json()["items"] == []
