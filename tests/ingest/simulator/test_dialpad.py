"""Dialpad's clothes for the company."""

import ast
import base64
import hmac
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest

import ingest.simulator
from ingest.simulator.dialpad import (
    MAX_LAG_MS,
    Oddities,
    encode,
    kind_of,
    payload,
    payloads,
    rest_call,
    rest_call_center,
    rest_company,
    rest_contact,
    rest_department,
    rest_duty_status,
    rest_number,
    rest_office,
    rest_optout,
    rest_recap,
    rest_transcript,
    rest_user,
    retry_waits_s,
    sign,
)
from ingest.simulator.facts import (
    CallHappening,
    CallStep,
    ConsentHappening,
    ContactHappening,
    DutyHappening,
    Happening,
    SettingHappening,
    TextHappening,
)
from ingest.simulator.story import real_tempo
from ingest.simulator.world import World, play

SAMPLES = Path(__file__).parents[2] / "samples" / "dialpad"
SECRET = "invented-secret-at-least-32-bytes-long!"
START_MS = 1_790_000_000_000
DAY_MS = 86_400_000
#: What becomes of a call, a night later.
LATER_MS = START_MS + DAY_MS // 2
WORLD = World(5, START_MS, real_tempo(1500))
STORY = [h for h in WORLD.until(LATER_MS) if not isinstance(h, ConsentHappening)]
CALLS = [h for h in STORY if isinstance(h, CallHappening)]
#: What had the time to end, with all that comes of it.
ENDED = [leg for leg in WORLD.concluded(LATER_MS - 3 * 3_600_000) if leg.started_ms < LATER_MS]
LEGS = [WORLD.legs[leg.id] for leg in ENDED]

#: What we make, by kind and word, and the sample of its shape.
LIKE = {
    "call calling": "call-outbound-calling",
    "call preanswer": "call-inbound-ringing-user",
    "call ringing": "call-inbound-ringing-user",
    "call queued": "call-callcenter-leg-connected",
    "call connected": "call-inbound-connected-user",
    "call hold": "call-inbound-hold",
    "call hangup": "call-outbound-hangup-noanswer",
    "call hangup recorded": "call-inbound-hangup-user",
    "call missed": "call-inbound-missed",
    "call blocked": "call-inbound-missed",
    "call voicemail": "call-voicemail-no-message",
    "call voicemail_uploaded": "call-voicemail-uploaded",
    "call transcription": "call-voicemail-uploaded",
    "call recording": "call-recording",
    "call admin_recording": "call-recording",
    "call call_transcription": "call-call-transcription",
    "call recap_summary": "call-recap-summary",
    "call recap_outcome": "call-recap-summary",
    "call recap_purposes": "call-recap-purposes",
    "call recap_action_items": "call-recap-purposes",
    "call dispositions": "call-recap-purposes",
    "call csat": "call-call-transcription",
    "sms inbound pending": "sms-inbound-user",
    "sms inbound pending picture": "sms-inbound-mms",
    "sms outbound pending": "sms-outbound-pending",
    "sms outbound sent": "sms-outbound-status-sent",
    "sms outbound delivered": "sms-outbound-status-delivered",
    "sms outbound failed": "sms-outbound-status-failed",
    "sms outbound undelivered": "sms-outbound-status-failed",
    "contact Created": "contact-created",
    "contact Updated": "contact-updated",
    "contact Deleted": "contact-updated",
    "agent available": "agent-status-available",
    "agent occupied": "agent-status-occupied",
    "agent wrapup": "agent-status-occupied",
    "agent unavailable": "agent-status-unavailable",
    "change operator_removed": "changelog-operator-removed",
    "change operator_added": "changelog-operator-removed",
}
#: Kinds that no sample is of: the key of the sample, and what stands in its place.
RENAMED = {
    "call recap_outcome": ("recap_summary", "recap_outcome"),
    "call recap_action_items": ("recap_purposes", "recap_action_items"),
    "call dispositions": ("recap_purposes", "call_dispositions"),
}


