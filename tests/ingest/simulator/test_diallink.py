"""The simulated DialLink as somebody sees it who calls its API, and whom it notifies.

What is expected is what https://developers.diallink.com says, or what is assumed where it says
nothing (A-DL-1 to A-DL-7); by hand.
"""

import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from ingest.simulator.clock import Clock
from ingest.simulator.diallink import call_id, contact_id, number_of, recording_id, user_id
from ingest.simulator.diallink_rest import Key
from ingest.simulator.diallink_server import SimulatedDialLink, simulated_diallink
from ingest.simulator.facts import Leg, Member
from ingest.simulator.faults import Faults
from ingest.simulator.world import World
from tests.ingest.simulator.inbox import BREAK_OFF, Inbox, open_inbox

SAMPLES = Path(__file__).parents[2] / "samples" / "diallink"
START_MS = 1_790_000_000_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SECRET = "whsec_aW52ZW50ZWQtZGlhbGxpbmstc2VjcmV0LW5vLTAwMDE="
OTHER_SECRET = "whsec_aW52ZW50ZWQtZGlhbGxpbmstc2VjcmV0LW5vLTAwMDA="
CALLS, CONTACTS = "/phone-system/calls", "/phone-system/contacts"


@asynccontextmanager
async def still(**options: Any) -> AsyncIterator[SimulatedDialLink]:
    """One with an hour of past, whose clock is moved by hand."""
    given: dict[str, Any] = {"start_ms": START_MS, "days": 1 / 24, "pace": None, "clock_off_s": 0}
    async with simulated_diallink(**(given | options)) as diallink:
        yield diallink


def client(diallink: SimulatedDialLink, key: str | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"{diallink.base_url}/v1",
        headers={"X-API-KEY": diallink.api_key if key is None else key},
        trust_env=False,
    )


async def get(api: httpx.AsyncClient, path: str, *, code: int = 200, **params: Any) -> Any:
    answer = await api.get(path, params=params)
    assert answer.status_code == code, answer.text[:500]
    return answer.json()


async def all_pages(api: httpx.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    found, number = [], 1
    wanted: dict[str, Any] = {"pageSize": 100} | params
    while True:
        answer = await get(api, path, pageNumber=number, **wanted)
        found += answer["data"]
        number += 1
        if not answer["paging"]["hasNextPage"]:
            return found


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_bytes())


def texts(items: list[dict[str, Any]]) -> Counter[str]:
    return Counter(json.dumps(item, sort_keys=True) for item in items)


def legs(diallink: SimulatedDialLink, at_ms: int = START_MS) -> list[Leg]:
    """Those that DialLink has, by the world."""
    return [
        leg
        for leg in diallink.world.legs.values()
        if isinstance(leg.host, Member) and leg.started_ms <= at_ms
    ]


# The key


async def test_a_key_is_needed() -> None:
    async with still() as diallink:
        async with httpx.AsyncClient(base_url=f"{diallink.base_url}/v1") as api:
            await get(api, CALLS, code=401)
            bearer = {"Authorization": f"Bearer {diallink.api_key}"}
            assert (await api.get(CALLS, headers=bearer)).status_code == 401
        async with client(diallink, "another") as api:
            await get(api, CALLS, code=401)
        async with client(diallink) as api:
            await get(api, CALLS)
            diallink.faults.key_revoked = True
            await get(api, CALLS, code=401)
            diallink.faults.key_revoked = False
            diallink.key.enabled = False
            await get(api, CALLS, code=401)
    assert diallink.answers == {"200": 1, "401": 5}
    assert re.fullmatch(r"[0-9a-f-]{36}\+[0-9a-f-]{36}", diallink.api_key)


async def test_a_key_expires() -> None:
    async with still(key_expires_ms=START_MS + 10_000) as diallink, client(diallink) as api:
        (shown,) = (await get(api, "/account-hub/api-keys"))["data"]
        assert shown["expiresAt"] == START_MS + 10_000
        await diallink.step(9)
        await get(api, CALLS)
        await diallink.step(1)
        await get(api, CALLS, code=401)
        diallink.key.expires_ms = START_MS + DAY_MS
        await get(api, CALLS)


