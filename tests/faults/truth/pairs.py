"""Which verdict a call deserves that both providers have seen, and which could not be told apart.

A call of one is paired with the other's by numbers and direction, then by start and duration, as
each of them tells these. Where another choice costs less than the margin more, nobody can know.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from tests.faults.truth.heard import GivenVerdict
from tests.faults.truth.verdict import Found
from tests.faults.truth.world import CLOCK_OFF_MS, Call, World, centre_of
from tests.faults.week.truth import digest

#: `[reconcile]` and `[[reconcile.pairs]]` as nobody has changed them.
SETTLE_MS = 900_000

#: What has come is compared with the other connection's calls a moment later, with what else came.
MOMENT_MS = 5_000
_GATE_MS, _MARGIN_MS = 300_000, 5_000
_START_TOLERANCE_MS, _DURATION_TOLERANCE_MS = 15_000, 3_000

#: A wrong duration does not say more than that where it is weighed against starts.
_DURATION_MOST_MS = 60_000

_BOTH = frozenset({"matched", "late", "mismatch"})


def judge_pairs(
    found: Found,
    world: World,
    standing: Sequence[GivenVerdict],
    given: Sequence[GivenVerdict],
) -> None:
    """``standing``: those of ``given`` that are not revised."""
    pushed: defaultdict[str, list[GivenVerdict]] = defaultdict(list)
    recorded: defaultdict[str, list[GivenVerdict]] = defaultdict(list)
    for each in standing:
        if not each.data.is_within:
            pushed[each.data.pushed_call_id or ""].append(each)
            recorded[each.data.recorded_call_id or ""].append(each)
    was_absent = _ever_absent(given)
    ties = _Ties(world)
    calls = [call for call in world.by_start if centre_of(call) is not None]
    pushed.pop("", None)
    recorded.pop("", None)
    for call in calls:
        mine, theirs = pushed.pop(push_id(call), []), recorded.pop(row_id(call), [])
        verdicts = list({each.id: each for each in (*mine, *theirs)}.values())
        if wanted_of(call) is None and not verdicts:
            continue
        has_tie = ties.near(call)
        found.pair_judged += 1
        found.ties += has_tie
        found.pair_words["/".join(sorted({each.data.verdict for each in verdicts}))] += 1
        problem = _problem(call, verdicts, has_tie=has_tie, was_absent=was_absent)
        if problem is None:
            found.pair_right += 1
        else:
            found.wrong[problem].append(_told(call, verdicts))
        found.false_matches += problem == FALSE_MATCH
    found.wrong["verdicts of the pair on no call"] += [*pushed, *recorded]
    _count_false(found, calls, given, standing)


FALSE_MATCH = "false matches"


def _problem(
    call: Call, verdicts: Sequence[GivenVerdict], *, has_tie: bool, was_absent: set[str | None]
) -> str | None:
    """What is wrong with the verdicts on a call."""
    wanted = wanted_of(call)
    if wanted is None:
        return "verdicts of the pair on what is not over"
    said = [each.data for each in verdicts]
    if has_tie:
        sides = call.is_known + _has_row(call)
        right = [each.verdict for each in said] == ["ambiguous"] * sides
        return None if right else "calls that nobody can tell apart, and not ambiguous"
    if len(said) != 1:
        return "calls of the pair without one final verdict"
    (one,) = said
    names = push_id(call), row_id(call)
    if one.verdict in _BOTH and (one.pushed_call_id, one.recorded_call_id) != names:
        return FALSE_MATCH
    is_late = wanted[0] == "matched" and bool(was_absent & {*names}) and _may_be_late(call)
    right_one = ("late", "") if is_late else wanted
    return None if (one.verdict, one.fields) == right_one else "wrong verdicts of the pair"


def _ever_absent(given: Sequence[GivenVerdict]) -> set[str | None]:
    return {
        ident
        for each in given
        if not each.data.is_within and each.data.verdict.endswith("_missing")
        for ident in (each.data.pushed_call_id, each.data.recorded_call_id)
        if ident is not None
    }


def _count_false(
    found: Found,
    calls: Sequence[Call],
    given: Sequence[GivenVerdict],
    standing: Sequence[GivenVerdict],
) -> None:
    """Of verdicts that were revised."""
    names = {push_id(call): row_id(call) for call in calls}
    stand = {each.id for each in standing}
    found.false_for_a_while += sum(
        names.get(each.data.pushed_call_id or "") != each.data.recorded_call_id
        for each in given
        if not each.data.is_within and each.data.verdict in _BOTH and each.id not in stand
    )


def _told(call: Call, verdicts: Sequence[GivenVerdict]) -> str:
    said = [f"{each.data.verdict} {each.data.reason or ''}" for each in verdicts]
    return f"{push_id(call)}/{row_id(call)}: {said} not {wanted_of(call)}"


def wanted_of(call: Call) -> tuple[str, str] | None:
    """The verdict, and which field differs; late is matched here. None: there is none to give."""
    is_over = call.knowing_ms is not None or call.record.served_ms is not None
    if not _has_row(call):
        return ("record_missing", "") if is_over else None
    if not is_over:  # what began to be told and never ended counts as lost
        return "push_missing", ""
    assert call.row_entry is not None
    return ("mismatch", "connected_duration_s") if call.row_entry.wrong_ms else ("matched", "")


def _has_row(call: Call) -> bool:
    return call.row_entry is not None and call.row_entry.served_ms is not None


def _may_be_late(call: Call) -> bool:
    """Whether one side came behind the deadline.

    A record does not tell how long it rang: of what nobody answered it ends where it begins.
    """
    assert call.row_entry is not None
    assert call.row_entry.served_ms is not None
    knowing = [ms for ms in (call.knowing_ms, call.record.served_ms) if ms is not None]
    row_ended_ms = _begun_ms(call) + CLOCK_OFF_MS + _recorded_ms(call)
    due_ms = min(call.ended_ms, row_ended_ms) + SETTLE_MS
    return max(call.row_entry.served_ms, min(knowing)) > due_ms - MOMENT_MS


def push_id(call: Call) -> str:
    return str(call.leg.id)


def row_id(call: Call) -> str:
    """What identifies Dialgood's record of a call."""
    assert call.row is not None
    record = call.row.record(call.ended_ms)
    if "conversationId" in record:
        return str(record["conversationId"])
    data = record["data"]
    return digest([record["botId"], record["created_at"], data.get("from"), data.get("to")])


