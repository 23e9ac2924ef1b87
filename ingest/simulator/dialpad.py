"""What Dialpad would tell of the simulated company, and how it would sign it.

Shapes: https://developers.dialpad.com/docs/call-events-logging and its neighbours, with the newest
set of keys that was seen; of what is asked for, the published API description,
dialpad/dialpad-python-sdk ``dialpad_api_spec.json``. Oddities are kept: durations carry noise; what
is absent is null, ``{}`` or ``""`` depending on the field; a number is ``phone`` in calls and
``phone_number`` in messages; ids and times are numbers in events and texts in answers.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

import jwt

from ingest.simulator.company import Company, Number
from ingest.simulator.facts import (
    CallHappening,
    CallStep,
    Centre,
    Change,
    ConsentHappening,
    ContactHappening,
    Department,
    Duty,
    DutyHappening,
    Happening,
    Host,
    Leg,
    Member,
    Office,
    Outsider,
    SettingHappening,
    TextHappening,
    TextStep,
    message_words_of,
    recap_of,
    transcript_of,
)
from ingest.simulator.world import Consent, World

_FILES = "https://dialpad.example"
_STATES = {
    CallStep.PLACED: "calling",
    CallStep.GREETED: "preanswer",
    CallStep.RANG: "ringing",
    CallStep.WAITED: "queued",
    CallStep.ANSWERED: "connected",
    CallStep.HELD: "hold",
    CallStep.RESUMED: "connected",
    CallStep.DIVERTED: "voicemail",
    CallStep.ENDED: "hangup",
    CallStep.MESSAGE_READY: "voicemail_uploaded",
    CallStep.MESSAGE_WORDED: "transcription",
    CallStep.RECORDING_READY: "recording",
    CallStep.TRANSCRIPT_READY: "call_transcription",
    CallStep.SUMMARY_READY: "recap_summary",
    CallStep.OUTCOME_READY: "recap_outcome",
    CallStep.PURPOSES_READY: "recap_purposes",
    CallStep.TASKS_READY: "recap_action_items",
    CallStep.FILED: "dispositions",
    CallStep.RATED: "csat",
}
#: With these, and after them, come links that open the call to whoever has them.
_SHARED = {
    "hangup",
    "recording",
    "admin_recording",
    "call_transcription",
    "recap_summary",
    "recap_outcome",
    "recap_purposes",
    "recap_action_items",
    "dispositions",
    "csat",
}
_STATUSES = {
    TextStep.WRITTEN: ("pending", None),
    TextStep.CARRIED: ("sent", "accepted"),
    TextStep.ARRIVED: ("delivered", "accepted"),
    TextStep.REFUSED: ("failed", "invalid_destination"),
    TextStep.LOST: ("undelivered", "no_route"),
}
_DUTIES = {
    Duty.FREE: "available",
    Duty.TALKING: "occupied",
    Duty.FINISHING: "wrapup",
    Duty.AWAY: "unavailable",
}
_CONTACT_EVENTS = {
    Change.CREATED: "Created",
    Change.UPDATED: "Updated",
    Change.DELETED: "Deleted",
}

#: How much later than its happening a payload may claim to be made.
MAX_LAG_MS = 150
#: Waits after a connection that failed or timed out, of whatever kind.
QUICK_RETRY_WAITS_S = (0.1, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddities:
    """Shares of subjects (legs, texts, people) whose payloads are odd, each by what is odd.

    A subject is odd in all of its payloads, the same for a seed. Without oddities every payload
    has the shape that was seen most.
    """

    seed: int = 0
    #: The body is as fresh as the delivery, so it holds what happened until ``late_by_ms`` later.
    late_bodies: float = 0
    late_by_ms: int = 120_000
    #: Who is not known by name is ``{}``.
    empty_objects: float = 0
    #: Ids are texts, and the contact's is one of a shared pool.
    text_ids: float = 0
    #: Keys are missing that only newer payloads have, or that are null.
    missing_keys: float = 0
    #: A missed call is told as ``missed`` and as ``hangup``.
    missed_and_hangup: float = 0

    def has(self, oddity: str, subject_id: int) -> bool:
        share: float = getattr(self, oddity)
        return share > 0 and crc32(f"{self.seed} {oddity} {subject_id}".encode()) < share * 2**32


NO_ODDITIES = Oddities()


def retry_waits_s(happening: Happening) -> tuple[float, ...]:
    """How long Dialpad waits, each time that it is answered 5xx, before it tries again.

    https://developers.dialpad.com/docs/webhook-delivery-failures
    """
    match happening:
        case CallHappening():
            return (2, 4, 8)
        case TextHappening():
            return (30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600)
        case _:
            return (0.1, 0.2, 0.4, 0.8)


def sign(body: bytes, secret: str) -> bytes:
    """Wrap JSON as it is posted by a webhook that has a secret: a compact JWS, nothing else."""
    token = jwt.PyJWS().encode(body, secret, algorithm="HS256", headers={"typ": "JWT"})
    return token.encode()


def encode(happening: Happening) -> bytes:
    """Make the JSON, as it is posted by a webhook that has no secret.

    Raises ValueError for a consent: Dialpad tells nobody of those.
    """
    return to_json(payload(happening))


def to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def payload(happening: Happening) -> dict[str, Any]:
    """Make the event of a happening as it usually is; raises ValueError for a consent."""
    events = payloads(happening)
    if not events:
        raise ValueError("Dialpad does not tell of consents")
    return events[0]


def payloads(happening: Happening, oddities: Oddities = NO_ODDITIES) -> list[dict[str, Any]]:
    """Make the events of a happening: usually one, none of a consent."""
    match happening:
        case CallHappening():
            events = _calls(happening, oddities)
        case TextHappening():
            events = [_sms(happening)]
        case ContactHappening():
            events = [_contact(happening)]
        case DutyHappening():
            events = [_agent_status(happening)]
        case SettingHappening():
            events = [_changelog(happening)]
        case ConsentHappening():
            events = []
    ident = happening.subject_id
    if oddities.has("empty_objects", ident):
        events = [_emptied(event) for event in events]
    if oddities.has("text_ids", ident):
        events = [_with_text_ids(event) for event in events]
    if oddities.has("missing_keys", ident):
        events = [_without_newer_keys(event) for event in events]
    return events


def kind_of(happening: Happening) -> str | None:
    """Say which kind of subscription is told of it, as in ``/api/v2/subscriptions/<kind>``."""
    match happening:
        case CallHappening():
            return "call"
        case TextHappening():
            return "sms"
        case ContactHappening():
            return "contact"
        case DutyHappening():
            return "agent_status"
        case SettingHappening():
            return "changelog"
        case ConsentHappening():
            return None


# Events.


def _calls(happening: CallHappening, oddities: Oddities) -> list[dict[str, Any]]:
    leg, step = happening.leg, happening.step
    state = _STATES[step]
    missed = (
        not leg.outbound
        and isinstance(leg.host, Member)
        and leg.answered_ms is None
        and leg.diverted_ms is None
    )
    if step is CallStep.ENDED and leg.barred:
        state = "blocked"
    elif step is CallStep.ENDED and missed:
        state = "missed"
    elif step is CallStep.RECORDING_READY and leg.recorded_by_rule:
        state = "admin_recording"
    late = oddities.has("late_bodies", leg.id)
    known = leg.as_of(happening.at_ms + (oddities.late_by_ms if late else 0))
    states = [state]
    if state == "missed" and oddities.has("missed_and_hangup", leg.id):
        states.append("hangup")
    return [_call(happening, known, state) for state in states]


def _call(happening: CallHappening, leg: Leg, state: str) -> dict[str, Any]:
    """Make the event of ``leg`` as it is known at that time."""
    step = happening.step
    ended = leg.ended_ms is not None
    unsure = step is CallStep.PLACED and not ended
    event: dict[str, Any] = {
        "call_id": leg.id,
        "state": state,
        "direction": _direction(leg.outbound),
        "event_timestamp": _event_timestamp(happening),
        "date_started": leg.started_ms,
        "date_rang": _date_rang(leg),
        "date_first_rang": leg.rang_ms,
        "date_queued": leg.started_ms if isinstance(leg.host, Centre) else None,
        "date_connected": leg.answered_ms,
        "date_ended": leg.ended_ms,
        **(dict.fromkeys(_DURATIONS) if unsure else _durations(leg)),
        "external_number": leg.outsider.number,
        "internal_number": leg.host.number,
        "selected_caller_id": None,
        "contact": {
            "id": leg.outsider.id,
            "type": _contact_type(leg.outsider),
            "email": leg.outsider.email,
            "phone": leg.outsider.number,
            "name": _name(leg.outsider),
        },
        "target": _target(leg.host),
        "target_availability_status": "open",
        "callback_requested": None,
        "entry_point_call_id": leg.through_leg_id,
        "entry_point_target": _target(leg.through) if leg.through else {},
        "operator_call_id": leg.taken_by_leg_id,
        "proxy_target": {},
        "group_id": _group_id(leg),
        "master_call_id": _master_call_id(leg),
        "is_internal": False,
        "is_transferred": leg.handed_on or leg.handed_by_leg_id is not None,
        "transferred_from": {},
        "csat_score": None if leg.rating is None else str(leg.rating),
        "mos_score": _mos_score(leg) if ended else None,
        "labels": _labels(leg) if ended else [],
        "routing_breadcrumbs": [],
        "was_recorded": leg.recorded or leg.message_ms > 0,
        # There is a link as soon as the caller might leave a message; only the id proves one.
        "voicemail_link": None if leg.diverted_ms is None else _voicemail_link(leg),
        "voicemail_recording_id": None,
        "call_recording_ids": [],
        "recording_details": [],
        "transcription_text": None,
        "integrations": {},
    }
    return event | _recordings(leg) | _extras(leg, state)


def _recordings(leg: Leg) -> dict[str, Any]:
    """What is there to be heard and read, once it is."""
    heard: dict[str, Any] = {}
    if leg.message_ready_ms is not None:
        recording = _recording(leg, "voicemail")
        heard["voicemail_recording_id"] = recording["id"]
        heard["recording_details"] = [recording]
    if leg.message_worded_ms is not None:
        heard["transcription_text"] = message_words_of(leg)
    if leg.recording_ready_ms is not None:
        recording = _recording(leg, _recording_type(leg))
        heard["call_recording_ids"] = [recording["id"]]
        heard["recording_details"] = [recording]
    return heard


def _extras(leg: Leg, state: str) -> dict[str, Any]:
    """The keys that are there in some states only."""
    extras: dict[str, Any] = {} if leg.tag is None else {"custom_data": leg.tag}
    if state in _SHARED:
        extras["company_call_review_share_link"] = f"{_FILES}/shared/call/c{leg.id}"
        extras["public_call_review_share_link"] = f"{_FILES}/shared/call/p{leg.id}"
    recap = recap_of(leg)
    match state:
        case "hangup" if leg.recorded:
            extras["admin_recording_urls"] = _urls(leg, by_rule=True)
        case "recording" | "admin_recording":
            extras["recording_url"] = _urls(leg, by_rule=False)
            extras["admin_recording_urls"] = _urls(leg, by_rule=True)
        case "recap_summary":
            extras[state] = recap.summary
        case "recap_outcome":
            extras[state] = recap.outcome
        case "recap_purposes":
            extras[state] = [*recap.purposes]
        case "recap_action_items":
            extras[state] = [*recap.tasks]
        case "dispositions":
            extras["call_dispositions"] = [*leg.filed_as]
        case _:
            pass
    return extras


_DURATIONS = ("duration", "total_duration", "talk_time", "hold_time")


def _durations(leg: Leg) -> dict[str, float]:
    """Nothing before the end. A group's leg counts the waiting as well."""
    if leg.ended_ms is None:
        return dict.fromkeys(_DURATIONS, 0)
    duration = talk = 0
    if leg.answered_ms is not None:
        talk = leg.ended_ms - leg.answered_ms - leg.held_ms
        duration = leg.ended_ms - (
            leg.answered_ms if isinstance(leg.host, Member) else leg.started_ms
        )
    spans = (duration, leg.ended_ms - leg.started_ms, talk)
    return dict(zip(_DURATIONS, (*map(_noisy, spans), leg.held_ms), strict=True))


