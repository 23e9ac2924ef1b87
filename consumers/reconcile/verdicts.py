"""Verdicts within a connection: what was pushed of a leg against the provider's own record of it.

No I/O, and no clock of its own. A leg is judged from `settle_s` after its end on. That one side is
missing is said only when it cannot come any more: of a record, once the provider's list was read
up to the leg's end (or `hold_max_s` after it, which is itself a gap); of a push, at once, since
nothing tells when pushes have been read. Each later fact may revise it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
import orjson
from msgspec import Struct

from consumers.reconcile.envelope import derived_record
from consumers.reconcile.legs import Given, Leg, Side, ended_ms
from ingest.eventlog.log import Record
from ingest.fields import by_size
from schemas.event import Event, digest, id_part
from schemas.times import rfc3339

Word: TypeAlias = Literal[
    "matched", "late", "push_missing", "record_missing", "mismatch", "ambiguous"
]

#: Verdicts that say that one side is not there.
ABSENCES = frozenset({"push_missing", "record_missing"})

#: Why a record is missing when nobody has looked for it in time; that is a gap, too.
LIST_NOT_READ = "list_not_read"

#: Provider → its own word for the end of a call; part of the id of an ending that we mend.
_ENDING_WORDS: Mapping[str, str] = {"dialpad": "hangup", "diallink": "call.completed"}


class Rules(Struct, frozen=True, kw_only=True):
    """The settings of `[reconcile]`, in milliseconds where they are spans of time."""

    settle_ms: int = 900_000
    hold_max_ms: int = 21_600_000
    start_tolerance_ms: int = 15_000
    duration_tolerance_s: float = 3.0
    duration_tolerance_ratio: float = 0.05


class Judgement(Struct, kw_only=True, gc=False):
    """What is to be said of a leg."""

    word: Word
    reason: str | None = None
    differences: list[dict[str, Any]] = []


class Wait(Struct, frozen=True, gc=False):
    """Nothing can be said yet: ask again at that time, or when the list was read further."""

    #: The log's clock, milliseconds since 1970; None: not before there is another fact.
    until_ms: int | None
    #: The end of the leg, where only a list that was read up to it can tell before that time.
    end_ms: int | None = None


Passed: TypeAlias = Callable[[str, int | None, int], bool]
"""Connection, start and end of a leg in milliseconds since 1970 → whether its record would have
been read."""


def judge(leg: Leg, clock_ms: int, passed: Passed, rules: Rules) -> Judgement | Wait:
    """The verdict that a leg deserves at ``clock_ms``, the log's clock.

    A pure function of the leg's facts, the clock and the watermark.
    """
    push, record = leg.pushed, leg.recorded
    if record is not None and not record.settled:
        record = None  # what still runs is no witness
    end_ms = None if push is None or not push.settled else ended_ms(push)
    if record is not None:
        recorded_ms = ended_ms(record)
        if end_ms is None or recorded_ms < end_ms:
            end_ms = recorded_ms
    if end_ms is None:
        return _unsettled(leg, clock_ms, rules)
    if clock_ms < end_ms + rules.settle_ms:
        return Wait(end_ms + rules.settle_ms)
    if record is None:
        assert push is not None
        return _without_record(leg, push, end_ms, clock_ms, passed, rules)
    if push is None or not leg.ending_came:
        reason = "never_pushed" if push is None else "ending_missing"
        return Judgement(word="push_missing", reason=reason)
    found = differences(push, record, rules)
    if found:
        return Judgement(word="mismatch", reason=fields_of(found), differences=found)
    was_absent = bool(leg.verdicts) and any(given.word in ABSENCES for given in leg.verdicts)
    return Judgement(word="late" if was_absent else "matched")


def _unsettled(leg: Leg, clock_ms: int, rules: Rules) -> Judgement | Wait:
    """Nobody has said how the leg ended. If its ending was lost it waits as long as any call."""
    pushes = [fact.at_ms for fact in leg.facts if fact.is_push]
    if not pushes:
        return Wait(None)
    last_ms = max(pushes) + rules.hold_max_ms
    if clock_ms < last_ms:
        return Wait(last_ms)
    return Judgement(word="record_missing", reason="ending_missing")


def _without_record(
    leg: Leg, push: Side, end_ms: int, clock_ms: int, passed: Passed, rules: Rules
) -> Judgement | Wait:
    if passed(leg.connection, push.started_ms, end_ms):
        return Judgement(word="record_missing", reason="not_listed")
    if clock_ms >= end_ms + rules.hold_max_ms:
        return Judgement(word="record_missing", reason=LIST_NOT_READ)
    return Wait(end_ms + rules.hold_max_ms, end_ms)


def differences(push: Side, record: Side, rules: Rules) -> list[dict[str, Any]]:
    """Every field that the two sides tell differently, beyond what is tolerated.

    Like is compared with like, and only what both sides have. The ledger takes the record's times
    and lengths: they are what the provider settled on.
    """
    found = []
    if push.started_ms is not None and record.started_ms is not None:
        apart_ms = abs(push.started_ms - record.started_ms)
        if apart_ms > rules.start_tolerance_ms:
            found.append(
                difference(
                    "started_at",
                    rfc3339(push.started_ms),
                    rfc3339(record.started_ms),
                    rules.start_tolerance_ms / 1000,
                )
            )
    for name, ours, theirs in (
        ("total_duration_s", push.total_duration_s, record.total_duration_s),
        ("talk_duration_s", push.talk_duration_s, record.talk_duration_s),
    ):
        if ours is None or theirs is None or ours == theirs:
            continue
        tolerance_s = max(
            rules.duration_tolerance_s, rules.duration_tolerance_ratio * max(ours, theirs)
        )
        if not abs(ours - theirs) <= tolerance_s:
            found.append(difference(name, ours, theirs, round(tolerance_s, 3)))
    if "unknown" not in (push.direction, record.direction) and push.direction != record.direction:
        found.append(difference("direction", push.direction, record.direction, None))
    numbers = push.external.number, record.external.number
    if None not in numbers and numbers[0] != numbers[1]:
        found.append(difference("external.number", *numbers, None))
    return found


def difference(
    field: str, pushed: Any, recorded: Any, tolerance: float | None, *, taken: Any = None
) -> dict[str, Any]:
    """``taken``: what the ledger has; the record's word if nothing else is said."""
    return {
        "field": field,
        "pushed": pushed,
        "recorded": recorded,
        "tolerance": tolerance,
        "taken": recorded if taken is None else taken,
    }


