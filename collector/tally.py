"""Who sent what and how it came out, kept beside the ingest: counts by hour, and a few samples of what was refused.

``Tally`` counts in memory and writes at most once a second, in a short transaction of its own: no answer waits for it,
and a process that is killed loses a second of these counts and no usage. Everything that a sender can make up is bounded.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlmodel import Session

from collector.capture import shapes
from collector.capture.event import CapturedEvent, Item
from collector.ingest import Verdict
from models.columns import canonical_json
from models.errors import DomainError, Forbidden, InvalidInput, Unauthorized, Unavailable
from models.intake import ACCEPTED, DUPLICATE, ESTIMATED, IGNORED, MISSING, NO_KEY
from models.store import Store

logger = logging.getLogger(__name__)

FORMATS: Final[Mapping[str, str]] = {
    "/v1/usage": "native",
    "/v1/usage/openai": "openai",
    "/v1/usage/litellm": "litellm",
    "/v1/usage/azure": "azure",
    "/api/v1/events": "cloudevents",
    "/otlp/v1/traces": "otlp_traces",
    "/otlp/v1/logs": "otlp_logs",
    "/otlp/v1/metrics": "otlp_metrics",
}
OTHERS: Final = "(others)"
_SECOND = 1_000_000
_DELAY_SECONDS = 1.0
_KEPT_SECONDS = 400 * 86_400
SAMPLES: Final = 5  # of one sender, format and class
_MOST_SAMPLES = 2_000  # of all
# Names that senders make up: beyond them an hour's rows stand together.
_MOST_SENDERS = 500
_MOST_FAILURES = 60


@dataclass(frozen=True, slots=True)
class Sample:
    """A refusal to be kept; ``seen_at`` in microseconds since 1970."""

    seen_at: int
    place: int | None
    detail: str
    shape: Any


Sender = tuple[str, str, str]  # key id, source, format


class Tally:
    """The counts of one process. Its times are those of the requests; the delay is what a write waits for others to join it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._counts: Counter[tuple[int, Sender, str]] = Counter()
        self._samples: dict[tuple[Sender, str], list[Sample]] = {}
        self._hour = -1
        self._seen: set[Sender] = set()
        self._timer: threading.Timer | None = None
        self._is_ended = False
        self._failures = 0
        self._pruned = -1
        self.totals: Counter[tuple[str, str]] = Counter()  # format and outcome, since the process began

    # -- counting -------------------------------------------------------------------------------

    def judged(self, verdict: Verdict, items: Sequence[Item], *, key_id: str | None, path: str, at: int) -> Sender:
        """Count what became of a request's items; gives whose they are."""
        outcomes = [(ACCEPTED, verdict.accepted)]
        if verdict.duplicates or verdict.ignored or verdict.unknown or verdict.estimated:
            outcomes += [(DUPLICATE, verdict.duplicates), (IGNORED, verdict.ignored), (MISSING, verdict.unknown), (ESTIMATED, verdict.estimated)]
        if verdict.rejected:
            outcomes += Counter(one.error for one in verdict.rejected).items()
        return self._count((key_id or "", _source(items), FORMATS[path]), outcomes, at)

    def refused(self, fault: DomainError, *, key_id: str | None, path: str, at: int) -> None:
        """Count a body that was refused as a whole, and keep what it was refused for; a service that is busy refused nothing."""
        if path not in FORMATS or not isinstance(fault, InvalidInput | Unauthorized | Forbidden):
            return
        sender = self._count((NO_KEY if isinstance(fault, Unauthorized) else key_id or "", "", FORMATS[path]), [(fault.error, 1)], at)
        self._keep(sender, fault.error, Sample(at, None, shapes.safe_detail(fault.message), None))

    def wants(self, sender: Sender, verdict: Verdict) -> bool:
        """Whether there is room for another sample of what was refused."""
        with self._lock:
            return any(len(self._samples.get((sender, error), ())) < SAMPLES for error in {one.error for one in verdict.rejected})

    def sample(self, sender: Sender, verdict: Verdict, body: bytes, media_type: str | None, at: int) -> None:
        """Keep the shapes of a request's first refusals of each class."""
        taken: Counter[str] = Counter()
        for one in verdict.rejected:
            if taken[one.error] < 2:
                taken[one.error] += 1
                shape = shapes.shape_at(body, one.index, media_type=media_type)
                self._keep(sender, one.error, Sample(at, one.index, shapes.safe_detail(one.detail), shape))

    def _count(self, sender: Sender, outcomes: Sequence[tuple[str, int]], at: int) -> Sender:
        sender = self._bounded(sender, at)
        hour = at // _SECOND // 3600 * 3600
        with self._lock:
            for outcome, events in outcomes:
                if events:
                    self._counts[hour, sender, outcome] += events
                    self.totals[sender[2], outcome] += events
            self._schedule()
        return sender

    def _bounded(self, sender: Sender, at: int) -> Sender:
        hour = at // _SECOND // 3600
        with self._lock:
            if hour != self._hour:
                self._hour = hour
                self._seen.clear()
            if sender not in self._seen:
                if len(self._seen) >= _MOST_SENDERS:
                    return (sender[0], OTHERS, sender[2])
                self._seen.add(sender)
        return sender

    def _keep(self, sender: Sender, error: str, sample: Sample) -> None:
        with self._lock:
            kept = self._samples.setdefault((sender, error), [])
            if len(kept) < SAMPLES and all((one.detail, one.shape) != (sample.detail, sample.shape) for one in kept):
                kept.append(sample)
            self._schedule()

    # -- writing --------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._timer is None and not self._is_ended:
            self._timer = threading.Timer(_DELAY_SECONDS, self._due)
            self._timer.daemon = True
            self._timer.start()

    def _due(self) -> None:
        with self._lock:
            self._timer = None
        self.flush()

    def end(self) -> None:
        """Write what is left; nothing is written after it."""
        with self._lock:
            self._is_ended = True
            if self._timer is not None:
                self._timer.cancel()
        self.flush()

    def flush(self) -> None:
        """Write what was counted until now; what a database that is away cannot take waits for the next time."""
        with self._writing:
            with self._lock:
                counts, self._counts = self._counts, Counter()
                samples, self._samples = self._samples, {}
            if not counts and not samples:
                return
            try:
                with self._store.write() as session:
                    self._write(session, counts, samples)
            except Unavailable as fault:
                self._failures += 1
                logger.warning("counts of what arrived wait to be stored: %s", fault.message)
                if self._failures <= _MOST_FAILURES:
                    with self._lock:
                        self._counts.update(counts)
                        for key, waiting in samples.items():
                            self._samples.setdefault(key, waiting)
                        self._schedule()
            else:
                self._failures = 0

    def _write(self, session: Session, counts: Counter[tuple[int, Sender, str]], samples: dict[tuple[Sender, str], list[Sample]]) -> None:
        # In key order: two processes that meet in the same rows wait for each other instead of deadlocking.
        rows = [
            {"hour": hour, "key": sender[0], "source": sender[1], "format": sender[2], "outcome": outcome, "events": events}
            for (hour, sender, outcome), events in sorted(counts.items())
        ]
        if rows:
            session.execute(
                sa.text(
                    "INSERT INTO intake_hour (starts_at, key_id, source, format, outcome, events) VALUES (:hour, :key, :source, :format, :outcome, :events) "
                    "ON CONFLICT (starts_at, key_id, source, format, outcome) DO UPDATE SET events = intake_hour.events + excluded.events"
                ),
                rows,
            )
        for (sender, error), kept in sorted(samples.items(), key=lambda one: one[0]):
            _write_samples(session, sender, error, kept)
        if samples:
            newest = "SELECT seen_at FROM intake_sample ORDER BY seen_at DESC LIMIT 1 OFFSET :most"
            session.execute(sa.text(f"DELETE FROM intake_sample WHERE seen_at <= ({newest})"), {"most": _MOST_SAMPLES})  # noqa: S608 - words of ours
        hour = max((hour for hour, _, _ in counts), default=self._pruned)
        if hour != self._pruned:
            session.execute(sa.text("DELETE FROM intake_hour WHERE starts_at < :oldest"), {"oldest": hour - _KEPT_SECONDS})
            self._pruned = hour


