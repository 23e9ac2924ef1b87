"""Walking a list of DialLink's while others change it. No I/O: who walks says how to fetch a page.

Pages are asked for by their number, so whatever comes or goes before a page moves all others. Each
walk says what it does about that. https://developers.diallink.com

None goes on for ever: a list that gives the same pages again and again is an error.
"""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from ingest.api import ApiError

#: So many pages in a row that had been there before are a circle. A page may well come again: if as
#: many items as it holds have come before it meanwhile.
MAX_REPEATED = 5

#: How often the items of one time are read until two readings agree.
MAX_READINGS = 20


class Page(NamedTuple):
    #: Each exactly as it came.
    items: Sequence[bytes]
    #: None: the answer does not say, and so the list ends with a page without items.
    has_next: bool | None

    @property
    def is_last(self) -> bool:
        return not self.items or self.has_next is False


#: A page by its number, from 1 on.
Fetch = Callable[[int], Awaitable[Page]]

#: The same of what has changed at or after an instant, milliseconds since 1970, that first.
FetchChanged = Callable[[int, int], Awaitable[Page]]

#: A clock of an item, milliseconds since 1970; None if it has none that can be read.
Clock = Callable[[bytes], int | None]

Pages = AsyncIterator[Sequence[bytes]]


class DisorderError(ApiError):
    """A list is not what was asked for, though the question was not refused."""

    def __init__(self, call: str, what: str, mend: str) -> None:
        super().__init__("unexpected", f"{call}: {what}", status=200, mend=mend)


class _Circle:
    """Notices pages that come again and again. Raises ApiError `cursor_loop`."""

    def __init__(self, call: str) -> None:
        self._call = call
        self._seen: set[int] = set()  # hashes: a long list must not grow in memory
        self._repeated = 0

    def note(self, page: Page) -> None:
        mark = hash(tuple(page.items))
        self._repeated = self._repeated + 1 if page.items and mark in self._seen else 0
        if self._repeated >= MAX_REPEATED:
            raise _loop(self._call)
        self._seen.add(mark)


def _loop(call: str) -> ApiError:
    return ApiError("cursor_loop", f"{call}: the list goes in circles", mend="try again later")


async def by_number(fetch: Fetch, call: str) -> Pages:
    """All pages, none of them empty.

    What comes before a page meanwhile makes items come twice; what goes hides some.
    """
    circle = _Circle(call)
    for number in itertools.count(1):
        page = await fetch(number)
        circle.note(page)
        if page.items:
            yield page.items
        if page.is_last:
            return


async def twice(walk: Callable[[], Pages]) -> Pages:
    """What one walk gives, and what a second one gives beyond that: what had moved meanwhile."""
    seen: set[int] = set()
    for _ in range(2):
        async for items in walk():
            fresh = [item for item in items if hash(item) not in seen]
            seen.update(map(hash, fresh))
            if fresh:
                yield fresh


async def by_start(fetch: Fetch, started: Clock, from_ms: int, call: str) -> Pages:
    """The pages of a list whose latest start comes first, to the first wholly before ``from_ms``.

    If it is in another order, which would be against the question, all of it.
    """
    in_order = True
    async for items in by_number(fetch, call):
        yield items
        times = _known(started, items)
        in_order = in_order and all(a >= b for a, b in itertools.pairwise(times))
        if in_order and times and times[0] < from_ms:
            return


async def by_change(fetch: FetchChanged, changed: Clock, since_ms: int, call: str) -> Pages:
    """What has changed since then, in the order of the changes, up to the end of the list.

    It is always the first page that is asked for, of what has changed since the last change seen:
    so nothing moves. What was on the page before is known and left out. Only where a whole page
    has one time the next pages are asked for; since what is changed meanwhile leaves them, and
    moves what is behind, that is repeated until two readings agree.

    Raises DisorderError where the list does not keep to the question, before anything is lost.
    """
    last_ms, number = since_ms, 1
    #: Hashes of what was given from the page before, and from all pages of the present question.
    known: set[int] = set()
    #: Of the present reading of items of one time, and of the one before.
    reading: set[int] = set()
    former: set[int] | None = None
    readings = 0
    circle = _Circle(call)
    while True:
        page = await fetch(last_ms, number)
        times = [changed(item) for item in page.items]
        _check_order(times, last_ms, number, call)
        hashes = [hash(item) for item in page.items]
        fresh = [item for item, mark in zip(page.items, hashes, strict=True) if mark not in known]
        if fresh:
            yield fresh
        circle.note(page)
        top_ms = max((at for at in times if at is not None), default=last_ms)
        reading.update(
            mark for mark, at in zip(hashes, times, strict=True) if at is None or at == last_ms
        )
        if top_ms == last_ms and not page.is_last:
            known.update(hashes)
            number += 1
            continue
        if number > 1 and reading != former:
            readings += 1
            if readings > MAX_READINGS:
                raise _loop(call)
            known.update(hashes)
            reading, former = set(), reading
        elif page.is_last:
            return
        else:
            last_ms, known, reading, former, readings = top_ms, set(hashes), set(), None, 0
        number, circle = 1, _Circle(call)


def _check_order(times: Sequence[int | None], last_ms: int, number: int, call: str) -> None:
    """That they ascend from ``last_ms`` on, as they were asked for."""
    known = [at for at in times if at is not None]
    if times and not known and number == 1:
        # Whoever filters by it hides what has none, too.
        raise DisorderError(
            call,
            "no item has the time of its change",
            "name the field in assume.call_fields.updated_at (recordings: "
            'assume.recording_fields.updated_at), or set assume.order = "started"',
        )
    if known and (known[0] < last_ms or any(a > b for a, b in itertools.pairwise(known))):
        raise DisorderError(
            call,
            "the list is not in the order of the changes, or not of those asked for",
            'set assume.order = "started"',
        )


def _known(clock: Clock, items: Sequence[bytes]) -> list[int]:
    return [at for item in items if (at := clock(item)) is not None]
