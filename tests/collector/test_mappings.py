"""What people say of meters comes in whole or not at all, each change with its line in the audit trail."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session, select

from collector.desk import Desk
from collector.mappings import MOST_IN_USE, MappingImport, MappingRow, end_mapping, import_mappings, put_mapping
from dashboard.access import Viewer
from models import ledger
from models.alerts import AuditEntry
from models.charges import ChargeClass, MeterKind
from models.errors import Forbidden, InvalidInput, NotFound
from models.meters import MappedKind, MeterMapping
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving

NOW = make.NOW
LATER = NOW + timedelta(hours=1)
HEADER = "meter,offer,kind,unit,valid_from,valid_to,note\n"
TWO = HEADER + "Llama mystery,,input,1M tokens,,,asked Azure\npaygo-*-hours,llama-offer,hosting,,2026-11-01,2026-12-01,\n"


def counts(done: MappingImport) -> tuple[int, int, int]:
    return len(done.added), done.unchanged, len(done.ended)


def imported(store: Store, content: str, *, now: datetime = NOW, replace: bool = False, name: str = "meters.csv") -> MappingImport:
    with store.write() as session:
        return import_mappings(session, content.encode(), name=name, now=now, author="ana", replace=replace)


def in_use(store: Store) -> list[tuple[Any, ...]]:
    with store.read() as session:
        return [(row.meter, row.offer, row.kind.value, row.unit, row.valid_from, row.valid_to, row.author) for row in ledger.meter_mappings(session)]


def test_a_file_is_taken_in_once_and_the_later_word_stands(store: Store) -> None:
    november, december = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    assert counts(imported(store, TWO)) == (2, 0, 0)
    assert counts(imported(store, TWO, now=LATER)) == (0, 2, 0)
    assert in_use(store) == [
        ("Llama mystery", "", "input", "1M tokens", None, None, "ana"),
        ("paygo-*-hours", "llama-offer", "hosting", "", november, december, "ana"),
    ]
    as_json = '{"meters": [{"meter": "LLAMA MYSTERY", "kind": "output"}, {"meter": "paygo-*-hours", "offer": "Llama-Offer", "kind": "other", "valid_from": "2026-11-15"}]}'
    assert counts(imported(store, as_json, now=LATER, name="meters.json")) == (2, 0, 1)
    assert [row[0] for row in in_use(store)] == ["paygo-*-hours", "LLAMA MYSTERY", "paygo-*-hours"]
    assert counts(imported(store, as_json, now=LATER, name="meters.json", replace=True)) == (0, 2, 1)
    with store.read() as session:
        told = [(row.actor, row.action, row.kind, (row.after or row.before or {})["meter"]) for row in session.exec(select(AuditEntry).order_by(AuditEntry.id))]  # type: ignore[arg-type]
        kept = [row.known_to for row in session.exec(select(MeterMapping).order_by(MeterMapping.id))]  # type: ignore[arg-type]
    assert told == [
        ("ana", "create", "meter-mapping", "Llama mystery"),
        ("ana", "create", "meter-mapping", "paygo-*-hours"),
        ("ana", "delete", "meter-mapping", "Llama mystery"),
        ("ana", "create", "meter-mapping", "LLAMA MYSTERY"),
        ("ana", "create", "meter-mapping", "paygo-*-hours"),
        ("ana", "delete", "meter-mapping", "paygo-*-hours"),
    ]
    assert kept == [LATER, LATER, None, None]


def test_what_was_overruled_since_is_said_anew_by_saying_it_again(sqlite_store: Store) -> None:
    first = HEADER + "m,,input,,,2026-11-10,\n"
    imported(sqlite_store, first)
    imported(sqlite_store, HEADER + "m,,output,,2026-11-01,,\n", now=LATER)
    assert counts(imported(sqlite_store, first, now=LATER + timedelta(hours=1))) == (1, 0, 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("m,,inputs,,,,\n", "meters.csv line 2: kind is 'inputs'; it must be one of input, output, cached_input, fine_tuned_input"),
        (",,input,,,,\n", "meters.csv line 2: meter is empty; write the meter as the bill does"),
        ("m,,hosting,1K tokens,,,\n", "meters.csv line 2: unit is '1K tokens'; a meter of kind hosting has 1 hour"),
        ("m,,other,1 hour,,,\n", "a meter of kind other has none"),
        ("m,,input,,2026-11-01T06:00:00Z,,\n", "valid_from (2026-11-01T06:00:00Z) is not a UTC midnight"),
        ("m,,input,,2026-11-02,2026-11-02,\n", "valid_to (2026-11-02T00:00:00Z) is not after valid_from"),
        ("m,,input,,,2026-11-02,\nM,,output,,2026-11-01,,\n", "meters.csv line 3: maps the same meter as meters.csv line 2 at the same time"),
        ("", "meters.csv has no mappings of meters in it"),
    ],
)
def test_a_file_with_a_fault_changes_nothing(sqlite_store: Store, lines: str, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        imported(sqlite_store, HEADER + lines)
    assert message in refused.value.message
    assert in_use(sqlite_store) == []


def test_there_are_at_most_so_many_in_use(sqlite_store: Store) -> None:
    with pytest.raises(InvalidInput, match="write patterns"):
        imported(sqlite_store, HEADER + "".join(f"m{number},,input,,,,\n" for number in range(MOST_IN_USE + 1)))
    assert in_use(sqlite_store) == []


def test_one_that_is_not_in_use_cannot_be_taken_back(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        row = put_mapping(session, MappingRow("m", MappedKind.INPUT), now=NOW, author="ana")
        end_mapping(session, row.id or 0, now=LATER, author="ben")
        with pytest.raises(NotFound, match="no mapping"):
            end_mapping(session, row.id or 0, now=LATER, author="ben")


# -- what is billed by which meter ---------------------------------------------------------------


def world(session: Session) -> None:
    """Three meters of November's bill and one of a spring long gone; a plan that was subscribed to for nothing is none."""
    part = make.bill_part(session, landed_at=NOW - timedelta(days=1))
    mystery = make.charge_item(session, meter_kind=MeterKind.OTHER, meter_name="Llama mystery", offer_id="llama-offer", unit="1M", unit_size=None)
    make.charge(session, part, mystery, "2.50", charged_on=date(2026, 11, 3))
    make.charge(session, part, mystery, "0.25", charged_on=date(2026, 11, 4))
    make.charge(session, part, mystery, "0", charged_on=date(2026, 11, 5), charge_type="Purchase")
    make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, meter_name="Llama Inp", unit="1 Barrel", unit_size=None), "7")
    make.charge(session, part, make.charge_item(session, ChargeClass.FOUNDRY, meter_name="Llama Outp"), "3")
    spring = make.bill_part(session, period_start=date(2026, 3, 1), landed_at=NOW - timedelta(days=1))
    for name, kind in (("Llama old", MeterKind.OTHER), ("Llama Inp", MeterKind.INPUT)):
        item = make.charge_item(session, ChargeClass.FOUNDRY, kind, meter_name=name)
        make.charge(session, spring, item, "1", charged_on=date(2026, 3, 5))


