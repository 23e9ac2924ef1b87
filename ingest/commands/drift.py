"""`dialstream drift`: what the providers send that nobody has told us of."""

import sys
import time
from collections.abc import Sequence

import orjson
from msgspec.structs import asdict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingest.drift import OTHERS, Sighting, all_sightings
from ingest.settings import Settings
from schemas.times import rfc3339

_WORDS = {"field": "new field", "type": "another type", "hint": "address says"}


def show_drift(settings: Settings, *, connection: str | None, since_ms: int, as_json: bool) -> int:
    """Print what was seen first since then, milliseconds since 1970.

    1 if that is something, or if a file that may tell of it cannot be read.
    """
    sightings, unreadable = all_sightings(settings.eventlog.path)
    found = [
        seen
        for seen in sightings
        if seen.first_ms >= since_ms and connection in (None, seen.connection)
    ]
    for path in unreadable:
        print(f"{path} cannot be read: what it tells is not shown", file=sys.stderr)
    if as_json:
        for seen in found:
            times = {"first": rfc3339(seen.first_ms), "last": rfc3339(seen.last_ms)}
            told = {name: value for name, value in asdict(seen).items() if name[-3:] != "_ms"}
            print(orjson.dumps({**told, **times}).decode())
    elif found:
        Console(highlight=False).print(_table(found))
    elif not unreadable:
        Console(highlight=False).print("Nothing new: every field, word and type is known.")
    return int(bool(found or unreadable))


def _table(found: Sequence[Sighting]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("times", justify="right")
    for column in ("first seen", "last seen", "connection", "event", "what", "name", "looks like"):
        table.add_column(column, overflow="fold")
    for seen in found:
        table.add_row(
            f"{seen.count:,}",
            _when(seen.first_ms),
            _when(seen.last_ms)[:10],
            seen.connection,
            seen.subject,
            _WORDS.get(seen.what, f"new {seen.what.replace('_', ' ')}"),
            Text("… and others" if seen.name == OTHERS else seen.name, "bold"),
            Text(seen.sample, "dim"),
        )
    return table


def _when(ms: int) -> str:
    """In UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(ms // 1000))
