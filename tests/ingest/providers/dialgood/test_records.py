r"""What is read back from Dialgood: each item an event, written out by hand, or a reject.

Digests were made with `jq -S -c <filter> <sample> | tr -d '\n' | sha256sum | cut -c1-16` (jq 1.6,
GNU coreutils 9.1); of agents with `{owner: true} + . | del(.updated_at)`, of a record without an id
with `jq -c '[.botId, .created_at, .data.from, .data.to]'`.
"""

import base64
import copy
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ingest.api import ApiError
from ingest.errors import ConfigError
from ingest.providers.dialgood import PROVIDER
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.providers.dialgood.records import DialgoodRecords, open_records
from ingest.settings import Connection
from schemas.event import Envelope, Event, encode
from schemas.subjects import SUBJECTS
from tests.ingest.providers.dialgood.model import (
    BASE_MS,
    KEY,
    Answer,
    Listed,
    Logs,
    Wire,
    api_on,
    json_answer,
    row,
)
from tests.ingest.scripted import answer, good, scripted

SAMPLES = Path(__file__).parents[3] / "samples" / "dialgood"

#: date -u -d @1790003001.234: 2026-09-21T15:03:21.234Z, after all samples.
READ_MS = 1_790_003_001_234
READ = "2026-09-21T15:03:21.234Z"
MINUTE = "202609211503"

AGENT = "agent_0001"
HOUR_MS = 3_600_000


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_bytes())


PAGE = (SAMPLES / "call-logs-page.json").read_bytes()
LOGGED = sample("call-logs-page")["data"]
AGENTS = sample("agents-page")["agents"]
VERSIONS = sample("versions-page")["versions"]
COMPLETED = LOGGED[6]


def records_on(
    respond: Callable[[httpx.Request], Answer],
    *,
    name: str = "bots",
    region: str | None = "US",
    read_ms: int = READ_MS,
    **assume: Any,
) -> DialgoodRecords:
    api = api_on(Wire(respond), direct=True, name=name, **assume)
    return DialgoodRecords(name, region, api, Assumptions(**assume), lambda: read_ms)


async def all_of(pages: AsyncIterator[Sequence[Event]]) -> list[Event]:
    return [event async for page in pages for event in page]


async def calls(*items: object, via: str = "poll", region: str | None = "US", **assume: Any) -> Any:
    """The events of one page of call logs."""
    page = {"data": items, "totalPages": 1, "totalRecords": len(items)}
    assume = {"time_unit": "ms", **assume}
    records = records_on(lambda _: json_answer(page), region=region, **assume)
    return await all_of(records.calls_of(AGENT, BASE_MS, READ_MS, via))


async def call(item: object, **options: Any) -> Event:
    (event,) = await calls(item, **options)
    return event  # type: ignore[no-any-return]


async def listed(*items: object, **options: Any) -> list[Event]:
    page = {"agents": items, "totalCount": len(items), "hasMore": False}
    return await all_of(records_on(lambda _: json_answer(page), **options).agents("poll"))


async def versions(*items: object) -> list[Event]:
    page = {"versions": items, "totalCount": len(items), "hasMore": False}
    return await all_of(records_on(lambda _: json_answer(page)).versions_of(AGENT, "poll"))


def no_constants(word: str) -> NoReturn:
    raise ValueError(word)


