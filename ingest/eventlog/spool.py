"""What waits on disk for Kafka: a folder of segments for each topic, emptied from the front.

    spool/receiver/calls/00000000000000000001.sqlite    as in the journal
    spool/receiver/calls/drained                        the last position that Kafka has

Rows hold key, value and headers, never a partition: that is Kafka's business when they go there.
What is drained is unlinked, segment by segment. The place in ``drained`` is written now and then,
without a flush: losing it repeats records, and skips none.
"""

import asyncio
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import apsw
import structlog

from ingest.errors import PublishError
from ingest.eventlog.journal import Cursor, JournalPublisher
from ingest.eventlog.lanes import Group, size_of
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.segments import (
    CORRUPT,
    SAFE_JUMP,
    SealedError,
    Segment,
    first_position,
    make_folder,
    rescue,
    segment_paths,
    set_aside,
    sync_folder,
    unlink_segment,
)
from ingest.eventlog.topic import KEEP_FREE, SEGMENT_BYTES
from schemas.times import now_ms
from schemas.topics import TOPICS

log = structlog.get_logger()

T = TypeVar("T")

#: A drained segment that is smaller is kept for what comes next.
_KEEP_BYTES = 1024 * 1024

#: How often the place of a topic is written, in seconds.
_REMEMBER_S = 1.0

#: Over how long the growth is measured from which the minutes that are left follow.
_GROWTH_S = 60.0

#: What is read at a time, at most.
READ_RECORDS = 1000

_DRAINED = "drained"

_AT_ONCE_BYTES = 64 * 1024 * 1024

#: Below a data directory.
SPOOLS = "spool"


def spool_folder(path: Path, role: str) -> Path:
    """Where a role's spool is, below the data directory; no other role writes there."""
    return path / SPOOLS / role


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a topic has in the spool."""

    records: int
    size_bytes: int
    #: Age of the first of them, in seconds.
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a topic's spool begins and ends."""

    stored_to: int
    drained_to: int
    records: int


def look_into(folder: Path) -> Mapping[str, Waiting]:
    """Topic → what waits in a role's folder, be somebody at work there or not. Blocks."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            topic = _Topic(path)
            topic.close()
            if topic.records:
                found[path.name] = topic.waiting(now_ms())
    return found


def waiting_of(folder: Path, topic: str, keys: Collection[bytes]) -> list[StoredRecord]:
    """What waits of these keys in a role's folder, be somebody at work there or not. Blocks."""
    found: list[StoredRecord] = []
    cursor = Cursor(folder / topic, keys)
    cursor.after = _remembered(folder / topic)
    while more := cursor.read(topic, READ_RECORDS, _AT_ONCE_BYTES):
        found += more
    cursor.close()
    return found


