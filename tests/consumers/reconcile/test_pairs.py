"""A call that two connections see: which record is which call, and what is said of it when."""

import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.reconcile.agents import Agent
from consumers.reconcile.core import Core
from consumers.reconcile.entries import Entry, PairSetup
from consumers.reconcile.facts import CallFact, Fact, Listed, Mark
from consumers.reconcile.legs import Leg
from consumers.reconcile.matching import Field, PairRules
from consumers.reconcile.pairs import Book
from consumers.reconcile.state import State
from consumers.reconcile.verdicts import Rules
from ingest.eventlog.log import Record
from schemas.conversation import Conversation
from schemas.times import rfc3339
from schemas.verdict import Verdict
from tests.consumers.reconcile.world import (
    HOUR,
    MINUTE,
    SECOND,
    T0,
    Memory,
    ended,
    event,
    events,
    history,
    new_core,
    record,
)

CENTRE, OTHER_CENTRE, CALLER = "+15551230001", "+15551230002", "+15559990001"


def who(number: str | None, **more: Any) -> dict[str, Any]:
    return {
        "kind": None,
        "id": None,
        "name": None,
        "email": None,
        "number": number,
        "number_raw": None,
        "withheld": False,
        **more,
    }


def pushed(call_id: str, at_ms: int, *, number: str = CENTRE, **more: Any) -> CallFact:
    """A call of two minutes to the centre, answered after ten seconds, that ended just now."""
    return ended(call_id, at_ms, **{"internal": who(number), "external": who(CALLER), **more})


def recorded(
    call_id: str,
    end_ms: int,
    at_ms: int,
    *,
    length_ms: int = 110 * SECOND,
    number: str = CENTRE,
    caller: str = CALLER,
    **more: Any,
) -> CallFact:
    """The agent's own record: from when it answered to the end."""
    data = {
        "connection": "bots",
        "ident": f"dialgood:bots:record:{call_id}:{end_ms}:{length_ms}:{'outcome' in more}",
        "connected_at": None,
        "talk_duration_s": None,
        "internal": who(number, kind="agent", id="a1"),
        "external": who(caller),
        **more,
    }
    return record(call_id, end_ms, at_ms, length_ms=length_ms, **data)


def listed(*numbers: str, at_ms: int = T0 - HOUR, agent_id: str = "a1") -> Listed:
    return Listed(
        connection="bots", agent_id=agent_id, name=None, numbers=tuple(numbers), at_ms=at_ms
    )


def read(watermark_ms: int, at_ms: int, agent_id: str = "") -> Mark:
    return Mark(
        connection="bots",
        agent_id=agent_id,
        watermark_ms=watermark_ms,
        swept_ms=None,
        at_ms=at_ms,
    )


def pair_core(store: Memory | None = None, *, setup: Any = None, **more: Any) -> Core:
    options = {
        "connections": ["acme", "bots"],
        "judged": {},
        "pairs": [PairSetup(pushed="acme", recorded="bots", **(setup or {}))],
        **more,
    }
    return new_core(store, **options)


def of_pair(out: Sequence[Record]) -> list[dict[str, Any]]:
    found = [e for e in events(out, "verdicts") if e["type"].startswith("dialstream.verdict.")]
    found = [each for each in found if each["data"]["recorded_connection"] == "bots"]
    for each in found:
        Verdict.model_validate(each["data"])
        data = each["data"]
        assert each["subject"] == f"call/{data['call_id']}"
        assert each["time"] == each["recordedtime"]
        assert data["call_id"] in (data["pushed_call_id"], data["recorded_call_id"])
        assert each["id"].startswith(f"verdict:{each['connection']}:{data['call_id']}:bots:")
    return found


def told(out: Sequence[Record]) -> list[tuple[str, str, int, str | None]]:
    """(call, word, n, reason) of each, in their order."""
    data = [each["data"] for each in of_pair(out)]
    return [(d["call_id"], d["verdict"], d["n"], d["reason"]) for d in data]


def final(out: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """What a reader has in the end: the highest n of each call, without what is void."""
    found: dict[str, dict[str, Any]] = {}
    void = set()
    for each in of_pair(out):
        data = each["data"]
        void.add(data["revises"])
        known = found.get(data["call_id"])
        if known is None or known["data"]["n"] < data["n"]:
            found[data["call_id"]] = each
    return {call: each["data"] for call, each in found.items() if each["id"] not in void}


def rows(out: Sequence[Record]) -> dict[tuple[str, str], dict[str, Any]]:
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for each in out:
        connection, _, name = each.key.decode().partition("/")
        if each.topic == "ledger" and each.value is None:
            del last[connection, name]
        elif each.topic == "ledger":
            last[connection, name] = events([each], "ledger")[0]["data"]
            Conversation.model_validate(last[connection, name])
    return last


AGENT = listed(CENTRE)


# By hand


def test_a_call_that_both_have_seen_is_matched_and_each_row_names_the_other() -> None:
    facts: list[Fact] = [AGENT, pushed("100", T0), recorded("r1", T0, T0 + MINUTE)]
    out = history(pair_core(), facts)
    assert told(out) == [("100", "matched", 1, None)]
    (verdict,) = of_pair(out)
    assert verdict["connection"] == "acme"
    data = verdict["data"]
    assert (data["pushed_call_id"], data["recorded_call_id"]) == ("100", "r1")
    assert (data["pushed_connection"], data["recorded_connection"]) == ("acme", "bots")
    assert data["revises"] is None
    ledger = rows(out)
    assert ledger["acme", "100"]["counterparts"] == [{"connection": "bots", "call_id": "r1"}]
    assert ledger["bots", "r1"]["counterparts"] == [{"connection": "acme", "call_id": "100"}]
    assert ledger["acme", "100"]["verdicts"] == [verdict["id"]]
    assert ledger["bots", "r1"]["verdicts"] == [verdict["id"]]


def test_a_verdict_waits_until_the_call_has_settled() -> None:
    core = pair_core()
    facts: list[Fact] = [AGENT, pushed("100", T0), recorded("r1", T0, T0 + MINUTE)]
    assert told(history(core, facts, T0 + 15 * MINUTE - SECOND)) == []
    core.advance(T0 + 15 * MINUTE + SECOND)
    assert told(core.out) == [("100", "matched", 1, None)]


def test_an_agent_that_calls_somebody_of_theirs_is_seen_the_other_way_round() -> None:
    call = ended("100", T0, internal=who(CALLER), external=who(CENTRE), direction="inbound")
    facts: list[Fact] = [AGENT, call, recorded("r1", T0, T0 + MINUTE, direction="outbound")]
    assert told(history(pair_core(), facts)) == [("100", "matched", 1, None)]


def test_calls_of_other_numbers_are_no_business_of_the_pair() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0, number=OTHER_CENTRE),
        recorded("r1", T0, T0 + MINUTE, number=OTHER_CENTRE),
        read(T0 + HOUR, T0 + HOUR),
    ]
    assert told(history(pair_core(), facts)) == []