def _noisy(ms: int) -> float:
    """Milliseconds as they come out of seconds: 9120.040000000001."""
    return ms and (ms / 1000 + 0.00004) * 1000


def _date_rang(leg: Leg) -> int | None:
    """It is of calls that come in at a person, and of those to a main line or department."""
    return None if leg.outbound or isinstance(leg.host, Centre) else leg.rang_ms


def _mos_score(leg: Leg) -> float | None:
    if leg.answered_ms is None or not isinstance(leg.host, Member):
        return None
    return (400 + leg.id % 45) / 100


def _recording_type(leg: Leg) -> str:
    return "admincallrecording" if leg.recorded_by_rule else "callrecording"


def _recording(leg: Leg, kind: str) -> dict[str, Any]:
    started_ms, ended_ms = leg.answered_ms, leg.ended_ms or 0
    if started_ms is None:
        started_ms = ended_ms - leg.message_ms
    return {
        "id": f"{leg.id}1",
        "url": f"{_FILES}/blob/{kind}/{leg.id}.mp3",
        "duration": ended_ms - started_ms,
        "start_time": started_ms,
        "recording_type": kind,
    }


def _urls(leg: Leg, *, by_rule: bool) -> list[str]:
    if by_rule != leg.recorded_by_rule:
        return []
    return [_recording(leg, _recording_type(leg))["url"]]


