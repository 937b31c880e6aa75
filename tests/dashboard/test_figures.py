from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from dashboard import figures
from models.ledger import CostQuery, CostRow, CostTable, Figures
from models.periods import DAY, Period

START = datetime(2026, 10, 30, tzinfo=UTC)
BASE = Figures("USD", Decimal("1.10"), Decimal("1.00"), Decimal("1.10"), 10, 2, 0, 0, 1, None, "settled", 0, 0, 0, None, estimate=False)


def day(number: int, *, group: str | None = "a", **changes: Any) -> CostRow:
    return CostRow(Period(START + DAY * number, START + DAY * (number + 1)), {"workspace": group}, replace(BASE, **changes))


def answer(rows: list[CostRow]) -> CostTable:
    return CostTable(CostQuery(Period(START, START + DAY * 6), "day", ("workspace",)), rows, [])


def naming(row: CostRow) -> str:
    return row.groups["workspace"] or "unallocated"


def drawn(rows: list[CostRow], standing: list[CostRow] | None = None) -> figures.Figure:
    return figures.spend_over_time(answer(rows), answer(standing or rows), currency="USD", naming=naming, revision="r")


def test_days_that_still_move_are_shaded_and_named() -> None:
    rows = [day(0), day(1), day(2, status="settling"), day(3, status="settling"), day(4, status="provisional")]
    layout = drawn(rows)["layout"]
    assert [(shape["name"], shape["x0"], shape["x1"]) for shape in layout["shapes"]] == [
        ("settling", "2026-10-31 12:00", "2026-11-02 12:00"),
        ("provisional", "2026-11-02 12:00", "2026-11-03 12:00"),
    ]
    assert [note["text"] for note in layout["annotations"]] == ["settling", "provisional"]


def test_settled_days_are_not_shaded() -> None:
    assert drawn([day(0), day(1)])["layout"]["shapes"] == []


def test_a_bar_is_the_rows_amount_and_its_hover_the_exact_text() -> None:
    trace = drawn([day(0, cost=Decimal("1234.565")), day(1, cost=None)])["data"][0]
    assert (trace["x"], trace["y"]) == (["2026-10-30 00:00"], [1234.565])
    assert trace["customdata"] == ["a: 1,234.56 USD"]


def test_other_currencies_are_not_drawn_in_this_chart() -> None:
    assert [trace["name"] for trace in drawn([day(0), day(0, group="b", currency="EUR")])["data"]] == ["a"]


def test_days_without_a_bill_have_no_billed_bar() -> None:
    metered, billed = figures.metered_and_billed(answer([day(0), day(1, billed_cost=None)]), currency="USD", revision="r")["data"]
    assert len(metered["x"]) == 2
    assert billed["x"] == ["2026-10-30 00:00"]


def test_no_name_reaches_plotly_as_markup_or_template() -> None:
    figure = drawn([day(0, group="<img src=x onerror=alert(1)>"), day(0, group="%{x}&lt;b&gt;")])
    for trace in figure["data"]:
        assert "<img" not in trace["name"]
        assert "<img" not in trace["customdata"][0]
        assert trace["hovertemplate"] == "%{customdata}<extra></extra>"
    assert {trace["name"] for trace in figure["data"]} == {"&lt;img src=x onerror=alert(1)&gt;", "%{x}&amp;lt;b&amp;gt;"}


def test_a_colour_belongs_to_its_name_whoever_else_is_there() -> None:
    alone = figures.colours(["ws-support"])
    assert figures.colours(["ws-support", "ws-research", "ws-contracts-prod"])["ws-support"] == alone["ws-support"]
    many = figures.colours([f"name-{number}" for number in range(10)])
    assert len(set(many.values())) == 10
    assert figures.colours(["unallocated"])["unallocated"] == figures.QUIET


def test_a_refresh_keeps_the_zoom_while_the_screen_is_the_same() -> None:
    figure = drawn([day(0)])
    assert figure["layout"]["uirevision"] == "r"
    stretch = ["2026-10-31 00:00", "2026-11-01 06:00"]
    assert figures.zoomed(figure, {"xaxis.range[0]": stretch[0], "xaxis.range[1]": stretch[1]})["layout"]["xaxis"]["range"] == stretch
    for nothing in (None, {"autosize": True}, {"xaxis.autorange": True}, {"xaxis.range[0]": 5, "xaxis.range[1]": 6}):
        assert figures.zoomed(figure, nothing) is figure


def test_a_graph_never_offers_to_send_its_data_away() -> None:
    config = figures.graph(drawn([day(0)]), name="spend", describes="spend").children.config
    assert config["displaylogo"] is False
    assert config["showSendToCloud"] is False
    assert config["plotlyServerURL"] == ""


def test_lengths_of_bars_are_shares_of_the_longest() -> None:
    assert figures.shares([Decimal(200), Decimal(50), Decimal(-3), None]) == [100.0, 25.0, 0.0, 0.0]
    assert figures.shares([None, Decimal(-1)]) == [0.0, 0.0]


def test_the_axis_names_its_unit_and_spans_the_period() -> None:
    layout = drawn([day(0)])["layout"]
    assert layout["yaxis"]["title"]["text"] == "USD"
    assert layout["xaxis"]["range"] == ["2026-10-29 12:00", "2026-11-04 12:00"]