async def test_keys_are_shown_masked_and_a_new_one_once() -> None:
    async with still() as diallink, client(diallink) as api:
        listed = await get(api, "/account-hub/api-keys")
        (shown,) = listed["data"]
        assert shown.keys() == sample("api-key").keys()
        assert shown["expiresAt"] == START_MS + 365 * DAY_MS
        assert shown["key"][-4:] == diallink.api_key[-4:]
        assert re.fullmatch(r"[X+-]+", shown["key"][:-4])
        answer = await api.post("/account-hub/api-keys", json={"name": "second", "enabled": True})
        assert answer.status_code == 201
        made = answer.json()
        async with client(diallink, made["key"]) as other:
            await get(other, CALLS)
        again = await get(api, f"/account-hub/api-keys/{made['id']}")
        assert again["key"] != made["key"]
        assert {**again, "key": made["key"]} == made
        assert [
            item["name"] for item in await all_pages(api, "/account-hub/api-keys", name="second")
        ] == ["second"]
        await get(api, "/account-hub/api-keys/none", code=404)
        for content in (b"{", b"[]", b'{"name": "x"}', b'{"name": 1, "enabled": true}'):
            answer = await api.post("/account-hub/api-keys", content=content)
            assert answer.status_code == 400


async def test_who_is_no_admin_sees_no_private_calls_of_others() -> None:
    async with still() as diallink, client(diallink) as api:
        everything = await all_pages(api, CALLS, sort="+startedAt")
        me = await get(api, "/phone-system/users/me")
        assert me["admin"] is True
        diallink.faults.not_admin = True
        fewer = await all_pages(api, CALLS, sort="+startedAt")
        assert (await get(api, "/phone-system/users/me"))["admin"] is False
        hidden = [call for call in everything if call not in fewer]
        assert 0 < len(hidden) < len(everything) / 4
        await get(api, f"{CALLS}/{hidden[0]['id']}", code=404)
        member = diallink.world.users[0]
        diallink.keys["weak"] = Key("k", "weak", member, START_MS + DAY_MS)
        own = [call for call in hidden if call["userId"] == user_id(member.id)]
        assert own
        async with client(diallink, "weak") as weak:
            assert (await get(weak, "/phone-system/users/me"))["email"] == member.email
            await get(weak, f"{CALLS}/{own[0]['id']}")
            theirs = await all_pages(weak, CONTACTS, sort="-updatedAt")
        diallink.faults.not_admin = False
        contacts = await all_pages(api, CONTACTS, sort="-updatedAt")
        hidden = [contact for contact in contacts if contact not in theirs]
        assert hidden
        assert not any(contact["shared"] for contact in hidden)


# Objects


async def test_users_are_the_companys_people() -> None:
    async with still() as diallink, client(diallink) as api:
        users = await all_pages(api, "/phone-system/users")
        (like, _) = sample("users-list")["data"]
        assert all(user.keys() == like.keys() for user in users)
        assert all(user["status"].keys() == {"status"} for user in users)
        assert {user["id"] for user in users} == {user_id(m.id) for m in diallink.world.users}
        assert [user["admin"] for user in users].count(True) == 1
        await get(api, "/account-hub/users/me", code=404)


async def test_contacts_are_those_of_the_moment() -> None:
    async with still() as diallink, client(diallink) as api:
        before = await all_pages(api, CONTACTS, sort="-updatedAt")
        like = sample("contact")
        assert all(contact.keys() == like.keys() for contact in before)
        assert all(c["phoneNumbers"][0].keys() == {"type", "id", "phoneNumber"} for c in before)
        known = diallink.world.contacts(START_MS)
        assert {c["id"] for c in before} == {contact_id(ident) for ident in known}
        await diallink.step(120)
        after = await all_pages(api, CONTACTS, sort="-updatedAt")
        ids = [contact["id"] for contact in before]
        new = [contact for contact in after if contact["id"] not in ids]
        assert new
        assert {c["id"] for c in after[: len(new)]} >= {c["id"] for c in new[:1]}
        since = await all_pages(api, CONTACTS, updatedAt=f"gte::{START_MS + 1}")
        assert {c["id"] for c in new} <= {c["id"] for c in since}
        assert len(since) < len(after)


