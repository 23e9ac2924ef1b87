"""Members of a group where something is odd: a cluster that is away, topics that are not there yet.

What sharing promises between processes on every event log stands in tests/contract.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from structlog.testing import capture_logs

from ingest.checkpoints import save_checkpoint
from ingest.eventlog.kinds import open_log
from ingest.eventlog.membership import Member
from ingest.eventlog.producer import partition_of
from ingest.runner import Stopping
from ingest.service import Service
from ingest.settings import EventLog, Kafka, Settings
from ingest.work import Job, Run, share_work
from tests.kafka.cluster import Cluster

SOON_S = 60.0

#: The least that brokers allow.
SESSION_S = 6.0

#: So many that with three partitions each has some.
CONNECTIONS = [f"c{number}" for number in range(12)]


def settings_for(bootstrap: str, prefix: str, path: Path) -> Settings:
    return Settings(
        eventlog=EventLog(kind="kafka", path=path),
        kafka=Kafka(bootstrap_servers=bootstrap, topic_prefix=prefix),
    )


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Service]:
    async with open_log(settings, "poller") as eventlog:
        yield Service(settings, eventlog, Stopping(), "")


@asynccontextmanager
async def sharing(service: Service, run: Run, *, goes_on: bool = False) -> AsyncIterator[None]:
    task = asyncio.create_task(
        share_work(
            service, "poll", CONNECTIONS, run, grace_s=1.0, session_s=SESSION_S, goes_on=goes_on
        )
    )
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(SOON_S):
        while not true():  # noqa: ASYNC110 - it is somebody else's doing
            await asyncio.sleep(0.01)


def make_topics(cluster: Cluster, prefix: str) -> None:
    for topic in ("checkpoints", "rejects"):
        cluster.create_topic(prefix + topic, partitions=3)


class Floor:
    """Who works on what, in this process."""

    def __init__(self) -> None:
        self.working: Counter[str] = Counter()
        self.by: Counter[str] = Counter()
        self.at_once = 0

    def run(self, who: str) -> Run:
        async def run(job: Job) -> None:
            self.working[job.connection] += 1
            self.by[who] += 1
            self.at_once = max(self.at_once, *self.working.values())
            try:
                await asyncio.Event().wait()
            finally:
                self.working[job.connection] -= 1
                self.by[who] -= 1

        return run

    @property
    def all_at_work(self) -> bool:
        return self.working.total() == len(CONNECTIONS)


async def test_a_connection_s_checkpoints_stand_where_another_client_puts_the_connection(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    topic = f"{topic_prefix}checkpoints"
    kafka.create_topic(topic, partitions=7)
    theirs = confluent_kafka.Producer(kafka.client({"partitioner": "murmur2"}))
    for name in CONNECTIONS:
        theirs.produce(topic, b"theirs", name.encode())
    assert await asyncio.to_thread(theirs.flush, 20) == 0
    async with open_log(
        settings_for(kafka.bootstrap, topic_prefix, tmp_path), "poller"
    ) as eventlog:
        for name in CONNECTIONS:
            for source in ("poll", "websocket", "poll"):
                await save_checkpoint(eventlog, name, source, {}, 1)

    found = await asyncio.to_thread(kafka.records, topic)
    messages = [((m.key() or b"").decode(), m.value() or b"", m.partition()) for m in found]
    wanted = {key: partition for key, value, partition in messages if value == b"theirs"}
    assert len(set(wanted.values())) > 3
    ours = [message for message in messages if message[1] != b"theirs"]
    assert len(ours) == 3 * len(CONNECTIONS)
    for key, value, partition in ours:
        connection, _, source = key.partition("/")
        assert source in ("poll", "websocket")
        assert partition == wanted[connection]
        assert json.loads(value)["generation"] == 1


async def test_a_client_that_ends_as_if_it_were_cancelled_does_not_end_the_work(
    kafka: Cluster, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may tell so of its own requests; and whoever is cancelled is told of by nobody."""
    make_topics(kafka, topic_prefix)
    settings = settings_for(kafka.bootstrap, topic_prefix, tmp_path)
    floor = Floor()
    follow, stop = Member._follow, AIOKafkaConsumer.stop
    failures = 0

    async def fail_once(self: Member, consumer: AIOKafkaConsumer) -> None:
        nonlocal failures
        if not failures:
            failures += 1
            raise KafkaError("away")
        await follow(self, consumer)

    async def stop_as_if_cancelled(self: AIOKafkaConsumer) -> None:
        await stop(self)
        raise asyncio.CancelledError

    monkeypatch.setattr(Member, "_follow", fail_once)
    monkeypatch.setattr(AIOKafkaConsumer, "stop", stop_as_if_cancelled)
    async with opened(settings) as service, sharing(service, floor.run("one")):
        await until(lambda: floor.all_at_work)
    assert failures == 1


