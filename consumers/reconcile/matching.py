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

The order of what is given decides nothing; where costs are equal and no margin is asked for, the
ids do.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Literal, TypeAlias

from msgspec import Struct

#: What a duration that differs costs at most.
_DURATION_MOST_MS = 60_000

#: Of a component in which more pairs are within the gate, or that takes more steps, all calls are
#: ambiguous: between two numbers with that many calls at a time there is nothing to tell them
#: apart by. If all start within one gate, 512 calls a side are looked at; of a call a minute,
#: a fortnight's.
MOST_LOOKS = 262_144
MOST_STEPS = 1_500_000

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


def _cost_ms(start_ms: int, duration_ms: int | None) -> int:
    return start_ms if duration_ms is None else start_ms + min(duration_ms, _DURATION_MOST_MS)


class Match(Struct, frozen=True):
    """One call, seen from both sides."""

    edge: Edge
    #: How much more the best choice costs that gives one of the two to another; None if there is
    #: none that costs less than leaving both alone.
    runner_up_ms: int | None


class Group(Struct, frozen=True, kw_only=True):
    """Calls that cannot be told from each other. All lists are in the order of the ids."""

    pushed: list[str]
    recorded: list[str]
    #: Pairs of which a choice is made that costs less than the margin more than the best; empty
    #: if there were too many to look.
    edges: list[Edge]
    reason: Literal["near_tie", "too_many"]


class Alone(Struct, frozen=True):
    """A call without a counterpart."""

    id: str
    reason: Lone
    #: With which it could have been paired, if it was outbid.
    edges: list[Edge]


class Pairing(Struct, frozen=True):
    """What became of each call: it is in one of these, once. In the order of the ids."""

    matched: list[Match]
    ambiguous: list[Group]
    alone_pushed: list[Alone]
    alone_recorded: list[Alone]


class Component(Struct, frozen=True):
    """Calls that have nothing to do with any others, by start and id."""

    pushed: list[Candidate]
    recorded: list[Candidate]


def pair(pushed: Iterable[Candidate], recorded: Iterable[Candidate], rules: PairRules) -> Pairing:
    """What becomes of each call. In all of this, ids are unique on each side."""
    whole = Pairing([], [], [], [])
    for component in components(pushed, recorded, rules):
        part = assign(component, rules)
        whole.matched.extend(part.matched)
        whole.ambiguous.extend(part.ambiguous)
        whole.alone_pushed.extend(part.alone_pushed)
        whole.alone_recorded.extend(part.alone_recorded)
    return _in_order(whole)


def compare(pushed: Candidate, recorded: Candidate, rules: PairRules) -> Edge:
    """Any two calls next to each other, whether or not they can be the same."""
    numbers, sought = pushed.numbers, _sought(pushed)
    start_ms = _distance_ms(pushed.start_ms, recorded.start_ms)
    duration_ms = _distance_ms(pushed.duration_ms, recorded.duration_ms)
    gates: dict[str, bool | None] = {
        "numbers": False,
        "direction": None,
        "start": start_ms is not None and start_ms <= rules.gate_ms,
        "agreement": _agree(pushed, recorded, rules),
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
        duration_distance_ms=duration_ms,
    )


def _sought(pushed: Candidate) -> str | None:
    """The direction that its record has to have; None if that is unknown, or has no direction."""
    if pushed.agent_inside is None or pushed.direction not in _OPPOSITE:
        return None
    return pushed.direction if pushed.agent_inside else _OPPOSITE[pushed.direction]


