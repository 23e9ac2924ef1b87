"""The public port: ``POST /webhooks/{connection}`` and ``POST /webhooks/{connection}/{kind}``.

| answer | when |
|---|---|
| 204 | durable now, or before (a repeat) |
| 401 | does not verify |
| 404, 405 | no such connection; not POST |
| 413 | the body is over the limit |
| 503 | everything else: Dialpad sends again after 5xx and never after 4xx, 408 and 429 included |

A delivery is answered in the protocol itself, below ASGI: accepting it is one synchronous call
and one callback, for which a task, two messages and an event per request would cost more CPU than
all that is done with it (figures in tests/bench/README.md). What is no delivery goes on to the
application.

The protocol also keeps what uvicorn lacks: deadlines for headers, bodies and silence, and a
bound on connections. One sweep a quarter of a second looks after all of them.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools
import orjson
import structlog
from msgspec import Struct
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingest.delivery import Delivery, Source
from ingest.errors import PublishError, VerificationError
from ingest.pipeline import Accepted, Pipeline
from ingest.transports.door import Door

log = structlog.get_logger()

#: Publishing leaves this much of `answer_within_s` for the answer itself.
ANSWER_S = 0.5

#: Deliveries that are answered at a time, and bytes of bodies that are not complete yet.
MAX_IN_FLIGHT = 4000
MAX_PARTIAL_BYTES = 64 * 1024 * 1024

#: Headers of one request, in bytes; the parser itself has no limit.
MAX_HEAD_BYTES = 64 * 1024

#: Requests of one connection that came before their predecessors were answered.
MAX_PIPELINED = 16

#: Answers that somebody has not read yet, in bytes, until we take no more from him.
WRITE_BUFFER_BYTES = 16 * 1024

#: How long what somebody goes on sending is thrown away, for him to read why.
LINGER_S = 2.0

#: How long a connection may say nothing: before its first request, and between two.
SILENT_S = 5.0
IDLE_S = 75.0

SWEEP_S = 0.25

#: Targets of requests that are remembered; usual are a handful.
MAX_ROUTES = 1000

#: Members of an enum are slow to get at.
_NO_CONTENT = 204

_RETRY = b"retry-after: 2\r\n"
_CLOSE = b"connection: close\r\n"


def _forgotten(_: Delivery, __: str) -> None:
    """What becomes of a delivery that did not verify, unless somebody keeps it."""


class Hooks:
    """Everything that the connections of the public port share."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        answer_within_s: float,
        max_connections: int,
        now_ms: Callable[[], int],
        refused: Callable[[Delivery, str], None] = _forgotten,
    ) -> None:
        """``refused``: gets what did not verify, and why, once it is answered."""
        self.pipeline = pipeline
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s
        self.answer_within_s = answer_within_s
        self.max_connections = max_connections
        self.now_ms = now_ms
        self.refused = refused
        self.doors: Mapping[str, Door] = {}
        self.dormant: frozenset[str] = frozenset()
        self.in_flight = 0
        self.partial_bytes = 0
        self._submitted: list[Exchange] = []
        self._routes: dict[bytes, tuple[Door, str | None]] = {}
        self._no_content = b""
        self._no_content_for: list[tuple[bytes, bytes]] | None = None
        #: Connections that owe us bytes, and those between requests → since when, longest first.
        self.owing: dict[HookProtocol, float] = {}
        self.idle: dict[HookProtocol, float] = {}

    def serve(self, sources: Mapping[str, Source], dormant: Iterable[str] = ()) -> None:
        """From now on take deliveries for these connections.

        ``dormant``: names that were connections until lately; 404 would be final for them.
        """
        self.doors = {name: Door(name, source, source.via) for name, source in sources.items()}
        self.dormant = frozenset(dormant)
        self._routes.clear()

    def route(self, url: bytes) -> tuple[Door | None, str | None]:
        """The connection and the kind that a request's target names."""
        known = self._routes.get(url)
        if known is not None:
            return known
        root, name, hint = _route(url)
        door = self.doors.get(name) if root == "webhooks" else None
        if door is not None and len(self._routes) < MAX_ROUTES:
            self._routes[url] = door, hint
        return door, hint

    def no_content(self, default_headers: list[tuple[bytes, bytes]]) -> bytes:
        """The 204; the server's headers change once a second."""
        if self._no_content_for is not default_headers:
            self._no_content_for = default_headers
            self._no_content = _head(204, default_headers) + b"\r\n"
        return self._no_content

    def submit(self, exchange: "Exchange") -> None:
        """Take a delivery; those of one turn of the event loop go through the pipeline together."""
        if not self._submitted:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._submitted.append(exchange)

    def _hand_over(self) -> None:
        exchanges, self._submitted = self._submitted, []
        received_ms = self.now_ms()
        batch = [(exchange.delivery(received_ms), exchange.door.source) for exchange in exchanges]
        results = self.pipeline.accept_all(batch)
        for exchange, (delivery, _), result in zip(exchanges, batch, results, strict=True):
            exchange.protocol.handed_over(exchange, delivery, result)

    def protocol(self, **uvicorn: Any) -> "HookProtocol":
        """What uvicorn makes for each connection; set it as ``http``."""
        return HookProtocol(self, **uvicorn)

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what is no delivery."""
        root, name, _ = _split(scope["path"])
        if root == "webhooks" and name in self.doors:
            problem, headers = _problem(405, "method_not_allowed", "post it"), {"allow": "POST"}
        elif root == "webhooks" and name in self.dormant:
            problem = _problem(503, "not_configured", "send it again")
            headers = {"retry-after": "2", "connection": "close"}
        else:
            problem, headers = _problem(404, "not_found", "nothing is at this address"), {}
        status = orjson.loads(problem)["status"]
        response = Response(problem, status, headers, media_type="application/problem+json")
        await response(scope, receive, send)

    async def sweep(self) -> None:
        """Run for as long as the server does: end what takes too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for protocol, since in list(self.owing.items()):
                protocol.hurry(now - since)
            for protocol, since in list(self.idle.items()):
                if now - since < IDLE_S:
                    break
                protocol.transport.close()


