r"""What is read back from Dialpad: each item an event, written out by hand, or a reject.

Digests were made with `jq -S -c <filter> <sample> | tr -d '\n' | sha256sum | cut -c1-16` (jq 1.6,
GNU coreutils 9.1).
"""

import base64
import copy
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ingest.api import ApiError
from ingest.providers.dialpad.records import SLICE_MS, DialpadRecords
from schemas.event import Envelope, Event, encode
from schemas.subjects import SUBJECTS

SAMPLES = Path(__file__).parents[3] / "samples" / "dialpad"

#: date -u -d @1790000301.234: 2026-09-21T14:18:21.234Z, five minutes after the samples begin.
READ_MS = 1_790_000_301_234
READ = "2026-09-21T14:18:21.234Z"
MINUTE = "202609211418"

DAY_MS = 24 * 3600 * 1000


class FakeApi:
    """`DialpadApi`, as far as records use it: paths → what is answered, or the error."""

    def __init__(self, **more: Any) -> None:
        self.lists: dict[str, list[list[bytes] | ApiError]] = {}
        self.objects: dict[str, Any] = {}
        #: Path, parameters, limit.
        self.asked: list[tuple[str, dict[str, object], int | None]] = []

    def serve(self, path: str, *pages: Sequence[object]) -> None:
        self.lists[path] = [[dump(item) for item in page] for page in pages]

    async def read(self, path: str) -> bytes:
        found = await self.get(path)
        return found if isinstance(found, bytes) else dump(found)

    async def get(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        self.asked.append((path, dict(params or {}), None))
        answer = self.objects.get(path, ApiError("not_found", status=404))
        if isinstance(answer, ApiError):
            raise answer
        return answer

    async def pages(
        self,
        path: str,
        params: Mapping[str, object] | None = None,
        *,
        limit: int | None = None,
    ) -> AsyncIterator[list[bytes]]:
        self.asked.append((path, dict(params or {}), limit))
        if path not in self.lists:
            raise ApiError("not_found", status=404)
        for page in self.lists[path]:
            if isinstance(page, ApiError):
                raise page
            yield page

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


def dump(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()


def records_of(api: FakeApi, *, read_ms: int = READ_MS) -> DialpadRecords:
    return DialpadRecords("acme", "US", api, lambda: read_ms)  # type: ignore[arg-type]


async def calls(api: FakeApi, *items: object, via: str = "poll", read_ms: int = READ_MS) -> Any:
    """The events of one page of the list of calls."""
    api.serve("/api/v2/call", items)
    records = records_of(api, read_ms=read_ms)
    pages = [page async for page in records.calls(READ_MS - DAY_MS, READ_MS, via)]
    return [event for page in pages for event in page]


async def also(api: FakeApi, what: str, *call_ids: str, read_ms: int = READ_MS) -> list[Event]:
    records = records_of(api, read_ms=read_ms)
    return [event async for page in records.also(what, call_ids, "poll") for event in page]


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_bytes())


def written(event: Event) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Envelope, data and raw as they stand on the log; every reader can read them."""
    line = encode(event)
    assert b"\n" not in line
    assert b"\r" not in line
    whole = strict_json(line)
    Envelope.model_validate(whole)
    SUBJECTS[event.subject_kind].model_validate(whole["data"])
    data = whole.pop("data")
    raw = data.pop("raw", None)
    return whole, data, raw


def no_constants(word: str) -> NoReturn:
    raise ValueError(word)


def strict_json(text: bytes) -> Any:
    """As a reader that knows the standard reads: no NaN, no infinities."""
    return json.loads(text, parse_constant=no_constants)


def envelope(
    id_: str, type_: str, subject: str, *, time: str = READ, via: str = "poll"
) -> dict[str, Any]:
    kind, _, key = subject.partition("/")
    return {
        "specversion": "1.0",
        "id": id_,
        "source": "/dialpad/acme",
        "type": type_,
        "subject": subject,
        "time": time,
        "datacontenttype": "application/json",
        "dataschema": f"urn:dialstream:schema:{kind}:1",
        "partitionkey": f"acme/{key}",
        "recordedtime": READ,
        "via": via,
        "provider": "dialpad",
        "connection": "acme",
    }


# --- calls --------------------------------------------------------------------------------------

NOBODY: dict[str, Any] = {
    "kind": None,
    "id": None,
    "name": None,
    "email": None,
    "number": None,
    "number_raw": None,
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
CALLER: dict[str, Any] = {
    **NOBODY,
    "number": "+15551230001",
    "number_raw": "+15551230001",
}
KNOWN_CALLER: dict[str, Any] = {
    **CALLER,
    "kind": "local",
    "id": "5000000000000901",
    "name": "(555) 123-0001",
}
#: What these records have in common.
_RECORD: dict[str, Any] = {
    "state": "recorded",
    "direction": "inbound",
    "from_number": "+15551230001",
    "to_number": "+15551230101",
    "external": KNOWN_CALLER,
    "internal": AGENT_ONE,
    "target": AGENT_ONE,
    "group": None,
    "started_at": "2026-09-21T14:13:20.000Z",
    "talk_duration_s": None,
    "hold_duration_s": None,
    "total_duration_s": None,
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
}
LISTED = sample("rest-call-list-page")["items"]
ONE_CALL = sample("rest-call-get")

#: Item → its envelope and data.
EXPECTED_CALLS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (
        LISTED[0],
        envelope(
            "dialpad:acme:record:5000000000001101:904a8cc7c9441673",
            "dialstream.call.recorded",
            "call/5000000000001101",
            time="2026-09-21T14:15:20.000Z",
        ),
        {
            **_RECORD,
            "call_id": "5000000000001101",
            "conversation_id": "5000000000001101",
            "related_call_ids": [],
            "provider_state": "hangup",
            "rang_at": "2026-09-21T14:13:20.300Z",
            "connected_at": "2026-09-21T14:13:29.000Z",
            "ended_at": "2026-09-21T14:15:20.000Z",
            "ring_duration_s": 8.7,
            "total_duration_s": 120.001,
            "outcome": "answered",
            "recordings": [
                {
                    "recording_id": "5000000000009101",
                    "url": "https://dialpad.example/blob/callrecording/5000000000001101.mp3",
                    "kind": "callrecording",
                    "started_at": "2026-09-21T14:13:29.000Z",
                    "duration_s": 111.0,
                }
            ],
            "quality": {"mos": 4.38, "csat": None},
        },
    ),
    (
        LISTED[1],
        envelope(
            "dialpad:acme:record:5000000000001202:bf52ce96fed65dc9",
            "dialstream.call.recorded",
            "call/5000000000001202",
            time="2026-09-21T14:15:50.500Z",
        ),
        {
            **_RECORD,
            "call_id": "5000000000001202",
            "conversation_id": "5000000000001201",
            "related_call_ids": ["5000000000001201"],
            "provider_state": "hangup",
            "external": CALLER,
            "group": {"kind": "call_center", "id": "5000000000000301"},
            "started_at": "2026-09-21T14:13:40.000Z",
            "rang_at": None,
            "connected_at": "2026-09-21T14:13:50.500Z",
            "ended_at": "2026-09-21T14:15:50.500Z",
            "ring_duration_s": None,
            "outcome": "answered",
        },
    ),
    (  # not over yet, which the list of calls never has
        ONE_CALL,
        envelope(
            "dialpad:acme:record:5000000000001104:837657b6d5ebd1ad",
            "dialstream.call.recorded",
            "call/5000000000001104",
            time="2026-09-21T14:13:20.000Z",
        ),
        {
            **_RECORD,
            "call_id": "5000000000001104",
            "conversation_id": "5000000000001000",
            "related_call_ids": ["5000000000001000"],
            "provider_state": "connected",
            "group": {"kind": "office", "id": "5000000000000100"},
            "rang_at": "2026-09-21T14:13:20.000Z",
            "connected_at": "2026-09-21T14:13:20.000Z",
            "ended_at": None,
            "ring_duration_s": 0.0,
            "outcome": None,
            "custom_data": '{"crm_id": "42"}',
        },
    ),
]


@pytest.mark.parametrize(("item", "envelope_", "data"), EXPECTED_CALLS)
async def test_items_become_the_events_that_were_written_by_hand(
    api: FakeApi, item: object, envelope_: dict[str, Any], data: dict[str, Any]
) -> None:
    (event,) = await calls(api, item)
    assert written(event) == (envelope_, data, item)
    assert event.topic == "calls"
    assert event.surprises == ()


async def test_a_backfill_says_so_and_finds_the_same_facts(api: FakeApi) -> None:
    polled = await calls(api, *LISTED)
    filled = await calls(api, *LISTED, via="backfill", read_ms=READ_MS + 90 * DAY_MS)
    assert [event.via for event in filled] == ["backfill", "backfill"]
    assert [event.id for event in filled] == [event.id for event in polled]
    assert not any(event.stale for event in filled)  # only pushes can be


async def test_raw_is_what_came_but_on_one_line(api: FakeApi) -> None:
    item = b'{"call_id":"7",\r\n "unknown": 123456789012345678901234567890,\n "a": "\\u00e9\\n" }'
    (event,) = await calls(api, item)
    expected = b'{"call_id":"7",   "unknown": 123456789012345678901234567890,  "a": "\\u00e9\\n" }'
    assert event.raw == expected
    assert ("field", "unknown") in event.surprises


async def test_ids_beyond_64_bits_are_kept_to_the_digit(api: FakeApi) -> None:
    (event,) = await calls(api, b'{"call_id": 123456789012345678901234567890, "state": "hangup"}')
    assert event.key == "acme/123456789012345678901234567890"


@pytest.mark.parametrize("as_numbers", [False, True])
async def test_ids_and_times_may_be_texts_or_numbers(api: FakeApi, as_numbers: bool) -> None:  # noqa: FBT001
    item = {
        "call_id": "7",
        "state": "hangup",
        "direction": "outbound",
        "date_ended": "1790000000000",
    }
    if as_numbers:
        item = {**item, "call_id": 7, "date_ended": 1_790_000_000_000}  # type: ignore[dict-item]
    (event,) = await calls(api, item)
    assert (event.key, event.time_ms) == ("acme/7", 1_790_000_000_000)
    assert event.data["outcome"] == "unanswered"


@pytest.mark.parametrize(
    ("times", "expected_ms"),
    [
        ({"date_ended": "9000", "event_timestamp": "8000", "date_started": "7000"}, 9000),
        ({"event_timestamp": "8000", "date_started": "7000"}, 8000),
        ({"date_started": "7000"}, 7000),
        ({"date_started": "0", "date_ended": None}, READ_MS),
    ],
)
async def test_its_time_is_the_end_as_far_as_it_is_known(
    api: FakeApi, times: dict[str, Any], expected_ms: int
) -> None:
    (event,) = await calls(api, {"call_id": "7", **times})
    assert event.time_ms == expected_ms


async def test_a_record_without_state_is_a_record_all_the_same(api: FakeApi) -> None:
    item = {"call_id": "7", "direction": "inbound", "date_ended": "1790000000000"}
    (event,) = await calls(api, item)
    assert event.data["state"] == "recorded"
    assert event.data["provider_state"] is None
    assert event.data["outcome"] == "missed"
    assert event.surprises == ()


async def test_a_word_that_we_do_not_know_is_kept_and_counted(api: FakeApi) -> None:
    (event,) = await calls(api, {"call_id": "7", "state": "teleported"})
    assert (event.data["state"], event.data["provider_state"]) == ("recorded", "teleported")
    assert event.surprises == (("state", "teleported"),)


# A message is named in events; a record has only what became of it.

_MISSED = {"call_id": "7", "state": "hangup", "direction": "inbound", "date_ended": "1790000000000"}
_MESSAGE = {
    "id": "5000000000009301",
    "recording_type": "voicemail",
    "duration": "12000",
    "url": "https://dialpad.example/blob/voicemail/7.mp3",
}


async def test_a_recorded_message_is_a_voicemail_and_no_recording_of_the_call(api: FakeApi) -> None:
    (event,) = await calls(
        api,
        {**_MISSED, "recording_details": [_MESSAGE], "transcription_text": "Invented message"},
    )
    assert event.data["voicemail"] == {
        "recording_id": "5000000000009301",
        "url": "https://dialpad.example/blob/voicemail/7.mp3",
        "text": "Invented message",
        "duration_s": 12.0,
    }
    assert event.data["recordings"] == []
    assert event.data["outcome"] == "voicemail"


async def test_the_share_link_is_where_events_have_the_link(api: FakeApi) -> None:
    link = "https://dialpad.example/shared/voicemail/7"
    item = {**_MISSED, "recording_details": [_MESSAGE], "voicemail_share_link": link}
    (event,) = await calls(api, item)
    assert event.data["voicemail"]["url"] == link
    assert event.surprises == ()


async def test_a_link_alone_is_no_message(api: FakeApi) -> None:
    item = {**_MISSED, "voicemail_share_link": "https://dialpad.example/shared/voicemail/7"}
    (event,) = await calls(api, item)
    assert (event.data["voicemail"], event.data["outcome"]) == (None, "missed")


async def test_a_text_is_that_of_a_message_only_where_nobody_answered(api: FakeApi) -> None:
    missed = {**_MISSED, "transcription_text": "Invented text"}
    (event,) = await calls(api, missed)
    assert event.data["voicemail"]["text"] == "Invented text"
    (event,) = await calls(api, {**missed, "date_connected": "1789999990000"})
    assert (event.data["voicemail"], event.data["outcome"]) == (None, "answered")


# One fact, one id: a record is another one once its content is.


async def id_of(api: FakeApi, item: object) -> str:
    (event,) = await calls(api, item)
    assert isinstance(event, Event)
    return event.id


async def test_the_order_of_keys_makes_no_other_record(api: FakeApi) -> None:
    turned = dict(reversed(LISTED[0].items()))
    assert dump(turned) != dump(LISTED[0])
    assert await id_of(api, turned) == await id_of(api, LISTED[0])


@pytest.mark.parametrize(
    "field",
    [
        "admin_call_recording_share_links",
        "call_recording_share_links",
        "csat_recording_urls",
        "screen_recording_urls",
        "recording_details",
        "voicemail_share_link",
    ],
)
async def test_another_signature_of_a_link_makes_no_other_record(api: FakeApi, field: str) -> None:
    def signed(url: str) -> dict[str, Any]:
        value: object = [url]
        if field == "recording_details":
            value = [{"id": "1", "url": url}]
        elif field == "voicemail_share_link":
            value = url
        return {**LISTED[1], field: value}

    first = await id_of(api, signed("https://dialpad.example/a.mp3?expires=1&signature=x"))
    assert await id_of(api, signed("https://dialpad.example/a.mp3?expires=2&signature=y")) == first
    assert await id_of(api, signed("https://dialpad.example/b.mp3?expires=1")) != first


@pytest.mark.parametrize(
    "change",
    [
        {"mos_score": 4.39},
        {"labels": ["answered"]},
        {"custom_data": "https://crm.example/?record=1"},
        {"recording_details": []},
        {"something": "new"},
    ],
)
async def test_other_content_makes_another_record(api: FakeApi, change: dict[str, Any]) -> None:
    assert await id_of(api, {**LISTED[0], **change}) != await id_of(api, LISTED[0])


async def test_a_query_counts_where_it_is_content(api: FakeApi) -> None:
    first = await id_of(api, {**LISTED[0], "custom_data": "https://crm.example/?record=1"})
    assert await id_of(api, {**LISTED[0], "custom_data": "https://crm.example/?record=2"}) != first


# Windows and pages


async def test_a_window_is_asked_for_by_start_fifty_at_a_time(api: FakeApi) -> None:
    api.serve("/api/v2/call", LISTED[:1], LISTED[1:])
    pages = [page async for page in records_of(api).calls(1_000, 2_000, "poll")]
    assert [[event.key for event in page] for page in pages] == [
        ["acme/5000000000001101"],
        ["acme/5000000000001202"],
    ]
    # "More recently than" and "prior to": a call that began at 1,000 belongs to the window.
    assert api.asked == [("/api/v2/call", {"started_after": 999, "started_before": 2_000}, 50)]


@pytest.mark.parametrize("from_ms", [0, -5])
async def test_nothing_is_asked_of_the_time_before_1970(api: FakeApi, from_ms: int) -> None:
    api.serve("/api/v2/call")
    assert [page async for page in records_of(api).calls(from_ms, 2_000, "poll")] == []
    assert api.asked == [("/api/v2/call", {"started_after": 0, "started_before": 2_000}, 50)]


async def test_an_empty_window_asks_nothing(api: FakeApi) -> None:
    assert [page async for page in records_of(api).calls(5, 5, "poll")] == []
    assert [page async for page in records_of(api).calls(6, 5, "poll")] == []
    assert api.asked == []


@given(st.integers(1, 10**13), st.integers(1, 200 * DAY_MS))
async def test_slices_are_shorter_than_dialpad_allows_and_leave_nothing_out(
    from_ms: int, span_ms: int
) -> None:
    api = FakeApi()
    api.serve("/api/v2/call")
    assert [page async for page in records_of(api).calls(from_ms, from_ms + span_ms, "poll")] == []
    bounds = [
        (int(str(p["started_after"])), int(str(p["started_before"]))) for _, p, _ in api.asked
    ]
    assert all(before - after < 30 * DAY_MS for after, before in bounds)
    assert bounds[0][0] == from_ms - 1
    assert bounds[-1][1] == from_ms + span_ms
    for (_, before), (after, _) in pairwise(bounds):
        assert after == before - 1  # what began at the seam is in the later one
    assert len(bounds) == -(-span_ms // SLICE_MS)


async def test_what_came_before_an_error_is_good(api: FakeApi) -> None:
    api.lists["/api/v2/call"] = [
        [dump(LISTED[0])],
        ApiError("cursor_loop"),
        [dump(LISTED[1])],
    ]
    found: list[Event] = []

    async def read() -> None:
        async for page in records_of(api).calls(0, 1, "poll"):
            found.extend(page)

    with pytest.raises(ApiError) as caught:
        await read()
    assert caught.value.reason == "cursor_loop"
    assert [event.key for event in found] == ["acme/5000000000001101"]


# Rejects


@pytest.mark.parametrize(
    ("item", "reason", "detail"),
    [
        (b'{"state": "hangup"}', "unexpected_shape", "call_id is no id"),
        (b'{"call_id": ""}', "unexpected_shape", "call_id is no id"),
        (b'{"call_id": "0"}', "unexpected_shape", "call_id is no id"),
        (b'{"call_id": 1.5}', "unexpected_shape", "call_id is no id"),
        (b'{"call_id": "a\\u0000b"}', "unexpected_shape", "call_id is no id"),
        (b'"5000000000001101"', "unexpected_shape", "the payload is no JSON object"),
        (b"null", "unexpected_shape", "the payload is no JSON object"),
        (b'{"call_id": "7", "x": NaN}', "not_json", "at character 22"),
        (b'{"call_id": "7", "x": "\xff"}', "not_json", None),
        (
            b'{"call_id": "7", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
            "not_json",
            "nested more than 190 deep",
        ),
        (
            b'{"call_id": "7", "state": "' + b"x" * 300 + b'"}',
            "unexpected_shape",
            "state is longer than 256 letters",
        ),
    ],
)
async def test_what_cannot_be_read_is_a_reject_and_its_page_goes_on(
    api: FakeApi, item: bytes, reason: str, detail: str | None
) -> None:
    before, reject, after = await calls(api, LISTED[0], item, LISTED[1], via="backfill")
    assert [before.key, after.key] == ["acme/5000000000001101", "acme/5000000000001202"]
    digest = hashlib.sha256(item).hexdigest()[:16]
    whole, data, _ = written(reject)
    assert reject.topic == "rejects"
    assert whole["id"] == f"reject:acme:{reason}:{digest}"
    assert whole["type"] == f"dialstream.reject.{reason}"
    assert (whole["source"], whole["via"]) == ("/dialstream/acme", "derived")
    assert base64.b64decode(data.pop("body_base64")) == item
    found_detail = data.pop("detail")
    assert detail is None or found_detail == detail
    assert data == {"reason": reason, "via": "backfill", "received_at": READ, "headers": {}}


# --- transcripts and recaps ---------------------------------------------------------------------

_UNKNOWN_CALL: dict[str, Any] = {
    **_RECORD,
    "call_id": "5000000000001101",
    "conversation_id": "5000000000001101",
    "related_call_ids": [],
    "provider_state": None,
    "direction": "unknown",
    "from_number": None,
    "to_number": None,
    "external": NOBODY,
    "internal": NOBODY,
    "target": NOBODY,
    "started_at": None,
    "rang_at": None,
    "connected_at": None,
    "ended_at": None,
    "ring_duration_s": None,
    "outcome": None,
    "transferred": None,
}
TRANSCRIPT = {
    "call_id": "5000000000001101",
    "lines": [
        {
            "type": "transcript",
            "name": "Agent One",
            "content": "Example Support, hello.",
            "time": "2026-09-21T10:13:30.100000",
            "user_id": "5000000000000201",
        },
        {"type": "moment", "name": "Agent One", "content": "greeting", "time": ""},
        {"content": "Hello, it is about an order.", "contact_id": "5000000000000901"},
    ],
}
RECAP = {
    "summary": {"content": "Invented recap: the caller asked about an order.", "edited": False},
    "purposes": [{"content": "Order status"}],
    "action_items": [{"id": "1", "content": "Send the tracking number"}, {"content": None}],
}


def digest_of(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def test_a_transcript_is_what_was_said_by_whom(api: FakeApi) -> None:
    api.objects["/api/v2/transcripts/5000000000001101"] = TRANSCRIPT
    (event,) = await also(api, "transcripts", "5000000000001101")
    assert written(event) == (
        envelope(
            f"dialpad:acme:transcript_ready:5000000000001101:{digest_of(TRANSCRIPT)}",
            "dialstream.call.transcript_ready",
            "call/5000000000001101",
        ),
        {
            **_UNKNOWN_CALL,
            "state": "transcript_ready",
            "transcript": {
                "url": None,
                "lines": [
                    "Agent One: Example Support, hello.",
                    "Hello, it is about an order.",
                ],
            },
        },
        TRANSCRIPT,
    )
    assert event.surprises == ()


async def test_the_raw_value_of_one_answer_is_as_it_came(api: FakeApi) -> None:
    answer = b'{ "lines":[{"content":"x","type":"transcript","odd":1e2}], "call_id":"5" }'
    api.objects["/api/v2/transcripts/5"] = answer
    (event,) = await also(api, "transcripts", "5")
    assert event.raw == answer


async def test_a_recap_is_read_from_its_parts(api: FakeApi) -> None:
    api.objects["/api/v2/call/5000000000001101/ai_recap"] = RECAP
    (event,) = await also(api, "recaps", "5000000000001101")
    assert written(event) == (
        envelope(
            f"dialpad:acme:recap_ready:5000000000001101:{digest_of(RECAP)}",
            "dialstream.call.recap_ready",
            "call/5000000000001101",
        ),
        {
            **_UNKNOWN_CALL,
            "state": "recap_ready",
            "recap": {
                "summary": "Invented recap: the caller asked about an order.",
                "outcome": None,
                "purposes": ["Order status"],
                "action_items": ["Send the tracking number"],
            },
        },
        RECAP,
    )
    assert event.surprises == ()


async def test_a_recap_may_be_of_texts_as_in_events(api: FakeApi) -> None:
    api.objects["/api/v2/call/7/ai_recap"] = {
        "summary": "Short",
        "outcome": ["Solved"],
        "purposes": "Order status",
        "action_items": [],
    }
    (event,) = await also(api, "recaps", "7")
    assert event.data["recap"] == {
        "summary": "Short",
        "outcome": "Solved",
        "purposes": ["Order status"],
        "action_items": [],
    }


@pytest.mark.parametrize(
    ("what", "path", "there"),
    [
        ("transcripts", "/api/v2/transcripts/{}", TRANSCRIPT),
        ("recaps", "/api/v2/call/{}/ai_recap", {**RECAP, "call_id": "5000000000001101"}),
    ],
)
async def test_calls_without_one_are_passed_over(
    api: FakeApi, what: str, path: str, there: object
) -> None:
    api.objects[path.format("1")] = {"call_id": "1"}  # seen of transcripts
    api.objects[path.format("5000000000001101")] = there
    events = await also(api, what, "1", "2", "5000000000001101", "3")
    assert [event.key for event in events] == ["acme/5000000000001101"]
    assert api.paths == [path.format(ident) for ident in ("1", "2", "5000000000001101", "3")]


@pytest.mark.parametrize(
    ("what", "path"),
    [("transcripts", "/api/v2/transcripts/8"), ("recaps", "/api/v2/call/8/ai_recap")],
)
async def test_one_of_another_call_is_a_reject(api: FakeApi, what: str, path: str) -> None:
    api.objects[path] = {**TRANSCRIPT, **RECAP}
    (event,) = await also(api, what, "8")
    assert event.type == "dialstream.reject.unexpected_shape"
    assert event.data["detail"] == "call_id is that of another call"


@pytest.mark.parametrize("what", ["transcripts", "recaps"])
@pytest.mark.parametrize("reason", ["forbidden", "unauthorized", "rate_limited", "unavailable"])
async def test_other_errors_are_the_pollers_business(api: FakeApi, what: str, reason: Any) -> None:
    for path in ("/api/v2/transcripts/7", "/api/v2/call/7/ai_recap"):
        api.objects[path] = ApiError(reason)
    with pytest.raises(ApiError) as caught:
        await also(api, what, "7")
    assert caught.value.reason == reason


async def test_ids_cannot_leave_their_place_in_a_path(api: FakeApi) -> None:
    assert await also(api, "transcripts", "../users?x#y") == []
    assert api.paths == ["/api/v2/transcripts/..%2Fusers%3Fx%23y"]


async def test_it_is_told_once_that_no_call_has_a_recap(api: FakeApi) -> None:
    records = records_of(api)

    async def read(count: int) -> list[Any]:
        with structlog.testing.capture_logs() as lines:
            ids = [str(number) for number in range(1, count + 1)]
            assert [page async for page in records.also("recaps", ids, "poll")] == []
        return lines

    for _ in range(3):  # a call that is asked for again is no other
        assert await read(99) == []
    (line,) = await read(120)
    assert (line["event"], line["connection"], line["calls"]) == ("recaps_missing", "acme", 100)
    assert await read(300) == []


async def test_it_is_not_told_where_one_call_had_a_recap(api: FakeApi) -> None:
    records = records_of(api)
    api.objects["/api/v2/call/3/ai_recap"] = RECAP
    with structlog.testing.capture_logs() as lines:
        ids = [str(number) for number in range(1, 300)]
        assert len([page async for page in records.also("recaps", ids, "poll")]) == 1
    assert lines == []


# --- contacts, opt-outs -------------------------------------------------------------------------

CARD = {
    "id": "shared_contact_pool_Company:5000000000000001_uid_crm-42",
    "type": "shared",
    "owner_id": "5000000000000001",
    "display_name": "Example Customer",
    "first_name": "Example",
    "last_name": "Customer",
    "phones": ["+15551230001"],
    "primary_phone": "(555) 123-0002",
    "emails": ["customer@example.com"],
    "primary_email": "customer@example.com",
    "company_name": "Example Ltd",
}


async def test_contacts_come_as_they_stand(api: FakeApi) -> None:
    api.serve("/api/v2/contacts", [CARD])
    (event,) = await also(api, "contacts")
    ident = "shared_contact_pool_Company%3A5000000000000001_uid_crm-42"
    assert written(event) == (
        envelope(
            f"dialpad:acme:contact:{ident}:updated:{digest_of(CARD)}:{MINUTE}",
            "dialstream.contact.updated",
            f"contact/{CARD['id']}",
        ),
        {
            "contact_id": CARD["id"],
            "contact_kind": "shared",
            "change": "updated",
            "display_name": "Example Customer",
            "first_name": "Example",
            "last_name": "Customer",
            "phone_numbers": [
                {"number": "+15551230002", "number_raw": "(555) 123-0002"},
                {"number": "+15551230001", "number_raw": "+15551230001"},
            ],
            "emails": ["customer@example.com"],
            "company_name": "Example Ltd",
            "job_title": None,
            "urls": [],
        },
        CARD,
    )
    assert event.surprises == ()


async def test_a_contact_is_known_again_but_for_the_minute(api: FakeApi) -> None:
    api.serve("/api/v2/contacts", [CARD])
    (first,) = await also(api, "contacts")
    (again,) = await also(api, "contacts", read_ms=READ_MS + 60_000)
    assert again.id != first.id
    assert again.id.rpartition(":")[0] == first.id.rpartition(":")[0]
    assert first.id.split(":")[4] == "updated"


OPTED_OUT = {
    "external_endpoint": "+15551230001",
    "opt_out_state": "opted_out",
    "date": "1790000000000",
    "opt_out_scope_info": {"opt_out_scope_level": "company", "scope_id": "5000000000000001"},
}
BACK_IN = {"external_endpoint": "(555) 123-0002", "opt_out_state": "opted_back_in"}


class Consents(FakeApi):
    """Filters by state, as Dialpad does."""

    async def pages(
        self,
        path: str,
        params: Mapping[str, object] | None = None,
        *,
        limit: int | None = None,
    ) -> AsyncIterator[list[bytes]]:
        async for page in super().pages(path, params, limit=limit):
            assert params is not None
            wanted = params["opt_out_state"]
            yield [item for item in page if json.loads(item)["opt_out_state"] == wanted]


async def test_opt_outs_are_those_of_our_company(api: FakeApi) -> None:
    api = Consents()
    api.objects["/api/v2/company"] = {"id": "5000000000000001", "name": "Example"}
    api.serve("/api/v2/company/5000000000000001/smsoptout", [OPTED_OUT, BACK_IN])
    back_in, out = await also(api, "consents")
    assert written(out) == (
        envelope(
            "dialpad:acme:consent:+15551230001:opted_out:1790000000000",
            "dialstream.consent.changed",
            "consent/+15551230001",
            time="2026-09-21T14:13:20.000Z",
        ),
        {"number": "+15551230001", "state": "opted_out", "channel": "sms", "scope": "company"},
        OPTED_OUT,
    )
    assert written(back_in) == (
        envelope(
            f"dialpad:acme:consent:+15551230002:opted_in:{digest_of(BACK_IN)}:{MINUTE}",
            "dialstream.consent.changed",
            "consent/+15551230002",
        ),
        {"number": "+15551230002", "state": "opted_in", "channel": "sms", "scope": None},
        BACK_IN,
    )
    assert (out.topic, out.surprises, back_in.surprises) == ("consents", (), ())


@pytest.mark.parametrize("company", [{}, {"id": None}, {"id": {}}, {"id": True}])
async def test_opt_outs_of_a_company_without_id_are_an_error(
    api: FakeApi, company: dict[str, Any]
) -> None:
    api.objects["/api/v2/company"] = company
    with pytest.raises(ApiError) as caught:
        await also(api, "consents")
    assert caught.value.reason == "unexpected"


# --- directory ----------------------------------------------------------------------------------

USER = {
    "id": "5000000000000201",
    "display_name": "Agent One",
    "emails": ["agent.one@example.com", "one@example.com"],
    "phone_numbers": ["+15551230101"],
    "office_id": "5000000000000100",
    "is_available": True,
    "group_details": [
        {"group_id": "5000000000000302", "group_type": "callcenter", "role": "supervisor"},
        {"group_id": "5000000000000100", "group_type": "office", "role": "operator"},
        {"group_id": "5000000000000301", "group_type": "callcenter", "role": "operator"},
    ],
    "image_url": "https://dialpad.example/avatar/201.png?version=1",
}
OFFICE = {
    "id": "5000000000000100",
    "office_id": "5000000000000100",
    "name": "Example Office",
    "phone_numbers": ["+15551230100"],
    "availability_status": "open",
}
DEPARTMENT = {
    "id": "5000000000000401",
    "name": "Sales",
    "office_id": "5000000000000100",
    "phone_numbers": ["+15551230103", "+15551230104"],
}
CENTRE = {
    "id": "5000000000000301",
    "name": "Example Support",
    "office_id": "5000000000000100",
    "phone_numbers": ["+15551230102"],
}
NUMBER = {
    "number": "+15551230102",
    "status": "call_center",
    "target_id": "5000000000000301",
    "target_type": "callcenter",
    "office_id": "5000000000000100",
}
SPARE_NUMBER = {"number": "(555) 123-0109", "office_id": "5000000000000100", "status": "available"}


def directory(api: FakeApi) -> None:
    api.serve("/api/v2/users", [USER])
    api.serve("/api/v2/offices", [OFFICE])
    api.serve("/api/v2/departments", [DEPARTMENT])
    api.serve("/api/v2/callcenters", [CENTRE])
    api.serve("/api/v2/numbers", [NUMBER], [SPARE_NUMBER])


#: Kind, id, name, email, numbers, owner; the item.
EXPECTED_DIRECTORY: list[tuple[str, str, str | None, str | None, list[str], str | None, Any]] = [
    (
        "user",
        "5000000000000201",
        "Agent One",
        "agent.one@example.com",
        ["+15551230101"],
        "5000000000000100",
        USER,
    ),
    ("office", "5000000000000100", "Example Office", None, ["+15551230100"], None, OFFICE),
    (
        "department",
        "5000000000000401",
        "Sales",
        None,
        ["+15551230103", "+15551230104"],
        "5000000000000100",
        DEPARTMENT,
    ),
    (
        "call_center",
        "5000000000000301",
        "Example Support",
        None,
        ["+15551230102"],
        "5000000000000100",
        CENTRE,
    ),
    ("number", "+15551230102", None, None, ["+15551230102"], "5000000000000301", NUMBER),
    ("number", "+15551230109", None, None, ["+15551230109"], "5000000000000100", SPARE_NUMBER),
]


async def test_the_directory_is_who_and_what_is_ours(api: FakeApi) -> None:
    directory(api)
    events = await also(api, "directory")
    for event, expected in zip(events, EXPECTED_DIRECTORY, strict=True):
        kind, ident, name, email, numbers, owner_id, item = expected
        found, data, raw = written(event)
        assert event.topic == "directory"
        assert data == {
            "kind": kind,
            "id": ident,
            "name": name,
            "email": email,
            "numbers": numbers,
            "owner_id": owner_id,
        }
        assert raw == item
        id_ = found["id"]
        assert re.fullmatch(
            rf"dialpad:acme:directory:{kind}:{re.escape(ident)}:[0-9a-f]{{16}}:{MINUTE}", id_
        )
        assert found == envelope(id_, "dialstream.directory.listed", f"directory/{kind}/{ident}")


async def test_the_digest_in_the_directory_is_that_of_the_item(api: FakeApi) -> None:
    directory(api)
    digests = {event.subject: event.id.split(":")[-2] for event in await also(api, "directory")}
    assert digests["directory/call_center/5000000000000301"] == digest_of(CENTRE)
    assert digests["directory/number/+15551230102"] == digest_of(NUMBER)


@pytest.mark.parametrize(
    "change",
    [
        {"is_available": False, "is_online": True, "on_duty_status": "wrapup", "muted": True},
        {"image_url": "https://dialpad.example/avatar/201.png?version=2"},
        {
            "group_details": [
                {**group, "do_not_disturb": True}
                for group in USER["group_details"]  # type: ignore[attr-defined]
            ]
        },
    ],
)
async def test_who_is_on_a_call_just_now_makes_nobody_another(
    api: FakeApi, change: dict[str, Any]
) -> None:
    directory(api)
    before = (await also(api, "directory"))[0]
    api.serve("/api/v2/users", [{**USER, **change}])
    assert (await also(api, "directory"))[0].id == before.id


@pytest.mark.parametrize(
    "change",
    [
        {"display_name": "Agent 1"},
        {"phone_numbers": []},
        {"state": "suspended"},
        {"group_details": [{**USER["group_details"][0], "role": "admin"}]},  # type: ignore[index]
    ],
)
async def test_who_has_changed_is_told_anew(api: FakeApi, change: dict[str, Any]) -> None:
    directory(api)
    before = (await also(api, "directory"))[0]
    api.serve("/api/v2/users", [{**USER, **change}])
    assert (await also(api, "directory"))[0].id != before.id


@pytest.mark.parametrize("path", ["/api/v2/departments", "/api/v2/users", "/api/v2/numbers"])
async def test_a_list_that_we_may_not_read_is_an_error(api: FakeApi, path: str) -> None:
    directory(api)
    api.lists[path] = [ApiError("forbidden", status=403)]
    with pytest.raises(ApiError) as caught:
        await also(api, "directory")
    assert caught.value.reason == "forbidden"


async def test_one_without_id_in_the_directory_is_a_reject(api: FakeApi) -> None:
    directory(api)
    api.serve("/api/v2/offices", [{"name": "No id"}, OFFICE])
    api.serve("/api/v2/numbers", [{"number": "blocked"}, {"status": "pending"}, NUMBER])
    events = await also(api, "directory")
    assert [event.subject_kind for event in events] == [
        *("directory", "reject", "directory", "directory", "directory"),
        *("reject", "reject", "directory"),
    ]


# --- duty ---------------------------------------------------------------------------------------

ON_DUTY = {
    "user_id": "5000000000000201",
    "on_duty": True,
    "on_duty_status": "occupied",
    "duty_status_reason": None,
    "duty_status_started": "1790000000000",
    "on_duty_started": "1789990000000",
}


def operators(api: FakeApi, *users: object) -> None:
    api.serve("/api/v2/users", users)


async def test_the_present_duty_of_every_operator_is_read_once(api: FakeApi) -> None:
    gone = {**USER, "id": "5000000000000202"}
    in_none = {**USER, "id": "5000000000000203", "group_details": USER["group_details"][1:2]}  # type: ignore[index]
    without_id = {**USER, "id": None}
    operators(api, USER, gone, in_none, without_id, "no user", {"id": "5000000000000204"})
    api.objects["/api/v2/callcenters/operators/5000000000000201/dutystatus"] = ON_DUTY
    # The second one's duty is not there, the others are no operators.
    (event,) = await also(api, "duty_status")
    assert written(event) == (
        envelope(
            f"dialpad:acme:agent:5000000000000201:1790000000000:occupied:{digest_of(ON_DUTY)}",
            "dialstream.agent.status",
            "agent/5000000000000201",
            time="2026-09-21T14:13:20.000Z",
        ),
        {
            "agent_id": "5000000000000201",
            "name": "Agent One",
            "email": "agent.one@example.com",
            "duty_status": "occupied",
            "provider_duty_status": "occupied",
            "duty_reason": None,
            "available": None,
            "call_center_ids": ["5000000000000301", "5000000000000302"],
        },
        ON_DUTY,
    )
    assert (event.topic, event.surprises) == ("agents", ())
    asked = [path for path in api.paths if path.endswith("dutystatus")]
    assert asked == [
        "/api/v2/callcenters/operators/5000000000000201/dutystatus",
        "/api/v2/callcenters/operators/5000000000000202/dutystatus",
    ]


@pytest.mark.parametrize(
    ("started", "expected_ms"),
    [
        (1_790_000_000_000, 1_790_000_000_000),
        ("2026-09-21T14:13:20", 1_790_000_000_000),  # "in UTC", as users have it
        ("2026-09-21T14:13:20.250Z", 1_790_000_000_250),
        ("2026-09-21T16:13:20+02:00", 1_790_000_000_000),
    ],
)
async def test_the_begin_of_a_duty_is_its_clock_however_it_is_written(
    api: FakeApi, started: object, expected_ms: int
) -> None:
    operators(api, USER)
    answer = {**ON_DUTY, "duty_status_started": started}
    api.objects["/api/v2/callcenters/operators/5000000000000201/dutystatus"] = answer
    (event,) = await also(api, "duty_status")
    assert event.time_ms == expected_ms
    assert event.id.split(":")[4] == str(expected_ms)
    assert event.surprises == ()


@pytest.mark.parametrize(
    "started", ["yesterday", "T", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", -1]
)
async def test_a_duty_without_a_clock_has_its_digest_in_its_place(
    api: FakeApi, started: object
) -> None:
    operators(api, USER)
    answer = {**ON_DUTY, "duty_status_started": started}
    api.objects["/api/v2/callcenters/operators/5000000000000201/dutystatus"] = answer
    (event,) = await also(api, "duty_status")
    assert event.time_ms == READ_MS
    assert event.id.split(":")[4] == digest_of(answer)
    assert event.surprises == (("type", "duty_status_started"),)


@pytest.mark.parametrize("on_duty", [False, None])
async def test_who_is_off_duty_is_in_no_centre(api: FakeApi, on_duty: bool | None) -> None:  # noqa: FBT001
    operators(api, USER)
    answer = {**ON_DUTY, "on_duty": on_duty, "on_duty_status": None, "duty_status_started": None}
    api.objects["/api/v2/callcenters/operators/5000000000000201/dutystatus"] = answer
    (event,) = await also(api, "duty_status")
    assert event.data["call_center_ids"] == []
    assert event.data["duty_status"] is None
    digest = digest_of(answer)
    assert event.id == f"dialpad:acme:agent:5000000000000201:{digest}:-:{digest}"
    assert event.time_ms == READ_MS


async def test_a_word_that_only_this_answer_knows_is_kept(api: FakeApi) -> None:
    operators(api, USER)
    answer = {**ON_DUTY, "on_duty_status": "wrapup-end"}
    api.objects["/api/v2/callcenters/operators/5000000000000201/dutystatus"] = answer
    (event,) = await also(api, "duty_status")
    assert event.data["duty_status"] == "unknown"
    assert event.data["provider_duty_status"] == "wrapup-end"
    assert event.surprises == (("duty_status", "wrapup-end"),)


async def test_the_duty_of_another_is_a_reject(api: FakeApi) -> None:
    operators(api, USER)
    answer = {**ON_DUTY, "user_id": "5000000000000299"}
    api.objects["/api/v2/callcenters/operators/5000000000000201/dutystatus"] = answer
    (event,) = await also(api, "duty_status")
    assert event.type == "dialstream.reject.unexpected_shape"
    assert event.data["detail"] == "user_id is that of another user"


# --- whatever Dialpad answers -------------------------------------------------------------------

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["", "0", "+15551230001", "blocked", "1790000000000", "https://a.b/?c", "%:"])
    | st.text(min_size=250, max_size=260),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "content", "url", "name", "type"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)

#: What is read → a path, and good answers there.
_GOOD: dict[str, tuple[str, list[Any]]] = {
    "calls": ("/api/v2/call", [*LISTED, ONE_CALL, {**_MISSED, "recording_details": [_MESSAGE]}]),
    "contacts": ("/api/v2/contacts", [CARD]),
    "consents": ("/api/v2/company/1/smsoptout", [OPTED_OUT, BACK_IN]),
    "users": ("/api/v2/users", [USER]),
    "offices": ("/api/v2/offices", [OFFICE]),
    "departments": ("/api/v2/departments", [DEPARTMENT]),
    "callcenters": ("/api/v2/callcenters", [CENTRE]),
    "numbers": ("/api/v2/numbers", [NUMBER, SPARE_NUMBER]),
    "transcripts": ("/api/v2/transcripts/5000000000001101", [TRANSCRIPT]),
    "recaps": ("/api/v2/call/5000000000001101/ai_recap", [RECAP]),
    "duty_status": ("/api/v2/callcenters/operators/5000000000000201/dutystatus", [ON_DUTY]),
    "operators": ("/api/v2/users", [USER]),
}
_LISTS = ("users", "offices", "departments", "callcenters", "numbers")


@st.composite
def mutated(draw: st.DrawFn, good: list[Any]) -> Any:
    """One of them, with a few values anywhere in it replaced, removed or added."""
    value = copy.deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 4))):
        place: Any = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            what = draw(st.sampled_from(["replace", "remove", "text"]))
            if what == "remove":
                del place[key]
            elif what == "text":
                place[key] = str(place[key])
            else:
                place[key] = draw(_JSON)
            break
    if draw(st.booleans()) and isinstance(value, dict):
        value[draw(st.sampled_from(["state", "direction", "new", "lines", "users"]))] = draw(_JSON)
    return value


async def read_anything(what: str, value: Any) -> list[Event]:
    api = FakeApi()
    directory(api)
    operators(api, USER)
    api.objects["/api/v2/company"] = {"id": 1}
    path = _GOOD[what][0]
    api.objects["/api/v2/callcenters/operators/5000000000000201/dutystatus"] = ON_DUTY
    if what in ("transcripts", "recaps", "duty_status"):
        api.objects[path] = value
    else:
        api.serve(path, [LISTED[0], value] if what == "calls" else [value])
    if what == "calls":
        return [e async for page in records_of(api).calls(0, 1, "poll") for e in page]
    asked = {"operators": "duty_status", **dict.fromkeys(_LISTS, "directory")}.get(what, what)
    return await also(api, asked, "5000000000001101")


@pytest.mark.parametrize("what", _GOOD)
@given(data=st.data())
async def test_every_answer_is_an_event_that_can_be_read_or_a_reject(
    what: str, data: st.DataObject
) -> None:
    value = data.draw(mutated(_GOOD[what][1]))
    events = await read_anything(what, value)
    if what in ("calls", "contacts"):
        assert len(events) == (2 if what == "calls" else 1)
    for event in events:
        whole, _, raw = written(event)
        parts = whole["id"].split(":")
        assert parts[:2] in (["dialpad", "acme"], ["reject", "acme"])
        assert all(parts)
        if event.subject_kind == "reject":
            continue
        assert raw is not None
        key = event.subject.partition("/")[2]
        assert key
        assert event.key == f"acme/{key}"
        if event.subject_kind in ("call", "contact", "agent", "consent"):
            assert unquote(parts[3]) == key
    again = await read_anything(what, value)
    assert [event.id for event in again] == [event.id for event in events]


@pytest.mark.parametrize("what", _GOOD)
async def test_the_answers_that_are_mutated_are_good_ones(what: str) -> None:
    """Otherwise the test above would see rejects only."""
    for value in _GOOD[what][1]:
        events = await read_anything(what, value)
        assert events
        assert all(event.subject_kind != "reject" for event in events)


@given(st.binary(max_size=40) | st.sampled_from([b"", b"{", b"[]", b'"x"', b"{}", b"1e999"]))
async def test_items_that_are_no_json_at_all_are_rejects(item: bytes) -> None:
    api = FakeApi()
    good, other = await calls(api, LISTED[0], item)
    assert good.subject_kind == "call"
    assert other.subject_kind == "reject"
    written(other)


def test_the_poller_finds_them_where_providers_are_registered() -> None:
    from ingest.providers import PROVIDERS
    from ingest.providers.dialpad.records import open_records

    assert PROVIDERS["dialpad"].records is open_records
