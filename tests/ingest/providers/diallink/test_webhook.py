r"""What DialLink's notifications come to, written out by hand from the contract.

Digests were made with `jq -S -c . <body> | tr -d '\n' | sha256sum | cut -c1-16`.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ingest.delivery import Delivery, Verified
from ingest.errors import ConfigError, UnreadableError, VerificationError
from ingest.pipeline import reject
from ingest.providers import PROVIDERS
from ingest.providers.diallink.assumptions import Assumptions
from ingest.providers.diallink.webhook import Webhook, sign
from ingest.settings import Connection
from schemas.event import Event, encode
from schemas.times import now_ms

SAMPLES = Path(__file__).parents[3] / "samples" / "diallink"

SECRET = "whsec_aW52ZW50ZWQtZGlhbGxpbmstc2VjcmV0LW5vLTAwMDE="
OLD_SECRET = "whsec_aW52ZW50ZWQtZGlhbGxpbmstc2VjcmV0LW5vLTAwMDA="
TOKEN = "invented-token-0001"

#: 2026-09-21T14:15:26.500Z
RECEIVED_MS = 1_790_000_126_500

CALL_ID = "00000000-0000-4000-8000-000000001001"


def connection(**more: Any) -> Connection:
    settings = {"provider": "diallink", "secrets": [SECRET], "region": "US", **more}
    return Connection.model_validate(settings)


def webhook(**more: Any) -> Webhook:
    made = PROVIDERS["diallink"].webhook(connection(**more))
    assert isinstance(made, Webhook)
    return made


def token_in(header: str) -> dict[str, Any]:
    return {"secrets": [TOKEN], "assume": {"notifications": "token", "token_header": header}}


def with_token(header: str = "authorization") -> Webhook:
    return webhook(**token_in(header))


def delivery(
    body: bytes,
    headers: Mapping[str, str] | Sequence[tuple[bytes, bytes]] = (),
    hint: str | None = None,
    received_ms: int = RECEIVED_MS,
) -> Delivery:
    if isinstance(headers, Mapping):
        headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Delivery(
        connection="line",
        via="notification",
        headers=headers,
        body=body,
        received_ms=received_ms,
        hint=hint,
    )


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_bytes())


def delivered(name: str) -> Delivery:
    found = sample(name)
    received_ms = int(found["headers"]["webhook-timestamp"]) * 1000 + 500
    return delivery(found["body"].encode(), found["headers"], received_ms=received_ms)


def event_of(payload: object, source: Webhook | None = None, **more: Any) -> Event:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = more.pop("headers", {"webhook-id": "msg_1"})
    arrived = delivery(body, headers, **more)
    (event,) = (source or webhook()).normalize(Verified(body), arrived)
    return event


def notification(type_: object, data: object, **more: object) -> dict[str, object]:
    return {"type": type_, "timestamp": "2026-09-21T14:15:20.000Z", "data": data, **more}


def record(**changes: object) -> dict[str, object]:
    """The call record of the sample, and what a test changes."""
    return {**sample("calls-page-assumed")["data"][0], **changes}


def call_of(type_: str = "call.completed", **changes: object) -> Event:
    return event_of(notification(type_, record(**changes)))


# --- the samples --------------------------------------------------------------------------------


def party(number: str, **more: object) -> dict[str, object]:
    nothing = {"kind": None, "id": None, "name": None, "email": None}
    return {**nothing, "number": number, "number_raw": number, "withheld": False, **more}


AGENT = party("+15551230101", kind="user", id="00000000-0000-4000-8000-000000000201")

COMPLETED: dict[str, object] = {
    "call_id": CALL_ID,
    "conversation_id": CALL_ID,
    "related_call_ids": [],
    "state": "ended",
    "provider_state": "call.completed",
    "direction": "inbound",
    "from_number": "+15551230001",
    "to_number": "+15551230101",
    "external": party("+15551230001", id="00000000-0000-4000-8000-000000000301"),
    "internal": AGENT,
    "target": AGENT,
    "group": None,
    "started_at": "2026-09-21T14:13:20.000Z",
    "rang_at": None,
    "connected_at": "2026-09-21T14:13:29.000Z",
    "ended_at": "2026-09-21T14:15:20.000Z",
    "ring_duration_s": None,
    "talk_duration_s": 111,
    "hold_duration_s": None,
    "total_duration_s": 120,
    "outcome": "answered",
    "provider_outcome": "COMPLETED",
    "transferred": None,
    "recordings": [
        {
            "recording_id": "00000000-0000-4000-8000-000000001501",
            "url": None,
            "kind": None,
            "started_at": None,
            "duration_s": None,
        }
    ],
    "voicemail": None,
    "transcript": None,
    "recap": None,
    "labels": [],
    "dispositions": [],
    "quality": None,
    "campaign_id": None,
    "custom_data": None,
}


def test_the_signed_sample_is_this_event() -> None:
    source, arrived = webhook(), delivered("notification-signed")
    (event,) = source.normalize(source.verify(arrived), arrived)
    written = json.loads(encode(event))
    raw = written["data"].pop("raw")
    assert raw == sample("notification-signed")["decoded_body"]
    assert written == {
        "specversion": "1.0",
        "id": f"diallink:line:call:{CALL_ID}:call.completed:1790000120000",
        "source": "/diallink/line",
        "type": "dialstream.call.ended",
        "subject": f"call/{CALL_ID}",
        "time": "2026-09-21T14:15:20.000Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:dialstream:schema:call:1",
        "partitionkey": f"line/{CALL_ID}",
        "recordedtime": "2026-09-21T14:15:26.500Z",
        "via": "notification",
        "provider": "diallink",
        "connection": "line",
        "data": COMPLETED,
    }
    assert event.surprises == ()


def test_the_sample_of_a_rotation_is_a_missed_call_with_either_secret() -> None:
    arrived = delivered("notification-signed-rotation")
    for secret in (SECRET, OLD_SECRET):
        source = webhook(secrets=[secret])
        (event,) = source.normalize(source.verify(arrived), arrived)
        assert event.id == (
            "diallink:line:call:00000000-0000-4000-8000-000000001002:call.missed:1790000225000"
        )
        assert event.type == "dialstream.call.missed"
        assert event.data["outcome"] == "missed"
        assert event.data["provider_outcome"] == "MISSED"
        assert event.data["target"] == party("+15551230101")
        assert event.data["recordings"] == []
        assert (event.data["talk_duration_s"], event.data["total_duration_s"]) == (0, 25)
        assert event.raw == arrived.body.replace(b"\n", b" ")


# --- types --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "state"),
    [
        ("call.started", "ringing"),
        ("call.answered", "connected"),
        ("call.completed", "ended"),
        ("call.missed", "missed"),
        ("recording.ready", "recording_ready"),
        ("voicemail.received", "voicemail_uploaded"),
    ],
)
def test_types_about_a_call_are_call_events(type_: str, state: str) -> None:
    event = call_of(type_)
    assert event.type == f"dialstream.call.{state}"
    assert event.data["state"] == state
    assert event.data["provider_state"] == type_
    assert event.id == f"diallink:line:call:{CALL_ID}:{type_}:1790000120000"
    assert (event.subject, event.key) == (f"call/{CALL_ID}", f"line/{CALL_ID}")
    assert event.surprises == ()


def test_types_are_compared_without_case_and_make_one_id() -> None:
    event = call_of("CALL.Completed")
    assert event.type == "dialstream.call.ended"
    assert event.id == call_of().id
    assert event.data["provider_state"] == "CALL.Completed"


def test_a_message_is_a_message_event() -> None:
    data = {
        "id": "m:1",
        "direction": "INBOUND",
        "from": "(555) 123-0001",
        "to": ["+15551230101", "+15551230102"],
        "text": "Hello",
        "userId": "u1",
        "contactId": "c1",
        "status": "DELIVERED",
        "priority": 1,
    }
    event = event_of(notification("message.received", data))
    assert event.type == "dialstream.message.received"
    assert event.id == "diallink:line:message:m%3A1:message.received:1790000120000"
    assert (event.subject, event.key) == ("message/m:1", "line/m:1")
    nobody = dict.fromkeys(("kind", "id", "name", "email", "number", "number_raw"))
    assert event.data == {
        "message_id": "m:1",
        "direction": "inbound",
        "from_number": "+15551230001",
        "to_numbers": ["+15551230101", "+15551230102"],
        "text": "Hello",
        "text_available": True,
        "media": [],
        "status": None,
        "provider_status": "DELIVERED",
        "delivery_result": None,
        "internal": False,
        "contact": {**nobody, "id": "c1", "withheld": False},
        "target": {**nobody, "id": "u1", "kind": "user", "withheld": False},
        "sender_id": None,
    }
    assert event.surprises == (("field", "priority"),)


def test_a_thin_message_is_inbound_by_its_type() -> None:
    data = event_of(notification("message.received", {"id": 7})).data
    assert (data["message_id"], data["direction"]) == ("7", "inbound")
    assert (data["text"], data["text_available"], data["to_numbers"]) == (None, False, [])


def test_a_contact_is_a_contact_event() -> None:
    event = event_of(notification("contact.updated", sample("contact")))
    ident = "00000000-0000-4000-8000-000000000301"
    assert event.type == "dialstream.contact.updated"
    assert event.id == f"diallink:line:contact:{ident}:contact.updated:1790000120000"
    assert (event.subject, event.key) == (f"contact/{ident}", f"line/{ident}")
    assert event.data == {
        "contact_id": ident,
        "contact_kind": "external",
        "change": "updated",
        "display_name": "Example Customer",
        "first_name": "Example",
        "last_name": "Customer",
        "phone_numbers": [{"number": "+15551230001", "number_raw": "+15551230001"}],
        "emails": [],
        "company_name": "Example Ltd",
        "job_title": None,
        "urls": [],
    }
    assert event.surprises == ()


@pytest.mark.parametrize(
    "type_", ["contact.deleted", "queue.opened", "call", "call.", "calls.completed", "☎", "x" * 300]
)
def test_other_types_are_kept_as_they_are(type_: str) -> None:
    event = event_of(notification(type_, {"id": "q", "n": [1.5, None]}))
    assert event.type == "dialstream.notification.received"
    assert event.id == "diallink:line:notification:msg_1"
    assert (event.subject, event.key) == ("notification/msg_1", "line")
    assert event.data == {"notification_type": type_, "details": {"id": "q", "n": [1.5, None]}}
    assert event.time_ms == 1_790_000_120_000


def test_details_are_whatever_is_there() -> None:
    base = {"type": "queue.opened", "timestamp": 1_790_000_120_000}
    cases: list[tuple[dict[str, object], object]] = [
        ({}, None),
        ({"data": None}, None),
        ({"data": {}}, {}),
        ({"data": [1, "a"]}, [1, "a"]),
        ({"data": "text"}, "text"),
        ({"queueId": "q", "size": 3}, {"queueId": "q", "size": 3}),
    ]
    for more, details in cases:
        assert event_of({**base, **more}).data["details"] == details


# --- identity -----------------------------------------------------------------------------------


def test_a_retry_has_the_same_id_whatever_else_is_new() -> None:
    body = json.dumps(notification("queue.opened", {"id": 1})).encode()
    ids = set()
    for late_ms in (0, 5_000, 75 * 3_600_000):
        event = event_of(body, headers={"webhook-id": "msg_9"}, received_ms=RECEIVED_MS + late_ms)
        ids.add(event.id)
    assert ids == {"diallink:line:notification:msg_9"}
    # Of calls even with another delivery id.
    first = event_of(notification("call.started", record()), headers={"webhook-id": "a"})
    second = event_of(notification("call.started", record()), headers={"webhook-id": "b"})
    assert first.id == second.id


def test_one_instant_in_two_spellings_is_one_fact() -> None:
    spellings: list[object] = [
        "2026-09-21T14:15:20.000Z",
        "2026-09-21T14:15:20Z",
        "2026-09-21T14:15:20.000000+00:00",
        "2026-09-21T16:15:20+02:00",
        "2026-09-21 14:15:20",
        1_790_000_120_000,
        "1790000120000",
        1_790_000_120_000.0,
    ]
    for spelling in spellings:
        event = event_of(notification("call.missed", record(), timestamp=spelling))
        assert event.id == f"diallink:line:call:{CALL_ID}:call.missed:1790000120000", spelling
        assert event.time_ms == 1_790_000_120_000
        assert event.surprises == ()


def test_without_a_clock_the_digest_stands_in_its_place_and_the_time_is_ours() -> None:
    event = event_of(b'{"type":"call.started","data":{"id":"a"}}')
    assert event.id == "diallink:line:call:a:call.started:b1b61aeb5f0ee624"
    assert event.time_ms == RECEIVED_MS
    assert not event.stale


@pytest.mark.parametrize("timestamp", ["soon", "2026-13-01T00:00:00Z", -5, True, [], "1e999", "::"])
def test_a_clock_that_is_none_is_a_surprise(timestamp: object) -> None:
    event = event_of(notification("call.started", record(), timestamp=timestamp))
    assert event.time_ms == RECEIVED_MS
    assert len(event.id.rpartition(":")[2]) == 16
    if timestamp != []:
        assert ("type", "timestamp") in event.surprises


def test_the_delivery_id_is_part_of_an_id_and_cannot_break_it() -> None:
    payload = notification("queue.opened", None)
    cases = {
        "a:b%c": "diallink:line:notification:a%3Ab%25c",
        "x" * 256: "diallink:line:notification:" + "x" * 256,
    }
    for ident, expected in cases.items():
        assert event_of(payload, headers={"webhook-id": ident}).id == expected
    for strange in ("x" * 257, "a\x85b", "a\tb"):
        raw = strange.encode("latin-1")
        event = event_of(payload, headers=[(b"webhook-id", raw)])
        digest = hashlib.sha256(raw).hexdigest()[:16]
        assert event.id == f"diallink:line:notification:{digest}"


def test_with_a_token_the_body_names_a_notification() -> None:
    """A header that nothing signs is no identity."""
    body = json.dumps(notification("queue.opened", None)).encode()
    event = event_of(body, with_token(), headers={"webhook-id": "anybody's"})
    digest = hashlib.sha256(body).hexdigest()[:16]
    assert event.id == f"diallink:line:notification:{digest}"
    assert event.subject == f"notification/{digest}"


def test_a_push_of_yesterday_is_flagged() -> None:
    day_ms = 24 * 3_600_000
    payload = notification("call.started", record())
    assert not event_of(payload, received_ms=1_790_000_120_000 + day_ms).stale
    assert event_of(payload, received_ms=1_790_000_120_000 + day_ms + 1).stale


def test_a_hint_that_disagrees_is_counted_and_the_type_decides() -> None:
    payload = notification("call.started", record())
    for hint in (None, "call", "call.started"):
        assert event_of(payload, hint=hint).surprises == ()
    event = event_of(payload, hint="message")
    assert event.type == "dialstream.call.ringing"
    assert event.surprises == (("hint", "message"),)


# --- shapes -------------------------------------------------------------------------------------


def test_data_may_be_spread_over_the_top_level() -> None:
    spread = {**record(), "type": "call.completed", "timestamp": "2026-09-21T14:15:20.000Z"}
    event = event_of(spread)
    assert event.data == COMPLETED
    assert event.surprises == ()
    assert event_of({**spread, "data": None}).data == COMPLETED


def test_data_may_be_thin() -> None:
    event = event_of(notification("call.completed", {"id": CALL_ID}))
    assert event.type == "dialstream.call.ended"
    assert event.data["call_id"] == CALL_ID
    assert event.data["outcome"] is None  # nothing is said of it: the record will
    assert event.data["direction"] == "unknown"
    assert event.data["started_at"] is None


def test_fields_that_nobody_names_pass_through_and_are_counted() -> None:
    event = event_of(notification("call.started", record(queueId=9), attempt=2))
    assert set(event.surprises) == {("field", "queueId"), ("field", "attempt")}
    assert event.raw is not None
    assert json.loads(event.raw)["data"]["queueId"] == 9


def test_the_names_of_fields_are_a_setting() -> None:
    source = webhook(assume={"call_fields": {"id": "uuid", "started_at": "begin"}})
    data = {"uuid": "a", "begin": 1_790_000_000_000, "direction": "OUTBOUND"}
    event = event_of(notification("call.started", data), source)
    assert event.data["call_id"] == "a"
    assert event.data["started_at"] == "2026-09-21T14:13:20.000Z"
    assert event.surprises == ()


def test_a_recording_may_come_in_the_place_of_its_call() -> None:
    data = {"id": "r1", "callId": "c1", "url": "https://example.com/r1", "duration": 12.5}
    event = event_of(notification("recording.ready", data))
    assert event.id == "diallink:line:call:c1:recording.ready:1790000120000"
    assert event.data["recordings"] == [
        {
            "recording_id": "r1",
            "url": "https://example.com/r1",
            "kind": None,
            "started_at": None,
            "duration_s": 12.5,
        }
    ]
    voicemail = event_of(notification("voicemail.received", data)).data
    assert voicemail["outcome"] == "voicemail"
    assert voicemail["recordings"] == []
    assert voicemail["voicemail"] == {
        "recording_id": "r1",
        "url": "https://example.com/r1",
        "text": None,
        "duration_s": 12.5,
    }


def test_a_voicemail_is_no_recording_of_the_call() -> None:
    data = call_of("voicemail.received", answeredAt=None, status="MISSED", duration=0).data
    assert data["outcome"] == "voicemail"
    assert data["voicemail"]["recording_id"] == "00000000-0000-4000-8000-000000001501"
    assert data["recordings"] == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json"),
        (b"<html>", "not_json"),
        (b'{"type":"call.started"', "not_json"),
        (b'{"type":"call.started","data":{"id":NaN}}', "not_json"),
        (b'\xff{"type":1}', "not_json"),
        (b"[" * 1000 + b"]" * 1000, "not_json"),
        (b'{"type":"call.started","data":' + b"[" * 300 + b"]" * 300 + b"}", "not_json"),
        (b"[]", "unexpected_shape"),
        (b'"call.started"', "unexpected_shape"),
        (b"{}", "unknown_kind"),
        (b'{"data":{"id":"a"}}', "unknown_kind"),
        (b'{"type":null,"data":{"id":"a"}}', "unknown_kind"),
        (b'{"type":"","data":{"id":"a"}}', "unknown_kind"),
        (b'{"type":7,"data":{"id":"a"}}', "unknown_kind"),
        (b'{"type":["call.started"],"data":{"id":"a"}}', "unknown_kind"),
        (b'{"type":"call.started"}', "unexpected_shape"),
        (b'{"type":"call.started","data":{}}', "unexpected_shape"),
        (b'{"type":"call.started","data":"a"}', "unexpected_shape"),
        (b'{"type":"call.started","data":[{"id":"a"}]}', "unexpected_shape"),
        (b'{"type":"call.started","data":{"id":null}}', "unexpected_shape"),
        (b'{"type":"call.started","data":{"id":0}}', "unexpected_shape"),
        (b'{"type":"call.started","data":{"id":1.5}}', "unexpected_shape"),
        (b'{"type":"call.started","data":{"id":{"id":1}}}', "unexpected_shape"),
        (b'{"type":"call.started","data":{"id":"' + b"x" * 257 + b'"}}', "unexpected_shape"),
        (b'{"type":"message.received","data":{"text":"a"}}', "unexpected_shape"),
        (b'{"type":"contact.updated","data":{"firstName":"a"}}', "unexpected_shape"),
        (b'{"type":"recording.ready","data":{"url":"a"}}', "unexpected_shape"),
    ],
)
def test_what_cannot_be_read_is_set_aside_for_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        event_of(body)
    assert caught.value.reason == reason


def test_an_id_beyond_64_bits_stays_exact() -> None:
    event = event_of(b'{"type":"call.started","data":{"id":123456789012345678901234567890}}')
    assert event.data["call_id"] == "123456789012345678901234567890"


# --- calls: outcomes and parties ----------------------------------------------------------------

NEVER: dict[str, Any] = {"answeredAt": None, "duration": 0}


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "answered"),
        ({"status": "completed"}, "answered"),
        ({"status": None}, "answered"),
        ({"status": "ANSWERED"}, "answered"),
        ({"answeredAt": None}, "answered"),  # the duration says so
        ({**NEVER}, "missed"),
        ({**NEVER, "status": None}, "missed"),
        ({**NEVER, "direction": "OUTBOUND"}, "unanswered"),
        ({**NEVER, "status": "MISSED"}, "missed"),
        ({**NEVER, "status": "missed", "direction": "outbound"}, "unanswered"),
        ({**NEVER, "status": "No-Answer", "direction": "OUTBOUND"}, "unanswered"),
        ({**NEVER, "status": "NO_ANSWER"}, "missed"),
        ({**NEVER, "status": "UNANSWERED", "direction": "INTERNAL"}, "unanswered"),
        ({**NEVER, "status": "MISSED", "direction": "INTERNAL"}, "missed"),
        ({**NEVER, "status": "VOICEMAIL"}, "voicemail"),
        ({**NEVER, "status": "BLOCKED"}, "blocked"),
        ({**NEVER, "status": "BUSY", "direction": "OUTBOUND"}, "busy"),
        ({**NEVER, "status": "FAILED", "direction": "OUTBOUND"}, "failed"),
        ({**NEVER, "status": "ABANDONED"}, "abandoned"),
    ],
)
def test_an_outcome_is_told_by_status_direction_and_clocks(
    changes: dict[str, Any], outcome: str
) -> None:
    event = call_of(**changes)
    assert event.data["outcome"] == outcome
    assert event.surprises == ()


def test_a_call_that_runs_has_no_outcome() -> None:
    running = {**NEVER, "endedAt": None}
    assert call_of("call.started", **running, status="RINGING").data["outcome"] is None
    assert call_of("call.answered", **running, status="IN_PROGRESS").data["outcome"] is None
    assert call_of("call.answered", endedAt=None, status="ANSWERED").data["outcome"] is None


def test_a_duration_below_zero_is_none_and_counted() -> None:
    event = call_of(duration=-3)
    assert event.data["talk_duration_s"] is None
    assert event.surprises == (("type", "duration"),)


def test_a_status_that_nobody_has_seen_is_kept_and_counted() -> None:
    event = call_of(status="TELEPORTED")
    assert event.data["outcome"] == "unknown"
    assert event.data["provider_outcome"] == "TELEPORTED"
    assert event.surprises == (("status", "TELEPORTED"),)


def test_a_direction_that_nobody_has_seen_is_kept_and_counted() -> None:
    event = call_of(direction="SIDEWAYS")
    assert event.data["direction"] == "unknown"
    assert event.data["from_number"] == "+15551230001"
    assert event.data["external"]["number"] is None  # whose number it is nobody can say
    assert event.surprises == (("direction", "SIDEWAYS"),)


def test_an_outbound_call_is_made_by_the_inner_side() -> None:
    data = call_of(direction="OUTBOUND", **{"from": "(555) 123-0101", "to": "+15551230003"}).data
    assert (data["from_number"], data["to_number"]) == ("+15551230101", "+15551230003")
    assert data["external"]["number"] == "+15551230003"
    assert data["internal"]["number"] == "+15551230101"
    assert data["internal"]["number_raw"] == "(555) 123-0101"
    assert data["internal"]["kind"] == "user"


def test_a_withheld_number_is_no_number() -> None:
    data = call_of(**{"from": "anonymous"}).data
    assert data["from_number"] is None
    assert data["external"]["withheld"] is True
    assert data["external"]["number_raw"] == "anonymous"


def test_without_a_region_a_national_number_stays_as_it_is() -> None:
    payload = notification("call.started", record(**{"from": "(555) 123-0001"}))
    assert event_of(payload, webhook(region=None)).data["from_number"] == "(555) 123-0001"


@pytest.mark.parametrize("key", ["from", "to", "startedAt", "duration", "userId", "status"])
def test_values_of_a_wrong_type_are_absent_and_counted(key: str) -> None:
    event = call_of("call.started", **{key: {"value": 1}})
    assert ("type", key) in event.surprises


# --- verification -------------------------------------------------------------------------------


def refusal(source: Webhook, arrived: Delivery) -> str:
    with pytest.raises(VerificationError) as caught:
        source.verify(arrived)
    return caught.value.reason


def test_what_is_signed_is_what_is_read() -> None:
    arrived = delivered("notification-signed")
    assert webhook().verify(arrived) == arrived.body


def test_what_does_not_verify_is_refused() -> None:
    arrived = delivered("notification-signed")
    assert refusal(webhook(secrets=[OLD_SECRET]), arrived) == "bad_signature"
    twice = [*arrived.headers, (b"webhook-id", b"msg_inventedDialLink0001")]
    assert refusal(webhook(), delivery(arrived.body, twice)) == "bad_header"
    assert refusal(webhook(), delivery(arrived.body)) == "missing_header"
    later = delivery(arrived.body, arrived.headers, received_ms=RECEIVED_MS + 300_000)
    assert refusal(webhook(), later) == "too_old"
    assert webhook(assume={"tolerance_s": 600}).verify(later)
    token = delivery(arrived.body, {"authorization": f"Bearer {SECRET}"})
    assert refusal(webhook(), token) == "missing_header"


def test_a_former_secret_is_counted_while_there_are_two() -> None:
    assert webhook().former_seen is None
    source = webhook(secrets=[SECRET, OLD_SECRET])
    assert source.former_seen == 0
    source.verify(delivered("notification-signed-rotation"))
    assert source.former_seen == 0  # signed with both
    source = webhook(secrets=["whsec_" + base64.b64encode(b"n" * 24).decode(), OLD_SECRET])
    source.verify(delivered("notification-signed-rotation"))
    assert source.former_seen == 1


def test_the_token_scheme_takes_the_token_and_nothing_else() -> None:
    body = b"{}"
    arrived = delivery(body, {"authorization": f"Bearer {TOKEN}"})
    assert with_token().verify(arrived) == body
    assert (
        with_token("X-DialLink-Token").verify(delivery(body, {"x-diallink-token": TOKEN})) == body
    )
    assert refusal(with_token("X-DialLink-Token"), arrived) == "missing_header"
    assert refusal(with_token(), delivery(body, {"authorization": TOKEN})) == "bad_header"
    twice = [(b"authorization", f"Bearer {TOKEN}".encode())] * 2
    assert refusal(with_token(), delivery(body, twice)) == "bad_header"
    signed = delivered("notification-signed")
    assert refusal(with_token(), signed) == "missing_header"


def test_a_reject_keeps_the_signature_and_never_a_token() -> None:
    error = UnreadableError("not_json", "")
    arrived = delivered("notification-signed")
    kept = reject(arrived, webhook(), error).data["headers"]
    assert kept.keys() == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    for header, value in (("authorization", f"Bearer {TOKEN}"), ("x-token", TOKEN)):
        event = reject(delivery(b"<", {header: value}), with_token(header), error)
        assert event.data["headers"] == {}
        assert TOKEN.encode() not in encode(event)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"secrets": ["invented-secret-at-least-32-bytes-long!"]}, "openssl rand -base64 32"),
        ({"secrets": ["whsec_c2hvcnQ="]}, "whsec_"),
        ({"secrets": [SECRET, ""]}, "empty"),
        ({"secrets": []}, "no secret"),
        ({"secrets": ["short"], "assume": {"notifications": "token"}}, "16 bytes"),
    ],
)
def test_secrets_that_cannot_be_used_stop_the_start(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        webhook(**settings)


# --- another scheme -----------------------------------------------------------------------------


class HexScheme:
    """``t=<s>,v1=<hex>``: HMAC-SHA256 over ``{t}.{body}``, as neighbours of DialLink's sign."""

    headers: Sequence[bytes] = (b"x-signature",)
    kept = headers
    former_seen = 0

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now_ms: int) -> None:
        match headers.get(b"x-signature", b"").split(b","):
            case [t, v1] if t.startswith(b"t=") and v1.startswith(b"v1=") and t[2:].isdigit():
                mac = hmac.new(self._secret, t[2:] + b"." + body, "sha256").hexdigest().encode()
            case _:
                raise VerificationError("bad_header")
        if not hmac.compare_digest(v1[3:], mac):
            raise VerificationError("bad_signature")
        if abs(now_ms - int(t[2:]) * 1000) > 300_000:
            raise VerificationError("too_old")


