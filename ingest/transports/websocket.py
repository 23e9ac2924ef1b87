"""Websockets: frames of a connection through the pipeline, and the sockets that they come from.

Over HTTP an event that cannot be stored is answered with 503, and the provider comes back. Here
nobody comes back, so the same error means: try again until it is stored, and read no more than
may wait for that meanwhile (`Inlet`, `Insistent`). Reading goes on while frames wait, so that
pings and pongs are seen; only when there is no room left does it stop, and then TCP holds the
provider for as long as it bears it.

Only text frames that are a JWS count. A frame of more than `max_body_bytes` is refused, as over
HTTP. One of more than `MAX_FRAME_BYTES` cannot even be read past: it ends its socket (1009), is
counted as refused too, and, were it authentic, is lost.
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import structlog
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    ProxyError,
    WebSocketException,
)
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Event as ProtocolEvent

from ingest.delivery import Delivery, Source
from ingest.errors import PublishError, UnreadableError, VerificationError
from ingest.eventlog.lanes import wait_for
from ingest.eventlog.log import Publisher, Receipt, Record, Settled, records_of
from ingest.logs import Sample
from ingest.pipeline import Accepted, Pipeline, reject
from ingest.transports.door import Door

log = structlog.get_logger()

VIA = "websocket"

#: The largest frame that is read at all.
MAX_FRAME_BYTES = 16 * 1024 * 1024

#: Frames of one connection that have been read and are not durable, and their bytes. Where a frame
#: is durable within 10 ms that is 200,000 events a second; with a log that takes nothing, it is
#: a minute of a busy company's. More would be memory, and at full speed nothing but waiting.
MAX_IN_FLIGHT = 2_000
MAX_IN_FLIGHT_BYTES = 32 * 1024 * 1024

Delays = Callable[[], Iterator[float]]
"""A policy: makes the pauses between tries, in seconds, for as long as it takes."""

#: After reading was held up for longer, in seconds, frames do not tell when they were sent.
_LATE_S = 1.0

#: What the library says holds addresses, and they hold tokens.
_SILENT = logging.getLogger("ingest.transports.websocket.library")
_SILENT.setLevel(logging.CRITICAL + 1)


def retry_delays() -> Iterator[float]:
    """Between two tries to store the same records."""
    delay_s = 0.1
    while True:
        yield delay_s * random.uniform(1.0, 1.5)  # noqa: S311 - jitter
        delay_s = min(delay_s * 2, 4.0)


class Insistent:
    """A publisher that does not give up, in front of one that may.

    Records of one key stand in the order of the calls, also where some had to be tried again: of a
    key one call is handed on at a time, the next one once that is durable.
    """

    def __init__(self, log: Publisher, delays: Delays = retry_delays) -> None:
        self._log = log
        self._delays = delays
        #: Topic and key → the last of its calls that is not durable yet.
        self._last: dict[tuple[str, bytes], Held] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._none_left = asyncio.Event()
        self._sample = Sample()
        self._closed = False

    def publish(self, records: Sequence[Record]) -> "Held":
        """Hand over records of one topic and key; the receipt becomes durable, sooner or later."""
        held = Held((records[0].topic, records[0].key), records)
        before = self._last.get(held.key)
        self._last[held.key] = held
        if before is None:
            self._hand_on(held)
        else:
            before.next = held
        return held

    async def drained(self) -> None:
        """Return once everything that was handed over is durable."""
        while self._last:
            self._none_left.clear()
            await self._none_left.wait()

    def close(self) -> None:
        """Try nothing again any more."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()

    def _hand_on(self, held: "Held") -> None:
        try:
            receipt = self._log.publish(held.records)
        except PublishError as error:
            self._try_later(held, error.reason)
        except Exception as fault:
            log.error("unexpected_error", exc_info=fault)
            self._try_later(held, "internal")
        else:
            receipt.then(math.inf, partial(self._settled, held, receipt))

    def _settled(self, held: "Held", receipt: Receipt, error: PublishError | None) -> None:
        if error is not None:
            self._try_later(held, error.reason)
            return
        following = held.next
        if following is None:
            del self._last[held.key]
            if not self._last:
                self._none_left.set()
        held.settle(receipt.where)
        if following is not None:
            # Not at once: what is durable already settles at once, and a thousand deep.
            asyncio.get_running_loop().call_soon(self._hand_on, following)

    def _try_later(self, held: "Held", reason: str) -> None:
        if self._closed:
            return
        suppressed = self._sample.take(time.monotonic())
        if suppressed is not None:
            log.warning(
                "publish_retried", reason=reason, waiting=len(self._last), suppressed=suppressed
            )
        if held.delays is None:
            held.delays = self._delays()

        def again() -> None:
            self._timers.discard(timer)
            self._hand_on(held)

        timer = asyncio.get_running_loop().call_later(next(held.delays), again)
        self._timers.add(timer)


