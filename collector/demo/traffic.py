"""The calls of the sample world: drawn per deployment and day, so that any day can be had alone and is always the same.

``Traffic.calls`` draws a day from a generator seeded by (seed, deployment, day); events and bills both come from it, so
the bill needs no event to be sent. A day is drawn whole even while it is still running: what has not happened yet is
left out by whoever asks.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from statistics import NormalDist
from typing import NamedTuple

from collector.demo.places import Deployment, Story
from collector.demo.planted import CALLS_A_DAY, CANARY, INPUT_TOKENS, MINUTE, OUTPUT_TOKENS
from models.periods import utc_day

SOURCE = "demo"
_SLOTS = 1024  # entries of a table that ten random bits choose from
_HOUR_MS = 3_600_000
_SURGE_HOURS = (13, 14, 15)  # UTC, on the day of the incident
_SURGE_DEPLOYMENT = "llama-33-70b"
_SURGE_SHARE = 2  # calls beyond an ordinary day's, in those hours
_WIND_DOWN_DAYS = 14

# Relative load by hour of the UTC day.
RHYTHMS: dict[str, tuple[int, ...]] = {
    "americas": (6, 4, 3, 2, 2, 2, 2, 3, 5, 8, 14, 26, 44, 62, 70, 72, 66, 68, 72, 70, 60, 42, 24, 12),
    "europe": (2, 2, 2, 3, 8, 22, 48, 66, 70, 72, 64, 56, 66, 70, 62, 44, 26, 14, 10, 8, 6, 4, 3, 2),
    "night": (60, 72, 72, 70, 66, 48, 24, 6, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 4, 6, 8, 14, 28, 44),
    "steady": (30, 28, 28, 28, 30, 32, 36, 40, 46, 50, 54, 58, 60, 62, 62, 60, 58, 54, 50, 46, 42, 38, 34, 32),
}
# Monday to Sunday, in percent of an ordinary day.
_WEEK = {
    "americas": (100, 106, 108, 104, 94, 26, 20),
    "europe": (102, 106, 106, 102, 88, 18, 14),
    "night": (100, 102, 102, 102, 100, 84, 80),
    "steady": (100, 103, 104, 103, 98, 66, 62),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: what its event says, whether it says its tokens, and whether Azure bills them."""

    told: str
    shows_tokens: bool
    is_billed: bool


OUTCOMES = (
    Outcome('"status":"success","finish_reason":"stop","http_status":200', shows_tokens=True, is_billed=True),
    Outcome('"status":"success","finish_reason":"length","http_status":200', shows_tokens=True, is_billed=True),
    # A stream whose sender did not ask for usage, and one that the client left early: billed, but nobody counted.
    Outcome('"status":"success","finish_reason":"stop","http_status":200', shows_tokens=False, is_billed=True),
    Outcome('"status":"incomplete","http_status":200', shows_tokens=False, is_billed=True),
    Outcome('"status":"filtered","finish_reason":"content_filter","http_status":200', shows_tokens=True, is_billed=True),
    Outcome('"status":"filtered","http_status":400', shows_tokens=False, is_billed=False),
    Outcome('"status":"error","http_status":500', shows_tokens=False, is_billed=False),
    Outcome('"status":"throttled","throttled_by":"azure","http_status":429,"ratelimit_remaining_tokens":0', shows_tokens=False, is_billed=False),
)
_THROTTLED = 7
_SILENT = 2
_STREAMS = frozenset({2, 3})


class Call(NamedTuple):
    """One call: milliseconds of the day at its end, its number on that day, who called, how it ended, tokens used."""

    at_ms: int
    number: int
    caller: int
    outcome: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    is_stream: bool


class Tokens(NamedTuple):
    """Tokens of a deployment on a day; ``input`` includes ``cached``."""

    input: int
    output: int
    cached: int