def test_another_scheme_can_join() -> None:
    source = Webhook(HexScheme(b"secret"), is_rotated=False, region="US", assumed=Assumptions())
    body = json.dumps(notification("queue.opened", None)).encode()
    mac = hmac.new(b"secret", b"1790000126." + body, "sha256").hexdigest()
    arrived = delivery(body, {"x-signature": f"t=1790000126,v1={mac}", "webhook-id": "any"})
    (event,) = source.normalize(source.verify(arrived), arrived)
    digest = hashlib.sha256(body).hexdigest()[:16]
    assert event.id == f"diallink:line:notification:{digest}"
    assert list(source.signing_headers) == [b"x-signature"]
    for value in ("", "t=1790000126", f"t=1790000126,v1={mac[:-1]}", f"t=1,v1={mac}"):
        assert refusal(source, delivery(body, {"x-signature": value}))


# --- signing ------------------------------------------------------------------------------------


def test_what_we_sign_is_a_new_notification_of_this_moment() -> None:
    bodies = (b'{"type": "call.started"}', b"\xff no json")
    idents = set()
    for body in bodies:
        signed = sign(body, connection(secrets=[SECRET, OLD_SECRET]))
        assert signed.body == body
        arrived = delivery(body, signed.headers, received_ms=now_ms())
        assert webhook().verify(arrived) == body
        idents.add(signed.headers["webhook-id"])
    assert len(idents) == len(bodies)
    assert SECRET not in str(signed.headers)


@pytest.mark.parametrize("header", ["authorization", "X-Token"])
def test_what_we_sign_with_a_token_verifies(header: str) -> None:
    signed = sign(b"{}", connection(**token_in(header)))
    assert with_token(header).verify(delivery(b"{}", signed.headers)) == b"{}"


def test_a_secret_that_is_none_signs_nothing_and_is_not_shown() -> None:
    for more in ({"secrets": [TOKEN]}, {**token_in("X-Token"), "secrets": ["short"]}):
        with pytest.raises(ConfigError):
            sign(b"{}", connection(**more))
