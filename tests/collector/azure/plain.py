"""The least that reads Resource Manager: the real SDK's pipeline, no retries of ours, lists to their last page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.rest import HttpRequest
from azure.mgmt.core import ARMPipelineClient

from models.errors import UpstreamError


class _Bearer(SansIOHTTPPolicy[Any, Any]):
    def on_request(self, request: Any) -> None:
        request.http_request.headers["Authorization"] = "Bearer simulated"


class PlainArm:
    def __init__(self, url: str) -> None:
        self._client: Any = ARMPipelineClient(base_url=url, policies=[_Bearer()])

    def close(self) -> None:
        self._client.close()

    def arm_get(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._answer(HttpRequest("GET", path, params={**(params or {}), "api-version": api_version}))

    def arm_list(self, path: str, *, api_version: str, params: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        answer = self.arm_get(path, api_version=api_version, params=params)
        found = list(answer["value"])
        while link := answer.get("nextLink"):
            answer = self._answer(HttpRequest("GET", link))
            found += answer["value"]
        return found

    def _answer(self, request: HttpRequest) -> dict[str, Any]:
        request.url = self._client.format_url(request.url)
        response = self._client.send_request(request)
        if response.status_code != 200:
            raise UpstreamError(f"{request.url}: {response.status_code}", retryable=True)
        answer: dict[str, Any] = response.json()
        return answer
