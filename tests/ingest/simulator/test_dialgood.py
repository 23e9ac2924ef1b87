"""The simulated Dialgood as somebody sees it who calls its API.

What is expected is what https://apidocs.dialgood.com/partner-api-2171894m0 says, by hand.
"""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ingest.simulator.clock import Clock
from ingest.simulator.dialgood_server import SimulatedDialgood, simulated_dialgood
from ingest.simulator.dialpad_rest import Rates
from ingest.simulator.dialpad_server import simulated_dialpad
from ingest.simulator.facts import Centre
from ingest.simulator.faults import Faults
from ingest.simulator.world import World

SAMPLES = Path(__file__).parents[2] / "samples" / "dialgood"
START_MS = 1_790_000_000_000
HOUR_MS = 3_600_000


@asynccontextmanager
async def still(**options: Any) -> AsyncIterator[SimulatedDialgood]:
    """One with an hour of past, whose clock is moved by hand."""
    given: dict[str, Any] = {"start_ms": START_MS, "days": 1 / 24, "pace": None, "clock_off_s": 0}
    async with simulated_dialgood(**(given | options)) as dialgood:
        yield dialgood


def client(dialgood: SimulatedDialgood, key: str | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"{dialgood.base_url}/partner/v1",
        headers={"api_token": dialgood.api_key if key is None else key},
        trust_env=False,
    )


async def get(api: httpx.AsyncClient, path: str, *, code: int = 200, **params: Any) -> Any:
    answer = await api.get(path, params=params)
    assert answer.status_code == code, answer.text[:500]
    value = answer.json()
    if code != 200:
        assert value.keys() == {"error"}
        assert isinstance(value["error"], str)
    return value


async def agents(api: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await get(api, "/agents", limit=100))["agents"]
    return found


async def all_logs(api: httpx.AsyncClient, agent_id: str, **params: Any) -> list[dict[str, Any]]:
    """All pages of an agent's records, as many as the first one says."""
    found, page, pages = [], 1, 1
    wanted: dict[str, Any] = {"tz": "UTC", "limit": 50} | params
    while page <= pages:
        answer = await get(api, f"/agents/{agent_id}/call-logs", page=page, **wanted)
        found += answer["data"]
        page, pages = page + 1, answer["totalPages"]
    return found


def ms(record: dict[str, Any]) -> int:
    return round(datetime.fromisoformat(record["created_at"]).timestamp() * 1000)


def text(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_bytes())


# The key


async def test_a_key_is_needed_and_may_be_changed_and_revoked() -> None:
    async with still() as dialgood:
        async with client(dialgood, "wrong") as api:
            await get(api, "/agents", code=401)
        async with httpx.AsyncClient(base_url=f"{dialgood.base_url}/partner/v1") as api:
            await get(api, "/agents", code=401)
            await get(api, "/agents", api_token=dialgood.api_key)
        async with client(dialgood) as api:
            await get(api, "/agents")
            dialgood.faults.key_revoked = True
            await get(api, "/agents", code=401)
            dialgood.faults.key_revoked = False
            dialgood.faults.partner_off = True
            await get(api, "/agents", code=403)
            dialgood.faults.partner_off = False
            dialgood.api_key = "another"
            await get(api, "/agents", code=401)
        async with client(dialgood) as api:
            await get(api, "/agents")
    assert dialgood.answers == {"200": 3, "401": 4, "403": 1}


async def test_requests_are_seen() -> None:
    async with still() as dialgood, client(dialgood) as api:
        await get(api, "/agents", limit=3, skip=1)
        await get(api, "/agents/nobody/call-logs", code=404)
    listing, logs = dialgood.requests
    assert (listing.method, listing.path, listing.params) == (
        "GET",
        "/partner/v1/agents",
        {"limit": "3", "skip": "1"},
    )
    assert (logs.path, logs.status) == ("/partner/v1/agents/nobody/call-logs", 404)
    assert dialgood.api_key not in repr(dialgood.requests)


