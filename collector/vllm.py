"""Asks managed-compute deployments for vLLM's own counters: what they served, whoever called them.

The counters are a witness only. They begin again with their process, count work that was preempted and done again, and
come per engine and model; all of that is kept as told and read by ``models.ledger.witnesses``. Targets are an
operator's own servers, so plain http and private addresses are fine; nothing is followed that they do not name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from collector.capture.aggregates import REASON, Point, digest_of
from collector.capture.event import MAX_COUNT
from collector.jobs import Job
from collector.settings import Settings
from collector.witnessing import forget_old, keep
from models.columns import to_microseconds
from models.errors import InvalidInput
from models.store import Store
from models.witnesses import Measure, WitnessTarget

MAX_TARGETS: Final = 64
_EVERY = timedelta(seconds=60)
_TIMEOUT = httpx.Timeout(5.0)
# All histograms of a busy engine take some 200 KiB.
_MAX_BODY = 4 * 1024 * 1024
_MAX_SAMPLES = 2_000
_TOGETHER = 8

# `_total` is added by the client library; older versions of vLLM were scraped without it.
_COUNTERS: Mapping[str, Measure] = {
    "vllm:prompt_tokens_total": "input",
    "vllm:generation_tokens_total": "output",
    "vllm:prompt_tokens_cached_total": "cached_input",
    "vllm:request_success_total": "requests",
    "vllm:num_preemptions_total": "preemptions",
}
_STARTED: Final = "process_start_time_seconds"
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?[0-9]+)?[ \t]*\Z")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|\Z)')
_ESCAPES = {"n": "\n", "\\": "\\", '"': '"'}


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment and where its counters are."""

    workspace: str
    endpoint: str
    deployment: str
    url: str

    @property
    def name(self) -> str:
        """The deployment as problems name it."""
        return f"{self.workspace}/{self.endpoint}/{self.deployment}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a Prometheus text exposition."""

    name: str
    labels: Mapping[str, str]
    value: float


def targets(said: str) -> list[Target]:
    """``workspace/endpoint/deployment=URL``, comma-separated; a URL without a path means its /metrics."""
    found: list[Target] = []
    for one in filter(None, map(str.strip, said.split(","))):
        place, _, url = one.partition("=")
        names = [name.strip() for name in place.split("/")]
        parts = urlsplit(url.strip())
        if len(names) != 3 or not all(names) or parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
            raise InvalidInput(
                f"METERBRIDGE_VLLM_TARGETS: {place[:80]!r} is not workspace/endpoint/deployment=http(s)://host:port (credentials go into a file)"
            )
        workspace, endpoint, deployment = names
        found.append(
            Target(workspace, endpoint, deployment, parts._replace(path=parts.path if parts.path not in {"", "/"} else "/metrics", fragment="").geturl())
        )
    if len(found) > MAX_TARGETS:
        raise InvalidInput(f"METERBRIDGE_VLLM_TARGETS names {len(found)} deployments and may name {MAX_TARGETS}")
    return found


def samples(text: str) -> Iterator[Sample]:
    """The samples of a text exposition, in its order; raises ``ValueError`` for a line that is none."""
    for line in text.splitlines():
        line = line.strip()  # noqa: PLW2901 - the line as it is read
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if match is None:
            raise ValueError(f"not a line of the Prometheus text format: {line[:60]!r}")
        yield Sample(match[1], _labels(match[2] or ""), float(match[3]))