def told(session: Session) -> list[tuple[Any, ...]]:
    found = ledger.meters(session, now=NOW)
    return [(use.meter, use.kind.value, str(use.amount), use.rows, use.last_on.day, use.problem and use.problem.kind) for use in found.uses]


def test_meters_that_nobody_can_tell_come_first_with_their_money(store: Store) -> None:
    with store.write() as session:
        world(session)
    with store.read() as session:
        assert told(session) == [
            ("Llama Inp", "input", "7", 1, 10, "unknown_unit"),
            ("Llama mystery", "other", "2.75", 2, 4, "unmapped_meter"),
            ("Llama old", "other", "1", 1, 5, "unmapped_meter"),
            ("Llama Outp", "input", "3", 1, 10, None),
        ]
        problems = [
            (one.kind, one.subject, str(one.amount), one.count) for one in ledger.problems(session, visible=None, now=NOW) if "import meters" in one.remedy
        ]
    assert problems == [
        ("unknown_unit", "1 Barrel (Llama Inp)", "7", 1),
        ("unmapped_meter", "Llama mystery (llama-offer)", "2.75", 2),
        ("unmapped_meter", "Llama old", "1", 1),
    ]


def test_they_are_gone_once_somebody_said_what_they_are(store: Store) -> None:
    with store.write() as session:
        world(session)
    imported(store, HEADER + "Llama mystery,llama-offer,output,,,,\nLlama old,,training,,,,\nLlama Inp,,input,1M tokens,,,\n", now=NOW - timedelta(minutes=1))
    with store.read() as session:
        assert told(session) == [
            ("Llama Inp", "input", "7", 1, 10, None),
            ("Llama mystery", "output", "2.75", 2, 4, None),
            ("Llama old", "training", "1", 1, 5, None),
            ("Llama Outp", "input", "3", 1, 10, None),
        ]
        assert not [one for one in ledger.problems(session, visible=None, now=NOW) if one.kind in ("unmapped_meter", "unknown_unit")]
    # A meter whose own text misleads is told again, with its money.
    imported(store, HEADER + "Llama Outp,,other,,,,\n", now=NOW - timedelta(seconds=1))
    with store.read() as session:
        (one,) = [one for one in ledger.problems(session, visible=None, now=NOW) if one.kind == "unmapped_meter"]
    assert (one.subject, str(one.amount)) == ("Llama Outp", "3")


