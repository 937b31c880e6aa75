"""Who runs which job now: fenced leases."""

from __future__ import annotations
