"""Members that are killed under load, and stopped: nothing is skipped, keys keep their order."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.consumers.subscribe.logs import SOON_S, Log, call, settings_file
from tests.kit import PROJECT, clean_environment

MEMBER = Path(__file__).with_name("member.py")

KILLS = int(os.environ.get("DIALSTREAM_TEST_KILLS", "4"))

LEGS, EVENTS = 20, 15

#: For all of it, in seconds. Kafka needs ten to notice that a member is dead.
LONG_S = 200.0


@dataclass(frozen=True, slots=True)
class Member:
    process: subprocess.Popen[bytes]
    stderr: Path

    def stop(self) -> int:
        """Ask it to end once it is at work; the exit code."""
        until = time.monotonic() + SOON_S
        while '"subscribed"' not in self.stderr.read_text():
            assert time.monotonic() < until, self.stderr.read_text()
            assert self.process.poll() is None, self.stderr.read_text()
            time.sleep(0.02)
        self.process.terminate()
        return self.process.wait(SOON_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Members:
    """Processes of one group, and what they have written down."""

    def __init__(self, log: Log, folder: Path, pause_s: float) -> None:
        self._arguments = [str(settings_file(log, folder)), str(folder / "diary")]
        self._pause_s = pause_s
        self._folder = folder
        self._diary = folder / "diary"
        self._diary.touch()
        self.alive: list[Member] = []
        self._started = 0

    def start(self) -> None:
        self._started += 1
        name = f"m{self._started}"
        program = [sys.executable, str(MEMBER), *self._arguments, name, str(self._pause_s)]
        stderr = self._folder / f"{name}.txt"
        with stderr.open("ab") as errors:
            process = subprocess.Popen(
                program,
                cwd=PROJECT,
                env=clean_environment(PYTHONPATH=str(PROJECT)),
                stderr=errors,
            )
        self.alive.append(Member(process, stderr))

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self._diary.read_text().splitlines()]

    def ended(self) -> set[tuple[str, int]]:
        return {(line[2], int(line[3])) for line in self.lines() if line[1] == "ends"}


@contextmanager
def members(log: Log, folder: Path, count: int, pause_s: float) -> Iterator[Members]:
    found = Members(log, folder, pause_s)
    try:
        for _ in range(count):
            found.start()
        yield found
        assert [member.stop() for member in found.alive] == [0] * len(found.alive)
    finally:
        for member in found.alive:
            member.kill()
            sys.stderr.write(member.stderr.read_text())


def judge(lines: Sequence[Sequence[str]], events: int) -> None:
    """In each leg an event begins once the one before it has been handled, and none is left out."""
    handled: dict[str, set[int]] = defaultdict(set)
    for name, what, leg, nth_ in lines:
        nth = int(nth_)
        if what == "begins":
            assert nth == 0 or nth - 1 in handled[leg], f"{name} skips {leg} {nth - 1}"
        elif what == "ends":
            handled[leg].add(nth)
    assert len(handled) == LEGS
    assert all(each == set(range(events)) for each in handled.values())


def test_the_judge_sees_what_is_skipped() -> None:
    good = [("a", what, f"leg{leg}", "0") for leg in range(LEGS) for what in ("begins", "ends")]
    judge(good, 1)
    with pytest.raises(AssertionError, match="skips"):
        judge([*good, ("a", "begins", "leg0", "2"), ("a", "ends", "leg0", "2")], 3)
    with pytest.raises(AssertionError):
        judge(good[:-1], 1)


@pytest.mark.timeout(400)
async def test_members_are_killed_under_load(log: Log, tmp_path: Path) -> None:
    chance = random.Random(os.urandom(4))
    everything = {(f"leg{leg}", nth) for leg in range(LEGS) for nth in range(EVENTS)}
    written = 0

    async def write() -> None:
        nonlocal written
        for nth in range(EVENTS):
            await log.write([call(f"leg{leg}", nth) for leg in range(LEGS)])
            written += LEGS
            await asyncio.sleep(1)

    with members(log, tmp_path, 2, pause_s=0.05) as group:
        writing = asyncio.create_task(write())
        async with asyncio.timeout(LONG_S):
            for kill in range(KILLS):
                # Once it has something to do again; killed in the middle of it.
                so_far = len(group.lines())
                while len(group.lines()) < so_far + 30 and len(group.ended()) < written:  # noqa: ASYNC110 - others write it
                    await asyncio.sleep(0.02)
                await asyncio.sleep(chance.random())
                group.alive.pop(kill % 2).kill()
                group.start()
            await writing
            while group.ended() != everything:
                assert all(member.process.poll() is None for member in group.alive)
                await asyncio.sleep(0.1)
    judge(group.lines(), EVENTS)


@pytest.mark.timeout(400)
async def test_members_come_and_go_in_good_order(log: Log, tmp_path: Path) -> None:
    """No leg is handled by two at a time, and nothing is handled twice that was handled."""
    events = 8
    everything = {(f"leg{leg}", nth) for leg in range(LEGS) for nth in range(events)}
    with members(log, tmp_path, 1, pause_s=0.05) as group:
        for nth in range(events):
            await log.write([call(f"leg{leg}", nth) for leg in range(LEGS)])
            if nth % 2 == 0:
                group.start()
            if nth % 4 == 3:
                assert await asyncio.to_thread(group.alive.pop(0).stop) == 0
            await asyncio.sleep(0.5)
        async with asyncio.timeout(LONG_S):
            while group.ended() != everything:
                assert all(member.process.poll() is None for member in group.alive)
                await asyncio.sleep(0.1)
    lines = group.lines()
    judge(lines, events)
    busy: dict[str, str] = {}
    for name, what, leg, _ in lines:
        assert busy.get(leg, name) == name
        if what == "begins":
            busy[leg] = name
        else:
            busy.pop(leg)
    ends = [tuple(line[2:]) for line in lines if line[1] == "ends"]
    assert len(ends) == len(set(ends))
