"""The one way to Azure: who we are, whom we trust with it, how long we wait, how often we ask.

Requests go through the pipeline of the official SDK client (azure-mgmt-costmanagement), with three parts of our own:
it signs for Resource Manager's host and for no other, it waits for the longest of all the headers that Cost Management
throttles with (the SDK knows one of them), and it hands back to the schedule what would have to wait for long.
Answers come whole or not at all: lists to their last page, numbers as exact decimals.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

import httpx

from collector.settings import Settings
from models.errors import Forbidden, InvalidInput, NotFound, Unauthorized, UpstreamError
from models.periods import to_the_second

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_STATIC = "static:"
# Seconds that a job sleeps for a throttle; a longer one is a matter for the schedule.
LONGEST_WAIT = 120.0
# What a run of one kind may cost the tenant's budget of calls (CONTRACT.md, Sync).
MOST_COST_CALLS = 60
_MOST_TRIES = 6
_MOST_PAGES = 1000
_TIMEOUT = 60.0
_MOST_BLOB = 4 * 1024**3  # a report is documented to end at 2 GB
_CHUNK = 1024 * 1024
_STORAGE_VERSION = "2023-05-01"
_BLOB_VERSION = "2023-11-03"
STORAGE_HOSTS = (".blob.core.windows.net", ".blob.storage.azure.net", ".blob.core.chinacloudapi.cn", ".blob.core.usgovcloudapi.net")
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_THROTTLES = tuple(f"x-ms-ratelimit-microsoft.costmanagement-{name}-retry-after" for name in ("qpu", "entity", "tenant", "clienttype"))


class Rescheduled(UpstreamError):
    """Azure wants to be left alone for longer than a job sleeps; ``until`` says until when."""

    def __init__(self, until: datetime, *, seconds: float) -> None:
        super().__init__(f"Azure throttles: it wants no call for {seconds:.0f} s; tried again after {to_the_second(until)}", retryable=True)
        self.until = until


class Expired(UpstreamError):
    """The link to a blob is no longer valid; the operation gives a new one."""


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """Where Azure is and what of it is asked for; ``credential`` never shows."""

    arm_url: str
    retail_prices_url: str
    credential: str = field(repr=False)
    subscriptions: tuple[str, ...]
    scopes: tuple[str, ...]  # without slashes at their ends

    @classmethod
    def of(cls, settings: Settings) -> AzureSettings:
        """The settings, checked; ``InvalidInput`` names the one to correct."""
        subscriptions = tuple(dict.fromkeys(_listed(settings.azure_subscriptions.casefold(), prefix="subscriptions/")))
        scopes = tuple(dict.fromkeys(one.strip("/") for one in _listed(settings.azure_scopes))) or tuple(f"subscriptions/{one}" for one in subscriptions)
        if not subscriptions and not scopes:
            raise InvalidInput(
                "no Azure is set up: say METERBRIDGE_AZURE_SUBSCRIPTIONS (ids, comma-separated), and METERBRIDGE_AZURE_SCOPES where bills are read elsewhere"
            )
        _refuse_overlaps(scopes)
        for name, url in (("METERBRIDGE_AZURE_ARM_URL", settings.azure_arm_url), ("METERBRIDGE_AZURE_RETAIL_PRICES_URL", settings.azure_retail_prices_url)):
            parts = urlsplit(url)
            if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
                raise InvalidInput(f"{name} must be an https address (plain http only on this machine), not {url[:100]!r}")
        if settings.azure_credential != "default" and not settings.azure_credential.startswith(_STATIC):
            raise InvalidInput("METERBRIDGE_AZURE_CREDENTIAL must be default or static:<token>")
        retail = settings.azure_retail_prices_url
        if not urlsplit(retail).path.strip("/"):
            retail += "/api/retail/prices"
        return cls(settings.azure_arm_url, retail, settings.azure_credential, subscriptions, scopes)


def is_set_up(settings: Settings) -> bool:
    """Whether the settings name anything to pull."""
    return bool(settings.azure_subscriptions.strip(", ") or settings.azure_scopes.strip(", "))


def _listed(text: str, *, prefix: str = "") -> Iterator[str]:
    for one in text.split(","):
        found = one.strip().strip("/").removeprefix(prefix)
        if found:
            yield found


def _refuse_overlaps(scopes: Sequence[str]) -> None:
    """Two scopes of which one holds the other would bill the same charges twice."""
    ordered = sorted(scopes, key=lambda one: one.casefold())
    for one in ordered:
        for other in ordered:
            if one != other and other.casefold().startswith(one.casefold() + "/"):
                raise InvalidInput(f"METERBRIDGE_AZURE_SCOPES: {other} lies within {one}; its charges would come twice. Name one of them")
    accounts = [one for one in ordered if one.casefold().startswith("providers/microsoft.billing")]
    subscriptions = [one for one in ordered if one.casefold().startswith("subscriptions/")]
    if accounts and subscriptions:
        raise InvalidInput(
            f"METERBRIDGE_AZURE_SCOPES: the bill of {accounts[0]} may hold {subscriptions[0]}, and its charges would come twice; name billing accounts or subscriptions, not both"
        )


class Queried(NamedTuple):
    """The answer to a query, from so many pages; every row in the order of the columns."""

    columns: list[str]
    rows: list[list[Any]]
    pages: int


@dataclass(slots=True)
class Tally:
    """How often Azure was asked, and how often it asked to be left alone."""

    calls: int = 0
    cost_calls: int = 0
    throttles: int = 0


class Azure:
    """An open way to Azure; ``close`` it, or use it as a block."""

    def __init__(
        self,
        asked: AzureSettings,
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], None] = time.sleep,
        longest_wait: float = LONGEST_WAIT,
        timeout: float = _TIMEOUT,
        most_cost_calls: int = MOST_COST_CALLS,
    ) -> None:
        self.asked = asked
        self.tally = Tally()
        self.now = now
        self._sleep = sleep
        self._longest_wait = longest_wait
        self.most_cost_calls = most_cost_calls
        self._storage_token = storage_token_source(asked)
        # It logs the address of every request at level info, and a blob's holds a signature.
        logging.getLogger("httpx").addFilter(without_query)
        self._blobs = httpx.Client(trust_env=False, timeout=timeout, follow_redirects=False)
        self._client = self._opened(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._client.close()
        self._blobs.close()

    def _opened(self, timeout: float) -> Any:
        # The SDK takes longer to load than most commands take to run.
        from azure.core.pipeline.policies import NetworkTraceLoggingPolicy  # noqa: PLC0415
        from azure.mgmt.costmanagement import CostManagementClient  # noqa: PLC0415

        from collector.azure.policies import Patience, Signature  # noqa: PLC0415

        nobody: Any = _Nobody()  # never asked: our own policy signs
        return CostManagementClient(
            nobody,
            base_url=self.asked.arm_url,
            authentication_policy=Signature(self, _token_source(self.asked), host=urlsplit(self.asked.arm_url).netloc),
            retry_policy=Patience(self),
            # Its default would write addresses and headers at debug level.
            logging_policy=NetworkTraceLoggingPolicy(logging_enable=False),
            connection_timeout=timeout,
            read_timeout=timeout,
        )

    # -- what the policies ask ------------------------------------------------------------------

    def count(self, url: str) -> None:
        """Count a call before it goes out; refuses one too many."""
        self.tally.calls += 1
        if "/providers/microsoft.costmanagement/" in url.casefold():
            self.tally.cost_calls += 1
            if self.tally.cost_calls > self.most_cost_calls:
                raise UpstreamError(
                    f"one run may ask Cost Management {self.most_cost_calls} times, as its budget is the whole tenant's; the next run goes on", retryable=True
                )

    def wait(self, seconds: float) -> None:
        """Sleep for as long as Azure asked, or hand the job back to the schedule."""
        if seconds > self._longest_wait:
            raise Rescheduled(self.now() + timedelta(seconds=seconds), seconds=seconds)
        if seconds > 0:
            self._sleep(seconds)

    # -- Resource Manager -----------------------------------------------------------------------

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One answer."""
        return self._json("GET", path, params={**(params or {}), "api-version": api_version})

    def arm_list(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Every object of a list, to its last page."""
        answer = self.arm_get(path, api_version=api_version, params=params)
        found: list[dict[str, Any]] = []
        seen: set[str] = set()
        while True:
            page = answer.get("value")
            if not isinstance(page, list):
                raise UpstreamError(f"Azure answered {path} with something that is no list", retryable=True)
            found += page
            link = answer.get("nextLink")
            if not link:
                return found
            self._refuse_loop(link, seen, what=path)
            answer = self._json("GET", link)

    def _refuse_loop(self, link: str, seen: set[str], *, what: str) -> None:
        if link in seen or len(seen) >= _MOST_PAGES:
            raise UpstreamError(f"the pages of {what} lead in a circle; nothing of them was taken", retryable=True)
        seen.add(link)

    # -- Cost Management ------------------------------------------------------------------------

    def query(self, scope: str, definition: Mapping[str, Any], *, api_version: str) -> Queried:
        """Every row of a query; numbers are exact."""
        path = f"/{scope}/providers/Microsoft.CostManagement/query"
        answer = self._json("POST", path, params={"api-version": api_version}, body=definition)
        columns: list[str] = []
        rows: list[list[Any]] = []
        seen: set[str] = set()
        pages = 0
        while True:
            pages += 1
            properties = answer.get("properties") or {}
            names = [str(column["name"]) for column in properties.get("columns", ())]
            if columns and sorted(names) != sorted(columns):
                raise UpstreamError("the query's columns changed between two pages; nothing of it was taken", retryable=True)
            columns = columns or names
            order = [names.index(name) for name in columns]
            rows += [[row[place] for place in order] for row in properties.get("rows", ())]
            link = properties.get("nextLink")
            if not link:
                return Queried(columns, rows, pages)
            self._refuse_loop(link, seen, what="the query")
            answer = self._json("POST", link, body=definition)

    def begin_report(self, scope: str, body: Mapping[str, Any], *, api_version: str) -> tuple[str | None, float]:
        """Order a cost details report: where to ask for it and after how many seconds; no address where there is nothing to report."""
        response = self._sent("POST", f"/{scope}/providers/Microsoft.CostManagement/generateCostDetailsReport", params={"api-version": api_version}, body=body)
        if response.status_code == 204:
            return None, 0
        location = response.headers.get("Location")
        if response.status_code != 202 or not location:
            raise UpstreamError(f"Cost Management took the order of a report with status {response.status_code} and no place to ask for it", retryable=True)
        return str(location), _seconds(response.headers.get("Retry-After"), now=self.now()) or 0.0

    def report(self, operation: str) -> tuple[dict[str, Any] | None, float]:
        """A report that was ordered: what became of it, or None and after how many seconds to ask again."""
        for _ in range(3):
            response = self._sent("GET", operation)
            if response.status_code == 202:
                return None, _seconds(response.headers.get("Retry-After"), now=self.now()) or 0.0
            found = _parsed(response)
            if found is not None:
                return found, 0.0
        raise UpstreamError("Cost Management's answer broke off three times", retryable=True)

    def exports(self, scope: str, *, api_version: str) -> list[dict[str, Any]]:
        """The exports of a scope."""
        return self.arm_list(f"/{scope}/providers/Microsoft.CostManagement/exports", api_version=api_version)

    def export_runs(self, scope: str, name: str, *, api_version: str) -> list[dict[str, Any]]:
        """The last runs of an export."""
        return self.arm_list(f"/{scope}/providers/Microsoft.CostManagement/exports/{quote(name, safe='')}/runHistory", api_version=api_version)

    # -- storage --------------------------------------------------------------------------------

    def blob_endpoint(self, account: str) -> str:
        """Where a storage account, by its resource id, keeps its blobs."""
        found = self.arm_get("/" + account.strip("/"), api_version=_STORAGE_VERSION)
        endpoint = str(((found.get("properties") or {}).get("primaryEndpoints") or {}).get("blob") or "").rstrip("/")
        host = urlsplit(endpoint).hostname or ""
        is_ours = urlsplit(endpoint).scheme == "https" and host.endswith(STORAGE_HOSTS)
        if not is_ours and not (host in LOOPBACK and urlsplit(self.asked.arm_url).hostname in LOOPBACK):
            raise UpstreamError(
                f"the storage account of the export says that its blobs are at {host or 'no host'}, which is no address of Azure", retryable=False
            )
        return endpoint

    def download_stored(self, url: str, path: Path, *, size: int | None = None, progress: Callable[[int, int | None], None] | None = None) -> None:
        """Fetch a blob from where ``blob_endpoint`` says, with a token that is good for storage and nothing else."""
        if self._storage_token is None:
            raise Forbidden("a static token is for Resource Manager alone and is not sent to storage; read exports with METERBRIDGE_AZURE_CREDENTIAL=default")
        from azure.core.exceptions import ClientAuthenticationError  # noqa: PLC0415

        try:
            token = self._storage_token()
        except ClientAuthenticationError as fault:
            raise Unauthorized(f"no token for Azure storage could be had: {_first_line(fault)}") from None
        headers = {"authorization": f"Bearer {token}", "x-ms-version": _BLOB_VERSION}
        self._download(url, path, headers=headers, size=size, progress=progress)

    def download(self, link: str, path: Path, *, size: int | None = None, progress: Callable[[int, int | None], None] | None = None) -> None:
        """Fetch a blob by its signed link, which is no business of any log; never with a token. Whole or not at all."""
        self._download(link, path, headers={}, size=size, progress=progress)

    def _download(self, link: str, path: Path, *, headers: Mapping[str, str], size: int | None, progress: Callable[[int, int | None], None] | None) -> None:
        where = urlsplit(link)
        if where.scheme != "https" and where.hostname not in LOOPBACK:
            raise UpstreamError(f"the report's blob at {where.hostname} is not offered over https; it was not fetched", retryable=False)
        for tried in range(_MOST_TRIES):
            fault = self._fetched(link, where.hostname or "", path, headers=headers, size=size, progress=progress)
            if fault is None:
                return
            if tried < _MOST_TRIES - 1:
                self.wait(min(0.5 * 2**tried, 30.0))
        raise UpstreamError(f"the blob at {where.hostname} could not be fetched whole: {fault}", retryable=True)

    def _fetched(
        self, link: str, host: str, path: Path, *, headers: Mapping[str, str], size: int | None, progress: Callable[[int, int | None], None] | None
    ) -> str | None:
        """Fetch once; gives what was wrong where another try may help. Other faults are not named: they may hold the link."""
        try:
            with self._blobs.stream("GET", link, headers={"accept-encoding": "identity", **headers}) as response:
                status = response.status_code
                if status in (403, 404):
                    raise Expired(f"the blob at {host} answered {status}: its link has expired, or its container refuses us", retryable=True)
                if status in _RETRIED:
                    self.tally.throttles += status == 429
                    return f"status {status}"
                if status != 200:
                    raise UpstreamError(f"the blob at {host} answered {status}", retryable=False)
                done = 0
                with path.open("wb") as out:
                    for chunk in response.iter_bytes(_CHUNK):
                        done += len(chunk)
                        if done > _MOST_BLOB:
                            raise UpstreamError(f"the blob at {host} is larger than {_MOST_BLOB // 1024**3} GiB", retryable=False)
                        out.write(chunk)
                        if progress is not None:
                            progress(done, size)
        except httpx.HTTPError as fault:
            return type(fault).__name__
        return None if size is None or done == size else f"{done} of {size} bytes"

    # -- one request ----------------------------------------------------------------------------

    def _json(self, method: str, url: str, *, params: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        for tried in range(4):
            found = _parsed(self._sent(method, url, params=params, body=body))
            if found is not None:
                return found
            self.wait(0.2 * 2**tried)
        raise UpstreamError(f"Azure's answer to {_place(url)} broke off four times", retryable=True)

    def _sent(self, method: str, url: str, *, params: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None) -> Any:
        from azure.core.exceptions import AzureError, ClientAuthenticationError, DecodeError  # noqa: PLC0415
        from azure.core.rest import HttpRequest  # noqa: PLC0415

        try:
            response = self._client.send_request(HttpRequest(method, url, params=params, json=body))
            response.read()
        except ClientAuthenticationError as fault:
            raise Unauthorized(
                f"no token for Azure could be had: {_first_line(fault)}; sign in with: az login, or give the service a managed identity"
            ) from None
        except DecodeError:
            return _Broken
        except AzureError as fault:
            raise UpstreamError(f"Azure could not be reached for {_place(url)}: {type(fault).__name__}", retryable=True) from None
        if response.status_code >= 400:
            raise _refusal(response, url)
        return response


def without_query(record: logging.LogRecord) -> bool:
    """A filter of a logger: addresses lose their query, which may be a signature."""
    if isinstance(record.args, tuple):
        record.args = tuple(each.copy_with(query=None) if isinstance(each, httpx.URL) else each for each in record.args)
    return True


class _Broken:
    """An answer that broke off in the middle."""

    status_code = 200
    headers: Mapping[str, str] = MappingProxyType({})

    @staticmethod
    def text() -> str:
        return ""


class _Nobody:
    """A credential that is never asked."""

    def get_token(self, *_scopes: str, **_options: object) -> Any:
        raise AssertionError("the policy signs")


def _token_source(asked: AzureSettings) -> Callable[[], str]:
    if asked.credential.startswith(_STATIC):
        return lambda: asked.credential.removeprefix(_STATIC).partition(";")[0]
    return _identity(asked, f"{asked.arm_url}/.default")


def storage_token_source(asked: AzureSettings) -> Callable[[], str] | None:
    """A token for storage; None where all there is is a token of Resource Manager (``static:<its token>;<one for storage>`` gives both)."""
    if asked.credential.startswith(_STATIC):
        said = asked.credential.removeprefix(_STATIC).partition(";")[2]
        return (lambda: said) if said else None
    return _identity(asked, "https://storage.azure.com/.default")


def _identity(asked: AzureSettings, scope: str) -> Callable[[], str]:
    """Tokens of whoever we are to Azure; nobody is asked before one is needed."""
    credentials: list[Any] = []

    def token() -> str:
        if not credentials:
            credentials.append(_credential(asked))
        return str(credentials[0].get_token(scope).token)

    return token


def _credential(asked: AzureSettings) -> Any:
    from azure.identity import AzureAuthorityHosts, DefaultAzureCredential  # noqa: PLC0415

    host = urlsplit(asked.arm_url).hostname or ""
    authority = {
        "management.chinacloudapi.cn": AzureAuthorityHosts.AZURE_CHINA,
        "management.usgovcloudapi.net": AzureAuthorityHosts.AZURE_GOVERNMENT,
    }.get(host, AzureAuthorityHosts.AZURE_PUBLIC_CLOUD)
    return DefaultAzureCredential(authority=authority, exclude_interactive_browser_credential=True)


def retry_seconds(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The longest wait that any of the headers asks for; None where none does."""
    asked = [_seconds(headers.get(name), now=now) for name in ("Retry-After", *_THROTTLES)]
    asked += [None if (each := _seconds(headers.get(name), now=now)) is None else each / 1000 for name in ("retry-after-ms", "x-ms-retry-after-ms")]
    return max((each for each in asked if each is not None), default=None)


def _seconds(text: str | None, *, now: datetime) -> float | None:
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def _parsed(response: Any) -> dict[str, Any] | None:
    """The answer; None where it broke off."""
    try:
        found = json.loads(response.text(), parse_float=Decimal)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _place(url: str) -> str:
    """What of an address may be said: its path, never its query."""
    return urlsplit(url).path or "/"


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0][:300]


