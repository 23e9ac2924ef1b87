"""Conversations: which legs belong together, and the one record of them. No I/O, and no clock.

No single id stands on every leg of a conversation, so legs are united by all that they name. Every
id that is named is a node, seen or not, and the smallest one of a set is its name: so the result
does not depend on the order in which links become known.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from msgspec import Struct

from consumers.reconcile.facts import NOBODY, CallFact
from consumers.reconcile.legs import Leg, Side, party
from ingest.fields import by_size
from schemas.event import digest
from schemas.times import rfc3339

N = TypeVar("N", int, float)

#: Conversations have a handful; what would unite more is a fault of somebody's, and is flagged.
MAX_LEGS = 200


class Threads:
    """Which ids belong together, in one connection: disjoint sets, named by their smallest id."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._size: dict[str, int] = {}

    def name(self, ident: str) -> str:
        """The name of the set that ``ident`` is in; its own if it was never linked."""
        root = ident
        while (above := self._parent.get(root, root)) != root:
            root = above
        while (above := self._parent.get(ident, ident)) != root:
            self._parent[ident], ident = root, above
        return root

    def fits(self, one: str, other: str) -> bool:
        """Whether two ids are in one set, or may be put into one."""
        one, other = self.name(one), self.name(other)
        return one == other or self._size.get(one, 1) + self._size.get(other, 1) <= MAX_LEGS

    def link(self, one: str, other: str) -> str | None:
        """Put two ids into one set; the name that has ceased to be one, None if nothing changed."""
        keeps, ceases = sorted((self.name(one), self.name(other)), key=by_size)
        if keeps == ceases:
            return None
        self._parent[ceases] = keeps
        self._size[keeps] = self._size.get(keeps, 1) + self._size.pop(ceases, 1)
        return ceases

    def forget(self, idents: Iterable[str]) -> None:
        """Drop a whole set, of which nothing more is expected."""
        for ident in idents:
            self._parent.pop(ident, None)
            self._size.pop(ident, None)


class Counterpart(Struct, gc=False, frozen=True, order=True):
    """The same call at another connection."""

    connection: str
    call_id: str


def ledger_row(
    name: str,
    legs: Sequence[Leg],
    *,
    clock_ms: int,
    settle_ms: int,
    merged_from: Sequence[str] = (),
    flags: Sequence[str] = (),
    verdicts: Sequence[str] = (),
    counterparts: Sequence[Counterpart] = (),
) -> dict[str, Any]:
    """`schemas.conversation.Conversation` of these legs as it stands at ``clock_ms``.

    Its keys are in order, but for those of what was read back of it.

    Times and lengths are those of the provider's record where there is one, states those of the
    pushes.
    """
    if len(legs) > 1:
        legs = sorted(
            legs, key=lambda leg: (leg.truth.started_ms or leg.first_at_ms, by_size(leg.call_id))
        )
    sides = [leg.truth for leg in legs]
    whole = sides[0] if len(sides) == 1 else _united(sides)
    over, started_ms = whole.settled, whole.started_ms
    ended_ms = whole.ended_ms if over else None
    total_s = None
    if started_ms is not None and ended_ms is not None and ended_ms >= started_ms:
        total_s = (ended_ms - started_ms) / 1000
    complete_ms = complete_at_ms(legs, settle_ms)
    call_ids, rows, flagged, given = [], [], {*flags}, {*verdicts}
    seen_by: set[tuple[str, str]] = set()
    facts: list[CallFact] = []
    for leg in legs:
        told = leg.told
        call_ids.append(leg.call_id)
        rows.append(leg.row)
        flagged.update(told.flags)
        seen_by |= told.seen_by
        facts += told.beside
        if leg.verdicts:
            given.add(leg.verdicts[-1].id)
    return {
        "call_ids": call_ids,
        "complete": complete_ms is not None and clock_ms >= complete_ms,
        "connected_at": _time(whole.connected_ms),
        "conversation_id": name,
        "counterparts": [
            {"call_id": each.call_id, "connection": each.connection}
            for each in (sorted(set(counterparts)) if counterparts else ())
        ],
        "direction": whole.direction,
        "ended_at": _time(ended_ms),
        "external": party(whole.external),
        "flags": sorted(flagged),
        "legs": rows,
        "merged_from": sorted(merged_from, key=by_size) if merged_from else [],
        "outcome": whole.outcome if over else None,
        "recap": _last(facts, "recap"),
        "recordings": _recordings(facts),
        "seen_by": [{"connection": connection, "via": via} for connection, via in sorted(seen_by)],
        "started_at": _time(started_ms),
        "talk_duration_s": _talk_s(sides) if over else None,
        "total_duration_s": total_s,
        "transcript": _last(facts, "transcript"),
        "verdicts": sorted(given),
        "voicemail": _last(facts, "voicemail"),
    }


