"""What uvicorn lacks: deadlines for headers and bodies, and a bound on connections.

uvicorn waits for ever for a request to go on, so that a few slow senders could hold all there is.
One sweep a quarter of a second looks after all connections: a timer for each request would cost
the quick ones more than the slow ones are worth.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: How long a connection may say nothing before its first request, in seconds.
SILENT_S = 5.0

#: Headers of one request, in bytes; the parser itself has no limit.
MAX_HEAD_BYTES = 64 * 1024

_SWEEP_S = 0.25


class Deadlines:
    """Watches the connections of one server. Set `protocol` as uvicorn's ``http``."""

    def __init__(self, request_s: float, max_connections: int) -> None:
        """``request_s``: from the first byte of a request to the last of its body."""
        self.request_s = request_s
        self.max_connections = max_connections
        #: Connections that owe us bytes → since when, longest first.
        self.owing: dict[_Protocol, float] = {}
        self.protocol = type("DeadlineProtocol", (_Protocol,), {"deadlines": self})

    async def watch(self) -> None:
        """Run for as long as the server does."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = loop.time()
            for protocol, since in list(self.owing.items()):
                if now - since > min(self.request_s, SILENT_S):
                    protocol.out_of_time(now - since)


class _Protocol(HttpToolsProtocol):
    deadlines: Deadlines

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._owing = self.deadlines.owing
        #: When the first byte of the request that is being read came; None between requests.
        self._began: float | None = None
        self._in_body = False
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._owing[self] = self.loop.time()
        if len(self.connections) > self.deadlines.max_connections:
            # Room for who sends something: the one goes that has owed us its bytes longest.
            next(iter(self._owing)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owing.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._began is None:
            self._began = self.loop.time()
        super().data_received(data)
        if self._began is None:  # the usual case: all of it came at once
            return
        if self._owing.get(self) != self._began:
            self._owing.pop(self, None)
            self._owing[self] = self._began
        if not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._began is None:
            self._began = self.loop.time()
        self.scope["began"] = self._began  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._began = None
        self._in_body = False
        self._owing.pop(self, None)

    def out_of_time(self, waited_s: float) -> None:
        """Called from time to time while it owes us bytes."""
        if self._in_body:
            if waited_s > self.deadlines.request_s and not self.cycle.response_complete:
                # The application is told, and answers 503: a 4xx would be final at Dialpad.
                self.scope["too_slow"] = True  # type: ignore[typeddict-unknown-key]
                self.cycle.message_event.set()
        elif self._began is not None or waited_s > SILENT_S:
            self.transport.close()