async def test_everything_that_was_saved_has_been_read_before_the_work_begins(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    make_topics(kafka, topic_prefix)
    theirs = confluent_kafka.Producer(kafka.client({"partitioner": "murmur2"}))
    filling = "x" * 2000
    for number in range(500):  # a fetch holds a megabyte of a partition
        for name in CONNECTIONS:
            value = json.dumps({"generation": 1, "number": number, "filling": filling})
            partition = partition_of(name.encode(), 3)
            theirs.produce(
                f"{topic_prefix}checkpoints", value.encode(), f"{name}/poll".encode(), partition
            )
        theirs.poll(0)
    assert await asyncio.to_thread(theirs.flush, 30) == 0
    found: dict[str, int] = {}

    async def run(job: Job) -> None:
        checkpoint = job.checkpoint("poll")
        found[job.connection] = -1 if checkpoint is None else checkpoint["number"]
        await asyncio.Event().wait()

    settings = settings_for(kafka.bootstrap, topic_prefix, tmp_path)
    async with opened(settings) as service, sharing(service, run):
        await until(lambda: len(found) == len(CONNECTIONS))
    assert found == dict.fromkeys(CONNECTIONS, 499)


@pytest.mark.timeout(200)
async def test_who_is_cut_off_stops_before_others_begin_and_goes_on_when_it_is_back(
    proxied_kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    make_topics(proxied_kafka, topic_prefix)
    floor = Floor()
    near = settings_for(proxied_kafka.bootstrap, topic_prefix, tmp_path / "near")
    far = settings_for(proxied_kafka.brokers[0].internal, topic_prefix, tmp_path / "far")
    async with (
        opened(near) as here,
        opened(far) as there,
        sharing(here, floor.run("here")),
        sharing(there, floor.run("there")),
    ):
        await until(lambda: floor.all_at_work and floor.by["here"] and floor.by["there"])

        proxied_kafka.proxy().black_hole()
        await until(lambda: floor.by["there"] == len(CONNECTIONS))
        assert floor.by["here"] == 0
        assert "ownership_unknown:poll" in here.degraded()
        assert "ownership_unknown:poll" not in there.degraded()

        proxied_kafka.proxy().restore()
        await until(lambda: floor.all_at_work and floor.by["here"])
        assert "ownership_unknown:poll" not in here.degraded()
    assert floor.at_once == 1
    assert floor.working.total() == 0


@pytest.mark.timeout(200)
async def test_alone_without_kafka_the_work_stops_and_goes_on(
    proxied_kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    make_topics(proxied_kafka, topic_prefix)
    floor = Floor()
    settings = settings_for(proxied_kafka.bootstrap, topic_prefix, tmp_path)
    proxied_kafka.proxy().refuse()
    with capture_logs() as logs:
        async with opened(settings) as service, sharing(service, floor.run("here")):
            await until(lambda: "ownership_unknown:poll" in service.degraded())
            assert floor.working.total() == 0
            for _ in range(2):
                proxied_kafka.proxy().restore()
                await until(lambda: floor.all_at_work)
                assert "ownership_unknown:poll" not in service.degraded()

                proxied_kafka.proxy().refuse()
                await until(lambda: floor.working.total() == 0)
                assert "ownership_unknown:poll" in service.degraded()
            proxied_kafka.proxy().restore()
    assert floor.at_once == 1
    events = Counter(line["event"] for line in logs)
    assert events["ownership_unknown"] >= 1
    assert events["ownership_unsure"] == 2
    assert events["unexpected_error"] == 0


async def test_work_that_must_not_stand_still_goes_on_without_kafka(
    proxied_kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    make_topics(proxied_kafka, topic_prefix)
    floor = Floor()
    settings = settings_for(proxied_kafka.bootstrap, topic_prefix, tmp_path)
    async with (
        opened(settings) as service,
        sharing(service, floor.run("here"), goes_on=True),
    ):
        await until(lambda: floor.all_at_work)
        proxied_kafka.proxy().refuse()
        await until(lambda: "ownership_unknown:poll" in service.degraded())
        await asyncio.sleep(SESSION_S)
        assert floor.all_at_work
        proxied_kafka.proxy().restore()
        await until(lambda: "ownership_unknown:poll" not in service.degraded())
        await until(lambda: floor.all_at_work)
    assert floor.at_once == 1
    assert floor.working.total() == 0


async def test_a_short_absence_disturbs_nobody(
    proxied_kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    make_topics(proxied_kafka, topic_prefix)
    floor = Floor()
    settings = settings_for(proxied_kafka.bootstrap, topic_prefix, tmp_path)
    with capture_logs() as logs:
        async with opened(settings) as service, sharing(service, floor.run("here")):
            await until(lambda: floor.all_at_work)
            for _ in range(3):
                proxied_kafka.proxy().refuse()
                await asyncio.sleep(0.3)
                proxied_kafka.proxy().restore()
                await asyncio.sleep(1.0)
            assert [line for line in logs if line["event"] == "connection_left"] == []
            assert floor.all_at_work


async def test_topics_that_are_not_there_yet_are_waited_for(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    floor = Floor()
    settings = settings_for(kafka.bootstrap, topic_prefix, tmp_path)
    with capture_logs() as logs:
        async with opened(settings) as service, sharing(service, floor.run("here")):
            await until(lambda: any(line["event"] == "ownership_unknown" for line in logs))
            assert floor.working.total() == 0
            await asyncio.to_thread(make_topics, kafka, topic_prefix)
            await until(lambda: floor.all_at_work)
    said = [line["error"] for line in logs if line["event"] == "ownership_unknown"]
    assert "dialstream topics create" in said[0]


async def test_nothing_is_committed_to_the_group(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    make_topics(kafka, topic_prefix)
    floor = Floor()
    settings = settings_for(kafka.bootstrap, topic_prefix, tmp_path)
    async with opened(settings) as service, sharing(service, floor.run("here")):
        await until(lambda: floor.all_at_work)
    reader = confluent_kafka.Consumer(kafka.client({"group.id": f"{topic_prefix}poll"}))
    places = [confluent_kafka.TopicPartition(f"{topic_prefix}checkpoints", n) for n in range(3)]
    committed = await asyncio.to_thread(reader.committed, places, 20)
    reader.close()
    assert [place.offset for place in committed] == [confluent_kafka.OFFSET_INVALID] * 3
