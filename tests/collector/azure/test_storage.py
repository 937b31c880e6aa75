"""Files into a container: whole, the same again, and with nothing of what signs in any word."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime

import pytest

from collector.azure import storage
from collector.azure.client import AzureSettings
from collector.azure.simulator import Fault, InventedWorld, Simulator
from collector.azure.storage import Container, Storage
from models.errors import DomainError, InvalidInput, UpstreamError

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
SIGNED = "sv=2023-11-03&sp=cw&sig=very%2Bsecret%3D"


@pytest.fixture
def azure() -> Iterator[Simulator]:
    with Simulator(InventedWorld(1, date(2026, 9, 28), date(2026, 10, 4), subscription_count=1), lambda: NOW) as simulator:
        simulator.storage.containers.add("finance")
        simulator.storage.token = "for-storage"
        simulator.faults.retry_after_seconds = 0
        yield simulator


def opened(azure: Simulator, credential: str = "static:for-arm;for-storage") -> Storage:
    asked = AzureSettings(azure.arm_url, azure.retail_prices_url, credential, (), ())
    return Storage(asked, now=NOW, sleep=lambda _seconds: None, timeout=2)


def put(azure: Simulator, content: bytes, *, to: str = "finance/weekly", credential: str = "static:for-arm;for-storage") -> None:
    with opened(azure, credential) as store:
        container = Container.parse(f"{azure.blob_url}/{to}", is_simulated=True)
        store.put(container, "report 1.csv", io.BytesIO(content), size=len(content), media_type="text/csv")


def test_a_file_is_one_request_and_the_same_again(azure: Simulator) -> None:
    put(azure, b"a,b\r\n")
    put(azure, b"a,b\r\n")
    assert azure.storage.blobs == {"finance/weekly/report 1.csv": b"a,b\r\n"}
    assert (azure.storage.writes, azure.storage.media_types["finance/weekly/report 1.csv"]) == (2, "text/csv")


def test_a_large_file_is_blocks_and_whole_only_with_the_last(azure: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BLOCK_BYTES", 1000)
    content = bytes(range(256)) * 10  # 2,560 bytes: three blocks and their list
    steps: list[tuple[int, int | None]] = []
    with opened(azure) as store:
        container = Container.parse(f"{azure.blob_url}/finance", is_simulated=True)
        store.put(container, "m.parquet", io.BytesIO(content), size=len(content), media_type="x/y", progress=lambda done, of: steps.append((done, of)))
    assert azure.storage.blobs == {"finance/m.parquet": content}
    assert steps == [(1000, 2560), (2000, 2560), (2560, 2560)]
    assert azure.storage.media_types["finance/m.parquet"] == "x/y"


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.ERROR_503, Fault.RESET])
def test_what_passes_is_tried_again(azure: Simulator, fault: Fault) -> None:
    azure.faults.arm(fault, times=2)
    put(azure, b"x")
    assert azure.storage.writes == 1


def test_what_stays_wrong_ends_after_some_tries(azure: Simulator) -> None:
    azure.faults.arm(Fault.ERROR_500, times=50)
    with pytest.raises(UpstreamError, match=r"could not be written to 127\.0\.0\.1: 500"):
        put(azure, b"x")
    assert sum(call.kind == "blob" for call in azure.calls) == 5


def test_a_signature_signs_and_is_in_no_word(azure: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    azure.storage.signature = "very+secret="
    caplog.set_level(logging.DEBUG)
    put(azure, b"x", to=f"finance/weekly?{SIGNED}", credential="static:for-arm")
    assert azure.storage.writes == 1
    assert azure.leaks == []
    azure.storage.signature = "another"
    with pytest.raises(DomainError, match="its signature has ended or may not write") as refused:
        put(azure, b"x", to=f"finance/weekly?{SIGNED}", credential="static:for-arm")
    container = Container.parse(f"{azure.blob_url}/finance?{SIGNED}", is_simulated=True)
    for said in (caplog.text, refused.value.message, repr(container), container.url, container.blob("x")):
        assert "secret" not in said


@pytest.mark.parametrize(
    ("to", "credential", "says"),
    [
        ("nowhere/weekly", "static:for-arm;for-storage", "make the container first"),
        ("finance/weekly", "static:for-arm;wrong", "Storage Blob Data Contributor"),
        ("finance/weekly", "static:for-arm", "is not sent to storage"),
    ],
)
def test_a_refusal_says_what_to_do(azure: Simulator, to: str, credential: str, says: str) -> None:
    with pytest.raises(DomainError, match=says):
        put(azure, b"x", to=to, credential=credential)
    assert azure.storage.blobs == {}


@pytest.mark.parametrize(
    "text",
    [
        "http://a.blob.core.windows.net/c",
        "https://a.blob.core.windows.net",
        "https://a.blob.core.windows.net:444/c",
        "https://evil.example/c",
        "https://user:pw@a.blob.core.windows.net/c",
        "https://a.blob.core.windows.net.evil.example/c",
        "https://a.blob.core.windows.net/c/../d",
        "https://a.blob.core.windows.net/c/%2e%2e/d",
        "https://a.blob.core.windows.net/c?comp=list",
        "http://127.0.0.1:1/c",
        "https://[bad/c",
        "",
    ],
)
def test_an_address_that_is_no_container_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="container"):
        Container.parse(text)


def test_a_container_is_kept_without_what_signs() -> None:
    found = Container.parse(f"https://acct.blob.core.windows.net/finance/a b/?{SIGNED}")
    assert (found.url, found.host) == ("https://acct.blob.core.windows.net/finance/a%20b", "acct.blob.core.windows.net")
