r"""What becomes of Dialpad's samples, written out by hand from what the payloads mean.

Durations are compared to the millisecond: Dialpad's have binary noise. Digests were made with
`jq -S -c . <sample> | tr -d '\n' | sha256sum | cut -c1-16` (jq 1.6, GNU coreutils 9.1).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ingest.delivery import Delivery, Verified
from ingest.providers.dialpad.webhook import Webhook
from schemas.event import Event, encode

SAMPLES = Path(__file__).parents[3] / "samples" / "dialpad"

#: date -u -d @1790000301.234: 2026-09-21T14:18:21.234Z, five minutes after the samples begin.
RECEIVED_MS = 1_790_000_301_234
RECEIVED = "2026-09-21T14:18:21.234Z"

# --- who takes part -----------------------------------------------------------------------------

CALLER: dict[str, Any] = {
    "kind": "local",
    "id": "5000000000000901",
    "name": "(555) 123-0001",
    "email": None,
    "number": "+15551230001",
    "number_raw": "+15551230001",
    "withheld": False,
}
CRM_CUSTOMER: dict[str, Any] = {
    "kind": "shared",
    "id": "shared_contact_pool_Company:5000000000000001_uid_crm-42",
    "name": "Example Customer",
    "email": "customer@example.com",
    "number": "+15551230001",
    "number_raw": "+15551230001",
    "withheld": False,
}
AGENT_ONE: dict[str, Any] = {
    "kind": "user",
    "id": "5000000000000201",
    "name": "Agent One",
    "email": "agent.one@example.com",
    "number": "+15551230101",
    "number_raw": "+15551230101",
    "withheld": False,
}
SUPPORT: dict[str, Any] = {
    "kind": "call_center",
    "id": "5000000000000301",
    "name": "Example Support",
    "email": None,
    "number": "+15551230102",
    "number_raw": "+15551230102",
    "withheld": False,
}
OFFICE: dict[str, Any] = {
    "kind": "office",
    "id": "5000000000000100",
    "name": "Example Office",
    "email": None,
    "number": "+15551230100",
    "number_raw": "+15551230100",
    "withheld": False,
}

# --- calls --------------------------------------------------------------------------------------

#: What no sample of a call has, unless it says so.
_PLAIN: dict[str, Any] = {
    "group": None,
    "provider_outcome": None,
    "transferred": False,
    "recordings": [],
    "voicemail": None,
    "transcript": None,
    "recap": None,
    "labels": [],
    "dispositions": [],
    "quality": None,
    "campaign_id": None,
    "custom_data": None,
    "started_at": "2026-09-21T14:13:20.000Z",
}
_INBOUND: dict[str, Any] = {
    **_PLAIN,
    "direction": "inbound",
    "from_number": "+15551230001",
    "to_number": "+15551230101",
    "external": CALLER,
    "internal": AGENT_ONE,
    "target": AGENT_ONE,
}
_OUTBOUND: dict[str, Any] = {
    **_PLAIN,
    "direction": "outbound",
    "from_number": "+15551230101",
    "to_number": "+15551230001",
    "external": CALLER,
    "internal": AGENT_ONE,
    "target": AGENT_ONE,
}
_LEG_1101: dict[str, Any] = {
    **_INBOUND,
    "call_id": "5000000000001101",
    "conversation_id": "5000000000001101",
    "related_call_ids": [],
    "rang_at": "2026-09-21T14:13:20.300Z",
}
_LEG_1101_OVER: dict[str, Any] = {
    **_LEG_1101,
    "connected_at": "2026-09-21T14:13:29.000Z",
    "ended_at": "2026-09-21T14:15:20.000Z",
    "ring_duration_s": 8.7,
    "talk_duration_s": 96.0003,
    "hold_duration_s": 15.0,
    "total_duration_s": 120.00091,
    "outcome": "answered",
}
_LEG_1001: dict[str, Any] = {
    **_OUTBOUND,
    "call_id": "5000000000001001",
    "conversation_id": "5000000000001001",
    "related_call_ids": [],
}
_SUPPORT_LINE: dict[str, Any] = {"kind": "call_center", "id": "5000000000000301"}

# --- messages -----------------------------------------------------------------------------------

_CUSTOMER_BY_SMS: dict[str, Any] = {
    "kind": None,
    "id": "5000000000000901",
    "name": "Example Customer",
    "email": None,
    "number": "+15551230001",
    "number_raw": "+15551230001",
    "withheld": False,
}
#: Seen in national format, although documented as E.164.
_AGENT_BY_SMS: dict[str, Any] = {
    "kind": "user",
    "id": "5000000000000201",
    "name": "Agent One",
    "email": None,
    "number": "+15551230101",
    "number_raw": "(555) 123-0101",
    "withheld": False,
}
_SMS_IN: dict[str, Any] = {
    "direction": "inbound",
    "from_number": "+15551230001",
    "to_numbers": ["+15551230101"],
    "text": "Invented text",
    "text_available": True,
    "media": [],
    "status": "pending",
    "provider_status": "pending",
    "delivery_result": None,
    "internal": False,
    "contact": _CUSTOMER_BY_SMS,
    "target": _AGENT_BY_SMS,
    "sender_id": None,
}
_SMS_OUT: dict[str, Any] = {
    **_SMS_IN,
    "direction": "outbound",
    "from_number": "+15551230101",
    "to_numbers": ["+15551230001"],
}

# --- contacts, agents, changes ------------------------------------------------------------------

_CARD: dict[str, Any] = {
    "contact_id": "5000000000003001",
    "contact_kind": "shared",
    "change": "created",
    "display_name": "Example Customer",
    "first_name": "Example",
    "last_name": "Customer",
    "phone_numbers": [
        {"number": "+15551230001", "number_raw": "+15551230001"},
        {"number": "+15551230002", "number_raw": "+15551230002"},
    ],
    "emails": ["customer@example.com"],
    "company_name": "Example Ltd",
    "job_title": "Buyer",
    "urls": ["https://example.com"],
}
_DUTY: dict[str, Any] = {
    "agent_id": "5000000000000201",
    "name": "Agent One",
    "email": "agent.one@example.com",
    "duty_reason": None,
}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The whole of an event: these, and what is the same for all samples."""

    id: str
    type: str
    subject: str
    key: str
    topic: str
    time: str
    data: Mapping[str, Any]


