"""API keys: who a request is from and what it may do.

A key is ``mb_`` + a public id + ``_`` + 43 characters of 256 random bits; the database keeps the id and the secret's
SHA-256, so that a key cannot be read out of it. (It does hold what signs the dashboard's sessions, so the file is for no
other eyes.) ``KeyRing`` remembers keys for two seconds at most: a new or revoked key is effective everywhere within five.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from models.errors import Conflict, InvalidInput, NotFound, Unavailable
from models.resources import ApiKey, Setting
from models.store import Store

Scope = Literal["ingest", "read", "admin"]
SCOPES: tuple[Scope, ...] = ("ingest", "read", "admin")
_REMEMBERED_SECONDS = 2.0
# Where many ask, the keys are read again beside them from this age on, and nobody waits.
_RENEWED_SECONDS = 1.0
# After a database that did not answer: as long as nobody else waits for it.
_SPARED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. ``workspaces`` None is all of them; ``key_id`` None is the open mode or the local command line."""

    key_id: str | None
    name: str
    scope: Scope
    workspaces: frozenset[str] | None = None

    def may(self, needed: Scope) -> bool:
        """Whether the scope covers what is needed: admin everything, the others themselves."""
        return self.scope in ("admin", needed)

    @property
    def visible(self) -> frozenset[str] | None:
        """The workspaces whose figures may be seen; admin sees all."""
        return None if self.scope == "admin" else self.workspaces


