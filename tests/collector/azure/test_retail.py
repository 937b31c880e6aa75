"""The list of retail prices as the real host sends it: pages whose links say the port, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from collector.azure import retail
from models.errors import UpstreamError
from models.prices import PriceMeter

DATA = Path(__file__).parents[2] / "data" / "azure"
BASE = "https://prices.azure.com/api/retail/prices"
NOW = datetime(2026, 10, 5, 6, tzinfo=UTC)


def asked(answer: Callable[[httpx.Request], httpx.Response], slept: list[float] | None = None) -> list[Any]:
    """Every item that a host answering so has."""
    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        source = retail._Source(client, BASE, now=lambda: NOW, sleep=(slept if slept is not None else []).append)
        return list(source.items("armRegionName eq 'eastus2'"))


def test_the_recorded_pages_are_read_to_their_end_and_each_size_has_its_one_price() -> None:
    pages = [(DATA / f"retail_prices_page{number}.json").read_text() for number in (1, 2)]
    said = json.loads(pages[0])["NextPageLink"]
    # As Azure writes it: with the port.
    assert said.startswith("https://prices.azure.com:443/")
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, text=pages[len(seen) - 1])

    items = asked(answer)
    assert len(seen) == 2
    rows, doubts = retail.hours(items, ["STANDARD_NC24ADS_A100_V4", "Standard_NC6s_v3", "Standard_NC48ads_A100_v4"], "eastus2", now=NOW)
    assert [(row.sku, row.meter, row.unit_price, row.currency, row.unit) for row in rows] == [
        ("STANDARD_NC24ADS_A100_V4", PriceMeter.INSTANCE_HOURS, Decimal("3.673"), "USD", "1 hour"),
        ("Standard_NC6s_v3", PriceMeter.INSTANCE_HOURS, Decimal("3.06"), "USD", "1 hour"),
    ]
    assert doubts == ["Standard_NC48ads_A100_v4 in eastus2: the list has no price; import a price of your own: meterbridge import prices FILE"]


@pytest.mark.parametrize(
    "link",
    [
        "https://prices.example/api/retail/prices?$skip=1",
        "http://prices.azure.com/api/retail/prices?$skip=1",
        "https://prices.azure.com:8443/api/retail/prices?$skip=1",
        "https://prices.azure.com@prices.example/api/retail/prices",
        "https://prices.azure.com:x/api/retail/prices",
    ],
)
def test_a_link_elsewhere_is_not_followed(link: str) -> None:
    with pytest.raises(UpstreamError, match="points to another host"):
        asked(lambda _request: httpx.Response(200, json={"Items": [], "NextPageLink": link}))


def test_a_throttle_is_waited_for_and_a_long_one_is_not() -> None:
    answers = [httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(503), httpx.Response(200, json={"Items": [], "NextPageLink": ""})]
    slept: list[float] = []
    assert asked(lambda _request: answers.pop(0), slept) == []
    assert slept == [7.0, 1.0]
    slept = []
    with pytest.raises(UpstreamError, match="status 429"):
        asked(lambda _request: httpx.Response(429, headers={"Retry-After": "3600"}), slept)
    assert slept == []


@pytest.mark.parametrize("body", ['{"Items": 3}', "{}"])
def test_what_is_no_list_is_refused(body: str) -> None:
    with pytest.raises(UpstreamError, match="no list"):
        asked(lambda _request: httpx.Response(200, text=body))
