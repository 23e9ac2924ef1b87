"""Everything that a simulated Dialgood has said is read back; its secrets are not."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from ingest.api import ApiError
from ingest.providers.dialgood.records import DialgoodRecords, open_records
from ingest.settings import Connection
from ingest.simulator.dialgood_server import SimulatedDialgood, simulated_dialgood
from ingest.simulator.faults import Faults
from schemas.event import Event

START_MS = 1_790_000_000_000
HOUR_MS = 3_600_000


def connection(dialgood: SimulatedDialgood, **assume: Any) -> Connection:
    settings = Connection.model_validate(
        {
            "provider": "dialgood",
            "api_key": dialgood.api_key,
            "base_url": dialgood.base_url,
            "assume": assume,
        }
    )
    # Faster than anybody may set it.
    poll = settings.poll.model_copy(update={"requests_per_s": 1e6})
    return settings.model_copy(update={"poll": poll})


@asynccontextmanager
async def reading(
    assume: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[DialgoodRecords, SimulatedDialgood]]:
    """A simulated account with an hour of past, whose clock stands still."""
    given: dict[str, Any] = {"start_ms": START_MS, "days": 1 / 24, "pace": None}
    async with (
        simulated_dialgood(**(given | options)) as dialgood,
        open_records("bots", connection(dialgood, **(assume or {}))) as records,
    ):
        yield records, dialgood
        assert dialgood.scandals == 0
        assert not any(dialgood.api_key in str(asked) for asked in dialgood.requests)


async def all_of(pages: AsyncIterator[Sequence[Event]]) -> list[Event]:
    return [event async for page in pages for event in page]


def raws(events: Sequence[Event]) -> Counter[str]:
    return Counter(text(orjson.loads(event.raw or b"")) for event in events)


def text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("time_unit", ["ms", "s"])
@pytest.mark.parametrize(
    ("limits", "faults"),
    [
        ({}, Faults()),
        ({"most_a_page": 10}, Faults()),
        ({"most_a_page": 10}, Faults(page_caps=True)),
        ({"most_a_page": 10}, Faults(page_caps=True, totals_lie=1.0)),
        ({}, Faults(records_change=0.5, rows_at_end=0.5)),
    ],
)
async def test_every_record_is_read(time_unit: str, limits: dict[str, Any], faults: Faults) -> None:
    async with reading(time_unit=time_unit, faults=faults, **limits) as (records, dialgood):
        wanted = Counter(map(text, dialgood.records()))
        assert len(wanted) > 100
        events = await all_of(records.calls(START_MS - 30 * HOUR_MS, START_MS + HOUR_MS, "poll"))
    found = raws(events)
    assert wanted.keys() <= found.keys()
    assert {event.type for event in events} == {"dialstream.call.recorded"}
    # One fact has one id, however often it is read.
    assert len({event.id for event in events}) == len(found)
    if not faults.totals_lie:
        assert sum(found.values()) <= 2 * len(wanted)


async def test_a_changed_record_is_the_same_call() -> None:
    faults = Faults(records_change=1.0)
    async with reading(faults=faults) as (records, dialgood):
        window = (START_MS - HOUR_MS, START_MS + HOUR_MS, "poll")
        before = await all_of(records.calls(*window))
        await dialgood.step(24 * 3600)
        after = await all_of(records.calls(*window))
    assert {e.subject for e in before} <= {e.subject for e in after}
    assert not {e.id for e in before} >= {e.id for e in after}


async def test_agents_and_versions_are_read() -> None:
    async with reading(most_a_page=2, assume={"page_limit_fallback": 2}) as (records, dialgood):
        agents = {agent.id: agent for agent in dialgood.agents.all}
        assert len(agents) > 2
        listed = await all_of(records.also("directory", [], "poll"))
        versions = await all_of(records.also("versions", [], "poll"))
    assert {event.data["id"] for event in listed} == agents.keys()
    assert {tuple(event.data["numbers"]) for event in listed} == {
        agent.numbers for agent in agents.values()
    }
    assert {event.type for event in listed} == {"dialstream.directory.listed"}
    assert {event.data["target"]["id"] for event in versions} == agents.keys()
    assert {event.type for event in versions} == {"dialstream.change.versioned"}
    assert [event.surprises for event in listed + versions if event.surprises] == []


async def test_an_agent_that_is_hidden_is_not_found_and_comes_back() -> None:
    async with reading() as (records, dialgood):
        agent_id = dialgood.agents.all[0].id
        dialgood.hide(agent_id)
        with pytest.raises(ApiError) as raised:
            await all_of(records.calls_of(agent_id, START_MS - HOUR_MS, START_MS, "poll"))
        assert raised.value.reason == "not_found"
        dialgood.show(agent_id)
        assert await all_of(records.calls_of(agent_id, START_MS - HOUR_MS, START_MS, "poll"))


async def test_a_key_that_is_refused_says_why() -> None:
    async with reading() as (records, dialgood):
        dialgood.faults.partner_off = True
        with pytest.raises(ApiError) as raised:
            await all_of(records.agents("poll"))
        assert (raised.value.reason, raised.value.status) == ("forbidden", 403)
        assert raised.value.said == "partner access is not enabled for this user"
        dialgood.faults.partner_off = False
        dialgood.faults.key_revoked = True
        with pytest.raises(ApiError) as raised:
            await all_of(records.agents("poll"))
        assert raised.value.reason == "unauthorized"


async def test_web_calls_can_be_left_out() -> None:
    for hidden in (False, True):
        async with reading(assume={"hide_web_calls": hidden}) as (records, _):
            events = await all_of(records.calls(START_MS - HOUR_MS, START_MS + HOUR_MS, "poll"))
        assert ("unknown" in {event.data["direction"] for event in events}) != hidden
