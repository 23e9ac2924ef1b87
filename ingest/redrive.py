"""Rejects as they stand on the log, and what today's code makes of them. No I/O.

Nothing is verified again: a reject was written by us, after the delivery had verified, and whoever
can write to that topic can write to all of them. So redriving needs no secret, and works also
after the one is gone that had signed it.

What was read back from a provider's lists was kept without the list that it stood in, and the
provider still has it: it is read back again.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import pybase64
import structlog
from msgspec import Struct
from pydantic import SecretStr

from ingest.delivery import Delivery, Provider, Source, Verified
from ingest.errors import ConfigError, UnreadableError, VerificationError
from ingest.eventlog.log import Record, StoredRecord, records_of
from ingest.privacy import writable
from ingest.providers import PROVIDERS
from ingest.rejects import AT, DETAIL, FROM, REASON, REDRIVEN_AT, is_retry_request
from schemas.event import CONTENT_TYPE, digest_of_bytes
from schemas.times import rfc3339
from schemas.topics import TOPIC_OF

if TYPE_CHECKING:
    from ingest.settings import Connection, Settings

log = structlog.get_logger()

VIA = "replay"

#: Kafka has refused an event of ours, of which this is the beginning.
_OF_KAFKA = frozenset(("too_large", "invalid"))

_READ_BACK = frozenset(("poll", "backfill"))


class Kept(Struct, kw_only=True):
    """A reject as it stands on the log."""

    #: What tells it from others, however often it was rejected.
    key: tuple[str, ...]
    #: For people: of the reject, or of the event that a group could not handle.
    id: str
    connection: str
    reason: str
    detail: str
    via: str
    #: RFC 3339.
    received_at: str
    #: Of a delivery: those that sign it.
    headers: Mapping[str, str]
    body: bytes
    topic: str
    partition: int
    position: int
    #: Instead of a reject, that it was redriven: the time, RFC 3339, and the ids of what it became.
    redriven_at: str | None = None
    events: Sequence[str] = ()

    @property
    def digest(self) -> str:
        """Of the bytes, also where not all of them were kept."""
        return self.id.rpartition(":")[2]


class _Data(Struct):
    """`schemas.reject.Reject`, read quickly and strictly."""

    reason: str
    detail: str
    via: str
    received_at: datetime
    headers: dict[str, str]
    body_base64: bytes
    events: list[str] = []


class _Event(Struct):
    id: str
    subject: str
    connection: str
    time: datetime
    data: _Data


_decoder = msgspec.json.Decoder(_Event)


def read_kept(stored: StoredRecord) -> Kept | None:
    """What stands on the topic of rejects, or on a group's; None if it was not written by us."""
    try:
        return _read_ours(stored) if stored.topic == TOPIC_OF["reject"] else _read_group(stored)
    except (msgspec.DecodeError, ValueError, KeyError):
        return None


def _read_ours(stored: StoredRecord) -> Kept:
    event = _decoder.decode(stored.value or b"")
    data = event.data
    return Kept(
        key=(event.connection, event.subject.removeprefix("reject/")),
        id=event.id,
        connection=event.connection,
        reason=data.reason,
        detail=data.detail,
        via=data.via,
        received_at=_text(data.received_at),
        headers=data.headers,
        body=data.body_base64,
        topic=stored.topic,
        partition=stored.partition,
        position=stored.position,
        redriven_at=_text(event.time) if data.reason == "redriven" else None,
        events=data.events,
    )


def _read_group(stored: StoredRecord) -> Kept:
    headers = {name: value.decode(errors="replace") for name, value in stored.headers}
    again = is_retry_request(stored)
    ident = headers.get("ce_id", "")
    at = _text(datetime.fromisoformat(headers[REDRIVEN_AT if again else AT]))
    return Kept(
        key=(headers[FROM],),
        id=ident,
        connection=stored.key.partition(b"/")[0].decode(errors="replace"),
        reason="redriven" if again else headers[REASON],
        detail="" if again else headers[DETAIL],
        via="tombstone" if stored.value is None else _via(stored.value),
        received_at=at,
        headers={},
        body=stored.value or b"",
        topic=stored.topic,
        partition=stored.partition,
        position=stored.position,
        redriven_at=at if again else None,
        events=(ident,) if again else (),
    )


def _text(instant: datetime) -> str:
    """Raises ValueError without a zone."""
    if instant.tzinfo is None:
        raise ValueError("whose clock is that?")
    return rfc3339(round(instant.timestamp() * 1000))


def _via(value: bytes) -> str:
    try:
        return str(orjson.loads(value)["via"])
    except (ValueError, TypeError, KeyError):
        return "unknown"


class Shelved(Struct, kw_only=True):
    """What is known of one reject, however often it came; without its bytes."""

    id: str
    connection: str
    reason: str
    detail: str
    via: str
    #: When it came first and last.
    received_at: str
    last_at: str
    times: int
    size_bytes: int
    #: Where it stands first.
    topic: str
    partition: int
    position: int
    #: Since when it is not open any more, and what it became.
    redriven_at: str | None = None
    events: Sequence[str] = ()


