"""Asks the service, before a call, whether it may go: within a bound of time, and with a decided answer where none comes."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from collector.capture import values
from models.usage import DEFAULT_MAX_TOKENS

Mode = Literal["off", "fail-open", "fail-closed"]

# A token of Llama's tokenizer is some four characters of English; code and other languages have fewer, so this guesses low.
_CHARACTERS_PER_TOKEN = 4
# What a chat's template puts around every message, and around the whole.
_TOKENS_PER_MESSAGE = 4
_TOKENS_PER_IMAGE = 1_024
# max_tokens where a request says none (Microsoft Learn on deploying Llama models, "max_tokens | integer | 16").
# After so many failures in a row the service is left alone for so many seconds, so that it does not cost every call its timeout.
_FAILURES, _REST_SECONDS = 3, 5.0
_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether the call may go, and else why not and when to come back (seconds). ``is_answered``: the service said so itself."""

    allow: bool
    reason: str = ""
    retry_after_seconds: int | None = None
    is_answered: bool = True


def tokens_of(request: Mapping[str, Any]) -> int:
    """What a request may take of a tokens-a-minute limit: its prompt, estimated, and all that it may be answered."""
    limit = next((found for name in ("max_completion_tokens", "max_tokens", "max_output_tokens") if (found := values.small(request.get(name)))), None)
    candidates = max(1, values.small(request.get("n")) or 1, values.small(request.get("best_of")) or 1)
    prompt = (
        _text_tokens(request.get("messages")) + _text_tokens(request.get("prompt")) + _text_tokens(request.get("input")) + _text_tokens(request.get("tools"))
    )
    is_generating = "messages" in request or "prompt" in request or limit is not None
    return prompt + ((limit if limit is not None else DEFAULT_MAX_TOKENS) * candidates if is_generating else 0)


def _text_tokens(value: Any) -> int:
    """An estimate for a prompt in any of its shapes: text, token numbers, messages with parts."""
    match value:
        case str():
            return math.ceil(len(value.encode("utf-8", "replace")) / _CHARACTERS_PER_TOKEN)
        case bool() | None:
            return 0
        case int() | float():
            return 1  # a prompt may be sent as the numbers of its tokens
        case list():
            return sum(map(_text_tokens, value))
        case dict() if "image_url" in value or value.get("type") in ("image_url", "input_image"):
            return _TOKENS_PER_IMAGE
        case dict():
            around = _TOKENS_PER_MESSAGE if "role" in value else 0
            return around + sum(_text_tokens(part) for name, part in value.items() if name not in ("role", "type"))
    return 0


class Admission:
    """Asks ``POST {url}/v1/admission``. ``timeout`` is in seconds and bounds the whole question."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport, *, url: str, key: str | None, mode: Mode, timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = transport
        self._url = f"{url.rstrip('/')}/v1/admission"
        self._headers = {"content-type": "application/json", "user-agent": "meterbridge-proxy", "accept": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._mode = mode
        self._timeout = timeout
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0
        self.asked = self.denied = self.failed = 0

    async def ask(self, *, workspace: str | None, deployment: str | None, tokens: int) -> Decision:
        """The service's decision, or the mode's own where the service has none in time."""
        if self._mode == "off":
            return Decision(allow=True)
        if self._clock() < self._rests_until:
            return self._without()
        self.asked += 1
        try:
            async with asyncio.timeout(self._timeout):
                said = await self._exchange({"workspace": workspace, "deployment": deployment, "tokens": tokens})
            decision = _decision(said)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, KeyError, TypeError):
            self.failed += 1
            self._failures += 1
            if self._failures >= _FAILURES:
                self._rests_until = self._clock() + _REST_SECONDS
            return self._without()
        self._failures = 0
        self.denied += not decision.allow
        return decision

    async def aclose(self) -> None:
        """Close what is open to the service."""
        await self._transport.aclose()

    def _without(self) -> Decision:
        if self._mode == "fail-open":
            return Decision(allow=True, is_answered=False)
        return Decision(allow=False, reason="the service that admits calls does not answer", retry_after_seconds=5, is_answered=False)

    async def _exchange(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        request = httpx.Request("POST", self._url, headers=self._headers, json=body, extensions={"timeout": timeout})
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code != 200:
                raise ValueError("no decision")
            assert isinstance(response.stream, httpx.AsyncByteStream)
            said = b""
            async for piece in response.stream:
                said += piece
                if len(said) > _ANSWER_BYTES:
                    raise ValueError("no decision")
        finally:
            await response.aclose()
        found: Mapping[str, Any] = json.loads(said)
        return found


def _decision(said: Mapping[str, Any]) -> Decision:
    allow, after = said["allow"], said.get("retry_after_seconds")
    if not isinstance(allow, bool):
        raise TypeError("no decision")
    seconds = max(1, math.ceil(after)) if isinstance(after, int | float) and not isinstance(after, bool) and after < 1e9 else None
    return Decision(allow=allow, reason=str(said.get("reason") or "")[:300], retry_after_seconds=seconds)
