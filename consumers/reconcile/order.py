"""Puts what several partitions tell into the one order of the log's clock. No I/O, and no clock."""

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping

from consumers.reconcile.facts import LATE_MS, CallFact, Fact
from ingest.eventlog.log import Place, StoredRecord

#: How far the clocks of those who write to one partition may lie apart.
SKEW_MS = 5_000

#: So many facts may wait for partitions that are further behind.
MAX_AHEAD = 50_000


class Order:
    """Facts that were read, until the log's clock has come to them.

    The clock is the least that all partitions have reached, so none can tell of anything earlier.
    """

    def __init__(self) -> None:
        self._facts: list[tuple[int, str, Place, int, Fact]] = []
        self._reached: dict[Place, int] = {}
        self._read: dict[Place, int] = {}

    def add(self, stored: StoredRecord, fact: Fact | None) -> None:
        """Take what was read next in its partition; None where there is no fact in it."""
        place = stored.topic, stored.partition
        self._reached[place] = stored.written_ms - LATE_MS - SKEW_MS
        self._read[place] = stored.position
        if fact is not None:
            entry = (fact.at_ms, _name(fact), place, stored.position, fact)
            heapq.heappush(self._facts, entry)

    def reached_ms(self, behind: Iterable[Place]) -> int | None:
        """How far the partitions have come in which there is more; None if one was not begun."""
        found = [self._reached.get(place) for place in behind]
        known = [at_ms for at_ms in found if at_ms is not None]
        return min(known) if known and len(known) == len(found) else None

    def too_far_ahead(self, behind: Collection[Place]) -> Collection[Place]:
        """What not to read on while the others come up: none until too many facts wait.

        ``behind``: the partitions in which there is more.
        """
        if len(self._facts) <= MAX_AHEAD:
            return ()
        reached_ms = self.reached_ms(behind) or 0
        return [place for place in behind if self._reached.get(place, 0) > reached_ms]

    def until(self, clock_ms: int) -> Iterator[Fact]:
        """Hand out, in their order, those that lie before the clock or on it."""
        while self._facts and self._facts[0][0] <= clock_ms:
            yield heapq.heappop(self._facts)[-1]

    @property
    def positions(self) -> Mapping[Place, int]:
        """Up to where everything was handed out, in each partition: read on behind that."""
        positions = dict(self._read)
        for _, _, place, position, _ in self._facts:
            positions[place] = min(positions[place], position - 1)
        return positions


def _name(fact: Fact) -> str:
    """What decides between facts of the same time."""
    if isinstance(fact, CallFact):
        return fact.id
    return f"{fact.connection}/{fact.agent_id}"
