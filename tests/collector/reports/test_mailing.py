"""A report as a mail, to a real server on this machine: what every mail program shows, with its files, of nobody else's figures."""

from __future__ import annotations

import csv
import email
import email.policy
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fpdf import FPDF
from playwright.sync_api import sync_playwright
from sqlmodel import Session, select

from collector import auth, reports, rulebook
from collector.reports import context, delivery
from collector.reports.letter import letter
from collector.settings import Settings
from collector.webhooks import sending
from collector.webhooks.setup import Telling
from models import ledger
from models.notices import Delivery, DeliveryStatus, Format, Receiver
from models.store import Store
from models.usage import Status
from tests import factories as make
from tests.collector.api.serving import serving
from tests.collector.reports.test_delivery import NOW, go, places, schedule, the_row
from tests.collector.webhooks.test_mail import Inbox, OnFreePort
from tests.models.test_ledger_context import budget

EVIL = '<script>alert(1)</script>\r\nBcc: evil@example.com"'


@contextmanager
def mail_server(**more: Any) -> Iterator[tuple[Inbox, int]]:
    inbox = Inbox()
    controller = OnFreePort(inbox, hostname="127.0.0.1", port=0, **more)
    controller.start()
    try:
        yield inbox, controller.port
    finally:
        controller.stop()


def world(session: Session) -> None:
    make.serverless(session)
    make.token_prices(session, "1.00", "2.00")
    for name, team, millions in (("shared", "risk", 2), ("shared", "search", 3), ("secret-of-search", "search", 4), ("of-risk", "risk", 1)):
        one = make.series(session, deployment=name, team=team)
        make.event(session, one, time=datetime(2026, 11, 10, 8, tzinfo=UTC), input_tokens=millions * 1_000_000, output_tokens=0)
        make.event(session, one, time=datetime(2026, 11, 4, 8, tzinfo=UTC), input_tokens=1_000_000, output_tokens=0)


def mailbox(session: Session) -> None:
    session.add(
        Receiver(id="rcv_1", name="board", url="mailto:cfo@example.com,coo@example.com", format=Format.EMAIL, workspaces=[], created_at=NOW, updated_at=NOW)
    )
    session.flush()


def mailed(store: Store, port: int) -> None:
    """Everything in the outbox, out of it."""
    telling = Telling.of(Settings(smtp_url=f"smtp://127.0.0.1:{port}", smtp_from="meterbridge@example.com"))
    dispatcher = telling.dispatcher(store, now=lambda: NOW)
    dispatcher.drain()
    dispatcher.stop()


def parsed(inbox: Inbox) -> EmailMessage:
    [envelope] = inbox.mails
    assert (envelope.mail_from, envelope.rcpt_tos) == ("meterbridge@example.com", ["cfo@example.com", "coo@example.com"])
    said = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert isinstance(said, EmailMessage)
    assert said.defects == []
    return said


def body_of(said: EmailMessage, kind: str) -> str:
    part = said.get_body((kind,))
    assert part is not None
    return str(part.get_content())


