"""From facts to verdicts, rows and hours: what a day of calls comes to."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.reconcile.core import Core
from consumers.reconcile.facts import CallFact, Fact
from ingest.eventlog.log import Record
from schemas.completeness import Completeness
from schemas.conversation import Conversation
from schemas.verdict import Verdict
from tests.consumers.reconcile.world import (
    HOUR,
    MINUTE,
    SECOND,
    T0,
    ended,
    event,
    events,
    history,
    mark,
    new_core,
    record,
)


def verdicts(out: list[Record]) -> list[tuple[str, str, int, str | None]]:
    """(call, word, n, reason) of each, in their order."""
    found = [e for e in events(out, "verdicts") if e["type"].startswith("dialstream.verdict.")]
    for each in found:
        Verdict.model_validate(each["data"])
        assert each["subject"] == f"call/{each['data']['call_id']}"
        assert each["time"] == each["recordedtime"]
    data = [each["data"] for each in found]
    return [(d["call_id"], d["verdict"], d["n"], d["reason"]) for d in data]


def rows(out: list[Record]) -> dict[str, dict[str, Any]]:
    """The last row of each conversation that was not buried."""
    last: dict[str, dict[str, Any]] = {}
    for each in out:
        if each.topic != "ledger":
            continue
        name = each.key.decode().partition("/")[2]
        if each.value is None:
            del last[name]
        else:
            last[name] = events([each], "ledger")[0]["data"]
            Conversation.model_validate(last[name])
    return last


def test_a_call_that_both_sides_tell_alike_is_matched_once() -> None:
    push = ended("100", T0)
    out = history(new_core(), [push, record("100", T0 - 500, T0 + 5 * MINUTE)])
    assert verdicts(out) == [("100", "matched", 1, None)]
    (row,) = rows(out).values()
    assert row["complete"] is True
    assert row["outcome"] == "answered"
    assert row["seen_by"] == [
        {"connection": "acme", "via": "poll"},
        {"connection": "acme", "via": "webhook"},
    ]


def test_a_verdict_waits_until_the_call_has_settled() -> None:
    core = new_core()
    facts = [ended("100", T0), record("100", T0 - 500, T0 + MINUTE)]
    assert verdicts(history(core, facts, T0 + 15 * MINUTE - SECOND)) == []
    core.advance(T0 + 15 * MINUTE)
    assert verdicts(core.out) == [("100", "matched", 1, None)]


def test_a_lost_ending_is_mended_at_once() -> None:
    core = new_core()
    out = history(core, [record("100", T0, T0 + 20 * MINUTE)])
    assert verdicts(out) == [("100", "push_missing", 1, "never_pushed")]
    (mended,) = events(out, "calls")
    assert mended["id"] == "dialpad:acme:call:100:hangup:backfilled"
    assert mended["type"] == "dialstream.call.ended"
    assert mended["via"] == "backfill"
    assert mended["subject"] == "call/100"
    assert mended["data"]["state"] == "ended"
    assert mended["data"]["total_duration_s"] == 120
    assert mended["data"]["raw"] == {"id": "100"}


def test_an_ending_that_alone_was_lost_says_so() -> None:
    facts = [event("100", "ringing", T0 - 3 * MINUTE), record("100", T0, T0 + 5 * MINUTE)]
    assert verdicts(history(new_core(), facts)) == [("100", "push_missing", 1, "ending_missing")]


def test_an_ending_is_lost_also_where_a_later_push_knows_of_it() -> None:
    recording = event("100", "recording_ready", T0 + MINUTE, ended_at=T0, total_duration_s=120)
    out = history(new_core(), [recording, record("100", T0, T0 + 5 * MINUTE)])
    assert verdicts(out) == [("100", "push_missing", 1, "ending_missing")]
    assert [each["type"] for each in events(out, "calls")] == ["dialstream.call.ended"]
    swept = mark(T0 + HOUR, T0 + 2 * HOUR, swept_ms=T0 + HOUR)
    out = history(new_core(), [recording, swept])
    assert verdicts(out) == [("100", "record_missing", 1, "not_listed")]


def test_a_push_that_comes_after_all_revises_and_mends_nothing_more() -> None:
    late = ended("100", T0 + 500)
    late.at_ms += 2 * HOUR
    out = history(new_core(), [record("100", T0, T0 + 5 * MINUTE), late])
    assert [each[1:3] for each in verdicts(out)] == [("push_missing", 1), ("late", 2)]
    first, second = (e for e in events(out, "verdicts") if "completeness" not in e["type"])
    assert second["data"]["revises"] == first["id"]
    assert len(events(out, "calls")) == 1


def test_absence_is_judged_by_the_watermark_and_not_by_a_timer() -> None:
    core = new_core()
    history(core, [ended("100", T0)], T0 + 5 * HOUR)
    assert verdicts(core.out) == []
    out = history(core, [mark(T0 - SECOND, T0 + 5 * HOUR)], T0 + 5 * HOUR + MINUTE)
    assert verdicts(out) == []
    out = history(core, [mark(T0 + MINUTE, T0 + 5 * HOUR + 2 * MINUTE)], T0 + 5 * HOUR + HOUR // 2)
    assert verdicts(out) == [("100", "record_missing", 1, "not_listed")]


def test_absence_is_judged_at_the_latest_when_it_was_held_long_enough() -> None:
    out = history(new_core(), [ended("100", T0)], T0 + 6 * HOUR)
    assert verdicts(out) == [("100", "record_missing", 1, "list_not_read")]


@pytest.mark.parametrize("nth", [1, -1])
def test_what_comes_in_the_same_millisecond_comes_in_no_order(nth: int) -> None:
    """An hour after its end it could be judged at once."""
    at_ms = T0 + HOUR
    push = ended("100", T0)
    push.at_ms = at_ms
    facts: list[Fact] = [push, record("100", T0 - 500, at_ms), mark(T0 + MINUTE, at_ms)]
    core = new_core()
    for fact in facts[::nth]:
        core.take(fact)
    core.advance(at_ms)
    assert verdicts(core.out) == [("100", "matched", 1, None)]
    assert events(core.out, "calls") == []


def test_a_call_longer_than_the_near_pass_reaches_waits_for_the_sweep() -> None:
    core = new_core()
    long = ended("100", T0, length_ms=3 * HOUR)
    assert verdicts(history(core, [long, mark(T0 + HOUR, T0 + HOUR)], T0 + 2 * HOUR)) == []
    out = history(core, [mark(T0 + HOUR, T0 + 3 * HOUR, swept_ms=T0 + MINUTE)], T0 + 4 * HOUR)
    assert verdicts(out) == [("100", "record_missing", 1, "not_listed")]


def test_a_record_that_still_runs_is_no_witness() -> None:
    running = record("100", T0, T0 + MINUTE, ended_at=None, outcome=None)
    out = history(
        new_core(), [ended("100", T0), running, mark(T0 + HOUR, T0 + HOUR)], T0 + 2 * HOUR
    )
    assert verdicts(out) == [("100", "record_missing", 1, "not_listed")]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"total_duration_s": 140.0}, "total_duration_s"),
        ({"talk_duration_s": 90.0}, "talk_duration_s"),
        ({"started_at": T0 - 2 * MINUTE - 20 * SECOND}, "started_at"),
        ({"direction": "outbound"}, "direction"),
    ],
)
def test_what_they_tell_differently_is_a_mismatch(more: dict[str, Any], field: str) -> None:
    out = history(new_core(), [ended("100", T0), record("100", T0 - 500, T0 + MINUTE, **more)])
    assert verdicts(out) == [("100", "mismatch", 1, field)]
    (verdict,) = [e for e in events(out, "verdicts") if e["type"].endswith("mismatch")]
    (difference,) = verdict["data"]["differences"]
    assert difference["field"] == field
    assert difference["taken"] == difference["recorded"]


def test_legs_that_name_each_other_are_one_conversation_and_old_rows_are_buried() -> None:
    core = new_core()
    first = history(core, [ended("300", T0)], T0 + MINUTE)
    assert set(rows(first)) == {"300"}
    out = history(core, [ended("400", T0 + 2 * MINUTE, related_call_ids=["300", "200"])])
    found = rows([*first, *out])
    assert set(found) == {"200"}
    assert found["200"]["call_ids"] == ["300", "400"]
    assert found["200"]["merged_from"] == ["300"]


def test_an_hour_is_measured_and_measured_again_when_a_verdict_changes() -> None:
    late = record("300", T0 + 10 * MINUTE, T0 + 9 * HOUR)
    facts: list[Fact] = [
        ended("100", T0 + 10 * MINUTE),
        record("100", T0 + 10 * MINUTE - 500, T0 + 15 * MINUTE),
        record("200", T0 + 10 * MINUTE, T0 + 15 * MINUTE),
        ended("300", T0 + 10 * MINUTE + 500),
        mark(T0 + HOUR, T0 + HOUR),
        late,
    ]
    out = history(new_core(), facts)
    hours = [e["data"] for e in events(out, "verdicts") if "completeness" in e["type"]]
    for each in hours:
        Completeness.model_validate(each)
    assert [(h["n"], h["pushed"], h["recorded"], h["both"]) for h in hours] == [
        (1, 2, 2, 1),
        (2, 2, 3, 2),
    ]
    assert hours[0]["figure"] == 0.5
    assert hours[1]["push"] == pytest.approx(2 / 3, abs=1e-6)


def test_a_connection_that_is_only_pushed_has_its_place_in_the_ledger_and_no_verdicts() -> None:
    out = history(new_core(), [ended("100", T0, connection="quiet")])
    assert verdicts(out) == []
    assert len(rows(out)) == 1


def test_odd_orders_are_flagged_and_never_dropped() -> None:
    facts = [
        event("100", "ringing", T0 - 2 * MINUTE),
        ended("100", T0),
        event("100", "connected", T0 + MINUTE, time_ms=T0 + 30 * SECOND),
        ended("100", T0 + 2 * MINUTE),
    ]
    (row,) = rows(history(new_core(), facts)).values()
    assert row["flags"] == ["impossible_order", "second_ending"]
    assert len(row["legs"][0]["states"]) == 4


# Of any history


@st.composite
def days(draw: st.DrawFn) -> list[Fact]:
    """Some calls, of which pushes and records may be lost, late, or other than they should be."""
    facts: list[Fact] = []
    for nth in range(draw(st.integers(1, 5))):
        call_id = str(100 + nth)
        end_ms = T0 + draw(st.integers(0, 3 * HOUR))
        others = draw(st.lists(st.sampled_from(["100", "101", "90", "7"]), max_size=2))
        if draw(st.booleans()):
            facts.append(event(call_id, "ringing", end_ms - 2 * MINUTE))
        if draw(st.integers(0, 3)):
            push = ended(call_id, end_ms + 500, related_call_ids=others)
            push.at_ms += draw(st.sampled_from([0, 0, 0, MINUTE, 2 * HOUR]))
            facts.append(push)
        if draw(st.integers(0, 3)):
            length_ms = draw(st.sampled_from([2 * MINUTE, 2 * MINUTE, 4 * MINUTE]))
            read_ms = end_ms + draw(st.sampled_from([MINUTE, 20 * MINUTE, 5 * HOUR]))
            facts.append(record(call_id, end_ms, read_ms, length_ms=length_ms))
    reads = range(T0, T0 + 6 * HOUR, HOUR)
    return [*facts, *(mark(read_ms - 5 * MINUTE, read_ms) for read_ms in reads)]


UNTIL = T0 + 24 * HOUR


def written(core: Core, facts: list[Fact]) -> list[Record]:
    return history(core, facts, UNTIL)


@given(days(), st.data())
@settings(max_examples=60)
def test_arrival_in_whatever_order_leaves_the_history(
    facts: list[Fact], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(facts))
    doubled = [*shuffled, *(f for f in shuffled[:3] if isinstance(f, CallFact))]
    assert written(new_core(), doubled) == written(new_core(), facts)


@given(days(), st.lists(st.integers(T0, UNTIL), max_size=5))
@settings(max_examples=60)
def test_however_the_log_is_cut_into_reads_the_same_is_written(
    facts: list[Fact], cuts: list[int]
) -> None:
    whole = written(new_core(), facts)
    core = new_core()
    out: list[Record] = []
    left = sorted(facts, key=lambda each: (each.at_ms, getattr(each, "id", "")))
    for cut in [*sorted(cuts), UNTIL]:
        while left and left[0].at_ms <= cut:
            core.take(left.pop(0))
        core.advance(cut)
        out += core.out
        core.out = []
    assert out == whole


@given(days())
@settings(max_examples=60)
def test_a_call_that_has_nothing_to_do_with_them_changes_nothing(facts: list[Fact]) -> None:
    alone = written(new_core(), facts)
    other = [ended("999", T0 + 20 * HOUR), record("999", T0 + 20 * HOUR - 500, T0 + 21 * HOUR)]
    beside = written(new_core(), [*facts, *other])
    assert [each for each in beside if b"/999" not in each.key and b"hour" not in each.key] == [
        each for each in alone if b"hour" not in each.key
    ]


@given(days())
@settings(max_examples=60)
def test_every_settled_call_has_one_final_verdict(facts: list[Fact]) -> None:
    out = written(new_core(), facts)
    calls = {f.call.call_id for f in facts if isinstance(f, CallFact)}
    final: dict[str, tuple[int, str]] = {}
    for call_id, word, n, _ in verdicts(out):
        assert n == final.get(call_id, (0, ""))[0] + 1
        final[call_id] = n, word
    assert set(final) == calls


def test_an_hour_of_which_the_log_was_read_in_part_is_not_measured_again() -> None:
    def measured(floor_ms: int) -> list[tuple[str, int, int]]:
        core = new_core()
        core.floor_ms = floor_ms
        # T0 is a full hour; the first two calls began in the one before it.
        ends = [T0 - 30 * MINUTE, T0 - 10 * MINUTE, T0 + 20 * MINUTE]
        facts = [
            fact
            for nth, end_ms in enumerate(ends)
            for fact in (ended(str(nth), end_ms), record(str(nth), end_ms - 500, end_ms + MINUTE))
        ]
        told = [e["data"] for e in events(history(core, facts), "verdicts")]
        return [(data["hour"], data["n"], data["both"]) for data in told if "hour" in data]

    before, after = "2026-09-21T13:00:00.000Z", "2026-09-21T14:00:00.000Z"
    assert measured(T0 - HOUR) == [(before, 1, 2), (after, 1, 1)]
    assert measured(T0 - 20 * MINUTE) == [(after, 1, 1)]
