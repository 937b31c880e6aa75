"""Our two parts of the SDK's pipeline: who signs for whom, and how long is waited. Loaded with the SDK, when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import HTTPPolicy, RetryPolicy

from models.errors import UpstreamError

if TYPE_CHECKING:
    from collector.azure.client import Azure

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_MOST_TRIES = 6


class Signature(HTTPPolicy[Any, Any]):
    """Puts the token on requests to one host and lets none go to another; asks for a new token twice where one was refused."""

    def __init__(self, azure: Azure, token: Callable[[], str], *, host: str) -> None:
        super().__init__()
        self._azure = azure
        self._token = token
        self._host = host
        self._origin = _origin(azure.asked.arm_url)

    def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        """Each attempt comes through here, as this stands behind the waiting."""
        url = request.http_request.url
        # Azure writes :443 into links of its own.
        if _origin(url) != self._origin:
            raise UpstreamError(f"Azure pointed to another host ({urlsplit(url).hostname}); our token goes to {self._host} alone", retryable=False)
        for is_last in (False, False, True):
            self._azure.count(url)
            request.http_request.headers["Authorization"] = f"Bearer {self._token()}"
            response = self.next.send(request)
            if response.http_response.status_code != 401 or is_last:
                break
        self._azure.tally.throttles += response.http_response.status_code == 429
        return response


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


class Patience(RetryPolicy):  # type: ignore[type-arg]  # the SDK's own parameters say nothing
    """Every call of ours only reads, so every one may be made again."""

    def __init__(self, azure: Azure) -> None:
        super().__init__(retry_total=_MOST_TRIES, retry_connect=_MOST_TRIES, retry_read=_MOST_TRIES, retry_status=_MOST_TRIES, retry_backoff_max=30)
        self._azure = azure

    def is_retry(self, settings: dict[str, Any], response: Any) -> bool:
        """Whether the answer is one that another try may better."""
        return bool(settings["total"] > 0 and response.http_response.status_code in _RETRIED)

    def _is_method_retryable(self, settings: dict[str, Any], request: Any, response: Any = None) -> bool:
        del settings, request, response
        return True

    def sleep(self, settings: dict[str, Any], transport: Any, response: Any = None) -> None:
        """As long as Azure asks, by the longest of its headers; else longer each time."""
        from collector.azure.client import retry_seconds  # noqa: PLC0415 - it loads this module

        del transport
        asked = None if response is None else retry_seconds(response.http_response.headers, now=self._azure.now())
        self._azure.wait(self.get_backoff_time(settings) if asked is None else asked)
