"""The Reports page: who gets what by itself, what sending now would send, once for a double click, and how it went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from sqlmodel import select

from collector.desk import Desk
from collector.files import Files
from collector.webhooks.setup import Telling
from dashboard.access import Viewer
from dashboard.app import create_dashboard, ledger_over
from models.alerts import AuditEntry
from models.notices import Delivery, DeliveryStatus, Format
from models.schedules import ReportDelivery, ReportSchedule
from models.store import Store
from tests.collector.reports.test_delivery import NOW, places, receiver, schedule, world
from tests.dashboard import fakes, serve
from tests.dashboard.test_pages_ops import SAME_SITE, client


def scheduled(store: Store) -> None:
    with store.write() as session:
        world(session)
        receiver(session)
        receiver(session, "rcv_2")
        schedule(session, receivers=["rcv_1", "rcv_2"], folder="board")


def test_a_button_pressed_twice_sends_one_report_with_its_line_in_the_audit_trail(store: Store) -> None:
    scheduled(store)
    browser = client(store, "admin")
    for _ in range(2):
        answer = browser.post("/act/send-report?id=sch_1&after=nothing&back=reports?schedule=sch_1", data={"period": "", "receiver": ""}, headers=SAME_SITE)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/dashboard/reports?schedule=sch_1")
    with store.read() as session:
        (made,) = session.exec(select(ReportDelivery)).all()
        assert (made.period, made.asked_by, made.folder_state, len(made.notices)) == ("2026-W46", "olga (k1)", "pending", 2)
        first = made.id
        assert [(row.actor, row.action) for row in session.exec(select(AuditEntry))] == [("olga (k1)", "send")]
    answer = browser.post(f"/act/send-report?id=sch_1&after={first}", data={"period": "2026-W45", "receiver": "rcv_2"}, headers=SAME_SITE)
    assert answer.status_code == 303
    with store.read() as session:
        rows = session.exec(select(ReportDelivery)).all()
        assert sorted((row.period, len(row.notices), row.folder_state) for row in rows) == [("2026-W45", 1, ""), ("2026-W46", 2, "pending")]


def test_what_cannot_be_sent_says_why(sqlite_store: Store) -> None:
    scheduled(sqlite_store)
    browser = client(sqlite_store, "admin")
    for said, status in (
        ({"id": "sch_1", "after": "x", "period": "2026-W47"}, 422),
        ({"id": "sch_1", "after": "x", "receiver": "rcv_9"}, 422),
        ({"id": "sch_9", "after": "x"}, 404),
        ({"id": "sch_1"}, 422),
    ):
        assert browser.post("/act/send-report", data=said, headers=SAME_SITE).status_code == status, said
    assert client(sqlite_store, "read").post("/act/send-report?id=sch_1&after=x", headers=SAME_SITE).status_code == 403


def test_a_preview_is_the_mail_and_sends_nothing(sqlite_store: Store) -> None:
    scheduled(sqlite_store)
    access = fakes.FakeAccess(keyless=True, viewers={})
    app = create_dashboard(open_ledger=ledger_over(sqlite_store.read), access=access, now=lambda: NOW, files=Files(sqlite_store, now=lambda: NOW))
    answer = app.server.test_client().get("/download/preview?schedule=sch_1")
    assert (answer.status_code, answer.headers["Content-Disposition"]) == (200, 'inline; filename="preview.html"')
    assert "5.00 USD" in answer.text
    assert "nothing was sent" in answer.text
    with sqlite_store.read() as session:
        assert session.exec(select(ReportDelivery)).all() == []


def test_the_page_shows_what_goes_where_and_how_it_went(sqlite_store: Store, chromium: str) -> None:
    scheduled(sqlite_store)
    client(sqlite_store, "admin").post("/act/send-report?id=sch_1&after=nothing", data={"period": "", "receiver": ""}, headers=SAME_SITE)
    with sqlite_store.write() as session:
        for one in session.exec(select(Delivery)):
            one.status = DeliveryStatus.DELIVERED if one.receiver_id == "rcv_1" else DeliveryStatus.FAILED
            one.last_error = "" if one.receiver_id == "rcv_1" else "answered 500"
            session.add(one)
    made = create_dashboard(
        open_ledger=ledger_over(sqlite_store.read), access=fakes.FakeAccess(keyless=True, viewers={}), now=lambda: NOW, desk=Desk(sqlite_store, now=lambda: NOW)
    )
    faults: list[Any] = []
    with serve.serving(serve.mount(made)) as url, sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
        page = browser.new_page(viewport={"width": 390, "height": 900})
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.goto(f"{url}/dashboard/reports?schedule=sch_1")
        page.wait_for_selector("text=Send now")
        text = page.inner_text("main")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        with page.expect_navigation():
            page.dblclick("button:has-text('Send now')")
        page.wait_for_selector("text=on their way")
    for said in ("rcv_1 (standard), rcv_2 (standard), folder board", "answered 500", "failed", "arrived", "waiting", "2026-W46"):
        assert said in text, said
    assert faults == []
    with sqlite_store.read() as session:
        assert len(session.exec(select(ReportDelivery)).all()) == 2


def test_a_schedule_is_made_changed_and_removed_on_the_page(sqlite_store: Store, tmp_path: Path, chromium: str) -> None:
    with sqlite_store.write() as session:
        world(session)
        receiver(session)
        receiver(session, "pager", Format.PAGERDUTY)
    telling = Telling(places=places(tmp_path))
    made = create_dashboard(
        open_ledger=ledger_over(sqlite_store.read),
        access=fakes.FakeAccess(keyless=True, viewers={}),
        now=lambda: NOW,
        desk=Desk(sqlite_store, now=lambda: NOW, telling=telling),
    )
    faults: list[Any] = []
    with serve.serving(serve.mount(made)) as url, sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.goto(f"{url}/dashboard/reports")
        form = page.locator("form[action*=create-schedule]")
        assert "rcv_1" in form.locator("select[name=receivers]").inner_text()
        assert "pager" not in form.locator("select[name=receivers]").inner_text()  # it opens incidents
        form.locator("input[name=name]").fill("Board, every Monday")
        form.locator("input[name=folder]").fill("/etc")
        form.locator("button").click()
        page.wait_for_selector("form[action*=create-schedule] .field-fault >> text=folder")
        form.locator("input[name=folder]").fill("board")
        form.locator("select[name=receivers]").select_option(["rcv_1"])
        form.locator("select[name=teams]").select_option(["search"])
        form.locator("input[name=time_zone]").fill("Europe/Berlin")
        form.locator("select[name=attach]").select_option("pdf, csv")
        form.locator("button").click()
        page.wait_for_selector("td >> text=Board, every Monday")
        said = page.inner_text("main")
        assert "weekly (Europe/Berlin)" in said
        assert "team search" in said
        page.click("summary:has-text('Edit')")
        changing = page.locator("form[action*=replace-schedule].fields")
        assert changing.locator("input[name=folder]").input_value() == "board"
        changing.locator("input[name=hours_after]").fill("9")
        changing.locator("select[name=report]").select_option("monthly")
        changing.locator("button").click()
        page.wait_for_selector("td >> text=monthly (Europe/Berlin)")
        with sqlite_store.read() as session:
            (row,) = session.exec(select(ReportSchedule)).all()
            kept = (row.name, row.report, row.time_zone, row.hours_after, row.teams, row.receivers, row.attach, row.folder, row.is_enabled)
        assert kept == ("Board, every Monday", "monthly", "Europe/Berlin", 9, ["search"], ["rcv_1"], ["pdf", "csv"], "board", True)
        page.click("button:has-text('Switch off')")
        page.wait_for_selector("td >> text=switched off")
        page.click("summary:has-text('Delete')")
        page.click("button:has-text('Yes, delete it')")
        page.wait_for_selector("text=Nothing is sent by itself yet")
    assert faults == []
    with sqlite_store.read() as session:
        assert [(row.actor, row.action) for row in session.exec(select(AuditEntry))] == [
            ("open mode", action) for action in ("create", "update", "update", "delete")
        ]


def test_a_key_that_only_reads_makes_no_schedule(sqlite_store: Store) -> None:
    scheduled(sqlite_store)
    browser = client(sqlite_store, "read")
    for what in ("create-schedule", "replace-schedule", "delete-schedule"):
        assert browser.post(f"/act/{what}?id=sch_1", data={"name": "x", "report": "weekly", "folder": "x"}, headers=SAME_SITE).status_code == 403
    with sqlite_store.read() as session:
        assert [row.name for row in session.exec(select(ReportSchedule)) if row.deleted_at is None] == ["board"]


def test_a_key_of_some_workspaces_sees_no_schedule(sqlite_store: Store) -> None:
    scheduled(sqlite_store)
    access = fakes.FakeAccess(keyless=False, viewers={"secret": Viewer("k1", "olga", "read", frozenset({"ws-east"}))})
    app = create_dashboard(open_ledger=ledger_over(sqlite_store.read), access=access, now=lambda: NOW, files=Files(sqlite_store, now=lambda: NOW))
    browser = app.server.test_client()
    cookie = browser.post("/login", data={"key": "secret"}, headers=SAME_SITE).headers["Set-Cookie"].partition(";")[0].partition("=")[2]
    browser.set_cookie("meterbridge_session", cookie, path="/")
    assert browser.get("/download/preview?schedule=sch_1").status_code != 200
    assert browser.get("/download/weekly?week=2026-W46&format=json").status_code == 200
