"""The spool gives back what it took, in order; it may repeat after a crash, and never skips.

Run as a program it is an owner that appends and drains for ever, and says what it has done.
"""

import asyncio
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import apsw
import pytest
from structlog.testing import capture_logs

from ingest.errors import PublishError
from ingest.eventlog import journal as journal_module
from ingest.eventlog import spool as spool_module
from ingest.eventlog import topic as topic_module
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.segments import SAFE_JUMP, first_position, segment_paths
from ingest.eventlog.spool import Place, Spool, Waiting, look_into
from schemas.times import now_ms

MIB = 1024 * 1024

#: A segment takes about seven values of `value_of`.
SEGMENT_BYTES = 64 * 1024
MANY = 40

EVERYTHING = 10**9


def value_of(number: int) -> bytes:
    return b"%d:" % number + random.Random(number).randbytes(4000)


def number_of(record: StoredRecord) -> int:
    number = int((record.value or b"").partition(b":")[0])
    assert record.value == value_of(number)
    return number


@asynccontextmanager
async def opened(
    folder: Path, *topics: str, max_bytes: int = EVERYTHING, segment_bytes: int = SEGMENT_BYTES
) -> AsyncIterator[Spool]:
    spool = Spool(folder, max_bytes, segment_bytes)
    for topic in topics or ("calls",):
        spool.open(topic)
    try:
        yield spool
    finally:
        await spool.close()


async def append(spool: Spool, numbers: Sequence[int], topic: str = "calls") -> int:
    """Append values, some at a time; the last position."""
    position = 0
    for at in range(0, len(numbers), 5):
        told: list[int | None] = []
        records = [
            Record(topic, b"k", value_of(number), (("n", b"%d" % number),))
            for number in numbers[at : at + 5]
        ]
        assert await spool.publish(records, told.append).wait(math.inf) == "spool"
        assert told[0] is not None
        assert told[0] > position
        position = told[0]
    return position


async def take(spool: Spool, most: int = 10**6, topic: str = "calls") -> list[StoredRecord]:
    """Drain as its owner does, until there is nothing or so many were taken."""
    found: list[StoredRecord] = []
    unknown = 0
    while len(found) < most:
        chunk = await spool.read(topic, 20_000)
        if chunk is None:
            unknown += 1
            assert unknown < 10
            continue
        if not chunk:
            await spool.tidy(topic, empty=True)
            break
        found += chunk
        spool.drained(topic, chunk[-1].position, len(chunk))
        await spool.tidy(topic, empty=False)
    positions = [one.position for one in found]
    assert positions == sorted(set(positions))
    return found


def numbers(found: Sequence[StoredRecord]) -> list[int]:
    return list(map(number_of, found))


async def filled(folder: Path, many: int = MANY, segment_bytes: int = SEGMENT_BYTES) -> int:
    """A spool that somebody has filled and closed; its last position."""
    async with opened(folder, segment_bytes=segment_bytes) as spool:
        return await append(spool, range(many))


@pytest.fixture(autouse=True)
def _places_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_REMEMBER_S", 0.0)


# What is appended is read