def test_numbers_of_the_setting_stand_in_the_place_of_the_agents() -> None:
    core = pair_core(setup={"numbers": frozenset([OTHER_CENTRE])})
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        pushed("200", T0, number=OTHER_CENTRE),
        recorded("r2", T0, T0 + MINUTE, number=OTHER_CENTRE),
    ]
    assert told(history(core, facts)) == [("200", "matched", 1, None)]


def test_a_record_alone_was_never_pushed_and_nothing_is_mended() -> None:
    out = history(pair_core(), [AGENT, recorded("r1", T0, T0 + MINUTE)])
    assert told(out) == [("r1", "push_missing", 1, "never_pushed")]
    (verdict,) = of_pair(out)
    assert verdict["connection"] == "bots"
    assert verdict["data"]["pushed_call_id"] is None
    assert verdict["data"]["pushed_connection"] == "acme"
    assert events(out, "calls") == []
    # settle_s after its end, and what has come in that second was looked at, too.
    assert verdict["time"] == "2026-09-21T14:15:01.001Z"


def test_that_a_record_is_missing_is_said_once_the_list_was_read_so_far() -> None:
    core = pair_core()
    facts: list[Fact] = [AGENT, pushed("100", T0)]
    assert told(history(core, facts, T0 + HOUR)) == []
    assert told(history(core, [read(T0 - SECOND, T0 + HOUR)], T0 + 2 * HOUR)) == []
    out = history(core, [read(T0 + MINUTE, T0 + 2 * HOUR)], T0 + 3 * HOUR)
    assert told(out) == [("100", "record_missing", 1, "not_listed")]


@pytest.mark.parametrize("between_ms", [0, 10, 1500])
def test_what_was_listed_before_the_mark_is_not_missing(between_ms: int) -> None:
    """A poller that was away for an hour reads on: records, and at once how far it has read."""
    back_ms = T0 + HOUR
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, back_ms),
        read(T0 + MINUTE, back_ms + between_ms),
    ]
    assert told(history(pair_core(), facts)) == [("100", "matched", 1, None)]


def test_a_push_that_came_just_before_the_end_of_waiting_is_not_missing() -> None:
    due_ms = T0 + 15 * MINUTE
    push = msgspec.structs.replace(pushed("100", T0), at_ms=due_ms - 100)
    facts: list[Fact] = [AGENT, recorded("r1", T0, T0 + MINUTE), push]
    assert told(history(pair_core(), facts)) == [("100", "matched", 1, None)]


#: When `pushed("100", T0)` has waited for its list long enough, and a little later.
HELD = T0 - 500 + 6 * HOUR
A_MOMENT = 100


def test_a_record_that_ends_just_before_the_end_of_waiting_is_not_missing() -> None:
    running = recorded("r1", T0, T0, ended_at=None, outcome=None, total_duration_s=None)
    facts: list[Fact] = [AGENT, pushed("100", T0), running, recorded("r1", T0, HELD - A_MOMENT)]
    assert told(history(pair_core(), facts)) == [("100", "matched", 1, None)]


def test_an_ending_pushed_just_before_the_end_of_waiting_is_not_missing() -> None:
    common: dict[str, Any] = {"internal": who(CENTRE), "external": who(CALLER)}
    start_ms = T0 - 2 * MINUTE
    connect = event("100", "connected", start_ms, started_at=start_ms, **common)
    push = msgspec.structs.replace(pushed("100", T0), at_ms=T0 + 6 * HOUR - A_MOMENT)
    facts: list[Fact] = [AGENT, connect, recorded("r1", T0, T0 + MINUTE), push]
    assert told(history(pair_core(), facts)) == [("100", "matched", 1, None)]


def test_the_longer_a_corrected_record_waits_to_be_compared_the_longer_nothing_is_said() -> None:
    """Four may be its call: it is compared with them after four seconds."""
    pushes = [pushed(f"{100 + nth}", T0 + nth * MINUTE) for nth in range(4)]
    back_ms = T0 + HOUR
    wrong = recorded("r1", T0, back_ms, caller="+15559990009")
    facts: list[Fact] = [AGENT, *pushes, wrong, recorded("r1", T0, back_ms + 1100, outcome="x")]
    out = history(pair_core(), facts, T0 + 2 * HOUR)
    assert told(out) == [("100", "matched", 1, None)]


def test_a_record_that_moves_another_to_where_it_belongs_is_compared_first() -> None:
    """The second record is far from the first call, but the second call may have it."""

    def at(start_s: int) -> dict[str, Any]:
        start_ms = T0 + start_s * SECOND
        return {
            "started_at": start_ms,
            "connected_at": start_ms,
            "ended_at": start_ms + 5 * MINUTE,
        }

    over_ms, back_ms = T0 + 10 * MINUTE, T0 + HOUR
    facts: list[Fact] = [
        AGENT,
        pushed("100", over_ms, **at(0)),
        pushed("101", over_ms, **at(150)),
        recorded("r1", over_ms, over_ms, **at(100)),
        recorded("r2", over_ms, back_ms, **at(310)),
        read(back_ms, back_ms),
    ]
    out = history(pair_core(), facts)
    assert not {"record_missing", "push_missing", "late"} & {word for _, word, *_ in told(out)}
    assert {call: data["recorded_call_id"] for call, data in final(out).items()} == {
        "100": "r1",
        "101": "r2",
    }