async def test_a_rate_can_be_set() -> None:
    async with still(requests_per_s=2) as dialgood, client(dialgood) as api:
        answers = [await api.get("/agents") for _ in range(30)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"
    assert "retry-after" not in refused[1].headers
    assert all(answer.json().keys() == {"error"} for answer in refused)


# Agents


async def test_agents_are_listed_by_skip_with_the_shared_ones() -> None:
    async with still(web_agents=60) as dialgood, client(dialgood) as api:
        first = await get(api, "/agents")
        assert first.keys() == {"agents", "totalCount", "limit", "skip", "hasMore"}
        assert [first[key] for key in ("totalCount", "limit", "skip", "hasMore")] == [
            63,
            25,
            0,
            True,
        ]
        second = await get(api, "/agents", skip=25)
        last = await get(api, "/agents", skip=50)
        assert last["hasMore"] is False
        listed = first["agents"] + second["agents"] + last["agents"]
        assert len({agent["agentId"] for agent in listed}) == 63
        shared = [agent for agent in listed if not agent["owner"]]
        (like_own, like_shared) = sample("agents-page")["agents"]
        assert shared
        for agent in listed:
            like = like_own if agent["owner"] else like_shared
            assert agent.keys() == like.keys()
            assert agent["metadata"].keys() == like["metadata"].keys()
            assert await get(api, f"/agents/{agent['agentId']}") == agent
        assert all(agent["rights"] == ["view"] for agent in shared)


async def test_every_centre_has_an_agent_with_its_number() -> None:
    async with still() as dialgood, client(dialgood) as api:
        listed = await agents(api)
        numbers = [number for agent in listed for number in agent["phoneNumbers"]]
        assert numbers == [centre.number for centre in dialgood.world.centres]


async def test_what_is_not_ours_is_not_there() -> None:
    async with still() as dialgood, client(dialgood) as api:
        for path in ("", "/call-logs", "/versions", "/versions/1", "/settings"):
            await get(api, f"/agents/somebody-elses{path}", code=404)
        agent_id = (await agents(api))[0]["agentId"]
        await get(api, f"/agents/{agent_id}/versions/none", code=404)
        await get(api, f"/agents/{agent_id}/nothing", code=404)
        assert (await api.delete(f"/agents/{agent_id}")).status_code == 405


async def test_an_agent_may_go_and_come_back() -> None:
    async with still() as dialgood, client(dialgood) as api:
        first, *rest = await agents(api)
        dialgood.hide(first["agentId"], 600)
        assert await agents(api) == rest
        await get(api, f"/agents/{first['agentId']}/call-logs", code=404)
        await dialgood.step(601)
        assert first["agentId"] in {agent["agentId"] for agent in await agents(api)}
        await all_logs(api, first["agentId"])
        dialgood.hide(first["agentId"])
        await dialgood.step(7200)
        await get(api, f"/agents/{first['agentId']}", code=404)
        dialgood.show(first["agentId"])
        await get(api, f"/agents/{first['agentId']}")


async def test_an_agent_may_be_gone_as_soon_as_it_was_listed() -> None:
    faults = Faults(agents_vanish_s=60)
    async with still(faults=faults) as dialgood, client(dialgood) as api:
        faults.force("agents_vanish")
        first, second, *_ = await agents(api)
        await get(api, f"/agents/{first['agentId']}/call-logs", code=404)
        await get(api, f"/agents/{second['agentId']}/call-logs")
        assert first["agentId"] not in {agent["agentId"] for agent in await agents(api)}
        await dialgood.step(61)
        await get(api, f"/agents/{first['agentId']}/call-logs")


async def test_versions_of_an_agent() -> None:
    async with still() as dialgood, client(dialgood) as api:
        agent = (await agents(api))[0]
        path = f"/agents/{agent['agentId']}/versions"
        page = await get(api, path, limit=100)
        versions = page.pop("versions")
        assert page == {"totalCount": len(versions), "limit": 100, "skip": 0, "hasMore": False}
        numbers = [version["version_number"] for version in versions]
        assert numbers == list(range(len(versions), 0, -1))
        assert len(versions) > 2
        like = sample("versions-page")["versions"][0]
        for version in versions:
            assert version.keys() == like.keys()
            assert version["metadata"].keys() == like["metadata"].keys()
            assert version["agent_id"] == agent["agentId"]
            assert START_MS - HOUR_MS <= version["metadata"]["timestamp"] <= START_MS
        one = await get(api, f"{path}/{versions[0]['version_id']}")
        updates = one["version"].pop("updates")
        assert updates
        assert one == {"version": versions[0]}
        second = await get(api, path, limit=1, skip=1)
        assert (second["versions"], second["hasMore"]) == ([versions[1]], True)
        before = datetime.fromisoformat(agent["updated_at"]).timestamp() * 1000
        assert before == versions[0]["metadata"]["timestamp"]
        await dialgood.step(3600)
        assert (await get(api, path))["totalCount"] > len(versions)


async def test_who_asks_for_credentials_makes_a_scandal() -> None:
    async with still() as dialgood, client(dialgood) as api:
        agent_id = (await agents(api))[0]["agentId"]
        assert dialgood.scandals == 0
        answer = await get(api, f"/agents/{agent_id}/credentials")
        assert "decrypted" in json.dumps(answer)
        await get(api, "/agents/nobody/credentials", code=404)
        assert (await api.patch(f"/agents/{agent_id}/credentials")).status_code == 200
        assert dialgood.scandals == 3


# Records


async def test_the_pages_of_all_agents_have_every_record_once() -> None:
    async with still() as dialgood, client(dialgood) as api:
        for agent in await agents(api):
            found = await all_logs(api, agent["agentId"])
            expected = dialgood.records(agent_id=agent["agentId"])
            assert len(expected) > 40
            assert Counter(map(text, found)) == Counter(map(text, expected))
            times = [ms(record) for record in found]
            assert times == sorted(times, reverse=True)


async def test_records_are_those_of_the_centres_and_of_campaigns() -> None:
    """By the world's own legs, not by the rows."""
    async with still() as dialgood:
        expected = Counter[tuple[str, str, str]]()
        for leg in dialgood.world.legs.values():
            is_over = leg.ended_ms is not None and leg.ended_ms <= START_MS
            is_answered = leg.answered_ms is not None and leg.answered_ms <= START_MS
            if not is_over and not is_answered:
                continue
            if isinstance(leg.host, Centre):
                expected[leg.outsider.number, leg.host.number, "inbound"] += 1
            elif leg.outbound and leg.tag:
                expected[leg.host.number, leg.outsider.number, "outbound"] += 1
        calls = [record["data"] for record in dialgood.records()]
        phone = [call for call in calls if call["direction"] != "web"]
        assert Counter((c["from"], c["to"], c["direction"]) for c in phone) == expected
        assert len(phone) > 500


async def test_records_look_as_published_and_lack_what_may_be_missing() -> None:
    like = sample("call-logs-page")["data"][0]
    async with still() as dialgood:
        records = dialgood.records()
    always = {"botId", "created_at", "data"}
    missing: Counter[str] = Counter()
    for record in records:
        assert always <= record.keys() <= like.keys()
        missing.update(like.keys() - record.keys())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["created_at"])
        ends = {"from", "to"} if record["data"]["direction"] != "web" else set()
        assert record["data"].keys() == {"direction", "callStatus", "callDuration"} | ends
        assert type(record["data"]["callDuration"]) is int
    for name in ("conversationId", "contactId", "campaignId"):
        assert 0 < missing[name] < len(records)
    words = {record["data"]["callStatus"] for record in records}
    assert words == {
        *("completed", "success", "Completed"),
        *("no-answer", "No Answer", "unanswered", "no answer"),
        *("busy", "machine-detected", "in-progress"),
    } - ({"in-progress"} - words)
    named = [record["conversationId"] for record in records if "conversationId" in record]
    assert len(set(named)) == len(named)


