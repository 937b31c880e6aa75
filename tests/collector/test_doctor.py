"""What doctor says of reports: folder, container and mail server are tried, and each fault has its fix."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from collector import doctor
from collector.azure.simulator import InventedWorld, Simulator
from collector.settings import Settings
from models.notices import Format
from models.store import Store
from tests import factories as make
from tests.collector.reports.test_delivery import receiver, schedule
from tests.collector.webhooks.test_mail import Inbox, OnFreePort

NOW = make.NOW


def found(store: Store, **said: object) -> list[tuple[str, str, str]]:
    """(level, what, fix) of what is about reports and mails."""
    settings = Settings(database_url=f"sqlite:///{store.path}", **said)  # type: ignore[arg-type]  # settings by their names
    every = doctor.examine(store, settings, now=NOW, is_service_running=False)
    return [(one.level, one.what, one.fix) for one in every if not one.what.startswith("database") and any(word in one.what for word in ("report", "mail"))]


@pytest.fixture
def mail_server() -> Iterator[OnFreePort]:
    controller = OnFreePort(Inbox(), hostname="127.0.0.1", port=0)
    controller.start()
    yield controller
    controller.stop()


def test_without_schedules_and_settings_nothing_is_said_and_nothing_made(sqlite_store: Store) -> None:
    assert found(sqlite_store) == []
    assert sqlite_store.path is not None
    assert not (sqlite_store.path.parent / "reports").exists()


def test_times_are_said_to_the_second(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.event(session, make.series(session), time=NOW)
    at = NOW + timedelta(microseconds=123_456)
    said = [one.what for one in doctor.examine(sqlite_store, Settings(database_url=f"sqlite:///{sqlite_store.path}"), now=at, is_service_running=False)]
    assert "clock 2026-11-20T10:00:00Z" in said
    assert [one for one in said if ".123456" in one] == []


def test_a_database_is_as_large_as_its_files_together(sqlite_store: Store) -> None:
    assert sqlite_store.path is not None
    said = [one.what for one in doctor.examine(sqlite_store, Settings(), now=NOW, is_service_running=False) if one.what.startswith("disk:")]
    wal = sqlite_store.path.with_name(f"{sqlite_store.path.name}-wal")
    before = sqlite_store.path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
    with wal.open("ab") as longer:  # what SQLite leaves behind the last commit it passes by
        longer.write(bytes(3 * 1024**2))
    later = [one.what for one in doctor.examine(sqlite_store, Settings(), now=NOW, is_service_running=False) if one.what.startswith("disk:")]
    sizes = [float(one.partition("a database of ")[2].partition(" MiB")[0]) for one in (*said, *later)]
    assert sizes[1] - sizes[0] == pytest.approx(3, abs=0.2)
    assert sizes[0] == pytest.approx(before / 1024**2, abs=0.1)


def test_folders_are_tried_by_writing(sqlite_store: Store, tmp_path: Path) -> None:
    root = tmp_path / "share"
    (((level, what, fix)),) = found(sqlite_store, reports_folder=root)
    assert (level, what) == ("failure", f"reports cannot be written: there is no folder {root} (METERBRIDGE_REPORTS_FOLDER)")
    assert fix.startswith(f"make {root} and let the service's user write there")
    root.mkdir()
    with sqlite_store.write() as session:
        schedule(session, receivers=[], folder="board/weekly")
    assert found(sqlite_store, reports_folder=root) == [("ok", f"reports can be written into {root}/board/weekly", "")]
    assert list((root / "board" / "weekly").iterdir()) == []
    (root / "board" / "weekly").rmdir()
    (root / "board" / "weekly").symlink_to("/tmp")
    ((level, what, _),) = found(sqlite_store, reports_folder=root)
    assert (level, "symbolic link" in what) == ("failure", True)


def test_containers_are_tried_with_a_block_that_nobody_sees(sqlite_store: Store) -> None:
    with Simulator(InventedWorld(1, date(2026, 9, 28), date(2026, 10, 4), subscription_count=1), lambda: NOW) as azure:
        azure.storage.containers.add("finance")
        azure.storage.token = "for-storage"
        url = f"{azure.blob_url}/finance/weekly"
        with sqlite_store.write() as session:
            schedule(session, receivers=[], container=url)
        asked = {"azure_arm_url": azure.arm_url, "azure_credential": "static:for-arm;for-storage"}
        assert found(sqlite_store, **asked) == [("ok", f"reports can be written into {url}", "")]
        assert azure.storage.blobs == {}
        azure.storage.token = "another"
        ((level, what, fix),) = found(sqlite_store, **asked)
        assert (level, "403 AuthorizationPermissionMismatch" in what) == ("failure", True)
        assert 'az role assignment create --role "Storage Blob Data Contributor"' in fix
        azure.storage.token = "for-storage"
        azure.storage.containers.clear()
        ((level, what, _),) = found(sqlite_store, **asked)
        assert (level, "make the container first" in what) == ("failure", True)


def test_the_mail_server_is_asked_and_no_mail_is_sent(sqlite_store: Store, mail_server: OnFreePort) -> None:
    where = f"127.0.0.1:{mail_server.port}"
    known = {"smtp_from": "meterbridge@example.com"}
    assert found(sqlite_store, smtp_url=f"smtp://{where}", **known) == [("ok", f"mail server {where} takes mails from meterbridge@example.com", "")]
    assert mail_server.handler.mails == []
    ((level, what, fix),) = found(sqlite_store, smtp_url=f"smtp://olga:secret@{where}", **known)
    assert (level, "in the clear" in what, "TLS" in fix, "secret" in what + fix) == ("failure", True, True, False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = listener.getsockname()[1]
    ((level, what, fix),) = found(sqlite_store, smtp_url=f"smtp://127.0.0.1:{gone}", **known)
    assert (level, what, fix[:30]) == ("failure", f"mail server 127.0.0.1:{gone} cannot be reached: Connection refused", "correct METERBRIDGE_SMTP_URL, ")
    ((level, what, _),) = found(sqlite_store, smtp_url=f"smtps://{where}", **known)
    assert (level, what.startswith(f"mail server {where}: TLS failed")) == ("failure", True)


def test_mailboxes_without_a_mail_server_and_links_without_an_address_are_told(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        receiver(session, "finance", Format.EMAIL)
        schedule(session, receivers=["finance"], error="the store was away")
    assert found(sqlite_store) == [
        ("failure", "receivers that are mailboxes (finance) get nothing: no mail server is set up", "set METERBRIDGE_SMTP_URL and METERBRIDGE_SMTP_FROM"),
        ("failure", "the last report of schedule 'board' could not be made: the store was away", "send it again on the Reports page"),
        ("warning", "reports go out without a link", "METERBRIDGE_PUBLIC_URL: the address at which people open meterbridge"),
    ]
