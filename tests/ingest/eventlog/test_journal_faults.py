"""What the journal does when its disk fails: nothing acknowledged is lost, and it goes on.

Run as a program it is a process under a disk that fails.
"""

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest.errors import PublishError
from ingest.eventlog import topic as topic_module
from ingest.eventlog.journal import JournalPublisher, journal_folder, open_journal, open_reader
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.retention import tidy
from ingest.eventlog.segments import Segment, segment_paths
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


@dataclass(frozen=True)
class Template:
    """A journal of one topic that was never closed: some of its newest file is in the log."""

    path: Path
    #: Position → value: all that is in it, and what is in its newest file.
    values: dict[int, bytes] = field(repr=False)
    newest: dict[int, bytes] = field(repr=False)

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
    newest = {position: value for position, value in values.items() if position >= first}
    return Template(path.with_name("copy"), values, newest)


def lacking(found: Mapping[int, bytes | None], wanted: Mapping[int, bytes]) -> list[int]:
    """The positions where not everything is as it was."""
    return [at for at, value in wanted.items() if found.get(at) != value]


def pages_of(file: Path, values: dict[int, bytes]) -> dict[int, set[int]]:
    """Position → the pages in which its value stands, for those that stand in ``file``."""
    content = file.read_bytes()
    found = {}
    for position, value in values.items():
        # A long value goes on in pages of its own: its pieces are found by their bytes.
        pieces = [value[at : at + 100] for at in range(0, len(value), 3000)]
        places = [content.find(piece) for piece in pieces]
        if min(places) >= 0:
            found[position] = {place // PAGE for place in places}
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
    assert found[-3].position > max(template.values)
    before = {at: value for at, value in template.values.items() if at not in template.newest}
    assert lacking(by_position, before) == []

    saved = {at: value for at, value in by_position.items() if at in template.newest}
    damage = [entry for entry in logs if entry["event"] == "segment_damaged"]
    if damage:
        (entry,) = damage
        assert entry["log_level"] == "error"
        assert entry["topic"] == "calls"
        assert entry["rescued"] == len(by_position) - 3 - len(before)
        assert (journal_folder(path) / "calls" / f"{entry['file']}.damaged").exists()
    return saved


#: Where a run of bytes begins, as a share of the file, and how long it is.
RUNS = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 3 * PAGE)), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
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
async def test_every_row_on_a_page_that_is_in_order_is_rescued(
    template: Template, tmp_path: Path, pages: list[int], length: int
) -> None:
    path = tmp_path / "data"
    newest = template.copy(path)
    places = pages_of(newest, template.newest)
    assert len(places) > 100
    with newest.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE)
            file.write(b"\xff" * length)

    logs = await goes_on(path)
    saved = check_rescue(path, template, logs, await read_all(path))
    assert any(entry["event"] == "segment_damaged" for entry in logs)
    sound = {at for at, on in places.items() if not on & set(pages)}
    assert len(sound) > 90
    assert lacking(saved, {at: template.newest[at] for at in sound}) == []


async def test_what_a_cut_file_still_holds_is_rescued(template: Template, tmp_path: Path) -> None:
    path = tmp_path / "data"
    newest = template.copy(path)
    newest.with_name(f"{newest.name}-wal").unlink()  # with the log its loss would be mended
    places = pages_of(newest, template.newest)
    keep = newest.stat().st_size // PAGE // 2
    os.truncate(newest, keep * PAGE + 1000)

    logs = await goes_on(path)
    saved = check_rescue(path, template, logs, await read_all(path))
    assert any(entry["event"] == "segment_damaged" for entry in logs)
    sound = {at for at, on in places.items() if max(on) < keep}
    assert len(sound) > 40
    assert lacking(saved, {at: template.newest[at] for at in sound}) == []


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


async def test_a_reader_reads_around_damage_and_says_so_once(
    template: Template, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    template.copy(path)
    sealed = segment_paths(journal_folder(path) / "calls")[0]
    with closing(Segment(sealed)) as segment:
        inside = {p: v for p, v in template.values.items() if p <= segment.last()}
    places = pages_of(sealed, inside)
    assert len(places) == len(inside)
    damaged = {4, 8, max(max(on) for on in places.values())}
    with sealed.open("r+b") as file:
        for page in damaged:
            file.seek(page * PAGE)
            file.write(b"\xff" * PAGE)

    with capture_logs() as logs:
        found = {one.position: one.value for one in await read_all(path)}
    lost = {at for at, on in places.items() if on & damaged}
    assert 0 < len(lost) < len(inside)
    wanted = {at: value for at, value in template.values.items() if at not in lost}
    assert lacking(found, wanted) == []
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


async def test_a_reader_in_the_middle_of_a_damaged_file_gets_what_was_rescued_of_it(
    template: Template, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    newest = template.copy(path)
    with newest.open("r+b") as file:
        file.write(b"\xff" * PAGE)
    newest.with_name(f"{newest.name}-wal").unlink()
    before = len(template.values) - len(template.newest)
    async with open_reader(path, ["calls"]) as reader:
        found: list[StoredRecord] = []
        while len(found) < before:
            found += await reader.fetch(wait_s=1)
        assert await reader.fetch(wait_s=0.1) == []  # the rest cannot be read

        await goes_on(path)
        while not await reader.caught_up():
            found += await reader.fetch(wait_s=0.1)
    by_position = {one.position: one.value for one in found}
    in_file = {at: value for at, value in template.values.items() if at <= before + 150}
    assert lacking(by_position, in_file) == []
    assert [one.value for one in found[-3:]] == [b"new 1", b"new 2", b"new 3"]