async def test_what_is_appended_is_read_in_order_across_segments(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with opened(tmp_path) as spool:
        assert spool.places["calls"] == Place(stored_to=MANY, drained_to=0, records=MANY)
        await append(spool, range(MANY, MANY + 5))
        assert len(segment_paths(tmp_path / "calls")) > 3
        found = await take(spool)
    assert numbers(found) == list(range(MANY + 5))
    assert {(one.topic, one.key) for one in found} == {("calls", b"k")}
    assert found[3].headers == (("n", b"3"),)


async def test_tombstones_empty_values_and_odd_bytes_come_back_as_they_were(tmp_path: Path) -> None:
    everything = bytes(range(256))
    records = [
        Record("contacts", b"", None, ()),
        Record("contacts", everything, everything, (("all", everything), ("ä ☎", b""))),
        Record("contacts", b"k", b"", (("h", b"1"), ("h", b"1"))),
    ]
    async with opened(tmp_path, "contacts") as spool:
        await spool.publish(records, lambda _: None).wait(math.inf)
        found = await spool.read("contacts", MIB)
    assert found is not None
    assert [(one.key, one.value, one.headers) for one in found] == [
        (one.key, one.value, one.headers) for one in records
    ]


async def test_what_is_read_at_a_time_is_bounded_by_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path, segment_bytes=MIB) as spool:
        await append(spool, range(20))
        for max_bytes, most in ((1, 1), (4000, 1), (4500, 2), (20_000, 5)):
            assert len(await spool.read("calls", max_bytes) or ()) == most
        assert numbers(await spool.read("calls", 1) or ()) == [0], "it was read, not drained"


async def test_two_topics_do_not_disturb_each_other(tmp_path: Path) -> None:
    async with opened(tmp_path, "calls", "agents") as spool:
        await asyncio.gather(append(spool, range(10)), append(spool, range(50, 60), "agents"))
        assert numbers(await take(spool)) == list(range(10))
        waiting = spool.waiting()
        assert waiting.keys() == {"agents"}
        assert waiting["agents"].records == 10
    async with opened(tmp_path, "calls", "agents") as spool:
        assert spool.places["calls"].records == 0
        assert numbers(await take(spool, topic="agents")) == list(range(50, 60))


async def test_what_could_not_be_appended_is_told_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as spool:
        await append(spool, [0])
        told: list[int | None] = []
        with monkeypatch.context() as full:
            full.setattr(topic_module, "disk_full", lambda _: True)
            receipt = spool.publish([Record("calls", b"k", b"lost", ())], told.append)
            with pytest.raises(PublishError, match="disk_full"):
                await receipt.wait(math.inf)
        assert told == [None]
        assert spool.waiting()["calls"].records == 1
        assert numbers(await take(spool)) == [0]


# The place


async def test_the_place_survives_closing(tmp_path: Path) -> None:
    last = await filled(tmp_path)
    async with opened(tmp_path) as spool:
        taken = await take(spool, 17)
    async with opened(tmp_path) as spool:
        at = taken[-1].position
        assert spool.places["calls"] == Place(last, at, last - at)
        assert numbers(taken) + numbers(await take(spool)) == list(range(MANY))


def run_and_kill(folder: Path, first: int, report: Path) -> list[tuple[str, int]]:
    """Run an owner that appends from ``first`` on; what it said before it was killed."""
    with report.open("wb") as output:
        owner = subprocess.Popen([sys.executable, __file__, str(folder), str(first)], stdout=output)
    until, enough = time.monotonic() + 20, random.randint(2_000, 6_000)
    try:
        while report.stat().st_size < enough:
            assert owner.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        owner.kill()
        owner.wait()
    lines = [line for line in report.read_bytes().splitlines(keepends=True) if b"\n" in line]
    return [(word.decode(), int(number)) for word, number in map(bytes.split, lines)]


