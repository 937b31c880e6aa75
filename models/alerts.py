"""Rules, budgets, silences and the alerts they made: each row tells when and why it changed."""

from __future__ import annotations