def test_a_record_that_becomes_one_conversation_with_another_is_not_looked_at_later() -> None:
    back_ms = T0 + HOUR
    other = recorded(
        "r0", T0, back_ms + 900, caller="+15559990009", related_call_ids=["r1"], outcome="missed"
    )
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, back_ms),
        other,
        read(T0 + MINUTE, back_ms),
    ]
    out = told(history(pair_core(), facts))
    assert [each for each in out if each[0] == "100"] == [("100", "matched", 1, None)]


def test_a_list_that_is_read_when_it_was_waited_for_long_enough_is_looked_at() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, HELD + 500),
        read(T0 + MINUTE, HELD + 500),
    ]
    assert told(history(pair_core(), facts)) == [("100", "matched", 1, None)]


def test_whoever_waits_for_a_running_call_after_all_asks_anew_when_that_is_over() -> None:
    """It is the other call's that runs, and in the end its own."""
    mark_ms = T0 + HOUR
    runs: dict[str, Any] = {"started_at": T0 + MINUTE, "ended_at": None, "outcome": None}
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        pushed("101", T0 + 3 * MINUTE),
        recorded("r1", T0, mark_ms, total_duration_s=None, **runs),
        read(mark_ms, mark_ms),
        recorded("r1", T0, HELD - A_MOMENT),
    ]
    out = told(history(pair_core(), facts))
    assert [each for each in out if each[0] == "100"] == [("100", "matched", 1, None)]


def test_a_list_that_is_read_in_the_end_revises_nothing_by_itself() -> None:
    facts: list[Fact] = [AGENT, pushed("100", T0), read(T0 + MINUTE, T0 + 8 * HOUR)]
    assert told(history(pair_core(), facts)) == [("100", "record_missing", 1, "list_not_read")]


def test_whoever_has_the_number_too_is_waited_for_and_what_is_listed_then_is_looked_at() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        read(T0 + MINUTE, T0 + HOUR, "a1"),
        listed(CENTRE, at_ms=T0 + HOUR + 500, agent_id="a2"),
        recorded("r1", T0, T0 + 2 * HOUR),
        read(T0 + MINUTE, T0 + 2 * HOUR, "a2"),
    ]
    assert told(history(pair_core(), facts)) == [("100", "matched", 1, None)]


def test_the_agents_own_mark_decides_and_not_that_of_all() -> None:
    core = pair_core()
    facts: list[Fact] = [
        AGENT,
        read(T0 - HOUR, T0 - HOUR // 2, "a1"),
        pushed("100", T0),
        read(T0 + MINUTE, T0 + HOUR, "a2"),
        read(T0 + MINUTE, T0 + HOUR),
    ]
    assert told(history(core, facts, T0 + 2 * HOUR)) == []
    out = history(core, [read(T0, T0 + 2 * HOUR, "a1")], T0 + 3 * HOUR)
    assert told(out) == [("100", "record_missing", 1, "not_listed")]


def test_a_list_that_nobody_reads_is_not_waited_for_for_ever_and_is_a_gap_once_an_hour() -> None:
    calls = [pushed(name, T0 + nth * 20 * MINUTE) for nth, name in enumerate(("100", "200", "300"))]
    out = history(pair_core(), [AGENT, *calls], T0 + 8 * HOUR)
    assert {each[1:] for each in told(out)} == {("record_missing", 1, "list_not_read")}
    # The first began before the hour.
    assert [
        (gap["connection"], gap["data"]["channel"], gap["data"]["from"])
        for gap in events(out, "gaps")
    ] == [
        ("bots", "records", rfc3339(T0 - HOUR)),
        ("bots", "records", rfc3339(T0)),
    ]


def test_a_record_that_comes_late_revises() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        read(T0 + MINUTE, T0 + HOUR),
        recorded("r1", T0, T0 + 5 * HOUR),
    ]
    out = history(pair_core(), facts)
    assert told(out) == [
        ("100", "record_missing", 1, "not_listed"),
        ("100", "late", 2, None),
    ]
    first, second = of_pair(out)
    assert second["data"]["revises"] == first["id"]


def test_a_push_that_comes_late_voids_what_was_said_of_the_record() -> None:
    late = pushed("100", T0)
    late.at_ms += 3 * HOUR
    out = history(pair_core(), [AGENT, recorded("r1", T0, T0 + MINUTE), late])
    assert told(out) == [("r1", "push_missing", 1, "never_pushed"), ("100", "late", 1, None)]
    first, second = of_pair(out)
    assert second["data"]["revises"] == first["id"]
    assert set(final(out)) == {"100"}
    assert rows(out)["bots", "r1"]["verdicts"] == [second["id"]]


def test_two_that_were_told_of_alone_are_one_when_the_record_is_corrected() -> None:
    off = recorded("r1", T0 - HOUR, T0 + MINUTE)
    right = recorded("r1", T0, T0 + 5 * HOUR)
    out = history(pair_core(), [AGENT, pushed("100", T0), off, read(T0, T0 + HOUR), right])
    assert [each[:3] for each in told(out)] == [
        ("r1", "push_missing", 1),
        ("100", "record_missing", 1),
        ("100", "late", 2),
    ]
    assert final(out)["100"]["revises"] == of_pair(out)[0]["id"]
    assert set(final(out)) == {"100"}


def test_two_that_were_one_are_two_when_the_record_is_corrected() -> None:
    right = recorded("r1", T0, T0 + MINUTE)
    off = recorded("r1", T0 - HOUR, T0 + 5 * HOUR)
    out = history(pair_core(), [AGENT, pushed("100", T0), right, read(T0, T0 + HOUR), off])
    found = final(out)
    assert {call: data["verdict"] for call, data in found.items()} == {
        "100": "record_missing",
        "r1": "push_missing",
    }
    ledger = rows(out)
    assert ledger["acme", "100"]["counterparts"] == []
    assert ledger["bots", "r1"]["counterparts"] == []


