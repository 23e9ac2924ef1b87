"""What is known of a call of a pair now, and which calls of the other side it could be.

For those who ask: nothing is written, and nothing remembered. No I/O, and no clock of its own.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from consumers.reconcile.agents import Agent
from consumers.reconcile.conversations import Threads
from consumers.reconcile.entries import Entry, PairSetup
from consumers.reconcile.facts import CallFact, Fact, Mark
from consumers.reconcile.legs import Leg
from consumers.reconcile.matching import Candidate, Edge
from consumers.reconcile.pairs import Book, Pairs, next_to_each_other
from consumers.reconcile.verdicts import Rules
from schemas.event import Event

Key = tuple[str, str]

#: Of those that it cannot be, the nearest ones are named.
_SHUT_MOST = 3
#: Of those that it can be, likewise.
_OPEN_MOST = 10

#: What has changed is matched by then at the latest.
_MATCHED_MS = 600_000

_FOR_EVER_MS = 10**15


class Rival(Struct, kw_only=True):
    """A call of the other side."""

    connection: str
    call_ids: Sequence[str]
    pushed: Candidate
    recorded: Candidate
    edge: Edge
    #: ``taken``: it is the one. ``near``: it is as likely as others. ``crowd``: as many others.
    #: ``open``: it could be, but another choice is better. ``shut``: it cannot be.
    what: str
    #: If it is another's: whose.
    others: Sequence[str]


class Crowd(Struct, kw_only=True):
    """Calls that nobody can tell apart: how many, and how long all of them lasted."""

    pushed: int
    recorded: int
    pushed_s: float
    recorded_s: float


class Sight(Struct, kw_only=True):
    """A call as one side of a pair has it, and what stands against it."""

    setup: PairSetup
    entry: Entry
    rivals: Sequence[Rival]
    #: Milliseconds that the next best choice costs more; None if there is none to speak of.
    runner_up_ms: int | None
    crowd: Crowd | None
    #: What is to be said of it now, as the data of a verdict; None: it is not judged yet.
    said: Mapping[str, object] | None
    #: Up to where the recorded side was read that has to do with it, milliseconds since 1970.
    read_ms: int
    #: What is to pass before the call is judged, the log's clock; and the end up to which the list
    #: has to be read for it to be judged before. None: nothing, or it is judged.
    until_ms: int | None
    wants_ms: int | None


class Log(Struct):
    """Facts of calls that began about when the one did that is asked for."""

    legs: dict[Key, Leg] = {}
    threads: dict[str, Threads] = {}
    others: list[Fact] = []

    def add(self, fact: Fact) -> None:
        if not isinstance(fact, CallFact):
            self.others.append(fact)
            return
        call = fact.call
        key = fact.connection, call.call_id
        leg = self.legs.get(key)
        if leg is None:
            leg = self.legs[key] = Leg(connection=key[0], call_id=key[1], provider=fact.provider)
        leg.add(fact)
        threads = self.threads.setdefault(fact.connection, Threads())
        for ident in sorted({call.conversation_id, *call.related_call_ids}):
            if threads.fits(call.call_id, ident):
                threads.link(call.call_id, ident)

    def conversations(self) -> Iterator[tuple[str, str, list[Leg]]]:
        """Connection, name and legs of each."""
        found: defaultdict[Key, list[Leg]] = defaultdict(list)
        for (connection, call_id), leg in self.legs.items():
            found[connection, self.threads[connection].name(call_id)].append(leg)
        for (connection, name), legs in sorted(found.items()):
            yield connection, name, legs


def sights(
    log: Log, setups: Iterable[PairSetup], rules: Rules, call: Key, clock_ms: int
) -> list[Sight]:
    """What a call (connection, id) is on the sides of pairs on which it is, at the log's clock.

    However old it is, and whenever judging has begun.
    """
    desk = _Desk(log.legs)
    pairs = Pairs(desk, desk, rules, setups, since_ms=0, window_ms=_FOR_EVER_MS)
    for fact in sorted(log.others, key=lambda each: each.at_ms):
        if isinstance(fact, Mark):
            pairs.mark(fact, clock_ms)
        elif not isinstance(fact, CallFact):
            pairs.listed(fact)
    for connection, name, legs in log.conversations():
        pairs.refresh(connection, name, legs, clock_ms - _MATCHED_MS)
    desk.run(pairs, clock_ms)
    return [_sight(pairs, desk, book, entry) for book, entry in pairs.found(*call)]


def _sight(pairs: Pairs, desk: "_Desk", book: Book, entry: Entry) -> Sight:
    runner_up_ms = None
    if not entry.in_crowd:
        part = book.field.around(entry.ident, 4 * book.setup.rules.gate_ms)
        pairing = book.field.assign(part)
        for match in pairing.matched if pairing is not None else ():
            if entry.ident in (match.pushed, match.recorded):
                runner_up_ms = match.runner_up_ms
    # Of two that are one, the pushed one is judged.
    judged = entry
    if entry.fate is not None and entry.fate.kind == "matched" and not entry.is_pushed:
        judged = book.entries[entry.fate.others[0]]
    return Sight(
        setup=book.setup,
        entry=entry,
        rivals=list(_rivals(book, entry)),
        runner_up_ms=runner_up_ms,
        crowd=_crowd(book, entry) if entry.in_crowd else None,
        said=desk.said(book.side(judged), judged.call_ids),
        read_ms=pairs.read_up_to_ms(book, entry),
        until_ms=judged.judge_ms,
        wants_ms=judged.wants_ms,
    )


def _rivals(book: Book, entry: Entry) -> Iterator[Rival]:
    """The nearest ones: those that it can be, then those that it cannot."""
    others = (each for each in book.entries.values() if each.is_pushed != entry.is_pushed)
    compared = [(next_to_each_other(book, entry, other), other) for other in others]
    told = {True: 0, False: 0}
    for (pushed, recorded, edge), other in sorted(
        compared, key=lambda each: (_rank(each[0][2]), each[1].ident)
    ):
        told[edge.passes] += 1
        is_near = edge.gates["start"] is not False or edge.gates["numbers"] is not False
        most = _OPEN_MOST if edge.passes and not entry.in_crowd else _SHUT_MOST
        if told[edge.passes] > most or not is_near:
            continue
        yield Rival(
            connection=book.side(other),
            call_ids=other.call_ids,
            pushed=pushed,
            recorded=recorded,
            edge=edge,
            what=_what(edge, entry, other),
            others=_counterparts(book, other, entry),
        )


def _rank(edge: Edge) -> tuple[object, ...]:
    """Nearest first; of two that cannot be it, whatever fails less."""
    shut = [name for name, is_open in edge.gates.items() if is_open is False]
    start_ms = edge.start_distance_ms
    return len(shut), edge.cost_ms if start_ms is not None else 10**18


def _what(edge: Edge, entry: Entry, other: Entry) -> str:
    fate = entry.fate
    if fate is not None and other.ident in fate.others and fate.kind != "alone":
        return "taken" if fate.kind == "matched" else "near"
    if not edge.passes:
        return "shut"
    return "crowd" if entry.in_crowd else "open"


def _counterparts(book: Book, other: Entry, entry: Entry) -> Sequence[str]:
    """Whose it is, if it is somebody else's."""
    fate = other.fate
    if fate is None or fate.kind != "matched" or fate.others == [entry.ident]:
        return ()
    return book.entries[fate.others[0]].call_ids