# -- over HTTP and from the page -----------------------------------------------------------------


def test_the_api_says_lists_and_takes_back(sqlite_store: Store) -> None:
    with serving(sqlite_store) as service:
        the_api_does(service)


def the_api_does(service: Service) -> None:
    with service.store.write() as session:
        world(session)
    open_ones = [one for one in service.client.get("/v1/meters").json()["items"] if one["problem"] == "unmapped_meter"]
    assert [(one["meter"], one["offer"], one["billed_cost"]) for one in open_ones] == [("Llama mystery", "llama-offer", "2.75"), ("Llama old", None, "1")]
    made = service.client.post("/v1/meters/mappings", json={"meter": "llama *", "kind": "output", "note": "asked Azure"})
    assert made.status_code == 201
    assert [one["kind"] for one in service.client.get("/v1/meters").json()["items"]] == ["output"] * 4
    trail = service.client.get("/v1/audit-trail?kind=meter-mapping").json()["items"]
    assert [(one["action"], one["object_id"], one["after"]["meter"]) for one in trail] == [("create", made.json()["id"], "llama *")]
    assert service.client.delete(f"/v1/meters/mappings/{made.json()['id']}").status_code == 204
    assert service.client.get("/v1/meters/mappings").json()["items"] == []
    assert service.client.delete(f"/v1/meters/mappings/{made.json()['id']}").status_code == 404
    refused = service.client.post("/v1/meters/mappings", json={"meter": "m", "kind": "hosting", "unit": "1K tokens"})
    assert (refused.status_code, "a meter of kind hosting has 1 hour" in refused.text) == (422, True)


def test_the_form_says_and_takes_back(sqlite_store: Store) -> None:
    desk = Desk(sqlite_store, now=lambda: NOW)
    admin = Viewer("key_1", "ana", "admin", None)
    desk("map-meter", {"meter": "Llama mystery", "offer": "", "kind": "fine_tuned_input", "unit": "1M tokens", "valid_from": "", "note": ""}, admin)
    assert in_use(sqlite_store) == [("Llama mystery", "", "fine_tuned_input", "1M tokens", None, None, "ana")]
    with pytest.raises(InvalidInput) as refused:
        desk("map-meter", {"meter": "Llama mystery", "kind": ""}, admin)
    assert refused.value.field == "kind"
    with pytest.raises(Forbidden):
        desk("unmap-meter", {"id": "1"}, Viewer("key_2", "ben", "read", None))
    desk("unmap-meter", {"id": "1"}, admin)
    assert in_use(sqlite_store) == []
