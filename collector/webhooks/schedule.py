"""When a delivery is tried: soon at first, then ever more rarely, for 75 hours."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# Since the first attempt: 0, 5, 30 s, 2, 10 min, 1, 3, 7, 15, 24, 36, 48, 61, 75 h.
_HOUR = 3600
OFFSETS = (0, 5, 30, 120, 600, *(hours * _HOUR for hours in (1, 3, 7, 15, 24, 36, 48, 61, 75)))
LONGEST = timedelta(seconds=OFFSETS[-1])
# No answer makes us wait longer than this before the next attempt.
LONGEST_RETRY_AFTER = timedelta(hours=6)
BREAKS_AFTER = 5
_FIRST_REST, _LONGEST_REST = timedelta(seconds=30), timedelta(minutes=10)


def next_attempt(delivery_id: str, *, step: int, started_at: datetime, now: datetime, retry_after: timedelta | None = None) -> datetime | None:
    """When to try again after the attempt ``step`` (from 0) failed at ``now``; None: it was the last one.

    Each gap is stretched by up to a tenth, the same for the same delivery and step: receivers are not met by everybody at once.
    """
    if step + 1 >= len(OFFSETS) or now - started_at >= LONGEST:
        return None
    gap = OFFSETS[step + 1] - OFFSETS[step]
    chance = int.from_bytes(hashlib.sha256(f"{delivery_id}:{step}".encode()).digest()[:4], "big") / 2**32
    at = now + timedelta(seconds=gap * (1 + chance / 10))
    if retry_after is not None:
        at = max(at, now + min(retry_after, LONGEST_RETRY_AFTER))
    # The last attempt is at 75 hours, not after.
    return max(min(at, started_at + LONGEST), now)


def rest(failures: int) -> timedelta | None:
    """How long a receiver that failed ``failures`` times in a row is left alone; then one attempt probes it."""
    if failures < BREAKS_AFTER:
        return None
    doublings: int = min(failures - BREAKS_AFTER, 10)
    return min(_FIRST_REST * (1 << doublings), _LONGEST_REST)


def retry_after(value: str | None, *, now: datetime) -> timedelta | None:
    """What the header Retry-After asks for: seconds, or a date."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return timedelta(seconds=min(int(value[:9]), 10**8))
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(at - now, timedelta(0))