def written(event: Event) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Envelope, data and raw as they stand on the log; every reader can read them."""
    line = encode(event)
    assert b"\n" not in line
    whole = json.loads(line, parse_constant=no_constants)
    Envelope.model_validate(whole)
    SUBJECTS[event.subject_kind].model_validate(whole["data"])
    data = whole.pop("data")
    raw = data.pop("raw", None)
    return whole, data, raw


def envelope(id_: str, type_: str, subject: str, key: str, time: str = READ) -> dict[str, Any]:
    kind = subject.partition("/")[0]
    return {
        "specversion": "1.0",
        "id": id_,
        "source": "/dialgood/bots",
        "type": type_,
        "subject": subject,
        "time": time,
        "datacontenttype": "application/json",
        "dataschema": f"urn:dialstream:schema:{kind}:1",
        "partitionkey": key,
        "recordedtime": READ,
        "via": "poll",
        "provider": "dialgood",
        "connection": "bots",
    }


def without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: inner for key, inner in value.items() if key not in keys}


def changed(record: dict[str, Any], **of_call: object) -> dict[str, Any]:
    return {**record, "data": {**record["data"], **of_call}}


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
BOT = {**NOBODY, "kind": "agent", "id": "agent_0001"}
BOT_WITH_NUMBER = {**BOT, "number": "+15551230101", "number_raw": "+15551230101"}


def contact(number: str | None) -> dict[str, Any]:
    return {
        **NOBODY,
        "kind": "contact",
        "id": "contact_0001",
        "number": number,
        "number_raw": number,
    }


#: What these records have in common.
_RECORD: dict[str, Any] = {
    "related_call_ids": [],
    "state": "recorded",
    "direction": "outbound",
    "from_number": "+15551230101",
    "internal": BOT_WITH_NUMBER,
    "target": BOT_WITH_NUMBER,
    "group": None,
    "rang_at": None,
    "connected_at": None,
    "ring_duration_s": None,
    "talk_duration_s": None,
    "hold_duration_s": None,
    "transferred": None,
    "recordings": [],
    "voicemail": None,
    "transcript": None,
    "recap": None,
    "labels": [],
    "dispositions": [],
    "quality": None,
    "campaign_id": "campaign_0001",
    "custom_data": None,
}


def expected(
    number: int, call_id: str, digest: str, time: str, **data: object
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    return (
        number,
        envelope(
            f"dialgood:bots:record:{call_id}:{digest}",
            "dialstream.call.recorded",
            f"call/{call_id}",
            f"bots/{call_id}",
            time,
        ),
        {**_RECORD, "call_id": call_id, "conversation_id": call_id, **data},
    )


#: Which of the page, its envelope and data.
EXPECTED_CALLS = [
    expected(  # it still runs
        0,
        "conversation_0006",
        "89c2d87f5060b4ee",
        "2026-09-21T14:50:00.000Z",
        to_number="+15551230006",
        external=contact("+15551230006"),
        started_at="2026-09-21T14:50:00.000Z",
        ended_at=None,
        total_duration_s=None,
        provider_state="in-progress",
        provider_outcome="failed",
        outcome=None,
    ),
    expected(  # a web call
        1,
        "conversation_0005",
        "d30eef2e3d20444b",
        "2026-09-21T14:40:42.000Z",
        direction="unknown",
        from_number=None,
        to_number=None,
        internal=BOT,
        target=BOT,
        external=contact(None),
        started_at="2026-09-21T14:40:00.000Z",
        ended_at="2026-09-21T14:40:42.000Z",
        total_duration_s=42.0,
        provider_state="completed",
        provider_outcome="completed",
        outcome="answered",
        campaign_id=None,
    ),
    expected(  # a word that nobody has seen
        2,
        "conversation_0004",
        "0639d4d32814e686",
        "2026-09-21T14:36:08.000Z",
        to_number="+15551230005",
        external=contact("+15551230005"),
        started_at="2026-09-21T14:36:00.000Z",
        ended_at="2026-09-21T14:36:08.000Z",
        total_duration_s=8.0,
        provider_state="machine-detected",
        provider_outcome="failed",
        outcome="unknown",
    ),
    expected(  # without a conversationId
        3,
        "3b2780764ca08215",
        "4e4dc04fd9f5247f",
        "2026-09-21T14:35:00.000Z",
        to_number="+15551230004",
        external=contact("+15551230004"),
        started_at="2026-09-21T14:35:00.000Z",
        ended_at="2026-09-21T14:35:00.000Z",
        total_duration_s=0.0,
        provider_state="failed",
        provider_outcome="failed",
        outcome="failed",
    ),
    expected(
        4,
        "conversation_0003",
        "472b62351079d574",
        "2026-09-21T14:30:00.000Z",
        to_number="+15551230003",
        external=contact("+15551230003"),
        started_at="2026-09-21T14:30:00.000Z",
        ended_at="2026-09-21T14:30:00.000Z",
        total_duration_s=0.0,
        provider_state="No Answer",
        provider_outcome="no-answer",
        outcome="unanswered",
    ),
    expected(  # inbound, without a campaign
        5,
        "conversation_0002",
        "0e0c1183a434840f",
        "2026-09-21T14:22:05.000Z",
        direction="inbound",
        from_number="+15551230002",
        to_number="+15551230101",
        external=contact("+15551230002"),
        started_at="2026-09-21T14:20:00.000Z",
        ended_at="2026-09-21T14:22:05.000Z",
        total_duration_s=125.0,
        provider_state="completed",
        provider_outcome="completed",
        outcome="answered",
        campaign_id=None,
    ),
    expected(
        6,
        "conversation_0001",
        "9834bf2e77dac966",
        "2026-09-21T14:13:23.000Z",
        to_number="+15551230001",
        external=contact("+15551230001"),
        started_at="2026-09-21T14:13:20.000Z",
        ended_at="2026-09-21T14:13:23.000Z",
        total_duration_s=3.0,
        provider_state="completed",
        provider_outcome="completed",
        outcome="answered",
    ),
]


@pytest.mark.parametrize(("number", "whole", "data"), EXPECTED_CALLS)
async def test_a_record_is_this_event(
    number: int, whole: dict[str, Any], data: dict[str, Any]
) -> None:
    event = await call(LOGGED[number])
    assert written(event) == (whole, data, LOGGED[number])


async def test_two_pages_are_the_same_seven_records() -> None:
    pages = [sample("call-logs-page-1-of-2"), sample("call-logs-page-2-of-2")]
    wire = Wire(lambda request: json_answer(pages[int(request.url.params["page"]) - 1]))
    assume = Assumptions(time_unit="ms", page_limit=4)
    records = DialgoodRecords("bots", "US", api_on(wire, page_limit=4), assume, lambda: READ_MS)
    events = await all_of(records.calls_of(AGENT, BASE_MS, READ_MS, "backfill"))
    assert [event.id for event in events] == [event.id for event in await calls(*LOGGED)]
    assert {event.via for event in events} == {"backfill"}
    assert [query["page"] for query in wire.queries] == ["1", "2"]


async def test_only_words_that_nobody_has_seen_are_surprises() -> None:
    events = await calls(*LOGGED)
    assert [event.surprises for event in events] == [
        (),
        (),
        (("status", "machine-detected"),),
        (),
        (),
        (),
        (),
    ]


@pytest.mark.parametrize(
    ("word", "direction", "outcome", "normalized"),
    [
        ("completed", "inbound", "answered", "completed"),
        ("COMPLETED", "outbound", "answered", "completed"),
        ("Success", "outbound", "answered", "completed"),
        ("no-answer", "inbound", "missed", "no-answer"),
        ("no-answer", "outbound", "unanswered", "no-answer"),
        ("NO ANSWER", "inbound", "missed", "no-answer"),
        ("unanswered", "outbound", "unanswered", "no-answer"),
        ("unanswered", "web", "unknown", "no-answer"),
        ("busy", "outbound", "busy", "failed"),
        ("Failed", "outbound", "failed", "failed"),
        ("in progress", "outbound", None, "failed"),
        ("Ringing", "inbound", None, "failed"),
        ("queued", "inbound", None, "failed"),
        ("voicemail", "inbound", "unknown", "failed"),
        ("", "inbound", None, None),
        (None, "inbound", None, None),
        (7, "inbound", None, None),
    ],
)
async def test_a_status_is_this_outcome(
    word: object, direction: str, outcome: str | None, normalized: str | None
) -> None:
    event = await call(changed(COMPLETED, callStatus=word, direction=direction))
    assert event.data["outcome"] == outcome
    assert event.data["provider_outcome"] == normalized
    assert event.data["provider_state"] == (word if isinstance(word, str) and word else None)
    # What still runs has no end, and no length.
    for key in ("ended_at", "total_duration_s"):
        assert (event.data[key] is None) == (outcome is None)


async def test_words_of_the_settings_are_no_surprise() -> None:
    settings = {"outcomes": {"Machine-Detected": "voicemail"}, "running": ("dialling",)}
    event = await call(changed(COMPLETED, callStatus="machine-detected"), **settings)
    assert event.data["outcome"] == "voicemail"
    assert event.surprises == ()
    event = await call(changed(COMPLETED, callStatus="DIALLING"), **settings)
    assert event.data["outcome"] is None
    event = await call(changed(COMPLETED, callStatus="ringing"), **settings)
    assert event.data["outcome"] == "unknown"


async def test_a_row_made_at_the_end_tells_no_end() -> None:
    event = await call(COMPLETED, created_at="row")
    assert event.data["started_at"] == "2026-09-21T14:13:20.000Z"
    assert event.data["ended_at"] is None
    assert event.data["total_duration_s"] == 3.0
    assert written(event)[0]["time"] == "2026-09-21T14:13:20.000Z"


async def test_a_record_that_has_changed_is_another_fact_about_the_same_call() -> None:
    running = await call(changed(COMPLETED, callStatus="in-progress", callDuration=0))
    over = await call(COMPLETED)
    assert running.id != over.id
    assert (running.key, running.subject) == (over.key, over.subject)


async def test_a_record_without_an_id_stays_itself_while_it_changes() -> None:
    nameless = without(COMPLETED, "conversationId")
    first = await call(changed(nameless, callStatus="in-progress"))
    second = await call({**nameless, "campaignId": "campaign_0002"})
    other = await call(changed(nameless, to="+15551230009"))
    assert first.subject == second.subject != other.subject
    absents: Sequence[object] = (None, "", 0, {}, [])
    for absent in absents:
        assert (await call({**nameless, "conversationId": absent})).subject == first.subject


async def test_a_record_of_another_agent_is_kept() -> None:
    event = await call({**COMPLETED, "botId": "agent_0009"})
    assert event.data["internal"]["id"] == "agent_0009"
    assert event.surprises == (("agent", "botId"),)


async def test_numbers_are_read_by_the_region() -> None:
    event = await call(changed(COMPLETED, to="(555) 123-0001", **{"from": "anonymous"}))
    assert event.data["to_number"] == "+15551230001"
    assert event.data["external"]["number_raw"] == "(555) 123-0001"
    assert event.data["from_number"] is None
    assert event.data["internal"]["withheld"]
    event = await call(changed(COMPLETED, to="(555) 123-0001"), region=None)
    assert event.data["to_number"] == "(555) 123-0001"


async def test_numbers_of_a_call_without_direction_are_nobodys() -> None:
    event = await call({**COMPLETED, "data": without(COMPLETED["data"], "direction")})
    assert event.data["direction"] == "unknown"
    assert event.data["from_number"] == "+15551230101"
    assert event.data["to_number"] == "+15551230001"
    assert event.data["internal"] == BOT
    assert event.data["external"] == contact(None)
    assert event.surprises == ()
    event = await call(changed(COMPLETED, direction="sideways"))
    assert event.data["direction"] == "unknown"
    assert event.surprises == (("direction", "sideways"),)


@pytest.mark.parametrize(
    ("text", "started_at"),
    [
        ("2026-09-21T14:13:20Z", "2026-09-21T14:13:20.000Z"),
        ("2026-09-21T14:13:20.1239Z", "2026-09-21T14:13:20.123Z"),
        ("2026-09-22T00:13:20.000+10:00", "2026-09-21T14:13:20.000Z"),
        ("2026-09-21T14:13:20.000", "2026-09-21T14:13:20.000Z"),
        (1_790_000_000_000, "2026-09-21T14:13:20.000Z"),
        ("2026-09-21", None),
        ("yesterday", None),
        ("9999-12-31T23:59:59.999-10:00", None),
        ("1969-12-31T23:59:59Z", None),
        (-1, None),
        (True, None),
        (None, None),
    ],
)
async def test_an_instant_is_read_as_utc(text: object, started_at: str | None) -> None:
    event = await call({**COMPLETED, "created_at": text})
    assert event.data["started_at"] == started_at
    if started_at is None:
        assert written(event)[0]["time"] == READ


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [(3, 3.0), (3.0004, 3.0), ("12.5", 12.5), (0, 0.0), (-1, None), (1e300, None), ("x", None)],
)
async def test_a_duration_is_seconds(duration: object, seconds: float | None) -> None:
    event = await call(changed(COMPLETED, callDuration=duration))
    assert event.data["total_duration_s"] == seconds
    assert (event.data["ended_at"] is None) == (seconds is None)
    assert (event.surprises == (("type", "callDuration"),)) == (seconds is None)


@pytest.mark.parametrize(
    "item",
    [
        without(COMPLETED, "botId"),
        {**COMPLETED, "botId": ["agent_0001"]},
        {**COMPLETED, "conversationId": 1.5},
        {**COMPLETED, "conversationId": ["conversation_0001"]},
        {**COMPLETED, "conversationId": "x" * 257},
        without(COMPLETED, "conversationId", "created_at"),
        {**without(COMPLETED, "conversationId"), "created_at": "soon"},
        {},
        [],
        "conversation_0001",
        7,
        None,
    ],
)
async def test_what_cannot_be_told_apart_is_a_reject(item: object) -> None:
    before, event, after = await calls(LOGGED[4], item, LOGGED[5])
    whole, data, _ = written(event)
    assert whole["type"] == "dialstream.reject.unexpected_shape"
    assert data["reason"] == "unexpected_shape"
    assert data["detail"]
    assert json.loads(base64.b64decode(data["body_base64"])) == item
    assert [before.type, after.type] == ["dialstream.call.recorded"] * 2


async def test_data_of_another_type_leaves_the_call() -> None:
    others: Sequence[object] = (None, [], "completed", 7)
    for data in others:
        event = await call({**COMPLETED, "data": data})
        assert event.data["call_id"] == "conversation_0001"
        assert event.data["outcome"] is None
        written(event)


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["completed", "inbound", "+15551230001", "2026-09-21T14:13:20Z", "x" * 300]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def spoiled(draw: st.DrawFn, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A sample with anything in the place of some of its values, or without them."""
    item: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 3))):
        holders = [item, *(inner for inner in item.values() if isinstance(inner, dict))]
        holder = draw(st.sampled_from(holders))
        key = draw(st.sampled_from([*sorted(holder), "more"]))
        if draw(st.booleans()):
            holder[key] = draw(ANYTHING)
        else:
            holder.pop(key, None)
    return item


