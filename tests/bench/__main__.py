"""``python -m tests.bench``: all peers in one run, turn and turn about. README.md explains."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from tests.bench import disk
from tests.bench.broker import start_broker
from tests.bench.errors import BenchError
from tests.bench.peers import OURS, PEERS, Server
from tests.bench.report import Report
from tests.bench.scenes import FOR_ALL, FOR_OURS, Length, Scene, Stage

_SOAK_S = 600.0

#: Of lines that go to no terminal.
_WIDTH = 120


def bench(
    *,
    scene: Annotated[
        list[Scene] | None,
        typer.Option("--scene", "-s", help="Some only; otherwise all but soak."),
    ] = None,
    connections: Annotated[
        list[int], typer.Option("--connections", "-c", help="Can be given several times.")
    ] = [32, 64, 128],  # noqa: B006 - typer copies it
    seconds: Annotated[float, typer.Option(help="Of a round.")] = 4.0,
    rounds: Annotated[int, typer.Option(help="Of each peer and number of connections.")] = 3,
    soak: Annotated[
        float | None, typer.Option(help="Soak, too, for so many seconds.", show_default=False)
    ] = None,
    path: Annotated[
        Path, typer.Option(help="Where the data directory is made, and removed.")
    ] = Path("/var/tmp"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here as well, for programs.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Does it run at all? One short round.")] = False,
) -> None:
    """Measure what a delivery costs, beside a server that does nothing and a plain app."""
    backlog, calls, records, settled, handled = 60_000, 100_000, 1_000_000, 100_000, 100_000
    if quick:
        connections, seconds, rounds = [64], 2.0, 1
        backlog, calls, records, settled, handled = 10_000, 5_000, 20_000, 4_000, 20_000
    scenes = set(scene or Scene) - ({Scene.SOAK} if not scene else set())
    if soak is not None:
        scenes.add(Scene.SOAK)
    problem = _unfit(path)
    if problem:
        typer.echo(problem, err=True)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes all the same
    length = Length(
        connections=connections,
        seconds=seconds,
        rounds=rounds,
        backlog=backlog,
        calls=calls,
        records=records,
        settled=settled,
        handled=handled,
        soak_s=soak or _SOAK_S,
    )
    try:
        report = _run(path, scenes, length)
    except BenchError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    if json_file is not None:
        json_file.write_text(json.dumps(report.for_programs(), indent=2) + "\n")
    terminal = Console()
    report.show(terminal if terminal.is_terminal else Console(width=_WIDTH))
    raise typer.Exit(any(report.faults()))


def _unfit(path: Path) -> str | None:
    for tool, package in (("wrk", "wrk"), ("java", "openjdk-17-jre-headless")):
        if shutil.which(tool) is None:
            return f"{tool} is missing: apt-get install {package}"
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return "two cores are needed: one for the server, one for the load"
    if disk.file_system(path) in ("tmpfs", "ramfs"):
        return f"{path} is in memory, where fsync costs nothing: give --path on a disk"
    return None


def _run(path: Path, scenes: Collection[Scene], length: Length) -> Report:
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="dialstream-bench-", dir=path) as folder,
        Progress(console=console, disable=not console.is_terminal) as progress,
        start_broker(Path(folder) / "broker") as broker,
        ExitStack() as stack,
    ):
        home = Path(folder)
        report = Report(disk.measure(home))
        compares = any(scene in scenes for scene in FOR_ALL)
        servers: dict[str, Server] = {}
        for number, peer in enumerate(PEERS):
            if compares or peer.name == OURS:
                own = home / str(number)
                own.mkdir()
                servers[peer.name] = stack.enter_context(peer.start(own, broker))

        stage = Stage(home, broker, servers, report, length, progress)
        for _ in range(1 if Scene.SATURATION in scenes else 2):  # a cold server's most is not much
            stage.warm_up()
        for scene in FOR_ALL:
            if scene in scenes:
                stage.play(scene)
        for name in servers:
            if name != OURS:  # it is to see Kafka go away
                stage.end(name)
        for scene in FOR_OURS:
            if scene in scenes:
                stage.play(scene)
        stage.end(OURS)
        return report


if __name__ == "__main__":
    typer.run(bench)
