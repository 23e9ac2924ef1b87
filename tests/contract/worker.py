"""A process that shares work and keeps a diary, a line for each thing that happens.

    python worker.py SETTINGS.json DIARY NAME SESSION_S CONNECTION…

Lines of several processes stand in the diary in the order in which they were written:

    NAME begins CONNECTION NUMBER     the number that it has found, 0 if none
    NAME works CONNECTION NUMBER      the number that it has saved
    NAME ends CONNECTION
    NAME logs EVENT
"""

import asyncio
import itertools
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

from ingest.eventlog.kinds import open_log
from ingest.runner import Stopping, run
from ingest.service import Service
from ingest.settings import Settings
from ingest.work import Job, share_work

#: From one number to the next.
PAUSE_S = 0.02

GRACE_S = 1.0


def main(settings: Settings, diary: int, name: str, session_s: float, *connections: str) -> int:
    def write(*words: object) -> None:
        os.write(diary, f"{' '.join(map(str, (name, *words)))}\n".encode())

    def note(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        write("logs", line["event"], *filter(None, [line.get("error")]))
        raise structlog.DropEvent

    structlog.configure(processors=[note])

    async def work(job: Job) -> None:
        found = job.checkpoint("numbers") or {"number": 0}
        write("begins", job.connection, found["number"])
        try:
            for number in itertools.count(found["number"] + 1):
                await job.save("numbers", {"number": number, "by": name})
                write("works", job.connection, number)
                await asyncio.sleep(PAUSE_S)
        finally:
            write("ends", job.connection)

    async def share(stopping: Stopping) -> None:
        async with open_log(settings, f"worker-{name}") as eventlog:
            sharing = asyncio.create_task(
                share_work(
                    Service(settings, eventlog, stopping, ""),
                    "poll",
                    connections,
                    work,
                    wait_s=0.05,
                    grace_s=GRACE_S,
                    session_s=session_s,
                )
            )
            stopped = asyncio.create_task(stopping.wait())
            await asyncio.wait([sharing, stopped], return_when=asyncio.FIRST_COMPLETED)
            sharing.cancel()
            await asyncio.wait([sharing])

    return run(share)


if __name__ == "__main__":
    given = Settings.model_validate_json(Path(sys.argv[1]).read_text())
    opened = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.exit(main(given, opened, sys.argv[3], float(sys.argv[4]), *sys.argv[5:]))
