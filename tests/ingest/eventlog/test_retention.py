"""The journal forgets what is over, and nothing else."""

import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest.eventlog import journal, retention
from ingest.eventlog.journal import journal_folder, open_journal, open_reader
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.retention import ROLL_AGE_S, TOMBSTONE_S, tidy
from ingest.eventlog.segments import Segment, segment_paths, unlink_segment
from ingest.eventlog.topic import TopicWriter
from schemas.topics import DAY_S, TOPICS

NOW_MS = 1_790_000_000_000
DAY_MS = DAY_S * 1000
FOREVER = 10**15

#: When, which key, and what; None is a tombstone.
Written = tuple[int, str, str | None]


def days_ago(days: float) -> int:
    return NOW_MS - int(days * DAY_MS)


def fill(folder: Path, topic: str, *segments: Sequence[Written]) -> None:
    """Make a topic of these segments; all but the last are sealed."""
    (folder / topic).mkdir(parents=True)
    first = 1
    for number, segment in enumerate(segments):
        Segment.create(folder / topic, first)
        file = Segment(segment_paths(folder / topic)[-1])
        for written_ms, key, value in segment:
            one = Record(topic, key.encode(), None if value is None else value.encode(), ())
            file.append([one], written_ms)
        if number < len(segments) - 1:
            file.seal()
        first = file.following()
        file.close(checkpoint=True)


def stored(folder: Path, topic: str) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    for path in segment_paths(folder / topic):
        with closing(Segment(path)) as segment:
            found += segment.read(topic, 0)
    assert all(earlier.position < later.position for earlier, later in pairwise(found))
    return found


def values(folder: Path, topic: str) -> list[str]:
    return [(one.value or b"-").decode() for one in stored(folder, topic)]


def last_of_keys(records: Sequence[StoredRecord]) -> dict[bytes, bytes | None]:
    """What a reader who starts at the beginning ends with."""
    return {one.key: one.value for one in records}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return journal_folder(tmp_path)


# --- age ----------------------------------------------------------------------------------------


def test_segments_go_once_all_their_records_are_too_old(folder: Path) -> None:
    fill(
        folder,
        "calls",
        [(days_ago(40), "k", "a"), (days_ago(31), "k", "b")],
        [(days_ago(31), "k", "c"), (days_ago(29), "k", "d")],
        [(days_ago(28), "k", "e")],
        [(days_ago(1), "k", "f")],
    )
    with capture_logs() as logs:
        usage = tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)

    assert values(folder, "calls") == ["c", "d", "e", "f"]
    assert [(entry["event"], entry["topic"]) for entry in logs] == [("segment_expired", "calls")]
    assert usage["calls"].segments == 3
    assert usage["calls"].size_bytes == sum(
        file.stat().st_size for file in (folder / "calls").iterdir() if "-shm" not in file.name
    )


def test_a_topic_keeps_its_records_as_long_as_it_says(folder: Path) -> None:
    for topic in ("calls", "gaps", "contacts"):
        fill(folder, topic, [(days_ago(60), "k", "old")], [(days_ago(1), "other", "new")])
    tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)

    assert values(folder, "calls") == ["new"]  # 30 days
    assert values(folder, "gaps") == ["old", "new"]  # 90 days
    assert values(folder, "contacts") == ["old", "new"]  # the last one of each key


def test_what_a_group_could_not_handle_is_forgotten_as_rejects_are(folder: Path) -> None:
    fill(folder, "rejects.crm", [(days_ago(40), "a", "old")], [(days_ago(1), "b", "young")])
    left = tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
    assert values(folder, "rejects.crm") == ["young"]
    assert left["rejects.crm"].segments == 1


def test_a_topic_on_which_nothing_happens_any_more_forgets_too(folder: Path) -> None:
    fill(folder, "calls", [(days_ago(0), "k", "a")])
    with closing(Segment(segment_paths(folder / "calls")[0])) as segment:
        last = segment.last()
    for day in range(50):
        tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS + day * DAY_MS)
        assert values(folder, "calls") == (["a"] if day <= 30 else [])

    with closing(TopicWriter(folder / "calls")) as writer:
        writer.append([Record("calls", b"k", b"b", ())])
    (record,) = stored(folder, "calls")
    assert record.position > last


