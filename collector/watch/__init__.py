"""Watching: measure what every rule and budget is about, decide with ``collector.alerting``, store and tell in one transaction.

``Watcher.run`` is one evaluation. It measures in a reading transaction, so that ingest never waits for it, and then writes
what changed (alerts, claimed budget steps, notices and their deliveries) in one short transaction, or nothing.
``Learner.run`` keeps the limits that answers and 429s teach. All that they know is in the database: another process, or
this one after a restart, goes on where it was left.
"""

from __future__ import annotations

from functools import partial

from collector import notices
from collector.watch.backtest import Known, backtest, backtest_budget
from collector.watch.judge import Post, Watcher, metrics_lines
from collector.watch.learning import Learner
from collector.watch.measures import MEASURES, Reading, Sight

__all__ = ["MEASURES", "Known", "Learner", "Post", "Reading", "Sight", "Watcher", "backtest", "backtest_budget", "metrics_lines", "standing_watch"]


def standing_watch(*, public_url: str = "") -> Watcher:
    """The watch of a process, telling through the outbox; ``public_url`` is where people open the pages that a notice leads to."""
    return Watcher(partial(notices.post, public_url=public_url))
