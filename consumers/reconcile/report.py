"""`dialstream completeness`: how complete the stream is, hour by hour."""

import asyncio
import json
import time
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumers.reconcile.role import judged_connections
from ingest.eventlog.kinds import read_once
from ingest.eventlog.log import Behind, StoredRecord
from ingest.logs import quietly
from ingest.settings import Settings

_BAR = 20

#: Beyond that days are shown.
_MOST_HOURS = 48


def show_completeness(settings: Settings, since_ms: int, *, as_json: bool) -> int:
    """Print the hours that began since then; 1 if one connection is below the objective, else 0.

    Milliseconds since 1970. Of each hour what was measured last counts.
    """
    with quietly(settings.logging.format):
        hours = asyncio.run(_read(settings, since_ms))
    objective = settings.reconcile.objective
    sums = {name: _sum(of_one) for name, of_one in hours.items()}
    below = [
        name
        for name, total in sums.items()
        if total["figure"] is not None and total["figure"] < objective
    ]
    if as_json:
        listed = {name: [*of_one.values()] for name, of_one in hours.items()}
        print(json.dumps({"objective": objective, "connections": sums, "hours": listed}))  # noqa: T201
    else:
        console = Console(highlight=False)
        if hours:
            _print(console, hours, sums, objective)
        else:
            console.print(_why_nothing(settings))
    return int(bool(below))


async def _read(settings: Settings, since_ms: int) -> dict[str, dict[str, Any]]:
    """Connection → hour → what was measured last, both in order."""
    found: dict[str, dict[str, Any]] = {}
    start = Behind({}, {"verdicts": since_ms})
    async for stored in read_once(settings, ["verdicts"], start):
        if stored.value is None or not _is_measured(stored):
            continue
        event = orjson.loads(stored.value)
        data = event["data"]
        hours = found.setdefault(event["connection"], {})
        if data["n"] >= hours.get(data["hour"], {"n": 0})["n"]:
            hours[data["hour"]] = data
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_ms // 1000))
    return {
        name: {hour: data for hour, data in sorted(hours.items()) if hour >= since}
        for name, hours in sorted(found.items())
    }


def _is_measured(stored: StoredRecord) -> bool:
    return ("ce_type", b"dialstream.completeness.measured") in stored.headers


def _sum(hours: dict[str, Any]) -> dict[str, Any]:
    counts = {
        name: sum(hour[name] for hour in hours.values()) for name in ("pushed", "recorded", "both")
    }
    shares = [counts["both"] / counts[name] for name in ("recorded", "pushed") if counts[name]]
    return {**counts, "figure": round(min(shares), 6) if shares else None}


def _print(
    console: Console,
    hours: dict[str, dict[str, Any]],
    sums: dict[str, dict[str, Any]],
    objective: float,
) -> None:
    for name, of_one in hours.items():
        by_day = len(of_one) > _MOST_HOURS
        when = "day (UTC)" if by_day else "hour (UTC)"
        table = Table(title=f"{name}, objective {objective:.6g}", title_justify="left", box=None)
        for column in (when, "pushed", "recorded", "both", "", "complete"):
            table.add_column(column, justify="left" if column in ("", when) else "right")
        rows = _days(of_one) if by_day else of_one
        for start, data in rows.items():
            _add(table, start[:10] if by_day else f"{start[:10]} {start[11:16]}", data, objective)
        _add(table, "all", sums[name], objective)
        console.print(table)
        console.print()


def _days(hours: dict[str, Any]) -> dict[str, Any]:
    days: dict[str, dict[str, Any]] = {}
    for hour, data in hours.items():
        days.setdefault(hour[:10], {})[hour] = data
    return {day: _sum(of_one) for day, of_one in days.items()}


def _why_nothing(settings: Settings) -> str:
    judged = judged_connections(settings)
    if not judged:
        return (
            "By these settings nothing is compared: no connection is both pushed (secrets, or a "
            "websocket) and read back (api_key)."
        )
    minutes = round(settings.reconcile.settle_s / 60)
    return (
        f"No hour was measured yet of those that began since then ({', '.join(judged)}). Each is "
        f"measured {minutes} min after its end, if there were calls."
    )


def _add(table: Table, hour: str, data: dict[str, Any], objective: float) -> None:
    figure = data["figure"]
    if figure is None:
        style, bar, words = "dim", "", "-"
    else:
        style = "green" if figure >= objective else "red"
        filled = int(figure * _BAR)
        bar = "█" * filled + "·" * (_BAR - filled)
        words = _percent(figure)
    counts = (f"{data[name]:,}" for name in ("pushed", "recorded", "both"))
    table.add_row(hour, *counts, Text(bar, style), Text(words, style))


def _percent(figure: float) -> str:
    """Never rounded up to what it is not."""
    return "100 %" if figure == 1 else f"{int(figure * 10_000) / 100:.2f} %"
