"""Reading back from a simulated Dialpad, over HTTP."""

from collections.abc import AsyncIterator

import httpx
import orjson
import pytest

from ingest.api import ApiError
from ingest.providers.dialpad.records import DialpadRecords, open_records
from ingest.settings import Connection
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from schemas.event import Event
from schemas.times import now_ms
from tests.ingest.providers.dialpad.test_records import written

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
async def dialpad() -> AsyncIterator[SimulatedDialpad]:
    """A company with some minutes behind it, in which nothing happens any more."""
    async with simulated_dialpad(days=0.01, pace=None, page_size=20) as simulated:
        yield simulated


@pytest.fixture
async def records(dialpad: SimulatedDialpad) -> AsyncIterator[DialpadRecords]:
    connection = Connection.model_validate(
        {
            "provider": "dialpad",
            "api_key": dialpad.api_key,
            "base_url": dialpad.base_url,
            "poll": {"requests_per_s": 20},
        }
    )
    async with open_records("simulated", connection) as opened:
        yield opened


async def listed(dialpad: SimulatedDialpad) -> list[object]:
    """The list of calls as another client walks it."""
    items: list[object] = []
    cursor: str | None = None
    async with httpx.AsyncClient(
        base_url=dialpad.base_url, headers={"authorization": f"Bearer {dialpad.api_key}"}
    ) as http:
        while True:
            params = {} if cursor is None else {"cursor": cursor}
            answer = await http.get("/api/v2/call", params=params)
            if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
                continue
            page = answer.raise_for_status().json()
            items += page.get("items") or []
            cursor = page.get("cursor")
            if cursor is None:
                return items


async def test_every_listed_call_is_an_event_with_all_that_the_list_says(
    dialpad: SimulatedDialpad, records: DialpadRecords
) -> None:
    now = now_ms()
    pages = [page async for page in records.calls(now - 40 * DAY_MS, now, "backfill")]
    assert len(pages) > 3
    events = [event for page in pages for event in page]
    assert {event.type for event in events} == {"dialstream.call.recorded"}
    assert {event.surprises for event in events} == {()}
    assert [orjson.loads(event.raw or b"") for event in events] == await listed(dialpad)
    assert len({event.id for event in events}) == len({event.key for event in events})
    for event in events:
        _, data, _ = written(event)
        assert data["outcome"] is not None
        assert data["ended_at"] is not None


async def test_what_was_read_is_known_again(
    dialpad: SimulatedDialpad, records: DialpadRecords
) -> None:
    now = now_ms()

    async def read() -> list[Event]:
        return [event async for page in records.calls(now - DAY_MS, now, "poll") for event in page]

    assert [event.id for event in await read()] == [event.id for event in await read()]


async def test_a_window_holds_what_began_in_it(
    dialpad: SimulatedDialpad, records: DialpadRecords
) -> None:
    now = now_ms()
    events = [e async for page in records.calls(now - DAY_MS, now, "poll") for e in page]
    started = sorted(int(orjson.loads(event.raw or b"")["date_started"]) for event in events)
    middle = started[len(started) // 2]
    early = [e.id async for page in records.calls(now - DAY_MS, middle, "poll") for e in page]
    late = [e.id async for page in records.calls(middle, now, "poll") for e in page]
    assert early
    assert late
    assert {*early, *late} == {event.id for event in events}


async def test_a_key_without_the_scope_is_told_so(
    dialpad: SimulatedDialpad, records: DialpadRecords
) -> None:
    dialpad.faults.missing_scopes = ("calls:list",)
    with pytest.raises(ApiError) as caught:
        await anext(records.calls(now_ms() - DAY_MS, now_ms(), "poll"))
    assert caught.value.reason == "forbidden"
    assert "calls:list" in str(caught.value)


@pytest.mark.parametrize("what", ["contacts", "consents", "directory", "duty_status"])
async def test_lists_are_read_to_their_end(records: DialpadRecords, what: str) -> None:
    events = [event async for page in records.also(what, (), "poll") for event in page]
    assert events
    for event in events:
        assert event.subject_kind != "reject"
        assert event.surprises == ()
        written(event)


async def test_transcripts_and_recaps_of_listed_calls(records: DialpadRecords) -> None:
    now = now_ms()
    events = [e async for page in records.calls(now - DAY_MS, now, "poll") for e in page]
    ids = [event.data["call_id"] for event in events if event.data["recordings"]][-10:]
    transcripts = [e async for page in records.also("transcripts", ids, "poll") for e in page]
    recaps = [e async for page in records.also("recaps", ids, "poll") for e in page]
    assert {event.type for event in transcripts} == {"dialstream.call.transcript_ready"}
    assert {event.type for event in recaps} == {"dialstream.call.recap_ready"}
    for event in (*transcripts, *recaps):
        assert event.data["call_id"] in ids
        assert event.surprises == ()
        written(event)
