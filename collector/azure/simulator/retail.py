"""The Retail Prices API: OData filters, currencies and pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlencode

from collector.azure.simulator.faults import Fault
from collector.azure.simulator.wire import Answer, Refused, Request, json_answer
from models import money

_Item = Mapping[str, Any]
_Test = Callable[[_Item], bool]
_TOKEN = re.compile(r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<sign>[(),])|(?P<word>[^\s(),']+))")
# Reference rates only: Azure's price is the USD one.
_RATES = {"USD": Decimal(1), "EUR": Decimal("0.92"), "GBP": Decimal("0.79")}


def prices(request: Request, items: Sequence[_Item], *, page_items: int) -> Answer:
    """A page of the items that the filter lets through."""
    currency = request.query.get("currencyCode", "USD").strip("'")
    if currency not in _RATES:
        raise Refused(400, "BadRequest", f"Unsupported currency '{currency}'.")
    # Only the preview version compares filter values with case.
    is_exact = "preview" in request.query.get("api-version", "")
    found = [item for item in items if _Filter(request.query.get("$filter", ""), is_exact=is_exact).passes(item)]
    if request.query.get("meterRegion", "").strip("'") == "primary":
        found = [item for item in found if item.get("isPrimaryMeterRegion")]
    try:
        start = int(request.query.get("$skip") or 0)
    except ValueError as fault:
        raise Refused(400, "BadRequest", "Invalid $skip.") from fault
    page = found[start : start + page_items]
    link = None
    if start + page_items < len(found):
        following = start if request.fault is Fault.NEXT_LINK_LOOP else start + page_items
        link = f"{request.base}/{request.path}?{urlencode({**request.query, '$skip': str(following)}, quote_via=quote)}"
    rate = _RATES[currency]
    told = [{**item, "currencyCode": currency, **{name: money.times(Decimal(str(item[name])), rate) for name in ("retailPrice", "unitPrice")}} for item in page]
    return json_answer(
        {"BillingCurrency": currency, "CustomerEntityId": "Default", "CustomerEntityType": "Retail", "Items": told, "NextPageLink": link, "Count": len(page)}
    )


class _Filter:
    """``armRegionName eq 'eastus2' and (contains(meterName, 'A100') or …)``."""

    def __init__(self, text: str, *, is_exact: bool) -> None:
        self._fold: Callable[[str], str] = str if is_exact else str.casefold
        self._tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text.rstrip()):
            token = _TOKEN.match(text, place)
            if token is None:
                raise Refused(400, "BadRequest", "Invalid OData parameters supplied.")
            self._tokens.append((token.lastgroup or "", token[token.lastgroup or 0]))
            place = token.end()
        self._test = self._any() if self._tokens else None
        if self._tokens:
            raise Refused(400, "BadRequest", "Invalid OData parameters supplied.")

    def passes(self, item: _Item) -> bool:
        return self._test is None or self._test(item)

    def _take(self, *expected: str) -> str:
        if not self._tokens or (expected and self._tokens[0][1].casefold() not in expected):
            raise Refused(400, "BadRequest", "Invalid OData parameters supplied.")
        return self._tokens.pop(0)[1]

    def _next_is(self, word: str) -> bool:
        return bool(self._tokens) and self._tokens[0][1].casefold() == word

    def _any(self) -> _Test:
        tests = [self._all()]
        while self._next_is("or"):
            self._take()
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else lambda item: any(test(item) for test in tests)

    def _all(self) -> _Test:
        tests = [self._one()]
        while self._next_is("and"):
            self._take()
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda item: all(test(item) for test in tests)

    def _one(self) -> _Test:
        if self._next_is("("):
            self._take()
            inner = self._any()
            self._take(")")
            return inner
        name = self._take()
        if name.casefold() == "contains":
            self._take("(")
            field = self._take()
            self._take(",")
            part = self._fold(self._value())
            self._take(")")
            return lambda item: part in self._fold(_text(item.get(field)))
        is_equal = self._take("eq", "ne").casefold() == "eq"
        value = self._fold(self._value())
        return lambda item: (self._fold(_text(item.get(name))) == value) is is_equal

    def _value(self) -> str:
        text = self._take()
        return text[1:-1].replace("''", "'") if text.startswith("'") else text


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
