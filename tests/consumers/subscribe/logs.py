"""Event logs for subscribers, as their tests need them, and events to put on them."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import confluent_kafka
import orjson

from consumers.subscribe import Subscriber
from ingest.eventlog.journal import journal_folder, open_journal
from ingest.eventlog.kinds import open_reader
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.retention import tidy
from ingest.reading import unknown_call
from ingest.settings import Settings
from schemas.times import now_ms, rfc3339
from tests.kafka.cluster import Cluster

#: What only the broken misses, in seconds.
SOON_S = 120.0

T0 = 1_789_999_200_000

#: Partitions of a topic on Kafka.
PARTITIONS = 4

TOPICS = ("calls", "contacts", "ledger", "gaps", "rejects.crm")


def record(
    type_: str,
    key: str,
    data: dict[str, Any],
    *,
    topic: str,
    ident: str | None = None,
    at_ms: int = T0,
) -> Record:
    """An event as we write it."""
    subject = type_.partition(".")[0]
    ident = f"test:{key}:{type_}:{at_ms}" if ident is None else ident
    value = {
        "specversion": "1.0",
        "id": ident,
        "source": "/dialpad/acme",
        "type": f"dialstream.{type_}",
        "subject": f"{subject}/{key.partition('/')[2]}",
        "time": rfc3339(at_ms),
        "datacontenttype": "application/json",
        "dataschema": f"urn:dialstream:schema:{subject}:1",
        "partitionkey": key,
        "recordedtime": rfc3339(at_ms),
        "via": "webhook",
        "provider": "dialpad",
        "connection": key.partition("/")[0],
        "data": data,
    }
    headers = (("ce_type", f"dialstream.{type_}".encode()), ("ce_id", ident.encode()))
    return Record(topic, key.encode(), orjson.dumps(value), headers)


def call(
    leg: str,
    nth: int = 0,
    state: str = "ended",
    *,
    ident: str | None = None,
    agent: str | None = None,
) -> Record:
    """The ``nth`` event of a leg; ``custom_data`` says which."""
    data = {**unknown_call(leg, state), "custom_data": str(nth), "raw": {}}
    if agent is not None:
        data["target"] = {"name": agent}
    return record(f"call.{state}", f"acme/{leg}", data, topic="calls", ident=ident, at_ms=T0 + nth)


def conversation(name: str, ident: str, outcome: str = "answered") -> Record:
    data = {
        "conversation_id": name,
        "call_ids": [name],
        "legs": [],
        "direction": "inbound",
        "external": {},
        "outcome": outcome,
        "complete": True,
    }
    key = f"acme/{name}"
    return record("conversation.updated", key, data, topic="ledger", ident=ident)


def tombstone(name: str) -> Record:
    return Record("ledger", f"acme/{name}".encode(), None, ())


class Log(Protocol):
    """An event log that is empty at first."""

    settings: Settings

    async def write(self, records: Sequence[Record]) -> None:
        """Append them; records of a key in their order."""
        ...

    async def delete_all(self, topic: str) -> None:
        """Forget what is in a topic, as the log would do in time."""
        ...


class JournalLog:
    def __init__(self, folder: Path) -> None:
        self.settings = Settings.model_validate({"eventlog": {"path": str(folder / "data")}})

    async def write(self, records: Sequence[Record]) -> None:
        async with open_journal(self.settings.eventlog.path) as journal:
            receipts = [journal.publish([one]) for one in records]
            for receipt in receipts:
                await receipt.wait(asyncio.get_running_loop().time() + SOON_S)

    async def delete_all(self, topic: str) -> None:
        folder = journal_folder(self.settings.eventlog.path)
        then_ms = now_ms() + 100 * 365 * 86_400_000
        # The newest segment stays, but for what is old: it is sealed first.
        for _ in range(2):
            await asyncio.to_thread(tidy, folder, max_bytes=0, now_ms=then_ms)


class KafkaLog:
    def __init__(self, cluster: Cluster, prefix: str, folder: Path) -> None:
        self.cluster = cluster
        self.prefix = prefix
        kafka = {"bootstrap_servers": cluster.bootstrap, "topic_prefix": prefix}
        self.settings = Settings.model_validate(
            {"eventlog": {"kind": "kafka", "path": str(folder / "data")}, "kafka": kafka}
        )

    @classmethod
    def make(cls, cluster: Cluster, prefix: str, folder: Path) -> "KafkaLog":
        for topic in TOPICS:
            cluster.create_topic(prefix + topic, partitions=PARTITIONS)
        return cls(cluster, prefix, folder)

    async def write(self, records: Sequence[Record]) -> None:
        await asyncio.to_thread(self._write, records)

    def _write(self, records: Sequence[Record]) -> None:
        producer = confluent_kafka.Producer(
            self.cluster.client({"linger.ms": 5, "partitioner": "murmur2_random"})
        )
        for one in records:
            headers: list[tuple[str, str | bytes | None]] = [*one.headers]
            producer.produce(self.prefix + one.topic, one.value, one.key, headers=headers)
            producer.poll(0)
        assert producer.flush(SOON_S) == 0

    async def delete_all(self, topic: str) -> None:
        for partition in range(PARTITIONS):
            await asyncio.to_thread(self.cluster.delete_records, self.prefix + topic, partition)


async def read_all(log: Log, topic: str) -> list[StoredRecord]:
    """Everything that a topic holds."""
    found: list[StoredRecord] = []
    async with open_reader(log.settings, [topic]) as reader:
        while True:
            found += await reader.fetch(wait_s=0.1)
            if await reader.caught_up():
                return found


@asynccontextmanager
async def running(subscriber: Subscriber) -> AsyncIterator[asyncio.Task[None]]:
    """Run a subscriber beside the block, and stop it at its end."""
    task = asyncio.create_task(subscriber.run())
    try:
        yield task
    except BaseException:
        task.cancel()
        await asyncio.wait([task])
        raise
    subscriber.stop()
    async with asyncio.timeout(SOON_S):
        await task


async def until(condition: Callable[[], bool], task: "asyncio.Task[None] | None" = None) -> None:
    """Return once a condition, a function, is true. Fails at once if the subscriber has ended."""
    async with asyncio.timeout(SOON_S):
        for _ in itertools.count():
            if condition():
                return
            if task is not None and task.done():
                task.result()
                raise AssertionError("it has ended")
            await asyncio.sleep(0.01)


def settings_file(log: Log, folder: Path) -> Path:
    """The log's settings for another process."""
    path = folder / "settings.json"
    path.write_text(json.dumps(log.settings.model_dump(mode="json", include={"eventlog", "kafka"})))
    return path
