"""Deliveries that did not verify, kept for a while: the secret that is wrong may be ours.

Each is a file of its own, ``quarantine/<connection>/<when>-<reason>-<nth>.json`` below the data
directory, that only its owner can read. Keeping costs whoever answers next to nothing: a delivery
is put into a queue, or dropped if that is full, and a thread writes it, without waiting for the
disk. They are a help, and no promise.

A flood fills neither the disk nor the place of what was there before it:

* of each connection and reason only so many are taken a minute, and bytes of them;
* beyond the bounds of a connection one goes, at random, of the hour and reason that has most. So a
  flood makes room for itself, what stays of it is a sample, and the few of last night stay.

Several processes may keep what they refuse in one folder: each looks at it once a minute.
"""

import asyncio
import itertools
import os
import queue
import random
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from ingest.delivery import Delivery, Source
from ingest.errors import VerificationError
from ingest.eventlog.topic import disk_full
from ingest.metrics import QUARANTINED
from ingest.settings import Quarantine
from schemas.times import now_ms

log = structlog.get_logger()

#: Of a minute's deliveries of one connection and reason no more than this part of the bounds.
_MINUTES_SHARE = 10

#: What may wait for the thread.
_QUEUE, _QUEUE_BYTES = 1000, 16 * 1024 * 1024

#: Between two looks at a folder, in seconds; files that nobody finished go after so long, too.
_LOOK_S = 60.0

#: At the end, to write what waits.
_GOODBYE_S = 1.0

#: So many sources of before secrets were read again are remembered of each connection.
_FORMER = 3

_HOUR_MS = 3_600_000

_NAME = re.compile(r"(?P<ms>\d{13})-(?P<reason>[a-z0-9_]{1,40})-[0-9a-f]{8}\.json", re.ASCII)
_UNFINISHED = ".part"

#: Who signs with a secret gets such a refusal.
_SIGNED = frozenset(("bad_signature", "bad_token"))


class Refused(Struct, frozen=True, kw_only=True):
    """A delivery that did not verify, as it is kept."""

    connection: str
    via: str
    hint: str | None
    reason: str
    received_ms: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    #: A secret has signed it that was in the settings before they were read again.
    former: bool = False

    @property
    def delivery(self) -> Delivery:
        return Delivery(
            connection=self.connection,
            via=self.via,
            headers=self.headers,
            body=self.body,
            received_ms=self.received_ms,
            hint=self.hint,
        )


class File(Struct, frozen=True):
    """One that is there, by its name."""

    path: Path
    received_ms: int
    reason: str
    size_bytes: int

    @property
    def connection(self) -> str:
        return self.path.parent.name

    @property
    def ident(self) -> str:
        return self.path.stem

    @property
    def nth(self) -> str:
        """What tells it from others; it counts up, from anywhere."""
        return self.ident.rpartition("-")[2]

    @property
    def order(self) -> tuple[int, str]:
        """As they came, also within a millisecond."""
        return self.received_ms, self.nth

    def read(self) -> Refused | None:
        """What is in it; None if it is damaged. Raises FileNotFoundError if it has gone."""
        try:
            return _decoder.decode(self.path.read_bytes())
        except FileNotFoundError:
            raise
        except (OSError, msgspec.DecodeError):
            return None


_decoder = msgspec.json.Decoder(Refused)
_encoder = msgspec.json.Encoder()


def quarantine_folder(path: Path) -> Path:
    return path / "quarantine"