async def test_web_calls_have_no_numbers_and_can_be_left_out() -> None:
    async with still() as dialgood, client(dialgood) as api:
        *_, web = await agents(api)
        found = await all_logs(api, web["agentId"])
        assert len(found) > 40
        assert {record["data"]["direction"] for record in found} == {"web"}
        assert await all_logs(api, web["agentId"], hidewebcalls="true") == []
        assert len(await all_logs(api, web["agentId"], hidewebcalls="false")) == len(found)


async def test_a_running_call_is_there_and_ends() -> None:
    async with still(days=0) as dialgood, client(dialgood) as api:
        for _ in range(600):
            await dialgood.step(0.25)
            running = [
                row for row in dialgood.rows() if "in-progress" in text(row.record(row.shown_ms))
            ]
            if running:
                break
        (row, *_) = running
        (record,) = [
            record for record in await all_logs(api, row.agent_id) if ms(record) == row.created_ms
        ]
        assert (record["data"]["callStatus"], record["data"]["callDuration"]) == ("in-progress", 0)
        await dialgood.step(60)
        (after,) = [
            record for record in await all_logs(api, row.agent_id) if ms(record) == row.created_ms
        ]
        assert after["data"]["callStatus"].lower() in {"completed", "success"}
        assert after["created_at"] == record["created_at"]
        assert [text(r) for r in dialgood.contents() if ms(r) == row.created_ms] == [
            text(record),
            text(after),
        ]


