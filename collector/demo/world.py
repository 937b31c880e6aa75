"""The sample world as one object: the same seed and the same opening day always give the same bytes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta

from collector.demo import bills as billing
from collector.demo import places
from collector.demo.estate import Contoso
from collector.demo.places import Deployment, Story
from collector.demo.traffic import Call, Tokens, Traffic
from models.periods import DAY, Period, day_start, days, utc_day

EVENTS_A_BODY = 5_000


class World:
    """Four workspaces and ten deployments, with ``days`` whole days of past and today so far.

    ``opened_on`` (by default today) is the day the story is counted from. A world shown again on a later day is the
    same world only with the opening day it had: its past stays as it was and goes on. ``scale`` thins the calls, not
    the instances, for tests.
    """

    def __init__(self, seed: int, now: datetime, *, days: int = 60, scale: float = 1.0, opened_on: date | None = None) -> None:
        self.now = now
        self.story = Story.told(opened_on=opened_on or utc_day(now), days=days)
        self._traffic = {(each.workspace.name, each.full_name): Traffic(each, self.story, seed=seed, scale=scale) for each in places.DEPLOYMENTS}
        self._billed: dict[tuple[str, str, date], Tokens] = {}
        self._drawn: tuple[date, list[int], list[str]] | None = None  # the day looked at last: times and events

    @property
    def starts_at(self) -> datetime:
        """The first instant with traffic."""
        return day_start(self.story.first_day)

    def inventory(self) -> bytes:
        """The inventory file (CSV)."""
        return places.inventory(self.story)

    def owners(self) -> bytes:
        """The ownership map (CSV)."""
        return places.owners(self.story)

    def prices(self) -> bytes:
        """The company's own prices (CSV): what the bundled list cannot know."""
        return places.prices()

    def bills(self, now: datetime) -> list[tuple[str, bytes]]:
        """The cost-details files as of ``now``, one per subscription and billing month, oldest first."""
        return billing.bills(story=self.story, billed_tokens=self._billed_tokens, now=now)

    def estate(self) -> Contoso:
        """The company's Azure, for the simulator to serve: its places, its bills as of any instant, its instances."""
        return Contoso(self.story, self._billed_tokens, self._calls)

    def retirements(self) -> bytes:
        """What the company knows of announced retirements (an inventory file of nothing else)."""
        return places.retirements(self.story)

    def count(self, start: datetime, end: datetime) -> int:
        """How many events ``usage`` gives for the period; only days cut by it are drawn."""
        total = 0
        for day in self._days(start, end):
            if start <= day_start(day) and day_start(day + DAY) <= end:
                total += sum(traffic.count(day) for traffic in self._traffic.values())
            else:
                total += len(self._events(day, start, end))
        return total

    def usage(self, start: datetime, end: datetime) -> Iterator[bytes]:
        """The events in [start, end) in order of time, as NDJSON bodies of at most 5,000."""
        waiting: list[str] = []
        for day in self._days(start, end):
            waiting += self._events(day, start, end)
            while len(waiting) >= EVENTS_A_BODY:
                yield _body(waiting[:EVENTS_A_BODY])
                del waiting[:EVENTS_A_BODY]
        if waiting:
            yield _body(waiting)

    def live(self, now: datetime, since: datetime) -> bytes:
        """The events in [since, now), empty if there are none: the same ones that ``usage`` gives for that time."""
        return b"".join(self.usage(since, now))

    def _days(self, start: datetime, end: datetime) -> Iterator[date]:
        start = max(start, self.starts_at)
        return days(Period(start, end)) if start < end else iter(())

    def _events(self, day: date, start: datetime, end: datetime) -> list[str]:
        """The day's events with ``start <= time < end``."""
        if self._drawn is None or self._drawn[0] != day:
            self._drawn = (day, *self._draw(day))
        _, times, events = self._drawn
        midnight = day_start(day)
        return events[bisect_left(times, _milliseconds(midnight, start)) : bisect_left(times, _milliseconds(midnight, end))]

    def _draw(self, day: date) -> tuple[list[int], list[str]]:
        day_text, compact_day = f"{day:%Y-%m-%d}", f"{day:%Y%m%d}"
        drawn: list[tuple[int, str]] = []
        for traffic in self._traffic.values():
            calls = traffic.calls(day)
            self._note_billed(traffic, day, traffic.billed_tokens(calls))
            event = traffic.event
            drawn += [(call.at_ms, event(call, day_text, compact_day)) for call in calls]
        drawn.sort()
        return [at for at, _ in drawn], [event for _, event in drawn]

    def _billed_tokens(self, deployment: Deployment, day: date) -> Tokens:
        key = (deployment.workspace.name, deployment.full_name, day)
        if key not in self._billed:
            traffic = self._traffic[key[:2]]
            self._note_billed(traffic, day, traffic.billed_tokens(traffic.calls(day)))
        return self._billed[key]

    def _calls(self, deployment: Deployment, day: date) -> Sequence[Call]:
        return self._traffic[deployment.workspace.name, deployment.full_name].calls(day)

    def _note_billed(self, traffic: Traffic, day: date, tokens: Tokens) -> None:
        beyond = traffic.unmetered_tokens(day, tokens)
        key = (traffic.deployment.workspace.name, traffic.deployment.full_name, day)
        self._billed[key] = Tokens(tokens.input + beyond.input, tokens.output + beyond.output, tokens.cached + beyond.cached)


def _milliseconds(midnight: datetime, at: datetime) -> int:
    """Whole milliseconds from midnight, rounded up: an event at that millisecond is not before ``at``."""
    return -((midnight - at) // timedelta(milliseconds=1))


def _body(events: list[str]) -> bytes:
    return ("\n".join(events) + "\n").encode()