def _call(
    leg: str, state: str, at_ms: int, what: str, time: str, *, data: dict[str, Any]
) -> Expected:
    return Expected(
        id=f"dialpad:acme:call:{leg}:{state}:{at_ms}",
        type=f"dialstream.call.{what}",
        subject=f"call/{leg}",
        key=f"acme/{leg}",
        topic="calls",
        time=time,
        data={"state": what, "provider_state": state, **data},
    )


EXPECTED: dict[str, Expected] = {
    "call-outbound-calling": _call(
        "5000000000001001",
        "calling",
        1790000000900,
        "calling",
        "2026-09-21T14:13:20.900Z",
        data={
            **_LEG_1001,
            "rang_at": None,
            "connected_at": None,
            "ended_at": None,
            "ring_duration_s": None,
            "talk_duration_s": None,
            "hold_duration_s": None,
            "total_duration_s": None,
            "outcome": None,
        },
    ),
    "call-outbound-ringing": _call(
        "5000000000001001",
        "ringing",
        1790000001500,
        "ringing",
        "2026-09-21T14:13:21.500Z",
        data={
            **_LEG_1001,
            "rang_at": "2026-09-21T14:13:21.200Z",
            "connected_at": None,
            "ended_at": None,
            "ring_duration_s": None,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 0.0,
            "outcome": None,
        },
    ),
    "call-outbound-connected": _call(
        "5000000000001001",
        "connected",
        1790000008600,
        "connected",
        "2026-09-21T14:13:28.600Z",
        data={
            **_LEG_1001,
            "external": CRM_CUSTOMER,
            "rang_at": "2026-09-21T14:13:21.200Z",
            "connected_at": "2026-09-21T14:13:28.200Z",
            "ended_at": None,
            "ring_duration_s": 7.0,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 8.600512,
            "outcome": None,
            "custom_data": '{"crm_id":"42"}',
        },
    ),
    "call-outbound-hangup-answered": _call(
        "5000000000001001",
        "hangup",
        1790000070100,
        "ended",
        "2026-09-21T14:14:30.100Z",
        data={
            **_LEG_1001,
            "external": CRM_CUSTOMER,
            "rang_at": "2026-09-21T14:13:21.200Z",
            "connected_at": "2026-09-21T14:13:28.200Z",
            "ended_at": "2026-09-21T14:14:28.300Z",
            "ring_duration_s": 7.0,
            "talk_duration_s": 60.10075,
            "hold_duration_s": 0.0,
            "total_duration_s": 68.30042,
            "outcome": "answered",
            "labels": ["answered", "outbound"],
            "quality": {"mos": 4.37, "csat": None},
            "custom_data": '{"crm_id":"42"}',
        },
    ),
    "call-outbound-hangup-noanswer": _call(
        "5000000000001003",
        "hangup",
        1790000031200,
        "ended",
        "2026-09-21T14:13:51.200Z",
        data={
            **_OUTBOUND,
            "call_id": "5000000000001003",
            "conversation_id": "5000000000001003",
            "related_call_ids": [],
            "rang_at": "2026-09-21T14:13:21.200Z",
            "connected_at": None,
            "ended_at": "2026-09-21T14:13:50.000Z",
            "ring_duration_s": 28.8,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 30.000118,
            "outcome": "unanswered",
            "labels": ["outbound", "unanswered"],
        },
    ),
    "call-inbound-hold": _call(
        "5000000000001101",
        "hold",
        1790000040000,
        "held",
        "2026-09-21T14:14:00.000Z",
        data={
            **_LEG_1101,
            "connected_at": "2026-09-21T14:13:29.000Z",
            "ended_at": None,
            "ring_duration_s": 8.7,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 0.0,
            "outcome": None,
        },
    ),
    "call-inbound-hangup-user": _call(
        "5000000000001101",
        "hangup",
        1790000121300,
        "ended",
        "2026-09-21T14:15:21.300Z",
        data={
            **_LEG_1101_OVER,
            "labels": ["answered", "inbound"],
            "quality": {"mos": 4.38, "csat": None},
            "recordings": [
                {
                    "recording_id": None,
                    "url": "https://dialpad.example/blob/adminrecording/5000000000001101.mp3",
                    "kind": "admincallrecording",
                    "started_at": None,
                    "duration_s": None,
                }
            ],
        },
    ),
    "call-recording": _call(
        "5000000000001101",
        "recording",
        1790000140000,
        "recording_ready",
        "2026-09-21T14:15:40.000Z",
        data={
            **_LEG_1101_OVER,
            # In three lists of the payload, and yet one.
            "recordings": [
                {
                    "recording_id": "5000000000009101",
                    "url": "https://dialpad.example/blob/callrecording/5000000000001101.mp3",
                    "kind": "callrecording",
                    "started_at": "2026-09-21T14:13:29.000Z",
                    "duration_s": 111.0,
                }
            ],
        },
    ),
    "call-call-transcription": _call(
        "5000000000001101",
        "call_transcription",
        1790000200000,
        "transcript_ready",
        "2026-09-21T14:16:40.000Z",
        data={**_LEG_1101_OVER},
    ),
    "call-recap-summary": _call(
        "5000000000001101",
        "recap_summary",
        1790000260000,
        "recap_ready",
        "2026-09-21T14:17:40.000Z",
        data={
            **_LEG_1101_OVER,
            "recap": {
                "summary": "Invented recap: the caller asked about an order.",
                "outcome": None,
                "purposes": [],
                "action_items": [],
            },
        },
    ),
    "call-recap-purposes": _call(
        "5000000000001101",
        "recap_purposes",
        1790000260300,
        "recap_ready",
        "2026-09-21T14:17:40.300Z",
        data={
            **_LEG_1101_OVER,
            "recap": {
                "summary": None,
                "outcome": None,
                "purposes": ["Order status"],
                "action_items": [],
            },
        },
    ),
    "call-inbound-missed": _call(
        "5000000000001102",
        "missed",
        1790000025600,
        "missed",
        "2026-09-21T14:13:45.600Z",
        data={
            **_INBOUND,
            "call_id": "5000000000001102",
            "conversation_id": "5000000000001102",
            "related_call_ids": [],
            "rang_at": "2026-09-21T14:13:20.300Z",
            "connected_at": None,
            "ended_at": "2026-09-21T14:13:45.000Z",
            "ring_duration_s": 24.7,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 25.0002,
            "outcome": "missed",
            "labels": ["inbound", "missed", "unanswered"],
        },
    ),
    "call-office-entrypoint-hangup": _call(
        "5000000000001200",
        "hangup",
        1790000010600,
        "ended",
        "2026-09-21T14:13:30.600Z",
        data={
            **_INBOUND,
            "call_id": "5000000000001200",
            "conversation_id": "5000000000001200",
            "related_call_ids": [],
            "to_number": "+15551230100",
            "internal": OFFICE,
            "target": OFFICE,
            "group": {"kind": "office", "id": "5000000000000100"},
            "rang_at": None,
            "connected_at": None,
            "ended_at": "2026-09-21T14:13:29.120Z",
            "ring_duration_s": None,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 9.12004,
            "outcome": "missed",
            "transferred": True,
            "quality": {"mos": 4.38, "csat": None},
        },
    ),
    "call-callcenter-leg-hangup": _call(
        "5000000000001201",
        "hangup",
        1790000152100,
        "ended",
        "2026-09-21T14:15:52.100Z",
        data={
            **_INBOUND,
            "call_id": "5000000000001201",
            "conversation_id": "5000000000001200",
            "related_call_ids": ["5000000000001200", "5000000000001202"],
            "to_number": "+15551230102",
            "internal": SUPPORT,
            "target": SUPPORT,
            "group": _SUPPORT_LINE,
            "rang_at": "2026-09-21T14:13:40.000Z",
            "connected_at": "2026-09-21T14:13:50.500Z",
            "ended_at": "2026-09-21T14:15:50.500Z",
            "ring_duration_s": 10.5,
            "talk_duration_s": 120.00025,
            "hold_duration_s": 0.0,
            "total_duration_s": 150.5004,
            "outcome": "answered",
            "labels": ["answered", "inbound"],
        },
    ),
    "call-operator-leg-ringing": _call(
        "5000000000001202",
        "ringing",
        1790000020400,
        "ringing",
        "2026-09-21T14:13:40.400Z",
        data={
            **_INBOUND,
            "call_id": "5000000000001202",
            "conversation_id": "5000000000001201",
            "related_call_ids": ["5000000000001201"],
            "group": _SUPPORT_LINE,
            "started_at": "2026-09-21T14:13:40.000Z",
            "rang_at": "2026-09-21T14:13:40.000Z",
            "connected_at": None,
            "ended_at": None,
            "ring_duration_s": None,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 0.0,
            "outcome": None,
        },
    ),
    # A link to a voicemail, and nobody left one.
    "call-voicemail-no-message": _call(
        "5000000000001301",
        "voicemail",
        1790000033000,
        "voicemail",
        "2026-09-21T14:13:53.000Z",
        data={
            **_INBOUND,
            "call_id": "5000000000001301",
            "conversation_id": "5000000000001301",
            "related_call_ids": [],
            "rang_at": "2026-09-21T14:13:20.300Z",
            "connected_at": None,
            "ended_at": "2026-09-21T14:13:52.000Z",
            "ring_duration_s": 31.7,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 32.0006,
            "outcome": "missed",
            "labels": ["inbound", "unanswered", "voicemail"],
        },
    ),
    "call-voicemail-uploaded": _call(
        "5000000000001302",
        "voicemail_uploaded",
        1790000072000,
        "voicemail_uploaded",
        "2026-09-21T14:14:32.000Z",
        data={
            **_INBOUND,
            "call_id": "5000000000001302",
            "conversation_id": "5000000000001302",
            "related_call_ids": [],
            "rang_at": "2026-09-21T14:13:20.300Z",
            "connected_at": None,
            "ended_at": "2026-09-21T14:14:25.000Z",
            "ring_duration_s": 64.7,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 65.0006,
            "outcome": "voicemail",
            "voicemail": {
                "recording_id": "5000000000009302",
                "url": "https://dialpad.example/blob/voicemail/5000000000001302.mp3",
                "text": None,
                "duration_s": 21.0,
            },
            "labels": ["inbound", "unanswered", "voicemail"],
        },
    ),
    "edge-call-int64-id": _call(
        "9007199254740993123",
        "calling",
        1790000000001,
        "calling",
        "2026-09-21T14:13:20.001Z",
        data={
            **_OUTBOUND,
            "call_id": "9007199254740993123",
            "conversation_id": "9007199254740993123",
            "related_call_ids": [],
            "rang_at": None,
            "connected_at": None,
            "ended_at": None,
            "ring_duration_s": None,
            "talk_duration_s": 0.0,
            "hold_duration_s": 0.0,
            "total_duration_s": 0.0,
            "outcome": None,
        },
    ),
    "sms-inbound-user": Expected(
        id="dialpad:acme:message:5000000000002001:pending:-:5000000000000201",
        type="dialstream.message.received",
        subject="message/5000000000002001",
        key="acme/5000000000002001",
        topic="messages",
        time="2026-09-21T14:13:20.418Z",
        data={**_SMS_IN, "message_id": "5000000000002001"},
    ),
    "sms-inbound-mms": Expected(
        id="dialpad:acme:message:5000000000002004:pending:-:5000000000000201",
        type="dialstream.message.received",
        subject="message/5000000000002004",
        key="acme/5000000000002004",
        topic="messages",
        time="2026-09-21T14:13:20.418Z",
        data={
            **_SMS_IN,
            "message_id": "5000000000002004",
            "text": None,
            "text_available": False,
            "media": [{"url": "https://dialpad.example/blob/mms/5000000000002004"}],
        },
    ),
    "sms-inbound-no-content-scope": Expected(
        id="dialpad:acme:message:5000000000002003:pending:-:5000000000000201",
        type="dialstream.message.received",
        subject="message/5000000000002003",
        key="acme/5000000000002003",
        topic="messages",
        time="2026-09-21T14:13:20.418Z",
        data={
            **_SMS_IN,
            "message_id": "5000000000002003",
            "text": None,
            "text_available": False,
        },
    ),
    "sms-outbound-pending": Expected(
        id="dialpad:acme:message:5000000000002101:pending:-:5000000000000201",
        type="dialstream.message.sent",
        subject="message/5000000000002101",
        key="acme/5000000000002101",
        topic="messages",
        time="2026-09-21T14:13:20.418Z",
        data={**_SMS_OUT, "message_id": "5000000000002101"},
    ),
    "sms-outbound-status-delivered": Expected(
        id="dialpad:acme:message:5000000000002101:delivered:accepted:5000000000000201",
        type="dialstream.message.updated",
        subject="message/5000000000002101",
        key="acme/5000000000002101",
        topic="messages",
        time="2026-09-21T14:13:24.100Z",
        data={
            **_SMS_OUT,
            "message_id": "5000000000002101",
            "status": "delivered",
            "provider_status": "delivered",
            "delivery_result": "accepted",
        },
    ),
    "sms-outbound-status-failed": Expected(
        id="dialpad:acme:message:5000000000002102:failed:invalid_destination:5000000000000201",
        type="dialstream.message.updated",
        subject="message/5000000000002102",
        key="acme/5000000000002102",
        topic="messages",
        time="2026-09-21T14:13:25.200Z",
        data={
            **_SMS_OUT,
            "message_id": "5000000000002102",
            "status": "failed",
            "provider_status": "failed",
            "delivery_result": "invalid_destination",
        },
    ),
    "contact-created": Expected(
        id="dialpad:acme:contact:5000000000003001:created:88eae711a368f1c8:202609211418",
        type="dialstream.contact.created",
        subject="contact/5000000000003001",
        key="acme/5000000000003001",
        topic="contacts",
        time=RECEIVED,
        data=_CARD,
    ),
    "contact-updated": Expected(
        id="dialpad:acme:contact:5000000000003001:updated:7be19e676d52a0dc:202609211418",
        type="dialstream.contact.updated",
        subject="contact/5000000000003001",
        key="acme/5000000000003001",
        topic="contacts",
        time=RECEIVED,
        data={**_CARD, "change": "updated", "job_title": "Head of Buying"},
    ),
    "contact-updated-shared-uid": Expected(
        id=(
            "dialpad:acme:contact:shared_contact_pool_Company%3A5000000000000001_uid_crm-42"
            ":updated:36bd30ce69ccb137:202609211418"
        ),
        type="dialstream.contact.updated",
        subject="contact/shared_contact_pool_Company:5000000000000001_uid_crm-42",
        key="acme/shared_contact_pool_Company:5000000000000001_uid_crm-42",
        topic="contacts",
        time=RECEIVED,
        data={
            **_CARD,
            "contact_id": "shared_contact_pool_Company:5000000000000001_uid_crm-42",
            "change": "updated",
        },
    ),
    "agent-status-available": Expected(
        id="dialpad:acme:agent:5000000000000201:1790000000000:available:f8a51c52c11bab0d",
        type="dialstream.agent.status",
        subject="agent/5000000000000201",
        key="acme/5000000000000201",
        topic="agents",
        time="2026-09-21T14:13:20.350Z",
        data={
            **_DUTY,
            "duty_status": "available",
            "provider_duty_status": "available",
            "available": True,
            "call_center_ids": ["5000000000000301", "5000000000000302"],
        },
    ),
    "agent-status-occupied": Expected(
        id="dialpad:acme:agent:5000000000000201:1790000090000:occupied:9e0f1770db4826db",
        type="dialstream.agent.status",
        subject="agent/5000000000000201",
        key="acme/5000000000000201",
        topic="agents",
        time="2026-09-21T14:14:50.200Z",
        data={
            **_DUTY,
            "duty_status": "occupied",
            "provider_duty_status": "occupied",
            "available": False,
            "call_center_ids": ["5000000000000301"],
        },
    ),
    # Off duty at lunch, and neither on a call nor undisturbed: the two words are two facts.
    "agent-status-unavailable": Expected(
        id="dialpad:acme:agent:5000000000000201:1790000060000:unavailable:05110f797fe53bfc",
        type="dialstream.agent.status",
        subject="agent/5000000000000201",
        key="acme/5000000000000201",
        topic="agents",
        time="2026-09-21T14:14:20.400Z",
        data={
            **_DUTY,
            "duty_status": "unavailable",
            "provider_duty_status": "unavailable",
            "duty_reason": "Lunch",
            "available": True,
            "call_center_ids": [],
        },
    ),
    "changelog-operator-removed": Expected(
        id=("dialpad:acme:change:1790000000000:operator_removed:5000000000000100:0ae17d019db8bf89"),
        type="dialstream.change.logged",
        subject="change/5000000000000100",
        key="acme",
        topic="changes",
        time="2026-09-21T14:13:20.000Z",
        data={
            "action": "operator_removed",
            "note": "Agent Two taken off Example Support",
            "target": {
                "kind": "office",
                "id": "5000000000000100",
                "name": None,
                "email": None,
                "number": None,
                "number_raw": None,
                "withheld": False,
            },
            "changed_by": {
                "kind": "user",
                "id": "5000000000000299",
                "name": "Admin One",
                "email": None,
                "number": None,
                "number_raw": None,
                "withheld": False,
            },
            "details": {"name": "Example Support", "operator_name": "Agent Two"},
        },
    ),
}


