"""What the simulated company's API would answer, read back: nothing in it is strange to us."""

from functools import cache

import pytest

from ingest.simulator import dialpad as shapes
from ingest.simulator.facts import Leg
from ingest.simulator.world import World
from schemas.event import Event
from tests.ingest.providers.dialpad.test_records import FakeApi, also, calls, written

START_MS = 1_790_000_000_000
SPAN_MS = 30 * 60_000
END_MS = START_MS + SPAN_MS


@cache
def world() -> World:
    made = World(7, START_MS)
    made.advance(END_MS)
    return made


@pytest.fixture
def api() -> FakeApi:
    """Everything but calls, as it stands at the end."""
    company = world().company
    api = FakeApi()
    api.objects["/api/v2/company"] = shapes.rest_company(company)
    consents = [shapes.rest_optout(company, consent) for consent in world().consents(END_MS)]
    api.serve(f"/api/v2/company/{company.id}/smsoptout", consents)
    contacts = world().contacts(END_MS).values()
    api.serve("/api/v2/contacts", [shapes.rest_contact(contact) for contact in contacts])
    api.serve("/api/v2/users", [shapes.rest_user(world(), m, END_MS) for m in company.users])
    api.serve("/api/v2/offices", [shapes.rest_office(company, o) for o in company.offices])
    api.serve("/api/v2/departments", [shapes.rest_department(d) for d in company.departments])
    api.serve("/api/v2/callcenters", [shapes.rest_call_center(c) for c in company.centres])
    for member in company.members:
        path = f"/api/v2/callcenters/operators/{member.id}/dutystatus"
        api.objects[path] = shapes.rest_duty_status(world(), member, END_MS)
    api.serve("/api/v2/numbers", [shapes.rest_number(company, n) for n in company.numbers])
    return api


def legs() -> list[Leg]:
    return list(world().concluded(END_MS))


def assert_nothing_strange(events: list[Event]) -> None:
    assert events
    for event in events:
        assert event.subject_kind != "reject"
        assert event.surprises == ()
        written(event)


async def test_calls(api: FakeApi) -> None:
    found = legs()
    events = await calls(api, *(shapes.rest_call(leg) for leg in found))
    assert_nothing_strange(events)
    assert [event.data["call_id"] for event in events] == [str(leg.id) for leg in found]
    for leg, event in zip(found, events, strict=True):
        # The truth of the company, in none of Dialpad's words.
        assert (event.data["voicemail"] is not None) == (leg.message_ready_ms is not None)
        assert event.time_ms == leg.ended_ms
    outcomes = {event.data["outcome"] for event in events}
    assert {"answered", "missed", "unanswered", "voicemail"} <= outcomes


async def test_transcripts_and_recaps(api: FakeApi) -> None:
    ids, recaps = [], {}
    for leg in legs():
        ids.append(str(leg.id))
        api.objects[f"/api/v2/transcripts/{leg.id}"] = shapes.rest_transcript(leg)
        recap = shapes.rest_recap(leg)
        if recap is not None:
            recaps[f"acme/{leg.id}"] = recap
            api.objects[f"/api/v2/call/{leg.id}/ai_recap"] = recap
    transcripts = await also(api, "transcripts", *ids)
    assert_nothing_strange(transcripts)
    assert len(transcripts) < len(ids)  # not every call has one
    found = await also(api, "recaps", *ids)
    assert_nothing_strange(found)
    assert {event.key for event in found} == recaps.keys()
    for event in found:
        recap, told = event.data["recap"], recaps[event.key]
        assert recap["summary"] == told["summary"]["content"]
        assert recap["outcome"] == told["outcome"]["content"]
        assert recap["purposes"] == [purpose["content"] for purpose in told["purposes"]]
        assert recap["action_items"] == [item["content"] for item in told["action_items"]]


@pytest.mark.parametrize("what", ["contacts", "consents", "duty_status"])
async def test_lists(api: FakeApi, what: str) -> None:
    assert_nothing_strange(await also(api, what))


async def test_the_directory_is_the_company(api: FakeApi) -> None:
    company = world().company
    events = await also(api, "directory")
    assert_nothing_strange(events)
    found = {(event.data["kind"], event.data["id"]) for event in events}
    assert found == {
        *(("user", str(user.id)) for user in company.users),
        *(("office", str(office.id)) for office in company.offices),
        *(("department", str(department.id)) for department in company.departments),
        *(("call_center", str(centre.id)) for centre in company.centres),
        *(("number", number.number) for number in company.numbers),
    }


async def test_every_operators_duty_is_the_companys(api: FakeApi) -> None:
    events = await also(api, "duty_status")
    members = {m.id for m in world().company.members if world().centres_of(m.id, END_MS)}
    assert {int(event.data["agent_id"]) for event in events} == members
    for event in events:
        member_id = int(event.data["agent_id"])
        duty = world().duty(member_id, END_MS)
        assert event.time_ms == duty.since_ms // 1000 * 1000
        if event.data["call_center_ids"]:
            centres = world().centres_of(member_id, END_MS)
            assert set(event.data["call_center_ids"]) == {str(centre.id) for centre in centres}
