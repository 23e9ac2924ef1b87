"""What reconciliation tells beside verdicts: gaps that are to be read, and what came too late."""

from typing import Any

import pytest

from consumers.poll.gaps import Gaps
from consumers.poll.windows import Plan
from consumers.reconcile.facts import CallFact, Fact
from ingest.eventlog.log import Record, StoredRecord
from ingest.settings import Poll
from tests.consumers.reconcile.test_core import rows, verdicts
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
    text,
)

DAY = 24 * HOUR


def gaps(out: list[Record]) -> list[tuple[str, str, str, str]]:
    data = [each["data"] for each in events(out, "gaps")]
    assert all(each["found"] is None for each in data)
    return [(each["channel"], each["from"], each["to"], each["reason"]) for each in data]


def z(ms: int) -> str:
    return str(text(ms)).replace("+00:00", "Z")


def test_calls_that_nobody_has_listed_in_time_are_a_gap_of_the_list_once_an_hour() -> None:
    pushes = [ended(str(100 + nth), T0 + nth * 20 * MINUTE + 3 * MINUTE) for nth in range(4)]
    out = history(new_core(), pushes)
    assert {word[3] for word in verdicts(out)} == {"list_not_read"}
    assert gaps(out) == [
        ("records", z(T0), z(T0 + HOUR), "list_not_read"),
        ("records", z(T0 + HOUR), z(T0 + 2 * HOUR), "list_not_read"),
    ]


@pytest.mark.parametrize(("lost", "seen", "told"), [(4, 0, 0), (5, 94, 1), (5, 95, 0)])
def test_many_lost_pushes_in_an_hour_are_a_gap(lost: int, seen: int, told: int) -> None:
    facts: list[Fact] = []
    for nth in range(seen):
        at_ms = T0 + 5 * MINUTE
        facts += [ended(f"2{nth}", at_ms), record(f"2{nth}", at_ms - 500, at_ms + MINUTE)]
    facts += [record(f"3{nth}", T0 + (nth + 4) * MINUTE, T0 + HOUR) for nth in range(lost)]
    found = gaps(history(new_core(), facts))
    assert found == [("push", z(T0 + 2 * MINUTE), z(T0 + 8 * MINUTE), "push_missing")][:told]


def test_those_that_are_lost_after_the_gap_was_told_are_told_when_the_hour_is_over() -> None:
    facts = [
        record(f"3{nth:02}", T0 + (nth + 3) * MINUTE, T0 + (nth + 4) * MINUTE) for nth in range(20)
    ]
    out = history(new_core(), facts)
    assert gaps(out) == [
        ("push", z(T0 + MINUTE), z(T0 + 7 * MINUTE), "push_missing"),
        ("push", z(T0 + 6 * MINUTE), z(T0 + 22 * MINUTE), "push_missing"),
    ]


def test_a_clock_that_is_years_off_makes_no_gap_of_years() -> None:
    for off in (-60 * DAY, 3650 * DAY):
        facts = [record(f"3{nth}", T0 + off, T0 + nth * MINUTE) for nth in range(8)]
        core = new_core(window_ms=72 * HOUR)
        for channel, from_, to, _ in gaps(history(core, facts)):
            assert channel == "push"
            assert z(T0 - 73 * HOUR) < from_ <= to <= z(T0 + 2 * HOUR)


def test_the_poller_reads_such_a_gap_at_once() -> None:
    facts = [record(f"3{nth}", T0 + (nth + 2) * MINUTE, T0 + HOUR) for nth in range(5)]
    out = history(new_core(), [*facts, ended("500", T0 + 5 * MINUTE)], T0 + 8 * HOUR)
    read = Gaps()
    read.read(
        StoredRecord(each.topic, 0, nth, T0, each.key, each.value, each.headers)
        for nth, each in enumerate(out)
        if each.topic == "gaps"
    )
    found = read.of("acme", None)
    assert {gap.channel for gap in found} == {"push", "records"}
    now_ms = T0 + 8 * HOUR
    plan = Plan(Poll(enabled=True), watermark_ms=now_ms - MINUTE, swept_ms=now_ms - MINUTE)
    window = plan.next(now_ms, 0.0, found)
    assert not isinstance(window, float)
    assert window.kind == "gap"
    assert set(window.gaps) == set(found)
    assert window.from_ms <= T0
    assert window.goal_ms > T0 + 5 * MINUTE


# Late


def late_flags(*late: CallFact) -> Any:
    facts = [ended("100", T0), record("100", T0 - 500, T0 + MINUTE), *late]
    (row,) = rows(history(new_core(), facts)).values()
    return row["flags"]


def test_what_comes_when_a_conversation_was_complete_is_flagged() -> None:
    at_ms = T0 + HOUR
    assert late_flags(event("100", "held", at_ms, time_ms=T0 - MINUTE)) == ["late_event"]
    assert late_flags(event("200", "ringing", at_ms, related_call_ids=["100"])) == ["late_event"]
    assert late_flags(event("100", "recording_ready", at_ms)) == []
    assert late_flags(event("100", "held", T0 + 10 * MINUTE, time_ms=T0 - MINUTE)) == []


def test_what_was_mended_is_not_late() -> None:
    core = new_core()
    out = history(core, [record("100", T0, T0 + MINUTE)], T0 + HOUR)
    (mended,) = events(out, "calls")
    at_ms = T0 + 2 * HOUR
    out += history(
        core,
        [event("100", "ended", at_ms, time_ms=T0, via="backfill", ident=mended["id"])],
    )
    (row,) = rows(out).values()
    assert row["complete"]
    assert row["flags"] == []


def test_what_is_older_than_the_window_is_frozen_and_later_links_to_it_are_flagged() -> None:
    core = new_core(window_ms=24 * HOUR)
    first = history(core, [ended("100", T0)], T0 + 24 * HOUR)
    late = T0 + 25 * HOUR
    out = history(
        core,
        [
            event("100", "held", late, time_ms=late, started_at=late),
            ended("500", late, related_call_ids=["100"]),
        ],
    )
    assert core.too_late == 1
    found = rows([*first, *out])
    assert found["100"]["call_ids"] == ["100"]
    assert found["100"]["flags"] == []
    assert found["500"]["call_ids"] == ["500"]
    assert found["500"]["flags"] == ["late_link"]


def test_a_mark_of_the_future_makes_nothing_absent() -> None:
    facts: list[Fact] = [mark(T0 + DAY, T0 - SECOND), ended("100", T0)]
    assert verdicts(history(new_core(), facts, T0 + HOUR)) == []


# What is beside a call


def test_the_ledger_has_all_that_was_told_of_recordings_and_what_was_said_in_them() -> None:
    out = history(
        new_core(),
        [
            ended("100", T0),
            event("100", "recording_ready", T0 + MINUTE, recordings=[{"recording_id": "7"}]),
            event("100", "transcript_ready", T0 + MINUTE, transcript={"available": True}),
            event(
                "100", "recap_ready", T0 + 2 * MINUTE, recap={"summary": "said", "outcome": None}
            ),
            event(
                "100", "recap_ready", T0 + 3 * MINUTE, recap={"summary": None, "outcome": "done"}
            ),
        ],
    )
    (row,) = rows(out).values()
    assert [each["recording_id"] for each in row["recordings"]] == ["7"]
    assert row["transcript"]["available"] is True
    assert (row["recap"]["summary"], row["recap"]["outcome"]) == ("said", "done")