def test_a_young_segment_is_left_open(folder: Path) -> None:
    fill(folder, "calls", [(NOW_MS - ROLL_AGE_S * 1000 + 1, "k", "a")])
    tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
    assert len(segment_paths(folder / "calls")) == 1


# --- size ---------------------------------------------------------------------------------------


def test_the_oldest_segments_go_first_when_there_is_too_much(folder: Path) -> None:
    size = "x" * 100_000
    for topic, day in (("calls", 9), ("messages", 10), ("contacts", 20)):
        fill(folder, topic, *([(days_ago(day - 2 * n), f"k{n}", f"{n}{size}")] for n in range(4)))
    usage = tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
    total = sum(used.size_bytes for used in usage.values())
    one = usage["calls"].size_bytes // 4

    def left() -> dict[str, list[str]]:
        return {
            topic: [value[0] for value in values(folder, topic)]
            for topic in ("calls", "messages", "contacts")
        }

    everything = {topic: ["0", "1", "2", "3"] for topic in ("calls", "messages", "contacts")}
    assert left() == everything
    tidy(folder, max_bytes=total - one // 2, now_ms=NOW_MS)
    assert left() == {**everything, "messages": ["1", "2", "3"]}

    with capture_logs() as logs:
        usage = tidy(folder, max_bytes=total - one * 7 // 2, now_ms=NOW_MS)
    assert left() == {**everything, "calls": ["2", "3"], "messages": ["2", "3"]}
    assert [entry["event"] for entry in logs] == ["segment_trimmed"] * 3
    assert sum(used.size_bytes for used in usage.values()) <= total - one * 7 // 2

    tidy(folder, max_bytes=0, now_ms=NOW_MS)  # neither what is appended to nor what is compacted
    assert left() == {**everything, "calls": ["3"], "messages": ["3"]}


# --- compaction ---------------------------------------------------------------------------------


def test_what_is_still_the_last_of_its_key_is_copied_forward(folder: Path) -> None:
    fill(
        folder,
        "contacts",
        [(days_ago(3), "a", "a1"), (days_ago(3), "b", "b1"), (days_ago(3), "c", "c1")],
        [(days_ago(3), "a", "a2"), (days_ago(3), "b", "b2"), (days_ago(3), "a", "a3")],
        [(days_ago(2), "b", "b3"), (days_ago(2), "d", "d1")],
    )
    positions = {one.value: one.position for one in stored(folder, "contacts")}
    with capture_logs() as logs:
        tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)

    assert values(folder, "contacts") == ["b3", "d1", "c1", "a3"]
    assert [entry["kept"] for entry in logs] == [1, 1]
    assert min(one.position for one in stored(folder, "contacts")[2:]) > max(positions.values())
    assert len(segment_paths(folder / "contacts")) == 1


def test_nothing_is_copied_while_most_of_it_is_still_needed(folder: Path) -> None:
    fill(
        folder,
        "contacts",
        [(days_ago(3), key, key) for key in "abcde"],
        [(days_ago(2), key, key) for key in "ab"],
    )
    before = stored(folder, "contacts")
    tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
    assert stored(folder, "contacts") == before


def test_a_tombstone_stays_for_a_day_and_then_goes_with_what_it_buries(folder: Path) -> None:
    just_ms = TOMBSTONE_S * 1000
    fill(
        folder,
        "contacts",
        [(days_ago(3), "old", "x"), (days_ago(3), "new", "x"), (days_ago(3), "back", "x")],
        [(NOW_MS - just_ms, "old", None), (NOW_MS - just_ms + 1, "new", None)],
        [(days_ago(3), "back", None), (days_ago(3), "back", "again")],
        [],
    )
    tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)

    found = stored(folder, "contacts")
    assert [(one.key, one.value) for one in found] == [(b"new", None), (b"back", b"again")]


@pytest.mark.parametrize(("days", "is_gone"), [(6, False), (8, True)])
def test_what_a_tombstone_buries_goes_in_time_although_most_is_still_needed(
    folder: Path, days: float, *, is_gone: bool
) -> None:
    needed = [(days_ago(60), f"needed {number}", "still") for number in range(9)]
    fill(
        folder,
        "contacts",
        [(days_ago(60), "erased", "somebody"), *needed],
        [(days_ago(days), "erased", None), (days_ago(days), "other", "still")],
        [(days_ago(1), "another", "new")],
    )
    before = stored(folder, "contacts")
    for _ in range(2):
        tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
        found = stored(folder, "contacts")
        if is_gone:
            assert sorted(values(folder, "contacts")) == ["new", *["still"] * 10]
            before = found  # once it is done it is not done again
        else:
            assert found == before