def spread(weights: Sequence[int], slots: int = _SLOTS) -> tuple[int, ...]:
    """A table of ``slots`` indices in which each index appears in proportion to its weight."""
    total, reached = sum(weights), 0
    table: list[int] = []
    for index, weight in enumerate(weights):
        reached += weight
        table += [index] * (reached * slots // total - len(table))
    return tuple(table)


def _sizes(mean: int, *, deviation: float, limit: int) -> tuple[int, ...]:
    """Quantiles of a log-normal size with that mean: a few long ones, many short ones."""
    middle, normal = math.log(mean) - deviation * deviation / 2, NormalDist()
    return tuple(min(limit, max(1, round(math.exp(middle + deviation * normal.inv_cdf((slot + 0.5) / _SLOTS))))) for slot in range(_SLOTS))


_ORDINARY = spread((984, 26, 4, 1, 3, 2, 3, 1))
_SURGE = spread((560, 18, 3, 1, 2, 2, 18, 420))
_MINUTES = tuple(f"{minute // 60:02d}:{minute % 60:02d}:" for minute in range(1440))
_SECONDS = tuple(f"{second:02d}." for second in range(60))


class Traffic:
    """The calls of one deployment, on any day."""

    def __init__(self, deployment: Deployment, story: Story, *, seed: int, scale: float) -> None:
        self.deployment = deployment
        self._story = story
        self._seed = f"{seed}/{deployment.workspace.name}/{deployment.full_name}"
        self._scale = scale
        self._hours = spread(RHYTHMS[deployment.hours])
        self._surge_hours = spread([int(hour in _SURGE_HOURS) for hour in range(24)])
        self._callers = spread([caller.share for caller in deployment.callers], 64)
        self._percents = tuple(caller.prompt_percent for caller in deployment.callers)
        self._inputs = _sizes(deployment.input_tokens, deviation=0.55, limit=deployment.context)
        self._outputs = _sizes(deployment.output_tokens, deviation=0.7, limit=8_192)
        self._caches = deployment.tokens is not None and deployment.tokens.cached is not None
        self._stem = deployment.full_name.replace("/", "-")
        self._told = tuple(self._caller_json(index) for index in range(len(deployment.callers)))

    def count(self, day: date) -> int:
        """How many calls the day has, without drawing them."""
        if self.deployment.name == CANARY:
            return len(self._probes(day))
        ordinary, surge = self._counts(day, self._generator(day))
        return ordinary + surge

    def calls(self, day: date) -> list[Call]:
        """The day's calls in order of time."""
        if self.deployment.name == CANARY:
            return self._probes(day)
        generator = self._generator(day)
        ordinary, surge = self._counts(day, generator)
        bits, limit, caches = generator.getrandbits, self.deployment.context, self._caches
        callers, percents, inputs, outputs = self._callers, self._percents, self._inputs, self._outputs
        drawn: list[Call] = []
        for number in range(ordinary + surge):
            # One draw a call; its bits are dealt out to what has to be decided.
            chance = bits(96)
            hour = (self._hours if number < ordinary else self._surge_hours)[chance & 1023]
            outcomes = _SURGE if surge and hour in _SURGE_HOURS else _ORDINARY
            outcome = outcomes[chance >> 10 & 1023]
            caller = callers[chance >> 20 & 63]
            prompt = min(limit, inputs[chance >> 26 & 1023] * percents[caller] // 100 + (chance >> 36 & 63))
            cached = prompt * (40 + (chance >> 42 & 31)) // 12_800 * 128 if caches and chance >> 47 & 7 < 3 else 0
            drawn.append(
                Call(
                    hour * _HOUR_MS + ((chance >> 50 & 0x3FFFFF) * _HOUR_MS >> 22),
                    number,
                    caller,
                    outcome,
                    prompt,
                    outputs[chance >> 72 & 1023],
                    cached,
                    outcome in _STREAMS or bool(chance >> 82 & 1),
                )
            )
        drawn.sort()
        return drawn

    def _probes(self, day: date) -> list[Call]:
        """The canary's calls: always the same ones, whatever the seed; one day one more, which does not tell its tokens."""
        is_silent = day == self._story.planted.silent_on
        return [
            Call(hour * _HOUR_MS + MINUTE * 60_000, hour, 0, _SILENT if hour == CALLS_A_DAY else 0, INPUT_TOKENS, OUTPUT_TOKENS, 0, False)
            for hour in range(CALLS_A_DAY + is_silent)
        ]

    def billed_tokens(self, calls: Sequence[Call]) -> Tokens:
        """What Azure counted of a day's calls: also those whose tokens no event tells."""
        billed = [call for call in calls if OUTCOMES[call.outcome].is_billed]
        return Tokens(
            sum(call.input_tokens for call in billed),
            sum(call.output_tokens for call in billed),
            sum(call.cached_tokens for call in billed),
        )

    def unmetered_tokens(self, day: date, metered: Tokens) -> Tokens:
        """What one application used past the instruments that day."""
        permille = self.deployment.unmetered_permille
        if not permille:
            return Tokens(0, 0, 0)
        permille += random.Random(f"{self._seed}/unmetered/{day}").randint(-10, 10)  # noqa: S311 (a sample, not a secret)
        return Tokens(metered.input * permille // 1000, metered.output * permille // 1000, 0)

    def event(self, call: Call, day_text: str, compact_day: str) -> str:
        """The native usage event of a call, as one line of JSON."""
        at_ms, number, caller, outcome, prompt, answer, cached, is_stream = call
        end = OUTCOMES[outcome]
        second, millisecond = divmod(at_ms % 60_000, 1000)
        lasted = 180 + (prompt >> 6) + answer * self.deployment.milliseconds_a_token if end.is_billed else 90 + (prompt & 127)
        if end.shows_tokens:
            cached_part = f',"cached_input_tokens":{cached}' if cached else ""
            counts = f',"input_tokens":{prompt},"output_tokens":{answer}{cached_part}'
        else:
            counts = ""
        return (
            f'{{"id":"{self._stem}-{compact_day}-{number:05d}","time":"{day_text}T{_MINUTES[at_ms // 60_000]}{_SECONDS[second]}{millisecond:03d}Z",'
            f'{self._told[caller]},{end.told}{counts},"duration_ms":{lasted},"stream":{"true" if is_stream else "false"}}}'
        )

    def _generator(self, day: date) -> random.Random:
        return random.Random(f"{self._seed}/{day}")  # noqa: S311 (a sample, not a secret)

    def _counts(self, day: date, generator: random.Random) -> tuple[int, int]:
        """Ordinary and surge calls of the day; takes its chances from the generator first, so counting needs no more."""
        rounding, noise = generator.random(), 0.93 + 0.14 * generator.random()
        deployment, story = self.deployment, self._story
        # Growth stops after ninety days, so that a demo left running does not run away.
        age = min(90, max(0, (day - story.first_day).days))
        ordinary = deployment.calls_a_day * self._scale * (1 + deployment.growth_percent / 100 * age / 60)
        expected = ordinary * _WEEK[deployment.hours][day.weekday()] / 100 * noise
        if deployment.name == "llama-31-405b":
            left = (utc_day(story.retires_at) - day).days
            expected *= 0 if left <= 0 else min(1.0, 0.1 + 0.9 * left / _WIND_DOWN_DAYS)
            rounding *= left > 0
        surge = round(ordinary * _SURGE_SHARE) if deployment.name == _SURGE_DEPLOYMENT and day == story.incident_on else 0
        return int(expected + rounding), surge

    def _caller_json(self, index: int) -> str:
        """What is the same in every event of one caller, as the inside of a JSON object."""
        deployment, caller = self.deployment, self.deployment.callers[index]
        fields: dict[str, object] = {"source": SOURCE, "workspace": deployment.workspace.name}
        if deployment.endpoint:
            fields["endpoint"] = deployment.endpoint
        fields |= {"deployment": deployment.name, "model": deployment.model, "operation": "chat", "application": caller.application}
        if caller.team is not None:
            fields["team"] = caller.team
        fields |= {"tags": dict(caller.tags), "max_tokens": 8_192 if deployment.output_tokens > 100 else 128}
        return json.dumps(fields, separators=(",", ":"))[1:-1]