@pytest.mark.parametrize(
    ("more", "field", "ours", "theirs"),
    [
        ({"length_ms": 130 * SECOND, "end_ms": T0 + 20 * SECOND}, "connected_duration_s", 110, 130),
        (
            {"end_ms": T0 + 20 * SECOND},
            "connected_at",
            "2026-09-21T13:58:09.500Z",
            "2026-09-21T13:58:30.000Z",
        ),
    ],
    ids=["duration", "start"],
)
def test_what_they_tell_differently_is_a_mismatch(
    more: dict[str, Any], field: str, ours: Any, theirs: Any
) -> None:
    call = recorded("r1", at_ms=T0 + MINUTE, **more)
    out = history(pair_core(), [AGENT, pushed("100", T0), call])
    assert told(out) == [("100", "mismatch", 1, field)]
    ((difference,),) = (each["data"]["differences"] for each in of_pair(out))
    assert (difference["pushed"], difference["recorded"]) == (ours, theirs)


def test_holds_count_and_what_nobody_answered_lasted_no_time() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0, talk_duration_s=30.0, hold_duration_s=80.0),
        recorded("r1", T0, T0 + MINUTE),
        pushed("200", T0 + HOUR, connected_at=None, talk_duration_s=None, outcome="missed"),
        recorded(
            "r2",
            T0 + HOUR - 2 * MINUTE,
            T0 + HOUR,
            length_ms=0,
            outcome="missed",
        ),
    ]
    assert [each[:2] for each in told(history(pair_core(), facts))] == [
        ("100", "matched"),
        ("200", "matched"),
    ]


def test_a_record_whose_clock_is_the_making_of_its_row_is_compared_with_the_end() -> None:
    row = recorded("r1", T0, T0 + MINUTE, started_at=T0, ended_at=None)
    facts: list[Fact] = [AGENT, pushed("100", T0), row]
    at_end = pair_core(setup={"from_end": True})
    assert told(history(at_end, facts)) == [("100", "matched", 1, None)]
    assert told(history(pair_core(), facts)) == [("100", "mismatch", 1, "connected_at")]


def test_the_whole_length_is_compared_where_the_record_counts_all_of_it() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, T0 + MINUTE, length_ms=2 * MINUTE),
    ]
    whole = pair_core(setup={"from_connect": False})
    assert told(history(whole, facts)) == [("100", "matched", 1, None)]
    assert told(history(pair_core(), facts)) == [("100", "mismatch", 1, "connected_duration_s")]


def test_legs_of_one_call_do_not_compete_and_that_is_named_which_connected_then() -> None:
    """The line waits a minute; then an agent has time."""
    common: dict[str, Any] = {"related_call_ids": ["100", "101", "102"]}
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0, **common),
        pushed("101", T0, connected_at=T0 - 50 * SECOND, **common),
        pushed("102", T0, number=OTHER_CENTRE, **common),
        recorded("r1", T0, T0 + MINUTE, length_ms=50 * SECOND),
    ]
    out = history(pair_core(), facts)
    (verdict,) = final(out).values()
    assert (verdict["call_id"], verdict["verdict"]) == ("101", "matched")
    assert len(of_pair(out)) == 1


def test_a_call_that_two_agents_answered_has_two_records() -> None:
    facts: list[Fact] = [
        listed(CENTRE, OTHER_CENTRE),
        pushed("100", T0, related_call_ids=["101"]),
        pushed("101", T0 + 2 * MINUTE, number=OTHER_CENTRE),
        recorded("r1", T0, T0 + MINUTE),
        recorded("r2", T0 + 2 * MINUTE, T0 + 3 * MINUTE, number=OTHER_CENTRE),
    ]
    found = final(history(pair_core(), facts))
    assert {call: data["recorded_call_id"] for call, data in found.items()} == {
        "100": "r1",
        "101": "r2",
    }


def test_a_caller_who_comes_back_to_the_same_number_has_two_records() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        pushed("101", T0 + HOUR, related_call_ids=["100"]),
        recorded("r1", T0, T0 + MINUTE),
        recorded("r2", T0 + HOUR, T0 + HOUR + MINUTE),
    ]
    out = history(pair_core(), facts)
    found = final(out)
    assert {call: data["recorded_call_id"] for call, data in found.items()} == {
        "100": "r1",
        "101": "r2",
    }
    assert rows(out)["acme", "100"]["counterparts"] == [
        {"connection": "bots", "call_id": "r1"},
        {"connection": "bots", "call_id": "r2"},
    ]


def test_what_is_too_near_to_choose_is_ambiguous_and_names_the_candidates() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, T0 + MINUTE),
        recorded("r2", T0 + SECOND, T0 + MINUTE),
        read(T0 + HOUR, T0 + HOUR),
    ]
    out = history(pair_core(), facts)
    found = final(out)
    assert {call: (data["verdict"], data["reason"]) for call, data in found.items()} == {
        "100": ("ambiguous", "near_tie"),
        "r1": ("ambiguous", "near_tie"),
        "r2": ("ambiguous", "near_tie"),
    }
    first, second = found["100"]["candidates"]
    assert first == {
        "call_id": "r1",
        "connection": "bots",
        "gates": {"agreement": True, "direction": True, "numbers": True, "start": True},
        "distances": {"start_s": 0.5, "duration_s": 0.0},
    }
    assert (second["call_id"], second["distances"]["start_s"]) == ("r2", 1.5)
    assert found["100"]["recorded_call_id"] is None
    assert [each["connection"] for each in found["r1"]["candidates"]] == ["acme"]


def test_while_a_candidate_still_runs_nothing_is_missing_until_it_was_held_long_enough() -> None:
    running = recorded("r1", T0, T0 + MINUTE, ended_at=None, outcome=None, total_duration_s=None)
    facts: list[Fact] = [AGENT, pushed("100", T0), running, read(T0 + HOUR, T0 + HOUR)]
    core = pair_core()
    assert told(history(core, facts, T0 + 5 * HOUR)) == []
    out = history(core, [recorded("r1", T0, T0 + 5 * HOUR)], T0 + 6 * HOUR)
    assert told(out) == [("100", "matched", 1, None)]
    out = history(pair_core(), facts, T0 + 7 * HOUR)
    assert told(out) == [("100", "record_missing", 1, "still_running")]


