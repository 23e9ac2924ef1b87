"""DialLink's lists: what they hold, how they are filtered and sorted.

https://developers.diallink.com (introduction): ``field=value``, ``field=op::value``, and
``sort=-field`` or ``sort=+field``. Which fields can be filtered by is not known: here it is all
that an item has.
"""

import operator
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.simulator.api_server import Refusal
from ingest.simulator.diallink import (
    LateChange,
    changes_of,
    is_listed,
    late_change_of,
    recording_ready_ms,
)
from ingest.simulator.facts import Leg
from ingest.simulator.faults import Faults
from ingest.simulator.world import World


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Calls:
    """Every call of the company's people, by its start and by its changes; by the world's clock."""

    def __init__(self, world: World, faults: Faults) -> None:
        self._world, self._faults = world, faults
        self._heard = 0
        self.by_start: list[Leg] = []
        #: All changes that there will have been of those that were heard of.
        self._by_change: list[tuple[int, int]] = []
        self._recordings: list[tuple[int, int]] = []
        self._changes: dict[int, tuple[int, ...]] = {}
        self._late: dict[int, LateChange | None] = {}

    def hear(self, at_ms: int) -> None:
        """Know of all that has happened until then."""
        self._world.advance(at_ms + 1)
        begun = self._world.begun
        for nth in range(self._heard, len(begun)):
            leg = begun[nth]
            if not is_listed(leg):
                continue
            self.by_start.append(leg)
            self._changes[leg.id] = changes_of(leg, self.late_change_of(leg))
            for changed_ms in self._changes[leg.id]:
                insort(self._by_change, (changed_ms, leg.id))
            if (ready_ms := recording_ready_ms(leg)) is not None:
                insort(self._recordings, (ready_ms, leg.id))
        self._heard = len(begun)

    def late_change_of(self, leg: Leg) -> LateChange | None:
        """Decided once."""
        if leg.id not in self._late:
            self._late[leg.id] = late = late_change_of(leg, self._faults)
            self._faults.counts["records_change"] += late is not None
        return self._late[leg.id]

    def begun(self, at_ms: int, since_ms: int = 0) -> Iterator[tuple[int, Leg]]:
        """Those that had begun then, and not before; the oldest first."""
        first = bisect_left(self.by_start, since_ms, key=_started)
        for nth in range(first, len(self.by_start)):
            leg = self.by_start[nth]
            if leg.started_ms > at_ms:
                return
            yield leg.started_ms, leg

    def changed(self, at_ms: int, since_ms: int = 0) -> Iterator[tuple[int, Leg]]:
        """Those whose last change until then was not before; the oldest change first."""
        legs = self._world.legs
        for nth in range(bisect_left(self._by_change, (since_ms, 0)), len(self._by_change)):
            changed_ms, leg_id = self._by_change[nth]
            if changed_ms > at_ms:
                return
            changes = self._changes[leg_id]
            is_last = changes[-1] == changed_ms or changes[changes.index(changed_ms) + 1] > at_ms
            if is_last:
                yield changed_ms, legs[leg_id]

    def recorded(self, at_ms: int) -> Iterator[tuple[int, Leg]]:
        """Those with a recording, by when it was ready."""
        for ready_ms, leg_id in self._recordings:
            if ready_ms > at_ms:
                return
            yield ready_ms, self._world.legs[leg_id]


def _started(leg: Leg) -> int:
    return leg.started_ms


# Filters and sorting


@dataclass(frozen=True, slots=True)
class Condition:
    """One of ``field=value`` and ``field=op::value``."""

    field: str
    op: str
    values: tuple[Any, ...]

    def holds(self, item: Mapping[str, Any]) -> bool:
        found = item.get(self.field)
        if self.op in {"isnull", "isnotnull"}:
            return (found is None) == (self.op == "isnull")
        if self.op in _SETS:
            inside = any(_equal(found, value) for value in self.values)
            return inside == (self.op in {"eq", "in"})
        if found is None:
            return False
        if self.op in _TEXTS:
            inside = str(self.values[0]).lower() in str(found).lower()
            return inside == (self.op == "like")
        return all(
            compare(_comparable(found, value), value)
            for compare, value in zip(_ORDERS[self.op], self.values, strict=True)
        )


_SETS = words("eq neq in nin")
_TEXTS = words("like notlike")
_ORDERS: dict[str, Sequence[Callable[[Any, Any], bool]]] = {
    "gt": (operator.gt,),
    "gte": (operator.ge,),
    "lt": (operator.lt,),
    "lte": (operator.le,),
    "btn": (operator.ge, operator.le),
}


def conditions(params: Sequence[tuple[str, str]], fields: frozenset[str]) -> list[Condition]:
    """Those of a query. Raises Refusal for what is no field, and for what is no operation."""
    found = []
    for name, text in params:
        if name not in fields:
            raise Refusal(400, f"{name} is not a field that can be filtered by")
        op, separator, value = text.partition("::")
        if not separator:
            op, value = "eq", text
        if op not in {*_SETS, *_TEXTS, *_ORDERS, "isnull", "isnotnull"}:
            raise Refusal(400, f"{op} is not an operation")
        values: tuple[Any, ...] = (
            tuple(value.split(",")) if op in {"in", "nin", "btn"} else (value,)
        )
        if op in _ORDERS:
            if len(values) != len(_ORDERS[op]) or "" in values:
                raise Refusal(400, f"{op} of {name} is not valid")
            values = tuple(map(_number_or_text, values))
        found.append(Condition(name, op, values))
    return found


def sorting(text: str | None, fields: frozenset[str]) -> tuple[str, bool] | None:
    """The field, and whether the largest comes first; None: no order. Raises Refusal."""
    if text is None:
        return None
    if text[:1] not in {"-", "+"} or text[1:] not in fields:
        raise Refusal(400, "sort must be +field or -field")
    return text[1:], text[0] == "-"


def in_order(
    items: Sequence[dict[str, Any]], field: str, *, descending: bool
) -> list[dict[str, Any]]:
    """Sorted; what has nothing there comes last."""
    there = [item for item in items if item.get(field) is not None]
    # Of one list's field all values are of one type.
    there.sort(key=operator.itemgetter(field), reverse=descending)
    return there + [item for item in items if item.get(field) is None]


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _comparable(found: Any, value: int | str) -> Any:
    """As a number if it is compared with one, else as text; what cannot be is never in order."""
    if isinstance(value, int):
        return found if isinstance(found, int) else float("nan")
    return str(found)


def _equal(found: Any, text: str) -> bool:
    """Enums are in capitals in answers, and may be in small letters in queries."""
    if found is None:
        return False
    return str(found).lower() == text.lower()
