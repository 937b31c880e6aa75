"""Every error as ``application/problem+json`` (RFC 9457), in one place."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models.errors import Conflict, DomainError, Forbidden, InvalidInput, NotFound, Unauthorized, Unavailable

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
INTERNAL = "something is wrong in meterbridge itself; the service's log says more"
_STATUS_OF_CLASS = {"too_large": 413, "unsupported_media_type": 415, "unsupported_encoding": 415, "malformed": 400}


def status_of(fault: DomainError) -> int:
    """The HTTP status that says what kind of fault it is."""
    match fault:
        case InvalidInput():
            return _STATUS_OF_CLASS.get(fault.error, 422)
        case NotFound():
            return 404
        case Conflict():
            return 409
        case Forbidden():
            return 403
        case Unauthorized():
            return 401
        case Unavailable():
            return 503
        case _:
            return 500


def problem(status: int, detail: str, *, error: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """A problem document; ``error`` is the class that programs look at."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, "error": error, **more}
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, status, headers={"x-content-type-options": "nosniff", **(headers or {})}, media_type=MEDIA_TYPE)


def problem_of(fault: DomainError) -> Response:
    """The fault as a problem document."""
    status = status_of(fault)
    headers: dict[str, str] = {}
    if isinstance(fault, Unavailable):
        headers["retry-after"] = str(fault.retry_after_seconds)
    if isinstance(fault, Unauthorized):
        headers["www-authenticate"] = 'Bearer realm="meterbridge"'
    detail = fault.message
    if status == 500:
        logger.error("a request failed", exc_info=fault)
        detail = INTERNAL
    elif isinstance(fault, Unavailable) and fault.__cause__ is not None:
        # What a database says of itself (its host, its user, its rows) is for the log, not for whoever asks.
        logger.warning("%s", fault.message)
        detail = "the database does not answer; nothing was accepted, send the same again in a moment"
    more = {}
    if isinstance(fault, InvalidInput) and fault.field:
        detail, more["field"] = f"{fault.field}: {detail}", fault.field
    return problem(status, detail, error=fault.error, headers=headers, **more)


def install(app: FastAPI) -> None:
    """Render every fault of the app as a problem."""

    @app.exception_handler(DomainError)
    def _domain(_request: Request, fault: DomainError) -> Response:
        return problem_of(fault)

    @app.exception_handler(RequestValidationError)
    def _validation(_request: Request, fault: RequestValidationError) -> Response:
        faults = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in fault.errors()]
        return problem(422, "; ".join(faults)[:1000], error="schema_invalid")

    @app.exception_handler(HTTPException)
    def _http(request: Request, fault: HTTPException) -> Response:
        match fault.status_code:
            case 404:
                error, detail = "not_found", f"there is nothing at {request.url.path[:80]}; /docs lists what there is"
            case 405:
                error, detail = "method_not_allowed", f"{request.url.path[:80]} is not for {request.method[:20]}; /docs lists what there is"
            case _:
                error, detail = "http", str(fault.detail)
        return problem(fault.status_code, detail, error=error, headers=fault.headers)
