"""One leg: the facts about it, and what they come to on either side. No I/O, and no clock.

Everything here is a function of the set of a leg's facts; the order in which they came is in
their clocks and nowhere else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from datetime import datetime
from typing import Any, Generic, Self, TypeVar, overload

from msgspec import Struct
from msgspec.structs import replace

from consumers.reconcile.completeness import Share
from consumers.reconcile.facts import NOBODY, CallFact, Who, ms_of
from schemas.times import rfc3339

#: After one of these a leg is over.
ENDINGS = frozenset({"ended", "missed", "blocked"})

#: What is read back of a call beside its record; it says nothing about how the call went.
ARTEFACTS = frozenset(
    {
        "voicemail_uploaded",
        "voicemail_transcribed",
        "recording_ready",
        "transcript_ready",
        "recap_ready",
        "dispositioned",
        "wrapped_up",
        "surveyed",
    }
)

#: A leg has some ten; of one that has more than so many, the later ones are counted only.
MAX_FACTS = 500

#: The id of a push that we have mended ends in it.
BACKFILLED = ":backfilled"


class Side(Struct, gc=False, kw_only=True):
    """A leg as one side has it: the pushes, or the provider's record."""

    direction: str = "unknown"
    from_number: str | None = None
    to_number: str | None = None
    external: Who = NOBODY
    internal: Who = NOBODY
    target: Who = NOBODY
    started_ms: int | None = None
    rang_ms: int | None = None
    connected_ms: int | None = None
    ended_ms: int | None = None
    ring_duration_s: float | None = None
    talk_duration_s: float | None = None
    hold_duration_s: float | None = None
    total_duration_s: float | None = None
    outcome: str | None = None
    provider_outcome: str | None = None
    #: Whether this side has told how the leg ended; what still runs is no witness.
    settled: bool = False
    #: The log's clock when it had told that, milliseconds since 1970.
    settled_at_ms: int | None = None


class Given(Struct, gc=False, frozen=True, array_like=True):
    """A verdict that was given."""

    n: int
    word: str
    #: The event's.
    id: str
    #: Of what it says.
    digest: str
    at_ms: int


class Paired(Struct, gc=False, kw_only=True, array_like=True):
    """What was said of a leg together with another connection, see `pairs`."""

    #: Of the latest verdict in its own name: its number, its id, and digest of what it says.
    n: int = 0
    id: str | None = None
    said: str = ""
    #: The verdict that stands, in its own name or its counterpart's.
    stands: str | None = None
    #: The same call at the other connection.
    counterpart: str | None = None
    #: Whether it was ever said that one side is missing.
    was_absent: bool = False


class Told(Struct):
    """What the facts of a leg tell beside how it went."""

    #: Connection and channel of everything that was heard of it.
    seen_by: set[tuple[str, str]] = set()
    #: (provider's clock, state) of all that was told of it, but for its records.
    states: set[tuple[int, str]] = set()
    #: Those that tell of what is beside the call: recordings, transcripts, …
    beside: list[CallFact] = []
    flags: list[str] = []


T = TypeVar("T")


class _remembered(Generic[T]):  # noqa: N801 - used as `cached_property` is, which takes a lock
    """A property that is worked out once, and kept in the object's dictionary."""

    def __init__(self, work_out: Callable[[Any], T]) -> None:
        self._work_out = work_out
        self._name = work_out.__name__
        self.__doc__ = work_out.__doc__

    @overload
    def __get__(self, thing: None, kind: type) -> Self: ...
    @overload
    def __get__(self, thing: object, kind: type) -> T: ...
    def __get__(self, thing: object | None, kind: type) -> Self | T:
        if thing is None:
            return self
        found = thing.__dict__[self._name] = self._work_out(thing)
        return found


