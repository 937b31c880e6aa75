"""Settings: defaults, the environment, options over both, and refusals that name the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.settings import Settings
from models.errors import InvalidInput


def test_nothing_said_is_the_default() -> None:
    assert Settings.from_environment({}) == Settings(
        database_url="sqlite:///meterbridge.db",
        host="127.0.0.1",
        port=8000,
        log_format="text",
        log_level="info",
        admin_key_file=None,
        secure_cookies=False,
    )


def test_the_environment_is_read_and_options_win() -> None:
    environment = {
        "METERBRIDGE_DATABASE_URL": "postgresql://db/mb",
        "METERBRIDGE_HOST": "0.0.0.0",
        "METERBRIDGE_PORT": "9000",
        "METERBRIDGE_LOG_FORMAT": "json",
        "METERBRIDGE_LOG_LEVEL": "debug",
        "METERBRIDGE_ADMIN_KEY_FILE": "/run/secrets/key",
        "METERBRIDGE_SECURE_COOKIES": "Yes",
        "PORT": "1",
    }
    expected = Settings("postgresql://db/mb", "0.0.0.0", 9000, "json", "debug", Path("/run/secrets/key"), True)
    assert Settings.from_environment(environment) == expected
    options = Settings.from_environment(environment, port="0", host="127.0.0.1", database_url=None)
    assert (options.port, options.host, options.database_url) == (0, "127.0.0.1", "postgresql://db/mb")


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert Settings.from_environment({"METERBRIDGE_PORT": "", "METERBRIDGE_ADMIN_KEY_FILE": ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "http", r"METERBRIDGE_PORT \(--port\) must be a whole number, not 'http'"),
        ("PORT", "65536", "must be from 0 to 65535, not 65536"),
        ("PORT", "-1", "must be from 0 to 65535, not -1"),
        ("LOG_FORMAT", "xml", "METERBRIDGE_LOG_FORMAT must be one of text, json, not 'xml'"),
        ("LOG_LEVEL", "loud", "METERBRIDGE_LOG_LEVEL must be one of debug, info, warning, error"),
        ("SECURE_COOKIES", "maybe", "METERBRIDGE_SECURE_COOKIES must be true or false, not 'maybe'"),
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, value: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Settings.from_environment({f"METERBRIDGE_{name}": value})


def test_a_password_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/word\n", encoding="utf-8")
    said = {"METERBRIDGE_DATABASE_URL": "postgresql://me@host/name", "METERBRIDGE_DATABASE_PASSWORD_FILE": str(file)}
    assert Settings.from_environment(said).database_url == "postgresql://me:p%40ss%2Fword@host/name"
    with pytest.raises(InvalidInput, match="METERBRIDGE_DATABASE_PASSWORD_FILE"):
        Settings.from_environment({**said, "METERBRIDGE_DATABASE_PASSWORD_FILE": str(tmp_path / "none")})
    assert Settings.from_environment({"METERBRIDGE_DATABASE_PASSWORD_FILE": str(file)}).database_url == "sqlite:///meterbridge.db"
