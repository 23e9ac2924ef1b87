"""What DialLink would tell of the simulated company, and how it would sign it.

Which calls: every leg of a member, in and out. Its users are the company's people, its contacts the
company's.

https://developers.diallink.com shows users, contacts and keys. Assumed, since nothing is published
of them: the fields of calls, recordings and messages, and all notifications. Times are milliseconds
since 1970, enums are in capitals.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

from standardwebhooks import Webhook

from ingest.simulator.facts import (
    CallHappening,
    CallStep,
    Change,
    ContactHappening,
    Duty,
    DutyHappening,
    Happening,
    Leg,
    Member,
    Message,
    Outsider,
    TextHappening,
    TextStep,
)
from ingest.simulator.faults import Faults
from ingest.simulator.world import World

#: Of what an id is, in its first digits: two things have one number in the world.
_CALL, _USER, _CONTACT, _NUMBER, _RECORDING, _MESSAGE, _KEY = range(1, 8)

_PRIVATE_SHARE = 9
_WORDS = {
    Duty.FREE: "ONLINE",
    Duty.TALKING: "BUSY",
    Duty.FINISHING: "BUSY",
    Duty.AWAY: "OFFLINE",
}


def call_id(leg_id: int) -> str:
    return _uuid(_CALL, leg_id)


def user_id(member_id: int) -> str:
    return _uuid(_USER, member_id)


def contact_id(outsider_id: int) -> str:
    return _uuid(_CONTACT, outsider_id)


def recording_id(leg_id: int) -> str:
    return _uuid(_RECORDING, leg_id)


def key_id(number: int) -> str:
    return _uuid(_KEY, number)


def number_of(uuid: str) -> int | None:
    """The world's number in an id; None if it is none of ours."""
    digits = uuid.replace("-", "")
    text = digits[8:12] + digits[13:16] + digits[17:20] + digits[26:32]
    try:
        number, kind = int(text, 16), int(digits[:8], 16)
    except ValueError:
        return None
    return number if _uuid(kind, number) == uuid else None


def _uuid(kind: int, number: int) -> str:
    digits = f"{number:016x}"
    return f"{kind:08x}-{digits[:4]}-4{digits[4:7]}-8{digits[7:10]}-{digits[10:]:0>12}"


# Calls


@dataclass(frozen=True, slots=True)
class LateChange:
    """What becomes of a record when its call is long over."""

    at_ms: int
    what: int


def is_listed(leg: Leg) -> bool:
    return isinstance(leg.host, Member)


def is_private(leg: Leg) -> bool:
    """Whether only its member's own key shows it, beside an admin's."""
    return leg.through is None and _odds("private", leg.id) % _PRIVATE_SHARE == 0


def late_change_of(leg: Leg, faults: Faults) -> LateChange | None:
    if leg.ended_ms is None or not faults.has("records_change", leg.id):
        return None
    odds = _odds("change", leg.id)
    late_ms = 1 + int(faults.records_change_s * 1000 * (odds % 997) / 997)
    return LateChange(leg.ended_ms + late_ms, odds % 3)


def changes_of(leg: Leg, late: LateChange | None) -> tuple[int, ...]:
    """When its record changes, in order; the first time is that of its beginning."""
    times = {
        leg.started_ms,
        leg.answered_ms,
        leg.ended_ms,
        leg.message_ready_ms,
        leg.recording_ready_ms,
        late.at_ms if late else None,
    }
    return tuple(sorted(at_ms for at_ms in times if at_ms is not None))


