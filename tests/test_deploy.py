"""The files that operators deploy from hold what they promise, as far as it can be seen without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"


def run(*command: str) -> str:
    """What the command says, for a message; it has to end well."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(name: str) -> str:
    """A program of the environment that the tests run in."""
    return str(Path(sys.executable).parent / name)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"])


def test_dockerfile_is_clean_by_hadolint() -> None:
    run(program("hadolint"), "--failure-threshold", "style", str(DOCKERFILE))


def test_compose_file_follows_the_compose_specification() -> None:
    run(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_image_runs_without_root_and_checks_itself() -> None:
    final_stage = DOCKERFILE.read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final_stage, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*(?:\n .*)*/readyz", final_stage, re.MULTILINE)
    assert 'ENTRYPOINT ["meterbridge"]' in final_stage


def test_image_installs_only_what_the_lock_names() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    installs = re.findall(r"pip install (.*)", text)
    assert installs == ["--require-hashes --requirement requirements.lock", "--no-deps --no-build-isolation ."]


def test_what_the_image_copies_is_let_through_to_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    assert allowed == {"collector", "dashboard", "meterbridge_client", "models", "pyproject.toml", "README.md", "requirements.lock"}
    assert all((ROOT / name).exists() for name in allowed)


def test_no_password_stands_in_the_compose_file(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|KEY|SECRET|TOKEN", variable):
                assert variable.endswith("_FILE"), (name, variable)
                assert value.startswith("/run/secrets/"), (name, variable)
    assert "POSTGRES_HOST_AUTH_METHOD" not in COMPOSE.read_text(encoding="utf-8")


def test_only_the_service_is_published_and_only_on_this_machine(services: dict[str, Any]) -> None:
    assert [port for service in services.values() for port in service.get("ports", [])] == ["127.0.0.1:${PUBLISHED_PORT:-8000}:8000"]


def test_data_outlives_the_containers(services: dict[str, Any]) -> None:
    named = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["volumes"]
    assert {volume.partition(":")[0] for service in services.values() for volume in service["volumes"]} == set(named)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_every_locked_package_has_hashes_for_both_machines(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    packages = re.findall(r"^[a-z0-9][a-z0-9._-]*==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    assert len(packages) == len(re.findall(r"^[a-z0-9][a-z0-9._-]*==", text, re.MULTILINE))
    # A wheel for each machine and Python version, not only for the one that the lock was made on.
    (msgspec,) = re.findall(r"^msgspec==\S+ \\\n((?:    --hash=.*\n)+)", text, re.MULTILINE)
    assert msgspec.count("--hash") > 20
    assert not re.search(r"://|^--(?!hash)|^\s+--(?!hash)", text, re.MULTILINE), "a lock names no registry"


def test_lock_holds_every_dependency_of_the_project() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for lock, wanted in (
        ("requirements.lock", project["dependencies"]),
        ("requirements-dev.lock", project["dependencies"] + project["optional-dependencies"]["dev"]),
    ):
        locked = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE))
        names = {re.split(r"[\[<>=~!; ]", requirement, maxsplit=1)[0].lower() for requirement in wanted}
        assert names <= locked, f"{lock} lacks {sorted(names - locked)}; run: make lock"


def test_both_locks_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))

    assert pins("requirements.lock").items() <= pins("requirements-dev.lock").items()


def test_ci_script_is_executable_and_parses() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    run("bash", "-n", str(script))