def _write_samples(session: Session, sender: Sender, error: str, kept: Sequence[Sample]) -> None:
    """Into the slots of what said the same, else free ones, else the oldest."""
    place = {"key": sender[0], "source": sender[1], "format": sender[2], "error": error}
    where = "WHERE key_id = :key AND source = :source AND format = :format AND error = :error"
    found = session.execute(sa.text(f"SELECT slot, seen_at, detail, shape FROM intake_sample {where}"), place)  # noqa: S608 - words of ours
    standing = {int(slot): (int(seen_at), detail, shape) for slot, seen_at, detail, shape in found}
    for sample in kept:
        shape = None if sample.shape is None else canonical_json(sample.shape)
        same = next((slot for slot, (_, detail, known) in standing.items() if (detail, known) == (sample.detail, shape)), None)
        free = next((slot for slot in range(SAMPLES) if slot not in standing), None)
        oldest = min(standing, key=lambda slot: standing[slot][0], default=0)
        slot = same if same is not None else free if free is not None else oldest
        standing[slot] = (sample.seen_at, sample.detail, shape)
        session.execute(
            sa.text(
                "INSERT INTO intake_sample (key_id, source, format, error, slot, seen_at, place, detail, shape) "
                "VALUES (:key, :source, :format, :error, :slot, :at, :place, :detail, :shape) ON CONFLICT (key_id, source, format, error, slot) "
                "DO UPDATE SET seen_at = excluded.seen_at, place = excluded.place, detail = excluded.detail, shape = excluded.shape"
            ),
            {**place, "slot": slot, "at": sample.seen_at, "place": sample.place, "detail": sample.detail, "shape": shape},
        )


def _source(items: Sequence[Item]) -> str:
    """The source of a request's first event, '' where none could be read; a request is one sender's."""
    columns = getattr(items, "columns", None)
    if columns is not None:
        return str(columns.said[0].source) if columns.said else ""
    return next((item.source for item in items[:20] if isinstance(item, CapturedEvent)), "")