def fields_of(differences: list[dict[str, Any]]) -> str:
    return ",".join(each["field"] for each in differences)


def verdict_record(leg: Leg, judgement: Judgement, at_ms: int) -> tuple[Record, Given] | None:
    """The event as it is written, and what to remember of it; None if that was said already.

    ``at_ms``: the log's clock at which it became due.
    """
    listed, started_ms = leg.recorded, leg.started_ms
    has_record = listed is not None and listed.settled
    last = leg.verdicts[-1] if leg.verdicts else None
    data: dict[str, Any] = {
        "verdict": judgement.word,
        "call_id": leg.call_id,
        "conversation_id": conversation_hint(leg),
        "pushed_call_id": None if leg.pushed is None else leg.call_id,
        "recorded_call_id": leg.call_id if has_record else None,
        "pushed_connection": leg.connection,
        "recorded_connection": leg.connection,
        "started_at": None if started_ms is None else rfc3339(started_ms),
        "reason": judgement.reason,
        "differences": judgement.differences,
        "candidates": [],
        "n": 1,
        "revises": None,
    }
    if last is not None:
        data |= {"n": last.n, "revises": leg.verdicts[-2].id if last.n > 1 else None}
        if digest(data) == last.digest:
            return None
        data |= {"n": last.n + 1, "revises": last.id}
    n, said = data["n"], digest(data)
    ident = f"verdict:{leg.connection}:{id_part(leg.call_id)}:{leg.connection}:{n}:{said}"
    record = derived_record(
        leg.connection,
        f"verdict.{judgement.word}",
        ident,
        about="call",
        name=leg.call_id,
        at_ms=at_ms,
        data=orjson.dumps(data),
    )
    return record, Given(n, judgement.word, ident, said, at_ms)


def conversation_hint(leg: Leg) -> str:
    """The smallest id that its facts name, by length and then text."""
    hints = {fact.conversation_id for fact in leg.facts}
    return hints.pop() if len(hints) == 1 else min(hints, key=by_size)


def mended_ending(leg: Leg, at_ms: int) -> Event:
    """``call.ended`` in the place of a lost push, made of the record's event.

    ``at_ms``: the log's clock at which it became due. Readers of final states, who get both should
    the push still come, drop repeats by subject and type.
    """
    record = next(fact for fact in reversed(leg.facts) if fact.is_record)
    assert leg.value is not None
    envelope = msgspec.json.decode(leg.value, type=dict[str, msgspec.Raw])
    fields = msgspec.json.decode(envelope["data"], type=dict[str, msgspec.Raw])
    raw = bytes(fields.pop("raw"))
    data = {name: orjson.loads(bytes(value)) for name, value in fields.items()}
    word = _ENDING_WORDS.get(leg.provider, "ended")
    data |= {"state": "ended", "provider_state": word}
    ident = ("call", leg.call_id, word, "backfilled")
    return Event(
        type="dialstream.call.ended",
        subject_kind="call",
        id=f"{leg.provider}:{leg.connection}:" + ":".join(map(id_part, ident)),
        subject=f"call/{leg.call_id}",
        key=f"{leg.connection}/{leg.call_id}",
        time_ms=record.time_ms,
        recorded_ms=at_ms,
        via="backfill",
        provider=leg.provider,
        connection=leg.connection,
        data=data,
        raw=raw,
    )
