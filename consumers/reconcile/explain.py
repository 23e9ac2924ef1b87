"""`dialstream explain`: in words, why a call got its verdict."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumers.reading import read_once
from consumers.reconcile.facts import CallFact, Who, read_fact
from consumers.reconcile.legs import Leg, Side
from ingest.logs import setup_logs
from ingest.settings import Settings
from schemas.times import rfc3339

_WORDS: Mapping[str, str] = {
    "matched": "both sides tell the same",
    "late": "both sides tell the same, and one of them came after the call had been judged",
    "push_missing": "the provider has a record of it, and its end was never pushed",
    "record_missing": "it was pushed, and the provider has no record of it",
    "mismatch": "both sides know it, and tell something differently",
    "ambiguous": "two candidates are too near to each other to choose",
}

_REASONS: Mapping[str, str] = {
    "never_pushed": "nothing at all was pushed of it",
    "ending_missing": "earlier states were pushed, the end was not",
    "not_listed": "the provider's list was read up to its end, and it was not there",
    "list_not_read": "nobody has read the provider's list so far in time",
}

#: Field of a side → what it is called.
_FIELDS: Mapping[str, str] = {
    "direction": "direction",
    "external": "other party",
    "started_ms": "started",
    "connected_ms": "connected",
    "ended_ms": "ended",
    "total_duration_s": "whole length",
    "talk_duration_s": "talk",
    "hold_duration_s": "on hold",
    "outcome": "outcome",
    "provider_outcome": "provider's word",
}


def explain(settings: Settings, call_id: str, connection: str | None, *, as_json: bool) -> int:
    """Print what is known of a call on both sides and what became of it; 1 if it is unknown."""
    logs = setup_logs(settings.logging.format, "error")
    try:
        found = asyncio.run(_read(settings, call_id, connection))
    finally:
        logs.close()
    if as_json:
        print(json.dumps([_as_data(*each) for each in found]))  # noqa: T201
    else:
        console = Console(highlight=False)
        for leg, verdicts in found:
            _print(console, leg, verdicts)
        if not found:
            console.print(f"The stream knows of no call {call_id!r}.")
    return 0 if found else 1


async def _read(
    settings: Settings, call_id: str, connection: str | None
) -> list[tuple[Leg, list[dict[str, Any]]]]:
    """The legs of that id, by connection, each with its verdicts, oldest first."""
    wanted = f"/{call_id}".encode()
    legs: dict[str, Leg] = {}
    verdicts: dict[str, list[dict[str, Any]]] = {}
    async for stored in read_once(settings, ["calls", "verdicts"]):
        if not stored.key.endswith(wanted) or stored.value is None:
            continue
        name = stored.key.decode().partition("/")[0]
        if connection not in (None, name) or stored.key != f"{name}/{call_id}".encode():
            continue
        if stored.topic == "verdicts":
            event = orjson.loads(stored.value)
            if all(each["id"] != event["id"] for each in verdicts.setdefault(name, [])):
                verdicts[name].append(event)
            continue
        fact = read_fact(stored)
        if isinstance(fact, CallFact):
            leg = legs.setdefault(
                name, Leg(connection=name, call_id=call_id, provider=fact.provider)
            )
            leg.add(fact)
    return [
        (leg, sorted(verdicts.get(name, []), key=lambda each: each["data"]["n"]))
        for name, leg in sorted(legs.items())
    ]


def _as_data(leg: Leg, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "connection": leg.connection,
        "call_id": leg.call_id,
        "pushed": _side_data(leg.pushed),
        "recorded": _side_data(leg.recorded),
        "taken": _side_data(leg.truth),
        "flags": list(leg.flags),
        "verdicts": [dict(each["data"]) for each in verdicts],
    }


def _side_data(side: Side | None) -> dict[str, str] | None:
    if side is None:
        return None
    return {name: _shown(getattr(side, name)) for name in _FIELDS}


def _print(console: Console, leg: Leg, verdicts: Sequence[Mapping[str, Any]]) -> None:
    console.print(Text(f"{leg.call_id}  {leg.connection}", "bold"))
    table = Table(box=None, padding=(0, 2))
    for column in ("", "pushed", "recorded", "in the ledger"):
        table.add_column(column)
    sides = leg.pushed, leg.recorded, leg.truth
    differing = {d["field"] for d in verdicts[-1]["data"]["differences"]} if verdicts else set()
    for name, called in _FIELDS.items():
        shown = [_shown(None if side is None else getattr(side, name)) for side in sides]
        if any(each != "-" for each in shown):
            odd = name.replace("_ms", "_at") in differing or name in differing
            table.add_row(
                Text(called, "dim"), *(Text(each, "red" if odd else "") for each in shown)
            )
    console.print(table)
    console.print()
    for verdict in verdicts:
        _print_verdict(console, verdict)
    if not verdicts:
        console.print("  no verdict: it has not settled yet, or nothing is compared with it")
    for flag in leg.flags:
        console.print(f"  flagged: {flag.replace('_', ' ')}")
    if leg.recorded is not None and leg.pushed is not None:
        console.print(
            "  The ledger takes what the record says, and from the pushes what it does not say.",
            style="dim",
        )
    console.print()


def _print_verdict(console: Console, verdict: Mapping[str, Any]) -> None:
    data = verdict["data"]
    word = data["verdict"]
    style = "green" if word in ("matched", "late") else "red"
    text = Text("  ").append(f"{data['n']}. {word}", f"bold {style}")
    text.append(f"  {verdict['time'][:19].replace('T', ' ')}  ", "dim")
    text.append(_WORDS.get(word, ""))
    if data["reason"] in _REASONS:
        text.append(f": {_REASONS[data['reason']]}")
    console.print(text)
    for difference in data["differences"]:
        tolerance = difference["tolerance"]
        within = "" if tolerance is None else f", tolerated are {tolerance:g} s"
        console.print(
            f"       {difference['field']}: pushed {difference['pushed']}, recorded "
            f"{difference['recorded']}{within}; taken {difference['taken']}",
            markup=False,
        )
    for candidate in data["candidates"]:
        gates = ", ".join(
            f"{name} {'open' if ok else 'shut'}" for name, ok in candidate["gates"].items()
        )
        apart = ", ".join(f"{name} {value:g}" for name, value in candidate["distances"].items())
        console.print(
            f"       candidate {candidate['call_id']} of {candidate['connection']}: "
            f"{'; '.join(filter(None, [gates, apart]))}",
            markup=False,
        )


def _shown(value: object) -> str:
    if value is None or value in ("", "unknown"):
        return "-"
    if isinstance(value, Who):
        return value.number or ("withheld" if value.withheld else value.id or "-")
    if isinstance(value, int) and value > 10**11:
        return rfc3339(value).replace("T", " ").removesuffix("Z")
    if isinstance(value, float):
        return f"{value:g} s"
    return str(value)