def kind(event: dict[str, Any]) -> str:
    if "call_id" in event:
        recorded = event["state"] == "hangup" and event["was_recorded"]
        return f"call {event['state']}{' recorded' if recorded else ''}"
    if "message_status" in event:
        picture = event["mms"] and event["direction"] == "inbound"
        word = f"sms {event['direction']} {event['message_status']}"
        return f"{word} picture" if picture else word
    if "event" in event:
        return f"contact {event['event']}"
    if "on_duty_status" in event:
        return f"agent {event['on_duty_status']}"
    return f"change {event['action']}"


def sample(name: str) -> dict[str, Any]:
    value = json.loads((SAMPLES / f"{name}.json").read_bytes())
    assert isinstance(value, dict)
    return value


def sample_of(word: str) -> dict[str, Any]:
    value = sample(LIKE[word])
    if word in RENAMED:
        old, new = RENAMED[word]
        value[new] = value.pop(old)
    return value


def assert_same_shape(ours: Any, theirs: Any, where: str) -> None:
    """Find the same keys at every depth; ``{}``, ``[]`` and null may stand for what is absent."""
    match ours, theirs:
        case dict(), dict() if ours and theirs:
            assert ours.keys() == theirs.keys(), where
            for key, value in ours.items():
                assert_same_shape(value, theirs[key], f"{where}.{key}")
        case list(), list() if ours and theirs:
            assert_same_shape(ours[0], theirs[0], f"{where}[]")
        case _ if ours in (None, {}, []) or theirs in (None, {}, []):
            pass
        case int() | float(), int() | float():
            assert isinstance(ours, bool) == isinstance(theirs, bool), where
        case _:
            assert type(ours) is type(theirs), where


def test_every_payload_has_the_keys_of_a_sample() -> None:
    events = [payload(happening) for happening in STORY]
    assert {kind(event) for event in events} == LIKE.keys()
    tagged = 0
    for event in events:
        # The echo of what whoever placed the call gave; no sample has it.
        tag = event.pop("custom_data", None)
        if tag is not None:
            tagged += 1
            assert json.loads(tag)["crm_id"]
        assert_same_shape(event, sample_of(kind(event)), kind(event))
    assert tagged


def test_kinds_are_those_of_the_subscriptions() -> None:
    assert {type(h): kind_of(h) for h in STORY} == {
        CallHappening: "call",
        TextHappening: "sms",
        ContactHappening: "contact",
        DutyHappening: "agent_status",
        SettingHappening: "changelog",
    }


def test_dialpad_tells_nobody_of_consents() -> None:
    consent = next(h for h in World(2, START_MS).happenings() if isinstance(h, ConsentHappening))
    assert payloads(consent) == []
    assert kind_of(consent) is None
    with pytest.raises(ValueError, match="consents"):
        encode(consent)


def test_legs_through_a_centre_look_as_seen() -> None:
    events = [payload(happening) for happening in CALLS]
    centre = next(
        e for e in events if e["operator_call_id"] and e["target"]["type"] == "call_center"
    )
    agent = next(e for e in events if e["entry_point_call_id"] == centre["call_id"])
    assert_same_shape(centre, sample("call-callcenter-leg-connected"), "centre")
    assert_same_shape(agent, sample("call-operator-leg-ringing"), "agent")
    assert centre["operator_call_id"] == agent["call_id"]
    assert agent["entry_point_target"] == centre["target"]
    assert centre["group_id"] == agent["group_id"] == f"CallCenter:{centre['target']['id']}"
    assert centre["date_queued"]
    assert centre["date_rang"] is agent["date_queued"] is None


