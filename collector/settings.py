"""The settings of a process: one frozen object, built once by the command line from METERBRIDGE_* and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from models.errors import InvalidInput

PREFIX = "METERBRIDGE_"


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator can set; every field is METERBRIDGE_ and its name in capitals. README.md explains each."""

    database_url: str = "sqlite:///meterbridge.db"
    host: str = "127.0.0.1"
    port: int = 8000
    log_format: str = "text"
    log_level: str = "info"
    admin_key_file: Path | None = None
    secure_cookies: bool = False
    database_password_file: Path | None = None
    vllm_targets: str = ""
    vllm_token_file: Path | None = None
    webhook_allow: str = ""
    webhook_ports: str = ""
    smtp_url: str = ""
    smtp_from: str = ""
    reports_folder: Path | None = None
    public_url: str = ""
    azure_arm_url: str = "https://management.azure.com"
    azure_retail_prices_url: str = "https://prices.azure.com"
    azure_credential: str = "default"
    azure_scopes: str = ""
    azure_subscriptions: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **options: object) -> Settings:
        """Settings from the environment, overridden by the options that were given (None = not given)."""
        known = {PREFIX + one.name.upper(): one.name for one in fields(cls)}
        values: dict[str, object] = {}
        for variable, name in known.items():
            if environment.get(variable, "") != "":
                values[name] = environment[variable]
        values.update({name: value for name, value in options.items() if value is not None})
        default = cls()
        return cls(
            database_url=_with_password(str(values.get("database_url", default.database_url)), values.get("database_password_file")),
            host=str(values.get("host", default.host)),
            port=_integer(values.get("port", default.port), what="METERBRIDGE_PORT (--port)", low=0, high=65_535),
            log_format=_one_of(values.get("log_format", default.log_format), ("text", "json"), what="METERBRIDGE_LOG_FORMAT"),
            log_level=_one_of(values.get("log_level", default.log_level), ("debug", "info", "warning", "error"), what="METERBRIDGE_LOG_LEVEL"),
            admin_key_file=Path(str(values["admin_key_file"])) if values.get("admin_key_file") else None,
            database_password_file=Path(str(values["database_password_file"])) if values.get("database_password_file") else None,
            vllm_targets=str(values.get("vllm_targets", default.vllm_targets)),
            vllm_token_file=Path(str(values["vllm_token_file"])) if values.get("vllm_token_file") else None,
            webhook_allow=str(values.get("webhook_allow", default.webhook_allow)),
            webhook_ports=str(values.get("webhook_ports", default.webhook_ports)),
            smtp_url=str(values.get("smtp_url", default.smtp_url)),
            smtp_from=str(values.get("smtp_from", default.smtp_from)),
            reports_folder=Path(str(values["reports_folder"])) if values.get("reports_folder") else None,
            public_url=_web(str(values.get("public_url", default.public_url)), what="METERBRIDGE_PUBLIC_URL"),
            azure_arm_url=str(values.get("azure_arm_url", default.azure_arm_url)).rstrip("/"),
            azure_retail_prices_url=str(values.get("azure_retail_prices_url", default.azure_retail_prices_url)).rstrip("/"),
            azure_credential=str(values.get("azure_credential", default.azure_credential)),
            azure_scopes=str(values.get("azure_scopes", default.azure_scopes)),
            azure_subscriptions=str(values.get("azure_subscriptions", default.azure_subscriptions)),
            secure_cookies=_flag(values.get("secure_cookies", default.secure_cookies), what="METERBRIDGE_SECURE_COOKIES"),
        )


def _with_password(url: str, file: object) -> str:
    """The URL with the password that a file holds, for secrets that containers get as files; SQLite has none."""
    if not file or not url.startswith("postgresql"):
        return url
    try:
        password = Path(str(file)).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise InvalidInput(f"METERBRIDGE_DATABASE_PASSWORD_FILE {file} cannot be read: {getattr(fault, 'strerror', None) or 'it is not text'}") from fault
    try:
        return sa.make_url(url).set(password=password).render_as_string(hide_password=False)
    except ArgumentError as fault:
        raise InvalidInput("the database URL is not one; use sqlite:///path/to/file.db or postgresql://user@host/name") from fault


def _integer(value: object, *, what: str, low: int, high: int) -> int:
    try:
        number = int(str(value))
    except ValueError as fault:
        raise InvalidInput(f"{what} must be a whole number, not {str(value)[:40]!r}") from fault
    if not low <= number <= high:
        raise InvalidInput(f"{what} must be from {low} to {high}, not {number}")
    return number


def _one_of(value: object, allowed: tuple[str, ...], *, what: str) -> str:
    if value not in allowed:
        raise InvalidInput(f"{what} must be one of {', '.join(allowed)}, not {str(value)[:40]!r}")
    return str(value)


def _web(text: str, *, what: str) -> str:
    """An address of the web without a slash at its end, or nothing."""
    try:
        parts = urlsplit(text)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.username or parts.query or parts.fragment)
    except ValueError:
        is_web = False
    if text and not (is_web and text.isascii() and text.isprintable() and " " not in text):
        raise InvalidInput(f"{what} is the address at which people open meterbridge, such as https://costs.example.com, not {text[:60]!r}")
    return text.rstrip("/")


def _flag(value: object, *, what: str) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("1", "true", "yes", "on"):
        return True
    if str(value).lower() in ("0", "false", "no", "off"):
        return False
    raise InvalidInput(f"{what} must be true or false, not {str(value)[:40]!r}")
