"""The event log on Kafka: a lane for each topic, with the spool beside it.

    publish ─► waiting ─► in flight ─► Kafka            direct
                  └──────────┴───────► spool ─► Kafka   when Kafka takes longer than it may

`ingest.eventlog.switch` decides which way, `KafkaLane` walks it, `Connection` keeps a producer.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import structlog
from aiokafka.client import AIOKafkaClient

from ingest.errors import PublishError
from ingest.eventlog.journal import BELIEVED_S
from ingest.eventlog.lanes import Group, Room, add_to, size_of
from ingest.eventlog.log import Record, records_of
from ingest.eventlog.producer import PROBE_S, AnyRecord, BrokenError, Producer, Refusal
from ingest.eventlog.spool import READ_RECORDS, Spool
from ingest.eventlog.switch import Switch
from ingest.metrics import COMMIT_SECONDS, DRAINED, KAFKA_CONNECTED, KAFKA_REBUILDS, SPOOL, SPOOLED
from ingest.rejects import group_of, reject_event
from schemas.event import Event
from schemas.times import now_ms
from schemas.topics import TOPIC_OF, TOPICS

log = structlog.get_logger()

#: What may wait for Kafka.
QUEUE_BYTES = 64 * 1024 * 1024

#: What is taken off the spool at a time: little, so that live traffic gets its turn.
CHUNK_BYTES = 256 * 1024

#: Draining pauses while live records take longer than this to become durable, in seconds,
LIVE_S = 0.02
#: but not for longer than this with each chunk, so that it ends on a slow disk, too.
_GIVE_WAY_S = 0.1

#: When the spool is nearly empty, new records wait for so long for it to be, in seconds.
_HOLD_S = 0.5

#: Between two producers, and two tries to get one.
_REBUILD_S = 5.0
_CONNECT_S = (0.5, 1.0, 2.0, 5.0)

#: Of a record that Kafka refuses for its size, so much is kept.
_KEPT_BYTES = 64 * 1024

#: A spool that will be full sooner than this is no reason to be called ready.
_MINUTES_LEFT = 1.0

_MEASURE_S = 5.0

#: Asking for the configuration of topics.
_LOOK_S = 15.0


class KafkaPublisher:
    """Publisher on a cluster. Use `open_kafka`."""

    def __init__(
        self,
        spool: Spool,
        connection: "Connection",
        *,
        prefix: str,
        publish_timeout_s: float,
    ) -> None:
        self.spool = spool
        self.connection = connection
        self.prefix = prefix
        self.publish_timeout_s = publish_timeout_s
        self.room = Room(QUEUE_BYTES)
        self.pace = Pace()
        self._lanes: dict[str, KafkaLane] = {}

    async def open_lanes(self, also: Sequence[str]) -> None:
        """Begin to drain what earlier runs have left. ``also``: topics beside `TOPICS`."""
        left = {path.name for path in self.spool.folder.iterdir() if path.is_dir()}
        for topic in [*TOPICS, *sorted((left | {*also}) - TOPICS.keys())]:
            await asyncio.to_thread(self.spool.open, topic)
            self._open_lane(topic)

    def publish(self, records: Sequence[Record]) -> Group:
        return self._lanes[records[0].topic].publish(records)

    def spools(self, topic: str) -> bool:
        return self._lanes[topic].spooled

    def degraded(self) -> Sequence[str]:
        found = [] if self.connection.connected else ["kafka_unreachable"]
        found += [f"spooled:{lane.topic}:{lane.why}" for lane in self._spooled()]
        found += [f"min_insync_replicas:{topic}" for topic in self.connection.weak_topics]
        return [*found, *self.spool.journal.degraded()]

    def refusing(self) -> str | None:
        spooled = bool(self._spooled())
        refused = next(filter(None, (lane.refusing for lane in self._lanes.values())), None)
        if refused is not None:
            return refused
        if self.connection.connected and not spooled:
            return None
        if self.spool.full():
            return "spool_full"
        if spooled and self.spool.minutes_left() < _MINUTES_LEFT:
            return "spool_nearly_full"
        return self.spool.journal.refusing()

    def reconnect(self) -> None:
        self.connection.end("settings")

    @property
    def queued_bytes(self) -> int:
        return self.room.used + self.spool.journal.queued_bytes

    async def close(self) -> None:
        """Bring what was handed over to Kafka, or to the spool where Kafka takes too long."""
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        for lane in self._lanes.values():
            await self.spool.tidy(lane.topic, empty=False)

    def _spooled(self) -> list["KafkaLane"]:
        return [lane for lane in self._lanes.values() if lane.spooled]

    def _open_lane(self, topic: str) -> None:
        self._lanes[topic] = KafkaLane(topic, self)


class KafkaLane:
    """The way of one topic's records to Kafka: one task, which has one group under way."""

    def __init__(self, topic: str, publisher: KafkaPublisher) -> None:
        self.topic = topic
        self._log = publisher
        self._spool = publisher.spool
        place = self._spool.places[topic]
        self._switch: Switch[Group] = Switch(stored_to=place.stored_to, drained_to=place.drained_to)
        self._loop = asyncio.get_running_loop()
        self._seconds = COMMIT_SECONDS.labels(topic, "kafka")
        self._spooled, self._drained = SPOOLED.labels(topic), DRAINED.labels(topic)
        #: What is in the way at the moment, or was when the spool took over.
        self.trouble = "draining"
        self._since = self._sent = self._loop.time()
        #: Something has come to the spool.
        self._appended = asyncio.Event()
        self._refused: tuple[str, float] | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        if self._switch.spooled:
            log.info("spool_found", topic=topic, records=place.records)
            self._go_on()

    @property
    def spooled(self) -> bool:
        return self._switch.spooled

    @property
    def refusing(self) -> str | None:
        """Why neither Kafka nor the spool took the last that came, if so.

        Believed for a while only: who is not ready gets nothing that could prove the contrary.
        """
        if self._refused is None or self._loop.time() - self._refused[1] > BELIEVED_S:
            return None
        return self._refused[0]

    @property
    def why(self) -> str:
        """Why the spool holds something, in a word."""
        silent_s = self._loop.time() - self._sent
        if self.trouble == "draining" and silent_s > self._log.publish_timeout_s:
            return "slow"
        return self.trouble

    def publish(self, records: Sequence[Record]) -> Group:
        """Hand over records; the group that they join is their receipt."""
        if self._switch.appends:
            self._switch.appending()
            try:
                return self._append(records)
            except PublishError as error:
                self._switch.appended(None)
                self._refused = error.reason, self._loop.time()
                raise
        size = size_of(records)
        self._log.room.take(size)
        group = add_to(self._switch.waiting, records, size, self._loop)
        self._go_on()
        return group

    async def close(self) -> None:
        """Return once Kafka or the spool has what was handed over; draining ends where it is."""
        self._closing = True
        under_way = [*self._switch.waiting]
        if self._switch.in_flight is not None:
            under_way.append(self._switch.in_flight)
        for group in under_way:
            with suppress(PublishError):
                await group.wait(math.inf)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _go_on(self) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        # No `await` between finding nothing to do and clearing `_task`: nothing can slip between.
        while True:
            try:
                if self._switch.spooled:
                    if self._closing:
                        break
                    await self._drain()
                elif (group := self._switch.next()) is not None:
                    await self._send(group)
                else:
                    break
            except BrokenError as error:
                self._give_up(error.reason)
            except Exception as fault:
                log.error("unexpected_error", exc_info=fault)
                self._give_up("internal")
                await asyncio.sleep(1)
        self._task = None

    async def _send(self, group: Group) -> None:
        """Stay with a group until Kafka has it, also after the spool has taken it over."""
        expires = self._loop.call_at(group.since + self._log.publish_timeout_s, self._expire, group)
        begun = time.perf_counter()
        self.trouble = "slow"  # until it is known better
        try:
            await self._deliver(group.records)
        finally:
            expires.cancel()
        if self._switch.acked(group):
            self._refused = None
            self._seconds.observe(time.perf_counter() - begun)
            self._settle(group, "kafka")

    def _expire(self, group: Group) -> None:
        if self._switch.in_flight is group:
            self._give_up(self.trouble)

    def _give_up(self, reason: str) -> None:
        """Move what is under way to the spool, in order, in this turn of the loop."""
        self.trouble = reason
        was_spooled = self._switch.spooled
        moved = self._switch.give_up()
        if moved and not was_spooled:
            self._since = self._loop.time()
            log.warning("spool_begun", topic=self.topic, reason=reason)
        for group in moved:
            try:
                receipt = self._append(group.records)
            except PublishError as error:
                self._switch.appended(None)
                self._refused = error.reason, self._loop.time()
                self._settle(group, "", error)
            else:
                receipt.then(math.inf, partial(self._settle, group, "spool"))

    def _append(self, records: Sequence[Record]) -> Group:
        told = partial(self._on_appended, len(records), self._loop.time())
        return self._spool.publish(records, told)

    def _on_appended(self, count: int, since: float, position: int | None) -> None:
        self._switch.appended(position)
        self._log.pace.note(self._loop.time() - since)
        if position is None:
            self._refused = self._spool.journal.refusing() or "spool_failed", self._loop.time()
        else:
            self._refused = None
            self._spooled.inc(count)
        self._appended.set()
        self._go_on()

    def _settle(self, group: Group, where: str, error: PublishError | None = None) -> None:
        self._log.room.give(group.size)
        self._log.pace.note(self._loop.time() - group.since)
        group.settle(where, error)

    async def _drain(self) -> None:
        """Take the next chunk off the spool, and go on once Kafka has it."""
        stored_to = self._switch.stored_to
        begun = self._sent = self._loop.time()
        chunk = await self._spool.read(self.topic, CHUNK_BYTES)
        if chunk:
            await self._deliver(chunk)
            is_rest = sum(map(_size, chunk)) < CHUNK_BYTES and len(chunk) < READ_RECORDS
            if is_rest and self._loop.time() - begun < _HOLD_S / 2:
                self._hold()
            self.trouble = "draining"
            self._drained.inc(len(chunk))
            position = chunk[-1].position
            self._spool.drained(self.topic, position, len(chunk))
            self._switch.drained(position)
        elif chunk is None:
            self._note("spool_unreadable")
            await asyncio.sleep(1)
            return
        elif stored_to > self._switch.drained_to:
            self._switch.exhausted(stored_to)
        else:  # what was appended is not there yet
            self._appended.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._appended.wait()
            return
        empty = not self._switch.spooled
        if empty:
            seconds = round(self._loop.time() - self._since, 1)
            log.info("spool_drained", topic=self.topic, seconds=seconds)
        await self._spool.tidy(self.topic, empty=empty)
        if not self._switch.holding:  # then live records wait for this to go on
            await self._log.pace.give_way()

    def _hold(self) -> None:
        """Let what comes wait for the rest of the spool, for a moment."""
        if not self._switch.holding:
            self._switch.hold()
            self._loop.call_later(_HOLD_S, self._end_hold)

    def _end_hold(self) -> None:
        if self._switch.holding:
            self._give_up(self.trouble)

    async def _deliver(self, records: Sequence[AnyRecord]) -> None:
        """Return once Kafka has all records, those that it refuses as rejects."""
        topic = self._log.prefix + self.topic
        refused = await self._log.connection.send(topic, records, self._note)
        while refused and (self.topic == TOPIC_OF["reject"] or group_of(self.topic) is not None):
            # There is no other place for them: they wait for somebody to mend the topic.
            self._note("refused")
            await asyncio.sleep(PROBE_S)
            left = [record for record, _ in refused]
            refused = await self._log.connection.send(topic, left, self._note)
        for record, reason in refused:
            await self._set_aside(record, reason)

    async def _set_aside(self, record: AnyRecord, reason: str) -> None:
        log.error("record_refused", topic=self.topic, reason=reason, size_bytes=_size(record))
        [reduced] = records_of(_reject(record, reason))
        while True:
            try:
                await self._log.publish([reduced]).wait(math.inf)
            except PublishError as error:
                self._note(error.reason)
                await asyncio.sleep(1)
            else:
                return

    def _note(self, trouble: str) -> None:
        self.trouble = trouble


