"""Where facts come from: pulls, their runs and their state."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["sources"])
