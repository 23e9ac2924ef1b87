"""Which record of one connection is which conversation of another. No I/O, and no clock.

Two calls may be the same if every **gate** lets them pass: the numbers, the direction, how far
apart they start, and that start or duration is within its tolerance. A gate that one side says
nothing about is open. Between those that may be the same, the distance decides: start and
duration, in milliseconds, one to one, so that the sum is least. What leaves a choice that costs
less than ``ambiguity_margin_ms`` more is not chosen.

What it costs that a call has no counterpart decides more than it seems to, since pushes get lost
and records are never made. If each call had to have one where it can, a lost push at nine and a
record that was never made at ten would, between two numbers that call each other all the time,
push every pair in between over by one. So a pair that is not made costs `_alone_ms`, as much as
the farthest pair that can be made:

- a lone pair is made, however far apart within the gates, for nobody is better off without it;
- a chain of pairs is pushed over by no more than what the two at its ends, had they been paired
  with each other, could have cost at the worst.

For the same reason a wrong duration counts up to `_DURATION_MOST_MS` only: an hour too much is no
worse than a minute, and neither may outweigh what all starts say.

A `Field` knows who may be whose while calls come and go, so that one more call costs a look at
those around it, and not at all there are. A call within whose gate there are more than
`MOST_AROUND` of the other side makes a **crowd** of itself and of all that it leads to: there is
nothing to tell them apart by, and nobody looks.

The order of what is given decides nothing; where costs are equal and no margin is asked for, the
ids do.
"""

import itertools
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Literal, TypeAlias

from msgspec import Struct

#: What a duration that differs costs at most.
_DURATION_MOST_MS = 60_000

#: So many of the other side may start within a call's gate. So components of up to 64 calls a side
#: are always looked at; and longer ones, as a call a minute for days makes them.
MOST_AROUND = 64

#: If more steps are needed to find the best choice, it is a crowd, too: enough for 64 calls a side,
#: and for thousands a side that are told apart at a glance.
MOST_STEPS = 600_000

_OPPOSITE = {"inbound": "outbound", "outbound": "inbound"}

Direction: TypeAlias = Literal["inbound", "outbound", "internal", "unknown"]

#: ``no_clock``, ``no_number``: it says too little to be compared. ``no_candidate``: none passes
#: the gates. ``outbid``: each of its candidates is another's.
Lone: TypeAlias = Literal["no_clock", "no_number", "no_candidate", "outbid"]


class Candidate(Struct, frozen=True, kw_only=True):
    """A call as one side has it."""

    #: The conversation's on the pushed side, the record's on the other. Once on each side.
    id: str
    #: The clock that is compared, milliseconds since 1970.
    start_ms: int | None
    duration_ms: int | None
    #: E.164, as this side has them; None if withheld or unknown.
    agent_number: str | None
    other_number: str | None
    direction: Direction
    #: Of a pushed call, whether the agent's number stands on the inner side of the leg: then both
    #: sides mean the same by a direction, else the opposite. None if that is unknown.
    agent_inside: bool | None = None

    @property
    def numbers(self) -> tuple[str, ...]:
        """The known numbers in an order of their own: calls with others are never compared.

        So a call with a withheld number is compared with such calls only. That the caller whom
        one side does not know is the one whom the other side names would be a guess.
        """
        return tuple(sorted(filter(None, (self.agent_number, self.other_number))))


class PairRules(Struct, frozen=True, kw_only=True):
    """The settings of `[[reconcile.pairs]]` that say which calls are the same.

    And the tolerances of `[reconcile]`. Where two calls differ beyond them both in start and in
    duration, nothing says that they are one: a lost push and, minutes later, a record that was
    never made look just like that.
    """

    gate_ms: int = 300_000
    ambiguity_margin_ms: int = 5_000
    start_tolerance_ms: int = 15_000
    duration_tolerance_ms: int = 3_000
    duration_tolerance_ratio: float = 0.05


