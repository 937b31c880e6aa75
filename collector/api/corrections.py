"""Taking usage back, and what was sent against what stands."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["usage"])
