"""What the routes of the FastAPI app are given: the store, the caller, the time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request
from sqlmodel import Session

from collector.auth import OPEN, Principal
from models.store import Store


def _store(request: Request) -> Store:
    found: Store = request.app.state.store
    return found


def _reading(store: Annotated[Store, Depends(_store)]) -> Iterator[Session]:
    with store.read() as session:
        yield session


def _writing(store: Annotated[Store, Depends(_store)]) -> Iterator[Session]:
    with store.write() as session:
        yield session


def _principal(request: Request) -> Principal:
    found: Principal = getattr(request.state, "principal", OPEN)
    return found


def _clock(request: Request) -> datetime:
    """The server's clock, as the composition root gave it."""
    found: datetime = request.app.state.now()
    return found


# For what reads for long and writes for a moment: nobody waits for the reading.
Stored = Annotated[Store, Depends(_store)]
Reading = Annotated[Session, Depends(_reading)]
# Committed before the answer is sent: a dependency's end would come after it.
Writing = Annotated[Session, Depends(_writing, scope="function")]
Caller = Annotated[Principal, Depends(_principal)]
Now = Annotated[datetime, Depends(_clock)]