class Edge(Struct, frozen=True, kw_only=True):
    """A pushed and a recorded call next to each other."""

    pushed: str
    recorded: str
    #: ``numbers``, ``direction``, ``start`` and ``agreement`` (start or duration is within its
    #: tolerance) → whether it lets them pass. None: it does, for want of something to compare;
    #: with ``numbers``, both sides know but one of the two.
    gates: dict[str, bool | None]
    #: None where a side does not say.
    start_distance_ms: int | None
    duration_distance_ms: int | None

    @property
    def passes(self) -> bool:
        """Whether they can be the same call at all."""
        return False not in self.gates.values()

    @property
    def cost_ms(self) -> int:
        """How far apart they are. A duration that a side does not say costs nothing."""
        return _cost_ms(self.start_distance_ms or 0, self.duration_distance_ms)


class Match(Struct, frozen=True):
    """One call, seen from both sides."""

    pushed: str
    recorded: str
    #: How much more the best choice costs that gives one of the two to another; None if there is
    #: none that costs less than was asked for.
    runner_up_ms: int | None


class Group(Struct, frozen=True, kw_only=True):
    """Calls that cannot be told from each other. All lists are in the order of the ids."""

    pushed: list[str]
    recorded: list[str]
    #: (pushed, recorded) of which a choice is made that costs less than the margin more.
    pairs: list[tuple[str, str]]


class Alone(Struct, frozen=True):
    """A call without a counterpart."""

    id: str
    reason: Lone
    #: With which it could have been paired, if it was outbid.
    others: list[str]


class Pairing(Struct, frozen=True):
    """What became of each call: it is in one of these, once. In the order of the ids."""

    matched: list[Match]
    ambiguous: list[Group]
    alone_pushed: list[Alone]
    alone_recorded: list[Alone]


def compare(pushed: Candidate, recorded: Candidate, rules: PairRules) -> Edge:
    """Any two calls next to each other, whether or not they can be the same."""
    numbers, sought = pushed.numbers, _sought(pushed)
    start_ms = _distance_ms(pushed.start_ms, recorded.start_ms)
    gates: dict[str, bool | None] = {
        "numbers": False,
        "direction": None,
        "start": start_ms is not None and start_ms <= rules.gate_ms,
        "agreement": _agree(start_ms, pushed.duration_ms, recorded.duration_ms, rules),
    }
    if numbers and numbers == recorded.numbers:
        gates["numbers"] = None if len(numbers) == 1 else True
    if sought is not None and recorded.direction in _OPPOSITE:
        gates["direction"] = recorded.direction == sought
    return Edge(
        pushed=pushed.id,
        recorded=recorded.id,
        gates=gates,
        start_distance_ms=start_ms,
        duration_distance_ms=_distance_ms(pushed.duration_ms, recorded.duration_ms),
    )


def nearest_legs(
    pushed: Iterable[Candidate], recorded: Iterable[Candidate], rules: PairRules
) -> tuple[Candidate, Candidate]:
    """Of two calls of several legs those that are nearest to each other: as them they count."""

    def rank(legs: tuple[Candidate, Candidate]) -> tuple[bool, int]:
        edge = compare(*legs, rules)
        return not edge.passes, edge.cost_ms

    return min(itertools.product(pushed, recorded), key=rank)


def _sought(pushed: Candidate) -> str | None:
    """The direction that its record has to have; None if that is unknown, or has no direction."""
    if pushed.agent_inside is None or pushed.direction not in _OPPOSITE:
        return None
    return pushed.direction if pushed.agent_inside else _OPPOSITE[pushed.direction]