OPEN = Principal(None, "open mode", "admin")


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key as lists show it."""

    id: str
    name: str
    scope: str
    workspaces: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None


def create_key(session: Session, *, name: str, scope: Scope, workspaces: Sequence[str], now: datetime, secret: str | None = None) -> tuple[KeyInfo, str]:
    """Make a key; gives it and its secret, which is shown once. The first key of all must be ``admin``."""
    if not name.strip() or len(name) > 256 or any(ord(sign) < 32 for sign in name):
        raise InvalidInput("a key needs a name of 1 to 256 printable characters")
    if scope not in SCOPES:
        raise InvalidInput(f"scope must be one of {', '.join(SCOPES)}, not {scope!r}")
    for workspace in workspaces:
        if not workspace.strip() or len(workspace) > 256:
            raise InvalidInput("a workspace of a key must be a name of 1 to 256 characters")
    if scope == "admin" and workspaces:
        raise InvalidInput("an admin key is for every workspace; leave --workspace away, or make a read or ingest key")
    if scope != "admin" and session.exec(select(ApiKey).limit(1)).first() is None:
        raise Conflict("the first key must be an admin key: meterbridge keys create --name NAME --scope admin")
    key_id = secrets.token_hex(4)
    text = secret or f"mb_{key_id}_{secrets.token_urlsafe(32)}"
    if secret is not None:
        said = _id_of(secret)
        key_id = said if said is not None and session.get(ApiKey, said) is None else key_id
    row = ApiKey(id=key_id, name=name, scope=scope, workspaces=json.dumps(sorted(set(workspaces))), secret_hash=_hash(text), created_at=now)
    session.add(row)
    session.flush()
    return _info(row), text


def list_keys(session: Session) -> list[KeyInfo]:
    """Every key, oldest first."""
    return [_info(row) for row in session.exec(select(ApiKey).order_by(col(ApiKey.created_at), col(ApiKey.id)))]


def revoke_key(session: Session, key_id: str, *, now: datetime) -> KeyInfo:
    """End a key; it stops working everywhere within five seconds."""
    row = session.get(ApiKey, key_id)
    if row is None:
        raise NotFound(f"there is no key {key_id!r}; see: meterbridge keys list")
    if row.revoked_at is None:
        row.revoked_at = now
        session.add(row)
        session.flush()
    return _info(row)


def ensure_admin_key(store: Store, file: Path, *, now: datetime) -> str | None:
    """For containers: the secret in the file works as an admin key; an absent file is made with a new one. Gives what was done."""
    try:
        if not file.exists():
            return _make_admin_key_file(store, file, now=now)
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise InvalidInput(f"the admin key file {file} cannot be used: {getattr(fault, 'strerror', None) or 'it is not text'}") from fault
    if len(secret) < 32 or any(sign.isspace() for sign in secret):
        raise InvalidInput(f"{file} must hold one secret of at least 32 characters without spaces")
    with store.write() as session:
        found = session.exec(select(ApiKey).where(col(ApiKey.secret_hash) == _hash(secret)).limit(1)).first()
        if found is None:
            try:
                create_key(session, name="admin key file", scope="admin", workspaces=(), now=now, secret=secret)
            except IntegrityError:
                # Another process that started at the same time was quicker.
                session.rollback()
                return None
            return f"the secret in {file} is an admin key now"
        if found.revoked_at is not None:
            return f"the secret in {file} is the key {found.id}, which was revoked and stays so; put a new secret into the file"
        return None


def _make_admin_key_file(store: Store, file: Path, *, now: datetime) -> str | None:
    with store.write() as session:
        if session.exec(select(ApiKey).limit(1)).first() is not None:
            return None
        _, secret = create_key(session, name="admin key file", scope="admin", workspaces=(), now=now)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Of several processes that start at once only one makes the file, and with it the key.
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            session.rollback()
            return None
        # Before the commit: a key whose secret was never written would lock everybody out.
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(secret + "\n")
    return f"made an admin key and wrote it to {file}"


def cookie_secret(store: Store) -> bytes:
    """The secret that signs dashboard sessions, the same in every process on this database."""
    with store.read() as session:
        found = session.get(Setting, "cookie_secret")
        if found is not None:
            return bytes.fromhex(found.value)
    with store.write() as session:
        # Several processes may start at once on an empty database: the first one's stands.
        session.execute(sa.text("INSERT INTO setting (name, value) VALUES ('cookie_secret', :value) ON CONFLICT DO NOTHING"), {"value": secrets.token_hex(32)})
        return bytes.fromhex(session.exec(select(Setting.value).where(Setting.name == "cookie_secret")).one())


class KeyRing:
    """The keys of a database, at most two seconds old. ``clock`` counts seconds and never goes back."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._read_at = float("-inf")
        self._failed_at = float("-inf")
        self.reads = 0  # how often the keys were read: what follows from them holds until the next time
        self._by_hash: dict[str, ApiKey] = {}
        self._by_id: dict[str, ApiKey] = {}

    def refresh(self) -> None:
        """Read the keys again now."""
        with self._store.read() as session:
            rows = list(session.exec(select(ApiKey)))
            for row in rows:
                session.expunge(row)
        with self._lock:
            self._by_hash = {row.secret_hash: row for row in rows}
            self._by_id = {row.id: row for row in rows}
            self._read_at = self._clock()
            self.reads += 1

    def renew(self) -> None:
        """Read the keys again in a thread where they soon will be too old; one at a time."""
        now = self._clock()
        if now - self._read_at <= _RENEWED_SECONDS or now - self._failed_at < _SPARED_SECONDS or not self._turn.acquire(blocking=False):
            return
        threading.Thread(target=self._renew, name="keys", daemon=True).start()

    def _renew(self) -> None:
        try:
            self.refresh()
        except Unavailable:
            self._failed_at = self._clock()
        finally:
            self._turn.release()

    @property
    def is_stale(self) -> bool:
        """Whether the next question will read the database."""
        return self._is_stale()

    def _is_stale(self) -> bool:
        return self._clock() - self._read_at > _REMEMBERED_SECONDS

    def _fresh(self) -> None:
        if not self._is_stale():
            return
        # One asks for all: a thousand requests that find the keys old must not be a thousand queries.
        with self._turn:
            if not self._is_stale():
                return
            if self._clock() - self._failed_at < _SPARED_SECONDS:
                raise Unavailable("the keys cannot be read: the database does not answer; send the same again in a moment", retry_after_seconds=2)
            try:
                self.refresh()
            except Unavailable:
                self._failed_at = self._clock()
                raise

    def is_open(self) -> bool:
        """Whether no key was ever created; a revoked one counts as created."""
        # Once there were keys there are keys for ever: no need to ask again.
        if self._by_id:
            return False
        self._fresh()
        return not self._by_id

    def authenticate(self, secret: str) -> Principal | None:
        """Whose secret it is; None for an unknown or revoked one. Takes the same time for both."""
        self._fresh()
        digest = _hash(secret)
        row = self._by_hash.get(digest)
        matches = hmac.compare_digest(digest, row.secret_hash if row is not None else _hash(""))
        return _principal(row) if row is not None and matches and row.revoked_at is None else None

    def principal(self, key_id: str) -> Principal | None:
        """The principal of a key that is still good."""
        self._fresh()
        row = self._by_id.get(key_id)
        return _principal(row) if row is not None and row.revoked_at is None else None


def _principal(row: ApiKey) -> Principal:
    workspaces = frozenset(json.loads(row.workspaces))
    scope: Scope = row.scope  # type: ignore[assignment]  # checked when it was created
    return Principal(row.id, row.name, scope, workspaces or None)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _id_of(secret: str) -> str | None:
    parts = secret.split("_")
    return parts[1] if len(parts) >= 3 and parts[0] == "mb" and len(parts[1]) == 8 and parts[1].isalnum() else None


def _info(row: ApiKey) -> KeyInfo:
    return KeyInfo(row.id, row.name, row.scope, tuple(json.loads(row.workspaces)), row.created_at, row.revoked_at)
