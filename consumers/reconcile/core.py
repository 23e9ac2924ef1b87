"""Reconciliation as a function: facts in, records out, and when to be woken. No I/O, and no clock.

Facts come in the order of the log's clock. Between two of them everything that has become due is
worked off at the time at which it became due, so what comes out is a function of the facts alone:
whoever reads the same log writes the same, byte for byte, however it was cut into reads.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from consumers.reconcile.agents import Agent
from consumers.reconcile.completeness import (
    HOUR_MS,
    Hour,
    completeness_event,
    share_of,
)
from consumers.reconcile.conversations import (
    ROW_EVERY_MS,
    Counterpart,
    Threads,
    complete_at_ms,
    encode_row,
    ledger_row,
)
from consumers.reconcile.entries import Entry, PairSetup
from consumers.reconcile.envelope import derived_record
from consumers.reconcile.facts import CallFact, Fact, Mark, ms_of
from consumers.reconcile.legs import ARTEFACTS, BACKFILLED, Leg
from consumers.reconcile.pairs import Pairs, standing
from consumers.reconcile.verdicts import (
    ABSENCES,
    LIST_NOT_READ,
    Judgement,
    Rules,
    Wait,
    judge,
    mended_ending,
    verdict_record,
)
from ingest.eventlog.log import Record, records_of
from ingest.gaps import gap_event
from schemas.event import CONTENT_TYPE, Event, digest_of_bytes, id_part

#: An hour is measured again so often at most.
HOUR_EVERY_MS = 60_000

Kind: TypeAlias = Literal["hour", "leg", "pair", "row"]
"""What becomes due; at one time in this order: hours, legs, entries of pairs, rows."""

Key: TypeAlias = tuple[str, str]
"""Connection, and what it is within it."""


class Conversation(Struct, kw_only=True, array_like=True, gc=False):
    """What is remembered of a conversation beside its legs."""

    connection: str
    #: The smallest id that any of its legs names.
    name: str
    #: Every id that belongs to it, heard of or only named, and those that were heard of.
    idents: tuple[str, ...] = ()
    call_ids: tuple[str, ...] = ()
    #: Numbers on its legs that may become those of a pair, see `Pairs.refresh`.
    numbers: tuple[str, ...] = ()
    #: Names that it had, or that others had which it has taken in.
    merged_from: tuple[str, ...] = ()
    #: When it was heard of last, by the log's clock.
    heard_ms: int = 0
    #: What is odd about it beside what is odd about its legs.
    flags: tuple[str, ...] = ()
    #: Digest of the row that was written last, and whether that was a complete one.
    said: str = ""
    complete: bool = False
    #: Names under which rows were written that are none any more.
    to_bury: tuple[str, ...] = ()
    wake_ms: int | None = None


class Store(Protocol):
    """Where what is remembered lies. Whatever was got or put may be changed and put again."""

    def leg(self, key: Key) -> Leg | None: ...
    def put_leg(self, leg: Leg) -> None: ...
    def conversation(self, key: Key) -> Conversation | None: ...
    def put_conversation(self, conversation: Conversation) -> None: ...
    def drop_conversation(self, key: Key) -> None: ...
    def hour(self, key: Key) -> Hour | None: ...
    def put_hour(self, hour: Hour) -> None: ...
    def entries(self) -> Iterable[Entry]: ...
    def put_entry(self, entry: Entry) -> None: ...
    def drop_entry(self, key: Key) -> None: ...
    def agents(self) -> Iterable[Agent]: ...
    def put_agent(self, agent: Agent) -> None: ...


class Watermark(Struct, kw_only=True):
    """How far a connection's own list was read."""

    #: All calls that ended before it, and lasted no longer than the near pass reaches back.
    near_ms: int = 0
    #: All calls that ended before it.
    swept_ms: int = 0


