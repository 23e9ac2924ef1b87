"""One leg: the facts about it, and what they come to on either side. No I/O, and no clock.

Everything here is a function of the set of a leg's facts; the order in which they came is in
their clocks and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from msgspec import Struct
from msgspec.structs import replace

from consumers.reconcile.completeness import Share
from consumers.reconcile.facts import NOBODY, CallData, CallFact, Who, ms_of
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


class Side(Struct, gc=False, array_like=True):
    """A leg as one side has it, the pushes or the provider's record; or as one fact has it.

    What a side comes to may be what its only fact has: to change it, copy it.
    """

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


class Beside(Struct, gc=False, array_like=True):
    """Recordings, and what was said in a call, as one fact tells of them."""

    recordings: tuple[dict[str, Any], ...] = ()
    voicemail: dict[str, Any] | None = None
    transcript: dict[str, Any] | None = None
    recap: dict[str, Any] | None = None


class Heard(Struct, gc=False, array_like=True):
    """What is remembered of one fact about a leg."""

    id: str
    what: str
    via: str
    #: The provider's clock, and the log's, in milliseconds since 1970.
    time_ms: int
    at_ms: int
    conversation_id: str
    #: Whether it is the provider's own entry for the call; or the provider has told it by itself.
    is_record: bool
    is_push: bool
    #: How the leg went, as this fact alone has it; settled if it says how it ended.
    side: Side
    beside: Beside | None = None


_PUSHED_VIA = frozenset({"webhook", "websocket", "notification", "replay"})


class Party(Struct, gc=False):
    """`schemas.base.Party`, its fields in order of their names."""

    email: str | None
    id: str | None
    kind: str | None
    name: str | None
    number: str | None
    number_raw: str | None
    withheld: bool


class LegRow(Struct, gc=False):
    """`schemas.conversation.Leg`, its fields in order of their names."""

    call_id: str
    connection: str
    hold_duration_s: float | None
    outcome: str | None
    ring_duration_s: float | None
    states: Sequence[Mapping[str, str]]
    talk_duration_s: float | None
    target: Party
    total_duration_s: float | None


class Told(Struct, gc=False):
    """What the facts of a leg tell beside how it went."""

    #: The channels of everything that was heard of it.
    vias: set[str]
    #: `schemas.conversation.Step`s of all that was told of it, but for its records.
    states: Sequence[Mapping[str, str]]
    #: Facts that tell of recordings, transcripts, …
    beside: list[Heard]
    #: What is odd about its facts; nothing is dropped for it.
    flags: list[str]


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
    #: By (at_ms, id), each id once.
    facts: list[Heard] = []
    #: The latest record's event as it stands on the log, until nothing has to be mended any more.
    value: bytes | None = None
    #: Whether there were more than MAX_FACTS.
    surplus: bool = False
    #: Whether its ending itself was pushed. A later push may know of it all the same.
    ending_came: bool = False
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
        facts, worked_out = self.facts, self.__dict__
        if self._knows(fact.id):
            return False
        if len(facts) >= MAX_FACTS:
            changes, self.surplus = not self.surplus, True
            worked_out.pop("told", None)
            return changes
        heard = _heard(fact)
        facts.append(heard)
        if len(facts) > 1 and _place(heard) < _place(facts[-2]):
            facts.sort(key=_place)
        if worked_out:
            # What one side says stays as it was when the other one tells more.
            for name in _ON_RECORD if heard.is_record else _ON_PUSH:
                worked_out.pop(name, None)
            if "_ids" in worked_out:
                self._ids.add(heard.id)
        if heard.is_push and heard.what in ENDINGS:
            self.ending_came, self.value = True, None
        elif heard.is_record and not self.ending_came and heard is self._record:
            self.value = fact.value
        return True

    def settle(self) -> None:
        """Forget what was worked out, and what would be needed to mend it: little may follow."""
        self.__dict__.clear()
        if self.mended:
            self.value = None

    def _knows(self, ident: str) -> bool:
        if len(self.facts) > _FEW_FACTS:
            return ident in self._ids
        for each in self.facts:  # noqa: SIM110 - any() takes three times as long
            if each.id == ident:
                return True
        return False

    @_remembered
    def _ids(self) -> set[str]:
        return {fact.id for fact in self.facts}

    @property
    def _record(self) -> Heard | None:
        """The latest one."""
        return next((fact for fact in reversed(self.facts) if fact.is_record), None)

    @property
    def first_at_ms(self) -> int:
        """The log's clock when it was first heard of."""
        return self.facts[0].at_ms

    @_remembered
    def pushed(self) -> Side | None:
        """What the pushes say; None if there was none."""
        facts = [fact for fact in self.facts if fact.is_push]
        return _merged(facts) if facts else None

    @_remembered
    def recorded(self) -> Side | None:
        """What the provider's own record says, the latest of them; None if there is none."""
        facts = [fact for fact in self.facts if fact.is_record]
        if not facts:
            return None
        # A record is told anew when it has changed: each is the whole of it.
        side = _merged(facts[-1:])
        if side.settled and len(facts) > 1:
            side = replace(side)
            side.settled_at_ms = min([fact.at_ms for fact in facts if fact.side.settled])
        return side

    @_remembered
    def truth(self) -> Side:
        """The leg as the ledger has it: the record's word where it has one, else the pushes'.

        Endings that were published in the place of lost ones count as pushes.
        """
        push, record = self.pushed, self.recorded
        if "backfill" in [fact.via for fact in self.facts]:
            facts = [fact for fact in self.facts if fact.is_push or fact.id.endswith(BACKFILLED)]
            push = _merged(facts) if facts else None
        if push is None or record is None or not record.settled:
            return push or record or Side()
        taken = replace(push)
        _overlay(taken, record)
        taken.settled = True
        if taken.settled_at_ms is None or taken.settled_at_ms > (record.settled_at_ms or 0):
            taken.settled_at_ms = record.settled_at_ms
        return taken

    @property
    def ended_ms(self) -> int | None:
        """When it ended; not after we had heard of it, whatever the provider's clock says."""
        side = self.truth
        return ended_ms(side) if side.settled else None

    @property
    def started_ms(self) -> int | None:
        """When it began: by its record if there is one."""
        for side in (self.recorded, self.pushed):
            if side is not None and side.started_ms is not None:
                return side.started_ms
        return None

    @_remembered
    def row(self) -> LegRow:
        """As the ledger has it."""
        side = self.truth
        return LegRow(
            self.call_id,
            self.connection,
            side.hold_duration_s,
            side.outcome,
            side.ring_duration_s,
            self.told.states,
            side.talk_duration_s,
            party(side.target),
            side.total_duration_s,
        )

    @_remembered
    def told(self) -> Told:
        """What its facts tell beside how it went on either side."""
        vias, states, beside = set(), set(), []
        for fact in self.facts:
            vias.add(fact.via)
            if not fact.is_record:
                states.add((fact.time_ms, fact.what))
            if fact.beside is not None:
                beside.append(fact)
        return Told(
            vias,
            [{"at": rfc3339(at_ms), "state": what} for at_ms, what in sorted(states)],
            beside,
            _flags(self),
        )

    @property
    def flags(self) -> Sequence[str]:
        """What is odd about its facts; nothing is dropped for it."""
        return self.told.flags


