"""``python -m tests.bench``: all peers in one run, turn and turn about. README.md explains."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from tests.bench import disk
from tests.bench.bodies import Slice, make_slices
from tests.bench.load import STEADY_CONNECTIONS, saturate, steady
from tests.bench.peers import PEERS, BenchError, Server
from tests.bench.report import Report

#: Posted before anything counts. It warms up, and tells how many bodies a round will need.
_WARM_UP_BODIES, _WARM_UP_S = 20_000, 2.0

#: Rounds may be quicker than the warm-up; one that runs out of bodies ends early.
_SPARE = 1.2


def bench(
    *,
    connections: Annotated[
        list[int], typer.Option("--connections", "-c", help="Can be given several times.")
    ] = [32, 64, 128],  # noqa: B006 - typer copies it
    seconds: Annotated[float, typer.Option(help="Of a round.")] = 8.0,
    rounds: Annotated[int, typer.Option(help="Of each peer and number of connections.")] = 3,
    path: Annotated[
        Path, typer.Option(help="Where the data directory is made, and removed.")
    ] = Path("/var/tmp"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here as well, for programs.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Does it run at all? One short round.")] = False,
) -> None:
    """Measure what a delivery costs, beside a server that does nothing."""
    if quick:
        connections, seconds, rounds = [64], 2.0, 1
    problem = _unfit(path)
    if problem:
        typer.echo(problem, err=True)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes all the same
    try:
        report = _run(path, connections, seconds, rounds)
    except BenchError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    if json_file is not None:
        json_file.write_text(json.dumps(report.for_programs(), indent=2) + "\n")
    report.show(Console())
    raise typer.Exit(any(report.faults()))


def _unfit(path: Path) -> str | None:
    if shutil.which("wrk") is None:
        return "wrk is missing: apt-get install wrk"
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return "two cores are needed: one for the server, one for the load"
    if disk.file_system(path) in ("tmpfs", "ramfs"):
        return f"{path} is in memory, where fsync costs nothing: give --path on a disk"
    return None


def _run(path: Path, connections: Sequence[int], seconds: float, rounds: int) -> Report:
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="dialstream-bench-", dir=path) as folder,
        Progress(console=console, disable=not console.is_terminal) as progress,
        ExitStack() as stack,
    ):
        home = Path(folder)

        def sign(name: str, counts: Sequence[int]) -> list[Slice]:
            task = progress.add_task("signing bodies", total=sum(counts))
            return make_slices(home / name, counts, lambda more: progress.advance(task, more))

        report = Report(disk.measure(home), [peer.name for peer in PEERS])
        servers: dict[str, Server] = {}
        for number, peer in enumerate(PEERS):
            own = home / str(number)
            own.mkdir()
            servers[peer.name] = stack.enter_context(peer.start(own))

        [bodies] = sign("warm-up", [_WARM_UP_BODIES])
        for name, server in servers.items():
            report.warm_up[name] = saturate(server, bodies, STEADY_CONNECTIONS, _WARM_UP_S)
        fastest = max(r.per_s for r in report.warm_up.values())

        turns = [count for count in connections for _ in range(rounds)]
        *shares, last = sign("bodies", [int(fastest * seconds * _SPARE)] * (len(turns) + 1))
        task = progress.add_task("measuring", total=(len(turns) + 1) * len(servers))
        for count, bodies in zip(turns, shares, strict=True):
            for name, server in servers.items():
                found = saturate(server, bodies, count, seconds)
                report.saturated.setdefault((name, count), []).append(found)
                progress.advance(task)
        for name, server in servers.items():
            rate = report.most_per_s(name) / 2
            bodies = replace(last, count=min(last.count, int(rate * seconds)))
            report.steady[name] = steady(server, bodies, rate)
            progress.advance(task)
        for name, server in servers.items():
            if server.stored is not None:
                report.stored[name] = server.stored()
        return report


if __name__ == "__main__":
    typer.run(bench)
