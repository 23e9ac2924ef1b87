"""From an item of Dialpad's lists to our event, or to a reject. No I/O.

Shapes: the API description at https://developers.dialpad.com/reference. Ids and times come as
texts there, as numbers in events.

Digests are of the item as it was decoded, but for what changes between two readings without any
change of the thing itself: the query of a link, where signatures and their time limits are, and
in the directory whether somebody is on a call or open just now.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ingest.errors import UnreadableError
from ingest.fields import Fields, by_size, read_object
from ingest.providers.dialpad.calls import record_data
from ingest.providers.dialpad.others import read_consent, read_contact, read_duty
from ingest.providers.dialpad.parties import snake_kind
from ingest.providers.dialpad.tables import LINE_FIELDS, TRANSCRIPT_FIELDS
from ingest.reading import Reading, unknown_call
from schemas.call import CallState
from schemas.event import Event, digest
from schemas.times import LAST_MS

#: Of a call; lists of links, one link, and objects with a `url`.
_LINKS_OF_CALLS = frozenset(
    {
        "admin_call_recording_share_links",
        "call_recording_share_links",
        "csat_recording_urls",
        "recording_details",
        "screen_recording_urls",
        "voicemail_share_link",
    }
)

#: Of users and groups: how things are at the moment, not who they are.
_PRESENCE = frozenset(
    {
        "availability_status",
        "do_not_disturb",
        "duty_status_reason",
        "duty_status_started",
        "is_available",
        "is_on_duty",
        "is_online",
        "muted",
        "on_duty_started",
        "on_duty_status",
        "status_message",
    }
)

_IMAGES = frozenset({"image_url"})

#: Lines of a transcript that somebody spoke; the others are moments and answers of an AI.
_SPOKEN = (None, "transcript")


def call_recorded(reading: Reading, fields: Fields) -> Event:
    """https://developers.dialpad.com/reference/calllist"""
    call, data = record_data(fields)
    call_id = data["call_id"]
    digested = digest(_without_queries(fields.value, _LINKS_OF_CALLS))
    # It became what it is when it ended.
    time_ms = call.date_ended or call.event_timestamp or call.date_started
    ident = ("record", call_id, digested)
    return reading.event("call.recorded", ident, call_id, data, time_ms, fields)


def transcript_ready(reading: Reading, fields: Fields, call_id: str) -> Event | None:
    """https://developers.dialpad.com/reference/transcriptsget

    None if nobody spoke: seen is an answer without lines for calls that have no transcript.
    """
    _must_be_of(call_id, fields)
    fields.note_unknown(TRANSCRIPT_FIELDS)
    lines = []
    for item in fields.items("lines"):
        if type(item) is not dict:
            fields.surprises.append(("type", "lines"))
            continue
        line = fields.inner(item)
        line.note_unknown(LINE_FIELDS)
        content, name = line.text("content"), line.text("name")
        if content is not None and line.text("type") in _SPOKEN:
            lines.append(content if name is None else f"{name}: {content}")
    if not lines:
        return None
    data = unknown_call(call_id, CallState.TRANSCRIPT_READY.value)
    data["transcript"] = {"url": None, "lines": lines}
    # The clocks of the lines are local, without a zone.
    ident = ("transcript_ready", call_id, digest(fields.value))
    return reading.event("call.transcript_ready", ident, call_id, data, None, fields)


def recap_ready(reading: Reading, fields: Fields, call_id: str) -> Event | None:
    """https://developers.dialpad.com/reference/callget_ai_recap

    None if there is nothing in it (yet). Its parts are objects with ``content`` by that page, and
    texts in events; both are read.
    """
    _must_be_of(call_id, fields)
    outcome = _contents(fields, "outcome") or _contents(fields, "disposition")
    recap = {
        "summary": "\n".join(_contents(fields, "summary")) or None,
        "outcome": "\n".join(outcome) or None,
        "purposes": _contents(fields, "purposes"),
        "action_items": _contents(fields, "action_items"),
    }
    if not any(recap.values()):
        return None
    data = unknown_call(call_id, CallState.RECAP_READY.value)
    data["recap"] = recap
    ident = ("recap_ready", call_id, digest(fields.value))
    return reading.event("call.recap_ready", ident, call_id, data, None, fields)


def contact_listed(reading: Reading, fields: Fields) -> Event:
    """https://developers.dialpad.com/reference/contactslist"""
    data = read_contact(fields, "Updated")
    contact_id = data["contact_id"]
    ident = ("contact", contact_id, data["change"], digest(fields.value), reading.minute)
    return reading.event("contact.updated", ident, contact_id, data, None, fields)


def consent_changed(reading: Reading, fields: Fields) -> Event:
    """https://developers.dialpad.com/reference/companyget_sms_opt_out_list"""
    data = read_consent(fields)
    date = fields.ms("date")
    clock = (date,) if date else (digest(fields.value), reading.minute)
    ident = ("consent", data["number"], data["state"], *clock)
    return reading.event("consent.changed", ident, data["number"], data, date, fields)


@dataclass(frozen=True, slots=True)
class Operator:
    """A user who takes calls of call centres."""

    id: str
    name: str | None
    email: str | None
    centres: Sequence[str]


def operators_among(users: Iterable[bytes]) -> list[Operator]:
    """Those of a page of users who are in a call centre, in whatever role.

    What cannot be read is none; the directory has it as a reject.
    """
    found = []
    for user in users:
        try:
            operator = read_object(user, None, _operator)
        except UnreadableError:
            continue
        if operator.centres:
            found.append(operator)
    return found