def readable(events: Sequence[Event], subject: str) -> None:
    (event,) = events
    whole, data, _ = written(event)
    assert event.subject_kind in (subject, "reject")
    assert event.key.startswith("bots")
    assert whole["id"].count(":") >= 3
    if event.subject_kind == "reject":
        assert data["reason"] in ("unexpected_shape", "not_json")
        assert data["detail"]


@given(spoiled(LOGGED))
async def test_any_record_is_an_event_or_a_reject(item: dict[str, Any]) -> None:
    readable(await calls(item), "call")
    again = await calls(item)
    assert [event.id for event in again] == [event.id for event in await calls(item)]


@given(spoiled(AGENTS))
async def test_any_agent_is_an_event_or_a_reject(item: dict[str, Any]) -> None:
    readable(await listed(item), "directory")


@given(spoiled(VERSIONS))
async def test_any_version_is_an_event_or_a_reject(item: dict[str, Any]) -> None:
    readable(await versions(item), "change")


@given(ANYTHING, ANYTHING, ANYTHING)
async def test_any_answer_is_a_page_or_an_error(rows: Any, pages: Any, total: Any) -> None:
    body = json.dumps({"data": rows, "totalPages": pages, "totalRecords": total}).encode()
    requests: list[httpx.Request] = []

    def respond(request: httpx.Request) -> Answer:
        requests.append(request)
        return 200, body

    reason = ""
    try:
        await all_of(records_on(respond, time_unit="ms").calls_of(AGENT, 1, 2, "poll"))
    except ApiError as error:
        reason = error.reason
    assert reason in ("", "unexpected", "cursor_loop")
    assert (reason == "unexpected") == (not isinstance(rows, list))
    assert len(requests) < 110


