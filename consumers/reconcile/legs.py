"""One leg: the facts about it, and what they come to on either side. No I/O, and no clock.

Everything here is a function of the set of a leg's facts; the order in which they came is in
their clocks and nowhere else.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from consumers.reconcile.completeness import Share
from consumers.reconcile.facts import NOBODY, CallFact, Who, ms_of

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


class Given(Struct, gc=False, frozen=True):
    """A verdict that was given."""

    n: int
    word: str
    #: The event's.
    id: str
    #: Of what it says, but for `n` and what it revises.
    digest: str
    at_ms: int


class Leg(Struct, kw_only=True):
    """A leg and all that is known of it. Order the facts with `add`, never by hand."""

    connection: str
    call_id: str
    provider: str
    #: By (at_ms, id), each id once.
    facts: list[CallFact] = []
    #: How many came when there were MAX_FACTS already.
    surplus: int = 0
    #: Within the connection, oldest first.
    verdicts: list[Given] = []
    #: Whether its lost ending was published.
    mended: bool = False
    #: What it adds to the completeness of its hour.
    share: Share | None = None
    #: When it is judged next, by the log's clock.
    wake_ms: int | None = None

    def add(self, fact: CallFact) -> bool:
        """Whether it is a new one."""
        if any(known.id == fact.id for known in self.facts):
            return False
        if len(self.facts) >= MAX_FACTS:
            self.surplus += 1
            return False
        self.facts.append(fact)
        self.facts.sort(key=lambda each: (each.at_ms, each.id))
        return True

    @property
    def first_at_ms(self) -> int:
        """The log's clock when it was first heard of."""
        return self.facts[0].at_ms

    @property
    def related(self) -> set[str]:
        """Every id that its facts name beside its own."""
        return {
            ident
            for fact in self.facts
            for ident in (fact.call.conversation_id, *fact.call.related_call_ids)
        } - {self.call_id}


def is_push(fact: CallFact) -> bool:
    """Whether the provider has told it by itself, and of the call."""
    return (
        not fact.is_record
        and fact.via in ("webhook", "websocket", "notification", "replay")
        and not fact.id.endswith(BACKFILLED)
    )


def pushed(leg: Leg, *, mended: bool = False) -> Side | None:
    """What the pushes of a leg say; None if there was none.

    ``mended``: with the endings that were published in the place of lost ones.
    """
    facts = [
        fact for fact in leg.facts if is_push(fact) or (mended and fact.id.endswith(BACKFILLED))
    ]
    return _merged(facts) if facts else None


def recorded(leg: Leg) -> Side | None:
    """What the provider's own record of a leg says, the latest of them; None if there is none."""
    facts = [fact for fact in leg.facts if fact.is_record]
    if not facts:
        return None
    # A record is told anew when it has changed: each is the whole of it.
    side = _merged([max(facts, key=lambda fact: (fact.at_ms, fact.id))])
    if side.settled:
        settled = [fact.at_ms for fact in facts if _ends(fact)]
        side.settled_at_ms = min(settled, default=side.settled_at_ms)
    return side


def _ends(fact: CallFact) -> bool:
    """Whether a fact says how the leg ended."""
    if fact.is_record:
        return fact.call.ended_at is not None or fact.call.outcome is not None
    return fact.what in ENDINGS or fact.call.ended_at is not None


_TIMES = ("started", "rang", "connected", "ended")
_SPANS = ("ring_duration_s", "talk_duration_s", "hold_duration_s", "total_duration_s")
_TEXTS = ("from_number", "to_number", "outcome", "provider_outcome")
_PARTIES = ("external", "internal", "target")


def _merged(facts: Sequence[CallFact]) -> Side:
    """Field by field what was said last by the provider's clock.

    An ending counts as later than what is no ending, whatever its clock says; an artefact does
    not know better than what was told of the call itself.
    """
    side = Side()
    for fact in sorted(facts, key=_rank):
        _overlay(side, fact)
    endings = [fact for fact in facts if _ends(fact)]
    if endings:
        side.settled = True
        side.settled_at_ms = min(fact.at_ms for fact in endings)
        if side.ended_ms is None:
            side.ended_ms = max(fact.time_ms for fact in endings)
    return side


def _rank(fact: CallFact) -> tuple[int, int, str]:
    order = 0 if fact.what in ARTEFACTS else 2 if _ends(fact) else 1
    return order, fact.time_ms, fact.id


def _overlay(side: Side, fact: CallFact) -> None:
    call = fact.call
    if call.direction != "unknown":
        side.direction = call.direction
    for name in _TIMES:
        instant = getattr(call, f"{name}_at")
        if instant is not None:
            setattr(side, f"{name}_ms", ms_of(instant))
    for name in (*_SPANS, *_TEXTS):
        value = getattr(call, name)
        if value is not None:
            setattr(side, name, value)
    for name in _PARTIES:
        who = getattr(call, name)
        if who != NOBODY:
            setattr(side, name, who)


def endings_of(facts: Iterable[CallFact]) -> list[CallFact]:
    """Those that say how the leg ended, by the provider's clock."""
    return sorted((fact for fact in facts if _ends(fact)), key=lambda fact: (fact.time_ms, fact.id))