def encode_row(row: Mapping[str, Any]) -> bytes:
    """A ledger row as canonical JSON."""
    # What was read back stands in the provider's order.
    foreign = row["recordings"] or row["voicemail"] or row["transcript"] or row["recap"]
    return orjson.dumps(row, option=orjson.OPT_SORT_KEYS if foreign else None)


def _united(sides: Sequence[Side]) -> Side:
    """What several legs come to together."""
    outcomes = {side.outcome for side in sides}
    return Side(
        direction=next((s.direction for s in sides if s.direction != "unknown"), "unknown"),
        external=next((s.external for s in sides if s.external != NOBODY), NOBODY),
        started_ms=_least([side.started_ms for side in sides]),
        connected_ms=_least([side.connected_ms for side in sides]),
        ended_ms=_greatest([side.ended_ms for side in sides]),
        outcome=next((each for each in _OUTCOMES if each in outcomes), None),
        settled=all(side.settled for side in sides),
    )


def complete_at_ms(legs: Sequence[Leg], settle_ms: int) -> int | None:
    """When their row becomes complete if nothing more comes; None if one still runs."""
    last_ms = 0
    for leg in legs:
        end_ms = leg.ended_ms
        if end_ms is None:
            return None
        last_ms = max(last_ms, end_ms)
    return last_ms + settle_ms if legs else None


#: What a conversation came to is the first of these that one of its legs came to.
_OUTCOMES = (
    "answered",
    "voicemail",
    "blocked",
    "abandoned",
    "busy",
    "failed",
    "missed",
    "unanswered",
    "unknown",
)


def _talk_s(sides: Sequence[Side]) -> float | None:
    """How long people talked: a queue's leg lasts while its operator's does."""
    people = [s.talk_duration_s for s in sides if s.target.kind == "user" and s.talk_duration_s]
    if people:
        return round(sum(people), 3)
    return _greatest([side.talk_duration_s for side in sides])


def _recordings(facts: Sequence[CallFact]) -> list[Any]:
    """Each recording once, as it was told last."""
    if not facts:
        return []
    found: dict[str, Any] = {}
    having = [fact for fact in facts if fact.call.recordings]
    for fact in sorted(having, key=lambda fact: (fact.time_ms, fact.id)):
        for recording in fact.call.recordings:
            ident = recording.get("recording_id") or recording.get("url") or digest(recording)
            found[str(ident)] = recording
    return [found[ident] for ident in sorted(found, key=by_size)]


def _last(facts: Sequence[CallFact], name: str) -> Any:
    """What was told last of an artefact. Transcripts and recaps come in parts; richest wins."""
    if not facts:
        return None
    told = [
        (fact.time_ms, fact.id, getattr(fact.call, name))
        for fact in facts
        if getattr(fact.call, name) is not None
    ]
    if not told:
        return None
    merged: dict[str, Any] = {}
    for _, _, value in sorted(told, key=lambda each: each[:2]):
        for key, part in value.items():
            if part or key not in merged:
                merged[key] = part
    return merged


def _time(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


def _least(values: Iterable[N | None]) -> N | None:
    return min([value for value in values if value is not None], default=None)


def _greatest(values: Iterable[N | None]) -> N | None:
    return max([value for value in values if value is not None], default=None)