@given(st.binary(max_size=50) | st.integers(0, 1200).map(lambda at: PAGE[:at]))
async def test_what_is_no_answer_is_an_error(body: bytes) -> None:
    records = records_on(lambda _: (200, body), time_unit="ms")
    for pages in (
        records.calls_of(AGENT, 1, 2, "poll"),
        records.agents("poll"),
        records.versions_of(AGENT, "poll"),
    ):
        with pytest.raises(ApiError) as raised:
            await all_of(pages)
        assert raised.value.reason == "unexpected"


# --- agents -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "digest", "name", "owner", "numbers"),
    [
        (0, "fa9f761f68b26f7f", "Support Agent", "dialgood_user_0001", ["+15551230101"]),
        (1, "44e4bd9d6b46ffc4", "Shared Agent", "dialgood_user_0002", ["+15551230102"]),
    ],
)
async def test_an_agent_is_this_event(
    number: int, digest: str, name: str, owner: str, numbers: list[str]
) -> None:
    events = await listed(*AGENTS)
    ident = AGENTS[number]["agentId"]
    assert written(events[number]) == (
        envelope(
            f"dialgood:bots:directory:agent:{ident}:{digest}:{MINUTE}",
            "dialstream.directory.listed",
            f"directory/agent/{ident}",
            f"bots/agent/{ident}",
        ),
        {
            "kind": "agent",
            "id": ident,
            "name": name,
            "email": None,
            "numbers": numbers,
            "owner_id": owner,
        },
        AGENTS[number],
    )
    assert events[number].surprises == ()


