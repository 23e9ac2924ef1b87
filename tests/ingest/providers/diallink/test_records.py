r"""What is read back from DialLink: each item an event, written out by hand, or a reject.

Digests were made with `jq -S -c <filter> <sample> | tr -d '\n' | sha256sum | cut -c1-16` (jq 1.6,
GNU coreutils 9.1).
"""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import stamina
import structlog

from ingest.api import ApiError
from ingest.delivery import DAY_MS, CallRecords
from ingest.providers import PROVIDERS
from ingest.providers.diallink.api import open_api
from ingest.providers.diallink.records import DialLinkRecords, open_records
from schemas.event import Envelope, Event, encode
from schemas.subjects import SUBJECTS
from tests.ingest.providers.diallink.small_diallink import (
    CALLS,
    CONTACTS,
    RECORDINGS,
    USERS,
    SmallDialLink,
    sample,
    small_diallink,
)

#: date -u -d @1790000401.234: 2026-09-21T14:20:01.234Z, some minutes after the samples begin.
READ_MS = 1_790_000_401_234
READ = "2026-09-21T14:20:01.234Z"
MINUTE = "202609211420"

HOUR_MS = 3_600_000
CENTURY_MS = 100 * 365 * 24 * HOUR_MS

UUID = "00000000-0000-4000-8000-00000000"


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=3):
        yield


@asynccontextmanager
async def reading(
    *, read_ms: int = READ_MS, **more: Any
) -> AsyncIterator[tuple[DialLinkRecords, SmallDialLink]]:
    async with small_diallink() as server:
        connection = server.connection(**more)
        async with open_api("line", connection) as api:
            yield DialLinkRecords("line", connection, api, lambda: read_ms), server


async def calls(
    records: DialLinkRecords,
    from_ms: int = 0,
    to_ms: int = CENTURY_MS,
    via: str = "poll",
) -> list[Event]:
    return [event async for page in records.calls(from_ms, to_ms, via) for event in page]


async def also(records: DialLinkRecords, what: str) -> list[Event]:
    return [event async for page in records.also(what, [], "poll") for event in page]


async def recordings(records: DialLinkRecords, from_ms: int = 0) -> list[Event]:
    pages = records.recordings(from_ms, CENTURY_MS, "poll")
    return [event async for page in pages for event in page]


def ids(events: list[Event]) -> list[str]:
    return [event.data["call_id"] for event in events]


