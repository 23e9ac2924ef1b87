"""The company: the same for a seed, lively, possible, and never at odds with its own truth."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import fields
from itertools import islice, pairwise, takewhile
from statistics import mean, median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.simulator.company import NEW_AREA, make_company
from ingest.simulator.facts import (
    CallHappening,
    CallStep,
    Centre,
    Change,
    ConsentHappening,
    ContactHappening,
    Department,
    Duty,
    DutyHappening,
    Happening,
    Host,
    Leg,
    Member,
    Office,
    Outsider,
    SettingHappening,
    TextHappening,
    TextStep,
    recap_of,
    transcript_of,
)
from ingest.simulator.story import real_tempo
from ingest.simulator.world import World, play

#: A Monday, 14:13 UTC.
START_MS = 1_790_000_000_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
LONG_MS = 5 * MINUTE_MS
#: At the compressed tempo no conversation lasts longer, so those that began earlier than this
#: before the end are whole.
LONGEST_MS = 2 * MINUTE_MS


def story(seed: int, start_ms: int = START_MS, length_ms: int = LONG_MS) -> list[Happening]:
    return list(takewhile(lambda h: h.at_ms < start_ms + length_ms, play(seed, start_ms)))


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda seed: f"seed{seed}")
def long_story(request: pytest.FixtureRequest) -> list[Happening]:
    return story(request.param)


@pytest.fixture(scope="module")
def days() -> tuple[World, list[Happening]]:
    """Two days of a company with 3000 calls a day, and a night to finish what was begun."""
    world = World(11, START_MS, real_tempo(3000))
    return world, list(world.until(START_MS + 2 * DAY_MS + 12 * HOUR_MS))


def calls(happenings: Iterable[Happening], latest_ms: int) -> dict[int, list[CallHappening]]:
    """Happenings by leg, of legs that had the time to end."""
    legs: dict[int, list[CallHappening]] = defaultdict(list)
    for happening in happenings:
        if isinstance(happening, CallHappening):
            legs[happening.leg.id].append(happening)
    return {i: steps for i, steps in legs.items() if steps[0].leg.started_ms < latest_ms}


def whole_calls(happenings: list[Happening]) -> dict[int, list[CallHappening]]:
    length_ms = happenings[-1].at_ms - START_MS
    return calls(
        happenings, happenings[-1].at_ms - (LONGEST_MS if length_ms <= LONG_MS else 8 * HOUR_MS)
    )


def test_a_seed_tells_one_story() -> None:
    assert repr(story(7)) == repr(story(7))
    assert repr(story(7)) != repr(story(8))
    first, second = (
        [*islice(World(7, START_MS, real_tempo(500)).happenings(), 3000)] for _ in "12"
    )
    assert repr(first) == repr(second)


def test_a_later_run_tells_the_same_story_later_with_other_ids() -> None:
    first = story(7)
    later_ms = first[-1].at_ms + 1
    second = story(7, later_ms)
    assert [(type(h), h.at_ms - START_MS) for h in first] == [
        (type(h), h.at_ms - later_ms) for h in second
    ]
    made = CallHappening | TextHappening | ContactHappening
    first_ids, second_ids = (
        {h.subject_id for h in run if isinstance(h, made)} for run in (first, second)
    )
    assert max(first_ids) < min(second_ids)
    # JavaScript and jq read no larger integers.
    assert max(second_ids) < 2**53


def test_it_goes_forward_and_is_lively(long_story: list[Happening]) -> None:
    times = [happening.at_ms for happening in long_story]
    assert times == sorted(times)
    assert times[0] == START_MS
    assert sum(at_ms < START_MS + 1000 for at_ms in times) >= 3
    assert 3 <= len(times) / (LONG_MS / 1000) <= 6
    assert max(later - earlier for earlier, later in pairwise(times)) < 4000


def test_everything_happens(days: tuple[World, list[Happening]]) -> None:
    happenings = days[1]
    assert {h.step for h in happenings if isinstance(h, CallHappening)} == set(CallStep)
    assert {h.duty for h in happenings if isinstance(h, DutyHappening)} == set(Duty)
    assert {h.change for h in happenings if isinstance(h, ContactHappening)} == set(Change)
    assert {h.joined for h in happenings if isinstance(h, SettingHappening)} == {True, False}
    assert {h.opted_out for h in happenings if isinstance(h, ConsentHappening)} == {True, False}
    texts = [h for h in happenings if isinstance(h, TextHappening)]
    assert {h.step for h in texts} == set(TextStep)
    assert {h.message.outbound for h in texts} == {True, False}
    assert {h.message.picture for h in texts} == {True, False}
    assert {type(h.message.host) for h in texts} == {Member, Centre}


def test_a_demo_shows_all_kinds_of_steps_in_five_minutes() -> None:
    steps = {h.step for seed in (1, 2) for h in story(seed) if isinstance(h, CallHappening)}
    assert steps == set(CallStep)


TALK = "answered (held resumed ){0,2}ended "
AFTER = r"((filed|recording_ready|transcript_ready|\w+_ready) ){0,7}"
MACHINE = "diverted ended (message_ready (message_worded )?)?"
POSSIBLE = {
    "member": re.compile(f"ended |rang ({TALK}{AFTER}|ended |{MACHINE})"),
    "out": re.compile(f"placed rang ({TALK}{AFTER}|ended )"),
    "handed": re.compile(f"rang ({TALK}{AFTER}|ended )"),
    "passed on": re.compile(f"rang ({TALK}{AFTER}|ended )"),
    "from an office": re.compile(f"rang ({TALK}{AFTER}|ended |{MACHINE})"),
    "Centre": re.compile(f"waited (answered ended (rated )?|ended |{MACHINE})"),
    "Department": re.compile(f"rang (answered ended |{MACHINE})"),
    "Office": re.compile("greeted ended "),
}


def role(leg: Leg) -> str:
    if not isinstance(leg.host, Member):
        return type(leg.host).__name__
    if leg.handed_by_leg_id:
        return "handed"
    if leg.through:
        return "from an office" if isinstance(leg.through, Office) else "passed on"
    return "out" if leg.outbound else "member"


def test_every_leg_takes_a_possible_way_and_ends_once(
    days: tuple[World, list[Happening]], long_story: list[Happening]
) -> None:
    for happenings, all_roles in ((days[1], True), (long_story, False)):
        seen = set()
        for steps in whole_calls(happenings).values():
            kind = role(steps[0].leg)
            way = "".join(f"{happening.step} " for happening in steps)
            assert POSSIBLE[kind].fullmatch(way), (kind, way)
            assert way.split().count("ended") == 1
            assert [h.at_ms for h in steps] == sorted({h.at_ms for h in steps})
            assert steps[0].at_ms == steps[0].leg.started_ms
            seen.add(kind)
        assert not all_roles or seen == set(POSSIBLE)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), calls_a_day=st.sampled_from([None, 200, 5000]))
def test_whatever_the_seed_the_story_is_possible(seed: int, calls_a_day: int | None) -> None:
    world = World(seed, START_MS, real_tempo(calls_a_day)) if calls_a_day else World(seed, START_MS)
    happenings = [*islice(world.happenings(), 1500)]
    times = [happening.at_ms for happening in happenings]
    assert times == sorted(times)
    subjects = defaultdict(list)
    for happening in happenings:
        subjects[type(happening), happening.subject_id].append(happening.at_ms)
        if isinstance(happening, CallHappening):
            assert happening.leg.ended_ms is not None
            assert happening.leg is world.legs[happening.subject_id]
    for (kind, _), clocks in subjects.items():
        # A centre may lose two members in one moment.
        assert kind is SettingHappening or clocks == sorted(set(clocks))
    made = [*world.legs, *world.messages, *world.contact_changes]
    assert len(made) == len(set(made))


def test_a_leg_is_known_as_far_as_it_has_come(days: tuple[World, list[Happening]]) -> None:
    for steps in whole_calls(days[1]).values():
        leg = steps[-1].leg
        for earlier, later in pairwise(happening.then for happening in steps):
            for name in (field.name for field in fields(Leg)):
                before, after = getattr(earlier, name), getattr(later, name)
                assert before == after or not before or name == "holds", name
        assert steps[0].leg.as_of(leg.started_ms - 1).ended_ms is None
        assert steps[-1].then == leg == leg.as_of(10**15)
        for happening in steps:
            assert_nothing_is_known_too_early(happening)
        clocks = (leg.started_ms, leg.rang_ms, leg.answered_ms, leg.ended_ms)
        known = [clock for clock in clocks if clock is not None]
        assert known == sorted(known)


def assert_nothing_is_known_too_early(happening: CallHappening) -> None:
    known, at_ms = happening.then, happening.at_ms
    assert known.id == happening.leg.id
    for name in (field.name for field in fields(Leg)):
        value = getattr(known, name)
        if name.endswith("_ms") and name != "message_ms":
            assert value is None or value <= at_ms, name
    assert all(until_ms <= at_ms for _, until_ms in known.holds)
    if known.ended_ms is None:
        assert True not in {known.recorded, known.handed_on, known.barred}
    if known.answered_ms is None:
        assert known.taken_by_leg_id is None
    if known.message_ready_ms is None:
        assert known.message_ms == 0
    if known.filed_ms is None:
        assert known.filed_as == ()
    if known.rated_ms is None:
        assert known.rating is None


def test_a_hold_is_known_when_it_is_over() -> None:
    leg = Leg(
        id=1,
        conversation_id=1,
        outbound=False,
        outsider=Outsider(2, "+12125550100"),
        host=Office(3, "Office 1", "+14155550100"),
        started_ms=100,
        rang_ms=100,
        answered_ms=200,
        taken_by_leg_id=4,
        holds=((300, 350), (400, 500)),
        ended_ms=900,
        recorded=True,
        recording_ready_ms=1000,
    )
    assert [leg.as_of(at_ms).held_ms for at_ms in (199, 349, 350, 499, 500, 901)] == [
        *(0, 0, 50, 50, 150, 150)
    ]
    assert leg.as_of(150).answered_ms is None
    assert leg.as_of(150).taken_by_leg_id is None
    assert (leg.as_of(200).answered_ms, leg.as_of(200).taken_by_leg_id) == (200, 4)
    assert not leg.as_of(899).recorded
    assert leg.as_of(900).recorded
    assert leg.as_of(999).recording_ready_ms is None
    assert leg.as_of(1000) == leg


def test_legs_of_a_conversation_name_each_other(days: tuple[World, list[Happening]]) -> None:
    world, happenings = days
    assert {h.leg.id for h in happenings if isinstance(h, CallHappening)} == world.legs.keys()
    lengths = Counter(leg.conversation_id for leg in world.legs.values())
    assert {1, 2, 3, 4} <= set(lengths.values())
    for leg in world.legs.values():
        first = world.legs[leg.conversation_id]
        assert first.conversation_id == first.id
        assert (first.outsider, first.outbound) == (leg.outsider, leg.outbound)
        assert first.started_ms <= leg.started_ms
        if leg.through_leg_id is not None:
            group = world.legs[leg.through_leg_id]
            assert group.host == leg.through
            assert group.conversation_id == leg.conversation_id
        if leg.taken_by_leg_id is not None:
            taken = world.legs[leg.taken_by_leg_id]
            assert taken.through_leg_id == leg.id
            assert taken.answered_ms == leg.answered_ms
        if leg.handed_by_leg_id is not None:
            before = world.legs[leg.handed_by_leg_id]
            assert before.handed_on
            assert before.ended_ms == leg.started_ms
            assert before.host != leg.host
            if leg.through_leg_id is not None and not isinstance(leg.through, Office):
                assert world.legs[leg.through_leg_id].ended_ms == leg.ended_ms
    for leg in world.legs.values():
        if isinstance(leg.host, Centre | Department) and leg.answered_ms is not None:
            mine = [other for other in world.legs.values() if other.through_leg_id == leg.id]
            assert leg.holds == tuple(hold for other in mine for hold in other.holds)


def test_conversations_overlap_but_nobody_is_in_two(
    days: tuple[World, list[Happening]], long_story: list[Happening]
) -> None:
    for happenings in (days[1], long_story):
        by_member: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for steps in whole_calls(happenings).values():
            leg = steps[-1].leg
            if isinstance(leg.host, Member) and leg.ended_ms is not None:
                by_member[leg.host.id].append((leg.started_ms, leg.ended_ms))
        assert len(by_member) > 3
        for spans in by_member.values():
            for (_, ended_ms), (started_ms, _) in pairwise(sorted(spans)):
                assert ended_ms < started_ms
        edges = [
            (at, way)
            for spans in by_member.values()
            for a, b in spans
            for at, way in ((a, 1), (b, -1))
        ]
        most = now = 0
        for _, way in sorted(edges):
            now += way
            most = max(most, now)
        assert most >= 3


def test_a_few_talks_are_much_longer_than_most_and_none_is_endless(
    days: tuple[World, list[Happening]], long_story: list[Happening]
) -> None:
    for happenings, longest_ms in ((days[1], 2 * HOUR_MS + 15 * MINUTE_MS), (long_story, 41_000)):
        talks = [
            leg.ended_ms - leg.answered_ms
            for steps in whole_calls(happenings).values()
            if (leg := steps[-1].leg).answered_ms and leg.ended_ms and isinstance(leg.host, Member)
        ]
        assert 1.2 * median(talks) < mean(talks)
        assert 4 * median(talks) < max(talks) < longest_ms


def test_real_days_are_as_busy_as_asked_for_and_follow_the_clock() -> None:
    world = World(3, START_MS, real_tempo(1500))
    world.advance(START_MS + 14 * DAY_MS)
    firsts = [leg for leg in world.legs.values() if leg.id == leg.conversation_id]
    assert len(firsts) / 14 == pytest.approx(1500, rel=0.05)
    hours = Counter(leg.started_ms // HOUR_MS % 24 for leg in firsts)
    assert hours[18] > 30 * hours[9]  # ten in the morning and one at night, eight behind UTC
    per_day = Counter((leg.started_ms // HOUR_MS - 8) // 24 for leg in firsts)
    sunday = (START_MS // HOUR_MS - 8) // 24 + 6
    assert 2 * per_day[sunday] < per_day[sunday + 1]


def test_recaps_and_recordings_come_minutes_later(days: tuple[World, list[Happening]]) -> None:
    for name, low_s, high_s in (("recap_ready_ms", 60, 300), ("recording_ready_ms", 15, 700)):
        waits_s = [
            (getattr(leg, name) - leg.ended_ms) / 1000
            for leg in days[0].legs.values()
            if getattr(leg, name) and leg.ended_ms
        ]
        assert waits_s
        assert low_s <= min(waits_s)
        assert max(waits_s) <= high_s


def test_a_transcript_lies_within_the_talk_and_a_recap_says_something(
    days: tuple[World, list[Happening]],
) -> None:
    read = 0
    for leg in days[0].legs.values():
        lines = transcript_of(leg)
        assert bool(lines) == (leg.transcript_ready_ms is not None)
        assert lines == transcript_of(leg)
        for line in lines:
            assert leg.answered_ms is not None
            assert leg.ended_ms is not None
            assert leg.answered_ms <= line.at_ms <= leg.ended_ms
            assert line.speaker in {leg.host, leg.outsider}
            assert line.words
        read += len(lines)
        assert recap_of(leg).summary
    assert read > 1000


# The truth, by another way than the world's.


@pytest.mark.parametrize("after_h", [0, 5, 30, 60])
def test_concluded_is_what_had_ended_newest_first(
    days: tuple[World, list[Happening]], after_h: int
) -> None:
    world, happenings = days
    at_ms = START_MS + after_h * HOUR_MS
    ended = {
        h.leg.id
        for h in happenings
        if isinstance(h, CallHappening) and h.step is CallStep.ENDED and h.at_ms <= at_ms
    }
    found = [*world.concluded(at_ms)]
    assert {leg.id for leg in found} == ended
    assert len(found) == len(ended)
    starts = [leg.started_ms for leg in found]
    assert starts == sorted(starts, reverse=True)
    for leg in found:
        assert leg == world.legs[leg.id].as_of(at_ms)
    after_ms, before_ms = START_MS + 2 * HOUR_MS, START_MS + 4 * HOUR_MS
    within = [*world.concluded(at_ms, after_ms=after_ms, before_ms=before_ms)]
    assert within == [leg for leg in found if after_ms <= leg.started_ms < before_ms]


def test_a_window_takes_its_beginning_and_not_its_end(
    days: tuple[World, list[Happening]],
) -> None:
    world, _ = days
    leg = [*world.legs.values()][50]
    ids = [
        {
            other.id
            for other in world.concluded(
                10**15, after_ms=leg.started_ms + shift, before_ms=leg.started_ms + shift + 1
            )
        }
        for shift in (-1, 0, 1)
    ]
    assert [leg.id in found for found in ids] == [False, True, False]


def test_a_leg_is_concluded_from_its_end_on(days: tuple[World, list[Happening]]) -> None:
    world, _ = days
    leg = [*world.legs.values()][50]
    assert leg.ended_ms is not None
    for at_ms, there in ((leg.ended_ms - 1, False), (leg.ended_ms, True)):
        assert (leg.id in {other.id for other in world.concluded(at_ms)}) == there


@pytest.mark.parametrize("after_h", [0, 7, 24, 60])
def test_the_state_of_the_company_is_what_has_happened(
    days: tuple[World, list[Happening]], after_h: int
) -> None:
    world, happenings = days
    at_ms = START_MS + after_h * HOUR_MS
    past = [happening for happening in happenings if happening.at_ms <= at_ms]
    contacts = {o.id: o for o in world.company.outsiders if o.first_name}
    for change in past:
        if isinstance(change, ContactHappening):
            contacts[change.subject_id] = change.outsider
            if change.change is Change.DELETED:
                del contacts[change.subject_id]
    memberships = {(m, c) for m, cs in world.company.centres_of.items() for c in cs}
    for change in past:
        if isinstance(change, SettingHappening):
            edit = memberships.add if change.joined else memberships.remove
            edit((change.member.id, change.centre))
    duties = {h.subject_id: h.duty for h in past if isinstance(h, DutyHappening)}
    consents = {h.subject_id: h.opted_out for h in past if isinstance(h, ConsentHappening)}
    assert world.contacts(at_ms) == contacts
    assert {c.outsider.id: c.opted_out for c in world.consents(at_ms)} == consents
    for member in world.users:
        state = world.duty(member.id, at_ms)
        assert state.duty is duties.get(member.id, Duty.FREE)
        assert START_MS <= state.since_ms <= at_ms
        assert (state.on_since_ms is None) == (state.duty is Duty.AWAY)
        assert set(world.centres_of(member.id, at_ms)) == {
            centre for ident, centre in memberships if ident == member.id
        }
    for centre in world.centres:
        assert {member.id for member in world.members_of(centre.id, at_ms)} == {
            ident for ident, other in memberships if other == centre
        }


def test_who_comes_back_is_on_duty_from_then() -> None:
    world = World(2, START_MS)
    back = next(
        (before, change)
        for _ in world.until(START_MS + LONG_MS)
        for changes in world.duty_changes.values()
        for before, change in pairwise(changes)
        if before.duty is Duty.AWAY
    )
    away, free = back
    ident = away.subject_id
    assert world.duty(ident, away.at_ms).since_ms == away.at_ms
    assert world.duty(ident, away.at_ms).on_since_ms is None
    assert world.duty(ident, free.at_ms - 1).duty is Duty.AWAY
    assert world.duty(ident, free.at_ms).duty is Duty.FREE
    assert world.duty(ident, free.at_ms).on_since_ms == free.at_ms


def test_every_text_is_told_from_its_writing_on(days: tuple[World, list[Happening]]) -> None:
    world, happenings = days
    steps: dict[int, list[tuple[TextStep, int]]] = defaultdict(list)
    for happening in happenings:
        if isinstance(happening, TextHappening):
            steps[happening.subject_id].append((happening.step, happening.at_ms))
    assert steps.keys() == world.messages.keys()
    last = {TextStep.ARRIVED, TextStep.REFUSED, TextStep.LOST}
    for ident, told in steps.items():
        message = world.messages[ident]
        assert told[0] == (TextStep.WRITTEN, message.written_ms)
        if not message.outbound:
            assert len(told) == 1
        elif message.written_ms < happenings[-1].at_ms - 4 * HOUR_MS:
            assert [step for step, _ in told[1:-1]] == [TextStep.CARRIED]
            assert told[-1][0] in last


def test_the_story_goes_on_where_it_was_left() -> None:
    whole = [*islice(World(4, START_MS).happenings(), 300)]
    parted = World(4, START_MS)
    middle_ms = whole[100].at_ms
    first = [*parted.until(middle_ms)]
    assert [*parted.until(middle_ms)] == []
    rest = [*islice(parted.happenings(), 300 - len(first))]
    assert all(h.at_ms < middle_ms for h in first)
    assert repr(first + rest) == repr(whole)


def test_play_tells_the_same_as_the_world_but_no_consents() -> None:
    told = list(World(6, START_MS).until(START_MS + LONG_MS))
    assert any(isinstance(h, ConsentHappening) for h in told)
    assert repr([h for h in told if not isinstance(h, ConsentHappening)]) == repr(story(6))


# Who is there.


@pytest.mark.parametrize("members", [7, 40, 238, 1000])
def test_everybody_has_an_id_a_number_and_an_address_of_their_own(members: int) -> None:
    company = make_company(members, 500)
    hosts: list[Host] = [
        *company.offices,
        *company.departments,
        *company.centres,
        *company.users,
    ]
    everybody: list[Any] = [*hosts, *company.outsiders]
    assert len({one.id for one in everybody}) == len(everybody)
    assert len({one.number for one in everybody}) == len(everybody)
    assert len({user.email for user in company.users}) == members + 1
    assert {number.number for number in company.numbers} == {host.number for host in hosts}
    offices = {office.id for office in company.offices}
    assert {host.office_id for host in hosts} <= offices
    assert sum(not centres for centres in company.centres_of.values()) >= 1
    for centre in company.centres:
        assert any(centre in centres for centres in company.centres_of.values())


def test_every_number_is_kept_for_fiction(days: tuple[World, list[Happening]]) -> None:
    new = [h.outsider for h in days[1] if isinstance(h, ContactHappening)]
    company = make_company(1000, 7200)
    people = (*company.outsiders, *new)
    numbers = {one.number for one in company.numbers} | {one.number for one in people}
    assert any(number.startswith(f"+1{NEW_AREA}") for number in numbers)
    for number in numbers:
        assert re.fullmatch(r"\+1[2-9]\d\d55501\d\d", number)


@pytest.mark.parametrize(("members", "outsiders"), [(1600, 8), (7, 7201)])
def test_a_company_has_no_more_people_than_numbers(members: int, outsiders: int) -> None:
    with pytest.raises(ValueError, match="too many"):
        make_company(members, outsiders)
