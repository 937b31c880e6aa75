"""The client against the simulator: what it waits for, whom it signs for, what it says when Azure refuses."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from collector.azure.client import Azure, AzureSettings, Expired, Refusal, Rescheduled, retry_seconds
from collector.azure.simulator import Fault, InventedWorld, Simulator
from collector.settings import Settings
from models.errors import DomainError, Forbidden, InvalidInput, NotFound, Unauthorized, UpstreamError

NOW = datetime(2026, 10, 5, 6, tzinfo=UTC)
WORKSPACES = "/subscriptions/{}/providers/Microsoft.MachineLearningServices/workspaces"
VERSION = "2024-10-01"
PREFIX = "x-ms-ratelimit-microsoft.costmanagement-"

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@dataclass
class Place:
    """A simulator with a client that sleeps on paper."""

    simulator: Simulator
    settings: AzureSettings
    slept: list[float] = field(default_factory=list)

    def client(self, **options: Any) -> Azure:
        return Azure(self.settings, now=lambda: NOW, sleep=self.slept.append, timeout=0.5, **options)

    @property
    def subscription(self) -> str:
        return self.settings.subscriptions[0]


@pytest.fixture
def place() -> Iterator[Place]:
    world = InventedWorld(1, date(2026, 9, 28), date(2026, 10, 4), subscription_count=1)
    with Simulator(world, lambda: NOW, token="secret-token", page_objects=1) as simulator:
        simulator.faults.hang_seconds = 0.02
        yield Place(simulator, AzureSettings.of(Settings.from_environment(simulator.environment())))


# -- lists ----------------------------------------------------------------------------------------


def test_a_list_is_read_to_its_last_page(place: Place) -> None:
    with place.client() as azure:
        found = azure.arm_list(WORKSPACES.format(place.subscription), api_version=VERSION)
    assert len(found) > 1  # one to a page
    assert len({each["id"] for each in found}) == len(found)


def test_pages_that_lead_in_a_circle_are_refused(place: Place) -> None:
    place.simulator.faults.arm(Fault.NEXT_LINK_LOOP, times=10)
    with place.client() as azure, pytest.raises(UpstreamError, match="lead in a circle"):
        azure.arm_list(WORKSPACES.format(place.subscription), api_version=VERSION)


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.ERROR_502, Fault.ERROR_503, Fault.HANG, Fault.RESET, Fault.TRUNCATED, Fault.UNAUTHORIZED_ONCE])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_passing_fault_is_got_over(place: Place, fault: Fault, method: str) -> None:
    place.simulator.faults.arm(fault, times=1 if fault is Fault.UNAUTHORIZED_ONCE else 2)
    with place.client() as azure:
        if method == "GET":
            assert azure.arm_list(WORKSPACES.format(place.subscription), api_version=VERSION)
        else:
            columns, rows, _ = azure.query(f"subscriptions/{place.subscription}", _daily(), api_version="2025-03-01")
            assert "Cost" in columns
            assert all(isinstance(row[columns.index("Cost")], (Decimal, int)) for row in rows)
    assert place.simulator.faults.happened[fault]
    assert place.simulator.leaks == []


def _daily() -> dict[str, Any]:
    return {
        "type": "ActualCost",
        "timeframe": "Custom",
        "timePeriod": {"from": "2026-10-01T00:00:00+00:00", "to": "2026-10-04T23:59:59+00:00"},
        "dataset": {
            "granularity": "Daily",
            "aggregation": {"totalCost": {"name": "Cost", "function": "Sum"}},
            "grouping": [{"type": "Dimension", "name": "ResourceId"}, {"type": "Dimension", "name": "Meter"}],
        },
    }


def test_a_fault_that_stays_ends_in_words(place: Place) -> None:
    place.simulator.faults.arm(Fault.ERROR_500, times=100)
    with place.client() as azure, pytest.raises(UpstreamError, match=r"answered .*workspaces with 500 InternalServerError: Unexpected error"):
        azure.arm_list(WORKSPACES.format(place.subscription), api_version=VERSION)
    assert len(place.simulator.calls) < 10


# -- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({f"{PREFIX}qpu-retry-after": "3", f"{PREFIX}tenant-retry-after": "11", f"{PREFIX}entity-retry-after": "5", "Retry-After": "2"}, 11),
        ({f"{PREFIX}clienttype-retry-after": "9"}, 9),
        ({"retry-after-ms": "1500", "Retry-After": "1"}, 1.5),
        ({"Retry-After": "Mon, 05 Oct 2026 06:00:20 GMT"}, 20),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_the_longest_of_all_headers_counts(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_seconds(headers, now=NOW) == seconds


@pytest.mark.parametrize("fault", [each for each in Fault if each.name.startswith("THROTTLE")])
def test_a_throttle_is_waited_for(place: Place, fault: Fault) -> None:
    place.simulator.faults.arm(fault)
    place.simulator.faults.retry_after_seconds = 30
    with place.client() as azure:
        azure.query(f"subscriptions/{place.subscription}", _daily(), api_version="2025-03-01")
        assert (place.slept, azure.tally.throttles, azure.tally.cost_calls) == ([30], 1, 2)


def test_a_long_throttle_is_for_the_schedule(place: Place) -> None:
    place.simulator.faults.arm(Fault.THROTTLE_QPU)
    place.simulator.faults.retry_after_seconds = 1800
    with place.client() as azure, pytest.raises(Rescheduled, match="no call for 1800 s") as waits:
        azure.query(f"subscriptions/{place.subscription}", _daily(), api_version="2025-03-01")
    assert (waits.value.until, place.slept) == (NOW + timedelta(minutes=30), [])


def test_a_run_asks_cost_management_so_often_and_no_more(place: Place) -> None:
    with place.client(most_cost_calls=2) as azure:
        for _ in range(2):
            azure.query(f"subscriptions/{place.subscription}", _daily(), api_version="2025-03-01")
        with pytest.raises(UpstreamError, match="one run may ask Cost Management 2 times"):
            azure.query(f"subscriptions/{place.subscription}", _daily(), api_version="2025-03-01")


# -- whom we trust --------------------------------------------------------------------------------


class _Elsewhere(BaseHTTPRequestHandler):
    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    _Elsewhere.seen = []
    with HTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_our_token_goes_to_no_other_host(place: Place, elsewhere: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), place.client() as azure, pytest.raises(UpstreamError, match="pointed to another host") as refused:
        azure.report(f"{elsewhere}/operation?sig=secret-signature")
    assert _Elsewhere.seen == []
    assert "secret" not in caplog.text + str(refused.value) + repr(place.settings) + repr(azure)


def test_a_blob_is_fetched_without_our_token_and_its_link_is_never_told(place: Place, elsewhere: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), place.client() as azure:
        azure.download(f"{elsewhere}/blob?sig=secret-signature", tmp_path / "b", size=2)
        assert (tmp_path / "b").read_bytes() == b"{}"
        with pytest.raises(UpstreamError, match="2 of 3 bytes") as broken:
            azure.download(f"{elsewhere}/blob?sig=secret-signature", tmp_path / "b", size=3)
        with pytest.raises(Expired) as expired:
            azure.download(f"{place.simulator.blob_url}/reports/none/part_0_0001.csv?sig=secret-signature", tmp_path / "b")
        with pytest.raises(UpstreamError, match="not offered over https"):
            azure.download("http://blob.example/b?sig=secret-signature", tmp_path / "b")
    assert all("authorization" not in headers for headers in _Elsewhere.seen)
    assert place.simulator.leaks == []
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "/blob" in said  # httpx tells of its requests, without what signs them
    assert "secret" not in said + str(broken.value) + str(expired.value)


# -- refusals in words ----------------------------------------------------------------------------


def test_refusals_say_the_fix(place: Place) -> None:
    wrong = replace(place.settings, credential="static:wrong")
    with Azure(wrong, now=lambda: NOW, sleep=place.slept.append) as azure, pytest.raises(Unauthorized, match="METERBRIDGE_AZURE_CREDENTIAL"):
        azure.arm_list(WORKSPACES.format(place.subscription), api_version=VERSION)
    with place.client() as azure:
        with pytest.raises(NotFound, match="404"):
            azure.arm_list("/subscriptions/00000000-0000-0000-0000-000000000000/providers/Microsoft.MachineLearningServices/workspaces", api_version=VERSION)
        with pytest.raises(Refusal, match="400 BadRequest") as refused:
            azure.begin_report("nonsense", {}, api_version="2025-03-01")
        assert (refused.value.status, refused.value.retryable) == (400, False)


class _Forbidding(_Elsewhere):
    def do_GET(self) -> None:
        body = b'{"error": {"code": "AuthorizationFailed", "message": "The client does not have authorization."}}'
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_missing_role_is_named_with_its_scope(place: Place) -> None:
    with HTTPServer(("127.0.0.1", 0), _Forbidding) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        settings = replace(place.settings, arm_url=f"http://127.0.0.1:{server.server_port}")
        with Azure(settings, now=lambda: NOW, sleep=place.slept.append) as azure:
            with pytest.raises(Forbidden, match="--role Reader --assignee <identity> --scope /subscriptions/s1"):
                azure.arm_list(WORKSPACES.format("s1"), api_version=VERSION)
            with pytest.raises(Forbidden, match=r"Cost Management Reader.*--scope /subscriptions/s1"):
                azure.report(f"{settings.arm_url}/subscriptions/s1/providers/Microsoft.CostManagement/costDetailsOperationResults/1")
        server.shutdown()


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "no Azure is set up: say METERBRIDGE_AZURE_SUBSCRIPTIONS"),
        ({"SUBSCRIPTIONS": "s1", "ARM_URL": "http://management.azure.com"}, "METERBRIDGE_AZURE_ARM_URL must be an https address"),
        ({"SUBSCRIPTIONS": "s1", "CREDENTIAL": "hunter2"}, "METERBRIDGE_AZURE_CREDENTIAL must be default or static"),
        ({"SCOPES": "/subscriptions/s1,/subscriptions/s1/resourceGroups/rg"}, "lies within subscriptions/s1; its charges would come twice"),
        ({"SCOPES": "/subscriptions/s1,providers/Microsoft.Billing/billingAccounts/1"}, "not both"),
    ],
)
def test_settings_that_cannot_be_right(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        AzureSettings.of(Settings.from_environment({f"METERBRIDGE_AZURE_{name}": value for name, value in environment.items()}))
    assert "hunter2" not in refused.value.message


def test_settings_as_people_write_them() -> None:
    found = AzureSettings.of(
        Settings.from_environment({"METERBRIDGE_AZURE_SUBSCRIPTIONS": " /subscriptions/S1/, s2,s1 ", "METERBRIDGE_AZURE_CREDENTIAL": "static:x"})
    )
    assert (found.subscriptions, found.scopes) == (("s1", "s2"), ("subscriptions/s1", "subscriptions/s2"))
    assert found.retail_prices_url == "https://prices.azure.com/api/retail/prices"
    assert issubclass(Rescheduled, DomainError)
