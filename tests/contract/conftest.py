"""The event logs that have to keep the contract. Another one joins by a harness in this file.

Run as a program it is a reader in a process of its own: it prints what it reads, a line each.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Protocol

import apsw
import pytest

from ingest.eventlog.cluster import client_options, weak_topics
from ingest.eventlog.journal import journal_folder, open_journal, open_reader
from ingest.eventlog.kafka import open_kafka
from ingest.eventlog.kafka_reader import open_kafka_reader
from ingest.eventlog.log import EventLog, Keys, Reader, Start
from ingest.eventlog.retention import tidy
from ingest.eventlog.segments import segment_paths
from ingest.settings import Kafka
from schemas.times import now_ms
from schemas.topics import MAX_RECORD_BYTES
from tests.kafka.cluster import Cluster

#: Small, so that the journal goes from segment to segment in nearly every test.
SEGMENT_BYTES = 256 * 1024

#: Those that the contract's tests use.
KAFKA_TOPICS = ("calls", "messages", "contacts", "agents", "gaps", "rejects")

#: Small, so that it is soon full.
QUEUE_BYTES = 16 * 1024 * 1024


class Harness(Protocol):
    """One event log, empty at first, with every topic of ours."""

    @property
    def where(self) -> str:
        """What a receipt says of durable records."""
        ...

    def open_publisher(self) -> AbstractAsyncContextManager[EventLog]:
        """One more way in; on leaving everything that was handed over is written."""
        ...

    def open_reader(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        start: Start = "earliest",
        keys: Keys | None = None,
    ) -> AbstractAsyncContextManager[Reader]: ...

    def stalled(self, topic: str) -> AbstractAsyncContextManager[None]:
        """For up to a second nothing in ``topic``, which has records, becomes durable."""
        ...

    async def expire(self) -> None:
        """Forget every record, as the log would do in time."""
        ...


class JournalHarness:
    """The journal in a folder."""

    where = "journal"

    def __init__(self, path: Path) -> None:
        self._path = path / "data"

    @asynccontextmanager
    async def open_publisher(self) -> AsyncIterator[EventLog]:
        async with open_journal(self._path, segment_bytes=SEGMENT_BYTES) as publisher:
            publisher._room.max_bytes = QUEUE_BYTES
            yield publisher

    def open_reader(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        start: Start = "earliest",
        keys: Keys | None = None,
    ) -> AbstractAsyncContextManager[Reader]:
        return open_reader(self._path, topics, group=group, start=start, keys=keys)

    @asynccontextmanager
    async def stalled(self, topic: str) -> AsyncIterator[None]:
        newest = segment_paths(journal_folder(self._path) / topic)[-1]
        with closing(apsw.Connection(str(newest))) as other:
            other.execute("begin immediate")
            yield

    async def expire(self) -> None:
        then_ms = now_ms() + 100 * 365 * 86_400_000
        await asyncio.to_thread(tidy, journal_folder(self._path), max_bytes=0, now_ms=then_ms)


class KafkaHarness:
    """Kafka; ``kafka.json`` in the folder says which one, so that another process finds it."""

    where = "kafka"

    def __init__(self, path: Path) -> None:
        self._path = path
        found = json.loads((path / "kafka.json").read_text())
        self._kafka = Kafka(bootstrap_servers=found["bootstrap"], topic_prefix=found["prefix"])
        self.cluster: Cluster | None = None
        self._spools = 0

    @classmethod
    def make(cls, path: Path, cluster: Cluster, prefix: str) -> "KafkaHarness":
        """On a cluster, with topics of its own."""
        where = {"bootstrap": cluster.bootstrap, "prefix": prefix}
        (path / "kafka.json").write_text(json.dumps(where))
        for topic in KAFKA_TOPICS:
            cluster.create_topic(
                prefix + topic, partitions=3, config={"max.message.bytes": str(MAX_RECORD_BYTES)}
            )
        harness = cls(path)
        harness.cluster = cluster
        return harness

    @asynccontextmanager
    async def open_publisher(self) -> AsyncIterator[EventLog]:
        self._spools += 1
        async with open_kafka(
            self._path / f"spool-{self._spools}",
            options=lambda: client_options(self._kafka),
            find_weak_topics=partial(weak_topics, self._kafka),
            prefix=self._kafka.topic_prefix,
            publish_timeout_s=2.0,
            spool_max_bytes=10**9,
        ) as publisher:
            publisher.room.max_bytes = QUEUE_BYTES
            yield publisher

    def open_reader(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        start: Start = "earliest",
        keys: Keys | None = None,
    ) -> AbstractAsyncContextManager[Reader]:
        options, prefix = client_options(self._kafka), self._kafka.topic_prefix
        return open_kafka_reader(options, prefix, topics, group=group, start=start, keys=keys)

    @asynccontextmanager
    async def stalled(self, topic: str) -> AsyncIterator[None]:
        assert self.cluster is not None
        self.cluster.freeze()
        try:
            yield
        finally:
            self.cluster.thaw()

    async def expire(self) -> None:
        assert self.cluster is not None
        for topic in KAFKA_TOPICS:
            for partition in range(3):
                name = self._kafka.topic_prefix + topic
                await asyncio.to_thread(self.cluster.delete_records, name, partition)


HARNESSES: dict[str, Callable[[Path], Harness]] = {
    JournalHarness.where: JournalHarness,
    KafkaHarness.where: KafkaHarness,
}


@pytest.fixture(params=HARNESSES)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    if request.param == KafkaHarness.where:
        cluster = request.getfixturevalue("kafka")
        return KafkaHarness.make(tmp_path, cluster, request.getfixturevalue("topic_prefix"))
    return HARNESSES[request.param](tmp_path)


Elsewhere = Callable[[str, int], AbstractAsyncContextManager[asyncio.subprocess.Process]]
"""Starts a process that reads so many records of a topic; it prints a line once it reads."""


@pytest.fixture
def elsewhere(harness: Harness, tmp_path: Path) -> Elsewhere:
    @asynccontextmanager
    async def start(topic: str, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
        program = [sys.executable, __file__, harness.where, str(tmp_path), topic, str(count)]
        process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    return start


async def read_here(name: str, path: Path, topic: str, count: int) -> None:
    """Print so many records of a topic."""
    async with HARNESSES[name](path).open_reader([topic]) as reader:
        print("ready", flush=True)
        while count > 0:
            for record in await reader.fetch(wait_s=10):
                print(record.position, record.key.hex(), (record.value or b"").hex(), flush=True)
                count -= 1


if __name__ == "__main__":
    asyncio.run(read_here(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