def test_a_record_of_which_the_push_has_no_end_waits_as_long() -> None:
    ringing = event(
        "100",
        "connected",
        T0 - 110 * SECOND,
        started_at=T0 - 2 * MINUTE,
        connected_at=T0 - 110 * SECOND,
        internal=who(CENTRE),
        external=who(CALLER),
        direction="inbound",
    )
    facts: list[Fact] = [AGENT, ringing, recorded("r1", T0, T0 + MINUTE)]
    assert told(history(pair_core(), facts, T0 + 5 * HOUR)) == []
    out = history(pair_core(), facts, T0 + 7 * HOUR)
    assert told(out) == [("100", "push_missing", 1, "ending_missing")]
    late = pushed("100", T0)
    late.at_ms += 8 * HOUR
    out = history(pair_core(), [*facts, late])
    assert final(out)["100"]["verdict"] == "late"


def test_what_was_mended_counts_as_pushed() -> None:
    own = record("100", T0, T0 + 5 * MINUTE, internal=who(CENTRE), external=who(CALLER))
    core = pair_core(judged={"acme": 2 * HOUR})
    out = history(core, [AGENT, own, recorded("r1", T0, T0 + MINUTE)])
    assert [e["id"] for e in events(out, "calls")] == ["dialpad:acme:call:100:hangup:backfilled"]
    assert told(out) == [("100", "matched", 1, None)]


def test_agents_that_become_known_late_have_their_calls_judged_all_the_same() -> None:
    facts: list[Fact] = [
        pushed("100", T0),
        recorded("r1", T0, T0 + MINUTE),
        recorded("r2", T0 + HOUR, T0 + HOUR),
        listed(CENTRE, at_ms=T0 + 5 * HOUR),
    ]
    out = history(pair_core(), facts)
    assert told(out) == [
        ("100", "matched", 1, None),
        ("r2", "push_missing", 1, "never_pushed"),
    ]


def test_what_begins_when_an_agent_has_lost_its_number_is_no_business_of_the_pair() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        listed(at_ms=T0 + MINUTE),
        pushed("200", T0 + HOUR),
        listed(CENTRE, at_ms=T0 + 2 * HOUR),
        listed(at_ms=T0 + 2 * HOUR + MINUTE, agent_id="a2"),
        pushed("300", T0 + 3 * HOUR),
    ]
    out = history(pair_core(), facts, T0 + 12 * HOUR)
    assert [each[:2] for each in told(out)] == [
        ("100", "record_missing"),
        ("200", "record_missing"),  # whoever has it again has never lost it
        ("300", "record_missing"),
    ]
    out = history(pair_core(), facts[:4], T0 + 12 * HOUR)
    assert [each[:2] for each in told(out)] == [("100", "record_missing")]


def test_whose_number_it_was_decides_whose_list_is_waited_for() -> None:
    handed_over: list[Fact] = [
        AGENT,
        listed(CENTRE, agent_id="a2", at_ms=T0),
        listed(agent_id="a1", at_ms=T0 + SECOND),
        read(T0, T0 + SECOND, "a1"),
        pushed("200", T0 + HOUR),
        read(T0 + 2 * HOUR, T0 + 2 * HOUR + SECOND, "a2"),
    ]
    out = history(pair_core(), handed_over, T0 + 3 * HOUR)
    assert told(out) == [("200", "record_missing", 1, "not_listed")]
    both = [each for each in handed_over if each is not handed_over[2]]
    assert told(history(pair_core(), both, T0 + 3 * HOUR)) == []


def test_what_is_older_than_the_window_is_dropped() -> None:
    store = Memory()
    core = pair_core(store)
    facts: list[Fact] = [AGENT, pushed("100", T0), recorded("r1", T0, T0 + MINUTE)]
    out = history(core, facts, T0 + 72 * HOUR)
    assert len(store.entry) == 2
    core.advance(T0 + 74 * HOUR)
    assert store.entry == {}
    assert [(data["verdict"], data["n"]) for data in final(out).values()] == [("matched", 1)]
    assert core.out == []


def test_calls_from_before_are_not_judged() -> None:
    facts: list[Fact] = [
        AGENT,
        recorded("r1", T0, T0 + MINUTE),
        recorded("r2", T0 + HOUR, T0 + HOUR),
    ]
    out = history(pair_core(since_ms=T0), facts)
    assert told(out) == [("r2", "push_missing", 1, "never_pushed")]


def test_two_conversations_that_become_one_leave_one_verdict() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        pushed("300", T0 + 4 * MINUTE),
        recorded("r1", T0, T0 + MINUTE),
        read(T0 + HOUR, T0 + HOUR),
        event("300", "transcript_ready", T0 + 2 * HOUR, related_call_ids=["100"]),
    ]
    out = history(pair_core(), facts)
    found = final(out)
    assert {call: data["verdict"] for call, data in found.items()} == {"100": "matched"}


def test_many_calls_between_two_numbers_stay_cheap() -> None:
    core = pair_core()
    facts: list[Fact] = [AGENT]
    for nth in range(1000):
        at_ms = T0 + nth * SECOND
        facts += [pushed(str(10_000 + nth), at_ms), recorded(f"r{nth}", at_ms, at_ms + SECOND)]
    found = final(history(core, facts, T0 + 12 * HOUR))
    assert len(found) == 2000
    assert {data["reason"] for data in found.values()} == {"too_many"}


DAY_WITH_ABSENCES: Sequence[Fact] = [
    AGENT,
    pushed("100", T0),
    pushed("200", T0 + HOUR),
    recorded("r1", T0, T0 + 2 * HOUR),
    recorded("r3", T0 + 3 * HOUR, T0 + 3 * HOUR),
    read(T0 + MINUTE, T0 + HOUR),
    read(T0 + 2 * HOUR, T0 + 4 * HOUR, "a1"),
]

#: Numbers that become an agent's when their calls are over, and that it has lost later.
LATE_AGENT: Sequence[Fact] = [
    pushed("100", T0),
    recorded("r1", T0, T0 + MINUTE),
    listed(CENTRE, at_ms=T0 + HOUR),
    listed(at_ms=T0 + 2 * HOUR),
    pushed("200", T0 + 3 * HOUR),
    recorded("r3", T0 + 3 * HOUR, T0 + 3 * HOUR),
]