def _distance_ms(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else abs(one - other)


def _agree(
    start_ms: int | None, ours_ms: int | None, theirs_ms: int | None, rules: PairRules
) -> bool | None:
    """Whether anything that both sides say is the same; None if it may be, for all they say.

    ``start_ms``: how far apart the starts are; then the durations.
    """
    if start_ms is not None and start_ms <= rules.start_tolerance_ms:
        return True
    if ours_ms is None or theirs_ms is None:
        return None
    longer_ms = max(ours_ms, theirs_ms)
    tolerance_ms = max(rules.duration_tolerance_ms, rules.duration_tolerance_ratio * longer_ms)
    if abs(ours_ms - theirs_ms) <= tolerance_ms:
        return True
    return None if start_ms is None else False


def _cost_ms(start_ms: int, duration_ms: int | None) -> int:
    return start_ms if duration_ms is None else start_ms + min(duration_ms, _DURATION_MOST_MS)


def _alone_ms(rules: PairRules) -> int:
    """What it costs that a pair is not made: more than any that can be."""
    return rules.gate_ms + _DURATION_MOST_MS + 1


#: Numbers, whether it was pushed, and the direction that is compared, None if there is none. Calls
#: of one lane are alike but for their start and duration.
_Lane: TypeAlias = tuple[tuple[str, ...], bool, str | None]
#: Start and id of the calls of each, in order.
_Lanes: TypeAlias = defaultdict[_Lane, list[tuple[int, str]]]


class _Look(Struct, frozen=True):
    """What is compared of a leg that says enough."""

    lane: _Lane
    start_ms: int
    duration_ms: int | None


class _Call(Struct, frozen=True):
    legs: tuple[Candidate, ...]
    is_pushed: bool
    #: Empty if no leg says enough.
    looks: tuple[_Look, ...]

    @property
    def start_ms(self) -> int:
        """Of the first leg that can be compared."""
        return self.looks[0].start_ms if self.looks else 0


class Part(Struct, frozen=True, kw_only=True):
    """A call and those by which it is decided whose it is."""

    #: Ids, by start and id, and those of the other side each may be, with what the pair costs.
    pushed: list[str]
    recorded: list[str]
    costs: dict[str, dict[str, int]]
    #: How far each starts from the one in the middle.
    far_ms: dict[str, int]
    #: Whether nobody outside has to do with anybody in it.
    is_whole: bool


class Field:
    """The calls of both sides, by who may be whose. Ids are unique over both."""

    def __init__(self, rules: PairRules) -> None:
        self._rules = rules
        self._calls: dict[str, _Call] = {}
        self._crowd: set[str] = set()
        #: Of one call.
        self._most_legs = 1
        #: Those that are in no crowd, and those that are.
        self._calm: _Lanes = defaultdict(list)
        self._crowded: _Lanes = defaultdict(list)

    @property
    def reach_ms(self) -> int:
        """What comes or goes decides hardly anything that starts farther away.

        Whoever is pushed over by it moves on by as much as that costs, and all of it costs no more
        than to leave two alone.
        """
        return _alone_ms(self._rules) * 5 // 4

    def put(self, legs: Sequence[Candidate], *, is_pushed: bool) -> set[str]:
        """Add a call of one leg or more; the ids of all that are in a crowd since.

        That a crowd loses calls again makes it none the less one.
        """
        ident = self._add(legs, is_pushed=is_pushed, lanes=self._calm)
        if self._is_dense(ident):
            return self.make_crowd([ident])
        call = self._calls[ident]
        grown = []
        for other in {*self._near(call, self._calm), *self._near(call, self._crowded)}:
            if self._is_dense(other):
                grown += [other, ident]
            elif other in self._crowd and self._tie_ms(call, self._calls[other]) is not None:
                grown.append(ident)
        return self.make_crowd(grown)

    def put_again(self, legs: Sequence[Candidate], *, is_pushed: bool, is_crowd: bool) -> None:
        """Add one of whom it is known whether it is in a crowd."""
        lanes = self._crowded if is_crowd else self._calm
        ident = self._add(legs, is_pushed=is_pushed, lanes=lanes)
        if is_crowd:
            self._crowd.add(ident)

    def remove(self, ident: str) -> None:
        lanes = self._crowded if ident in self._crowd else self._calm
        self._take(ident, lanes)
        self._crowd.discard(ident)
        del self._calls[ident]

    def is_crowd(self, ident: str) -> bool:
        return ident in self._crowd

    def make_crowd(self, idents: Iterable[str]) -> set[str]:
        """These are a crowd, and all that they lead to; those that were none before."""
        joined: set[str] = set()
        waiting = [ident for ident in idents if ident not in self._crowd]
        while waiting:
            ident = waiting.pop()
            if ident in self._crowd:
                continue
            joined.add(ident)
            self._crowd.add(ident)
            self._take(ident, self._calm)
            self._insert(ident, self._crowded)
            # In a dense place nobody looks whom exactly it leads to.
            if self._is_dense(ident):
                waiting += self._near(self._calls[ident], self._calm)
            else:
                waiting += self._ties(ident)
        return joined

    def ties(self, ident: str) -> dict[str, int]:
        """Which of the other side a call may be, in no crowd, and what each pair would cost."""
        return {} if ident in self._crowd else self._ties(ident)

    def around(self, ident: str, reach_ms: int) -> Part:
        """A call in no crowd, and all to which such ties lead that start within its reach.

        And the ones beyond to which they lead, of which it is left open who else they may be.
        """
        middle_ms = self._calls[ident].start_ms
        costs: dict[str, dict[str, int]] = {}
        far_ms = {ident: 0}
        waiting, is_whole = [ident], True
        while waiting:
            one = waiting.pop()
            if far_ms[one] > reach_ms:
                is_whole = False
                continue
            costs[one] = self._ties(one)
            for other in costs[one]:
                if other not in far_ms:
                    far_ms[other] = abs(self._calls[other].start_ms - middle_ms)
                    waiting.append(other)
        for one in far_ms.keys() - costs.keys():
            costs[one] = {}
        for one, of_one in list(costs.items()):
            for other, cost_ms in of_one.items():
                costs[other][one] = cost_ms
        in_order = sorted(far_ms, key=lambda each: (self._calls[each].start_ms, each))
        return Part(
            pushed=[each for each in in_order if self._calls[each].is_pushed],
            recorded=[each for each in in_order if not self._calls[each].is_pushed],
            costs=costs,
            far_ms=far_ms,
            is_whole=is_whole,
        )

    def assign(self, part: Part, within_ms: int | None = None) -> Pairing | None:
        """What becomes of the calls of a part; None if there are too many choices.

        ``within_ms``: up to where runners-up are looked for; by default up to what it costs to
        leave two calls alone.
        """
        if len(part.pushed) + len(part.recorded) <= 2:  # noqa: PLR2004
            return self._assign_two(part)
        margin_ms, alone_ms = self._rules.ambiguity_margin_ms, _alone_ms(self._rules)
        places = {ident: place for place, ident in enumerate(part.recorded)}
        rows = [
            dict(sorted((places[o], cost - alone_ms) for o, cost in part.costs[ident].items()))
            for ident in part.pushed
        ]
        try:
            plan = _Plan(rows, len(places))
            others = plan.others(max(margin_ms, alone_ms if within_ms is None else within_ms))
        except _TooManyStepsError:
            return None
        near = [each for each, more_ms in others.items() if more_ms < margin_ms]
        likely = [*plan.taken(), *near]
        # A row, or a column behind all rows, and how much more it costs that it goes to another.
        next_ms: dict[int, int] = {}
        for (row, column), more_ms in others.items():
            for end in (row, len(rows) + column):
                next_ms[end] = min(more_ms, next_ms.get(end, more_ms))
        pairing = Pairing([], [], [], [])
        for group in _together(likely, len(rows), len(places)):
            pairs = sorted((part.pushed[row], part.recorded[column]) for row, column in group)
            if len(group) == 1:
                [(row, column)] = group
                nexts = [next_ms[end] for end in (row, len(rows) + column) if end in next_ms]
                pairing.matched.append(Match(*pairs[0], min(nexts, default=None)))
            else:
                pushed, recorded = (sorted(set(side)) for side in zip(*pairs, strict=True))
                pairing.ambiguous.append(Group(pushed=pushed, recorded=recorded, pairs=pairs))
        told = {part.pushed[row] for row, _ in likely} | {part.recorded[c] for _, c in likely}
        self._leave_alone(part, told, pairing)
        return _in_order(pairing)

    def _assign_two(self, part: Part) -> Pairing:
        """What becomes of at most one call a side. Nearly all are such, so it is made short."""
        pairing = Pairing([], [], [], [])
        told: Collection[str] = ()
        if part.pushed and part.recorded and part.costs[part.pushed[0]]:
            pairing.matched.append(Match(part.pushed[0], part.recorded[0], None))
            told = (part.pushed[0], part.recorded[0])
        self._leave_alone(part, told, pairing)
        return pairing

    def _leave_alone(self, part: Part, told: Collection[str], pairing: Pairing) -> None:
        for idents, alone in (
            (part.pushed, pairing.alone_pushed),
            (part.recorded, pairing.alone_recorded),
        ):
            for ident in idents:
                if ident not in told:
                    others = sorted(part.costs[ident])
                    alone.append(Alone(ident, self._why_alone(ident, others), others))

    def _why_alone(self, ident: str, others: Sequence[str]) -> Lone:
        legs = self._calls[ident].legs
        if all(leg.start_ms is None for leg in legs):
            return "no_clock"
        if not any(leg.numbers for leg in legs):
            return "no_number"
        return "outbid" if others else "no_candidate"

    # Who is near

    def _add(self, legs: Sequence[Candidate], *, is_pushed: bool, lanes: _Lanes) -> str:
        ident = legs[0].id
        looks = tuple(
            _Look((leg.numbers, is_pushed, direction), leg.start_ms, leg.duration_ms)
            for leg in legs
            if leg.start_ms is not None and leg.numbers
            for direction in [_sought(leg) if is_pushed else _known(leg.direction)]
        )
        self._calls[ident] = _Call(tuple(legs), is_pushed, looks)
        self._most_legs = max(self._most_legs, len(looks))
        self._insert(ident, lanes)
        return ident

    def _insert(self, ident: str, lanes: _Lanes) -> None:
        for look in self._calls[ident].looks:
            insort(lanes[look.lane], (look.start_ms, ident))

    def _take(self, ident: str, lanes: _Lanes) -> None:
        for look in self._calls[ident].looks:
            row = lanes[look.lane]
            del row[bisect_left(row, (look.start_ms, ident))]
            if not row:
                del lanes[look.lane]

    def _near(self, call: _Call, lanes: _Lanes) -> list[str]:
        """Those of the other side within its gate; of several legs each may name the same."""
        found = []
        for row, low, high in self._stretches(call, lanes):
            found += [ident for _, ident in row[low:high]]
        return found

    def _stretches(
        self, call: _Call, lanes: _Lanes
    ) -> Iterator[tuple[list[tuple[int, str]], int, int]]:
        gate_ms = self._rules.gate_ms
        for look in call.looks:
            numbers, is_pushed, direction = look.lane
            for other in _DIRECTIONS if direction is None else (direction, None):
                row = lanes.get((numbers, not is_pushed, other))
                if row is not None:
                    low = bisect_left(row, (look.start_ms - gate_ms,))
                    high = bisect_left(row, (look.start_ms + gate_ms + 1,), low)
                    if low < high:
                        yield row, low, high

    def _is_dense(self, ident: str) -> bool:
        """Whether more of the other side are within its gate than anybody looks at."""
        call = self._calls[ident]
        stretches = [
            each for lanes in (self._calm, self._crowded) for each in self._stretches(call, lanes)
        ]
        count = sum(high - low for _, low, high in stretches)
        if count <= MOST_AROUND or count > MOST_AROUND * self._most_legs:
            return count > MOST_AROUND
        # Several legs of one call count once.
        found: set[str] = set()
        for row, low, high in stretches:
            for place in range(low, high):
                found.add(row[place][1])
                if len(found) > MOST_AROUND:
                    return True
        return False

    def _ties(self, ident: str) -> dict[str, int]:
        call = self._calls[ident]
        found: dict[str, int] = {}
        for other in self._near(call, self._calm):
            if other not in found:
                cost_ms = self._tie_ms(call, self._calls[other])
                if cost_ms is not None:
                    found[other] = cost_ms
        return found

    def _tie_ms(self, one: _Call, other: _Call) -> int | None:
        """What it would cost that two calls are one; None if they cannot be."""
        least_ms = None
        for ours in one.looks:
            for theirs in other.looks:
                cost_ms = _pass_ms(ours, theirs, self._rules)
                if cost_ms is not None and (least_ms is None or cost_ms < least_ms):
                    least_ms = cost_ms
        return least_ms


#: All that is compared.
_DIRECTIONS = ("inbound", "outbound", None)


def _known(direction: Direction) -> str | None:
    return direction if direction in _OPPOSITE else None


def _pass_ms(ours: _Look, theirs: _Look, rules: PairRules) -> int | None:
    """`Edge.passes` and `Edge.cost_ms` in one, for there are many."""
    (numbers, _, direction), (others, _, direction_of_others) = ours.lane, theirs.lane
    start_ms = abs(ours.start_ms - theirs.start_ms)
    if (
        numbers != others
        or start_ms > rules.gate_ms
        or (direction != direction_of_others and None not in (direction, direction_of_others))
        or _agree(start_ms, ours.duration_ms, theirs.duration_ms, rules) is False
    ):
        return None
    return _cost_ms(start_ms, _distance_ms(ours.duration_ms, theirs.duration_ms))


#: Pushed call → the records that it may be, and what the pair costs, less what it costs to leave
#: both alone: so it is below 0. Calls are told by their places in a part.
_Row: TypeAlias = dict[int, int]
_Pair: TypeAlias = tuple[int, int]


def _together(pairs: Sequence[_Pair], rows: int, columns: int) -> Iterable[list[_Pair]]:
    """Pairs by which of them share calls, also by way of others."""
    clusters = _Clusters(rows + columns)
    for row, column in pairs:
        clusters.tie(row, rows + column)
    groups: defaultdict[int, list[_Pair]] = defaultdict(list)
    for row, column in pairs:
        groups[clusters.of(row)].append((row, column))
    return groups.values()


def _in_order(pairing: Pairing) -> Pairing:
    return Pairing(
        matched=sorted(pairing.matched, key=lambda match: match.pushed),
        ambiguous=sorted(pairing.ambiguous, key=lambda group: (group.pushed, group.recorded)),
        alone_pushed=sorted(pairing.alone_pushed, key=lambda alone: alone.id),
        alone_recorded=sorted(pairing.alone_recorded, key=lambda alone: alone.id),
    )


class _Clusters:
    """Numbers from 0 on, and which of them belong together."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def of(self, index: int) -> int:
        """The one that stands for all that belong together."""
        parents = self._parents
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    def tie(self, one: int, other: int) -> None:
        self._parents[self.of(other)] = self.of(one)


class _TooManyStepsError(Exception):
    pass


class _Path(Struct):
    """How one more row gets a column: others move up, until the last needs none that is taken."""

    #: Row that may move → how far it is.
    reached: dict[int, int]
    #: Column → the row that takes it.
    taker: dict[int, int]
    length: int
    #: The row that goes without, if no column that is free ends the path.
    last: int
    free: int | None


class _Plan:
    """The cheapest way to give columns to rows, at most one to each.

    An edge costs less than 0, a row without a column 0. Successive shortest paths: row by row,
    each gets what makes all so far cost least. A price for each row and each column, none above 0
    (the dual of the linear program), keeps what an edge costs beyond its prices at 0 or more, and
    at 0 where it is taken; so Dijkstra's way of finding paths is right. Among equal costs the
    earlier rows and columns decide. Raises _TooManyStepsError.
    """

    def __init__(self, rows: Sequence[_Row], width: int) -> None:
        self._rows = rows
        #: Row → its column, column → its row.
        self._column: list[int | None] = [None] * len(rows)
        self._row: list[int | None] = [None] * width
        self._row_price = [0] * len(rows)
        self._column_price = [0] * width
        self._steps = 0
        for row in range(len(rows)):
            self._add(row)

    def taken(self) -> list[_Pair]:
        return [(row, column) for row, column in enumerate(self._column) if column is not None]

    def _add(self, first: int) -> None:
        costs = [cost - self._column_price[column] for column, cost in self._rows[first].items()]
        self._row_price[first] = min(0, *costs, 0)
        path = self._shortest(first)
        for row, far in path.reached.items():
            column = self._column[row]
            self._row_price[row] += path.length - far
            if column is not None:
                self._column_price[column] -= path.length - far
        column = path.free
        if column is None:
            column, self._column[path.last] = self._column[path.last], None
        while column is not None:
            row = path.taker[column]
            self._row[column], self._column[row], column = row, column, self._column[row]

    def _shortest(self, first: int) -> _Path:
        path = _Path({}, {}, -self._row_price[first], first, None)
        near: dict[int, int] = {}  # column → how far it is, for all that is known yet
        heap: list[_Pair] = []
        row, far = first, 0
        while True:
            path.reached[row] = far
            if far - self._row_price[row] < path.length:
                path.last, path.length = row, far - self._row_price[row]
            self._count(len(self._rows[row]))
            base = far - self._row_price[row]
            for column, cost in self._rows[row].items():
                distance = base + cost - self._column_price[column]
                if distance < near.get(column, path.length):
                    near[column], path.taker[column] = distance, row
                    heappush(heap, (distance, column))
            while heap and heap[0][0] > near[heap[0][1]]:
                heappop(heap)  # a shorter way was found since
            if not heap or heap[0][0] >= path.length:
                return path
            far, column = heappop(heap)
            owner = self._row[column]
            if owner is None:
                path.length, path.free = far, column
                return path
            row = owner

    def others(self, most: int) -> dict[_Pair, int]:
        """How much more than this the best plan costs that takes an edge which this does not.

        For all edges of which that is less than ``most``. Whoever loses its column by it takes
        another's, that one yet another's, and so on. Either somebody takes the column that was
        left first, and all is well again. Or somebody takes one that was free, or goes without;
        and of the column that was left first, which others may have moved up to, in the end one
        stays free, or goes to a row that had none.
        """
        rows = self._excess(most)
        ways = {row: self._ways(row, rows, most) for row in self._row if row is not None}
        leave, enter = self._ends(rows)
        leaves = {
            row: min(more + leave[last] for last, more in reached.items())
            for row, reached in ways.items()
        }
        enters = dict(enter)
        for row, reached in ways.items():
            for last, more in reached.items():
                enters[last] = min(enters[last], enter[row] + more)
        found: dict[_Pair, int] = {}
        for row, costs in enumerate(rows):
            for column, more in costs.items():
                owner = self._row[column]
                if owner is None:
                    found[row, column] = more + enters[row]
                elif self._column[row] is None:
                    found[row, column] = more + leaves[owner]
                elif owner != row:
                    circle = ways[owner].get(row, most)
                    found[row, column] = more + min(circle, leaves[owner] + enters[row])
        return {pair: more for pair, more in found.items() if more < most}

    def _excess(self, most: int) -> list[_Row]:
        """What each edge costs beyond its prices, of those where it is less than ``most``."""
        return [
            {
                column: more
                for column, cost in costs.items()
                if (more := cost - self._row_price[row] - self._column_price[column]) < most
            }
            for row, costs in enumerate(self._rows)
        ]

    def _ways(self, first: int, rows: Sequence[_Row], most: int) -> dict[int, int]:
        """Rows that lose their column if the first one does, and how much that costs."""
        done: dict[int, int] = {}
        near = {first: 0}
        heap = [(0, first)]
        while heap:
            far, row = heappop(heap)
            if row in done:
                continue
            done[row] = far
            self._count(len(rows[row]))
            for column, more in rows[row].items():
                owner = self._row[column]
                if owner is not None and far + more < near.get(owner, most):
                    near[owner] = far + more
                    heappush(heap, (far + more, owner))
        return done

    def _ends(self, rows: Sequence[_Row]) -> tuple[dict[int, int], dict[int, int]]:
        """What it costs each row with a column to do with none that is taken.

        And what it costs that its own stays free, or goes to a row that had none.
        """
        leave, enter = {}, {}
        for row, column in self.taken():
            leave[row], enter[row] = -self._row_price[row], -self._column_price[column]
        for row, costs in enumerate(rows):
            for column, more in costs.items():
                owner = self._row[column]
                if owner is None:
                    leave[row] = min(leave[row], more)
                elif self._column[row] is None:
                    enter[owner] = min(enter[owner], more)
        return leave, enter

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise _TooManyStepsError
