"""A group on Kafka when things go wrong: members come and go, brokers go, records are gone."""

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from consumers.subscribe import NotNowError, Subscriber
from consumers.subscribe.outlet import Outlet
from ingest.eventlog.log import StoredRecord
from ingest.rejects import group_reject
from schemas.call import Call
from tests.consumers.subscribe.logs import (
    SOON_S,
    KafkaLog,
    call,
    read_all,
    running,
    until,
)
from tests.kafka.cluster import Cluster
from tests.kafka.fixtures import MakeCluster

#: Longer than a session, in seconds; 600 has been tried.
AWAY_S = float(os.environ.get("DIALSTREAM_TEST_AWAY_S", "14"))


def nth(call: Call) -> int:
    return int(call.custom_data or "-1")


class Handling:
    """Handlers of several members of one group in this process, and the judge over them."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._busy: set[str] = set()
        self.handled: dict[str, set[int]] = defaultdict(set)
        self.times: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []

    def member(self, log: KafkaLog) -> Subscriber:
        subscriber = Subscriber(group="crm", settings=log.settings)
        subscriber.on(Call)(self.handle)
        return subscriber

    async def handle(self, call: Call) -> None:
        leg, n = call.call_id, nth(call)
        if leg in self._busy:
            self.faults.append(f"{leg} {n}: two at a time")
        if n and n - 1 not in self.handled[leg]:
            self.faults.append(f"{leg} {n}: {n - 1} was skipped")
        self._busy.add(leg)
        try:
            await asyncio.sleep(random.random() * 2 * self._pause_s)
        finally:
            self._busy.remove(leg)
        self.handled[leg].add(n)
        self.times[leg, n] += 1

    @property
    def count(self) -> int:
        return sum(map(len, self.handled.values()))


async def test_a_storm_of_members_skips_nothing_and_handles_nothing_twice(
    kafka_log: KafkaLog,
) -> None:
    handling = Handling(pause_s=0.01)
    chance = random.Random(4)
    legs, events = 24, 40
    over = False

    async def come_and_go() -> None:
        while not over:
            async with running(handling.member(kafka_log)):
                await asyncio.sleep(0.5 + chance.random())
            await asyncio.sleep(chance.random() / 2)

    async with running(handling.member(kafka_log)) as stays, asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(come_and_go())
        for n in range(events):
            await kafka_log.write([call(f"leg{leg}", n) for leg in range(legs)])
            await asyncio.sleep(0.1)
        await until(lambda: handling.count == legs * events, stays)
        over = True
    assert handling.faults == []
    assert set(handling.times.values()) == {1}


async def test_a_handler_that_hangs_is_given_up_when_its_partition_goes(
    kafka_log: KafkaLog,
) -> None:
    hanging = asyncio.Event()
    cancelled: list[str] = []
    first = Subscriber(group="crm", leave_s=0.2, settings=kafka_log.settings)

    @first.on(Call, timeout_s=None)
    async def hang(call: Call) -> None:
        hanging.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(call.call_id)
            raise

    handled: list[str] = []
    second = Subscriber(group="crm", settings=kafka_log.settings)

    @second.on(Call)
    async def note(call: Call) -> None:
        assert call.call_id in cancelled  # not before it has been given up
        handled.append(call.call_id)

    legs = [str(n) for n in range(12)]
    await kafka_log.write([call(leg) for leg in legs])
    with capture_logs() as logs:
        async with running(first) as task:
            await hanging.wait()
            async with running(second) as other:
                # What stays with the first hangs there again.
                await until(lambda: bool(handled), other)
            assert not task.done()
        async with running(second) as other:
            await until(lambda: set(handled) == set(legs), other)
    (line, *_) = [line for line in logs if line["event"] == "handler_given_up"]
    assert line["handler"] == "hang"
    assert line["topic"] == "calls"


async def away_for(
    log: KafkaLog, handling: Handling, away: "Iterator[None]", wait_s: float
) -> None:
    """Write, lose the broker in the middle of it, get it back, write again; judge all of it."""
    legs = 12
    async with running(handling.member(log)) as one, running(handling.member(log)) as two:
        await log.write([call(f"leg{leg}", n) for n in range(20) for leg in range(legs)])
        await until(lambda: handling.count > legs * 5, one)
        await asyncio.to_thread(next, away)
        await asyncio.sleep(wait_s)
        assert not one.done()
        assert not two.done()
        await asyncio.to_thread(next, away)
        await log.write([call(f"leg{leg}", n) for n in range(20, 30) for leg in range(legs)])
        await until(lambda: handling.count == legs * 30, one)
        assert not two.done()
    # Who has not heard of the broker for longer than it waits may have lost its partitions.
    assert [fault for fault in handling.faults if "skipped" in fault] == []


@pytest.mark.timeout(300 + AWAY_S)
async def test_the_broker_says_nothing_for_longer_than_a_session(
    kafka: Cluster, kafka_log: KafkaLog
) -> None:
    def away() -> Iterator[None]:
        kafka.freeze()
        yield
        kafka.thaw()
        yield

    await away_for(kafka_log, Handling(pause_s=0.02), away(), wait_s=AWAY_S)


async def test_the_broker_is_killed_and_comes_back(
    make_cluster: MakeCluster, topic_prefix: str, tmp_path: Path
) -> None:
    cluster = make_cluster()
    log = KafkaLog.make(cluster, topic_prefix, tmp_path)

    def away() -> Iterator[None]:
        cluster.kill()
        yield
        cluster.start_broker()
        cluster.wait()
        yield

    await away_for(log, Handling(pause_s=0.02), away(), wait_s=5.0)


async def test_records_are_deleted_before_they_are_read_while_it_runs(
    kafka_log: KafkaLog,
) -> None:
    """Of one leg, forty megabytes: more than anybody reads ahead."""
    subscriber = Subscriber(group="crm", settings=kafka_log.settings)
    release = asyncio.Event()
    seen: list[int] = []

    @subscriber.on(Call, timeout_s=None)
    async def note(call: Call) -> None:
        await release.wait()
        seen.append(nth(call))

    def large(n: int) -> object:
        record = call("1", n)
        assert record.value is not None
        record.value = record.value.replace(b'"raw":{}', b'"raw":"' + b"x" * 40_000 + b'"')
        return record

    for first in range(0, 2000, 200):
        await kafka_log.write([large(n) for n in range(first, first + 200)])  # type: ignore[misc]
    with capture_logs() as logs:
        async with running(subscriber) as task:
            await until(lambda: subscriber.waiting >= 1000, task)
            await kafka_log.delete_all("calls")
            await kafka_log.write([call("1", 2000), call("1", 2001)])
            release.set()
            await until(lambda: 2001 in seen, task)
            while not await read_all(kafka_log, "gaps"):
                assert not task.done()
    read = seen[:-2]
    assert read == list(range(len(read)))  # what it had is handled
    assert 1000 <= len(read) < 2000
    assert seen[-2:] == [2000, 2001]
    (line,) = [line for line in logs if line["event"] == "records_skipped"]
    assert (line["topic"], line["expected"], line["found"]) == ("calls", len(read), 2000)


async def test_not_now_keeps_the_membership(kafka_log: KafkaLog) -> None:
    """All partitions wait for longer than a session lasts; nobody notices, then it goes on."""
    subscriber = Subscriber(group="crm", settings=kafka_log.settings)
    away = True
    tries = 0
    seen: list[str] = []

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        nonlocal tries
        if away:
            tries += 1
            raise NotNowError(0.5)
        seen.append(call.call_id)

    legs = [str(n) for n in range(24)]
    await kafka_log.write([call(leg) for leg in legs])
    async with running(subscriber) as task:
        await until(lambda: tries > 0, task)
        generation = subscriber._running._reader._consumer._coordinator.generation  # type: ignore[union-attr]
        await asyncio.sleep(13)
        away = False
        await until(lambda: len(seen) == len(legs), task)
        after = subscriber._running._reader._consumer._coordinator.generation  # type: ignore[union-attr]
    assert sorted(seen) == sorted(legs)
    assert after == generation
    assert tries < 4 * 40  # and it has not spun


async def test_without_its_rejects_topic_it_does_not_begin(
    kafka: Cluster, topic_prefix: str, tmp_path: Path
) -> None:
    """What could not be put aside would have to be lost, or stop everything."""
    from ingest.errors import ConfigError

    kafka.create_topic(f"{topic_prefix}calls")
    subscriber = Subscriber(group="crm", settings=KafkaLog(kafka, topic_prefix, tmp_path).settings)

    @subscriber.on(Call)
    async def note(call: Call) -> None: ...

    with pytest.raises(ConfigError, match="dialstream topics create --group crm"):
        await asyncio.wait_for(subscriber.run(), SOON_S)


async def test_what_was_cancelled_on_its_way_does_not_swallow_what_comes_next(
    kafka: Cluster, kafka_log: KafkaLog
) -> None:
    """Kafka would take the next reject for a repeat of the one whose answer nobody has read."""
    outlet = Outlet(kafka_log.settings)
    rejects = [group_reject(stored_call(nth), "crm", "no", "", 0) for nth in range(3)]
    await outlet.put(rejects[0])
    kafka.freeze()
    try:
        putting = asyncio.create_task(outlet.put(rejects[1]))
        await asyncio.sleep(0.5)  # it is on its way
        putting.cancel()
        await asyncio.wait([putting])
    finally:
        kafka.thaw()
    await outlet.put(rejects[2])
    await outlet.close()
    found = [dict(one.headers)["reject_from"] for one in await read_all(kafka_log, "rejects.crm")]
    assert found[0] == b"calls/0/0"
    assert b"calls/0/2" in found


def stored_call(nth: int) -> StoredRecord:
    record = call("1", nth)
    return StoredRecord(record.topic, 0, nth, 0, record.key, record.value, record.headers)