CROWD: Sequence[Fact] = [
    AGENT,
    pushed("100", T0),
    *(recorded(f"r{nth}", T0 + nth * SECOND, T0 + HOUR + nth * SECOND) for nth in range(66)),
    pushed("200", T0 + 10 * SECOND + 2 * HOUR, started_at=T0, connected_at=T0),
]


@pytest.mark.parametrize(
    ("facts", "told_of"),
    [
        (DAY_WITH_ABSENCES, {"100", "200", "r3"}),
        (LATE_AGENT, {"100"}),
        (CROWD, {"100", "200", *(f"r{nth}" for nth in range(66))}),
    ],
    ids=["absences", "late_agent", "crowd"],
)
def test_what_lies_in_the_file_is_enough_to_go_on(
    tmp_path: Path, facts: Sequence[Fact], told_of: set[str]
) -> None:
    """Closed and opened again after each fact."""
    facts = in_order(facts)
    whole = written(pair_core(), facts)
    assert set(final(whole)) == told_of
    out: list[Record] = []
    path = tmp_path / "state.sqlite"
    for fact in [*facts, None]:
        with closing(State.open(path)) as state:
            core = new_core_of(state)
            if state.note("clock_ms") is not None:
                core.restore(
                    state.note("clock_ms"),
                    state.watermarks(),
                    state.timers(),
                    state.every_conversation(),
                )
            if fact is None:
                core.advance(UNTIL)
            else:
                core.take(fact)
            out += core.out
            state.commit({}, core.clock_ms, core.watermarks, core.out)
    assert out == whole


def new_core_of(state: State) -> Core:
    return Core(
        state,
        Rules(),
        connections=["acme", "bots"],
        judged={},
        since_ms=0,
        window_ms=72 * HOUR,
        pairs=[PairSetup(pushed="acme", recorded="bots")],
    )


# Of any history


@st.composite
def days(draw: st.DrawFn) -> list[Fact]:
    """Some calls between few numbers, of which either side may be lost, late or wrong."""
    facts: list[Fact] = [listed(CENTRE, OTHER_CENTRE, at_ms=draw(st.sampled_from([T0, T0 + HOUR])))]
    for nth in range(draw(st.integers(1, 6))):
        number = draw(st.sampled_from([CENTRE, OTHER_CENTRE]))
        end_ms = T0 + draw(st.sampled_from([0, 2 * SECOND, MINUTE, 4 * MINUTE, 2 * HOUR]))
        others = draw(st.lists(st.sampled_from(["100", "101", "90"]), max_size=1))
        if draw(st.integers(0, 3)):
            push = pushed(str(100 + nth), end_ms + 500, number=number, related_call_ids=others)
            push.at_ms += draw(st.sampled_from([0, 0, MINUTE, 3 * HOUR]))
            facts.append(push)
        if draw(st.integers(0, 3)):
            off_ms = draw(st.sampled_from([0, SECOND, 20 * SECOND]))
            read_ms = end_ms + draw(st.sampled_from([MINUTE, 20 * MINUTE, 5 * HOUR]))
            facts.append(recorded(f"r{nth}", end_ms + off_ms, read_ms, number=number))
        if not draw(st.integers(0, 3)):
            facts.append(recorded(f"r{nth}", end_ms, end_ms + 6 * HOUR, number=number))
    reads = range(T0, T0 + 8 * HOUR, HOUR)
    return [*facts, *(read(read_ms - 5 * MINUTE, read_ms) for read_ms in reads)]


UNTIL = T0 + 24 * HOUR


def in_order(facts: Sequence[Fact]) -> list[Fact]:
    return sorted(facts, key=lambda each: (each.at_ms, getattr(each, "id", "")))


def written(core: Core, facts: Sequence[Fact]) -> list[Record]:
    return history(core, facts, UNTIL)


@given(days(), st.data())
@settings(max_examples=60)
def test_arrival_in_whatever_order_leaves_the_history(
    facts: list[Fact], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(facts))
    doubled = [*shuffled, *(f for f in shuffled[:3] if isinstance(f, CallFact))]
    assert written(pair_core(), doubled) == written(pair_core(), facts)


@given(days(), st.lists(st.integers(T0, UNTIL), max_size=5))
@settings(max_examples=60)
def test_however_the_log_is_cut_and_whoever_goes_on_the_same_is_written(
    facts: list[Fact], cuts: list[int]
) -> None:
    whole = written(pair_core(), facts)
    store = Memory()
    core = pair_core(store)
    out: list[Record] = []
    left = in_order(facts)
    for cut in [*sorted(cuts), UNTIL]:
        while left and left[0].at_ms <= cut:
            core.take(left.pop(0))
        core.advance(cut)
        out += core.out
        core.out = []
        store = stored(store)
        after = pair_core(store)
        timers: list[Any] = [
            *((each.wake_ms, "leg", key) for key, each in store.legs.items()),
            *((each.wake_ms, "row", key) for key, each in store.conversations.items()),
        ]
        after.restore(
            core.clock_ms,
            core.watermarks,
            [each for each in timers if each[0] is not None],
            store.every_conversation(),
        )
        core = after
    assert out == whole


def stored(store: Memory) -> Memory:
    """As a file would give it back."""
    again = Memory()

    def copy(thing: Any, kind: type[Any]) -> Any:
        return msgspec.json.decode(msgspec.json.encode(thing), type=kind)

    again.legs = {key: copy(each, Leg) for key, each in store.legs.items()}
    again.conversations = {k: copy(v, type(v)) for k, v in store.conversations.items()}
    again.entry = {key: copy(each, Entry) for key, each in store.entry.items()}
    again.agent = {key: copy(each, Agent) for key, each in store.agent.items()}
    return again


@given(days())
@settings(max_examples=60)
def test_a_call_that_has_nothing_to_do_with_them_changes_nothing(facts: list[Fact]) -> None:
    alone = written(pair_core(), facts)
    other: list[Fact] = [
        pushed("999", T0 + 20 * HOUR),
        recorded("r999", T0 + 20 * HOUR, T0 + 21 * HOUR),
        pushed("9999", T0, external=who("+15559990009")),
        recorded("r9999", T0 + SECOND, T0 + HOUR, caller="+15559990009"),
    ]
    beside = written(pair_core(), [*facts, *other])
    assert [each for each in beside if b"999" not in each.key] == alone


