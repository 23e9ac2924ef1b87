"""Whatever a provider says of a call: a verdict, a flag or nothing; no crash, nothing unbounded."""

import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.reconcile.conversations import MAX_LEGS
from consumers.reconcile.facts import CallFact, Fact, read_fact
from consumers.reconcile.legs import MAX_FACTS, Leg
from ingest.eventlog.log import StoredRecord
from ingest.reading import unknown_call
from tests.consumers.reconcile.test_core import rows, verdicts
from tests.consumers.reconcile.world import (
    HOUR,
    MINUTE,
    T0,
    Memory,
    ended,
    event,
    events,
    history,
    mark,
    new_core,
    record,
    text,
)

YEARS = 10 * 365 * 24 * HOUR


def told(*facts: Fact) -> list[tuple[str, str | None]]:
    reads = [mark(T0 + HOUR, T0 + HOUR, swept_ms=T0 + HOUR)]
    return [each[1::2] for each in verdicts(history(new_core(), [*facts, *reads]))]


def test_pushes_without_times_are_judged_by_when_they_came() -> None:
    assert told(event("100", "ended", T0)) == [("record_missing", "not_listed")]


def test_a_record_without_numbers_is_compared_by_what_it_has() -> None:
    bare = record("100", T0 - 500, T0 + MINUTE, external={}, from_number=None, to_number=None)
    full = ended("100", T0, external={"number": "+15550001111"})
    assert told(full, bare) == [("matched", None)]


def test_a_record_without_times_is_no_reason_to_doubt() -> None:
    nothing = dict.fromkeys(
        ("started_at", "connected_at", "ended_at", "total_duration_s", "talk_duration_s")
    )
    bare = record("100", T0 - 500, T0 + MINUTE, length_ms=0, **nothing)
    assert told(ended("100", T0), bare) == [("matched", None)]


def test_an_end_before_the_start_and_lengths_below_zero_are_flagged_and_judged() -> None:
    back = record("100", T0 - 500, T0 + MINUTE, length_ms=-2 * MINUTE)
    core = new_core()
    out = history(core, [ended("100", T0), back])
    assert [each[1] for each in verdicts(out)] == ["mismatch"]
    assert rows(out)["100"]["flags"] == ["ended_before_start"]
    assert rows(out)["100"]["total_duration_s"] is None


def test_a_time_of_nowhere_is_no_event_of_ours() -> None:
    told = {
        "id": "1",
        "type": "dialstream.call.ended",
        "time": "2026-09-21T14:00:00Z",
        "recordedtime": "2026-09-21T14:00:00Z",
        "via": "webhook",
        "provider": "dialpad",
        "connection": "acme",
        "data": {**unknown_call("100", "ended"), "ended_at": "2026-09-21T14:00:00"},
    }
    with pytest.raises(ValueError, match="no event of ours"):
        read_fact(StoredRecord("calls", 0, 0, T0, b"", orjson.dumps(told), ()))


def test_a_clock_ten_years_ahead_waits_for_nothing() -> None:
    ahead = record("100", T0 + YEARS, T0 + MINUTE)
    core = new_core()
    out = history(core, [ended("100", T0), ahead])
    assert [each[1] for each in verdicts(out)] == ["mismatch"]
    assert core.wake_ms is None


def test_a_clock_ten_years_behind_is_counted() -> None:
    core = new_core()
    history(core, [ended("100", T0, time_ms=T0 - YEARS, started_at=T0 - YEARS)])
    assert core.too_late == 1
    # Where it says so only later, the call is known.
    facts = [event("100", "ringing", T0 - MINUTE), record("100", T0 - YEARS, T0 + MINUTE)]
    core = new_core()
    assert [each[1] for each in verdicts(history(core, facts))] == ["push_missing"]
    assert core.wake_ms is None


@pytest.mark.parametrize("much", [1e308, -1e308, 1e15, 1e16])
def test_numbers_as_large_as_can_be(much: float) -> None:
    large: dict[str, Any] = {
        f"{name}_duration_s": much for name in ("ring", "talk", "hold", "total")
    }
    facts = []
    for nth in range(3):
        push = ended(f"10{nth}", T0, **large, related_call_ids=["100"], target={"kind": "user"})
        facts += [push, record(f"10{nth}", T0 - 500, T0 + MINUTE, **large)]
    store = Memory()
    out = history(new_core(store), facts)
    assert [each[1] for each in verdicts(out)] == ["matched"] * 3
    (hour,) = (e["data"] for e in events(out, "verdicts") if "completeness" in e["type"])
    assert 0 <= hour["pushed_talk_s"] < 1e10
    # Numbers are written in one way, however large: ids are made of what is written.
    assert all(each.value == orjson.dumps(orjson.loads(each.value)) for each in out if each.value)


