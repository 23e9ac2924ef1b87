"""Reading topics of a cluster: from a place onwards, or as a member of a group."""

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.structs import ConsumerRecord

from ingest.errors import ConfigError
from ingest.eventlog.log import (
    Behind,
    Keys,
    LostError,
    Place,
    Start,
    StoredRecord,
    Watcher,
)
from ingest.eventlog.producer import close_client, partition_of
from ingest.rejects import group_of
from schemas.topics import partition_key

log = structlog.get_logger()

_FETCH = 500

#: One look, in seconds; a fetch that waits longer looks again.
_LOOK_S = 0.5

#: What a member has been handed and not committed may end before its partitions go to another.
_GRACE_S = 5.0

_ENDLESS_MS = 2**31 - 1

#: Reaching the cluster; and what leaving it may take.
_OPEN_S, _CLOSE_S = 15.0, 5.0


class KafkaReader:
    """Reader of topics; with a group, one of several that share their partitions.

    Use `open_kafka_reader`.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        prefix: str,
        start: Start,
        watcher: Watcher | None = None,
    ) -> None:
        self._consumer = consumer
        self._prefix = prefix
        self._start = start
        self._watcher = watcher
        #: Counts how often partitions were taken from us.
        self._epoch = 0
        #: Those of which is settled where reading begins.
        self._placed: set[TopicPartition] = set()
        self._placing = asyncio.Lock()
        self._looking: asyncio.Task[tuple[int, list[StoredRecord]]] | None = None
        #: Offset behind what was handed out, and behind what is committed.
        self._handed: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._progress = asyncio.Event()

    async def fetch(self, wait_s: float) -> Sequence[StoredRecord]:
        until = time.monotonic() + wait_s
        while True:
            if self._looking is None:
                self._looking = asyncio.create_task(self._look(max(0.0, until - time.monotonic())))
            # Whoever gives up leaves the look, and what it finds, to the next who fetches.
            await asyncio.wait([self._looking], timeout=max(0.01, until - time.monotonic()))
            if not self._looking.done():
                return []
            looked, self._looking = self._looking, None
            epoch, found = looked.result()
            if epoch != self._epoch:
                found = []  # whoever has the partitions now gets them, be it us
            if found or time.monotonic() >= until:
                return self._hand_out(found)

    async def commit(self, stored: Sequence[StoredRecord]) -> None:
        offsets: dict[TopicPartition, int] = {}
        for record in stored:
            place = TopicPartition(self._prefix + record.topic, record.partition)
            offsets[place] = max(record.position + 1, offsets.get(place, 0))
        forward = {
            place: offset
            for place, offset in offsets.items()
            if offset > self._committed.get(place, 0)
        }
        if not forward:
            return
        try:
            await self._consumer.commit(forward)
        except (CommitFailedError, IllegalStateError) as error:
            raise LostError from error
        self._committed |= forward
        self._progress.set()

    async def caught_up(self) -> bool:
        if self._looking is not None:
            await asyncio.wait([self._looking])
            if self._looking.result()[1]:
                return False
        places = self._consumer.assignment()
        ends = await self._consumer.end_offsets(places) if places else {}
        for place, end in ends.items():
            if await self._consumer.position(place) < end:
                return False
        return bool(places)

    async def behind(self) -> Collection[Place]:
        left: set[Place] = set()
        if self._looking is not None:
            await asyncio.wait([self._looking])
            left |= {(record.topic, record.partition) for record in self._looking.result()[1]}
        places = self._consumer.assignment()
        ends = await self._consumer.end_offsets(places) if places else {}
        for place, end in ends.items():
            if await self._consumer.position(place) < end:
                left.add(self._place(place))
        return left

    def hold(self, places: Collection[Place]) -> None:
        held = {TopicPartition(self._prefix + topic, number) for topic, number in places}
        assigned = self._consumer.assignment()
        self._consumer.resume(*(self._consumer.paused() - held))
        self._consumer.pause(*(assigned & held))

    async def close(self) -> None:
        self._handed.clear()
        self._progress.set()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await close_consumer(self._consumer)

    async def left(self) -> Mapping[Place, range]:
        places = self._consumer.assignment()
        ends = await self._consumer.end_offsets(places) if places else {}
        found: dict[Place, range] = {}
        for place, end in ends.items():
            with suppress(IllegalStateError):  # it was revoked meanwhile
                found[self._place(place)] = range(await self._consumer.position(place), end)
        return found

    async def begin(self, places: Iterable[TopicPartition]) -> None:
        """Go to where the start says."""
        # All at once: asked one by one, as many partitions as we have take many seconds.
        consumer = self._consumer
        find = consumer.end_offsets if self._start == "latest" else consumer.beginning_offsets
        offsets = dict(await find(list(places)))
        if isinstance(self._start, Behind):
            offsets |= await self._offsets_behind(self._start, list(offsets))
        for place, offset in offsets.items():
            consumer.seek(place, offset)

    async def _offsets_behind(
        self, start: Behind, places: Iterable[TopicPartition]
    ) -> dict[TopicPartition, int]:
        offsets, times = {}, {}
        for place in places:
            ours = self._place(place)
            if ours in start.positions:
                offsets[place] = start.positions[ours] + 1
            elif ours[0] in start.since_ms:
                times[place] = start.since_ms[ours[0]]
        if times:
            ends = await self._consumer.end_offsets(list(times))
            for place, found in (await self._consumer.offsets_for_times(times)).items():
                offsets[place] = ends[place] if found is None else found.offset
        return offsets

    def _place(self, place: TopicPartition) -> Place:
        return place.topic.removeprefix(self._prefix), place.partition

    async def take_up(self, places: Iterable[TopicPartition]) -> None:
        """Go on with partitions that are this member's now, behind what the group has committed."""
        async with self._placing:
            new = []
            for place in places:
                if place in self._placed:
                    continue
                committed = await self._consumer.committed(place)
                self._committed[place] = committed or 0
                self._placed.add(place)
                if committed is None:
                    new.append(place)
            if new:
                await self.begin(new)
                if self._watcher is not None and self._start == "latest":
                    # Where it has begun it goes on, also if nothing comes before it ends.
                    begun = {place: await self._consumer.position(place) for place in new}
                    await self._consumer.commit(begun)

    async def let_go(self, places: Iterable[TopicPartition]) -> None:
        """Return once what was handed out of these is committed, or after five seconds.

        Who watches decides instead.
        """
        self._epoch += 1
        leaving = set(places)
        if self._watcher is not None:
            # Whoever is no member any more has no generation.
            lost = self._consumer._coordinator.generation < 0  # noqa: SLF001
            await self._watcher.revoked({self._place(place) for place in leaving}, lost=lost)
        else:
            await self._committed_all(leaving)
        self._placed.clear()
        for place in leaving:
            self._handed.pop(place, None)
            self._committed.pop(place, None)

    async def _committed_all(self, places: Collection[TopicPartition]) -> None:
        until = time.monotonic() + _GRACE_S
        while any(self._handed.get(place, 0) > self._committed.get(place, 0) for place in places):
            self._progress.clear()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._progress.wait()
            except TimeoutError:
                break

    async def _look(self, wait_s: float) -> tuple[int, list[StoredRecord]]:
        timeout_ms = int(min(wait_s, _LOOK_S) * 1000)
        try:
            found = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=_FETCH)
        except NoOffsetForPartitionError as error:  # it was quicker than we with a new partition
            await self.take_up(error.args)
            return self._epoch, []
        except OffsetOutOfRangeError as error:
            for place, offset in error.args[0].items():
                await self._pass_over(place, offset)
            return self._epoch, []
        # While partitions are shared out anew nothing is found: this is of the present epoch.
        return self._epoch, self._merged(found)

    def _merged(
        self, found: Mapping[TopicPartition, Sequence["ConsumerRecord[bytes | None, bytes | None]"]]
    ) -> list[StoredRecord]:
        """Each partition in its order; unless somebody watches, as they were written."""
        lists = [
            [stored_record(record, self._prefix) for record in records]
            for records in found.values()
        ]
        if self._watcher is not None:  # it handles them side by side
            return list(chain.from_iterable(lists))
        return list(heapq.merge(*lists, key=lambda record: record.written_ms))

    async def _pass_over(self, place: TopicPartition, offset: int) -> None:
        """Go on with what is left of a partition of which ``offset`` is not there any more."""
        assert self._watcher is not None
        try:
            if await self._consumer.position(place) != offset:
                return  # it was told twice
            found = (await self._consumer.beginning_offsets([place]))[place]
            if await self._consumer.position(place) == offset:
                self._consumer.seek(place, found)
                self._watcher.skipped(self._place(place), offset, found)
        except IllegalStateError:
            return  # it was revoked meanwhile

    def _hand_out(self, found: Sequence[StoredRecord]) -> Sequence[StoredRecord]:
        if self._watcher is None:  # who watches knows what is under way
            for record in found:
                place = TopicPartition(self._prefix + record.topic, record.partition)
                self._handed[place] = record.position + 1
        return found


