"""What an event log promises. The journal keeps it, and so does whatever stands in its place."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from ingest.errors import PublishError
from schemas.event import CONTENT_TYPE, Event, encode


class Record(Struct, gc=False):
    """What is appended to a topic. Positions and partitions are the log's business."""

    #: Without the prefix.
    topic: str
    key: bytes
    #: None is a tombstone: the key's records may go once they are compacted.
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class StoredRecord(Struct, gc=False):
    """A record as it stands on the log."""

    topic: str
    #: Records of one key share a partition; within it positions rise.
    partition: int
    #: Never used twice, not even after all records have gone.
    position: int
    #: Our clock when it was written, milliseconds since 1970.
    written_ms: int
    key: bytes
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


Place: TypeAlias = tuple[str, int]
"""A topic without its prefix, and a partition."""


class Behind(Struct, frozen=True):
    """Begin where somebody has left off."""

    #: The last position that was dealt with in each partition.
    positions: Mapping[Place, int]
    #: Topic → where to begin in its other partitions: not behind anything that was written then or
    #: later, milliseconds since 1970. Without one, at the beginning.
    since_ms: Mapping[str, int] = {}


Keys: TypeAlias = Mapping[str, Collection[bytes]]
"""Topic → the keys of which somebody wants to read."""


Start: TypeAlias = Literal["earliest", "latest"] | Behind
"""Where a reader begins."""


class LostError(Exception):
    """A partition has gone to another member of the group, who gets its records again."""


Settled = Callable[[PublishError | None], None]
"""Told what became of records: None is that they are durable."""


class Receipt(Protocol):
    """Stands for records that were handed over and may not be durable yet."""

    @property
    def durable(self) -> bool | None:
        """True once they are; False if that failed (they may still turn up); None while open."""
        ...

    @property
    def where(self) -> str:
        """Where the durable records are: ``journal``, ``kafka`` or ``spool``."""
        ...

    def then(self, deadline: float, settled: Settled) -> None:
        """Call ``settled`` once, in the event loop, at once if it is settled already.

        With None once the records are durable; with a PublishError if they could not be stored;
        with one whose reason is ``timeout`` at ``deadline`` (the loop's clock), after which they
        may still become durable.
        """
        ...

    async def wait(self, deadline: float) -> str:
        """The same for coroutines: return ``where``, or raise the PublishError."""
        ...


class Publisher(Protocol):
    """Appends records. Records of one key stand in the order of the calls."""

    def publish(self, records: Sequence[Record]) -> Receipt:
        """Hand over records of one topic; the receipt is durable once all of them are.

        If it fails, some of them may be stored all the same.
        Returns at once. Raises PublishError with reason ``overload`` if too much is waiting.
        """
        ...


class Spooling(Publisher, Protocol):
    """A publisher that may keep records elsewhere until the log takes them."""

    def spools(self, topic: str) -> bool:
        """Whether something of a topic is durable, but not on the log yet.

        So what is published to another topic may stand there first.
        """
        ...


class EventLog(Spooling, Protocol):
    """A publisher that is looked after."""

    def degraded(self) -> Sequence[str]:
        """What is wrong although records are still accepted, a word each."""
        ...

    def refusing(self) -> str | None:
        """Why nothing can be stored at the moment, or None."""
        ...

    @property
    def queued_bytes(self) -> int:
        """What was handed over and is not durable yet."""
        ...

    def reconnect(self) -> None:
        """Read secrets and certificates again, where there are any."""
        ...


class Reader(Protocol):
    """Reads topics from a position onwards, each partition in order."""

    async def fetch(self, wait_s: float) -> Sequence[StoredRecord]:
        """Return what there is next, after ``wait_s`` at the latest, empty if there is nothing."""
        ...

    async def commit(self, stored: Sequence[StoredRecord]) -> None:
        """Never hand these records, or any before them in their partitions, to this group again.

        Raises LostError if some of them are another member's by now.
        """
        ...

    async def caught_up(self) -> bool:
        """Whether everything that was on the log when this was called has been fetched."""
        ...

    async def behind(self) -> Collection[Place]:
        """The partitions in which there was more than has been fetched when this was called."""
        ...

    def hold(self, places: Collection[Place]) -> None:
        """Fetch from the other partitions only, from some time soon on, until told otherwise."""
        ...


class GroupReader(Reader, Protocol):
    """A reader for a group that is told what becomes of its partitions."""

    async def left(self) -> Mapping[Place, range]:
        """Of each partition that is this member's, positions from the next to fetch to its end.

        Between two records positions may be left out.
        """
        ...


class Watcher(Protocol):
    """Whoever handles what a `GroupReader` hands out."""

    async def revoked(self, places: Collection[Place], *, lost: bool) -> None:
        """These go to other members once this returns; until then they can be committed.

        Of what was handed out of them nothing may be under way any more. ``lost``: others may have
        them already, and commits come too late.
        """
        ...

    def skipped(self, place: Place, expected: int, found: int) -> None:
        """Reading goes on at ``found``: what was to come next, ``expected``, is not there any more.

        It is behind ``expected`` if the log deleted records before they were read, else before it:
        then positions have begun anew, and so does reading.
        """
        ...


def records_of(event: Event) -> list[Record]:
    """The records of an event: itself and, after a deletion, the tombstone of its key."""
    key = event.key.encode()
    headers = (
        ("content-type", CONTENT_TYPE),
        ("ce_type", event.type.encode()),
        ("ce_id", event.id.encode()),
    )
    topic = event.topic
    record = Record(topic, key, encode(event), headers)
    if event.type == "dialstream.contact.deleted":
        return [record, Record(topic, key, None, headers)]
    return [record]