def _voicemail_link(leg: Leg) -> str:
    return f"{_FILES}/blob/voicemail/{leg.id}.mp3"


def _labels(leg: Leg) -> list[str]:
    """Say what a leg was; nothing of one that went on before anybody answered."""
    answered = leg.answered_ms is not None
    if leg.handed_on and not answered:
        return []
    personal = isinstance(leg.host, Member)
    labels = {
        _direction(leg.outbound): True,
        "answered": answered,
        "unanswered": not answered,
        "missed": personal and not (answered or leg.outbound or leg.barred or leg.diverted_ms),
        "voicemail": leg.diverted_ms is not None,
    }
    return sorted(label for label, holds in labels.items() if holds)


_TARGET_TYPES: dict[type[Host], str] = {
    Member: "user",
    Centre: "call_center",
    Department: "department",
    Office: "office",
}


def target_type_of(host: Host) -> str:
    """Dialpad's word in events; in subscriptions and answers it has no ``_``."""
    return _TARGET_TYPES[type(host)]


def _target(host: Host) -> dict[str, Any]:
    return {
        "id": host.id,
        "type": target_type_of(host),
        "email": host.email if isinstance(host, Member) else "",
        "phone": host.number,
        "name": host.name,
        "office_id": host.office_id,
    }


def _group_id(leg: Leg) -> str | None:
    match leg.through or leg.host:
        case Centre(id=ident):
            return f"CallCenter:{ident}"
        case Department(id=ident):
            return f"Department:{ident}"
        case Office(id=ident):
            return f"Office:{ident}"
        case _:
            return None


