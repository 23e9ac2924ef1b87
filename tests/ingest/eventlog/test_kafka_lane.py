"""The way of records to Kafka, with the spool beside it: nothing is lost, and order holds."""

import asyncio
import base64
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from jsonschema import Draft202012Validator
from structlog.testing import capture_logs

from ingest.errors import PublishError
from ingest.eventlog import journal as journal_module
from ingest.eventlog import kafka as kafka_module
from ingest.eventlog import producer as producer_module
from ingest.eventlog import topic as topic_module
from ingest.eventlog.cluster import client_options, weak_topics
from ingest.eventlog.kafka import KafkaPublisher, open_kafka
from ingest.eventlog.log import Record, records_of
from ingest.eventlog.spool import look_into
from ingest.settings import Kafka
from schemas.event import Envelope, Event
from schemas.reject import Reject
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import Cluster
from tests.kit import PROJECT, free_ports

TIMEOUT_S = 0.8


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_module, "_REBUILD_S", 0.2)
    monkeypatch.setattr(kafka_module, "_CONNECT_S", (0.1,))
    monkeypatch.setattr(kafka_module, "_MEASURE_S", 0.2)
    monkeypatch.setattr(kafka_module, "PROBE_S", 0.2)
    monkeypatch.setattr(producer_module, "PROBE_S", 0.2)


@asynccontextmanager
async def opened(
    cluster: Cluster | Kafka,
    prefix: str,
    folder: Path,
    *,
    max_bytes: int = 10**9,
    also: Sequence[str] = (),
) -> AsyncIterator[KafkaPublisher]:
    kafka = (
        cluster if isinstance(cluster, Kafka) else Kafka(**settings_for(cluster, prefix)["kafka"])
    )
    async with open_kafka(
        folder,
        options=lambda: client_options(kafka),
        find_weak_topics=partial(weak_topics, kafka),
        prefix=prefix,
        publish_timeout_s=TIMEOUT_S,
        spool_max_bytes=max_bytes,
        also=also,
    ) as publisher:
        yield publisher


def nowhere() -> Kafka:
    return Kafka(bootstrap_servers=f"127.0.0.1:{free_ports(1)[0]}")


def record(value: bytes, topic: str = "calls", key: bytes = b"k") -> Record:
    return Record(topic, key, value, ())


async def store(publisher: KafkaPublisher, *records: Record) -> list[str]:
    """Publish one after the other; where each is."""
    return [await publisher.publish([one]).wait(math.inf) for one in records]


async def until(true: Callable[[], object], timeout_s: float = 15) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110 - it is somebody else's doing
            await asyncio.sleep(0.01)


async def values(cluster: Cluster, topic: str) -> list[bytes | None]:
    return [message.value() for message in await asyncio.to_thread(cluster.records, topic)]


def first_times(found: Sequence[bytes | None]) -> list[bytes | None]:
    return list(dict.fromkeys(found))


class Publishing:
    """Publishes a number of one key after the other, whatever becomes of those before."""

    def __init__(self, publisher: KafkaPublisher, pause_s: float = 0.015) -> None:
        self._publisher = publisher
        self._pause_s = pause_s
        self.count = 0
        #: Where each was stored, in the order in which that was told.
        self.stored: list[tuple[int, str]] = []
        self.failed: list[int] = []
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        assert self._task is not None
        await self._task

    async def _run(self) -> None:
        while not self._stopping:
            group = self._publisher.publish([record(b"%d" % self.count)])
            group.then(math.inf, partial(self._settled, group, self.count))
            self.count += 1
            await asyncio.sleep(self._pause_s)

    def _settled(self, group: Any, number: int, error: PublishError | None) -> None:
        if error is None:
            self.stored.append((number, group.where))
        else:
            self.failed.append(number)

    async def comes_to(self, where: str, count: int = 10) -> None:
        """Until so many more in a row were stored there."""
        seen = len(self.stored)
        await until(
            lambda: (
                len(self.stored) >= seen + count
                and all(place == where for _, place in self.stored[-count:])
            )
        )

    def expected(self) -> list[bytes | None]:
        return [b"%d" % number for number in range(self.count)]


# Direct