def test_an_office_leg_that_went_on_looks_as_seen() -> None:
    events = [payload(happening) for happening in CALLS]
    seen = sample("call-office-entrypoint-hangup")
    ours = next(e for e in events if e["is_transferred"] and e["target"]["type"] == "office")
    assert_same_shape(ours, seen, "office")
    assert ours["group_id"] == f"Office:{ours['target']['id']}"
    for key in ("state", "is_transferred", "labels", "date_connected", "duration", "date_rang"):
        assert ours[key] == seen[key], key


def test_the_four_ids_unite_what_belongs_together_and_nothing_else() -> None:
    names = ("entry_point_call_id", "operator_call_id", "master_call_id")
    items: list[Callable[[CallHappening], dict[str, Any]]] = [
        payload,
        lambda happening: rest_call(happening.leg),
    ]
    for item_of in items:
        root: dict[int, int] = {}

        def find(leg: int, root: dict[int, int] = root) -> int:
            while root.setdefault(leg, leg) != leg:
                leg = root[leg]
            return leg

        for happening in CALLS:
            if happening.step is not CallStep.ENDED:
                continue
            item = item_of(happening)
            for name in names:
                if item.get(name):
                    one, other = find(int(item["call_id"])), find(int(item[name]))
                    root[max(one, other)] = min(one, other)
        united = {leg.id: find(leg.id) for leg in LEGS}
        assert united == {leg.id: leg.conversation_id for leg in LEGS}
        assert len(set(united.values())) < len(united) * 0.8


AFTER = r"((dispositions|\w*recording|call_transcription|recap_\w+) ){0,7}"
MACHINE = "voicemail hangup (voicemail_uploaded (transcription )?)?"
POSSIBLE = re.compile(
    "preanswer hangup "
    "|blocked "
    f"|ringing (missed |{MACHINE})"
    f"|queued (connected hangup (csat )?|hangup |{MACHINE})"
    f"|(calling )?ringing connected (hold connected ){{0,2}}hangup {AFTER}"
    "|(calling )?ringing hangup "
)


def test_every_leg_takes_a_possible_way_and_ends_once() -> None:
    states = defaultdict(list)
    for happening in CALLS:
        states[happening.leg.id].append(payload(happening)["state"])
    for leg in LEGS:
        way = states[leg.id]
        assert POSSIBLE.fullmatch("".join(f"{state} " for state in way)), way
        assert sum(state in {"hangup", "missed", "blocked"} for state in way) == 1
        if way == ["ringing", "hangup"]:  # somebody was to take over a call that went out
            assert leg.outbound
            assert leg.handed_by_leg_id


def test_clocks_stand_a_little_after_the_fact_and_keep_the_order_of_a_leg() -> None:
    clocks = defaultdict(list)
    for happening in STORY:
        event = payload(happening)
        if "event_timestamp" in event:
            assert 0 < event["event_timestamp"] - happening.at_ms <= MAX_LAG_MS
            clocks[type(happening), happening.subject_id].append(event["event_timestamp"])
    for times in clocks.values():
        assert all(earlier < later for earlier, later in pairwise(times))


def test_no_payload_knows_what_is_to_come() -> None:
    for happening in CALLS:
        event = payload(happening)
        for key in ("date_rang", "date_first_rang", "date_connected", "date_ended"):
            assert event[key] is None or event[key] <= happening.at_ms, key
        if event["date_ended"] is None:
            assert not event["labels"]
            assert not event["was_recorded"]
            assert event["duration"] in {0, None}
        if event["state"] in {"calling", "ringing", "queued", "preanswer"}:
            assert event["operator_call_id"] is event["voicemail_link"] is None


def test_durations_add_up_and_are_noisy() -> None:
    ends = [e for h in CALLS if (e := payload(h))["date_ended"] and e["date_connected"]]
    for event in ends:
        talked_ms = event["date_ended"] - event["date_connected"] - event["hold_time"]
        assert event["talk_time"] == pytest.approx(talked_ms, abs=1)
        assert event["total_duration"] >= event["duration"] >= event["talk_time"]
    assert any(len(str(event["talk_time"])) > 12 for event in ends)