@given(days())
@settings(max_examples=60)
def test_every_call_has_one_verdict_in_the_end_and_no_record_is_two_calls(
    facts: list[Fact],
) -> None:
    out = written(pair_core(), facts)
    calls = [fact for fact in facts if isinstance(fact, CallFact)]
    records = {fact.call.call_id for fact in calls if fact.is_record}
    found = final(out)
    of_records = [data["recorded_call_id"] for data in found.values() if data["recorded_call_id"]]
    assert sorted(of_records) == sorted(records)
    # The row of each names the verdict that stands.
    standing = {data["revises"] for data in found.values()}
    for (connection, _), row in rows(out).items():
        assert not standing & set(row["verdicts"])
        if connection == "bots":
            assert len(row["verdicts"]) == 1
    numbers: dict[str, int] = {}
    for each in of_pair(out):
        call_id, n = each["data"]["call_id"], each["data"]["n"]
        assert n == numbers.get(call_id, 0) + 1
        numbers[call_id] = n


def test_rules_of_a_pair_are_its_own() -> None:
    tight = {"rules": PairRules(gate_ms=100)}
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, T0 + MINUTE),
        read(T0, T0 + HOUR),
    ]
    assert [each[:2] for each in told(history(pair_core(setup=tight), facts))] == [
        ("r1", "push_missing"),
        ("100", "record_missing"),
    ]


# Many calls between the same two numbers, one after another.


def busy_day(rng: random.Random, calls: int, every_s: float, gate_s: float) -> list[Fact]:
    """Pushed as they end, listed five minutes later; some are lost, late, or told once more."""
    facts: list[Fact] = [AGENT]
    end_ms = T0
    for nth in range(calls):
        length_ms = round(rng.lognormvariate(4, 1) * 1000) + 11_000
        end_ms += round(rng.expovariate(1 / every_s) * 1000) + 1
        call_id, whole = f"{1000 + nth}", rng.random() > 0.04
        if whole:
            push = pushed(call_id, end_ms + 500, length_ms=length_ms)
            push.at_ms += rng.choice([0, 0, 0, 0, round(gate_s * 1000)])
            facts.append(push)
        if not whole or rng.random() > 0.04:
            off_ms = (
                2 * SECOND + rng.randrange(500) + rng.choice([0, 0, 0, 0, 0, 0, 0, 40 * SECOND])
            )
            at_ms = (end_ms // (5 * MINUTE) + 1) * 5 * MINUTE + rng.choice([0, 0, 0, 7 * HOUR])
            record_ms = max(0, length_ms - 10 * SECOND + rng.choice([0] * 7 + [HOUR]))
            facts.append(recorded(f"r{nth}", end_ms + off_ms, at_ms, length_ms=record_ms))
            if rng.random() < 0.05:
                facts.append(
                    recorded(f"r{nth}", end_ms + off_ms, at_ms + HOUR, length_ms=record_ms + SECOND)
                )
    return facts


@given(st.integers(0, 10**9), st.sampled_from([4, 12, 30, 90]), st.sampled_from([20, 60, 300]))
@settings(max_examples=8)
def test_a_look_at_those_around_comes_to_the_same_as_one_at_all(
    seed: int, every_s: int, gate_s: int
) -> None:
    """What each call was matched with when it came, against all at once in the end."""
    setup = PairSetup(pushed="acme", recorded="bots", rules=PairRules(gate_ms=gate_s * SECOND))
    store = Memory()
    core = new_core(store, connections=["acme", "bots"], judged={}, pairs=[setup])
    facts = busy_day(random.Random(seed), 80, every_s, gate_s)
    history(core, facts, UNTIL)
    field = Field(setup.rules)
    for entry in store.entry.values():
        field.put(entry.legs, is_pushed=entry.is_pushed)
    for entry in store.entry.values():
        assert entry.fate is not None
        assert (entry.fate.reason == "too_many") is field.is_crowd(entry.ident)
        if field.is_crowd(entry.ident):
            continue
        pairing = field.assign(field.around(entry.ident, 10**15))
        assert pairing is not None
        matches = {match.pushed: match.recorded for match in pairing.matched}
        matches |= {match.recorded: match.pushed for match in pairing.matched}
        groups = [{*group.pushed, *group.recorded} for group in pairing.ambiguous]
        if entry.ident in matches:
            assert (entry.fate.kind, entry.fate.others) == ("matched", [matches[entry.ident]])
        elif any(entry.ident in group for group in groups):
            assert (entry.fate.kind, entry.fate.reason) == ("ambiguous", "near_tie")
        else:
            assert entry.fate.kind == "alone"


# Whatever providers say.


def test_a_record_without_numbers_is_no_business_of_the_pair() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, T0 + MINUTE, internal=who(None), external=who(None)),
        read(T0, T0 + HOUR),
    ]
    assert told(history(pair_core(), facts)) == [("100", "record_missing", 1, "not_listed")]


def test_a_record_whose_caller_is_withheld_is_that_of_a_push_that_does_not_know_it_either() -> None:
    nobody = who(None, withheld=True)
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0, external=nobody),
        recorded("r1", T0, T0 + MINUTE, external=nobody),
    ]
    assert told(history(pair_core(), facts)) == [("100", "matched", 1, None)]


def test_a_record_without_times_says_so() -> None:
    clockless = recorded(
        "r1", T0, T0 + MINUTE, started_at=None, ended_at=None, total_duration_s=60.0
    )
    facts: list[Fact] = [AGENT, pushed("100", T0), clockless, read(T0, T0 + HOUR)]
    found = final(history(pair_core(), facts))
    assert {call: (d["verdict"], d["reason"]) for call, d in found.items()} == {
        "100": ("record_missing", "not_listed"),
        "r1": ("push_missing", "no_clock"),
    }


def test_a_record_that_ends_before_it_starts_is_compared_by_its_start() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, T0 + MINUTE, ended_at=T0 - HOUR, total_duration_s=None),
    ]
    assert told(history(pair_core(), facts)) == [("100", "mismatch", 1, "connected_duration_s")]


