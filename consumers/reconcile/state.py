"""What reconciliation remembers between two starts: a cache of the event log, in one SQLite file.

How far the log was read, what came of it, and what is still to be written stand in the same
transaction. So whoever is killed at any instant goes on as if nothing had been; and whoever loses
the file finds everything again on the log.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import apsw
import msgspec
import structlog

from consumers.reconcile.agents import Agent
from consumers.reconcile.completeness import Hour
from consumers.reconcile.core import Conversation, Key, Kind, Watermark
from consumers.reconcile.entries import Entry
from consumers.reconcile.legs import Leg
from ingest.eventlog.log import Place, Record
from ingest.eventlog.segments import make_folder

log = structlog.get_logger()

T = TypeVar("T", Leg, Conversation, Hour, Entry, Agent)

#: Things for which something becomes due are kept at hand, so many of a kind at most; the others
#: are looked up when somebody asks for them. With fewer than that nobody takes the trouble.
MAX_AT_HAND, FEW_AT_HAND = 20_000, 1_000

#: So many records are one row of the outbox.
_OUTBOX_ROW = 50

#: Half of what is written are rows of some kilobytes: fewer pages than of 8 KiB hold them, and less
#: is left empty. Larger ones yet would have to be written as a whole for each small change.
_PAGE_BYTES = 16_384

_SCHEMA = """
create table if not exists things (
    kind text, connection text, ident text, wake_ms integer, clock_ms integer, value blob,
    primary key (kind, connection, ident)
) without rowid;
create index if not exists aging on things (clock_ms) where kind = 'conversation';
create table if not exists positions (
    topic text, partition integer, position integer, primary key (topic, partition)
) without rowid;
create table if not exists outbox (nth integer primary key, value blob);
create table if not exists notes (name text primary key, value blob) without rowid;
"""


_SELECT = "select value from things where kind = ? and connection = ? and ident = ?"
_INSERT = "insert or replace into things values (?, ?, ?, ?, ?, ?)"
#: By itself SQLite would go through all conversations that there are.
_BETWEEN = (
    "select value from things indexed by aging "
    "where kind = 'conversation' and clock_ms >= ? and clock_ms < ?"
)
_DELETE = "delete from things where kind = ? and connection = ? and ident = ?"


class Sieve:
    """Tells of nearly all keys that were never added, in some bytes a key, that they were not.

    A look at the file for each new call would cost as much as all that is made of it.
    """

    def __init__(self, count: int) -> None:
        """There is room for so many keys, and for as many again."""
        self._slots = bytearray(1 << max(16, (count * 16).bit_length()))
        self._mask = len(self._slots) - 1
        #: So many more may be added until too many others seem to be there.
        self._room = len(self._slots) // 8

    @property
    def is_full(self) -> bool:
        return self._room < 0

    def add(self, key: Key) -> None:
        slots, bits = self._slots, hash(key)
        one, other = bits & self._mask, (bits >> 32) & self._mask
        if not (slots[one] and slots[other]):
            slots[one] = slots[other] = 1
            self._room -= 1

    def __contains__(self, key: Key) -> bool:
        bits = hash(key)
        return bool(self._slots[bits & self._mask] and self._slots[(bits >> 32) & self._mask])


class Shelf(Generic[T]):
    """Things of one kind, by their key."""

    def __init__(self, db: apsw.Connection, kind: type[T]) -> None:
        self._db = db
        self._name = kind.__name__.lower()
        self._decode: Callable[[bytes], T] = msgspec.msgpack.Decoder(kind).decode
        self._at_hand: dict[Key, T] = {}
        #: When there are more of them the idle ones go.
        self._most = FEW_AT_HAND
        #: Those that have changed since the last commit; None: it is gone.
        self._changed: dict[Key, T | None] = {}
        self._sieve = self._new_sieve()

    def get(self, key: Key) -> T | None:
        """The one object that stands for it, until the next commit."""
        found = self._at_hand.get(key)
        if found is None and key in self._sieve and key not in self._changed:
            value = self._db.execute(_SELECT, (self._name, *key)).get
            if value is not None:
                found = self._at_hand[key] = self._decode(value)
        return found

    def put(self, key: Key, thing: T) -> None:
        self._at_hand[key] = self._changed[key] = thing

    def remove(self, key: Key) -> None:
        self._at_hand.pop(key, None)
        self._changed[key] = None

    def waking(self) -> Iterator[tuple[int, Key]]:
        """When something becomes due, and of what."""
        for wake_ms, connection, ident in self._db.execute(
            "select wake_ms, connection, ident from things where kind = ? and wake_ms is not null",
            (self._name,),
        ):
            yield wake_ms, (connection, ident)

    def all(self) -> Iterator[T]:
        """As they are now, also what is not committed yet."""
        yield from [thing for thing in self._changed.values() if thing is not None]
        for connection, ident, value in self._db.execute(
            "select connection, ident, value from things where kind = ?", (self._name,)
        ):
            known: Key = (connection, ident)
            if known not in self._changed:
                yield self._at_hand.get(known) or self._decode(value)

    def drop(self, keys: Sequence[Key]) -> None:
        """Within a transaction: nobody asks for these any more."""
        for key in keys:
            self._at_hand.pop(key, None)
        self._db.executemany(
            _DELETE, [(self._name, connection, ident) for connection, ident in keys]
        )

    def write(self, clock_ms: int) -> None:
        """Within a transaction: what has changed."""
        gone = [
            (self._name, connection, ident)
            for (connection, ident), thing in self._changed.items()
            if thing is None
        ]
        if gone:
            self._db.executemany(_DELETE, gone)
        if self._changed:
            self._db.executemany(_INSERT, self._rows(clock_ms))

    def _rows(self, clock_ms: int) -> Iterator[tuple[str, str, str, int | None, int, bytes]]:
        """Each is written before the next one is made: all at once they would fill the caches."""
        name, remember, buffer = self._name, self._sieve.add, bytearray()
        for key, thing in self._changed.items():
            if thing is not None:
                remember(key)
                _encode_into(thing, buffer)
                connection, ident = key
                yield name, connection, ident, thing.wake_ms, clock_ms, bytes(buffer)

    def written(self) -> None:
        """The transaction is over."""
        self._changed.clear()
        if len(self._at_hand) > self._most:
            due = {key: each for key, each in self._at_hand.items() if each.wake_ms is not None}
            self._at_hand = due if len(due) <= MAX_AT_HAND else {}
            self._most = max(FEW_AT_HAND, 2 * len(self._at_hand))
        if self._sieve.is_full:
            self._sieve = self._new_sieve()

    def _new_sieve(self) -> Sieve:
        of_kind = (self._name,)
        count = self._db.execute("select count(*) from things where kind = ?", of_kind).get
        sieve = Sieve(count)
        for key in self._db.execute("select connection, ident from things where kind = ?", of_kind):
            sieve.add(key)
        return sieve


class State:
    """The file. Blocks; a commit takes some milliseconds."""

    def __init__(self, db: apsw.Connection) -> None:
        """Use `open`."""
        self._db = db
        self._legs = Shelf(db, Leg)
        self._conversations = Shelf(db, Conversation)
        self._hours = Shelf(db, Hour)
        self._entries = Shelf(db, Entry)
        self._agents = Shelf(db, Agent)
        self._shelves: Sequence[Shelf[Any]] = (
            self._legs,
            self._conversations,
            self._hours,
            self._entries,
            self._agents,
        )
        #: What the core asks for most: without another call between.
        self.leg, self.conversation = self._legs.get, self._conversations.get
        self.hour = self._hours.get

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the file; one that cannot be read is made anew. Raises OSError."""
        make_folder(path.parent)
        try:
            return cls(_open(path))
        except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
            log.warning("reconcile_state_lost", path=str(path), error=type(error).__name__)
            cls.remove(path)
            return cls(_open(path))

    @staticmethod
    def remove(path: Path) -> None:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        self._db.close()

    # What the core asks for

    def put_leg(self, leg: Leg) -> None:
        self._legs.put((leg.connection, leg.call_id), leg)

    def put_conversation(self, conversation: Conversation) -> None:
        self._conversations.put((conversation.connection, conversation.name), conversation)

    def drop_conversation(self, key: Key) -> None:
        self._conversations.remove(key)

    def put_hour(self, hour: Hour) -> None:
        self._hours.put((hour.connection, str(hour.hour_ms)), hour)

    def entries(self) -> Iterator[Entry]:
        return self._entries.all()

    def put_entry(self, entry: Entry) -> None:
        self._entries.put(entry.key, entry)

    def drop_entry(self, key: Key) -> None:
        self._entries.remove(key)

    def agents(self) -> Iterator[Agent]:
        return self._agents.all()

    def put_agent(self, agent: Agent) -> None:
        self._agents.put((agent.connection, agent.agent_id), agent)

    # From one start to the next

    def positions(self) -> Mapping[Place, int]:
        """The last position of each partition that was dealt with; empty in a new file."""
        rows = self._db.execute("select topic, partition, position from positions")
        return {(topic, partition): position for topic, partition, position in rows}

    def note(self, name: str) -> Any:
        """What was noted under a name; None if nothing was."""
        value = self._db.execute("select value from notes where name = ?", (name,)).get
        return None if value is None else msgspec.json.decode(value)

    def watermarks(self) -> dict[str, Watermark]:
        return msgspec.convert(self.note("watermarks") or {}, dict[str, Watermark])

    def timers(self) -> list[tuple[int, Kind, Key]]:
        """Everything that becomes due: when, what, of which."""
        return [
            *((wake_ms, "leg", key) for wake_ms, key in self._legs.waking()),
            *((wake_ms, "hour", key) for wake_ms, key in self._hours.waking()),
            *((wake_ms, "row", key) for wake_ms, key in self._conversations.waking()),
        ]

    def every_conversation(self) -> Iterator[Conversation]:
        return self._conversations.all()

    def outbox(self) -> list[Record]:
        """What is still to be written, in its order. Some of it may be there already."""
        return [
            record
            for (value,) in self._db.execute("select value from outbox order by nth")
            for record in _decode_records(value)
        ]

    def commit(
        self,
        positions: Mapping[Place, int],
        clock_ms: int,
        watermarks: Mapping[str, Watermark],
        out: Sequence[Record],
    ) -> None:
        """Remember all of it or nothing; what stood in the outbox is on the log by now."""
        with self._db:
            for shelf in self._shelves:
                shelf.write(clock_ms)
            self._db.executemany(
                "insert or replace into positions values (?, ?, ?)",
                [(*place, position) for place, position in positions.items()],
            )
            self._db.execute("delete from outbox")
            self._db.executemany(
                "insert into outbox (value) values (?)",
                (
                    (_encode(out[first : first + _OUTBOX_ROW]),)
                    for first in range(0, len(out), _OUTBOX_ROW)
                ),
            )
            self._set_notes({"clock_ms": clock_ms, "watermarks": watermarks})
        for shelf in self._shelves:
            shelf.written()

    def set_note(self, name: str, value: object) -> None:
        with self._db:
            self._set_notes({name: value})

    def tidy(self, clock_ms: int, window_ms: int) -> list[Conversation]:
        """Drop what is too old; the conversations that are gone. To be called after a commit.

        The legs of what nothing was heard of for a window go. That there was such a conversation
        is remembered for one window more, so that no late event begins it anew.
        """
        old_ms, older_ms = clock_ms - window_ms, clock_ms - 2 * window_ms
        done_ms = int(self.note("tidied_ms") or 0)
        gone = list(self._between(0, older_ms))
        legs = [
            (conversation.connection, call_id)
            for conversation in itertools.chain(gone, self._between(done_ms, old_ms))
            for call_id in conversation.call_ids
        ]
        with self._db:
            self._legs.drop(legs)
            self._conversations.drop([(each.connection, each.name) for each in gone])
            self._db.execute(
                "delete from things where kind = 'hour' and clock_ms < ? and wake_ms is null",
                (older_ms,),
            )
            self._set_notes({"tidied_ms": old_ms})
        return gone

    def _between(self, from_ms: int, to_ms: int) -> Iterator[Conversation]:
        """Conversations that were written last between two times of the log's clock."""
        for (value,) in self._db.execute(_BETWEEN, (from_ms, to_ms)):
            yield _decode_conversation(value)

    def _set_notes(self, notes: Mapping[str, object]) -> None:
        self._db.executemany(
            "insert or replace into notes values (?, ?)",
            [(name, msgspec.json.encode(value)) for name, value in notes.items()],
        )