def test_voicemail_is_proven_by_its_id_alone() -> None:
    said = {True: 0, False: 0}
    for happening in CALLS:
        event = payload(happening)
        if event["state"] == "voicemail":
            assert event["voicemail_link"]
            assert event["voicemail_recording_id"] is None
            left = happening.leg.message_ms > 0
            said[left] += 1
            item = rest_call(happening.leg)
            assert ("voicemail_share_link" in item) == left
            assert ("recording_details" in item) == left
        if event["state"] == "transcription":
            assert event["transcription_text"]
            assert event["voicemail_recording_id"]
    assert all(said.values())


def test_what_was_recorded_by_rule_is_told_as_such() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for happening in CALLS:
        if happening.step is CallStep.RECORDING_READY:
            event = payload(happening)
            (details,) = event["recording_details"]
            seen[event["state"], details["recording_type"]] += 1
            links = event["recording_url"], event["admin_recording_urls"]
            assert sorted(links) == [[], [details["url"]]]
            assert bool(links[1]) == (event["state"] == "admin_recording")
    assert seen.keys() == {
        ("recording", "callrecording"),
        ("admin_recording", "admincallrecording"),
    }


def test_group_texts_name_who_wrote_them() -> None:
    texts = [(h, payload(h)) for h in STORY if isinstance(h, TextHappening)]
    groups = [(h, e) for h, e in texts if e["target"]["type"] == "call_center"]
    assert groups
    for happening, event in texts:
        member = happening.message.member
        of_group = event["target"]["type"] == "call_center"
        assert event["sender_id"] == (member.id if member and of_group else None)


def test_the_json_says_the_payload_and_the_signature_covers_it() -> None:
    body = encode(STORY[0])
    assert json.loads(body) == payload(STORY[0])
    header, claims, signature = sign(body, SECRET).split(b".")
    assert json.loads(unpadded(header)) == {"alg": "HS256", "typ": "JWT"}
    assert unpadded(claims) == body
    digest = hmac.digest(SECRET.encode(), header + b"." + claims, "sha256")
    assert unpadded(signature) == digest


# Answers of the API.

PARTY = frozenset({"email", "id", "name", "phone", "type"})
#: What `CallProto` of the published API description has that events have too, and the one that
#: they have not.
CALL_ITEM = frozenset(
    {
        *("call_id", "contact", "csat_score", "custom_data", "date_connected", "date_ended"),
        *("date_rang", "date_started", "direction", "duration", "entry_point_call_id"),
        *("entry_point_target", "event_timestamp", "external_number", "group_id"),
        *("internal_number", "is_transferred", "labels", "master_call_id", "mos_score"),
        *("operator_call_id", "proxy_target", "recording_details", "state", "target"),
        *("total_duration", "transcription_text", "was_recorded", "voicemail_share_link"),
    }
)


def test_items_of_calls_have_the_shape_of_the_samples() -> None:
    listed = sample("rest-call-list-page")["items"]
    shapes: dict[str, Any] = {}
    for item in (*listed, sample("rest-call-get")):
        shapes |= item
    seen: set[str] = set()
    for leg in LEGS:
        item = rest_call(leg)
        seen |= item.keys()
        assert None not in item.values()
        for key in item.keys() & shapes.keys():
            assert_same_shape(item[key], shapes[key], key)
        for key in ("contact", "target", "entry_point_target"):
            assert item.get(key, dict.fromkeys(PARTY)).keys() == PARTY
    assert seen == CALL_ITEM
    assert shapes.keys() <= CALL_ITEM


