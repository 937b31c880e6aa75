"""Reports that go out by themselves: each period once, to whom it is for, and with nothing but their own figures."""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, col, select

from collector import auth, reports
from collector.azure.client import AzureSettings
from collector.azure.simulator import InventedWorld, Simulator
from collector.reports import delivery, links
from collector.reports.places import Places
from collector.webhooks.setup import Telling
from models import ledger
from models.alerts import AuditEntry
from models.errors import Conflict, NotFound
from models.notices import Delivery, Format, Receiver
from models.schedules import ReportDelivery, ReportSchedule
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import bearer, serving

NOW = make.NOW  # a Friday of W47
MONDAY = datetime(2026, 11, 16, tzinfo=UTC)


def receiver(session: Session, name: str = "rcv_1", form: Format = Format.STANDARD) -> None:
    session.add(Receiver(id=name, name=name, url="http://127.0.0.1:9/", format=form, workspaces=[], created_at=NOW, updated_at=NOW))
    session.flush()


def schedule(session: Session, **said: Any) -> str:
    given: dict[str, Any] = {"id": "sch_1", "name": "board", "report": "weekly", "time_zone": "UTC", "hours_after": 7, "workspaces": [], "teams": []}
    given |= {"receivers": ["rcv_1"], "created_at": MONDAY - timedelta(days=2), "updated_at": MONDAY}
    session.add(ReportSchedule(**(given | said)))
    session.flush()
    return str((given | said)["id"])


def world(session: Session) -> None:
    make.serverless(session)
    make.token_prices(session, "1.00", "2.00")
    make.event(session, make.series(session, team="search"), time=datetime(2026, 11, 10, 8, tzinfo=UTC), input_tokens=3_000_000, output_tokens=0)
    make.event(session, make.series(session, team="risk"), time=datetime(2026, 11, 11, 8, tzinfo=UTC), input_tokens=2_000_000, output_tokens=0)


def the_row(store: Store) -> dict[str, Any]:
    with store.read() as session:
        (row,) = session.exec(select(ReportDelivery)).all()
        return row.model_dump()


def the_notice(store: Store) -> str:
    with store.read() as session:
        (notice,) = session.exec(select(Delivery)).all()
        return notice.body


def places(tmp_path: Path, azure: Simulator | None = None) -> Places:
    """Reports may go below ``share``; into containers of the simulated Azure where there is one."""
    (tmp_path / "share").mkdir(exist_ok=True)
    arm = "https://management.azure.com" if azure is None else azure.arm_url
    return Places(tmp_path / "share", AzureSettings(arm, "https://prices.azure.com", "static:for-arm;for-storage", (), ()))


def go(store: Store, at: datetime, into: Places) -> None:
    """Both jobs, at that moment."""
    delivery.run(store, at)
    delivery.write_files(store, into, now=at)


def sent(store: Store) -> list[tuple[str, str]]:
    with store.read() as session:
        return [(row.slot, row.period) for row in session.exec(select(ReportDelivery).order_by(col(ReportDelivery.made_at)))]


def test_a_week_is_sent_once_when_it_is_due(store: Store, tmp_path: Path) -> None:
    into = places(tmp_path)
    with store.write() as session:
        world(session)
        receiver(session)
        schedule(session, folder="finance/weekly")
    go(store, MONDAY + timedelta(hours=6, minutes=59), into)
    assert sent(store) == []
    for hours in (7, 8, 30):
        go(store, MONDAY + timedelta(hours=hours), into)
    assert sent(store) == [("weekly-2026-W46", "2026-W46")]
    row, said = the_row(store), json.loads(the_notice(store))
    assert (said["type"], said["data"]["totals"][0]["cost"], row["folder_state"]) == ("report.ready", "5", "written")
    folder = tmp_path / "share" / "finance" / "weekly"
    manifest = json.loads((folder / f"meterbridge-{row['snapshot_id']}.manifest.json").read_text())
    assert [file["name"] for file in manifest["files"]] == [f"meterbridge-{row['snapshot_id']}.{form}" for form in ("json", "csv", "html", "pdf")]
    assert len(list(folder.iterdir())) == 5
    for file in manifest["files"]:
        content = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"], file["control_total"]) == (len(content), hashlib.sha256(content).hexdigest(), {"USD": "5"})


