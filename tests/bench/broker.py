"""A real Kafka of one broker, on the core of the load; counted with another client than ours."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from tests.bench.errors import BenchError
from tests.kafka.cluster import Cluster
from tests.kafka.jars import ClusterError

LOAD_CORE = "1"
PARTITIONS = 12

#: The JVM takes these from its environment, and over those of the tests, which want a quick start.
_JVM = {"_JAVA_OPTIONS": "-XX:TieredStopAtLevel=4"}

_ANSWER_S = 10
#: Frozen for long, it takes its time to come to itself.
_BACK_S = 30
_READ_AT_ONCE = 10_000


class Broker:
    """The broker, and what is on it. Use `start_broker`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.servers = cluster.bootstrap
        settings = {"group.id": "bench", "enable.auto.commit": False}
        self._consumer = Consumer(cluster.client(settings))

    def close(self) -> None:
        self._consumer.close()

    def freeze(self) -> None:
        """From now on it answers nobody, and holds all connections."""
        self._cluster.freeze()

    def thaw(self) -> None:
        self._cluster.thaw()

    def create_topic(self, name: str) -> None:
        self._cluster.create_topic(name, partitions=PARTITIONS)

    def size(self, topic: str) -> int:
        """Records between the first and the last position of each partition."""
        ends = (self._ends(topic, partition) for partition in range(PARTITIONS))
        return sum(high - low for low, high in ends)

    def ids(self, topic: str) -> int:
        """Different ids of events, by reading all that is there."""
        ends = {partition: self._ends(topic, partition)[1] for partition in range(PARTITIONS)}
        unfinished = {partition for partition, end in ends.items() if end}
        found = set()
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in unfinished])
        while unfinished:
            messages = self._consumer.consume(_READ_AT_ONCE, _ANSWER_S)
            if not messages:
                raise BenchError(f"{topic} cannot be read to its end")
            for message in messages:
                partition, offset = message.partition(), message.offset()
                if partition is None or offset is None or message.error():
                    raise BenchError(f"{topic} cannot be read: {message.error()}")
                found.add(dict(message.headers() or ())["ce_id"])
                if offset + 1 == ends[partition]:
                    unfinished.remove(partition)
        self._consumer.unassign()
        return len(found)

    def _ends(self, topic: str, partition: int) -> tuple[int, int]:
        """The first position of a partition, and the one behind its last."""
        place = TopicPartition(topic, partition)
        until = time.monotonic() + _BACK_S
        while True:
            try:
                return self._consumer.get_watermark_offsets(place, timeout=_ANSWER_S)
            except KafkaException as error:  # it has only just come back, or the topic is new
                if time.monotonic() > until:
                    raise BenchError(f"{topic} cannot be asked for its ends: {error}") from None
            with suppress(KafkaException):
                self._consumer.list_topics(topic, timeout=1)
            time.sleep(0.1)


@contextmanager
def start_broker(folder: Path) -> Iterator[Broker]:
    os.environ |= _JVM
    try:
        with Cluster(folder=folder) as cluster:
            process = cluster.broker().process
            assert process is not None
            _pin(psutil.Process(process.pid))
            broker = Broker(cluster)
            yield broker
            broker.close()
    except ClusterError as error:
        raise BenchError(str(error)) from None


def _pin(process: psutil.Process) -> None:
    for thread in process.threads():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, {int(LOAD_CORE)})
