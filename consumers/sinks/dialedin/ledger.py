"""What DialedIn was told, in one small SQLite file, so that nothing is told again.

Losing it repeats what does no harm, and no lead: one is looked for before it is made.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

import apsw
import structlog
from msgspec import Struct

from ingest.eventlog.segments import make_folder

log = structlog.get_logger()

T = TypeVar("T")

#: What is older is forgotten, in milliseconds: nobody tells us of it again.
KEEP_MS = 90 * 24 * 3600 * 1000

_BUSY_MS = 5000

_SCHEMA = """
create table if not exists commands (
    key text primary key, action text not null, begun_ms integer not null, outcome text
) without rowid;
create index if not exists commands_begun on commands (begun_ms)
"""

_BEGIN = """
insert into commands values (?1, ?2, ?3, null)
on conflict do update set begun_ms = excluded.begun_ms, outcome = null
"""

_END = """
insert into commands values (?1, ?2, ?3, ?4) on conflict do update set outcome = excluded.outcome
"""


class LedgerError(Exception):
    """The disk takes nothing."""


class Entry(Struct, frozen=True):
    #: When it was last sent, or about to be: by our clock, milliseconds since 1970.
    begun_ms: int
    #: What became of it; None: nobody knows.
    outcome: str | None


class Ledger:
    """The commands of one connection. Use `open`. What is written is durable."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        # One thread: SQLite waits for the disk, and the event loop must not.
        self._thread = ThreadPoolExecutor(1, "ledger")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the file; one that cannot be read is made anew. Raises LedgerError."""
        try:
            make_folder(path.parent)
            try:
                return cls(_open(path))
            except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
                log.warning("sink_ledger_lost", path=str(path), error=type(error).__name__)
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                return cls(_open(path))
        except (apsw.Error, OSError) as error:
            raise LedgerError(type(error).__name__) from None

    async def close(self) -> None:
        """Once everything that was begun is written."""
        await self._do(self._db.close)
        self._thread.shutdown()

    async def entries(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Of those that are known."""

        def read() -> dict[str, Entry]:
            rows = self._db.executemany(
                "select key, begun_ms, outcome from commands where key = ?", [(k,) for k in keys]
            )
            return {key: Entry(begun_ms, outcome) for key, begun_ms, outcome in rows}

        return await self._do(read)

    async def begin(self, key: str, action: str, at_ms: int) -> None:
        """It is about to be sent."""
        await self._write(_BEGIN, (key, action, at_ms))

    async def forget(self, key: str) -> None:
        """It was not done after all."""
        await self._write("delete from commands where key = ?", (key,))

    async def end(self, key: str, action: str, at_ms: int, outcome: str) -> None:
        """It is done, and need not be done again."""
        await self._write(_END, (key, action, at_ms, outcome), at_ms)

    async def _write(self, sql: str, row: tuple[str | int, ...], at_ms: int | None = None) -> None:
        def write() -> None:
            with self._db:
                self._db.execute(sql, row)
                if at_ms is not None:
                    self._db.execute("delete from commands where begun_ms < ?", (at_ms - KEEP_MS,))

        await self._do(write)

    async def _do(self, do: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, do)
        except apsw.Error as error:
            raise LedgerError(type(error).__name__) from None


def glance(path: Path, keys: Sequence[str]) -> set[str]:
    """Which of these are done, without touching anything; none if there is no ledger."""
    with suppress(apsw.Error):
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.set_busy_timeout(_BUSY_MS)
            rows = db.executemany(
                "select key from commands where key = ? and outcome not null", [(k,) for k in keys]
            )
            return {key for (key,) in rows}
        finally:
            db.close()
    return set()


def _open(path: Path) -> apsw.Connection:
    """Raises CorruptError if the file is damaged anywhere."""
    db = apsw.Connection(str(path))
    try:
        db.set_busy_timeout(_BUSY_MS)
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", "full")
        db.execute(_SCHEMA)
        if db.execute("pragma quick_check(1)").get != "ok":
            raise apsw.CorruptError
    except apsw.Error:
        db.close()
        raise
    return db