class Tags(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_mail_is_text_and_html_of_the_report_with_its_pdf_and_csv(store: Store) -> None:
    auth.cookie_secret(store)
    with store.write() as session:
        world(session)
        mailbox(session)
        schedule(session, attach=["pdf", "csv"])
    delivery.run(store, NOW, public_url="https://costs.example.com")
    with mail_server() as (inbox, port):
        mailed(store, port)
    said, row = parsed(inbox), the_row(store)
    assert said["Subject"] == "[meterbridge] Weekly cost report 2026-W46: 10.00 USD"
    assert [part.get_content_type() for part in said.walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "application/pdf",
        "text/csv",
    ]
    pdf, table = said.iter_attachments()
    assert (pdf.get_filename(), pdf.get_content()[:5]) == ("meterbridge-weekly-2026-W46.pdf", b"%PDF-")
    rows = list(csv.DictReader(io.StringIO(table.get_content())))
    assert sum(float(line["cost"]) for line in rows) == 10
    for kind in ("plain", "html"):
        text = body_of(said, kind)
        for expected in ("10.00 USD", "150.0 %", "secret-of-search", "https://costs.example.com/v1/reports/shared/", row["snapshot_id"], "until 2026-12-20"):
            assert expected in text, (kind, expected)
    with store.read() as session:
        (sent,) = session.exec(select(Delivery)).all()
        assert (sent.status, len(sent.body) < 4000) == (DeliveryStatus.DELIVERED, True)


def test_html_is_what_every_mail_program_shows(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "2.00")
        for number in range(40):
            one = make.series(session, deployment=f"{EVIL}{number}", team=EVIL)
            make.event(session, one, time=datetime(2026, 11, 10, 8, tzinfo=UTC), input_tokens=number * 1_000_000, output_tokens=0)
        bodies = [
            reports.keep(session, reports.weekly_draft(session, ledger.span_of(unit, None, now=NOW), ledger.Filters(), now=NOW), now=NOW)
            for unit in ("day", "week", "month")
        ]
        bodies.append(reports.keep(session, reports.close_draft(session, make.NOW.date().replace(day=1), ledger.Filters(), now=NOW), now=NOW))
    for body in bodies:
        made = letter(body, notes=[("Open it", "https://costs.example.com/x")])
        tags = Tags(made.html).found
        assert {tag for tag, _ in tags} <= {*["html", "head", "meta", "title", "body", "table", "tr", "td", "th", "h1", "h2", "p", "a", "br", "span"]}, body[
            "kind"
        ]
        names = {name for _, attributes in tags for name in attributes}
        assert not names & {"src", "srcset", "background", "class", "id"}
        assert not [name for name in names if name.startswith("on")]
        assert [attributes["href"] for _, attributes in tags if "href" in attributes] == ["https://costs.example.com/x"]
        assert not re.search(r"url\(|@import|expression\(|position:|float:", made.html)
        # Gmail cuts what is longer than 102 kB.
        assert (len(made.html.encode()) < 100_000, made.subject.isprintable()) == (True, True)


def test_a_long_table_of_a_mail_keeps_its_sum(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.token_prices(session, "1.00", "1.00")
        for number in range(20):
            make.foundry(session, f"llama-{number}")
            make.owner(session, deployment=f"llama-{number}", team=f"team-{number}", cost_center=f"cc-{number:02}")
            one = make.series(session, deployment=f"llama-{number}")
            make.event(session, one, time=datetime(2026, 10, 10, 8, tzinfo=UTC), input_tokens=1_000_000, output_tokens=0)
        body = reports.keep(session, reports.close_draft(session, date(2026, 10, 1), ledger.Filters(), now=NOW), now=NOW)
    said = letter(body).text
    assert re.search(r"^Together\s+20\.00 USD\s+20\.00 USD$", said, re.MULTILINE)
    assert "10 more are in the PDF and CSV" in said


def test_a_mail_has_the_tables_of_the_pdf(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        make.event(session, make.series(session, deployment="shared", team="risk"), time=datetime(2026, 11, 12, 8, tzinfo=UTC), status=Status.THROTTLED)
        budget(session, "all of search", "5", scope={"team": "search"})
        body = reports.keep(session, reports.weekly_draft(session, ledger.week_of("2026-W46", now=NOW), ledger.Filters(), now=NOW), now=NOW)
    made = letter(body)
    tables = {table.title for table in context.tables(body)}
    assert tables == {"Budgets", "Limits that were close"}
    # The week before three million tokens, this week ten million, at one dollar a million.
    for said in (made.text, re.sub(r"<[^>]+>", "\n", made.html)):
        flat = re.sub(r"\s+", " ", said).casefold()
        assert "from last week to this one last week 4.00 usd volume +6.00 usd" in flat
        assert "budget spent budget all of search" in flat
        assert "deployment or pool highest limit shared" in flat
        assert all(title.casefold() in flat for title in tables)


def test_it_fits_a_telephone(sqlite_store: Store, chromium: str, tmp_path: Path) -> None:
    with sqlite_store.write() as session:
        make.token_prices(session, "1.00", "2.00")
        one = make.series(session, deployment="a-name-without-any-place-to-break-it-" + "x" * 80, team="t" * 100)
        make.event(session, one, time=datetime(2026, 11, 10, 8, tzinfo=UTC), input_tokens=10**12, output_tokens=0)
        body = reports.keep(session, reports.weekly_draft(session, ledger.week_of(None, now=NOW), ledger.Filters(), now=NOW), now=NOW)
    (tmp_path / "mail.html").write_text(letter(body).html)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
        for width in (600, 390):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.goto((tmp_path / "mail.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_no_name_begins_a_header(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        make.event(session, make.series(session, team=EVIL), time=datetime(2026, 11, 10, 8, tzinfo=UTC), input_tokens=1_000_000, output_tokens=0)
        mailbox(session)
        schedule(session, name=EVIL, teams=[EVIL])
    delivery.run(sqlite_store, NOW)
    with mail_server() as (inbox, port):
        mailed(sqlite_store, port)
    said = parsed(inbox)
    assert (said["Bcc"], said.get_all("Subject")) == (None, [said["Subject"]])
    assert "Bcc: evil" in said["Subject"]
    assert "<script" not in body_of(said, "html")


def test_files_that_are_too_large_are_named_and_not_enclosed(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite_store.write() as session:
        world(session)
        mailbox(session)
        schedule(session)
    delivery.run(sqlite_store, NOW, public_url="https://costs.example.com")
    monkeypatch.setattr(sending, "MOST_ENCLOSED", 1000)
    with mail_server() as (inbox, port):
        mailed(sqlite_store, port)
    said = parsed(inbox)
    assert list(said.iter_attachments()) == []
    for kind in ("plain", "html"):
        assert "Not enclosed, as the mail would be too large: meterbridge-weekly-2026-W46.pdf" in " ".join(body_of(said, kind).split())


def test_a_server_that_takes_less_gets_less(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        world(session)
        mailbox(session)
        schedule(session)
    delivery.run(sqlite_store, NOW)
    with mail_server(data_size_limit=50_000) as (inbox, port):
        mailed(sqlite_store, port)
    said = parsed(inbox)
    assert list(said.iter_attachments()) == []
    assert "take them from the Reports page: snapshot weekly-2026-W46-" in " ".join(body_of(said, "plain").split())


@pytest.fixture
def inked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is written on a PDF: what is in the file are numbers of glyphs."""
    found: list[str] = []

    def noting(name: str) -> None:
        write = getattr(FPDF, name)

        def noted(paper: FPDF, *given: Any, **more: Any) -> Any:
            found.extend(str(one) for one in (*given, *more.values()) if isinstance(one, str))
            return write(paper, *given, **more)

        monkeypatch.setattr(FPDF, name, noted)

    for name in ("cell", "multi_cell", "text", "set_title"):
        noting(name)
    return found


def test_a_team_gets_nothing_of_another_in_mail_pdf_link_and_files(store: Store, tmp_path: Path, inked: list[str]) -> None:
    auth.cookie_secret(store)
    into = places(tmp_path)
    with store.write() as session:
        world(session)
        part = make.bill_part(session, landed_at=NOW)
        make.charge(session, part, make.charge_item(session, deployment="secret-of-search"), "777.77", charged_on=datetime(2026, 11, 10, tzinfo=UTC).date())
        for name, scope in (("all of it", {}), ("for search", {"team": "search"}), ("for risk", {"team": "risk"})):
            asked = {"name": f"Budget {name}", "scope": scope, "amount": "4321.00", "currency": "USD", "period": "month"}
            rulebook.create_budget(session, rulebook.BudgetBody.model_validate(asked), by=rulebook.Author("tests"), now=NOW)
        mailbox(session)
        schedule(session, teams=["risk"], attach=["pdf", "csv"], folder="risk")
    delivery.run(store, NOW, public_url="https://costs.example.com")
    go(store, NOW, into)
    with mail_server() as (inbox, port):
        mailed(store, port)
    said = parsed(inbox)
    assert "team risk" in said["Subject"]
    assert len(list(said.iter_attachments())) == 2
    shown = {"plain": body_of(said, "plain"), "html": body_of(said, "html"), "csv": str(list(said.iter_attachments())[1].get_content()), "pdf": " ".join(inked)}
    folder = tmp_path / "share" / "risk"
    shown |= {path.suffix: path.read_text() for path in folder.iterdir() if path.suffix != ".pdf" and "manifest" not in path.name}
    link = re.search(r"https://costs\.example\.com(/v1/reports/shared/\S+)", shown["plain"])
    assert link is not None
    with serving(store) as service:
        service.key("admin")
        shown |= {f"link {form}": service.client.get(link[1], params={"format": form}).text for form in ("html", "json", "csv")}
    assert {"plain", "html", "csv", "pdf", ".json", ".csv", ".html", "link html", "link json", "link csv"} == set(shown)
    for where, text in shown.items():
        assert "of-risk" in text, where
        for foreign in ("search", "777.77", "1,777", "all of it"):
            assert foreign not in text, (where, foreign)
    for path in (path for path in folder.iterdir() if "manifest" in path.name):
        assert (json.loads(path.read_text())["files"][0]["control_total"], "search" in path.read_text()) == (
            {"USD": json.loads(shown[".json"])["totals"][0]["cost"]},
            False,
        )
