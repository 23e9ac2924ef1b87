"""Pairs of calls: the right ones, none where there is a doubt, and whatever the order of input."""

import random
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from consumers.reconcile.matching import (
    Alone,
    Candidate,
    Direction,
    Edge,
    Field,
    Group,
    Match,
    PairRules,
    compare,
)

BEGIN_MS = 1_790_000_000_000

RULES = PairRules(gate_ms=300_000, ambiguity_margin_ms=5_000)

AGENT, CALLER = "+61200000001", "+61400000002"


def call(
    ident: str, start_s: float | None, duration_s: float | None = 60, **other: Any
) -> Candidate:
    """An inbound call between the same two numbers, so many seconds after the beginning."""
    fields: dict[str, Any] = {
        "agent_number": AGENT,
        "other_number": CALLER,
        "direction": "inbound",
        "agent_inside": True,
    }
    return Candidate(
        id=ident,
        start_ms=None if start_s is None else BEGIN_MS + round(start_s * 1000),
        duration_ms=None if duration_s is None else round(duration_s * 1000),
        **(fields | other),
    )


FOR_EVER_MS = 10**18


class Pairing(msgspec.Struct):
    """What became of each call; ids as in what was given."""

    matched: list[Match]
    ambiguous: list[Group]
    alone_pushed: list[Alone]
    alone_recorded: list[Alone]
    #: Those that nobody looks at, of either side.
    crowd: tuple[list[str], list[str]]


def field_of(calls: Iterable[tuple[Candidate, bool]], rules: PairRules) -> Field:
    field = Field(rules)
    for one, is_pushed in calls:
        side = "p/" if is_pushed else "r/"
        field.put([msgspec.structs.replace(one, id=side + one.id)], is_pushed=is_pushed)
    return field


def pair(
    pushed: Sequence[Candidate],
    recorded: Sequence[Candidate],
    rules: PairRules,
    rng: random.Random | None = None,
) -> Pairing:
    """What becomes of all of them; ``rng``: put in in any order."""
    calls = [*((one, True) for one in pushed), *((one, False) for one in recorded)]
    if rng is not None:
        rng.shuffle(calls)
    field = field_of(calls, rules)
    idents = [("p/" if is_pushed else "r/") + one.id for one, is_pushed in calls]
    found = Pairing([], [], [], [], ([], []))
    told: set[str] = set()
    for ident in idents:
        if ident in told or field.is_crowd(ident):
            continue
        part = field.around(ident, FOR_EVER_MS)
        assert part.is_whole
        pairing = field.assign(part)
        if pairing is None:
            field.make_crowd([*part.pushed, *part.recorded])
            continue
        told.update(part.pushed, part.recorded)
        for match in pairing.matched:
            found.matched.append(Match(match.pushed[2:], match.recorded[2:], match.runner_up_ms))
        for group in pairing.ambiguous:
            found.ambiguous.append(
                Group(
                    pushed=[each[2:] for each in group.pushed],
                    recorded=[each[2:] for each in group.recorded],
                    pairs=[(one[2:], other[2:]) for one, other in group.pairs],
                )
            )
        for some, all_of_them in (
            (pairing.alone_pushed, found.alone_pushed),
            (pairing.alone_recorded, found.alone_recorded),
        ):
            all_of_them += [
                Alone(one.id[2:], one.reason, [each[2:] for each in one.others]) for one in some
            ]
    found.matched.sort(key=lambda match: match.pushed)
    found.ambiguous.sort(key=lambda group: group.pushed)
    found.alone_pushed.sort(key=lambda alone: alone.id)
    found.alone_recorded.sort(key=lambda alone: alone.id)
    crowd = sorted(ident for ident in idents if field.is_crowd(ident))
    found.crowd = [c[2:] for c in crowd if c[0] == "p"], [c[2:] for c in crowd if c[0] == "r"]
    return found


def matches(pairing: Pairing) -> dict[str, str]:
    return {match.pushed: match.recorded for match in pairing.matched}


def reasons(lonely: Sequence[Alone]) -> dict[str, str]:
    return {alone.id: alone.reason for alone in lonely}


# By hand.


def test_a_call_that_both_sides_have_is_one() -> None:
    pushed, recorded = call("p", 0, 60), call("r", 2, 61.5)
    edge = compare(pushed, recorded, RULES)
    assert edge == Edge(
        pushed="p",
        recorded="r",
        gates={"numbers": True, "direction": True, "start": True, "agreement": True},
        start_distance_ms=2_000,
        duration_distance_ms=1_500,
    )
    assert edge.cost_ms == 3_500
    pairing = pair([pushed], [recorded], RULES)
    assert pairing == Pairing([Match("p", "r", None)], [], [], [], ([], []))