#: Among so many facts one is found sooner by looking through them.
_FEW_FACTS = 10

#: What has to be worked out anew when there is another record, or another push.
_ON_RECORD = ("recorded", "truth", "row", "told")
_ON_PUSH = ("pushed", "truth", "row", "told")


def _place(fact: Heard) -> tuple[int, str]:
    return fact.at_ms, fact.id


def _heard(fact: CallFact) -> Heard:
    call = fact.call
    is_record = fact.what == "recorded"
    is_push = not is_record and fact.via in _PUSHED_VIA and not fact.id.endswith(BACKFILLED)
    has_beside = call.recordings or call.voicemail or call.transcript or call.recap
    return Heard(
        fact.id,
        fact.what,
        fact.via,
        fact.time_ms,
        fact.at_ms,
        call.conversation_id,
        is_record,
        is_push,
        _side(fact, call),
        Beside(call.recordings, call.voicemail, call.transcript, call.recap)
        if has_beside
        else None,
    )


def _side(fact: CallFact, call: CallData) -> Side:
    """What one fact says."""
    started, rang, connected = call.started_at, call.rang_at, call.connected_at
    ended, outcome = call.ended_at, call.outcome
    if ended is not None:
        settled = True
    else:
        settled = outcome is not None if fact.is_record else fact.what in ENDINGS
    return Side(
        call.direction,
        call.from_number,
        call.to_number,
        call.external,
        call.internal,
        call.target,
        None if started is None else ms_of(started),
        None if rang is None else ms_of(rang),
        None if connected is None else ms_of(connected),
        None if ended is None else ms_of(ended),
        call.ring_duration_s,
        call.talk_duration_s,
        call.hold_duration_s,
        call.total_duration_s,
        outcome,
        call.provider_outcome,
        settled,
        fact.at_ms if settled else None,
    )


