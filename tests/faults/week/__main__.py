"""``python -m tests.faults.week``: a long week of a simulated company, and what became of it."""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.faults.week.play import Week, play
from tests.faults.week.truth import Verdict


def week(
    *,
    calls: Annotated[int, typer.Option(min=100, help="Conversations in the week.")] = 20_000,
    seed: Annotated[int, typer.Option(help="The same seed tells the same story.")] = 1,
    kills: Annotated[int, typer.Option(min=0, help="How often the process is killed.")] = 5,
) -> None:
    """Play a week with all faults, then look for everything that was told."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    with tempfile.TemporaryDirectory(prefix="dialstream-week-", dir="/var/tmp") as folder:
        found = asyncio.run(_watched(console, Path(folder), calls, seed, kills))
    console.print(_table(found))
    for problem in found.problems:
        console.print(problem, style="red", markup=False, highlight=False)
    raise typer.Exit(int(bool(found.problems)))


async def _watched(console: Console, folder: Path, calls: int, seed: int, kills: int) -> Verdict:
    # A pass over all of it takes a minute for each 20,000 conversations, and must be lucky.
    patience_s = 120.0 + calls / 40
    long = Week(calls=calls, seed=seed, kills=kills, lasts_s=60.0, patience_s=patience_s)
    with console.status("") as status:
        tell: Callable[[str], object] = status.update
        return await play(long, folder, tell)


def _table(found: Verdict) -> Table:
    table = Table(title="A week of faults", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    strikes = sum(found.strikes.values())
    gaps = sum(found.gaps_opened.values())
    for name, figure in (
        ("legs", found.legs),
        ("faults that struck", strikes),
        ("killed", found.kills),
        ("facts that a provider tells", found.facts),
        ("  accepted by webhook", found.pushed["webhook"]),
        ("  given to websockets", found.pushed["websocket"]),
        ("  on the stream", found.on_stream),
        ("  on the stream, copies", found.copies),
        ("  swallowed by sockets that broke, inside gaps", found.lost_in_gaps),
        ("  lost", len(found.lost)),
        ("  twice with different ids", len(found.two_ids)),
        ("  wrong", len(found.wrong)),
        ("records, with their changes", found.records),
        ("  missing", len(found.missing_records)),
        ("  not the last one", len(found.old_records)),
        ("  published again", found.record_repeats),
        ("gaps opened", gaps),
        ("  still open", len(found.open_gaps)),
        ("requests in a second, at most", found.requests_per_s),
        ("seconds", round(found.seconds)),
    ):
        table.add_row(name, f"{figure:,}")
    return table


if __name__ == "__main__":
    typer.run(week)