def test_nothing_is_nothing() -> None:
    assert pair([], [], RULES) == Pairing([], [], [], [], ([], []))


def test_two_calls_at_a_time_are_told_apart_by_their_durations() -> None:
    pushed = [call("p1", 0, 60), call("p2", 2, 90)]
    recorded = [call("r1", 2, 60), call("r2", 4, 90)]
    pairing = pair(pushed, recorded, RULES)
    assert matches(pairing) == {"p1": "r1", "p2": "r2"}
    # The other way round: 4 + 30 and 0 + 30 in the place of 2 and 2.
    assert [match.runner_up_ms for match in pairing.matched] == [60_000, 60_000]


def test_two_calls_at_a_time_of_one_duration_are_ambiguous() -> None:
    """With clocks 2 s apart the second push is as near to the first record as can be."""
    pushed = [call("p1", 0), call("p2", 2)]
    recorded = [call("r1", 2), call("r2", 4)]
    pairing = pair(pushed, recorded, RULES)
    [group] = pairing.ambiguous
    assert pairing == Pairing([], [group], [], [], ([], []))
    assert (group.pushed, group.recorded) == (["p1", "p2"], ["r1", "r2"])
    assert group.pairs == [("p1", "r1"), ("p1", "r2"), ("p2", "r1"), ("p2", "r2")]


def test_what_is_ambiguous_takes_in_the_one_that_would_be_left_over() -> None:
    """One record and two pushes a second apart: neither may be called unrecorded."""
    pairing = pair([call("p1", 0), call("p2", 1)], [call("r", 0)], RULES)
    [group] = pairing.ambiguous
    assert (group.pushed, group.recorded) == (["p1", "p2"], ["r"])
    assert pairing.alone_pushed == []


def test_of_three_candidates_the_nearest() -> None:
    recorded = [call("r1", 40), call("r2", 3), call("r3", -20)]
    pairing = pair([call("p", 0)], recorded, RULES)
    assert matches(pairing) == {"p": "r2"}
    assert pairing.matched[0].runner_up_ms == 17_000
    assert reasons(pairing.alone_recorded) == {"r1": "outbid", "r3": "outbid"}
    assert [alone.others for alone in pairing.alone_recorded] == [["p"], ["p"]]


def test_of_three_candidates_two_too_near() -> None:
    recorded = [call("r1", 4), call("r2", -3), call("r3", 30)]
    pairing = pair([call("p", 0)], recorded, RULES)
    [group] = pairing.ambiguous
    assert (group.pushed, group.recorded) == (["p"], ["r1", "r2"])
    assert reasons(pairing.alone_recorded) == {"r3": "outbid"}


@pytest.mark.parametrize(("second_s", "sure"), [(6.999, False), (7, True)])
def test_the_margin_itself_is_enough(second_s: float, *, sure: bool) -> None:
    pairing = pair([call("p", 0)], [call("r1", 2), call("r2", second_s)], RULES)
    assert bool(pairing.matched) is sure
    assert bool(pairing.ambiguous) is not sure


def test_the_nearest_start_is_not_always_the_one() -> None:
    pushed = [call("p1", 0, 60), call("p2", 10, 300)]
    recorded = [call("r1", 9, 60), call("r2", 12, 300)]
    assert matches(pair(pushed, recorded, RULES)) == {"p1": "r1", "p2": "r2"}


def test_nor_is_the_nearest_pair() -> None:
    """To take p2 and r1, 20 s apart, leaves 200 s for the others: more than 80 and 100."""
    pushed = [call("p1", 0, None), call("p2", 100, None)]
    recorded = [call("r1", 80, None), call("r2", 200, None)]
    pairing = pair(pushed, recorded, RULES)
    assert matches(pairing) == {"p1": "r1", "p2": "r2"}
    assert [match.runner_up_ms for match in pairing.matched] == [40_000, 40_000]


def test_a_lost_push_and_a_lost_record_push_nobody_over() -> None:
    """Each could have a neighbour's, and then none would be alone."""
    pushed = [call(f"{n}", 100 * n) for n in range(1, 9)]
    recorded = [call(f"{n}", 100 * n + 2) for n in range(8)]
    pairing = pair(pushed, recorded, RULES)
    assert matches(pairing) == {f"{n}": f"{n}" for n in range(1, 8)}
    assert reasons(pairing.alone_pushed) == {"8": "outbid"}
    assert reasons(pairing.alone_recorded) == {"0": "outbid"}


