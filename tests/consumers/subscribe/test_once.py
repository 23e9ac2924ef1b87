"""Effects exactly once: what `once` says, and the example, killed again and again."""

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from consumers.subscribe import ONCE_TABLE, Deleted, Event, once
from ingest.eventlog.log import Record, StoredRecord
from schemas.base import Model
from schemas.call import Call
from tests.consumers.subscribe.logs import (
    SOON_S,
    KafkaLog,
    Log,
    call,
    conversation,
    tombstone,
)
from tests.kit import PROJECT, clean_environment

EXAMPLE = PROJECT / "deploy" / "examples" / "exactly_once.py"

KILLS = int(os.environ.get("DIALSTREAM_TEST_KILLS", "4"))

CALLS, AGENTS = 400, 7


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as made:
        made.execute(ONCE_TABLE)
        made.execute(ONCE_TABLE)  # it may be there
        yield made


def event(record: Record, position: int, partition: int = 0) -> Event[Model]:
    stored = StoredRecord(
        record.topic, partition, position, 0, record.key, record.value, record.headers
    )
    return Event(stored, Call.model_construct())  # type: ignore[call-arg]


def deleted(name: str, position: int) -> Deleted:
    record = tombstone(name)
    return Deleted(StoredRecord(record.topic, 0, position, 0, record.key, None, ()))


def test_an_event_is_known_by_its_id(db: sqlite3.Connection) -> None:
    first = event(call("1", 1), 5)
    assert once(db.cursor(), first)
    assert not once(db.cursor(), first)
    assert not once(db.cursor(), event(call("1", 1), 9))  # a repeat, later on the log
    assert once(db.cursor(), event(call("1", 2), 6))
    assert once(db.cursor(), event(call("2", 1), 7))


def test_a_state_may_come_again_and_an_older_one_may_not(db: sqlite3.Connection) -> None:
    """By its place: the same row of the ledger is news if another one stood in between."""
    first, second = conversation("7", "a"), conversation("7", "b")
    assert once(db.cursor(), event(first, 1))
    assert not once(db.cursor(), event(first, 1))
    assert once(db.cursor(), event(second, 2))
    assert once(db.cursor(), event(first, 3))
    assert not once(db.cursor(), event(second, 2))  # killed before it was committed
    assert once(db.cursor(), deleted("7", 4))
    assert not once(db.cursor(), deleted("7", 4))
    assert once(db.cursor(), event(first, 5))
    assert once(db.cursor(), event(first, 0, partition=1))  # the topic was made anew


def test_several_effects_of_an_event_are_told_apart(db: sqlite3.Connection) -> None:
    """Two handlers, or two groups, that share a database: the second has its effects, too."""
    for one in (event(call("1", 1), 5), event(conversation("7", "a"), 1), deleted("8", 2)):
        for first in (True, False):
            assert once(db.cursor(), one) is first
            assert once(db.cursor(), one, effect="crm") is first
            assert once(db.cursor(), one, effect="reporting") is first


def test_it_is_part_of_the_transaction(db: sqlite3.Connection) -> None:
    first = event(call("1", 1), 5)

    def fail() -> None:
        with db:
            assert once(db.cursor(), first)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with db:
        assert once(db.cursor(), first)
    assert not once(db.cursor(), first)


@pytest.mark.timeout(400)
async def test_the_example_counts_each_call_once_however_often_it_is_killed(
    log: Log, tmp_path: Path
) -> None:
    chance = random.Random(os.urandom(4))
    eventlog = log.settings.eventlog
    environment = {
        "PYTHONPATH": str(PROJECT),
        "DIALSTREAM_EVENTLOG__KIND": eventlog.kind,
        "DIALSTREAM_EVENTLOG__PATH": str(eventlog.path),
    }
    if isinstance(log, KafkaLog):
        log.cluster.create_topic(f"{log.prefix}rejects.reporting", partitions=4)
        environment["DIALSTREAM_KAFKA__BOOTSTRAP_SERVERS"] = log.cluster.bootstrap
        environment["DIALSTREAM_KAFKA__TOPIC_PREFIX"] = log.prefix
    stderr = tmp_path / "stderr.txt"

    def start() -> subprocess.Popen[bytes]:
        with stderr.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, str(EXAMPLE), str(tmp_path / "calls.sqlite")],
                cwd=tmp_path,
                env=clean_environment(**environment),
                stderr=errors,
            )

    def counted() -> dict[str, int]:
        with closing(sqlite3.connect(tmp_path / "calls.sqlite", timeout=20)) as db:
            try:
                return dict(db.execute("select name, calls from agents"))
            except sqlite3.OperationalError:  # it is not made yet
                return {}

    records = [call(f"{n}", 0, agent=f"agent {n % AGENTS}") for n in range(CALLS)]
    await log.write(records + records[: CALLS // 4])  # and some of them again
    wanted = {f"agent {agent}": len(range(agent, CALLS, AGENTS)) for agent in range(AGENTS)}
    process = start()
    try:
        async with asyncio.timeout(4 * SOON_S):
            # Kafka takes ten seconds to believe that somebody is dead.
            for _ in range(KILLS // 2 if isinstance(log, KafkaLog) else KILLS):
                before = sum(counted().values())
                while sum(counted().values()) <= before < CALLS:
                    assert process.poll() is None, stderr.read_text()
                    await asyncio.sleep(0.01)
                await asyncio.sleep(chance.random() / 5)
                process.kill()
                process.wait(10)
                process = start()
            while sum(counted().values()) < CALLS:
                assert process.poll() is None, stderr.read_text()
                await asyncio.sleep(0.05)
            # What would be counted twice comes before what comes last.
            last = [call(f"last {n}", 0, agent="the last") for n in range(20)]
            await log.write(last)
            while counted().get("the last", 0) < len(last):
                assert process.poll() is None, stderr.read_text()
                await asyncio.sleep(0.05)
        assert counted() == wanted | {"the last": len(last)}
        process.terminate()
        assert await asyncio.to_thread(process.wait, SOON_S) == 0
    finally:
        process.kill()
        process.wait(10)