class _Ties:
    """Calls between the same two numbers that cannot be told from each other by their clocks."""

    def __init__(self, world: World) -> None:
        self._buckets: defaultdict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in world.by_start:
            if centre_of(call) is not None:
                self._buckets[_numbers(call)].append(call)
        for calls in self._buckets.values():
            calls.sort(key=_begun_ms)

    def near(self, call: Call) -> bool:
        """Whether another choice for either side of it is as good but for the margin."""
        calls, at_ms = self._buckets[_numbers(call)], _begun_ms(call)
        reach_ms = _GATE_MS + CLOCK_OFF_MS
        for other in calls[bisect_left(calls, at_ms - reach_ms, key=_begun_ms) :]:
            if _begun_ms(other) > at_ms + reach_ms:
                return False
            if other is not call and _are_near(call, other):
                return True
        return False


def _numbers(call: Call) -> tuple[str, str]:
    return call.leg.host.number, call.leg.outsider.number


def _are_near(one: Call, other: Call) -> bool:
    pushed = [call for call in (one, other) if call.is_known]
    recorded = [call for call in (one, other) if _has_row(call)]
    straight = [(call, call) for call in pushed if call in recorded]
    crossed = [(a, b) for a in pushed for b in recorded if a is not b]
    if len(crossed) < len(straight) or not crossed:
        return False
    if not all(_may_be_one(*each) for each in crossed):
        return False
    more_ms = sum(_cost_ms(*each) for each in crossed) - sum(_cost_ms(*each) for each in straight)
    return more_ms < _MARGIN_MS or not straight


def _begun_ms(call: Call) -> int:
    """As both tell it: when somebody answered, or else when it began."""
    leg = call.leg
    return leg.started_ms if leg.answered_ms is None else leg.answered_ms


def _lasted_ms(call: Call) -> int:
    return 0 if call.leg.answered_ms is None else call.ended_ms - call.leg.answered_ms


def _recorded_ms(call: Call) -> int:
    assert call.row_entry is not None
    return round(_lasted_ms(call), -3) + call.row_entry.wrong_ms


def _apart_ms(pushed: Call, recorded: Call) -> int:
    return abs(_begun_ms(pushed) - _begun_ms(recorded) - CLOCK_OFF_MS)


def _cost_ms(pushed: Call, recorded: Call) -> int:
    duration_ms = abs(_lasted_ms(pushed) - _recorded_ms(recorded))
    return _apart_ms(pushed, recorded) + min(duration_ms, _DURATION_MOST_MS)


def _may_be_one(pushed: Call, recorded: Call) -> bool:
    """Whether the one could be the other's record for all that they say."""
    if _apart_ms(pushed, recorded) > _GATE_MS:
        return False
    if _apart_ms(pushed, recorded) <= _START_TOLERANCE_MS:
        return True
    ours, theirs = _lasted_ms(pushed), _recorded_ms(recorded)
    return abs(ours - theirs) <= max(_DURATION_TOLERANCE_MS, max(ours, theirs) / 20)