async def test_calls_are_those_of_the_members() -> None:
    async with still() as diallink, client(diallink) as api:
        calls = await all_pages(api, CALLS, sort="+startedAt")
        assert texts(calls) == texts(diallink.records())
        like = sample("calls-page-assumed")["data"][0]
        by_id = {call["id"]: call for call in calls}
        expected = legs(diallink)
        assert len(expected) > 1000
        assert by_id.keys() == {call_id(leg.id) for leg in expected}
        for leg in expected:
            call = by_id[call_id(leg.id)]
            assert call.keys() == like.keys()
            known = leg.as_of(START_MS)
            assert call["startedAt"] == leg.started_ms
            assert (call["answeredAt"], call["endedAt"]) == (known.answered_ms, known.ended_ms)
            numbers = leg.outsider.number, leg.host.number
            assert (call["from"], call["to"]) == (numbers[::-1] if leg.outbound else numbers)
            assert call["direction"] == ("OUTBOUND" if leg.outbound else "INBOUND")
            assert call["userId"] == user_id(leg.host.id)
            assert (call["contactId"] is not None) == bool(leg.outsider.name)
            if known.ended_ms and known.answered_ms:
                talk_ms = known.ended_ms - known.answered_ms
                assert call["duration"] == pytest.approx(talk_ms / 1000, abs=0.5)
                assert call["status"] == "COMPLETED"
            assert call["updatedAt"] <= START_MS
        assert {call["status"] for call in calls} >= {
            *("COMPLETED", "MISSED", "NO_ANSWER", "VOICEMAIL", "BLOCKED")
        }


async def test_a_call_changes_as_it_goes_on() -> None:
    async with still(days=0) as diallink, client(diallink) as api:
        seen: dict[str, list[dict[str, Any]]] = {}
        for _ in range(480):
            await diallink.step(0.25)
            for call in await all_pages(api, CALLS, sort="-updatedAt"):
                states = seen.setdefault(call["id"], [])
                if call not in states:
                    states.append(call)
        statuses = Counter(tuple(call["status"] for call in states) for states in seen.values())
        assert any(s[:1] == ("RINGING",) and s[-1] == "COMPLETED" for s in statuses)
        assert any("IN_PROGRESS" in s for s in statuses)
        assert any(s[-2:] == ("MISSED", "VOICEMAIL") for s in statuses)
        for states in seen.values():
            for before, after in pairwise(states):
                assert before["updatedAt"] < after["updatedAt"]
        recorded = [states for states in seen.values() if states[-1]["recordingId"]]
        assert any(states[-2]["endedAt"] and not states[-2]["recordingId"] for states in recorded)


async def test_a_record_may_change_for_hours() -> None:
    faults = Faults(records_change=0.3, records_change_s=7200)
    async with still(faults=faults, days=0.01) as diallink, client(diallink) as api:
        before = {call["id"]: call for call in await all_pages(api, CALLS, sort="+startedAt")}
        await diallink.step(120)
        settled = {c["id"]: c for c in await all_pages(api, CALLS, sort="+startedAt")}
        await diallink.clock.step(3600)
        ids = [leg.id for leg in legs(diallink)]
        changed = []
        for ident in (call_id(leg_id) for leg_id in ids[:300]):
            call = await get(api, f"{CALLS}/{ident}")
            if call != settled[ident]:
                changed.append((settled[ident], call))
        assert len(changed) > 20
        keys = {key for a, b in changed for key in a if a[key] != b[key]}
        assert keys >= {"updatedAt", "duration", "status", "contactId"}
        assert all(b["updatedAt"] > START_MS + 120_000 for _, b in changed)
        assert before


