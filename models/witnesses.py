"""Aggregate witnesses of usage: counters and metrics that are compared with what was counted, and never counted themselves."""

from __future__ import annotations
