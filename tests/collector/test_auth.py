"""Keys: made once, kept as a digest, good everywhere within seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from collector import auth
from collector.auth import KeyRing, Principal
from models.errors import Conflict, InvalidInput, NotFound, Unavailable
from models.store import Store
from tests.walks.service import until

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)


def make(store: Store, scope: auth.Scope = "admin", *workspaces: str, name: str = "me") -> tuple[auth.KeyInfo, str]:
    with store.write() as session:
        return auth.create_key(session, name=name, scope=scope, workspaces=workspaces, now=NOW)


def test_a_key_is_kept_as_a_digest_only(store: Store) -> None:
    info, secret = make(store)
    assert secret.startswith(f"mb_{info.id}_")
    assert len(secret) == 55
    with store.read() as session:
        row = session.execute(sa.text("SELECT * FROM api_key")).one()
    assert not any(secret[12:] in str(value) for value in row)
    assert KeyRing(store).authenticate(secret) == Principal(info.id, "me", "admin")


def test_the_first_key_must_be_admin(store: Store) -> None:
    for scope in ("ingest", "read"):
        with pytest.raises(Conflict, match="first key must be an admin key"):
            make(store, scope)
    make(store)
    make(store, "read", "ws-b", "ws-a", "ws-a")
    with store.read() as session:
        assert {(key.scope, key.workspaces) for key in auth.list_keys(session)} == {("admin", ()), ("read", ("ws-a", "ws-b"))}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"name": " "}, "1 to 256 printable"),
        ({"name": "a\nb"}, "1 to 256 printable"),
        ({"name": "x" * 257}, "1 to 256 printable"),
        ({"scope": "root"}, "one of ingest, read, admin, not 'root'"),
        ({"workspaces": ["ws-a"]}, "every workspace"),
        ({"scope": "read", "workspaces": [""]}, "1 to 256 characters"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(sqlite_store: Store, overrides: dict[str, Any], message: str) -> None:
    facts: dict[str, Any] = {"name": "me", "scope": "admin", "workspaces": (), "now": NOW} | overrides
    with sqlite_store.write() as session, pytest.raises(InvalidInput, match=message):
        auth.create_key(session, **facts)


def test_a_revoked_key_stays_revoked_since_the_first_time(store: Store) -> None:
    info, secret = make(store)
    with store.write() as session:
        auth.revoke_key(session, info.id, now=NOW)
        assert auth.revoke_key(session, info.id, now=NOW + timedelta(days=1)).revoked_at == NOW
    ring = KeyRing(store)
    assert (ring.authenticate(secret), ring.principal(info.id), ring.is_open()) == (None, None, False)
    with store.write() as session, pytest.raises(NotFound, match="no key 'nobody'"):
        auth.revoke_key(session, "nobody", now=NOW)


@pytest.mark.parametrize(
    ("scope", "workspaces", "may", "visible"),
    [
        ("admin", (), {"ingest", "read", "admin"}, None),
        ("read", (), {"read"}, None),
        ("read", ("ws-a",), {"read"}, frozenset({"ws-a"})),
        ("ingest", ("ws-a",), {"ingest"}, frozenset({"ws-a"})),
    ],
)
def test_what_a_scope_covers(scope: auth.Scope, workspaces: tuple[str, ...], may: set[str], visible: frozenset[str] | None) -> None:
    principal = Principal("k", "me", scope, frozenset(workspaces) or None)
    assert ({needed for needed in auth.SCOPES if principal.may(needed)}, principal.visible) == (may, visible)


# -- the ring ---------------------------------------------------------------------------------------


def test_keys_are_remembered_for_two_seconds(store: Store) -> None:
    seconds = [100.0]
    ring = KeyRing(store, clock=lambda: seconds[0])
    assert ring.is_open()
    _, secret = make(store)
    seconds[0] += 2
    assert ring.authenticate(secret) is None
    seconds[0] += 0.1
    assert ring.authenticate(secret) is not None
    assert not ring.is_open()


def test_a_thousand_questions_at_once_are_one_query(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(sqlite_store)
    ring, asked, barrier = KeyRing(sqlite_store), [], threading.Barrier(20)
    read: Callable[[], Any] = sqlite_store.read

    def counted() -> Any:
        asked.append(1)
        return read()

    monkeypatch.setattr(sqlite_store, "read", counted)

    def ask() -> None:
        barrier.wait(20)
        ring.authenticate("mb_x")

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(asked) == 1


def test_a_database_that_is_away_is_asked_once_a_second(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, asked = [100.0], []
    ring = KeyRing(sqlite_store, clock=lambda: seconds[0])

    def away() -> Any:
        asked.append(1)
        raise Unavailable("the database does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_store, "read", away)
        for _ in range(5):
            with pytest.raises(Unavailable):
                ring.is_open()
        assert len(asked) == 1
        seconds[0] += 1
        with pytest.raises(Unavailable):
            ring.authenticate("mb_x")
        assert len(asked) == 2
    seconds[0] += 1
    assert ring.is_open()


def test_keys_that_will_soon_be_too_old_are_read_beside_who_asks(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, asked = [100.0], []
    ring = KeyRing(sqlite_store, clock=lambda: seconds[0])

    def away() -> Any:
        asked.append(1)
        raise Unavailable("the database does not answer")

    assert ring.is_open()
    _, secret = make(sqlite_store)
    seconds[0] += 1
    ring.renew()
    assert ring.reads == 1
    seconds[0] += 0.1
    ring.renew()
    until(lambda: ring.reads == 2, within=20, what="a look at the keys beside")
    seconds[0] += 1.9  # three seconds after the first look, and nobody reads
    monkeypatch.setattr(sqlite_store, "read", away)
    assert ring.authenticate(secret) is not None
    for _ in range(5):
        ring.renew()
        until(lambda: not ring._turn.locked(), within=20, what="the end of the look")
    assert (len(asked), ring.reads) == (1, 2)


# -- containers and cookies -------------------------------------------------------------------------


def test_an_absent_admin_key_file_is_made_once(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "made" / "key"
    assert auth.ensure_admin_key(store, file, now=NOW) == f"made an admin key and wrote it to {file}"
    assert file.stat().st_mode & 0o777 == 0o600
    principal = KeyRing(store).authenticate(file.read_text().strip())
    assert principal is not None
    assert principal.scope == "admin"
    assert auth.ensure_admin_key(store, file, now=NOW) is None
    file.unlink()
    assert auth.ensure_admin_key(store, file, now=NOW) is None  # there are keys: no second one is made behind anybody's back
    assert not file.exists()


@pytest.mark.parametrize("secret", ["s" * 32, "mb_0badcafe_" + "y" * 43])
def test_the_secret_of_an_admin_key_file_works(store: Store, tmp_path: Path, secret: str) -> None:
    file = tmp_path / "key"
    file.write_text(f"{secret}\n")
    assert auth.ensure_admin_key(store, file, now=NOW) == f"the secret in {file} is an admin key now"
    principal = KeyRing(store).authenticate(secret)
    assert principal is not None
    assert auth.ensure_admin_key(store, file, now=NOW) is None
    with store.write() as session:
        auth.revoke_key(session, principal.key_id or "", now=NOW)
    assert "was revoked and stays so" in (auth.ensure_admin_key(store, file, now=NOW) or "")
    # Another secret that claims the same id is a key of its own.
    if secret.startswith("mb_"):
        file.write_text("mb_0badcafe_" + "z" * 43)
        auth.ensure_admin_key(store, file, now=NOW)
        assert KeyRing(store).authenticate("mb_0badcafe_" + "z" * 43) is not None


@pytest.mark.parametrize("content", [b"short", b"two words " * 10, b"", b"\xff" * 40])
def test_an_admin_key_file_without_a_secret_is_refused(sqlite_store: Store, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=str(file)):
        auth.ensure_admin_key(sqlite_store, file, now=NOW)


def test_an_admin_key_file_that_is_a_folder_is_refused(sqlite_store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be used"):
        auth.ensure_admin_key(sqlite_store, tmp_path, now=NOW)


def test_processes_that_start_together_share_one_cookie_secret(store: Store) -> None:
    found: list[bytes] = []
    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait(20)
        found.append(auth.cookie_secret(store))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(found[0]) == 32