def test_a_negative_duration_is_a_duration() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, T0 + MINUTE, total_duration_s=-110.0),
    ]
    assert told(history(pair_core(), facts)) == [("100", "mismatch", 1, "connected_duration_s")]


TEN_YEARS = 3_652 * 24 * HOUR


def test_a_clock_that_is_ten_years_ahead_is_nobodys() -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0 + TEN_YEARS, T0 + MINUTE),
        read(T0, T0 + HOUR),
    ]
    store = Memory()
    core = pair_core(store)
    assert {call: d["verdict"] for call, d in final(history(core, facts)).items()} == {
        "100": "record_missing",
        "r1": "push_missing",
    }
    core.advance(T0 + 80 * HOUR)
    assert store.entry == {}


def test_a_record_that_changes_its_number_leaves_its_call_and_finds_another() -> None:
    facts: list[Fact] = [
        listed(CENTRE, OTHER_CENTRE),
        pushed("100", T0),
        pushed("200", T0, number=OTHER_CENTRE),
        recorded("r1", T0, T0 + MINUTE),
        read(T0 + HOUR, T0 + HOUR),
        recorded("r1", T0, T0 + 2 * HOUR, number=OTHER_CENTRE, outcome="answered"),
    ]
    out = history(pair_core(), facts)
    assert {call: (d["verdict"], d["recorded_call_id"]) for call, d in final(out).items()} == {
        "100": ("record_missing", None),
        "200": ("late", "r1"),
    }
    assert rows(out)["bots", "r1"]["counterparts"] == [{"connection": "acme", "call_id": "200"}]


@pytest.mark.parametrize("before_ms", [12 * MINUTE, 1600])
def test_a_record_that_leaves_its_call_before_it_was_judged_is_not_missed(before_ms: int) -> None:
    left_ms = T0 - 500 + 15 * MINUTE - before_ms
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0),
        recorded("r1", T0, T0 + MINUTE),
        recorded("r1", T0, left_ms, caller="+15559990009", outcome="answered"),
        read(T0 + MINUTE, T0 + 20 * MINUTE),
    ]
    assert sorted(told(history(pair_core(), facts))) == [
        ("100", "record_missing", 1, "not_listed"),
        ("r1", "push_missing", 1, "never_pushed"),
    ]


def test_who_waits_no_more_for_a_list_that_nobody_reads_is_let_go() -> None:
    book = Book(PairSetup(pushed="acme", recorded="bots"))
    for nth in range(10):
        book.wait(CENTRE, T0 + nth, f"p/{nth}")
    assert len(book.waiting[CENTRE]) == 1


def test_a_crowd_that_is_listed_before_the_mark_is_nothing_missing() -> None:
    back_ms = T0 + HOUR
    crowd = [recorded(f"r{nth}", T0 + nth * SECOND, back_ms) for nth in range(65)]
    out = history(pair_core(), [AGENT, pushed("100", T0), *crowd, read(back_ms, back_ms)])
    assert {each[1:] for each in told(out)} == {("ambiguous", 1, "too_many")}


def test_a_crowd_that_grows_revises_what_was_said_before() -> None:
    core = pair_core()
    out = history(core, [AGENT, pushed("100", T0), recorded("r0", T0, T0)], T0 + HOUR)
    assert told(out) == [("100", "matched", 1, None)]
    late = [recorded(f"r{nth}", T0 + nth * SECOND, T0 + HOUR) for nth in range(1, 66)]
    out += history(core, late, T0 + 3 * HOUR)
    found = final(out)
    assert (found["100"]["verdict"], found["100"]["reason"]) == ("ambiguous", "too_many")
    assert found["100"]["revises"] == of_pair(out)[0]["id"]
    assert len(found) == 67
    assert {data["verdict"] for data in found.values()} == {"ambiguous"}
    assert rows(out)["acme", "100"]["counterparts"] == []


@st.composite
def odd_facts(draw: st.DrawFn) -> list[Fact]:
    """A few calls of which anything may be missing, absurd, or told otherwise later."""
    facts: list[Fact] = [AGENT, read(T0, T0 + HOUR), read(T0 + 6 * HOUR, T0 + 6 * HOUR)]
    moments = st.sampled_from([None, T0, T0 - MINUTE, T0 + MINUTE, T0 + TEN_YEARS, T0 - 2 * HOUR])
    lengths = st.sampled_from([None, 0.0, -1.0, 110.0, 1e9])
    numbers = st.sampled_from([None, CENTRE, OTHER_CENTRE, CALLER])
    for nth in range(draw(st.integers(1, 8))):
        make = draw(st.sampled_from([pushed, recorded]))
        end_ms = T0 + draw(st.sampled_from([0, SECOND, MINUTE, HOUR]))
        at_ms = end_ms + draw(st.sampled_from([0, MINUTE, 3 * HOUR]))
        odd: dict[str, Any] = {
            "started_at": draw(moments),
            "connected_at": draw(moments),
            "ended_at": draw(moments),
            "total_duration_s": draw(lengths),
            "direction": draw(st.sampled_from(["inbound", "outbound", "internal", "unknown"])),
            "internal": who(draw(numbers)),
            "external": who(draw(numbers)),
            "outcome": draw(st.sampled_from(["answered", "missed", None])),
        }
        odd = {name: odd[name] for name in draw(st.sets(st.sampled_from(sorted(odd)), max_size=4))}
        call_id = f"{'' if make is pushed else 'r'}{100 + draw(st.integers(0, 3))}"
        if make is pushed:
            facts.append(pushed(call_id, at_ms, ident=f"p{nth}", **odd))
        else:
            facts.append(recorded(call_id, end_ms, at_ms, **{**odd, "ident": f"r{nth}"}))
    return facts


@given(odd_facts(), st.data())
@settings(max_examples=150)
def test_whatever_they_say_each_call_has_one_verdict_at_most_and_the_same_in_any_order(
    facts: list[Fact], data: st.DataObject
) -> None:
    out = written(pair_core(), facts)
    found = final(out)
    for side in ("pushed", "recorded"):
        ids = [each[f"{side}_call_id"] for each in found.values() if each[f"{side}_call_id"]]
        assert len(ids) == len(set(ids))
    assert written(pair_core(), data.draw(st.permutations(facts))) == out