def test_one_pair_is_better_than_two_that_are_far_apart() -> None:
    """What is not made costs 360.001 s: less than two of 200 s in the place of one of 0 s."""
    pushed = [call("p1", -200, None), call("p2", 0, None)]
    recorded = [call("r1", 0, None), call("r2", 200, None)]
    pairing = pair(pushed, recorded, RULES)
    assert matches(pairing) == {"p2": "r1"}
    assert pairing.matched[0].runner_up_ms == 39_999


@pytest.mark.parametrize(("margin_s", "sure"), [(119.999, True), (120, False)])
def test_the_next_best_may_move_everybody(margin_s: float, *, sure: bool) -> None:
    """Three pairs of 160 s cost 480 s, two of 0 s and one not made 360.001 s; all else 520 s."""
    rules = msgspec.structs.replace(RULES, ambiguity_margin_ms=round(margin_s * 1000))
    pushed = [call(f"p{n}", 160 * n, None) for n in (1, 2, 3)]
    recorded = [call(f"r{n}", 160 * n, None) for n in (2, 3, 4)]
    pairing = pair(pushed, recorded, rules)
    if sure:
        assert matches(pairing) == {"p2": "r2", "p3": "r3"}
        assert [match.runner_up_ms for match in pairing.matched] == [119_999, 119_999]
    else:
        [group] = pairing.ambiguous
        assert group.pairs == [
            ("p1", "r2"),
            ("p2", "r2"),
            ("p2", "r3"),
            ("p3", "r3"),
            ("p3", "r4"),
        ]


def test_a_wrong_duration_does_not_unmake_a_pair() -> None:
    pushed = [call("p1", 0, 60), call("p2", 60, 60)]
    recorded = [call("r1", 2, 3_660), call("r2", 62, 3_660)]
    pairing = pair(pushed, recorded, RULES)
    assert matches(pairing) == {"p1": "r1", "p2": "r2"}
    assert compare(pushed[0], recorded[0], RULES).duration_distance_ms == 3_600_000


def test_a_wrong_start_does_not_unmake_a_pair() -> None:
    pairing = pair([call("p", 0, 600)], [call("r", 300, 629)], RULES)  # within 5 %
    assert matches(pairing) == {"p": "r"}


def test_what_agrees_in_nothing_is_no_pair() -> None:
    pushed, recorded = call("p", 0, 60), call("r", 100, 70)
    pairing = pair([pushed], [recorded], RULES)
    assert reasons(pairing.alone_pushed) == {"p": "no_candidate"}
    assert reasons(pairing.alone_recorded) == {"r": "no_candidate"}
    assert compare(pushed, recorded, RULES).gates["agreement"] is False


def test_a_duration_that_one_side_does_not_say_shuts_no_gate() -> None:
    pushed, recorded = call("p", 0, None), call("r", 100, 70)
    assert matches(pair([pushed], [recorded], RULES)) == {"p": "r"}
    edge = compare(pushed, recorded, RULES)
    assert edge.gates["agreement"] is None
    assert edge.duration_distance_ms is None
    assert edge.cost_ms == 100_000


@pytest.mark.parametrize(("apart_s", "same"), [(300, True), (-300, True), (300.001, False)])
def test_the_gate_itself_is_open(apart_s: float, *, same: bool) -> None:
    assert bool(pair([call("p", 0)], [call("r", apart_s)], RULES).matched) is same
    assert compare(call("p", 0), call("r", apart_s), RULES).gates["start"] is same


@pytest.mark.parametrize(
    ("ours_s", "theirs_s", "agree"),
    [(20, 23, True), (20, 23.001, False), (570, 600, True), (600, 569.999, False)],
    ids=["3_s", "more", "5_percent", "more_of_it"],
)
def test_a_length_within_its_tolerance_agrees(
    ours_s: float, theirs_s: float, *, agree: bool
) -> None:
    """Their starts are too far apart to agree."""
    pushed, recorded = call("p", 0, ours_s), call("r", 100, theirs_s)
    assert bool(pair([pushed], [recorded], RULES).matched) is agree
    assert compare(pushed, recorded, RULES).gates["agreement"] is agree


@pytest.mark.parametrize(("apart_s", "agree"), [(15, True), (-15, True), (15.001, False)])
def test_a_start_within_its_tolerance_agrees(apart_s: float, *, agree: bool) -> None:
    """Their lengths are too far apart to agree."""
    assert bool(pair([call("p", 0, 10)], [call("r", apart_s, 90)], RULES).matched) is agree


def test_other_numbers_are_other_calls() -> None:
    pairing = pair([call("p", 0)], [call("r", 0, other_number="+61400000003")], RULES)
    assert reasons(pairing.alone_pushed) == {"p": "no_candidate"}


