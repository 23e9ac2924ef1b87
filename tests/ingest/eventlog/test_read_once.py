"""Reading a topic once, up to a time."""

import gc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Producer

from ingest.errors import ConfigError
from ingest.eventlog.journal import journal_folder
from ingest.eventlog.kinds import read_once
from ingest.eventlog.log import Record
from ingest.eventlog.segments import Segment, segment_paths
from ingest.settings import Settings
from schemas.times import now_ms
from tests.kafka.cluster import Cluster

COUNT, WANTED, EARLY = 8000, 1500, 5

#: A second apart.
BEGIN_MS = now_ms() - COUNT * 1000


def written() -> Iterator[tuple[int, bytes]]:
    """(milliseconds since 1970, value); one was early with its clock."""
    for nth in range(COUNT):
        yield BEGIN_MS + (COUNT if nth == EARLY else nth) * 1000, str(nth).encode()


@pytest.fixture(params=["journal", "kafka"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """A log that has them, those of one key in a partition of their own."""
    if request.param == "journal":
        folder = journal_folder(tmp_path) / "calls"
        folder.mkdir(parents=True)
        Segment.create(folder, 1)
        with closing(Segment(segment_paths(folder)[-1])) as segment, segment.writing():
            for at_ms, value in written():
                segment.insert([Record("calls", b"acme/1", value, ())], at_ms)
        return Settings.model_validate({"eventlog": {"path": str(tmp_path)}})
    kafka: Cluster = request.getfixturevalue("kafka")
    prefix = request.getfixturevalue("topic_prefix")
    kafka.create_topic(f"{prefix}calls", partitions=2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for at_ms, value in written():
        producer.produce(f"{prefix}calls", value, partition=int(value) % 2, timestamp=at_ms)
    assert producer.flush(60) == 0
    return Settings.model_validate({"eventlog": {"kind": "kafka"}, "kafka": kafka.settings(prefix)})


async def test_what_was_written_later_is_not_all_read(settings: Settings) -> None:
    everything = [int(each.value or b"") async for each in read_once(settings, ["calls"])]
    assert sorted(everything) == list(range(COUNT))
    until_ms = BEGIN_MS + WANTED * 1000
    found = [
        int(each.value or b"") async for each in read_once(settings, ["calls"], until_ms=until_ms)
    ]
    assert set(range(WANTED + 1)) <= set(found)
    assert len(found) == len(set(found)) < COUNT / 2


async def test_a_cluster_that_falls_silent_meanwhile_is_told(
    proxied_kafka: Cluster, topic_prefix: str
) -> None:
    proxied_kafka.create_topic(f"{topic_prefix}calls", partitions=2)
    producer = Producer({"bootstrap.servers": proxied_kafka.bootstrap})
    producer.produce(f"{topic_prefix}calls", b"1")
    assert producer.flush(60) == 0
    settings = Settings.model_validate(
        {"eventlog": {"kind": "kafka"}, "kafka": proxied_kafka.settings(topic_prefix)}
    )
    reading = read_once(settings, ["calls"])
    assert (await anext(reading)).value == b"1"
    proxied_kafka.freeze()
    with pytest.raises(ConfigError, match="cannot be read"):
        await anext(reading)
    gc.collect()  # what is left open is told then, and fails the test
