"""Dialpad's websockets: an address that is good for an hour, a connection that lasts an hour.

https://developers.dialpad.com/docs/event-subscriptions-via-websocket

What is not known is done in the plainest way: everybody who is connected gets everything, nothing
is sent again, nobody is pinged.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import TypeAlias

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ingest.simulator.clock import Clock
from ingest.simulator.dialpad_resources import Resources
from ingest.simulator.faults import Faults

CONNECTION_LIFE_S = 3600

#: Why the hour's end is told, and why a connection is closed at once.
GOING_AWAY, TRY_LATER = 1001, 1013

_SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # noqa: LOG001 - it is in no tree

Frame: TypeAlias = str | bytes


class _Client:
    """Somebody who is connected."""

    def __init__(
        self, connection: ServerConnection, websocket_id: int, subscription_id: int | None
    ) -> None:
        self.connection = connection
        self.websocket_id = websocket_id
        #: The only one that its address reaches; None: all of the websocket.
        self.subscription_id = subscription_id
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()

    def cut(self) -> None:
        """Break off, without a word."""
        self.connection.transport.abort()


class Sockets:
    """The server of the addresses that the API tells."""

    def __init__(self, host: str, clock: Clock, resources: Resources, faults: Faults) -> None:
        self._host = host
        self._clock = clock
        self._resources = resources
        self._faults = faults
        self._clients: set[_Client] = set()
        self._server: Server | None = None
        self.port = 0
        #: How many connections there have been.
        self.opened = 0

    def __len__(self) -> int:
        """How many are connected."""
        return len(self._clients)

    async def open(self, port: int | None = None) -> None:
        """Listen; at 0 on a port that is free. Raises OSError."""
        if self._server is not None:
            return
        self._server = await serve(
            self._serve,
            self._host,
            self.port if port is None else port,
            process_request=self._answer,
            compression=None,
            ping_interval=None,
            close_timeout=1,
            logger=_SILENT,
            server_header=None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def close(self) -> None:
        """Listen no more, and break off who is connected."""
        if self._server is None:
            return
        server, self._server = self._server, None
        self.cut()
        server.close()
        await server.wait_closed()

    def cut(self) -> int:
        """Break off all connections; how many there were."""
        cut = len(self._clients)
        for client in list(self._clients):
            client.cut()
            self._clients.discard(client)
        return cut

    def send(self, websocket_id: int | None, subscription_id: int | None, frame: Frame) -> int:
        """Send a frame to all whom it concerns (None: to all), and say to how many."""
        sent = 0
        for client in list(self._clients):
            if websocket_id not in {None, client.websocket_id}:
                continue
            if websocket_id is not None and client.subscription_id not in {None, subscription_id}:
                continue
            if self._faults.strikes("sockets_cut"):
                client.cut()
                self._clients.discard(client)
                continue
            client.frames.put_nowait(frame)
            sent += 1
        return sent

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse a handshake; None lets it go on."""
        if self._faults.strikes("sockets_refused"):
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "later\n")
        if self._reach(request) is None:
            return connection.respond(HTTPStatus.UNAUTHORIZED, "this address is no good\n")
        return None

    def _reach(self, request: Request) -> tuple[int, int | None] | None:
        _, _, token = request.path.partition("/events/")
        return self._resources.reach_of(token)

    async def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        reach = self._reach(connection.request)
        self.opened += 1
        if reach is None or self._faults.strikes("sockets_closed"):
            await connection.close(TRY_LATER)
            return
        client = _Client(connection, *reach)
        self._clients.add(client)
        sending = asyncio.create_task(self._send(client))
        ageing = asyncio.create_task(self._grow_old(client))
        try:
            async for _ in connection:  # nobody has anything to say to us
                pass
        except ConnectionClosed:
            pass
        finally:
            self._clients.discard(client)
            sending.cancel()
            ageing.cancel()
            await asyncio.wait([sending, ageing])

    async def _send(self, client: _Client) -> None:
        try:
            while True:
                await client.connection.send(await client.frames.get())
        except ConnectionClosed:
            pass

    async def _grow_old(self, client: _Client) -> None:
        await self._clock.sleep(CONNECTION_LIFE_S)
        self._clients.discard(client)
        await client.connection.close(GOING_AWAY)