def files_in(folder: Path) -> list[File]:
    """Those of one connection's folder, the oldest first; whatever else is there is passed over."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is None:
                continue
            with suppress(OSError):  # it has just gone
                if entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    found.append(File(Path(entry.path), int(name["ms"]), name["reason"], size))
    return sorted(found, key=lambda file: file.order)


class Allowance:
    """What is taken of one connection and reason in the minute that runs."""

    __slots__ = ("bytes", "count", "minute", "sampled_out")

    def __init__(self, connection: str) -> None:
        self.minute = self.count = self.bytes = 0
        self.sampled_out = QUARANTINED.labels(connection, "sampled_out")


class Keeper:
    """Keeps what one process refuses. `offer` is for the event loop, and never waits."""

    def __init__(self, folder: Path, bounds: Quarantine) -> None:
        self._folder = folder
        self._bounds = bounds
        self._most = max(1, bounds.max_count // _MINUTES_SHARE)
        self._most_bytes = max(1, bounds.max_bytes // _MINUTES_SHARE)
        self._allowances: dict[tuple[str, str], Allowance] = {}
        self._queue: queue.SimpleQueue[tuple[Delivery, str] | None] = queue.SimpleQueue()
        #: Bytes that were put into the queue, and taken from it; each is one thread's.
        self._put = self._taken = 0
        self._shelves: dict[str, Shelf] = {}
        self._former: dict[str, tuple[Source, ...]] = {}
        self._thread: threading.Thread | None = None
        self._closing = False
        self._told: set[str] = set()

    def offer(self, delivery: Delivery, reason: str) -> None:
        """Keep a delivery that was refused for ``reason``, if there is room for it."""
        key = delivery.connection, reason
        allowance = self._allowances.get(key)
        if allowance is None:
            allowance = self._allowances[key] = Allowance(delivery.connection)
        minute = delivery.received_ms // 60_000
        if allowance.minute != minute:
            allowance.minute, allowance.count, allowance.bytes = minute, 0, 0
        size = _size(delivery) if allowance.count < self._most else 0
        if (
            allowance.count >= self._most
            or allowance.bytes + size > self._most_bytes
            or self._queue.qsize() >= _QUEUE
            or self._put - self._taken + size > _QUEUE_BYTES
        ):
            allowance.sampled_out.inc()
            return
        allowance.count += 1
        allowance.bytes += size
        self._put += size
        self._queue.put((delivery, reason))
        self._begin()

    def replaced(self, sources: Mapping[str, Source]) -> None:
        """These are not used any more: what their secrets have signed is told from the rest."""
        for name, source in sources.items():
            self._former[name] = (*self._former.get(name, ()), source)[-_FORMER:]

    async def tidy(self) -> None:
        """Now and then: what is too old goes, also if nothing comes."""
        if self._shelves or self._folder.is_dir():
            self._queue.put(None)
            self._begin()

    def close(self) -> None:
        """Write what waits, for a second at most."""
        if self._thread is not None:
            self._closing = True
            self._queue.put(None)
            self._thread.join(_GOODBYE_S)

    # In the thread

    def _begin(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="quarantine", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # there are too many: what waits goes with the next
            self._tell(type(error).__name__)
        else:
            self._thread = thread

    def _run(self) -> None:
        while True:
            asked = self._queue.get()
            try:
                if asked is not None:
                    delivery, reason = asked
                    self._taken += _size(delivery)
                    self._keep(delivery, reason)
                elif self._closing:
                    return
                else:
                    self._tidy()
            except Exception as error:  # noqa: BLE001 - the next may fare better
                self._tell(type(error).__name__)

    def _keep(self, delivery: Delivery, reason: str) -> None:
        shelf = self._shelf(delivery.connection)
        refused = Refused(
            connection=delivery.connection,
            via=delivery.via,
            hint=delivery.hint,
            reason=reason,
            received_ms=delivery.received_ms,
            headers=delivery.headers,
            body=delivery.body,
            former=reason in _SIGNED and self._was_signed_before(delivery),
        )
        kept = shelf.put(refused)
        QUARANTINED.labels(delivery.connection, "kept" if kept else "no_room").inc()

    def _was_signed_before(self, delivery: Delivery) -> bool:
        for source in self._former.get(delivery.connection, ()):
            with suppress(VerificationError):
                source.verify(delivery)
                return True
        return False

    def _shelf(self, connection: str) -> "Shelf":
        if connection not in self._shelves:
            self._shelves[connection] = Shelf(self._folder / connection, self._bounds)
        return self._shelves[connection]

    def _tidy(self) -> None:
        """All connections' folders, also of those that are in no settings any more."""
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self._shelf(entry.name).look()

    def _tell(self, error: str) -> None:
        if error not in self._told:
            self._told.add(error)
            log.warning("quarantine_failed", error=error)