_KINDS: Sequence[type[Any]] = (Leg, Conversation, Hour, Entry, Agent)

_encoder = msgspec.msgpack.Encoder()
_encode = _encoder.encode
#: Half of the time for what is longer than the small buffer that `encode` begins with.
_encode_into = _encoder.encode_into
_decode_conversation = msgspec.msgpack.Decoder(Conversation).decode
_decode_records = msgspec.msgpack.Decoder(list[Record]).decode


def _open(path: Path) -> apsw.Connection:
    """Raises CorruptError if the file is damaged anywhere, or is of another shape than ours."""
    db = apsw.Connection(str(path))
    db.pragma("page_size", _PAGE_BYTES)
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "normal")
    is_new = db.execute("select count(*) from sqlite_master").get == 0
    if not is_new and (
        db.pragma("user_version") != _shape() or db.execute("pragma quick_check(1)").get != "ok"
    ):
        db.close()
        raise apsw.CorruptError
    db.execute(_SCHEMA)
    db.pragma("user_version", _shape())
    return db


@lru_cache
def _shape() -> int:
    """Changes with what is remembered: fields are told apart by their place."""
    kinds = repr(msgspec.inspect.multi_type_info([*_KINDS, Record]))
    return zlib.crc32((_SCHEMA + kinds).encode()) & 0x7FFF_FFFF
