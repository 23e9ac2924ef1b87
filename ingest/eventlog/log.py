"""What an event log promises. The journal keeps it, and so does whatever stands in its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.event import CONTENT_TYPE, Event, encode


@dataclass(slots=True)
class Record:
    """What is appended to a topic. Positions and partitions are the log's business."""

    #: Without the prefix.
    topic: str
    key: bytes
    #: None is a tombstone: the key's records may go once they are compacted.
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class StoredRecord:
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


class Receipt(Protocol):
    """Stands for records that were handed over and may not be durable yet."""

    @property
    def durable(self) -> bool | None:
        """True once they are; False if they never will be; None while that is open."""
        ...

    async def wait(self, deadline: float) -> str:
        """Return where the records are, once they are durable: ``journal``, ``kafka``, ``spool``.

        Raises PublishError if they could not be stored, or with reason ``timeout`` at
        ``deadline`` (the event loop's clock); they may still become durable later.
        """
        ...


class Publisher(Protocol):
    """Appends records. Records of one key stand in the order of the calls."""

    def publish(self, records: Sequence[Record]) -> Receipt:
        """Hand over records of one topic; they are stored all together or not at all.

        Returns at once. Raises PublishError with reason ``overload`` if too much is waiting.
        """
        ...

    def degraded(self) -> Sequence[str]:
        """What is wrong although records are still accepted, a word each."""
        ...

    def refusing(self) -> str | None:
        """Why nothing can be stored at the moment, or None."""
        ...


class Reader(Protocol):
    """Reads topics from a position onwards, each partition in order."""

    async def fetch(self, wait_s: float) -> Sequence[StoredRecord]:
        """Return what there is next, after ``wait_s`` at the latest, empty if there is nothing."""
        ...

    async def commit(self, stored: Sequence[StoredRecord]) -> None:
        """Never hand these records, or any before them in their partitions, to this group again."""
        ...

    async def caught_up(self) -> bool:
        """Whether everything that was on the log when this was called has been fetched."""
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
    if event.subject_kind == "contact" and event.what == "deleted":
        return [record, Record(topic, key, None, headers)]
    return [record]