def written(event: Event) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Envelope, data and raw as they stand on the log; every reader can read them."""
    line = encode(event)
    whole = json.loads(line)
    Envelope.model_validate(whole)
    SUBJECTS[event.subject_kind].model_validate(whole["data"])
    data = whole.pop("data")
    raw = data.pop("raw", None)
    return whole, data, raw


def envelope(
    id_: str, type_: str, subject: str, *, time: str = READ, via: str = "poll"
) -> dict[str, Any]:
    kind, _, key = subject.partition("/")
    return {
        "specversion": "1.0",
        "id": id_,
        "source": "/diallink/line",
        "type": type_,
        "subject": subject,
        "time": time,
        "datacontenttype": "application/json",
        "dataschema": f"urn:dialstream:schema:{kind}:1",
        "partitionkey": f"line/{key}",
        "recordedtime": READ,
        "via": via,
        "provider": "diallink",
        "connection": "line",
    }


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sample("calls-page-assumed")["data"]
    return found


def row(number: int, changed: int | None, **more: Any) -> dict[str, Any]:
    found = {"id": str(number), "status": "COMPLETED", "startedAt": 1000 + number, **more}
    return found if changed is None else {**found, "updatedAt": changed}


# Calls

NOBODY: dict[str, Any] = {
    "kind": None,
    "id": None,
    "name": None,
    "email": None,
    "number": None,
    "number_raw": None,
    "withheld": False,
}

NO_CALL: dict[str, Any] = {
    "related_call_ids": [],
    "provider_state": None,
    "direction": "unknown",
    "from_number": None,
    "to_number": None,
    "external": NOBODY,
    "internal": NOBODY,
    "target": NOBODY,
    "group": None,
    "started_at": None,
    "rang_at": None,
    "connected_at": None,
    "ended_at": None,
    "ring_duration_s": None,
    "talk_duration_s": None,
    "hold_duration_s": None,
    "total_duration_s": None,
    "outcome": None,
    "provider_outcome": None,
    "transferred": None,
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


async def test_the_sample_of_calls() -> None:
    async with reading() as (records, server):
        server.lists[CALLS] = rows()
        first, second, third = await calls(records)

    whole, data, raw = written(first)
    ident = UUID + "1001"
    assert whole == envelope(
        f"diallink:line:record:{ident}:b2bcc6a876c3e4b1",
        "dialstream.call.recorded",
        f"call/{ident}",
        time="2026-09-21T14:15:20.000Z",
    )
    user = NOBODY | {
        "kind": "user",
        "id": UUID + "0201",
        "number": "+15551230101",
        "number_raw": "+15551230101",
    }
    assert data == NO_CALL | {
        "call_id": ident,
        "conversation_id": ident,
        "state": "recorded",
        "provider_state": "COMPLETED",
        "direction": "inbound",
        "from_number": "+15551230001",
        "to_number": "+15551230101",
        "external": NOBODY
        | {"id": UUID + "0301", "number": "+15551230001", "number_raw": "+15551230001"},
        "internal": user,
        "target": user,
        "started_at": "2026-09-21T14:13:20.000Z",
        "connected_at": "2026-09-21T14:13:29.000Z",
        "ended_at": "2026-09-21T14:15:20.000Z",
        "talk_duration_s": 111.0,
        "total_duration_s": 120.0,
        "outcome": "answered",
        "provider_outcome": "COMPLETED",
        "recordings": [
            {
                "recording_id": UUID + "1501",
                "url": None,
                "kind": None,
                "started_at": None,
                "duration_s": None,
            }
        ],
    }
    assert raw == rows()[0]

    assert second.id == f"diallink:line:record:{UUID}1002:4d07b069fc1961c0"
    assert second.data["outcome"] == "missed"
    assert third.id == f"diallink:line:record:{UUID}1003:a865525ea75c96f1"
    assert third.data["external"]["number"] == "+15551230003"
    for event in (first, second, third):
        assert not event.surprises


async def test_the_time_of_a_record_is_the_end_else_the_change_else_the_start() -> None:
    whole = {"id": "1", "endedAt": 3000, "startedAt": 1000, "updatedAt": 7000}
    async with reading() as (records, server):
        server.lists[CALLS] = [
            whole,
            {**whole, "endedAt": None},
            {"id": "3", "endedAt": 5000, "updatedAt": 8000},
        ]
        assert [event.time_ms for event in await calls(records)] == [3000, 7000, 5000]
        server.answers[f"{CALLS}/4"] = {"id": "4", "startedAt": 1000}
        server.answers[f"{CALLS}/5"] = {"id": "5"}
        assert [event.time_ms for event in await records.call("4", "poll")] == [1000]
        assert [event.time_ms for event in await records.call("5", "poll")] == [READ_MS]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [("IN_PROGRESS", None), ("RINGING", None), ("BLOCKED", "blocked"), ("MISSED", "missed")],
)
async def test_a_call_that_still_runs_has_no_outcome(status: str, outcome: str | None) -> None:
    async with reading() as (records, server):
        server.lists[CALLS] = [
            {"id": "1", "direction": "INBOUND", "status": status, "updatedAt": 5}
        ]
        (event,) = await calls(records)
        assert event.data["outcome"] == outcome
        assert event.data["state"] == "recorded"


async def test_what_cannot_be_read_is_a_reject_with_its_bytes() -> None:
    nameless = {"direction": "INBOUND", "updatedAt": 6}
    async with reading() as (records, server):
        server.lists[CALLS] = [row(1, 5), nameless, row(2, 7)]
        one, reject, two = await calls(records)
        assert ids([one, two]) == ["1", "2"]
        data = written(reject)[1]
        assert data["reason"] == "unexpected_shape"
        assert base64.b64decode(data["body_base64"]) == json.dumps(nameless).encode()
        digest = hashlib.sha256(json.dumps(nameless).encode()).hexdigest()[:16]
        assert reject.id == f"reject:line:unexpected_shape:{digest}"


async def test_fields_may_have_other_names() -> None:
    names = {"id": "uuid", "started_at": "begin", "updated_at": "touched", "from_number": "caller"}
    async with reading(assume={"call_fields": names}) as (records, server):
        server.lists[CALLS] = [
            {"uuid": "a", "begin": "2026-09-21T14:13:20Z", "touched": 5, "caller": "+15551230001"}
        ]
        (event,) = await calls(records, 3)
        assert event.data["call_id"] == "a"
        assert event.data["started_at"] == "2026-09-21T14:13:20.000Z"
        assert event.data["from_number"] == "+15551230001"
        assert server.of(CALLS)[0]["sort"] == "+touched"
        assert server.of(CALLS)[0]["touched"] == "gte::3"


# Which calls are read


async def test_a_poll_reads_all_that_changed_since_whenever_it_began() -> None:
    async with reading() as (records, server):
        server.cap = 2
        server.lists[CALLS] = [row(n, 100 + n) for n in range(7)]
        assert ids(await calls(records, 103, 104)) == ["3", "4", "5", "6"]
        assert [(q["sort"], q["updatedAt"], q["pageNumber"]) for q in server.of(CALLS)] == [
            ("+updatedAt", "gte::103", "1"),
            ("+updatedAt", "gte::104", "1"),
            ("+updatedAt", "gte::105", "1"),
        ]


async def test_many_rows_of_one_time_are_all_read() -> None:
    async with reading() as (records, server):
        server.cap = 10
        server.lists[CALLS] = [row(n, 100 if n < 95 else 101) for n in range(1, 121)]
        assert sorted(map(int, ids(await calls(records)))) == list(range(1, 121))
        assert len(server.of(CALLS)) < 40


async def test_a_backfill_reads_what_began_in_the_window_and_what_does_not_tell() -> None:
    begin = 1_790_000_000_000
    async with reading() as (records, server):
        server.lists[CALLS] = [
            row(1, begin + 9 * HOUR_MS, startedAt=begin - 1),
            row(2, begin + HOUR_MS, startedAt=begin),
            # Changed weeks later.
            row(3, begin + 900 * HOUR_MS, startedAt=begin + HOUR_MS - 1),
            row(4, begin + 2 * HOUR_MS, startedAt=begin + HOUR_MS),
            row(5, begin + 3 * HOUR_MS, startedAt=None),
            row(6, begin + 4 * HOUR_MS, startedAt="then"),
            # A clock that is behind.
            row(7, begin - 2000, startedAt=begin),
        ]
        found = await calls(records, begin, begin + HOUR_MS, "backfill")
        assert ids(found) == ["7", "2", "5", "6", "3"]
        assert {event.via for event in found} == {"backfill"}


@pytest.mark.parametrize("order", ["auto", "started"])
async def test_where_changes_are_refused_it_is_read_by_start(order: str) -> None:
    with structlog.testing.capture_logs() as lines:
        async with reading(assume={"order": order}) as (records, server):
            server.cap = 2
            server.refused_sorts = ("+",)
            server.lists[CALLS] = [row(n, 5) for n in range(1, 10)]
            # The pages hold two; the last one lies wholly before.
            assert ids(await calls(records, 1006)) == ["9", "8", "7", "6", "5", "4"]
            assert ids(await calls(records, 1009)) == ["9", "8", "7", "6"]
            sorts = [query["sort"] for query in server.of(CALLS)]
            asked_in_vain = 2 if order == "auto" else 0  # in two sizes, and never again
            assert sorts == ["+updatedAt"] * asked_in_vain + ["-startedAt"] * 10
            backfilled = await calls(records, 1003, 1006, "backfill")
            assert ids(backfilled) == ["5", "4", "3"]
    told = [line for line in lines if line["event"] == "list_order_refused"]
    assert [(line["what"], line["reason"]) for line in told] == (
        [("calls", "refused")] if order == "auto" else []
    )


async def test_a_refusal_is_remembered_for_a_day_whoever_opens_it() -> None:
    async def sorts(later_ms: int) -> str:
        """The first letters of what is asked for."""
        before = len(server.of(CALLS))
        async with open_api("line", connection) as api:
            await calls(DialLinkRecords("line", connection, api, lambda: READ_MS + later_ms))
        return "".join(query["sort"][0] for query in server.of(CALLS)[before:])

    with structlog.testing.capture_logs() as lines:
        async with small_diallink() as server:
            connection = server.connection()
            server.lists[CALLS] = [row(1, 5)]
            server.refused_sorts = ("+",)
            assert await sorts(0) == "++--"
            assert await sorts(DAY_MS - 1) == "--"
            assert await sorts(DAY_MS) == "++--"
            server.refused_sorts = ()
            assert await sorts(2 * DAY_MS) == "+"
    told = [line for line in lines if line["event"] == "list_order_refused"]
    assert len(told) == 2


async def test_one_order_can_be_insisted_on() -> None:
    async with reading(assume={"order": "updated"}) as (records, server):
        server.refused_sorts = ("+",)
        server.lists[CALLS] = [row(1, 5)]
        with pytest.raises(ApiError) as raised:
            await calls(records)
        assert raised.value.reason == "refused"
        server.refused_sorts = ()
        server.lists[CALLS] = [row(1, None)]
        server.answers[CALLS] = {"data": server.lists[CALLS], "paging": {"hasNextPage": False}}
        with pytest.raises(ApiError, match=r"assume\.call_fields\.updated_at"):
            await calls(records)


async def test_records_without_the_time_of_their_change_are_read_by_start() -> None:
    """The filter hides none of them: then nothing may be lost, and nothing goes on for ever."""
    async with reading() as (records, server):
        server.answers[CALLS] = {
            "data": [row(n, None) for n in (3, 2, 1)],
            "paging": {"hasNextPage": False},
        }
        for _ in range(2):
            assert ids(await calls(records)) == ["3", "2", "1"]
        # It is tried again each time: it may have been one moment.
        sorts = [query["sort"] for query in server.of(CALLS)]
        assert sorts == ["+updatedAt", "-startedAt", "-startedAt"] * 2


async def test_a_filter_that_is_overlooked_is_noticed() -> None:
    async with reading() as (records, server):
        server.answers[CALLS] = {
            "data": [row(n, 100 + n) for n in (1, 2, 3)],
            "paging": {"hasNextPage": False},
        }
        assert ids(await calls(records, 102)) == ["1", "2", "3"]
        assert [query["sort"] for query in server.of(CALLS)][-1] == "-startedAt"


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "unauthorized"), (403, "forbidden"), (500, "unavailable")]
)
async def test_other_errors_are_errors(status: int, reason: str) -> None:
    async with reading(assume={"order": "auto"}) as (records, server):
        server.answers[CALLS] = status
        with pytest.raises(ApiError) as raised:
            await calls(records)
        assert raised.value.reason == reason
        assert {query["sort"] for query in server.of(CALLS)} == {"+updatedAt"}


# One call


async def test_one_call_is_read_again() -> None:
    async with reading() as (records, server):
        assert isinstance(records, CallRecords)
        server.lists[CALLS] = rows()
        (event,) = await records.call(UUID + "1001", "poll")
        assert event.id == f"diallink:line:record:{UUID}1001:b2bcc6a876c3e4b1"
        server.answers[f"{CALLS}/x%2Fy"] = {"data": {"id": "x/y", "status": "COMPLETED"}}
        (event,) = await records.call("x/y", "poll")
        assert event.data["call_id"] == "x/y"
        assert json.loads(event.raw or b"") == {"id": "x/y", "status": "COMPLETED"}


async def test_a_call_that_is_not_there_is_none() -> None:
    async with reading() as (records, server):
        other_paths = (
            "",
            ".",
            "..",
            "../users",
            "x/../../../account-hub/api-keys",
            "%2e%2e%2fusers",
        )
        for call_id in ("1", *other_paths):
            assert await records.call(call_id, "poll") == ()
        assert [asked.path for asked in server.asked] == [f"{CALLS}/1"]


async def test_another_call_than_the_one_asked_for_is_a_reject() -> None:
    async with reading() as (records, server):
        server.answers[f"{CALLS}/1"] = {"id": "2"}
        (event,) = await records.call("1", "poll")
        assert (event.subject_kind, event.what) == ("reject", "unexpected_shape")


async def test_a_call_that_is_refused_is_an_error() -> None:
    async with reading() as (records, server):
        server.answers[f"{CALLS}/1"] = 401
        with pytest.raises(ApiError):
            await records.call("1", "poll")


# Recordings


def recorded(number: int, changed: int, **more: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "callId": str(number), "updatedAt": changed, **more}


async def test_a_recording_is_ready() -> None:
    item = recorded(
        7, READ_MS - 60_000, url="https://x.example/r7?sig=1", startedAt=READ_MS, duration=12.5
    )
    async with reading() as (records, server):
        server.lists[RECORDINGS] = [item]
        (event,) = await recordings(records)
        server.lists[RECORDINGS] = [item | {"url": "https://x.example/r7?sig=2"}]
        (again,) = await recordings(records)
    assert again.id == event.id  # another signature is no news
    whole, data, raw = written(event)
    lasting = {**item, "url": "https://x.example/r7"}
    text = json.dumps(lasting, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert whole == envelope(
        f"diallink:line:recording_ready:7:{digest}",
        "dialstream.call.recording_ready",
        "call/7",
        time="2026-09-21T14:19:01.234Z",
    )
    assert data == NO_CALL | {
        "call_id": "7",
        "conversation_id": "7",
        "state": "recording_ready",
        "recordings": [
            {
                "recording_id": "r7",
                "url": "https://x.example/r7?sig=1",
                "kind": None,
                "started_at": READ,
                "duration_s": 12.5,
            }
        ],
    }
    assert raw == item
    assert not event.surprises


async def test_recordings_are_those_that_have_changed_since_then() -> None:
    async with reading() as (records, server):
        server.lists[RECORDINGS] = [recorded(n, READ_MS + n) for n in (1, 2, 3)]
        assert ids(await recordings(records, READ_MS + 2)) == ["2", "3"]
        assert server.of(RECORDINGS)[0]["updatedAt"] == f"gte::{READ_MS + 2}"


async def test_a_recording_of_no_call_is_a_reject() -> None:
    async with reading() as (records, server):
        server.lists[RECORDINGS] = [{"id": "r1", "updatedAt": READ_MS}]
        (event,) = await recordings(records)
        assert (event.subject_kind, event.what) == ("reject", "unexpected_shape")


async def test_recordings_by_start_where_changes_are_refused() -> None:
    async with reading() as (records, server):
        server.refused_sorts = ("+",)
        server.lists[RECORDINGS] = [
            recorded(1, 5, startedAt=READ_MS - 1000),
            recorded(2, 5, startedAt=READ_MS),
        ]
        assert ids(await recordings(records)) == ["2", "1"]


# Contacts and users


async def test_the_samples_of_contacts() -> None:
    async with reading() as (records, server):
        server.cap = 2
        server.lists[CONTACTS] = (
            sample("contacts-page-1")["data"] + sample("contacts-page-2")["data"]
        )
        first, *others = await also(records, "contacts")
    whole, data, raw = written(first)
    assert whole == envelope(
        f"diallink:line:contact:{UUID}0301:updated:ba007532f8c0fcbf:{MINUTE}",
        "dialstream.contact.updated",
        f"contact/{UUID}0301",
    )
    assert data == {
        "contact_id": UUID + "0301",
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
    assert raw == sample("contacts-page-1")["data"][0]
    assert [event.data["contact_id"] for event in others] == [UUID + "0302", UUID + "0303"]
    for event in (first, *others):
        written(event)
        assert not event.surprises


async def test_the_sample_of_users() -> None:
    users = sample("users-list")["data"]
    async with reading() as (records, server):
        server.lists[USERS] = users
        first, second = await also(records, "directory")
        server.lists[USERS] = [users[0] | {"status": {"status": "ONLINE"}}, users[1]]
        away, _ = await also(records, "directory")
        server.lists[USERS] = [users[0] | {"lastName": "Two"}]
        (renamed,) = await also(records, "directory")
    whole, data, raw = written(first)
    assert whole == envelope(
        f"diallink:line:directory:user:{UUID}0201:88a09f6d17aff100:{MINUTE}",
        "dialstream.directory.listed",
        f"directory/user/{UUID}0201",
    )
    assert data == {
        "kind": "user",
        "id": UUID + "0201",
        "name": "Agent One",
        "email": "agent.one@example.com",
        "numbers": [],
        "owner_id": None,
    }
    assert raw == users[0]
    assert second.id == f"diallink:line:directory:user:{UUID}0202:ac2f1967ad6cc20d:{MINUTE}"
    assert away.id == first.id  # whether somebody is there is no news
    assert renamed.id != first.id
    for event in (first, second):
        assert not event.surprises


@pytest.mark.parametrize("what", ["contacts", "directory"])
async def test_where_nothing_is_sorted_everything_is_read(what: str) -> None:
    path = {"contacts": CONTACTS, "directory": USERS}[what]
    async with reading() as (records, server):
        server.cap = 3
        server.refused_sorts = ("-",)
        server.lists[path] = [{"id": letter} for letter in "abcdefghij"]
        found = await also(records, what)
        assert "".join(sorted(event.subject[-1] for event in found)) == "abcdefghij"


def test_also_names_what_there_is() -> None:
    assert tuple(PROVIDERS["diallink"].also) == ("contacts", "directory", "recordings")


# As the poller opens it


async def test_as_the_poller_opens_it() -> None:
    async with small_diallink() as server, open_records("line", server.connection()) as records:
        server.lists[CALLS] = rows()
        found = await calls(records)
        assert ids(found) == [UUID + "1001", UUID + "1002", UUID + "1003"]
        for what in PROVIDERS["diallink"].also:
            server.lists = {CONTACTS: [], USERS: [], RECORDINGS: []}
            read = recordings(records) if what == "recordings" else also(records, what)
            assert await read == []