def _master_call_id(leg: Leg) -> int | None:
    """It stands on a group's leg, and on one that nothing else would unite with the rest."""
    if not isinstance(leg.host, Member):
        return leg.conversation_id if leg.conversation_id != leg.id else None
    return None if leg.through else leg.handed_by_leg_id


def _sms(happening: TextHappening) -> dict[str, Any]:
    message = happening.message
    outsider, host = message.outsider, message.host
    numbers = outsider.number, host.number
    sender, receiver = reversed(numbers) if message.outbound else numbers
    status, delivery_result = _STATUSES[happening.step]
    text = None if message.picture else message.text
    event = {
        "id": message.id,
        "created_date": message.written_ms,
        "event_timestamp": _event_timestamp(happening),
        "direction": _direction(message.outbound),
        "from_number": sender,
        "to_number": [receiver],
        "target": _sms_party(host, _national(host.number)) | {"type": target_type_of(host)},
        "contact": {
            "id": outsider.id,
            "name": _name(outsider),
            "phone_number": outsider.number,
        },
        "sender_id": None,
        "is_internal": False,
        "mms": message.picture,
        "mms_url": f"{_FILES}/blob/mms/{message.id}" if message.picture else None,
        "text": text,
        "text_content": text,
        "message_status": status,
        "message_delivery_result": delivery_result,
    }
    if isinstance(host, Centre) and message.member:
        event["sender_id"] = message.member.id
    return event


def _sms_party(who: Host, number: str) -> dict[str, Any]:
    return {"id": who.id, "name": who.name, "phone_number": number}


def _contact(happening: ContactHappening) -> dict[str, Any]:
    """Make a contact event. It has no clock, and its ids are texts."""
    return {
        "event": _CONTACT_EVENTS[happening.change],
        "contact": _contact_body(happening.outsider),
    }


