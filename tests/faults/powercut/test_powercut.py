"""What was acknowledged is there after a power cut.

Killing a process proves nothing about the disk: the page cache survives it. Here a preloaded shim
plays the disk (shim.c): only what was synced is restored, and journal and spool have to find in it
whatever a receipt called durable.
"""

import asyncio
import ctypes
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.eventlog.journal import journal_folder, open_journal, open_reader
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.segments import first_position, segment_paths
from ingest.eventlog.spool import Spool, spool_folder
from tests.faults.powercut.writer import COMPACTED, TOPICS, value_of

HERE = Path(__file__).parent
BLOCK = 4096

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _STATX_INO_AND_BTIME = -100, 0x100, 0x900


def identity(path: Path) -> str:
    """Of an inode, as the shim writes it."""
    found = ctypes.create_string_buffer(256)
    if _LIBC.statx(_AT_FDCWD, bytes(path), _AT_SYMLINK_NOFOLLOW, _STATX_INO_AND_BTIME, found):
        raise OSError(ctypes.get_errno(), "statx", str(path))
    (inode,) = struct.unpack_from("Q", found, 32)
    seconds, nanoseconds = struct.unpack_from("qI", found, 80)
    return f"{inode}.{seconds}.{nanoseconds}"


class Disk:
    """A folder that plays a disk: what programs see, and what would be there without power."""

    def __init__(self, path: Path) -> None:
        self.live = path / "live"
        self._kept = path / "kept"
        self.live.mkdir(parents=True)
        self._kept.mkdir()

    def environment(self, shim: Path) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(shim),
            "POWERCUT_LIVE": str(self.live),
            "POWERCUT_KEPT": str(self._kept),
        }

    def settle(self) -> None:
        """All that is there now has been there for long."""
        for folder, folders, files in os.walk(self.live):
            names = [f"d {identity(Path(folder, name))} {name}\n" for name in folders]
            names += [f"f {identity(Path(folder, name))} {name}\n" for name in files]
            (self._kept / identity(Path(folder))).write_text("".join(names))
            for name in files:
                path = Path(folder, name)
                (self._kept / identity(path)).write_bytes(path.read_bytes())

    def restore(self, to: Path, chance: random.Random | None = None) -> None:
        """Make ``to`` what a power cut leaves.

        With ``chance``: the kernel had begun to write back by itself, as it may at any time and in
        any order: of what was not synced some blocks, sizes and names are there as well.
        """
        self._restore_folder(self.live, identity(self.live), to, chance)

    def _restore_folder(
        self, live: Path, name: str, to: Path, chance: random.Random | None
    ) -> None:
        kept = dict(self._names(name))
        if chance is not None and live.is_dir():
            now = {path.name: path for path in live.iterdir()}
            for path in now.values():
                if path.name not in kept and chance.random() < 0.5:
                    kept[path.name] = ("d" if path.is_dir() else "f", identity(path))
            for gone in kept.keys() - now.keys():
                if chance.random() < 0.5:
                    del kept[gone]
        for entry, (kind, inode) in kept.items():
            if kind == "d":
                (to / entry).mkdir()
                self._restore_folder(live / entry, inode, to / entry, chance)
            else:
                (to / entry).write_bytes(self._contents(live / entry, inode, chance))

    def _names(self, folder: str) -> Iterator[tuple[str, tuple[str, str]]]:
        path = self._kept / folder
        if path.exists():
            for line in path.read_text().splitlines():
                kind, inode, name = line.split(" ", 2)
                yield name, (kind, inode)

    def _contents(self, live: Path, inode: str, chance: random.Random | None) -> bytes:
        path = self._kept / inode
        kept = path.read_bytes() if path.exists() else b""
        if chance is None or not live.exists() or identity(live) != inode:
            return kept
        cached = live.read_bytes()
        size = chance.choice([len(kept), len(cached)])
        blocks = []
        for at in range(0, size, BLOCK):
            source = chance.choice([kept, cached])
            blocks.append(source[at : at + BLOCK].ljust(min(BLOCK, size - at), b"\0"))
        return b"".join(blocks)


