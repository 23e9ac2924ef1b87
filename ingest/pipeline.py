"""The whole flow: verify, normalize, publish; then the transport may acknowledge."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import pybase64

from ingest.delivery import Delivery, Source
from ingest.errors import UnreadableError
from ingest.eventlog.log import Publisher, Receipt, records_of
from ingest.metrics import EVENTS, REJECTS, STALE, SURPRISES
from schemas.event import Event, digest_of_bytes
from schemas.times import rfc3339


class Outcome(StrEnum):
    STORED = "stored"
    #: It is durable already: same id, same content.
    REPEAT = "repeat"
    #: Authentic, unreadable, and durable as a reject.
    REJECTED = "rejected"


class Accepted(NamedTuple):
    """What became of a delivery that may be acknowledged."""

    outcome: Outcome
    #: Of the first event.
    kind: str
    event_id: str
    stored_in: str


class Pipeline:
    """From any transport to the event log."""

    def __init__(self, log: Publisher, repeat_max: int) -> None:
        self._log = log
        self._repeats = Repeats(repeat_max)

    async def accept(self, delivery: Delivery, source: Source, deadline: float) -> Accepted:
        """Return once the delivery is durable, as events or as a reject.

        ``deadline`` is the event loop's clock. Raises VerificationError or PublishError; then
        nothing may be acknowledged.
        """
        payload = source.verify(delivery)
        try:
            events = source.normalize(payload, delivery)
            outcome = Outcome.STORED
        except UnreadableError as error:
            events = [reject(delivery, source, error)]
            outcome = Outcome.REJECTED
        # All are handed over before any is waited for: so they keep the order of their deliveries.
        handed_over = [self._publish(event) for event in events]
        stored_in = ""
        for receipt, _ in handed_over:
            stored_in = await receipt.wait(deadline)
        if all(repeated for _, repeated in handed_over):
            outcome = Outcome.REPEAT
        elif outcome is Outcome.STORED:
            _count(events)
        else:
            REJECTS.labels(delivery.connection, events[0].what).inc()
        return Accepted(outcome, events[0].type, events[0].id, stored_in)

    def _publish(self, event: Event) -> tuple[Receipt, bool]:
        """Hand the event to the log, unless it is there already or on its way."""
        known = self._repeats.find(event)
        if known is not None:
            return known, True
        receipt = self._log.publish(records_of(event))
        self._repeats.remember(event, receipt)
        return receipt, False


class Repeats:
    """The last events and their receipts, to tell a repeat: the same id with the same content.

    Best effort, bounded by count: two generations, of which the older one goes as a whole.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young: dict[str, Receipt] = {}
        self._old: dict[str, Receipt] = {}

    def find(self, event: Event) -> Receipt | None:
        """The receipt of an equal event, unless that could not be stored."""
        key = _key(event)
        receipt = self._young.get(key) or self._old.get(key)
        return None if receipt is None or receipt.durable is False else receipt

    def remember(self, event: Event, receipt: Receipt) -> None:
        if self._half == 0:
            return
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[_key(event)] = receipt


def _key(event: Event) -> str:
    # Content by Python's own 64-bit hash: an equal id makes a chance collision harmless enough.
    return f"{event.id} {hash(event.raw)}"


def reject(delivery: Delivery, source: Source, error: UnreadableError) -> Event:
    """An authentic delivery that cannot be read, kept whole for a later version to read."""
    digest = digest_of_bytes(delivery.body)
    connection = delivery.connection
    return Event(
        subject_kind="reject",
        what=error.reason,
        id=f"reject:{connection}:{error.reason}:{digest}",
        subject=f"reject/{digest}",
        key=connection,
        time_ms=delivery.received_ms,
        recorded_ms=delivery.received_ms,
        via="derived",
        provider="dialstream",
        connection=connection,
        data={
            "reason": error.reason,
            "detail": error.detail,
            "via": delivery.via,
            "received_at": rfc3339(delivery.received_ms),
            "headers": {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in delivery.headers
                if name in source.signing_headers
            },
            "body_base64": pybase64.b64encode(delivery.body).decode(),
        },
    )


def _count(events: Sequence[Event]) -> None:
    for event in events:
        EVENTS.labels(event.connection, event.subject_kind).inc()
        if event.stale:
            STALE.labels(event.connection).inc()
        for what, _ in event.surprises:
            SURPRISES.labels(event.connection, what).inc()