def _contact_body(outsider: Outsider) -> dict[str, Any]:
    return {
        "id": str(outsider.id),
        "type": _contact_type(outsider),
        "first_name": outsider.first_name,
        "last_name": outsider.last_name,
        "display_name": outsider.name,
        "phones": [outsider.number],
        "primary_phone": outsider.number,
        "emails": [outsider.email] if outsider.email else [],
        "primary_email": outsider.email,
        "company_name": outsider.firm,
        "job_title": outsider.job,
        "urls": [],
        "trunk_group": "",
        "extension": "",
    }


def _contact_type(outsider: Outsider) -> str:
    return "shared" if outsider.name and outsider.owner_id is None else "local"


def _agent_status(happening: DutyHappening) -> dict[str, Any]:
    member, duty = happening.member, happening.duty
    return {
        "call_center_ids": [str(centre.id) for centre in happening.centres],
        "target": {
            "phone": member.number,
            "type": "user",
            "email": member.email,
            "id": member.id,
            "name": member.name,
        },
        "availability_status": "unavailable" if duty is Duty.TALKING else "available",
        "on_duty_status": _DUTIES[duty],
        "on_duty_status_reason": happening.reason,
        "powerdialer_mode": False,
        "powerdialer_session": None,
        "date": happening.at_ms,
        "event_timestamp": _event_timestamp(happening),
    }


def _changelog(happening: SettingHappening) -> dict[str, Any]:
    centre, member, joined = happening.centre, happening.member, happening.joined
    return {
        "action": "operator_added" if joined else "operator_removed",
        "additional_data": {"name": centre.name, "operator_name": member.name},
        "changed_by": {"name": happening.by.name, "id": happening.by.id, "type": "User"},
        "date": happening.at_ms,
        "note": f"{member.name} {'put on' if joined else 'taken off'} {centre.name}",
        "target": {"type": "Office", "id": centre.office_id},
    }


# Oddities.


def _emptied(event: dict[str, Any]) -> dict[str, Any]:
    """Leave ``{}`` of callers without a name, and of who changed a setting."""
    event = dict(event)
    contact = event.get("contact")
    if contact and contact.get("type") == "local" and "call_id" in event:
        event["contact"] = {}
    if "changed_by" in event:
        event["changed_by"] = {}
    return event


_ID_KEYS = {
    "call_id",
    "id",
    "entry_point_call_id",
    "operator_call_id",
    "master_call_id",
    "office_id",
    "sender_id",
}


def _with_text_ids(event: dict[str, Any]) -> dict[str, Any]:
    """Write every id as a text, as answers of the API do."""

    def texts(value: Any) -> Any:
        match value:
            case dict():
                return {
                    key: str(item) if key in _ID_KEYS and item is not None else texts(item)
                    for key, item in value.items()
                }
            case list():
                return [texts(item) for item in value]
            case _:
                return value

    event = texts(event)
    contact = event.get("contact")
    if "call_id" in event and contact and contact["type"] == "shared":
        contact["id"] = f"shared_contact_pool_Company:{_COMPANY_ID}_uid_{contact['id']}"
    return event


_COMPANY_ID = 5_000_000_000_000_001
#: What payloads had that were seen in 2023 and what no kind can do without.
_OLDEST_KEYS = {
    *("call_id", "state", "direction", "event_timestamp", "date_started", "date_connected"),
    *("date_ended", "duration", "external_number", "internal_number", "contact", "target"),
    *("entry_point_call_id", "operator_call_id", "master_call_id", "id", "from_number"),
    *("to_number", "message_status", "event", "action", "date", "note", "on_duty_status"),
    *("message_delivery_result", "created_date"),
}


