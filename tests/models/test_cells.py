"""Names that a spreadsheet would run, in every CSV that leaves the service: made text, while numbers stay numbers."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from models.cells import plain
from models.store import Store
from tests import factories as make
from tests.collector.api.serving import serving

SIGNS = ["=", "+", "-", "@", "\t", "\r", "\n", "|", "%"]


@pytest.mark.parametrize("sign", SIGNS)
def test_no_csv_runs_a_name(sqlite_store: Store, sign: str) -> None:
    evil = f"{sign}1+cmd|' /C calc'!A0<script>alert(1)</script>"
    with sqlite_store.write() as session:
        make.workspace_fact(session, workspace=evil)
        make.foundry(session, evil, workspace=evil)
        make.owner(session, workspace=evil, deployment=evil, cost_center=evil, team=evil)
        make.token_prices(session, "1.00", "1.00")
        series = make.series(session, workspace_name=evil, deployment=evil, application=evil, team=evil, tags={evil: evil})
        for month in (10, 11):
            make.event(session, series, time=datetime(2026, month, 12, 8, tzinfo=UTC), input_tokens=1_000_000, output_tokens=0)
    asked = {"from": "2026-10-01", "to": "2026-11-20", "format": "csv"}
    with serving(sqlite_store) as service:
        found = [
            service.client.get("/v1/costs", params={**asked, "group_by": "workspace,deployment,application,team,cost_center"}),
            service.client.get("/v1/usage", params=asked),
            service.client.get("/v1/reports/weekly", params={"week": "2026-W46", "format": "csv"}),
            service.client.get("/v1/reports/close", params={"month": "2026-10", "format": "csv"}),
            service.client.get("/v1/export/focus", params={"month": "2026-10", "format": "csv"}),
        ]
        pages = [service.client.get(f"/v1/reports/{path}", params={"format": "html"}).text for path in ("weekly", "close?month=2026-10")]
    for answer in found:
        assert answer.status_code == 200, answer.text
        rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
        assert rows
        cells = [(name, cell) for row in rows for name, cell in row.items() if cell]
        # FOCUS's values have no blanks at their ends.
        assert any(cell in (f"'{evil}", plain(evil.strip())) for _, cell in cells), answer.url
        for name, cell in cells:
            if cell[0] in "".join(SIGNS):
                assert cell[0] == "-", (name, cell)
                Decimal(cell)
    for page in pages:
        assert "<script" not in page


def test_a_negative_amount_stays_a_number(sqlite_store: Store) -> None:
    with sqlite_store.write() as session:
        make.workspace_fact(session)
        make.charge(session, make.bill_part(session), make.charge_item(session), "-1.50")
    with serving(sqlite_store) as service:
        answer = service.client.get("/v1/costs", params={"from": "2026-11-01", "to": "2026-11-20", "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["cost"] for row in rows if row["cost"]] == ["-1.5"]
    assert answer.headers["x-control-total"] == "USD -1.5"
