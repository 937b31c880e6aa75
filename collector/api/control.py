"""The control route: commands given on this machine while the service owns the database go through it.

Only the holder of the token in the lock file may use it: whoever can read the database can. Answers NDJSON as the
work goes on: ``{"say"}``, ``{"progress"}``, then ``{"exit"}`` or ``{"error"}``.
"""

from __future__ import annotations

import hmac
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from collector import commands
from models.errors import DomainError, InvalidInput, Unauthorized

router = APIRouter(include_in_schema=False)
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
    lines: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=1000)

    def work() -> None:
        desk = commands.Desk(
            store=state.store,
            ingest=state.ingest,
            now=state.now,
            say=lambda text: lines.put({"say": text}),
            progress=lambda done, whole: lines.put({"progress": [done, whole]}),
        )
        try:
            lines.put({"exit": commands.run(command, desk)})
        except DomainError as fault:
            lines.put({"error": fault.message, "kind": type(fault).__name__})
        except Exception as fault:
            lines.put({"error": f"the service failed at this command ({type(fault).__name__}); its log says more", "kind": "InvariantBroken"})
            raise
        finally:
            lines.put(None)

    worker = threading.Thread(target=work, name="command", daemon=True)
    worker.start()
    while (line := lines.get()) is not None:
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
    state.keys.refresh()
