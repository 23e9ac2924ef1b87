"""Sharing work within one process; what holds between processes stands in tests/contract."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest import work
from ingest.checkpoints import read_checkpoints
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.kinds import open_log
from ingest.eventlog.log import Record
from ingest.runner import Stopping
from ingest.service import Service
from ingest.settings import EventLog, Settings
from ingest.work import Job, Run, share_work

SOON_S = 20.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(eventlog=EventLog(path=tmp_path / "data"))


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Service]:
    async with open_log(settings, "poll") as eventlog:
        yield Service(settings, eventlog, Stopping(), "")


@asynccontextmanager
async def sharing(
    service: Service, run: Run, *connections: str, role: str = "poll", grace_s: float = 5.0
) -> AsyncIterator[None]:
    task = asyncio.create_task(
        share_work(service, role, connections or ["acme"], run, wait_s=0.02, grace_s=grace_s)
    )
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def idle(job: Job) -> None:
    await asyncio.Event().wait()


# Jobs


async def test_each_connection_is_run_with_a_job_of_its_own(settings: Settings) -> None:
    jobs: list[Job] = []

    async def run(job: Job) -> None:
        jobs.append(job)
        await idle(job)

    async with opened(settings) as service, sharing(service, run, "acme", "line"):
        await until(lambda: len(jobs) == 2)

    assert {job.connection for job in jobs} == {"acme", "line"}


async def test_a_checkpoint_is_there_for_this_owner_and_the_next(settings: Settings) -> None:
    found: list[Any] = []

    async def run(job: Job) -> None:
        found.append(job.checkpoint("poll"))
        await job.save("poll", {"to_ms": len(found)})
        found.append(job.checkpoint("poll"))
        await idle(job)

    async with opened(settings) as service, sharing(service, run):
        await until(lambda: len(found) == 2)
    async with opened(settings) as service, sharing(service, run):
        await until(lambda: len(found) == 4)

    first, second = found[1], found[3]
    assert found == [None, first, first, second]
    assert (first["to_ms"], second["to_ms"]) == (1, 3)
    assert second["generation"] > first["generation"] > 0
    assert ":" in first["owner"]


async def test_what_others_save_meanwhile_is_seen(settings: Settings) -> None:
    """The poller reads what the listener writes."""
    jobs: dict[str, Job] = {}

    async def run(job: Job) -> None:
        jobs["poll"] = job
        await idle(job)

    async def listen(job: Job) -> None:
        jobs["listen"] = job
        await idle(job)

    async with (
        opened(settings) as service,
        sharing(service, run),
        sharing(service, listen, role="listen"),
    ):
        await until(lambda: len(jobs) == 2)
        for number in range(3):
            await jobs["listen"].save("websocket", {"alive_ms": number})
        await until(lambda: (jobs["poll"].checkpoint("websocket") or {}).get("alive_ms") == 2)
        assert jobs["listen"].checkpoint("websocket") == jobs["poll"].checkpoint("websocket")


async def test_a_run_that_raises_is_told_and_run_again_and_the_others_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_FIRST_PAUSE_S", 0.01)
    runs: list[str] = []
    faults = [
        RuntimeError("private"),
        ExceptionGroup("private", [ValueError()]),
        asyncio.CancelledError(),
        PublishError("timeout"),
    ]

    async def run(job: Job) -> None:
        runs.append(job.connection)
        if job.connection == "acme" and faults:
            raise faults.pop(0)
        await idle(job)

    with capture_logs() as logs:
        async with opened(settings) as service, sharing(service, run, "acme", "line"):
            await until(lambda: runs.count("acme") == 5)

    assert runs.count("line") == 1
    errors = [line for line in logs if line["event"] == "unexpected_error"]
    assert [(line["role"], line["connection"]) for line in errors] == [("poll", "acme")] * 4
    taken = [line for line in logs if line["event"] == "connection_taken"]
    assert len(taken) == 2  # it was ours all the time


async def test_a_run_that_returns_is_done(settings: Settings) -> None:
    runs: list[str] = []

    async def run(job: Job) -> None:
        runs.append(job.connection)
        if job.connection == "line":
            await idle(job)

    async with opened(settings) as service, sharing(service, run, "acme", "line"):
        await until(lambda: len(runs) == 2)
        await asyncio.sleep(0.1)

    assert sorted(runs) == ["acme", "line"]


# Leaving


async def test_a_run_that_is_cancelled_may_end_its_page(settings: Settings) -> None:
    done: list[str] = []

    async def run(job: Job) -> None:
        try:
            done.append("begun")
            await idle(job)
        finally:
            await asyncio.sleep(0.05)
            await job.save("poll", {"to_ms": 7})
            done.append("ended")

    async with opened(settings) as service:
        async with sharing(service, run):
            await until(lambda: done)
        assert done == ["begun", "ended"]

    found = await read_checkpoints(settings)
    assert found["acme", "poll"]["to_ms"] == 7


async def test_a_run_that_fails_at_its_end_is_told_and_not_begun_again(settings: Settings) -> None:
    runs: list[str] = []

    async def run(job: Job) -> None:
        runs.append(job.connection)
        try:
            await idle(job)
        finally:
            raise RuntimeError("private")

    with capture_logs() as logs:
        async with opened(settings) as service, sharing(service, run, grace_s=60.0):
            await until(lambda: runs)
            stopping_s = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - stopping_s < SOON_S
    assert runs == ["acme"]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["unexpected_error"]
    [left] = [line for line in logs if line["event"] == "connection_left"]
    assert left["ended"] is True


async def test_a_run_that_does_not_end_is_cancelled_again_and_then_left_without_a_say(
    settings: Settings,
) -> None:
    cancelled = 0
    jobs: list[Job] = []
    end = asyncio.Event()

    async def run(job: Job) -> None:
        nonlocal cancelled
        jobs.append(job)
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                cancelled += 1

    with capture_logs() as logs:
        async with opened(settings) as service:
            async with sharing(service, run, grace_s=0.05):
                await until(lambda: jobs)
            assert cancelled == 2
            with pytest.raises(PublishError, match="not_owner"):
                await jobs[0].save("poll", {"to_ms": 7})
            end.set()
            await asyncio.sleep(0)

    [left] = [line for line in logs if line["event"] == "connection_left"]
    assert left["ended"] is False
    assert ("acme", "poll") not in await read_checkpoints(settings)


# Reading them


async def put(settings: Settings, key: bytes, value: bytes | None) -> None:
    async with open_log(settings, "poll") as eventlog:
        deadline = asyncio.get_running_loop().time() + SOON_S
        await eventlog.publish([Record("checkpoints", key, value, ())]).wait(deadline)


async def test_the_greatest_generation_counts_and_of_these_the_last(settings: Settings) -> None:
    for value in (
        b'{"at":1,"generation":4}',
        b'{"at":2,"generation":5}',
        b'{"at":3,"generation":5}',
        b'{"at":9,"generation":4}',  # of a zombie
    ):
        await put(settings, b"acme/poll", value)
    await put(settings, b"acme/sweep", b'{"at":8,"generation":1}')
    await put(settings, b"line/poll", b'{"at":7,"generation":0}')

    found = await read_checkpoints(settings)
    assert {place: checkpoint["at"] for place, checkpoint in found.items()} == {
        ("acme", "poll"): 3,
        ("acme", "sweep"): 8,
        ("line", "poll"): 7,
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"acme", b'{"generation":1}'),
        (b"", b'{"generation":1}'),
        (b"\xff/poll", b'{"generation":1}'),
        (b"acme/poll", b"no JSON"),
        (b"acme/poll", b"[1]"),
        (b"acme/poll", b"null"),
        (b"acme/poll", b"{}"),
        (b"acme/poll", b'{"generation":"9"}'),
        (b"acme/poll", b'{"generation":true}'),
        (b"acme/poll", None),
    ],
)
async def test_what_is_no_checkpoint_is_passed_over(
    settings: Settings, key: bytes, value: bytes | None
) -> None:
    await put(settings, b"acme/poll", b'{"at":1,"generation":1}')
    with capture_logs() as logs:
        await put(settings, key, value)
        found = await read_checkpoints(settings)
    assert found == {("acme", "poll"): {"at": 1, "generation": 1}}
    assert [line["event"] for line in logs] == ["checkpoint_unreadable"]


async def test_without_a_checkpoint_there_is_none(settings: Settings) -> None:
    assert await read_checkpoints(settings) == {}


async def test_a_folder_that_cannot_be_written_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    settings = Settings(eventlog=EventLog(path=tmp_path / "data"))
    async with opened(settings) as service:
        (tmp_path / "data" / "poll.lock").mkdir()
        with pytest.raises(ConfigError, match=r"eventlog\.path"):
            await share_work(service, "poll", ["acme"], idle)
