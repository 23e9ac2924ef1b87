"""`dialstream spool`: what waits for Kafka on a disk, and how it gets there after all."""

import asyncio
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_spool_log
from ingest.eventlog.ownership import sole_owner
from ingest.eventlog.segments import segment_paths
from ingest.eventlog.spool import SPOOLS, Waiting, look_into
from ingest.logs import quietly
from ingest.runner import Stopping, run
from ingest.settings import Settings

_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Line:
    """A topic of a spool that holds something."""

    folder: str
    topic: str
    records: int
    size_bytes: int
    oldest_s: float


def show_spool(path: Path, *, as_json: bool) -> int:
    """Print what waits in the spools at ``path``; 0. Raises ConfigError if there are none."""
    with quietly("auto"):  # a file that cannot be read is told on stderr
        lines = [
            Line(str(folder), topic, found.records, found.size_bytes, round(found.oldest_s, 1))
            for folder in spools_at(path)
            for topic, found in look_into(folder).items()
        ]
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    elif not lines:
        print(f"nothing waits in {', '.join(map(str, spools_at(path)))}")
    else:
        table = Table("spool", "topic")
        for column in ("records", "MB", "oldest"):
            table.add_column(column, justify="right")
        for line in lines:
            size, age = f"{line.size_bytes / 1e6:,.1f}", _age(line.oldest_s)
            table.add_row(line.folder, line.topic, f"{line.records:,}", size, age)
        Console().print(table)
    return 0


def drain_spool(settings: Settings, path: Path) -> int:
    """Bring to Kafka what waits in the spools at ``path``; 0 if nothing is left there, else 1.

    Raises ConfigError if the event log is not Kafka, there is no spool, or its owner is running.
    """
    if settings.eventlog.kind != "kafka":
        raise ConfigError('eventlog.kind is not "kafka": a spool can only be drained to Kafka')
    folders = spools_at(path)
    with ExitStack() as stack:
        for folder in map(Path.resolve, folders):  # "." is the folder of a role, too
            stack.enter_context(sole_owner(_data_folder(folder), folder.name))
        code = run(lambda stopping: _drain_all(settings, folders, stopping))
    left = sum(found.records for folder in folders for found in look_into(folder).values())
    if left:
        print(f"{left:,} records are still there: run it again to go on")
    return 1 if left else code


def spools_at(path: Path) -> list[Path]:
    """The folders of spools: ``path`` itself, or those below it if it is a data directory.

    Raises ConfigError if there are none.
    """
    if any(segment_paths(folder) for folder in _folders(path)):
        return [path]
    found = _folders(path / SPOOLS)
    if not found:
        raise ConfigError(
            f"{path}: there is no spool: name a data directory (eventlog.path), or a folder "
            f"{SPOOLS}/<role> in one"
        )
    return found


def _data_folder(role: Path) -> Path:
    """Where the lock of a role's folder is."""
    return role.parent.parent if role.parent.name == SPOOLS else role.parent


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []


async def _drain_all(settings: Settings, folders: list[Path], stopping: Stopping) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        for folder in folders:
            waiting = look_into(folder)
            total = sum(found.records for found in waiting.values())
            task = progress.add_task(str(folder), total=total)
            async with open_spool_log(settings, folder) as kafka:
                while not stopping.asked:
                    waiting = kafka.spool.waiting()
                    progress.update(task, completed=total - _records(waiting))
                    trouble = "" if kafka.connection.connected else "Kafka cannot be reached"
                    progress.update(task, description=trouble or str(folder))
                    if not waiting:
                        break
                    await asyncio.sleep(_LOOK_S)


def _records(waiting: Mapping[str, Waiting]) -> int:
    return sum(found.records for found in waiting.values())


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"