_ROLES = {
    "cost": "it needs the role Cost Management Reader there: az role assignment create --role 'Cost Management Reader' --assignee <identity> --scope {scope}; "
    "for a billing account a billing reader role, and with an Enterprise Agreement the setting 'AO view charges'",
    "list": "it needs the role Reader there: az role assignment create --role Reader --assignee <identity> --scope {scope}",
}


def _refusal(response: Any, url: str) -> Exception:
    """Azure's own code and words, and what to do."""
    found = _parsed(response) or {}
    said = found.get("error") if isinstance(found.get("error"), dict) else {}
    code, message = str((said or {}).get("code") or response.status_code), str((said or {}).get("message") or "").strip()[:300]
    what = f"Azure answered {_place(url)} with {response.status_code} {code}" + (f": {message}" if message else "")
    match response.status_code:
        case 401:
            return Unauthorized(f"{what}. The token was refused; sign in again (az login), or correct METERBRIDGE_AZURE_CREDENTIAL")
        case 403:
            is_cost = "microsoft.costmanagement" in url.casefold()
            scope = (
                "/" + _place(url).strip("/").split("/providers/Microsoft.CostManagement")[0]
                if is_cost
                else "/" + "/".join(_place(url).strip("/").split("/")[:2])
            )
            return Forbidden(f"{what}; {_ROLES['cost' if is_cost else 'list'].format(scope=scope)}")
        case 404 if code.casefold() in ("subscriptionnotfound", "invalidsubscriptionid"):
            return NotFound(
                f"{what} Correct METERBRIDGE_AZURE_SUBSCRIPTIONS and METERBRIDGE_AZURE_SCOPES (az account list names those that this identity sees), "
                "or give this identity a role there"
            )
        case 404:
            return NotFound(what)
        case status:
            return Refusal(what, status=status, code=code)


class Refusal(UpstreamError):
    """Azure refused a call for a reason that is no matter of rights."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message, retryable=status in _RETRIED)
        self.status = status
        self.code = code
