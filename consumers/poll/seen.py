"""What a poller remembers of a connection between two readings, in one small SQLite file.

Of everything that it has read: which fact it last was, so that only what is new or has changed is
published. Losing this only repeats. Also what it still means to fetch, when it last went through
each list, and what it has found in gaps that are not closed.

Nothing is flushed: after a power cut the last seconds may be missing, and are read again.
"""

import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import apsw
import structlog

from consumers.poll.windows import Gap
from ingest.eventlog.segments import make_folder
from schemas.event import Event

log = structlog.get_logger()

#: What waits to be fetched, at most, of each kind; then the oldest is given up.
WANTED_MAX = 100_000

#: The list of calls; the others are named by the setting ``also``.
CALLS = "calls"

_BUSY_MS = 5000

_SCHEMA = """
create table if not exists notes (name text primary key, value) without rowid;
create table if not exists seen (
    list text, key text, fact text, turn integer, missed integer default 0,
    primary key (list, key)
) without rowid;
create table if not exists wanted (
    list text, call_id text, due_ms integer, tries integer, primary key (list, call_id)
) without rowid;
create index if not exists wanted_due on wanted (list, due_ms);
create table if not exists found (
    channel text, from_ms integer, call_id text, primary key (channel, from_ms, call_id)
) without rowid
"""

#: Stands before a fact that may not be the last one on the event log any more.
UNSURE = "?"

_SET_NOTE = "insert or replace into notes values (?, ?)"

_REMEMBER = "insert or replace into seen (list, key, fact, turn) values (?, ?, ?, ?)"

_WANT = """
insert or ignore into wanted select ?1, ?2, ?3, 0
where not exists (select 1 from seen where list = ?1 and key = 'call/' || ?2)
"""

_WANT_AGAIN = """
insert into wanted values (?1, ?2, ?3, 0)
on conflict do update set due_ms = min(due_ms, excluded.due_ms)
"""

_DROP_OLDEST = """
delete from wanted where list = ?1 and call_id in
    (select call_id from wanted where list = ?1 order by due_ms limit ?2)
"""

Bindings = tuple[str | int, ...]

_MINUTE = re.compile(r":\d{12}\Z")


def fact_of(event: Event) -> str:
    """What an event says, whenever it is read: its id without the minute of reading.

    Of a contact also without what has become of it: that is found by comparing.
    """
    fact = _MINUTE.sub("", event.id)
    if event.subject_kind == "contact":
        provider, connection, subject, ident, _, digest = fact.split(":")
        return f"{provider}:{connection}:{subject}:{ident}:{digest}"
    return fact


#: Of which there are several to a subject at the same time: a number may have opted out of several
#: things, a call may have several recordings, an agent has many versions.
_SEVERAL = ("dialstream.consent.", "dialstream.call.recording_ready", "dialstream.change.")


def key_of(event: Event) -> str:
    """What an event is about."""
    if event.type.startswith(_SEVERAL):
        return f"{event.subject}/{fact_of(event)}"
    return event.subject


