"""Conversations: which legs belong together, and the one record of them. No I/O, and no clock.

No single id stands on every leg of a conversation, so legs are united by all that they name. Every
id that is named is a node, seen or not, and the smallest one of a set is its name: so the result
does not depend on the order in which links become known.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import orjson
from msgspec import Struct

from consumers.reconcile.facts import NOBODY
from consumers.reconcile.legs import Heard, Leg, LegRow, Party, Side, party
from ingest.fields import by_size
from schemas.event import digest
from schemas.times import rfc3339

N = TypeVar("N", int, float)

#: The row of one is written so often at most, by the log's clock.
ROW_EVERY_MS = 1_000

#: Conversations have a handful; what would unite more is a fault of somebody's, and is flagged.
MAX_LEGS = 200


class Threads:
    """Which ids belong together, in one connection: disjoint sets, named by their smallest id."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._size: dict[str, int] = {}

    def name(self, ident: str) -> str:
        """The name of the set that ``ident`` is in; its own if it was never linked."""
        if ident not in self._parent:
            return ident
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


class Row(Struct, gc=False):
    """`schemas.conversation.Conversation`, its fields in order of their names."""

    call_ids: Sequence[str]
    complete: bool
    connected_at: str | None
    conversation_id: str
    counterparts: Sequence[Mapping[str, str]]
    direction: str
    ended_at: str | None
    external: Party
    flags: Sequence[str]
    legs: Sequence[LegRow]
    merged_from: Sequence[str]
    outcome: str | None
    recap: Any
    recordings: Sequence[Any]
    seen_by: Sequence[Mapping[str, str]]
    started_at: str | None
    talk_duration_s: float | None
    total_duration_s: float | None
    transcript: Any
    verdicts: Sequence[str]
    voicemail: Any


def ledger_row(
    connection: str,
    name: str,
    legs: Sequence[Leg],
    *,
    complete: bool,
    merged_from: Sequence[str] = (),
    flags: Sequence[str] = (),
    verdicts: Sequence[str] = (),
    counterparts: Sequence[Counterpart] = (),
) -> Row:
    """What is known of a conversation with these legs.

    Times and lengths are those of the provider's record where there is one, states those of the
    pushes.
    """
    if len(legs) > 1:
        legs = sorted(
            legs, key=lambda leg: (leg.truth.started_ms or leg.first_at_ms, by_size(leg.call_id))
        )
    sides = [leg.truth for leg in legs]
    whole = sides[0] if len(sides) == 1 else _united(sides)
    over, started_ms, connected_ms = whole.settled, whole.started_ms, whole.connected_ms
    ended_ms = whole.ended_ms if over else None
    total_s = None
    if started_ms is not None and ended_ms is not None and ended_ms >= started_ms:
        total_s = (ended_ms - started_ms) / 1000
    told = [leg.told for leg in legs]
    vias = sorted(set().union(*[each.vias for each in told]))
    odd = sorted({*flags}.union(*[each.flags for each in told]))
    beside = [fact for each in told for fact in each.beside]
    given = {*verdicts, *[leg.verdicts[-1].id for leg in legs if leg.verdicts]}
    same = sorted(set(counterparts)) if counterparts else ()
    # By place: names would take a microsecond.
    return Row(
        [leg.call_id for leg in legs],
        complete,
        None if connected_ms is None else rfc3339(connected_ms),
        name,
        [{"call_id": each.call_id, "connection": each.connection} for each in same],
        whole.direction,
        None if ended_ms is None else rfc3339(ended_ms),
        party(whole.external),
        odd,
        [leg.row for leg in legs],
        sorted(merged_from, key=by_size) if merged_from else (),
        whole.outcome if over else None,
        _last(beside, "recap") if beside else None,
        _recordings(beside) if beside else (),
        [{"connection": connection, "via": via} for via in vias],
        None if started_ms is None else rfc3339(started_ms),
        _talk_s(sides) if over else None,
        total_s,
        _last(beside, "transcript") if beside else None,
        sorted(given),
        _last(beside, "voicemail") if beside else None,
    )


def encode_row(row: Row) -> bytes:
    """A ledger row as canonical JSON."""
    # What was read back stands in the provider's order.
    foreign = row.recordings or row.voicemail or row.transcript or row.recap
    if foreign or _is_huge(row.talk_duration_s) or any(map(_has_huge, row.legs)):
        return orjson.dumps(msgspec.to_builtins(row), option=orjson.OPT_SORT_KEYS)
    return _encode(row)


_encode = msgspec.json.Encoder().encode

#: From there on the encoders write a number in different ways.
_HUGE_S = 1e16


def _is_huge(seconds: float | None) -> bool:
    return seconds is not None and not -_HUGE_S < seconds < _HUGE_S


def _has_huge(leg: LegRow) -> bool:
    return (
        _is_huge(leg.hold_duration_s)
        or _is_huge(leg.ring_duration_s)
        or _is_huge(leg.talk_duration_s)
        or _is_huge(leg.total_duration_s)
    )


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
    if len(sides) == 1:
        talk_s = sides[0].talk_duration_s
        return round(talk_s, 3) if talk_s and sides[0].target.kind == "user" else talk_s
    people = [s.talk_duration_s for s in sides if s.target.kind == "user" and s.talk_duration_s]
    if people:
        return round(sum(people), 3)
    return _greatest([side.talk_duration_s for side in sides])


def _recordings(facts: Sequence[Heard]) -> list[Any]:
    """Each recording once, as it was told last."""
    found: dict[str, Any] = {}
    for fact in sorted(facts, key=lambda fact: (fact.time_ms, fact.id)):
        assert fact.beside is not None
        for recording in fact.beside.recordings:
            ident = recording.get("recording_id") or recording.get("url") or digest(recording)
            found[str(ident)] = recording
    return [found[ident] for ident in sorted(found, key=by_size)]


def _last(facts: Sequence[Heard], name: str) -> Any:
    """What was told last of an artefact. Transcripts and recaps come in parts; richest wins."""
    told = [
        (fact.time_ms, fact.id, value)
        for fact in facts
        if (value := getattr(fact.beside, name)) is not None
    ]
    if not told:
        return None
    merged: dict[str, Any] = {}
    for _, _, value in sorted(told, key=lambda each: each[:2]):
        for key, part in value.items():
            if part or key not in merged:
                merged[key] = part
    return merged


def _least(values: Iterable[N | None]) -> N | None:
    return min([value for value in values if value is not None], default=None)


def _greatest(values: Iterable[N | None]) -> N | None:
    return max([value for value in values if value is not None], default=None)
