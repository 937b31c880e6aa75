"""How a report is announced to people: by its title, what it says and where it is; never as an alert."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from collector.webhooks.formats import Notice, render
from models.notices import Format

TOLD: dict[str, Any] = {
    "id": "rpt_1",
    "kind": "report",
    "rule": "Board <!here>",
    "severity": "weekly",
    "title": "Weekly cost report 2026-W46, team risk",
    "why": "Week 2026-W46: 5 USD.",
    "snapshot": "weekly-2026-W46-abc",
    "period": "2026-W46",
    "attach": ["pdf"],
    "url": "https://costs.example.com/v1/reports/shared/" + "x" * 150,
    "url_until": "2026-12-20",
}


@pytest.mark.parametrize("form", [Format.SLACK, Format.TEAMS, Format.EMAIL])
def test_people_are_told_what_it_is_and_where(form: Format) -> None:
    notice = Notice(id="msg_1", type="report.ready", at=datetime(2026, 11, 16, 7, tzinfo=UTC), data=TOLD)
    text = render(form, notice, receiver_name="board", routing_key=None)
    for said in (TOLD["title"], TOLD["why"], TOLD["url"], "2026-12-20"):
        assert said in text, said
    for wrong in ("Severity", "ready:", "firing", "Alert"):
        assert wrong not in text.replace("AdaptiveCard", ""), wrong
    if form is Format.SLACK:
        assert "<!here>" not in text


def test_a_mail_says_of_the_report_what_it_is_written_from_later() -> None:
    notice = Notice(id="msg_1", type="report.ready", at=datetime(2026, 11, 16, 7, tzinfo=UTC), data=TOLD)
    said = json.loads(render(Format.EMAIL, notice, receiver_name="board", routing_key=None))
    assert said["subject"] == "[meterbridge] Weekly cost report 2026-W46, team risk"
    assert (said["report"]["snapshot"], said["report"]["attach"], said["report"]["schedule"]) == ("weekly-2026-W46-abc", ["pdf"], "Board <!here>")
