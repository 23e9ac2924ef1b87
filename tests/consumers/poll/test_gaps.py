"""Gaps as the topic tells them, and what becomes of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from consumers.poll.gaps import Gaps, close_gap
from consumers.poll.loops import Storing
from consumers.poll.seen import Seen
from consumers.poll.windows import Gap
from ingest.eventlog.journal import open_journal, open_reader
from ingest.eventlog.log import StoredRecord, records_of
from ingest.gaps import gap_event
from ingest.metrics import REGISTRY
from ingest.pipeline import store
from schemas.event import Event
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialpad import HOUR_MS, SmallDialpad

BEGIN_MS = 1_790_000_000_123


def event(
    channel: str, from_ms: int, to_ms: int | None = None, *, closed: bool = False, of: str = "acme"
) -> Event:
    return gap_event(
        of,
        channel,
        from_ms,
        to_ms=to_ms,
        reason="closed_by_peer",
        found=3 if closed else None,
        now_ms=BEGIN_MS,
    )


def stored(*events: Event) -> list[StoredRecord]:
    return [
        StoredRecord(r.topic, 0, n, BEGIN_MS, r.key, r.value, r.headers)
        for n, each in enumerate(events)
        for r in records_of(each)
    ]


def ends(gaps: Gaps, connected_ms: int | None = None) -> list[tuple[str, int, int | None]]:
    found = gaps.of("acme", connected_ms)
    return [(g.channel, g.from_ms - BEGIN_MS, g.to_ms and g.to_ms - BEGIN_MS) for g in found]


def test_what_is_opened_is_open_until_it_is_closed() -> None:
    gaps = Gaps()
    gaps.read(
        stored(
            event("webhook", BEGIN_MS, BEGIN_MS + 500),
            event("websocket", BEGIN_MS),
            event("webhook", BEGIN_MS, of="other"),
        )
    )
    assert gaps.of("acme", None) == [
        Gap(
            channel="webhook",
            from_ms=BEGIN_MS,
            to_ms=BEGIN_MS + 500,
            reason="closed_by_peer",
        ),
        Gap(channel="websocket", from_ms=BEGIN_MS, to_ms=None, reason="closed_by_peer"),
    ]
    gaps.read(stored(event("webhook", BEGIN_MS, BEGIN_MS + 500, closed=True)))
    assert ends(gaps) == [("websocket", 0, None)]
    assert len(gaps.of("other", None)) == 1
    assert gaps.of("nobody", None) == []


def test_what_is_told_again_is_not_opened_again() -> None:
    """Whoever tells of gaps may do so twice after a crash, or when it reads the log anew."""
    gaps = Gaps()
    told = event("push", BEGIN_MS, BEGIN_MS + 500)
    gaps.read(stored(told, told, event("push", BEGIN_MS, BEGIN_MS + 500, closed=True), told))
    assert ends(gaps) == []
    gaps.read(stored(event("push", BEGIN_MS, BEGIN_MS + 501)))
    assert ends(gaps) == [("push", 0, 501)]
    gaps.closed("acme", gaps.of("acme", None)[0])
    gaps.read(stored(event("push", BEGIN_MS, BEGIN_MS + 501), event("records", BEGIN_MS, BEGIN_MS)))
    assert ends(gaps) == [("records", 0, 0)]


@pytest.mark.parametrize(
    ("to_s", "opened_s", "closed_s", "took_s"),
    [
        (100, 60, 130, 30),  # told of while it lasted
        (100, 160, 190, 30),  # found when it was over
        (100, 100, 99, 0),  # our clock was put back
    ],
)
async def test_how_long_it_took_to_close_is_measured_from_when_that_could_begin(
    tmp_path: Path, to_s: int, opened_s: int, closed_s: int, took_s: int
) -> None:
    opened = gap_event(
        "acme",
        "push",
        BEGIN_MS,
        to_ms=BEGIN_MS + to_s * 1000,
        reason="push_missing",
        found=None,
        now_ms=BEGIN_MS + opened_s * 1000,
    )
    gaps = Gaps()
    gaps.read(stored(opened))
    (gap,) = gaps.of("acme", None)
    labels = {"connection": "acme", "channel": "push"}

    def measured(what: str) -> float:
        return REGISTRY.get_sample_value(f"dialstream_gap_closed_seconds_{what}", labels) or 0.0

    count, seconds = measured("count"), measured("sum")
    async with open_journal(tmp_path) as journal:
        storing = Storing("acme", journal)
        at_ms = BEGIN_MS + closed_s * 1000
        await close_gap("acme", gap, gaps, Seen.nothing(), storing, at_ms)
    assert measured("count") - count == 1
    assert measured("sum") - seconds == pytest.approx(took_s)
    assert ends(gaps) == []


def test_a_socket_that_was_lost_is_deaf_until_it_is_connected_again() -> None:
    gaps = Gaps()
    gaps.read(stored(event("websocket", BEGIN_MS), event("webhook", BEGIN_MS + 10)))
    for earlier in (None, BEGIN_MS - 1000, BEGIN_MS):
        assert ends(gaps, earlier) == [("websocket", 0, None), ("webhook", 10, None)]
    assert ends(gaps, BEGIN_MS + 700) == [("websocket", 0, 700), ("webhook", 10, None)]


def test_it_was_connected_at_the_latest_when_it_was_lost_again() -> None:
    gaps = Gaps()
    gaps.read(
        stored(
            event("websocket", BEGIN_MS),
            event("websocket", BEGIN_MS + 300),
            event("webhook", BEGIN_MS + 100),
        )
    )
    assert ends(gaps, BEGIN_MS - 1) == [
        ("websocket", 0, 300),
        ("webhook", 100, None),
        ("websocket", 300, None),
    ]
    assert ends(gaps, BEGIN_MS + 200)[0] == ("websocket", 0, 200)
    assert ends(gaps, BEGIN_MS + 900) == [
        ("websocket", 0, 300),
        ("webhook", 100, None),
        ("websocket", 300, 900),
    ]


def test_what_is_no_gap_of_ours_is_told_and_passed_over() -> None:
    values: Sequence[bytes | None] = [
        None,
        b"",
        b"[]",
        b"{}",
        b'{"data":{"channel":"x","from":"then","to":null,"reason":""}}',
        b'{"data":{"channel":"x","from":5,"to":null,"reason":""},"connection":"a","type":"b"}',
        b'{"data":{"channel":[],"from":"2026-01-01","to":null,"reason":""},"type":"b","connection":"a"}',
        b"\xff",
    ]
    gaps = Gaps()
    with capture_logs() as logs:
        gaps.read([StoredRecord("gaps", 0, n, 0, b"acme", v, ()) for n, v in enumerate(values)])
    assert [line["position"] for line in logs] == list(range(len(values)))
    gaps.read(stored(event("webhook", BEGIN_MS)))
    assert len(gaps.of("acme", None)) == 1


async def test_current_has_read_all_that_was_there(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        gaps = Gaps()
        following = asyncio.create_task(gaps.follow(lambda: open_reader(tmp_path, ["gaps"])))
        for n in range(3):
            deadline = asyncio.get_running_loop().time() + 10
            await store(journal, [event("webhook", BEGIN_MS + n)], deadline)
            async with asyncio.timeout(20):
                await gaps.current()
            assert len(gaps.of("acme", None)) == n + 1
        following.cancel()


class Failing:
    """A reader of what a test puts in, which can fail."""

    def __init__(self, records: list[StoredRecord]) -> None:
        self.records = records
        self.at = 0
        self.fails = False
        #: What is read at a time.
        self.step = 1

    async def fetch(self, wait_s: float) -> Sequence[StoredRecord]:
        await asyncio.sleep(0.001)
        if self.fails:
            raise OSError
        found = self.records[self.at : self.at + self.step]
        self.at += len(found)
        return found

    async def commit(self, stored: Sequence[StoredRecord]) -> None: ...

    async def caught_up(self) -> bool:
        return self.at == len(self.records)

    async def behind(self) -> set[tuple[str, int]]:
        return set() if await self.caught_up() else {("gaps", 0)}

    def hold(self, places: Collection[tuple[str, int]]) -> None: ...


async def test_a_log_that_fails_is_read_anew_and_what_is_closed_stays_closed() -> None:
    records = stored(
        event("webhook", BEGIN_MS, BEGIN_MS + 1),
        *[event("webhook", BEGIN_MS, BEGIN_MS + 1, closed=True)] * 20,
        event("websocket", BEGIN_MS),
    )
    readers: list[Failing] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Failing]:
        readers.append(Failing(records))
        yield readers[-1]

    gaps = Gaps()
    unread = False
    following = asyncio.create_task(gaps.follow(opened))
    with capture_logs() as logs:
        async with asyncio.timeout(20):
            await gaps.current()
            readers[-1].fails = True
            while len(readers) < 2 or not await readers[-1].caught_up():
                unread |= gaps.unread
                assert ends(gaps) == [("websocket", 0, None)]
                await asyncio.sleep(0)
            await gaps.current()
    assert ends(gaps) == [("websocket", 0, None)]
    assert [line["event"] for line in logs] == ["gaps_unread"]
    assert unread
    assert not gaps.unread
    following.cancel()


# The process


def put(path: Path, *events: Event) -> None:
    async def publish() -> None:
        async with open_journal(path) as journal:
            await store(journal, events, asyncio.get_running_loop().time() + 10)

    asyncio.run(publish())


def test_a_gap_on_the_log_is_closed_once_whoever_dies(
    make_product: MakeProduct, dialpad: SmallDialpad
) -> None:
    dialpad.add(60, hours_ago=50)  # longer ago than the first pass reads
    product = make_product(
        command=("poll",), settings={"connections": {"acme": dialpad.connection()}}
    )
    from_ms = now_ms() - 50 * HOUR_MS
    put(product.data, event("webhook", from_ms - 1000, from_ms + HOUR_MS))
    # Killed when the gap has been read in part.
    dialpad.on_request = lambda number: product.kill() if number == 2 else None
    process = product.spawn()
    process.wait(30)
    dialpad.on_request = lambda _: None

    def closed() -> list[dict[str, Any]]:
        return product.events("gap", "--type", "gap.closed")

    product.start()
    product.wait_for_log("gap_closed")
    (told,) = closed()
    assert told["id"] == f"gap:acme:webhook:{from_ms - 1000}:closed"
    assert told["data"]["found"] == 60
    calls = product.events("call")
    assert len({call["id"] for call in calls}) == 60
    product.kill()
    asked = len(dialpad.asked_at)
    product.start()
    until = time.monotonic() + 30
    while len(dialpad.asked_at) < asked + 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert len(closed()) == 1
    assert product.metrics().sum("dialstream_poll_gaps_open", connection="acme") == 0
    assert product.stop() == 0
