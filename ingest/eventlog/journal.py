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
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import apsw
import structlog

from ingest.errors import PublishError
from ingest.eventlog.lanes import Group, Lane, Room
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.segments import CORRUPT, Segment, first_position, segment_paths
from ingest.eventlog.topic import SEGMENT_BYTES, TopicWriter, disk_full
from ingest.metrics import COMMIT_SECONDS
from ingest.metrics import QUEUE_BYTES as METRIC_QUEUE_BYTES
from schemas.topics import TOPICS

log = structlog.get_logger()

#: What may wait for the disk.
QUEUE_BYTES = 64 * 1024 * 1024

#: A disk that takes longer than this for its slowest commits is named in `degraded`.
SLOW_COMMIT_S = 0.5

BELIEVED_S = 5.0


def journal_folder(path: Path) -> Path:
    return path / "journal"


class JournalPublisher:
    """Publisher on a folder. Use `open_journal`."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._room = Room(QUEUE_BYTES)
        # A thread a topic: one topic's slow disk flush is not another's.
        self._threads = ThreadPoolExecutor(len(TOPICS), "journal")
        self._writers: dict[str, TopicWriter] = {}
        self._lanes: dict[str, Lane] = {}
        self._recent_commits_s: deque[float] = deque(maxlen=100)
        METRIC_QUEUE_BYTES.set_function(lambda: self._room.used)
        self._refused: tuple[str, float] | None = None

    def publish(self, records: Sequence[Record]) -> Group:
        topic = records[0].topic
        lane = self._lanes.get(topic) or self._open_lane(topic)
        return lane.append(records)

    def degraded(self) -> Sequence[str]:
        slow = sorted(self._recent_commits_s)
        # p99 of the last hundred is the second largest
        return ["disk_slow"] if len(slow) > 1 and slow[-2] > SLOW_COMMIT_S else []

    def refusing(self) -> str | None:
        if disk_full(self._folder):
            return "disk_full"
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
        seconds = COMMIT_SECONDS.labels(topic)

        async def commit(records: Sequence[Record]) -> str:
            begun = time.perf_counter()
            try:
                await loop.run_in_executor(self._threads, writer.append, records)
            except PublishError as error:
                if self.refusing() != error.reason:
                    log.error("journal_refuses", topic=topic, reason=error.reason)
                self._refused = error.reason, time.monotonic()
                raise
            finally:
                taken = time.perf_counter() - begun
                self._recent_commits_s.append(taken)
                seconds.observe(taken)
            self._refused = None
            return "journal"

        lane = self._lanes[topic] = Lane(commit, self._room)
        return lane


@asynccontextmanager
async def open_journal(
    path: Path, segment_bytes: int = SEGMENT_BYTES
) -> AsyncIterator[JournalPublisher]:
    """The journal below ``path``, made if there is none; everything is written when it closes."""
    folder = journal_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
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
    _FETCH = 500

    def __init__(
        self,
        folder: Path,
        topics: Sequence[str],
        group: str | None,
        start: Literal["earliest", "latest"],
    ) -> None:
        self._cursors = {topic: _Cursor(folder / topic) for topic in topics}
        self._group = None if group is None else _Group(folder / "groups" / group)
        self._start = start
        self._placed: set[str] = set()

    async def fetch(self, wait_s: float) -> Sequence[StoredRecord]:
        until = time.monotonic() + wait_s
        pauses = iter(self._PAUSES_S)
        while True:
            found = await asyncio.to_thread(self._look)
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
        await asyncio.to_thread(self._group.commit, positions)

    async def caught_up(self) -> bool:
        return await asyncio.to_thread(lambda: all(c.at_end() for c in self._cursors.values()))

    def close(self) -> None:
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
                self._placed.add(topic)
                committed = self._group and self._group.committed(topic)
                if committed:
                    cursor.after = committed
                elif self._start == "latest":
                    cursor.go_to_end()
            found.append(cursor.read(topic, self._FETCH))
        # Topics side by side as they were written, each in its own order whatever the clock does.
        return list(heapq.merge(*found, key=lambda record: record.written_ms))


@asynccontextmanager
async def open_reader(
    path: Path,
    topics: Sequence[str],
    *,
    group: str | None = None,
    start: Literal["earliest", "latest"] = "earliest",
) -> AsyncIterator[JournalReader]:
    """Read topics of the journal below ``path``.

    A group goes on behind what it has committed; ``start`` is for where nothing was.
    """
    reader = JournalReader(journal_folder(path), topics, group, start)
    try:
        yield reader
    finally:
        reader.close()


class _Cursor:
    """A place in one topic, moving from segment to segment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.after = 0
        self._segment: Segment | None = None

    def read(self, topic: str, limit: int) -> list[StoredRecord]:
        try:
            while self._segment is not None or self._enter():
                found = self._read_here(topic, limit)
                if found is not None:
                    return found
        except (apsw.BusyError, apsw.CantOpenError):
            pass  # retention or a checkpoint was quicker; the next look finds its way
        return []

    def _read_here(self, topic: str, limit: int) -> list[StoredRecord] | None:
        """What there is in this segment; None once there never will be any more."""
        segment = self._segment
        assert segment is not None
        following = self._next(segment)
        try:
            # Asked before reading: what was over then and has nothing left is behind us.
            over = following is not None or segment.sealed
            found = segment.read(topic, self.after, limit)
        except CORRUPT:
            log.error("segment_unreadable", topic=topic, file=segment.path.name)
            over, found = True, []
        if found:
            self.after = found[-1].position
            return found
        if not over or following is None:
            return []
        self.close()
        self.after = max(self.after, first_position(following) - 1)
        self._segment = Segment(following)
        return None

    def at_end(self) -> bool:
        paths = segment_paths(self._folder)
        if not paths:
            return True
        if self._segment is None and not self._enter():
            return True
        assert self._segment is not None
        return self._segment.path == paths[-1] and self._segment.last() <= self.after

    def go_to_end(self) -> None:
        paths = segment_paths(self._folder)
        if paths:
            self._segment = Segment(paths[-1])
            self.after = self._segment.last()

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _enter(self) -> bool:
        """Open the segment that holds the next record; the first one if that has expired."""
        paths = segment_paths(self._folder)
        if not paths:
            return False
        holding = [path for path in paths if first_position(path) <= self.after + 1]
        self._segment = Segment(holding[-1] if holding else paths[0])
        return True

    def _next(self, segment: Segment) -> Path | None:
        later = (p for p in segment_paths(self._folder) if first_position(p) > segment.first)
        return next(later, None)


class _Group:
    """What a consumer group has read, and which topics this member reads."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
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

    def committed(self, topic: str) -> int:
        found = self._db.execute("select position from commits where topic = ?", (topic,)).get
        return int(found or 0)

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