async def test_one_call_can_be_read() -> None:
    async with still() as diallink, client(diallink) as api:
        call = (await get(api, CALLS, sort="-startedAt", pageSize=1))["data"][0]
        assert await get(api, f"{CALLS}/{call['id']}") == call
        centre_leg = next(
            leg for leg in diallink.world.legs.values() if not isinstance(leg.host, Member)
        )
        for wrong in ("nothing", call_id(17), call_id(centre_leg.id), call["id"].upper()):
            await get(api, f"{CALLS}/{wrong}", code=404)
        assert (await api.delete(f"{CALLS}/{call['id']}")).status_code == 405


async def test_recordings_are_of_calls_that_name_them() -> None:
    async with still() as diallink, client(diallink) as api:
        recordings = await all_pages(api, "/phone-system/recordings", sort="+updatedAt")
        calls = {call["id"]: call for call in diallink.records()}
        named = {call["recordingId"] for call in calls.values()} - {None}
        assert {recording["id"] for recording in recordings} == named
        for recording in recordings:
            assert recording.keys() == {
                *("id", "callId", "url", "startedAt", "duration", "updatedAt")
            }
            call = calls[recording["callId"]]
            assert call["recordingId"] == recording["id"]
            assert call["startedAt"] <= recording["startedAt"] <= call["endedAt"]
        times = [recording["updatedAt"] for recording in recordings]
        assert times == sorted(times)


@pytest.mark.parametrize("make", [call_id, contact_id, recording_id, user_id])
def test_ids_are_uuids_of_their_own_kind(make: Any) -> None:
    number = 1_790_000_000_000_123
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}", make(number)
    )
    assert number_of(make(number)) == number
    assert len({call_id(5), contact_id(5), recording_id(5), user_id(5)}) == 4
    for wrong in ("", "x", make(number)[:-1], "zzzzzzzz" + make(number)[8:]):
        assert number_of(wrong) is None


async def test_its_clock_is_another() -> None:
    async with still() as right, still(clock_off_s=-2.5) as behind:
        for plain, moved in zip(right.records(), behind.records(), strict=True):
            assert plain["id"] == moved["id"]
            assert plain["updatedAt"] - moved["updatedAt"] == 2500
            assert plain["startedAt"] - moved["startedAt"] == 2500
        middle = sorted(call["updatedAt"] for call in behind.records())[1000]
        async with client(behind) as api:
            found = await all_pages(api, CALLS, sort="+updatedAt", updatedAt=f"gte::{middle}")
        expected = [call for call in behind.records() if call["updatedAt"] >= middle]
        assert texts(found) == texts(expected)


# Lists


async def test_a_page_and_its_envelope() -> None:
    async with still() as diallink, client(diallink) as api:
        total = len(diallink.records())
        first = await get(api, CALLS, sort="-updatedAt")
        assert first.keys() == {"data", "paging"}
        assert len(first["data"]) == 20
        assert first["paging"] == {
            "pageNumber": 1,
            "pageSize": 20,
            "totalNumberOfRecords": total,
            "totalNumberOfPages": -(-total // 20),
            "hasNextPage": True,
            "hasPreviousPage": False,
            "sortingCriteria": "-updatedAt",
            "hasMore": True,
        }
        number = -(-total // 20)
        last = await get(api, CALLS, pageNumber=number)
        assert len(last["data"]) == total % 20 or 20
        assert last["paging"]["hasNextPage"] is last["paging"]["hasMore"] is False
        assert last["paging"]["hasPreviousPage"] is True
        assert "sortingCriteria" not in last["paging"]
        assert (await get(api, CALLS, pageNumber=number + 1))["data"] == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("pageSize=100", 200),
        ("pageSize=101", 400),
        ("pageSize=0", 400),
        ("pageNumber=0", 400),
        ("pageNumber=x", 400),
        ("sort=-updatedAt", 200),
        ("sort=%2BupdatedAt", 200),
        ("sort=+updatedAt", 400),
        ("sort=updatedAt", 400),
        ("sort=-colour", 400),
        ("colour=red", 400),
        ("status=almost::red", 400),
        ("startedAt=gte::", 400),
        ("startedAt=btn::1", 400),
        ("startedAt=btn::1,2", 200),
        ("filter=AND(eq(status,MISSED))", 400),
    ],
)
async def test_what_a_list_refuses(query: str, code: int) -> None:
    async with still(days=0.001) as diallink, client(diallink) as api:
        answer = await api.get(f"{CALLS}?{query}")
        assert answer.status_code == code
        if code == 400:
            assert answer.json().keys() == {"message"}


