"""What every simulated API has: a port, connections that break off, faults before any answer."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ingest.simulator.faults import Faults

HOST = "127.0.0.1"
DAY_MS = 86_400_000

#: A page for people, from something between us and them.
PROXY_PAGE = (
    b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
)


class Refusal(Exception):  # noqa: N818 - it is an answer
    """An answer that is none of the good ones."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(slots=True)
class Asked:
    """A request that was seen."""

    #: Of the monotonic clock.
    at_s: float
    method: str
    path: str
    params: Mapping[str, str]
    #: None as long as there is no answer, and where none was given.
    status: int | None = None


class Window:
    """At most so many in so long."""

    def __init__(self, most: float, span_s: float) -> None:
        self._most = most
        self._span_s = span_s
        self._taken: deque[float] = deque()

    def wait_s(self, now_s: float) -> float:
        """How long until there is room; 0: now."""
        while self._taken and self._taken[0] <= now_s - self._span_s:
            self._taken.popleft()
        if len(self._taken) < self._most:
            return 0.0
        return self._taken[0] + self._span_s - now_s

    def take(self, now_s: float) -> None:
        self._taken.append(now_s)


@dataclass(slots=True)
class Front:
    """What stands before an API: it sees every request, and may answer in the API's place."""

    faults: Faults
    asked: deque[Asked]
    #: What the provider says before it looks at what is asked; None: let it in.
    refuse: Callable[[Request], Response | None]
    app: ASGIApp
    #: Answers by their status.
    sums: Counter[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        asked = Asked(
            time.monotonic(), request.method, request.url.path, dict(request.query_params)
        )
        self.asked.append(asked)
        if self.faults.strikes("slow"):
            await asyncio.sleep(self.faults.slow_s)
        answer: ASGIApp = self.refuse(request) or self.app

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked.status = message["status"]
                self.sums[str(asked.status)] += 1
            await send(message)

        if self.faults.strikes("cut"):
            await _cut(answer, scope, receive, send)
        else:
            await answer(scope, receive, tell)


def weather(
    faults: Faults, too_many: Callable[[float], Response], error: Callable[[int, str], Response]
) -> Response | None:
    """What somebody answers in the place of the API, in the provider's manner; mostly nothing.

    ``too_many``: the answer to who comes too often, and after how many seconds they may.
    """
    if faults.strikes("limited"):
        return too_many(1.0)
    if faults.strikes("broken"):
        return error((500, 502, 503)[faults.up_to(3) - 1], "something went wrong")
    if faults.strikes("html"):
        return Response(PROXY_PAGE, media_type="text/html")
    return None


async def _cut(answer: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Give half of the answer, and break off."""

    async def half(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": message["body"][: len(message["body"]) // 2]}
            await send({**message, "more_body": True})
            await asyncio.sleep(0)
            scope["extensions"]["abort"]()
        else:
            await send(message)

    await answer(scope, receive, half)


class ApiServer:
    """Serves an application on a port that it keeps, also while it is closed."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._faults = faults
        self._state = ServerState()
        self._config = uvicorn.Config(
            app, log_config=None, access_log=False, ws="none", lifespan="off"
        )
        self._config.load()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def open(self, port: int | None = None) -> None:
        """Listen; at 0 on a port that is free. Raises OSError."""
        if self._server is not None:
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self._config, self._state, self._faults),
            HOST,
            self.port if port is None else port,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Let nobody connect any more, break off who is, and wait for what was being answered."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class Served:
    """A simulated provider with an API, which may go down and come up again."""

    _server: ApiServer

    @property
    def base_url(self) -> str:
        """Scheme, host and port of the API, for `base_url` in the settings."""
        return self._server.base_url

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Answer in the block; at 0 on a port that is free."""
        await self._server.open(port)
        try:
            yield
        finally:
            await self._server.close()

    async def go_down(self) -> None:
        """Let nobody connect to the API any more, and break off who is connected."""
        await self._server.close()

    async def come_up(self) -> None:
        """Serve the API again, at the same address."""
        await self._server.open()


class _Connection(HttpToolsProtocol):
    """Uvicorn's, which can be broken off."""

    def __init__(self, config: uvicorn.Config, state: ServerState, faults: Faults) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._faults = faults
        # Uvicorn's complaints are about our faults.
        self.logger = _SILENT
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._faults.strikes("refused"):
            # Without this the end is an orderly one.
            transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"abort": self.transport.abort}  # type: ignore[dict-item]


_SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # noqa: LOG001 - it is in no tree