class Exchange(Struct):
    """One delivery and its answer."""

    protocol: "HookProtocol"
    door: Door
    hint: str | None
    headers: list[tuple[bytes, bytes]]
    began: float
    keep_alive: bool
    pieces: list[bytes] = []
    size: int = 0
    accepted: Accepted | None = None
    #: Why its body was not read to the end, if so.
    refused: str | None = None

    def delivery(self, received_ms: int) -> Delivery:
        pieces = self.pieces
        return Delivery(
            connection=self.door.name,
            via=self.door.via,
            headers=self.headers,
            body=pieces[0] if len(pieces) == 1 else b"".join(pieces),
            received_ms=received_ms,
            hint=self.hint,
        )

    def settled(self, error: PublishError | None) -> None:
        """The event log has decided."""
        self.protocol.acknowledge(self, error)


class HookProtocol(HttpToolsProtocol):
    """One connection to the public port. Its deliveries are answered one after the other."""

    def __init__(self, hooks: Hooks, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._hooks = hooks
        #: When the first byte of the request that is being read came; None between requests.
        self._began: float | None = None
        self._wrapping_bytes = 0
        #: The delivery whose body is being read, and those that are read; the first is in flight.
        self._reading: Exchange | None = None
        self._read: deque[Exchange] = deque()
        #: Nothing more is taken from this connection.
        self._closing = False

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        hooks = self._hooks
        hooks.owing[self] = self.loop.time()
        if len(self.connections) > hooks.max_connections:
            # Room for who sends something: the one goes that has been silent longest.
            next(iter(hooks.idle or hooks.owing)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._hooks.owing.pop(self, None)
        self._hooks.idle.pop(self, None)
        if self._reading is not None:
            self._hooks.partial_bytes -= self._reading.size
            self._reading = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._began is None:
            self._began = self.loop.time()
            self._hooks.idle.pop(self, None)
        super().data_received(data)
        if self._began is None or self._closing:  # the usual case: the request came as a whole
            return
        if self._hooks.owing.get(self) != self._began:
            self._hooks.owing.pop(self, None)
            self._hooks.owing[self] = self._began
            self._wrapping_bytes = 0  # this piece may hold the end of another request
            return
        # Headers, trailers, and what is around the chunks of a body.
        body_bytes = 0 if self._reading is None else self._reading.size
        self._wrapping_bytes += len(data)
        if self._wrapping_bytes > MAX_HEAD_BYTES + 8 * body_bytes:
            self.transport.abort()

    # What the parser tells

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        if self._began is None:
            self._began = self.loop.time()

    def on_headers_complete(self) -> None:
        began = self._began or self.loop.time()
        if self.parser.get_method() != b"POST":
            self._leave_to_application()
            return
        door, hint = self._hooks.route(self.url)
        if door is None:
            self._leave_to_application()
            return
        keep_alive = self.parser.should_keep_alive()
        self._reading = Exchange(self, door, hint, self.headers, began, keep_alive)
        if self._hooks.in_flight >= MAX_IN_FLIGHT:
            self._refuse_to_read("overload")
        elif self.parser.should_upgrade():  # then the parser leaves the body to somebody else
            self._refuse_to_read("upgrade")
        elif _announced(self.headers) > self._hooks.max_body_bytes:
            self._refuse_to_read("too_large")
        elif self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        reading = self._reading
        if reading is None:
            if not self._closing:
                super().on_body(body)
            return
        reading.pieces.append(body)
        reading.size += len(body)
        self._hooks.partial_bytes += len(body)
        if reading.size > self._hooks.max_body_bytes:
            self._refuse_to_read("too_large")
        elif self._hooks.partial_bytes > MAX_PARTIAL_BYTES:
            self._refuse_to_read("overload")

    def on_message_complete(self) -> None:
        self._began = None
        self._hooks.owing.pop(self, None)
        reading = self._reading
        if reading is None:
            if not self._closing:
                super().on_message_complete()
            return
        self._reading = None
        self._hooks.partial_bytes -= reading.size
        self._read.append(reading)
        if len(self._read) == 1 and self._application_is_done():
            self._deliver(reading)
        elif len(self._read) > MAX_PIPELINED:
            self._hold()

    # What the server tells

    def pause_writing(self) -> None:
        # Whoever does not read answers gets to ask no more.
        super().pause_writing()
        self._hold()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def shutdown(self) -> None:
        if self._closing:
            self.transport.close()
        elif self._reading is not None or self._read:
            self._closing = self._reading is None
            for exchange in (self._reading, *self._read):
                if exchange is not None:
                    exchange.keep_alive = False
        else:
            super().shutdown()

    def hurry(self, waited_s: float) -> None:
        """Called every now and then while the other side owes us bytes."""
        if self._closing:
            if waited_s > LINGER_S:
                self.transport.abort()
        elif self._reading is not None:
            if waited_s > self._hooks.body_timeout_s:
                self._refuse_to_read("slow_body")
        elif waited_s > (SILENT_S if self._began is None else self._hooks.body_timeout_s):
            self.transport.close()

    # Deliveries

    def _deliver(self, exchange: Exchange) -> None:
        hooks, door = self._hooks, exchange.door
        hooks.in_flight += 1
        door.tally.received += 1
        if exchange.refused is not None:
            self._answer_unread(exchange, exchange.refused)
            return
        hooks.submit(exchange)

    def handed_over(
        self,
        exchange: Exchange,
        delivery: Delivery,
        result: Accepted | VerificationError | PublishError,
    ) -> None:
        """The pipeline has taken the delivery, or has not."""
        if isinstance(result, VerificationError):
            exchange.door.refuse(result.reason, exchange.size)
            self._finish(exchange, 401, result.reason, "the delivery does not verify")
            self._hooks.refused(delivery, result.reason)
        elif isinstance(result, PublishError):
            self.acknowledge(exchange, result)
        else:
            exchange.accepted = result
            latest = exchange.began + self._hooks.answer_within_s - ANSWER_S
            result.receipt.then(latest, exchange.settled)

    def acknowledge(self, exchange: Exchange, error: PublishError | None) -> None:
        """Answer a delivery now that the event log has decided."""
        taken_s = self.loop.time() - exchange.began
        if error is None:
            assert exchange.accepted is not None
            exchange.door.accept(exchange.accepted, exchange.size, taken_s)
            self._finish(exchange, 204)
        else:
            exchange.door.be_unavailable(error.reason, exchange.size, taken_s)
            self._finish(exchange, 503, error.reason, "not stored; send it again", _RETRY)

    def _finish(
        self, exchange: Exchange, status: int, reason: str = "", detail: str = "", more: bytes = b""
    ) -> None:
        """Answer the delivery in flight, and go on with the next one that has been read."""
        self._hooks.in_flight -= 1
        self._read.popleft()
        self._answer(status, reason, detail, more, keep_alive=exchange.keep_alive)
        if self._read:
            # Not at once: a thousand pipelined requests would be a thousand calls deep.
            self.loop.call_soon(self._deliver_next)
        elif self._began is None and not self.transport.is_closing():
            self._hooks.idle[self] = self.loop.time()

    def _deliver_next(self) -> None:
        self._go_on()
        if self._read and not self.transport.is_closing():
            self._deliver(self._read[0])

    def _hold(self) -> None:
        self.flow.pause_reading()

    def _go_on(self) -> None:
        if not self.flow.write_paused and len(self._read) <= MAX_PIPELINED:
            self.flow.resume_reading()

    def _refuse_to_read(self, reason: str) -> None:
        """Read no more of this body; nothing behind it can be understood on this connection."""
        exchange, self._reading = self._reading, None
        assert exchange is not None
        self._hooks.partial_bytes -= exchange.size
        exchange.pieces.clear()
        exchange.refused = reason
        exchange.keep_alive = False
        self._closing = True
        self._read.append(exchange)
        if len(self._read) == 1 and self._application_is_done():
            self._deliver(exchange)

    def _answer_unread(self, exchange: Exchange, reason: str) -> None:
        door = exchange.door
        if reason == "too_large":
            door.refuse(reason, None)
            detail = f"a delivery has at most {self._hooks.max_body_bytes} bytes"
            self._finish(exchange, 413, reason, detail)
        else:
            door.be_unavailable(reason, None, None)
            self._finish(exchange, 503, reason, "not read; send it again", _RETRY)

    def _answer(
        self, status: int, reason: str, detail: str, more: bytes = b"", *, keep_alive: bool
    ) -> None:
        if self.transport.is_closing():
            return
        default_headers = self.server_state.default_headers
        if status == _NO_CONTENT and keep_alive:
            self.transport.write(self._hooks.no_content(default_headers))
            return
        head = _head(status, default_headers)
        body = b""
        if status != _NO_CONTENT:
            body = _problem(status, reason, detail)
            head += b"content-type: application/problem+json\r\n"
            head += b"content-length: %d\r\n" % len(body)
        self.transport.write(head + more + (b"" if keep_alive else _CLOSE) + b"\r\n" + body)
        if not keep_alive:
            self._closing = True
            if self._began is None:
                self.transport.close()
            else:
                # Closing on somebody who is still sending would destroy the answer on its way:
                # what comes is thrown away for a while.
                self.transport.write_eof()
                self._hooks.owing.pop(self, None)
                self._hooks.owing[self] = self.loop.time()

    # Everything else

    def _leave_to_application(self) -> None:
        if self._read:  # it would overtake deliveries that are not answered yet
            self._closing = True
            self._read[-1].keep_alive = False
            return
        url, headers = self.url, self.headers
        super().on_message_begin()  # makes the scope
        self.url = url
        self.headers += headers
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._read:
            self.loop.call_soon(self._deliver_next)
        elif self._began is None and not self.transport.is_closing():
            self._hooks.idle[self] = self.loop.time()

    def _application_is_done(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def _route(url: bytes) -> tuple[str, str, str | None]:
    """Root, name and kind of ``/webhooks/acme/call``; empty where it has another shape."""
    path = url.partition(b"?")[0]
    if not path.startswith(b"/"):  # the absolute form
        path = httptools.parse_url(path).path or b""
    return _split(unquote(path.decode("latin-1")))


def _split(path: str) -> tuple[str, str, str | None]:
    parts = path.split("/")
    if len(parts) == 3:  # noqa: PLR2004
        return parts[1], parts[2], None
    if len(parts) == 4:  # noqa: PLR2004
        return parts[1], parts[2], parts[3] or None
    return "", "", None


def _head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Status line and headers, without the empty line."""
    lines = (b"%b: %b\r\n" % header for header in headers)
    return STATUS_LINE[status] + b"".join(lines)


def _announced(headers: list[tuple[bytes, bytes]]) -> int:
    """Content-Length, which the parser has checked; 0 without."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
    return 0


def _problem(status: int, reason: str, detail: str) -> bytes:
    """https://www.rfc-editor.org/rfc/rfc9457"""
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "reason": reason,
        }
    )
