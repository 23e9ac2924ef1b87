"""One topic of the journal for those who write: always its end, whatever happens there."""

import errno
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import apsw
import structlog

from ingest.errors import PublishError
from ingest.eventlog.log import Record
from ingest.eventlog.segments import (
    CORRUPT,
    SAFE_JUMP,
    SealedError,
    Segment,
    first_position,
    left_open,
    make_folder,
    rescue,
    segment_paths,
    set_aside,
    sync_folder,
)
from schemas.times import now_ms

log = structlog.get_logger()

#: A segment that has grown to this is sealed.
SEGMENT_BYTES = 64 * 1024 * 1024

#: The share of the file system that is left to others.
KEEP_FREE = 0.05

#: Rolling, sealing and other processes can each cost one try.
_TRIES = 100


class TopicWriter:
    """Appends to the newest segment of a topic, and makes the next one. Used by one thread."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        #: Position of the last record that was appended here.
        self.last = 0
        self._segment: Segment | None = None
        self._folder_mtime = 0
        #: What was opened last, whether it could be or not.
        self._opened: Path | None = None
        #: Where positions go on behind a file that failed, until a segment stands there.
        self._resume: int | None = None

    def append(self, records: Sequence[Record]) -> None:
        """Return once the records are durable.

        Raises PublishError, reason ``disk_full``, ``disk_error`` or ``disk_busy``; then none is.
        """
        for _ in range(_TRIES):
            try:
                # Before the write: on a full disk everybody can do least.
                if disk_full(self.folder.parent):
                    raise PublishError("disk_full")
                if self._append(records):
                    return
            except apsw.BusyError:
                raise PublishError("disk_busy") from None
            except (apsw.Error, OSError) as error:
                if _no_room(error):
                    raise PublishError("disk_full") from None
                self._abandon(error)
                raise PublishError("disk_error", type(error).__name__) from None
        raise PublishError("disk_error", "no segment takes records")

    def _append(self, records: Sequence[Record]) -> bool:
        """Try; False if another segment has to be found."""
        try:
            segment = self.newest()
            self.last = segment.append(records, now_ms())
        except SealedError:
            self._leave(checkpoint=True)
            return False
        except CORRUPT:
            self._replace_damaged()
            return False
        # The records are durable. What fails from here on is not their fault.
        try:
            if segment.size >= self._segment_bytes:
                self.roll(segment)
            else:
                segment.checkpoint()
        except (apsw.BusyError, *CORRUPT):
            pass  # the next append meets it again
        except (apsw.Error, OSError) as error:
            if not _no_room(error):
                self._abandon(error)
        return True

    def newest(self) -> Segment:
        """The segment to append to, made if there is none."""
        # Another process may have sealed ours, or given it up. A look at the folder is cheap.
        mtime = self.folder.stat().st_mtime_ns if self.folder.exists() else 0
        if self._segment is not None and mtime == self._folder_mtime:
            return self._segment
        make_folder(self.folder)
        if self._resume is not None:
            Segment.create(self.folder, self._resume)
            self._resume = None
        paths = segment_paths(self.folder)
        if not paths:
            sync_folder(self.folder.parent)  # who made it may not have come so far
            Segment.create(self.folder, 1)
            paths = segment_paths(self.folder)
        if self._segment is None or self._segment.path != paths[-1]:
            self._leave()
            self._segment = self._open(paths[-1])
        if self._segment.sealed:  # whoever sealed it did not live to make the next one
            Segment.create(self.folder, self._segment.following())
            self._leave(checkpoint=True)
            self._segment = self._open(segment_paths(self.folder)[-1])
        self._folder_mtime = mtime  # of before we looked: what came since is seen the next time
        return self._segment

    def roll(self, segment: Segment) -> None:
        """End a segment; the next append finds or makes its successor."""
        segment.seal()
        Segment.create(self.folder, segment.following())
        self._leave(checkpoint=True)

    def close(self) -> None:
        self._leave(checkpoint=True)

    def _open(self, path: Path) -> Segment:
        self._opened = path
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
        """Add nothing more to the segment, ever.

        What the kernel could not write it may have forgotten, while its cache says otherwise.
        """
        segment, self._segment = self._segment, None
        if segment is None:
            return
        log.error("segment_abandoned", topic=self.folder.name, error=type(error).__name__)
        try:
            last = segment.last()
        except apsw.Error:
            last = segment.first
        segment.close()
        self._resume = last + SAFE_JUMP
        with suppress(apsw.Error, OSError):  # at once, for other processes; else at the next append
            self.newest()

    def _replace_damaged(self) -> None:
        """Set a damaged file aside; what can be read of it takes its place, sealed."""
        self._leave()
        path = segment_paths(self.folder)[-1]
        if path != self._opened:
            return  # another process was quicker
        with suppress(apsw.Error), closing(Segment(path)) as damaged:
            damaged.seal()
        rescued = rescue(path)
        set_aside(path)
        Segment.create(self.folder, first_position(path), rescued)
        log.error("segment_damaged", topic=self.folder.name, file=path.name, rescued=len(rescued))


def _no_room(error: Exception) -> bool:
    return isinstance(error, apsw.FullError) or (
        isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    )


def disk_full(folder: Path) -> bool:
    """Whether the file system has less than `KEEP_FREE` of it left."""
    disk = os.statvfs(folder)
    return disk.f_bavail < disk.f_blocks * KEEP_FREE
