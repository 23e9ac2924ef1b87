"""What DialedIn was told, in one small SQLite file, so that nothing is told again.

Losing it repeats what does no harm, and no lead: one is looked for before it is made. Nothing in it
is forgotten, since compacted topics forget nothing: a line has some hundred bytes.
"""

import asyncio
import secrets
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

_BUSY_MS = 5000

_BROKEN = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError)

_SCHEMA = """
create table if not exists commands (
    key text primary key, action text not null, begun_ms integer not null, outcome text
) without rowid
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


class LedgerLostError(LedgerError):
    """What is there cannot be read any more."""


class Entry(Struct, frozen=True):
    #: When it was last sent, or about to be: by our clock, milliseconds since 1970.
    begun_ms: int
    #: What became of it; None: nobody knows.
    outcome: str | None


class Ledger:
    """The commands of one connection. Use `open`. What is written is durable.

    All but `close` raise LedgerError.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        #: Of this file and no other.
        self.ident: int = db.pragma("user_version")
        # One thread: SQLite waits for the disk, and the event loop must not.
        self._thread = ThreadPoolExecutor(1, "ledger")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the file; one that cannot be read is made anew. Raises LedgerError."""
        try:
            make_folder(path.parent)
            try:
                return cls(_open(path))
            except _BROKEN as error:
                log.warning("sink_ledger_lost", path=str(path), error=type(error).__name__)
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                return cls(_open(path))
        except (apsw.Error, OSError) as error:
            raise LedgerError(type(error).__name__) from None

    async def close(self) -> None:
        """Once everything that was begun is written. Never raises."""
        with suppress(LedgerError):
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
        await self._write(_END, (key, action, at_ms, outcome))

    async def _write(self, sql: str, row: tuple[str | int, ...]) -> None:
        def write() -> None:
            with self._db:
                self._db.execute(sql, row)

        await self._do(write)

    async def _do(self, do: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, do)
        except _BROKEN as error:
            raise LedgerLostError(type(error).__name__) from None
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
        if not db.pragma("user_version"):
            db.pragma("user_version", 1 + secrets.randbelow(2**31 - 1))
        if db.execute("pragma quick_check(1)").get != "ok":
            raise apsw.CorruptError
    except apsw.Error:
        db.close()
        raise
    return db
