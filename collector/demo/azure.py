"""The sample company's Azure, served by the simulator and read through the real Azure SDK."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Mapping
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from collector import billing
from collector.azure import inventory, quotas
from collector.azure.simulator import Estate, Simulator
from models.errors import UpstreamError
from models.periods import DAY, month_start, next_month, utc_day
from models.store import Store

What = Literal["inventory", "quotas", "costs"]
_TOKEN = "sample"  # noqa: S105 (the simulator lets this one in)


class SampleAzure:
    """An Azure for as long as the block lasts; ``sync`` pulls from it as the command of that name does."""

    def __init__(self, estate: Estate, store: Store, *, first_day: date, now: Callable[[], datetime]) -> None:
        self._store, self._first_day, self._now = store, first_day, now
        self._simulator = Simulator(estate, now, token=_TOKEN)
        self._client: Any = None
        self._subscriptions = [each.id for each in estate.subscriptions()]

    def __enter__(self) -> Self:
        # The SDK takes longer to load than most commands take to run.
        from azure.core.pipeline.policies import SansIOHTTPPolicy  # noqa: PLC0415
        from azure.mgmt.costmanagement import CostManagementClient  # noqa: PLC0415

        class Bearer(SansIOHTTPPolicy[Any, Any]):
            """The SDK itself signs only what is encrypted; these calls never leave the machine."""

            def on_request(self, request: Any) -> None:
                request.http_request.headers["Authorization"] = f"Bearer {_TOKEN}"

        self._simulator.start()
        signs: Any = Bearer()
        nobody: Any = _Nobody()
        self._client = CostManagementClient(nobody, base_url=self._simulator.arm_url, authentication_policy=signs, retry_total=2, retry_backoff_factor=0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()
        self._simulator.stop()

    @property
    def environment(self) -> Mapping[str, str]:
        """The settings that point another meterbridge at this Azure."""
        return self._simulator.environment()

    def sync(self, what: What, stop: threading.Event) -> str:
        """Pull; gives what came of it in one line."""
        match what:
            case "inventory":
                done = inventory.sync(self._store, self, self._subscriptions, now=self._now)
                return f"{sum(each.deployments.added + each.deployments.changed + each.deployments.unchanged for each in done.imported)} deployments"
            case "quotas":
                return quotas.sync(self._store, self, self._subscriptions, now=self._now).summary()
            case "costs":
                return self._costs(stop)

    # -- Resource Manager -----------------------------------------------------------------------

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One answer."""
        from azure.core.rest import HttpRequest  # noqa: PLC0415

        return self._answer(HttpRequest("GET", path, params={**(params or {}), "api-version": api_version}))

    def arm_list(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Every object of a list."""
        from azure.core.rest import HttpRequest  # noqa: PLC0415

        answer = self.arm_get(path, api_version=api_version, params=params)
        found = list(answer["value"])
        while link := answer.get("nextLink"):
            answer = self._answer(HttpRequest("GET", link))
            found += answer["value"]
        return found

    def _answer(self, request: Any) -> dict[str, Any]:
        response = self._client.send_request(request)
        if response.status_code != 200:
            raise UpstreamError(f"the simulated Azure answered {response.status_code}", retryable=False)
        found: dict[str, Any] = json.loads(response.text())
        return found

    # -- Cost Management ------------------------------------------------------------------------

    def _costs(self, stop: threading.Event) -> str:
        """Land the report of every subscription and month; what has not changed since is left as it is."""
        today, months, rows = utc_day(self._now()), 0, 0
        month = month_start(self._first_day)
        while month <= today:
            for subscription in self._subscriptions:
                if stop.is_set():
                    return "stopped"
                landing = self._land_month(subscription, month)
                if landing is not None:
                    months, rows = months + 1, rows + landing.rows
            month = next_month(month)
        return f"{rows:,} rows of {months} months of {len(self._subscriptions)} subscriptions"

    def _land_month(self, subscription: str, month: date) -> billing.Landing | None:
        period = {"start": month.isoformat(), "end": (next_month(month) - DAY).isoformat()}
        body = {"metric": "ActualCost", "timePeriod": period}
        report = self._client.generate_cost_details_report.begin_create_operation(f"subscriptions/{subscription}", body).result()
        if report is None or report.status == "NoDataFound":
            return None
        if report.status != "Completed":
            raise UpstreamError(f"the report of {subscription} for {month:%Y-%m} ended as {report.status}", retryable=True)
        with tempfile.TemporaryDirectory(prefix="meterbridge-demo-") as folder, httpx.Client(trust_env=False, timeout=8) as bare:
            bills = []
            for number, blob in enumerate(report.manifest.blobs):
                # Never with the SDK: it would send its token along.
                path = Path(folder) / f"{subscription}-{month:%Y-%m}-part_{number}_0001.csv"
                path.write_bytes(bare.get(blob.blob_link).raise_for_status().content)
                bills.append(billing.read_bill(path, name=path.name))
            return billing.land(self._store, billing.together(bills), now=self._now, author="azure", replace=True)


class _Nobody:
    """A credential that is never asked: the policy above signs."""

    def get_token(self, *_scopes: str, **_options: object) -> Any:
        raise AssertionError("the policy signs")