class Shelf:
    """All rejects of a topic, in the order in which they came."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, ...], Shelved] = {}

    def put(self, stored: StoredRecord) -> Kept | None:
        """Take in what comes next on the topic."""
        kept = read_kept(stored)
        if kept is None:
            return None
        known = self.found.get(kept.key)
        if kept.redriven_at is not None:
            if known is not None:  # else its reject is too old to be there
                known.redriven_at, known.events = kept.redriven_at, kept.events
        elif known is None:
            self.found[kept.key] = Shelved(
                id=kept.id,
                connection=kept.connection,
                reason=kept.reason,
                detail=kept.detail,
                via=kept.via,
                received_at=kept.received_at,
                last_at=kept.received_at,
                times=1,
                size_bytes=len(kept.body),
                topic=kept.topic,
                partition=kept.partition,
                position=kept.position,
            )
        else:
            _came_again(known, kept)
        return kept


def _came_again(known: Shelved, kept: Kept) -> None:
    known.times += 1
    known.last_at = max(known.last_at, kept.received_at)
    # Bytes of a delivery mean what they mean, and are on the log if they ever were. A group that
    # gives an event up once more, after it was asked to handle it, has not handled it.
    if kept.topic != TOPIC_OF["reject"]:
        known.reason, known.detail, known.redriven_at, known.events = (
            kept.reason,
            kept.detail,
            None,
            (),
        )


class StaysError(Exception):
    """It cannot be redriven: ``reason`` is a word, ``detail`` what to do."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class Remade(Struct):
    """What a reject has become."""

    records: Sequence[Record]
    #: Ids of the events in them.
    events: Sequence[str]
    #: Our clock when it had come, milliseconds since 1970.
    recorded_ms: int


class Redriver:
    """Makes of rejects what they would have been, had today's code read them."""

    def __init__(self, settings: "Settings") -> None:
        self._connections = settings.connections
        self._drops = settings.drops
        self._sources: dict[str, tuple[Provider, Source]] = {}

    def remake(self, kept: Kept) -> Remade:
        """What is to be published. Raises StaysError."""
        if kept.reason in _OF_KAFKA:
            return _event_of_ours(kept, drops=kept.connection in self._drops)
        if kept.via in _READ_BACK:
            raise StaysError(
                "read_back",
                f"it was read from the provider: `dialstream backfill {kept.connection}` over the "
                "time of its call reads it again",
            )
        provider, source = self._source(kept.connection)
        delivery = Delivery(
            connection=kept.connection,
            via=VIA,
            # They were bytes once, and so was each letter.
            headers=[
                (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
                for name, value in kept.headers.items()
            ],
            body=kept.body,
            received_ms=_ms(kept.received_at),
        )
        try:
            events = source.normalize(Verified(provider.payload_of(kept.body)), delivery)
        except (UnreadableError, VerificationError) as error:
            raise StaysError(error.reason, error.detail) from None
        except Exception as fault:
            log.error("unexpected_error", connection=kept.connection, exc_info=fault)
            raise StaysError("internal", "a fault of ours") from None
        records = [
            record for event in events for record in records_of(writable(event, self._drops))
        ]
        return Remade(records, [event.id for event in events], delivery.received_ms)

    def _source(self, name: str) -> tuple[Provider, Source]:
        if name not in self._sources:
            connection = self._connections.get(name)
            if connection is None:
                raise StaysError("no_connection", f"connections.{name} is not in the settings")
            provider = PROVIDERS[connection.provider]
            try:
                self._sources[name] = provider, provider.webhook(_with_some_secret(connection))
            except ConfigError as error:
                raise StaysError("settings", f"connections.{name}: {error}") from None
        return self._sources[name]


def _with_some_secret(connection: "Connection") -> "Connection":
    """A source cannot be made without one, and reading needs none: so nobody's, of every form."""
    secret = "whsec_" + pybase64.b64encode(secrets.token_bytes(32)).decode()
    return connection.model_copy(update={"secrets": (SecretStr(secret),), "secret_files": ()})


def _event_of_ours(kept: Kept, *, drops: bool) -> Remade:
    """An event as it was, if all of it was kept; ``drops``: what `privacy.drop` names must go."""
    if digest_of_bytes(kept.body) != kept.digest:
        raise StaysError("cut", "only its beginning was kept")
    try:
        event: dict[str, Any] = orjson.loads(kept.body)
        topic = TOPIC_OF[event["type"].split(".")[1]]
        key, ident, via = (event[name].encode() for name in ("partitionkey", "id", "via"))
        recorded_ms = _ms(event["recordedtime"])
        if event["connection"] != kept.connection:
            raise KeyError
        whole = event["data"].get("raw") is not None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise StaysError("no_event", "it is none of our events") from None
    if drops and whole:
        told = f"it was written before connections.{kept.connection}.privacy.drop was set"
        raise StaysError("privacy", told)
    # In its place, so that `raw` stays byte for byte: a bare quote stands in no JSON string, and
    # nothing of the provider's stands before it.
    value = kept.body.replace(b'"via":"%b"' % via, b'"via":"%b"' % VIA.encode(), 1)
    headers = (
        ("content-type", CONTENT_TYPE),
        ("ce_type", event["type"].encode()),
        ("ce_id", ident),
    )
    records = [Record(topic, key, value, headers)]
    if event["type"] == "dialstream.contact.deleted":
        records.append(Record(topic, key, None, headers))  # it was behind it, and would not be
    return Remade(records, [ident.decode()], recorded_ms)


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)
