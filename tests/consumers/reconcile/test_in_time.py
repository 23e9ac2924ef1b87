"""Pairs with short settings: what comes about when waiting ends, against the letter.

No side is missing that was on the log before that, however shortly.
"""

from collections.abc import Sequence
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from consumers.reconcile.core import Core
from consumers.reconcile.entries import PairSetup
from consumers.reconcile.facts import CallFact, Fact, Mark
from consumers.reconcile.verdicts import ABSENCES, Rules
from ingest.eventlog.log import Record
from schemas.times import rfc3339
from tests.consumers.reconcile.test_pairs import CENTRE, final, listed, of_pair, read, who
from tests.consumers.reconcile.world import HOUR, SECOND, T0, Memory, event

LENGTH_MS = 3 * SECOND

#: On either side of a moment, and of when the row is written of what came then.
ABOUT_MS = (-2000, -1001, -1000, -999, -500, -1, 0, 1, 500, 999, 1000, 1001, 2000, 9000)


class Call(Struct, frozen=True, kw_only=True):
    """What was heard of a call when, by the log's clock; None: never.

    Each is of another caller, so whose record is whose is plain.
    """

    end_ms: int
    begin_pushed_ms: int | None
    end_pushed_ms: int | None
    running_ms: int | None
    recorded_ms: int | None


class World(Struct, frozen=True, kw_only=True):
    settle_ms: int
    hold_ms: int
    #: When the agent's number was known.
    agent_ms: int
    calls: Sequence[Call]
    #: When the list was read up to then.
    marks_ms: Sequence[int]

    def facts(self) -> list[Fact]:
        facts: list[Fact] = [listed(CENTRE, at_ms=self.agent_ms)]
        facts += [read(ms, ms) for ms in self.marks_ms]
        for nth, call in enumerate(self.calls):
            facts += _facts(nth, call)
        return facts

    def core(self) -> Core:
        return Core(
            Memory(),
            Rules(settle_ms=self.settle_ms, hold_max_ms=self.hold_ms),
            connections=["acme", "bots"],
            judged={},
            since_ms=0,
            window_ms=72 * HOUR,
            pairs=[PairSetup(pushed="acme", recorded="bots")],
        )


def _facts(nth: int, call: Call) -> list[CallFact]:
    start_ms = call.end_ms - LENGTH_MS
    begun = {
        "started_at": start_ms,
        "direction": "inbound",
        "internal": who(CENTRE),
        "external": who(f"+1555999{nth:04}"),
    }
    over = {"ended_at": call.end_ms, "outcome": "answered", "total_duration_s": LENGTH_MS / 1000}
    connected = {"connected_at": start_ms}
    told = [
        (call.begin_pushed_ms, "acme", "connected", begun | connected),
        (call.end_pushed_ms, "acme", "ended", begun | connected | over),
        (call.running_ms, "bots", "recorded", begun),
        (call.recorded_ms, "bots", "recorded", begun | over),
    ]
    return [
        event(
            str(100 + nth) if connection == "acme" else f"r{nth}",
            what,
            at_ms,
            time_ms=start_ms,
            ident=f"{connection}:{nth}:{what}:{len(data)}",
            connection=connection,
            via="webhook" if connection == "acme" else "poll",
            **data,
        )
        for at_ms, connection, what, data in told
        if at_ms is not None
    ]


def _not_before(end_ms: int, after_ms: Sequence[int]) -> int:
    return max(end_ms, end_ms + sum(after_ms))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    settle_ms = draw(st.sampled_from([0, SECOND, 5 * SECOND]))
    hold_ms = settle_ms + draw(st.sampled_from([0, 2 * SECOND, 30 * SECOND]))
    about = st.sampled_from(ABOUT_MS)
    calls = []
    for _ in range(draw(st.integers(1, 3))):
        end_ms = T0 + draw(st.sampled_from([0, SECOND, 4 * SECOND]))
        when = st.tuples(st.sampled_from([0, settle_ms, hold_ms]), about)
        over = when.map(partial(_not_before, end_ms))
        runs = st.integers(end_ms - LENGTH_MS, end_ms - 1)
        calls.append(
            Call(
                end_ms=end_ms,
                begin_pushed_ms=draw(st.none() | runs),
                end_pushed_ms=draw(st.none() | over),
                running_ms=draw(st.none() | runs),
                recorded_ms=draw(st.none() | over),
            )
        )
    known = [call.recorded_ms or call.end_ms for call in calls]
    return World(
        settle_ms=settle_ms,
        hold_ms=hold_ms,
        agent_ms=draw(st.sampled_from([T0 - HOUR, T0, *known])),
        calls=calls,
        marks_ms=[ms + draw(about) for ms in draw(st.lists(st.sampled_from(known), max_size=3))],
    )


def history(world: World, facts: Sequence[Fact]) -> list[Record]:
    core = world.core()
    for fact in sorted(facts, key=lambda fact: fact.at_ms):
        core.take(fact)
    core.advance(T0 + HOUR)
    return core.out


@given(worlds())
@settings(max_examples=200)
def test_nothing_is_missing_that_came_before_the_end_of_waiting(world: World) -> None:
    out = history(world, world.facts())
    for verdict in of_pair(out):
        data = verdict["data"]
        word, call_id = data["verdict"], data["call_id"]
        call = world.calls[int(call_id.removeprefix("r")) % 100]
        settled_ms, held_ms = call.end_ms + world.settle_ms, call.end_ms + world.hold_ms
        if word == "record_missing" and call.recorded_ms is not None:
            read_ms = [ms for ms in world.marks_ms if ms >= call.end_ms]
            ends_ms = held_ms
            if data["reason"] == "not_listed":
                ends_ms = max(settled_ms, min(read_ms))
            assert call.recorded_ms > max(ends_ms, world.agent_ms), data
        if word == "push_missing" and call.end_pushed_ms is not None:
            ends_ms = settled_ms if call.begin_pushed_ms is None else held_ms
            assert call.end_pushed_ms > max(ends_ms, world.agent_ms), data
        assert verdict["time"] <= rfc3339(
            max(held_ms, *(fact.at_ms for fact in world.facts())) + 4 * SECOND
        )


@given(worlds())
@settings(max_examples=80)
def test_each_call_that_is_over_has_one_verdict_late_only_if_a_side_was_missing(
    world: World,
) -> None:
    out = history(world, world.facts())
    absent = {
        nth
        for each in of_pair(out)
        if each["data"]["verdict"] in ABSENCES
        for nth in [int(each["data"]["call_id"].removeprefix("r")) % 100]
    }
    found: dict[int, list[str]] = {nth: [] for nth in range(len(world.calls))}
    for call_id, data in final(out).items():
        found[int(call_id.removeprefix("r")) % 100].append(data["verdict"])
    for nth, call in enumerate(world.calls):
        match call.end_pushed_ms, call.recorded_ms:
            case None, None:
                wanted = []
            case None, _:
                wanted = ["push_missing"]
            case _, None:
                wanted = ["record_missing"]
            case _:
                wanted = ["late" if nth in absent else "matched"]
        assert found[nth] == wanted


@given(worlds(), st.data())
@settings(max_examples=80)
def test_what_comes_at_one_time_comes_in_no_order(world: World, data: st.DataObject) -> None:
    facts = world.facts()
    # One mark behind the other is one fact.
    marks = [fact for fact in facts if isinstance(fact, Mark)]
    others = [fact for fact in facts if not isinstance(fact, Mark)]
    shuffled = data.draw(st.permutations(others)) + marks
    assert history(world, shuffled) == history(world, facts)
