"""A Dialpad that costs next to nothing: ``python -m tests.bench.dialpad PORT WEBSOCKET_PORT``.

It has one websocket, whose frames are made before they are due and then only written, and a
company with a call every `STEP_MS` for all time, listed as Dialpad lists calls: those that began
in a window, the latest first, 50 a page. What a scene wants of it stands below ``/bench``.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol

from tests.bench.bodies import SECRET, Slice

#: 5000 calls a day, which is a hundred full pages.
STEP_MS = 17_280
PER_PAGE = 50

_PAGE = Path(__file__).parents[1] / "samples/dialpad/rest-call-list-page.json"
#: Frames that are written at once.
_AT_ONCE = 64
_WAIT_S = 60.0


class Socket(asyncio.Protocol):
    """The company's websocket, as its last caller has it."""

    def __init__(self, dialpad: "Dialpad") -> None:
        self._dialpad = dialpad
        self._library = ServerProtocol()
        self._writable = asyncio.Event()
        self._pong = asyncio.Event()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._library.receive_data(data)
        for event in self._library.events_received():
            if isinstance(event, Handshake):
                self._library.send_response(self._library.accept(event))
                self._dialpad.connected(self)
            elif isinstance(event, Frame) and event.opcode is Opcode.PONG:
                self._pong.set()
        self._flush()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _: Exception | None) -> None:
        self._dialpad.disconnected(self)
        self._writable.set()

    async def send(self, chunks: Sequence[tuple[int, bytes]], seconds: float) -> int:
        """Write (count, frames) as fast as they are read; return once all were, and how many."""
        until = time.monotonic() + seconds
        sent = 0
        for count, frames in chunks:
            await self._writable.wait()
            if time.monotonic() > until or self._transport.is_closing():
                break
            self._transport.write(frames)
            sent += count
            await asyncio.sleep(0)
        self._pong.clear()
        self._library.send_ping(b"bench")
        self._flush()
        async with asyncio.timeout(_WAIT_S):
            await self._pong.wait()
        return sent

    def _flush(self) -> None:
        for data in self._library.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()


class Dialpad:
    """What is asked of it, and how often."""

    def __init__(self, websocket_port: int) -> None:
        self._websocket = {
            "id": "1",
            "signature": {"algo": "HS256", "secret": SECRET, "type": "jwt"},
            "websocket_url": f"ws://127.0.0.1:{websocket_port}/events",
        }
        self._samples = json.loads(_PAGE.read_text())["items"]
        self._socket: Socket | None = None
        self._changed = asyncio.Event()
        #: When pages of calls were asked for, by the clock that all processes share.
        self._asked_s: list[float] = []
        self.application = Starlette(
            routes=[
                Route("/api/v2/websockets", self._websockets),
                Route("/api/v2/websockets/1", self._one_websocket),
                Route("/api/v2/call", self._calls),
                Route("/bench/send", self._send, methods=["POST"]),
                Route("/bench/asked", self._asked),
            ]
        )

    def connected(self, socket: Socket) -> None:
        self._socket = socket
        self._changed.set()

    def disconnected(self, socket: Socket) -> None:
        if self._socket is socket:
            self._socket = None

    async def _websockets(self, _: Request) -> Response:
        return JSONResponse({"items": [self._websocket]})

    async def _one_websocket(self, _: Request) -> Response:
        return JSONResponse(self._websocket)

    async def _calls(self, request: Request) -> Response:
        self._asked_s.append(time.monotonic())
        asked = request.query_params
        first = _number_from(int(asked["started_after"]))
        last = _number_from(int(asked["started_before"])) - 1
        if "cursor" in asked:
            last = int(asked["cursor"])
        numbers = range(last, max(first, last - PER_PAGE + 1) - 1, -1)
        page: dict[str, Any] = {"items": [self._call(number) for number in numbers]}
        if last - PER_PAGE >= first:
            page["cursor"] = str(last - PER_PAGE)
        return JSONResponse(page)

    def _call(self, number: int) -> dict[str, Any]:
        """Call after call of the samples; callers, agents and clocks are as varied as in life."""
        sample = self._samples[number % len(self._samples)]
        agent, caller = number % 40, number % 9_000_000
        later_ms = number * STEP_MS + STEP_MS // 2 - int(sample["date_started"])
        return {
            **sample,
            **{
                key: str(int(value) + later_ms)
                for key, value in sample.items()
                if key.startswith(("date_", "event_"))
            },
            "call_id": str(number),
            "internal_number": f"+1555123{agent:04}",
            "external_number": f"+1555{caller:07}",
        }

    async def _send(self, request: Request) -> Response:
        asked = request.query_params
        bodies = Slice(Path(asked["path"]), int(asked["offset"]), int(asked["count"]))
        lines = bodies.lines()
        chunks = []
        while frames := [_frame(line) for line in islice(lines, _AT_ONCE)]:
            chunks.append((len(frames), b"".join(frames)))
        async with asyncio.timeout(_WAIT_S):
            while self._socket is None:
                self._changed.clear()
                await self._changed.wait()
        began = time.monotonic()
        sent = await self._socket.send(chunks, float(asked["seconds"]))
        return JSONResponse({"sent": sent, "elapsed_s": time.monotonic() - began})

    async def _asked(self, _: Request) -> Response:
        return JSONResponse(self._asked_s)


def _number_from(ms: int) -> int:
    """The first call that begins then or later."""
    return -((STEP_MS // 2 - ms) // STEP_MS)


def _frame(body: bytes) -> bytes:
    return Frame(Opcode.TEXT, body).serialize(mask=False)


async def main(port: int, websocket_port: int) -> None:
    dialpad = Dialpad(websocket_port)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Socket(dialpad), "127.0.0.1", websocket_port)
    config = uvicorn.Config(
        dialpad.application,
        port=port,
        loop="none",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="error",
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
