"""The operator's own command: whatever it does, it is told, and nobody waits for it for ever."""

import asyncio
import itertools
import os
from pathlib import Path

import psutil
import pytest

from consumers.prove import trouble
from consumers.prove.trouble import Happened, Trouble

PATIENT_S = 60


async def play(command: str, *, runs: int = 1, every_s: float = 0.02) -> list[Happened]:
    """What has happened when it had run so often."""
    enough = asyncio.Event()

    def tell(happened: Happened) -> None:
        told.append(happened)
        if len(told) == runs:
            enough.set()

    told: list[Happened] = []
    numbers = itertools.count(1)
    playing = Trouble(command, every_s, lambda: {"RUN": str(next(numbers))}, tell)
    task = asyncio.create_task(playing.play())
    async with asyncio.timeout(PATIENT_S):
        await enough.wait()
        playing.end()
        await task
    assert playing.happened == told
    return told


async def test_its_exit_code_and_all_that_it_says_are_told() -> None:
    command = "echo run $RUN; echo trouble >&2; printf '\\377'; exit $RUN"
    told = await play(command, runs=3)
    assert [(each.code, each.output) for each in told[:3]] == [
        (number, f"run {number}\ntrouble\n\ufffd") for number in (1, 2, 3)
    ]
    assert [each.at_s for each in told] == sorted(each.at_s for each in told)


async def test_a_command_that_there_is_not() -> None:
    (told,) = (await play("no-such-command-anywhere"))[:1]
    assert told.code == 127
    assert "not found" in told.output


async def test_what_it_leaves_in_the_background_is_not_waited_for() -> None:
    (told,) = (await play("sleep 1000 & echo $!"))[:1]
    assert told.code == 0
    left = psutil.Process(int(told.output))
    left.kill()


async def test_what_hangs_is_killed_with_all_that_it_has_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trouble, "END_S", 0.1)
    pids = tmp_path / "pids"
    command = f"sleep 1000 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"
    playing = Trouble(command, 0.02, dict, print)
    task = asyncio.create_task(playing.play())
    async with asyncio.timeout(PATIENT_S):
        while not pids.exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
        assert not task.done()
        processes = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
        playing.end()
        await task
        while not all(map(has_ended, processes)):  # noqa: ASYNC110 - those of another process
            await asyncio.sleep(0.01)
    (told,) = playing.happened
    assert told.code is None


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_what_is_ended_before_its_time_has_not_begun() -> None:
    playing = Trouble(f"kill -9 {os.getpid()}", 3600, dict, print)
    playing.end()
    await asyncio.wait_for(playing.play(), PATIENT_S)
    assert playing.happened == []
