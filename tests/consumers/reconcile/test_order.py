"""The order of the log's clock, and how much of it is held at a time."""

from typing import Any

import orjson
import pytest

from consumers.reconcile import order
from consumers.reconcile.order import Order
from ingest.eventlog.log import StoredRecord
from tests.consumers.reconcile.world import SECOND, T0, ended

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
