"""The embedded event log: SQLite segments below one folder, durable when `publish` says so.

`JournalPublisher` writes, from as many processes as like. `JournalReader` reads, in other
processes too, by looking every now and then: no process has to know another one.
"""

import asyncio
import fcntl
import heapq
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw
import structlog

from ingest.errors import PublishError
from ingest.eventlog.lanes import Group, Lane, Room
from ingest.eventlog.log import Behind, Keys, Place, Record, Start, StoredRecord, Watcher
from ingest.eventlog.segments import (
    CORRUPT,
    SAFE_JUMP,
    Segment,
    first_position,
    make_folder,
    segment_paths,
)
from ingest.eventlog.topic import SEGMENT_BYTES, TopicWriter, disk_full
from ingest.metrics import COMMIT_SECONDS
from schemas.topics import TOPICS

log = structlog.get_logger()

T = TypeVar("T")

#: What may wait for the disk.
QUEUE_BYTES = 64 * 1024 * 1024

#: A disk that takes longer than this for its slowest commits is named in `degraded`.
SLOW_COMMIT_S = 0.5

BELIEVED_S = 5.0

#: Topics of the journal are not divided.
PARTITION = 0

#: A segment cannot be opened at the moment: retention or a checkpoint was quicker, or the disk is
#: so full that SQLite cannot even make the file in which it keeps its locks.
NOT_NOW = (apsw.BusyError, apsw.CantOpenError, apsw.IOError, FileNotFoundError)


def journal_folder(path: Path) -> Path:
    return path / "journal"