class Spool:
    """The spool of one role. Its `publish` is the journal's, its other end is read by `read`."""

    def __init__(self, folder: Path, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        make_folder(folder)
        self.folder = folder
        self._max_bytes = max_bytes
        self.journal = JournalPublisher(folder, segment_bytes, where="spool")
        # One for each topic, so that a slow read is not another topic's.
        self._threads = ThreadPoolExecutor(len(TOPICS), "spool")
        self._topics: dict[str, _Topic] = {}
        #: Where the topics stood when they were opened.
        self.places: dict[str, Place] = {}
        self._used = _size(folder)
        self._usage: deque[tuple[float, int]] = deque([(time.monotonic(), self._used)])

    def open(self, topic: str) -> None:
        """Find out where a topic stands, before anything else is done with it. Blocks."""
        _mend(self.folder / topic)
        found = self._topics[topic] = _Topic(self.folder / topic)
        found.correct()
        self.places[topic] = Place(found.stored_to, found.drained_to, found.records)

    def publish(self, records: Sequence[Record], appended: Callable[[int | None], None]) -> Group:
        """Append records of one topic; ``appended`` is told the last position, or None.

        Raises PublishError, then ``appended`` is not called.
        """
        if self._used >= self._max_bytes:
            raise PublishError("spool_full")
        name = records[0].topic
        topic, count, size = self._topics[name], len(records), size_of(records)
        group = self.journal.publish(records)
        self._used += size

        def settled(error: PublishError | None) -> None:
            if error is not None:
                appended(None)
                return
            if topic.records == 0:
                topic.oldest_ms = now_ms()
            topic.records += count
            appended(self.journal.last(name))

        group.then(math.inf, settled)
        return group

    async def read(self, topic: str, max_bytes: int) -> Sequence[StoredRecord] | None:
        """The next records in order. Empty: none can be read; None: nobody knows, ask again."""
        return await self._in_thread(lambda: self._topics[topic].read(max_bytes))

    def drained(self, topic: str, position: int, count: int) -> None:
        """Kafka has ``count`` more records, up to ``position``."""
        found = self._topics[topic]
        found.drained_to = position
        found.records = max(0, found.records - count)

    async def tidy(self, topic: str, *, empty: bool) -> None:
        """Remember the place of a topic and unlink what is drained; ``empty``: all of it is."""
        found = self._topics[topic]
        if empty:
            found.records = 0
        await self._in_thread(lambda: found.tidy(empty=empty))

    def waiting(self) -> Mapping[str, Waiting]:
        """Topic → what it has here, where there is something."""
        now = now_ms()
        return {name: topic.waiting(now) for name, topic in self._topics.items() if topic.records}

    async def measure(self) -> None:
        """Look at the size; to be called every few seconds.

        What could not be unlinked when it was drained, since somebody was writing, goes now: else
        it would be in the way of the next outage.
        """
        for topic in [*self._topics.values()]:
            if topic.records == 0:
                await self._in_thread(partial(topic.tidy, empty=True))
        self._used = await self._in_thread(lambda: _size(self.folder))
        now = time.monotonic()
        self._usage.append((now, self._used))
        while now - self._usage[0][0] > _GROWTH_S:
            self._usage.popleft()

    def minutes_left(self) -> float:
        """For how long there is room at the pace of the last minute; infinite if it shrinks."""
        (then, before), (now, used) = self._usage[0], self._usage[-1]
        disk = shutil.disk_usage(self.folder)
        room = min(self._max_bytes - self._used, disk.free - disk.total * KEEP_FREE)
        grown = used - before
        if room <= 0:
            return 0.0
        return math.inf if grown <= 0 or now <= then else room / grown * (now - then) / 60

    def full(self) -> bool:
        return self._used >= self._max_bytes

    async def close(self) -> None:
        """Write what was handed over."""
        await self.journal.close()
        for topic in self._topics.values():
            await self._in_thread(topic.close)
        self._threads.shutdown()

    def _in_thread(self, do: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, do)


class _Topic:
    """One topic's folder, from its front. Its methods block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored_to, self.records, self.oldest_ms = 0, 0, now_ms()
        remembered = _remembered(folder)
        ends = [(path, first_position(path), _last(path)) for path in segment_paths(folder)]
        for _, first, last in ends:
            # Of a file that does not say where it ends: before everything that will come behind it.
            self.stored_to = first - 2 + SAFE_JUMP if last is None else last
        #: A place behind the end is of files that have been taken away: all that is here is new.
        self.misled = remembered > self.stored_to
        self.drained_to = 0 if self.misled else remembered
        for path, first, last in ends:
            if last is None:
                self.records += _readable(path, self.drained_to)
            else:
                self.records += max(0, last - max(first - 1, self.drained_to))
        self._cursor = Cursor(folder)
        self._cursor.after = self.drained_to
        self._damaged: set[Path] = set()
        self._written = (self.drained_to, time.monotonic())
        for record in self._cursor.read("", 1, 1):
            self.oldest_ms = record.written_ms
        self._cursor.after = self.drained_to

    def correct(self) -> None:
        """Forget a place that cannot be, before there are enough records for it."""
        if self.misled:
            (self.folder / _DRAINED).unlink(missing_ok=True)
            sync_folder(self.folder)

    def waiting(self, now: int) -> Waiting:
        age_s = max(0.0, (now - self.oldest_ms) / 1000)
        return Waiting(self.records, _size(self.folder), age_s)

    def read(self, max_bytes: int) -> Sequence[StoredRecord] | None:
        self._cursor.after = self.drained_to
        found = self._cursor.read(self.folder.name, READ_RECORDS, max_bytes)
        if self._cursor.damaged is not None:
            self._damaged.add(self._cursor.damaged)
        if found:
            self.oldest_ms = found[0].written_ms
            return found
        return [] if self._cursor.at_end() else None

    def tidy(self, *, empty: bool) -> None:
        now = time.monotonic()
        if not empty and now - self._written[1] < _REMEMBER_S:
            return
        self._remember(now)
        with suppress(apsw.Error, OSError):  # the next time, then
            if empty:
                self._begin_anew()
            for path, following in pairwise(segment_paths(self.folder)):
                if first_position(following) - 1 > self.drained_to:
                    break
                if path in self._damaged or not _sound(path):
                    rescued = _readable(path, 0)
                    set_aside(path)
                    log.error(
                        "segment_damaged",
                        topic=self.folder.name,
                        file=path.name,
                        rescued=rescued,
                    )
                unlink_segment(path)

    def close(self) -> None:
        self._remember(time.monotonic())
        self._cursor.close()

    def _remember(self, now: float) -> None:
        if self._written[0] != self.drained_to and self.folder.is_dir():
            with suppress(OSError):
                file = os.open(self.folder / _DRAINED, os.O_WRONLY | os.O_CREAT, 0o644)
                try:  # in place: there is no moment without a place
                    os.pwrite(file, b"%020d\n" % self.drained_to, 0)
                finally:
                    os.close(file)
        self._written = (self.drained_to, now)

    def _begin_anew(self) -> None:
        """End the last segment if it is large, so that it goes too."""
        for path in segment_paths(self.folder)[-1:]:
            if _size_of_files(path) < _KEEP_BYTES:
                return
            with closing(Segment(path)) as segment, suppress(SealedError):
                if segment.last() < segment.first:
                    return  # its successor would have its name
                # Whoever appends at this moment finds it sealed, and goes on in the new one.
                segment.seal()
                Segment.create(self.folder, segment.following())


def _remembered(folder: Path) -> int:
    try:
        return int((folder / _DRAINED).read_text())
    except (OSError, ValueError):
        return 0


def _last(path: Path) -> int | None:
    """The last position in a segment; None if it cannot be told."""
    try:
        with closing(Segment(path)) as segment:
            return segment.last()
    except (apsw.Error, OSError):
        log.error("segment_unreadable", topic=path.parent.name, file=path.name)
        return None


def _mend(folder: Path) -> None:
    """Put what can be read of a file that is no database in its place; nobody else is at work."""
    for path in segment_paths(folder):
        try:
            with closing(Segment(path)) as segment:
                segment.last()
        except CORRUPT:
            with suppress(apsw.Error, OSError):  # it is read as it is, then
                rescued = rescue(path)
                set_aside(path)
                Segment.create(folder, first_position(path), rescued)
                log.error(
                    "segment_damaged", topic=folder.name, file=path.name, rescued=len(rescued)
                )
        except (apsw.Error, OSError):
            continue  # the disk is full, say: no reason to call it damaged


def _readable(path: Path, after: int) -> int:
    """How many records of a damaged segment can be read."""
    with suppress(apsw.Error, OSError), closing(Segment(path)) as segment:
        return len(segment.read("", after))
    return 0


def _sound(path: Path) -> bool:
    """Whether a segment is in order, read or not. Reads all of it."""
    try:
        with closing(Segment(path)) as segment:
            segment.last()
            return segment.check()
    except CORRUPT:
        return False


def _size_of_files(path: Path) -> int:
    """Bytes of a segment and of what SQLite keeps beside it."""
    return sum(beside.stat().st_size for beside in path.parent.glob(f"{path.name}*"))


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    size = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):
                size += (Path(parent) / file).stat().st_size
    return size