def _size(delivery: Delivery) -> int:
    """In bytes, of all that a stranger has chosen."""
    return len(delivery.body) + sum(len(name) + len(value) for name, value in delivery.headers)


@asynccontextmanager
async def closing_at_end(keeper: Keeper) -> AsyncIterator[None]:
    """What waits is written when the block ends."""
    try:
        yield
    finally:
        await asyncio.to_thread(keeper.close)


class _Cell:
    """What came in one hour and was refused for one reason."""

    __slots__ = ("count", "files", "size_bytes")

    def __init__(self) -> None:
        self.files: list[File] = []
        self.count = self.size_bytes = 0

    def add(self, file: File) -> None:
        self.files.append(file)
        self.count += 1
        self.size_bytes += file.size_bytes

    def take_one(self) -> File:
        """Any."""
        at = random.randrange(self.count)  # noqa: S311 - it does not matter
        self.files[at], self.files[-1] = self.files[-1], self.files[at]
        file = self.files.pop()
        self.count -= 1
        self.size_bytes -= file.size_bytes
        return file


class Shelf:
    """One connection's folder. Used by one thread, beside those of other processes."""

    def __init__(self, folder: Path, bounds: Quarantine) -> None:
        self._folder = folder
        self._bounds = bounds
        self._nth = itertools.count(random.getrandbits(12))
        #: (hour, reason) → what is there.
        self._cells: dict[tuple[int, str], _Cell] = {}
        self.count = self.size_bytes = 0
        self._looked: float | None = None

    def put(self, refused: Refused) -> bool:
        """Write a file, and make room for it; False if the disk has none."""
        if self._looked is None or time.monotonic() - self._looked > _LOOK_S:
            self.look()
        content = _encoder.encode(refused)
        if len(content) > self._bounds.max_bytes:
            return False
        if self._looked is None or not self._folder.is_dir():
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if disk_full(self._folder):
            return False
        ms = min(max(refused.received_ms, 0), 10**13 - 1)
        nth = f"{next(self._nth) & 0xFFFF:04x}{secrets.token_hex(2)}"
        name = f"{ms:013d}-{refused.reason}-{nth}.json"
        self._add(File(self._write(name, content), ms, refused.reason, len(content)))
        self._keep_bounds()
        return True

    def look(self) -> None:
        """See what is there, and take away what is too old."""
        self._looked = time.monotonic()
        self._cells.clear()
        self.count = self.size_bytes = 0
        oldest_ms = now_ms() - self._bounds.max_age_s * 1000
        for file in files_in(self._folder):
            if file.received_ms < oldest_ms:
                _unlink(file.path)
            else:
                self._add(file)
        self._keep_bounds()
        for path in self._folder.glob(f"*{_UNFINISHED}"):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > _LOOK_S:
                    _unlink(path)

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        unfinished = path.with_suffix(_UNFINISHED)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(unfinished, flags, 0o600), "wb") as file:
                file.write(content)
            unfinished.rename(path)
        except OSError:
            _unlink(unfinished)
            raise
        return path

    def _add(self, file: File) -> None:
        key = file.received_ms // _HOUR_MS, file.reason
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell()
        cell.add(file)
        self.count += 1
        self.size_bytes += file.size_bytes

    def _keep_bounds(self) -> None:
        while self.count > self._bounds.max_count:
            self._make_room(lambda cell: cell.count)
        while self.size_bytes > self._bounds.max_bytes:
            self._make_room(lambda cell: cell.size_bytes)

    def _make_room(self, weight: Callable[[_Cell], int]) -> None:
        """One goes of the hour and reason that has most."""
        key, cell = max(self._cells.items(), key=lambda item: weight(item[1]))
        file = cell.take_one()
        if not cell.count:
            del self._cells[key]
        self.count -= 1
        self.size_bytes -= file.size_bytes
        _unlink(file.path)


def _unlink(path: Path) -> None:
    with suppress(OSError):  # it may have gone, or go the next time
        path.unlink()
