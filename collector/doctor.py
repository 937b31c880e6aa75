"""``meterbridge doctor``: looks at everything that must be right, and says the fix beside each finding."""

from __future__ import annotations

import shutil
import smtplib
import sqlite3
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa
from sqlmodel import col, select

from collector.settings import Settings
from collector.webhooks import sending
from models import ledger
from models.errors import DomainError
from models.notices import Format, Receiver
from models.periods import to_the_second
from models.store import Store, head_revision

Level = Literal["ok", "warning", "failure"]
_LEAST_DISK = 1024**3
_STALE_USAGE = timedelta(days=2)
_STALE_BILL = timedelta(days=4)
# Seconds: a person waits before the screen.
_LONGEST_WAIT = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``fix`` says what to do where it is not ok."""

    level: Level
    what: str
    fix: str = ""

    def line(self) -> str:
        mark = {"ok": "ok      ", "warning": "warning ", "failure": "FAILURE "}[self.level]
        return f"{mark} {self.what}" + (f"\n          fix: {self.fix}" if self.fix else "")


def examine(store: Store, settings: Settings, *, now: datetime, is_service_running: bool, deploy_permissions: bool = False) -> Iterator[Finding]:
    """Findings in order of how much depends on them."""
    try:
        revision = store.revision()
    except DomainError as fault:
        yield Finding("failure", f"database {store.name}: {fault.message}", "start the database, or correct METERBRIDGE_DATABASE_URL")
        return
    if revision != head_revision():
        yield Finding("failure", f"database {store.name} is at schema {revision or 'none'}, this software needs {head_revision()}", "meterbridge migrate")
        return
    yield Finding("ok", f"database {store.name}, schema {revision}")
    yield from _storage(store)
    yield from _clock(store, now)
    if store.is_sqlite:
        running = "a service is running on it" if is_service_running else "no service is running on it"
        yield Finding("ok", running)
    yield from _data(store, now)
    yield from _keys(store, settings)
    yield from _reports(store, settings, now=now)
    yield from _azure(store, settings, now=now, deploy_permissions=deploy_permissions)


def _reports(store: Store, settings: Settings, *, now: datetime) -> Iterator[Finding]:
    """Whether what schedules of reports send can arrive: the mail server, the folders, the containers."""
    # The library that draws PDFs takes its time to load.
    from collector.reports import schedules  # noqa: PLC0415
    from collector.reports.places import Places  # noqa: PLC0415

    with store.read() as session:
        mailboxes = sorted(row.name for row in session.exec(select(Receiver).where(col(Receiver.deleted_at).is_(None))) if row.format is Format.EMAIL)
        standing = [row for row in schedules.standing(session) if row.is_enabled]
        session.expunge_all()
    yield from _mail(settings, mailboxes)
    for schedule in standing:
        if schedule.error:
            yield Finding("failure", f"the last report of schedule {schedule.name!r} could not be made: {schedule.error}", "send it again on the Reports page")
    if any(row.receivers for row in standing) and not settings.public_url:
        yield Finding("warning", "reports go out without a link", "METERBRIDGE_PUBLIC_URL: the address at which people open meterbridge")
    places = Places.of(settings)
    folders = sorted({row.folder for row in standing if row.folder})
    # A folder that the operator named must be there before anybody asks for it; our own is made when it is needed.
    for folder in folders or ([""] if settings.reports_folder is not None else []):
        where = places.root / folder
        try:
            places.probe(folder)
        except DomainError as fault:
            yield Finding(
                "failure",
                f"reports cannot be written: {fault.message}",
                f"make {places.root} and let the service's user write there, or set METERBRIDGE_REPORTS_FOLDER",
            )
        except OSError as fault:
            yield Finding("failure", f"reports cannot be written into {where}: {fault.strerror or fault}", f"let the service's user write into {where}")
        else:
            yield Finding("ok", f"reports can be written into {where}")
    for container in sorted({row.container for row in standing if row.container}):
        try:
            places.probe_container(container, now=now)
        except DomainError as fault:
            yield Finding("failure", f"reports cannot be written into {container}: {fault.message}", _STORAGE_FIX)
        else:
            yield Finding("ok", f"reports can be written into {container}")


_STORAGE_FIX = (
    "make the container, let this machine reach it, and give the service's identity the role: "
    'az role assignment create --role "Storage Blob Data Contributor" --assignee PRINCIPAL_ID --scope STORAGE_ACCOUNT_ID'
)


def _mail(settings: Settings, mailboxes: Sequence[str]) -> Iterator[Finding]:
    """The mail server takes us, as far as can be told without sending a mail."""
    try:
        mail = sending.Mail.parse(settings.smtp_url, settings.smtp_from)
    except DomainError as fault:
        yield Finding("failure", f"no mail can be sent: {fault.message}", "correct the setting that is named")
        return
    if mail is None:
        if mailboxes:
            what = f"receivers that are mailboxes ({', '.join(mailboxes[:5])}) get nothing: no mail server is set up"
            yield Finding("failure", what, "set METERBRIDGE_SMTP_URL and METERBRIDGE_SMTP_FROM")
        return
    where = f"mail server {mail.host}:{mail.port}"
    try:
        with sending.signed_in(mail, timeout=_LONGEST_WAIT) as server:
            server.noop()
    except sending.NoTls as fault:
        yield Finding("failure", f"{where}: {fault}", "use its port with TLS (smtps://…:465, or 587 with STARTTLS), or a server that asks no password")
    except smtplib.SMTPAuthenticationError as fault:
        yield Finding(
            "failure",
            f"{where} refuses our name and password ({fault.smtp_code})",
            "correct user and password in METERBRIDGE_SMTP_URL; write / @ : in them as %2F %40 %3A",
        )
    except ssl.SSLError as fault:
        yield Finding(
            "failure",
            f"{where}: TLS failed ({fault.reason or type(fault).__name__})",
            "its certificate must be good for that name; smtp:// is for STARTTLS, smtps:// for TLS from the start",
        )
    except smtplib.SMTPException as fault:
        yield Finding("failure", f"{where} does not answer as a mail server ({type(fault).__name__})", "correct host and port in METERBRIDGE_SMTP_URL")
    except OSError as fault:
        yield Finding(
            "failure",
            f"{where} cannot be reached: {fault.strerror or fault}",
            "correct METERBRIDGE_SMTP_URL, or let this machine reach it (firewall, private DNS)",
        )
    else:
        yield Finding("ok", f"{where} takes mails from {mail.sender}" + (f" as {mail.user}" if mail.user else ""))


def _azure(store: Store, settings: Settings, *, now: datetime, deploy_permissions: bool) -> Iterator[Finding]:
    """What Azure says of us, where one is set up."""
    if not settings.azure_subscriptions.strip(", ") and not settings.azure_scopes.strip(", "):
        if deploy_permissions:
            yield Finding("failure", "--deploy-permissions asks Azure, and none is set up", "say which: METERBRIDGE_AZURE_SUBSCRIPTIONS=<subscription id>,…")
        return
    # The SDK takes its time to load: only who has an Azure waits for it.
    from collector.azure import checks  # noqa: PLC0415
    from collector.azure.client import Azure, AzureSettings  # noqa: PLC0415

    try:
        asked = AzureSettings.of(settings)
    except DomainError as fault:
        yield Finding("failure", f"the Azure settings cannot be used: {fault.message}", "correct the setting that is named")
        return
    with Azure(asked, now=lambda: now, longest_wait=_LONGEST_WAIT, timeout=15) as azure:
        yield from checks.examine(store, azure, subscriptions=asked.subscriptions, scopes=asked.scopes, now=now, deploy_permissions=deploy_permissions)


def _storage(store: Store) -> Iterator[Finding]:
    if store.path is not None:
        free = shutil.disk_usage(store.path.parent).free
        # What was written last is in the file beside it until SQLite moves it over.
        files = (store.path, store.path.with_name(f"{store.path.name}-wal"))
        size = sum(file.stat().st_size for file in files if file.exists())
        what = f"disk: {free / 1024**3:.1f} GiB free beside a database of {size / 1024**2:.1f} MiB"
        yield Finding("ok", what) if free > _LEAST_DISK else Finding("failure", what, "free at least 1 GiB, or move the database to a larger disk")
        with store.read() as session:
            mode = session.execute(sa.text("PRAGMA journal_mode")).scalar()
            synchronous = session.execute(sa.text("PRAGMA synchronous")).scalar()
            whole = session.execute(sa.text("PRAGMA quick_check(1)")).scalar()
        safe = mode == "wal" and synchronous in (2, 3)
        what = f"SQLite {sqlite3.sqlite_version}: journal {mode}, synchronous {synchronous}, check {whole}"
        yield (
            Finding("ok", what)
            if safe and whole == "ok"
            else Finding("failure", what, "restore the newest backup; the file is damaged or was opened by another program")
        )
        return
    with store.read() as session:
        commit = session.execute(sa.text("SHOW synchronous_commit")).scalar()
        version = session.execute(sa.text("SHOW server_version")).scalar()
    what = f"PostgreSQL {version}: synchronous_commit {commit}"
    yield (
        Finding("ok", what)
        if commit != "off"
        else Finding("failure", what, "set synchronous_commit = on: with off the last acknowledged events are lost in a crash")
    )


def _clock(store: Store, now: datetime) -> Iterator[Finding]:
    # Events are not indexed by arrival, and there may be many millions; the hours of arrival are few.
    newest = "SELECT MAX(last_received_at) FROM usage_arrival WHERE arrived_at = (SELECT MAX(arrived_at) FROM usage_arrival)"
    with store.read() as session:
        ahead = session.execute(sa.text(newest)).scalar()
    if ahead is not None and int(ahead) > (now.timestamp() + 300) * 1_000_000:
        yield Finding(
            "failure",
            f"the clock says {to_the_second(now)}, and events arrived later than that",
            "set the clock (NTP); times of arrival decide what was known when",
        )
    else:
        yield Finding("ok", f"clock {to_the_second(now)}")


def _data(store: Store, now: datetime) -> Iterator[Finding]:
    with store.read() as session:
        age = ledger.data_age(session, visible=None, now=now)
        problems = ledger.problems(session, visible=None, now=now)
    if age.metered_until is None:
        yield Finding("warning", "no usage has arrived yet", "send some: curl -X POST …/v1/usage (see the start page), or meterbridge import usage FILE")
    elif now - age.metered_until > _STALE_USAGE:
        yield Finding("warning", f"the newest usage is from {to_the_second(age.metered_until)}", "look at the senders: their key, their URL, their logs")
    else:
        yield Finding("ok", f"usage up to {to_the_second(age.metered_until)}")
    if age.billed_until is None:
        yield Finding("warning", "no bill has landed yet", "meterbridge import charges FILE (cost details or FOCUS, from Azure Cost Management)")
    elif now - age.billed_until > _STALE_BILL:
        yield Finding(
            "warning", f"the bill reaches {to_the_second(age.billed_until)} on its slowest route", "import a newer bill: meterbridge import charges FILE"
        )
    else:
        yield Finding("ok", f"billed up to {to_the_second(age.billed_until)} on every route")
    for problem in problems[:20]:
        if problem.kind != "out_of_scope":
            yield Finding("warning", f"{problem.kind}: {problem.subject}: {problem.detail}", problem.remedy)


def _keys(store: Store, settings: Settings) -> Iterator[Finding]:
    with store.read() as session:
        ever = session.execute(sa.text("SELECT COUNT(*) FROM api_key")).scalar() or 0
        keys = session.execute(sa.text("SELECT COUNT(*) FROM api_key WHERE revoked_at IS NULL")).scalar() or 0
    if ever and not keys:
        yield Finding("failure", "every key is revoked: nobody can send, read or sign in", "meterbridge keys create --name NAME --scope admin")
    elif keys:
        yield Finding("ok", f"{keys} key{'s' if keys != 1 else ''} in use")
    else:
        yield Finding(
            "warning",
            f"open: no key exists, so every program of this machine may read and write (bind {settings.host})",
            "meterbridge keys create --name NAME --scope admin",
        )