async def test_only_what_means_something_changes_an_agents_digest() -> None:
    agent = AGENTS[0]

    async def digest_of(item: dict[str, Any]) -> str:
        (event,) = await listed(item)
        return event.id.split(":")[5]

    usual = await digest_of(agent)
    assert await digest_of({**agent, "updated_at": "2026-09-21T08:00:00.000Z"}) == usual
    assert await digest_of({**agent, "__v": 7}) == usual
    # An older server does not say that it is an own one.
    assert await digest_of(without(agent, "owner", "updated_at")) == usual
    changes: Sequence[dict[str, object]] = (
        {"agentName": "Sales Agent"},
        {"phoneNumbers": []},
        {"owner": False},
        {"userId": "dialgood_user_0009"},
        {"settings": {"language": "de"}},
    )
    for change in changes:
        assert await digest_of({**agent, **change}) != usual


async def test_numbers_of_agents_are_read_by_the_region() -> None:
    numbers = ["(555) 123-0101", "+15551230101", "anonymous", "", {"number": "+15551230102"}]
    (event,) = await listed({**AGENTS[0], "phoneNumbers": numbers})
    assert event.data["numbers"] == ["+15551230101"]
    assert event.surprises == (("type", "phoneNumbers"),)


@pytest.mark.parametrize("agent_id", [None, "", 0, [], {}, True, 1.5, "..", "a/b", "x" * 257])
async def test_an_agent_that_cannot_be_asked_for_is_a_reject(agent_id: object) -> None:
    first, second = await listed({**AGENTS[0], "agentId": agent_id}, AGENTS[1])
    assert first.type == "dialstream.reject.unexpected_shape"
    assert second.type == "dialstream.directory.listed"


