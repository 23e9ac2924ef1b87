"""``python -m tests.faults``: every fault that we can think of, one after the other, for long."""

import asyncio
import logging
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from consumers.prove.oracle import Verdict
from tests.faults.scenario import MATRIX, AtRandom, Kills, Row, Scenario
from tests.faults.ways import On
from tests.kafka.cluster import Cluster

_BROKERS = {On.JOURNAL: 0, On.ONE: 1, On.SECURED: 1, On.THREE: 3}


def faults(
    *,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Scenarios with this in their names.")
    ] = None,
    kills: Annotated[int, typer.Option(help="How often the receiver is killed.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the faults at random; 0: any.")] = 0,
) -> None:
    """Kill, freeze, starve and cut off under load; then look for all that was acknowledged."""
    scenarios: list[Scenario] = [
        Kills(kills, On.JOURNAL),
        Kills(kills, On.ONE),
        AtRandom(max(1, kills // 2), seed or random.randrange(1, 10_000)),
        *sorted(MATRIX, key=lambda cell: list(On).index(cell.on)),
    ]
    chosen = [s for s in scenarios if all(word in str(s) for word in only or ())]
    if not chosen:
        typer.echo("no scenario has that in its name", err=True)
        raise typer.Exit(2)
    # It tells of every connection that a proxy cuts.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    console = Console(width=None if sys.stdout.isatty() else 170)
    rows = []
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(chosen))
        for row in _played(chosen, lambda name: progress.update(bar, description=name)):
            rows.append(row)
            progress.advance(bar)
            if row.verdict.problems or not console.is_terminal:
                told = "; ".join(row.verdict.problems) or "well"
                progress.console.print(f"{row.name}: {told}", markup=False, highlight=False)
    console.print(_table(rows))
    raise typer.Exit(int(any(row.verdict.problems for row in rows)))


def _played(scenarios: Sequence[Scenario], begin: Callable[[str], None]) -> Iterator[Row]:
    """Play those of one cluster together; one that cannot be played is a row as well."""
    for on, together in groupby(scenarios, key=lambda scenario: scenario.on):
        begin(f"starting {on}")
        with (
            Cluster(_BROKERS[on], proxied=True, secured=on is On.SECURED) as kafka,
            tempfile.TemporaryDirectory(prefix="dialstream-faults-", dir="/var/tmp") as folder,
        ):
            for number, scenario in enumerate(together):
                begin(str(scenario))
                path = Path(folder, str(number))
                try:
                    row = asyncio.run(scenario.play(kafka, path, f"faults-{number}."))
                except Exception as error:  # noqa: BLE001 - the others are played all the same
                    problem = f"{type(error).__name__}: {error}"
                    row = Row(str(scenario), Verdict(others=[problem]))
                yield row
                kafka.mend()


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
    )


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="What was lost", title_justify="left")
    table.add_column("scenario", no_wrap=True)
    for name in (
        *("offered", "acknowledged", "refused", "lost", "changed", "out of order"),
        *("worst answer", "spooled", "repeats", "well"),
    ):
        table.add_column(name, justify="right")
    for row in rows:
        found = row.verdict
        figures = [
            *(found.offered, found.acknowledged, found.refused, len(found.lost)),
            *(len(found.changed), len(found.disordered), f"{found.worst_s:.1f} s", row.spooled),
            *(found.repeats, "NO" if found.problems else "yes"),
        ]
        style = "red" if found.problems else None
        table.add_row(row.name, *map(str, figures), style=style)
    return table


if __name__ == "__main__":
    typer.run(faults)
