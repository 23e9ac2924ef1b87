"""Verdicts across a pair of connections that see the same calls. No I/O, and no clock of its own.

On the pushed side stand the legs of a conversation on which the same number of the pair stands:
one **entry**, since several legs of a call to a centre must not compete for one record. (If one
begins longer than the gate after the others have ended it is another call to the same number.) On
the recorded side each record is an entry. Entries that may be each other's are looked at together
(`matching`); what became of each is its **fate**. When there is nothing to wait for any more, the
fate is told as a verdict.

Everything is worked out at times of the log's clock that follow from the facts of those entries
alone. An entry that has changed is matched a second later, with all that changed meanwhile; the
later, the more candidates it has. Only those around it are matched, as far as what has changed
reaches: so a call more costs the same whether there were a hundred before it or a million. In a
crowd, where nobody can tell, nobody looks.

A verdict that a later one contradicts is void. Where both are of one call, the higher `n` says so;
else the later one names it in `revises`.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from consumers.reconcile.agents import Agents, AgentStore
from consumers.reconcile.conversations import ROW_EVERY_MS, Counterpart
from consumers.reconcile.entries import (
    Entry,
    Fate,
    Key,
    NumbersAt,
    PairSetup,
    by_connect,
    clock_ms,
    length_ms,
    numbers_of,
    pushed_entries,
    recorded_entries,
)
from consumers.reconcile.facts import Listed, Mark
from consumers.reconcile.legs import Leg, Paired
from consumers.reconcile.matching import (
    Candidate,
    Edge,
    Field,
    Pairing,
    Part,
    compare,
    nearest_legs,
)
from consumers.reconcile.verdicts import (
    ABSENCES,
    LIST_NOT_READ,
    Rules,
    Word,
    conversation_hint,
    difference,
    fields_of,
)
from ingest.derived import derived_event
from ingest.fields import by_size
from schemas.event import Event, digest, id_part
from schemas.times import rfc3339

#: What has changed is matched after so long, times the number of its candidates: so of calls that
#: come one after another, each with a look at the same ones, many are looked at together.
MATCH_EVERY_MS = 1_000

#: An entry is dropped so long after it is not judged any more: its counterpart goes last.
_LINGER_MS = 3_600_000

#: A verdict names so many candidates at most, the nearest ones.
MAX_CANDIDATES = 10


class Store(AgentStore, Protocol):
    """What pairs ask of the core's store."""

    def leg(self, key: Key) -> Leg | None: ...
    def put_leg(self, leg: Leg) -> None: ...
    def entries(self) -> Iterable[Entry]: ...
    def put_entry(self, entry: Entry) -> None: ...
    def drop_entry(self, key: Key) -> None: ...


class Host(Protocol):
    """What pairs ask of the core."""

    def wake_pair(self, key: Key, due_ms: int) -> None:
        """Call `Pairs.wake` then."""
        ...

    def write_event(self, event: Event) -> None: ...

    def tell_unread(self, connection: str, at_ms: int) -> None:
        """Nobody has read that hour of its list in time: let it be read at once."""
        ...

    def touch_leg(self, leg: Leg) -> None:
        """Write its conversation's row soon, and hand it to `Pairs.refresh`."""
        ...

    def touch_conversation(self, key: Key) -> None:
        """The same for one that is known by its name, if there still is one."""
        ...


