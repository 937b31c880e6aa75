"""Azure's list prices come in here: for the VM sizes, regions and token meters that are in use, exactly one price each or a word why not.

The Retail Prices API needs no sign-in and is never sent one. A plain Linux hour is told from its look-alikes (Spot, Low
Priority, Windows, DevTest, reservations, secondary regions). Marketplace offers are not in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlmodel import Session

from collector import pricing
from collector.azure.client import LONGEST_WAIT, retry_seconds
from collector.billing.classify import meter_kind, model_from
from collector.pricing import PriceRow
from models import ledger, money
from models.charges import MeterKind
from models.errors import UpstreamError
from models.meters import unit_from
from models.periods import parse_instant
from models.prices import PriceMeter
from models.resources import Mode
from models.store import Store

AUTHOR = "azure"
_MOST_PAGES = 200
_MOST_TRIES = 6
_SIZES_ASKED = 15  # at once: a filter has a longest length
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_METERS = {MeterKind.INPUT: PriceMeter.INPUT_TOKENS, MeterKind.OUTPUT: PriceMeter.OUTPUT_TOKENS, MeterKind.CACHED_INPUT: PriceMeter.CACHED_INPUT_TOKENS}
_TOKEN_UNITS = {Decimal(1_000): "1K tokens", Decimal(1_000_000): "1M tokens"}

Say = Callable[[str], None]
Progress = Callable[[int, int | None], None]
_Item = Mapping[str, Any]


def sync(
    store: Store,
    *,
    base_url: str,
    now: Callable[[], datetime],
    say: Say,
    progress: Progress,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Bring in the prices of what the registry knows; gives what came of it in one line. Raises where the list could not be read."""
    with store.read() as session:
        places = _places(session, now=now())
    rows: list[PriceRow] = []
    doubts: list[str] = []
    with httpx.Client(trust_env=False, timeout=60, follow_redirects=False) as client:
        source = _Source(client, base_url, now=now, sleep=sleep)
        for number, (region, sizes) in enumerate(sorted(places.items())):
            progress(number, len(places))
            wanted = sorted(sizes)
            for start in range(0, len(wanted), _SIZES_ASKED):
                asked = wanted[start : start + _SIZES_ASKED]
                names = " or ".join(f"armSkuName eq {_quoted(name)}" for name in asked)
                items = source.items(f"serviceName eq 'Virtual Machines' and armRegionName eq {_quoted(region)} and ({names})")
                found, unclear = hours(items, asked, region, now=now())
                rows += found
                doubts += unclear
            found, unclear = tokens(
                source.items(f"serviceName eq 'Foundry Models' and armRegionName eq {_quoted(region)} and contains(meterName, 'Llama')"), region, now=now()
            )
            rows += found
            doubts += unclear
        progress(len(places), len(places))
    for doubt in doubts:
        say(doubt)
    if not places:
        return "prices: no region or VM size is known yet; meterbridge sync inventory finds them"
    with store.write() as session:
        done = pricing.store_prices(session, rows, origin="synced", version=f"retail-{now():%Y-%m-%d}", now=now(), author=AUTHOR)
    return done.summary() + (f"; {len(doubts)} without one clear price" if doubts else "")


def _places(session: Session, *, now: datetime) -> dict[str, set[str]]:
    """Region -> the VM sizes in use there; a region of serverless deployments alone has none."""
    found: dict[str, set[str]] = {}
    for one in ledger.deployments(session, visible=None, now=now):
        if one.region:
            sizes = found.setdefault(one.region.casefold().replace(" ", ""), set())
            if one.mode == Mode.MANAGED_COMPUTE and one.sku:
                sizes.add(one.sku)
    return found


def hours(items: Iterable[_Item], sizes: Iterable[str], region: str, *, now: datetime) -> tuple[list[PriceRow], list[str]]:
    """The Linux pay-as-you-go hour of each size: one price, or a word why there is none."""
    by_size: dict[str, list[_Item]] = {}
    for item in items:
        meter, product = str(item.get("meterName") or ""), str(item.get("productName") or "")
        is_plain = (
            not any(word in f"{meter} {item.get('skuName') or ''}".casefold() for word in ("spot", "low priority")) and "windows" not in product.casefold()
        )
        if (
            item.get("type") == "Consumption"
            and item.get("unitOfMeasure") == "1 Hour"
            and is_plain
            and item.get("isPrimaryMeterRegion") is not False
            and not _amount(item, "tierMinimumUnits")
        ):
            by_size.setdefault(str(item.get("armSkuName") or "").casefold(), []).append(item)
    rows: list[PriceRow] = []
    doubts: list[str] = []
    for size in sizes:
        row = _one(by_size.get(size.casefold(), []), now=now)
        if isinstance(row, str):
            doubts.append(f"{size} in {region}: {row}; import a price of your own: meterbridge import prices FILE")
            continue
        item, since = row
        rows.append(
            PriceRow(
                PriceMeter.INSTANCE_HOURS,
                _amount(item, "unitPrice"),
                str(item["currencyCode"]),
                "1 hour",
                valid_from=since,
                sku=size,
                region=region,
                source=f"Azure Retail Prices, meter {item.get('meterId')}",
            )
        )
    return rows, doubts


