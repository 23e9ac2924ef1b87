"""What commands share that work through something and publish it."""

import sys
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ingest.eventlog.ownership import sole_owner
from ingest.logs import quietly
from ingest.runner import Stopping, run
from ingest.settings import Settings

#: What is under way between two looks at whether it is durable; less than the log lets wait.
BATCH, BATCH_BYTES = 200, 8 * 1024 * 1024

#: How long a batch may take, in seconds, and the pause before it is tried again.
PUBLISH_S, AGAIN_S = 30.0, 1.0


class Work(Protocol):
    """Goes through something until it is done, or somebody has lost patience."""

    async def count(self, stopping: Stopping) -> None: ...

    async def publish(self, stopping: Stopping) -> None: ...


def carry_out(settings: Settings, role: str, work: Work, *, dry_run: bool) -> tuple[int, int]:
    """Count, or publish as the only one of a role; the exit code, and what waits for Kafka now.

    Raises ConfigError.
    """
    with quietly(settings.logging.format):
        if dry_run:
            return run(work.count), 0
        with sole_owner(settings.eventlog.path, role):
            code = run(work.publish)
    return code, waiting_in_spool(settings, role)


def print_rest(left: int, waiting: int, *, dry_run: bool) -> None:
    """What is still to be said of it to people."""
    if left:
        print(f"{left:>8,} are left: run it again to go on")
    if waiting:
        print(f"{waiting:,} records wait for Kafka: `dialstream spool drain` brings them there")
    if dry_run:
        print("nothing was published")


class Bar:
    """How far it is, on a terminal; elsewhere only what keeps it from going on."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(doing, total=None)
        self._told: str | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, completed: int, total: int) -> None:
        self._told = None
        self._progress.update(self._task, description=self._doing, completed=completed, total=total)

    def wait(self, reason: str) -> None:
        """Say that the log takes nothing for ``reason``, and that it is tried again."""
        told = f"{self._doing}: {reason}, trying again"
        self._progress.update(self._task, description=told)
        if self._progress.disable and self._told != reason:
            print(told, file=sys.stderr)
        self._told = reason


def waiting_in_spool(settings: Settings, role: str) -> int:
    """Records that Kafka has not taken yet."""
    if settings.eventlog.kind != "kafka":
        return 0
    from ingest.eventlog.spool import look_into, spool_folder  # noqa: PLC0415 - Kafka's is slow

    found = look_into(spool_folder(settings.eventlog.path, role))
    return sum(topic.records for topic in found.values())
