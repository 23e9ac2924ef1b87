"""What Dialpad would tell of the simulated company, and how it would sign it.

Shapes: https://developers.dialpad.com/docs/call-events-logging and its neighbours, with the newest
set of keys that was seen. Oddities are kept: durations carry noise; what is absent is null, ``{}``
or ``""`` depending on the field; a number is ``phone`` in calls and ``phone_number`` in messages.
"""

import json
from typing import Any

import jwt

from ingest.simulator.world import (
    CallHappening,
    CallStep,
    Centre,
    ContactHappening,
    Duty,
    DutyHappening,
    Happening,
    Leg,
    Member,
    Outsider,
    SettingHappening,
    TextHappening,
    TextStep,
)

_OFFICE_ID = 5_000_000_000_000_100
_FILES = "https://dialpad.example"
_STATES = {
    CallStep.PLACED: "calling",
    CallStep.RANG: "ringing",
    CallStep.WAITED: "queued",
    CallStep.ANSWERED: "connected",
    CallStep.HELD: "hold",
    CallStep.RESUMED: "connected",
    CallStep.DIVERTED: "voicemail",
    CallStep.ENDED: "hangup",
    CallStep.MESSAGE_READY: "voicemail_uploaded",
    CallStep.RECORDING_READY: "recording",
}
_STATUSES = {
    TextStep.WRITTEN: ("pending", None),
    TextStep.CARRIED: ("sent", "accepted"),
    TextStep.ARRIVED: ("delivered", "accepted"),
    TextStep.REFUSED: ("failed", "invalid_destination"),
}
_DUTIES = {Duty.FREE: "available", Duty.TALKING: "occupied", Duty.AWAY: "unavailable"}

#: How much later than its happening a payload may claim to be made.
MAX_LAG_MS = 150
#: Waits after a connection that failed or timed out, of whatever kind.
QUICK_RETRY_WAITS_S = (0.1, 0.1)


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
    """Make the JSON, as it is posted by a webhook that has no secret."""
    return json.dumps(payload(happening), separators=(",", ":")).encode()


def payload(happening: Happening) -> dict[str, Any]:
    """Make the event of a happening."""
    match happening:
        case CallHappening():
            return _call(happening)
        case TextHappening():
            return _sms(happening)
        case ContactHappening():
            return _contact(happening)
        case DutyHappening():
            return _agent_status(happening)
        case SettingHappening():
            return _changelog(happening)


def _call(happening: CallHappening) -> dict[str, Any]:
    leg, step = happening.leg, happening.step
    state = _STATES[step]
    answered, ended = leg.answered_ms is not None, leg.ended_ms is not None
    inbound, personal = not leg.outbound, isinstance(leg.host, Member)
    if state == "hangup" and inbound and personal and not (answered or leg.diverted):
        state = "missed"
    event: dict[str, Any] = {
        "call_id": leg.id,
        "state": state,
        "direction": _direction(leg.outbound),
        "event_timestamp": _event_timestamp(happening),
        "date_started": leg.started_ms,
        "date_rang": leg.rang_ms if inbound and personal else None,
        "date_first_rang": leg.rang_ms,
        "date_queued": None if personal else leg.started_ms,
        "date_connected": leg.answered_ms,
        "date_ended": leg.ended_ms,
        **(dict.fromkeys(_DURATIONS) if step is CallStep.PLACED else _durations(leg)),
        "external_number": leg.outsider.number,
        "internal_number": leg.host.number,
        "selected_caller_id": None,
        "contact": {
            "id": leg.outsider.id,
            "type": "shared" if leg.outsider.name else "local",
            "email": leg.outsider.email,
            "phone": leg.outsider.number,
            "name": _name(leg.outsider),
        },
        "target": _target(leg.host),
        "target_availability_status": "open",
        "callback_requested": None,
        "entry_point_call_id": leg.centre_leg_id,
        "entry_point_target": _target(leg.centre) if leg.centre else {},
        "operator_call_id": leg.member_leg_id,
        "proxy_target": {},
        "group_id": _group_id(leg.host, leg.centre),
        "master_call_id": None,
        "is_internal": False,
        "is_transferred": False,
        "transferred_from": {},
        "csat_score": None,
        "mos_score": (400 + leg.id % 45) / 100 if answered and ended and personal else None,
        "labels": _labels(leg, missed=state == "missed") if ended else [],
        "routing_breadcrumbs": [],
        "was_recorded": leg.recorded or leg.message_ms > 0,
        # There is a link as soon as the caller might leave a message; only the id proves one.
        "voicemail_link": f"{_FILES}/blob/voicemail/{leg.id}.mp3" if leg.diverted else None,
        "voicemail_recording_id": None,
        "call_recording_ids": [],
        "recording_details": [],
        "transcription_text": None,
        "integrations": {},
    }
    if state in {"hangup", "recording"}:
        event["company_call_review_share_link"] = f"{_FILES}/shared/call/c{leg.id}"
        event["public_call_review_share_link"] = f"{_FILES}/shared/call/p{leg.id}"
        if leg.recorded:
            event["admin_recording_urls"] = []
    match step:
        case CallStep.RECORDING_READY:
            recording = _recording(leg, "callrecording")
            event["call_recording_ids"] = [recording["id"]]
            event["recording_details"] = [recording]
            event["recording_url"] = [recording["url"]]
        case CallStep.MESSAGE_READY:
            recording = _recording(leg, "voicemail")
            event["voicemail_recording_id"] = recording["id"]
            event["recording_details"] = [recording]
    return event