class JournalPublisher:
    """Publisher on a folder. Use `open_journal`.

    ``where``: what receipts call it; the spool in front of Kafka is one of these too.
    """

    def __init__(
        self, folder: Path, segment_bytes: int = SEGMENT_BYTES, where: str = "journal"
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._where = where
        self._room = Room(QUEUE_BYTES)
        # A thread a topic: one topic's slow disk flush is not another's.
        self._threads = ThreadPoolExecutor(len(TOPICS), "journal")
        self._writers: dict[str, TopicWriter] = {}
        self._lanes: dict[str, Lane] = {}
        self._recent_commits_s: deque[float] = deque(maxlen=100)
        self._refused: tuple[str, float] | None = None

    def publish(self, records: Sequence[Record]) -> Group:
        topic = records[0].topic
        lane = self._lanes.get(topic) or self._open_lane(topic)
        return lane.append(records)

    def spools(self, topic: str) -> bool:
        return False

    @property
    def queued_bytes(self) -> int:
        return self._room.used

    def reconnect(self) -> None:
        pass

    def last(self, topic: str) -> int:
        """Position of the last record of a topic that this publisher has made durable; or 0."""
        writer = self._writers.get(topic)
        return 0 if writer is None else writer.last

    def degraded(self) -> Sequence[str]:
        slow = sorted(self._recent_commits_s)
        # p99 of the last hundred is the second largest
        return ["disk_slow"] if len(slow) > 1 and slow[-2] > SLOW_COMMIT_S else []

    def refusing(self) -> str | None:
        try:
            if disk_full(self._folder):
                return "disk_full"
        except OSError:
            return "disk_error"
        # A refusal is believed for a while only: without readiness nothing comes to prove it wrong.
        if self._refused is None or time.monotonic() - self._refused[1] > BELIEVED_S:
            return None
        return self._refused[0]

    async def close(self) -> None:
        """Write what was handed over, then close the files."""
        for lane in self._lanes.values():
            await lane.drained()
        for writer in self._writers.values():
            await asyncio.get_running_loop().run_in_executor(self._threads, writer.close)
        self._threads.shutdown()

    def _open_lane(self, topic: str) -> Lane:
        writer = TopicWriter(self._folder / topic, self._segment_bytes)
        self._writers[topic] = writer
        loop = asyncio.get_running_loop()
        seconds = COMMIT_SECONDS.labels(topic, self._where)

        async def commit(records: Sequence[Record]) -> str:
            begun = time.perf_counter()
            try:
                await loop.run_in_executor(self._threads, writer.append, records)
            except PublishError as error:
                if self._refused is None or self._refused[0] != error.reason:
                    log.error("disk_refuses", store=self._where, topic=topic, reason=error.reason)
                self._refused = error.reason, time.monotonic()
                raise
            finally:
                taken = time.perf_counter() - begun
                self._recent_commits_s.append(taken)
                seconds.observe(taken)
            self._refused = None
            return self._where

        lane = self._lanes[topic] = Lane(commit, self._room)
        return lane


@asynccontextmanager
async def open_journal(
    path: Path, segment_bytes: int = SEGMENT_BYTES
) -> AsyncIterator[JournalPublisher]:
    """The journal below ``path``, made if there is none; everything is written when it closes."""
    folder = journal_folder(path)
    make_folder(folder)
    publisher = JournalPublisher(folder, segment_bytes)
    try:
        yield publisher
    finally:
        await publisher.close()


class JournalReader:
    """Reader of topics below a folder; with a group, one of several that share them.

    A topic is read by one member of a group at a time; the others stand by. Use `open_reader`.
    """

    #: Between two looks: short while records come, longer while none do.
    _PAUSES_S = (0.01, 0.02, 0.05, 0.1, 0.2)
    #: Of each topic, at a time.
    _FETCH, _FETCH_BYTES = 500, 8 * 1024 * 1024

    def __init__(
        self,
        folder: Path,
        topics: Sequence[str],
        group: str | None,
        start: Start,
        keys: Keys | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self._watcher = watcher
        self._cursors = {
            topic: Cursor(folder / topic, None if keys is None else keys[topic]) for topic in topics
        }
        self._group = None if group is None else _Group(folder / "groups" / group)
        self._start = start
        self._placed: set[str] = set()
        self._held: frozenset[str] = frozenset()
        # One thread: nothing here is for two at a time.
        self._thread = ThreadPoolExecutor(1, "reader")
        self._looking: asyncio.Future[list[StoredRecord]] | None = None

    async def fetch(self, wait_s: float) -> Sequence[StoredRecord]:
        until = time.monotonic() + wait_s
        pauses = iter(self._PAUSES_S)
        while True:
            if self._looking is None:
                self._looking = self._in_thread(self._look)
            # Whoever gives up leaves the look, and what it finds, to the next who fetches.
            await asyncio.wait([self._looking])
            looked, self._looking = self._looking, None
            found = looked.result()
            self._tell()
            left_s = until - time.monotonic()
            if found or left_s <= 0:
                return found
            await asyncio.sleep(min(next(pauses, self._PAUSES_S[-1]), left_s))

    async def commit(self, stored: Sequence[StoredRecord]) -> None:
        if self._group is None:
            raise ValueError("a reader without a group has nothing to commit to")
        positions: dict[str, int] = {}
        for record in stored:
            positions[record.topic] = max(record.position, positions.get(record.topic, 0))
        await self._in_thread(partial(self._group.commit, positions))

    async def caught_up(self) -> bool:
        if self._looking is not None:
            await asyncio.wait([self._looking])
            if self._looking.result():
                return False
        return await self._in_thread(lambda: all(c.at_end() for c in self._cursors.values()))

    async def behind(self) -> Collection[Place]:
        left: set[Place] = set()
        if self._looking is not None:
            await asyncio.wait([self._looking])
            left |= {(record.topic, record.partition) for record in self._looking.result()}

        def look() -> set[Place]:
            return {(t, PARTITION) for t, cursor in self._cursors.items() if not cursor.at_end()}

        return left | await self._in_thread(look)

    async def left(self) -> Mapping[Place, range]:
        def look() -> Mapping[Place, range]:
            return {
                (topic, PARTITION): range(cursor.after + 1, cursor.last() + 1)
                for topic, cursor in self._cursors.items()
                if topic in self._placed
            }

        return await self._in_thread(look)

    def hold(self, places: Collection[Place]) -> None:
        self._held = frozenset(topic for topic, _ in places)

    async def close(self) -> None:
        await self._in_thread(self._close)
        self._thread.shutdown()

    def _in_thread(self, do: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, do)

    def _close(self) -> None:
        for cursor in self._cursors.values():
            cursor.close()
        if self._group is not None:
            self._group.close()

    def _look(self) -> list[StoredRecord]:
        found: list[list[StoredRecord]] = []
        for topic, cursor in self._cursors.items():
            if self._group is not None and not self._group.own(topic):
                continue
            if topic not in self._placed:
                committed = None if self._group is None else self._group.committed(topic)
                if committed is not None:
                    cursor.after = committed
                elif self._start == "latest":
                    cursor.go_to_end()
                    if self._group is not None and self._watcher is not None:
                        # Where it has begun it goes on, also if nothing comes before it ends.
                        self._group.commit({topic: cursor.after})
                elif isinstance(self._start, Behind):
                    _go_behind(cursor, topic, self._start)
                self._placed.add(topic)
            if topic not in self._held:
                found.append(cursor.read(topic, self._FETCH, self._FETCH_BYTES))
        # Topics side by side as they were written, each in its own order whatever the clock does.
        return list(heapq.merge(*found, key=lambda record: record.written_ms))

    def _tell(self) -> None:
        """Say what could not be read any more."""
        for topic, cursor in self._cursors.items():
            while cursor.skipped:
                expected, found = cursor.skipped.popleft()
                # A compacted topic has copied forward what was still to be read.
                if self._watcher is not None and not _is_compacted(topic):
                    self._watcher.skipped((topic, PARTITION), expected, found)


@asynccontextmanager
async def open_reader(
    path: Path,
    topics: Sequence[str],
    *,
    group: str | None = None,
    start: Start = "earliest",
    keys: Keys | None = None,
    watcher: Watcher | None = None,
) -> AsyncIterator[JournalReader]:
    """Read topics of the journal below ``path``; with ``keys``, the records of these alone.

    A group goes on behind what it has committed; ``start`` is for where nothing was.
    """
    reader = JournalReader(journal_folder(path), topics, group, start, keys, watcher)
    try:
        yield reader
    finally:
        await reader.close()


def _go_behind(cursor: "Cursor", topic: str, start: Behind) -> None:
    position = start.positions.get((topic, PARTITION))
    if position is not None:
        cursor.after = position
    elif topic in start.since_ms:
        cursor.go_to_time(start.since_ms[topic])


def _is_compacted(topic: str) -> bool:
    known = TOPICS.get(topic)
    return known is not None and known.compacted


class Cursor:
    """A place in one topic, moving from segment to segment. Used by one thread at a time."""

    def __init__(self, folder: Path, keys: Collection[bytes] | None = None) -> None:
        self._folder = folder
        self._keys = keys
        self.after = 0
        self._path: Path | None = None
        self._segment: Segment | None = None
        #: The file that was opened last, and the damaged one that has nothing more for us.
        self._inode = self._spent = 0
        #: Where what was to come next, the first, had gone, and reading went on at the second.
        self.skipped: deque[tuple[int, int]] = deque(maxlen=100)

    def read(self, topic: str, limit: int, max_bytes: int) -> list[StoredRecord]:
        """What comes next, as far as one file goes; empty if there is nothing, or not now."""
        try:
            while self._path is not None or self._begin():
                assert self._path is not None
                # Asked before reading: what has a successor takes no more.
                following = next((p for p in segment_paths(self._folder) if p > self._path), None)
                found = self._read_here(topic, limit, max_bytes)
                if found:
                    self.after = found[-1].position
                    return found
                if following is None:
                    return []
                if not self._replaced():
                    self._go(following)
        except NOT_NOW:
            self.close()  # the next look finds its way
        return []

    def at_end(self) -> bool:
        """Whether nothing that can be read is left; False also where nobody knows."""
        for path in self._ahead():
            try:
                with closing(Segment(path)) as segment:
                    segment.keys = self._keys
                    if segment.read("", self.after, 1):
                        return False
            except CORRUPT:
                continue
            except NOT_NOW:
                return False  # who asks will ask again
        return True

    def last(self) -> int:
        """Position of the last record; what has been read, where that cannot be found out."""
        for path in segment_paths(self._folder)[-1:]:
            with suppress(*CORRUPT, *NOT_NOW), closing(Segment(path)) as segment:
                return max(self.after, segment.last())
        return self.after

    def go_to_end(self) -> None:
        for path in segment_paths(self._folder)[-1:]:
            self.after = first_position(path) - 1
            with suppress(*CORRUPT), closing(Segment(path)) as segment:
                self.after = segment.last()

    def go_to_time(self, since_ms: int) -> None:
        """To the beginning of the segment in which, or before which, that time lies."""
        for path in reversed(segment_paths(self._folder)):
            with suppress(*CORRUPT, *NOT_NOW), closing(Segment(path)) as segment:
                first = segment.read("", 0, 1)
                if first and first[0].written_ms < since_ms:
                    self.after = first_position(path) - 1
                    return

    @property
    def damaged(self) -> Path | None:
        """The file that is being read, if some of it cannot be."""
        return self._path if self._segment is not None and self._segment.damaged else None

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
        self._path = self._segment = None

    def _begin(self) -> bool:
        for path in self._ahead()[:1]:
            self._go(path)
        return self._path is not None

    def _go(self, path: Path) -> None:
        self.close()
        self._path = path
        expected, found = self.after + 1, first_position(path)
        # Behind a file that the disk failed positions go on that much further.
        if 1 < expected < found and found - self.after != SAFE_JUMP:
            self.skipped.append((expected, found))
        self.after = max(self.after, found - 1)

    def _ahead(self) -> list[Path]:
        """The segments that may hold something behind us."""
        paths = segment_paths(self._folder)
        return paths[sum(first_position(path) <= self.after + 1 for path in paths[1:]) :]

    def _read_here(self, topic: str, limit: int, max_bytes: int) -> list[StoredRecord]:
        assert self._path is not None
        if self._segment is None:
            self._inode = self._path.stat().st_ino
            if self._inode == self._spent:
                return []
            try:
                self._segment = Segment(self._path)
                self._segment.keys = self._keys
            except CORRUPT:
                self._give_up(topic, self._path)
                return []
        found = self._segment.read(topic, self.after, limit, max_bytes)
        if self._segment.damaged and not found:
            self._give_up(topic, self._path)
        return found

    def _give_up(self, topic: str, path: Path) -> None:
        log.error("segment_unreadable", topic=topic, file=path.name)
        self.close()
        self._path, self._spent = path, self._inode

    def _replaced(self) -> bool:
        """Whether what was saved of a damaged file has taken its place."""
        assert self._path is not None
        return self._segment is None and self._path.stat().st_ino != self._spent


class _Group:
    """What a consumer group has read, and which topics this member reads."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        self._locks: dict[str, int] = {}
        self._db = apsw.Connection(str(folder / "commits.sqlite"))
        self._db.set_busy_timeout(5000)
        self._db.pragma("journal_mode", "wal")
        self._db.pragma("synchronous", "full")
        self._db.execute(
            "create table if not exists commits"
            " (topic text primary key, position integer not null) strict"
        )

    def own(self, topic: str) -> bool:
        """Whether we are the member that reads this topic; asks for it if nobody is."""
        if topic in self._locks:
            return True
        descriptor = os.open(self._folder / f"{topic}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks[topic] = descriptor
        return True

    def committed(self, topic: str) -> int | None:
        found = self._db.execute("select position from commits where topic = ?", (topic,)).get
        return None if found is None else int(found)

    def commit(self, positions: Mapping[str, int]) -> None:
        with self._db:
            self._db.executemany(
                "insert into commits values (?, ?) on conflict (topic)"
                " do update set position = max(position, excluded.position)",
                list(positions.items()),
            )

    def close(self) -> None:
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._db.close()
