"""What is remembered: all of it or nothing, and no more at hand than somebody may ask for soon."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.reconcile import conversations as conversations_module
from consumers.reconcile import state as state_module
from consumers.reconcile.core import Conversation
from consumers.reconcile.legs import Leg
from consumers.reconcile.state import Sieve, State
from ingest.eventlog.log import Record
from tests.consumers.reconcile.world import HOUR, MINUTE, T0, ended, new_core, record

WINDOW = 30 * HOUR


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    with closing(State.open(path)) as found:
        yield found


def commit(state: State, clock_ms: int = T0, out: tuple[Record, ...] = ()) -> None:
    state.commit({("calls", 0): 7}, clock_ms, {}, out)


def leg(call_id: str, *, wake_ms: int | None = None) -> Leg:
    return Leg(connection="acme", call_id=call_id, provider="dialpad", wake_ms=wake_ms)


keys = st.tuples(st.sampled_from(["acme", "other"]), st.text(max_size=8))


@given(st.lists(keys))
def test_a_sieve_never_denies_what_was_added(added: list[tuple[str, str]]) -> None:
    sieve = Sieve(0)
    assert not any(key in sieve for key in added)
    for key in added:
        sieve.add(key)
    assert all(key in sieve for key in added)


def test_a_sieve_tells_most_others_apart_until_it_is_full() -> None:
    sieve = Sieve(0)
    added = 0
    while not sieve.is_full:
        sieve.add(("acme", str(added)))
        added += 1
    wrong = sum(("acme", f"other {nth}") in sieve for nth in range(10_000))
    assert added > 5_000
    assert wrong < 1_500


def test_what_was_put_is_there_in_the_next_start_with_every_fact(path: Path) -> None:
    with closing(State.open(path)) as state:
        core = new_core(state)  # type: ignore[arg-type]
        core.take(ended("100", T0, recordings=[{"recording_id": "r1"}], external={"number": "+1"}))
        before = state.leg(("acme", "100"))
        commit(state)
    with closing(State.open(path)) as state:
        assert state.leg(("acme", "100")) == before
        assert state.leg(("acme", "101")) is None
        assert state.positions() == {("calls", 0): 7}


def test_what_was_removed_is_gone_before_and_after_a_commit(state: State) -> None:
    state.put_conversation(Conversation(connection="acme", name="100"))
    commit(state)
    state.drop_conversation(("acme", "100"))
    assert state.conversation(("acme", "100")) is None
    assert list(state.every_conversation()) == []
    commit(state)
    assert state.conversation(("acme", "100")) is None


def test_the_outbox_is_what_was_handed_over_last_in_its_order(state: State) -> None:
    records = tuple(
        Record("ledger", b"acme/%d" % nth, b"\x00\xff" if nth % 2 else None, (("ce_id", b"\xff"),))
        for nth in range(250)
    )
    commit(state, out=records)
    assert state.outbox() == list(records)
    commit(state, out=records[:1])
    assert state.outbox() == list(records[:1])


def test_only_what_waits_for_something_stays_at_hand(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "FEW_AT_HAND", 0)
    idle, waiting = leg("100"), leg("200", wake_ms=T0)
    for each in (idle, waiting):
        state.put_leg(each)
    state._legs._most = 0
    commit(state)
    assert state.leg(("acme", "200")) is waiting
    found = state.leg(("acme", "100"))
    assert found is not idle
    assert found == idle


def test_with_too_many_that_wait_none_stays_and_all_are_found(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "MAX_AT_HAND", 10)
    state._legs._most = 0
    legs = [leg(str(nth), wake_ms=T0 + nth) for nth in range(11)]
    for each in legs:
        state.put_leg(each)
    commit(state)
    assert not state._legs._at_hand
    assert [state.leg(("acme", each.call_id)) for each in legs] == legs


def test_a_file_of_another_shape_is_made_anew(path: Path) -> None:
    with closing(State.open(path)) as state:
        state.put_leg(leg("100"))
        commit(state)
    with closing(apsw.Connection(str(path))) as db:
        db.pragma("user_version", 1)
    with closing(State.open(path)) as state:
        assert state.leg(("acme", "100")) is None
        assert state.positions() == {}


def test_of_a_record_no_more_is_kept_than_may_have_to_be_mended(state: State) -> None:
    core = new_core(state)  # type: ignore[arg-type]
    listed = record("100", T0, T0 + MINUTE)
    core.take(listed)
    found = state.leg(("acme", "100"))
    assert found is not None
    assert found.value == listed.value
    core.take(ended("100", T0 + 2 * MINUTE))
    assert found.value is None


def test_what_is_judged_only_since_the_last_start_is_mended_all_the_same(state: State) -> None:
    core = new_core(state, judged={})  # type: ignore[arg-type]
    core.take(record("100", T0, T0 + MINUTE))
    commit(state)
    core = new_core(state)  # type: ignore[arg-type]
    core.take(record("100", T0, T0 + HOUR, length_ms=3 * MINUTE))
    core.advance(T0 + HOUR)
    (mended,) = [each for each in core.out if each.topic == "calls"]
    assert mended.key == b"acme/100"


def test_a_conversation_that_others_run_into_is_flagged_in_the_next_start_as_well(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations_module, "MAX_LEGS", 1)
    core = new_core(state)  # type: ignore[arg-type]
    core.take(ended("100", T0))
    commit(state)
    core.take(ended("200", T0 + 1, related_call_ids=["100"]))
    commit(state)
    assert [each.flags for each in state.every_conversation()] == [("too_many_legs",)] * 2
    state._conversations._at_hand.clear()
    assert [each.flags for each in state.every_conversation()] == [("too_many_legs",)] * 2


def test_what_is_older_than_the_window_goes_and_its_name_a_window_later(state: State) -> None:
    core = new_core(state, window_ms=WINDOW)  # type: ignore[arg-type]
    core.take(ended("100", T0))
    commit(state, T0)
    assert state.tidy(T0 + WINDOW, WINDOW) == []
    assert state.leg(("acme", "100")) is not None
    assert state.tidy(T0 + WINDOW + HOUR, WINDOW) == []
    assert state.leg(("acme", "100")) is None
    assert [each.name for each in state.tidy(T0 + 2 * WINDOW + HOUR, WINDOW)] == ["100"]
    assert list(state.every_conversation()) == []


def test_what_is_too_old_is_found_without_a_look_at_all_the_others(state: State) -> None:
    for nth in range(1_000):
        state.put_conversation(Conversation(connection="acme", name=str(nth)))
    commit(state, T0 + 2 * WINDOW)
    state.put_conversation(Conversation(connection="acme", name="old"))
    commit(state, T0)
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    state._db.set_progress_handler(count, 1)
    assert [each.name for each in state.tidy(T0 + 2 * WINDOW + HOUR, WINDOW)] == ["old"]
    assert steps < 500