class Held:
    """The receipt of `Insistent`: never fails."""

    __slots__ = ("_waiting", "delays", "durable", "key", "next", "records", "where")

    def __init__(self, key: tuple[str, bytes], records: Sequence[Record]) -> None:
        self.key = key
        self.records = records
        #: Of the same key, to be handed on behind this.
        self.next: Held | None = None
        #: None until it has failed once.
        self.delays: Iterator[float] | None = None
        self.durable: bool | None = None
        self.where = ""
        self._waiting: list[Settled] | None = None

    def then(self, deadline: float, settled: Settled) -> None:
        if self.durable:
            settled(None)
            return
        if deadline < math.inf:
            settled = _once(settled)
            loop = asyncio.get_running_loop()
            loop.call_at(deadline, settled, PublishError("timeout"))
        if self._waiting is None:
            self._waiting = []
        self._waiting.append(settled)

    async def wait(self, deadline: float) -> str:
        return await wait_for(self, deadline)

    def settle(self, where: str) -> None:
        self.durable = True
        self.where = where
        # Receipts are remembered longer than records.
        self.records, self.delays, self.next = (), None, None
        waiting, self._waiting = self._waiting, None
        for settled in waiting or ():
            settled(None)


def _once(settled: Settled) -> Settled:
    told = False

    def tell(error: PublishError | None) -> None:
        nonlocal told
        if not told:
            told = True
            settled(error)

    return tell


class InFlight(Struct, eq=False, gc=False):
    """A frame that has been read and is not durable yet."""

    socket: "Socket"
    delivery: Delivery
    #: By the loop's clock.
    since: float


def _forgotten(_: Delivery, __: str) -> None:
    """What becomes of a frame that did not verify, unless somebody keeps it."""


