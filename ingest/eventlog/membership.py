"""Sharing keys among the members of a consumer group: each key is at home in one partition.

The group is Kafka's usual one, but nothing is committed to it: whoever is assigned a partition
reads it from its beginning, and works on the keys that are at home there for as long as it is sure
of it. A member that hears nothing of the group stops before the group gives its partitions away.

https://cwiki.apache.org/confluence/display/KAFKA/KIP-345%3A+Introduce+static+membership+protocol+to+reduce+consumer+rebalances
"""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from ingest.eventlog.kafka_reader import close_consumer, find_partitions, stored_record
from ingest.eventlog.log import StoredRecord
from ingest.eventlog.producer import partition_of

log = structlog.get_logger()

#: One look at the topic, in seconds.
_LOOK_S = 0.5

#: Finding the topic.
_OPEN_S = 15.0

#: Of a session, how many heartbeats it has; and the share of it in which all hear of a change.
_HEARTBEATS, _CHANGE = 10, 1 / 3


class Duty(Protocol):
    """What a member does with the keys that are its own."""

    def read(self, records: Sequence[StoredRecord]) -> None:
        """These stand on partitions that are ours."""
        ...

    def take(self, keys: Collection[str]) -> None:
        """These are ours from now on; everything that stood on their partition has been read."""
        ...

    async def leave(self, keys: Collection[str]) -> None:
        """Return once nothing works on these any more; some may not be at work at all."""
        ...