async def test_a_record_may_change_for_a_day_and_every_content_is_known() -> None:
    faults = Faults(records_change=0.5)
    async with still(faults=faults, days=0.01) as dialgood:
        early = {text(record) for record in dialgood.contents()}
        first = len(dialgood.rows())
        await dialgood.step(60)
        legs = {row.leg_id for row in dialgood.rows(START_MS)}
        await dialgood.clock.step(25 * 3600)
        at = dialgood.rows()
        changed = [row for row in at if row.leg_id in legs and len(row.states) > 1]
        last_ms = [row.states[-1][0] - row.states[0][0] for row in changed]
        assert max(last_ms) > 12 * HOUR_MS
        assert max(last_ms) < 25 * HOUR_MS
        assert early <= {text(record) for record in dialgood.contents()}
        assert first < len(at)
    assert faults.counts["records_change"] > 100


async def test_a_row_may_be_made_at_the_end() -> None:
    async with still(faults=Faults(rows_at_end=1.0)) as dialgood:
        legs = dialgood.world.legs
        rows = [row for row in dialgood.rows() if not row.web]
        assert all(row.created_ms == row.shown_ms == legs[row.leg_id].ended_ms for row in rows)
        assert rows
    async with still() as dialgood:
        for row in dialgood.rows():
            leg = dialgood.world.legs[row.leg_id]
            if not row.web:
                assert row.created_ms == (leg.answered_ms or leg.started_ms)


async def test_its_clock_is_another() -> None:
    async with still() as right, still(clock_off_s=2.5) as ahead:
        for plain, moved in zip(right.records(), ahead.records(), strict=True):
            assert ms(moved) - ms(plain) == 2500


async def test_a_record_may_be_late() -> None:
    faults = Faults(records_late=1.0, records_late_s=300)
    async with still(faults=faults, days=0.02) as dialgood:
        before = {text(record) for record in dialgood.records(START_MS)}
        await dialgood.step(301)
        after = dialgood.records()
        late = [r for r in after if ms(r) < START_MS and text(r) not in before]
    assert late


# What a list refuses, and what it filters


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"limit": "100"}, 200),
        ({"limit": "101"}, 400),
        ({"limit": "0"}, 400),
        ({"limit": "many"}, 400),
        ({"page": "0"}, 400),
        ({"page": "9999"}, 200),
        ({"from": "yesterday"}, 400),
        ({"to": "2026-09-21T00:00:00Z"}, 400),
        ({"tz": "Mars/Olympus"}, 400),
        ({"tz": "Europe/Berlin"}, 200),
        ({"hidewebcalls": "perhaps"}, 400),
        ({}, 200),
    ],
)
async def test_what_it_refuses(params: dict[str, str], status: int) -> None:
    async with still() as dialgood, client(dialgood) as api:
        agent_id = (await agents(api))[0]["agentId"]
        await get(api, f"/agents/{agent_id}/call-logs", code=status, **params)


