"""Dialpad's words and ours: theirs on the left, the value of our enum on the right.

States, and the fields that a call may have: the published API description,
dialpad/dialpad-python-sdk `dialpad_api_spec.json`. All lists are open.
"""

from schemas.agent import DutyStatus
from schemas.call import CallState, Direction
from schemas.consent import ConsentState
from schemas.contact import ContactChange
from schemas.message import MessageStatus

STATES: dict[str, str] = {
    "calling": CallState.CALLING.value,
    "preanswer": CallState.PREANSWER.value,
    "ringing": CallState.RINGING.value,
    "queued": CallState.QUEUED.value,
    "connected": CallState.CONNECTED.value,
    "hold": CallState.HELD.value,
    "parked": CallState.PARKED.value,
    "merged": CallState.MERGED.value,
    "missed": CallState.MISSED.value,
    "blocked": CallState.BLOCKED.value,
    "hangup": CallState.ENDED.value,
    "voicemail": CallState.VOICEMAIL.value,
    "voicemail_uploaded": CallState.VOICEMAIL_UPLOADED.value,
    "transcription": CallState.VOICEMAIL_TRANSCRIBED.value,
    "recording": CallState.RECORDING_READY.value,
    "admin_recording": CallState.RECORDING_READY.value,
    "call_transcription": CallState.TRANSCRIPT_READY.value,
    "recap_action_items": CallState.RECAP_READY.value,
    "recap_outcome": CallState.RECAP_READY.value,
    "recap_purposes": CallState.RECAP_READY.value,
    "recap_summary": CallState.RECAP_READY.value,
    "ai_playbook": CallState.RECAP_READY.value,
    "dispositions": CallState.DISPOSITIONED.value,
    "postcall": CallState.WRAPPED_UP.value,
    "csat": CallState.SURVEYED.value,
    "pcsat": CallState.SURVEYED.value,
    "admin": CallState.SUPERVISED.value,
    "barge": CallState.SUPERVISED.value,
    "eavesdrop": CallState.SUPERVISED.value,
    "monitor": CallState.SUPERVISED.value,
    "takeover": CallState.SUPERVISED.value,
}

#: After these the leg is over, whether or not the body has its end.
ENDING_STATES = frozenset(
    {
        CallState.ENDED.value,
        CallState.MISSED.value,
        CallState.BLOCKED.value,
        CallState.VOICEMAIL_UPLOADED.value,
        CallState.VOICEMAIL_TRANSCRIBED.value,
    }
)

DIRECTIONS: dict[str, str] = {
    "inbound": Direction.INBOUND.value,
    "outbound": Direction.OUTBOUND.value,
}

#: REST's list and the events' differ; `success` is REST's only.
MESSAGE_STATUSES: dict[str, str] = {
    "pending": MessageStatus.PENDING.value,
    "sent": MessageStatus.SENT.value,
    "success": MessageStatus.SENT.value,
    "delivered": MessageStatus.DELIVERED.value,
    "failed": MessageStatus.FAILED.value,
    "undelivered": MessageStatus.UNDELIVERED.value,
}

#: https://developers.dialpad.com/docs/contact-events
CONTACT_CHANGES: dict[str, str] = {
    "Created": ContactChange.CREATED.value,
    "Updated": ContactChange.UPDATED.value,
    "Deleted": ContactChange.DELETED.value,
}

#: https://developers.dialpad.com/docs/agent-status-events
DUTY_STATUSES: dict[str, str] = {
    "available": DutyStatus.AVAILABLE.value,
    "unavailable": DutyStatus.UNAVAILABLE.value,
    "occupied": DutyStatus.OCCUPIED.value,
    "wrapup": DutyStatus.WRAPUP.value,
    "busy": DutyStatus.BUSY.value,
}

#: https://developers.dialpad.com/reference/companyget_sms_opt_out_list
CONSENT_STATES: dict[str, str] = {
    "opted_out": ConsentState.OPTED_OUT.value,
    "opted_back_in": ConsentState.OPTED_IN.value,
}

#: Kinds of targets come as `call_center`, `callcenter` and `CallCenter`; here without `_` and case.
TARGET_KINDS = {
    "callcenter": "call_center",
    "callrouter": "call_router",
    "coachinggroup": "coaching_group",
    "coachingteam": "coaching_team",
    "staffgroup": "staff_group",
}

#: What the signature adds may stand beside the fields of any kind.
CLAIMS = {"iat", "exp", "nbf", "iss", "sub", "aud", "jti"}

MESSAGE_FIELDS = frozenset(
    CLAIMS
    | {
        "admins",
        "contact",
        "created_date",
        "direction",
        "event_timestamp",
        "from_number",
        "id",
        "is_internal",
        "message_delivery_result",
        "message_status",
        "mms",
        "mms_url",
        "sender_id",
        "target",
        "text",
        "text_content",
        "to_number",
    }
)

CONTACT_FIELDS = frozenset(CLAIMS | {"contact", "event"})

#: Of the object under ``contact``.
CARD_FIELDS = frozenset(
    {
        "company_name",
        "display_name",
        "emails",
        "extension",
        "first_name",
        "id",
        "job_title",
        "last_name",
        "owner_id",  # where the contact was listed
        "phones",
        "primary_email",
        "primary_phone",
        "trunk_group",
        "type",
        "urls",
    }
)

AGENT_FIELDS = frozenset(
    CLAIMS
    | {
        "availability_status",
        "call_center_ids",
        "date",
        "event_timestamp",
        "on_duty_status",
        "on_duty_status_reason",
        "powerdialer_mode",
        "powerdialer_session",
        "target",
    }
)

CHANGE_FIELDS = frozenset(
    CLAIMS | {"action", "additional_data", "changed_by", "date", "note", "target"}
)

CONSENT_FIELDS = frozenset({"date", "external_endpoint", "opt_out_scope_info", "opt_out_state"})

#: https://developers.dialpad.com/reference/callcentersoperatorsget_duty_status
DUTY_FIELDS = frozenset(
    {
        "duty_status_reason",
        "duty_status_started",
        "on_duty",
        "on_duty_started",
        "on_duty_status",
        "user_id",
    }
)

TRANSCRIPT_FIELDS = frozenset({"call_id", "lines"})

#: Of an item of ``lines``.
LINE_FIELDS = frozenset({"contact_id", "content", "name", "time", "type", "user_id"})