class Inlet:
    """Where the frames of one connection go in, from however many sockets."""

    def __init__(
        self,
        name: str,
        source: Source,
        pipeline: Pipeline,
        publisher: Insistent,
        *,
        max_body_bytes: int,
        now_ms: Callable[[], int],
        max_in_flight: int = MAX_IN_FLIGHT,
        max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES,
        refused: Callable[[Delivery, str], None] = _forgotten,
    ) -> None:
        """``pipeline`` publishes by ``publisher``, so that what it accepts becomes durable.

        ``refused``: gets what did not verify, and why.
        """
        self.door = Door(name, source, VIA)
        #: Our clock when a frame was last read, milliseconds since 1970; 0 before.
        self.last_frame_ms = 0
        self._pipeline = pipeline
        self._publisher = publisher
        self._max_body_bytes = max_body_bytes
        self._now_ms = now_ms
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._refused = refused
        #: In the order of arrival.
        self._in_flight: dict[InFlight, None] = {}
        self._in_flight_bytes = 0
        self._arrived: list[InFlight] = []
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._held = Sample()

    @property
    def full(self) -> bool:
        """Whether no more may be read."""
        return (
            len(self._in_flight) >= self._max_in_flight
            or self._in_flight_bytes >= self._max_in_flight_bytes
        )

    @property
    def oldest_ms(self) -> int | None:
        """When the first of the frames came that are not durable; None if all are."""
        oldest = next(iter(self._in_flight), None)
        return None if oldest is None else oldest.delivery.received_ms

    def take(self, body: bytes, socket: "Socket", *, text: bool) -> None:
        """Take a frame; those of one turn of the event loop go through the pipeline together."""
        self.door.tally.received += 1
        self.last_frame_ms = received_ms = self._now_ms()
        if not text:
            self.door.refuse("binary", len(body))
            return
        if len(body) > self._max_body_bytes:
            self.door.refuse("too_large", len(body))
            return
        delivery = Delivery(
            connection=self.door.name, via=VIA, headers=(), body=body, received_ms=received_ms
        )
        frame = InFlight(socket, delivery, self._loop.time())
        self._in_flight[frame] = None
        self._in_flight_bytes += len(body)
        if not self._arrived:
            self._loop.call_soon(self._hand_over)
        self._arrived.append(frame)

    def refuse_unread(self) -> None:
        """Count a frame that was too large to be read."""
        self.door.tally.received += 1
        self.door.refuse("too_large", None)

    async def room(self) -> None:
        """Return once more may be read."""
        if self.full:
            suppressed = self._held.take(time.monotonic())
            if suppressed is not None:
                log.warning(
                    "stream_held",
                    connection=self.door.name,
                    waiting=len(self._in_flight),
                    size_bytes=self._in_flight_bytes,
                )
        await self._until(lambda: not self.full)

    async def drained(self) -> None:
        """Return once all that was taken is durable or refused."""
        await self._until(lambda: not self._in_flight)

    async def _until(self, met: Callable[[], bool]) -> None:
        while not met():
            self._changed.clear()
            await self._changed.wait()

    def _hand_over(self) -> None:
        frames, self._arrived = self._arrived, []
        source = self.door.source
        results = self._pipeline.accept_all([(frame.delivery, source) for frame in frames])
        for frame, result in zip(frames, results, strict=True):
            if isinstance(result, Accepted):
                self._accepted(frame, result)
            elif isinstance(result, VerificationError):
                self._gone(frame)
                self.door.refuse(result.reason, len(frame.delivery.body))
                self._refused(frame.delivery, result.reason)
            else:
                self._set_aside(frame)

    def _accepted(self, frame: InFlight, accepted: Accepted) -> None:
        frame.socket.progress = True
        accepted.receipt.then(math.inf, partial(self._stored, frame, accepted))

    def _stored(self, frame: InFlight, accepted: Accepted, _: PublishError | None) -> None:
        self._gone(frame)
        taken_s = self._loop.time() - frame.since
        self.door.accept(accepted, len(frame.delivery.body), taken_s)

    def _set_aside(self, frame: InFlight) -> None:
        """Keep a frame on which our own code has failed: nobody will send it again."""
        delivery = frame.delivery
        try:
            self.door.source.verify(delivery)
        except Exception as error:  # noqa: BLE001 - the fault itself is logged by the pipeline
            self._gone(frame)
            reason = error.reason if isinstance(error, VerificationError) else "internal"
            self.door.refuse(reason, len(delivery.body))
            return
        event = reject(delivery, self.door.source, UnreadableError("internal", "a fault of ours"))
        receipt = self._publisher.publish(records_of(event))
        self._accepted(frame, Accepted("rejected", (event,), receipt))

    def _gone(self, frame: InFlight) -> None:
        del self._in_flight[frame]
        self._in_flight_bytes -= len(frame.delivery.body)
        self._changed.set()


class Timing(Struct, frozen=True, kw_only=True):
    """Of a socket, in seconds."""

    open_s: float = 10.0
    #: Between two signs of life that we ask for, and how long we wait for one.
    ping_every_s: float = 20.0
    ping_wait_s: float = 20.0
    #: How long the other side has to say goodbye.
    close_s: float = 2.0