def test_numbers_have_no_order() -> None:
    recorded = call("r", 0, agent_number=CALLER, other_number=AGENT)
    assert matches(pair([call("p", 0)], [recorded], RULES)) == {"p": "r"}


def test_where_one_number_is_withheld_the_other_is_enough() -> None:
    pushed = [call("p1", 0, other_number=None), call("p2", 0)]
    recorded = [call("r1", 1, other_number=None), call("r2", 1)]
    pairing = pair(pushed, recorded, RULES)
    assert matches(pairing) == {"p1": "r1", "p2": "r2"}
    both = zip(pushed, recorded, strict=True)
    assert [compare(*each, RULES).gates["numbers"] for each in both] == [None, True]


def test_a_withheld_number_is_nobodys() -> None:
    """That it is the caller whom the other side names would be a guess."""
    pairing = pair([call("p", 0, other_number=None)], [call("r", 0)], RULES)
    assert reasons(pairing.alone_pushed) == {"p": "no_candidate"}
    assert reasons(pairing.alone_recorded) == {"r": "no_candidate"}


@pytest.mark.parametrize(
    ("pushed", "inside", "recorded", "gate"),
    [
        ("inbound", True, "inbound", True),
        ("inbound", True, "outbound", False),
        ("outbound", True, "outbound", True),
        ("outbound", True, "inbound", False),
        # The agent is whom we call, or who calls us: what is out for us is in for it.
        ("outbound", False, "inbound", True),
        ("outbound", False, "outbound", False),
        ("inbound", False, "outbound", True),
        ("inbound", False, "inbound", False),
        ("inbound", None, "outbound", None),
        ("unknown", True, "outbound", None),
        ("inbound", True, "unknown", None),
        ("internal", True, "inbound", None),
        ("inbound", False, "internal", None),
    ],
)
def test_directions(
    *, pushed: Direction, inside: bool | None, recorded: Direction, gate: bool | None
) -> None:
    one = call("p", 0, direction=pushed, agent_inside=inside)
    other = call("r", 0, direction=recorded, agent_inside=None)
    assert compare(one, other, RULES).gates["direction"] is gate
    assert bool(pair([one], [other], RULES).matched) is (gate is not False)


def test_directions_tell_calls_apart() -> None:
    pushed = [call("p1", 0, direction="outbound"), call("p2", 1)]
    recorded = [call("r1", 1, direction="outbound"), call("r2", 0)]
    pairing = pair(pushed, recorded, RULES)
    assert matches(pairing) == {"p1": "r1", "p2": "r2"}
    assert [match.runner_up_ms for match in pairing.matched] == [None, None]


def test_what_cannot_be_compared_says_so() -> None:
    nobody: dict[str, Any] = {"agent_number": None, "other_number": None}
    pairing = pair(
        [call("p1", None), call("p2", 0, **nobody), call("p3", 0)],
        [call("r1", 0, **nobody), call("r2", None), call("r3", 301)],
        RULES,
    )
    assert reasons(pairing.alone_pushed) == {
        "p1": "no_clock",
        "p2": "no_number",
        "p3": "no_candidate",
    }
    assert reasons(pairing.alone_recorded) == {
        "r1": "no_number",
        "r2": "no_clock",
        "r3": "no_candidate",
    }
    assert compare(call("p", None), call("r", None), RULES).gates["start"] is False
    assert compare(call("p", 0, **nobody), call("r", 0, **nobody), RULES).gates["numbers"] is False


def test_absurd_values_are_values() -> None:
    ten_years_s = 315_576_000
    pushed = [call("p1", 0, -60), call("p2", -ten_years_s, 60)]
    recorded = [call("r1", 1, -60), call("r2", 0, 10**15)]
    pairing = pair(pushed, recorded, RULES)
    assert matches(pairing) == {"p1": "r1"}
    assert reasons(pairing.alone_pushed) == {"p2": "no_candidate"}
    assert reasons(pairing.alone_recorded) == {"r2": "outbid"}


def test_without_a_margin_the_ids_decide() -> None:
    rules = msgspec.structs.replace(RULES, ambiguity_margin_ms=0)
    idents = ["a", "b", "c"]
    pairing = pair([call(x, 0) for x in idents], [call(x, 0) for x in reversed(idents)], rules)
    assert matches(pairing) == {x: x for x in idents}
    assert matches(pair([call("p", 0)], [call("r2", 1), call("r1", 1)], rules)) == {"p": "r1"}


# Against all that could be chosen.