def test_what_is_younger_than_the_lag_is_not_compacted(folder: Path) -> None:
    assert TOPICS["checkpoints"].compaction_lag_s == 3 * DAY_S
    fill(
        folder,
        "checkpoints",
        [(days_ago(9), "k", "1"), (days_ago(4), "k", "2")],
        [(days_ago(4), "k", "3"), (days_ago(2), "k", "4")],
        [(days_ago(1), "k", "5")],
    )
    tidy(folder, max_bytes=0, now_ms=NOW_MS)
    assert values(folder, "checkpoints") == ["3", "4", "5"]
    tidy(folder, max_bytes=0, now_ms=NOW_MS + 2 * DAY_MS)
    assert values(folder, "checkpoints") == ["5"]


KEYS = st.sampled_from("abcd")
WRITTEN = st.tuples(st.integers(0, 4), KEYS, st.one_of(st.none(), st.sampled_from("xyz")))


@settings(max_examples=25)
@given(
    segments=st.lists(st.lists(WRITTEN, min_size=1, max_size=6), min_size=1, max_size=5),
    days=st.integers(0, 9),
)
def test_compaction_changes_nothing_for_who_reads_to_the_end(
    tmp_path_factory: pytest.TempPathFactory,
    segments: list[list[Written]],
    days: int,
) -> None:
    folder = tmp_path_factory.mktemp("compaction")
    dated = [[(days_ago(back), key, value) for back, key, value in part] for part in segments]
    fill(folder, "contacts", *dated)
    before = last_of_keys(stored(folder, "contacts"))
    count = len(stored(folder, "contacts"))
    for tick in range(3):
        tidy(folder, max_bytes=0, now_ms=NOW_MS + (days + tick) * DAY_MS)

        after = last_of_keys(stored(folder, "contacts"))
        gone = {key for key in before if key not in after}
        assert {key: value for key, value in before.items() if key not in gone} == after
        assert all(before[key] is None for key in gone)
    assert len(stored(folder, "contacts")) <= count


def test_a_crash_while_copying_repeats_nothing_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(
        folder,
        "contacts",
        [(days_ago(3), "a", "a1"), (days_ago(3), "a", "a2"), (days_ago(3), "b", "b1")],
        [(days_ago(3), "b", "b2"), (days_ago(3), "c", "c1"), (days_ago(3), "c", "c2")],
        [(days_ago(2), "d", "d1")],
    )
    expected = last_of_keys(stored(folder, "contacts"))

    class CrashError(Exception):
        pass

    def crash(_: Path) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(retention, "unlink_segment", crash)
        with pytest.raises(CrashError):
            tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
    assert last_of_keys(stored(folder, "contacts")) == expected

    tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
    assert sorted(values(folder, "contacts")) == ["a2", "b2", "c2", "d1"]


@pytest.mark.parametrize("quick", range(4))
def test_compaction_beside_a_writer_never_brings_back_an_older_value(
    folder: Path, monkeypatch: pytest.MonkeyPatch, quick: int
) -> None:
    """A writer strikes at the worst of moments: between looking and copying."""
    fill(
        folder,
        "contacts",
        [(days_ago(3), "a", f"a{n}") for n in range(5)] + [(days_ago(3), "b", "b0")],
        [(days_ago(3), "c", f"c{n}") for n in range(5)],
        [(days_ago(2), "d", "d0")],
    )
    copy_forward = retention._copy_forward
    late = [Record("contacts", b"a", f"late {number}".encode(), ()) for number in range(quick)]

    def copy_late(topic: Path, *rest: object) -> None:
        with closing(TopicWriter(topic)) as writer:
            while late:
                writer.append([late.pop(0)])
                if quick > 1:
                    writer.roll(writer.newest())
        copy_forward(topic, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "_copy_forward", copy_late)
    tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)

    assert last_of_keys(stored(folder, "contacts")) == {
        b"a": f"late {quick - 1}".encode() if quick else b"a4",
        b"b": b"b0",
        b"c": b"c4",
        b"d": b"d0",
    }


