"""The public port: ``POST /webhooks/{connection}`` and ``POST /webhooks/{connection}/{kind}``.

| answer | when |
|---|---|
| 204 | durable now, or before (a repeat) |
| 401 | does not verify |
| 404, 405 | no such connection; not POST |
| 413 | the body is over the limit |
| 503 | everything else: Dialpad sends again after 5xx and never after 4xx, 408 and 429 included |

The hook is a plain ASGI callable: routing, request and response objects of a framework cost as
much CPU again as the whole rest (figures in tests/bench/README.md).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus

import orjson
import structlog
from starlette.types import Message, Receive, Scope, Send

from ingest.delivery import Delivery, Source
from ingest.errors import DeliveryError, PublishError, VerificationError
from ingest.logs import short_id
from ingest.metrics import ANSWER_SECONDS, DELIVERIES, IN_FLIGHT, RECEIVED, REFUSALS, UNAVAILABLE
from ingest.pipeline import Accepted, Outcome, Pipeline

log = structlog.get_logger()

#: Deliveries that are answered at a time, and bytes of bodies that are not complete yet.
MAX_IN_FLIGHT = 2000
MAX_PARTIAL_BYTES = 64 * 1024 * 1024

#: Publishing gets this at most, and leaves this much of `answer_within_s` for the answer itself.
PUBLISH_S = 2.0
ANSWER_S = 0.5

#: A stored delivery that took longer is worth a line.
SLOW_S = 1.0

_RETRY = ((b"retry-after", b"2"),)
_CLOSE = ((b"connection", b"close"),)
_ALLOW_POST = ((b"allow", b"POST"),)

_NO_CONTENT: Message = {"type": "http.response.start", "status": 204, "headers": []}
_END: Message = {"type": "http.response.body", "body": b""}


class Hook:
    """The application of the public port."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        max_body_bytes: int,
        answer_within_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        self._pipeline = pipeline
        self._max_body_bytes = max_body_bytes
        self._answer_within_s = answer_within_s
        self._now_ms = now_ms
        self._doors: dict[str, _Door] = {}
        self._dormant: frozenset[str] = frozenset()
        self._in_flight = 0
        self._partial_bytes = 0
        self._loop = asyncio.get_running_loop()
        IN_FLIGHT.set_function(lambda: self._in_flight)

    def serve(self, sources: Mapping[str, Source], dormant: Iterable[str] = ()) -> None:
        """From now on take deliveries for these connections.

        ``dormant``: names that were connections until lately; 404 would be final for them.
        """
        self._doors = {name: _Door(name, source) for name, source in sources.items()}
        self._dormant = frozenset(dormant)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root, name, hint = _split(scope["path"])
        door = self._doors.get(name) if root == "webhooks" else None
        if door is None:
            await self._answer_strange(root, name, send)
        elif scope["method"] != "POST":
            await answer(send, 405, "method_not_allowed", "deliveries are posted", _ALLOW_POST)
        elif self._in_flight >= MAX_IN_FLIGHT:
            await self._answer_unread(door, send, "overload")
        else:
            self._in_flight += 1
            try:
                await self._deliver(door, hint, scope, receive, send)
            finally:
                self._in_flight -= 1

    async def _deliver(
        self, door: "_Door", hint: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        clock = self._loop.time
        began = scope.get("began") or clock()
        try:
            body = await self._read(scope, receive)
        except _GoneError:
            return
        except _UnreadError as error:
            await self._answer_unread(door, send, error.reason)
            return
        door.received.inc()
        delivery = Delivery(
            connection=door.name,
            via="webhook",
            headers=scope["headers"],
            body=body,
            received_ms=self._now_ms(),
            hint=hint,
        )
        deadline = min(clock() + PUBLISH_S, began + self._answer_within_s - ANSWER_S)
        try:
            accepted = await self._pipeline.accept(delivery, door.source, deadline)
        except VerificationError as error:
            door.refuse(error.reason, len(body))
            await answer(send, 401, error.reason, "the delivery does not verify")
        except PublishError as error:
            door.unavailable(error.reason, len(body), clock() - began)
            await answer(send, 503, error.reason, "not stored; send it again", _RETRY)
        else:
            await send(_NO_CONTENT)
            await send(_END)
            door.accept(accepted, len(body), clock() - began)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body; raises _GoneError, or _UnreadError with the reason not to read on."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body: bytes = message["body"]
        if not message["more_body"] and len(body) <= self._max_body_bytes:
            return body
        pieces, size = [body], len(body)
        self._partial_bytes += size
        try:
            while True:
                if size > self._max_body_bytes or _announced(scope) > self._max_body_bytes:
                    raise _UnreadError("too_large")
                if scope.get("too_slow"):
                    raise _UnreadError("slow_body")
                if self._partial_bytes > MAX_PARTIAL_BYTES:
                    raise _UnreadError("overload")
                if not message["more_body"]:
                    return b"".join(pieces)
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                pieces.append(message["body"])
                size += len(message["body"])
                self._partial_bytes += len(message["body"])
        finally:
            self._partial_bytes -= size

    async def _answer_unread(self, door: "_Door", send: Send, reason: str) -> None:
        """Before the body has been read; the connection cannot go on behind it."""
        door.received.inc()
        if reason == "too_large":
            door.refuse(reason, None)
            limit = f"a delivery has at most {self._max_body_bytes} bytes"
            await answer(send, 413, reason, limit, _CLOSE)
        else:
            door.unavailable(reason, None, None)
            await answer(send, 503, reason, "not read; send it again", (*_RETRY, *_CLOSE))

    async def _answer_strange(self, root: str, name: str, send: Send) -> None:
        if root == "webhooks" and name in self._dormant:
            await answer(send, 503, "not_configured", "not configured at present", _RETRY)
        else:
            await answer(send, 404, "not_found", "there is nothing at this address")


class _Door:
    """One connection, with its counters at hand: looking up labels costs more than counting."""

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self.source = source
        self.received = RECEIVED.labels(name, "webhook")
        self._outcomes = {
            outcome: DELIVERIES.labels(name, "webhook", outcome)
            for outcome in (*Outcome, "refused", "unavailable")
        }
        self._samples: dict[str, _Sample] = {}
        self._debugging = log.is_enabled_for(logging.DEBUG)

    def accept(self, accepted: Accepted, size_bytes: int, taken_s: float) -> None:
        self._outcomes[accepted.outcome].inc()
        ANSWER_SECONDS.observe(taken_s)
        if accepted.outcome is Outcome.REJECTED:
            say, event = log.warning, "delivery_rejected"
        elif taken_s > SLOW_S:
            say, event = log.warning, "delivery_slow"
        elif self._debugging:
            say, event = log.debug, "delivery_stored"
        else:
            return
        say(
            event,
            connection=self.name,
            via="webhook",
            kind=accepted.kind,
            ids=short_id(accepted.event_id),
            outcome=accepted.outcome,
            stored_in=accepted.stored_in,
            size_bytes=size_bytes,
            duration_ms=round(taken_s * 1000, 1),
        )

    def refuse(self, reason: str, size_bytes: int | None) -> None:
        self._outcomes["refused"].inc()
        REFUSALS.labels(self.name, reason).inc()
        self._say("delivery_refused", reason, size_bytes=size_bytes)

    def unavailable(self, reason: str, size_bytes: int | None, taken_s: float | None) -> None:
        self._outcomes["unavailable"].inc()
        UNAVAILABLE.labels(self.name, reason).inc()
        duration_ms = None if taken_s is None else round(taken_s * 1000, 1)
        self._say("delivery_unavailable", reason, size_bytes=size_bytes, duration_ms=duration_ms)

    def _say(self, event: str, reason: str, **fields: object) -> None:
        """A flood is told by one line in a while, with the count of those that it stands for."""
        sample = self._samples.setdefault(reason, _Sample())
        suppressed = sample.due(time.monotonic())
        if suppressed is not None:
            log.warning(
                event,
                connection=self.name,
                via="webhook",
                reason=reason,
                suppressed=suppressed,
                **fields,
            )


class _Sample:
    """Lets one in `EVERY_S` through and counts the others."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self._last: float | None = None
        self._suppressed = 0

    def due(self, now: float) -> int | None:
        """How many were held back since the last one; None if this one is held back."""
        if self._last is not None and now - self._last < self.EVERY_S:
            self._suppressed += 1
            return None
        suppressed, self._suppressed, self._last = self._suppressed, 0, now
        return suppressed


class _GoneError(Exception):
    """The sender has hung up."""


class _UnreadError(DeliveryError):
    """The body is not read on."""


def _split(path: str) -> tuple[str, str, str | None]:
    """``/webhooks/acme/call`` → root, name, kind; the kind may be missing."""
    parts = path.split("/")
    if len(parts) == 3:  # noqa: PLR2004
        return parts[1], parts[2], None
    if len(parts) == 4:  # noqa: PLR2004
        return parts[1], parts[2], parts[3] or None
    return "", "", None


def _announced(scope: Scope) -> int:
    """Content-Length, which the parser has checked; 0 without."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


async def answer(
    send: Send, status: int, reason: str, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send a problem. https://www.rfc-editor.org/rfc/rfc9457"""
    body = orjson.dumps(
        {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "reason": reason,
        }
    )
    fields = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
