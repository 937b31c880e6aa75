"""The address bar as the only state of a page: query text -> ``Selection`` -> the ledger's question, and back.

The parameters are those of the read API (CONTRACT.md "Read"), so a page and ``GET /v1/costs`` with the same query show
the same figures (where no period is asked for, a page shows whole days: 30 with today, the API all since midnight 30 days ago). Controls write the address and nothing else: a link shows the same screen, the back button works.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import parse_qsl, quote, urlencode

from models.errors import InvalidInput
from models.ledger import BASES, GROUPS, Basis, CostQuery, Filters
from models.ledger import OWN as NARROWED
from models.money import currency_from
from models.periods import DAY, GRANULARITIES, Granularity, Period, day_start, month_period, month_start, parse_bound, parse_month, rfc3339, utc_day
from models.resources import Mode

DEFAULT_DAYS = 30
PRESETS = (7, 30, 60, 90)
# What a screen can draw and a ledger call should be asked for at most: 31 days by hour, three years by day.
_MOST_BUCKETS = {"hour": 31 * DAY, "day": 1100 * DAY, "week": 3660 * DAY, "month": 3660 * DAY, "none": 3660 * DAY}
_MOST_PARAMETERS = 200
_LONGEST_VALUE = 512

# What only one page asks (the what-if of the comparison, the row of the reconciliation, the figure of the drawer, the schedule of a report); the others pass it by.
OWN = frozenset(NARROWED) | {"schedule"}

_NAMES = {"workspace": "workspaces", "deployment": "deployments", "model": "models", "application": "applications", "team": "teams"}


@dataclass(frozen=True, slots=True)
class Selection:
    """What an address asks for. ``begin`` and ``end`` None are the last 30 days up to now; empty tuples mean all."""

    begin: datetime | None = None
    end: datetime | None = None
    workspaces: tuple[str, ...] = ()
    deployments: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    applications: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    granularity: Granularity = "day"
    group_by: tuple[str, ...] = ()
    basis: Basis = "best"
    currency: str | None = None
    ignored: tuple[str, ...] = ()
    own: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, search: str | None) -> Self:
        """The selection of a query string; a value that cannot be meant is refused by name, an unknown parameter is kept in ``ignored``."""
        try:
            pairs = parse_qsl((search or "").removeprefix("?"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
        except ValueError as fault:
            raise InvalidInput(f"the address holds more than {_MOST_PARAMETERS} parameters") from fault
        found: dict[str, list[str]] = {}
        ignored: list[str] = []
        tags: list[tuple[str, str]] = []
        own: dict[str, str] = {}
        for key, value in pairs:
            _check(key, value)
            if key.startswith("tag:") and len(key) > 4:
                tags.append((key[4:], value))
            elif key in _NAMES or key in {"from", "to", "month", "mode", "granularity", "group_by", "basis", "currency"}:
                if value:
                    found.setdefault(key, []).append(value)
            elif key in OWN:
                if value:
                    own[key] = value
            else:
                ignored.append(key)
        names = {key: tuple(_distinct(found.get(key, []))) for key in _NAMES}
        begin, end = _bounds(found)
        return cls(
            begin=begin,
            end=end,
            workspaces=names["workspace"],
            deployments=names["deployment"],
            models=names["model"],
            applications=names["application"],
            teams=names["team"],
            modes=tuple(_mode(value) for value in _distinct(found.get("mode", []))),
            tags=tuple(dict.fromkeys(tags)),
            granularity=_granularity(found.get("granularity", ["day"])[-1]),
            group_by=tuple(_distinct(_group(part) for value in found.get("group_by", []) for part in value.split(",") if part)),
            basis=_basis(found.get("basis", ["best"])[-1]),
            currency=currency_from(found["currency"][-1], what="the currency in the address") if "currency" in found else None,
            ignored=tuple(_distinct(ignored)),
            own=tuple(sorted(own.items())),
        )

    def search(self) -> str:
        """The query string of this selection, in one fixed order; empty for the defaults."""
        pairs: list[tuple[str, str]] = []
        if self.begin is not None:
            pairs.append(("from", written_bound(self.begin)))
        if self.end is not None:
            pairs.append(("to", written_bound(self.end)))
        pairs += [(key, value) for key, field in _NAMES.items() for value in getattr(self, field)]
        pairs += [("mode", mode.value) for mode in self.modes]
        pairs += [(f"tag:{key}", value) for key, value in self.tags]
        if self.granularity != "day":
            pairs.append(("granularity", self.granularity))
        if self.group_by:
            pairs.append(("group_by", ",".join(self.group_by)))
        if self.basis != "best":
            pairs.append(("basis", self.basis))
        if self.currency is not None:
            pairs.append(("currency", self.currency))
        pairs += self.own
        return f"?{urlencode(pairs, quote_via=quote, safe=',:')}" if pairs else ""

    def period(self, now: datetime) -> Period:
        """The period asked for; a missing end is the end of today (UTC), a missing start 30 days before the end."""
        end = self.end if self.end is not None else day_start(utc_day(now) + DAY)
        begin = self.begin if self.begin is not None else day_start(utc_day(end - DAY * DEFAULT_DAYS))
        period = Period(begin, end)
        longest = _MOST_BUCKETS[self.granularity]
        if end - begin > longest:
            raise InvalidInput(f"a period by {self.granularity} can be at most {longest.days} days; choose a shorter period or a coarser granularity")
        return period

    def filters(self, visible: frozenset[str] | None) -> Filters:
        """The ledger's filters, limited to what the viewer may see."""
        return Filters(
            workspaces=self.workspaces,
            deployments=self.deployments,
            models=self.models,
            applications=self.applications,
            teams=self.teams,
            modes=self.modes,
            tags=self.tags,
            visible=visible,
        )

    def query(self, *, now: datetime, visible: frozenset[str] | None, granularity: Granularity, group_by: tuple[str, ...] = ()) -> CostQuery:
        """The question for ``ledger.costs``."""
        return CostQuery(
            period=self.period(now), granularity=granularity, group_by=group_by, basis=self.basis, filters=self.filters(visible), currency=self.currency
        )

    def asked(self, key: str) -> str | None:
        """What the address asks of one page alone."""
        return dict(self.own).get(key)

    def asking(self, **own: str | None) -> Selection:
        """This selection with other questions to one page; None takes one away."""
        kept = {**dict(self.own), **own}
        return replace(self, own=tuple(sorted((key, value) for key, value in kept.items() if value is not None)))

    def for_deployment(self, workspace: str, deployment: str) -> Selection:
        """The same period and basis for one deployment: what a link to its page carries."""
        return Selection(
            begin=self.begin,
            end=self.end,
            workspaces=(workspace,),
            deployments=(deployment,),
            granularity=self.granularity,
            basis=self.basis,
            currency=self.currency,
        )

    @property
    def is_narrowed(self) -> bool:
        """Whether anything but the period is chosen."""
        return any((self.workspaces, self.deployments, self.models, self.applications, self.teams, self.modes, self.tags, self.currency))

    def chips(self) -> list[tuple[str, str, Selection]]:
        """Every chosen value as (parameter, value, the selection without it)."""
        found: list[tuple[str, str, Selection]] = []
        for key, field in _NAMES.items():
            values: tuple[str, ...] = getattr(self, field)
            found += [(key, value, _with(self, field, tuple(other for other in values if other != value))) for value in values]
        found += [("mode", mode.value, replace(self, modes=tuple(other for other in self.modes if other != mode))) for mode in self.modes]
        found += [(f"tag:{tag[0]}", tag[1], replace(self, tags=tuple(other for other in self.tags if other != tag))) for tag in self.tags]
        if self.currency is not None:
            found.append(("currency", self.currency, replace(self, currency=None)))
        return found


