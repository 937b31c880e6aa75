"""The control route: commands given on this machine while the service owns the database go through it.

Only the holder of the token in the lock file may use it: whoever can read the database can. Answers NDJSON as the
work goes on: ``{"say"}``, ``{"progress"}``, then ``{"exit"}`` or ``{"error"}``.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import queue
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from collector import commands
from models.errors import DomainError, InvalidInput, Unauthorized, Unavailable

logger = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False)
_MOST_WAITING = 100
_DECODER = msgspec.json.Decoder(commands.Command)


@router.post("/v1/control")
async def control(request: Request) -> StreamingResponse:
    """Run one command and stream what it says."""
    token: str = request.app.state.control_token
    said = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not token or not hmac.compare_digest(said.encode(), token.encode()):
        raise Unauthorized("this route is for the command line on the service's own machine")
    try:
        command = _DECODER.decode(await request.body())
    except msgspec.DecodeError as fault:
        raise InvalidInput(f"the running service does not know this command ({fault}); is it another version?") from fault
    return StreamingResponse(_streamed(request.app.state, command), media_type="application/x-ndjson")


def _streamed(state: Any, command: commands.Command) -> Iterator[bytes]:
    # Never waits for its reader: one that went away would hold the command, and its transaction, for ever.
    lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def progress(done: int, whole: int | None) -> None:
        if lines.qsize() < _MOST_WAITING:
            lines.put({"progress": [done, whole]})

    def work() -> None:
        desk = commands.Desk(
            store=state.store,
            ingest=state.ingest,
            now=state.now,
            say=lambda text: lines.put({"say": text}),
            progress=progress,
            telling=state.telling,
        )
        try:
            code = commands.run(command, desk)
            # A new key works, and a revoked one ends, when the command says so.
            with contextlib.suppress(Unavailable):
                state.keys.refresh()
            lines.put({"exit": code})
        except DomainError as fault:
            lines.put({"error": fault.message, "kind": type(fault).__name__})
        except Exception as fault:
            logger.exception("a command failed")
            lines.put({"error": f"the service failed at this command ({type(fault).__name__}); its log says more", "kind": "InvariantBroken"})
        finally:
            lines.put(None)

    worker = threading.Thread(target=work, name="command", daemon=True)
    worker.start()
    while (line := lines.get()) is not None:
        yield json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
