"""Reports and exports over HTTP."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import IO, Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from collector import focus, reports
from collector.api.deps import Caller, Now, Reading, Stored
from collector.api.reads import documented, refuse_unknown
from collector.api.schedules import router as schedules
from collector.auth import Principal
from models import ledger
from models.errors import InvalidInput
from models.ledger import Filters
from models.store import Store

router = APIRouter(tags=["reports"])
router.include_router(schedules)
_FOCUS = ("month", "version", "format")
_CHUNK = 1024 * 1024
_CLOSE = ("month", "format")


@router.get("/v1/reports/daily", summary="The daily cost report", openapi_extra=documented("day", "format", "time_zone"))
def daily(request: Request, store: Stored, caller: Caller, now: Now) -> Response:
    """The report of a day (the last complete one where ``day`` is not said), with its hours, as JSON, CSV, HTML or PDF."""
    return _cost(request, store, caller, unit="day", now=now)


@router.get("/v1/reports/weekly", summary="The weekly cost report", openapi_extra=documented("week", "format", "time_zone"))
def weekly(request: Request, store: Stored, caller: Caller, now: Now) -> Response:
    """The report of an ISO week as JSON, CSV, HTML or PDF, all from one kept snapshot."""
    return _cost(request, store, caller, unit="week", now=now)


@router.get("/v1/reports/monthly", summary="The monthly cost report", openapi_extra=documented("month", "format", "time_zone"))
def monthly(request: Request, store: Stored, caller: Caller, now: Now) -> Response:
    """The report of a month likewise; its ``standing`` is provisional until the month is closed, then final."""
    return _cost(request, store, caller, unit="month", now=now)


def _cost(request: Request, store: Store, caller: Principal, *, unit: ledger.Unit, now: datetime) -> Response:
    refuse_unknown(request, (unit, "format", "time_zone"))
    said = request.query_params
    known = _format(said.get("format"))
    span = ledger.span_of(unit, said.get(unit) or None, now=now, time_zone=said.get("time_zone") or "UTC")
    body = reports.weekly_snapshot(store, span, Filters(visible=caller.visible), now=now)
    return _answer(body, known, span.name)


@router.get("/v1/reports/close", summary="The month close pack", openapi_extra=documented(*_CLOSE))
def close(request: Request, store: Stored, caller: Caller, now: Now) -> Response:
    """Journal lines, accruals and reconciliation of a month as JSON, CSV, HTML or PDF; final once the month is closed."""
    refuse_unknown(request, _CLOSE)
    said = request.query_params
    known = _format(said.get("format"))
    if not said.get("month"):
        raise InvalidInput("say which month, as month=2026-10")
    month = focus.month_asked(said["month"], now=now)
    body = reports.close_snapshot(store, month, Filters(visible=caller.visible), now=now)
    return _answer(body, known, f"close-{body['month']}")


def _format(said: str | None) -> reports.Format:
    form = said or "json"
    known = next((one for one in reports.FORMATS if one == form), None)
    if known is None:
        raise InvalidInput(f"format must be one of {', '.join(reports.FORMATS)}, not {form[:20]!r}")
    return known


def _answer(body: Mapping[str, Any], form: reports.Format, name: str) -> Response:
    made = reports.written(body, form)
    headers = {"X-Control-Total": made.control_header}
    if form != "json":
        headers["Content-Disposition"] = f'{"inline" if form == "html" else "attachment"}; filename="meterbridge-{name}.{form}"'
    if form == "html":
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
    return Response(made.content, headers=headers, media_type=made.media_type)


@router.get("/v1/export/focus", summary="A month in FOCUS", openapi_extra=documented(*_FOCUS))
def export_focus(request: Request, session: Reading, caller: Caller, now: Now) -> Response:
    """A billing month as FOCUS 1.2 (1.3 and 1.4 by ``version``), CSV or Parquet; a key of some workspaces gets their rows."""
    refuse_unknown(request, _FOCUS)
    said = request.query_params
    version, form = focus.checked(said.get("version") or "1.2", said.get("format") or "csv")
    if not said.get("month"):
        raise InvalidInput("say which month, as month=2026-10")
    about = ledger.focus_month(session, focus.month_asked(said["month"], now=now), now=now)
    # Whole before the first byte goes out: the control total stands in a header, and half a file must not look whole.
    spooled = tempfile.TemporaryFile(prefix="meterbridge-focus-")  # noqa: SIM115 - closed by the answer
    try:
        made = focus.export(session, about, spooled, version=version, form=form, visible=caller.visible, now=now)
    except BaseException:
        spooled.close()
        raise
    size = spooled.tell()
    headers = {
        "X-Control-Total": made.control_header,
        "Content-Disposition": f'attachment; filename="meterbridge-focus-{about.month:%Y-%m}.{form}"',
        "Content-Length": str(size),
    }
    return StreamingResponse(_pieces(spooled), headers=headers, media_type=focus.MEDIA_TYPES[form])


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        stream.seek(0)
        while piece := stream.read(_CHUNK):
            yield piece
