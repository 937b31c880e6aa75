"""Reports and exports over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from collector import reports
from collector.api.deps import Caller, Now, Writing
from collector.api.reads import documented, refuse_unknown
from models import ledger
from models.errors import InvalidInput

router = APIRouter(tags=["reports"])
_WEEKLY = ("week", "format", "time_zone")


@router.get("/v1/reports/weekly", summary="The weekly cost report", openapi_extra=documented(*_WEEKLY))
def weekly(request: Request, session: Writing, caller: Caller, now: Now) -> Response:
    """The report of an ISO week as JSON, CSV, HTML or PDF, all from one kept snapshot."""
    refuse_unknown(request, _WEEKLY)
    said = request.query_params
    form = said.get("format") or "json"
    known = next((one for one in reports.FORMATS if one == form), None)
    if known is None:
        raise InvalidInput(f"format must be one of {', '.join(reports.FORMATS)}, not {form[:20]!r}")
    week = ledger.week_of(said.get("week") or None, now=now, time_zone=said.get("time_zone") or "UTC")
    body = reports.weekly_snapshot(session, week, visible=caller.visible, now=now)
    made = reports.written(body, known)
    headers = {"X-Control-Total": made.control_header}
    if known != "json":
        headers["Content-Disposition"] = f'{"inline" if known == "html" else "attachment"}; filename="meterbridge-{week.name}.{known}"'
    if known == "html":
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
    return Response(made.content, headers=headers, media_type=made.media_type)