# --- versions -----------------------------------------------------------------------------------


async def test_a_version_is_this_event() -> None:
    first, second = await versions(*VERSIONS)
    # date -u -d @1789990000: 2026-09-21T11:26:40Z
    assert written(first) == (
        envelope(
            "dialgood:bots:change:agent_0001:version_0002",
            "dialstream.change.versioned",
            "change/agent_0001",
            "bots",
            "2026-09-21T11:26:40.000Z",
        ),
        {
            "action": "versioned",
            "note": "Greeting changed",
            "target": BOT,
            "changed_by": {
                **NOBODY,
                "kind": "user",
                "id": "dialgood_user_0001",
                "name": "Partner One",
            },
            "details": {"version_number": 2},
        },
        VERSIONS[0],
    )
    assert second.id == "dialgood:bots:change:agent_0001:version_0001"
    assert first.surprises == second.surprises == ()


async def test_a_version_may_say_what_has_changed_and_little_else() -> None:
    (event,) = await versions({"version_id": "v:1", "updates": {"voice": "x"}})
    assert event.id == "dialgood:bots:change:agent_0001:v%3A1"
    assert event.data["details"] == {"version_number": None, "updates": {"voice": "x"}}
    assert event.data["changed_by"] == NOBODY
    assert written(event)[0]["time"] == READ
    (event,) = await versions({**VERSIONS[0], "agent_id": "agent_0009"})
    assert event.surprises == (("agent", "agent_id"),)
    assert event.data["target"]["id"] == "agent_0001"
    (event,) = await versions(without(VERSIONS[0], "version_id"))
    assert event.type == "dialstream.reject.unexpected_shape"


# --- the unit of time ---------------------------------------------------------------------------


async def ids_of(records: DialgoodRecords, from_ms: int, to_ms: int) -> list[str]:
    events = await all_of(records.calls_of(AGENT, from_ms, to_ms, "poll"))
    return [event.data["call_id"] for event in events]


def with_wire(
    server: Callable[[httpx.Request], Answer], **assume: Any
) -> tuple[DialgoodRecords, Wire]:
    wire = Wire(server)
    api = api_on(wire, direct=True, **assume)
    return DialgoodRecords("bots", None, api, Assumptions(**assume), lambda: READ_MS), wire


async def test_milliseconds_are_believed_once_there_is_a_call() -> None:
    records, wire = with_wire(Logs([row(1, BASE_MS + 5)]))
    with structlog.testing.capture_logs() as lines:
        assert await ids_of(records, BASE_MS, BASE_MS + HOUR_MS) == ["conversation_0001"]
        assert await ids_of(records, BASE_MS + HOUR_MS, BASE_MS + 2 * HOUR_MS) == []
    assert [query["from"] for query in wire.queries] == ["1790000000000", "1790003600000"]
    assert lines == []


async def test_seconds_are_found_out_once_and_told_once() -> None:
    server = Logs([row(1, BASE_MS + 5_000)], unit="s")
    records, wire = with_wire(server)
    with structlog.testing.capture_logs() as lines:
        assert await ids_of(records, BASE_MS, BASE_MS + HOUR_MS) == ["conversation_0001"]
        assert await ids_of(records, BASE_MS, BASE_MS + HOUR_MS) == ["conversation_0001"]
        # It outlives the records: a poller opens them anew after every failure.
        later, _ = with_wire(server)
        assert await ids_of(later, BASE_MS, BASE_MS + HOUR_MS) == ["conversation_0001"]
    assert [query["from"] for query in wire.queries] == [
        "1790000000000",
        "1790000000",
        "1790000000",
    ]
    assert lines == [
        {"event": "time_unit_found", "log_level": "info", "connection": "bots", "unit": "s"}
    ]