class OpenError(Exception):
    """There is no socket: a word for the reason, and the HTTP status if there was one.

    It does not hang on the library's error, which names the address.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Lost(Struct, frozen=True):
    """Why a socket has ended, and with which close code, if with any.

    ``closed`` by the other side; ``left`` by us; ``cut`` without a word; ``silent``: a ping was not
    answered; ``too_large``; ``not_websocket``: frames that are none.
    """

    reason: str
    code: int | None


class Socket:
    """One websocket, read from its opening to its end. Use `open_socket`."""

    def __init__(
        self, library: "_Library", inlet: Inlet, timing: Timing, now_ms: Callable[[], int]
    ) -> None:
        self.opened_ms = now_ms()
        #: Up to when the other side was surely there; before what is in flight has become durable.
        self.heard_ms = self.opened_ms
        #: Whether an authentic event has come through.
        self.progress = False
        self._library = library
        self._inlet = inlet
        self._timing = timing
        self._now_ms = now_ms
        self._silent = False
        #: What is read may have waited, nobody knows how long, and the other side may be gone.
        self._behind = False
        self._frames = 0
        self._holds = 0
        self._loop = asyncio.get_running_loop()
        self._keeping = self._loop.create_task(self._keep_alive())
        #: Ends when the socket does, all that came by it taken.
        self.reading = self._loop.create_task(self._read())

    async def close(self, code: CloseCode) -> None:
        """Say goodbye; what comes before the other side has heard it is taken still."""
        with suppress(ConnectionClosed):
            await self._library.close(code)
        await asyncio.wait([self.reading])

    def abandon(self) -> None:
        """Read nothing more, not even what has come already, and wait for no goodbye."""
        self.reading.cancel()
        self._library.transport.abort()

    async def _read(self) -> Lost:
        library, inlet = self._library, self._inlet
        try:
            while True:
                body = await library.recv(decode=False)
                self._frames += 1
                if not self._behind:
                    self.heard_ms = self._now_ms()
                inlet.take(body, self, text=library.texts.popleft())
                if inlet.full:
                    await self._hold()
        except ConnectionClosed as error:
            lost = Lost("silent", None) if self._silent else _why(error)
            if lost.reason == "too_large":
                inlet.refuse_unread()
            return lost
        finally:
            self._keeping.cancel()

    async def _hold(self) -> None:
        """Return once more may be read."""
        since = self._loop.time()
        await self._inlet.room()
        if self._loop.time() - since > _LATE_S:
            self._behind = True
            self._holds += 1

    async def _keep_alive(self) -> None:
        """Find out when the other side is gone.

        Not by the library's own pings: they end a connection whose frames we leave unread for
        want of room, since the pongs wait behind the frames.
        """
        with suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self._timing.ping_every_s)
                if self._inlet.full:
                    continue
                asked_ms, frames, holds = self._now_ms(), self._frames, self._holds
                pong = asyncio.ensure_future(await self._library.ping())
                await asyncio.wait([pong], timeout=self._timing.ping_wait_s)
                if pong.done():
                    await pong  # it may be that the connection is lost
                    self.heard_ms = max(self.heard_ms, asked_ms)
                    self._behind = self._behind and holds != self._holds
                elif self._frames == frames and not self._inlet.full:
                    self._silent = True
                    await self._library.close(CloseCode.INTERNAL_ERROR)


async def open_socket(
    url: str,
    inlet: Inlet,
    now_ms: Callable[[], int],
    timing: Timing = Timing(),  # noqa: B008
) -> Socket:
    """Connect, and read from then on. Raises OpenError, which does not tell the address."""
    try:
        library = await connect(
            url,
            create_connection=_Library,
            # Events are small, and inflating them would be a third of what they cost us.
            compression=None,
            open_timeout=timing.open_s,
            ping_interval=None,
            close_timeout=timing.close_s,
            max_size=MAX_FRAME_BYTES,
            # As for the API: what the environment says, but not for addresses of this machine.
            proxy=None if _is_here(url) else True,
            logger=_SILENT,
        )
    except InvalidStatus as error:
        raise OpenError("handshake_refused", error.response.status_code) from None
    except (InvalidURI, ValueError):
        raise OpenError("bad_address") from None
    except (InvalidProxy, ProxyError, ImportError):  # SOCKS needs another library
        raise OpenError("proxy") from None
    except WebSocketException:
        raise OpenError("handshake_failed") from None
    except TimeoutError:
        raise OpenError("timeout") from None
    except (OSError, EOFError):
        raise OpenError("unreachable") from None
    assert isinstance(library, _Library)
    return Socket(library, inlet, timing, now_ms)


class _Library(ClientConnection):
    """Tells text from binary without decoding.

    The library ends a connection whose text is not in UTF-8, and what comes behind would be lost.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        #: Of each message that has begun and was not received yet.
        self.texts: deque[bool] = deque()

    def process_event(self, event: ProtocolEvent) -> None:
        if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY):
            self.texts.append(event.opcode is Opcode.TEXT)
        super().process_event(event)


def _is_here(url: str) -> bool:
    """Raises ValueError if there is no sense in it."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why(error: ConnectionClosed) -> Lost:
    if error.rcvd is not None and error.rcvd_then_sent is not False:
        return Lost("closed", error.rcvd.code)
    if error.sent is None:
        return Lost("cut", None)
    if error.sent.code == CloseCode.MESSAGE_TOO_BIG:
        return Lost("too_large", error.sent.code)
    if error.sent.code in (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA):
        return Lost("not_websocket", error.sent.code)
    return Lost("left", error.sent.code)
