"""Bill rows as files have them, and where a test puts files and lands them."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import select

from collector.billing import BillRow, Landing, land, read_bill, together
from models import money
from models.charges import BillPart, Charge, ChargeDay, ChargeItem
from models.store import Store

AZURE = Path(__file__).parents[2] / "data" / "azure"
FOCUS = Path(__file__).parents[2] / "data" / "focus"
NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
LATER = NOW + timedelta(hours=4)
A, B = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
WORKSPACE = f"/subscriptions/{A}/resourceGroups/rg-ai/providers/Microsoft.MachineLearningServices/workspaces/ws-east"
SAAS = f"/subscriptions/{A}/resourceGroups/rg-ai/providers/Microsoft.SaaS/resources/llama-offer"
# A Llama input-token row as cost details have it; tests change what they are about.
TOKENS = {
    "date": "03/01/2025",
    "billingPeriodStartDate": "03/01/2025",
    "billingAccountId": "acct",
    "SubscriptionId": A,
    "resourceGroupName": "rg-ai",
    "ResourceId": SAAS,
    "publisherType": "Marketplace",
    "publisherName": "Meta",
    "consumedService": "Microsoft.SaaS",
    "meterCategory": "SaaS",
    "meterSubCategory": "meta-llama-3-1-8b-instruct-offer",
    "meterName": "Meta-Llama-3.1-8B-Instruct - plan-a - paygo-inference-input-tokens",
    "ProductName": "Meta-Llama-3.1-8B-Instruct - plan-a",
    "resourceLocation": "global",
    "unitOfMeasure": "1K",
    "quantity": "100",
    "effectivePrice": "0.0003",
    "chargeType": "Usage",
    "billingCurrency": "USD",
    "pricingCurrency": "USD",
    "costInBillingCurrency": "0.03",
    "exchangeRatePricingToBilling": "1",
    "exchangeRateDate": "03/01/2025",
    "additionalInfo": "",
    "tags": "",
    "costCenter": "",
    "reservationId": "",
}
VM = TOKENS | {
    "ResourceId": WORKSPACE,
    "publisherType": "Microsoft",
    "publisherName": "Microsoft",
    "consumedService": "Microsoft.MachineLearningServices",
    "meterCategory": "Virtual Machines",
    "meterSubCategory": "NCadsA100v4 Series",
    "meterName": "NC24ads A100 v4",
    "ProductName": "Virtual Machines NCadsA100v4 Series - NC24ads A100 v4 - US East 2",
    "resourceLocation": "eastus2",
    "unitOfMeasure": "1 Hour",
    "quantity": "24",
    "effectivePrice": "3.673",
    "costInBillingCurrency": "88.152",
    "additionalInfo": '{"ServiceType": "Standard_NC24ads_A100_v4", "VCPUs": 24}',
    "tags": '{"azuremlendpoint": "ep", "azuremldeployment": "blue"}',
}
FOCUS_ROW = {
    "BilledCost": "0.03",
    "BillingCurrency": "USD",
    "BillingPeriodStart": "2025-03-01T00:00:00Z",
    "ChargeCategory": "Usage",
    "ChargeClass": "",
    "ChargeDescription": "Meta-Llama-3.1-8B-Instruct inference input tokens",
    "ChargePeriodStart": "2025-03-01T00:00:00Z",
    "ConsumedQuantity": "100000",
    "ConsumedUnit": "Tokens",
    "EffectiveCost": "0.03",
    "PricingQuantity": "100",
    "PricingUnit": "1000 Tokens",
    "PublisherName": "Meta",
    "RegionId": "global",
    "ResourceId": SAAS.lower(),
    "ServiceName": "Azure Marketplace",
    "SkuMeter": "paygo-inference-input-tokens",
    "SubAccountId": f"/subscriptions/{A}",
    "Tags": "{}",
}


def as_csv(rows: Iterable[Mapping[str, str]], *, header: Iterable[str] | None = None) -> str:
    made = [dict(row) for row in rows]
    names = list(header) if header is not None else list(made[0])
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(made)
    return out.getvalue()


class Desk:
    """Where a test puts files and lands them."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store

    def file(self, content: str | bytes, name: str = "bill.csv") -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def land(self, *paths: Path, now: datetime | Callable[[], datetime] = NOW, replace: bool = False) -> Landing:
        return land(self.store, together([read_bill(path, name=path.name) for path in paths]), now=now, author="ana", replace=replace)

    def rows(self, *rows: Mapping[str, str], name: str = "bill.csv", now: datetime = NOW, replace: bool = False) -> Landing:
        return self.land(self.file(as_csv(rows), name), now=now, replace=replace)

    def read(self, *rows: Mapping[str, str], name: str = "bill.csv") -> list[BillRow]:
        return list(read_bill(self.file(as_csv(rows), name), name=name).rows())

    def parts(self) -> list[BillPart]:
        with self.store.read() as session:
            parts = list(session.exec(select(BillPart).order_by(sa.text("id"))))
            session.expunge_all()
        return parts

    def current(self) -> list[tuple[Charge, ChargeItem]]:
        return self._current(Charge)

    def days(self) -> list[tuple[ChargeDay, ChargeItem]]:
        return self._current(ChargeDay)

    def _current(self, table: Any) -> list[Any]:
        with self.store.read() as session:
            rows = session.exec(select(table, ChargeItem).join(ChargeItem, table.item_id == ChargeItem.id).where(table.part_id.in_(_current_parts()))).all()
            session.expunge_all()
        return [(row, item) for row, item in rows]

    def counts(self) -> tuple[int, int, int]:
        with self.store.read() as session:
            parts, charges, days = (session.scalar(sa.text(f"SELECT count(*) FROM {table}")) for table in ("bill_part", "charge", "charge_day"))
        return int(parts or 0), int(charges or 0), int(days or 0)


def _current_parts() -> Any:
    return sa.text("SELECT id FROM bill_part WHERE landed_at IS NOT NULL AND superseded_at IS NULL").columns(sa.column("id", sa.BigInteger)).scalar_subquery()


def sums(rows: Iterable[tuple[Any, ChargeItem]], key: Callable[[Any, ChargeItem], Any]) -> dict[Any, Decimal]:
    found: dict[Any, Decimal] = defaultdict(lambda: money.ZERO)
    for row, item in rows:
        if (where := key(row, item)) is not None:
            found[where] += row.billed_cost
    return dict(found)


def by_class(row: Any, item: ChargeItem) -> Any:
    return item.charge_class.value, row.currency