async def test_a_page_has_ten_if_nobody_says() -> None:
    async with still() as dialgood, client(dialgood) as api:
        agent_id = (await agents(api))[0]["agentId"]
        total = len(dialgood.records(agent_id=agent_id))
        page = await get(api, f"/agents/{agent_id}/call-logs")
        assert page.keys() == {"data", "totalPages", "totalRecords", "currentPage"}
        assert len(page["data"]) == 10
        assert (page["totalRecords"], page["totalPages"]) == (total, -(-total // 10))
        beyond = await get(api, f"/agents/{agent_id}/call-logs", page=9999)
        assert (beyond["data"], beyond["currentPage"]) == ([], 9999)


async def test_more_on_a_page_than_may_be_can_be_cut_silently() -> None:
    async with still(most_a_page=20) as dialgood, client(dialgood) as api:
        agent_id = dialgood.agents.all[0].id
        await get(api, f"/agents/{agent_id}/call-logs", limit=21, code=400)
        dialgood.faults.page_caps = True
        page = await get(api, f"/agents/{agent_id}/call-logs", limit=100)
        assert len(page["data"]) == 20
        assert page["totalPages"] == -(-page["totalRecords"] // 20)
        assert len(await all_logs(api, agent_id, limit=100)) == page["totalRecords"]


@pytest.mark.parametrize("unit", ["ms", "s"])
async def test_a_window_takes_both_ends_in_and_has_one_unit(unit: Any) -> None:
    size = 1 if unit == "ms" else 1000
    async with still(time_unit=unit) as dialgood, client(dialgood) as api:
        agent_id = dialgood.agents.all[0].id
        records = dialgood.records(agent_id=agent_id)
        times = sorted(ms(record) for record in records)
        first, last = times[100] // size, times[200] // size
        found = await all_logs(api, agent_id, **{"from": first, "to": last})
        expected = [at for at in times if first <= at // size <= last]
        assert sorted(map(ms, found)) == expected
        assert len(expected) >= 101
        # In the other unit there is nothing.
        wrong = (first * 1000, last * 1000) if unit == "s" else (first // 1000, last // 1000)
        assert await all_logs(api, agent_id, **{"from": wrong[0], "to": wrong[1]}) == []


async def test_records_can_be_chosen_by_what_they_hold() -> None:
    async with still() as dialgood, client(dialgood) as api:
        *_, campaign, _ = await agents(api)
        everything = await all_logs(api, campaign["agentId"])
        whole = next(r for r in everything if len(r) == 6)
        for name, value, *place in (
            ("fromnumber", whole["data"]["from"], "data", "from"),
            ("tonumber", whole["data"]["to"], "data", "to"),
            ("status", "completed", "data", "callStatus"),
            ("direction", "outbound", "data", "direction"),
            ("direction", "inbound", "data", "direction"),
            ("campaign", whole["campaignId"], "campaignId"),
            ("conversationid", whole["conversationId"], "conversationId"),
        ):
            found = await all_logs(api, campaign["agentId"], **{name: value})
            expected = [record for record in everything if at(record, place) == value]
            assert found == expected, name


def at(record: Any, place: list[str]) -> Any:
    for key in place:
        record = record.get(key)
    return record


async def test_without_utc_it_is_melbournes_time() -> None:
    async with still() as dialgood, client(dialgood) as api:
        path = f"/agents/{dialgood.agents.all[0].id}/call-logs"
        (there,) = (await get(api, path, limit=1))["data"]
        (here,) = (await get(api, path, limit=1, tz="UTC"))["data"]
        assert ms(there) == ms(here)
        assert there["created_at"].endswith("+10:00")


async def test_equal_times_have_no_order() -> None:
    """The same list twice, and nothing but its order differs."""
    async with still(days=0) as dialgood, client(dialgood) as api:
        agent = dialgood.agents.all[0]
        for _ in range(600):
            await dialgood.step(1)
            if len(dialgood.rows(agent_id=agent.id)) > 20:
                break
        rows = dialgood._rows[agent.id]
        for row in rows:
            object.__setattr__(row, "created_ms", START_MS)
        orders = {tuple(text(r) for r in await all_logs(api, agent.id)) for _ in range(10)}
        assert len(orders) > 1
        assert len({frozenset(order) for order in orders}) == 1


async def test_totals_may_lie_but_no_page_does() -> None:
    async with still() as dialgood, client(dialgood) as api:
        dialgood.faults.totals_lie = 1.0
        agent_id = dialgood.agents.all[0].id
        real = len(dialgood.records(agent_id=agent_id))
        said, found, page = set(), 0, 1
        while True:
            answer = await get(api, f"/agents/{agent_id}/call-logs", limit=50, page=page)
            said.add(answer["totalRecords"])
            if len(answer["data"]) < 50:
                assert answer["totalPages"] >= page
            found += len(answer["data"])
            if not answer["data"]:
                break
            page += 1
        assert found == real
        assert len(said) > 1
        assert (await get(api, "/agents"))["hasMore"] is False


# Weather


@pytest.mark.parametrize(
    ("name", "statuses"), [("limited", {429}), ("broken", {500, 502, 503}), ("html", {200})]
)
async def test_weather(name: str, statuses: set[int]) -> None:
    async with still() as dialgood, client(dialgood) as api:
        dialgood.faults.force(name, 10)
        answers = [await api.get("/agents") for _ in range(11)]
        assert {answer.status_code for answer in answers[:10]} <= statuses
        if name == "html":
            assert answers[0].text.startswith("<!DOCTYPE html>")
        assert answers[10].json()["totalCount"] == 4
        assert dialgood.faults.counts[name] == 10


async def test_an_answer_may_end_in_the_middle_and_the_server_may_go_down() -> None:
    async with still() as dialgood:
        async with client(dialgood) as api:
            dialgood.faults.force("cut")
            with pytest.raises(httpx.TransportError):
                await api.get("/agents")
        async with client(dialgood) as api:
            await get(api, "/agents")
            await dialgood.go_down()
            with pytest.raises(httpx.TransportError):
                await api.get("/agents")
            await dialgood.come_up()
            await get(api, "/agents")


# The same company


async def test_it_sees_the_company_that_the_simulated_dialpad_sees() -> None:
    world = World(7, START_MS - HOUR_MS)
    clock = Clock(START_MS, None)
    fast = Rates(company_per_s=100_000)
    async with (
        simulated_dialpad(world=world, clock=clock, rates=fast) as dialpad,
        simulated_dialgood(world=world, clock=clock, clock_off_s=0) as dialgood,
        client(dialgood) as api,
    ):
        await dialpad.step(60)
        assert dialpad.clock.now_ms == dialgood.clock.now_ms == START_MS + 60_000
        records = [
            record
            for agent in dialgood.agents.all
            if agent.numbers
            for record in await all_logs(api, agent.id)
            if ms(record) > START_MS and record["data"]["callStatus"] != "in-progress"
        ]
        assert records
        async with httpx.AsyncClient(
            base_url=f"{dialpad.base_url}/api/v2",
            headers={"Authorization": f"Bearer {dialpad.api_key}"},
            trust_env=False,
        ) as other:
            calls = (await other.get("/call", params={"started_after": START_MS - HOUR_MS})).json()
            seen = {
                (call["external_number"], call["target"]["phone"], int(clock))
                for call in calls["items"]
                for clock in (call["date_started"], call.get("date_connected"))
                if clock is not None
            }
        for record in records:
            assert (record["data"]["from"], record["data"]["to"], ms(record)) in seen


async def test_who_asks_first_takes_nothing_from_the_others() -> None:
    """Deliveries tell everything, though the story was told for a request to another provider."""
    world, clock = World(7, START_MS), Clock(START_MS, None)
    async with (
        simulated_dialpad(world=world, clock=clock) as dialpad,
        simulated_dialgood(world=world, clock=clock) as dialgood,
    ):
        socket = dialpad.subscribe("http://127.0.0.1:1/")
        assert socket.secret is None
        await clock.step(0.001)
        dialgood.rows(START_MS + 60_000)
        await dialpad.step(60)
        told = {delivery.event.get("call_id") for delivery in dialpad.delivered}
    alone = World(7, START_MS)
    alone.advance(START_MS + 60_000)
    expected = {leg.id for leg in alone.legs.values() if leg.started_ms < START_MS + 59_000}
    assert len(expected) > 30
    assert expected <= told