class Book:
    """The entries of one pair of connections, by what they are looked up by."""

    def __init__(self, setup: PairSetup) -> None:
        self.setup = setup
        self.entries: dict[str, Entry] = {}
        #: (connection, call id) → idents.
        self.of_leg: dict[Key, str] = {}
        self.field = Field(setup.rules)
        #: Number of the agent → (end, ident) of what waits until the list was read up to there.
        self.waiting: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)

    def side(self, entry: Entry) -> str:
        """The connection that it is of."""
        return self.setup.pushed if entry.is_pushed else self.setup.recorded

    def add(self, entry: Entry) -> None:
        self.entries[entry.ident] = entry
        for call_id in entry.call_ids:
            self.of_leg[self.side(entry), call_id] = entry.ident

    def remove(self, entry: Entry) -> None:
        del self.entries[entry.ident]
        for call_id in entry.call_ids:
            if self.of_leg.get((self.side(entry), call_id)) == entry.ident:
                del self.of_leg[self.side(entry), call_id]

    def wait(self, number: str, end_ms: int, ident: str) -> None:
        """Until whoever has that number was read up to there. Who waits no more is let go."""
        waiting = self.waiting[number]
        while waiting and not self._waits(*waiting[0]):
            heapq.heappop(waiting)
        heapq.heappush(waiting, (end_ms, ident))

    def read(self, number: str, up_to_ms: int) -> Iterator[Entry]:
        """Those that have waited for that."""
        waiting = self.waiting.get(number, [])
        while waiting and waiting[0][0] <= up_to_ms:
            end_ms, ident = heapq.heappop(waiting)
            if self._waits(end_ms, ident):
                yield self.entries[ident]

    def _waits(self, end_ms: int, ident: str) -> bool:
        entry = self.entries.get(ident)
        return entry is not None and entry.wants_ms == end_ms