async def test_a_kafka_that_is_there_gets_everything_directly(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    kafka.create_topic(f"{topic_prefix}calls", partitions=2)
    async with opened(kafka, topic_prefix, tmp_path) as publisher:
        keys = [b"%d" % number for number in range(20)]
        assert set(await store(publisher, *(record(b"x", key=key) for key in keys))) == {"kafka"}
        assert publisher.degraded() == []
        assert publisher.refusing() is None
        assert publisher.queued_bytes == 0
    assert look_into(tmp_path) == {}
    found = await asyncio.to_thread(kafka.records, f"{topic_prefix}calls")
    assert sorted(message.key() or b"" for message in found) == sorted(keys)
    assert {message.partition() for message in found} == {0, 1}


async def test_topics_that_promise_less_than_the_settings_are_named(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    kafka.create_topic(f"{topic_prefix}calls", config={"min.insync.replicas": "1"})
    more = {"min_insync_replicas": 2, "replication_factor": 3}
    settings = Kafka(**settings_for(kafka, topic_prefix, **more)["kafka"])
    async with opened(settings, topic_prefix, tmp_path) as publisher:
        await until(lambda: "min_insync_replicas:calls" in publisher.degraded())
        assert publisher.refusing() is None


# By way of the spool


async def test_order_holds_from_direct_to_spool_and_back_while_records_come(
    proxied_kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    proxy = proxied_kafka.proxy()
    async with opened(proxied_kafka, topic_prefix, tmp_path) as publisher:
        async with Publishing(publisher) as publishing:
            await publishing.comes_to("kafka")
            for fault in (proxy.refuse, partial(proxy.delay, 2 * TIMEOUT_S), proxy.black_hole):
                fault()
                await publishing.comes_to("spool")
                assert any(word.startswith("spooled:calls:") for word in publisher.degraded())
                assert publisher.spools("calls")
                if fault == proxy.refuse:  # what waits in the spool meets another fault
                    proxy.restore()
                    await until(lambda: publisher.connection.connected)
                    proxy.cut()
                proxy.restore()
                await publishing.comes_to("kafka")
                await until(lambda: publisher.degraded() == [])
                assert not publisher.spools("calls")
        await until(lambda: publisher.queued_bytes == 0)
        assert publishing.failed == []
        numbers = [number for number, _ in publishing.stored]
        assert numbers == list(range(publishing.count)), "receipts come in order, too"
    assert look_into(tmp_path) == {}
    found = await values(proxied_kafka, topic)
    assert first_times(found) == publishing.expected()
    repeats = len(found) - publishing.count
    assert repeats < publishing.count / 2


async def test_a_broker_that_answers_late_has_it_before_what_came_later(
    proxied_kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    """It is in the spool and on Kafka: a repeat, and both in order."""
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    async with opened(proxied_kafka, topic_prefix, tmp_path) as publisher:
        await store(publisher, record(b"0"))
        proxied_kafka.proxy().delay(3 * TIMEOUT_S)
        begun = time.monotonic()
        late = publisher.publish([record(b"1")])
        assert await late.wait(math.inf) == "spool"
        assert TIMEOUT_S <= time.monotonic() - begun < 3 * TIMEOUT_S
        assert await store(publisher, record(b"2"), record(b"3")) == ["spool", "spool"]
        proxied_kafka.proxy().restore()
        await until(lambda: publisher.degraded() == [])
        assert await store(publisher, record(b"4")) == ["kafka"]
    assert await values(proxied_kafka, topic) == [b"0", b"1", b"1", b"2", b"3", b"4"]


async def test_what_was_closed_while_kafka_was_away_is_there_the_next_time(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic)
    async with opened(nowhere(), topic_prefix, tmp_path) as publisher:
        given_up = await store(publisher, record(b"0"))
        waiting = [publisher.publish([record(b"%d" % number)]) for number in range(1, 4)]
        agents = publisher.publish([record(b"direct", "agents")])
        begun = time.monotonic()
    assert time.monotonic() - begun < TIMEOUT_S + 2
    assert given_up == ["spool"]
    assert [(group.durable, group.where) for group in (*waiting, agents)] == [(True, "spool")] * 4
    assert {name: left.records for name, left in look_into(tmp_path).items()} == {
        "calls": 4,
        "agents": 1,
    }

    kafka.create_topic(f"{topic_prefix}agents")
    with capture_logs() as logs:
        async with opened(kafka, topic_prefix, tmp_path) as publisher:
            await store(publisher, record(b"4"))  # behind what waits, or what has just been drained
            await until(lambda: publisher.degraded() == [])
            assert await store(publisher, record(b"5")) == ["kafka"]
    assert await values(kafka, topic) == [b"%d" % number for number in range(6)]
    assert await values(kafka, f"{topic_prefix}agents") == [b"direct"]
    found = {line["topic"]: line["records"] for line in logs if line["event"] == "spool_found"}
    assert found == {"calls": 4, "agents": 1}
    assert {line["topic"] for line in logs if line["event"] == "spool_drained"} == found.keys()


async def test_closing_in_the_middle_of_draining_goes_on_where_it_was(
    kafka: Cluster, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic)
    monkeypatch.setattr(kafka_module, "CHUNK_BYTES", 1)
    async with opened(nowhere(), topic_prefix, tmp_path) as publisher:
        await asyncio.gather(
            *(publisher.publish([record(b"%d" % number)]).wait(math.inf) for number in range(200))
        )
    drained = []
    for _ in range(2):
        async with opened(kafka, topic_prefix, tmp_path) as publisher:
            before = publisher.spool.places["calls"].records
            drained.append(before)
            await until(lambda: publisher.spool.waiting()["calls"].records < before - 20)  # noqa: B023
    assert 200 == drained[0] > drained[1] > 100
    monkeypatch.undo()
    async with opened(kafka, topic_prefix, tmp_path) as publisher:
        await until(lambda: publisher.degraded() == [])
    found = await values(kafka, topic)
    assert first_times(found) == [b"%d" % number for number in range(200)]
    assert len(found) <= 202, "only what was under way is repeated"


async def test_a_topic_that_no_longer_is_one_of_ours_is_drained_too(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    kafka.create_topic(f"{topic_prefix}calls.old")
    async with opened(nowhere(), topic_prefix, tmp_path) as publisher:
        await store(publisher, record(b"kept"))
    (tmp_path / "calls").rename(tmp_path / "calls.old")
    async with opened(kafka, topic_prefix, tmp_path) as publisher:
        await until(lambda: publisher.spool.waiting() == {})
    assert await values(kafka, f"{topic_prefix}calls.old") == [b"kept"]


async def test_a_topic_that_is_missing_holds_up_no_other(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    kafka.create_topic(f"{topic_prefix}calls")
    async with opened(kafka, topic_prefix, tmp_path) as publisher:
        assert await store(publisher, record(b"1", "agents")) == ["spool"]
        assert publisher.degraded() == ["spooled:agents:topic_missing"]
        assert publisher.refusing() is None
        assert await store(publisher, record(b"1")) == ["kafka"]
        await asyncio.to_thread(kafka.create_topic, f"{topic_prefix}agents")
        await until(lambda: publisher.degraded() == [])
    assert first_times(await values(kafka, f"{topic_prefix}agents")) == [b"1"]


async def test_connecting_anew_keeps_order_and_reads_the_settings_again(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic)
    settings = Kafka(**settings_for(kafka, topic_prefix)["kafka"])
    asked = 0

    def options() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return client_options(settings)

    async with open_kafka(
        tmp_path,
        options=options,
        find_weak_topics=partial(weak_topics, settings),
        prefix=topic_prefix,
        publish_timeout_s=TIMEOUT_S,
        spool_max_bytes=10**9,
    ) as publisher:
        async with Publishing(publisher) as publishing:
            for times in range(1, 5):
                await publishing.comes_to("kafka")
                assert asked == times
                publisher.reconnect()
            await publishing.comes_to("kafka")
        await until(lambda: publisher.queued_bytes == 0)
        assert publishing.failed == []
    assert first_times(await values(kafka, topic)) == publishing.expected()


async def test_giving_up_what_there_is_not_is_nothing(tmp_path: Path) -> None:
    async with opened(nowhere(), "t.", tmp_path) as publisher:
        publisher.reconnect()
        assert not publisher.connection.connected


async def test_the_way_is_direct_again_however_much_comes(
    proxied_kafka: Cluster, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    commit = topic_module.TopicWriter.append

    def slow_commit(writer: topic_module.TopicWriter, records: Sequence[Record]) -> None:
        time.sleep(0.01)  # there is always an append under way
        commit(writer, records)

    monkeypatch.setattr(topic_module.TopicWriter, "append", slow_commit)
    async with (
        opened(proxied_kafka, topic_prefix, tmp_path) as publisher,
        Publishing(publisher, pause_s=0.002) as publishing,
    ):
        await publishing.comes_to("kafka")
        proxied_kafka.proxy().refuse()
        await publishing.comes_to("spool", 200)
        proxied_kafka.proxy().restore()
        await publishing.comes_to("kafka", 200)
    assert publishing.failed == []
    assert first_times(await values(proxied_kafka, topic)) == publishing.expected()


# What Kafka refuses


def event(size: int, connection: str = "acme") -> Event:
    return Event(
        type="dialstream.call.ended",
        subject_kind="call",
        id=f"dialpad:{connection}:call:1:hangup:1",
        subject="call/1",
        key=f"{connection}/1",
        time_ms=1_790_000_121_300,
        recorded_ms=1_790_000_121_400,
        via="webhook",
        provider="dialpad",
        connection=connection,
        data={"call_id": "1", "text": random.Random(1).randbytes(size // 2).hex()},
    )


def check_reject(found: bytes | None, refused: Record) -> None:
    """It is a reject as the schema has it, with the beginning of what was refused."""
    assert found is not None
    value = json.loads(found)
    Envelope.model_validate(value)
    Reject.model_validate(value["data"])
    schemas = PROJECT / "schemas" / "published"
    for name, part in (("event.1.json", value), ("reject.1.json", value["data"])):
        schema = json.loads((schemas / name).read_bytes())
        assert list(Draft202012Validator(schema).iter_errors(part)) == []
    assert value["type"] == "dialstream.reject.too_large"
    assert value["connection"] == value["partitionkey"] == "acme"
    assert "dialpad:acme:call:1:hangup:1" in value["data"]["detail"]
    assert value["data"]["via"] == "webhook"
    body = base64.b64decode(value["data"]["body_base64"])
    assert refused.value is not None
    assert refused.value.startswith(body)
    assert len(body) == 64 * 1024


async def test_what_is_too_large_for_kafka_becomes_a_reject(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    kafka.create_topic(f"{topic_prefix}calls", config={"max.message.bytes": "20000"})
    kafka.create_topic(f"{topic_prefix}rejects")
    [large] = records_of(event(200_000))
    with capture_logs() as logs:
        async with opened(kafka, topic_prefix, tmp_path) as publisher:
            before, refused, after = (
                publisher.publish([one]) for one in (record(b"1"), large, record(b"2"))
            )
            for receipt in (before, refused, after):
                assert await receipt.wait(math.inf) == "kafka"
    assert await values(kafka, f"{topic_prefix}calls") == [b"1", b"2"]
    (found,) = await asyncio.to_thread(kafka.records, f"{topic_prefix}rejects")
    check_reject(found.value(), large)
    assert found.key() == b"acme"
    (line,) = [line for line in logs if line["event"] == "record_refused"]
    assert (line["topic"], line["reason"]) == ("calls", "too_large")
    assert line["size_bytes"] > 200_000


async def test_what_is_refused_need_not_be_an_event(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    kafka.create_topic(f"{topic_prefix}calls", config={"max.message.bytes": "20000"})
    kafka.create_topic(f"{topic_prefix}rejects")
    strange = record(b"\xff" * 50_000, key=b"acme/1")
    async with opened(kafka, topic_prefix, tmp_path) as publisher:
        assert await store(publisher, strange, record(b"2")) == ["kafka"] * 2
    assert await values(kafka, f"{topic_prefix}calls") == [b"2"]
    (found,) = await values(kafka, f"{topic_prefix}rejects")
    assert found is not None
    data = json.loads(found)["data"]
    assert base64.b64decode(data["body_base64"]) == strange.value
    assert data["via"] == "derived"


async def test_what_is_too_large_on_its_way_from_the_spool_becomes_a_reject(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    kafka.create_topic(f"{topic_prefix}calls", config={"max.message.bytes": "20000"})
    kafka.create_topic(f"{topic_prefix}rejects")
    [large] = records_of(event(200_000))
    async with opened(nowhere(), topic_prefix, tmp_path) as publisher:
        assert await store(publisher, record(b"1"), large, record(b"2")) == ["spool"] * 3
    async with opened(kafka, topic_prefix, tmp_path) as publisher:
        await until(lambda: publisher.spool.waiting() == {})
    # What was not sure to have been stored was sent again, where the machine was slow.
    assert list(dict.fromkeys(await values(kafka, f"{topic_prefix}calls"))) == [b"1", b"2"]
    (found,) = set(await values(kafka, f"{topic_prefix}rejects"))
    check_reject(found, large)


@pytest.mark.parametrize("name", ["rejects", "rejects.crm"])
async def test_a_reject_that_kafka_refuses_waits_until_the_topic_was_mended(
    kafka: Cluster, topic_prefix: str, tmp_path: Path, name: str
) -> None:
    topic = topic_prefix + name
    kafka.create_topic(topic, config={"max.message.bytes": "1000"})
    large = random.Random(2).randbytes(3000)
    async with opened(kafka, topic_prefix, tmp_path, also=[name]) as publisher:
        assert await store(publisher, record(large, name)) == ["spool"]
        assert await store(publisher, record(b"next", name)) == ["spool"]
        await until(lambda: publisher.degraded() == [f"spooled:{name}:refused"])
    assert look_into(tmp_path)[name].records == 2, "it survives a restart"
    async with opened(kafka, topic_prefix, tmp_path, also=[name]) as publisher:
        await until(lambda: publisher.degraded() == [f"spooled:{name}:refused"])
        await asyncio.to_thread(kafka.alter_topic, topic, {"max.message.bytes": "100000"})
        await until(lambda: publisher.degraded() == [])
    assert set(await values(kafka, topic)) == {large, b"next"}


async def test_a_reject_of_a_record_waits_for_its_topic_and_so_does_the_record(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    """What Kafka refuses is not gone before its reject is durable."""
    kafka.create_topic(f"{topic_prefix}calls", config={"max.message.bytes": "20000"})
    [large] = records_of(event(200_000))
    async with opened(kafka, topic_prefix, tmp_path) as publisher:
        await store(publisher, large)
        await until(lambda: "rejects" in publisher.spool.waiting())
    left = look_into(tmp_path)
    assert left["rejects"].records >= 1
    kafka.create_topic(f"{topic_prefix}rejects")
    async with opened(kafka, topic_prefix, tmp_path) as publisher:
        await until(lambda: publisher.spool.waiting() == {})
    found = await values(kafka, f"{topic_prefix}rejects")
    assert found
    check_reject(found[0], large)
    assert len({json.loads(each or b"")["id"] for each in found}) == 1, (
        "a repeat is known by its id"
    )


# What is said of it


async def test_what_is_wrong_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(nowhere(), "t.", tmp_path, max_bytes=400_000) as publisher:
        assert publisher.degraded() == ["kafka_unreachable"]
        assert publisher.refusing() is None
        assert await store(publisher, record(b"1")) == ["spool"]
        assert publisher.degraded() == ["kafka_unreachable", "spooled:calls:unreachable"]

        # How fast it fills is measured, and a machine may be slow.
        monkeypatch.setattr(publisher.spool, "minutes_left", lambda: 1.1)
        assert publisher.refusing() is None
        monkeypatch.setattr(publisher.spool, "minutes_left", lambda: 0.9)
        assert publisher.refusing() == "spool_nearly_full"
        monkeypatch.setattr(publisher.spool, "minutes_left", lambda: math.inf)
        monkeypatch.setattr(journal_module, "disk_full", lambda _: True)
        assert publisher.refusing() == "disk_full"
        monkeypatch.undo()

        many = [record(b"%d" % number * 10_000) for number in range(50)]
        with pytest.raises(PublishError, match="spool_full"):
            await store(publisher, *many)
        assert publisher.refusing() == "spool_full"
        assert publisher.queued_bytes == 0
        full = publisher.publish([record(b"1", "agents")])
        with pytest.raises(PublishError, match="spool_full"):
            await full.wait(math.inf)
        assert publisher.queued_bytes == 0


async def test_too_much_at_once_is_refused_and_forgotten(tmp_path: Path) -> None:
    async with opened(nowhere(), "t.", tmp_path) as publisher:
        publisher.room.max_bytes = 100_000
        many = [record(b"%d" % number * 10_000) for number in range(50)]
        with pytest.raises(PublishError, match="overload"):
            list(map(publisher.publish, zip(many)))
        await until(lambda: publisher.queued_bytes == 0)
        assert look_into(tmp_path)["calls"].records > 3
