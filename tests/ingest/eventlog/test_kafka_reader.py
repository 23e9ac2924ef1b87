"""Reading a cluster where something is odd: topics missing, records gone, members that come and go.

What every log promises to readers stands in tests/contract.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import confluent_kafka
import pytest
from structlog.testing import capture_logs

from ingest.errors import ConfigError
from ingest.eventlog import kafka_reader
from ingest.eventlog.cluster import client_options
from ingest.eventlog.kafka_reader import KafkaReader, open_kafka_reader
from ingest.eventlog.log import LostError, Start, StoredRecord
from ingest.settings import Kafka
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import Cluster


def opened(
    cluster: Cluster, prefix: str, *topics: str, group: str | None = None, start: Start = "earliest"
) -> AbstractAsyncContextManager[KafkaReader]:
    options = client_options(Kafka(**settings_for(cluster, prefix)["kafka"]))
    return open_kafka_reader(options, prefix, topics or ["calls"], group=group, start=start)


def write(
    cluster: Cluster, topic: str, *values: bytes, key: bytes | None = b"k", partition: int = -1
) -> None:
    producer = confluent_kafka.Producer(cluster.client({"linger.ms": 0}))
    for value in values:
        producer.produce(topic, value, key, partition)
    assert producer.flush(20) == 0


async def take(reader: KafkaReader, count: int) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += await reader.fetch(wait_s=0.2)
    return found


def values(found: Sequence[StoredRecord]) -> list[bytes | None]:
    return [one.value for one in found]


# Topics


async def test_topics_that_are_missing_are_named_and_never_made(
    creating_kafka: Cluster, topic_prefix: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        async with opened(creating_kafka, topic_prefix, "calls", "agents"):
            pass
    assert f"{topic_prefix}calls" in str(raised.value)
    assert "dialstream topics create" in str(raised.value)

    creating_kafka.create_topic(f"{topic_prefix}calls")
    write(creating_kafka, f"{topic_prefix}calls", b"1")
    for group in (None, "g"):
        with capture_logs() as logs:
            async with opened(
                creating_kafka, topic_prefix, "agents", "calls", group=group
            ) as reader:
                assert values(await take(reader, 1)) == [b"1"]
        (line,) = [line for line in logs if line["event"] == "topics_missing"]
        assert line["topics"] == [f"{topic_prefix}agents"]
    topics = creating_kafka.topics()
    assert [topic for topic in topics if topic.startswith(topic_prefix)] == [f"{topic_prefix}calls"]


async def test_how_a_groups_topic_is_made_is_said(kafka: Cluster, topic_prefix: str) -> None:
    for topics in (["rejects.crm"], ["calls", "rejects.crm"]):
        with pytest.raises(ConfigError, match="dialstream topics create --group crm`"):
            async with opened(kafka, topic_prefix, *topics):
                pass
    with pytest.raises(ConfigError, match="dialstream topics create`"):
        async with opened(kafka, topic_prefix, "calls", "rejects"):
            pass


async def test_a_cluster_that_is_away_is_a_fault_with_its_address(
    proxied_kafka: Cluster, topic_prefix: str
) -> None:
    proxied_kafka.proxy().refuse()
    with pytest.raises(ConfigError, match=rf"{proxied_kafka.bootstrap} cannot be read"):
        async with opened(proxied_kafka, topic_prefix):
            pass


# Where it begins


async def test_latest_is_what_comes_from_now_on(kafka: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic, partitions=2)
    write(kafka, topic, b"old", partition=0)
    async with (
        opened(kafka, topic_prefix, start="latest") as alone,
        opened(kafka, topic_prefix, start="latest", group="g") as member,
    ):
        while not (await member.caught_up() and await alone.caught_up()):
            assert await member.fetch(wait_s=0.1) == []
        for partition in (0, 1):
            write(kafka, topic, b"new %d" % partition, partition=partition)
        for reader in (alone, member):
            found = await take(reader, 2)
            assert sorted(values(found), key=repr) == [b"new 0", b"new 1"]
            assert all(one.topic == "calls" for one in found)


async def test_where_what_comes_next_is_gone_reading_goes_on_with_what_is_left(
    kafka: Cluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic)
    write(kafka, topic, *(b"%d" % number for number in range(10)))
    async with opened(kafka, topic_prefix, group="g") as member:
        found = await take(member, 10)
        await member.commit(found[:3])
    kafka.delete_records(topic, before=6)
    for start in ("latest", "earliest"):
        async with opened(kafka, topic_prefix, group="g", start=start) as member:
            assert values(await take(member, 4)) == [b"6", b"7", b"8", b"9"]


# What others have written


async def test_records_of_others_are_read_as_they_are(kafka: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic)
    write(kafka, topic, b"no key", key=None)
    producer = confluent_kafka.Producer(kafka.client())
    producer.produce(topic, None, b"k", headers=[("h", b"\xff"), ("h", b"")])
    assert producer.flush(20) == 0
    async with opened(kafka, topic_prefix) as reader:
        first, second = await take(reader, 2)
    assert (first.key, first.value, first.headers) == (b"", b"no key", ())
    assert (second.key, second.value) == (b"k", None)
    assert second.headers == (("h", b"\xff"), ("h", b""))


# Members of a group


@asynccontextmanager
async def settled(*members: KafkaReader) -> AsyncIterator[None]:
    """Once each has some partitions and no other has them; they have to fetch for that."""
    async with asyncio.timeout(20):
        while True:
            for member in members:
                assert await member.fetch(wait_s=0.1) == []
            owned = [member._consumer.assignment() for member in members]
            if all(owned) and sum(map(len, owned)) == len(frozenset().union(*owned)) == 4:
                break
    yield


async def test_a_commit_of_what_is_anothers_by_now_is_told_and_moves_nothing(
    kafka: Cluster, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_reader, "_GRACE_S", 0.2)
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic, partitions=4)
    for partition in range(4):
        write(kafka, topic, b"%d" % partition, partition=partition)
    async with opened(kafka, topic_prefix, group="g") as first:
        handed = await take(first, 4)
        async with opened(kafka, topic_prefix, group="g") as second:
            # The first gets again, too, what it keeps: it has not committed that.
            again: list[StoredRecord] = []
            async with asyncio.timeout(20):
                while {one.partition for one in again} != {0, 1, 2, 3}:
                    again += await second.fetch(wait_s=0.1)
                    again += await first.fetch(wait_s=0.1)
            mine = {place.partition for place in first._consumer.assignment()}
            theirs = {place.partition for place in second._consumer.assignment()}
            assert mine
            assert mine | theirs == {0, 1, 2, 3}
            with pytest.raises(LostError):
                await first.commit([one for one in handed if one.partition in theirs])
            await first.commit([one for one in handed if one.partition in mine])
            await second.commit([one for one in again if one.partition in theirs])
    write(kafka, topic, b"new", partition=0)
    async with opened(kafka, topic_prefix, group="g") as third:
        assert values(await take(third, 1)) == [b"new"]


async def test_what_was_handed_out_may_be_committed_before_it_goes_to_another(
    kafka: Cluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic, partitions=4)
    for partition in range(4):
        write(kafka, topic, b"%d" % partition, partition=partition)
    async with opened(kafka, topic_prefix, group="g") as first:
        handed = await take(first, 4)
        joining = opened(kafka, topic_prefix, group="g")
        entering = asyncio.create_task(joining.__aenter__())
        fetching = asyncio.create_task(first.fetch(wait_s=1.0))
        await asyncio.sleep(0.5)
        await first.commit(handed)
        second = await entering
        try:
            assert await fetching == []
            async with settled(first, second):
                pass
        finally:
            await joining.__aexit__(None, None, None)


async def test_group_names_are_behind_the_prefix(kafka: Cluster, topic_prefix: str) -> None:
    """Two installations on one cluster do not take each other's records."""
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic)
    write(kafka, topic, b"1")
    async with opened(kafka, topic_prefix, group="g") as member:
        await member.commit(await take(member, 1))
    groups = kafka.ask(lambda admin: admin.list_consumer_groups(request_timeout=10).result(20))
    names = {group.group_id for group in groups.valid}
    assert f"{topic_prefix}g" in names
    assert "g" not in names


# A broker that goes away


async def test_reading_goes_on_when_a_broker_comes_back(
    proxied_kafka: Cluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    write(proxied_kafka, topic, b"1")
    async with (
        opened(proxied_kafka, topic_prefix) as alone,
        opened(proxied_kafka, topic_prefix, group="g") as member,
    ):
        for reader in (alone, member):
            assert values(await take(reader, 1)) == [b"1"]
        proxied_kafka.proxy().refuse()
        for _ in range(3):
            for reader in (alone, member):
                assert await reader.fetch(wait_s=0.1) == []
        proxied_kafka.proxy().restore()
        await asyncio.to_thread(write, proxied_kafka, topic, b"2")
        found = await take(alone, 1)
        assert values(found) == [b"2"]
        found = await take(member, 1)
        assert found[-1].value == b"2"
        async with asyncio.timeout(20):
            while True:
                try:
                    await member.commit(found)
                except LostError:  # it had to join again: then it gets them again
                    found = await take(member, 1)
                else:
                    break
