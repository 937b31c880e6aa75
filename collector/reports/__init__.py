"""Reports: an immutable snapshot of the ledger's figures, and the formats it is written in.

Every format is a pure function of the snapshot's body, so that the same report can be produced again for ever. What
changes later makes a numbered restatement, which names the difference; the first one stays as it was sent.
"""

from collector.reports.command import CloseReport, CostReport, write_close, write_cost
from collector.reports.formats import FORMATS, MEDIA_TYPES, Format, Written, written
from collector.reports.snapshots import Draft, close_draft, close_snapshot, keep, weekly_draft, weekly_snapshot
from collector.reports.words import UNITS

__all__ = [
    "FORMATS",
    "MEDIA_TYPES",
    "UNITS",
    "CloseReport",
    "CostReport",
    "Draft",
    "Format",
    "Written",
    "close_draft",
    "close_snapshot",
    "keep",
    "weekly_draft",
    "weekly_snapshot",
    "write_close",
    "write_cost",
    "written",
]