def test_a_text_of_256_letters_stays_what_it_is() -> None:
    name = "x" * 256
    out = history(new_core(), [ended(name, T0), record(name, T0 - 500, T0 + MINUTE)])
    assert verdicts(out) == [(name, "matched", 1, None)]


def test_a_million_facts_of_one_call_are_as_many_as_are_kept() -> None:
    store = Memory()
    core = new_core(store)
    fact = record("100", T0, T0 + MINUTE)
    begun_s = time.process_time()
    few_s = 0.0
    written = 0
    for nth in range(100_000):
        core.take(_again(fact, nth))
        written += len(core.out)
        core.out.clear()
        if nth == 2 * MAX_FACTS:
            few_s = time.process_time() - begun_s
    all_s = time.process_time() - begun_s
    assert len(store.legs["acme", "100"].facts) == MAX_FACTS
    assert written < 10
    core.advance(T0 + HOUR)
    assert rows(core.out)["100"]["flags"] == ["too_many_events"]
    # A hundred times as many cost nothing like a hundred times as much; there is room for noise.
    assert all_s < 20 * max(few_s, 0.2)


def _again(fact: CallFact, nth: int) -> CallFact:
    return CallFact(
        id=f"{fact.id}:{nth}",
        provider=fact.provider,
        connection=fact.connection,
        what=fact.what,
        via=fact.via,
        time_ms=fact.time_ms,
        at_ms=fact.at_ms + nth // 100,
        call=fact.call,
        value=fact.value,
    )


def test_a_chain_that_would_unite_ten_thousand_legs_is_cut() -> None:
    store = Memory()
    core = new_core(store)
    count = 10_000
    for nth in range(count):
        others = [str(100_000 + nth - 1)] if nth else []
        core.take(ended(str(100_000 + nth), T0 + nth, related_call_ids=others))
    core.advance(T0 + HOUR)
    found = rows(core.out)
    sizes = [len(row["call_ids"]) for row in found.values()]
    assert max(sizes) == MAX_LEGS
    assert sum(sizes) == count
    assert all(row["flags"] == ["too_many_legs"] for row in found.values())


def test_a_call_that_names_thousands_leaves_no_more_than_a_conversation_holds() -> None:
    store = Memory()
    core = new_core(store)
    core.take(ended("1", T0, related_call_ids=[str(nth) for nth in range(10_000, 20_000)]))
    core.advance(T0 + HOUR)
    assert rows(core.out)["1"]["flags"] == ["too_many_legs"]
    (conversation,) = store.conversations.values()
    assert len(conversation.idents) == MAX_LEGS


# Of anything at all

times = st.one_of(
    st.none(),
    st.sampled_from([0, 1, T0, T0 - 60_000, T0 + YEARS, 253_402_300_799_999]),
    st.integers(T0 - 10 * HOUR, T0 + 10 * HOUR),
).map(text)
seconds = st.one_of(
    st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 500)
)
ids = st.one_of(st.sampled_from(["100", "101", "99"]), st.text(min_size=1, max_size=8))
who = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["user", "contact", None]),
        "number": st.one_of(st.none(), st.text(max_size=6)),
        "withheld": st.booleans(),
    },
)
parts = st.one_of(st.none(), st.dictionaries(st.text(max_size=3), st.integers(0, 2), max_size=2))
data = st.fixed_dictionaries(
    {},
    optional={
        "conversation_id": ids,
        "related_call_ids": st.lists(ids, max_size=3),
        "direction": st.sampled_from(["inbound", "outbound", "unknown"]),
        "external": who,
        "internal": who,
        "target": who,
        **dict.fromkeys(("started_at", "rang_at", "connected_at", "ended_at"), times),
        **{f"{name}_duration_s": seconds for name in ("ring", "talk", "hold", "total")},
        "outcome": st.sampled_from([None, "answered", "missed", "abandoned"]),
        "recordings": st.lists(parts.map(lambda each: each or {}), max_size=2),
        "voicemail": parts,
        "transcript": parts,
        "recap": parts,
    },
)
facts = st.builds(
    lambda call_id, what, via, time, at_ms, late_ms, more: (
        call_id,
        what,
        via,
        time,
        at_ms,
        late_ms,
        more,
    ),
    ids,
    st.sampled_from(["ringing", "connected", "ended", "missed", "recorded", "recap_ready"]),
    st.sampled_from(["webhook", "websocket", "poll", "backfill"]),
    times.filter(bool),
    st.integers(T0, T0 + 30 * HOUR),
    st.sampled_from([0, 0, 0, HOUR, -HOUR]),
    data,
)


