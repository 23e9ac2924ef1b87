"""The gaps that are open, as the topic of gaps tells them."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime

import orjson
import structlog

from consumers.poll.loops import Storing
from consumers.poll.seen import Seen
from consumers.poll.windows import Gap
from ingest.eventlog.log import Reader, StoredRecord
from ingest.gaps import gap_event
from ingest.metrics import GAP_CLOSED_SECONDS
from schemas.event import Event

log = structlog.get_logger()

TOPIC = "gaps"

_FETCH_S = 0.5

#: From one failure to the next try, at most.
_AGAIN_S = 10.0


class Gaps:
    """Follows the topic from its beginning, for all connections of the process."""

    def __init__(self) -> None:
        #: Connection → (channel, from) → the gap.
        self._open: dict[str, dict[tuple[str, int], Gap]] = {}
        #: The same of those that are closed → their ends.
        self._closed: dict[str, dict[tuple[str, int], int]] = {}
        self._waiting: list[asyncio.Future[None]] = []
        #: Whether the topic could not be read the last time; then `current` waits.
        self.unread = False

    async def follow(self, open_reader: Callable[[], AbstractAsyncContextManager[Reader]]) -> None:
        """Read for as long as the process lives. If reading fails it begins again.

        Until then what is known stays: not even for a moment is a gap open that was closed.
        """
        told = ""
        pause_s = 1.0
        while True:
            try:
                async with open_reader() as reader:
                    anew = Gaps()
                    while not await reader.caught_up():
                        anew.read(await reader.fetch(wait_s=_FETCH_S))
                    self._open, self._closed = anew._open, anew._closed
                    self.unread = False
                    told, pause_s = "", 1.0
                    await self._follow(reader)
            except Exception as error:  # noqa: BLE001 - whatever it is, the log comes back
                self.unread = True
                if told != type(error).__name__:  # once for each kind
                    told = type(error).__name__
                    log.warning("gaps_unread", error=told)
            await asyncio.sleep(pause_s)
            pause_s = min(_AGAIN_S, 2 * pause_s)

    async def _follow(self, reader: Reader) -> None:
        while True:
            waiting = list(self._waiting)
            if waiting and await reader.caught_up():
                for waiter in waiting:
                    self._waiting.remove(waiter)
                    if not waiter.done():
                        waiter.set_result(None)
            self.read(await reader.fetch(wait_s=_FETCH_S))

    async def current(self) -> None:
        """Return once everything that is on the topic now has been read."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def read(self, records: Iterable[StoredRecord]) -> None:
        """Take in what stands on the topic, in its order."""
        for record in records:
            try:
                event = orjson.loads(record.value or b"")
                data = event["data"]
                gap = Gap(
                    channel=data["channel"],
                    from_ms=_ms(data["from"]),
                    to_ms=None if data["to"] is None else _ms(data["to"]),
                    reason=data["reason"],
                    opened_ms=_ms(event["time"]),
                )
                if event["type"].endswith(".closed"):
                    self.closed(event["connection"], gap)
                else:
                    self._opened(event["connection"], gap)
            except (ValueError, KeyError, TypeError, AttributeError):  # not written by us
                log.warning("gap_unreadable", position=record.position)

    def _opened(self, connection: str, gap: Gap) -> None:
        place = gap.channel, gap.from_ms
        closed_to_ms = self._closed.get(connection, {}).get(place)
        # What is told again was read back all the same; unless it has turned out to be longer.
        if gap.to_ms is None or closed_to_ms is None or gap.to_ms > closed_to_ms:
            self._open.setdefault(connection, {})[place] = gap

    def closed(self, connection: str, gap: Gap) -> None:
        place = gap.channel, gap.from_ms
        self._open.get(connection, {}).pop(place, None)
        self._closed.setdefault(connection, {})[place] = gap.end_ms

    def of(self, connection: str, connected_ms: int | None) -> list[Gap]:
        """Those of a connection, each with its end if that is known.

        ``connected_ms``: since when the websocket is connected, or was the last time.
        """
        found = sorted(self._open.get(connection, {}).values(), key=lambda gap: gap.from_ms)
        return [gap if gap.to_ms is not None else _ended(gap, found, connected_ms) for gap in found]


async def close_gap(
    connection: str, gap: Gap, gaps: Gaps, seen: Seen, storing: Storing, now_ms: int
) -> None:
    """Say that a gap was read back; ``found``: the calls that ended in it.

    These are what the channel would have told. Whether another one has told of them, or the
    provider has sent it again, a poller cannot know.
    """
    found = seen.found_in(gap)
    event = gap_event(
        connection,
        gap.channel,
        gap.from_ms,
        to_ms=gap.to_ms,
        reason=gap.reason,
        found=found,
        now_ms=now_ms,
    )
    await storing.events([event])
    gaps.closed(connection, gap)
    seen.gap_closed(gap)
    noticed_ms = max(gap.end_ms, gap.opened_ms)
    GAP_CLOSED_SECONDS.labels(connection, gap.channel).observe(max(0, now_ms - noticed_ms) / 1000)
    log.info(
        "gap_closed",
        connection=connection,
        channel=gap.channel,
        reason=gap.reason,
        seconds=round((gap.end_ms - gap.from_ms) / 1000, 3),
        found=found,
    )


def found_in(gaps: Iterable[Gap], page: Iterable[Event]) -> list[tuple[Gap, str]]:
    """The calls of a page that became what their records say while a channel was deaf."""
    return [
        (gap, event.data["call_id"])
        for gap in gaps
        for event in page
        if event.subject_kind == "call" and gap.from_ms <= event.time_ms <= gap.end_ms
    ]


def _ended(gap: Gap, others: Iterable[Gap], connected_ms: int | None) -> Gap:
    """A gap ends when the channel hears again; at the latest before it goes deaf once more."""
    ends = [
        other.from_ms
        for other in others
        if other.channel == gap.channel and other.from_ms > gap.from_ms
    ]
    if gap.channel == "websocket" and connected_ms is not None and connected_ms > gap.from_ms:
        ends.append(connected_ms)
    to_ms = min(ends, default=None)
    return replace(gap, to_ms=to_ms)


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)
