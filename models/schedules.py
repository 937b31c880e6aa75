"""Schedules of reports and what was delivered."""

from __future__ import annotations
