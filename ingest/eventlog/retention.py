"""What the journal forgets: whole segments, oldest first, never by deleting rows."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import apsw
import structlog

from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.segments import (
    CORRUPT,
    SealedError,
    Segment,
    first_position,
    segment_paths,
    unlink_segment,
)
from ingest.eventlog.topic import TopicWriter
from schemas.topics import DAY_S, TOPICS, Topic

log = structlog.get_logger()

#: A segment that began longer ago is sealed, so that quiet topics forget too.
ROLL_AGE_S = 7 * DAY_S

#: A tombstone stays at least this long, for readers to see it,
TOMBSTONE_S = DAY_S

#: and at most this long, once its segment is sealed: what it buries must not stay for good where
#: little changes.
BURIED_S = 7 * DAY_S


@dataclass(frozen=True, slots=True)
class Usage:
    """What a topic takes up."""

    segments: int
    size_bytes: int


def tidy(folder: Path, *, max_bytes: int, now_ms: int) -> Mapping[str, Usage]:
    """Forget what is over in the journal in ``folder``: by age, by size, by compaction.

    Harmless beside writers, readers and another tidier. Returns what is left, by topic.
    """
    topics = _topics(folder)
    with _alone(folder) as alone:
        if alone:
            for topic in topics:
                try:
                    _tidy_topic(folder / topic.name, topic, now_ms)
                except (apsw.Error, OSError) as error:  # the others must not grow for it
                    log.error("housekeeping_failed", where=topic.name, error=type(error).__name__)
            _trim(folder, topics, max_bytes)
    return {
        topic.name: Usage(len(paths), sum(map(_size, paths)))
        for topic in topics
        if (paths := segment_paths(folder / topic.name))
    }


def _topics(folder: Path) -> Sequence[Topic]:
    """All that there are, those of what groups could not handle included."""
    rejects = TOPICS["rejects"]
    groups = sorted(path.name for path in folder.glob(f"{rejects.name}.*") if path.is_dir())
    return [*TOPICS.values(), *(replace(rejects, name=name) for name in groups)]


def _tidy_topic(folder: Path, topic: Topic, now_ms: int) -> None:
    if not folder.is_dir():
        return
    if topic.compacted:
        _compact(folder, topic, now_ms)
    else:
        _expire(folder, topic, now_ms)
    _seal_old(folder, now_ms)  # last: on a full disk it fails, and the others make room


def _seal_old(folder: Path, now_ms: int) -> None:
    for path in segment_paths(folder)[-1:]:
        with _opened(path) as segment:
            written = segment.written()
            if written is not None and now_ms - written[0] > ROLL_AGE_S * 1000:
                segment.seal()
                Segment.create(folder, segment.following())


def _expire(folder: Path, topic: Topic, now_ms: int) -> None:
    assert topic.retention_s is not None
    for path in _sealed(folder):
        if now_ms - _last_written_ms(path) <= topic.retention_s * 1000:
            return
        unlink_segment(path)
        log.info("segment_expired", topic=topic.name, file=path.name)


def _trim(folder: Path, topics: Sequence[Topic], max_bytes: int) -> None:
    """Oldest segments of topics that are not compacted go first."""
    total = sum(_size(path) for topic in topics for path in segment_paths(folder / topic.name))
    candidates = []
    for topic in topics:
        if topic.compacted:
            continue
        sealed = _sealed(folder / topic.name)
        candidates += [(_last_written_ms(path), path) for path in sealed]
    for _, path in sorted(candidates):
        if total <= max_bytes:
            return
        total -= _size(path)
        unlink_segment(path)
        log.warning("segment_trimmed", topic=path.parent.name, file=path.name)


def _compact(folder: Path, topic: Topic, now_ms: int) -> None:
    """Copy forward what is still the last of its key, then unlink; oldest segment first.

    Only once at least half of what is sealed is over, so that each record is copied about once; or
    once a tombstone is old, which is once a week at most.
    """
    paths = segment_paths(folder)
    sealed = paths[:-1]
    if not sealed:
        return
    last: dict[bytes, int] = {}
    sealed_count = 0
    is_buried = False
    for path in paths:
        with _opened(path) as segment:
            last |= segment.last_of_keys()  # later segments hold later positions
            if path in sealed:
                sealed_count += segment.count()
                tombstone_ms = segment.first_tombstone_ms()
                is_buried |= tombstone_ms is not None and now_ms - tombstone_ms > BURIED_S * 1000
    sealed_live = sum(position < first_position(paths[-1]) for position in last.values())
    if sealed_live * 2 > sealed_count and not is_buried:
        return
    for path in sealed:
        with _opened(path) as segment:
            written = segment.written()
            if written is not None and now_ms - written[1] < topic.compaction_lag_s * 1000:
                return
            keep = [
                record
                for record in segment.read(topic.name, 0)
                if last[record.key] == record.position
                # It is the oldest segment: nothing is left that a tombstone would bury.
                and (record.value is not None or now_ms - record.written_ms < TOMBSTONE_S * 1000)
            ]
            if segment.damaged:
                raise apsw.CorruptError  # what cannot be read now may be read by hand
        _copy_forward(folder, paths[-1], keep, now_ms)
        unlink_segment(path)
        log.info("segment_compacted", topic=topic.name, file=path.name, kept=len(keep))


def _copy_forward(folder: Path, newest: Path, keep: Sequence[StoredRecord], now_ms: int) -> None:
    """Append ``keep``, less what has got a later record since ``newest`` was the newest segment."""
    while True:
        with suppress(SealedError), closing(TopicWriter(folder)) as writer:
            end = writer.newest()
            with end.writing():
                later = end.last_of_keys()
                for path in segment_paths(folder):
                    if newest <= path < end.path:
                        with _opened(path) as segment:
                            later |= segment.last_of_keys()
                left = [r for r in keep if r.key not in later]
                end.insert([Record(r.topic, r.key, r.value, r.headers) for r in left], now_ms)
                return


def _sealed(folder: Path) -> list[Path]:
    """All but the newest segment: those that nobody appends to."""
    return segment_paths(folder)[:-1]


def _last_written_ms(path: Path) -> int:
    """When the last record in it was written; 0 if there is none."""
    try:
        with _opened(path) as segment:
            return (segment.written() or (0, 0))[1]
    except (apsw.Error, OSError):  # it is damaged, or the disk too full to open it
        return path.stat().st_mtime_ns // 1_000_000


def _size(path: Path) -> int:
    """Bytes with the write-ahead log; 0 once it is gone."""
    size = 0
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            size += path.with_name(path.name + suffix).stat().st_size
    return size


@contextmanager
def _opened(path: Path) -> Iterator[Segment]:
    try:
        with closing(Segment(path)) as segment:
            yield segment
    except CORRUPT:
        log.error("segment_unreadable", topic=path.parent.name, file=path.name)
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else is tidying."""
    descriptor = os.open(folder / "tidy.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