def _with(selection: Selection, field: str, values: tuple[str, ...]) -> Selection:
    changes: dict[str, Any] = {field: values}
    return replace(selection, **changes)


def preset(selection: Selection, days: int, now: datetime) -> Selection:
    """The last so many UTC days, today included, open at the end; the default period leaves the address empty."""
    if days == DEFAULT_DAYS:
        return replace(selection, begin=None, end=None)
    return replace(selection, begin=day_start(utc_day(now) - DAY * (days - 1)), end=None)


def month_to_date(selection: Selection, now: datetime) -> Selection:
    """From the first of this UTC month, open at the end."""
    return replace(selection, begin=day_start(month_start(utc_day(now))), end=None)


def written_bound(at: datetime) -> str:
    """A date where the bound is a UTC midnight, else the instant."""
    here = at.astimezone(UTC)
    return here.date().isoformat() if here == day_start(here.date()) else rfc3339(here)


def _check(key: str, value: str) -> None:
    if len(value) > _LONGEST_VALUE or len(key) > _LONGEST_VALUE:
        raise InvalidInput(f"a value in the address is longer than {_LONGEST_VALUE} characters: {key[:40]!r}")
    if "\x00" in value or "\x00" in key:
        raise InvalidInput(f"a value in the address holds a NUL character, which no name can: {key[:40]!r}")


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _bounds(found: dict[str, list[str]]) -> tuple[datetime | None, datetime | None]:
    """The ends of the period, also where a month says them both, as it does to the API."""
    if "month" not in found:
        return _bound(found, "from"), _bound(found, "to")
    if "from" in found or "to" in found:
        raise InvalidInput("say month, or from and to, not both")
    month = month_period(parse_month(found["month"][-1], what="'month' in the address"))
    return month.start, month.end


def _bound(found: dict[str, list[str]], key: str) -> datetime | None:
    return parse_bound(found[key][-1], what=f"{key!r} in the address") if key in found else None


def _mode(value: str) -> Mode:
    try:
        return Mode(value)
    except ValueError as fault:
        raise InvalidInput(f"there is no mode {value[:40]!r}; use {', '.join(Mode)}") from fault


def _granularity(value: str) -> Granularity:
    for known in GRANULARITIES:
        if value == known:
            return known
    raise InvalidInput(f"there is no granularity {value[:40]!r}; use {', '.join(GRANULARITIES)}")


def _basis(value: str) -> Basis:
    for known in BASES:
        if value == known:
            return known
    raise InvalidInput(f"there is no basis {value[:40]!r}; use {', '.join(BASES)}")


def _group(value: str) -> str:
    if value in GROUPS or (value.startswith("tag:") and len(value) > 4):
        return value
    raise InvalidInput(f"figures cannot be grouped by {value[:40]!r}; use {', '.join(GROUPS)} or tag:<key>")