def read(one: tuple[Any, ...], nth: int) -> Fact | None:
    call_id, what, via, time_text, at_ms, late_ms, more = one
    envelope = {
        "id": f"dialpad:acme:{nth}",
        "type": f"dialstream.call.{what}",
        "time": time_text,
        "recordedtime": text(at_ms - late_ms),
        "via": via,
        "provider": "dialpad",
        "connection": "acme",
        "data": {**unknown_call(call_id, what), **more, "raw": {}},
    }
    value = orjson.dumps(envelope)
    return read_fact(StoredRecord("calls", 0, nth, at_ms, b"", value, ()))


@given(st.lists(facts, max_size=8))
@settings(max_examples=300)
def test_anything_gets_a_verdict_a_flag_or_nothing(found: list[tuple[Any, ...]]) -> None:
    told_of = [fact for nth, one in enumerate(found) if (fact := read(one, nth)) is not None]
    core = new_core()
    out = history(core, [*told_of, mark(T0 + 40 * HOUR, T0 + 40 * HOUR)], T0 + 100 * HOUR)
    for each in out:
        assert each.value is None or orjson.loads(each.value)
    counts: dict[str, int] = {}
    for call_id, _, n, _ in verdicts(out):
        assert n == counts.get(call_id, 0) + 1
        counts[call_id] = n
    ended_calls = {
        fact.call.call_id
        for fact in told_of
        if isinstance(fact, CallFact) and fact.what in ("ended", "missed") and fact.via == "webhook"
    }
    if not core.too_late:
        assert ended_calls <= counts.keys()
    assert core.wake_ms is None


def test_a_record_that_still_runs_with_another_start_keeps_a_long_call_waiting() -> None:
    """The push says that only a sweep can tell; the record, that a near pass would do."""
    push = ended("100", T0, length_ms=3 * HOUR)
    runs = record("100", T0, T0 + MINUTE, ended_at=None, outcome=None)
    reads = [mark(T0 + HOUR, T0 + HOUR), mark(T0 + 2 * HOUR, T0 + 2 * HOUR)]
    out = history(new_core(), [push, runs, *reads], T0 + 3 * HOUR)
    assert verdicts(out) == []
    swept = mark(T0 + 3 * HOUR, T0 + 3 * HOUR, swept_ms=T0)
    out = history(new_core(), [push, runs, *reads, swept], T0 + 4 * HOUR)
    assert verdicts(out) == [("100", "record_missing", 1, "not_listed")]


def test_a_mark_looks_at_no_call_that_it_tells_nothing_of() -> None:
    """Else n calls that wait, and a mark a minute, would cost their product."""

    class Counting(Memory):
        looked = 0

        def leg(self, key: tuple[str, str]) -> Leg | None:
            self.looked += 1
            return super().leg(key)

    store, calls = Counting(), 200
    core = new_core(store)
    for nth in range(calls):
        core.take(ended(str(100 + nth), T0 + nth, length_ms=3 * HOUR))
    core.advance(T0 + 20 * MINUTE)
    store.looked = 0
    for nth in range(100):
        core.take(mark(T0 + 21 * MINUTE + nth, T0 + 21 * MINUTE + nth))
    assert store.looked == 0
    core.take(mark(T0 + HOUR, T0 + HOUR, swept_ms=T0 + HOUR))
    core.advance(T0 + 2 * HOUR)
    assert len(verdicts(core.out)) == calls
    assert store.looked < 10 * calls


def test_what_prove_posts_to_a_running_service_is_nobodys_call() -> None:
    data = {**unknown_call("9000000000000000001", "unknown"), "provider_state": "dialstream_prove"}
    told = {
        "id": "1",
        "type": "dialstream.call.unknown",
        "time": "2026-09-21T14:00:00Z",
        "recordedtime": "2026-09-21T14:00:00Z",
        "via": "webhook",
        "provider": "dialpad",
        "connection": "acme",
        "data": data,
    }
    assert read_fact(StoredRecord("calls", 0, 0, T0, b"", orjson.dumps(told), ())) is None