async def test_what_is_beyond_a_page_can_be_cut_silently() -> None:
    async with still(most_a_page=30) as diallink, client(diallink) as api:
        await get(api, CALLS, pageSize=31, code=400)
        diallink.faults.page_caps = True
        page = await get(api, CALLS, pageSize=100)
        assert (len(page["data"]), page["paging"]["pageSize"]) == (30, 30)


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ("direction=outbound", lambda c: c["direction"] == "OUTBOUND"),
        ("status=eq::missed", lambda c: c["status"] == "MISSED"),
        ("status=neq::COMPLETED", lambda c: c["status"] != "COMPLETED"),
        ("status=in::MISSED,BLOCKED", lambda c: c["status"] in {"MISSED", "BLOCKED"}),
        ("status=nin::MISSED,BLOCKED", lambda c: c["status"] not in {"MISSED", "BLOCKED"}),
        ("status=like::ANS", lambda c: "ANS" in c["status"]),
        ("status=notlike::ANS", lambda c: "ANS" not in c["status"]),
        ("recordingId=isnull::", lambda c: c["recordingId"] is None),
        ("recordingId=isnotnull::", lambda c: c["recordingId"] is not None),
        ("duration=gt::3", lambda c: c["duration"] > 3),
        ("duration=gte::3", lambda c: c["duration"] >= 3),
        ("duration=lt::3", lambda c: c["duration"] < 3),
        ("duration=lte::3", lambda c: c["duration"] <= 3),
        ("duration=btn::2,4", lambda c: 2 <= c["duration"] <= 4),
        (
            f"startedAt=gte::{START_MS - 600_000}",
            lambda c: c["startedAt"] >= START_MS - 600_000,
        ),
        (
            "answeredAt=gt::5&direction=inbound",
            lambda c: c["answeredAt"] and c["direction"] == "INBOUND",
        ),
    ],
)
async def test_filters(query: str, holds: Any) -> None:
    async with still(days=0.01) as diallink, client(diallink) as api:
        expected = [call for call in diallink.records() if holds(call)]
        assert 0 < len(expected) < len(diallink.records())
        for sort in ("", "&sort=-startedAt", "&sort=%2BupdatedAt", "&sort=-duration"):
            page = (await api.get(f"{CALLS}?pageSize=100&{query}{sort}")).json()
            assert page["paging"]["totalNumberOfRecords"] == len(expected)
            assert len(page["data"]) == min(100, len(expected))
            assert not texts(page["data"]) - texts(expected)


@pytest.mark.parametrize("field", ["updatedAt", "startedAt", "duration", "status", "answeredAt"])
@pytest.mark.parametrize("sign", ["+", "-"])
async def test_sorting(field: str, sign: str) -> None:
    async with still(days=0.01) as diallink, client(diallink) as api:
        calls = await all_pages(api, CALLS, sort=f"{sign}{field}")
        found = [call[field] for call in calls if call[field] is not None]
        assert found == sorted(found, reverse=sign == "-")
        assert all(call[field] is None for call in calls[len(found) :])
        if field in {"updatedAt", "startedAt"}:  # few are equal, so no page can lose any
            assert len(calls) == len(diallink.records())