async def test_after_a_kill_records_are_repeated_and_never_skipped(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    for run in range(2):
        told += await asyncio.to_thread(
            run_and_kill, tmp_path / "spool", run * 100_000, tmp_path / f"report-{run}"
        )
    async with opened(tmp_path / "spool") as spool:
        left = numbers(await take(spool))
    appended = [number for word, number in told if word == "appended"]
    drained = [number for word, number in told if word == "drained"]
    assert len(drained) > 30
    assert drained[0] == 0
    assert set(appended) <= set(drained) | set(left), "acknowledged and skipped"
    first_times = list(dict.fromkeys([*drained, *left]))
    assert first_times == sorted(first_times), "a repeat goes back, and on from there in order"


LIES = {
    "nothing": b"",
    "garbage": b"garbage\n",
    "no text": b"\xff\xfe\x00\x01",
    "negative": b"-7\n",
    "just behind the end": b"%020d\n" % (MANY + 1),
    "far behind the end": b"9" * 20 + b"\n",
    "no number at all": b"9" * 5000,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_place_that_cannot_be_is_none(tmp_path: Path, lie: bytes) -> None:
    await filled(tmp_path)
    (tmp_path / "calls" / "drained").write_bytes(lie)
    async with opened(tmp_path) as spool:
        assert spool.places["calls"].records == MANY
        assert numbers(await take(spool)) == list(range(MANY))


async def test_a_place_that_was_behind_the_end_is_not_believed_later_either(tmp_path: Path) -> None:
    await filled(tmp_path, 5)
    (tmp_path / "calls" / "drained").write_bytes(b"%020d\n" % 8)
    spool = Spool(tmp_path, EVERYTHING)
    spool.open("calls")
    await append(spool, range(5, 12))  # and then it is killed
    async with opened(tmp_path) as following:
        assert numbers(await take(following)) == list(range(12))
    await spool.close()


# What is drained goes


@pytest.mark.parametrize("keep_bytes", [100_000, 10 * MIB], ids=["large", "small"])
async def test_what_is_drained_is_unlinked_and_positions_never_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_bytes: int
) -> None:
    monkeypatch.setattr(spool_module, "_KEEP_BYTES", keep_bytes)
    last = await filled(tmp_path, MANY, SEGMENT_BYTES if keep_bytes > MIB else MIB)
    for run in range(3):
        async with opened(tmp_path) as spool:
            place = spool.places["calls"]
            assert place == Place(last, 0 if run == 0 else last, MANY if run == 0 else 0)
            await append(spool, [1000 + run])
            expected = [*range(MANY), 1000] if run == 0 else [1000 + run]
            found = await take(spool)
            assert numbers(found) == expected
            assert found[-1].position > last
            last = found[-1].position
            (path,) = segment_paths(tmp_path / "calls")
            if keep_bytes < MIB and run == 0:
                assert first_position(path) == last + 1, "a large last one goes, too"
            assert spool.waiting() == {}
    assert sum(path.stat().st_size for path in (tmp_path / "calls").iterdir()) < 200_000


async def test_what_somebody_was_writing_to_when_it_was_drained_goes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_KEEP_BYTES", 100_000)
    async with opened(tmp_path, segment_bytes=MIB) as spool:
        await append(spool, range(MANY))
        (path,) = segment_paths(tmp_path / "calls")
        writer = apsw.Connection(str(path))
        writer.execute("begin immediate")
        assert numbers(await take(spool)) == [*range(MANY)]
        assert segment_paths(tmp_path / "calls") == [path]
        writer.execute("rollback")
        writer.close()
        await spool.measure()
        (following,) = segment_paths(tmp_path / "calls")
        assert following != path
        # What comes then is not touched.
        await append(spool, [1000])
        await spool.measure()
        assert numbers(await take(spool)) == [1000]


async def test_half_drained_segments_stay(tmp_path: Path) -> None:
    await filled(tmp_path)
    before = segment_paths(tmp_path / "calls")
    async with opened(tmp_path) as spool:
        taken = await take(spool, 17)
        after = segment_paths(tmp_path / "calls")
        assert after == [
            path
            for path, following in zip(before, [*before[1:], None], strict=True)
            if following is None or first_position(following) > taken[-1].position + 1
        ]
        assert len(after) < len(before)


# Damage


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xaa" * 20_000)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_noise(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [overwrite, truncate, replace_by_noise, empty]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_segment_is_read_as_far_as_it_goes_and_kept(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "calls"
    await filled(tmp_path, 4 * MANY, MIB // 4)
    paths = segment_paths(folder)
    in_it = range(first_position(paths[1]) - 1, first_position(paths[2]) - 1)
    damage(paths[1])
    damaged = paths[1].read_bytes()
    with capture_logs():
        async with opened(tmp_path) as spool:
            found = numbers(await take(spool))
    assert found == sorted(found)
    assert set(found) >= set(range(4 * MANY)) - set(in_it), "the others are whole"
    if damage in (overwrite, truncate):
        assert len(set(found) & set(in_it)) > len(in_it) // 3, "some of it can be read"
    kept = folder / f"{paths[1].name}.damaged"
    assert kept.read_bytes() == damaged, "somebody may still want to look into it"
    assert [path.name for path in folder.glob("*.sqlite.damaged")] == [kept.name]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("drained_first", [True, False])
async def test_a_damaged_last_segment_does_not_hold_up_what_comes(
    tmp_path: Path, damage: Callable[[Path], None], *, drained_first: bool
) -> None:
    folder = tmp_path / "calls"
    async with opened(tmp_path, segment_bytes=MIB) as spool:
        last = await append(spool, range(MANY))
    (path,) = segment_paths(folder)
    damage(path)
    with capture_logs():
        async with opened(tmp_path, segment_bytes=MIB) as spool:
            before = numbers(await take(spool)) if drained_first else []
            assert spool.waiting() == {} or not drained_first
            assert await append(spool, [1000, 1001]) > last
            after = numbers(await take(spool))
    assert after[-2:] == [1000, 1001]
    found = [*before, *after]
    assert found == sorted(found)
    if damage in (overwrite, truncate):
        assert len(found) > MANY // 4
    assert (folder / f"{path.name}.damaged").exists()


async def test_what_is_damaged_while_it_waits_is_kept_when_its_turn_comes(tmp_path: Path) -> None:
    await filled(tmp_path)
    path = segment_paths(tmp_path / "calls")[2]
    with capture_logs():
        async with opened(tmp_path) as spool:
            await take(spool, 1)
            replace_by_noise(path)
            found = numbers(await take(spool))
    assert found[-1] == MANY - 1
    assert path.with_name(f"{path.name}.damaged").exists()
    assert not path.exists()


async def test_what_nobody_can_read_does_not_wait(tmp_path: Path) -> None:
    await filled(tmp_path, 3)
    (path,) = segment_paths(tmp_path / "calls")
    replace_by_noise(path)
    with capture_logs():
        assert look_into(tmp_path) == {}
        async with opened(tmp_path) as spool:
            assert spool.waiting() == {}
            # What is appended must not be taken for what was there: positions go on behind.
            assert spool.places["calls"].stored_to < await append(spool, [4])
    assert first_position(segment_paths(tmp_path / "calls")[-1]) >= SAFE_JUMP


async def test_a_disk_that_says_nothing_at_the_moment_is_not_an_empty_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(tmp_path, 5)
    async with opened(tmp_path) as spool:
        with monkeypatch.context() as silent:
            silent.setattr(journal_module, "Segment", fail)
            spool._topics["calls"]._cursor.close()
            assert await spool.read("calls", MIB) is None
        assert numbers(await take(spool)) == list(range(5))


def fail(_: Path) -> None:
    raise apsw.CantOpenError


# How much there is


def du(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def test_a_full_spool_refuses_until_something_was_drained(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=300_000, segment_bytes=SEGMENT_BYTES) as spool:
        while not spool.full():
            await append(spool, range(5))
        assert du(tmp_path) > 250_000
        assert spool.minutes_left() == 0
        with pytest.raises(PublishError, match="spool_full"):
            await append(spool, [0])
        await take(spool)
        await spool.measure()
        assert not spool.full()
        await append(spool, [1])


async def test_a_spool_that_was_left_full_is_full(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with opened(tmp_path, max_bytes=100_000) as spool:
        assert spool.full()
        with pytest.raises(PublishError, match="spool_full"):
            spool.publish([Record("calls", b"k", b"", ())], lambda _: None)


async def test_the_minutes_that_are_left_follow_from_the_growth_of_the_last_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(spool_module, "time", SimpleNamespace(monotonic=lambda: now))
    async with opened(tmp_path, max_bytes=4 * MIB) as spool:
        assert spool.minutes_left() == math.inf
        sizes = []
        for _ in range(3):
            await append(spool, range(30))
            now += 20
            await spool.measure()
            sizes.append(du(tmp_path))
        # It was empty a minute ago.
        assert spool.minutes_left() == pytest.approx((4 * MIB - sizes[-1]) / sizes[-1], rel=0.05)

        now += 20
        await spool.measure()
        grown = sizes[-1] - sizes[0]
        left = (4 * MIB - sizes[-1]) / grown
        assert spool.minutes_left() == pytest.approx(left, rel=0.05), "only the last minute counts"

        now += 61
        await spool.measure()
        assert spool.minutes_left() == math.inf, "nothing comes"

        await append(spool, range(30))
        now += 5
        await spool.measure()
        assert 0 < spool.minutes_left() < left, "more quickly than before"

        await take(spool)
        now += 5
        await spool.measure()
        assert spool.minutes_left() == math.inf, "it shrinks"


async def test_a_disk_that_is_nearly_full_leaves_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as spool:
        usage = SimpleNamespace(total=100 * MIB, free=4 * MIB)
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        assert spool.minutes_left() == 0.0


async def test_the_age_is_that_of_the_first_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = now_ms()
    async with opened(tmp_path) as spool:
        await append(spool, range(3))
        monkeypatch.setattr(spool_module, "now_ms", lambda: begun + 60_000)
        assert 55 < spool.waiting()["calls"].oldest_s <= 60
    assert 55 < look_into(tmp_path)["calls"].oldest_s <= 60
    async with opened(tmp_path) as spool:
        await take(spool)
        await append(spool, [3])
        assert spool.waiting()["calls"].oldest_s < 5


# Beside its owner


async def test_others_may_look_into_it_at_any_time(tmp_path: Path) -> None:
    assert look_into(tmp_path) == {}
    async with opened(tmp_path) as spool:
        assert look_into(tmp_path) == {}
        await append(spool, range(MANY))
        await take(spool, 15)
        place = tmp_path / "calls" / "drained"
        before = place.read_bytes()
        seen = look_into(tmp_path)
        assert seen.keys() == {"calls"}
        assert seen["calls"].records == spool.waiting()["calls"].records
        assert isinstance(seen["calls"], Waiting)
        assert 100_000 < seen["calls"].size_bytes < MIB
        assert place.read_bytes() == before

        # While its owner is busy, too: nothing of the owner's is lost or stands twice.
        async def look() -> None:
            while not done.is_set():
                await asyncio.to_thread(look_into, tmp_path)

        done = asyncio.Event()
        looking = asyncio.create_task(look())
        await append(spool, range(MANY, MANY + 20))
        found = numbers(await take(spool))
        done.set()
        await looking
    assert found == list(range(found[0], MANY + 20))
    assert found[0] >= 15


# The owner that is killed


async def work(folder: Path, first: int) -> None:
    """Append and drain for ever; a line for each, once it is done."""
    spool_module._REMEMBER_S = 0.0
    spool_module._KEEP_BYTES = 40_000  # more than an empty one has

    def tell(word: str, number: int) -> None:
        os.write(1, b"%b %d\n" % (word.encode(), number))

    async def drain(spool: Spool) -> None:
        while True:
            chunk = await spool.read("calls", 20_000)
            if chunk:
                for record in chunk:
                    tell("drained", number_of(record))
                spool.drained("calls", chunk[-1].position, len(chunk))
            await spool.tidy("calls", empty=not chunk and not spool.waiting())
            await asyncio.sleep(0.01)

    async with opened(folder) as spool, asyncio.TaskGroup() as tasks:
        tasks.create_task(drain(spool))
        for number in count(first):
            await append(spool, [number])
            tell("appended", number)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2])))