class Leg(Struct, kw_only=True, dict=True, array_like=True):
    """A leg and all that is known of it. Facts come in by `add`, never by hand.

    What they come to is worked out when somebody asks, and remembered until there is another one.
    """

    connection: str
    call_id: str
    provider: str
    #: By (at_ms, id), each id once; without their values.
    facts: list[CallFact] = []
    #: The latest record's event as it stands on the log, until nothing has to be mended any more.
    value: bytes | None = None
    #: Whether there were more than MAX_FACTS.
    surplus: bool = False
    #: Within the connection, oldest first.
    verdicts: tuple[Given, ...] = ()
    #: Across pairs, by the other connection.
    paired: dict[str, Paired] = {}
    #: Whether its lost ending was published.
    mended: bool = False
    #: What it adds to the completeness of its hour.
    share: Share | None = None
    #: When it is judged next, by the log's clock; and up to where the provider's list has to be
    #: read for it to be judged before.
    wake_ms: int | None = None
    wants_ms: int | None = None

    def add(self, fact: CallFact) -> bool:
        """Whether it changes anything."""
        ids, facts = self._ids, self.facts
        if fact.id in ids:
            return False
        if len(facts) >= MAX_FACTS:
            changes, self.surplus = not self.surplus, True
            self.__dict__.pop("told", None)
            return changes
        ids.add(fact.id)
        value = fact.value
        if value is not None:
            fact = replace(fact, value=None)
        facts.append(fact)
        if len(facts) > 1 and _place(fact) < _place(facts[-2]):
            facts.sort(key=_place)
        # What one side says stays as it was when the other one tells more.
        is_record = fact.is_record
        kept = ("_ids", "pushed", "ending_came") if is_record else ("_ids", "recorded")
        said = {name: self.__dict__[name] for name in kept if name in self.__dict__}
        self.__dict__.clear()
        self.__dict__.update(said)
        if is_record and fact is next(each for each in reversed(facts) if each.is_record):
            self.value = value
        if self.ending_came:
            self.value = None
        return True

    def settle(self) -> None:
        """Forget what was worked out, and what would be needed to mend it: little may follow."""
        self.__dict__.clear()
        if self.mended:
            self.value = None

    @_remembered
    def _ids(self) -> set[str]:
        return {fact.id for fact in self.facts}

    @property
    def first_at_ms(self) -> int:
        """The log's clock when it was first heard of."""
        return self.facts[0].at_ms

    @_remembered
    def pushed(self) -> Side | None:
        """What the pushes say; None if there was none."""
        facts = [fact for fact in self.facts if is_push(fact)]
        return _merged(facts) if facts else None

    @_remembered
    def ending_came(self) -> bool:
        """Whether its ending itself was pushed. A later push may know of it all the same."""
        return any(fact.what in ENDINGS and is_push(fact) for fact in self.facts)

    @_remembered
    def recorded(self) -> Side | None:
        """What the provider's own record says, the latest of them; None if there is none."""
        facts = [fact for fact in self.facts if fact.is_record]
        if not facts:
            return None
        # A record is told anew when it has changed: each is the whole of it.
        side = _merged(facts[-1:])
        if side.settled and len(facts) > 1:
            side.settled_at_ms = min(fact.at_ms for fact in facts if _ends(fact))
        return side

    @_remembered
    def truth(self) -> Side:
        """The leg as the ledger has it: the record's word where it has one, else the pushes'.

        Endings that were published in the place of lost ones count as pushes.
        """
        push, record = self.pushed, self.recorded
        if any(fact.via == "backfill" for fact in self.facts):
            facts = [fact for fact in self.facts if is_push(fact) or fact.id.endswith(BACKFILLED)]
            push = _merged(facts) if facts else None
        if push is None or record is None or not record.settled:
            return push or record or Side()
        taken = copy(push)
        _overlay(taken, record)
        taken.settled = True
        if taken.settled_at_ms is None or taken.settled_at_ms > (record.settled_at_ms or 0):
            taken.settled_at_ms = record.settled_at_ms
        return taken

    @_remembered
    def ended_ms(self) -> int | None:
        """When it ended; not after we had heard of it, whatever the provider's clock says."""
        return ended_ms(self.truth) if self.truth.settled else None

    @property
    def started_ms(self) -> int | None:
        """When it began: by its record if there is one."""
        for side in (self.recorded, self.pushed):
            if side is not None and side.started_ms is not None:
                return side.started_ms
        return None

    @_remembered
    def row(self) -> Mapping[str, Any]:
        """`schemas.conversation.Leg`, its keys in order."""
        side = self.truth
        return {
            "call_id": self.call_id,
            "connection": self.connection,
            "hold_duration_s": side.hold_duration_s,
            "outcome": side.outcome,
            "ring_duration_s": side.ring_duration_s,
            "states": [
                {"at": rfc3339(at_ms), "state": what} for at_ms, what in sorted(self.told.states)
            ],
            "talk_duration_s": side.talk_duration_s,
            "target": party(side.target),
            "total_duration_s": side.total_duration_s,
        }

    @_remembered
    def told(self) -> Told:
        """What its facts tell beside how it went on either side."""
        told = Told()
        for fact in self.facts:
            told.seen_by.add((fact.connection, fact.via))
            if not fact.is_record:
                told.states.add((fact.time_ms, fact.what))
            if fact.is_beside:
                told.beside.append(fact)
        told.flags += _flags(self)
        return told

    @property
    def flags(self) -> Sequence[str]:
        """What is odd about its facts; nothing is dropped for it."""
        return self.told.flags


