"""``python -m tests.faults.truth``: a week of 100,000 calls against the truth, seed by seed."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.faults.truth.play import Week, live
from tests.faults.truth.verdict import Found, table, together


def main(
    *,
    calls: Annotated[int, typer.Option(help="Legs, about.")] = 100_000,
    days: Annotated[float, typer.Option(help="In so many days.")] = 7,
    seeds: Annotated[str, typer.Option(help="One after the other.")] = "1,2,3,4,5",
) -> None:
    """Let weeks pass in which much goes wrong, and compare what is told of them with the truth."""
    found: dict[str, Found] = {}
    for seed in seeds.split(","):
        if sys.stderr.isatty():
            print(f"\r\033[Kseed {seed}", end="", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="dialstream-truth-", dir="/var/tmp") as folder:
            found[f"seed {seed}"] = live(Week(calls=calls, days=days, seed=int(seed)), Path(folder))
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    whole = together(list(found.values()))
    print(table([*found, "together"], [*found.values(), whole]))
    for name, each in found.items():
        for problem in each.problems:
            print(f"{name}: {problem}")
    sys.exit(int(any(each.problems for each in found.values())))


if __name__ == "__main__":
    typer.run(main)