@dataclass(frozen=True, slots=True)
class Durable:
    """A record whose receipt was durable."""

    topic: str
    key: bytes
    number: int

    @property
    def value(self) -> bytes:
        return value_of(f"{self.key.decode()}.{self.number}")


def write_until_the_cut(
    disk: Disk, shim: Path, round_: str, mutant: str, store: str = "journal"
) -> list[Durable]:
    """Run a writer and kill it in the middle of everything; what it said was durable."""
    report = disk.live.parent / "report"
    with report.open("wb") as output:
        writer = subprocess.Popen(
            [sys.executable, str(HERE / "writer.py"), str(disk.live / "data"), round_, store],
            env=os.environ | disk.environment(shim) | {"POWERCUT_MUTANT": mutant},
            stdout=output,
        )
    try:
        enough = random.randint(3_000, 16_000)
        while report.stat().st_size < enough:
            assert writer.poll() is None, "the writer has ended by itself"
            time.sleep(random.uniform(0.001, 0.02))
    finally:
        writer.kill()
        writer.wait()
    # A line that was cut off was being written: nobody may have read it.
    lines = [line for line in report.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"]
    return [
        Durable(topic.decode(), key, int(number)) for topic, key, number in map(bytes.split, lines)
    ]


async def read_spool(path: Path, scratch: Path) -> list[StoredRecord]:
    """All that a copy of the spool still gives to Kafka."""
    shutil.copytree(spool_folder(path, "receiver"), scratch)
    spool = Spool(scratch, 10**12)
    found: list[StoredRecord] = []
    async with asyncio.timeout(30):
        for topic in TOPICS:
            spool.open(topic)
            while (chunk := await spool.read(topic, 10**6)) != []:
                found += chunk or ()
                if chunk:
                    spool.drained(topic, chunk[-1].position, len(chunk))
    await spool.close()
    return found


async def read(path: Path) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    async with open_reader(path, TOPICS) as reader, asyncio.timeout(30):
        while not await reader.caught_up():
            found += await reader.fetch(wait_s=0)
    return found


def missing(durable: list[Durable], found: list[StoredRecord]) -> list[Durable]:
    """What is lost or changed."""
    there = {(one.topic, one.key): one for one in found}
    lost = []
    for record in durable:
        stored = there.get((record.topic, record.key))
        number = -1 if stored is None else int(stored.headers[0][1])
        if record.topic == COMPACTED and number > record.number:
            continue  # a later one of its key has taken its place
        if stored is None or number != record.number or stored.value != record.value:
            lost.append(record)
    return lost


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Werror"]
    subprocess.run(["cc", *flags, "-o", library, HERE / "shim.c", "-ldl", "-lpthread"], check=True)
    return library


@pytest.mark.parametrize("torn", [False, True], ids=["only_what_was_synced", "and_some_more"])
def test_nothing_that_was_acknowledged_is_lost_in_power_cuts(
    tmp_path: Path, shim: Path, *, torn: bool
) -> None:
    chance = random.Random(7) if torn else None
    durable: list[Durable] = []
    positions: dict[str, int] = {}
    segments = 0
    disk = Disk(tmp_path / "0")
    disk.settle()
    for cut in range(1, 4):
        reported = write_until_the_cut(disk, shim, f"{cut}", mutant="")
        assert len(reported) > 100
        durable += reported
        after = Disk(tmp_path / f"{cut}")
        disk.restore(after.live, chance)
        disk = after

        path = disk.live / "data"
        with capture_logs() as logs:
            found = asyncio.run(read(path))
            assert missing(durable, found) == []
            asyncio.run(publish_after(path, positions))
        assert [entry for entry in logs if entry["log_level"] == "error"] == []
        segments += sum(len(segment_paths(journal_folder(path) / topic)) for topic in TOPICS)
        disk.settle()

    folder = journal_folder(disk.live / "data")
    assert segments > 20, "the journal never went from one segment to the next"
    assert max(path.stat().st_size for path in segment_paths(folder / "calls")) > 300_000
    assert first_position(segment_paths(folder / COMPACTED)[0]) > 1, "nothing was compacted"


async def publish_after(path: Path, positions: dict[str, int]) -> None:
    """The journal goes on, behind what was there."""
    async with open_journal(path) as publisher:
        for topic in TOPICS:
            await publisher.publish([Record(topic, b"after", b"", (("n", b"0"),))]).wait(
                asyncio.get_running_loop().time() + 10
            )
    last = {one.topic: one.position for one in await read(path)}
    assert all(last[topic] > positions.get(topic, 0) for topic in TOPICS)
    positions |= last


@pytest.mark.parametrize("torn", [False, True], ids=["only_what_was_synced", "and_some_more"])
def test_nothing_that_the_spool_acknowledged_is_lost_in_power_cuts(
    tmp_path: Path, shim: Path, *, torn: bool
) -> None:
    chance = random.Random(8) if torn else None
    durable: list[Durable] = []
    drained: list[Durable] = []
    began_late = 0
    disk = Disk(tmp_path / "0")
    disk.settle()
    for cut in range(1, 4):
        for told in write_until_the_cut(disk, shim, f"{cut}", mutant="", store="spool"):
            if told.topic.startswith("-"):
                drained.append(replace(told, topic=told.topic[1:]))
            else:
                durable.append(told)
        after = Disk(tmp_path / f"{cut}")
        disk.restore(after.live, chance)
        disk = after

        with capture_logs() as logs:
            found = asyncio.run(read_spool(disk.live / "data", tmp_path / f"{cut}.copy"))
        assert [entry for entry in logs if entry["log_level"] == "error"] == []
        left = [each for each in durable if each not in set(drained)]
        assert missing_from_spool(left, found) == []
        for topic in TOPICS:
            positions = [one.position for one in found if one.topic == topic]
            assert positions == sorted(set(positions))
            paths = segment_paths(spool_folder(disk.live / "data", "receiver") / topic)
            began_late += first_position(paths[0]) > 1
        disk.settle()

    assert len(durable) > 300
    assert len(drained) > 50
    assert began_late, "nothing that was drained was unlinked"


def missing_from_spool(durable: list[Durable], found: list[StoredRecord]) -> list[Durable]:
    there = {(one.topic, one.key, one.headers[0][1], one.value) for one in found}
    return [
        each
        for each in durable
        if (each.topic, each.key, b"%d" % each.number, each.value) not in there
    ]


@pytest.mark.parametrize("mutant", ["off", "normal", "names"])
def test_a_spool_that_does_not_sync_is_found_out(tmp_path: Path, shim: Path, mutant: str) -> None:
    disk = Disk(tmp_path / "disk")
    disk.settle()
    durable = write_until_the_cut(disk, shim, mutant, mutant, store="spool")
    assert len(durable) > 100
    (tmp_path / "after").mkdir()
    disk.restore(tmp_path / "after")
    spool_folder(tmp_path / "after" / "data", "receiver").mkdir(parents=True, exist_ok=True)

    found = asyncio.run(read_spool(tmp_path / "after" / "data", tmp_path / "copy"))
    assert len(missing_from_spool(durable, found)) > 10


@pytest.mark.parametrize("mutant", ["off", "normal", "names"])
def test_a_journal_that_does_not_sync_is_found_out(tmp_path: Path, shim: Path, mutant: str) -> None:
    disk = Disk(tmp_path / "disk")
    disk.settle()
    reported = write_until_the_cut(disk, shim, mutant, mutant)
    assert len(reported) > 100
    (tmp_path / "after").mkdir()
    disk.restore(tmp_path / "after")

    found = asyncio.run(read(tmp_path / "after" / "data"))
    assert len(missing(reported, found)) > 10, "the test does not see what it is there to see"