def call_record(leg: Leg, at_ms: int, late: LateChange | None, off_ms: int = 0) -> dict[str, Any]:
    """The record of a leg as it stood then; ``off_ms``: what DialLink's clock is ahead."""
    known = leg.as_of(at_ms)
    changed_ms = max(at for at in changes_of(leg, late) if at <= at_ms)
    us, them = leg.host.number, leg.outsider.number
    outsider: Outsider | None = leg.outsider if leg.outsider.name else None
    status, duration_s = _status(known), _talk_s(known)
    if late is not None:
        is_late = late.at_ms <= at_ms
        match late.what:
            case 0:  # counted again
                duration_s += is_late
            case 1:  # taken for a failure at first
                status = status if is_late or known.ended_ms is None else "FAILED"
            case _:  # whose number it is was not known
                outsider = outsider if is_late else None
    has_recording = known.recording_ready_ms is not None or known.message_ready_ms is not None
    return {
        "id": call_id(leg.id),
        "direction": "OUTBOUND" if leg.outbound else "INBOUND",
        "status": status,
        "from": us if leg.outbound else them,
        "to": them if leg.outbound else us,
        "startedAt": leg.started_ms + off_ms,
        "answeredAt": _moved(known.answered_ms, off_ms),
        "endedAt": _moved(known.ended_ms, off_ms),
        "duration": duration_s,
        "userId": user_id(leg.host.id),
        "contactId": contact_id(outsider.id) if outsider else None,
        "recordingId": recording_id(leg.id) if has_recording else None,
        "updatedAt": changed_ms + off_ms,
    }


def _status(leg: Leg) -> str:
    """Of a leg as it was known."""
    if leg.ended_ms is None:
        return "RINGING" if leg.answered_ms is None else "IN_PROGRESS"
    if leg.answered_ms is not None:
        return "COMPLETED"
    if leg.barred:
        return "BLOCKED"
    if leg.message_ready_ms is not None:
        return "VOICEMAIL"
    return "NO_ANSWER" if leg.outbound else "MISSED"


def _talk_s(leg: Leg) -> int:
    if leg.answered_ms is None or leg.ended_ms is None:
        return 0
    return round((leg.ended_ms - leg.answered_ms) / 1000)


def _moved(at_ms: int | None, off_ms: int) -> int | None:
    return None if at_ms is None else at_ms + off_ms


# Everything else that is listed


def recording_ready_ms(leg: Leg) -> int | None:
    """Of a talk's, or of a message that was left."""
    return leg.recording_ready_ms or leg.message_ready_ms


def recording(leg: Leg, off_ms: int = 0) -> dict[str, Any]:
    """Raises ValueError if there is none."""
    ready_ms = recording_ready_ms(leg)
    if ready_ms is None or leg.ended_ms is None:
        raise ValueError("it was not recorded")
    is_talk = leg.recording_ready_ms is not None and leg.answered_ms is not None
    begun_ms = leg.answered_ms if is_talk else leg.ended_ms - leg.message_ms
    assert begun_ms is not None
    ident = recording_id(leg.id)
    return {
        "id": ident,
        "callId": call_id(leg.id),
        "url": f"https://diallink.example/recordings/{ident}",
        "startedAt": begun_ms + off_ms,
        "duration": round((leg.ended_ms - begun_ms) / 1000),
        "updatedAt": ready_ms + off_ms,
    }


def user(world: World, member: Member, at_ms: int) -> dict[str, Any]:
    first_name, _, last_name = member.name.partition(" ")
    return {
        "id": user_id(member.id),
        "status": {"status": _WORDS[world.duty(member.id, at_ms).duty]},
        "email": member.email,
        "firstName": first_name,
        "lastName": last_name,
        "jobTitle": None if member.admin else "Support",
        "admin": member.admin,
        "parallelCallsEnabled": member.admin,
    }


def contact(outsider: Outsider) -> dict[str, Any]:
    return {
        "firstName": outsider.first_name,
        "lastName": outsider.last_name,
        "companyName": outsider.firm or None,
        "shared": outsider.owner_id is None,
        "addresses": [],
        "phoneNumbers": [
            {
                "type": "WORK",
                "id": _uuid(_NUMBER, outsider.id),
                "phoneNumber": outsider.number,
            }
        ],
        "emails": [],
        "favorite": False,
        "forceSave": False,
        "id": contact_id(outsider.id),
        "type": "EXTERNAL",
    }