async def close_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave its group and close its connections, whatever has failed; within some seconds."""
    task = asyncio.current_task()
    assert task is not None
    # A group of tasks of which one has failed may have left its mark, too.
    cancelled = task.cancelling()
    try:
        async with asyncio.timeout(_CLOSE_S):
            await consumer.stop()
    except (TimeoutError, KafkaError, asyncio.CancelledError) as error:
        # It may tell of its own requests, which it has cancelled, as if it were ourselves; and it
        # leaves everything as it is then.
        await _abandon(consumer)
        if task.cancelling() > cancelled:
            raise
        log.warning("reader_not_closed", error=type(error).__name__)


async def _abandon(consumer: AIOKafkaConsumer) -> None:
    """Close its connections, whatever has failed, once nobody is left who would open new ones."""
    at = consumer._coordinator, consumer._fetcher  # noqa: SLF001 - they cannot be had otherwise
    names = ("coordination", "heartbeat", "commit_refresh", "reset_committed", "fetch")
    found = [getattr(each, f"_{name}_task", None) for each in at for name in names]
    found += getattr(consumer._fetcher, "_pending_tasks", ())  # noqa: SLF001
    tasks = [task for task in found if task is not None]
    for task in tasks:
        task.cancel()
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await asyncio.gather(*tasks, return_exceptions=True)
    await close_client(consumer._client)  # noqa: SLF001


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, reader: KafkaReader) -> None:
        self._reader = reader

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._reader.let_go(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._reader.take_up(assigned)


@asynccontextmanager
async def open_kafka_reader(
    options: Mapping[str, Any],
    prefix: str,
    topics: Sequence[str],
    *,
    group: str | None = None,
    start: Start = "earliest",
    keys: Keys | None = None,
    watcher: Watcher | None = None,
) -> AsyncIterator[KafkaReader]:
    """Read topics, named without ``prefix``; ``options``: of aiokafka's client.

    With ``keys``, the partitions of these alone.

    A group goes on behind what it has committed; ``start`` is for where nothing was. Where what
    comes next has been deleted meanwhile, it is what is left. Raises ConfigError if the cluster
    cannot be reached, or has none of the topics.
    """
    try:
        async with asyncio.timeout(_OPEN_S):
            partitions = await find_partitions(options, prefix, topics)
    except (KafkaError, TimeoutError, OSError) as error:
        raise unreadable(options["bootstrap_servers"], error) from None
    if keys is not None:
        partitions = _those_of(keys, partitions, prefix)
    consumer = AIOKafkaConsumer(
        **options,
        group_id=group and f"{prefix}{group}",
        enable_auto_commit=False,
        # Never skip what is there; who watches is told what is not.
        auto_offset_reset="earliest" if watcher is None else "none",
        max_partition_fetch_bytes=8 * 1024 * 1024,
        # Whoever has enough to do with what was fetched stays a member all the same.
        max_poll_interval_ms=_ENDLESS_MS if watcher else 300_000,
        # Who comes waits for all to hear of it, and meanwhile nobody gets anything.
        heartbeat_interval_ms=1_000 if watcher else 3_000,
        # Partitions that were added, and a topic that was made anew, are noticed within a minute.
        metadata_max_age_ms=60_000,
    )
    reader = KafkaReader(consumer, prefix, start, watcher)
    try:
        if group is None:
            consumer.assign(partitions)
        else:
            consumer.subscribe({place.topic for place in partitions}, listener=_Listener(reader))
        await consumer.start()
        if group is None:
            await reader.begin(partitions)
        yield reader
    finally:
        await reader.close()


def unreadable(servers: Iterable[str], error: Exception) -> ConfigError:
    """What is said if the cluster does not answer."""
    return ConfigError(
        f"kafka.bootstrap_servers: {', '.join(servers)} cannot be read "
        f"({type(error).__name__}): `dialstream doctor` says more"
    )


def _those_of(
    keys: Keys, partitions: Sequence[TopicPartition], prefix: str
) -> list[TopicPartition]:
    """The partitions in which records of these keys are."""
    counts = Counter(place.topic for place in partitions)
    wanted = {
        TopicPartition(prefix + topic, partition_of(partition_key(topic, key), count))
        for topic, its_keys in keys.items()
        if (count := counts[prefix + topic])
        for key in its_keys
    }
    return [place for place in partitions if place in wanted]


def stored_record(
    record: "ConsumerRecord[bytes | None, bytes | None]", prefix: str
) -> StoredRecord:
    """A record as a reader gives it."""
    return StoredRecord(
        record.topic.removeprefix(prefix),
        record.partition,
        record.offset,
        record.timestamp,
        record.key or b"",
        record.value,
        tuple(record.headers),
    )


async def find_partitions(
    options: Mapping[str, Any], prefix: str, topics: Sequence[str]
) -> list[TopicPartition]:
    """Those of the topics that there are: asked for by name, a broker might make the others.

    ``topics``: without ``prefix``. Raises ConfigError if there are none of them, and whatever
    aiokafka raises.
    """
    client = AIOKafkaClient(**options)
    try:
        await client.bootstrap()
        cluster = await client.fetch_all_metadata()
    finally:
        await close_client(client)
    found = cluster.topics()
    missing = [topic for topic in topics if prefix + topic not in found]
    if len(missing) == len(topics):
        raise no_topic(prefix, missing)
    if missing:
        log.warning("topics_missing", topics=[prefix + topic for topic in missing])
    return [
        TopicPartition(name, partition)
        for name in (prefix + topic for topic in topics)
        for partition in sorted(cluster.partitions_for_topic(name) or ())
    ]


def no_topic(prefix: str, missing: Sequence[str]) -> ConfigError:
    """What is said if these are not there, named without ``prefix``."""
    names = ", ".join(prefix + topic for topic in missing[:3]) + (", …" if missing[3:] else "")
    group = next(filter(None, map(group_of, missing)), None)
    create = "topics create" if group is None else f"topics create --group {group}"
    return ConfigError(
        f"kafka: there is no topic {names}: run `dialstream {create}`, or set kafka.topic_prefix "
        "to the one that it has been run with"
    )
