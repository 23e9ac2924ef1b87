"""An event log in memory, by a clock that is given to it. It keeps what may still be read."""

import asyncio
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from zlib import crc32

from ingest.eventlog.log import Behind, Place, Reader, Record, StoredRecord
from tests.faults.fast import Durable

#: Topics of which somebody reads again what was written before, in so many partitions.
KEPT = {"calls": 4, "checkpoints": 2, "directory": 2}

#: Who lies behind reads so many records of one partition, and that takes so long: others have run
#: ahead when he looks at what there is to do.
_AT_A_TIME, _TAKES_S = 200, 10.0

_TRIM_AT = 5_000

Listener = Callable[[StoredRecord], None]


class MemoryLog:
    """Records of one key stand in one partition, in the order in which they were handed over."""

    def __init__(self, now_ms: Callable[[], int], keep_ms: int) -> None:
        """``keep_ms``: how old what may still be read is at most; the directory lasts."""
        self._now_ms = now_ms
        self._keep_ms = keep_ms
        self.partitions = {
            (topic, nth): _Partition() for topic, count in KEPT.items() for nth in range(count)
        }
        #: Called with each record of a topic, as it is written.
        self.listeners: defaultdict[str, list[Listener]] = defaultdict(list)
        self.written = 0

    def spools(self, topic: str) -> bool:
        return False

    def publish(self, records: Sequence[Record]) -> Durable:
        for record in records:
            self._write(record)
        return Durable()

    def _write(self, record: Record) -> None:
        nth = crc32(record.key) % KEPT.get(record.topic, 1)
        partition = self.partitions.get((record.topic, nth))
        now_ms = self._now_ms()
        stored = StoredRecord(
            topic=record.topic,
            partition=nth,
            position=-1 if partition is None else partition.end,
            written_ms=now_ms,
            key=record.key,
            # A copy: what JSON is written to holds several times as much as there is in it.
            value=None if record.value is None else bytes(memoryview(record.value)),
            headers=record.headers,
        )
        self.written += 1
        if partition is not None:
            partition.records.append(stored)
            if record.topic != "directory" and len(partition.records) % _TRIM_AT == 0:
                partition.trim(now_ms - self._keep_ms)
        for listener in self.listeners[record.topic]:
            listener(stored)

    @asynccontextmanager
    async def open_reader(self, topics: Sequence[str], start: Behind) -> AsyncIterator[Reader]:
        yield MemoryReader(
            {place: each for place, each in self.partitions.items() if place[0] in topics}, start
        )


class _Partition:
    def __init__(self) -> None:
        self.first = 0
        self.records: list[StoredRecord] = []

    @property
    def end(self) -> int:
        """The position of the next one."""
        return self.first + len(self.records)

    def since(self, at_ms: int) -> int:
        """The position of the first that was written then or later."""
        return self.first + bisect_left(self.records, at_ms, key=lambda each: each.written_ms)

    def trim(self, before_ms: int) -> None:
        count = self.since(before_ms) - self.first
        del self.records[:count]
        self.first += count


class MemoryReader:
    """Hands out what there is, partition by partition, each in its order."""

    def __init__(self, partitions: dict[Place, _Partition], start: Behind) -> None:
        self._partitions = partitions
        self._held: Collection[Place] = ()
        self._turns = list(partitions)
        self._next: dict[Place, int] = {}
        for place, partition in partitions.items():
            position, since_ms = start.positions.get(place), start.since_ms.get(place[0])
            if position is not None:
                self._next[place] = position + 1
            else:
                self._next[place] = (
                    partition.first if since_ms is None else partition.since(since_ms)
                )

    async def fetch(self, wait_s: float) -> Sequence[StoredRecord]:
        left = {place: each.end - self._next[place] for place, each in self._readable()}
        is_behind = sum(left.values()) > _AT_A_TIME
        await asyncio.sleep(_TAKES_S if is_behind else wait_s)
        places = list(left)
        if is_behind:  # the one that was not read for longest
            places = [place for place in self._turns if left.get(place)][:1]
            self._turns.remove(places[0])
            self._turns += places
        return [stored for place in places for stored in self._take(place)]

    def _take(self, place: Place) -> Sequence[StoredRecord]:
        partition = self._partitions[place]
        at = self._next[place] - partition.first
        assert at >= 0, "it was not kept for as long as it was needed"
        found = partition.records[at : at + _AT_A_TIME]
        self._next[place] += len(found)
        return found

    def _readable(self) -> Iterator[tuple[Place, _Partition]]:
        return (each for each in self._partitions.items() if each[0] not in self._held)

    async def commit(self, stored: Sequence[StoredRecord]) -> None:
        raise NotImplementedError

    async def caught_up(self) -> bool:
        return not await self.behind()

    async def behind(self) -> Collection[Place]:
        return [place for place, each in self._partitions.items() if self._next[place] < each.end]

    def hold(self, places: Collection[Place]) -> None:
        self._held = frozenset(places)