class Connection:
    """Keeps a producer: makes a new one when it breaks, once in five seconds at most."""

    def __init__(
        self,
        options: Callable[[], Mapping[str, Any]],
        find_weak_topics: Callable[[AIOKafkaClient], Awaitable[Sequence[str]]],
    ) -> None:
        """``options``: of the client, secrets and certificates read anew each time.

        ``find_weak_topics``: those that promise less than the settings ask for.
        """
        self._options = options
        self._find_weak_topics = find_weak_topics
        self._producer: asyncio.Future[Producer] = asyncio.get_running_loop().create_future()
        self.weak_topics: Sequence[str] = ()
        KAFKA_CONNECTED.set_function(lambda: self.connected)

    @property
    def connected(self) -> bool:
        return self._producer.done()

    async def send(
        self, topic: str, records: Sequence[AnyRecord], note: Callable[[str], None]
    ) -> Sequence[Refusal]:
        """`Producer.send` of the producer that there is, or the next one there is."""
        if not self._producer.done():
            note("unreachable")
            await asyncio.shield(self._producer)
        return await self._producer.result().send(topic, records, note)

    def end(self, reason: str) -> None:
        """Give up the producer that there is, if any."""
        if self._producer.done():
            self._producer.result().end(reason)

    async def keep(self) -> None:
        """Run for as long as there is something to send."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    producer = await self._connect()
                    begun = time.monotonic()
                    self._producer.set_result(producer)
                    log.info("kafka_connected")
                    looking = tasks.create_task(self._look_at_topics(producer))
                    reason = await producer.broken
                    looking.cancel()
                    self._producer = asyncio.get_running_loop().create_future()
                    KAFKA_REBUILDS.labels(reason).inc()
                    log.warning("kafka_given_up", reason=reason)
                    tasks.create_task(producer.close())  # the next one need not wait for it
                    await asyncio.sleep(max(0.0, begun + _REBUILD_S - time.monotonic()))
        finally:
            if self._producer.done():
                await self._producer.result().close()

    async def _connect(self) -> Producer:
        pauses = iter(_CONNECT_S)
        said = None
        while True:
            fault: Exception
            try:
                producer = Producer(self._options())
                try:
                    await producer.start()
                except BaseException:
                    await producer.close()
                    raise
            except Exception as error:  # noqa: BLE001 - of whatever kind, it is tried again
                fault = error
            else:
                return producer
            word = fault.reason if isinstance(fault, BrokenError) else type(fault).__name__
            if said != word:  # once for each kind
                said = word
                log.error("kafka_unreachable", error=word)
            await asyncio.sleep(next(pauses, _CONNECT_S[-1]))

    async def _look_at_topics(self, producer: Producer) -> None:
        try:
            async with asyncio.timeout(_LOOK_S):
                self.weak_topics = await self._find_weak_topics(producer.client)
        except Exception as error:  # noqa: BLE001 - it is a warning less, no more
            log.warning("topics_not_checked", error=type(error).__name__)
            return
        if self.weak_topics:
            log.warning("topics_weak", topics=list(self.weak_topics))


class Pace:
    """How quickly live records become durable, for the drains to give way to them."""

    def __init__(self) -> None:
        self._slow_until = 0.0

    def note(self, seconds: float) -> None:
        """A live record became durable after so long."""
        if seconds > LIVE_S:
            self._slow_until = time.monotonic() + 2 * LIVE_S

    async def give_way(self) -> None:
        """Return once live records are quick again, or after a moment."""
        until = time.monotonic() + _GIVE_WAY_S
        while time.monotonic() < min(until, self._slow_until):  # noqa: ASYNC110 - that is a time
            await asyncio.sleep(LIVE_S / 2)


@asynccontextmanager
async def open_kafka(
    spool_folder: Path,
    *,
    options: Callable[[], Mapping[str, Any]],
    find_weak_topics: Callable[[AIOKafkaClient], Awaitable[Sequence[str]]],
    prefix: str,
    publish_timeout_s: float,
    spool_max_bytes: int,
    also: Sequence[str] = (),
) -> AsyncIterator[KafkaPublisher]:
    """A publisher on a cluster that need not be there yet, with its spool in ``spool_folder``.

    ``also``: topics that are written beside `TOPICS`. What was handed over is on Kafka or in the
    spool when it closes.
    """
    spool = Spool(spool_folder, spool_max_bytes)
    connection = Connection(options, find_weak_topics)
    publisher = KafkaPublisher(
        spool, connection, prefix=prefix, publish_timeout_s=publish_timeout_s
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(connection.keep()), tasks.create_task(_measure(spool))]
            try:
                await publisher.open_lanes(also)
                SPOOL.watch(spool)
                yield publisher
            finally:
                await publisher.close()
                for task in background:
                    task.cancel()
    finally:
        SPOOL.watch(None)
        await spool.close()


async def _measure(spool: Spool) -> None:
    while True:
        await asyncio.sleep(_MEASURE_S)
        await spool.measure()


def _reject(record: AnyRecord, reason: str) -> Event:
    """What is left of a record that Kafka refuses: why, and its beginning."""
    value = record.value or b""
    ident = dict(record.headers).get("ce_id", b"a record").decode(errors="replace")
    try:
        via = str(orjson.loads(value)["via"])
    except (ValueError, TypeError, KeyError):  # nobody knows what it is
        via = "derived"
    return reject_event(
        record.key.partition(b"/")[0].decode(errors="replace"),
        reason,
        f"{ident} for {record.topic}: Kafka refuses {len(value)} bytes; "
        f"the first {min(len(value), _KEPT_BYTES)} are kept",
        via=via,
        received_ms=now_ms(),
        body=value,
        headers={},
        kept_bytes=_KEPT_BYTES,
    )


def _size(record: AnyRecord) -> int:
    return len(record.value or b"")
