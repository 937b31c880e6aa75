"""Events by their time and nothing else, identities in an index of their own, and where arrivals lie.

What is stored is carried over: every event, its standing under its id, and what conflicts point at.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BigInt = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_CHUNK = 5_000
_KEPT = (
    "time", "workspace_id", "source_id", "event_id", "seq", "series_id", "status", "billable", "input_tokens", "output_tokens", "cached_input_tokens",
    "reasoning_output_tokens", "quality", "is_unknown", "flags", "received_at", "sent_time", "started_at", "duration_ms", "response_id", "request_id", "details",
)  # fmt: skip


def upgrade() -> None:
    connection = op.get_bind()
    is_sqlite = connection.dialect.name == "sqlite"
    # Text or, for UUIDs, sixteen bytes: SQLite converts neither in a column without affinity.
    text_or_bytes: sa.types.TypeEngine[Any] = sa.LargeBinary() if is_sqlite else sa.Text(collation="C")
    op.rename_table("usage_event", "usage_event_before")
    if not is_sqlite:
        # Names of indexes are the schema's, not the table's.
        op.execute("ALTER TABLE usage_event_before RENAME CONSTRAINT usage_event_pkey TO usage_event_before_pkey")
    op.create_table(
        "usage_event",
        sa.Column("time", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("workspace_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", text_or_bytes, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("series_id", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("billable", sa.Boolean(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cached_input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("reasoning_output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("quality", sa.SmallInteger(), nullable=False),
        sa.Column("is_unknown", sa.Boolean(), nullable=False),
        sa.Column("flags", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_time", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("response_id", text_or_bytes, nullable=True),
        sa.Column("request_id", text_or_bytes, nullable=True),
        sa.Column("details", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("time", "workspace_id", "source_id", "event_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_arrival",
        sa.Column("arrived_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("happened_on", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("writer", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_received_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("arrived_at", "happened_on", "writer"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_identity_run",
        sa.Column("id", BigInt, autoincrement=False, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "usage_identity_block",
        sa.Column("id", BigInt, autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("usage_conflict", sa.Column("stands_time", sa.BigInteger(), nullable=True))
    op.execute("UPDATE usage_conflict SET stands_time = (SELECT time FROM usage_event_before e WHERE e.seq = stands_seq)")
    if not is_sqlite:
        # What is random already does not get smaller.
        op.execute("ALTER TABLE usage_identity_run ALTER COLUMN body SET STORAGE EXTERNAL")
        op.execute("ALTER TABLE usage_identity_block ALTER COLUMN body SET STORAGE EXTERNAL")
    _carry_over(connection, is_sqlite=is_sqlite)
    op.drop_table("usage_event_before")
    if not is_sqlite:
        # A commit takes one number and gives its events those that follow it; those carried over are the first commits'.
        last = connection.scalar(sa.text("SELECT MAX(seq) FROM usage_event")) or 0
        op.execute(f"CREATE SEQUENCE usage_commit START {last // 2**18 + 1}")


def _carry_over(connection: sa.Connection, *, is_sqlite: bool) -> None:
    # How identities are fingerprinted never changes: the rows of today are read by tomorrow's code.
    from models.identities import Rebuilt  # noqa: PLC0415 - the tables of today are not this migration's
    from models.usage import short_id, split_details  # noqa: PLC0415 - as above

    names, before = ", ".join(_KEPT), ", ".join(name for name in _KEPT if name not in ("duration_ms", "response_id", "request_id"))
    marks = ", ".join(f":{name}" for name in _KEPT)
    rebuilt: Rebuilt | None = None
    arrivals: dict[tuple[int, int], list[int]] = {}
    last = -1
    while True:
        rows = connection.execute(
            sa.text(f"SELECT {before} FROM usage_event_before WHERE seq > :last ORDER BY seq LIMIT {_CHUNK}"),  # noqa: S608 - names of ours
            {"last": last},
        ).all()
        if not rows:
            break
        rebuilt = rebuilt or Rebuilt(connection)
        last = rows[-1].seq
        kept = []
        for row in rows:
            found = row._asdict()
            # An event that came from a clock ahead, or untimed, is met again by its id: the index says where it stands.
            rebuilt.note(found["workspace_id"], found["source_id"], found["event_id"], found["time"])
            found |= split_details(json.loads(found["details"]) if found["details"] else {})._asdict()
            for name in ("event_id", "response_id", "request_id"):
                found[name] = short_id(found[name]) if is_sqlite and found[name] is not None else found[name]
            into = arrivals.setdefault((found["received_at"] // 3_600_000_000 * 3600, found["time"] // 86_400_000_000), [0, 0, 0])
            into[0] += 1
            into[1] = max(into[1], found["seq"])
            into[2] = max(into[2], found["received_at"])
            kept.append(found)
        connection.execute(sa.text(f"INSERT INTO usage_event ({names}) VALUES ({marks})"), kept)  # noqa: S608 - names of ours
    if rebuilt is None:
        return
    rebuilt.write()
    connection.execute(
        sa.text("INSERT INTO usage_arrival (arrived_at, happened_on, writer, events, last_seq, last_received_at) VALUES (:hour, :day, 0, :events, :seq, :at)"),
        [{"hour": hour, "day": day, "events": events, "seq": seq, "at": at} for (hour, day), (events, seq, at) in arrivals.items()],
    )
