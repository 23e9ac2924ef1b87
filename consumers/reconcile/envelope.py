"""Verdicts and rows as they are written, without the way round by `schemas.event.Event`."""

from functools import lru_cache

import msgspec
from msgspec import Struct

from ingest.eventlog.log import Record
from schemas.event import CONTENT_TYPE, SCHEMA_VERSION
from schemas.times import rfc3339
from schemas.topics import TOPIC_OF


class _Envelope(Struct, gc=False):
    """What `schemas.event.encode` makes of an event that is derived, in the same order."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: str
    dataschema: str
    partitionkey: str
    recordedtime: str
    via: str
    provider: str
    connection: str
    data: msgspec.Raw


_encode = msgspec.json.Encoder().encode


def derived_record(
    connection: str, type_: str, ident: str, *, about: str, name: str, at_ms: int, data: bytes
) -> Record:
    """The record of `ingest.derived.derived_event`, byte for byte, in a third of the time.

    Its subject is ``<about>/<name>``, its key ``<connection>/<name>``. ``data``: as JSON.
    """
    topic, source, type_, schema, type_header = _common(connection, type_)
    time, key = rfc3339(at_ms), f"{connection}/{name}"
    envelope = _Envelope(
        "1.0",
        ident,
        source,
        type_,
        f"{about}/{name}",
        time,
        "application/json",
        schema,
        key,
        time,
        "derived",
        "dialstream",
        connection,
        msgspec.Raw(data),
    )
    headers = (_CONTENT_TYPE, type_header, ("ce_id", ident.encode()))
    return Record(topic, key.encode(), _encode(envelope), headers)


_CONTENT_TYPE = ("content-type", CONTENT_TYPE)


@lru_cache
def _common(connection: str, type_: str) -> tuple[str, str, str, str, tuple[str, bytes]]:
    """Topic, source, type, schema and the type's header of all such records."""
    kind, type_ = type_.partition(".")[0], f"dialstream.{type_}"
    schema = f"urn:dialstream:schema:{kind}:{SCHEMA_VERSION}"
    return TOPIC_OF[kind], f"/dialstream/{connection}", type_, schema, ("ce_type", type_.encode())