def differences(found: object, expected: object, path: str = "data") -> Iterator[str]:
    """Where two JSON values differ; floats may by half a millisecond, types may not."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() ^ expected.keys()):
            yield f"{path}.{key}: {'unexpected' if key in found else 'missing'}"
        for key in found.keys() & expected.keys():
            yield from differences(found[key], expected[key], f"{path}.{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif isinstance(found, float) and isinstance(expected, float):
        if abs(found - expected) > 0.0005001:
            yield f"{path}: {found}, expected {expected}"
    elif type(found) is not type(expected) or found != expected:
        yield f"{path}: {found!r}, expected {expected!r}"


def event_of(payload: bytes) -> Event:
    source = Webhook(secrets=[b"not used in these tests"], region="US", claims_leeway_s=18000)
    delivery = Delivery(
        connection="acme", via="webhook", headers=[], body=b"", received_ms=RECEIVED_MS
    )
    (event,) = source.normalize(Verified(payload), delivery)
    return event


@pytest.mark.parametrize("name", EXPECTED)
def test_samples_become_the_events_that_were_written_by_hand(name: str) -> None:
    payload = (SAMPLES / f"{name}.json").read_bytes()
    expected = EXPECTED[name]
    event = event_of(payload)
    written = json.loads(encode(event))
    data = written.pop("data")
    assert data.pop("raw") == json.loads(payload)
    assert list(differences(data, expected.data)) == []
    subject_kind = expected.subject.partition("/")[0]
    assert written == {
        "specversion": "1.0",
        "id": expected.id,
        "source": "/dialpad/acme",
        "type": expected.type,
        "subject": expected.subject,
        "time": expected.time,
        "datacontenttype": "application/json",
        "dataschema": f"urn:dialstream:schema:{subject_kind}:1",
        "partitionkey": expected.key,
        "recordedtime": RECEIVED,
        "via": "webhook",
        "provider": "dialpad",
        "connection": "acme",
    }
    assert (event.topic, event.key) == (expected.topic, expected.key)


@pytest.mark.parametrize("name", EXPECTED)
def test_nothing_in_a_documented_payload_surprises_us(name: str) -> None:
    assert event_of((SAMPLES / f"{name}.json").read_bytes()).surprises == ()


def test_the_comparison_sees_differences() -> None:
    """Otherwise it would prove nothing."""
    found = {"a": 1.0, "b": [{"c": "x"}], "d": None}
    assert list(differences(found, {"a": 1.0004, "b": [{"c": "x"}], "d": None})) == []
    for other in (
        {"a": 1.002, "b": [{"c": "x"}], "d": None},
        {"a": 1.0, "b": [{"c": "y"}], "d": None},
        {"a": 1.0, "b": [], "d": None},
        {"a": 1.0, "b": [{"c": "x"}]},
        {"a": 1.0, "b": [{"c": "x"}], "d": None, "e": None},
        {"a": True, "b": [{"c": "x"}], "d": None},
        {"a": 1.0, "b": [{"c": "x"}], "d": False},
    ):
        assert len(list(differences(found, other))) == 1
