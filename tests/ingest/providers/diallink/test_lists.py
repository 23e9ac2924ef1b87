"""Walks through lists that change meanwhile: what stays is found, and none goes on for ever."""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.api import ApiError
from ingest.providers.diallink.lists import (
    DisorderError,
    Page,
    by_change,
    by_number,
    by_start,
    twice,
)
from ingest.providers.diallink.records import clock

CALL = "GET /v1/phone-system/calls"


def dump(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode()


def changed(item: bytes) -> int | None:
    found: int | None = json.loads(item).get("changed")
    return found


def started(item: bytes) -> int | None:
    found: int | None = json.loads(item).get("started")
    return found


class Model:
    """A list that is changed a little before every page, as long as there are changes left."""

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        size: int = 2,
        tells_end: bool = True,
        changes: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.rows = {row["id"]: row for row in rows}
        self._size = size
        self._tells_end = tells_end
        self._changes = list(changes)
        self._clock = max((row["changed"] for row in rows), default=10)
        self._ids = itertools.count(1000)
        #: Kinds of changes that do not happen any more.
        self.over: set[str] = set()
        self.asked: list[tuple[int, int]] = []

    def contents(self) -> set[bytes]:
        return {dump(row) for row in self.rows.values()}

    def _change(self) -> None:
        if not self._changes:
            return
        kind, which = self._changes.pop(0)
        if kind in self.over:
            return
        # Several things may happen in one millisecond.
        self._clock += which % 2
        ids = sorted(self.rows)
        if kind == "add":
            ident = next(self._ids) if which % 3 else -next(self._ids)
            self.rows[ident] = {"id": ident, "changed": self._clock, "started": self._clock}
        elif ids and kind == "change":
            row = self.rows[ids[which % len(ids)]]
            self.rows[row["id"]] = {**row, "changed": self._clock, "n": self._clock}
        elif ids:
            del self.rows[ids[which % len(ids)]]

    def page(self, key: Callable[[dict[str, Any]], Any], since_ms: int, number: int) -> Page:
        self._change()
        self.asked.append((since_ms, number))
        rows = sorted((r for r in self.rows.values() if r["changed"] >= since_ms), key=key)
        at = (number - 1) * self._size
        has_next = at + self._size < len(rows) if self._tells_end else None
        return Page([dump(row) for row in rows[at : at + self._size]], has_next)

    async def by_change(self, since_ms: int, number: int) -> Page:
        return self.page(lambda row: (row["changed"], row["id"]), since_ms, number)

    async def latest_change(self, number: int) -> Page:
        return self.page(lambda row: (-row["changed"], row["id"]), 0, number)

    async def latest_start(self, number: int) -> Page:
        if number == 1 and self.asked:
            self.over.add("delete")  # the second walk
        return self.page(lambda row: (-row["started"], row["id"]), 0, number)


async def all_of(pages: AsyncIterator[Sequence[bytes]]) -> list[bytes]:
    found: list[bytes] = []
    async for page in pages:
        assert page
        found += page
    return found


_rows = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=16).map(
    lambda rows: [
        {"id": ident, "changed": changed, "started": started}
        for ident, (changed, started) in enumerate(rows)
    ]
)
_changes = st.lists(
    st.tuples(st.sampled_from(["add", "change", "delete"]), st.integers(0, 30)), max_size=12
)
_no_deletions = st.lists(
    st.tuples(st.sampled_from(["add", "change"]), st.integers(0, 30)), max_size=12
)


async def test_parts_of_a_millisecond_lose_nothing_at_the_end_of_a_page() -> None:
    ends = ["1230", "1236", "1237", "1238", "1239", "1240"]
    items = [dump({"updatedAt": f"2026-09-21T14:15:26.{end}Z"}) for end in ends]
    second_ms = 1_790_000_126_000

    async def fetch(since_ms: int, number: int) -> Page:
        found = [
            item
            for item, end in zip(items, ends, strict=True)
            if second_ms + int(end) / 10 >= since_ms
        ]
        return Page(found[2 * number - 2 : 2 * number], 2 * number < len(found))

    pages = by_change(fetch, clock("updatedAt"), 0, CALL)
    assert {item async for page in pages for item in page} == set(items)


