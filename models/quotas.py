"""Limits of pools and where each was learnt."""

from __future__ import annotations
