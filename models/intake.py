"""What came in at the door and what was turned away: counts per sender and hour, and a few samples of what was refused.

Beside the events and never among them: nothing here is counted as usage or as money. A sample is the shape of what was
sent (names of fields and kinds of values), never a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Integer, SmallInteger, Text
from sqlmodel import Field, SQLModel

from models.columns import Instant, JsonText

# Who asked without a key that works; '' is the open mode.
NO_KEY: Final = "?"
# Beside these an outcome is the class of an error. ``missing`` and ``estimated`` are among the accepted.
ACCEPTED, DUPLICATE, CONFLICT, IGNORED, MISSING, ESTIMATED = "accepted", "duplicate", "conflict", "ignored", "missing", "estimated"

# What to do about each class of error, for whoever runs the sender.
FIXES: Final[Mapping[str, str]] = {
    "malformed": "Send whole JSON in UTF-8: one object, an array, or one object a line. A body that ends too early was cut off on its way.",
    "schema_invalid": "Rename, add or leave out the field that the message names; what each route takes is at /docs. Fields of your own go into tags.",
    "invalid_value": "Send counts as whole numbers from 0 to 2^53 - 1, names without control characters, and only the values that a field may have.",
    "invalid_time": "Send the end of the call as RFC 3339 with an offset (2026-11-20T10:00:00Z), the same on every retry, and set the sender's clock.",
    "unsupported_version": "Switch the sender to the version that the message names.",
    "unsupported_media_type": "Set Content-Type to application/json, or application/x-ndjson for one event a line.",
    "unsupported_encoding": "Compress with gzip or not at all.",
    "conflict": "Give every call an id of its own, and send the same content under it on every retry. The first one counts.",
    "forbidden_workspace": "Send with a key for that workspace, or correct the workspace that the event names.",
    "too_large": "Send smaller batches: at most 16 MiB after decompression.",
    "unauthorized": "Send Authorization: Bearer with a key that is not revoked; meterbridge keys create --scope ingest makes one.",
    "forbidden": "Send with a key of scope ingest: meterbridge keys create --scope ingest.",
}


class IntakeHour(SQLModel, table=True):
    """How many events (whole bodies that were refused: one) of a sender and format came out how, by UTC hour of arrival."""

    __tablename__ = "intake_hour"

    starts_at: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))  # seconds since 1970
    key_id: str = Field(sa_column=Column(Text, primary_key=True))
    source: str = Field(sa_column=Column(Text, primary_key=True))  # of the first event that could be read, '' where none could
    format: str = Field(sa_column=Column(Text, primary_key=True))
    outcome: str = Field(sa_column=Column(Text, primary_key=True))
    events: int = Field(sa_column=Column(BigInteger, nullable=False))

    __table_args__ = ({"sqlite_with_rowid": False},)


class IntakeSample(SQLModel, table=True):
    """One of the newest few refusals of a sender, format and class."""

    __tablename__ = "intake_sample"

    key_id: str = Field(sa_column=Column(Text, primary_key=True))
    source: str = Field(sa_column=Column(Text, primary_key=True))
    format: str = Field(sa_column=Column(Text, primary_key=True))
    error: str = Field(sa_column=Column(Text, primary_key=True))
    slot: int = Field(sa_column=Column(SmallInteger, primary_key=True, autoincrement=False))
    seen_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    place: int | None = Field(default=None, sa_column=Column(Integer))  # its index in the body, None of a whole body
    detail: str = Field(sa_column=Column(Text, nullable=False))
    shape: Any = Field(default=None, sa_column=Column(JsonText))

    __table_args__ = ({"sqlite_with_rowid": False},)
