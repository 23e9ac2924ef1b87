"""A topic as a folder of SQLite files: segments, named by their first position.

    journal/calls/00000000000000000001.sqlite    sealed
    journal/calls/00000000000000025732.sqlite    the newest one, which is appended to

Why segments: on a full disk SQLite can neither delete nor checkpoint, so what is over is
unlinked. Why 16 KiB pages: at 2.7 KB a record, they halve the CPU and a third of the disk.

Several processes may append to one topic. A position is taken inside the write transaction, a
sealed segment (``user_version``) takes no more, and the next one is made under a name that only
one process can win. Everything here blocks; it is called from threads, one at a time per object.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import orjson

from ingest.eventlog.log import Record, StoredRecord

_SUFFIX = ".sqlite"

#: ``user_version``: nothing is added any more; the second holds what was saved of a damaged file.
_SEALED = 1
_RESCUED = 2

#: Where records may have been lost, positions go on well behind: they were used.
SAFE_JUMP = 1_000_000

#: So many positions in a row that cannot be read are taken for the end of a damaged file.
_MISSES = 20_000

_PAGE_BYTES = 16384
_BUSY_MS = 2000
_CHECKPOINT_PAGES = 256  # 4 MiB of write-ahead log
_VALID_FOR = 92  # https://sqlite.org/fileformat2.html#the_database_header

_SCHEMA = """
create table records (
    position integer primary key,
    written_ms integer not null,
    key blob not null,
    value blob,
    headers blob not null
) strict
"""

_ROWS_A_STATEMENT = (64, 16, 4, 1)
_INSERTS = {
    count: f"insert into records values {', '.join(['(?, ?, ?, ?, ?)'] * count)}"  # noqa: S608
    for count in _ROWS_A_STATEMENT
}

#: The file is not to be trusted any more. (What we ask is always the same: SQLite calls it wrong
#: only where our table is missing.)
CORRUPT = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError)

#: Nor is this row, or the disk below it.
UNREADABLE = (*CORRUPT, apsw.IOError, ValueError, TypeError)


class SealedError(Exception):
    """This segment takes no more."""


class Segment:
    """One file, open for reading and appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: `read` returns records of these alone; SQLite looks through the others, which is quick.
        self.keys: Collection[bytes] | None = None
        self.first = first_position(path)
        #: Some of it could not be read.
        self.damaged = False
        self._log_pages = 0
        self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._db.set_busy_timeout(_BUSY_MS)
        # A checkpoint on close would write to a file that has failed, or for a mere reader.
        self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._db.pragma("synchronous", "full")
        self._db.pragma("fullfsync", 1)  # macOS: an fsync that is one
        # SQLite's own checkpoints would keep quiet about a disk that fails; see `checkpoint`.
        self._db.set_wal_hook(self._note_log_pages)

    @staticmethod
    def create(folder: Path, first: int, rescued: Sequence[StoredRecord] | None = None) -> None:
        """Make an empty segment; harmless if another process was quicker.

        With ``rescued``: one that holds these and takes no more, in place of the damaged one.
        """
        final = folder / f"{first:020d}{_SUFFIX}"
        temporary = folder / f".{first:020d}.{threading.get_native_id()}.new"
        for leftover in folder.glob(f"{temporary.name}*"):
            leftover.unlink()
        db = apsw.Connection(str(temporary))
        db.pragma("page_size", _PAGE_BYTES)
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", "full")
        db.execute(_SCHEMA)
        if rescued is not None:
            rows = [(r.position, r.written_ms, r.key, r.value, _pack(r.headers)) for r in rescued]
            with db:
                db.executemany(_INSERTS[1], rows)
            db.pragma("user_version", _RESCUED)
        db.close()
        if rescued is not None:
            temporary.replace(final)
        else:
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
        packed = [_pack(record.headers) for record in records]
        at = 0
        while at < len(records):
            # Many rows a statement: each one gives the interpreter's lock away and has to wait for
            # it, which would cost the event loop as much as the rows cost the disk.
            count = next(size for size in _ROWS_A_STATEMENT if size <= len(records) - at)
            values: list[int | bytes | None] = []
            for n in range(at, at + count):
                record = records[n]
                values += (last + 1 + n, written_ms, record.key, record.value, packed[n])
            self._db.execute(_INSERTS[count], values)
            at += count
        return last + len(records)

    def checkpoint(self) -> None:
        """Move what is in the write-ahead log into the file, if that is worth it by now."""
        if self._log_pages >= _CHECKPOINT_PAGES:
            self._db.wal_checkpoint()

    def seal(self) -> None:
        """From now on nobody adds anything."""
        with suppress(SealedError), self.writing():
            self._db.pragma("user_version", _SEALED)

    def following(self) -> int:
        """The first position of the segment behind this one, which is sealed."""
        return self.last() + (SAFE_JUMP if self._db.pragma("user_version") == _RESCUED else 1)

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

    def read(
        self,
        topic: str,
        after: int,
        limit: int = sys.maxsize,
        max_bytes: int = sys.maxsize,
    ) -> list[StoredRecord]:
        """Records behind position ``after``, in a transaction as short as can be.

        At most ``limit``, and no more once they have ``max_bytes``. Of a file that is damaged,
        those that can be read; then `damaged` is set.
        """
        try:
            rows = self._rows(after, limit, self.keys)
            try:
                return _up_to(max_bytes, (_stored(topic, row) for row in rows))
            finally:
                rows.close()
        except UNREADABLE:
            self.damaged = True
            readable = self._wanted(self._readable(topic, after))
            return _up_to(max_bytes, islice(readable, limit))

    def _rows(self, after: int, limit: int, keys: Collection[bytes] | None = None) -> apsw.Cursor:
        these = "" if keys is None else f" and key in ({', '.join('?' * len(keys))})"
        statement = (
            "select position, written_ms, key, value, headers from records"  # noqa: S608
            f" where position >= ?{these} order by position limit ?"
        )
        # `> after` would look at the page of `after`, which may be damaged.
        return self._db.execute(statement, (after + 1, *(keys or ()), limit))

    def _wanted(self, records: Iterator[StoredRecord]) -> Iterator[StoredRecord]:
        keys = self.keys
        return records if keys is None else (each for each in records if each.key in keys)

    def _readable(self, topic: str, after: int) -> Iterator[StoredRecord]:
        misses = 0
        while misses < _MISSES:
            with suppress(*UNREADABLE):
                for row in self._rows(after, sys.maxsize):
                    stored = _stored(topic, row)
                    if stored.position <= after:  # a page that stands where another should
                        break
                    yield stored
                    after, misses = stored.position, 0
                else:
                    return
            after, misses = after + 1, misses + 1

    def last_of_keys(self) -> dict[bytes, int]:
        """Key → the position of its last record here."""
        return dict(self._db.execute("select key, max(position) from records group by key"))

    def first_tombstone_ms(self) -> int | None:
        """When its oldest tombstone was written, ms since 1970."""
        found = self._db.execute("select min(written_ms) from records where value is null").get
        return None if found is None else int(found)

    def count(self) -> int:
        return int(self._db.execute("select count(*) from records").get)

    def check(self) -> bool:
        """Whether SQLite finds the file in order. Reads all of it."""
        try:
            return bool(self._db.execute("pragma quick_check(1)").get == "ok")
        except UNREADABLE:
            return False

    def _note_log_pages(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK


def rescue(path: Path) -> list[StoredRecord]:
    """What can still be read of a damaged segment."""
    with tempfile.TemporaryDirectory(prefix=".rescue-", dir=path.parent) as folder:
        # Of a copy with a sound first page: it is the same in all segments, and without it SQLite
        # reads nothing. Its counters must differ, or SQLite insists on the size that it states.
        copy = Path(folder) / path.name
        Segment.create(copy.parent, first_position(path))
        with copy.open("r+b") as file:
            file.seek(_VALID_FOR)
            file.write(b"\xff" * 4)
            file.truncate(_PAGE_BYTES)
        _copy_readable(path, copy, _PAGE_BYTES)
        if left_open(path):
            _copy_readable(_beside(path, "-wal"), _beside(copy, "-wal"))
        try:
            segment = Segment(copy)
        except CORRUPT:
            return []
        found = segment.read("", 0)
        segment.close()
        return found


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a topic, oldest first."""
    return sorted(folder.glob(f"[0-9]*{_SUFFIX}"))


def first_position(path: Path) -> int:
    return int(path.stem)


def left_open(path: Path) -> bool:
    """Whether the last process that wrote to it was not able to tidy up."""
    return _beside(path, "-wal").exists()


def unlink_segment(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        _beside(path, suffix).unlink(missing_ok=True)
    sync_folder(path.parent)


def set_aside(path: Path) -> None:
    """Keep a damaged segment as ``*.damaged`` too, and leave its place to a file without a log."""
    for suffix in ("", "-wal", "-shm"):
        part = _beside(path, suffix)
        with suppress(FileNotFoundError, FileExistsError):
            os.link(part, part.with_name(f"{part.name}.damaged"))
        if suffix:
            part.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _up_to(max_bytes: int, records: Iterator[StoredRecord]) -> list[StoredRecord]:
    found, size = [], 0
    for record in records:
        found.append(record)
        size += len(record.key) + len(record.value or b"")
        if size >= max_bytes:
            break
    return found


def _copy_readable(source: Path, target: Path, begin: int = 0) -> None:
    """Copy a file from ``begin`` on; what the disk does not give becomes zeros."""
    with source.open("rb", buffering=0) as old, target.open("ab") as new:
        for at in range(begin, source.stat().st_size, _PAGE_BYTES):
            try:
                new.write(os.pread(old.fileno(), _PAGE_BYTES, at))
            except OSError:
                new.write(bytes(_PAGE_BYTES))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _stored(topic: str, row: Sequence[Any]) -> StoredRecord:
    position, written_ms, key, value, headers = row
    return StoredRecord(topic, 0, position, written_ms, key, value, _unpack(headers))


# Headers are bytes, and Latin-1 has a character for each byte.


def _pack(headers: Sequence[tuple[str, bytes]]) -> bytes:
    return orjson.dumps([(name, value.decode("latin-1")) for name, value in headers])


def _unpack(packed: bytes) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value.encode("latin-1")) for name, value in orjson.loads(packed))
