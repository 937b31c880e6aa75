"""Which alerts a silence covers, and which a receiver wants: matchers against the labels of an alert. Pure decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from models.alerts import Alert, Silence
from models.periods import zone_from

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Matchers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Quiet:
    """A silence: what it matches and when; ``weekly`` as in ``models.alerts.Silence``."""

    id: str
    matchers: Matchers
    starts_at: datetime
    ends_at: datetime
    weekly: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, row: Silence) -> Quiet:
        """A kept silence."""
        return cls(row.id, pairs(row.matchers), row.starts_at, row.ends_at, row.weekly)

    def covers(self, labels: Mapping[str, str], at: datetime) -> bool:
        """Whether an alert with these labels is silent at the instant."""
        if not self.starts_at <= at < self.ends_at:
            return False
        return agrees(self.matchers, labels) and (self.weekly is None or in_weekly(self.weekly, at))


def pairs(matchers: Iterable[Mapping[str, str]]) -> Matchers:
    """Matchers as they are kept, as names with values."""
    return tuple((one["name"], one["value"]) for one in matchers)


def agrees(matchers: Matchers, labels: Mapping[str, str]) -> bool:
    """Whether every matched label has a wanted value; a name that is said several times wants any of its values."""
    wanted: dict[str, set[str]] = {}
    for name, value in matchers:
        wanted.setdefault(name, set()).add(value)
    return all(labels.get(name) in values for name, values in wanted.items())


def labels_of(alert: Alert) -> dict[str, str]:
    """What silences know an alert by."""
    return labels(id=alert.id, rule=alert.rule, rule_id=alert.rule_id, kind=alert.kind.value, severity=alert.severity.value, step=alert.step, scope=alert.scope)


def labels(*, id: object, rule: object, rule_id: object, kind: object, severity: object, step: object, scope: Mapping[str, Any]) -> dict[str, str]:  # noqa: A002
    """The labels of an alert with these facts; of a scope those that have one value."""
    named = {"alert_id": id, "rule": rule, "rule_id": rule_id, "kind": kind, "severity": severity, "step": step}
    return {name: value for name, value in scope.items() if isinstance(value, str)} | {name: str(value) for name, value in named.items() if value is not None}


def in_weekly(weekly: Mapping[str, Any], at: datetime) -> bool:
    """Whether the instant lies in a window that comes every week; one whose end is not after its start ends the next day."""
    zone = zone_from(str(weekly.get("time_zone", "UTC")))
    begins, ends = time.fromisoformat(str(weekly["from"])), time.fromisoformat(str(weekly["to"]))
    today = at.astimezone(zone).date()
    for day in (today - timedelta(days=1), today):
        if WEEKDAYS[day.weekday()] in weekly["days"]:
            start = datetime.combine(day, begins, zone).astimezone(UTC)
            last = day if ends > begins else day + timedelta(days=1)
            if start <= at < datetime.combine(last, ends, zone).astimezone(UTC):
                return True
    return False


def silenced_by(quiets: Iterable[Quiet], labels: Mapping[str, str], at: datetime) -> Quiet | None:
    """The silence that covers the alert at the instant, the one that ends last."""
    return max((quiet for quiet in quiets if quiet.covers(labels, at)), key=lambda quiet: quiet.ends_at, default=None)
