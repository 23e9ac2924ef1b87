"""From an item of DialLink's lists to our event, or to a reject. No I/O.

https://developers.diallink.com shows contacts and users; what a call and a recording have is
assumed (A-DL-1).

Digests are of the item as it was decoded, but for what changes between two readings without any
change of the thing itself: the query of a link, where signatures and their time limits are, and of
a user whether he is there just now.
"""

from typing import Any, NamedTuple

from ingest.errors import UnreadableError
from ingest.fields import Fields
from ingest.providers.diallink.assumptions import CallFields, RecordingFields
from ingest.providers.diallink.calls import (
    call_data,
    known_fields,
    recording,
)
from ingest.providers.diallink.contacts import contact_data
from ingest.reading import Reading, unknown_call
from schemas.call import CallState
from schemas.directory import DirectoryKind
from schemas.event import Event, digest

_USER_FIELDS = frozenset(
    {
        "admin",
        "email",
        "firstName",
        "id",
        "jobTitle",
        "lastName",
        "parallelCallsEnabled",
        "status",
        "updatedAt",
    }
)

#: Of a user: how he is at the moment, not who he is.
_PRESENCE = frozenset({"status"})


class Began(NamedTuple):
    """Calls that began in [from, to), milliseconds since 1970."""

    from_ms: int
    to_ms: int


def call_recorded(
    reading: Reading,
    fields: Fields,
    *,
    names: CallFields,
    began: Began | None = None,
    call_id: str | None = None,
) -> Event | None:
    """None if it is known to have begun at another time than in ``began``.

    ``call_id``: which call was asked for, if it was a single one.
    """
    data, clocks = call_data(fields, names, CallState.RECORDED.value)
    if call_id is not None and data["call_id"] != call_id:
        raise UnreadableError("unexpected_shape", f"{names.id} is that of another call")
    started_ms = clocks.started_ms
    if began and started_ms is not None and not began.from_ms <= started_ms < began.to_ms:
        return None
    ident = ("record", data["call_id"], digest(fields.value))
    # It became what it is when it ended.
    time_ms = clocks.ended_ms or clocks.updated_ms or started_ms
    return reading.event("call.recorded", ident, data["call_id"], data, time_ms, fields)


def recording_ready(reading: Reading, fields: Fields, *, names: RecordingFields) -> Event:
    """Of the call nothing is known but its id."""
    fields.note_unknown(known_fields(names))
    call_id = fields.key_id(names.call_id)
    url = fields.text(names.url)
    started_ms = fields.instant_ms(names.started_at)
    duration_s = fields.seconds(names.duration)
    data = unknown_call(call_id, CallState.RECORDING_READY.value)
    data["recordings"] = [recording(fields.id(names.id), url, started_ms, duration_s)]
    lasting = fields.value if url is None else {**fields.value, names.url: url.partition("?")[0]}
    ident = ("recording_ready", call_id, digest(lasting))
    time_ms = fields.instant_ms(names.updated_at) or started_ms
    return reading.event("call.recording_ready", ident, call_id, data, time_ms, fields)


def contact_listed(reading: Reading, fields: Fields) -> Event:
    data = contact_data(fields)
    contact_id = data["contact_id"]
    ident = ("contact", contact_id, data["change"], digest(fields.value), reading.minute)
    return reading.event("contact.updated", ident, contact_id, data, None, fields)


def user_listed(reading: Reading, fields: Fields) -> Event:
    """No list tells whose the numbers are."""
    fields.note_unknown(_USER_FIELDS)
    kind, user_id = DirectoryKind.USER.value, fields.key_id("id")
    names = [name for key in ("firstName", "lastName") if (name := fields.text(key))]
    data: dict[str, Any] = {
        "kind": kind,
        "id": user_id,
        "name": " ".join(names) or None,
        "email": fields.text("email"),
        "numbers": [],
        "owner_id": None,
    }
    lasting = {key: value for key, value in fields.value.items() if key not in _PRESENCE}
    ident = ("directory", kind, user_id, digest(lasting), reading.minute)
    return reading.event("directory.listed", ident, f"{kind}/{user_id}", data, None, fields)
