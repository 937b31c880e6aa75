"""What was stored before events were laid out by time stands as it stood: read, listed, met again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from collector.capture.event import CapturedEvent
from collector.ingest import Batch, Ingest
from models import identities, ledger
from models.columns import to_microseconds
from models.ledger import Filters
from models.periods import Period
from models.store import Store, _alembic_config

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
UUID = "0123abcd-0000-4000-8000-00000000000f"
_EVENT = (
    "INSERT INTO usage_event (seq, time, workspace_id, source_id, event_id, series_id, status, billable, input_tokens, output_tokens, quality, is_unknown, "
    "flags, received_at, sent_time, identity_hash, content_hash, details) VALUES (:seq, :time, 1, 1, :id, 1, 0, true, 1000, 200, 0, false, :flags, :at, "
    ":sent, 5, :hash, :details)"
)


@pytest.fixture
def old(unmigrated: Store) -> Store:
    """A database of the first schema with three events and a conflict."""
    _fill(unmigrated)
    return unmigrated


def _fill(store: Store) -> None:
    config: Config = _alembic_config()
    at = to_microseconds(NOW)
    with store.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in (
            "INSERT INTO workspace (name, first_seen_at) VALUES ('ws-east', 0)",
            "INSERT INTO usage_source (name) VALUES ('default')",
        ):
            connection.execute(sa.text(statement))
        connection.execute(
            sa.text(
                "INSERT INTO usage_series (workspace_id, source_id, endpoint, deployment, model, operation, fine_tuned, application, team, tags, digest) "
                "VALUES (1, 1, '', 'llama-chat', 'Llama-3.3-70B-Instruct', 'chat', false, '', '', '{}', :digest)"
            ),
            {"digest": b"0"},
        )
        minute = 60_000_000
        for seq, name, time, flags, sent, details in (
            (1, UUID, at - 3 * minute, 0, None, '{"duration_ms":7,"finish_reason":"stop","request_id":"' + UUID + '","response_id":"r-1"}'),
            (2, "ahead", at, 1, at + 60 * minute, None),
            (3, "untimed", at, 1024, None, '{"user":"u"}'),
        ):
            values = {"seq": seq, "time": time, "id": name, "flags": flags, "at": at, "sent": sent, "hash": b"h", "details": details}
            connection.execute(sa.text(_EVENT), values)
        connection.execute(sa.text("INSERT INTO usage_conflict (stands_seq, content_hash, received_at, sent) VALUES (3, :hash, 5, '{}')"), {"hash": b"x"})
        connection.commit()
    store.migrate()


def call(event_id: str, at: datetime | None, **details: str | int) -> CapturedEvent:
    return CapturedEvent(
        event_id, None if at is None else to_microseconds(at), workspace="ws-east", deployment="llama-chat", model="Llama-3.3-70B-Instruct",
        input_tokens=1000, output_tokens=200, details=details,
    )  # fmt: skip


def test_everything_that_stood_is_read_listed_and_met_again(old: Store) -> None:
    with old.read() as session:
        page = ledger.usage_list(session, period=Period(NOW - timedelta(days=1), NOW + timedelta(days=1)), filters=Filters(), limit=9, cursor=None, now=NOW)
        found = {one.id: one.fields for one in page.items}
        assert {name: (said.get("duration_ms"), said.get("response_id"), said.get("request_id"), said.get("user")) for name, said in found.items()} == {
            UUID: (7, "r-1", UUID, None), "ahead": (None, None, None, None), "untimed": (None, None, None, "u")
        }  # fmt: skip
        assert found[UUID]["finish_reason"] == "stop"
        assert ledger.receipt(session, "ahead", workspace=None, source=None, visible=None, now=NOW).record.fields["sent_time"] == NOW + timedelta(hours=1)
        assert session.execute(sa.text("SELECT stands_time FROM usage_conflict")).scalar_one() == to_microseconds(NOW)
        arrived = session.execute(sa.text("SELECT happened_on, events, last_seq, last_received_at FROM usage_arrival")).all()
        assert [tuple(row) for row in arrived] == [(20_777, 3, 3, to_microseconds(NOW))]
    ingest = Ingest(old, now=lambda: NOW + timedelta(hours=2))
    ingest.start()
    # The first with its time put on a little, as a sender does that stamps every attempt.
    first = call(UUID, NOW, duration_ms=7, finish_reason="stop", request_id=UUID, response_id="r-1")
    again = ingest.accept(Batch([first, call("ahead", NOW + timedelta(hours=1)), call("untimed", None, user="u"), call("untimed", None, user="else")]))
    fresh = ingest.accept(Batch([call("new", NOW)]))
    ingest.stop()
    assert (again.accepted, again.duplicates, [one.error for one in again.rejected], fresh.accepted) == (0, 3, ["conflict"], 1)
    with old.read() as session:
        assert session.execute(sa.text("SELECT COUNT(*), COUNT(DISTINCT seq), MIN(seq) FROM usage_event")).one() == (4, 4, 1)


def test_a_large_history_is_carried_over_in_segments(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_SEGMENT_SQLITE", 64)
    monkeypatch.setattr(identities, "_SEGMENT_POSTGRESQL", 50)
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('large')}/old.db")
    store.migrate()
    with store.write() as session:
        session.execute(sa.text("INSERT INTO workspace (id, name, first_seen_at) VALUES (1, 'ws-east', 0)"))
        rebuilt = identities.Rebuilt(session.connection())
        for number in range(230):
            rebuilt.note(1, 1, f"call-{number}", number)
        rebuilt.write()
    with store.read() as session:
        found = identities.times_of(session, [(1, 1, f"call-{number}") for number in range(230)])
    store.close()
    assert all(number in found[1, 1, f"call-{number}"] for number in range(230))
