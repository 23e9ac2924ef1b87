"""What a conversation is on either side of a pair of connections. No I/O, and no clock."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

from msgspec import Struct

from consumers.reconcile.legs import BACKFILLED, Leg, Side, ended_ms
from consumers.reconcile.matching import Candidate, Direction, PairRules
from ingest.fields import by_size

Key: TypeAlias = tuple[str, str]

NumbersAt: TypeAlias = Callable[[int], Collection[str]]
"""Milliseconds since 1970 → whose calls the pair was about then."""

#: Later than any time of a call.
FOR_EVER_MS = 10**15


class PairSetup(Struct, frozen=True, kw_only=True):
    """One of `[[reconcile.pairs]]`."""

    pushed: str
    recorded: str
    #: Empty: those of the recorded side's agents.
    numbers: frozenset[str] = frozenset()
    rules: PairRules = PairRules()
    #: Whether the record's clock is the making of its row.
    from_end: bool = False
    #: Whether the record's duration counts from when somebody answered.
    from_connect: bool = True
    #: How far back a near pass of the recorded side reaches.
    overlap_ms: int = 7_200_000

    @property
    def name(self) -> str:
        return f"{self.pushed}/{self.recorded}"


class Fate(Struct, frozen=True, kw_only=True):
    """What became of an entry when it was matched last."""

    kind: Literal["matched", "ambiguous", "alone"]
    #: Idents: its counterpart; or those that it could be as well, the nearest ones.
    others: list[str] = []
    reason: str | None = None
    #: Whether one that it may be is not over yet.
    held: bool = False


class Entry(Struct, kw_only=True):
    """A call as one side of a pair has it."""

    #: The pair's name.
    pair: str
    #: ``p/<number>/<first leg>`` or ``r/<record>``.
    ident: str
    conversation: str
    call_ids: list[str]
    #: As its first leg to be connected has it.
    call: Candidate
    #: As its other legs have it.
    otherwise: list[Candidate] = []
    started_ms: int
    #: None while it runs, and until its ending was pushed or mended.
    end_ms: int | None
    fate: Fate | None = None
    #: Whether there are too many others like it, see `matching.Field`.
    in_crowd: bool = False
    match_ms: int | None = None
    judge_ms: int | None = None
    #: When all that had come before it could be judged has become an entry, too.
    sure_ms: int | None = None
    #: Up to where the recorded side has to be read for it to be judged before.
    wants_ms: int | None = None
    wake_ms: int | None = None

    @property
    def key(self) -> Key:
        return self.pair, self.ident

    @property
    def is_pushed(self) -> bool:
        return self.ident.startswith("p/")

    @property
    def legs(self) -> list[Candidate]:
        return [self.call, *self.otherwise]


def by_connect(leg: Leg) -> tuple[int, tuple[int, str]]:
    """Connected ones first; then by when that was."""
    connected_ms = leg.truth.connected_ms
    place = _started_ms(leg) + FOR_EVER_MS if connected_ms is None else connected_ms
    return place, by_size(leg.call_id)


def pushed_entries(
    setup: PairSetup, numbers_at: NumbersAt, name: str, legs: Iterable[Leg]
) -> Iterator[Entry]:
    """The calls that a conversation is: for each number of the pair on it one, mostly."""
    groups: defaultdict[str, list[Leg]] = defaultdict(list)
    for leg in legs:
        found = _ends(leg.truth, numbers_at(_started_ms(leg)))
        if found is not None:
            groups[found[0]].append(leg)
    apart = (
        (number, call)
        for number, group in groups.items()
        for call in _calls(setup.rules.gate_ms, group)
    )
    for number, group in sorted(apart, key=lambda each: (each[0], each[1][0].call_id)):
        call_ids = sorted((leg.call_id for leg in group), key=by_size)
        ident = f"p/{number}/{call_ids[0]}"
        ends = [leg.ended_ms for leg in group if _is_told(leg)]
        known = [end_ms for end_ms in ends if end_ms is not None]
        over = len(known) == len(group)
        first, *others = (
            _pushed_call(setup, numbers_at, ident, leg, over=over)
            for leg in sorted(group, key=by_connect)
        )
        yield Entry(
            pair=setup.name,
            ident=ident,
            conversation=name,
            call_ids=call_ids,
            call=first,
            otherwise=others,
            started_ms=min(map(_started_ms, group)),
            end_ms=max(known) if over else None,
        )


def _calls(gate_ms: int, legs: Iterable[Leg]) -> Iterator[list[Leg]]:
    """Legs apart that can be no one's same record: one begins long after the others have ended."""
    call: list[Leg] = []
    last_ms = 0
    for leg in sorted(legs, key=lambda leg: (_started_ms(leg), leg.call_id)):
        if call and _started_ms(leg) > last_ms + gate_ms:
            yield call
            call, last_ms = [], 0
        call.append(leg)
        last_ms = max(last_ms, FOR_EVER_MS if leg.ended_ms is None else leg.ended_ms)
    if call:
        yield call