def test_a_writer_that_rolls_while_compaction_looks_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(
        folder,
        "contacts",
        [(days_ago(3), "a", f"a{n}") for n in range(5)],
        [(days_ago(3), "b", f"b{n}") for n in range(5)],
    )
    looks = 0

    def look_and_roll(topic: Path) -> list[Path]:
        nonlocal looks
        looks += 1
        found = segment_paths(topic)
        if topic.name == "contacts" and looks == 1:
            with closing(TopicWriter(topic)) as writer:
                writer.append([Record("contacts", b"b", b"new", ())])
                writer.roll(writer.newest())
        return found

    monkeypatch.setattr(retention, "segment_paths", look_and_roll)
    tidy(folder, max_bytes=FOREVER, now_ms=2 * NOW_MS)  # the writer's clock is the real one

    assert last_of_keys(stored(folder, "contacts")) == {b"a": b"a4", b"b": b"new"}


async def test_readers_of_a_topic_that_is_compacted_and_written_end_with_the_last_values(
    tmp_path: Path, folder: Path
) -> None:
    chance = random.Random(5)
    last: dict[bytes, bytes | None] = {}
    stop = threading.Event()
    tidied = 0

    def keep_tidying() -> None:
        nonlocal tidied
        while not stop.is_set():
            tidy(folder, max_bytes=0, now_ms=NOW_MS * 2)
            tidied += 1

    tidying = threading.Thread(target=keep_tidying)
    seen: list[StoredRecord] = []
    async with (
        open_journal(tmp_path, segment_bytes=100_000) as publisher,
        open_reader(tmp_path, ["contacts"]) as reader,
    ):
        tidying.start()
        try:
            for number in range(600):
                key = f"k{chance.randrange(12)}".encode()
                value = None if chance.random() < 0.1 else f"{number}".encode().ljust(2000)
                last[key] = value
                receipt = publisher.publish([Record("contacts", key, value, ())])
                if number % 10 == 0:
                    await receipt.wait(float("inf"))
                    seen += await reader.fetch(wait_s=0)
            await receipt.wait(float("inf"))
        finally:
            stop.set()
            tidying.join()
        while not await reader.caught_up():
            seen += await reader.fetch(wait_s=0.1)

    assert tidied > 3
    assert len(stored(folder, "contacts")) < 600
    expected = {key: value for key, value in last.items() if value is not None}
    following = {key: value for key, value in last_of_keys(seen).items() if value is not None}
    assert following == expected
    fresh = last_of_keys(stored(folder, "contacts"))
    assert {key: value for key, value in fresh.items() if value is not None} == expected


# --- beside others ------------------------------------------------------------------------------


async def test_a_reader_goes_on_behind_a_segment_that_went_as_it_came(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, "calls", *([(days_ago(40), "k", f"{n}")] for n in range(5)))
    doomed = segment_paths(folder / "calls")[1:3]

    class LateSegment(Segment):
        def __init__(self, path: Path) -> None:
            if path in doomed:
                doomed.remove(path)
                unlink_segment(path)
            super().__init__(path)

    monkeypatch.setattr(journal, "Segment", LateSegment)
    async with open_reader(tmp_path, ["calls"]) as reader:
        found: list[StoredRecord] = []
        while len(found) < 3:
            records = await reader.fetch(wait_s=1)
            assert records
            found += records
        assert await reader.caught_up()
    assert [one.value for one in found] == [b"0", b"3", b"4"]
    assert doomed == []