def may_be_one(pushed: Candidate, recorded: Candidate, rules: PairRules) -> bool:
    """The gates, told once more."""
    ours = sorted(filter(None, [pushed.agent_number, pushed.other_number]))
    theirs = sorted(filter(None, [recorded.agent_number, recorded.other_number]))
    if not ours or ours != theirs or pushed.start_ms is None or recorded.start_ms is None:
        return False
    apart_ms = abs(pushed.start_ms - recorded.start_ms)
    if apart_ms > rules.gate_ms:
        return False
    told = {pushed.direction, recorded.direction}
    if told <= {"inbound", "outbound"} and pushed.agent_inside is not None:
        equal = len(told) == 1
        if equal is not pushed.agent_inside:
            return False
    if pushed.duration_ms is None or recorded.duration_ms is None:
        return True
    longer_ms = max(pushed.duration_ms, recorded.duration_ms)
    tolerance_ms = max(rules.duration_tolerance_ms, longer_ms * rules.duration_tolerance_ratio)
    differ_ms = abs(pushed.duration_ms - recorded.duration_ms)
    return apart_ms <= rules.start_tolerance_ms or differ_ms <= tolerance_ms


Pairs = frozenset[tuple[str, str]]


def all_choices(
    pushed: Sequence[Candidate], recorded: Sequence[Candidate], rules: PairRules
) -> dict[Pairs, int]:
    """Every way to pair calls one to one, and what it costs."""
    if not pushed:
        return {frozenset(): 0}
    first, *others = pushed
    alone_ms = rules.gate_ms + 60_001  # more than any pair
    found = {
        pairs: cost_ms + alone_ms for pairs, cost_ms in all_choices(others, recorded, rules).items()
    }
    for record in recorded:
        if not may_be_one(first, record, rules):
            continue
        assert first.start_ms is not None
        assert record.start_ms is not None
        more_ms = abs(first.start_ms - record.start_ms)
        if first.duration_ms is not None and record.duration_ms is not None:
            more_ms += min(60_000, abs(first.duration_ms - record.duration_ms))
        left = [other for other in recorded if other is not record]
        for pairs, cost_ms in all_choices(others, left, rules).items():
            found[pairs | {(first.id, record.id)}] = cost_ms + more_ms
    return found