async def test_without_a_sort_the_order_is_another_each_time() -> None:
    async with still() as diallink, client(diallink) as api:
        first, second = [(await get(api, CALLS, pageSize=100))["data"] for _ in range(2)]
        assert first != second
        pages = await all_pages(api, CALLS)
        assert len({call["id"] for call in pages}) < len(diallink.records())


async def test_changes_can_be_read_without_ever_turning_a_page() -> None:
    async with still() as diallink, client(diallink) as api:
        seen: dict[str, dict[str, Any]] = {}
        last_ms = 0
        for _ in range(200):
            page = await get(api, CALLS, sort="+updatedAt", updatedAt=f"gte::{last_ms}")
            seen |= {call["id"]: call for call in page["data"]}
            last_ms = page["data"][-1]["updatedAt"]
            await diallink.step(1)
            if not page["paging"]["hasNextPage"]:
                break
        assert seen.keys() >= {call["id"] for call in diallink.records(START_MS)}


async def test_changes_can_be_nothing_that_a_list_knows_of() -> None:
    async with still(faults=Faults(updated_refused=True)) as diallink, client(diallink) as api:
        await get(api, CALLS, sort="+updatedAt", code=400)
        await get(api, CALLS, updatedAt="gte::5", code=400)
        await get(api, CONTACTS, sort="-updatedAt", code=400)
        await get(api, CALLS, sort="-startedAt")
        assert diallink.faults.counts["updated_refused"] == 3


async def test_totals_may_lie_and_pages_may_be_bare() -> None:
    async with still() as diallink, client(diallink) as api:
        diallink.faults.totals_lie = 1.0
        pages = [await get(api, CALLS, sort="+startedAt") for _ in range(20)]
        assert len({page["paging"]["totalNumberOfRecords"] for page in pages}) > 5
        assert {page["paging"]["hasMore"] for page in pages} == {True, False}
        assert {page["paging"]["hasNextPage"] for page in pages} == {True}
        diallink.faults.force("pages_bare")
        page = await get(api, CALLS, sort="+startedAt")
        assert (page["paging"], len(page["data"])) == ({}, 20)


async def test_errors_have_several_shapes() -> None:
    async with still() as diallink, client(diallink) as api:
        diallink.faults.error_shapes = 1.0
        answers = [await api.get(f"{CALLS}?colour=red") for _ in range(60)]
        assert {answer.status_code for answer in answers} == {400}
        shapes = set()
        for answer in answers:
            try:
                shapes.add(str(sorted(answer.json())))
            except ValueError:
                shapes.add(answer.text[:9])
        assert len(shapes) == 6
        assert len({(a.text, a.headers["content-type"]) for a in answers}) == 7


async def test_who_asks_too_often_is_told_in_four_ways() -> None:
    async with still() as diallink, client(diallink) as api:
        await get(api, CALLS)
        diallink.faults.limited = 1.0
        answers = [await api.get(CALLS) for _ in range(4)]
        ways = {(a.status_code, a.headers.get("retry-after")) for a in answers}
        assert ways == {(429, "1"), (429, None), (403, "1"), (403, None)}
        diallink.faults.limited = 0
        async with client(diallink, "unknown") as other:
            diallink.faults.force("limited", 4)
            codes = {(await other.get(CALLS)).status_code for _ in range(4)}
            assert codes == {429}


# Notifications


def verified(inbox: Inbox, nth: int, secret: str = SECRET) -> Any:
    return Webhook(secret).verify(inbox.bodies[nth], inbox.headers[nth])