_DURATIONS = ("duration", "total_duration", "talk_time", "hold_time")


def _durations(leg: Leg) -> dict[str, float]:
    """Nothing before the end. A centre's leg counts the waiting as well."""
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


def _labels(leg: Leg, *, missed: bool) -> list[str]:
    labels = {
        _direction(leg.outbound): True,
        "answered": leg.answered_ms is not None,
        "unanswered": leg.answered_ms is None,
        "missed": missed,
        "voicemail": leg.diverted,
    }
    return sorted(label for label, holds in labels.items() if holds)


def _target(host: Member | Centre) -> dict[str, Any]:
    return {
        "id": host.id,
        "type": "user" if isinstance(host, Member) else "call_center",
        "email": host.email if isinstance(host, Member) else "",
        "phone": host.number,
        "name": host.name,
        "office_id": _OFFICE_ID,
    }


def _group_id(host: Member | Centre, through: Centre | None) -> str | None:
    centre = host if isinstance(host, Centre) else through
    return f"CallCenter:{centre.id}" if centre else None


def _sms(happening: TextHappening) -> dict[str, Any]:
    outsider, member = happening.outsider, happening.member
    numbers = outsider.number, member.number
    sender, receiver = reversed(numbers) if happening.outbound else numbers
    status, delivery_result = _STATUSES[happening.step]
    return {
        "id": happening.subject_id,
        "created_date": happening.written_ms,
        "event_timestamp": _event_timestamp(happening),
        "direction": _direction(happening.outbound),
        "from_number": sender,
        "to_number": [receiver],
        "target": {
            "id": member.id,
            "name": member.name,
            "phone_number": _national(member.number),
            "type": "user",
        },
        "contact": {
            "id": outsider.id,
            "name": _name(outsider),
            "phone_number": outsider.number,
        },
        "sender_id": None,
        "is_internal": False,
        "mms": False,
        "mms_url": None,
        "text": happening.text,
        "text_content": happening.text,
        "message_status": status,
        "message_delivery_result": delivery_result,
    }


def _contact(happening: ContactHappening) -> dict[str, Any]:
    """Make a contact event. It has no clock, and its ids are texts."""
    outsider = happening.outsider
    return {
        "event": "Created" if happening.new else "Updated",
        "contact": {
            "id": str(outsider.id),
            "type": "shared",
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
        },
    }


def _agent_status(happening: DutyHappening) -> dict[str, Any]:
    member, duty = happening.member, happening.duty
    return {
        "call_center_ids": [] if duty is Duty.AWAY else [str(happening.centre.id)],
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
        "target": {"type": "Office", "id": _OFFICE_ID},
    }


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
