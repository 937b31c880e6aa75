"""What the README says is so: settings, commands, options, make targets and links exist, and none is left unsaid."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector import settings
from collector.cli import build_parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("deploy/**/*.md"), *ROOT.glob("docs/**/*.md")])

_SETTING = re.compile(r"\bMETERBRIDGE_[A-Z][A-Z0-9_]*[A-Z0-9]\b")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def known_settings() -> set[str]:
    """The settings that the service reads: one for each field."""
    return {settings.PREFIX + field.name.upper() for field in dataclasses.fields(settings.Settings)}


def spans() -> list[str]:
    """Everything the README sets as code: spans, and lines of blocks without their comments."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text(README), re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text(README), flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    return [re.sub(r"\s+#.*$", "", code).strip().replace("\\|", "|") for code in (*lines, *inline)]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {name: below for action in parser._actions if isinstance(action, argparse._SubParsersAction) for name, below in action.choices.items()}


def every_command(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Each command as its words: ("up",), ("keys",), ("keys", "create") and so on."""
    for name, below in subcommands(parser).items():
        yield (*before, name)
        yield from every_command(below, (*before, name))


def options(parser: argparse.ArgumentParser) -> set[str]:
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(options(below) for below in subcommands(parser).values()))


COMMANDS = sorted(every_command(build_parser()))
NAMED = sorted({span for span in spans() if re.match(r"meterbridge [a-z]", span)})


def test_every_setting_is_in_the_readme() -> None:
    assert known_settings() - set(_SETTING.findall(text(README))) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    assert set(_SETTING.findall(text(page))) - known_settings() == set()


def test_settings_of_the_deployment_files_exist() -> None:
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file() and "secrets" not in path.parts:
            assert set(_SETTING.findall(text(path))) - known_settings() == set(), path


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_helps(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*words, "--help"])
    assert ended.value.code == 0
    assert f"meterbridge {' '.join(words)}" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({words[0] for words in COMMANDS}))
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"\bmeterbridge {name}\b", text(README)), f"README.md does not name: meterbridge {name}"


@pytest.mark.parametrize("span", NAMED)
def test_every_command_that_the_readme_names_exists(span: str) -> None:
    parser = build_parser()
    words = span.split()[1:]
    while words and subcommands(parser):
        names = [name for name in re.split(r"\|", words[0]) if re.fullmatch(r"[a-z]+", name)]
        if not names:
            break
        for name in names:
            assert name in subcommands(parser), f"{span}: there is no {name}"
        parser = subcommands(parser)[names[0]]
        words = words[1:]
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(words)):
        assert option in options(parser) | options(build_parser()), f"{span}: there is no {option}"


def test_example_commands_are_taken_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text(README), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines() if line.startswith("meterbridge ")]
    assert lines
    for line in lines:
        try:
            build_parser().parse_args(shlex.split(line, comments=True)[1:])
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", text(ROOT / "Makefile"), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z]+)", text(page))) <= targets, page
    assert {"demo", "test", "check", "bench", "lock", "clean", "help"} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(aim), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The headings of a page as links spell them."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["counted-once.md", "model-api.md"])
def test_every_test_that_a_page_calls_as_its_witness_exists(name: str) -> None:
    page = text(ROOT / "docs" / name)
    named = set(re.findall(r"`(test_\w+)`", page))
    known = {name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert len(named) > 20
    assert named - known == set()
