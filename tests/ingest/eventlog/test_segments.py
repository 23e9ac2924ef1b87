"""A topic's files: who appends, in which order, and what a crash may leave.

Run as a program it is a process that appends.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import apsw
import pytest

from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.segments import SealedError, Segment, first_position, segment_paths
from ingest.eventlog.topic import TopicWriter

SEGMENT_BYTES = 160 * 1024


def record(value: str, size: int = 0) -> Record:
    return Record("calls", b"k", value.encode().ljust(size), ())


def stored(folder: Path) -> list[StoredRecord]:
    """Every record of a topic, in the order of the files and their positions."""
    found = []
    for path in segment_paths(folder):
        with closing(Segment(path)) as segment:
            assert segment.check()
            records = segment.read("calls", 0)
            assert not segment.damaged
            assert all(one.position >= segment.first for one in records)
            found += records
    assert all(earlier.position < later.position for earlier, later in pairwise(found))
    return found


def values(folder: Path) -> list[str]:
    return [(one.value or b"").decode().rstrip() for one in stored(folder)]


@contextmanager
def writing(folder: Path, segment_bytes: int = SEGMENT_BYTES) -> Iterator[TopicWriter]:
    with closing(TopicWriter(folder, segment_bytes)) as writer:
        yield writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "calls"


# --- one process --------------------------------------------------------------------------------


def test_a_segment_that_has_grown_is_sealed_and_followed(folder: Path) -> None:
    expected = [f"{n}" for n in range(400)]
    with writing(folder) as writer:
        for value in expected:
            writer.append([record(value, 2000)])

    paths = segment_paths(folder)
    assert len(paths) > 2
    for path, following in pairwise(paths):
        with closing(Segment(path)) as segment:
            assert segment.sealed
            assert segment.last() + 1 == first_position(following)
            assert SEGMENT_BYTES <= segment.size < SEGMENT_BYTES + 64 * 1024
    with closing(Segment(paths[-1])) as newest:
        assert not newest.sealed
    assert values(folder) == expected
    assert [one.position for one in stored(folder)] == list(range(1, 401))


def test_the_write_ahead_log_stays_small(folder: Path) -> None:
    with writing(folder, segment_bytes=10**9) as writer:
        for number in range(400):
            writer.append([record(f"{number}", 40_000)])
        (log,) = folder.glob("*-wal")
        assert log.stat().st_size < 6 * 1024 * 1024
        assert segment_paths(folder)[0].stat().st_size > 8 * 1024 * 1024


def test_a_sealed_segment_takes_no_more(folder: Path) -> None:
    folder.mkdir()
    Segment.create(folder, 7)
    with closing(Segment(segment_paths(folder)[0])) as one:
        assert one.append([record("a"), record("b")], written_ms=1) == 8
        with closing(Segment(one.path)) as other:
            other.seal()
            other.seal()
        with pytest.raises(SealedError):
            one.append([record("c")], written_ms=1)
        assert one.sealed
    assert values(folder) == ["a", "b"]


def test_a_writer_goes_on_behind_a_segment_that_another_has_sealed(folder: Path) -> None:
    with writing(folder) as one, writing(folder) as other:
        one.append([record("a")])
        other.append([record("b")])
        for number in range(3):
            one.roll(one.newest())
            other.append([record(f"{number}, other")])
            one.append([record(f"{number}, one")])

    assert values(folder) == [
        "a",
        "b",
        *(f"{n}, {who}" for n in range(3) for who in ("other", "one")),
    ]
    assert [one.position for one in stored(folder)] == list(range(1, 9))
    assert len(segment_paths(folder)) == 4


def test_a_writer_moves_to_a_newer_segment_although_its_own_would_take_more(folder: Path) -> None:
    with writing(folder) as writer:
        writer.append([record("a")])
        Segment.create(folder, 1000)  # another process has given up the first one
        writer.append([record("b")])

    assert [(one.position, one.value) for one in stored(folder)] == [(1, b"a"), (1000, b"b")]


@pytest.mark.parametrize("error", [apsw.FullError, apsw.BusyError, apsw.IOError, OSError])
def test_records_are_stored_once_although_the_next_segment_cannot_be_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    with writing(folder) as writer:
        writer.append([record("a")])
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise error("no")

            patch.setattr(Segment, "create", fail)
            writer.append([record("b", SEGMENT_BYTES)])  # grows beyond the limit
        writer.append([record("c")])

    assert values(folder) == ["a", "b", "c"]
    assert len(segment_paths(folder)) == 2
    if error in {apsw.FullError, apsw.BusyError}:  # these are no reason to give the file up
        assert [one.position for one in stored(folder)] == [1, 2, 3]


def test_nothing_is_stored_of_records_that_do_not_all_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    Segment.create(folder, 1)
    with closing(Segment(segment_paths(folder)[0])) as segment:
        segment.append([record("a")], written_ms=1)
        # A limit on the file's pages is SQLite's own full disk.
        segment._db.pragma("max_page_count", 8)
        with pytest.raises(apsw.FullError):
            segment.append([record("b"), record("c", 10**6)], written_ms=1)
        segment.append([record("d")], written_ms=1)
    assert values(folder) == ["a", "d"]


def test_threads_that_make_the_same_segment_do_not_stumble_over_each_other(folder: Path) -> None:
    folder.mkdir()
    failures: list[Exception] = []
    start = threading.Barrier(4)

    def make() -> None:
        start.wait()
        for first in range(1, 16):
            try:
                Segment.create(folder, first)
            except Exception as error:  # noqa: BLE001 - which one does not matter
                failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert [first_position(path) for path in segment_paths(folder)] == list(range(1, 16))
    assert len(list(folder.iterdir())) == 15  # nothing is left over


# --- crashes ------------------------------------------------------------------------------------


def test_a_crash_between_sealing_and_making_the_next_one_is_mended(folder: Path) -> None:
    with worker("die_at_roll", folder) as process:
        output, _ = process.communicate(timeout=20)
        assert process.returncode == -signal.SIGKILL
    reported = output.decode().split()
    (path,) = segment_paths(folder)
    with closing(Segment(path)) as segment:
        assert segment.sealed

    with writing(folder) as one, writing(folder) as other:
        one.append([record("one")])
        other.append([record("other")])
    found = values(folder)
    assert found[: len(reported)] == reported
    assert found[-2:] == ["one", "other"]
    assert [one.position for one in stored(folder)] == list(range(1, len(found) + 1))


def test_what_a_crash_left_of_a_new_segment_does_not_matter(folder: Path) -> None:
    folder.mkdir()
    for owner in (threading.get_native_id(), os.getpid(), 99):
        for suffix in ("new", "new-wal", "new-journal"):
            (folder / f".{1:020d}.{owner}.{suffix}").write_bytes(b"half a file")
    with writing(folder) as writer:
        writer.append([record("a")])
    assert values(folder) == ["a"]


def test_a_killed_writer_leaves_groups_whole_and_all_that_it_reported(folder: Path) -> None:
    chance = random.Random(4)
    reported: set[str] = set()
    for round_ in range(5):
        with worker("append_for_ever", folder, f"{round_}") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0.02, 0.25))
            process.kill()
            reported |= set(process.stdout.read().decode().split("\n")[:-1])

        groups: dict[str, list[str]] = defaultdict(list)
        for value in values(folder):
            groups[value.split("/")[0]].append(value)
        assert reported <= set(groups)
        for name, members in groups.items():
            size = int(name.split("of")[1])
            assert members == [f"{name}/{n}" for n in range(size)]
    assert len(reported) > 20
    assert len(segment_paths(folder)) > 2


# --- several processes --------------------------------------------------------------------------


def test_processes_that_write_at_once_lose_nothing_and_keep_their_order(folder: Path) -> None:
    names = "abcd"
    workers = [worker("append_some", folder, name, "500") for name in names]
    processes = [each.__enter__() for each in workers]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
    finally:
        for each in workers:
            each.__exit__(None, None, None)

    found = values(folder)  # their positions are unique and rise
    assert len(found) == 4 * 500
    for name in names:
        assert [value for value in found if value[0] == name] == [f"{name}{n}" for n in range(500)]
    assert len(segment_paths(folder)) > 10
    changes = sum(earlier[0] != later[0] for earlier, later in pairwise(found))
    assert changes > 20, "they did not write at the same time"


# --- the processes ------------------------------------------------------------------------------


@contextmanager
def worker(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def append_some(folder: str, name: str, count: str) -> None:
    """Append records in groups of a few."""
    chance = random.Random(name)
    left = [record(f"{name}{n}", chance.choice([10, 500, 5000])) for n in range(int(count))]
    print("ready", flush=True)
    sys.stdin.readline()
    with writing(Path(folder)) as writer:
        while left:
            size = chance.randint(3, 15)
            writer.append(left[:size])
            del left[:size]
            time.sleep(chance.random() / 200)  # let others have the lock


def append_for_ever(folder: str, name: str) -> None:
    """Append groups, and report each once it is durable."""
    chance = random.Random(name)
    with writing(Path(folder)) as writer:
        number = 0
        while True:
            size = chance.randint(1, 12)
            group = f"{name}.{number}of{size}"
            writer.append([record(f"{group}/{n}", chance.choice([10, 3000])) for n in range(size)])
            os.write(1, f"{group}\n".encode())
            number += 1


def die_at_roll(folder: str) -> None:
    """Append until the segment is sealed; there is no time to make the next one."""
    create = Segment.create

    def create_or_die(folder: Path, first: int) -> None:
        if first > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        create(folder, first)

    Segment.create = staticmethod(create_or_die)  # type: ignore[assignment]
    with writing(Path(folder)) as writer:
        for number in range(1000):
            os.write(1, f"{number}\n".encode())
            writer.append([record(f"{number}", 5000)])


PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program for program in (append_some, append_for_ever, die_at_roll)
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