def test_an_item_says_the_same_as_the_last_event() -> None:
    last = {happening.leg.id: payload(happening) for happening in CALLS}
    compared = 0
    for leg in LEGS:
        item, event = rest_call(leg), last[leg.id]
        for key in CALL_ITEM - {"event_timestamp", "state", "voicemail_share_link"}:
            known: Any = item.get(key)
            told: Any = event.get(key)
            if key in {"contact", "target", "entry_point_target"} and known:
                known, told = known | {"id": int(known["id"])}, {k: told[k] for k in PARTY}
            elif key == "recording_details" and known:
                told = [{k: str(v) for k, v in details.items()} for details in told]
            elif isinstance(told, int) and not isinstance(told, bool) and key[-8:] != "duration":
                told = str(told)
            assert (known or None) == (told or None), key
            compared += known is not None
        assert item["event_timestamp"] == item["date_ended"] == str(leg.ended_ms)
        assert item["state"] == ("blocked" if leg.barred else "hangup")
    assert compared > 10 * len(LEGS)


def test_an_item_grows_with_what_becomes_known() -> None:
    leg = next(leg for leg in LEGS if leg.recording_ready_ms)
    assert leg.recording_ready_ms
    assert "recording_details" not in rest_call(leg.as_of(leg.recording_ready_ms - 1))
    assert "recording_details" in rest_call(leg.as_of(leg.recording_ready_ms))


