"""A producer brings records to Kafka once, in order, and says in a word what is in the way."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import confluent_kafka
import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, create_conn

from ingest.eventlog import producer as producer_module
from ingest.eventlog.cluster import client_options
from ingest.eventlog.log import Record
from ingest.eventlog.produce import ProduceResponse
from ingest.eventlog.producer import BrokenError, Producer, partition_of
from ingest.settings import Kafka
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import PASSWORDS, READER, Cluster


def record(value: bytes, key: bytes = b"k") -> Record:
    return Record("calls", key, value, (("h", value[:5]),))


def some(count: int, size: int = 0, first: int = 0) -> list[Record]:
    return [record((b"%d:" % n).ljust(size, b"x")) for n in range(first, first + count)]


@asynccontextmanager
async def connected(cluster: Cluster) -> AsyncIterator[Producer]:
    options = client_options(Kafka(**settings_for(cluster, "")["kafka"]))
    producer = Producer(options)
    try:
        await producer.start()
        yield producer
    finally:
        await producer.close()


async def values(cluster: Cluster, topic: str) -> list[bytes | None]:
    return [message.value() for message in await asyncio.to_thread(cluster.records, topic)]


async def until(true: Callable[[], object], timeout_s: float = 15) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110 - it is somebody else's doing
            await asyncio.sleep(0.01)


def say_nothing(_: str) -> None:
    pass


@pytest.fixture
def topic(kafka: Cluster, topic_prefix: str) -> str:
    kafka.create_topic(f"{topic_prefix}calls")
    return f"{topic_prefix}calls"


# Once, in order


async def test_records_arrive_as_they_are_in_their_order(kafka: Cluster, topic: str) -> None:
    records = [*some(50), Record("calls", b"", None, (("a", b""), ("a", b"\xff")))]
    begun_ms = time.time() * 1000 - 1
    async with connected(kafka) as producer:
        assert await producer.send(topic, records, say_nothing) == []
        assert await producer.send(topic, some(3, first=50), say_nothing) == []
    found = await asyncio.to_thread(kafka.records, topic)
    assert [message.value() for message in found] == [
        *(one.value for one in records),
        *(one.value for one in some(3, first=50)),
    ]
    assert found[0].key() == b"k"
    assert found[50].key() == b""
    assert found[50].headers() == [("a", b""), ("a", b"\xff")]
    assert all(begun_ms < message.timestamp()[1] <= time.time() * 1000 for message in found)


async def test_a_connection_that_is_cut_before_the_answer_repeats_nothing(
    proxied_kafka: Cluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    proxy = proxied_kafka.proxy()
    async with connected(proxied_kafka) as producer:
        await producer.send(topic, some(5), say_nothing)
        for round_ in range(1, 4):
            notes: list[str] = []
            proxy.delay(20)
            sending = asyncio.create_task(
                producer.send(topic, some(5, first=5 * round_), notes.append)
            )
            async with asyncio.timeout(10):
                while len(await values(proxied_kafka, topic)) < 5 * (round_ + 1):
                    pass
            assert not sending.done(), "it is there, and the answer is not"
            proxy.restore()
            proxy.cut()
            assert await asyncio.wait_for(sending, 10) == []
            assert notes[0] == "away"
        await producer.send(topic, some(5, first=20), say_nothing)
    assert await values(proxied_kafka, topic) == [one.value for one in some(25)]


async def test_partitions_of_one_broker_that_is_away_do_not_hold_up_the_others(
    three_brokers: Cluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}calls"
    three_brokers.create_topic(topic, assignment=[[0], [1], [2]])
    keys = [
        next(k for k in map(b"%d".__mod__, range(99)) if partition_of(k, 3) == n) for n in range(3)
    ]
    records = [record(b"%d" % n, keys[n % 3]) for n in range(30)]
    async with connected(three_brokers) as producer:
        notes: list[str] = []
        three_brokers.proxy(1).refuse()
        sending = asyncio.create_task(producer.send(topic, records, notes.append))
        await until(lambda: "away" in notes)
        await asyncio.sleep(0.3)
        found = await values(three_brokers, topic)
        assert found == [one.value for n in (0, 2) for one in records[n::3]]
        three_brokers.proxy(1).restore()
        assert await sending == []
    found = await values(three_brokers, topic)
    assert found == [one.value for n in range(3) for one in records[n::3]]


# Partitions

KEYS = [
    b"",
    *(b"acme/%d" % (5_000_000_000_001_101 + 7 * n) for n in range(60)),
    *("é☎".encode() * n for n in range(1, 20)),
    *(bytes(range(n)) for n in range(1, 20)),
    b"\xff" * 1000,
]


async def test_a_key_goes_where_librdkafka_sends_it(kafka: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic, partitions=7)
    theirs = confluent_kafka.Producer(kafka.client({"partitioner": "murmur2"}))
    for key in KEYS:
        theirs.produce(topic, b"theirs", key)
    assert await asyncio.to_thread(theirs.flush, 20) == 0
    async with connected(kafka) as producer:
        await producer.send(topic, [record(b"ours", key) for key in KEYS], say_nothing)
    found = await asyncio.to_thread(kafka.records, topic)
    places = {
        who: {message.key(): message.partition() for message in found if message.value() == who}
        for who in (b"ours", b"theirs")
    }
    assert len(places[b"ours"]) == len(set(KEYS)) > 90
    assert places[b"ours"] == places[b"theirs"] == {key: partition_of(key, 7) for key in KEYS}


# What Kafka does not take


async def test_of_a_batch_that_is_too_large_only_what_is_too_large_is_refused(
    kafka: Cluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic, config={"max.message.bytes": "20000"})
    together = some(12, size=6000)
    large = [record(b"large".ljust(25_000)), record(b"larger".ljust(50_000))]
    records = [*together[:5], large[0], *together[5:], large[1], record(b"last")]
    async with connected(kafka) as producer:
        assert await producer.send(topic, together, say_nothing) == []
        refused = await producer.send(topic, records, say_nothing)
        await producer.send(topic, some(2), say_nothing)
    assert refused == [(one, "too_large") for one in large]
    assert await values(kafka, topic) == [
        one.value for one in (*together, *together, record(b"last"), *some(2))
    ]


# What is in the way


async def test_a_topic_that_is_missing_is_waited_for_and_never_made(
    creating_kafka: Cluster, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "PROBE_S", 0.2)
    topic = f"{topic_prefix}calls"
    notes: list[str] = []
    async with connected(creating_kafka) as producer:
        sending = asyncio.create_task(producer.send(topic, some(3), notes.append))
        await until(lambda: len(notes) > 3)
        assert set(notes) == {"topic_missing"}
        assert topic not in await asyncio.to_thread(creating_kafka.topics)
        await asyncio.to_thread(creating_kafka.create_topic, topic)
        assert await asyncio.wait_for(sending, 10) == []
    assert await values(creating_kafka, topic) == [one.value for one in some(3)]


async def test_a_topic_that_goes_away_is_waited_for(
    kafka: Cluster, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "PROBE_S", 0.2)
    notes: list[str] = []
    async with connected(kafka) as producer:
        await producer.send(topic, some(3), say_nothing)
        await asyncio.to_thread(kafka.delete_topic, topic)
        sending = asyncio.create_task(producer.send(topic, some(3, first=3), notes.append))
        await until(lambda: len(notes) > 2)
        assert set(notes) == {"topic_missing"}
        await asyncio.to_thread(kafka.create_topic, topic)
        assert await asyncio.wait_for(sending, 10) == []
    assert await values(kafka, topic) == [one.value for one in some(3, first=3)]


async def test_who_may_not_write_waits_for_somebody_who_mends_it(
    sasl_kafka: Cluster, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "PROBE_S", 0.2)
    topic = f"{topic_prefix}calls"
    sasl_kafka.create_topic(topic)
    sasl_kafka.revoke_write(topic)
    notes: list[str] = []
    async with connected(sasl_kafka) as producer:
        try:
            sending = asyncio.create_task(producer.send(topic, some(3), notes.append))
            await until(lambda: len(notes) > 2)
        finally:
            await asyncio.to_thread(sasl_kafka.grant_write, topic)
        assert set(notes) == {"not_authorized"}
        assert await asyncio.wait_for(sending, 10) == []
    assert await values(sasl_kafka, topic) == [one.value for one in some(3)]


@pytest.fixture
def answer_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the next answer say this of every partition, whatever became of the records."""
    decode = ProduceResponse.decode

    def prepare(code: int) -> None:
        codes = [code]

        def lie(data: Any) -> ProduceResponse:
            answer = decode(data)
            if codes:
                error = codes.pop()
                answer.results = [(partition, error) for partition, _ in answer.results]
            return answer

        monkeypatch.setattr(ProduceResponse, "decode", lie)

    return prepare


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (3, "topic_missing"),
        (5, "no_leader"),
        (6, "no_leader"),
        (7, "slow"),
        (19, "not_enough_replicas"),
        (20, "not_enough_replicas"),
        (29, "not_authorized"),
        (56, "broker_disk"),
        (2, "error_2"),
        (-1, "error_-1"),
    ],
)
async def test_what_passes_is_told_in_a_word_and_tried_again(
    kafka: Cluster, topic: str, answer_once: Callable[[int], None], code: int, word: str
) -> None:
    notes: list[str] = []
    async with connected(kafka) as producer:
        await producer.send(topic, some(2), say_nothing)
        answer_once(code)
        assert await producer.send(topic, some(2, first=2), notes.append) == []
        await producer.send(topic, some(2, first=4), say_nothing)
    assert notes == [word]
    assert await values(kafka, topic) == [one.value for one in some(6)], "it was there already"