@given(
    rows=_rows,
    changes=_changes,
    size=st.integers(2, 4),
    tells_end=st.booleans(),
    since_ms=st.integers(0, 7),
)
async def test_by_change_all_that_stays_is_found(
    *,
    rows: list[dict[str, Any]],
    changes: list[tuple[str, int]],
    size: int,
    tells_end: bool,
    since_ms: int,
) -> None:
    model = Model(rows, size=size, tells_end=tells_end, changes=changes)
    before = model.contents()
    found = await all_of(by_change(model.by_change, changed, since_ms, CALL))
    stayed = {item for item in before & model.contents() if json.loads(item)["changed"] >= since_ms}
    assert stayed <= set(found)
    assert all(json.loads(item)["changed"] >= since_ms for item in found)
    # One row moves a page; a tie is read twice, and again for each thing that happens in it.
    assert len(model.asked) <= (len(rows) + len(changes) + 3) * (len(changes) + 3)


@given(rows=_rows, size=st.integers(2, 4), tells_end=st.booleans())
async def test_by_change_nothing_comes_twice_while_nothing_changes(
    *, rows: list[dict[str, Any]], size: int, tells_end: bool
) -> None:
    model = Model(rows, size=size, tells_end=tells_end)
    found = await all_of(by_change(model.by_change, changed, 0, CALL))
    assert sorted(found) == sorted(model.contents())
    times = [json.loads(item)["changed"] for item in found]
    assert times == sorted(times)


@given(
    rows=_rows,
    changes=_changes,
    size=st.integers(2, 4),
    tells_end=st.booleans(),
    from_ms=st.integers(0, 7),
)
async def test_by_start_in_two_walks_all_that_stays_is_found(
    *,
    rows: list[dict[str, Any]],
    changes: list[tuple[str, int]],
    size: int,
    tells_end: bool,
    from_ms: int,
) -> None:
    model = Model(rows, size=size, tells_end=tells_end, changes=changes)
    before = model.contents()
    found = await all_of(twice(lambda: by_start(model.latest_start, started, from_ms, CALL)))
    stayed = {item for item in before & model.contents() if json.loads(item)["started"] >= from_ms}
    assert stayed <= set(found)
    assert len(found) == len(set(found))
    assert len(model.asked) <= 2 * (len(rows) + len(changes) + 2)


@given(rows=_rows, changes=_no_deletions, size=st.integers(2, 4), tells_end=st.booleans())
async def test_by_number_what_moves_to_the_front_hides_nothing(
    *, rows: list[dict[str, Any]], changes: list[tuple[str, int]], size: int, tells_end: bool
) -> None:
    model = Model(rows, size=size, tells_end=tells_end, changes=changes)
    before = model.contents()
    found = await all_of(by_number(model.latest_change, CALL))
    assert before & model.contents() <= set(found)
    assert len(model.asked) <= len(rows) + len(changes) + 2


async def test_always_the_first_page_since_the_last_change_is_asked_for() -> None:
    model = Model([{"id": n, "changed": 100 + n, "started": 1} for n in range(5)])
    await all_of(by_change(model.by_change, changed, 50, CALL))
    assert model.asked == [(50, 1), (101, 1), (102, 1), (103, 1)]


async def test_of_one_time_all_pages_are_read_twice() -> None:
    model = Model([{"id": n, "changed": 7, "started": 1} for n in range(6)])
    found = await all_of(by_change(model.by_change, changed, 7, CALL))
    assert sorted(found) == sorted(model.contents())
    assert model.asked == [(7, 1), (7, 2), (7, 3)] * 2


async def test_what_slips_behind_a_page_of_one_time_is_found() -> None:
    """A row of the first page changes before the second is read: the third row is on neither."""
    rows = {n: {"id": n, "changed": 7} for n in range(4)}
    asked = []

    async def fetch(since_ms: int, number: int) -> Page:
        asked.append(number)
        if len(asked) == 2:
            rows[0]["changed"] = 9
        found = sorted(
            (row for row in rows.values() if row["changed"] >= since_ms),
            key=lambda row: (row["changed"], row["id"]),
        )[number * 2 - 2 :]
        return Page([dump(row) for row in found[:2]], len(found) > 2)

    found = await all_of(by_change(fetch, changed, 7, CALL))
    assert dump({"id": 2, "changed": 7}) in found
    assert {dump(row) for row in rows.values()} <= set(found)


async def test_the_second_walk_by_start_finds_what_slipped_past_the_first() -> None:
    rows = [{"id": n, "started": 100 - n} for n in range(4)]
    asked = []

    async def fetch(number: int) -> Page:
        asked.append(number)
        if len(asked) == 2:
            del rows[0]
        at = number * 2 - 2
        return Page([dump(row) for row in rows[at : at + 2]], at + 2 < len(rows))

    found = await all_of(twice(lambda: by_start(fetch, started, 0, CALL)))
    assert [json.loads(item)["id"] for item in found] == [0, 1, 3, 2]