def party(who: Who) -> Party:
    """As the ledger has it."""
    return Party(who.email, who.id, who.kind, who.name, who.number, who.number_raw, who.withheld)


def ended_ms(side: Side) -> int:
    """When it ended, as one side has it; not after we had heard of it."""
    assert side.settled_at_ms is not None
    if side.ended_ms is None or side.ended_ms > side.settled_at_ms:
        return side.settled_at_ms
    return side.ended_ms


def _merged(facts: Sequence[Heard]) -> Side:
    """Field by field what was said last by the provider's clock.

    An ending counts as later than what is no ending, whatever its clock says; an artefact does
    not know better than what was told of the call itself.
    """
    side = facts[0].side
    if len(facts) == 1 and (side.ended_ms is not None or not side.settled):
        return side
    facts = sorted(facts, key=_rank)
    side = replace(facts[0].side)
    for fact in facts[1:]:
        _overlay(side, fact.side)
    endings = [fact for fact in facts if fact.side.settled]
    if endings:
        side.settled = True
        side.settled_at_ms = min([fact.at_ms for fact in endings])
        if side.ended_ms is None:
            side.ended_ms = max([fact.time_ms for fact in endings])
    return side


def _rank(fact: Heard) -> tuple[int, int, str]:
    order = 0 if fact.what in ARTEFACTS else 2 if fact.side.settled else 1
    return order, fact.time_ms, fact.id


def _overlay(side: Side, later: Side) -> None:  # noqa: C901, PLR0912 - one line a field
    """Put what ``later`` says in the place of what was said before."""
    # Written out: a loop over names takes three times as long.
    if later.direction != "unknown":
        side.direction = later.direction
    if later.from_number is not None and later.from_number != "unknown":
        side.from_number = later.from_number
    if later.to_number is not None and later.to_number != "unknown":
        side.to_number = later.to_number
    if later.external != NOBODY:
        side.external = later.external
    if later.internal != NOBODY:
        side.internal = later.internal
    if later.target != NOBODY:
        side.target = later.target
    if later.started_ms is not None:
        side.started_ms = later.started_ms
    if later.rang_ms is not None:
        side.rang_ms = later.rang_ms
    if later.connected_ms is not None:
        side.connected_ms = later.connected_ms
    if later.ended_ms is not None:
        side.ended_ms = later.ended_ms
    if later.ring_duration_s is not None:
        side.ring_duration_s = later.ring_duration_s
    if later.talk_duration_s is not None:
        side.talk_duration_s = later.talk_duration_s
    if later.hold_duration_s is not None:
        side.hold_duration_s = later.hold_duration_s
    if later.total_duration_s is not None:
        side.total_duration_s = later.total_duration_s
    if later.outcome is not None and later.outcome != "unknown":
        side.outcome = later.outcome
    if later.provider_outcome is not None and later.provider_outcome != "unknown":
        side.provider_outcome = later.provider_outcome


def _flags(leg: Leg) -> list[str]:
    flags = []
    pushes = [fact for fact in leg.facts if fact.is_push]
    if len(pushes) > 1:
        endings = [fact for fact in pushes if fact.what in ENDINGS]
        connects = [(fact.time_ms, fact.id) for fact in pushes if fact.what == "connected"]
        if endings and connects and max(connects) > min((e.time_ms, e.id) for e in endings):
            flags.append("impossible_order")
        if len({fact.side.ended_ms for fact in endings} - {None}) > 1:
            flags.append("second_ending")
    for fact in leg.facts:
        started_ms, ended_ms = fact.side.started_ms, fact.side.ended_ms
        if started_ms is not None and ended_ms is not None and ended_ms < started_ms:
            flags.append("ended_before_start")
            break
    if leg.surplus:
        flags.append("too_many_events")
    return flags
