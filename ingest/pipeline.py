"""The whole flow: verify, normalize, publish. Once the receipt says durable, acknowledge."""

from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Literal, TypeVar

import structlog
from msgspec import Struct

from ingest.delivery import Delivery, Source, Verified
from ingest.errors import DeliveryError, PublishError, UnreadableError, VerificationError
from ingest.eventlog.log import Publisher, Receipt, Record, Settled, records_of
from ingest.privacy import Drops, writable
from ingest.rejects import reject_event
from schemas.event import Event

log = structlog.get_logger()

T = TypeVar("T")
U = TypeVar("U")


Outcome = Literal["stored", "repeat", "rejected"]
"""What became of a delivery: stored; there already or on its way (same id, same content);
authentic and unreadable, so a reject. Words, since members of an enum are slow to get at."""


class Accepted(Struct):
    """A delivery that was handed to the event log; to be acknowledged when the receipt allows."""

    outcome: Outcome
    events: Sequence[Event]
    receipt: Receipt


class Pipeline:
    """From any transport to the event log."""

    def __init__(
        self, log: Publisher, repeat_max: int, drops: Drops = MappingProxyType({})
    ) -> None:
        """``drops``: what is not to be written, by connection."""
        self._log = log
        self._repeats = Repeats(repeat_max)
        self._drops = drops

    def accept(self, delivery: Delivery, source: Source) -> Accepted:
        """Verify a delivery, and hand it to the log as events or as a reject.

        Raises VerificationError or PublishError; then, and until the receipt is durable, nothing
        may be acknowledged.
        """
        (result,) = self.accept_all([(delivery, source)])
        if isinstance(result, DeliveryError):
            raise result
        return result

    def accept_all(
        self, batch: Sequence[tuple[Delivery, Source]]
    ) -> list[Accepted | VerificationError | PublishError]:
        """The same for deliveries that came together; an error stands in place of its delivery.

        Deliveries stand on the log in the order of the calls and of the batch. All are taken
        through one stage before any enters the next: so a stage's code stays in the processor's
        caches, which halves what it costs.
        """
        read = _through(_read, _through(_verify, batch))
        return _through(self._publish, _through(self._write, read))

    def _write(self, events: Sequence[Event]) -> tuple[Sequence[Event], Sequence[list[Record]]]:
        if self._drops:
            return events, [records_of(writable(event, self._drops)) for event in events]
        return events, [records_of(event) for event in events]

    def _publish(self, written: tuple[Sequence[Event], Sequence[list[Record]]]) -> Accepted:
        events, records_of_each = written
        receipts = []
        repeated = True
        for event, records in zip(events, records_of_each, strict=True):
            # By Python's own 64-bit hash, at an eighth of the memory of id and content.
            key = hash((event.id, event.raw))
            receipt = self._repeats.find(key)
            if receipt is None:
                repeated = False
                receipt = self._log.publish(records)
                self._repeats.remember(key, receipt)
            receipts.append(receipt)
        if repeated:
            outcome: Outcome = "repeat"
        elif events[0].subject_kind == "reject":
            outcome = "rejected"
        else:
            outcome = "stored"
        return Accepted(outcome, events, receipts[0] if len(receipts) == 1 else All(receipts))


def _verify(arrived: tuple[Delivery, Source]) -> tuple[Verified, Delivery, Source]:
    delivery, source = arrived
    return source.verify(delivery), delivery, source


def _read(verified: tuple[Verified, Delivery, Source]) -> Sequence[Event]:
    payload, delivery, source = verified
    try:
        return source.normalize(payload, delivery)
    except UnreadableError as error:
        return (reject(delivery, source, error),)


def _through(
    stage: Callable[[T], U], items: Iterable[T | VerificationError | PublishError]
) -> list[U | VerificationError | PublishError]:
    """Take all items through a stage; an error takes its item's place, and only its own."""
    done: list[U | VerificationError | PublishError] = []
    for item in items:
        if isinstance(item, (VerificationError, PublishError)):
            done.append(item)
            continue
        try:
            done.append(stage(item))
        except (VerificationError, PublishError) as error:
            done.append(error)
        except Exception as fault:
            log.error("unexpected_error", exc_info=fault)
            done.append(PublishError("internal"))
    return done


class Repeats:
    """The last events, by id and content, and their receipts.

    Best effort, bounded by count: two generations, of which the older one goes as a whole.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young: dict[int, Receipt] = {}
        self._old: dict[int, Receipt] = {}

    def find(self, key: int) -> Receipt | None:
        """The receipt under ``key``, unless its records could not be stored."""
        receipt = self._young.get(key) or self._old.get(key)
        return None if receipt is None or receipt.durable is False else receipt

    def remember(self, key: int, receipt: Receipt) -> None:
        if self._half == 0:
            return
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = receipt


class All:
    """One receipt for several."""

    def __init__(self, receipts: Sequence[Receipt]) -> None:
        self._receipts = receipts

    @property
    def durable(self) -> bool | None:
        states = [receipt.durable for receipt in self._receipts]
        if False in states:
            return False
        return None if None in states else True

    @property
    def where(self) -> str:
        return self._receipts[-1].where

    def then(self, deadline: float, settled: Settled) -> None:
        self._next(0, deadline, settled, None)

    def _next(self, at: int, deadline: float, settled: Settled, error: PublishError | None) -> None:
        if error is not None or at == len(self._receipts):
            settled(error)
            return
        self._receipts[at].then(
            deadline, lambda error: self._next(at + 1, deadline, settled, error)
        )

    async def wait(self, deadline: float) -> str:
        for receipt in self._receipts:
            await receipt.wait(deadline)
        return self.where


def reject(delivery: Delivery, source: Source, error: UnreadableError) -> Event:
    """An authentic delivery that cannot be read, kept whole for a later version to read."""
    return reject_event(
        delivery.connection,
        error.reason,
        error.detail,
        via=delivery.via,
        received_ms=delivery.received_ms,
        body=delivery.body,
        headers={
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in delivery.headers
            if name in source.signing_headers
        },
    )


async def store(
    log: Publisher,
    events: Iterable[Event],
    deadline: float,
    drops: Drops = MappingProxyType({}),
) -> None:
    """Put events of our own making, or read from a provider, on the log; return once all are there.

    In their order for each key. Raises PublishError if that has failed at ``deadline`` (the loop's
    clock) or before; then some of them may be there.
    """
    receipts = [log.publish(records_of(writable(event, drops))) for event in events]
    for receipt in receipts:
        await receipt.wait(deadline)