class Member:
    """One of the processes that share keys.

    ``topic``, ``group``: without ``prefix``; ``options``: of aiokafka's client. ``name``: no other
    process that lives has it; one that comes back under it gets what it had, and nobody else is
    disturbed. ``session_s``: of whom nothing is heard for so long, the keys go to others, also
    after it has ended. ``leave_s``: `Duty.leave` takes so long at most, less than a session.
    ``goes_on``: also when it cannot be sure any more, until the group says otherwise: where two at
    once do no harm, and none would.
    """

    def __init__(
        self,
        options: Callable[[], Mapping[str, Any]],
        duty: Duty,
        *,
        prefix: str,
        topic: str,
        keys: Sequence[str],
        group: str,
        name: str,
        session_s: float,
        leave_s: float,
        goes_on: bool = False,
    ) -> None:
        self._options = options
        self._duty = duty
        self._prefix = prefix
        self._topic = topic
        self._full_name = prefix + topic
        self._keys = keys
        self._group = group
        self._name = name
        self._session_s = session_s
        self._leave_s = leave_s
        self._goes_on = goes_on
        self._sure_s = session_s - leave_s
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        #: When we last asked something of the group that it has answered as it does to members.
        self._heard = -math.inf
        self._homes: Mapping[TopicPartition, Sequence[str]] = {}
        self._assigned: frozenset[TopicPartition] = frozenset()
        #: Counts assignments.
        self._epoch = 0
        #: Of the assigned ones: read to the end that they had, and those whose keys are taken.
        self._read: set[TopicPartition] = set()
        self._taken: set[TopicPartition] = set()
        # Taking and leaving are done by three tasks.
        self._turn = asyncio.Lock()

    @property
    def sure(self) -> bool:
        """Whether what is assigned to us can be nobody else's."""
        return self._loop.time() < self._heard + self._sure_s

    @property
    def lost(self) -> bool:
        """Whether nothing has been heard of the group for long."""
        return self._loop.time() > max(self._heard, self._since) + self._sure_s

    async def run(self) -> None:
        """Be a member until it is cancelled or something fails; then nothing is ours.

        Raises ConfigError if there is no such topic, and whatever aiokafka raises, in a group or
        not: it can be run again.
        """
        options = self._options()
        async with asyncio.timeout(_OPEN_S):
            places = await find_partitions(options, self._prefix, [self._topic])
        homes: dict[TopicPartition, list[str]] = {place: [] for place in places}
        for key in self._keys:
            partition = partition_of(key.encode(), len(places))
            homes[TopicPartition(self._full_name, partition)].append(key)
        self._homes = homes
        consumer = AIOKafkaConsumer(
            **options,
            group_id=self._prefix + self._group,
            group_instance_id=self._name,
            session_timeout_ms=round(self._session_s * 1000),
            heartbeat_interval_ms=round(self._session_s * 1000 / _HEARTBEATS),
            # Others wait for us that long when something changes.
            rebalance_timeout_ms=round((self._leave_s + self._session_s * _CHANGE) * 1000),
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # since nothing is ever committed: each time
        )
        listener = _Listener(self)
        consumer.subscribe({self._full_name}, listener=listener)
        try:
            await consumer.start()
            self._listen_to_heartbeats(consumer)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(consumer))
                tasks.create_task(self._watch())
        finally:
            listener.member = None
            await self.revoked()
            await close_consumer(consumer)

    # What the group tells

    def assigned(self, places: Iterable[TopicPartition]) -> None:
        self._heard = self._loop.time()
        self._assigned = frozenset(places)
        self._epoch += 1
        self._read.clear()
        if not self._at_home(self._assigned):
            log.info("standing_by", role=self._group)

    async def revoked(self) -> None:
        """Leave everything, whatever comes back; the group waits for us."""
        self._assigned = frozenset()
        await self._leave()

    def _listen_to_heartbeats(self, consumer: AIOKafkaConsumer) -> None:
        coordinator = consumer._coordinator  # noqa: SLF001 - it tells nobody when it was heard
        beat = coordinator._do_heartbeat  # noqa: SLF001

        async def noted() -> bool:
            asked = self._loop.time()
            known = bool(await beat())
            if known:
                self._heard = asked
            return known

        coordinator._do_heartbeat = noted  # noqa: SLF001

    # Tasks

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        """Read, and take what is read to its end."""
        epoch = -1
        ends: Mapping[TopicPartition, int] = {}
        while True:
            if epoch != self._epoch:
                epoch, ends = self._epoch, await self._ends(consumer)
            found = await consumer.getmany(timeout_ms=round(_LOOK_S * 1000))
            for records in found.values():
                self._duty.read([stored_record(record, self._prefix) for record in records])
            for place in ends.keys() - self._read:
                try:
                    position = await consumer.position(place)
                except IllegalStateError:
                    break  # it has been revoked meanwhile
                if epoch == self._epoch and position >= ends[place]:
                    self._read.add(place)
            await self._take()

    async def _ends(self, consumer: AIOKafkaConsumer) -> Mapping[TopicPartition, int]:
        if consumer.partitions_for_topic(self._full_name) != {
            place.partition for place in self._homes
        }:
            raise KafkaError("there are other partitions now")  # and keys have moved
        places = self._assigned
        ends: Mapping[TopicPartition, int] = {}
        if places:
            ends = await consumer.end_offsets(places)
        return ends

    async def _watch(self) -> None:
        """Leave everything when we are no longer sure."""
        while True:
            await asyncio.sleep(max(_LOOK_S / 2, self._heard + self._sure_s - self._loop.time()))
            if not self.sure and self._taken and not self._goes_on:
                log.warning("ownership_unsure", role=self._group)
                await self._leave()

    async def _leave(self) -> None:
        async with self._turn:
            await self._duty.leave(self._at_home(self._taken))
            self._taken.clear()

    async def _take(self) -> None:
        async with self._turn:
            # No `await` from here on: it is ours now, and so it is taken.
            new = (self._read & self._assigned) - self._taken
            if new and self.sure:
                self._taken |= new
                self._duty.take(self._at_home(new))

    def _at_home(self, places: Iterable[TopicPartition]) -> list[str]:
        return [key for place in places for key in self._homes.get(place, ())]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """What a consumer tells; one that is over has nothing to say any more."""

    def __init__(self, member: Member) -> None:
        self.member: Member | None = member

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        if self.member is not None:
            await self.member.revoked()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        if self.member is not None:
            self.member.assigned(assigned)
