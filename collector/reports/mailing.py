"""What a mail of a report holds: made from the kept snapshot at each attempt, so that the outbox carries no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collector.reports.formats import Format, written
from collector.reports.letter import letter
from collector.webhooks.formats import line
from collector.webhooks.sending import Enclosed, Page
from models.reports import ReportSnapshot
from models.store import Store

# What a mail may enclose; HTML is the mail itself.
ENCLOSABLE: tuple[Format, ...] = ("pdf", "csv")


class Writer:
    """Writes the mail of a notice; ``takes_files`` False leaves the files out and says where they are."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, told: Mapping[str, Any], *, takes_files: bool) -> Page | None:
        """None where there is no such snapshot (any more): the notice's own words are sent then."""
        with self._store.read() as session:
            snapshot = session.get(ReportSnapshot, str(told.get("snapshot", "")))
            body = None if snapshot is None else snapshot.body
        if body is None:
            return None
        forms = [form for form in ENCLOSABLE if form in (told.get("attach") or ())]
        files: list[Enclosed] = []
        for form in forms:
            made = written(body, form)
            files.append(Enclosed(f"meterbridge-{body['kind']}-{told.get('period', 'report')}.{form}", made.media_type, made.content))
        link = str(told.get("url") or "")
        notes: list[tuple[str, str]] = []
        if files and takes_files:
            notes.append((f"Enclosed: {', '.join(file.name for file in files)}.", ""))
        elif files:
            sizes = " and ".join(f"{file.name} ({_size(len(file.content))})" for file in files)
            where = "open the report by the link below" if link else f"take them from the Reports page: snapshot {body['snapshot']['id']}"
            notes.append((f"Not enclosed, as the mail would be too large: {sizes}; {where}.", ""))
        if link:
            notes.append((f"Open this report in a browser (until {told.get('url_until', 'the link ends')})", link))
        notes.append((f"Sent by the schedule {line(told.get('schedule', ''), 100)}.", ""))
        mail = letter(body, notes=notes)
        return Page(mail.subject, mail.text, mail.html, tuple(files if takes_files else ()))


def _size(count: int) -> str:
    return f"{count / 1_000_000:.1f} MB" if count >= 100_000 else f"{max(1, count // 1000)} kB"
