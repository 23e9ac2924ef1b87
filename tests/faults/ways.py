"""The ways in which Kafka fails, and the table of them.

Each is a context manager: broken within, whole again behind it. They block.
"""

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from ingest.eventlog.log import Record
from ingest.eventlog.producer import BrokenError, Producer
from tests.faults.stage import Stage

#: Of the topic, while it takes nothing larger; most events are smaller, most batches are not.
TOPIC_BYTES = 30_000


class On(StrEnum):
    """The cluster that is needed."""

    JOURNAL = "none"
    ONE = "one broker"
    SECURED = "one that gives rights"
    THREE = "three brokers"


# Silence, and a bad line


@contextmanager
def stopped(stage: Stage) -> Iterator[None]:
    stage.kafka.freeze()
    yield
    stage.kafka.thaw()
    stage.kafka.wait()


@contextmanager
def killed(stage: Stage) -> Iterator[None]:
    stage.kafka.kill()
    yield
    stage.kafka.start_broker()
    stage.kafka.wait()


@contextmanager
def refused(stage: Stage) -> Iterator[None]:
    for line in stage.lines:
        line.refuse()
    yield
    stage.restore_lines()


@contextmanager
def black_hole(stage: Stage) -> Iterator[None]:
    for line in stage.lines:
        line.black_hole()
    yield
    stage.restore_lines()


@contextmanager
def slow(seconds: float, stage: Stage) -> Iterator[None]:
    for line in stage.lines:
        line.delay(seconds)
    yield
    stage.restore_lines()


# Replicas and leaders


@contextmanager
def without(brokers: tuple[int, ...], stage: Stage) -> Iterator[None]:
    for broker in brokers:
        stage.kafka.kill(broker)
    yield
    for broker in brokers:
        stage.kafka.start_broker(broker)
    stage.kafka.wait()
    stage.kafka.wait_in_sync(stage.topic)


@contextmanager
def leader_lost_with_its_data(stage: Stage) -> Iterator[None]:
    """A second long the others get nothing from it: what it alone has may not count as stored."""
    lost = stage.kafka.leader(stage.topic)
    others = [broker.id for broker in stage.kafka.brokers if broker.id != lost]
    for other in others:
        stage.kafka.freeze(other)
    time.sleep(1)
    stage.kafka.kill(lost)
    for other in others:
        stage.kafka.thaw(other)
    stage.kafka.lose_data(lost)
    yield
    stage.kafka.start_broker(lost)
    stage.kafka.wait()
    stage.kafka.wait_in_sync(stage.topic)


# What a cluster's people do


@contextmanager
def topic_deleted(stage: Stage) -> Iterator[None]:
    # What is on the topic goes with it, by our hand: it is read before. Nothing is acknowledged
    # between the two, as no answer passes meanwhile.
    for line in stage.lines:
        line.black_hole()
    stage.gone += stage.values(stage.topic)
    stage.kafka.delete_topic(stage.topic)
    stage.restore_lines()
    yield
    stage.create_topic()


@contextmanager
def access_revoked(stage: Stage) -> Iterator[None]:
    stage.kafka.revoke_write(stage.topic)
    yield
    stage.kafka.grant_write(stage.topic)


@contextmanager
def too_large(stage: Stage) -> Iterator[None]:
    stage.kafka.alter_topic(stage.topic, {"max.message.bytes": str(TOPIC_BYTES)})
    stage.restore_lines()  # batches are halved, and halved again: that takes many answers
    yield
    stage.kafka.alter_topic(stage.topic, {"max.message.bytes": str(4 * 1024 * 1024)})


@contextmanager
def fenced(stage: Stage) -> Iterator[None]:
    """Another producer with the same id and a greater epoch, as a zombie sees its successor.

    What it writes is a repeat of what is there: that is nobody's loss.
    """
    before = len(stage.product.log("kafka_given_up"))
    asyncio.run(_fence(stage))
    yield
    said = stage.product.wait_for_log("kafka_given_up", before + 1)
    assert "fenced" in [line["reason"] for line in said], f"the producer was not fenced: {said}"


async def _fence(stage: Stage) -> None:
    first = {message.partition(): message for message in stage.kafka.records(stage.topic)[::-1]}
    producer = Producer({"bootstrap_servers": stage.kafka.bootstrap})
    await producer.start()
    try:
        for partition, message in first.items():
            producer._id, producer._epoch = _last_producer(stage, partition or 0)
            producer._epoch += 1
            record = Record(stage.name, message.key() or b"", message.value(), ())
            with contextlib.suppress(BrokenError):
                await producer.send(stage.topic, [record], print)
    finally:
        await producer.close()


def _last_producer(stage: Stage, partition: int) -> tuple[int, int]:
    """Id and epoch in the header of the partition's last batch, as it is on the broker's disk.

    https://kafka.apache.org/documentation/#recordbatch
    """
    folder = stage.kafka.broker().data / f"{stage.topic}-{partition}"
    data = max(folder.glob("*.log")).read_bytes()
    at = 0
    found = (-1, -1)
    while at + 61 <= len(data):
        (size,) = struct.unpack_from(">i", data, at + 8)
        found = struct.unpack_from(">qh", data, at + 43)
        at += 12 + size
    return found


# The table


@dataclass(frozen=True, slots=True)
class Way:
    """One way to fail."""

    name: str
    breaks: Callable[[Stage], AbstractContextManager[None]]
    #: What /readyz says is in the way, where that can be known.
    word: str = ""
    on: On = On.ONE
    #: How the topic of calls is made.
    topic: Mapping[str, Any] = field(default_factory=lambda: {"partitions": 4})
    #: For how long it lasts: longer than a record may wait for Kafka.
    hold_s: float = 3.5
    #: Whether it alone brings records to the spool.
    spools: bool = True


_TWO_REPLICAS = {"assignment": [[0, 1]] * 4, "config": {"min.insync.replicas": "2"}}
_ONE_LEADER = {"assignment": [[0, 1, 2]] * 4, "config": {"min.insync.replicas": "2"}}
_ONE_REPLICA = {"assignment": [[0], [1], [2], [0]], "config": {"min.insync.replicas": "1"}}

WAYS = (
    Way("stopped", stopped),
    Way("killed", killed),
    Way("refused", refused),
    Way("black hole", black_hole),
    Way("stopped for long", stopped, "unreachable", hold_s=40),
    Way("black hole for long", black_hole, "unreachable", hold_s=40),
    Way("slow by 1.5 s", partial(slow, 1.5), hold_s=6),
    Way("slow by 2.5 s", partial(slow, 2.5), hold_s=6),
    Way("topic deleted", topic_deleted, "topic_missing"),
    Way("record too large", too_large, spools=False),
    Way("producer fenced", fenced, hold_s=1),
    Way("access revoked", access_revoked, "not_authorized", On.SECURED),
    Way("replica away", partial(without, (1,)), "not_enough_replicas", On.THREE, _TWO_REPLICAS, 7),
    Way("two of three away", partial(without, (1, 2)), on=On.THREE),
    Way("no leader", partial(without, (1,)), "no_leader", On.THREE, _ONE_REPLICA, 7),
    Way("leader and data lost", leader_lost_with_its_data, "", On.THREE, _ONE_LEADER, 8),
)
