"""What the journal does when its disk fails: nothing acknowledged is lost, and it goes on.

Run as a program it is a process under a disk that fails.
"""

import asyncio
import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest.errors import PublishError
from ingest.eventlog import journal as journal_module
from ingest.eventlog import topic as topic_module
from ingest.eventlog.journal import (
    JournalPublisher,
    JournalReader,
    journal_folder,
    open_journal,
    open_reader,
)
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.retention import tidy
from ingest.eventlog.segments import Segment, left_open, segment_paths
from ingest.eventlog.topic import TopicWriter
from schemas.times import now_ms

PAGE = 16384
FOREVER = float("inf")


def record(value: bytes, topic: str = "calls") -> Record:
    return Record(topic, b"k", value, ())


async def published(publisher: JournalPublisher, *values: bytes, topic: str = "calls") -> None:
    for value in values:
        await publisher.publish([record(value, topic)]).wait(FOREVER)


async def read_all(path: Path, topic: str = "calls") -> list[StoredRecord]:
    found: list[StoredRecord] = []
    async with open_reader(path, [topic]) as reader:
        async with asyncio.timeout(30):
            while not await reader.caught_up():
                found += await reader.fetch(wait_s=0)
        assert await reader.fetch(wait_s=0) == []
    assert all(earlier.position < later.position for earlier, later in pairwise(found))
    return found


# --- damaged files ------------------------------------------------------------------------------


class Template:
    """A journal of one topic that was never closed: some of its newest file is in the log."""

    def __init__(self, path: Path, values: dict[int, bytes], first: int) -> None:
        self.path = path
        #: Position → value: all that is in it, and what is in its newest file.
        self.values = values
        self.newest = {at: value for at, value in values.items() if at >= first}
        self.file = segment_paths(journal_folder(path) / "calls")[-1]

    def copy(self, to: Path) -> Path:
        """A copy; the file that is going to be damaged."""
        shutil.copytree(self.path, to)
        return segment_paths(journal_folder(to) / "calls")[-1]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    path = tmp_path_factory.mktemp("template") / "data"
    folder = journal_folder(path) / "calls"
    folder.parent.mkdir(parents=True)
    chance = random.Random(6)
    values: dict[int, bytes] = {}

    def some(count: int) -> list[Record]:
        found = []
        for _ in range(count):
            size = chance.choice([30, 1500, 1500, 4000, 40_000])
            found.append(record(b"%d:" % (len(values) + 1) + chance.randbytes(size)))
            values[len(values) + 1] = found[-1].value or b""
        return found

    with closing(TopicWriter(folder)) as writer:
        for _ in range(2):
            writer.append(some(60))
            writer.roll(writer.newest())
        writer.append(some(150))
        writer.newest()._db.wal_checkpoint()
        first = writer.newest().first
        writer.append(some(20))
        shutil.copytree(path, path.with_name("copy"))
    return Template(path.with_name("copy"), values, first)


def lacking(found: Mapping[int, bytes | None], wanted: Mapping[int, bytes]) -> list[int]:
    """The positions where not everything is as it was."""
    return [at for at, value in wanted.items() if found.get(at) != value]


