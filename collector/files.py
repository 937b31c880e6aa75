"""The files that the dashboard offers: made by the same functions as the routes and commands of that name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO

from collector import focus, reports
from collector.reports import delivery
from models import ledger
from models.errors import Forbidden, InvalidInput, NotFound
from models.store import Store


@dataclass(frozen=True, slots=True)
class File:
    """A file on its way out; ``content`` is at its beginning and is closed by whoever sends it."""

    content: IO[bytes]
    name: str
    media_type: str
    control_total: str
    is_page: bool = False  # looked at, not kept


class Files:
    """``daily``, ``weekly``, ``monthly``, ``close``, ``preview`` and ``focus`` by their parameters, limited to what the reader may see."""

    def __init__(self, store: Store, *, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    def __call__(self, kind: str, said: Mapping[str, str], visible: frozenset[str] | None) -> File:
        """The file; ``InvalidInput`` where it cannot be meant."""
        match kind:
            case "daily" | "weekly" | "monthly":
                return self._cost(reports.UNITS[kind], said, visible)
            case "close":
                return self._close(said, visible)
            case "preview":
                return self._preview(said, visible)
            case "focus":
                return self._focus(said, visible)
            case _:
                raise NotFound(f"there is no file {kind[:40]!r}")

    def _cost(self, unit: ledger.Unit, said: Mapping[str, str], visible: frozenset[str] | None) -> File:
        form = _format(said)
        now = self._now()
        span = ledger.span_of(unit, said.get(unit) or None, now=now, time_zone=said.get("time_zone") or "UTC")
        body = reports.weekly_snapshot(self._store, span, ledger.Filters(visible=visible), now=now)
        made = reports.written(body, form)
        return File(_kept(made.content), f"meterbridge-{span.name}.{form}", made.media_type, made.control_header)

    def _close(self, said: Mapping[str, str], visible: frozenset[str] | None) -> File:
        form = _format(said)
        now = self._now()
        body = reports.close_snapshot(self._store, focus.month_asked(said.get("month", ""), now=now), ledger.Filters(visible=visible), now=now)
        made = reports.written(body, form)
        return File(_kept(made.content), f"meterbridge-close-{body['month']}.{form}", made.media_type, made.control_header)

    def _preview(self, said: Mapping[str, str], visible: frozenset[str] | None) -> File:
        """The mail of a schedule as it would be."""
        if visible is not None:
            raise Forbidden("schedules are for keys of every workspace; this key is limited to some")
        seen = delivery.preview(self._store, said.get("schedule", ""), period=said.get("period") or None, now=self._now())
        return File(_kept(seen.html.encode()), "preview.html", "text/html; charset=utf-8", "", is_page=True)

    def _focus(self, said: Mapping[str, str], visible: frozenset[str] | None) -> File:
        version, form = focus.checked(said.get("version", "1.2"), said.get("format", "csv"))
        now = self._now()
        month = focus.month_asked(said.get("month", ""), now=now)
        content = tempfile.TemporaryFile(prefix="meterbridge-focus-")  # noqa: SIM115 - closed by whoever sends it
        try:
            with self._store.read() as session:
                about = ledger.focus_month(session, month, now=now)
                made = focus.export(session, about, content, version=version, form=form, visible=visible, now=now)
        except BaseException:
            content.close()
            raise
        content.seek(0)
        return File(content, f"meterbridge-focus-{month:%Y-%m}.{form}", focus.MEDIA_TYPES[form], made.control_header)


def _format(said: Mapping[str, str]) -> reports.Format:
    form = next((one for one in reports.FORMATS if one == said.get("format", "html")), None)
    if form is None:
        raise InvalidInput(f"format must be one of {', '.join(reports.FORMATS)}")
    return form


def _kept(made: bytes) -> IO[bytes]:
    content = tempfile.TemporaryFile(prefix="meterbridge-report-")  # noqa: SIM115 - closed by whoever sends it
    content.write(made)
    content.seek(0)
    return content
