"""Calls that a provider has notified us of: it is asked for its own record of them again, soon.

A notification is a hint. Those that are on the log are followed from its end; what is missed while
nobody follows is harmless, since the list of calls brings every record in the end.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec
import structlog

from ingest.eventlog.log import Reader, StoredRecord
from schemas.event import Event

log = structlog.get_logger()

TOPIC = "calls"

#: When a call is read after the last hint; and again while its record is not there or not final.
DELAYS_S = (5.0, 60.0, 600.0)

#: Calls of one connection that may wait; then the one that has waited longest is left to the list.
WAITING_MAX = 1000

_FETCH_S = 0.5

#: From one failure to the next try, at most.
_AGAIN_S = 10.0

_RECORDED = b"dialstream.call.recorded"


class _Call(msgspec.Struct, gc=False):
    call_id: str


class _Hint(msgspec.Struct, gc=False):
    via: str
    data: _Call


_decode = msgspec.json.Decoder(_Hint).decode


class Hinted:
    """Calls of one connection that are to be read again. No clock: times are the steady clock's."""

    def __init__(self, delays_s: Sequence[float] = DELAYS_S) -> None:
        self._delays_s = delays_s
        #: Call → when it is due, by how often it was read in vain; each in the order of that.
        self._waiting: list[dict[str, float]] = [{} for _ in delays_s]

    def add(self, call_id: str, now_s: float) -> None:
        """There is a hint of it. Several hints in a row come to one reading."""
        for waiting in self._waiting:
            waiting.pop(call_id, None)
        self._put(call_id, 0, now_s)
        if sum(map(len, self._waiting)) > WAITING_MAX:
            last = next(waiting for waiting in reversed(self._waiting) if waiting)
            del last[next(iter(last))]

    def take(self, now_s: float) -> tuple[str, int] | float:
        """A call that is due, and how often it was read in vain; or how long there is none."""
        firsts = [
            (due_s, call_id, tries)
            for tries, waiting in enumerate(self._waiting)
            for call_id, due_s in itertools.islice(waiting.items(), 1)
        ]
        if not firsts:
            return float("inf")
        due_s, call_id, tries = min(firsts)
        if due_s > now_s:
            return due_s - now_s
        del self._waiting[tries][call_id]
        return call_id, tries

    def again(self, call_id: str, tries: int, now_s: float) -> None:
        """It was read in vain so often; it is left to the list once that is often enough."""
        # A hint that has come meanwhile counts for more.
        if tries < len(self._delays_s) and not any(call_id in each for each in self._waiting):
            self._put(call_id, tries, now_s)

    def _put(self, call_id: str, tries: int, now_s: float) -> None:
        self._waiting[tries][call_id] = now_s + self._delays_s[tries]


class Hints:
    """Follows the topic for those connections of the process that listen."""

    def __init__(self) -> None:
        self._listeners: dict[bytes, Callable[[str], None]] = {}
        self._wanted = asyncio.Event()

    def listen(self, connection: str, hinted: Callable[[str], None]) -> None:
        """From now on tell of every notification of a call: with the call's id."""
        self._listeners[connection.encode()] = hinted
        self._wanted.set()

    def leave(self, connection: str) -> None:
        self._listeners.pop(connection.encode(), None)

    async def follow(self, open_reader: Callable[[], AbstractAsyncContextManager[Reader]]) -> None:
        """Read for as long as the process lives, while anybody listens.

        ``open_reader``: opens one that begins at the end of the topic.
        """
        told = ""
        pause_s = 1.0
        while True:
            self._wanted.clear()
            if not self._listeners:
                await self._wanted.wait()
            try:
                async with open_reader() as reader:
                    while self._listeners:
                        self.read(await reader.fetch(wait_s=_FETCH_S))
                        told, pause_s = "", 1.0
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, the log comes back
                if told != type(error).__name__:  # once for each kind
                    told = type(error).__name__
                    log.warning("hints_unread", error=told)
            await asyncio.sleep(pause_s)
            pause_s = min(_AGAIN_S, 2 * pause_s)

    def read(self, records: Iterable[StoredRecord]) -> None:
        """Take in what stands on the topic. Most of it is none of ours: that is seen at its key."""
        for record in records:
            hinted = self._listeners.get(record.key.partition(b"/")[0])
            if hinted is None or record.value is None:
                continue
            if any(name == "ce_type" and value == _RECORDED for name, value in record.headers):
                continue
            try:
                event = _decode(record.value)
            except (msgspec.MsgspecError, ValueError, RecursionError):  # not written by us
                continue
            if event.via == "notification":
                hinted(event.data.call_id)


def is_final(events: Sequence[Event]) -> bool:
    """Whether a call's record is there, and will hardly change: the call is over."""
    return bool(events) and not any(
        event.subject_kind == "call"
        and event.data.get("outcome") is None
        and event.data.get("ended_at") is None
        for event in events
    )
