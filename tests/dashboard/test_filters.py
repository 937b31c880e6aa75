from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.filters import Selection, month_to_date, preset
from models.errors import InvalidInput
from models.ledger import Filters
from models.periods import Period
from models.resources import Mode

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def test_an_empty_address_means_the_last_thirty_utc_days_today_included() -> None:
    assert Selection.parse("").period(NOW) == Period(datetime(2026, 10, 22, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC))
    assert Selection.parse("").search() == ""


def test_every_parameter_of_the_read_api_comes_back_as_written() -> None:
    search = (
        "?from=2026-11-01&to=2026-11-08&workspace=ws-a&workspace=ws-b&deployment=chat/blue&model=Llama-3.3-70B-Instruct&application=app&team=legal"
        "&mode=serverless&tag:env=prod&granularity=hour&group_by=deployment,tag:env&basis=billed&currency=EUR"
    )
    selection = Selection.parse(search)
    assert selection.period(NOW) == Period(datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 8, tzinfo=UTC))
    assert selection.filters(frozenset({"ws-a"})) == Filters(
        ("ws-a", "ws-b"), ("chat/blue",), ("Llama-3.3-70B-Instruct",), ("app",), ("legal",), (Mode.SERVERLESS,), (("env", "prod"),), frozenset({"ws-a"})
    )
    assert (selection.granularity, selection.group_by, selection.basis, selection.currency) == ("hour", ("deployment", "tag:env"), "billed", "EUR")
    assert selection.search() == search.replace("chat/blue", "chat%2Fblue")
    assert Selection.parse(selection.search()) == selection


def test_a_month_says_both_ends_as_it_does_to_the_api() -> None:
    selection = Selection.parse("?month=2026-02")
    assert selection.period(NOW) == Period(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))
    assert (selection.search(), selection.ignored) == ("?from=2026-02-01&to=2026-03-01", ())


@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=60), max_size=4, unique=True))
def test_any_name_survives_the_address(names: list[str]) -> None:
    selection = Selection(workspaces=tuple(names), tags=tuple((name, name) for name in names))
    assert Selection.parse(selection.search()) == selection


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("?mode=turbo", "there is no mode 'turbo'"),
        ("?from=yesterday", "'from' in the address is not"),
        ("?from=2026-02-30", "not a date that exists"),
        ("?granularity=fortnight", "there is no granularity 'fortnight'"),
        ("?basis=guess", "there is no basis 'guess'"),
        ("?group_by=colour", "figures cannot be grouped by 'colour'"),
        ("?currency=dollars", "not a three-letter currency code"),
        ("?workspace=a%00b", "NUL"),
        ("?workspace=" + "x" * 513, "longer than 512"),
        ("?" + "&".join(f"workspace={number}" for number in range(201)), "more than 200 parameters"),
        ("?from=2026-11-02&to=2026-11-01", "before it starts"),
        ("?from=2026-09-01&granularity=hour", "at most 31 days"),
        ("?from=2020-01-01", "at most 1100 days"),
        ("?month=2026-13", "'month' in the address must be written like 2026-11"),
        ("?month=2026-10&to=2026-11-01", "say month, or from and to, not both"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(search: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Selection.parse(search).period(NOW)
    assert said in refused.value.message


def test_unknown_parameters_are_named_and_empty_values_mean_all() -> None:
    selection = Selection.parse("?workspce=ws-a&team=")
    assert selection.ignored == ("workspce",)
    assert selection.teams == ()


def test_presets_are_open_at_the_end_and_the_default_leaves_no_trace() -> None:
    assert preset(Selection(), 7, NOW).search() == "?from=2026-11-14"
    assert preset(Selection(workspaces=("a",)), 30, NOW).search() == "?workspace=a"
    assert month_to_date(Selection(), NOW).search() == "?from=2026-11-01"
    assert preset(Selection(), 7, NOW).period(NOW) == Period(datetime(2026, 11, 14, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC))


def test_a_chip_is_the_selection_without_its_value() -> None:
    selection = Selection.parse("?workspace=a&workspace=b&mode=unknown&tag:k=v&currency=USD")
    assert [(key, value, without.search()) for key, value, without in selection.chips()] == [
        ("workspace", "a", "?workspace=b&mode=unknown&tag:k=v&currency=USD"),
        ("workspace", "b", "?workspace=a&mode=unknown&tag:k=v&currency=USD"),
        ("mode", "unknown", "?workspace=a&workspace=b&tag:k=v&currency=USD"),
        ("tag:k", "v", "?workspace=a&workspace=b&mode=unknown&currency=USD"),
        ("currency", "USD", "?workspace=a&workspace=b&mode=unknown&tag:k=v"),
    ]


def test_an_instant_keeps_its_time_and_its_plus_sign() -> None:
    selection = Selection.parse("?from=2026-11-01T12:30:00%2B02:00&to=2026-11-02T00:00:00Z")
    assert selection.search() == "?from=2026-11-01T10:30:00Z&to=2026-11-02"