def _distance_ms(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else abs(one - other)


def _agree(pushed: Candidate, recorded: Candidate, rules: PairRules) -> bool | None:
    """Whether anything that both sides say is the same; None if it may be, for all they say."""
    start_ms = _distance_ms(pushed.start_ms, recorded.start_ms)
    if start_ms is not None and start_ms <= rules.start_tolerance_ms:
        return True
    if pushed.duration_ms is None or recorded.duration_ms is None:
        return None
    longer_ms = max(pushed.duration_ms, recorded.duration_ms)
    tolerance_ms = max(rules.duration_tolerance_ms, rules.duration_tolerance_ratio * longer_ms)
    if abs(pushed.duration_ms - recorded.duration_ms) <= tolerance_ms:
        return True
    return None if start_ms is None else False


def components(
    pushed: Iterable[Candidate], recorded: Iterable[Candidate], rules: PairRules
) -> Iterator[Component]:
    """Calls by which others they can have to do with, in n·log n steps for n calls.

    Two are in one component if gates that are open lead from the one to the other; the agreement
    is looked at later. A call that passes them with none is a component of its own.
    """
    buckets: defaultdict[tuple[str, ...], Component] = defaultdict(lambda: Component([], []))
    for call in pushed:
        if call.start_ms is None or not call.numbers:
            yield Component([call], [])
        else:
            buckets[call.numbers].pushed.append(call)
    for call in recorded:
        if call.start_ms is None or not call.numbers:
            yield Component([], [call])
        else:
            buckets[call.numbers].recorded.append(call)
    for bucket in buckets.values():
        if not bucket.pushed or not bucket.recorded:
            yield from (Component([call], []) for call in bucket.pushed)
            yield from (Component([], [call]) for call in bucket.recorded)
            continue
        bucket.pushed.sort(key=_by_start)
        bucket.recorded.sort(key=_by_start)
        yield from _connected(bucket, rules.gate_ms)


def _by_start(call: Candidate) -> tuple[int, str]:
    return _start_ms(call), call.id


def _start_ms(call: Candidate) -> int:
    assert call.start_ms is not None
    return call.start_ms


def _connected(bucket: Component, gate_ms: int) -> Iterator[Component]:
    """The components of calls between the same numbers, without a look at each edge.

    Those that one call can be paired with lie side by side, if records are kept apart by
    direction. So it is enough to tie it to the first of them, and each of them to the next.
    """
    pushed, recorded = bucket.pushed, bucket.recorded
    clusters = _Clusters(len(pushed) + len(recorded))
    lanes: dict[str | None, list[int]] = {"inbound": [], "outbound": [], None: []}
    for index, call in enumerate(recorded):
        lanes[call.direction if call.direction in _OPPOSITE else None].append(index)
    for direction, lane in lanes.items():
        starts = [_start_ms(recorded[index]) for index in lane]
        tied = 0  # all of the lane before it are tied as far as they have to be
        for index, call in enumerate(pushed):
            sought = _sought(call)
            if sought is not None and direction is not None and sought != direction:
                continue
            low = bisect_left(starts, _start_ms(call) - gate_ms)
            high = bisect_right(starts, _start_ms(call) + gate_ms)
            if low == high:
                continue
            clusters.tie(index, len(pushed) + lane[low])
            # Later calls reach no further back, and no less far ahead.
            for at in range(max(low + 1, tied), high):
                clusters.tie(len(pushed) + lane[at - 1], len(pushed) + lane[at])
            tied = max(tied, high)
    parts: defaultdict[int, Component] = defaultdict(lambda: Component([], []))
    for index, call in enumerate(pushed):
        parts[clusters.of(index)].pushed.append(call)
    for index, call in enumerate(recorded, len(pushed)):
        parts[clusters.of(index)].recorded.append(call)
    yield from parts.values()


def assign(component: Component, rules: PairRules) -> Pairing:
    """What becomes of the calls of one of the `components`."""
    if len(component.pushed) + len(component.recorded) <= 2:  # noqa: PLR2004
        return _assign_two(component, rules)
    rows = _rows(component, rules)
    if rows is None:
        return _too_many(component)
    try:
        plan = _Plan(rows, len(component.recorded))
        others = plan.others(max(rules.ambiguity_margin_ms, _alone_ms(rules)))
    except _TooManyStepsError:
        return _too_many(component)
    near = [each for each, more_ms in others.items() if more_ms < rules.ambiguity_margin_ms]
    likely = [*plan.taken(), *near]
    # A row, or a column behind all rows, and how much more it costs that it goes to another.
    next_ms: dict[int, int] = {}
    for (row, column), more_ms in others.items():
        for end in (row, len(rows) + column):
            next_ms[end] = min(more_ms, next_ms.get(end, more_ms))
    pairing = _left_alone(component, rows, likely, rules)
    for pairs in _together(likely, len(rows), len(component.recorded)):
        edges = _edges(component, pairs, rules)
        if len(pairs) == 1:
            [(row, column)] = pairs
            nexts = [next_ms[end] for end in (row, len(rows) + column) if end in next_ms]
            pairing.matched.append(Match(edges[0], min(nexts, default=None)))
        else:
            pairing.ambiguous.append(_near_tie(edges))
    return _in_order(pairing)


def _assign_two(component: Component, rules: PairRules) -> Pairing:
    """What becomes of at most one call a side. Nearly all are such, so it is made short."""
    edges = _edges(component, [(0, 0)] if component.pushed and component.recorded else [], rules)
    if edges and edges[0].passes:
        return Pairing([Match(edges[0], None)], [], [], [])
    return Pairing(
        [],
        [],
        [_alone(call, []) for call in component.pushed],
        [_alone(call, []) for call in component.recorded],
    )


#: Pushed call → the records that it may be, and what the pair costs. Calls are told by their
#: places in a component.
_Row: TypeAlias = dict[int, int]
_Pair: TypeAlias = tuple[int, int]


def _rows(component: Component, rules: PairRules) -> list[_Row] | None:
    """For each pushed call the records with which it passes the gates; None if it is too much.

    The cost of a pair is told less that of leaving both alone, so it is below 0.
    """
    recorded, gate_ms, alone_ms = component.recorded, rules.gate_ms, _alone_ms(rules)
    if not recorded:
        return [{} for _ in component.pushed]
    # Those without a clock are by themselves.
    starts = [call.start_ms or 0 for call in recorded]
    spans = [
        range(
            bisect_left(starts, _start_ms(call) - gate_ms),
            bisect_right(starts, _start_ms(call) + gate_ms),
        )
        for call in component.pushed
    ]
    if sum(map(len, spans)) > MOST_LOOKS:
        return None
    rows = []
    for call, span in zip(component.pushed, spans, strict=True):
        sought = _sought(call)
        closed = None if sought is None else _OPPOSITE[sought]
        row: _Row = {}
        for index in span:
            record = recorded[index]
            if record.direction != closed and _agree(call, record, rules) is not False:
                duration_ms = _distance_ms(call.duration_ms, record.duration_ms)
                cost_ms = _cost_ms(abs(_start_ms(call) - starts[index]), duration_ms)
                row[index] = cost_ms - alone_ms
        rows.append(row)
    return rows


def _alone_ms(rules: PairRules) -> int:
    """What it costs that a pair is not made: more than any that can be."""
    return rules.gate_ms + _DURATION_MOST_MS + 1


def _together(pairs: Sequence[_Pair], rows: int, columns: int) -> Iterable[list[_Pair]]:
    """Pairs by which of them share calls, also by way of others."""
    clusters = _Clusters(rows + columns)
    for row, column in pairs:
        clusters.tie(row, rows + column)
    groups: defaultdict[int, list[_Pair]] = defaultdict(list)
    for row, column in pairs:
        groups[clusters.of(row)].append((row, column))
    return groups.values()


def _left_alone(
    component: Component, rows: Sequence[_Row], likely: Iterable[_Pair], rules: PairRules
) -> Pairing:
    """All calls that are in no pair that is likely."""
    pushed = dict(enumerate(component.pushed))
    recorded = dict(enumerate(component.recorded))
    for row, column in likely:
        pushed.pop(row, None)
        recorded.pop(column, None)
    suitors: defaultdict[int, list[_Pair]] = defaultdict(list)
    for row, costs in enumerate(rows):
        for column in recorded.keys() & costs.keys():
            suitors[column].append((row, column))
    pairing = Pairing([], [], [], [])
    for row, call in pushed.items():
        pairs = [(row, column) for column in rows[row]]
        pairing.alone_pushed.append(_alone(call, _edges(component, pairs, rules)))
    for column, call in recorded.items():
        pairing.alone_recorded.append(_alone(call, _edges(component, suitors[column], rules)))
    return pairing


def _alone(call: Candidate, edges: list[Edge]) -> Alone:
    reason: Lone = "outbid" if edges else "no_candidate"
    if call.start_ms is None:
        reason = "no_clock"
    elif not call.numbers:
        reason = "no_number"
    return Alone(call.id, reason, edges)


def _edges(component: Component, pairs: Iterable[_Pair], rules: PairRules) -> list[Edge]:
    edges = [
        compare(component.pushed[row], component.recorded[column], rules) for row, column in pairs
    ]
    return sorted(edges, key=lambda edge: (edge.pushed, edge.recorded))


def _near_tie(edges: list[Edge]) -> Group:
    return Group(
        pushed=sorted({edge.pushed for edge in edges}),
        recorded=sorted({edge.recorded for edge in edges}),
        edges=edges,
        reason="near_tie",
    )


def _too_many(component: Component) -> Pairing:
    group = Group(
        pushed=sorted(call.id for call in component.pushed),
        recorded=sorted(call.id for call in component.recorded),
        edges=[],
        reason="too_many",
    )
    return Pairing([], [group], [], [])


def _in_order(pairing: Pairing) -> Pairing:
    return Pairing(
        matched=sorted(pairing.matched, key=lambda match: match.edge.pushed),
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