async def test_a_partition_without_a_leader_is_waited_for(
    kafka: Cluster, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    async with connected(kafka) as producer:
        cluster = producer.client.cluster
        leaders = iter([-1, None])
        find = type(cluster).leader_for_partition
        monkeypatch.setattr(
            type(cluster), "leader_for_partition", lambda *asked: next(leaders, find(*asked))
        )
        assert await producer.send(topic, some(2), notes.append) == []
    assert notes == ["no_leader", "topic_missing"]
    assert await values(kafka, topic) == [one.value for one in some(2)]


async def test_what_kafka_calls_a_repeat_is_there(
    kafka: Cluster, topic: str, answer_once: Callable[[int], None]
) -> None:
    notes: list[str] = []
    async with connected(kafka) as producer:
        answer_once(46)  # DUPLICATE_SEQUENCE_NUMBER
        assert await producer.send(topic, some(2), notes.append) == []
        await producer.send(topic, some(2, first=2), notes.append)
    assert notes == []
    assert await values(kafka, topic) == [one.value for one in some(4)]


# When it is of no use any more


@pytest.mark.parametrize(
    ("code", "word"),
    [(45, "out_of_order"), (47, "fenced"), (59, "unknown_producer"), (90, "fenced")],
)
async def test_what_does_not_pass_breaks_it_for_everybody(
    kafka: Cluster, topic: str, answer_once: Callable[[int], None], code: int, word: str
) -> None:
    async with connected(kafka) as producer:
        answer_once(code)
        for _ in range(2):
            with pytest.raises(BrokenError) as raised:
                await producer.send(topic, some(1), say_nothing)
            assert raised.value.reason == word
        assert producer.broken.result() == word


async def test_a_gap_in_the_sequence_is_no_success(kafka: Cluster, topic: str) -> None:
    async with connected(kafka) as producer:
        await producer.send(topic, some(3), say_nothing)
        producer._sequences[topic, 0] += 7
        with pytest.raises(BrokenError, match="out_of_order"):
            await producer.send(topic, some(3, first=3), say_nothing)
    assert await values(kafka, topic) == [one.value for one in some(3)]


async def test_nobody_answering_for_long_breaks_it(
    proxied_kafka: Cluster, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    async with connected(proxied_kafka) as producer:
        await producer.send(topic, some(1), say_nothing)
        monkeypatch.setattr(producer_module, "HUNG_S", 1.0)
        monkeypatch.setattr(producer_module, "REQUEST_TIMEOUT_S", 0.1)
        proxied_kafka.proxy().black_hole()
        notes: list[str] = []
        begun = time.monotonic()
        with pytest.raises(BrokenError, match="hung"):
            await producer.send(topic, some(1), notes.append)
        assert 1.0 < time.monotonic() - begun < 4
        assert notes[0] == "slow"


async def test_having_had_nothing_to_do_for_long_does_not(
    proxied_kafka: Cluster, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    monkeypatch.setattr(producer_module, "HUNG_S", 2.0)
    async with connected(proxied_kafka) as producer:
        await producer.send(topic, some(1), say_nothing)
        producer._heard -= 1000
        proxied_kafka.proxy().cut()
        notes: list[str] = []
        assert await producer.send(topic, some(1, first=1), notes.append) == []
        assert notes, "the first try failed"
    assert await values(proxied_kafka, topic) == [one.value for one in some(2)]


async def test_it_closes_in_a_black_hole_and_ends_whoever_sends(
    proxied_kafka: Cluster, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    async with connected(proxied_kafka) as producer:
        await producer.send(topic, some(1), say_nothing)
        proxied_kafka.proxy().black_hole()
        sending = asyncio.create_task(producer.send(topic, some(20, 500_000), say_nothing))
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        await producer.close()
        assert time.monotonic() - begun < 2.5
        with pytest.raises(BrokenError, match="closed"):
            await asyncio.wait_for(sending, 5)


async def test_a_connection_that_is_being_opened_while_it_closes_is_closed_too(
    kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[AIOKafkaConnection] = []
    may_go_on = asyncio.Event()

    async def slow(*where: Any, **how: Any) -> AIOKafkaConnection:
        opened.append(await create_conn(*where, **how))
        await may_go_on.wait()
        return opened[-1]

    async with connected(kafka) as producer:
        monkeypatch.setattr("aiokafka.client.create_conn", slow)
        client = producer.client
        node = client.get_random_node()
        ready = asyncio.create_task(client.ready(node, group=ConnectionGroup.COORDINATION))
        await until(lambda: opened)
    may_go_on.set()
    await asyncio.wait([ready])
    assert not opened[0].connected()


async def test_who_may_not_be_a_producer_says_so(sasl_kafka: Cluster) -> None:
    reader = {"sasl_username": READER, "sasl_password": PASSWORDS[READER]}
    settings = settings_for(sasl_kafka, "", **reader)
    producer = Producer(client_options(Kafka(**settings["kafka"])))
    try:
        with pytest.raises(BrokenError, match="not_authorized"):
            await producer.start()
    finally:
        await producer.close()


async def test_who_cannot_become_a_producer_says_so(sasl_kafka: Cluster) -> None:
    settings = settings_for(sasl_kafka, "", sasl_password="invented-and-wrong")
    producer = Producer(client_options(Kafka(**settings["kafka"])))
    try:
        with pytest.raises(Exception, match=r"(?i)unable to bootstrap|authentication"):
            await producer.start()
    finally:
        await producer.close()