def test_transcripts_and_recaps_are_there_when_they_are_ready() -> None:
    leg = next(leg for leg in LEGS if leg.recap_ready_ms)
    assert leg.recap_ready_ms
    assert leg.transcript_ready_ms
    transcript = rest_transcript(leg)
    assert transcript["call_id"] == str(leg.id)
    for line in transcript["lines"]:
        assert line.keys() - {"user_id", "contact_id"} == {"type", "name", "content", "time"}
        assert ("user_id" in line) != ("contact_id" in line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", line["time"])
    assert rest_transcript(leg.as_of(leg.transcript_ready_ms - 1))["lines"] == []
    recap = rest_recap(leg)
    assert recap is not None
    event = next(payload(h) for h in CALLS if h.leg is leg and h.step is CallStep.SUMMARY_READY)
    assert recap["summary"] == {"content": event["recap_summary"]}
    assert rest_recap(leg.as_of(leg.recap_ready_ms - 1)) is None


def test_lists_of_the_company_say_who_is_there() -> None:
    company = WORLD.company
    assert rest_company(company)["id"].isdigit()
    user = rest_user(WORLD, company.members[0], LATER_MS)
    assert (user["display_name"], user["emails"], user["phone_numbers"]) == (
        company.members[0].name,
        [company.members[0].email],
        [company.members[0].number],
    )
    assert user["id"] == str(company.members[0].id)
    assert user["office_id"] == str(company.offices[0].id)
    assert [group["group_id"] for group in user["group_details"]] == [
        str(centre.id) for centre in WORLD.centres_of(company.members[0].id, LATER_MS)
    ]
    assert not user["is_admin"]
    assert rest_user(WORLD, company.admin, LATER_MS)["is_admin"]
    centre = rest_call_center(company.centres[1])
    office = rest_office(company, company.offices[0])
    department = rest_department(company.departments[0])
    for item, group in (
        (centre, company.centres[1]),
        (office, company.offices[0]),
        (department, company.departments[0]),
    ):
        assert (item["id"], item["name"]) == (str(group.id), group.name)
        assert item["phone_numbers"] == [group.number]
        assert item["office_id"] == str(group.office_id)
    assert office["is_primary_office"]
    kinds = {rest_number(company, number)["target_type"] for number in company.numbers}
    assert kinds == {"office", "department", "callcenter", "user"}
    number = rest_number(company, company.numbers[0])
    assert number["number"] == company.offices[0].number
    assert number["target_id"] == str(company.offices[0].id)
    assert number["area_code"] == company.offices[0].number[2:5]


def test_contacts_are_listed_as_their_events_tell_them() -> None:
    changes = [h for h in STORY if isinstance(h, ContactHappening)]
    owned = 0
    for change in changes:
        item = rest_contact(change.outsider)
        owner = item.pop("owner_id", None)
        owned += owner is not None
        assert item == payload(change)["contact"]
        assert item["type"] == ("local" if owner else "shared")
    assert 0 < owned < len(changes)


def test_opt_outs_and_duty_are_told_as_described() -> None:
    consents = WORLD.consents(LATER_MS)
    assert consents
    for consent in consents:
        item = rest_optout(WORLD.company, consent)
        assert item["external_endpoint"] == consent.outsider.number
        assert item["date"] == str(consent.since_ms)
        assert item["opt_out_state"] == ("opted_out" if consent.opted_out else "opted_back_in")
        assert ("opt_out_scope_info" in item) == consent.opted_out
    away = next(h for h in STORY if isinstance(h, DutyHappening) and h.duty == "away" and h.reason)
    status = rest_duty_status(WORLD, away.member, away.at_ms)
    assert status == {
        "duty_status_reason": away.reason,
        "duty_status_started": status["duty_status_started"],
        "on_duty": False,
        "on_duty_started": None,
        "on_duty_status": "unavailable",
        "user_id": str(away.member.id),
    }
    assert re.fullmatch(r"2026-09-2\dT\d\d:\d\d:\d\d", status["duty_status_started"])


# Oddities.


def odd(**shares: Any) -> dict[int, list[dict[str, Any]]]:
    oddities = Oddities(seed=9, **shares)
    return {nth: payloads(happening, oddities) for nth, happening in enumerate(STORY)}


USUAL = [payload(happening) for happening in STORY]


def test_without_oddities_nothing_is_odd() -> None:
    assert odd() == {nth: [event] for nth, event in enumerate(USUAL)}


@pytest.mark.parametrize(
    "name",
    ["late_bodies", "empty_objects", "text_ids", "missing_keys", "missed_and_hangup"],
)
def test_an_oddity_strikes_a_share_of_the_subjects_always_the_same(name: str) -> None:
    assert odd(**{name: 0.4}) == odd(**{name: 0.4})
    oddities = Oddities(seed=9, **{name: 0.4})  # type: ignore[arg-type]
    legs = {leg.id for leg in LEGS}
    struck = {ident for ident in legs if oddities.has(name, ident)}
    assert len(struck) / len(legs) == pytest.approx(0.4, abs=0.05)
    others = {ident for ident in legs if Oddities(seed=8, **{name: 0.4}).has(name, ident)}  # type: ignore[arg-type]
    assert others != struck
    for nth, events in odd(**{name: 0.4}).items():
        if not oddities.has(name, STORY[nth].subject_id):
            assert events == [USUAL[nth]]


def test_late_bodies_know_what_came_after() -> None:
    early: Counter[str] = Counter()
    for nth, (event,) in odd(late_bodies=1, late_by_ms=DAY_MS).items():
        happening = STORY[nth]
        if not isinstance(happening, CallHappening):
            assert event == USUAL[nth]
            continue
        usual = USUAL[nth]
        assert event["date_ended"] == happening.leg.ended_ms
        for key in ("call_id", "state", "event_timestamp", "date_started"):
            assert event[key] == usual[key]
        early[event["state"]] += usual["date_ended"] is None
    assert early["ringing"]
    assert early["calling"]


def test_a_body_that_is_a_little_late_knows_a_little_more() -> None:
    more = 0
    for nth, (event,) in odd(late_bodies=1, late_by_ms=20_000).items():
        for key in ("date_connected", "date_ended"):
            if event.get(key):
                assert event[key] <= STORY[nth].at_ms + 20_000
                more += USUAL[nth][key] is None
    assert more


def test_who_is_not_known_may_be_an_empty_object() -> None:
    emptied: Counter[str] = Counter()
    for nth, (event,) in odd(empty_objects=1).items():
        for key in ("contact", "changed_by"):
            if event.get(key) == {}:
                emptied[key] += 1
                assert event | {key: USUAL[nth][key]} == USUAL[nth]
        if "call_id" in event:
            assert event["contact"] == {} or event["contact"]["type"] == "shared"
    assert emptied.keys() == {"contact", "changed_by"}


def test_ids_may_be_texts() -> None:
    pooled = 0
    for nth, (event,) in odd(text_ids=1).items():
        usual = USUAL[nth]
        if "call_id" in event:
            assert event["call_id"] == str(usual["call_id"])
            assert event["target"]["id"] == str(usual["target"]["id"])
            for key in ("entry_point_call_id", "operator_call_id", "master_call_id"):
                assert event[key] == (str(usual[key]) if usual[key] else None)
            assert event["event_timestamp"] == usual["event_timestamp"]
            pooled += event["contact"]["id"].startswith("shared_contact_pool_Company:")
        elif "message_status" in event:
            assert event["id"] == str(usual["id"])
    assert pooled


def test_keys_may_be_missing_but_not_those_that_make_the_event() -> None:
    missing: set[str] = set()
    for nth, (event,) in odd(missing_keys=1).items():
        usual = USUAL[nth]
        assert event == {key: usual[key] for key in event}
        missing |= usual.keys() - event.keys()
        if "call_id" in usual:
            assert {"call_id", "state", "event_timestamp", "date_ended"} <= event.keys()
        elif "message_status" in usual:
            assert {"id", "message_status", "to_number", "event_timestamp"} <= event.keys()
        elif "on_duty_status" in usual:
            assert "date" in event
            assert "event_timestamp" not in event
    assert {"integrations", "routing_breadcrumbs", "selected_caller_id", "mms_url"} <= missing


def test_a_missed_call_may_end_twice() -> None:
    twice = 0
    for nth, events in odd(missed_and_hangup=1).items():
        states = [event.get("state") for event in events]
        if USUAL[nth].get("state") == "missed":
            twice += 1
            assert states == ["missed", "hangup"]
            assert events[0] == USUAL[nth]
            assert events[1]["event_timestamp"] == events[0]["event_timestamp"]
        else:
            assert events == [USUAL[nth]]
    assert twice


def test_a_payload_may_be_odd_in_every_way() -> None:
    for nth, events in odd(
        late_bodies=1, empty_objects=1, text_ids=1, missing_keys=1, missed_and_hangup=1
    ).items():
        for event in events:
            assert json.loads(json.dumps(event)) == event
            told = {"call_id", "message_status", "event", "action", "date"}
            assert told & event.keys() == told & USUAL[nth].keys()


def unpadded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def test_retries_are_those_of_the_kind() -> None:
    spans_s = {
        type(happening): sum(retry_waits_s(happening))
        for happening in STORY
        if isinstance(happening, CallHappening | TextHappening | DutyHappening)
    }
    assert spans_s == {
        CallHappening: 14,
        TextHappening: pytest.approx(4 * 3600 + 4 * 60, abs=60),
        DutyHappening: pytest.approx(1.5),
    }


def test_the_simulator_imports_nothing_of_ours() -> None:
    (folder,) = ingest.simulator.__path__
    for path in Path(folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    modules = [name.name for name in names]
                case ast.ImportFrom(module=module, level=0) if module:
                    modules = [module]
                case ast.ImportFrom():
                    modules = ["ingest"]  # by dots: not how we write it, so not allowed
                case _:
                    continue
            for module in modules:
                ours = module.split(".")[0] in {"ingest", "schemas", "consumers"}
                assert not ours or f"{module}.".startswith("ingest.simulator."), (path, module)


def test_the_story_is_the_same_in_dialpads_words() -> None:
    def told() -> list[dict[str, Any]]:
        until_ms = START_MS + 20_000
        story: list[Happening] = list(takewhile(lambda h: h.at_ms < until_ms, play(5, START_MS)))
        return [payload(happening) for happening in story]

    assert told() == told()