class Seen:
    """The memory of one connection's poller. Blocks, for well under a millisecond a page."""

    def __init__(self, db: apsw.Connection, path: Path | None) -> None:
        """Use `open`, `glance` or `nothing`."""
        self._db = db
        self._path = path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the file; one that cannot be read is made anew."""
        try:
            make_folder(path.parent)
            try:
                return cls(_open(path), path)
            except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
                _tell_lost(path, error)
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                return cls(_open(path), path)
        except (apsw.Error, OSError) as error:
            _tell_lost(path, error)
            return cls(_open(":memory:"), path)

    @classmethod
    def glance(cls, path: Path) -> Self | None:
        """That of a poller which may be running, only to read in; None if there is none."""
        try:
            db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
            db.set_busy_timeout(_BUSY_MS)
            seen = cls(db, path)
            seen.note("mark")
        except apsw.Error:
            return None
        return seen

    @classmethod
    def nothing(cls) -> Self:
        """Empty, and gone with the process."""
        return cls(_open(":memory:"), None)

    def close(self) -> None:
        self._db.close()

    def adopt(self, mark: str | None) -> str:
        """The mark of this memory, to stand in the checkpoint.

        ``mark``: the one in the last checkpoint. If it is another's, records were published since,
        or the event log is a new one: then no fact is taken for known, only what there was.
        """
        own = self.mark
        if own is not None and own == mark:
            return own
        own = secrets.token_hex(8)
        self._write(
            ("update seen set fact = ?1 || ltrim(fact, ?1)", [(UNSURE,)]),
            (_SET_NOTE, [("mark", own)]),
        )
        return own

    @property
    def mark(self) -> str | None:
        """That of this memory now: one that was lost on the way has another than its file."""
        found = self.note("mark")
        return None if found is None else str(found)

    def note(self, name: str) -> int | str | None:
        found: int | str | None = self._db.execute(
            "select value from notes where name = ?", (name,)
        ).get
        return found

    def set_note(self, name: str, value: int | str) -> None:
        self._write((_SET_NOTE, [(name, value)]))

    # Lists

    def begin(self, list_: str) -> int:
        """Begin to go through a list from its beginning to its end."""
        turn = int(self.note(f"turn {list_}") or 0) + 1
        self.set_note(f"turn {list_}", turn)
        return turn

    def facts(self, list_: str, events: Iterable[Event]) -> list[str | None]:
        """Of each event what was last remembered in its place, behind `UNSURE` where that is so."""
        keys = [key_of(event) for event in events]
        known: dict[str, str] = dict(
            self._db.executemany(
                "select key, fact from seen where list = ? and key = ?",
                [(list_, key) for key in keys],
            )
        )
        return [known.get(key) for key in keys]

    def fresh(self, list_: str, events: Sequence[Event]) -> list[Event]:
        """Those of a page that say something new, each once."""
        told: set[str] = set()
        found = []
        for event, known in zip(events, self.facts(list_, events), strict=True):
            fact = fact_of(event)
            if fact != known and fact not in told:
                told.add(fact)
                found.append(event)
        return found

    def remember(
        self,
        list_: str,
        events: Sequence[Event],
        *,
        gaps: Sequence[tuple[Gap, str]] = (),
        wanted: Sequence[tuple[str, str, int]] = (),
    ) -> None:
        """A page is durable on the event log.

        ``gaps``: (gap, id of a call that was found in it); ``wanted``: (list, id of a call, when to
        fetch it), unless it is remembered there.
        """
        self._write(
            (_REMEMBER, self._rows(list_, events, list_)),
            (
                "insert or ignore into found values (?, ?, ?)",
                [(gap.channel, gap.from_ms, call_id) for gap, call_id in gaps],
            ),
            (
                _WANT,
                wanted,
            ),
        )

    def _rows(self, list_: str, events: Sequence[Event], turn_of: str) -> list[Bindings]:
        turn = int(self.note(f"turn {turn_of}") or 0)
        return [(list_, key_of(event), fact_of(event), turn) for event in events]

    def missing(self, list_: str, turn: int) -> list[tuple[str, str]]:
        """(key, fact) of what had been in a list and was not in this turn, nor in the one before.

        A list that changes while it is read may hide a thing once.
        """
        self._write(
            ("update seen set missed = missed + 1 where list = ? and turn < ?", [(list_, turn)])
        )
        return list(
            self._db.execute(
                "select key, fact from seen where list = ? and turn < ? and missed > 1",
                (list_, turn),
            )
        )

    def missed(self, list_: str) -> bool:
        """Whether something was not there the last time and has to be looked for once more."""
        found = self._db.execute(
            "select 1 from seen where list = ? and missed = 1 limit 1", (list_,)
        ).get
        return found is not None

    def forget(self, list_: str, keys: Iterable[str]) -> None:
        rows = [(list_, key) for key in keys]
        self._write(("delete from seen where list = ? and key = ?", rows))

    def forget_all(self) -> None:
        """Nothing of any list is known any more."""
        self._write(("delete from seen", [()]))

    def forget_before(self, list_: str, turn: int) -> None:
        """Forget what was not in a list in this turn or later."""
        self._write(("delete from seen where list = ? and turn < ?", [(list_, turn)]))

    # What is to be fetched call by call

    def next_wanted(self, list_: str) -> tuple[str, int, int] | None:
        """(id of the call, when it is due, how often it was tried) of what is due first."""
        row: tuple[str, int, int] | None = self._db.execute(
            "select call_id, due_ms, tries from wanted where list = ? order by due_ms limit 1",
            (list_,),
        ).get
        return row

    def want(self, list_: str, idents: Iterable[str], due_ms: int) -> None:
        """Fetch what belongs to each of these then, or sooner if that was meant already."""
        self._write((_WANT_AGAIN, [(list_, ident, due_ms) for ident in idents]))

    def put_off(self, list_: str, call_id: str, due_ms: int) -> None:
        """Try it again then."""
        self._write(
            (
                "update wanted set due_ms = ?, tries = tries + 1 where list = ? and call_id = ?",
                [(due_ms, list_, call_id)],
            )
        )

    def fetched(self, list_: str, call_id: str, events: Sequence[Event] = ()) -> None:
        """It is durable, or given up."""
        self._write(
            ("delete from wanted where list = ? and call_id = ?", [(list_, call_id)]),
            (_REMEMBER, self._rows(list_, events, CALLS)),
        )

    def drop_oldest_wanted(self, list_: str) -> int:
        """Keep to WANTED_MAX; how many were given up."""
        count = int(
            self._db.execute("select count(*) from wanted where list = ?", (list_,)).get or 0
        )
        over = max(0, count - WANTED_MAX)
        if over:
            self._write(
                (
                    _DROP_OLDEST,
                    [(list_, over)],
                )
            )
        return over

    # Gaps

    def found_in(self, gap: Gap) -> int:
        """How many calls were found in a gap."""
        return int(
            self._db.execute(
                "select count(*) from found where channel = ? and from_ms = ?",
                (gap.channel, gap.from_ms),
            ).get
            or 0
        )

    def gap_closed(self, gap: Gap) -> None:
        self._write(
            (
                "delete from found where channel = ? and from_ms = ?",
                [(gap.channel, gap.from_ms)],
            )
        )

    def _write(self, *work: tuple[str, Sequence[Bindings]]) -> None:
        """Do all of it or nothing."""
        try:
            self._do(work)
        except apsw.Error as error:
            # A disk that takes nothing must not stop us: what we do not remember we repeat.
            _tell_lost(self._path, error)
            self._db = _open(":memory:")
            # The file is not told of anything any more: in the next life it must not be believed.
            self._do([(_SET_NOTE, [("mark", secrets.token_hex(8))]), *work])

    def _do(self, work: Sequence[tuple[str, Sequence[Bindings]]]) -> None:
        with self._db:
            for sql, rows in work:
                if rows:
                    self._db.executemany(sql, rows)


def _tell_lost(path: Path | None, error: Exception) -> None:
    log.warning("poll_memory_lost", path=str(path), error=type(error).__name__)


def _open(path: Path | str) -> apsw.Connection:
    """Raises CorruptError if the file is damaged anywhere."""
    db = apsw.Connection(str(path))
    db.set_busy_timeout(_BUSY_MS)
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "normal")
    db.execute(_SCHEMA)
    if db.execute("pragma quick_check(1)").get != "ok":
        db.close()
        raise apsw.CorruptError
    return db
