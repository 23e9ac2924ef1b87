"""An idempotent Kafka producer for one sender a topic.

aiokafka's own producer queues what it is given: it never gives up on a batch, cannot be asked to,
asks for metadata in a tight loop where a partition has no leader, and lets a later record pass one
that waits for room. Ours has no queue: `Producer.send` is one topic's records on their way, it
returns once Kafka has them, and who stops waiting knows what is still under way. Connections,
requests, record batches and the partitions of keys are aiokafka's.

https://kafka.apache.org/protocol
https://cwiki.apache.org/confluence/display/KAFKA/KIP-98+-+Exactly+Once+Delivery+and+Transactional+Messaging
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.partitioner import murmur2
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from ingest.eventlog.cluster import REQUEST_TIMEOUT_S
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.produce import ProduceRequest
from schemas.times import now_ms
from schemas.topics import partition_key

#: Finding the cluster, of whose servers some may say nothing, and getting a producer id.
START_S = 15.0

_CLOSE_S = 2.0

#: No answer from anybody for so long: the connections are not worth keeping.
HUNG_S = 30.0

#: Between tries: from the first to the second, what others at most wait, and what waits for people.
_FIRST_PAUSE_S, _PAUSE_S, PROBE_S = 0.1, 1.0, 30.0

_MAGIC = 2
_NO_COMPRESSION = 0
_ENDLESS = 2**31 - 1

# https://kafka.apache.org/protocol#protocol_error_codes
_NONE, _DUPLICATE_SEQUENCE = 0, 46
_STARTING = frozenset((14, 15, 16))  # the coordinator: LOAD_IN_PROGRESS, NOT_AVAILABLE, NOT_…
_TOO_LARGE, _LIST_TOO_LARGE = 10, 18
#: Refused for what they are: sending them again changes nothing.
_REFUSALS = {
    _TOO_LARGE: "too_large",
    _LIST_TOO_LARGE: "too_large",
    32: "invalid",  # INVALID_TIMESTAMP
    43: "invalid",  # UNSUPPORTED_FOR_MESSAGE_FORMAT
    87: "invalid",  # INVALID_RECORD
}
#: This producer is of no use any more.
_BREAKS = {
    45: "out_of_order",  # OUT_OF_ORDER_SEQUENCE_NUMBER
    47: "fenced",  # INVALID_PRODUCER_EPOCH
    59: "unknown_producer",  # UNKNOWN_PRODUCER_ID
    90: "fenced",  # PRODUCER_FENCED
}
#: What only people mend.
_FOR_PEOPLE = frozenset(("topic_missing", "not_authorized"))
#: What is tried again, and how it is called.
_TROUBLES = {
    3: "topic_missing",  # UNKNOWN_TOPIC_OR_PARTITION
    5: "no_leader",  # LEADER_NOT_AVAILABLE
    6: "no_leader",  # NOT_LEADER_OR_FOLLOWER
    7: "slow",  # REQUEST_TIMED_OUT
    19: "not_enough_replicas",  # NOT_ENOUGH_REPLICAS
    20: "not_enough_replicas",  # NOT_ENOUGH_REPLICAS_AFTER_APPEND
    29: "not_authorized",  # TOPIC_AUTHORIZATION_FAILED
    31: "not_authorized",  # CLUSTER_AUTHORIZATION_FAILED
    53: "not_authorized",  # TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    56: "broker_disk",  # KAFKA_STORAGE_ERROR
}

AnyRecord = Record | StoredRecord

Refusal = tuple[AnyRecord, str]
"""A record that Kafka will never take, and why: ``too_large`` or ``invalid``."""


class BrokenError(Exception):
    """The producer cannot be used any more; ``reason`` is a word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def partition_of(key: bytes, count: int) -> int:
    """The partition of a `partition_key` among ``count``: where Kafka's own clients send it."""
    return int(murmur2(key) & 0x7FFFFFFF) % count


@lru_cache(maxsize=8192)  # keys come again, a call's within minutes, and the hash is 4 µs of Python
def _partition(topic: str, key: bytes, count: int) -> int:
    return partition_of(partition_key(topic, key), count)