def _crowd(book: Book, entry: Entry) -> Crowd:
    sums = {True: (0, 0), False: (0, 0)}
    for each in book.entries.values():
        if each.in_crowd and each.call.numbers == entry.call.numbers:
            count, length_ms = sums[each.is_pushed]
            sums[each.is_pushed] = count + 1, length_ms + (each.call.duration_ms or 0)
    return Crowd(
        pushed=sums[True][0],
        recorded=sums[False][0],
        pushed_s=sums[True][1] / 1000,
        recorded_s=sums[False][1] / 1000,
    )


class _Desk:
    """Where `Pairs` put their things down while somebody looks; nothing leaves it."""

    def __init__(self, legs: dict[Key, Leg]) -> None:
        self._legs = legs
        self._entries: dict[Key, Entry] = {}
        self._agents: dict[Key, Agent] = {}
        self._timers: list[tuple[int, Key]] = []
        #: What is said, by call.
        self._said: dict[Key, Mapping[str, object]] = {}

    def run(self, pairs: Pairs, clock_ms: int) -> None:
        while self._timers and self._timers[0][0] <= clock_ms:
            due_ms, key = heapq.heappop(self._timers)
            pairs.wake(key, due_ms)

    def said(self, connection: str, call_ids: Iterable[str]) -> Mapping[str, object] | None:
        """What was said last of one of these."""
        found = [self._said.get((connection, call_id)) for call_id in call_ids]
        return next((each for each in found if each is not None), None)

    def leg(self, key: Key) -> Leg | None:
        return self._legs.get(key)

    def put_leg(self, leg: Leg) -> None:
        self._legs[leg.connection, leg.call_id] = leg

    def entries(self) -> Iterable[Entry]:
        return self._entries.values()

    def put_entry(self, entry: Entry) -> None:
        self._entries[entry.key] = entry

    def drop_entry(self, key: Key) -> None:
        self._entries.pop(key, None)

    def agents(self) -> Iterable[Agent]:
        return self._agents.values()

    def put_agent(self, agent: Agent) -> None:
        self._agents[agent.connection, agent.agent_id] = agent

    def wake_pair(self, key: Key, due_ms: int) -> None:
        heapq.heappush(self._timers, (due_ms, key))

    def write_event(self, event: Event) -> None:
        self._said[event.connection, event.data["call_id"]] = event.data

    def tell_unread(self, connection: str, at_ms: int) -> None:
        pass

    def touch_leg(self, leg: Leg) -> None:
        pass

    def touch_conversation(self, key: Key) -> None:
        pass
