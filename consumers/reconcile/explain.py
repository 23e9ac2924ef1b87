"""`dialstream explain`: why a call got its verdict."""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from consumers.known import check_id, known_connections
from consumers.reconcile.explain_page import (
    FIELDS,
    Page,
    Told,
    is_of_pair,
    masked_difference,
    shown,
)
from consumers.reconcile.facts import LATE_MS, CallFact, ms_of, read_fact
from consumers.reconcile.legs import Leg, Side
from consumers.reconcile.matching import Candidate
from consumers.reconcile.order import SKEW_MS
from consumers.reconcile.rivals import Log, Sight, sights
from consumers.reconcile.role import components, pairs_of, rules_of
from consumers.render import masked
from ingest.eventlog.kinds import read_once
from ingest.eventlog.log import Behind, StoredRecord
from ingest.logs import quietly
from ingest.settings import Settings
from schemas.times import now_ms, rfc3339

#: Facts of calls that began so long before are read, for the legs that a call may have had.
_BEFORE_MS = 3_600_000

#: So much later than it a call that is like it has ended.
_AFTER_MS = 24 * 3_600_000

#: Of the call, in its event: the first of that name. Quotes in a text are escaped.
_STARTED = re.compile(rb'"started_at": ?(?:null|"([^"]*)")')


def explain(settings: Settings, call_id: str, connection: str | None, *, as_json: bool) -> int:
    """Print what is known of a call on both sides and what became of it; 1 if it is unknown.

    Raises ConfigError for what is no id.
    """
    check_id(call_id, connection)
    with quietly(settings.logging.format):
        found = asyncio.run(_read(settings, call_id, connection))
    if as_json:
        print(json.dumps([_as_data(told) for told in found]))  # noqa: T201
    else:
        page = Page(settings)
        for told in found:
            page.print(told)
        if not found:
            page.say(f"The stream knows of no call {call_id!r}.")
    return 0 if found else 1


# Reading


async def _read(settings: Settings, call_id: str, connection: str | None) -> list[Told]:
    """The legs of that id, by connection, each with what was said of it."""
    names = [connection] if connection else known_connections(settings)
    keys = frozenset(f"{name}/{call_id}".encode() for name in names)
    legs: dict[str, Leg] = {}
    verdicts: dict[str, list[dict[str, Any]]] = {}
    by_topic = {"calls": keys, "verdicts": keys}
    async for stored in read_once(settings, list(by_topic), keys=by_topic):
        if stored.value is None:
            continue
        name = stored.key.decode().partition("/")[0]
        if stored.topic == "verdicts":
            _add(verdicts.setdefault(name, []), orjson.loads(stored.value))
            continue
        fact = read_fact(stored)
        if isinstance(fact, CallFact):
            leg = legs.setdefault(
                name, Leg(connection=name, call_id=call_id, provider=fact.provider)
            )
            leg.add(fact)
    found = []
    for name, leg in sorted(legs.items()):
        own = [each for each in verdicts.get(name, []) if not is_of_pair(each["data"])]
        told = Told(leg, sorted(own, key=lambda each: each["data"]["n"]))
        if any(name in (each.pushed, each.recorded) for each in settings.reconcile.pairs):
            told.pairs = await _read_pairs(settings, leg)
        found.append(told)
    return found


def _add(events: list[dict[str, Any]], event: dict[str, Any]) -> None:
    if all(each["id"] != event["id"] for each in events):
        events.append(event)


async def _read_pairs(settings: Settings, leg: Leg) -> list[tuple[Sight, list[dict[str, Any]]]]:
    """What the calls around it come to, and what was said of it together with others."""
    home = next(each for each in components(settings).values() if leg.connection in each)
    setups = pairs_of(settings, home)
    near = _Near(settings, leg, home, max(each.rules.gate_ms for each in setups))
    log = Log()
    events: dict[str, list[dict[str, Any]]] = {}
    async for stored in near.read("calls", until_ms=near.until_ms):
        _add_fact(log, stored)
    async for stored in near.read("checkpoints", "directory", "verdicts"):
        if stored.topic != "verdicts":
            _add_fact(log, stored)
        elif stored.value is not None:
            event = orjson.loads(stored.value)
            data = event["data"]
            if "verdict" in data and is_of_pair(data):
                _add(events.setdefault(data["call_id"], []), event)
    clock_ms = now_ms() - LATE_MS - SKEW_MS
    call = leg.connection, leg.call_id
    found = sights(log, setups, rules_of(settings.reconcile), call, clock_ms)
    return [(sight, _said_of(sight, itertools.chain(*events.values()))) for sight in found]