async def test_by_start_ends_at_the_first_page_wholly_before() -> None:
    model = Model([{"id": n, "changed": 1, "started": 100 - n} for n in range(20)])
    found = await all_of(by_start(model.latest_start, started, 95, CALL))
    # 95 is on the third page; the fourth begins with 94.
    assert [json.loads(item)["started"] for item in found] == list(range(100, 92, -1))


async def test_by_start_in_another_order_is_read_to_the_end() -> None:
    pages = [[5, 9], [1, 2], [8, 7]]

    async def fetch(number: int) -> Page:
        rows = pages[number - 1] if number <= len(pages) else []
        return Page([dump({"started": at}) for at in rows], None)

    found = await all_of(by_start(fetch, started, 6, CALL))
    assert [json.loads(item)["started"] for item in found] == [5, 9, 1, 2, 8, 7]


async def test_by_start_what_has_no_start_ends_nothing() -> None:
    pages: list[list[int | None]] = [[9, None], [None, None], [7, 5], [1, None], [0, 0]]

    async def fetch(number: int) -> Page:
        rows = pages[number - 1] if number <= len(pages) else []
        return Page([dump({"n": number, "i": i, "started": at}) for i, at in enumerate(rows)], None)

    assert len(await all_of(by_start(fetch, started, 5, CALL))) == 8


# Servers that do not do as they are asked


@pytest.mark.parametrize(
    "rows",
    [
        [{"changed": 6}, {"changed": 5}],
        [{"changed": 4}, {"changed": 5}],  # from before
        [{"id": 1}, {"id": 2}],
    ],
)
@pytest.mark.parametrize("has_next", [True, False, None])
async def test_a_list_that_is_not_by_change_is_no_such_list(
    *, rows: list[dict[str, Any]], has_next: bool | None
) -> None:
    async def fetch(since_ms: int, number: int) -> Page:
        return Page([dump(row) for row in rows], has_next)

    with pytest.raises(DisorderError) as raised:
        await all_of(by_change(fetch, changed, 5, CALL))
    assert raised.value.reason == "unexpected"
    assert "assume." in raised.value.mend


async def test_some_that_have_no_time_are_no_disorder() -> None:
    rows = [{"id": 1, "changed": 5}, {"id": 2}, {"id": 3, "changed": 6}, {"id": 4}]

    async def fetch(since_ms: int, number: int) -> Page:
        found = [row for row in rows if row.get("changed", since_ms) >= since_ms]
        return Page([dump(row) for row in found[number * 2 - 2 : number * 2]], None)

    found = await all_of(by_change(fetch, changed, 5, CALL))
    assert {json.loads(item)["id"] for item in found} == {1, 2, 3, 4}


@pytest.mark.parametrize("has_next", [True, None])
async def test_the_same_page_for_ever_is_a_loop(*, has_next: bool | None) -> None:
    asked = []

    async def fetch(number: int) -> Page:
        asked.append(number)
        return Page([dump({"changed": 5, "started": 5})], has_next)

    for walk in (
        by_number(fetch, CALL),
        by_start(fetch, started, 0, CALL),
        by_change(lambda _, number: fetch(number), changed, 0, CALL),
    ):
        asked.clear()
        with pytest.raises(ApiError) as raised:
            await all_of(walk)
        assert raised.value.reason == "cursor_loop"
        assert len(asked) < 20


async def test_items_of_one_time_that_are_never_the_same_are_a_loop() -> None:
    count = itertools.count()

    async def fetch(since_ms: int, number: int) -> Page:
        rows = [{"changed": 5, "n": next(count)}] if number < 3 else []
        return Page([dump(row) for row in rows], None)

    with pytest.raises(ApiError) as raised:
        await all_of(by_change(fetch, changed, 5, CALL))
    assert raised.value.reason == "cursor_loop"
    assert next(count) < 100


async def test_a_page_may_come_again_where_others_came_before_it() -> None:
    """One that holds a single item: each time one is added, the same item is the next one."""
    rows = [9, 5, 4]

    async def fetch(number: int) -> Page:
        if 1 < number < 4:
            rows.insert(0, rows[0] + 1)
        return Page([dump({"id": ident}) for ident in rows[number - 1 : number]], None)

    found = await all_of(by_number(fetch, CALL))
    assert {json.loads(item)["id"] for item in found} >= {9, 5, 4}


async def test_no_list_at_all() -> None:
    async def fetch(*_: int) -> Page:
        return Page([], has_next=True)

    assert await all_of(by_number(fetch, CALL)) == []
    assert await all_of(by_change(fetch, changed, 0, CALL)) == []
    assert await all_of(twice(lambda: by_start(fetch, started, 0, CALL))) == []