@pytest.mark.parametrize("unit", ["ms", "s"])
async def test_an_account_without_calls_is_not_taken_for_either(unit: str) -> None:
    server = Logs(unit=unit)
    records, wire = with_wire(server)
    for hour in range(5):
        assert await ids_of(records, BASE_MS + hour * HOUR_MS, BASE_MS + (hour + 1) * HOUR_MS) == []
    assert len(wire.asked) == 10  # at worst twice as many
    server.rows = [row(1, BASE_MS + 6 * HOUR_MS)]
    found = await ids_of(records, BASE_MS + 5 * HOUR_MS, BASE_MS + 7 * HOUR_MS)
    assert found == ["conversation_0001"]
    wire.asked.clear()
    assert await ids_of(records, BASE_MS, BASE_MS + HOUR_MS) == []
    assert len(wire.asked) == 1


async def test_calls_of_1970_prove_nothing() -> None:
    """In milliseconds, a window in seconds is some minutes of January 1970."""

    def respond(request: httpx.Request) -> Answer:
        if int(request.url.params["from"]) < 10**11:
            old = {**row(1, BASE_MS), "created_at": "1970-01-21T17:13:20.500Z"}
            return json_answer({"data": [old], "totalPages": 1, "totalRecords": 1})
        return json_answer({"data": [], "totalPages": 0, "totalRecords": 0})

    records, wire = with_wire(respond)
    for _ in range(2):
        assert await ids_of(records, BASE_MS, BASE_MS + HOUR_MS) == []
    assert [len(query["from"]) for query in wire.queries] == [13, 10, 13, 10]


@pytest.mark.parametrize(
    ("unit", "bounds"),
    [("ms", ("1790000000001", "1790000001999")), ("s", ("1790000000", "1790000002"))],
)
async def test_a_unit_that_is_set_is_not_doubted(unit: str, bounds: tuple[str, str]) -> None:
    records, wire = with_wire(Logs(unit=unit), time_unit=unit)
    assert await ids_of(records, BASE_MS + 1, BASE_MS + 1_999) == []
    assert [(query["from"], query["to"]) for query in wire.queries] == [bounds]


@pytest.mark.parametrize("unit", ["ms", "s"])
async def test_nothing_is_lost_at_the_edges_of_windows(unit: str) -> None:
    at = [0, 1, 999, 1000, 1001, 1500, 2000, 2999, 3000]
    server = Logs([row(number, BASE_MS + ms) for number, ms in enumerate(at)], unit=unit)
    records, _ = with_wire(server, time_unit=unit)
    edges = [0, 1000, 1500, 2999, 3001]
    for edge, next_ in pairwise(edges):
        found = await ids_of(records, BASE_MS + edge, BASE_MS + next_)
        wanted = {f"conversation_{n:04}" for n, ms in enumerate(at) if edge <= ms < next_}
        assert wanted <= set(found)


async def test_before_1970_there_is_nothing_to_ask_for() -> None:
    records, wire = with_wire(Logs(), time_unit="ms")
    await ids_of(records, -5, BASE_MS)
    assert wire.queries[0]["from"] == "0"


# --- all agents ---------------------------------------------------------------------------------


def account(gone: Mapping[str, int] | None = None) -> Callable[[httpx.Request], Answer]:
    """Two agents with a call and a version each; ``gone``: agents → what is answered of them."""
    agents = Listed("agents", AGENTS)
    found = [row(1, BASE_MS, "agent_0001"), row(2, BASE_MS, "agent_0002")]

    def respond(request: httpx.Request) -> Answer:
        parts = request.url.path.split("/")
        if len(parts) == 4:
            return agents(request)
        if parts[4] in (gone or {}):
            return (gone or {})[parts[4]], (SAMPLES / "error-404.json").read_bytes()
        if parts[5] == "versions":
            version = {**VERSIONS[0], "agent_id": parts[4]}
            return json_answer({"versions": [version], "totalCount": 1, "hasMore": False})
        return Logs(found)(request)

    return respond


async def test_calls_are_those_of_all_agents() -> None:
    events = await all_of(records_on(account()).calls(BASE_MS, BASE_MS + HOUR_MS, "backfill"))
    assert [event.data["call_id"] for event in events] == ["conversation_0001", "conversation_0002"]
    assert {event.via for event in events} == {"backfill"}