class _Near:
    """Reads what may have to do with a call of a pair."""

    def __init__(self, settings: Settings, leg: Leg, home: Iterable[str], gate_ms: int) -> None:
        self._settings = settings
        self._prefixes = tuple(f"{name}/".encode() for name in home)
        self._started_ms = leg.first_at_ms if leg.started_ms is None else leg.started_ms
        self._within_ms = 2 * gate_ms + _BEFORE_MS
        begin_ms = min(self._started_ms, leg.first_at_ms) - self._within_ms
        self._start = Behind({}, dict.fromkeys(("calls", "checkpoints", "verdicts"), begin_ms))
        #: Later facts of calls change nothing any more.
        self.until_ms: int | None = None
        if leg.ended_ms is not None:
            rules = settings.reconcile
            window_s = max(rules.window_s, rules.settle_s + rules.hold_max_s)
            self.until_ms = leg.ended_ms + round(window_s * 1000) + _AFTER_MS

    async def read(self, *topics: str, until_ms: int | None = None) -> AsyncIterator[StoredRecord]:
        async for stored in read_once(self._settings, topics, self._start, until_ms=until_ms):
            if stored.key.startswith(self._prefixes) and self._is_near(stored):
                yield stored

    def _is_near(self, stored: StoredRecord) -> bool:
        """Not so of most calls on the log; those are not parsed."""
        if stored.topic not in ("calls", "verdicts") or stored.value is None:
            return True
        found = _STARTED.search(stored.value)
        if found is None or found[1] is None:
            return True
        begun_ms = ms_of(datetime.fromisoformat(found[1].decode()))
        return abs(begun_ms - self._started_ms) <= self._within_ms


def _add_fact(log: Log, stored: StoredRecord) -> None:
    fact = read_fact(stored)
    if fact is not None:
        log.add(fact)


def _said_of(sight: Sight, events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The verdicts of a pair about one of the legs, oldest first."""
    setup, call_ids = sight.setup, set(sight.entry.call_ids)
    side = "pushed_call_id" if sight.entry.is_pushed else "recorded_call_id"
    found = [
        each
        for each in events
        if each["data"]["pushed_connection"] == setup.pushed
        and each["data"]["recorded_connection"] == setup.recorded
        and each["data"][side] in call_ids
    ]
    return sorted(found, key=lambda each: (each["recordedtime"], each["data"]["n"], each["id"]))


# As data


def _as_data(told: Told) -> dict[str, Any]:
    leg = told.leg
    return {
        "connection": leg.connection,
        "call_id": leg.call_id,
        "pushed": _side_data(leg.pushed),
        "recorded": _side_data(leg.recorded),
        "taken": _side_data(leg.truth),
        "flags": list(leg.flags),
        "verdicts": [_verdict_data(each) for each in told.verdicts],
        "pairs": [_sight_data(*each) for each in told.pairs],
    }


def _side_data(side: Side | None) -> dict[str, str] | None:
    if side is None:
        return None
    return {name: shown(getattr(side, name)) for name in FIELDS}


def _verdict_data(event: Mapping[str, Any]) -> dict[str, Any]:
    """What it says, and when; numbers masked."""
    data = event["data"]
    found = [masked_difference(each) for each in data["differences"]]
    return {**data, "id": event["id"], "time": event["time"], "differences": found}


def _sight_data(sight: Sight, verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    fate, crowd = sight.entry.fate, sight.crowd
    return {
        "pushed_connection": sight.setup.pushed,
        "recorded_connection": sight.setup.recorded,
        "call_ids": sight.entry.call_ids,
        "fate": None if fate is None else fate.kind,
        "reason": None if fate is None else fate.reason,
        "call": _candidate_data(sight.entry.call),
        "candidates": [
            {
                "connection": each.connection,
                "call_ids": list(each.call_ids),
                "what": each.what,
                "of_others": list(each.others),
                "gates": each.edge.gates,
                "start_distance_s": _seconds(each.edge.start_distance_ms),
                "duration_distance_s": _seconds(each.edge.duration_distance_ms),
                "pushed": _candidate_data(each.pushed),
                "recorded": _candidate_data(each.recorded),
            }
            for each in sight.rivals
        ],
        "margin_s": _seconds(sight.runner_up_ms),
        "margin_asked_s": _seconds(sight.setup.rules.ambiguity_margin_ms),
        "crowd": None
        if crowd is None
        else {name: getattr(crowd, name) for name in crowd.__struct_fields__},
        "waits_until": _time(sight.until_ms),
        "waits_for_list_up_to": _time(sight.wants_ms),
        "list_read_up_to": _time(sight.read_ms or None),
        "verdicts": [_verdict_data(each) for each in verdicts],
    }


def _candidate_data(call: Candidate) -> dict[str, Any]:
    return {
        "numbers": [masked(number) for number in (call.agent_number, call.other_number)],
        "direction": call.direction,
        "start": _time(call.start_ms),
        "duration_s": _seconds(call.duration_ms),
    }


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _time(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)
