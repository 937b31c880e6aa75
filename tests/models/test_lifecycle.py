"""When models end: as their inventory says, else as announced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from models import ledger
from models.lifecycle import retirement, retires_at
from models.resources import Mode, Route
from models.store import Store
from tests import factories as make

ANNOUNCED = datetime(2026, 6, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    ("model", "route", "at"),
    [
        ("Meta-Llama-3.1-8B-Instruct", Route.MARKETPLACE, ANNOUNCED),
        ("azureml://registries/azureml-meta/models/Llama-3.2-90B-Vision-Instruct/versions/2", Route.MARKETPLACE, ANNOUNCED),
        ("Llama-3.3-70B-Instruct", Route.MARKETPLACE, None),
        ("Meta-Llama-3.1-8B-Instruct", Route.COMPUTE, None),
        (None, Route.MARKETPLACE, None),
    ],
)
def test_what_is_announced(model: str | None, route: Route, at: datetime | None) -> None:
    found = retirement(model, route)
    assert (None if found is None else found.at) == at


def test_the_inventory_goes_before_the_announcement_and_instances_run_on(store: Store) -> None:
    later = datetime(2027, 1, 1, tzinfo=UTC)
    with store.write() as session:
        make.workspace_fact(session)
        for name, more in (("announced", {}), ("said", {"retires_at": later}), ("other", {"model": "Llama-3.3-70B-Instruct"})):
            make.serverless(session, name, **{"model": "Meta-Llama-3.1-8B-Instruct", **more})
        own = make.managed(session, model="Meta-Llama-3.1-8B-Instruct")
        assert retires_at(own, Route.COMPUTE) is None
        assert own.mode == Mode.MANAGED_COMPUTE
        assert retires_at(None, None) is None
    with store.read() as session:
        found = {one.name: one.retires_at for one in ledger.deployments(session, visible=None, now=make.NOW)}
        pools = {pool.deployment: pool.retires_at for pool in ledger.quotas(session, now=make.NOW)}
        audit = [(one.subject, one.detail) for one in ledger.onboarding(session, visible=None, now=make.NOW) if one.kind == "model_retires"]
        day_before = [one.detail for one in ledger.onboarding(session, visible=None, now=later - timedelta(days=1)) if one.subject == "ws-east/said"]
        since = [one.detail for one in ledger.onboarding(session, visible=None, now=later + timedelta(days=21, hours=20)) if one.subject == "ws-east/said"]
    assert found == {"announced": ANNOUNCED, "said": later, "other": None, "llama-online/blue": None}
    assert {name: pools[name] for name in ("announced", "said", "other")} == {"announced": ANNOUNCED, "said": later, "other": None}
    of = "Meta-Llama-3.1-8B-Instruct"
    assert audit == [("ws-east/announced", f"{of} retired 160 days ago, on 2026-06-13"), ("ws-east/said", f"{of} retires in 41 days, on 2027-01-01")]
    assert (day_before, since) == ([f"{of} retires in 1 day, on 2027-01-01"], [f"{of} retired 21 days ago, on 2027-01-01"])