def _labels(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    text = text.strip()
    at = 0
    while at < len(text):
        match = _LABEL.match(text, at)
        if match is None:
            raise ValueError(f"not the labels of a sample: {text[:60]!r}")
        found[match[1]] = re.sub(r"\\(.)", lambda escaped: _ESCAPES.get(escaped[1], escaped[0]), match[2])
        at = match.end()
    return found


def points(text: str, target: Target, *, now: datetime) -> list[Point]:
    """What the counters of a target say now; several engines, models and reasons are series of their own, added up where they are read."""
    told = [
        sample
        for sample in samples(text)
        if sample.name in _COUNTERS or sample.name == _STARTED or sample.name.removesuffix("_created") + "_total" in _COUNTERS
    ]
    if not any(sample.name in _COUNTERS for sample in told):
        raise ValueError("no counters of vLLM in the answer; is it the /metrics of vLLM?")
    if len(told) > _MAX_SAMPLES:
        raise ValueError(f"{len(told)} series of counters; at most {_MAX_SAMPLES} are read")
    process = next((sample.value for sample in told if sample.name == _STARTED), None)
    created = {(sample.name.removesuffix("_created") + "_total", _key(sample)): sample.value for sample in told if sample.name.endswith("_created")}
    found = []
    for sample in told:
        measure = _COUNTERS.get(sample.name)
        if measure is None:
            continue
        if not math.isfinite(sample.value) or not 0 <= sample.value <= MAX_COUNT or not sample.value.is_integer():
            raise ValueError(f"{sample.name} is not a count")
        found.append(
            Point(
                REASON,
                kind="vllm",
                name=sample.name,
                measure=measure,
                temporality="cumulative",
                service=target.name,
                digest=digest_of("vllm", target.name, target.url, sample.name, _key(sample)),
                time=to_microseconds(now),
                started_at=_start(created.get((sample.name, _key(sample)), process), now),
                value=int(sample.value),
                workspace=target.workspace,
                endpoint=target.endpoint,
                deployment=target.deployment,
                model=sample.labels.get("model_name", "")[:256] or None,
            )
        )
    return found


def _key(sample: Sample) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(sample.labels.items()))


def _start(seconds: float | None, now: datetime) -> int | None:
    """When the counter began, in whole seconds: clients print it with a float's last digits."""
    if seconds is None or not math.isfinite(seconds) or not 1_600_000_000 < seconds <= now.timestamp():
        return None
    return int(seconds) * 1_000_000


def scrape(store: Store, asked: Sequence[Target], *, now: datetime, token: str | None = None) -> None:
    """Ask every target once and store what they say; who does not answer is remembered as a problem."""
    headers = {"accept": "text/plain; version=0.0.4"} | ({"authorization": f"Bearer {token}"} if token else {})
    with (
        httpx.Client(timeout=_TIMEOUT, follow_redirects=False, trust_env=False, headers=headers) as client,
        ThreadPoolExecutor(max_workers=_TOGETHER, thread_name_prefix="vllm") as threads,
    ):
        answers = list(threads.map(lambda target: _asked(client, target, now=now), asked))
    told = [point for answer in answers if not isinstance(answer, str) for point in answer]
    if told:
        keep(store, told, now=now)
    with store.write() as session:
        for target, answer in zip(asked, answers, strict=True):
            row = session.get(WitnessTarget, target.name) or WitnessTarget(name=target.name, asked_at=now)
            row.asked_at = now
            row.failure = answer if isinstance(answer, str) else None
            row.answered_at = row.answered_at if isinstance(answer, str) else now
            session.add(row)


def _asked(client: httpx.Client, target: Target, *, now: datetime) -> list[Point] | str:
    """The points of a target, or in words why there are none."""
    body = bytearray()
    try:
        with client.stream("GET", target.url) as response:
            if response.status_code != 200:
                return f"it answered {response.status_code}"
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _MAX_BODY:
                    return f"its answer is longer than {_MAX_BODY // 1024 // 1024} MiB"
        return points(body.decode("utf-8", "replace"), target, now=now)
    except httpx.HTTPError as fault:
        return f"{type(fault).__name__} ({urlsplit(target.url).netloc})"
    except ValueError as fault:
        return str(fault)


def jobs(settings: Settings) -> list[Job]:
    """The scrape of the targets that the settings name, and the end of old points."""
    asked = targets(settings.vllm_targets)
    found = [Job("forget_witnesses", timedelta(hours=24), forget_old)]
    if asked:
        file = settings.vllm_token_file
        found.append(Job("scrape_vllm", _EVERY, lambda store, now: scrape(store, asked, now=now, token=_token(file))))
    return found


def _token(file: Path | None) -> str | None:
    """Read at each run: such tokens are renewed."""
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as fault:
        raise InvalidInput(f"METERBRIDGE_VLLM_TOKEN_FILE {file} cannot be read: {getattr(fault, 'strerror', None) or 'it is not text'}") from fault
