"""What a reader for a group tells whoever watches it, on the journal and on Kafka."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from ingest.eventlog.journal import journal_folder
from ingest.eventlog.kafka_reader import KafkaReader
from ingest.eventlog.kinds import open_group_reader
from ingest.eventlog.log import GroupReader, LostError, Place, Record, StoredRecord
from ingest.eventlog.segments import SAFE_JUMP, Segment, segment_paths
from tests.consumers.subscribe.logs import PARTITIONS, JournalLog, KafkaLog, Log

SOON_S = 60.0


@pytest.fixture(params=["journal", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    if request.param == "journal":
        return JournalLog(tmp_path)
    cluster = request.getfixturevalue("kafka")
    return KafkaLog.make(cluster, request.getfixturevalue("topic_prefix"), tmp_path)


class Watched:
    """Notes what it is told; commits what it was handed when partitions go, if it may."""

    def __init__(self) -> None:
        self.reader: GroupReader | None = None
        self.unhandled: list[StoredRecord] = []
        self.revocations: list[tuple[set[Place], bool]] = []
        self.skips: list[tuple[Place, int, int]] = []
        self.fault: Exception | None = None

    async def revoked(self, places: Collection[Place], *, lost: bool) -> None:
        self.revocations.append((set(places), lost))
        if self.reader is None or not self.unhandled:
            return
        try:
            await self.reader.commit(self.unhandled)
        except LostError as error:
            self.fault = error
        self.unhandled = []

    def skipped(self, place: Place, expected: int, found: int) -> None:
        self.skips.append((place, expected, found))


def record(key: str, value: str, topic: str = "calls") -> Record:
    return Record(topic, key.encode(), value.encode(), ())


async def take(reader: GroupReader, count: int) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    async with asyncio.timeout(SOON_S):
        while len(found) < count:
            found += await reader.fetch(wait_s=0.2)
    return found


def values(found: Sequence[StoredRecord]) -> set[bytes | None]:
    return {each.value for each in found}


async def test_the_ends_of_its_partitions_are_behind_their_last_records(log: Log) -> None:
    await log.write([record(f"k{n % 7}", f"{n}") for n in range(50)])
    async with open_group_reader(
        log.settings, ["calls", "gaps"], Watched(), group="g", start="earliest"
    ) as reader:
        last: dict[Place, int] = defaultdict(int)
        for each in await take(reader, 50):
            place = each.topic, each.partition
            last[place] = max(last[place], each.position)
        left = await reader.left()
    assert last
    assert {place: left[place].stop for place in last} == {p: at + 1 for p, at in last.items()}
    assert not any(left.values())
    assert {topic for topic, _ in left} == {"calls", "gaps"}


async def test_what_nobody_has_fetched_is_left(log: Log) -> None:
    await log.write([record(f"k{n % 7}", f"{n}") for n in range(50)])
    async with open_group_reader(
        log.settings, ["calls"], Watched(), group="g", start="earliest"
    ) as reader:
        found = await take(reader, 50)
        await reader.commit([each for each in found if each.partition == found[0].partition])
    async with open_group_reader(
        log.settings, ["calls"], Watched(), group="g", start="earliest"
    ) as reader:
        if isinstance(log, JournalLog):  # there it is ours once we have asked for something
            reader.hold([("calls", 0)])
            assert await reader.fetch(wait_s=0.1) == []
        async with asyncio.timeout(SOON_S):
            while not (left := await reader.left()):  # noqa: ASYNC110 - the cluster says so
                await asyncio.sleep(0.05)
    expected = Counter(each.partition for each in found)
    expected[found[0].partition] = 0
    assert {n: len(positions) for (_, n), positions in left.items()} == {
        n: expected[n] for _, n in left
    }
    assert len(left) == (1 if isinstance(log, JournalLog) else PARTITIONS)


async def test_what_was_deleted_unread_is_told_once_and_the_rest_is_read(log: Log) -> None:
    watched = Watched()
    await log.write([record("k", f"{n}") for n in range(10)])
    async with open_group_reader(
        log.settings, ["calls"], watched, group="g", start="earliest"
    ) as reader:
        found = await take(reader, 10)
        await reader.commit(found[:4])
    await log.delete_all("calls")
    await log.write([record("k", "new")])
    for _ in range(2):
        async with open_group_reader(
            log.settings, ["calls"], watched, group="g", start="earliest"
        ) as reader:
            new = await take(reader, 1)
            assert values(new) == {b"new"}
            await reader.commit(new)
        await log.write([record("k", "new")])
    place = "calls", found[0].partition
    assert watched.skips == [(place, found[4].position, new[0].position - 1)]


async def test_what_was_read_before_it_was_deleted_is_not_missed(log: Log) -> None:
    watched = Watched()
    await log.write([record("k", f"{n}") for n in range(10)])
    async with open_group_reader(
        log.settings, ["calls"], watched, group="g", start="earliest"
    ) as reader:
        await reader.commit(await take(reader, 10))
    await log.delete_all("calls")
    for group in ("g", "another"):
        await log.write([record("k", group)])
        async with open_group_reader(
            log.settings, ["calls"], watched, group=group, start="earliest"
        ) as reader:
            assert group.encode() in values(await take(reader, 1))
    assert watched.skips == []


async def test_latest_is_where_the_group_has_begun_also_if_nothing_came(log: Log) -> None:
    await log.write([record(f"k{n}", "old") for n in range(20)])
    async with open_group_reader(
        log.settings, ["calls", "gaps"], Watched(), group="g", start="latest"
    ) as reader:
        async with asyncio.timeout(SOON_S):
            while len(await reader.left()) < (2 if isinstance(log, JournalLog) else 2 * PARTITIONS):
                assert await reader.fetch(wait_s=0.1) == []
        assert await reader.fetch(wait_s=0.5) == []
    news = [record(f"k{n}", f"{n}") for n in range(20)] + [record("k", "gap", "gaps")]
    await log.write(news)  # while nobody is there
    async with open_group_reader(
        log.settings, ["calls", "gaps"], Watched(), group="g", start="latest"
    ) as reader:
        assert values(await take(reader, 21)) == {each.value for each in news}


async def test_partitions_go_once_their_work_is_committed(
    topic_prefix: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    log = KafkaLog.make(request.getfixturevalue("kafka"), topic_prefix, tmp_path)
    await log.write([record(f"k{n}", f"{n}") for n in range(40)])
    first, second = Watched(), Watched()
    async with open_group_reader(
        log.settings, ["calls"], first, group="g", start="earliest"
    ) as one:
        first.reader, first.unhandled = one, await take(one, 40)
        async with open_group_reader(
            log.settings, ["calls"], second, group="g", start="earliest"
        ) as two:
            async with asyncio.timeout(SOON_S):
                while not (await one.left() and await two.left()):
                    assert await one.fetch(wait_s=0.1) == []
                    assert await two.fetch(wait_s=0.1) == []
            assert len({*await one.left(), *await two.left()}) == PARTITIONS
    assert first.fault is None
    everything = {("calls", number) for number in range(PARTITIONS)}
    assert (everything, False) in first.revocations


@pytest.mark.timeout(200)
async def test_who_was_not_heard_of_has_lost_its_partitions(
    topic_prefix: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cluster = request.getfixturevalue("kafka")
    log = KafkaLog.make(cluster, topic_prefix, tmp_path)
    await log.write([record(f"k{n}", f"{n}") for n in range(40)])
    watched = Watched()
    async with open_group_reader(
        log.settings, ["calls"], watched, group="g", start="earliest"
    ) as reader:
        watched.reader, watched.unhandled = reader, await take(reader, 40)
        # As a process that was stopped for long: it does not say anything.
        reader._consumer._coordinator.reset_generation()  # type: ignore[attr-defined]
        assert len(await take(reader, 40)) == 40
    lost = [places for places, was_lost in watched.revocations if was_lost]
    assert {("calls", number) for number in range(PARTITIONS)} in lost


async def test_what_was_found_before_partitions_went_is_not_handed_out_after_it(
    topic_prefix: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """It would be handled by two: whoever has the partition now gets it from its beginning."""
    log = KafkaLog.make(request.getfixturevalue("kafka"), topic_prefix, tmp_path)
    async with open_group_reader(
        log.settings, ["calls"], Watched(), group="g", start="earliest"
    ) as one:
        assert isinstance(one, KafkaReader)
        async with asyncio.timeout(SOON_S):
            while not await one.left():
                assert await one.fetch(wait_s=0.1) == []
            await log.write([record(f"k{n}", f"{n}") for n in range(40)])
            # It has found some, and nobody has asked for them yet.
            while one._looking is None or not one._looking.done():
                if one._looking is None:
                    one._looking = asyncio.create_task(one._look(0.5))
                await asyncio.sleep(0.01)
                if one._looking.done() and not one._looking.result()[1]:
                    one._looking = None
        async with open_group_reader(
            log.settings, ["calls"], Watched(), group="g", start="earliest"
        ) as two:
            found: list[StoredRecord] = []
            async with asyncio.timeout(SOON_S):
                # Those of the first have gone once the second has some.
                while not await two.left():  # noqa: ASYNC110 - the cluster says so
                    await asyncio.sleep(0.05)
                while len(found) < 40:
                    found += await one.fetch(wait_s=0.1)
                    found += await two.fetch(wait_s=0.1)
            found += await one.fetch(wait_s=0.5)
            found += await two.fetch(wait_s=0.5)
    assert sorted(int(each.value or b"") for each in found) == list(range(40))


# On the journal positions are left out, too, where nothing was lost


async def test_positions_that_a_bad_disk_has_used_up_are_not_missed(tmp_path: Path) -> None:
    log, watched = JournalLog(tmp_path), Watched()
    await log.write([record("k", "1"), record("k", "2")])
    folder = journal_folder(log.settings.eventlog.path) / "calls"
    Segment.create(folder, 2 + SAFE_JUMP)
    await log.write([record("k", "3")])
    async with open_group_reader(
        log.settings, ["calls"], watched, group="g", start="earliest"
    ) as reader:
        found = await take(reader, 3)
    assert [each.position for each in found] == [1, 2, 2 + SAFE_JUMP]
    assert watched.skips == []


async def test_of_a_compacted_topic_nothing_is_missed(tmp_path: Path) -> None:
    """What was still the last of its key was copied forward before its segment went."""
    log, watched = JournalLog(tmp_path), Watched()
    await log.write([record("k", "1", "contacts"), record("k", "2", "contacts")])
    async with open_group_reader(
        log.settings, ["contacts"], watched, group="g", start="earliest"
    ) as reader:
        await reader.commit((await take(reader, 2))[:1])
    folder = journal_folder(log.settings.eventlog.path) / "contacts"
    (old,) = segment_paths(folder)
    Segment.create(folder, 1000)
    await log.write([record("k", "2", "contacts")])
    old.unlink()
    async with open_group_reader(
        log.settings, ["contacts"], watched, group="g", start="earliest"
    ) as reader:
        assert [each.position for each in await take(reader, 1)] == [1000]
    assert watched.skips == []
