"""What was taken back: reversals of stored events, with who asked and why."""

from __future__ import annotations
