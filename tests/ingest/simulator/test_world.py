"""The company: the same for a seed, lively, and possible."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise, takewhile
from statistics import mean, median

import pytest

from ingest.simulator.world import (
    CENTRE,
    MEMBERS,
    OUTSIDERS,
    CallHappening,
    CallStep,
    ContactHappening,
    Duty,
    DutyHappening,
    Happening,
    Leg,
    Member,
    SettingHappening,
    TextHappening,
    TextStep,
    play,
)

START_MS = 1_790_000_000_000
LONG_MS = 300_000
#: No conversation lasts longer, so those that began earlier than this before the end are whole.
LONGEST_MS = 40_000


def story(seed: int, start_ms: int = START_MS, length_ms: int = LONG_MS) -> list[Happening]:
    return list(takewhile(lambda h: h.at_ms < start_ms + length_ms, play(seed, start_ms)))


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda seed: f"seed{seed}")
def long_story(request: pytest.FixtureRequest) -> list[Happening]:
    return story(request.param)


def calls(happenings: Iterable[Happening]) -> dict[int, list[CallHappening]]:
    """Happenings by leg, of legs that had the time to end."""
    legs: dict[int, list[CallHappening]] = defaultdict(list)
    for happening in happenings:
        if isinstance(happening, CallHappening):
            legs[happening.leg.id].append(happening)
    latest_ms = START_MS + LONG_MS - LONGEST_MS
    return {i: steps for i, steps in legs.items() if steps[0].leg.started_ms < latest_ms}


def final_legs(happenings: Iterable[Happening]) -> list[Leg]:
    return [steps[-1].leg for steps in calls(happenings).values()]


def test_a_seed_tells_one_story() -> None:
    assert story(7) == story(7)
    assert story(7) != story(8)


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
    assert max(later - earlier for earlier, later in pairwise(times)) < 2500


def test_everything_happens(long_story: list[Happening]) -> None:
    assert {h.step for h in long_story if isinstance(h, CallHappening)} == set(CallStep)
    assert {h.duty for h in long_story if isinstance(h, DutyHappening)} == set(Duty)
    assert {h.new for h in long_story if isinstance(h, ContactHappening)} == {True, False}
    assert {h.joined for h in long_story if isinstance(h, SettingHappening)} == {True, False}
    texts = [h for h in long_story if isinstance(h, TextHappening)]
    assert {h.step for h in texts} == set(TextStep)
    assert {h.outbound for h in texts} == {True, False}


TALK = "answered (held resumed )?ended (recording_ready )?"
POSSIBLE = {
    "member": re.compile(f"rang ({TALK}|ended |diverted ended message_ready )"),
    "out": re.compile(f"placed rang ({TALK}|ended )"),
    "through": re.compile(f"rang {TALK}"),
    "centre": re.compile("waited (answered )?ended "),
}


def role(leg: Leg) -> str:
    if leg.host is CENTRE:
        return "centre"
    if leg.centre:
        return "through"
    return "out" if leg.outbound else "member"


def test_every_leg_takes_a_possible_way_and_ends_once(long_story: list[Happening]) -> None:
    seen = set()
    for steps in calls(long_story).values():
        kind = role(steps[0].leg)
        way = "".join(f"{happening.step} " for happening in steps)
        assert POSSIBLE[kind].fullmatch(way), (kind, way)
        assert way.split().count("ended") == 1
        assert [h.at_ms for h in steps] == sorted({h.at_ms for h in steps})
        seen.add(kind)
    assert seen == set(POSSIBLE)


def test_a_leg_only_grows(long_story: list[Happening]) -> None:
    for steps in calls(long_story).values():
        for earlier, later in pairwise(happening.leg for happening in steps):
            for name in Leg.__slots__:
                before, after = getattr(earlier, name), getattr(later, name)
                assert before == after or not before, name
        leg = steps[-1].leg
        clocks = (leg.started_ms, leg.rang_ms, leg.answered_ms, leg.ended_ms)
        known = [clock for clock in clocks if clock is not None]
        assert known == sorted(known)


def test_legs_through_the_centre_name_each_other(long_story: list[Happening]) -> None:
    legs = {leg.id: leg for leg in final_legs(long_story)}
    through = [leg for leg in legs.values() if leg.centre_leg_id]
    assert through
    for leg in through:
        assert leg.centre_leg_id is not None
        centre = legs[leg.centre_leg_id]
        assert centre.host is leg.centre is CENTRE
        assert centre.member_leg_id == leg.id
        assert centre.outsider == leg.outsider
        assert centre.answered_ms == leg.answered_ms
        assert centre.ended_ms == leg.ended_ms


def test_conversations_overlap_but_nobody_is_in_two(long_story: list[Happening]) -> None:
    by_member: dict[Member, list[tuple[int, int]]] = defaultdict(list)
    for leg in final_legs(long_story):
        if isinstance(leg.host, Member) and leg.ended_ms is not None:
            by_member[leg.host].append((leg.started_ms, leg.ended_ms))
    assert len(by_member) > 3
    for spans in by_member.values():
        for (_, ended_ms), (started_ms, _) in pairwise(sorted(spans)):
            assert ended_ms < started_ms
    spans = [span for spans in by_member.values() for span in spans]
    assert max(sum(a <= at < b for a, b in spans) for at, _ in spans) >= 3


def test_a_few_talks_are_much_longer_than_most_and_none_is_endless(
    long_story: list[Happening],
) -> None:
    talks = [
        leg.ended_ms - leg.answered_ms
        for leg in final_legs(long_story)
        if leg.answered_ms and leg.ended_ms
    ]
    assert 1.2 * median(talks) < mean(talks)
    assert 4 * median(talks) < max(talks) < LONGEST_MS - 10_000


def test_every_number_is_kept_for_fiction(long_story: list[Happening]) -> None:
    new = [h.outsider for h in long_story if isinstance(h, ContactHappening)]
    numbers = {member.number for member in MEMBERS} | {CENTRE.number}
    numbers |= {outsider.number for outsider in (*OUTSIDERS, *new)}
    assert len(numbers) > len(MEMBERS) + len(OUTSIDERS)
    for number in numbers:
        assert re.fullmatch(r"\+1[2-9]\d\d55501\d\d", number)