async def test_a_reader_goes_on_where_a_segment_was_unlinked(tmp_path: Path, folder: Path) -> None:
    fill(
        folder,
        "calls",
        [(days_ago(40), "k", f"{n}") for n in range(3)],
        [(days_ago(35), "k", f"{n}") for n in range(3, 6)],
        [(days_ago(1), "k", f"{n}") for n in range(6, 9)],
    )

    async def read(reader_group: str | None, count: int) -> list[str]:
        found: list[str] = []
        async with open_reader(tmp_path, ["calls"], group=reader_group) as reader:
            while len(found) < count:
                records = await reader.fetch(wait_s=1)
                assert records
                if reader_group:
                    await reader.commit(records[-1:])
                found += [(one.value or b"").decode() for one in records]
            assert await reader.caught_up()
        return found

    async with (
        open_reader(tmp_path, ["calls"]) as inside,
        open_reader(tmp_path, ["calls"], group="g") as behind,
    ):
        first = await inside.fetch(wait_s=1)
        assert [one.value for one in first] == [b"0", b"1", b"2"]
        await behind.commit((await behind.fetch(wait_s=1))[:1])
        tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
        # It stands in a file that is gone; the one behind that is gone as well.
        assert [one.value for one in await inside.fetch(wait_s=1)] == [b"6", b"7", b"8"]
        assert await inside.caught_up()

    assert await read(None, 3) == ["6", "7", "8"]
    assert await read("g", 3) == ["6", "7", "8"]
    async with open_reader(tmp_path, ["calls"], group="g") as reader:
        assert await reader.fetch(wait_s=0) == []


def test_what_is_old_can_go_although_the_disk_is_too_full_to_open_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for topic in ("calls", "messages"):
        fill(folder, topic, *([(days_ago(50), "k", f"{n}")] for n in range(3)))
        for path in segment_paths(folder / topic):
            os.utime(path, (days_ago(50) / 1000, days_ago(50) / 1000))

    class UnopenedSegment(Segment):
        def __init__(self, path: Path) -> None:
            raise apsw.IOError(f"no room for the locks of {path.name}")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(retention, "Segment", UnopenedSegment)
        tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)
    assert values(folder, "calls") == values(folder, "messages") == ["2"]
    assert [entry["where"] for entry in logs if entry["event"] == "housekeeping_failed"] == [
        "calls",
        "messages",
    ]  # the newest ones could not be sealed


def test_two_never_tidy_at_once(folder: Path) -> None:
    fill(folder, "calls", [(days_ago(40), "k", "old")], [(days_ago(1), "k", "new")])
    with retention._alone(folder) as alone:
        assert alone
        usage = tidy(folder, max_bytes=0, now_ms=NOW_MS)
        assert usage["calls"].segments == 2
    tidy(folder, max_bytes=0, now_ms=NOW_MS)
    assert values(folder, "calls") == ["new"]


def test_a_segment_of_which_a_part_cannot_be_read_is_not_compacted(folder: Path) -> None:
    fill(
        folder,
        "contacts",
        [(days_ago(40), "a", f"a{n}") for n in range(5)] + [(days_ago(40), "b", "b1")],
        [(days_ago(1), "c", "c1")],
    )
    before = segment_paths(folder / "contacts")
    with closing(apsw.Connection(str(before[0]))) as file:
        file.execute("update records set headers = x'00' where value = cast('b1' as blob)")
    with capture_logs() as logs:
        tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)

    assert segment_paths(folder / "contacts") == before
    assert [entry["file"] for entry in errors(logs)] == [before[0].name]


@pytest.mark.parametrize("content", [b"", b"garbage" * 9999])
def test_a_damaged_segment_does_not_keep_the_journal_from_forgetting(
    folder: Path, content: bytes
) -> None:
    for topic in ("calls", "agents", "contacts", "messages"):
        fill(
            folder,
            topic,
            [(days_ago(40), "k", "old")],
            [(days_ago(40), "k", "damaged")],
            [(days_ago(1), "k", "new")],
        )
    for topic in ("agents", "contacts"):
        segment_paths(folder / topic)[1].write_bytes(content)
    with capture_logs() as logs:
        tidy(folder, max_bytes=FOREVER, now_ms=NOW_MS)

    assert values(folder, "calls") == values(folder, "messages") == ["new"]
    files = [path.name for path in segment_paths(folder / "contacts")]
    assert len(files) == 3  # what cannot be read is not compacted
    assert {(entry["topic"], entry["file"]) for entry in errors(logs)} == {
        ("contacts", files[1]),
        ("agents", files[1]),
    }
    # Nobody knows what it holds: it counts as old as the file.
    tidy(folder, max_bytes=0, now_ms=NOW_MS)
    assert len(segment_paths(folder / "agents")) == 1


def errors(logs: Sequence[Mapping[str, object]]) -> Iterator[Mapping[str, object]]:
    return (entry for entry in logs if entry["event"] == "segment_unreadable")
