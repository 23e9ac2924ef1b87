"""The order of the log's clock, and how much of it is held at a time."""

from typing import Any

import orjson
import pytest

from consumers.reconcile import order
from consumers.reconcile.order import Order
from ingest.eventlog.log import StoredRecord
from tests.consumers.reconcile.test_core import verdicts
from tests.consumers.reconcile.world import (
    HOUR,
    MINUTE,
    SECOND,
    T0,
    ended,
    mark,
    new_core,
    record,
)

SLOW, QUICK = ("calls", 0), ("calls", 1)


def stored(place: tuple[str, int], position: int, at_ms: int) -> StoredRecord:
    return StoredRecord(*place, position, at_ms, b"acme/1", orjson.dumps({}), ())


def test_partitions_that_are_too_far_ahead_are_not_read_on(monkeypatch: Any) -> None:
    monkeypatch.setattr(order, "MAX_AHEAD", 3)
    found = Order()
    found.add(stored(SLOW, 1, T0), ended("1", T0))
    for nth in range(1, 4):
        found.add(stored(QUICK, nth, T0 + nth * SECOND), ended(str(nth + 1), T0 + nth * SECOND))
    assert found.too_far_ahead([SLOW, QUICK]) == [QUICK]
    assert found.too_far_ahead([QUICK]) == []
    # Once the slow one has come up and these are handed out, it is read again.
    found.add(stored(SLOW, 2, T0 + 60 * SECOND), None)
    clock_ms = found.reached_ms([SLOW, QUICK])
    assert clock_ms == T0 + 3 * SECOND - 15 * SECOND
    assert len(list(found.until(T0))) == 1
    assert list(found.too_far_ahead([SLOW, QUICK])) == []


@pytest.mark.parametrize("behind", [[SLOW], [SLOW, QUICK]])
def test_the_clock_waits_for_a_partition_of_which_nothing_was_read(behind: Any) -> None:
    found = Order()
    found.add(stored(QUICK, 1, T0), None)
    assert found.reached_ms(behind) is None


def test_catching_up_after_a_day_makes_nothing_absent_that_is_on_the_log() -> None:
    """Records are read to their end first, pushes lie in another partition, a day behind."""
    found, core = Order(), new_core()
    calls = range(200)
    for nth in calls:
        end_ms = T0 + nth * MINUTE
        listed = record(str(1000 + nth), end_ms, end_ms + 2 * MINUTE)
        found.add(stored(QUICK, nth, listed.at_ms), listed)
    marks = ("checkpoints", 0)
    found.add(stored(marks, 0, T0 + 24 * HOUR), mark(T0 + 24 * HOUR, T0 + 24 * HOUR))
    assert found.reached_ms([SLOW]) is None
    for nth in calls:
        push = ended(str(1000 + nth), T0 + nth * MINUTE + 500)
        found.add(stored(SLOW, nth, push.at_ms), push)
        clock_ms = found.reached_ms([SLOW])
        assert clock_ms is not None
        for fact in found.until(clock_ms):
            core.take(fact)
        core.advance(clock_ms)
    for fact in found.until(T0 + 48 * HOUR):
        core.take(fact)
    core.advance(T0 + 48 * HOUR)
    assert [each[1:3] for each in verdicts(core.out)] == [("matched", 1)] * len(calls)
