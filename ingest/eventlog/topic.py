"""One topic of the journal for those who write: always its end, whatever happens there."""

import os
from collections.abc import Sequence
from pathlib import Path

import apsw
import structlog

from ingest.errors import PublishError
from ingest.eventlog.log import Record
from ingest.eventlog.segments import (
    CORRUPT,
    SealedError,
    Segment,
    first_position,
    left_open,
    segment_paths,
    sync_folder,
)
from schemas.times import now_ms

log = structlog.get_logger()

#: A segment that has grown to this is sealed.
SEGMENT_BYTES = 64 * 1024 * 1024

#: The share of the file system that is left to others.
KEEP_FREE = 0.05

#: After a segment that could not be sealed, positions go on well behind it: another process may
#: still be adding to it.
_SAFE_JUMP = 1_000_000

#: Rolling, sealing and other processes can each cost one try.
_TRIES = 10


class TopicWriter:
    """Appends to the newest segment of a topic, and makes the next one. Used by one thread."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self._segment: Segment | None = None
        self._folder_mtime = 0

    def append(self, records: Sequence[Record]) -> None:
        """Return once the records are durable.

        Raises PublishError, reason ``disk_full``, ``disk_error`` or ``disk_busy``; then none is.
        """
        # Before the write: on a full disk everybody can do least.
        if disk_full(self.folder if self._segment is not None else self.folder.parent):
            raise PublishError("disk_full")
        for _ in range(_TRIES):
            try:
                segment = self.newest()
                segment.append(records, now_ms())
                if segment.size >= self._segment_bytes:
                    self.roll(segment)
            except SealedError:
                self._leave(checkpoint=True)
            except CORRUPT:
                self._replace_damaged()
            except apsw.FullError:
                raise PublishError("disk_full") from None
            except apsw.BusyError:
                raise PublishError("disk_busy") from None
            except (apsw.Error, OSError) as error:
                # What the kernel could not write it may have forgotten, while its cache still
                # says otherwise: nothing is ever added to that file again.
                self._abandon(error)
                raise PublishError("disk_error", type(error).__name__) from None
            else:
                return
        raise PublishError("disk_error", "no segment takes records")

    def newest(self) -> Segment:
        """The segment to append to, made if there is none."""
        # Another process may have sealed ours, or given it up. A look at the folder is cheap.
        mtime = self.folder.stat().st_mtime_ns if self.folder.exists() else 0
        if self._segment is not None and mtime == self._folder_mtime:
            return self._segment
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = segment_paths(self.folder)
        if not paths:
            Segment.create(self.folder, 1)
            sync_folder(self.folder.parent)
            paths = segment_paths(self.folder)
        if self._segment is None or self._segment.path != paths[-1]:
            self._leave()
            self._segment = self._open(paths[-1])
        if self._segment.sealed:  # whoever sealed it did not live to make the next one
            Segment.create(self.folder, self._segment.last() + 1)
            self._leave(checkpoint=True)
            self._segment = self._open(segment_paths(self.folder)[-1])
        self._folder_mtime = self.folder.stat().st_mtime_ns
        return self._segment

    def roll(self, segment: Segment) -> None:
        """End a segment; the next append finds or makes its successor."""
        segment.seal()
        Segment.create(self.folder, segment.last() + 1)
        self._leave(checkpoint=True)

    def close(self) -> None:
        self._leave(checkpoint=True)

    def _open(self, path: Path) -> Segment:
        interrupted = left_open(path)  # opening it makes a write-ahead log of our own
        segment = Segment(path)
        if interrupted and not segment.check():
            segment.close()
            raise apsw.CorruptError
        return segment

    def _leave(self, *, checkpoint: bool = False) -> None:
        if self._segment is not None:
            self._segment.close(checkpoint=checkpoint)
            self._segment = None

    def _abandon(self, error: Exception) -> None:
        log.error("segment_abandoned", topic=self.folder.name, error=type(error).__name__)
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            last = segment.last()
        except apsw.Error:
            last = first_position(segment.path)
        segment.close()
        Segment.create(self.folder, last + _SAFE_JUMP)

    def _replace_damaged(self) -> None:
        """Set a damaged file aside; what can be read of it takes its place, sealed."""
        self._leave()
        path = segment_paths(self.folder)[-1]
        try:
            damaged = Segment(path)
            rows = damaged.salvage()
            damaged.close()
        except apsw.Error:
            rows = []
        for suffix in ("-wal", "-shm", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(part.with_name(f"{part.name}.damaged"))
        Segment.create(self.folder, first_position(path))
        rescued = Segment(path)
        rescued.restore(rows)
        rescued.seal()
        last = rescued.last()
        rescued.close(checkpoint=True)
        Segment.create(self.folder, last + _SAFE_JUMP)
        log.error("segment_damaged", topic=self.folder.name, file=path.name, rescued=len(rows))


def disk_full(folder: Path) -> bool:
    """Whether the file system has less than `KEEP_FREE` of it left."""
    disk = os.statvfs(folder)
    return disk.f_bavail < disk.f_blocks * KEEP_FREE