def _place(fact: CallFact) -> tuple[int, str]:
    return fact.at_ms, fact.id


def party(who: Who) -> Mapping[str, Any]:
    """`schemas.base.Party`, its keys in order."""
    return {
        "email": who.email,
        "id": who.id,
        "kind": who.kind,
        "name": who.name,
        "number": who.number,
        "number_raw": who.number_raw,
        "withheld": who.withheld,
    }


def ended_ms(side: Side) -> int:
    """When it ended, as one side has it; not after we had heard of it."""
    assert side.settled_at_ms is not None
    if side.ended_ms is None:
        return side.settled_at_ms
    return min(side.ended_ms, side.settled_at_ms)


def is_push(fact: CallFact) -> bool:
    """Whether the provider has told it by itself, and of the call."""
    return fact.what != "recorded" and fact.via in _PUSHED_VIA and not fact.id.endswith(BACKFILLED)


_PUSHED_VIA = frozenset({"webhook", "websocket", "notification", "replay"})


def _ends(fact: CallFact) -> bool:
    """Whether a fact says how the leg ended."""
    if fact.call.ended_at is not None:
        return True
    return fact.call.outcome is not None if fact.is_record else fact.what in ENDINGS


def _merged(facts: Sequence[CallFact]) -> Side:
    """Field by field what was said last by the provider's clock.

    An ending counts as later than what is no ending, whatever its clock says; an artefact does
    not know better than what was told of the call itself.
    """
    if len(facts) > 1:
        facts = sorted(facts, key=_rank)
    side = _side(facts[0])
    for fact in facts[1:]:
        _overlay(side, _side(fact))
    endings = [fact for fact in facts if _ends(fact)]
    if endings:
        side.settled = True
        side.settled_at_ms = min([fact.at_ms for fact in endings])
        if side.ended_ms is None:
            side.ended_ms = max([fact.time_ms for fact in endings])
    return side


def _rank(fact: CallFact) -> tuple[int, int, str]:
    order = 0 if fact.what in ARTEFACTS else 2 if _ends(fact) else 1
    return order, fact.time_ms, fact.id


def _side(fact: CallFact) -> Side:
    """What one fact says."""
    call = fact.call
    return Side(
        direction=call.direction,
        from_number=call.from_number,
        to_number=call.to_number,
        external=call.external,
        internal=call.internal,
        target=call.target,
        started_ms=_ms(call.started_at),
        rang_ms=_ms(call.rang_at),
        connected_ms=_ms(call.connected_at),
        ended_ms=_ms(call.ended_at),
        ring_duration_s=call.ring_duration_s,
        talk_duration_s=call.talk_duration_s,
        hold_duration_s=call.hold_duration_s,
        total_duration_s=call.total_duration_s,
        outcome=call.outcome,
        provider_outcome=call.provider_outcome,
    )


def _ms(instant: datetime | None) -> int | None:
    return None if instant is None else ms_of(instant)


def _overlay(side: Side, later: Side) -> None:
    """Put what ``later`` says in the place of what was said before."""
    for name in _SAID:
        value = getattr(later, name)
        if value is not None and value != "unknown":
            setattr(side, name, value)
    for name in _PARTIES:
        value = getattr(later, name)
        if value != NOBODY:
            setattr(side, name, value)


_PARTIES = ("external", "internal", "target")

#: What a side says of the call itself beside its parties.
_SAID = tuple(
    name
    for name in Side.__struct_fields__
    if name not in _PARTIES and not name.startswith("settled")
)


def _flags(leg: Leg) -> Iterator[str]:
    endings = [fact for fact in leg.facts if fact.what in ENDINGS and is_push(fact)]
    connects = [fact for fact in leg.facts if fact.what == "connected" and is_push(fact)]
    if endings and connects:
        first = min((fact.time_ms, fact.id) for fact in endings)
        if any((fact.time_ms, fact.id) > first for fact in connects):
            yield "impossible_order"
    if len(endings) > 1 and len({fact.call.ended_at for fact in endings} - {None}) > 1:
        yield "second_ending"
    for fact in leg.facts:
        call = fact.call
        if call.started_at and call.ended_at and call.ended_at < call.started_at:
            yield "ended_before_start"
            break
    if leg.surplus:
        yield "too_many_events"