async def test_everything_is_told_once_and_signed() -> None:
    async with still(days=0) as diallink, open_inbox() as inbox:
        diallink.subscribe(inbox.url, SECRET)
        await diallink.step(120)
        told = [verified(inbox, nth) for nth in range(len(inbox.bodies))]
        types = Counter(event["type"] for event in told)
        assert types.keys() == {
            *("call.started", "call.answered", "call.completed", "call.missed"),
            *("recording.ready", "voicemail.received", "message.received", "contact.updated"),
            "user.offline",
        }
        assert len({head["webhook-id"] for head in inbox.headers}) == len(told)
        assert all("." not in head["webhook-id"] for head in inbox.headers)
        assert all(event.keys() == {"type", "timestamp", "data"} for event in told)
        end_ms = START_MS + 120_000
        calls = {call["id"]: call for call in diallink.records()}
        over = {
            call_id(leg.id)
            for leg in legs(diallink, end_ms)
            if leg.ended_ms is not None and leg.ended_ms <= end_ms - 1000
        }
        ends = [e for e in told if e["type"] in {"call.completed", "call.missed"}]
        assert {event["data"]["id"] for event in ends} >= over
        for event in ends:
            call = calls[event["data"]["id"]]
            assert event["data"].keys() == call.keys()
            assert event["data"]["endedAt"] == call["endedAt"]
            missed = call["answeredAt"] is None and call["direction"] == "INBOUND"
            blocked = call["status"] == "BLOCKED"
            assert event["type"] == ("call.missed" if missed and not blocked else "call.completed")
        assert diallink.deliveries == {"204": len(told)}


async def test_an_attempts_headers_are_those_of_the_sample() -> None:
    async with still(days=0) as diallink, open_inbox() as inbox:
        diallink.subscribe(inbox.url, SECRET)
        await diallink.step(20)
        like = sample("notification-signed")
        assert inbox.headers[0].keys() >= like["headers"].keys()
        assert inbox.headers[0]["content-type"] == "application/json"
        ended = next(e for e in inbox.events if e["type"] == "call.completed")
        assert ended["data"].keys() == like["decoded_body"]["data"].keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ended["timestamp"])
        now_s = time.time()
        for head in inbox.headers:
            assert abs(int(head["webhook-timestamp"]) - now_s) < 100


async def test_two_secrets_sign_while_one_is_replaced() -> None:
    async with still(days=0) as diallink, open_inbox() as inbox:
        subscription = diallink.subscribe(inbox.url, SECRET, OTHER_SECRET)
        await diallink.step(10)
        for secret in (SECRET, OTHER_SECRET):
            assert verified(inbox, 0, secret)
        del subscription.secrets[0]
        await diallink.step(10)
        assert verified(inbox, -1, OTHER_SECRET)
        with pytest.raises(WebhookVerificationError):
            verified(inbox, -1)


async def test_a_secret_must_be_one() -> None:
    async with still(days=0) as diallink:
        for wrong in ("", "whsec_", "whsec_!", "no secret"):
            with pytest.raises(ValueError, match="whsec_"):
                diallink.subscribe("http://127.0.0.1:1", wrong)
        assert diallink.subscribe("http://127.0.0.1:1").secrets[0].startswith("whsec_")


async def test_a_failure_is_tried_again_with_the_same_id_for_three_days() -> None:
    async with still(days=0, lasts_s=0) as diallink, open_inbox(lambda _: 500) as inbox:
        diallink.subscribe(inbox.url, SECRET)
        world = World(5, START_MS)
        happening = next(h for h in world.until(START_MS + 60_000) if h.subject_id)
        while not diallink.delivered:
            happening = world.go_on()
            diallink.happen(happening)
            await diallink.settled()
        waits_s = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
        for nth, wait_s in enumerate(waits_s, 1):
            await diallink.clock.step(wait_s - 1)
            await diallink.settled()
            assert len(inbox.bodies) == nth
            await diallink.clock.step(1)
            await diallink.settled()
            assert len(inbox.bodies) == nth + 1
        await diallink.clock.step(3 * 86_400)
        assert len(inbox.bodies) == 10
        assert sum(waits_s) == 75 * 3600 + 35 * 60 + 5
    assert len(set(inbox.bodies)) == 1
    assert len({head["webhook-id"] for head in inbox.headers}) == 1
    assert diallink.delivered[0].answers == [500] * 10
    assert len(diallink.delivered) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 429, 502, BREAK_OFF])