class Pairs:
    """All pairs of some connections. To be told of facts, rows and times as `core.Core` is."""

    def __init__(
        self,
        store: Store,
        host: Host,
        rules: Rules,
        setups: Iterable[PairSetup],
        *,
        since_ms: int,
        window_ms: int,
    ) -> None:
        self._store = store
        self._host = host
        self._rules = rules
        self._since_ms = since_ms
        self._window_ms = window_ms
        self._books = {setup.name: Book(setup) for setup in setups}
        self._recorded = {book.setup.recorded for book in self._books.values()}
        self._agents = Agents(store)
        #: Connection and number → names of the conversations on which it stands.
        self._having: defaultdict[Key, set[str]] = defaultdict(set)

    def restore(self) -> None:
        """Go on with what the store has."""
        if not self._books:
            return
        self._agents.restore()
        for entry in self._store.entries():
            book = self._books.get(entry.pair)
            if book is None:
                continue
            book.add(entry)
            book.field.put_again(entry.legs, is_pushed=entry.is_pushed, is_crowd=entry.in_crowd)
            if entry.wants_ms is not None and entry.call.agent_number is not None:
                book.wait(entry.call.agent_number, entry.wants_ms, entry.ident)
            if entry.wake_ms is not None:
                self._host.wake_pair(entry.key, entry.wake_ms)

    def forget(self, connection: str, call_ids: Iterable[str]) -> None:
        """The store has dropped these legs."""
        for call_id in call_ids:
            for book in self._books.values():
                ident = book.of_leg.get((connection, call_id))
                if ident is not None:
                    self._forget(book, book.entries[ident])

    def found(self, connection: str, call_id: str) -> Iterator[tuple[Book, Entry]]:
        """What a call is on the sides that it is on."""
        for book in self._books.values():
            ident = book.of_leg.get((connection, call_id))
            if ident is not None:
                yield book, book.entries[ident]

    # Facts

    def know(self, connection: str, name: str, numbers: Iterable[str]) -> None:
        """These stand on a conversation. `refresh` has said so."""
        for number in numbers:
            self._having[connection, number].add(name)

    def lose(self, connection: str, name: str, numbers: Iterable[str]) -> None:
        for number in numbers:
            names = self._having.get((connection, number), set())
            names.discard(name)
            if not names:
                self._having.pop((connection, number), None)

    def listed(self, listed: Listed) -> None:
        """An agent has these numbers: conversations with them may be calls of a pair."""
        if listed.connection not in self._recorded:
            return
        fresh = self._agents.listed(listed)
        for book in self._books.values():
            if book.setup.recorded != listed.connection or book.setup.numbers:
                continue
            for connection in (book.setup.pushed, book.setup.recorded):
                names = {n for number in fresh for n in self._having.get((connection, number), ())}
                for name in sorted(names):
                    self._host.touch_conversation((connection, name))

    def mark(self, mark: Mark, clock_ms: int) -> None:
        """A recorded side, or one of its agents, was read up to there."""
        if mark.connection not in self._recorded:
            return
        agent = self._agents.mark(mark)
        read_ms = max(agent.near_ms, agent.swept_ms)
        for book in self._books.values():
            if book.setup.recorded == mark.connection:
                for number in sorted(agent.numbers if mark.agent_id else book.waiting):
                    self._look_at_waiting(book, number, read_ms, clock_ms)

    def _look_at_waiting(self, book: Book, number: str, read_ms: int, clock_ms: int) -> None:
        passed, later = [], []
        for entry in book.read(number, read_ms):
            assert entry.end_ms is not None
            if self._passed(book, entry):
                passed.append(entry)
            else:
                later.append(entry)
        for entry in later:
            book.wait(number, entry.end_ms or 0, entry.ident)
        for entry in passed:
            # Whatever it was sure of, it was not of what has come with this mark.
            entry.sure_ms = None
            self._judge(book, entry, clock_ms)

    def read_up_to_ms(self, book: Book, entry: Entry) -> int:
        """How far its record would have been read by now."""
        near_ms, swept_ms = self._agents.read_up_to(
            book.setup.recorded, entry.call.agent_number, entry.started_ms
        )
        if entry.end_ms is not None and entry.end_ms - entry.started_ms > book.setup.overlap_ms:
            return swept_ms
        return max(near_ms, swept_ms)

    def _passed(self, book: Book, entry: Entry) -> bool:
        """Whether its record would have been read."""
        assert entry.end_ms is not None
        return self.read_up_to_ms(book, entry) >= entry.end_ms

    # Entries

    def refresh(self, connection: str, name: str, legs: Sequence[Leg], clock_ms: int) -> set[str]:
        """A conversation has changed: what it comes to on the sides that it is on.

        Returns the numbers that stand on it, for `know`.
        """
        may_be: set[str] = set()
        for book in self._books.values():
            if connection in (book.setup.pushed, book.setup.recorded):
                make = pushed_entries if connection == book.setup.pushed else recorded_entries
                made = make(book.setup, self._numbers_at(book.setup), name, legs)
                entries = {entry.ident: entry for entry in made}
                before = {book.of_leg.get((connection, leg.call_id)) for leg in legs}
                for ident in sorted({ident for ident in before if ident} - set(entries)):
                    self._drop(book, book.entries[ident], clock_ms)
                for entry in entries.values():
                    self._put(book, entry, clock_ms)
                if not book.setup.numbers:
                    may_be |= {number for leg in legs for number in numbers_of(leg)}
        self.know(connection, name, may_be)
        return may_be

    def _numbers_at(self, setup: PairSetup) -> NumbersAt:
        if setup.numbers:
            return lambda _: setup.numbers
        return partial(self._agents.numbers_at, setup.recorded)

    def _put(self, book: Book, entry: Entry, clock_ms: int) -> None:
        known = book.entries.get(entry.ident)
        moved = known is None or known.legs != entry.legs
        if known is not None:
            if _looks(known) == _looks(entry):
                return
            if moved:
                self._take_out(book, known, clock_ms)
            book.remove(known)
            entry.fate, entry.in_crowd = known.fate, known.in_crowd
            entry.match_ms, entry.judge_ms = known.match_ms, known.judge_ms
            entry.wants_ms, entry.wake_ms = known.wants_ms, known.wake_ms
        book.add(entry)
        if moved:
            entry.in_crowd = False
            joined = book.field.put(entry.legs, is_pushed=entry.is_pushed)
            self._crowd_in(book, joined, clock_ms)
        self._disturb(book, [entry.ident], clock_ms)

    def _drop(self, book: Book, entry: Entry, clock_ms: int) -> None:
        self._take_out(book, entry, clock_ms)
        book.remove(entry)
        self._store.drop_entry(entry.key)

    def _take_out(self, book: Book, entry: Entry, clock_ms: int) -> None:
        """It is not there any more: whoever has to do with it is matched again."""
        ties = book.field.ties(entry.ident)
        book.field.remove(entry.ident)
        self._disturb(book, ties, clock_ms)

    def _forget(self, book: Book, entry: Entry) -> None:
        """It has become too old, and whoever has to do with it as well."""
        book.field.remove(entry.ident)
        book.remove(entry)
        self._store.drop_entry(entry.key)

    def _crowd_in(self, book: Book, idents: Iterable[str], clock_ms: int) -> None:
        """These are in a crowd since."""
        idents = sorted(idents)
        for ident in idents:
            book.entries[ident].in_crowd = True
        self._disturb(book, idents, clock_ms)

    def _disturb(self, book: Book, idents: Iterable[str], clock_ms: int) -> None:
        """These have to be matched again, with all that they have to do with."""
        for ident in idents:
            entry = book.entries[ident]
            due_ms = clock_ms + MATCH_EVERY_MS * max(1, len(book.field.ties(ident)))
            if entry.match_ms is None or entry.match_ms > due_ms:
                entry.match_ms = due_ms
            self._sleep(entry)

    def _sleep(self, entry: Entry) -> None:
        """Remember it, and wake it when something is due: at last, to drop it."""
        due = [each for each in (entry.match_ms, entry.judge_ms) if each is not None]
        wake_ms = min(due, default=self._too_old_ms(entry))
        if wake_ms != entry.wake_ms:
            self._host.wake_pair(entry.key, wake_ms)
        entry.wake_ms = wake_ms
        self._store.put_entry(entry)

    def wake(self, key: Key, due_ms: int) -> None:
        """What has become due of an entry."""
        book = self._books.get(key[0])
        entry = None if book is None else book.entries.get(key[1])
        if book is None or entry is None or entry.wake_ms != due_ms:
            return
        entry.wake_ms = None
        if entry.match_ms is not None and entry.match_ms <= due_ms:
            self._match(book, entry, due_ms)
        elif entry.judge_ms is not None and entry.judge_ms <= due_ms:
            self._judge(book, entry, due_ms)
        else:
            self._forget(book, entry)

    def _too_old_ms(self, entry: Entry) -> int:
        """When nothing can be said of it any more; what is said of its legs stays with them."""
        end_ms = entry.started_ms if entry.end_ms is None else entry.end_ms
        return end_ms + self._window_ms + _LINGER_MS

    # Matching

    def _match(self, book: Book, entry: Entry, clock_ms: int) -> None:
        fates = {entry.ident: _CROWDED} if entry.in_crowd else self._fates(book, entry, clock_ms)
        changed: set[str] = set()
        for ident, fate in fates.items():
            each = book.entries[ident]
            if each.match_ms is None and each.fate == fate:
                continue
            changed.add(ident)
            each.fate, each.match_ms = fate, None
            self._sleep(each)
        # What it is matched with has not changed itself; but what is to be said of both has.
        changed |= {
            other
            for ident in changed
            if fates[ident].kind == "matched"
            for other in fates[ident].others
        }
        # Those first that take others' places.
        order = {"matched": 0, "ambiguous": 1, "alone": 2}
        kinds = {ident: _kind(book.entries[ident]) for ident in changed}
        for ident in sorted(changed, key=lambda ident: (order[kinds[ident]], ident)):
            each = book.entries[ident]
            if kinds[ident] != "matched" or each.is_pushed:
                self._judge(book, each, clock_ms)
            else:
                each.judge_ms = each.wants_ms = None
                self._sleep(each)

    def _fates(self, book: Book, entry: Entry, clock_ms: int) -> dict[str, Fate]:
        """What becomes of it, and of all of whom that decides anything.

        If what has changed reaches farther than was looked, it is looked at from farther.
        """
        gate_ms, reach_ms = book.setup.rules.gate_ms, book.field.reach_ms
        while True:
            # Those that may change, and as much around them that it is known what becomes of them.
            part = book.field.around(entry.ident, 2 * reach_ms)
            pairing = book.field.assign(part, within_ms=0)
            if pairing is None:
                joined = book.field.make_crowd([*part.pushed, *part.recorded])
                self._crowd_in(book, joined, clock_ms)
                return {entry.ident: _CROWDED}
            fates = _fates(book, part, pairing)
            if part.is_whole:
                return fates
            if _ends_within(book, part, fates, reach_ms, 2 * reach_ms - gate_ms):
                return {
                    ident: fate for ident, fate in fates.items() if part.far_ms[ident] <= reach_ms
                }
            reach_ms *= 2

    # Verdicts

    def _judge(self, book: Book, entry: Entry, clock_ms: int) -> None:
        """Say what became of it, or when to ask again."""
        sure_ms = entry.sure_ms
        entry.judge_ms = entry.wants_ms = entry.sure_ms = None
        if entry.fate is not None:
            if entry.fate.kind == "matched":
                self._judge_matched(book, entry, entry.fate, sure_ms, clock_ms)
            elif entry.end_ms is not None and self._counts(entry, clock_ms):
                self._judge_alone(book, entry, entry.end_ms, entry.fate, sure_ms, clock_ms)
        self._sleep(entry)

    def _counts(self, entry: Entry, clock_ms: int) -> bool:
        """Whether it is judged at all. What is older than the window is as it is."""
        end_ms = entry.started_ms if entry.end_ms is None else entry.end_ms
        return entry.started_ms >= self._since_ms and end_ms >= clock_ms - self._window_ms

    def _judge_matched(
        self, book: Book, pushed: Entry, fate: Fate, sure_ms: int | None, clock_ms: int
    ) -> None:
        recorded = book.entries.get(fate.others[0])
        if recorded is None or not all(self._counts(e, clock_ms) for e in (pushed, recorded)):
            return
        ends = [each.end_ms for each in (pushed, recorded) if each.end_ms is not None]
        if not ends:
            return
        both = len(ends) > 1
        due_ms = min(ends) + (self._rules.settle_ms if both else self._rules.hold_max_ms)
        if clock_ms < due_ms:
            pushed.judge_ms = due_ms
            return
        if pushed.match_ms is not None or recorded.match_ms is not None:
            return  # it is judged then
        leg, record = self._nearest_leg(book, pushed, recorded), self._record(book, recorded)
        if leg is None or record is None:
            return
        if not both and not self._is_sure(book, pushed, sure_ms, clock_ms):
            return
        if pushed.end_ms is None:
            reason = "ending_missing" if leg.pushed is not None else "never_pushed"
            self._give(book, pushed, recorded, leg, "push_missing", reason, clock_ms)
        elif recorded.end_ms is None:
            self._give(book, pushed, recorded, leg, "record_missing", "still_running", clock_ms)
        else:
            found = self._differences(book, leg, record, recorded)
            was_absent = any(
                paired is not None and paired.was_absent
                for paired in (
                    leg.paired.get(book.setup.recorded),
                    record.paired.get(book.setup.pushed),
                )
            )
            word: Word = "mismatch" if found else "late" if was_absent else "matched"
            said = fields_of(found) or None
            self._give(book, pushed, recorded, leg, word, said, clock_ms, differences=found)

    def _judge_alone(
        self,
        book: Book,
        entry: Entry,
        end_ms: int,
        fate: Fate,
        sure_ms: int | None,
        clock_ms: int,
    ) -> None:
        hold_ms = end_ms + self._rules.hold_max_ms
        due_ms = hold_ms if fate.held else end_ms + self._rules.settle_ms
        if clock_ms < due_ms:
            entry.judge_ms = due_ms
            return
        pushed, recorded = (entry, None) if entry.is_pushed else (None, entry)
        leg = self._first_leg(book, entry)
        if leg is None:
            return
        word, reason = self._word_alone(book, entry, fate)
        if reason == LIST_NOT_READ:
            self._wait_for_list(book, entry, end_ms)
            if clock_ms < hold_ms:
                entry.judge_ms = hold_ms
                return
        if not self._is_sure(book, entry, sure_ms, clock_ms):
            return
        entry.wants_ms = None
        if reason == LIST_NOT_READ:
            self._host.tell_unread(book.setup.recorded, entry.started_ms)
        self._give(
            book,
            pushed,
            recorded,
            leg,
            word,
            reason,
            clock_ms,
            candidates=self._candidates(book, entry, fate),
        )

    def _word_alone(self, book: Book, entry: Entry, fate: Fate) -> tuple[Word, str | None]:
        """What is to be said of one without a counterpart now, and why."""
        if fate.kind == "ambiguous":
            return "ambiguous", fate.reason
        if not entry.is_pushed:
            return "push_missing", "never_pushed" if fate.reason == _NONE else fate.reason
        if not self._passed(book, entry):
            return "record_missing", LIST_NOT_READ
        return "record_missing", "not_listed" if fate.reason == _NONE else fate.reason

    def _wait_for_list(self, book: Book, entry: Entry, end_ms: int) -> None:
        """Judge it once the list was read up to its end, if that is soon enough."""
        entry.wants_ms = end_ms
        if entry.call.agent_number is not None:
            book.wait(entry.call.agent_number, end_ms, entry.ident)

    def _is_sure(self, book: Book, entry: Entry, sure_ms: int | None, clock_ms: int) -> bool:
        """Whether all that has come until now was compared with it; if not, it is judged then.

        A list's records and the mark behind them come at once, but a call is looked at when its row
        is written, and matched a moment after that. ``sure_ms``: when such rows are written of what
        had come when it was asked first; None if this is the first time.
        """
        if sure_ms is None:
            sure_ms = clock_ms + ROW_EVERY_MS + 1
        if clock_ms < sure_ms:
            entry.judge_ms = entry.sure_ms = sure_ms
            return False
        if self._is_to_be_matched(book, entry):
            entry.match_ms, entry.sure_ms = clock_ms, sure_ms
            return False
        return True

    def _is_to_be_matched(self, book: Book, entry: Entry) -> bool:
        """Whether it has changed, or somebody whom `_match` would look at with it."""
        if entry.match_ms is not None:
            return True
        if not book.field.ties(entry.ident):
            return False
        reach_ms = book.field.reach_ms
        far_ms = book.field.around(entry.ident, reach_ms).far_ms
        return any(
            book.entries[ident].match_ms is not None
            for ident, each_ms in far_ms.items()
            if each_ms <= reach_ms
        )

    def _nearest_leg(self, book: Book, pushed: Entry, recorded: Entry) -> Leg | None:
        """The one that is told of: that of which the connect is nearest to the record's start."""
        start_ms = recorded.call.start_ms or 0
        return min(
            self._legs(book, pushed),
            key=lambda leg: (
                abs((clock_ms(leg.truth, book.setup) or 0) - start_ms),
                by_size(leg.call_id),
            ),
            default=None,
        )

    def _first_leg(self, book: Book, entry: Entry) -> Leg | None:
        """The one that is told of: that of which something was told already, or the first."""
        other = book.setup.recorded if entry.is_pushed else book.setup.pushed
        legs = self._legs(book, entry)
        told = [
            leg for leg in legs if (paired := leg.paired.get(other)) is not None and paired.stands
        ]
        return min(told or legs, key=by_connect, default=None)

    def _legs(self, book: Book, entry: Entry) -> list[Leg]:
        found = (self._store.leg((book.side(entry), call_id)) for call_id in entry.call_ids)
        return [leg for leg in found if leg is not None]

    def _record(self, book: Book, entry: Entry) -> Leg | None:
        return self._store.leg((book.setup.recorded, entry.call_ids[0]))

    def _differences(
        self, book: Book, leg: Leg, record: Leg, recorded: Entry
    ) -> list[dict[str, Any]]:
        """What the two tell differently. A direction that differs has kept them apart already.

        Each side's row in the ledger keeps what its side says.
        """
        found = []
        setup, rules, side = book.setup, self._rules, leg.truth
        start_ms, record_ms = clock_ms(side, setup), recorded.call.start_ms
        if start_ms is not None and record_ms is not None:
            apart_ms = abs(start_ms - record_ms)
            if apart_ms > rules.start_tolerance_ms:
                name = "connected_at" if side.connected_ms is not None else "started_at"
                found.append(
                    difference(
                        "ended_at" if setup.from_end else name,
                        rfc3339(start_ms),
                        rfc3339(record_ms),
                        rules.start_tolerance_ms / 1000,
                        taken=rfc3339(start_ms),
                    )
                )
        ours_ms, theirs_ms = length_ms(side, setup), recorded.call.duration_ms
        if ours_ms is not None and theirs_ms is not None:
            ours, theirs = ours_ms / 1000, theirs_ms / 1000
            tolerance_s = max(
                rules.duration_tolerance_s, rules.duration_tolerance_ratio * max(ours, theirs)
            )
            if abs(ours - theirs) > tolerance_s:
                name = "connected_duration_s" if setup.from_connect else "total_duration_s"
                found.append(difference(name, ours, theirs, round(tolerance_s, 3), taken=ours))
        return found

    def _candidates(self, book: Book, entry: Entry, fate: Fate) -> list[dict[str, Any]]:
        found = []
        for ident in fate.others:
            other = book.entries.get(ident)
            if other is None:
                continue
            leg = self._first_leg(book, other)
            *_, edge = next_to_each_other(book, entry, other)
            distances = {
                "start_s": edge.start_distance_ms,
                "duration_s": edge.duration_distance_ms,
            }
            found.append(
                {
                    "call_id": other.call_ids[0] if leg is None else leg.call_id,
                    "connection": book.side(other),
                    "gates": {k: v for k, v in sorted(edge.gates.items()) if v is not None},
                    "distances": {k: v / 1000 for k, v in distances.items() if v is not None},
                }
            )
        return found

    def _give(
        self,
        book: Book,
        pushed: Entry | None,
        recorded: Entry | None,
        leg: Leg,
        word: Word,
        reason: str | None,
        clock_ms: int,
        *,
        differences: Sequence[Mapping[str, Any]] = (),
        candidates: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Say it, unless it was said already; ``leg``: of which it is said."""
        setup = book.setup
        other = setup.recorded if pushed is not None else setup.pushed
        record = None if recorded is None else self._record(book, recorded)
        started = [
            each.truth.started_ms
            for each in (leg, record)
            if each is not None and each.truth.started_ms is not None
        ]
        data: dict[str, Any] = {
            "verdict": word,
            "call_id": leg.call_id,
            "conversation_id": conversation_hint(leg),
            "pushed_call_id": None if pushed is None else leg.call_id,
            "recorded_call_id": None if record is None else record.call_id,
            "pushed_connection": setup.pushed,
            "recorded_connection": setup.recorded,
            "started_at": rfc3339(started[0]) if started else None,
            "reason": reason,
            "differences": list(differences),
            "candidates": list(candidates),
        }
        said = digest(data)
        mine = leg.paired.setdefault(other, Paired())
        void = self._contradicted(book, pushed, record, leg)
        if not void and mine.stands is not None and mine.stands == mine.id and mine.said == said:
            return
        revised: list[str | None] = [*void] or [mine.id]
        for revises in revised:
            mine.n += 1
            told = {**data, "n": mine.n, "revises": revises}
            ident = (
                leg.connection,
                leg.call_id,
                setup.recorded,
                str(mine.n),
                digest(told),
            )
            event = derived_event(
                leg.connection,
                f"verdict.{word}",
                "verdict:" + ":".join(map(id_part, ident)),
                subject=f"call/{leg.call_id}",
                key=f"{leg.connection}/{leg.call_id}",
                at_ms=clock_ms,
                data=told,
            )
            self._host.write_event(event)
            mine.id = event.id
        for each in [] if pushed is None else self._legs(book, pushed):
            if each.call_id != leg.call_id and (theirs := each.paired.get(other)) is not None:
                self._part(book, each, other, clock_ms)
                theirs.stands = None
                self._store.put_leg(each)
        if record is None or mine.counterpart != record.call_id:
            self._part(book, leg, other, clock_ms)
        mine.said, mine.stands = said, mine.id
        mine.was_absent |= word in ABSENCES
        if record is None or record is leg:
            mine.counterpart = None
        else:
            theirs = record.paired.setdefault(setup.pushed, Paired())
            if theirs.counterpart != leg.call_id:
                self._part(book, record, setup.pushed, clock_ms)
            theirs.stands = mine.id
            theirs.was_absent |= word in ABSENCES
            mine.counterpart, theirs.counterpart = record.call_id, leg.call_id
            self._store.put_leg(record)
            self._host.touch_leg(record)
        self._store.put_leg(leg)
        self._host.touch_leg(leg)

    def _contradicted(
        self, book: Book, pushed: Entry | None, record: Leg | None, leg: Leg
    ) -> list[str]:
        """Verdicts that stand so far for one of the two, under other calls' names."""
        legs = [] if pushed is None else self._legs(book, pushed)
        standing = [(each.connection, each.paired.get(book.setup.recorded)) for each in legs]
        if record is not None:
            standing.append((record.connection, record.paired.get(book.setup.pushed)))
        mine = leg.paired.get(
            book.setup.recorded if leg.connection == book.setup.pushed else book.setup.pushed
        )
        own = None if mine is None else mine.id
        found = {paired.stands for _, paired in standing if paired is not None and paired.stands}
        return sorted(found - {own})

    def _part(self, book: Book, leg: Leg, other: str, clock_ms: int) -> None:
        """It has no counterpart any more, and what was said of both stands for neither."""
        paired = leg.paired.get(other)
        if paired is None or paired.counterpart is None:
            return
        was = self._store.leg((other, paired.counterpart))
        paired.counterpart = paired.stands = None
        theirs = None if was is None else was.paired.get(leg.connection)
        if was is None or theirs is None or theirs.counterpart != leg.call_id:
            return
        theirs.counterpart = theirs.stands = None
        self._store.put_leg(was)
        self._host.touch_leg(was)
        ident = book.of_leg.get((other, was.call_id))
        if ident is not None:
            self._disturb(book, [ident], clock_ms)


#: `matching`'s word for a call without any candidate.
_NONE = "no_candidate"


def standing(legs: Iterable[Leg]) -> tuple[list[str], list[Counterpart]]:
    """What the ledger tells of pairs: verdicts that stand, and the same calls elsewhere."""
    verdicts, counterparts = [], []
    for leg in legs:
        for other, paired in leg.paired.items():
            if paired.stands is not None:
                verdicts.append(paired.stands)
            if paired.counterpart is not None:
                counterparts.append(Counterpart(other, paired.counterpart))
    return verdicts, counterparts


def _looks(entry: Entry) -> tuple[Any, ...]:
    call = entry.call, entry.otherwise, entry.started_ms, entry.end_ms
    return entry.conversation, entry.call_ids, *call


def next_to_each_other(book: Book, one: Entry, other: Entry) -> tuple[Candidate, Candidate, Edge]:
    """Two entries of a pair, the pushed one first: the legs that stand for them."""
    pushed, recorded = (one, other) if one.is_pushed else (other, one)
    legs = nearest_legs(pushed.legs, recorded.legs, book.setup.rules)
    return *legs, compare(*legs, book.setup.rules)


#: Of those in a crowd.
_CROWDED = Fate(kind="ambiguous", reason="too_many")


def _kind(entry: Entry) -> str:
    assert entry.fate is not None
    return entry.fate.kind


def _fates(book: Book, part: Part, pairing: Pairing) -> dict[str, Fate]:
    """What becomes of each of those that have to do with each other."""

    def runs(idents: Iterable[str]) -> bool:
        return any(book.entries[ident].end_ms is None for ident in idents)

    def nearest(ident: str, others: Iterable[str]) -> list[str]:
        costs = part.costs[ident]
        return sorted(others, key=lambda other: (costs[other], other))[:MAX_CANDIDATES]

    fates: dict[str, Fate] = {}
    for match in pairing.matched:
        fates[match.pushed] = Fate(kind="matched", others=[match.recorded])
        fates[match.recorded] = Fate(kind="matched", others=[match.pushed])
    for group in pairing.ambiguous:
        others: defaultdict[str, list[str]] = defaultdict(list)
        for pushed, recorded in group.pairs:
            others[pushed].append(recorded)
            others[recorded].append(pushed)
        held = runs(others)
        for ident, of_one in others.items():
            fates[ident] = Fate(
                kind="ambiguous", others=nearest(ident, of_one), reason="near_tie", held=held
            )
    for alone in (*pairing.alone_pushed, *pairing.alone_recorded):
        fates[alone.id] = Fate(
            kind="alone",
            others=nearest(alone.id, alone.others),
            reason=alone.reason,
            held=runs(alone.others),
        )
    return fates


def _ends_within(
    book: Book, part: Part, fates: Mapping[str, Fate], inner_ms: int, sure_ms: int
) -> bool:
    """Whether nothing changes for those that start farther away than ``inner_ms``.

    ``sure_ms``: of those beyond, not all candidates are known.
    """
    for ident, far_ms in part.far_ms.items():
        before, now = book.entries[ident].fate, fates[ident]
        if before == now or far_ms > sure_ms:
            continue
        if far_ms > inner_ms:
            return False
        told = [fate for fate in (before, now) if fate is not None and fate.kind != "alone"]
        if any(part.far_ms.get(other, 0) > inner_ms for fate in told for other in fate.others):
            return False
    return True