def test_each_day_is_sent_once_without_waiting_for_its_bill_and_after_a_stop_late(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        part = make.bill_part(session, landed_at=MONDAY)
        make.charge(session, part, make.charge_item(session), "3.00", charged_on=date(2026, 11, 10))
        receiver(session)
        schedule(session, report="daily", created_at=MONDAY - timedelta(days=9))
    delivery.run(sqlite_store, MONDAY + timedelta(hours=7))
    assert sorted(sent(sqlite_store)) == [(f"daily-{day}", day) for day in ("2026-11-12", "2026-11-13", "2026-11-14", "2026-11-15")]
    for hours in (24, 30, 31, 32, 54, 55, 56):
        delivery.run(sqlite_store, MONDAY + timedelta(hours=hours))
    assert sorted(sent(sqlite_store))[4:] == [(f"daily-{day}", day) for day in ("2026-11-16", "2026-11-17")]


@pytest.mark.parametrize(("report", "hours", "first"), [("weekly", 200, "2026-W46"), ("daily", 30, "2026-11-17"), ("monthly", 240, "2026-10")])
def test_one_that_is_sent_long_after_its_end_is_sent_too(sqlite_store: Store, report: str, hours: int, first: str) -> None:
    """Its next period has ended by then: the last complete one is not the one whose time has come."""
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        schedule(session, report=report, hours_after=hours, created_at=datetime(2026, 10, 31, tzinfo=UTC))
    with sqlite_store.read() as session:
        row = session.get_one(ReportSchedule, "sch_1")
        end = delivery.period_of(row, first, now=NOW + timedelta(days=30))[1].end
    delivery.run(sqlite_store, end + timedelta(hours=hours) - timedelta(minutes=1))
    assert first not in [period for _, period in sent(sqlite_store)]
    delivery.run(sqlite_store, end + timedelta(hours=hours))
    assert first in [period for _, period in sent(sqlite_store)]


def test_a_schedule_that_becomes_one_of_another_report_sends_that_too(sqlite_store: Store) -> None:
    """The month of the cost report and the month of the close pack have one name."""
    into = datetime(2026, 11, 3, tzinfo=UTC)
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        schedule(session, report="monthly", created_at=datetime(2026, 10, 30, tzinfo=UTC))
    for report in ("monthly", "close", "monthly", "close"):
        with sqlite_store.write() as session:
            row = session.get_one(ReportSchedule, "sch_1")
            row.report = report
            session.add(row)
        into += timedelta(hours=1)
        delivery.run(sqlite_store, into)
    assert sent(sqlite_store) == [("monthly-2026-10", "2026-10"), ("close-2026-10", "2026-10")]


def test_what_was_sent_under_the_name_of_its_period_alone_is_not_sent_again(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        schedule(session)
    delivery.run(sqlite_store, MONDAY + timedelta(hours=7))
    with sqlite_store.write() as session:
        row = session.exec(select(ReportDelivery)).one()
        row.slot = "2026-W46"  # as the version before named it
        session.add(row)
    delivery.run(sqlite_store, MONDAY + timedelta(hours=8))
    assert sent(sqlite_store) == [("2026-W46", "2026-W46")]


def test_processes_that_race_send_once(store: Store) -> None:
    with store.write() as session:
        world(session)
        receiver(session)
        name = schedule(session)
    start = threading.Barrier(3)

    def go() -> None:
        start.wait()
        delivery.send_due(store, name, now=NOW)

    racing = [threading.Thread(target=go) for _ in range(3)]
    for one in racing:
        one.start()
    for one in racing:
        one.join()
    delivery.send_due(store, name, now=NOW)
    with store.read() as session:
        assert (len(session.exec(select(ReportDelivery)).all()), len(session.exec(select(Delivery)).all())) == (1, 1)


def test_asked_for_by_many_at_once_in_the_same_words_it_is_one_report(store: Store) -> None:
    with store.write() as session:
        world(session)
        receiver(session)
        name = schedule(session)
    start = threading.Barrier(3)
    made: list[str] = []

    def ask() -> None:
        start.wait()
        made.append(delivery.send_now(store, name, delivery.Asked("olga", "the-same-click"), now=NOW))

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert len(set(made)) == 1
    assert len(made) == 3
    with store.read() as session:
        assert (len(session.exec(select(ReportDelivery)).all()), len(session.exec(select(Delivery)).all())) == (1, 1)


def test_others_write_while_the_figures_are_being_made(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of a large installation takes seconds; ingest must not wait for it."""
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        name = schedule(session)
    weekly = ledger.weekly
    written: list[bool] = []

    def meanwhile(*asked: Any, **more: Any) -> ledger.WeeklyReport:
        with sqlite_store.write() as session:
            receiver(session, f"rcv_meanwhile_{len(written)}")
        written.append(True)
        return weekly(*asked, **more)

    monkeypatch.setattr(ledger, "weekly", meanwhile)
    assert delivery.send_due(sqlite_store, name, now=NOW) is not None
    reports.weekly_snapshot(sqlite_store, ledger.week_of("2026-W46", now=NOW), ledger.Filters(), now=NOW)
    assert len(written) == 2


def test_a_schedule_that_was_limited_meanwhile_sends_nothing_of_before(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        name = schedule(session)
        row = session.get_one(ReportSchedule, name)
        draft = delivery.drafted(session, row, now=NOW)
        row.teams = ["team-b"]
        with pytest.raises(Conflict, match="changed while its report was being made"):
            delivery.send(session, row, draft, slot="weekly-2026-W46", now=NOW)


def test_a_schedule_whose_zone_changes_meanwhile_sends_nothing_of_the_other_week(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A week has the same name in every zone and other hours: the draft knows whose it is."""
    with sqlite_store.write() as session:
        world(session)
        # 23:30 on Sunday at UTC is Monday in Berlin: of another week there.
        make.event(session, make.series(session, team="search"), time=datetime(2026, 11, 15, 23, 30, tzinfo=UTC), input_tokens=1_000_000, output_tokens=0)
        receiver(session)
        name = schedule(session)
    drafted = delivery.drafted
    moved: list[str] = []

    def meanwhile(*asked: Any, **more: Any) -> Any:
        draft = drafted(*asked, **more)
        if not moved:
            with sqlite_store.write() as session:
                row = session.get_one(ReportSchedule, name)
                row.time_zone = "Europe/Berlin"
                session.add(row)
            moved.append(name)
        return draft

    monkeypatch.setattr(delivery, "drafted", meanwhile)
    delivery.run(sqlite_store, NOW)
    assert sent(sqlite_store) == []
    with sqlite_store.read() as session:
        assert "was changed while its report was being made" in session.get_one(ReportSchedule, name).error
    delivery.run(sqlite_store, NOW + timedelta(minutes=5))
    assert sent(sqlite_store) == [("weekly-2026-W46", "2026-W46")]
    assert json.loads(the_notice(sqlite_store))["data"]["totals"][0]["cost"] == "5"
    with sqlite_store.read() as session:
        assert session.get_one(ReportSchedule, name).error == ""


def test_a_week_waits_for_its_bill_and_then_names_the_missing_days(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        part = make.bill_part(session, landed_at=MONDAY)
        make.charge(session, part, make.charge_item(session), "3.00", charged_on=date(2026, 11, 10))
        receiver(session)
        schedule(session)
    delivery.run(sqlite_store, MONDAY + timedelta(hours=71))
    assert sent(sqlite_store) == []
    delivery.run(sqlite_store, MONDAY + timedelta(hours=72))
    assert sent(sqlite_store) == [("weekly-2026-W46", "2026-W46")]
    assert "Not billed yet: 2026-11-11" in json.loads(the_notice(sqlite_store))["data"]["why"]


def test_a_team_gets_its_own_figures_only(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        schedule(session, teams=["risk"])
    delivery.run(sqlite_store, NOW)
    assert [total["cost"] for total in json.loads(the_notice(sqlite_store))["data"]["totals"]] == ["2"]
    assert "search" not in the_notice(sqlite_store)


def test_a_folder_that_is_away_is_tried_again(sqlite_store: Store, tmp_path: Path) -> None:
    into = places(tmp_path)
    into.root.rmdir()
    with sqlite_store.write() as session:
        world(session)
        schedule(session, receivers=[], folder=".")
    go(sqlite_store, NOW, into)
    row = the_row(sqlite_store)
    assert (row["folder_state"], row["folder_error"]) == ("pending", f"there is no folder {into.root} (METERBRIDGE_REPORTS_FOLDER)")
    into.root.mkdir()
    go(sqlite_store, NOW + timedelta(minutes=5), into)
    row = the_row(sqlite_store)
    assert (row["folder_state"], len(list(into.root.iterdir()))) == ("written", 5)


def test_a_container_gets_the_files_and_its_manifest_last_and_the_same_again(store: Store, tmp_path: Path) -> None:
    with Simulator(InventedWorld(1, date(2026, 9, 28), date(2026, 10, 4), subscription_count=1), lambda: NOW) as azure:
        azure.storage.token = "for-storage"
        into = places(tmp_path, azure)
        with store.write() as session:
            world(session)
            schedule(session, receivers=[], container=f"{azure.blob_url}/finance/weekly")
        go(store, NOW, into)
        assert (the_row(store)["container_state"], "make the container first" in the_row(store)["container_error"]) == ("pending", True)
        azure.storage.containers.add("finance")
        go(store, NOW + timedelta(minutes=5), into)
        row = the_row(store)
        base = f"finance/weekly/meterbridge-{row['snapshot_id']}"
        assert (row["container_state"], list(azure.storage.blobs)) == (
            "written",
            [f"{base}.{form}" for form in ("json", "csv", "html", "pdf", "manifest.json")],
        )
        before = dict(azure.storage.blobs)
        with store.write() as session:
            # A process that died before it could say that they stand.
            again = session.get_one(ReportDelivery, row["id"])
            again.container_state = "pending"
            session.add(again)
        go(store, NOW + timedelta(minutes=10), into)
        assert (azure.storage.blobs, azure.storage.writes, the_row(store)["container_attempts"]) == (before, 10, 3)


def test_a_link_opens_its_snapshot_until_it_ends(sqlite_store: Store) -> None:
    auth.cookie_secret(sqlite_store)
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        schedule(session)
    delivery.run(sqlite_store, NOW)
    row, path = the_row(sqlite_store), json.loads(the_notice(sqlite_store))["data"]["path"]
    with sqlite_store.read() as session:
        token = path.rpartition("/")[2]
        assert links.snapshot_of(session, token, now=NOW + timedelta(days=29)).id == row["snapshot_id"]
        for wrong, at in ((token, NOW + timedelta(days=30)), (token[:-1] + ("0" if token[-1] != "0" else "1"), NOW), ("x", NOW), ("", NOW), ("é.1.é", NOW)):
            with pytest.raises(NotFound, match="opens nothing"):
                links.snapshot_of(session, wrong, now=at)
    with serving(sqlite_store) as service:
        service.key("admin")
        opened = service.client.get(path, params={"format": "json"})
        refused = [service.client.get(where).status_code for where in (f"{path}x", "/v1/reports/weekly", "/v1/report-schedules")]
    assert (opened.status_code, opened.json()["snapshot"]["id"]) == (200, row["snapshot_id"])
    assert refused == [404, 401, 401]


def test_schedules_over_http(sqlite_store: Store, tmp_path: Path) -> None:
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        receiver(session, "pager", Format.PAGERDUTY)
    with serving(sqlite_store, telling=Telling(places=places(tmp_path))) as service:
        admin, read = bearer(service.key("admin")), bearer(service.key("read"))
        body = {"name": "finance", "report": "close", "receivers": ["rcv_1"], "folder": str(tmp_path / "share" / "close")}
        made = service.client.post("/v1/report-schedules", json=body, headers=admin)
        where = f"/v1/report-schedules/{made.json()['id']}"
        assert (made.status_code, made.json()["enabled"], made.json()["folder"]) == (201, True, "close")
        assert service.client.post("/v1/report-schedules", json=body, headers=read).status_code == 403
        for wrong in (
            {"receivers": ["pager"]},
            {"receivers": ["nobody"]},
            {"folder": "/etc"},
            {"folder": "a/../../b"},
            {"container": "https://evil.example/c"},
            {"container": "https://acct.blob.core.windows.net/c?sv=1&sig=secret"},
            {"attach": ["exe"]},
            {"time_zone": "Europe/Berlin"},
            {"receivers": [], "folder": ""},
        ):
            assert service.client.post("/v1/report-schedules", json=body | wrong, headers=admin).status_code in {400, 422}, wrong
        seen = service.client.get(f"{where}/preview", headers=read).json()
        assert (seen["period"], [one["name"] for one in seen["receivers"]], seen["folder"]) == ("2026-10", ["rcv_1"], "close")
        assert "<h1" in service.client.get(f"{where}/preview?format=html", headers=read).text
        assert service.client.get(f"{where}/deliveries", headers=read).json()["items"] == []
        now = service.client.post(f"{where}/send", headers=admin)
        assert (now.status_code, now.json()["period"], now.json()["notices"][0]["status"]) == (202, "2026-10", "pending")
        listed = service.client.get(f"{where}/deliveries", headers=read).json()["items"]
        assert [one["id"] for one in listed] == [now.json()["id"]]
        asked = {"request": "once-only", "receivers": ["rcv_1"], "period": "2026-09"}
        twice = [service.client.post(f"{where}/send", headers=admin, json=asked).json() for _ in range(2)]
        assert twice[0] == twice[1]
        assert (twice[0]["period"], twice[0]["slot"], twice[0]["folder"], len(twice[0]["notices"])) == ("2026-09", "now-once-only", None, 1)
        assert "a admin key" in twice[0]["asked_by"] or "first" in twice[0]["asked_by"]
        refused: list[dict[str, Any]] = [{"period": "2026-11"}, {"period": "x"}, {"receivers": ["pager"]}, {"receivers": []}, {"request": "a b"}, {"who": 1}]
        for said in refused:
            assert service.client.post(f"{where}/send", headers=admin, json=said).status_code == 422, said
        assert service.client.post(f"{where}/send", headers=read, json=asked).status_code == 403
        with sqlite_store.read() as session:
            assert [row.action for row in session.exec(select(AuditEntry).where(AuditEntry.kind == "report_schedule"))] == ["create", "send", "send"]
        changed = service.client.put(where, json=body | {"name": "board", "enabled": False}, headers=admin).json()
        assert (changed["name"], changed["enabled"]) == ("board", False)
        assert service.client.delete(where, headers=admin).status_code == 204
        assert service.client.get("/v1/report-schedules", headers=admin).json()["items"] == []
        assert service.client.get(f"{where}/deliveries", headers=admin).status_code == 404
