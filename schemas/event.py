"""The envelope: CloudEvents 1.0 in structured JSON mode, and what ids are made of.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

import hashlib
import re
from enum import StrEnum
from typing import Any, Literal

import orjson
from msgspec import Struct
from pydantic import Field, JsonValue

from schemas.base import Id, Model, Time
from schemas.times import rfc3339
from schemas.topics import TOPIC_OF

CONTENT_TYPE = b"application/cloudevents+json; charset=utf-8"

_ENCODED = re.compile(r"[%:\x00-\x1f\x7f]")

#: Raised with the first change of a subject's fields that readers could stumble over.
SCHEMA_VERSION = 1


class Via(StrEnum):
    """The channel through which a fact reached us."""

    WEBHOOK = "webhook"
    WEBSOCKET = "websocket"
    NOTIFICATION = "notification"
    POLL = "poll"
    BACKFILL = "backfill"
    REPLAY = "replay"
    DERIVED = "derived"


class Envelope(Model):
    """An event as readers get it."""

    specversion: Literal["1.0"]
    id: Id
    source: str = Field(
        description="/<provider>/<connection>; /dialstream/<connection> if derived."
    )
    type: str = Field(description="dialstream.<subject>.<what>")
    subject: str
    time: Time
    datacontenttype: Literal["application/json"]
    dataschema: str = Field(description="urn:dialstream:schema:<subject>:<version>")
    partitionkey: str
    recordedtime: Time
    via: Via
    provider: str
    connection: str
    stale: bool = Field(
        default=False, description="A push older than 24 h by the provider's clock."
    )
    data: dict[str, JsonValue]


class Event(Struct, kw_only=True, gc=False):
    """One fact in our schema, before it is written.

    A plain record: building and dumping the pydantic models of this package costs four times as
    much as this and `encode`. The tests hold what is written to the models.
    """

    #: ``dialstream.<subject_kind>.<what>``
    type: str
    #: Decides topic and schema.
    subject_kind: str
    id: str
    #: The CloudEvents subject, e.g. ``call/5000000000001101``.
    subject: str
    key: str
    #: Milliseconds since 1970: the provider's clock, and ours.
    time_ms: int
    recorded_ms: int
    via: str
    #: ``dialstream`` for what we derive ourselves.
    provider: str
    connection: str
    data: dict[str, Any]
    #: The provider's JSON value, valid and without line breaks; spliced in as ``data.raw``.
    raw: bytes | None = None
    stale: bool = False
    #: What we had no place or word for, as (what, provider's name of it).
    surprises: tuple[tuple[str, str], ...] = ()

    @property
    def what(self) -> str:
        return self.type.rpartition(".")[2]

    @property
    def topic(self) -> str:
        return TOPIC_OF[self.subject_kind]


def encode(event: Event) -> bytes:
    """The event as a structured-mode CloudEvent, one line of JSON in UTF-8."""
    data = event.data if event.raw is None else {**event.data, "raw": orjson.Fragment(event.raw)}
    envelope: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/{event.provider}/{event.connection}",
        "type": event.type,
        "subject": event.subject,
        "time": rfc3339(event.time_ms),
        "datacontenttype": "application/json",
        "dataschema": f"urn:dialstream:schema:{event.subject_kind}:{SCHEMA_VERSION}",
        "partitionkey": event.key,
        "recordedtime": rfc3339(event.recorded_ms),
        "via": event.via,
        "provider": event.provider,
        "connection": event.connection,
    }
    if event.stale:
        envelope["stale"] = True
    envelope["data"] = data
    return orjson.dumps(envelope)


def digest(value: object) -> str:
    """First 16 hex digits of SHA-256 over the value as canonical JSON.

    Sorted keys, no white space, UTF-8; ``value`` as `orjson.loads` gives it.
    """
    return digest_of_bytes(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def digest_of_bytes(data: bytes) -> str:
    """First 16 hex digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def id_part(part: str | int | None) -> str:
    """A part of an id: null is ``-``; ``%``, ``:`` and control characters are percent-encoded."""
    if part is None:
        return "-"
    text = str(part)
    if text.isalnum():  # nearly all are
        return text
    return _ENCODED.sub(lambda found: f"%{ord(found[0]):02X}", text)