async def close_client(client: AIOKafkaClient) -> None:
    """Close its connections, whatever state they are in; within two seconds."""
    connections = client._conns = _Closed(client._conns)  # noqa: SLF001 - there is no other way
    transports = [
        connection._writer.transport  # noqa: SLF001
        for connection in connections.values()
        if connection._writer is not None  # noqa: SLF001
    ]
    try:
        async with asyncio.timeout(_CLOSE_S):
            await client.close()
    except Exception:  # noqa: BLE001, S110 - a library that fails to say goodbye; we say it then
        pass
    finally:
        for transport in transports:
            transport.abort()


class _Closed(dict[Any, Any]):
    """Connections of a client that is closed: one that somebody was still opening is, too."""

    def __setitem__(self, key: Any, connection: Any) -> None:
        super().__setitem__(key, connection)
        connection.close()


class Producer:
    """One producer id and its connections. Once `broken`, a new one is needed."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """``options``: of `aiokafka.client.AIOKafkaClient`."""
        # It never learns the names of our topics: asked for all of them, a broker makes none.
        self.client = AIOKafkaClient(**options)
        self._loop = asyncio.get_running_loop()
        self._id, self._epoch = -1, -1
        #: Of each partition, how many records it has got from us.
        self._sequences: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._heard = self._loop.time()
        self.broken: asyncio.Future[str] = self._loop.create_future()

    async def start(self) -> None:
        """Find the cluster and become a producer. Raises what aiokafka raises, or TimeoutError."""
        async with asyncio.timeout(START_S):
            await self.client.bootstrap()
            await self.client.force_metadata_update()
            answer = await self._ask_for_id()
            while answer.error_code in _STARTING:
                await asyncio.sleep(_FIRST_PAUSE_S)
                answer = await self._ask_for_id()
            if answer.error_code != _NONE:
                raise BrokenError(_TROUBLES.get(answer.error_code, f"error_{answer.error_code}"))
            self._id, self._epoch = answer.producer_id, answer.producer_epoch
            self._heard = self._loop.time()

    async def _ask_for_id(self) -> Any:
        node = self.client.get_random_node()
        return await self.client.send(node, InitProducerIdRequest(None, _ENDLESS))

    async def send(
        self, topic: str, records: Sequence[AnyRecord], note: Callable[[str], None]
    ) -> Sequence[Refusal]:
        """Return once ``topic`` has all records, in their order, but those that it refuses.

        Tries for as long as it takes, and tells ``note`` in a word what is in the way. One call a
        topic at a time. Raises BrokenError; then some of the records may be there already, or
        still turn up.
        """
        refused: list[Refusal] = []
        left = self._by_partition(topic, records)
        pause_s, began = _FIRST_PAUSE_S, self._loop.time()
        while left is None or left:
            self._check(began)
            if left is None:
                trouble: str | None = "topic_missing"
            else:
                trouble = await self._try(topic, left, refused)
                self._check(began)
            if trouble is not None:
                note(trouble)
                await self._refresh()
                await asyncio.sleep(pause_s)
                most_s = PROBE_S if trouble in _FOR_PEOPLE else _PAUSE_S
                pause_s = min(2 * pause_s, most_s)
                left = self._share_out_again(topic, records, left)
        return refused

    def end(self, reason: str) -> None:
        """Make it broken: everybody who sends gets a BrokenError."""
        if not self.broken.done():
            self.broken.set_result(reason)

    async def close(self) -> None:
        """Close the connections, whatever state they are in; within two seconds."""
        self.end("closed")
        await close_client(self.client)

    def _by_partition(
        self, topic: str, records: Sequence[AnyRecord]
    ) -> dict[int, deque[Sequence[AnyRecord]]] | None:
        """Partition → what it gets, in batches to be sent one after the other; None: no topic."""
        partitions = self.client.cluster.partitions_for_topic(topic)
        if not partitions:
            return None
        count = len(partitions)
        found: defaultdict[int, list[AnyRecord]] = defaultdict(list)
        for record in records:
            found[_partition(record.topic, record.key, count)].append(record)
        return {partition: deque((batch,)) for partition, batch in found.items()}

    def _share_out_again(
        self,
        topic: str,
        records: Sequence[AnyRecord],
        left: dict[int, deque[Sequence[AnyRecord]]] | None,
    ) -> dict[int, deque[Sequence[AnyRecord]]] | None:
        """What is ``left``, should the topic have been made, or made again with less partitions."""
        if left is None:
            return self._by_partition(topic, records)
        known = self.client.cluster.partitions_for_topic(topic)
        if known and not left.keys() <= known:
            rest = [record for batches in left.values() for batch in batches for record in batch]
            return self._by_partition(topic, rest)
        return left

    async def _try(
        self, topic: str, left: dict[int, deque[Sequence[AnyRecord]]], refused: list[Refusal]
    ) -> str | None:
        """Send the first batch of each partition; what is in the way of some, if anything is."""
        trouble = None
        cluster = self.client.cluster
        by_node: defaultdict[int, list[int]] = defaultdict(list)
        for partition in left:
            leader = cluster.leader_for_partition(TopicPartition(topic, partition))
            if leader is None:
                trouble = "topic_missing"
            elif leader == -1:
                trouble = "no_leader"
            else:
                by_node[leader].append(partition)
        requests = [self._request(topic, node, left, at) for node, at in by_node.items()]
        if len(requests) == 1:
            answers = [await requests[0]]
        else:
            answers = await asyncio.gather(*requests)
        for answer in answers:
            if isinstance(answer, str):
                trouble = answer
                continue
            for partition, error in answer:
                trouble = self._judge(topic, partition, error, left, refused) or trouble
        return trouble

    async def _request(
        self,
        topic: str,
        node: int,
        left: Mapping[int, deque[Sequence[AnyRecord]]],
        partitions: Sequence[int],
    ) -> str | Sequence[tuple[int, int]]:
        """(partition, error code) of each batch, or why there was no answer."""
        batches = [(at, self._batch(topic, at, left[at][0])) for at in partitions]
        request = ProduceRequest(topic, batches, int(REQUEST_TIMEOUT_S * 1000))
        try:
            async with asyncio.timeout(
                2 * REQUEST_TIMEOUT_S
            ):  # connecting has a deadline of its own
                answer = await self.client.send(node, request)
        except TimeoutError:
            return "slow"
        except Exception:  # noqa: BLE001 - whatever a library says of a connection that fails
            return "away"
        self._heard = self._loop.time()
        results: Sequence[tuple[int, int]] = answer.results
        return results

    def _batch(self, topic: str, partition: int, records: Sequence[AnyRecord]) -> bytearray:
        builder = DefaultRecordBatchBuilder(
            _MAGIC,
            _NO_COMPRESSION,
            is_transactional=0,
            producer_id=self._id,
            producer_epoch=self._epoch,
            base_sequence=self._sequences[topic, partition],
            batch_size=_ENDLESS,
        )
        now = now_ms()
        for offset, record in enumerate(records):
            builder.append(offset, now, record.key, record.value, list(record.headers))
        built: bytearray = builder.build()
        return built

    def _judge(
        self,
        topic: str,
        partition: int,
        error: int,
        left: dict[int, deque[Sequence[AnyRecord]]],
        refused: list[Refusal],
    ) -> str | None:
        """Take in what a partition says of its first batch; what is in the way, if so."""
        batches = left[partition]
        batch = batches[0]
        if error in {_NONE, _DUPLICATE_SEQUENCE}:
            self._sequences[topic, partition] = (self._sequences[topic, partition] + len(batch)) & (
                2**31 - 1
            )
            batches.popleft()
        elif error in _REFUSALS:
            batches.popleft()
            if len(batch) == 1:
                refused.append((batch[0], _REFUSALS[error]))
            else:  # it may be one of them, or all of them together
                half = len(batch) // 2
                batches.extendleft((batch[half:], batch[:half]))
        elif error in _BREAKS:
            self.end(_BREAKS[error])
        else:
            return _TROUBLES.get(error, f"error_{error}")
        if not batches:
            del left[partition]
        return None

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                if await self.client.force_metadata_update():
                    self._heard = self._loop.time()
        except TimeoutError:
            pass

    def _check(self, began: float) -> None:
        if self._loop.time() - max(self._heard, began) > HUNG_S:
            self.end("hung")
        if self.broken.done():
            raise BrokenError(self.broken.result())
