"""The outbox is emptied: at least once, in order, each receiver for itself."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select
from standardwebhooks import Webhook

from collector import notices
from collector.watch import standing_watch
from collector.webhooks.dispatch import Dispatcher, metric_lines
from collector.webhooks.reach import Policy
from collector.webhooks.sending import Sender
from models.alerts import Alert, AlertState, Kind, Severity
from models.notices import Delivery, DeliveryStatus, Format, Receiver
from models.store import Store
from tests.collector.webhooks.listening import Listener, drips, floods, hangs, listening, resets, says

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
SECRET = "whsec_" + "QUFB" * 8
LOOPBACK = Policy.parse("127.0.0.1/32", "")


def alert(alert_id: str = "alert_1", **changes: Any) -> dict[str, Any]:
    return {"id": alert_id, "kind": "tokens_per_minute", "rule": "Tokens", "severity": "critical", "scope": {"workspace": "ws-east"}, "why": "much"} | changes


def receiver(store: Store, url: str, name: str = "one", **changes: Any) -> str:
    with store.write() as session:
        values: dict[str, Any] = {
            "format": Format.STANDARD,
            "workspaces": [],
            "is_default": True,
            "secret": SECRET,
            "created_at": NOW,
            "updated_at": NOW,
        } | changes
        session.add(Receiver(id=f"hook_{name}", name=name, url=url, **values))
    return f"hook_{name}"


def post(store: Store, kind: Any = "alert.firing", *, now: datetime = NOW, receivers: list[str] | None = None, **changes: Any) -> None:
    with store.write() as session:
        notices.post(session, alert=alert(**changes), type=kind, receivers=receivers, now=now)


def drain(store: Store, now: datetime, *, policy: Policy = LOOPBACK, **options: Any) -> int:
    sender = Sender(policy, timeout_seconds=5, **options)
    try:
        return Dispatcher(store, sender, now=lambda: now).drain()
    finally:
        sender.close()


def rows(store: Store) -> list[Delivery]:
    with store.read() as session:
        found = list(session.exec(select(Delivery).order_by(col(Delivery.seq))))
        session.expunge_all()
        return found


def test_a_notice_is_signed_and_delivered_once(store: Store) -> None:
    with listening(says(204)) as heard:
        receiver(store, heard.url)
        post(store, now=datetime.now(UTC))
        assert drain(store, datetime.now(UTC)) == 1
        assert drain(store, datetime.now(UTC)) == 0
    [got] = heard.heard
    said = Webhook(SECRET).verify(got.body, got.headers)
    assert (said["type"], said["data"]["id"]) == ("alert.firing", "alert_1")
    [row] = rows(store)
    assert (row.status, row.attempts, row.last_status, row.notice_id) == (DeliveryStatus.DELIVERED, 1, 204, got.headers["webhook-id"])


def test_both_secrets_sign_while_one_takes_over_from_the_other(store: Store) -> None:
    other, now = "whsec_" + "QkJC" * 8, datetime.now(UTC)
    with listening(says(200)) as heard:
        receiver(store, heard.url, previous_secret=other, previous_until=now + timedelta(hours=1))
        post(store, now=now)
        drain(store, now)
    [got] = heard.heard
    assert Webhook(SECRET).verify(got.body, got.headers) == Webhook(other).verify(got.body, got.headers)


def test_attempts_have_the_same_bytes_and_id_and_the_time_of_the_attempt(store: Store) -> None:
    with listening(says(500)) as heard:
        receiver(store, heard.url)
        post(store)
        for seconds in (0, 4, 6, 20, 40):
            drain(store, NOW + timedelta(seconds=seconds))
        heard.answer = says(200)
        drain(store, NOW + timedelta(minutes=3))
    # Not at 4 s and 20 s: the schedule has 5 s and 30 s.
    assert [int(one.headers["webhook-timestamp"]) - int(NOW.timestamp()) for one in heard.heard] == [0, 6, 40, 180]
    assert len({(one.headers["webhook-id"], one.body) for one in heard.heard}) == 1
    assert (rows(store)[0].attempts, rows(store)[0].status) == (4, DeliveryStatus.DELIVERED)


def test_what_is_never_taken_is_given_up_after_75_hours_and_counted(store: Store) -> None:
    with listening(says(503)) as heard:
        receiver(store, heard.url)
        post(store)
        at = NOW
        while (row := rows(store)[0]).next_attempt_at is not None:
            at = max(at + timedelta(minutes=10), row.next_attempt_at)
            drain(store, at)
    assert (row.status, row.attempts) == (DeliveryStatus.FAILED, 14)
    assert at - NOW <= timedelta(hours=76)
    with store.read() as session:
        assert 'meterbridge_webhook_attempts_total{outcome="given_up"} 1' in metric_lines(session)
        assert 'meterbridge_webhook_attempts_total{outcome="failed"} 14' in metric_lines(session)


def test_retry_after_is_honoured_for_the_whole_receiver(store: Store) -> None:
    with listening(says(429, "Retry-After: 600")) as heard:
        receiver(store, heard.url)
        post(store)
        drain(store, NOW)
        heard.answer = says(200)
        post(store, alert_id="alert_2", now=NOW)
        assert drain(store, NOW + timedelta(seconds=599)) == 0
        assert drain(store, NOW + timedelta(seconds=601)) == 2


def test_410_disables_the_receiver_and_a_redirect_is_not_followed(store: Store) -> None:
    with listening(says(200)) as elsewhere, listening(says(302, f"Location: {elsewhere.url}")) as heard:
        receiver(store, heard.url)
        post(store)
        drain(store, NOW)
        assert (rows(store)[0].status, rows(store)[0].last_status) == (DeliveryStatus.PENDING, 302)
        heard.answer = says(410)
        drain(store, NOW + timedelta(seconds=10))
        assert elsewhere.heard == []
    assert rows(store)[0].status is DeliveryStatus.FAILED
    with store.read() as session:
        found = session.get_one(Receiver, "hook_one")
        assert (found.is_enabled, found.disabled_reason) == (False, "it answered 410 Gone")
    post(store, alert_id="alert_2")
    assert len(rows(store)) == 1


def test_resolved_never_overtakes_firing_and_another_alert_waits_for_neither(store: Store) -> None:
    with listening(says(500)) as heard:
        receiver(store, heard.url)
        post(store)
        drain(store, NOW)
        heard.answer = says(200)
        post(store, "alert.resolved", now=NOW + timedelta(seconds=1))
        post(store, alert_id="alert_2", now=NOW + timedelta(seconds=1))
        heard.heard.clear()
        drain(store, NOW + timedelta(seconds=1))
    # The success of the other alert shows that the receiver is back: what waits is told at once, in order.
    told = [(b'"alert_2"' in got.body, b"alert.firing" in got.body) for got in heard.heard]
    assert told == [(True, True), (False, True), (False, False)]


def test_an_alertmanager_is_told_again_until_it_is_resolved(store: Store) -> None:
    with listening(says(200)) as heard:
        receiver(store, heard.url.removesuffix("/hook"), format=Format.ALERTMANAGER_API, secret=None)
        with store.write() as session:
            session.add(firing_alert())
        post(store)
        for seconds in (0, 30, 61, 122):
            drain(store, NOW + timedelta(seconds=seconds))
        assert [one.path for one in heard.heard] == ["/api/v2/alerts"] * 3
        post(store, "alert.resolved", now=NOW + timedelta(seconds=130))
        for seconds in (130, 200, 300):
            drain(store, NOW + timedelta(seconds=seconds))
    assert [b"endsAt" in one.body for one in heard.heard] == [False, False, False, True]
    assert [row.attempts for row in rows(store)] == [1, 1]


def firing_alert() -> Alert:
    return Alert(
        id="alert_1", seq=1, rule_id="rule_1", rule="Tokens", kind=Kind.TOKENS_PER_MINUTE, state=AlertState.FIRING, severity=Severity.CRITICAL,
        scope={}, sample={}, why="", subject="", receivers=[], pending_at=NOW, fired_at=NOW,
    )  # fmt: skip


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(sqlite_store: Store) -> None:
    answers = iter([["10.0.0.1"], ["127.0.0.1"]])
    with listening(says(200)) as heard:
        receiver(sqlite_store, f"http://hooks.example.com:{heard.port}/")
        post(sqlite_store)
        drain(sqlite_store, NOW, resolver=lambda *_: next(answers))
        assert heard.heard == []
        assert "not a public address" in rows(sqlite_store)[0].last_error
        drain(sqlite_store, NOW + timedelta(seconds=10), resolver=lambda *_: next(answers))
        assert heard.heard[0].headers["host"] == f"hooks.example.com:{heard.port}"


def test_proxies_of_the_environment_are_not_used(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with listening(says(200)) as heard:
        receiver(sqlite_store, heard.url)
        post(sqlite_store)
        drain(sqlite_store, NOW)
        assert len(heard.heard) == 1


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for a name, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650", "-keyout", str(key), "-out", str(cert),
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_the_certificate_is_verified_for_the_name_at_the_checked_address(sqlite_store: Store, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "hooks.example.com")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=str(cert))
    with listening(says(200), tls=serving) as heard:
        receiver(sqlite_store, f"https://hooks.example.com:{heard.port}/", "right")
        receiver(sqlite_store, f"https://other.example.com:{heard.port}/", "wrong")
        post(sqlite_store)
        drain(sqlite_store, NOW, resolver=lambda *_: ["127.0.0.1"], tls=lambda: trusting)
        found = {row.receiver_id: (row.status, row.last_error) for row in rows(sqlite_store)}
    assert found["hook_right"] == (DeliveryStatus.DELIVERED, "")
    assert found["hook_wrong"][0] is DeliveryStatus.PENDING
    assert "certificate is not valid" in found["hook_wrong"][1]


def test_49_receivers_that_misbehave_do_not_delay_the_50th(store: Store) -> None:
    bad = [hangs, drips, says(500), resets, floods, says(302, "Location: http://127.0.0.1:9/"), hangs]
    with ExitStack() as running:
        for number in range(49):
            heard = running.enter_context(listening(bad[number % len(bad)]))
            receiver(store, heard.url, f"bad_{number:02}")
        good = running.enter_context(listening(says(200)))
        receiver(store, good.url, "good")
        dispatcher = Dispatcher(store, Sender(LOOPBACK, timeout_seconds=15), now=lambda: datetime.now(UTC))
        dispatcher.start()
        try:
            for number in range(3):
                good.arrived.clear()
                began = time.monotonic()
                post(store, alert_id=f"alert_{number}", now=datetime.now(UTC))
                assert good.arrived.wait(5)
                assert time.monotonic() - began < 5
        finally:
            dispatcher.stop()


def test_two_dispatchers_deliver_once_each(store: Store) -> None:
    with ExitStack() as running:
        listeners: list[Listener] = [running.enter_context(listening(says(200))) for _ in range(5)]
        for number, heard in enumerate(listeners):
            receiver(store, heard.url, str(number))
        for number in range(10):
            post(store, alert_id=f"alert_{number}")
        threads = [threading.Thread(target=drain, args=(store, NOW)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        drain(store, NOW)
        for heard in listeners:
            assert len(heard.heard) == 10
            assert len({one.headers["webhook-id"] for one in heard.heard}) == 10


_CHILD = """
import sys
from datetime import UTC, datetime
from collector.webhooks.dispatch import Dispatcher
from collector.webhooks.reach import Policy
from collector.webhooks.sending import Sender
from models.store import Store
Dispatcher(Store(sys.argv[1]), Sender(Policy.parse("127.0.0.1/32", "")), now=lambda: datetime.now(UTC)).drain()
"""


def test_killed_while_sending_it_is_sent_again_under_the_same_id(store: Store, database_url: str) -> None:
    with listening(hangs) as heard:
        receiver(store, heard.url)
        post(store, now=datetime.now(UTC))
        child = subprocess.Popen([sys.executable, "-c", _CHILD, database_url], cwd=Path(__file__).parents[3])
        try:
            assert heard.arrived.wait(30)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait(10)
        heard.answer = says(200)
        at = datetime.now(UTC)
        # The claim of the dead holds for a while, so that a slow one is not doubled.
        assert drain(store, at) == 0
        assert drain(store, at + timedelta(seconds=60)) == 1
    assert len(heard.heard) == 2
    assert len({(one.headers["webhook-id"], one.body) for one in heard.heard}) == 1
    assert rows(store)[0].status is DeliveryStatus.DELIVERED


def test_receivers_of_some_workspaces_hear_of_these_only(sqlite_store: Store) -> None:
    receiver(sqlite_store, "http://127.0.0.1:9/", "east", workspaces=["ws-east"])
    receiver(sqlite_store, "http://127.0.0.1:9/", "west", workspaces=["ws-west"])
    receiver(sqlite_store, "http://127.0.0.1:9/", "named", is_default=False)
    post(sqlite_store)
    post(sqlite_store, receivers=["hook_named", "hook_west"])
    post(sqlite_store, scope={})
    assert [row.receiver_id for row in rows(sqlite_store)] == ["hook_east", "hook_named"]


def test_a_newer_heartbeat_takes_the_place_of_those_that_wait(sqlite_store: Store) -> None:
    receiver(sqlite_store, "http://127.0.0.1:9/")
    for minute in range(3):
        with sqlite_store.write() as session:
            notices.post(session, alert=alert("beat", kind="heartbeat"), type="alert.firing", receivers=None, now=NOW + timedelta(minutes=minute))
    assert [row.status for row in rows(sqlite_store)] == [DeliveryStatus.FAILED, DeliveryStatus.FAILED, DeliveryStatus.PENDING]


def test_a_notice_goes_with_the_transaction_that_posts_it(store: Store) -> None:
    receiver(store, "http://127.0.0.1:9/")

    def broken() -> None:
        with store.write() as session:
            notices.post(session, alert=alert(), type="alert.firing", receivers=None, now=NOW)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert rows(store) == []


def test_a_receiver_that_is_not_reached_is_an_alert_that_the_others_are_told(store: Store) -> None:
    watcher = standing_watch()

    def of_receivers() -> list[tuple[str, str, str]]:
        watcher.run(store, now=now)
        with store.read() as session:
            found = session.exec(select(Alert).where(Alert.kind == Kind.UNREACHED_RECEIVER).order_by(col(Alert.seq)))
            return [(one.scope["receiver"], one.state.value, one.why.partition(",")[0]) for one in found]

    now = NOW
    with listening(says(500)) as broken, listening(says(200)) as well:
        receiver(store, broken.url, "night")
        receiver(store, well.url, "day")
        for number in range(5):
            assert of_receivers() == []
            post(store, now=now, alert_id=f"alert_{number}")
            drain(store, now)
            now += timedelta(seconds=1)
        assert of_receivers() == [("hook_night", "firing", "5 attempts in a row did not reach night")]
        drain(store, now)
        with store.read() as session:
            told = select(Delivery.receiver_id, Delivery.type).where(col(Delivery.alert_id).in_(select(Alert.id)))
            assert session.exec(told).all() == [("hook_day", "alert.firing")]
        broken.answer = says(200)
        now += timedelta(minutes=1)
        drain(store, now)
        assert of_receivers() == [("hook_night", "resolved", "0 attempts in a row did not reach night")]
        broken.answer = says(410)
        post(store, now=now, alert_id="alert_last")
        drain(store, now)
        now += timedelta(seconds=1)
        assert of_receivers()[1:] == [("hook_night", "firing", "5 failures are counted for night")]


def test_a_receiver_that_fails_is_left_alone_and_probed_with_one_delivery(store: Store) -> None:
    with listening(says(500)) as heard:
        receiver(store, heard.url)
        for number in range(8):
            post(store, alert_id=f"alert_{number}")
        # Each delivery is tried once; the fifth failure opens the circuit for 30 seconds.
        assert drain(store, NOW) == 5
        assert drain(store, NOW + timedelta(seconds=29)) == 0
        assert drain(store, NOW + timedelta(seconds=31)) == 1
        # The probe failed: twice as long now.
        assert drain(store, NOW + timedelta(seconds=90)) == 0
        heard.answer = says(200)
        assert drain(store, NOW + timedelta(seconds=92)) == 8
    assert {row.status for row in rows(store)} == {DeliveryStatus.DELIVERED}
    with store.read() as session:
        assert (session.get_one(Receiver, "hook_one").failures, session.get_one(Receiver, "hook_one").rests_until) == (0, None)


def test_pagerduty_is_told_once_what_it_refuses_and_again_where_it_is_busy(store: Store) -> None:
    with listening(says(429, "Retry-After: 60")) as heard:
        receiver(store, heard.url, format=Format.PAGERDUTY, secret=None, routing_key="R" * 32)
        post(store)
        drain(store, NOW)
        assert rows(store)[0].next_attempt_at == NOW + timedelta(seconds=60)
        heard.answer = says(202)
        drain(store, NOW + timedelta(seconds=61))
        post(store, "alert.resolved", now=NOW + timedelta(minutes=2))
        drain(store, NOW + timedelta(minutes=2))
        said = [json.loads(one.body) for one in heard.heard]
        assert [(one["event_action"], one["dedup_key"], one["routing_key"]) for one in said] == [
            ("trigger", "alert_1", "R" * 32),
            ("trigger", "alert_1", "R" * 32),
            ("resolve", "alert_1", "R" * 32),
        ]
        heard.answer = says(400)
        post(store, alert_id="alert_2", now=NOW + timedelta(minutes=3))
        drain(store, NOW + timedelta(minutes=3))
    assert [(row.status, row.last_status) for row in rows(store)][-1] == (DeliveryStatus.FAILED, 400)