def _operator(fields: Fields) -> Operator:
    groups = [fields.inner(g) for g in fields.items("group_details") if type(g) is dict]
    centres = {
        group_id
        for group in groups
        if snake_kind(group.text("group_type") or "") == "call_center"
        and (group_id := group.id("group_id")) is not None
    }
    return Operator(
        id=fields.key_id("id"),
        name=_name(fields),
        email=next(iter(fields.texts("emails")), None),
        centres=sorted(centres, key=by_size),
    )


def duty_status(reading: Reading, fields: Fields, operator: Operator) -> Event:
    """https://developers.dialpad.com/reference/callcentersoperatorsget_duty_status"""
    data = {
        **read_duty(fields, operator.id),
        "name": operator.name,
        "email": operator.email,
        # Duty is for all of his centres at once.
        "call_center_ids": list(operator.centres) if fields.flag("on_duty") else [],
    }
    started = _utc_ms(fields, "duty_status_started")
    digested = digest(fields.value)
    ident = ("agent", operator.id, started or digested, data["provider_duty_status"], digested)
    return reading.event("agent.status", ident, operator.id, data, started, fields)


def user_listed(reading: Reading, fields: Fields) -> Event:
    """https://developers.dialpad.com/reference/userslist"""
    return _listed(
        reading,
        fields,
        kind="user",
        ident=fields.key_id("id"),
        name=_name(fields),
        email=next(iter(fields.texts("emails")), None),
        numbers=fields.numbers("phone_numbers"),
        owner_id=fields.id("office_id"),
    )


def office_listed(reading: Reading, fields: Fields) -> Event:
    """https://developers.dialpad.com/reference/officeslist"""
    return _group_listed(reading, fields, "office", owner_id=None)


def department_listed(reading: Reading, fields: Fields) -> Event:
    """https://developers.dialpad.com/reference/departmentslistall"""
    return _group_listed(reading, fields, "department", owner_id=fields.id("office_id"))


def call_center_listed(reading: Reading, fields: Fields) -> Event:
    """https://developers.dialpad.com/reference/callcenterslistall"""
    return _group_listed(reading, fields, "call_center", owner_id=fields.id("office_id"))


def number_listed(reading: Reading, fields: Fields) -> Event:
    """https://developers.dialpad.com/reference/numberslist

    A number is its own id; whoever it rings at is its owner, else its office.
    """
    fields.key_id("number")
    number = fields.number("number")
    if number is None:
        raise UnreadableError("unexpected_shape", "number is no number")
    return _listed(
        reading,
        fields,
        kind="number",
        ident=number,
        name=None,
        email=None,
        numbers=[number],
        owner_id=fields.id("target_id") or fields.id("office_id"),
    )


def _name(user: Fields) -> str | None:
    whole = [name for key in ("first_name", "last_name") if (name := user.text(key))]
    return user.text("display_name") or " ".join(whole) or None


def _group_listed(reading: Reading, fields: Fields, kind: str, owner_id: str | None) -> Event:
    return _listed(
        reading,
        fields,
        kind=kind,
        ident=fields.key_id("id"),
        name=fields.text("name"),
        email=None,
        numbers=fields.numbers("phone_numbers"),
        owner_id=owner_id,
    )


def _listed(reading: Reading, fields: Fields, *, kind: str, ident: str, **data: Any) -> Event:
    parts = ("directory", kind, ident, digest(_without_presence(fields.value)), reading.minute)
    data = {"kind": kind, "id": ident, **data}
    return reading.event("directory.listed", parts, f"{kind}/{ident}", data, None, fields)


def _must_be_of(call_id: str, fields: Fields) -> None:
    found = fields.id("call_id")
    if found is not None and found != call_id:
        raise UnreadableError("unexpected_shape", "call_id is that of another call")


def _contents(fields: Fields, key: str) -> list[str]:
    """The texts under ``key``: of one thing or a list of them, each a text or an object."""
    value = fields.value.get(key)
    holder = fields if type(value) is list else fields.inner({key: [value]})
    texts = []
    for item in holder.items(key):
        found = item.get("content") if type(item) is dict else item
        if type(found) is str and found:
            texts.append(found)
        elif found is not None and found not in ("", {}):
            fields.surprises.append(("type", key))
    return texts


def _utc_ms(fields: Fields, key: str) -> int | None:
    """An instant: milliseconds by its description, as an ISO text in UTC where users have it."""
    value = fields.value.get(key)
    if type(value) is str and "T" in value:
        try:
            instant = datetime.fromisoformat(value)
            if instant.tzinfo is None:
                instant = instant.replace(tzinfo=UTC)
            ms = round(instant.timestamp() * 1000)
        except (ValueError, OverflowError):
            ms = 0
        if 0 < ms <= LAST_MS:
            return ms
    return fields.ms(key)


def _without_queries(value: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """The object with the links under ``keys`` cut at their queries."""
    return {key: _cut(inner) if key in keys else inner for key, inner in value.items()}


def _cut(value: Any) -> Any:
    if type(value) is str and value.startswith(("https://", "http://")):
        return value.partition("?")[0]
    if type(value) is list:
        return [_cut(inner) for inner in value]
    if type(value) is dict:
        return {key: _cut(inner) for key, inner in value.items()}
    return value


def _without_presence(value: dict[str, Any]) -> dict[str, Any]:
    lasting = {key: inner for key, inner in value.items() if key not in _PRESENCE}
    groups = lasting.get("group_details")
    if type(groups) is list:
        lasting["group_details"] = [
            _without_presence(group) if type(group) is dict else group for group in groups
        ]
    return _without_queries(lasting, _IMAGES)
