"""Where reports may be written: below one root, through no link, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.azure.client import AzureSettings
from collector.reports.places import File, Places
from collector.settings import Settings
from models.errors import Conflict, InvalidInput

AZURE = AzureSettings("https://management.azure.com", "https://prices.azure.com", "default", (), ())
FILES = [File("report.csv", b"a,b\r\n", "text/csv"), File("report.manifest.json", b"{}", "application/json")]


def places(tmp_path: Path) -> Places:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    return Places(tmp_path / "root", AZURE)


@pytest.mark.parametrize(("folder", "steps"), [(".", ()), ("finance", ("finance",)), ("finance//weekly/", ("finance", "weekly")), ("./a b/ü", ("a b", "ü"))])
def test_a_folder_is_steps_below_the_root(tmp_path: Path, folder: str, steps: tuple[str, ...]) -> None:
    into = places(tmp_path)
    assert tuple(into.steps(folder)) == steps
    assert tuple(into.steps(str(tmp_path / "root" / folder))) == steps
    into.write(folder, FILES)
    assert sorted(path.name for path in (tmp_path / "root").joinpath(*steps).iterdir()) == ["report.csv", "report.manifest.json"]


@pytest.mark.parametrize("folder", ["..", "a/../..", "/", "/etc", "a\nb", "a\0b", "x" * 300, "/".join("a" * 20), "OUTSIDE"])
def test_a_folder_outside_is_refused_with_what_to_do(tmp_path: Path, folder: str) -> None:
    into = places(tmp_path)
    with pytest.raises(InvalidInput, match="below") as refused:
        into.steps(folder.replace("OUTSIDE", str(tmp_path / "outside")))
    assert "such as finance" in refused.value.message


@pytest.mark.parametrize("where", ["link", "real/link", "real/link/more"])
def test_a_symbolic_link_leads_nowhere(tmp_path: Path, where: str) -> None:
    into = places(tmp_path)
    (into.root / "real").mkdir()
    for place in ("link", "real/link"):
        (into.root / place).symlink_to(tmp_path / "outside")
    with pytest.raises(Conflict, match="symbolic link"):
        into.write(where, FILES)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_link_under_a_files_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    into = places(tmp_path)
    kept = tmp_path / "outside" / "kept"
    kept.write_bytes(b"mine")
    (into.root / "report.csv").symlink_to(kept)
    into.write(".", FILES)
    assert (kept.read_bytes(), (into.root / "report.csv").is_symlink(), (into.root / "report.csv").read_bytes()) == (b"mine", False, b"a,b\r\n")


def test_a_folder_that_becomes_a_link_after_it_was_opened_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into = places(tmp_path)
    (into.root / "a").mkdir()
    from collector.reports import places as module

    replace = module._replace

    def meanwhile(inside: int, file: File) -> None:
        if (into.root / "a").exists() and not (into.root / "a").is_symlink():
            (into.root / "a").rename(into.root / "b")
            (into.root / "a").symlink_to(tmp_path / "outside")
        replace(inside, file)

    monkeypatch.setattr(module, "_replace", meanwhile)
    into.write("a", FILES)
    assert (list((tmp_path / "outside").iterdir()), len(list((into.root / "b").iterdir()))) == ([], 2)


def test_the_default_is_beside_the_database_and_made_when_it_is_needed(tmp_path: Path) -> None:
    into = Places.of(Settings(database_url=f"sqlite:///{tmp_path}/data/m.db"))
    assert into.root == tmp_path / "data" / "reports"
    into.write("weekly", FILES)
    assert (tmp_path / "data" / "reports" / "weekly" / "report.csv").exists()
    named = Places.of(Settings(reports_folder=tmp_path / "mount"))
    with pytest.raises(Conflict, match="METERBRIDGE_REPORTS_FOLDER"):
        named.write("weekly", FILES)
    assert not (tmp_path / "mount").exists()


def test_what_cannot_be_written_says_where(tmp_path: Path) -> None:
    into = places(tmp_path)
    (into.root / "file").write_bytes(b"")
    with pytest.raises(Conflict, match="is no folder"):
        into.write("file/x", FILES)
    (into.root / "taken" / "report.csv").mkdir(parents=True)
    with pytest.raises(Conflict, match="cannot be written into"):
        into.write("taken", FILES)
