from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import rowfiles
from collector.rowfiles import Faults, Row, overlaps, read_rows
from models.errors import InvalidInput

START = datetime(2026, 1, 1, tzinfo=UTC)
BOUND = st.none() | st.integers(0, 6).map(lambda days: START + timedelta(days=days))


def read(content: str, faults: Faults | None = None, *, name: str = "file.csv") -> list[Row]:
    return read_rows(
        name, content.encode(), columns=("name", "note", "valid_from"), required=("name",), faults=Faults() if faults is None else faults, wrapper="rows"
    )


def test_a_place_is_the_line_that_a_row_begins_on() -> None:
    rows = read('name,note\r\n"a","two\r\nlines"\r\n\r\nb,"say ""so"", then"\r\n')
    assert [(row.place, row.name("name"), row.text("note")) for row in rows] == [
        ("file.csv line 2", "a", "two\r\nlines"),
        ("file.csv line 5", "b", 'say "so", then'),
    ]


def test_a_column_that_is_not_there_is_empty() -> None:
    (row,) = read("NAME\nx\n")
    assert (row.text("note"), row.instant("valid_from"), row.is_sound) == ("", None, True)


def test_json_is_known_by_name_or_by_its_first_character() -> None:
    for name, content in (("rows.JSON", '{"name": "x"}'), ("rows.txt", ' [{"name": "x"}]'), ("rows", '{"rows": [{"name": "x"}]}')):
        assert [row.name("name") for row in read(content, name=name)] == ["x"]


def test_numbers_of_json_are_text_as_they_were_written() -> None:
    (row,) = read('[{"name": 0.10, "note": 7}]')
    assert (row.text("name"), row.text("note")) == ("0.10", "7")


def test_faults_are_gathered_from_several_rows() -> None:
    faults = Faults()
    for row in read("name,valid_from\n,x\n,\nfine,2026-01-01\n,2026-01-01\n", faults):
        row.name("name", required=True)
        row.validity()
    with pytest.raises(InvalidInput) as refused:
        faults.raise_if_any()
    assert faults.count == 3
    assert "file.csv line 2: name is empty; file.csv line 2: valid_from is not" in refused.value.message
    assert "file.csv line 5: name is empty. Nothing was imported" in refused.value.message


def test_no_fault_raises_nothing() -> None:
    Faults().raise_if_any()


def test_a_file_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowfiles, "MAX_ROWS", 2)
    assert len(read("name\na\nb\n")) == 2
    for content in ("name\na\nb\nc\n", '[{"name": "a"}, {"name": "b"}, {"name": "c"}]'):
        with pytest.raises(InvalidInput, match="more than 2 rows"):
            read(content)


@given(st.lists(st.tuples(st.sampled_from("ab"), BOUND, BOUND).filter(lambda row: row[1] is None or row[2] is None or row[1] < row[2]), max_size=8))
def test_overlaps_are_found_exactly_where_two_rows_share_an_instant(rows: list[tuple[str, datetime | None, datetime | None]]) -> None:
    instants = [START + timedelta(days=half / 2) for half in range(-1, 14)]

    def shares(left: tuple[str, datetime | None, datetime | None], right: tuple[str, datetime | None, datetime | None]) -> bool:
        return left[0] == right[0] and any(
            all((row[1] is None or row[1] <= at) and (row[2] is None or at < row[2]) for row in (left, right)) for at in instants
        )

    found = {frozenset(pair) for pair in overlaps((subject, start, end, str(number)) for number, (subject, start, end) in enumerate(rows))}
    sharing = {frozenset((str(i), str(j))) for i in range(len(rows)) for j in range(i) if shares(rows[i], rows[j])}
    assert found <= sharing
    assert bool(found) == bool(sharing)
