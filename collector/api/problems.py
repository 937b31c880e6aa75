"""Every error as ``application/problem+json`` (RFC 9457), in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models.errors import Conflict, DomainError, Forbidden, InvalidInput, NotFound, Unauthorized, Unavailable

MEDIA_TYPE = "application/problem+json"
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
    detail = fault.message if status != 500 else "something is wrong in meterbridge itself; the service's log has it"
    return problem(status, detail, error=fault.error, headers=headers)


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
    def _http(_request: Request, fault: HTTPException) -> Response:
        names = {404: "not_found", 405: "method_not_allowed"}
        return problem(fault.status_code, str(fault.detail), error=names.get(fault.status_code, "http"), headers=fault.headers)