async def test_also_is_the_directory_and_the_versions_of_all() -> None:
    assert PROVIDER.also == ("directory", "versions")
    records = records_on(account())
    events = await all_of(records.also("directory", [], "poll"))
    assert [event.subject for event in events] == [
        "directory/agent/agent_0001",
        "directory/agent/agent_0002",
    ]
    events = await all_of(records.also("versions", [], "poll"))
    assert [event.id for event in events] == [
        "dialgood:bots:change:agent_0001:version_0002",
        "dialgood:bots:change:agent_0002:version_0002",
    ]


async def test_an_agent_that_has_gone_is_left_out() -> None:
    records = records_on(account({"agent_0001": 404}))
    with structlog.testing.capture_logs() as lines:
        events = await all_of(records.calls(BASE_MS, BASE_MS + HOUR_MS, "poll"))
        events += await all_of(records.also("versions", [], "poll"))
    assert [event.subject for event in events] == ["call/conversation_0002", "change/agent_0002"]
    gone = {"event": "agent_gone", "connection": "bots", "reason": "not_found"}
    assert lines == [{**gone, "agent": "…t_0001", "log_level": "info"}] * 2


async def test_asked_for_alone_it_is_not_found() -> None:
    records = records_on(account({"agent_0001": 404}))
    for pages in (
        records.calls_of(AGENT, BASE_MS, BASE_MS + HOUR_MS, "poll"),
        records.versions_of(AGENT, "poll"),
    ):
        with pytest.raises(ApiError) as raised:
            await all_of(pages)
        assert raised.value.reason == "not_found"


# --- over a socket ------------------------------------------------------------------------------


def connection(base_url: str, **more: Any) -> Connection:
    return Connection.model_validate(
        {
            "provider": "dialgood",
            "api_key": KEY,
            "base_url": base_url,
            "poll": {"requests_per_s": 20.0},
            **more,
        }
    )


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "unauthorized"), (403, "forbidden"), (400, "refused")]
)
async def test_a_refusal_says_what_to_do_and_not_the_key(status: int, reason: str) -> None:
    body = json.dumps({"error": f"no: {KEY}."}).encode()
    async with (
        scripted(answer(status, body)) as server,
        open_records("bots", connection(server.url)) as records,
    ):
        with structlog.testing.capture_logs() as lines, pytest.raises(ApiError) as raised:
            await all_of(records.calls(BASE_MS, BASE_MS + HOUR_MS, "poll"))
        said = repr(records)
    assert raised.value.reason == reason
    assert raised.value.said.startswith("no: ")
    if status == 403:
        assert "partner access" in str(raised.value)
        assert "connections.bots" in str(raised.value)
    assert {asked.headers["api_token"] for asked in server.asked} == {KEY}
    assert not any("authorization" in asked.headers for asked in server.asked)
    for text in (str(raised.value), repr(raised.value), raised.value.said, str(lines), said):
        assert KEY not in text
    assert not any(KEY in asked.target for asked in server.asked)


@pytest.mark.parametrize(
    "body", [b"", b"<html>no</html>", b'{"error": 7}', b'{"message": "no"}', b"[]", b'{"error":']
)
async def test_a_refusal_in_other_words_says_nothing(body: bytes) -> None:
    async with (
        scripted(answer(401, body)) as server,
        open_records("bots", connection(server.url)) as records,
    ):
        with pytest.raises(ApiError) as raised:
            await all_of(records.agents("poll"))
    assert (raised.value.reason, raised.value.said) == ("unauthorized", "")


async def test_pages_of_a_real_server() -> None:
    agents = good(sample("agents-page"))
    none = good({"data": [], "totalPages": 0, "totalRecords": 0})
    async with (
        scripted(agents, answer(200, PAGE), none) as server,
        open_records("bots", connection(server.url, region="US")) as records,
    ):
        events = await all_of(records.calls(BASE_MS, READ_MS, "poll"))
    assert [event.data["call_id"] for event in events] == [
        whole["subject"].removeprefix("call/") for _, whole, _ in EXPECTED_CALLS
    ]
    assert [asked.path for asked in server.asked] == [
        "/partner/v1/agents",
        "/partner/v1/agents/agent_0001/call-logs",
        "/partner/v1/agents/agent_0002/call-logs",
    ]


async def test_without_a_key_nothing_is_opened() -> None:
    keyless = Connection.model_validate({"provider": "dialgood"})
    with pytest.raises(ConfigError, match="api_key"):
        async with open_records("bots", keyless):
            pass