def tokens(items: Iterable[_Item], region: str, *, now: datetime) -> tuple[list[PriceRow], list[str]]:
    """The token prices of Foundry's meters: one price for a model and direction, or a word why there is none."""
    by_meter: dict[tuple[str, PriceMeter], list[_Item]] = {}
    for item in items:
        meter = str(item.get("meterName") or "")
        kind, is_fine_tuned = meter_kind(meter)
        model = model_from([meter])
        if (
            item.get("type") == "Consumption"
            and model
            and kind in _METERS
            and not is_fine_tuned
            and not _is_special(meter)
            and item.get("isPrimaryMeterRegion") is not False
        ):
            by_meter.setdefault((model, _METERS[kind]), []).append(item)
    rows: list[PriceRow] = []
    doubts: list[str] = []
    for (model, meter_name), found in sorted(by_meter.items()):
        row = _one(found, now=now)
        unit = None if isinstance(row, str) else unit_from(str(row[0].get("unitOfMeasure") or ""))
        if isinstance(row, str) or unit is None or unit.size not in _TOKEN_UNITS:
            why = row if isinstance(row, str) else f"its unit {row[0].get('unitOfMeasure')!r} is not known"
            doubts.append(f"{meter_name.value} of {model} in {region}: {why}; import a price of your own: meterbridge import prices FILE")
            continue
        item, since = row
        rows.append(
            PriceRow(
                meter_name,
                _amount(item, "unitPrice"),
                str(item["currencyCode"]),
                _TOKEN_UNITS[unit.size],
                model=model,
                valid_from=since,
                region=region,
                source=f"Azure Retail Prices, meter {item.get('meterId')}",
            )
        )
    return rows, doubts


def _is_special(meter: str) -> bool:
    """Batch, provisioned and data-zone meters are other prices for the same model."""
    words = meter.casefold().split()
    return any(word in words for word in ("batch", "ptu", "provisioned", "dz", "dzone"))


def _one(items: list[_Item], *, now: datetime) -> tuple[_Item, datetime | None] | str:
    """The one price in force; a word where there is none or more than one."""
    dated = [(parse_instant(str(item["effectiveStartDate"]), what="effectiveStartDate") if item.get("effectiveStartDate") else None, item) for item in items]
    begun = [(since, item) for since, item in dated if since is None or since <= now]
    if not begun:
        return "the list has no price"
    newest = max((since or datetime.min.replace(tzinfo=UTC)) for since, _ in begun)
    current = [(since, item) for since, item in begun if (since or datetime.min.replace(tzinfo=UTC)) == newest]
    amounts = {(_amount(item, "unitPrice"), item.get("currencyCode"), item.get("unitOfMeasure")) for _, item in current}
    if len(amounts) > 1:
        told = ", ".join(sorted(f"{money.text(amount)} {currency}" for amount, currency, _ in amounts))
        return f"the list has {len(amounts)} prices ({told})"
    since, item = current[0]
    return item, None if since is None else since.replace(minute=0, second=0, microsecond=0)


def _amount(item: _Item, name: str) -> Decimal:
    return Decimal(str(item.get(name) or 0))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: Azure's own links say ``:443`` where nobody else does."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return "", None, None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class _Source:
    """The list, page by page, to its end."""

    def __init__(self, client: httpx.Client, base_url: str, *, now: Callable[[], datetime], sleep: Callable[[float], None]) -> None:
        self._client, self._base_url, self._now, self._sleep = client, base_url, now, sleep

    def items(self, asked: str) -> list[_Item]:
        """Every item that the filter lets through."""
        answer = self._page(self._base_url, {"$filter": asked})
        found: list[_Item] = []
        seen: set[str] = set()
        while True:
            page = answer.get("Items")
            if not isinstance(page, list):
                raise UpstreamError("the list of retail prices answered with something that is no list", retryable=True)
            found += page
            link = answer.get("NextPageLink")
            if not link:
                return found
            if link in seen or len(seen) >= _MOST_PAGES:
                raise UpstreamError("the pages of the retail prices lead in a circle; nothing of them was taken", retryable=True)
            if _origin(link) != _origin(self._base_url):
                raise UpstreamError(f"the list of retail prices points to another host ({_origin(link)[1]})", retryable=False)
            seen.add(link)
            answer = self._page(link, None)

    def _page(self, url: str, params: Mapping[str, str] | None) -> dict[str, Any]:
        said = ""
        for tried in range(_MOST_TRIES):
            wait: float | None = None
            try:
                response = self._client.get(url, params=params)
                if response.status_code == 200:
                    found: dict[str, Any] = json.loads(response.text, parse_float=Decimal)
                    return found
                said = f"status {response.status_code}"
                if response.status_code not in _RETRIED:
                    break
                wait = retry_seconds(response.headers, now=self._now())
            except (httpx.HTTPError, ValueError) as fault:
                said = type(fault).__name__
            wait = min(0.5 * 2**tried, 30.0) if wait is None else wait
            if wait > LONGEST_WAIT:
                break
            self._sleep(wait)
        raise UpstreamError(f"the list of retail prices could not be read: {said}", retryable=True)
