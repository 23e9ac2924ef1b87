"""Repeats are known by their ids, states by the last one of their key."""

from hypothesis import given
from hypothesis import strategies as st

from consumers.subscribe.seen import Seen
from ingest.eventlog.log import StoredRecord


def record(topic: str, key: bytes = b"k") -> StoredRecord:
    return StoredRecord(topic, 0, 0, 0, key, b"", ())


@given(ids=st.lists(st.integers(0, 40).map(str).map(str.encode), max_size=200))
def test_the_latest_are_known_and_memory_is_bounded(ids: list[bytes]) -> None:
    seen = Seen(10)
    calls = record("calls")
    latest: list[bytes] = []
    for ident in ids:
        if ident in latest[-5:]:
            assert seen.is_repeat(calls, ident)
        if ident not in latest:
            assert not seen.is_repeat(calls, ident)
        seen.note(calls, ident)
        latest = [*(each for each in latest if each != ident), ident]
        assert len(seen._young) + len(seen._old) <= 12


def test_a_state_is_a_repeat_of_the_last_one_of_its_key_only() -> None:
    seen = Seen(100)
    one, other = record("ledger", b"1"), record("ledger", b"2")
    seen.note(one, b"a")
    assert seen.is_repeat(one, b"a")
    assert not seen.is_repeat(other, b"a")
    seen.note(one, b"b")
    assert not seen.is_repeat(one, b"a")
    seen.note(one, b"")  # deleted
    assert not seen.is_repeat(one, b"b")
    assert seen.is_repeat(one, b"")


def test_states_are_forgotten_when_others_may_have_written_meanwhile() -> None:
    seen = Seen(100)
    seen.note(record("ledger"), b"a")
    seen.note(record("calls"), b"b")
    seen.forget_states()
    assert not seen.is_repeat(record("ledger"), b"a")
    assert seen.is_repeat(record("calls"), b"b")
