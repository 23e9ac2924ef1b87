"""A topic as a folder of SQLite files: segments, named by their first position.

    journal/calls/00000000000000000001.sqlite    sealed
    journal/calls/00000000000000025732.sqlite    the newest one, which is appended to

Why segments: on a full disk SQLite can neither delete nor checkpoint, so what is over is
unlinked. Why 16 KiB pages: at 2.7 KB a record, they halve the CPU and a third of the disk.

Several processes may append to one topic. A position is taken inside the write transaction, a
sealed segment (``user_version`` 1) takes no more, and the next one is made under a name that only
one process can win. Everything here blocks; it is called from threads, one at a time per object.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import orjson

from ingest.eventlog.log import Record, StoredRecord

_SUFFIX = ".sqlite"
_SEALED = 1
_PAGE_BYTES = 16384
_BUSY_MS = 2000
_CHECKPOINT_PAGES = 256  # 4 MiB of write-ahead log

_SCHEMA = """
create table records (
    position integer primary key,
    written_ms integer not null,
    key blob not null,
    value blob,
    headers blob not null
) strict
"""

#: The file is not to be trusted any more.
CORRUPT = (apsw.CorruptError, apsw.NotADBError)

Row = tuple[int, int, bytes, bytes | None, bytes]


class SealedError(Exception):
    """This segment takes no more."""


class Segment:
    """One file, open for reading and appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first = first_position(path)
        self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._db.set_busy_timeout(_BUSY_MS)
        # A checkpoint on close would write to a file that has failed, or for a mere reader.
        self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._db.pragma("synchronous", "full")
        self._db.pragma("fullfsync", 1)  # macOS: an fsync that is one
        self._db.pragma("wal_autocheckpoint", _CHECKPOINT_PAGES)

    @staticmethod
    def create(folder: Path, first: int) -> None:
        """Make an empty segment; harmless if another process was quicker."""
        final = folder / f"{first:020d}{_SUFFIX}"
        temporary = folder / f".{first:020d}.{os.getpid()}.new"
        for leftover in folder.glob(f"{temporary.name}*"):
            leftover.unlink()
        db = apsw.Connection(str(temporary))
        db.pragma("page_size", _PAGE_BYTES)
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", "full")
        db.execute(_SCHEMA)
        db.close()
        with suppress(FileExistsError):
            os.link(temporary, final)
        temporary.unlink()
        sync_folder(folder)

    def close(self, *, checkpoint: bool = False) -> None:
        """``checkpoint``: move what is in the write-ahead log into the file, which tidies up."""
        if checkpoint:
            self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that nobody else's can be beside; raises SealedError."""
        self._db.execute("begin immediate")
        try:
            if self.sealed:
                raise SealedError
            yield
            self._db.execute("commit")
        except BaseException:
            if self._db.in_transaction:
                with suppress(apsw.Error):
                    self._db.execute("rollback")
            raise

    def append(self, records: Sequence[Record], written_ms: int) -> int:
        """Add records durably; return the last position.

        Raises SealedError, or what SQLite raises; then nothing was added.
        """
        with self.writing():
            return self.insert(records, written_ms)

    def insert(self, records: Sequence[Record], written_ms: int) -> int:
        """Add records within `writing`; return the last position."""
        last = self.last()
        self._db.executemany(
            "insert into records values (?, ?, ?, ?, ?)",
            [
                (position, written_ms, record.key, record.value, _pack(record.headers))
                for position, record in enumerate(records, last + 1)
            ],
        )
        return last + len(records)

    def seal(self) -> None:
        """From now on nobody adds anything."""
        with suppress(SealedError), self.writing():
            self._db.pragma("user_version", _SEALED)

    @property
    def sealed(self) -> bool:
        return bool(self._db.pragma("user_version"))

    @property
    def size(self) -> int:
        """Bytes that it takes up."""
        return int(self._db.pragma("page_count")) * _PAGE_BYTES

    def last(self) -> int:
        """The last position that was taken, here or in an earlier segment."""
        found = self._db.execute("select max(position) from records").get
        return int(found) if found is not None else self.first - 1

    def written(self) -> tuple[int, int] | None:
        """When the first and the last record were written, ms since 1970."""
        first, last = self._db.execute(
            "select (select written_ms from records order by position limit 1),"
            " (select written_ms from records order by position desc limit 1)"
        ).get
        return None if first is None else (first, last)

    def read(self, topic: str, after: int, limit: int) -> list[StoredRecord]:
        """Records behind position ``after``, in a transaction as short as can be."""
        rows: list[Any] = self._db.execute(
            "select position, written_ms, key, value, headers from records"
            " where position > ? order by position limit ?",
            (after, limit),
        ).fetchall()
        return [
            StoredRecord(topic, 0, position, written, key, value, _unpack(headers))
            for position, written, key, value, headers in rows
        ]

    def last_of_keys(self) -> dict[bytes, int]:
        """Key → the position of its last record here."""
        return dict(self._db.execute("select key, max(position) from records group by key"))

    def count(self) -> int:
        return int(self._db.execute("select count(*) from records").get)

    def check(self) -> bool:
        """Whether SQLite finds the file in order. Reads all of it."""
        try:
            return bool(self._db.execute("pragma quick_check(1)").get == "ok")
        except CORRUPT:
            return False

    def salvage(self) -> list[Row]:
        """The rows that can still be read, from the front and from the back."""
        rows: dict[int, Row] = {}
        for order in ("asc", "desc"):
            with suppress(apsw.Error):
                query = f"select * from records order by position {order}"  # noqa: S608
                for row in self._db.execute(query):
                    if row[0] in rows:
                        break
                    rows[row[0]] = row
        return [rows[position] for position in sorted(rows)]

    def restore(self, rows: Sequence[Row]) -> None:
        """Put salvaged rows into this empty segment, under their old positions."""
        with self.writing():
            self._db.executemany("insert into records values (?, ?, ?, ?, ?)", rows)


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a topic, oldest first."""
    return sorted(folder.glob(f"[0-9]*{_SUFFIX}"))


def first_position(path: Path) -> int:
    return int(path.stem)


def left_open(path: Path) -> bool:
    """Whether the last process that wrote to it was not able to tidy up."""
    return path.with_name(f"{path.name}-wal").exists()


def unlink_segment(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pack(headers: Sequence[tuple[str, bytes]]) -> bytes:
    return orjson.dumps([(name, value.decode()) for name, value in headers])


def _unpack(packed: bytes) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value.encode()) for name, value in orjson.loads(packed))