def sound_rows(damaged: Path, original: Path, values: Mapping[int, bytes]) -> dict[int, bytes]:
    """What another SQLite reads of a damaged file, row by row, once its first page is mended."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / damaged.name
        whole = original.read_bytes()
        copy.write_bytes((whole[:PAGE] + damaged.read_bytes()[PAGE:]).ljust(len(whole), b"\0"))
        if left_open(damaged):
            shutil.copy(f"{damaged}-wal", folder)
        found = {}
        with closing(sqlite3.connect(copy)) as database:
            for position, value in values.items():
                query = "select value from records where position = ?"
                with suppress(sqlite3.Error):
                    if database.execute(query, (position,)).fetchone() == (value,):
                        found[position] = value
        return found


async def goes_on(path: Path) -> list[dict[str, Any]]:
    """Publish in a journal that is damaged; what was logged."""
    with capture_logs() as logs:
        async with open_journal(path) as publisher:
            await published(publisher, b"new 1", b"new 2")
        async with open_journal(path) as publisher:
            await published(publisher, b"new 3")
    return [dict(entry) for entry in logs]


def check_rescue(
    path: Path,
    template: Template,
    logs: Sequence[dict[str, Any]],
    found: Sequence[StoredRecord],
) -> dict[int, bytes | None]:
    """What holds whatever was damaged; returns what was saved of the newest file."""
    by_position = {one.position: one.value for one in found}
    assert [one.value for one in found[-3:]] == [b"new 1", b"new 2", b"new 3"]
    before = {at: value for at, value in template.values.items() if at not in template.newest}
    assert lacking(by_position, before) == []

    saved = {at: by_position[at] for at in template.newest if at in by_position}
    for one in found[-3:]:  # where the end of the log was cut off, they may stand in its place
        saved.pop(one.position, None)
    damage = [entry for entry in logs if entry["event"] == "segment_damaged"]
    if damage:
        (entry,) = damage
        assert entry["log_level"] == "error"
        assert entry["topic"] == "calls"
        assert entry["rescued"] == len(saved)
        assert (journal_folder(path) / "calls" / f"{entry['file']}.damaged").exists()
        assert found[-3].position > max(template.values)
    return saved


#: Where a run of bytes begins, as a share of the file, and how long it is.
RUNS = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 3 * PAGE)), min_size=1, max_size=12)


@settings(max_examples=30)
@given(
    runs=RUNS,
    in_log=st.booleans(),
    cut=st.one_of(st.none(), st.none(), st.floats(0, 1)),
    seed=st.integers(0, 9),
)
@example(runs=[], in_log=False, cut=0.0, seed=0)
@example(runs=[], in_log=True, cut=0.0, seed=0)
@example(runs=[], in_log=False, cut=0.5, seed=0)
@example(runs=[(0.0, 100)], in_log=False, cut=None, seed=0)
@example(runs=[(0.0, 5 * PAGE)], in_log=False, cut=None, seed=1)
@example(runs=[(0.0, 10**9)], in_log=False, cut=None, seed=2)
@example(runs=[(0.0, 10**9)], in_log=True, cut=None, seed=3)
@example(runs=[(0.005, 3), (0.5, 3)], in_log=False, cut=None, seed=4)
def test_a_damaged_file_never_keeps_the_journal_from_going_on(
    template: Template,
    tmp_path_factory: pytest.TempPathFactory,
    runs: list[tuple[float, int]],
    in_log: bool,  # noqa: FBT001 - hypothesis passes it by name
    cut: float | None,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "data"
    newest = template.copy(path)
    file = newest.with_name(f"{newest.name}-wal") if in_log else newest
    content = bytearray(file.read_bytes())
    for share, length in runs:
        at = int(share * (len(content) - 1))
        end = min(at + length, len(content))
        content[at:end] = random.Random(seed).randbytes(end - at)
    if cut is not None:
        del content[int(cut * len(content)) :]
    file.write_bytes(content)

    logs = asyncio.run(goes_on(path))
    found = asyncio.run(read_all(path))
    saved = check_rescue(path, template, logs, found)
    set_aside = list((journal_folder(path) / "calls").glob("*.sqlite.damaged"))
    if not in_log and set_aside:
        # It is kept as it was: somebody may read more of it by hand.
        assert set_aside[0].read_bytes()[PAGE:] == content[PAGE:]
    if in_log and cut is not None and not runs:
        # A log that ends early is what a crash leaves: what is in the file is as good as ever.
        assert not set_aside
        assert len(saved) >= 150
        assert lacking(saved, {at: template.newest[at] for at in saved}) == []


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    ("pages", "length"),
    [
        ([5, 9, 14, 15, 30], PAGE),
        ([5, 9, 14, 15, 30], 8),  # the page's own header
        ([0], PAGE),
        ([0], 100),
        ([0, 12], PAGE),
    ],
)
async def test_every_row_that_is_in_order_is_rescued(
    template: Template, tmp_path: Path, pages: list[int], length: int, *, log: bool
) -> None:
    path = tmp_path / "data"
    newest = template.copy(path)
    if not log:
        newest.with_name(f"{newest.name}-wal").unlink()
    with newest.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE)
            file.write(b"\xff" * length)
    wanted = sound_rows(newest, template.file, template.newest)
    assert len(wanted) > 90

    logs = await goes_on(path)
    saved = check_rescue(path, template, logs, await read_all(path))
    assert lacking(saved, wanted) == []
    # Without a log nothing is checked, and with one the first page may stand in it.
    set_aside = any(entry["event"] == "segment_damaged" for entry in logs)
    assert set_aside == (pages[0] == 0 and not log) or len(pages) > 1


async def test_what_a_cut_file_still_holds_is_rescued(template: Template, tmp_path: Path) -> None:
    path = tmp_path / "data"
    newest = template.copy(path)
    newest.with_name(f"{newest.name}-wal").unlink()  # with the log its loss would be mended
    os.truncate(newest, newest.stat().st_size // 2)
    wanted = sound_rows(newest, template.file, template.newest)
    assert len(wanted) > 40

    logs = await goes_on(path)
    saved = check_rescue(path, template, logs, await read_all(path))
    assert any(entry["event"] == "segment_damaged" for entry in logs)
    assert lacking(saved, wanted) == []


async def test_positions_of_a_lost_file_are_not_used_again(
    template: Template, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    newest = template.copy(path)
    newest.with_name(f"{newest.name}-wal").unlink()
    newest.write_bytes(b"")
    async with open_reader(path, ["calls"], group="g") as reader:
        await reader.commit([StoredRecord("calls", 0, max(template.values), 0, b"", b"", ())])
    await goes_on(path)
    async with open_reader(path, ["calls"], group="g") as reader:
        values = [one.value for one in await reader.fetch(wait_s=5)]
    assert values == [b"new 1", b"new 2", b"new 3"]


async def test_a_crash_while_a_damaged_file_is_replaced_is_mended(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("rescue", "set_aside", "Segment.create"):
        path = tmp_path / step / "data"
        path.parent.mkdir()
        newest = template.copy(path)
        with newest.open("r+b") as file:
            file.seek(9 * PAGE)
            file.write(b"\xff" * PAGE)

        def crash(*_: object) -> None:
            raise ZeroDivisionError

        writer = TopicWriter(journal_folder(path) / "calls")
        with monkeypatch.context() as patch:
            patch.setattr(f"ingest.eventlog.topic.{step}", crash)
            with pytest.raises(ZeroDivisionError):
                writer.append([record(b"x")])
        logs = await goes_on(path)
        saved = check_rescue(path, template, logs, await read_all(path))
        assert len(saved) > 90


async def test_a_file_that_another_process_has_replaced_is_not_replaced_again(
    template: Template, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    newest = template.copy(path)
    with closing(TopicWriter(newest.parent)) as late:
        late.append([record(b"before")])
        with newest.open("r+b") as file:
            file.seek(9 * PAGE)
            file.write(b"\xff" * PAGE)
        with closing(TopicWriter(newest.parent)) as quick:
            quick.append([record(b"quick")])
        after = await read_all(path)

        late._replace_damaged()  # it saw the damage at the same time
        assert await read_all(path) == after
        late.append([record(b"late")])
    assert [one.value for one in await read_all(path)][-3:] == [b"before", b"quick", b"late"]
    assert len(list(newest.parent.glob("*.sqlite.damaged"))) == 1


async def test_a_reader_reads_around_damage_and_says_so_once(
    template: Template, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    template.copy(path)
    sealed = segment_paths(journal_folder(path) / "calls")[0]
    with closing(Segment(sealed)) as segment:
        inside = {at: value for at, value in template.values.items() if at <= segment.last()}
    original = Path(shutil.copy(sealed, tmp_path))
    with sealed.open("r+b") as file:
        for page in (4, 8, 20, sealed.stat().st_size // PAGE - 1):
            file.seek(page * PAGE)
            file.write(b"\xff" * PAGE)
    sound = sound_rows(sealed, original, inside)
    assert 20 < len(sound) < len(inside)
    others = {at: value for at, value in template.values.items() if at not in inside}

    with capture_logs() as logs:
        found = {one.position: one.value for one in await read_all(path)}
    assert lacking(found, sound | others) == []
    assert [(entry["event"], entry["file"]) for entry in logs] == [
        ("segment_unreadable", sealed.name)
    ]


@pytest.mark.parametrize("content", [b"", b"no database" * 9999])
async def test_readers_and_writers_pass_a_file_that_is_none(
    template: Template, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "data"
    template.copy(path)
    for file in segment_paths(journal_folder(path) / "calls"):
        file.write_bytes(content)
        file.with_name(f"{file.name}-wal").unlink(missing_ok=True)
    async with (
        open_reader(path, ["calls"]) as earliest,
        open_reader(path, ["calls"], start="latest") as latest,
    ):
        with capture_logs() as logs:
            for _ in range(3):
                assert await earliest.fetch(wait_s=0.05) == await latest.fetch(wait_s=0.05) == []
        assert len(logs) == 4  # each of the three, and the newest to the other reader
        await goes_on(path)
        for reader in (earliest, latest):
            values = [one.value for one in await reader.fetch(wait_s=5)]
            assert values == [b"new 1", b"new 2", b"new 3"]
            assert await reader.caught_up()


@pytest.mark.parametrize("looks_between", [0, 2])
async def test_a_reader_in_the_middle_of_a_damaged_file_gets_what_was_rescued_of_it(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks_between: int
) -> None:
    bad: set[int] = set()

    class AgingSegment(Segment):
        """One of a file that goes bad while it is open."""

        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.inode = path.stat().st_ino

        def read(
            self,
            topic: str,
            after: int,
            limit: int = sys.maxsize,
            max_bytes: int = sys.maxsize,
        ) -> list[StoredRecord]:
            self.damaged = self.inode in bad
            return [] if self.damaged else super().read(topic, after, limit, max_bytes)

    monkeypatch.setattr(journal_module, "Segment", AgingSegment)
    monkeypatch.setattr(JournalReader, "_FETCH", 40)
    path = tmp_path / "data"
    newest = template.copy(path)
    newest.with_name(f"{newest.name}-wal").unlink()
    wanted = sound_rows(newest, template.file, template.values)
    async with open_reader(path, ["calls"]) as reader:
        found: list[StoredRecord] = []
        while not found or found[-1].position <= min(template.newest) + 30:
            found += await reader.fetch(wait_s=1)
        bad.add(newest.stat().st_ino)
        with newest.open("r+b") as file:
            file.write(b"\xff" * PAGE)
        for _ in range(looks_between):
            assert await reader.fetch(wait_s=0) == []
        await goes_on(path)
        while not await reader.caught_up():
            found += await reader.fetch(wait_s=0.1)
    assert len(wanted) > 100
    assert lacking({one.position: one.value for one in found}, wanted) == []
    assert [one.value for one in found[-3:]] == [b"new 1", b"new 2", b"new 3"]
    assert all(earlier.position < later.position for earlier, later in pairwise(found))


# --- a disk that fails --------------------------------------------------------------------------

#: Preloaded: the N-th fsync of a file whose name ends in MATCH fails, and only that one, as Linux
#: has it: the page cache then says that all is well. Writes to that segment from then on are told.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char failed[PATH_MAX];
static int calls;

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), wanted = strlen(end);
    return length >= wanted && strcmp(text + length - wanted, end) == 0;
}

static void tell(const char *what, const char *path) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", what, path);
    int (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    next(1, line, length);
}

static void watch(int fd) {
    char path[PATH_MAX];
    if (*failed && path_of(fd, path)) {
        if (ends_with(path, "-wal")) path[strlen(path) - 4] = 0;
        if (strcmp(path, failed) == 0) tell("written", path);
    }
}

static int sync_or_fail(int fd, const char *name) {
    char path[PATH_MAX];
    int (*next)(int) = dlsym(RTLD_NEXT, name);
    if (!*failed && path_of(fd, path) && ends_with(path, getenv("MATCH"))
        && __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) == atoi(getenv("CALLS"))) {
        tell("failed", path);
        if (ends_with(path, "-wal")) path[strlen(path) - 4] = 0;
        strcpy(failed, path);
        errno = EIO;
        return -1;
    }
    return next(fd);
}

int fsync(int fd) { return sync_or_fail(fd, "fsync"); }
int fdatasync(int fd) { return sync_or_fail(fd, "fdatasync"); }

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    watch(fd);
    return next(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) {
    ssize_t (*next)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite64");
    watch(fd);
    return next(fd, data, size, at);
}

int ftruncate64(int fd, off_t size) {
    int (*next)(int, off_t) = dlsym(RTLD_NEXT, "ftruncate64");
    watch(fd);
    return next(fd, size);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    build = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "shim.c"), "-ldl"]
    subprocess.run(build, check=True)
    return library


@pytest.mark.parametrize(
    ("match", "calls"),
    [
        (".sqlite-wal", 1),  # commits
        (".sqlite-wal", 20),
        (".sqlite", 1),  # a checkpoint
        (".new", 2),  # the making of the second segment
        ("/calls", 4),  # its name
    ],
)
def test_a_file_that_could_not_be_synced_is_never_written_again(
    tmp_path: Path, shim: Path, match: str, calls: int
) -> None:
    path = tmp_path / "data"
    environment = os.environ | {"LD_PRELOAD": str(shim), "MATCH": match, "CALLS": str(calls)}
    output = subprocess.run(
        [sys.executable, __file__, "publish_many", str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    ).stdout.decode()
    lines = [line.split(" ", 1) for line in output.splitlines()]
    failed = [what for word, what in lines if word == "failed"]
    assert len(failed) == 1, "the shim did not get to do its work"
    assert [what for word, what in lines if word == "written"] == []

    refused = [line for line in lines if line[0] == "refused"]
    durable = [int(what) for word, what in lines if word == "durable"]
    abandoned = ["log", "segment_abandoned"] in lines
    if match == ".sqlite-wal":
        assert {what.split()[1] for _, what in refused} == {"disk_error"}
        assert ["log", "disk_refuses"] in lines
    else:
        assert refused == []  # their records were durable already
    if match in {".sqlite-wal", ".sqlite"}:
        assert abandoned
        names = [file.name for file in segment_paths(journal_folder(path) / "calls")]
        following = names[names.index(Path(failed[0]).name.removesuffix("-wal")) + 1]
        assert durable[-1] > 100
        assert following
    assert len(durable) + len(refused) == 256

    found = asyncio.run(read_all(path))
    numbers = [int((one.value or b"").split(b":")[0]) for one in found]
    assert [number for number in numbers if number in set(durable)] == durable
    # What was refused may be there all the same, but never twice or elsewhere.
    assert len(numbers) == len(set(numbers))
    for one, number in zip(found, numbers, strict=True):
        assert one.value == value_of(number)


async def test_a_file_that_failed_is_left_alone_although_no_other_can_be_made_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    written: list[str] = []
    broken = True

    class FailingSegment(Segment):
        def append(self, records: Sequence[Record], written_ms: int) -> int:
            written.append(self.path.name)
            if broken and len(written) == 2:
                raise apsw.IOError("what an fsync that failed becomes")
            return super().append(records, written_ms)

        @staticmethod
        def create(folder: Path, first: int, rescued: Sequence[StoredRecord] | None = None) -> None:
            if broken and written:
                raise OSError(errno.EIO, "no")
            Segment.create(folder, first, rescued)

    monkeypatch.setattr(topic_module, "Segment", FailingSegment)
    async with open_journal(path) as publisher:
        await published(publisher, b"a")
        for value in (b"b", b"c", b"d"):
            with pytest.raises(PublishError, match="disk_error"):
                await published(publisher, value)
        assert len(written) == 2
        broken = False
        await published(publisher, b"e")
    assert written[2] > written[0] == written[1]
    assert [one.value for one in await read_all(path)] == [b"a", b"e"]


def value_of(number: int) -> bytes:
    return b"%d:" % number + random.Random(number).randbytes(20_000)


async def publish_many(path: str) -> None:
    """Publish groups of records, and say what became of each."""

    def say(*words: object) -> None:
        os.write(1, (" ".join(map(str, words)) + "\n").encode())

    with capture_logs() as logs:
        async with open_journal(Path(path), segment_bytes=6 * 1024 * 1024) as publisher:
            for begin in range(0, 256, 8):
                receipts = [
                    (number, publisher.publish([record(value_of(number))]))
                    for number in range(begin, begin + 8)
                ]
                for number, receipt in receipts:
                    try:
                        await receipt.wait(FOREVER)
                        say("durable", number)
                    except PublishError as error:
                        say("refused", number, error.reason)
    for entry in logs:
        say("log", entry["event"])


# --- a disk that is full ------------------------------------------------------------------------

MIB = 1024 * 1024
DISK_BYTES = 128 * MIB
BALLAST_BYTES = 100 * MIB


def mount_command(program: Sequence[str], disk: Path) -> list[str] | None:
    """How to run a program that sees a small disk of its own; None if nothing works here."""
    disk.mkdir()
    script = f'mount -t tmpfs -o size={DISK_BYTES} none "$0" && exec "$@"'
    for flags in ("-m", "-rm"):
        command = ["unshare", flags, "sh", "-c", script, str(disk)]
        if subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0:
            return [*command, *program]
    return None


@pytest.mark.parametrize("program", ["fill_by_rule", "fill_to_the_brim", "write_protect"])
def test_on_a_disk_that_takes_nothing_records_are_refused_and_none_is_lost(
    tmp_path: Path, program: str
) -> None:
    disk = tmp_path / "disk"
    command = mount_command([sys.executable, __file__, program, str(disk)], disk)
    assert command is not None, (
        "neither `unshare -m` nor `unshare -rm` lets us mount a tmpfs: run the tests as root, or "
        "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)"
    )
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def free(disk: Path) -> float:
    """The share of a file system that is free."""
    state = os.statvfs(disk)
    return state.f_bavail / state.f_blocks


async def publish_until_refused(
    publisher: JournalPublisher, taken: list[bytes], size: int
) -> PublishError:
    for _ in range(2000):
        value = b"%d:" % len(taken) + os.urandom(size)
        try:
            await published(publisher, value)
        except PublishError as error:
            return error
        taken.append(value)
    raise AssertionError("the disk never got full")


async def values_on(path: Path) -> list[bytes | None]:
    return [one.value for one in await read_all(path)]


async def fill_by_rule(disk: str) -> None:
    """Of the file system 5 % stay free for others, and for what SQLite needs to go on."""
    path = Path(disk) / "data"
    ballast = Path(disk) / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    taken: list[bytes] = []
    with capture_logs() as logs:
        async with open_journal(path, segment_bytes=4 * MIB) as publisher:
            assert publisher.refusing() is None
            error = await publish_until_refused(publisher, taken, 100_000)
            assert error.reason == "disk_full"
            assert publisher.refusing() == "disk_full"
            assert 0.005 < free(path) < 0.05  # a checkpoint takes up to 4 MiB at once
            for topic in ("calls", "messages"):  # also where there is no file yet
                with pytest.raises(PublishError, match="disk_full"):
                    await published(publisher, b"small", topic=topic)
            assert await values_on(path) == taken

            ballast.unlink()
            await published(publisher, b"again")
            assert publisher.refusing() is None
    assert await values_on(path) == [*taken, b"again"]
    assert [entry["event"] for entry in logs] == ["disk_refuses"]
    assert logs[0]["reason"] == "disk_full"


async def fill_to_the_brim(disk: str) -> None:
    """Others may take the 5 %: then SQLite itself meets the end of the disk."""
    path = Path(disk) / "data"
    ballast = Path(disk) / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    topic_module.KEEP_FREE = 0
    old_ms = now_ms() - 100 * 86_400_000
    old = journal_folder(path) / "messages"
    taken: list[bytes] = []
    async with open_journal(path, segment_bytes=4 * MIB) as publisher:
        await published(publisher, bytes(5 * MIB), b"new", topic="messages")
        with closing(Segment(segment_paths(old)[0])) as segment:
            segment._db.execute("update records set written_ms = ?", (old_ms,))
        os.utime(segment_paths(old)[0], (old_ms / 1000, old_ms / 1000))
        for size in (500_000, 100_000, 10_000, 1_000, 300_000, 10, 10, 10):
            error = await publish_until_refused(publisher, taken, size)
            assert error.reason == "disk_full"
        assert free(path) < 0.02
        assert publisher.refusing() == "disk_full"
        with pytest.raises(PublishError, match="disk_full"):
            await published(publisher, b"a new topic", topic="agents")
        async with open_reader(path, ["calls"]) as reader:
            some = [one.value for one in await reader.fetch(wait_s=0.5)]
            assert some == taken[: len(some)]

        # What is over can be forgotten on a full disk too, and that makes room.
        tidy(journal_folder(path), max_bytes=10**9, now_ms=now_ms())
        assert len(segment_paths(old)) == 1
        taken.append(b"in the room that was made")
        await published(publisher, taken[-1])
        assert (await publish_until_refused(publisher, taken, 100_000)).reason == "disk_full"

        ballast.unlink()
        taken.append(bytes(MIB))
        await published(publisher, taken[-1])
        await published(publisher, b"a new topic", topic="agents")
    async with open_journal(path) as publisher:
        taken.append(b"again")
        await published(publisher, taken[-1])
    assert await values_on(path) == taken


async def write_protect(disk: str) -> None:
    """A disk that becomes read-only, as one does after errors, and later is mended."""

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)

    path = Path(disk) / "data"
    async with open_journal(path) as publisher:
        remount("ro")
        for _ in range(2):
            with pytest.raises(PublishError, match="disk_error"):
                await published(publisher, b"refused")
        assert publisher.refusing() == "disk_error"
        remount("rw")
        await published(publisher, b"taken")
        assert publisher.refusing() is None
    remount("ro")
    async with open_journal(path) as publisher:
        with pytest.raises(PublishError, match="disk_error"):
            await published(publisher, b"refused")
        remount("rw")
        await published(publisher, b"taken again")
    assert await values_on(path) == [b"taken", b"taken again"]


PROGRAMS: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
    program.__name__: program
    for program in (publish_many, fill_by_rule, fill_to_the_brim, write_protect)
}

if __name__ == "__main__":
    asyncio.run(PROGRAMS[sys.argv[1]](sys.argv[2]))