def api_key(ident: str, name: str, text: str, expires_ms: int, *, enabled: bool) -> dict[str, Any]:
    """``text``: as it is to be shown."""
    return {"id": ident, "name": name, "enabled": enabled, "key": text, "expiresAt": expires_ms}


def masked(key: str) -> str:
    """Its last four characters are kept."""
    return "".join(letter if letter in "-+" else "X" for letter in key[:-4]) + key[-4:]


# Notifications


@dataclass(frozen=True, slots=True)
class Notification:
    #: The same on every retry.
    id: str
    type: str
    body: dict[str, Any]


def notification(
    happening: Happening, late: LateChange | None, off_ms: int = 0
) -> Notification | None:
    """What is told of a happening; mostly nothing."""
    type_, data = _about(happening, late, off_ms)
    if type_ is None:
        return None
    at_ms = happening.at_ms + off_ms
    parts = f"{type_} {happening.subject_id} {happening.at_ms}"
    return Notification(
        f"msg_{hashlib.sha256(parts.encode()).hexdigest()[:24]}",
        type_,
        {"type": type_, "timestamp": _iso(at_ms), "data": data},
    )


def _about(
    happening: Happening, late: LateChange | None, off_ms: int
) -> tuple[str | None, dict[str, Any]]:
    match happening:
        case CallHappening(leg=leg) if is_listed(leg):
            type_ = _call_type(leg, happening.step)
            return type_, call_record(leg, happening.at_ms, late, off_ms) if type_ else {}
        case TextHappening(message=message, step=TextStep.WRITTEN) if not message.outbound:
            return "message.received", _message(message, off_ms)
        case ContactHappening(change=change) if change is not Change.DELETED:
            return "contact.updated", contact(happening.outsider)
        case DutyHappening(duty=Duty.AWAY, member=member):
            # One of those that nobody knows of.
            return "user.offline", {"id": user_id(member.id), "status": {"status": "OFFLINE"}}
        case _:
            return None, {}


def _call_type(leg: Leg, step: CallStep) -> str | None:
    # A caller who is handed on was called before.
    is_placed = leg.outbound and leg.handed_by_leg_id is None
    if step is (CallStep.PLACED if is_placed else CallStep.RANG):
        return "call.started"
    if step is CallStep.ENDED:
        missed = leg.answered_ms is None and not leg.outbound and not leg.barred
        return "call.missed" if missed else "call.completed"
    return {
        CallStep.ANSWERED: "call.answered",
        CallStep.RECORDING_READY: "recording.ready",
        CallStep.MESSAGE_READY: "voicemail.received",
    }.get(step)


def _message(message: Message, off_ms: int) -> dict[str, Any]:
    them = message.outsider
    return {
        "id": _uuid(_MESSAGE, message.id),
        "direction": "INBOUND",
        "status": "RECEIVED",
        "from": them.number,
        "to": message.host.number,
        "text": message.text,
        "userId": user_id(message.host.id) if isinstance(message.host, Member) else None,
        "contactId": contact_id(them.id) if them.name else None,
        "updatedAt": message.written_ms + off_ms,
    }


def signed_headers(
    ident: str, body: bytes, secrets: Sequence[str], sent_s: float
) -> dict[str, str]:
    """What is sent with a body: an attempt's, by Standard Webhooks, a signature for each secret.

    ``sent_s``: seconds since 1970. https://www.standardwebhooks.com
    """
    sent = datetime.fromtimestamp(int(sent_s), UTC)
    signatures = [Webhook(secret).sign(ident, sent, body.decode()) for secret in secrets]
    headers = {
        "content-type": "application/json",
        "webhook-id": ident,
        "webhook-timestamp": str(int(sent_s)),
    }
    if signatures:
        headers["webhook-signature"] = " ".join(signatures)
    return headers


def _iso(at_ms: int) -> str:
    text = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _odds(what: str, ident: int) -> int:
    """A number that the call decides."""
    return crc32(f"{what} {ident}".encode())
