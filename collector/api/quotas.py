"""Quotas and admission: what is left, and whether a call may go."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["quotas"])
