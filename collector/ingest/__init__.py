"""Accepting usage: identity, first sight, group commit and the rollups. The one writer of events.

``Ingest.submit`` queues a batch; one thread (``queue``) takes everything that waits, decides (``commit``, with the
names it remembers in ``names``), and commits events and rollups (``rows``) in one transaction; only then are the answers given.

Holds always: an accepted event is on the disk; the rollups of a commit are the sums of its events; what was decided
for one batch never depends on which others shared its commit.
"""

from collector.ingest.batch import Batch, Rejected, Stored, Verdict
from collector.ingest.queue import MAX_COMMIT_EVENTS, MAX_QUEUED_EVENTS, Ingest, closed_months
from collector.ingest.rows import StoredCall

__all__ = ["MAX_COMMIT_EVENTS", "MAX_QUEUED_EVENTS", "Batch", "Ingest", "Rejected", "Stored", "StoredCall", "Verdict", "closed_months"]