async def test_whatever_is_no_success_is_tried_again(status: int | None) -> None:
    answers = iter([status, 204])
    async with still(days=0, lasts_s=0) as diallink, open_inbox(lambda _: next(answers)) as inbox:
        diallink.subscribe(inbox.url, SECRET)
        for happening in World(5, START_MS).until(START_MS + 60_000):
            diallink.happen(happening)
            await diallink.settled()
            if diallink.delivered:
                break
        await diallink.step(6)
        assert len(inbox.bodies) == 2
    (delivery,) = diallink.delivered
    assert (delivery.answers, delivery.accepted) == ([status, 204], True)


async def test_who_asks_for_time_gets_it() -> None:
    answers = iter([503, 204])
    async with still(days=0, lasts_s=0) as diallink, open_inbox(lambda _: next(answers)) as inbox:
        inbox.more = b"Retry-After: 60\r\n"
        diallink.subscribe(inbox.url, SECRET)
        for happening in World(5, START_MS).until(START_MS + 60_000):
            diallink.happen(happening)
            await diallink.settled()
            if diallink.delivered:
                break
        await diallink.step(59)
        assert len(inbox.bodies) == 1
        await diallink.step(2)
        assert len(inbox.bodies) == 2


async def test_who_is_gone_is_told_nothing_more() -> None:
    async with still(days=0) as diallink, open_inbox(lambda _: 410) as inbox:
        subscription = diallink.subscribe(inbox.url, SECRET)
        await diallink.step(10)
        assert not subscription.enabled
        told = len(inbox.bodies)
        assert told > 0
        await diallink.step(30)
        assert len(inbox.bodies) == told


async def test_faults_on_the_way() -> None:
    async with still(days=0) as diallink, open_inbox() as inbox:
        subscription = diallink.subscribe(inbox.url, SECRET)
        faults = diallink.faults
        faults.dropped = 1.0
        await diallink.step(10)
        assert inbox.bodies == []
        faults.dropped, faults.repeated = 0, 1.0
        await diallink.step(30)
        faults.repeated = 0
        await diallink.step(11)
        ids = Counter(head["webhook-id"] for head in inbox.headers)
        assert 2 in ids.values()
        done, faults.forged = len(inbox.bodies), 1.0
        await diallink.step(30)
        bad = 0
        for body, head in list(zip(inbox.bodies, inbox.headers, strict=True))[done:]:
            try:
                Webhook(SECRET).verify(body, head)
            except WebhookVerificationError:
                bad += 1
        assert bad == faults.counts["forged"] > 5
        assert {"webhook-signature" in head for head in inbox.headers[done:]} == {True, False}
        assert [d.genuine for d in diallink.delivered].count(False) == bad
        assert subscription.enabled


async def test_of_a_lost_call_nobody_is_notified_from_its_end_on() -> None:
    async with still(days=0) as diallink, open_inbox() as inbox:
        diallink.subscribe(inbox.url, SECRET)
        diallink.faults.endings_dropped = 1.0
        await diallink.step(30)
        types = Counter(json.loads(body)["type"] for body in inbox.bodies)
        assert diallink.faults.counts["endings_dropped"] > 5
    assert types["call.started"] > 5
    assert not types.keys() & {"call.completed", "call.missed", "recording.ready"}


async def test_nobody_is_notified_of_what_others_have_told_twice() -> None:
    """Requests have the story told, and the notifications come all the same."""
    world, clock = World(7, START_MS), Clock(START_MS, None)
    async with (
        simulated_diallink(world=world, clock=clock, clock_off_s=0) as diallink,
        open_inbox() as inbox,
        client(diallink) as api,
    ):
        diallink.subscribe(inbox.url, SECRET)
        diallink.records(START_MS + 30_000)
        await get(api, CALLS)
        await diallink.step(30)
        started = Counter(e["data"]["id"] for e in inbox.events if e["type"] == "call.started")
    expected = {
        call_id(leg.id)
        for leg in world.legs.values()
        if isinstance(leg.host, Member) and not leg.barred and leg.started_ms < START_MS + 29_000
    }
    assert expected
    assert expected <= started.keys()
    assert set(started.values()) == {1}
