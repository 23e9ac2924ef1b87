"""Dialpad as a server: its API, its deliveries, its websockets, over a simulated company.

What it does is what is known of the real one; the pages are named where it is done.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import TypeAlias

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ingest.simulator.clock import Clock
from ingest.simulator.dialpad import MAX_LAG_MS
from ingest.simulator.dialpad_records import Records
from ingest.simulator.dialpad_resources import Resources
from ingest.simulator.dialpad_rest import Asked, Key, Rates, Rest
from ingest.simulator.faults import Faults
from ingest.simulator.world import Happening, play

HOST = "127.0.0.1"

#: Told a seed and the first millisecond: what happens, in the order of `at_ms`.
Story: TypeAlias = Callable[[int, int], Iterator[Happening]]


class SimulatedDialpad:
    """What tests and people see of a running one; made by `simulated_dialpad`."""

    def __init__(
        self,
        clock: Clock,
        faults: Faults,
        rates: Rates,
        *,
        page_size: int,
        remember: int | None,
    ) -> None:
        self.clock = clock
        self.faults = faults
        self.api_key = secrets.token_urlsafe(24)
        #: Keys that are good, by their text.
        self.keys = {self.api_key: Key()}
        #: Requests to the API, by which a test proves that a rate was kept.
        self.requests: deque[Asked] = deque(maxlen=remember)
        self.records = Records(self._listing_takes_ms)
        self.resources = Resources("", secrets.token_urlsafe(32), lambda: clock.now_ms)
        self._rest = Rest(
            clock,
            self.resources,
            self.records,
            faults,
            self.keys,
            rates,
            self.requests,
            page_size,
        )
        self._api = _Api(self._rest, faults)
        self._door = _Listener(self._api.connection)

    @property
    def base_url(self) -> str:
        """Scheme, host and port of the API, for `base_url` in the settings."""
        return f"http://{HOST}:{self._door.port}"

    @asynccontextmanager
    async def running(self, happenings: Iterator[Happening], port: int) -> AsyncIterator[None]:
        """Serve, while all this happens."""
        upcoming = self._hear_the_past(happenings)
        await self._door.open(port)
        telling = asyncio.create_task(self._tell(upcoming))
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.wait([telling])
            await self.go_down()

    async def go_down(self) -> None:
        """Let nobody connect to the API any more, and break off who is connected."""
        await self._door.close()
        await self._api.break_off()

    async def come_up(self) -> None:
        """Serve the API again, at the same address."""
        await self._door.open()

    async def _tell(self, happenings: Iterator[Happening]) -> None:
        """Let everything happen at its time."""
        for happening in happenings:
            await self.clock.sleep_until(happening.at_ms)
            self._happen(happening)

    def _happen(self, happening: Happening) -> None:
        self.records.hear(happening)

    def _hear_the_past(self, happenings: Iterator[Happening]) -> Iterator[Happening]:
        """Take in what has happened by now; what is left comes later."""
        for happening in happenings:
            if happening.at_ms > self.clock.now_ms:
                return chain((happening,), happenings)
            self.records.hear(happening)
        return iter(())

    def _listing_takes_ms(self) -> int:
        if not self.faults.strikes("records_late"):
            return 0
        return int(self.faults.between(0, self.faults.records_late_s * 1000))


@asynccontextmanager
async def simulated_dialpad(
    *,
    story: Story = play,
    seed: int = 1,
    start_ms: int | None = None,
    pace: float | None = 1.0,
    days: float = 0,
    faults: Faults | None = None,
    rates: Rates = Rates(),  # noqa: B008 - frozen
    page_size: int = 50,
    port: int = 0,
    remember: int | None = None,
) -> AsyncIterator[SimulatedDialpad]:
    """Serve a simulated Dialpad on this machine.

    ``start_ms``: the world's time at the start; None: now. ``pace``: how many of its seconds go by
    in one of ours; None: none by itself, ``clock.step`` moves it. ``days``: what had happened
    before the start. ``remember``: how many requests and deliveries are kept at most.
    """
    faults = faults or Faults()
    faults.seed(seed)
    if start_ms is None:
        # No payload's clock is ahead of ours when it is sent.
        start_ms = time.time_ns() // 1_000_000 - MAX_LAG_MS
    clock = Clock(start_ms, pace)
    dialpad = SimulatedDialpad(clock, faults, rates, page_size=page_size, remember=remember)
    happenings = story(seed, start_ms - int(days * 86_400_000))
    async with dialpad.running(happenings, port):
        yield dialpad


class _Listener:
    """A server on a port that it keeps, also while it is closed."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._protocol = protocol
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self, port: int | None = None) -> None:
        """Listen; at 0 on a port that is free. Raises OSError."""
        if self._server is not None:
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._protocol, HOST, self.port if port is None else port
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None


class _Api:
    """The API's connections: uvicorn's, of which each can be broken off."""

    def __init__(self, rest: Rest, faults: Faults) -> None:
        self.faults = faults
        self.state = ServerState()
        self.config = uvicorn.Config(
            rest, log_config=None, access_log=False, ws="none", lifespan="off"
        )
        self.config.load()

    def connection(self) -> "_Connection":
        return _Connection(self)

    async def break_off(self) -> None:
        """Break off every connection, and wait for what was being answered."""
        for connection in list(self.state.connections):
            connection.transport.abort()
        tasks = list(self.state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Connection(HttpToolsProtocol):
    def __init__(self, api: _Api) -> None:
        super().__init__(config=api.config, server_state=api.state, app_state={})
        self._faults = api.faults
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
