"""A request and an answer of the simulator, and the errors in Azure's words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from collector.azure.simulator.faults import Fault
from models import money


@dataclass(frozen=True, slots=True)
class Request:
    """What came in; ``path`` without leading slash, as sent; ``fault`` is what the answer must suffer from."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    base: str  # the listener's own URL
    fault: Fault | None = None
    content: bytes = b""  # the body as it came

    @property
    def folded(self) -> str:
        return self.path.casefold()


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes out."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def with_headers(self, **more: str) -> Answer:
        return Answer(self.status, self.body, {**self.headers, **{name.replace("_", "-"): value for name, value in more.items()}})


class Refused(Exception):
    """A request that Azure answers with an error."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.answer = error(status, code, message, headers)


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """JSON; Decimals go out as numbers with all their digits, as Azure's own do."""
    return Answer(status, dumps(content).encode(), {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """The error body of Azure Resource Manager."""
    return json_answer({"error": {"code": code, "message": message}}, status, headers)


def dumps(content: Any) -> str:
    """JSON text in which a Decimal is a number."""
    match content:
        case Decimal():
            text = money.text(content)
            return text if "." in text else text + ".0"
        case Mapping():
            return "{" + ",".join(f"{json.dumps(name)}:{dumps(value)}" for name, value in content.items()) + "}"
        case str() | int() | float() | None:
            return json.dumps(content)
        case Sequence():
            return "[" + ",".join(dumps(value) for value in content) + "]"
        case _:
            raise TypeError(type(content).__name__)
