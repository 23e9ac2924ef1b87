"""What a process does beside its roles goes on, whatever fails of it."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest import service as service_module
from ingest.runner import Stopping
from ingest.service import Service
from ingest.settings import EventLog, Settings
from tests.ingest.sockets import PlayLog, until


@pytest.mark.parametrize("exists", [True, False])
async def test_a_chore_that_fails_keeps_nobody_from_the_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exists: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(service_module, "HOUSEKEEPING_S", 0.01)
    path = tmp_path if exists else tmp_path / "none"
    service = Service(Settings(eventlog=EventLog(path=path)), PlayLog(), Stopping(), "")
    done = 0

    async def fail() -> None:
        raise OSError(5, "Input/output error")

    async def work() -> None:
        nonlocal done
        done += 1

    service.chores += [fail, work]
    with capture_logs() as lines:
        keeping = asyncio.create_task(service.keep_house())
        await until(lambda: done >= 2)
        keeping.cancel()
        await asyncio.wait([keeping])
    assert {line["event"] for line in lines} == {"housekeeping_failed"}
