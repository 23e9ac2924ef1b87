"""From a notification of DialLink's to our event: what it means, and what makes it this fact.

``{"type": "call.completed", "timestamp": …, "data": {…}}`` is assumed (A-DL-7): nothing is
published of notifications at https://developers.diallink.com. By Standard Webhooks `data` may be
whole, ids only, or spread beside the other two keys.

The same fact comes again with another signature and another time of sending, and with the same
type and timestamp; so its id is made of these and of the id of what it is about.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ingest.delivery import DAY_MS, Delivery
from ingest.errors import UnreadableError
from ingest.fields import MAX_ID, Fields
from ingest.providers.diallink.assumptions import Assumptions
from ingest.providers.diallink.calls import (
    call_data,
    direction_of,
    known_fields,
    recording,
)
from ingest.providers.diallink.contacts import contact_data
from ingest.providers.diallink.tables import CALL_STATES
from ingest.reading import nobody, unknown_call
from schemas.call import CallState, Direction, Outcome
from schemas.event import Event, digest, digest_of_bytes, id_part

#: A push that is older by the provider's clock is flagged. Refusing it would be final.
STALE_MS = DAY_MS

_ENVELOPE = frozenset({"type", "timestamp", "data"})

#: Our subject, what has happened to it, its id, and its data.
_Meaning = tuple[str, str, str, dict[str, Any]]


def notification_event(
    fields: Fields,
    delivery: Delivery,
    payload: bytes,
    webhook_id: bytes | None,
    assumed: Assumptions,
) -> Event:
    """The event in a whole notification; ``raw`` is the caller's to set.

    ``webhook_id``: the header's, if it was signed. Raises UnreadableError.
    """
    given = fields.value.get("type")
    if type(given) is not str or not given:
        raise UnreadableError("unknown_kind", "type is no text")
    type_ = given.lower()
    time_ms = fields.instant_ms("timestamp")
    read = _READ.get(type_)
    if read is None:
        event = _other(fields, delivery, payload, webhook_id, time_ms)
    else:
        subject, what, ident, data = read(type_, _about(fields), assumed)
        if subject == "call":
            data["provider_state"] = given
        clock = str(time_ms) if time_ms else digest(fields.value)
        event = _event(
            delivery,
            f"{subject}.{what}",
            f"{subject}:{id_part(ident)}:{type_}:{clock}",
            ident,
            data,
            time_ms,
        )
        event.key = f"{delivery.connection}/{ident}"
    if delivery.hint is not None and delivery.hint not in (type_, event.subject_kind):
        fields.surprises.append(("hint", delivery.hint))
    event.surprises = tuple(fields.surprises)
    return event


def _about(fields: Fields) -> Fields:
    """What it is about: the object under ``data``, or what is spread beside it."""
    data = fields.object("data")
    if data.value:
        fields.note_unknown(_ENVELOPE)
        return data
    return fields.inner({key: at for key, at in fields.value.items() if key not in _ENVELOPE})


def _call(type_: str, about: Fields, assumed: Assumptions) -> _Meaning:
    state = CALL_STATES[type_]
    data, _ = call_data(about, assumed.call_fields, state)
    return "call", state, data["call_id"], data


def _recording(type_: str, about: Fields, assumed: Assumptions) -> _Meaning:
    """A call record by A-DL-7; a recording, should that be what comes, names its call."""
    names = assumed.recording_fields
    if about.id(names.call_id) is None:
        return _call(type_, about, assumed)
    about.note_unknown(known_fields(names))
    call_id, state = about.key_id(names.call_id), CALL_STATES[type_]
    data = unknown_call(call_id, state)
    found = recording(
        about.id(names.id),
        about.text(names.url),
        about.instant_ms(names.started_at),
        about.seconds(names.duration),
    )
    if state == CallState.VOICEMAIL_UPLOADED.value:
        data["outcome"] = Outcome.VOICEMAIL.value
        data["voicemail"] = {
            "recording_id": found["recording_id"],
            "url": found["url"],
            "text": None,
            "duration_s": found["duration_s"],
        }
    else:
        data["recordings"] = [found]
    return "call", state, call_id, data


def _message(_: str, about: Fields, assumed: Assumptions) -> _Meaning:
    """Nothing is known of a message but what it has in common with a call."""
    names = assumed.call_fields
    about.note_unknown(known_fields(names) | {"text", "body"})
    direction = direction_of(about, names.direction)
    if about.text(names.direction) is None:
        direction = Direction.INBOUND.value  # that is what the type says
    text = about.text("text") or about.text("body")
    contact, target = nobody(), nobody()
    contact["id"] = about.id(names.contact_id)
    target["id"] = about.id(names.user_id)
    if target["id"] is not None:
        target["kind"] = "user"
    message_id = about.key_id(names.id)
    data = {
        "message_id": message_id,
        "direction": direction,
        "from_number": about.number(names.from_number),
        "to_numbers": about.numbers(names.to_number),
        "text": text,
        "text_available": text is not None,
        "media": [],
        "status": None,
        "provider_status": about.word(names.status),
        "delivery_result": None,
        "internal": direction == Direction.INTERNAL.value,
        "contact": contact,
        "target": target,
        "sender_id": None,
    }
    return "message", "received", message_id, data


def _contact(_: str, about: Fields, _assumed: Assumptions) -> _Meaning:
    data = contact_data(about)
    return "contact", "updated", data["contact_id"], data


_READ: Mapping[str, Callable[[str, Fields, Assumptions], _Meaning]] = {
    **dict.fromkeys(CALL_STATES, _call),
    "recording.ready": _recording,
    "voicemail.received": _recording,
    "message.received": _message,
    "contact.updated": _contact,
}


def _other(
    fields: Fields,
    delivery: Delivery,
    payload: bytes,
    webhook_id: bytes | None,
    time_ms: int | None,
) -> Event:
    """A notification of a type that we have no subject for."""
    details = fields.value.get("data")
    if details is None:
        details = {key: at for key, at in fields.value.items() if key not in _ENVELOPE} or None
    type_ = fields.text("type")
    fields.surprises.append(("notification_type", type_ or ""))
    data = {"notification_type": type_, "details": details}
    ident = notification_id(payload, webhook_id)
    return _event(
        delivery, "notification.received", f"notification:{id_part(ident)}", ident, data, time_ms
    )


def notification_id(payload: bytes, webhook_id: bytes | None) -> str:
    """The sender's id, the same on every retry; without one, or with a strange one, a digest."""
    if webhook_id is None:
        return digest_of_bytes(payload)
    text = webhook_id.decode("latin-1")
    return text if len(text) <= MAX_ID and text.isprintable() else digest_of_bytes(webhook_id)


def _event(
    delivery: Delivery,
    type_: str,
    ident: str,
    about: str,
    data: dict[str, Any],
    time_ms: int | None,
) -> Event:
    subject = type_.partition(".")[0]
    return Event(
        type=f"dialstream.{type_}",
        subject_kind=subject,
        id=f"diallink:{delivery.connection}:{ident}",
        subject=f"{subject}/{about}",
        key=delivery.connection,
        time_ms=time_ms or delivery.received_ms,
        recorded_ms=delivery.received_ms,
        via=delivery.via,
        provider="diallink",
        connection=delivery.connection,
        data=data,
        stale=time_ms is not None and delivery.received_ms - time_ms > STALE_MS,
    )