def joined(pairs: Iterable[tuple[str, str]]) -> list[set[tuple[str, str]]]:
    """Pairs that share calls, also by way of others, together."""
    groups: list[set[tuple[str, str]]] = []
    for one in pairs:
        touched = [group for group in groups if any(set(one) & set(other) for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append({one}.union(*touched))
    return groups


NUMBERS = [None, AGENT, CALLER]
#: Two clocks, so that some are near to each other.
STARTS = st.one_of(st.integers(0, 20_000), st.integers(0, 700_000), st.none())
DURATIONS = st.one_of(st.none(), st.integers(-1, 1), st.integers(0, 200_000))
DIRECTIONS: Sequence[Direction] = ["inbound", "outbound", "internal", "unknown"]


@st.composite
def calls(draw: st.DrawFn, side: str, most: int = 6, *, alike: bool = False) -> list[Candidate]:
    """Up to so many calls; ``alike``: nothing but start and duration keeps them apart."""
    found = []
    for number in range(draw(st.integers(0, most))):
        other: dict[str, Any] = {"agent_inside": draw(st.sampled_from([True, False, None]))}
        if not alike:
            other["direction"] = draw(st.sampled_from(DIRECTIONS))
            if draw(st.booleans()):
                other["agent_number"] = draw(st.sampled_from(NUMBERS))
                other["other_number"] = draw(st.sampled_from(NUMBERS))
        else:
            other["agent_inside"] = True
        start_ms = draw(STARTS)
        duration_ms = draw(DURATIONS)
        found.append(
            call(
                f"{side}{number}",
                None if start_ms is None else start_ms / 1000,
                None if duration_ms is None else duration_ms / 1000,
                **other,
            )
        )
    return found


SOME_RULES = st.builds(
    PairRules,
    gate_ms=st.sampled_from([5_000, 100_000, 300_000]),
    ambiguity_margin_ms=st.sampled_from([1, 5_000, 40_000]),
)


def check_against_all(
    pushed: Sequence[Candidate], recorded: Sequence[Candidate], rules: PairRules
) -> None:
    choices = all_choices(pushed, recorded, rules)
    best_ms = min(choices.values())
    least: dict[tuple[str, str], int] = {}  # pair → the least that a choice with it costs
    for pairs, cost_ms in choices.items():
        for one in pairs:
            least[one] = min(cost_ms - best_ms, least.get(one, cost_ms))
    margin_ms = rules.ambiguity_margin_ms
    groups = joined(one for one, more_ms in least.items() if more_ms < margin_ms)
    pairing = pair(pushed, recorded, rules)
    sure = {one for group in groups if len(group) == 1 for one in group}
    assert set(matches(pairing).items()) == sure
    assert sorted(group.pairs for group in pairing.ambiguous) == sorted(
        sorted(g) for g in groups if len(g) > 1
    )
    for match in pairing.matched:
        ends = match.pushed, match.recorded
        rivals = [
            more_ms
            for one, more_ms in least.items()
            if (one[0] == ends[0]) is not (one[1] == ends[1])
        ]
        near = [more_ms for more_ms in rivals if more_ms < max(margin_ms, rules.gate_ms + 60_001)]
        assert match.runner_up_ms == min(near, default=None)


@given(calls("p", 5), calls("r", 5), SOME_RULES)
def test_it_is_the_best_of_all_choices(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules
) -> None:
    check_against_all(pushed, recorded, rules)


@given(calls("p", 5, alike=True), calls("r", 5, alike=True), SOME_RULES)
def test_it_is_the_best_of_all_choices_where_calls_are_alike(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules
) -> None:
    check_against_all(pushed, recorded, rules)


@given(calls("p", alike=True), calls("r", alike=True))
def test_without_a_margin_it_costs_no_more_than_the_best(
    pushed: list[Candidate], recorded: list[Candidate]
) -> None:
    assume(len(pushed) * len(recorded) <= 25)
    rules = PairRules(ambiguity_margin_ms=0)
    choices = all_choices(pushed, recorded, rules)
    pairing = pair(pushed, recorded, rules)
    assert pairing.ambiguous == []
    assert choices[frozenset(matches(pairing).items())] == min(choices.values())


# Whatever is given.


@given(calls("p", 20), calls("r", 20), SOME_RULES)
def test_each_call_is_told_once_and_no_pair_crosses_a_gate(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules
) -> None:
    pairing = pair(pushed, recorded, rules)
    told_pushed = [match.pushed for match in pairing.matched]
    told_recorded = [match.recorded for match in pairing.matched]
    for group in pairing.ambiguous:
        told_pushed += group.pushed
        told_recorded += group.recorded
    told_pushed += [alone.id for alone in pairing.alone_pushed]
    told_recorded += [alone.id for alone in pairing.alone_recorded]
    assert sorted(told_pushed) == sorted(one.id for one in pushed)
    assert sorted(told_recorded) == sorted(one.id for one in recorded)
    by_id = {one.id: one for one in chain(pushed, recorded)}
    pairs = list(matches(pairing).items())
    pairs += [one for group in pairing.ambiguous for one in group.pairs]
    pairs += [(alone.id, other) for alone in pairing.alone_pushed for other in alone.others]
    pairs += [(other, alone.id) for alone in pairing.alone_recorded for other in alone.others]
    for one, other in pairs:
        assert may_be_one(by_id[one], by_id[other], rules)


@given(calls("p"), calls("r"), SOME_RULES)
def test_compare_says_whether_two_may_be_one(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules
) -> None:
    for one in pushed:
        for other in recorded:
            assert compare(one, other, rules).passes is may_be_one(one, other, rules)


@given(
    calls("p", 12),
    calls("r", 12),
    SOME_RULES | st.just(PairRules(ambiguity_margin_ms=0)),
    st.randoms(use_true_random=False),
)
def test_the_order_of_input_decides_nothing(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules, rng: random.Random
) -> None:
    assert pair(pushed, recorded, rules, rng) == pair(pushed, recorded, rules)


@given(calls("p", 12), calls("r", 12), SOME_RULES, st.randoms(use_true_random=False))
def test_names_decide_nothing_where_there_is_a_margin(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules, rng: random.Random
) -> None:
    names = [f"{number:02}" for number in range(12)]
    rng.shuffle(names)
    others = dict(zip([f"p{number}" for number in range(12)], names, strict=True))
    renamed = [msgspec.structs.replace(one, id=others[one.id]) for one in pushed]
    before, after = pair(pushed, recorded, rules), pair(renamed, recorded, rules)
    assert matches(after) == {others[ident]: other for ident, other in matches(before).items()}
    assert sorted((sorted(group.pushed), group.recorded) for group in after.ambiguous) == sorted(
        (sorted(others[ident] for ident in group.pushed), group.recorded)
        for group in before.ambiguous
    )
    assert reasons(after.alone_recorded) == reasons(before.alone_recorded)


@given(calls("p", 12), calls("r", 12), SOME_RULES, st.sampled_from([-1, 1]))
def test_a_call_far_away_changes_nothing(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules, side: int
) -> None:
    far = call("far", side * 10_000, agent_inside=None)
    expected = pair(pushed, recorded, rules)
    with_push = pair([*pushed, far], recorded, rules)
    with_record = pair(pushed, [*recorded, far], rules)
    assert with_push.alone_pushed == sorted(
        [*expected.alone_pushed, Alone("far", "no_candidate", [])], key=lambda alone: alone.id
    )
    assert with_record.alone_recorded == sorted(
        [*expected.alone_recorded, Alone("far", "no_candidate", [])], key=lambda alone: alone.id
    )
    for other in (with_push, with_record):
        assert (other.matched, other.ambiguous) == (expected.matched, expected.ambiguous)


@given(calls("p", 12), calls("r", 12), SOME_RULES, st.randoms(use_true_random=False))
def test_what_came_and_went_leaves_no_trace(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules, rng: random.Random
) -> None:
    calls = [*((one, True) for one in pushed), *((one, False) for one in recorded)]
    rng.shuffle(calls)
    field = field_of(calls, rules)
    gone = calls[: len(calls) // 2]
    for one, is_pushed in gone:
        field.remove(("p/" if is_pushed else "r/") + one.id)
    fresh = field_of(calls[len(gone) :], rules)
    for one, is_pushed in calls[len(gone) :]:
        ident = ("p/" if is_pushed else "r/") + one.id
        assert field.ties(ident) == fresh.ties(ident)
        assert field.around(ident, FOR_EVER_MS) == fresh.around(ident, FOR_EVER_MS)


@given(calls("p", 12), calls("r", 12), SOME_RULES)
def test_a_part_is_all_to_which_calls_lead_that_may_be_one(
    pushed: list[Candidate], recorded: list[Candidate], rules: PairRules
) -> None:
    tied = [(p.id, r.id) for p in pushed for r in recorded if may_be_one(p, r, rules)]
    groups = [sorted(set(chain.from_iterable(group))) for group in joined(tied)]
    field = field_of([*((o, True) for o in pushed), *((o, False) for o in recorded)], rules)
    for group in groups:
        for one in group:
            part = field.around(f"{one[0]}/{one}", FOR_EVER_MS)
            assert sorted(ident[2:] for ident in (*part.pushed, *part.recorded)) == group


# Sizes. Whatever is quadratic here runs into the time limit of a test.


def busy(count: int, every_s: float, off_s: float = 0, **other: Any) -> list[Candidate]:
    """Calls between the same two numbers, with durations of all lengths."""
    return [
        call(f"{n:06}", n * every_s + off_s, (n * 7_919) % 600 + 1, **other) for n in range(count)
    ]


def test_64_calls_a_side_at_a_time_are_told_apart() -> None:
    pairing = pair(busy(64, 4.6), busy(64, 4.6, 2), RULES)
    assert matches(pairing) == {f"{n:06}": f"{n:06}" for n in range(64)}


def test_64_calls_a_side_that_are_all_alike_are_one_group() -> None:
    pairing = pair(
        [call(f"p{n}", 0) for n in range(64)], [call(f"r{n}", 0) for n in range(64)], RULES
    )
    [group] = pairing.ambiguous
    assert len(group.pairs) == 4_096
    assert pairing.crowd == ([], [])


@pytest.mark.parametrize("order", [1, -1])
def test_65_that_one_call_may_be_are_a_crowd_with_all_they_lead_to(order: int) -> None:
    """The next one is 100 s behind the last gate; as long as one of them, it may be theirs."""
    crowd = [call(f"p{n:02}", 4 * n, 60) for n in range(65)][::order]
    recorded = [call("r1", 128, 60), call("r2", 356, 60), call("r3", 357, 900)]
    pairing = pair([*crowd, call("p99", 657, 900)], recorded, RULES)
    assert pairing.crowd == (sorted(one.id for one in crowd), ["r1", "r2"])
    assert matches(pairing) == {"p99": "r3"}
    assert pair(crowd[1:], recorded, RULES).crowd == ([], [])


def test_legs_of_one_call_are_no_crowd() -> None:
    field = Field(RULES)
    field.put([call("r", 0)], is_pushed=False)
    for nth in range(30):
        field.put([call(f"p{nth}", leg) for leg in range(3)], is_pushed=True)
    assert not field.is_crowd("r")
    assert len(field.ties("r")) == 30


def test_of_the_legs_of_a_call_the_nearest_counts() -> None:
    field = Field(RULES)
    field.put([call("p", 0, 90), call("p", 50, 40), call("p", 8, 41)], is_pushed=True)
    field.put([call("r", 52, 41)], is_pushed=False)
    field.put([call("s", 301, 90)], is_pushed=False)
    assert field.ties("p") == {"r": 3_000}
    field.remove("p")
    assert (field.ties("r"), field.ties("s")) == ({}, {})


@given(st.lists(st.integers(0, 900), max_size=40), st.randoms(use_true_random=False))
def test_in_whatever_order_they_come_the_same_are_a_crowd(
    starts: list[int], rng: random.Random
) -> None:
    crowd = [call(f"p{n:02}", n) for n in range(70)]
    more = [call(f"r{n:02}", start_s, 60 + n % 3 * 20) for n, start_s in enumerate(starts)]
    expected = pair(crowd, more, RULES).crowd
    assert pair(crowd, more, RULES, rng).crowd == expected
    # Told once more, in the dullest way.
    ties = {(p.id, r.id) for p in crowd for r in more if may_be_one(p, r, RULES)}
    for r in more:
        gate = [p for p in crowd if abs((p.start_ms or 0) - (r.start_ms or 0)) <= RULES.gate_ms]
        if len(gate) > 64:
            ties |= {(p.id, r.id) for p in gate}
    dense = [r.id for r in more if sum(other == r.id for _, other in ties) > 64]
    reached = set(dense)
    for _ in range(len(more) + 2):
        reached |= {ident for tie in ties if reached & set(tie) for ident in tie}
    assert reached == {*expected[0], *expected[1]}


@given(st.integers(0, 10**9), st.integers(8, 60))
def test_a_look_at_those_around_is_as_good_as_one_at_all(seed: int, every_s: int) -> None:
    """Whatever is farther away than that decides nothing."""
    pushed, recorded = busy_number(random.Random(seed), 120, every_s)
    whole = matches(pair(pushed, recorded, RULES))
    field = field_of([*((o, True) for o in pushed), *((o, False) for o in recorded)], RULES)
    for one in pushed[::7]:
        pairing = field.assign(field.around(f"p/{one.id}", 750_000))
        assert pairing is not None
        found = {match.pushed[2:]: match.recorded[2:] for match in pairing.matched}
        assert found.get(one.id) == whole.get(one.id)


def test_a_call_a_minute_for_days_is_still_looked_at() -> None:
    """All of them are one component."""
    pairing = pair(busy(4_000, 60), busy(4_000, 60, 2), RULES)
    assert matches(pairing) == {f"{n:06}": f"{n:06}" for n in range(4_000)}


def test_50_000_calls_in_an_hour_are_too_many() -> None:
    pairing = pair(busy(50_000, 0.072), busy(50_000, 0.072, 2), RULES)
    idents = [f"{n:06}" for n in range(50_000)]
    assert pairing == Pairing([], [], [], [], (idents, idents))


def test_a_chain_without_end_is_too_many() -> None:
    """Each gate overlaps the next one's, and every choice pushes all others over."""
    pushed = [call(f"{n:06}", n * 60, None) for n in range(4_000)]
    recorded = [call(f"{n:06}", n * 60 + 90, None) for n in range(4_000)]
    pairing = pair(pushed, recorded, RULES)
    assert tuple(map(len, pairing.crowd)) == (4_000, 4_000)


def test_20_000_calls_of_which_the_other_side_has_none_are_just_alone() -> None:
    pairing = pair(busy(20_000, 0.072), [], RULES)
    assert {alone.reason for alone in pairing.alone_pushed} == {"no_candidate"}
    opposite = busy(20_000, 0.072, direction="outbound")
    pairing = pair(busy(20_000, 0.072), opposite, RULES)
    assert pairing.ambiguous == []
    assert len(pairing.alone_recorded) == 20_000


def busy_number(
    rng: random.Random, count: int, every_s: float
) -> tuple[list[Candidate], list[Candidate]]:
    """One call after another, 2 % not pushed, 1 % not recorded, 0.5 % with a wrong duration."""
    pushed, recorded = [], []
    at_s = 0.0
    for number in range(count):
        duration_s = rng.lognormvariate(4.2, 1)
        at_s += duration_s + rng.expovariate(1 / every_s)
        if rng.random() >= 0.02:
            pushed.append(call(f"{number}", at_s, duration_s))
        if rng.random() >= 0.01:
            if rng.random() < 0.005:
                duration_s = duration_s * rng.choice([0, 2, 10]) + 30
            off_s = 2 + rng.uniform(-0.5, 0.5)
            recorded.append(call(f"{number}", at_s + off_s, int(duration_s)))
    return pushed, recorded


@pytest.mark.parametrize("every_s", [20, 60, 300])
def test_a_number_that_is_used_all_the_time(every_s: float) -> None:
    pushed, recorded = busy_number(random.Random(every_s), 3_000, every_s)
    pairing = pair(pushed, recorded, RULES)
    both = {one.id for one in pushed} & {one.id for one in recorded}
    assert matches(pairing) == {ident: ident for ident in both}
    assert (pairing.ambiguous, pairing.crowd) == ([], ([], []))