class Core:
    """The reconciliation of connections that have to do with each other.

    Hand in facts with `take`, in the order of the log's clock; say with `advance` how far that has
    come. What is to be written gathers in `out`.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        *,
        connections: Iterable[str],
        judged: Mapping[str, int],
        since_ms: int,
        window_ms: int,
        pairs: Iterable[PairSetup] = (),
    ) -> None:
        """Whose conversations are kept, and whose calls are judged.

        ``judged``: connections that are both pushed and read back → how far a near pass reaches
        back, in milliseconds. Calls that began before ``since_ms`` are not judged. What is older
        than ``window_ms`` is not begun any more.
        """
        self._store = store
        self._rules = rules
        self._connections = frozenset(connections)
        self._judged = judged
        self._since_ms = since_ms
        self._window_ms = window_ms
        #: Of calls that began before, some of the facts may be lost to us.
        self.floor_ms = 0
        #: Facts of calls that had been forgotten, or were never known whole.
        self.too_late = 0
        #: The log's clock: everything that was due until then was worked off.
        self.clock_ms = 0
        #: Taken and emptied by whoever writes them.
        self.out: list[Record] = []
        self.watermarks: dict[str, Watermark] = {}
        self._threads: dict[str, Threads] = {name: Threads() for name in self._connections}
        self._timers: list[tuple[int, Kind, Key]] = []
        pairs = list(pairs)
        self._paired = {name for each in pairs for name in (each.pushed, each.recorded)}
        self._pairs = Pairs(store, self, rules, pairs, since_ms=since_ms, window_ms=window_ms)
        #: Legs that wait until the list was read up to their end, earliest first: by a near pass,
        #: and those that only a sweep tells of.
        self._near: dict[str, list[tuple[int, str]]] = {name: [] for name in judged}
        self._far: dict[str, list[tuple[int, str]]] = {name: [] for name in judged}

    def take(self, fact: Fact) -> None:
        """Work off what was due before the fact, then take it in. Facts come in their order."""
        at_ms = fact.at_ms
        if self._timers and self._timers[0][0] < at_ms:
            self.advance(at_ms - 1)
        self.clock_ms = max(self.clock_ms, at_ms)
        if isinstance(fact, CallFact):
            if fact.connection in self._connections:
                self._take_call(fact)
        elif isinstance(fact, Mark):
            self._pairs.mark(fact, self.clock_ms)
            if not fact.agent_id:
                self._take_mark(fact)
        else:
            self._pairs.listed(fact)

    def advance(self, clock_ms: int) -> None:
        """Everything on the log up to then has been taken: work off what has become due."""
        while self._timers and self._timers[0][0] <= clock_ms:
            due_ms, kind, key = heapq.heappop(self._timers)
            self.clock_ms = max(self.clock_ms, due_ms)
            _WAKE[kind](self, key, due_ms)
        self.clock_ms = max(self.clock_ms, clock_ms)

    def restore(
        self,
        clock_ms: int,
        watermarks: Mapping[str, Watermark],
        timers: Iterable[tuple[int, Kind, Key]],
        conversations: Iterable[Conversation],
    ) -> None:
        """Go on where somebody has left off who had the same store."""
        self.clock_ms = clock_ms
        self.watermarks = dict(watermarks)
        for conversation in conversations:
            if conversation.connection in self._threads:
                for ident in conversation.idents:
                    self._threads[conversation.connection].link(conversation.name, ident)
                self._pairs.know(conversation.connection, conversation.name, conversation.numbers)
        for due_ms, kind, key in timers:
            if key[0] not in self._connections:
                continue
            self._wake(kind, key, due_ms)
            leg = self._store.leg(key) if kind == "leg" else None
            if leg is not None and leg.wants_ms is not None and key[0] in self._judged:
                self._want(leg, leg.wants_ms)
        self._pairs.restore()

    def forget(self, conversations: Iterable[Conversation]) -> None:
        """The store has dropped these."""
        for conversation in conversations:
            if conversation.connection in self._threads:
                self._threads[conversation.connection].forget(conversation.idents)
                self._pairs.forget(conversation.connection, conversation.call_ids)
                for name in (conversation.name, *conversation.merged_from):
                    self._pairs.lose(conversation.connection, name, conversation.numbers)

    @property
    def wake_ms(self) -> int | None:
        """When something becomes due if nothing comes."""
        return self._timers[0][0] if self._timers else None

    # Facts

    def _take_call(self, fact: CallFact) -> None:
        key = (fact.connection, fact.call.call_id)
        found = self._found(key)
        if found is not None and self._is_too_old(found):
            # Whoever writes a row of it now may not know all that it was made of.
            self.too_late += 1
            return
        # Every leg is in a conversation.
        leg = None if found is None else self._store.leg(key)
        if leg is None:
            if began_ms(fact) < max(self.floor_ms, self.clock_ms - self._window_ms):
                # Its earlier facts are gone: a row of this one alone would hide the whole one.
                self.too_late += 1
                return
            leg = Leg(connection=key[0], call_id=key[1], provider=fact.provider)
        if not leg.add(fact):
            return
        conversation = self._join(leg, fact, found)
        conversation.heard_ms = self.clock_ms
        if conversation.complete and not _may_follow(fact):
            _flag(conversation, "late_event")
        # A record that only confirms what was pushed waits for the row that tells of the verdict.
        confirms = fact.is_record and len(leg.facts) > 1 and conversation.wake_ms is not None
        if confirms and fact.connection not in self._paired:
            self._store.put_conversation(conversation)
        else:
            self._touch(conversation)
        self._judge(leg, conversation)

    def _take_mark(self, mark: Mark) -> None:
        known = self.watermarks.setdefault(mark.connection, Watermark())
        # One of a clock that was ahead would say of calls to come that they were listed.
        known.near_ms = max(known.near_ms, min(mark.watermark_ms or 0, mark.at_ms))
        known.swept_ms = max(known.swept_ms, min(mark.swept_ms or 0, mark.at_ms))
        # Each leg once: one that waits for more goes back, behind what the list was read up to.
        for end_ms, call_id in [*self._listed_up_to(mark.connection, known)]:
            leg = self._store.leg((mark.connection, call_id))
            if leg is not None and leg.wants_ms == end_ms:
                self._judge(leg, self._conversation(leg))

    def _listed_up_to(self, connection: str, known: Watermark) -> Iterator[tuple[int, str]]:
        """(end, call id) of legs that would have been listed, earliest first."""
        near, far = self._near.get(connection, []), self._far.get(connection, [])
        near_ms = max(known.near_ms, known.swept_ms)
        while True:
            ready = [
                heap
                for heap, until_ms in ((near, near_ms), (far, known.swept_ms))
                if heap and heap[0][0] <= until_ms
            ]
            if not ready:
                return
            yield heapq.heappop(min(ready, key=lambda heap: heap[0]))

    def _want(self, leg: Leg, end_ms: int) -> None:
        """Judge it once the list was read up to its end."""
        started_ms = None if leg.pushed is None else leg.pushed.started_ms
        heaps = self._near if self._is_near(leg.connection, started_ms, end_ms) else self._far
        heapq.heappush(heaps[leg.connection], (end_ms, leg.call_id))

    def _is_near(self, connection: str, started_ms: int | None, ended_ms: int) -> bool:
        """Whether a near pass reaches back to the beginning of such a call."""
        return started_ms is not None and ended_ms - started_ms <= self._judged.get(connection, 0)

    # Conversations

    def _join(self, leg: Leg, fact: CallFact, found: Conversation | None) -> Conversation:
        """Link a leg to all that the fact names; ``found``: the conversation that it is in."""
        call = fact.call
        if call.conversation_id == leg.call_id and not call.related_call_ids:
            return self._belonging(found or self._new(leg), leg)
        names = {call.conversation_id, *call.related_call_ids} - {leg.call_id}
        threads = self._threads[leg.connection]
        flags = []
        for ident in sorted(names):
            if self._is_frozen((leg.connection, ident)):
                flags.append("late_link")
                continue
            if not threads.fits(leg.call_id, ident):
                flags.append("too_many_legs")
                other = self._store.conversation((leg.connection, threads.name(ident)))
                if other is not None:
                    _flag(other, "too_many_legs")
                    self._touch(other)
                continue
            before = {threads.name(leg.call_id), threads.name(ident)}
            ceased = threads.link(leg.call_id, ident)
            if ceased is not None:
                (kept,) = before - {ceased}
                self._merge(leg.connection, kept, ceased)
        conversation = self._conversation(leg)
        _flag(conversation, *flags)
        return conversation

    def _is_frozen(self, key: Key) -> bool:
        """Whether its conversation is too old to be touched any more."""
        found = self._found(key)
        return found is not None and self._is_too_old(found)

    def _is_too_old(self, conversation: Conversation) -> bool:
        return 0 < conversation.heard_ms < self.clock_ms - self._window_ms

    def _found(self, key: Key) -> Conversation | None:
        """The conversation that an id belongs to."""
        return self._store.conversation((key[0], self._threads[key[0]].name(key[1])))

    def _conversation(self, leg: Leg) -> Conversation:
        key = (leg.connection, leg.call_id)
        return self._belonging(self._found(key) or self._new(leg), leg)

    def _new(self, leg: Leg) -> Conversation:
        name = self._threads[leg.connection].name(leg.call_id)
        return Conversation(connection=leg.connection, name=name)

    def _belonging(self, found: Conversation, leg: Leg) -> Conversation:
        if leg.call_id not in found.call_ids:
            found.call_ids += (leg.call_id,)
            if found.idents or leg.call_id != found.name:
                found.idents = _in_order({*found.idents, leg.call_id, found.name})
            else:
                found.idents = found.call_ids
            self._store.put_conversation(found)
        return found

    def _merge(self, connection: str, kept: str, ceased: str) -> None:
        """Two conversations are one."""
        into = self._store.conversation((connection, kept)) or Conversation(
            connection=connection, name=kept
        )
        into.idents = _in_order({*into.idents, kept, ceased})
        gone = self._store.conversation((connection, ceased))
        if gone is not None:
            into.idents = _in_order({*into.idents, *gone.idents})
            into.call_ids += tuple(each for each in gone.call_ids if each not in into.call_ids)
            into.numbers = _in_order({*into.numbers, *gone.numbers})
            into.merged_from += gone.merged_from
            into.to_bury += gone.to_bury
            into.heard_ms = max(into.heard_ms, gone.heard_ms)
            into.complete |= gone.complete
            if gone.wake_ms is not None:
                self._write_row_by(into, gone.wake_ms)
            _flag(into, *gone.flags)
            if gone.said:
                into.merged_from += (ceased,)
                into.to_bury += (ceased,)
            self._store.drop_conversation((connection, ceased))
        self._store.put_conversation(into)

    def _touch(self, conversation: Conversation) -> None:
        """Remember it, and write its row soon."""
        self._write_row_by(conversation, self.clock_ms + ROW_EVERY_MS)
        self._store.put_conversation(conversation)

    def _write_row_by(self, conversation: Conversation, due_ms: int) -> None:
        if conversation.wake_ms is None or conversation.wake_ms > due_ms:
            conversation.wake_ms = due_ms
            self._wake("row", (conversation.connection, conversation.name), due_ms)

    def _write_row(self, key: Key, due_ms: int) -> None:
        conversation = self._store.conversation(key)
        if conversation is None or conversation.wake_ms != due_ms:
            return
        conversation.wake_ms = None
        legs = [
            leg
            for call_id in conversation.call_ids
            if (leg := self._store.leg((key[0], call_id))) is not None
        ]
        verdicts: Sequence[str] = ()
        counterparts: Sequence[Counterpart] = ()
        if key[0] in self._paired:
            found = self._pairs.refresh(key[0], key[1], legs, due_ms)
            conversation.numbers = _in_order({*conversation.numbers, *found})
            verdicts, counterparts = standing(legs)
        complete_ms = complete_at_ms(legs, self._rules.settle_ms)
        conversation.complete = complete_ms is not None and complete_ms <= due_ms
        row = ledger_row(
            key[0],
            conversation.name,
            legs,
            complete=conversation.complete,
            merged_from=conversation.merged_from,
            flags=conversation.flags,
            verdicts=verdicts,
            counterparts=counterparts,
        )
        encoded = encode_row(row)
        said = digest_of_bytes(encoded)
        if said != conversation.said:
            conversation.said = said
            self.out.append(
                derived_record(
                    key[0],
                    "conversation.updated",
                    f"conversation:{key[0]}:{id_part(conversation.name)}:{said}",
                    about="conversation",
                    name=conversation.name,
                    at_ms=due_ms,
                    data=encoded,
                )
            )
            for name in conversation.to_bury:
                self.out.append(_tombstone(key[0], name))
            conversation.to_bury = ()
        # It says so together with the verdict, which is given then.
        if complete_ms is not None and complete_ms + ROW_EVERY_MS > due_ms:
            conversation.wake_ms = complete_ms + ROW_EVERY_MS
            self._wake("row", key, conversation.wake_ms)
        if conversation.complete:
            for leg in legs:
                leg.settle()
        self._store.put_conversation(conversation)

    # Verdicts

    def _judge(self, leg: Leg, conversation: Conversation, *, is_due: bool = False) -> None:
        """``is_due``: nothing more comes of this millisecond of the log's clock."""
        self._store.put_leg(leg)
        if leg.connection not in self._judged:
            return
        if (leg.started_ms or leg.first_at_ms) < self._since_ms:
            return
        waited_ms, leg.wake_ms, leg.wants_ms = leg.wake_ms, None, None
        found = judge(leg, self.clock_ms, self._passed, self._rules)
        if isinstance(found, Wait):
            leg.wake_ms, leg.wants_ms = found.until_ms, found.end_ms
            if found.until_ms is not None and found.until_ms != waited_ms:
                self._wake("leg", (leg.connection, leg.call_id), found.until_ms)
            if found.end_ms is not None:
                self._want(leg, found.end_ms)
        elif found.word in ABSENCES and not is_due:
            # What comes at the same time as a mark, or as the other side, stands in no order.
            leg.wake_ms = self.clock_ms
            self._wake("leg", (leg.connection, leg.call_id), self.clock_ms)
        else:
            self._give(leg, found, conversation)

    def _give(self, leg: Leg, judgement: Judgement, conversation: Conversation) -> None:
        said = verdict_record(leg, judgement, self.clock_ms)
        if said is None:
            return
        record, given = said
        self.out.append(record)
        leg.verdicts += (given,)
        is_first = not leg.mended
        if judgement.word == "push_missing" and not leg.mended:
            leg.mended = True
            self._write(mended_ending(leg, self.clock_ms))
        self._count(leg, judgement, is_first=is_first)
        self._touch(conversation)

    def _wake_leg(self, key: Key, due_ms: int) -> None:
        leg = self._store.leg(key)
        if leg is not None and leg.wake_ms == due_ms:
            self._judge(leg, self._conversation(leg), is_due=True)

    def _passed(self, connection: str, started_ms: int | None, ended_ms: int) -> bool:
        """Whether the list was read up to where the record of such a call would be."""
        mark = self.watermarks.get(connection, _NOT_READ)
        if not self._is_near(connection, started_ms, ended_ms):
            return mark.swept_ms >= ended_ms
        return max(mark.near_ms, mark.swept_ms) >= ended_ms

    # Completeness

    def _count(self, leg: Leg, judgement: Judgement, *, is_first: bool) -> None:
        push, record = leg.pushed, leg.recorded
        # The clock of whoever made the call may be off by years.
        heard_ms, started_ms = leg.first_at_ms, leg.started_ms
        if started_ms is None or started_ms > heard_ms:
            started_ms = heard_ms
        elif started_ms < heard_ms - self._window_ms:
            started_ms = heard_ms - self._window_ms
        share = share_of(
            judgement.word,
            started_ms,
            None if push is None else push.talk_duration_s,
            None if record is None else record.talk_duration_s,
        )
        hour = self._hour(leg.connection, share.hour_ms)
        if leg.share is not None:
            before = hour
            if leg.share.hour_ms != share.hour_ms:
                before = self._hour(leg.connection, leg.share.hour_ms)
                self._measure_later(before)
            before.add(leg.share, -1)
        leg.share = share
        hour.add(share)
        if judgement.reason == LIST_NOT_READ:
            self._tell_unread(hour)
        elif judgement.word == "push_missing" and is_first:
            hour.lose(started_ms, self.clock_ms if leg.ended_ms is None else leg.ended_ms)
            if not hour.gap_told:
                self._tell_lost(hour)
        self._measure_later(hour)

    def _tell_lost(self, hour: Hour) -> None:
        """Of calls that were not pushed: once they are too many, and when the hour is over."""
        if hour.has_gap and self._is_whole(hour):
            hour.gap_told, hour.lost = True, 0
            self._tell_gap(hour, "push", hour.lost_from_ms, hour.lost_to_ms, "push_missing")

    def _tell_unread(self, hour: Hour) -> None:
        if not hour.list_told:
            hour.list_told = True
            self._tell_gap(hour, "records", hour.hour_ms, hour.hour_ms + HOUR_MS, LIST_NOT_READ)

    def _tell_gap(self, hour: Hour, channel: str, from_ms: int, to_ms: int, reason: str) -> None:
        """Let whoever reads the provider's list read this stretch of it at once."""
        self._write(
            gap_event(
                hour.connection,
                channel,
                from_ms,
                to_ms=min(to_ms, self.clock_ms),
                reason=reason,
                found=None,
                now_ms=self.clock_ms,
            )
        )

    def _measure_later(self, hour: Hour) -> None:
        """It has changed."""
        if hour.wake_ms is None:
            over_ms = hour.hour_ms + HOUR_MS + self._rules.settle_ms
            hour.wake_ms = max(self.clock_ms + HOUR_EVERY_MS, over_ms)
            self._wake("hour", (hour.connection, str(hour.hour_ms)), hour.wake_ms)
        self._store.put_hour(hour)

    def _hour(self, connection: str, hour_ms: int) -> Hour:
        found = self._store.hour((connection, str(hour_ms)))
        return found or Hour(connection=connection, hour_ms=hour_ms)

    def _measure(self, key: Key, due_ms: int) -> None:
        hour = self._store.hour(key)
        if hour is None or hour.wake_ms != due_ms:
            return
        hour.wake_ms = None
        self._tell_lost(hour)
        event = completeness_event(hour, due_ms) if self._is_whole(hour) else None
        if event is not None:
            self._write(event)
        self._store.put_hour(hour)

    def _is_whole(self, hour: Hour) -> bool:
        """Whether all of its calls may be known: else what was measured before is better."""
        return hour.hour_ms >= self.floor_ms

    # What pairs ask for

    def wake_pair(self, key: Key, due_ms: int) -> None:
        self._wake("pair", key, due_ms)

    def write_event(self, event: Event) -> None:
        self._write(event)

    def tell_unread(self, connection: str, at_ms: int) -> None:
        hour = self._hour(connection, at_ms // HOUR_MS * HOUR_MS)
        self._tell_unread(hour)
        self._store.put_hour(hour)

    def touch_leg(self, leg: Leg) -> None:
        self._touch(self._conversation(leg))

    def touch_conversation(self, key: Key) -> None:
        conversation = self._store.conversation(key)
        if conversation is not None and not self._is_frozen(key):
            self._touch(conversation)

    def _wake_pair(self, key: Key, due_ms: int) -> None:
        self._pairs.wake(key, due_ms)

    # Small things

    def _wake(self, kind: Kind, key: Key, due_ms: int) -> None:
        heapq.heappush(self._timers, (due_ms, kind, key))

    def _write(self, event: Event) -> None:
        self.out += records_of(event)


_WAKE: Mapping[Kind, Callable[[Core, Key, int], None]] = {
    "leg": Core._wake_leg,  # noqa: SLF001
    "pair": Core._wake_pair,  # noqa: SLF001
    "row": Core._write_row,  # noqa: SLF001
    "hour": Core._measure,  # noqa: SLF001
}

_NOT_READ = Watermark()


def _flag(conversation: Conversation, *flags: str) -> None:
    conversation.flags += tuple(flag for flag in flags if flag not in conversation.flags)


def _in_order(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(texts))


def _may_follow(fact: CallFact) -> bool:
    """Whether it may come when a conversation is complete: what we have mended, and artefacts."""
    return fact.what in ARTEFACTS or fact.id.endswith(BACKFILLED)


def began_ms(fact: CallFact) -> int:
    """When the call began, as far as a fact says it; milliseconds since 1970."""
    started_at = fact.call.started_at
    return fact.time_ms if started_at is None else ms_of(started_at)


def _tombstone(connection: str, name: str) -> Record:
    headers = (("content-type", CONTENT_TYPE), ("ce_type", b"dialstream.conversation.updated"))
    return Record("ledger", f"{connection}/{name}".encode(), None, headers)