def _started_ms(leg: Leg) -> int:
    return leg.truth.started_ms or leg.first_at_ms


#: Later than any time of a call.
FOR_EVER_MS = 10**15


def _pushed_call(
    setup: PairSetup, numbers_at: NumbersAt, ident: str, leg: Leg, *, over: bool
) -> Candidate:
    side = leg.truth
    number, other, inside = _ends(side, numbers_at(_started_ms(leg))) or (None, None, None)
    return Candidate(
        id=ident,
        start_ms=clock_ms(side, setup),
        duration_ms=length_ms(side, setup) if over else None,
        agent_number=number,
        other_number=other,
        direction=_direction(side),
        agent_inside=inside,
    )


def recorded_entries(
    setup: PairSetup, numbers_at: NumbersAt, name: str, legs: Iterable[Leg]
) -> Iterator[Entry]:
    """Each record of a conversation on which a number of the pair stands."""
    for leg in legs:
        side = leg.recorded
        found = None if side is None else _ends(side, numbers_at(_started_ms(leg)))
        if side is None or found is None:
            continue
        ident = f"r/{leg.call_id}"
        number, other, _ = found
        from_end = setup.from_end
        begun_ms = side.started_ms if side.connected_ms is None else side.connected_ms
        yield Entry(
            pair=setup.name,
            ident=ident,
            conversation=name,
            call_ids=[leg.call_id],
            call=Candidate(
                id=ident,
                start_ms=side.started_ms if from_end else begun_ms,
                duration_ms=_recorded_ms(side, setup) if side.settled else None,
                agent_number=number,
                other_number=other,
                direction=_direction(side),
            ),
            started_ms=side.started_ms or leg.first_at_ms,
            end_ms=ended_ms(side) if side.settled else None,
        )


def _is_told(leg: Leg) -> bool:
    """Whether its ending was pushed; one that we have published in its place counts as such."""
    if leg.mended or (leg.pushed is not None and leg.pushed.settled):
        return True
    return any(fact.id.endswith(BACKFILLED) for fact in leg.facts)


def _ends(side: Side, numbers: Collection[str]) -> tuple[str, str | None, bool | None] | None:
    """The pair's number that stands on it, the other end's, whether the first is the inner one."""
    inner, target, outer = side.internal.number, side.target.number, side.external.number
    found: tuple[str, str | None, bool | None] | None = None
    if inner in numbers:
        assert inner is not None
        found = inner, outer, True
    elif target in numbers:
        assert target is not None
        found = target, outer, True
    elif outer in numbers:
        assert outer is not None
        found = outer, inner, False
    elif side.to_number in numbers:
        assert side.to_number is not None
        found = side.to_number, side.from_number, _INSIDE.get(side.direction)
    elif side.from_number in numbers:
        assert side.from_number is not None
        outbound = _INSIDE.get(side.direction)
        found = side.from_number, side.to_number, None if outbound is None else not outbound
    return found


#: Of whom is called.
_INSIDE: Mapping[str, bool] = {"inbound": True, "outbound": False}

_DIRECTIONS: Mapping[str, Direction] = {
    "inbound": "inbound",
    "outbound": "outbound",
    "internal": "internal",
}


def _direction(side: Side) -> Direction:
    return _DIRECTIONS.get(side.direction, "unknown")


def clock_ms(side: Side, setup: PairSetup) -> int | None:
    """What is compared with the record's clock."""
    if setup.from_end:
        return side.ended_ms
    return side.started_ms if side.connected_ms is None else side.connected_ms


def length_ms(side: Side, setup: PairSetup) -> int | None:
    """What is compared with the record's duration."""
    if not setup.from_connect:
        return _total_ms(side)
    if side.connected_ms is None:
        # Of an answered call somebody has not said when; else nobody was connected.
        return None if side.outcome == "answered" else 0
    return None if side.ended_ms is None else max(0, side.ended_ms - side.connected_ms)


def _recorded_ms(side: Side, setup: PairSetup) -> int | None:
    if setup.from_connect and side.connected_ms is not None and side.ended_ms is not None:
        return max(0, side.ended_ms - side.connected_ms)
    return _total_ms(side)


def _total_ms(side: Side) -> int | None:
    if side.total_duration_s is not None:
        return round(side.total_duration_s * 1000)
    if side.started_ms is None or side.ended_ms is None:
        return None
    return max(0, side.ended_ms - side.started_ms)


def numbers_of(leg: Leg) -> Iterator[str]:
    """All that stand on it."""
    side = leg.truth
    parties = (side.internal.number, side.target.number, side.external.number)
    return (number for number in (*parties, side.from_number, side.to_number) if number)