def _without_newer_keys(event: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is empty, and of agents the clock that one live capture lacks."""
    kept = {key: value for key, value in event.items() if key in _OLDEST_KEYS or value}
    if "on_duty_status" in event:
        kept.pop("event_timestamp", None)
    return kept


# Answers of the API.


def rest_call(leg: Leg) -> dict[str, Any]:
    """Make the item of a leg that is over, as `Leg.as_of` the time of asking.

    What is unknown is left out. https://developers.dialpad.com/reference/calllist
    """
    item = {
        "call_id": str(leg.id),
        "contact": _rest_party(
            str(leg.outsider.id),
            _contact_type(leg.outsider),
            leg.outsider.email,
            leg.outsider.number,
            _name(leg.outsider),
        ),
        "custom_data": leg.tag,
        "csat_score": None if leg.rating is None else str(leg.rating),
        "date_connected": _text(leg.answered_ms),
        "date_ended": _text(leg.ended_ms),
        "date_rang": _text(_date_rang(leg)),
        "date_started": _text(leg.started_ms),
        "direction": _direction(leg.outbound),
        **{key: _durations(leg)[key] for key in ("duration", "total_duration")},
        "entry_point_call_id": _text(leg.through_leg_id),
        "entry_point_target": _rest_target(leg.through) if leg.through else None,
        "event_timestamp": _text(leg.ended_ms or leg.answered_ms or leg.started_ms),
        "external_number": leg.outsider.number,
        "group_id": _group_id(leg),
        "internal_number": leg.host.number,
        "is_transferred": leg.handed_on or leg.handed_by_leg_id is not None,
        "labels": _labels(leg) or None,
        "master_call_id": _text(_master_call_id(leg)),
        "mos_score": _mos_score(leg),
        "operator_call_id": _text(leg.taken_by_leg_id),
        "proxy_target": {},
        "recording_details": _rest_recordings(leg) or None,
        "state": "blocked" if leg.barred else "hangup" if leg.ended_ms else "connected",
        "target": _rest_target(leg.host),
        "transcription_text": None if leg.message_worded_ms is None else message_words_of(leg),
        "voicemail_share_link": (
            None if leg.message_ready_ms is None else f"{_FILES}/shared/voicemail/{leg.id}"
        ),
        "was_recorded": leg.recorded or leg.message_ms > 0,
    }
    return {key: value for key, value in item.items() if value is not None}


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _rest_party(ident: str, kind: str, email: str, phone: str, name: str) -> dict[str, str]:
    return {"email": email, "id": ident, "name": name, "phone": phone, "type": kind}


def _rest_target(host: Host) -> dict[str, str]:
    email = host.email if isinstance(host, Member) else ""
    return _rest_party(str(host.id), target_type_of(host), email, host.number, host.name)


def _rest_recordings(leg: Leg) -> list[dict[str, Any]]:
    found = []
    if leg.message_ready_ms is not None:
        found.append(_recording(leg, "voicemail"))
    if leg.recording_ready_ms is not None:
        found.append(_recording(leg, _recording_type(leg)))
    return [
        details | {"duration": str(details["duration"]), "start_time": str(details["start_time"])}
        for details in found
    ]


def rest_contact(outsider: Outsider) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/contactslist"""
    body = _contact_body(outsider)
    if outsider.owner_id is not None:
        body["owner_id"] = str(outsider.owner_id)
    return body


def rest_user(world: World, member: Member, at_ms: int) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/userslist"""
    company, duty = world.company, world.duty(member.id, at_ms)
    first_name, last_name = member.name.split(" ", 1)
    return {
        "admin_office_ids": [str(office.id) for office in company.offices if member.admin],
        "company_id": str(company.id),
        "country": "us",
        "date_active": "2024-03-01T09:00:00",
        "date_added": "2024-03-01T08:00:00",
        "display_name": member.name,
        "do_not_disturb": False,
        "duty_status_reason": duty.reason,
        "duty_status_started": _iso(duty.since_ms),
        "emails": [member.email],
        "first_name": first_name,
        "group_details": [
            {
                "do_not_disturb": False,
                "group_id": str(centre.id),
                "group_type": "callcenter",
                "role": "operator",
            }
            for centre in world.centres_of(member.id, at_ms)
        ],
        "id": str(member.id),
        "is_admin": member.admin,
        "is_available": duty.duty is not Duty.TALKING,
        "is_on_duty": duty.duty is not Duty.AWAY,
        "is_online": True,
        "is_super_admin": member.admin,
        "language": "en",
        "last_name": last_name,
        "license": "admins" if member.admin else "agents",
        "muted": False,
        "office_id": str(member.office_id),
        "on_duty_started": None if duty.on_since_ms is None else _iso(duty.on_since_ms),
        "on_duty_status": _DUTIES[duty.duty],
        "phone_numbers": [member.number],
        "state": "active",
        "timezone": "US/Pacific",
    }


def rest_company(company: Company) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/companyget"""
    return {
        "admin_email": company.admin.email,
        "country": "us",
        "domain": "example.com",
        "id": str(company.id),
        "name": company.name,
        "office_count": len(company.offices),
    }


def rest_office(company: Company, office: Office) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/officeslist"""
    return _rest_group(office) | {"is_primary_office": office == company.offices[0]}


def rest_department(department: Department) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/departmentslistall"""
    return _rest_group(department)


def rest_call_center(centre: Centre) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/callcenterslistall"""
    return _rest_group(centre) | {"group_description": f"Takes calls for {centre.name}"}


def _rest_group(group: Office | Department | Centre) -> dict[str, Any]:
    return {
        "availability_status": "open",
        "country": "us",
        "first_action": "menu" if isinstance(group, Office) else "operators",
        "hours_on": False,
        "id": str(group.id),
        "monday_hours": ["08:00", "18:00"],
        "name": group.name,
        "office_id": str(group.office_id),
        "phone_numbers": [group.number],
        "ring_seconds": 30,
        "state": "active",
        "timezone": "US/Pacific",
    }


def rest_number(company: Company, number: Number) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/numberslist"""
    kind = target_type_of(number.host)
    return {
        "area_code": number.number[2:5],
        "company_id": str(company.id),
        "deleted": False,
        "number": number.number,
        "office_id": str(number.host.office_id),
        "status": kind,
        "target_id": str(number.host.id),
        "target_type": kind.replace("_", ""),
        "type": "local",
    }


def rest_transcript(leg: Leg) -> dict[str, Any]:
    """Make the transcript of a leg; without lines if there is none. Its clocks have no zone.

    https://developers.dialpad.com/reference/transcriptsget
    """
    items = []
    for line in transcript_of(leg):
        item: dict[str, Any] = {
            "content": line.words,
            "time": _iso(line.at_ms - _OFFICE_BEHIND_MS),
            "type": "transcript",
        }
        if isinstance(line.speaker, Member):
            item |= {"name": line.speaker.name, "user_id": str(line.speaker.id)}
        else:
            item |= {"name": _name(line.speaker), "contact_id": str(line.speaker.id)}
        items.append(item)
    return {"call_id": str(leg.id), "lines": items}


_OFFICE_BEHIND_MS = 8 * 3_600_000


def rest_recap(leg: Leg) -> dict[str, Any] | None:
    """Make the recap of a leg; None if there is none.

    https://developers.dialpad.com/reference/callget_ai_recap
    """
    if leg.recap_ready_ms is None:
        return None
    recap = recap_of(leg)
    return {
        "call_id": str(leg.id),
        "summary": {"content": recap.summary},
        "outcome": {"content": recap.outcome},
        "purposes": [{"content": purpose} for purpose in recap.purposes],
        "action_items": [{"content": task} for task in recap.tasks],
    }


def rest_optout(company: Company, consent: Consent) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/companysms_opt_out"""
    item: dict[str, Any] = {
        "date": str(consent.since_ms),
        "external_endpoint": consent.outsider.number,
        "opt_out_state": "opted_out" if consent.opted_out else "opted_back_in",
    }
    if consent.opted_out:
        item["opt_out_scope_info"] = {
            "opt_out_scope_level": "company",
            "scope_id": str(company.id),
        }
    return item


def rest_duty_status(world: World, member: Member, at_ms: int) -> dict[str, Any]:
    """https://developers.dialpad.com/reference/callcentersoperatorsgetdutystatus"""
    duty = world.duty(member.id, at_ms)
    return {
        "duty_status_reason": duty.reason,
        "duty_status_started": _iso(duty.since_ms),
        "on_duty": duty.duty is not Duty.AWAY,
        "on_duty_started": None if duty.on_since_ms is None else _iso(duty.on_since_ms),
        "on_duty_status": _DUTIES[duty.duty],
        "user_id": str(member.id),
    }


# Words.


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None).isoformat("T", "seconds")


def _event_timestamp(happening: Happening) -> int:
    """Add a little to the fact's own time: the same for all of one subject, to keep their order."""
    return happening.at_ms + 50 + happening.subject_id % (MAX_LAG_MS - 50)


def _direction(outbound: bool) -> str:  # noqa: FBT001
    return "outbound" if outbound else "inbound"


def _name(outsider: Outsider) -> str:
    return outsider.name or _national(outsider.number)


def _national(number: str) -> str:
    """Write ``+15551230101`` as ``(555) 123-0101``."""
    return f"({number[2:5]}) {number[5:8]}-{number[8:]}"
