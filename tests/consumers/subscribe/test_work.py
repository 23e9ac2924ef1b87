"""The work between what was fetched and what can be committed, by itself."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from consumers.subscribe.events import Event, NotNowError, RejectError, Retry
from consumers.subscribe.routes import Routes, event_route
from consumers.subscribe.work import Work, _Partition
from ingest.errors import PublishError
from ingest.eventlog.log import Place, StoredRecord
from schemas.call import Call
from schemas.conversation import Conversation
from tests.consumers.subscribe.logs import call, conversation, until


def stored(leg: str, position: int, partition: int = 0, ident: str | None = None) -> StoredRecord:
    record = call(leg, position, ident=ident)
    return StoredRecord(
        record.topic, partition, position, 0, record.key, record.value, record.headers
    )


class Bench:
    """Work with one handler, and what it did."""

    def __init__(self, handler: Any = None, *, queue_max: int = 1000, parallel: int = 4) -> None:
        self.held: list[Collection[Place]] = []
        self.rejected: list[tuple[int, str, str]] = []
        self.refuses = 0
        self.seen: list[int] = []

        async def note(call: Call) -> None:
            self.seen.append(int(call.custom_data or "-1"))

        self.routes = Routes()
        retry = Retry(tries=2, first_s=0.01, most_s=0.02)
        self.routes.add(event_route(Call, handler or note, (), retry, None))
        self.work = Work(
            "crm",
            self.routes,
            self._reject,
            self.held.append,
            parallel=parallel,
            queue_max=queue_max,
            seen_max=100,
        )

    async def _reject(self, stored: StoredRecord, reason: str, detail: str) -> None:
        if self.refuses:
            self.refuses -= 1
            raise PublishError("disk_full")
        self.rejected.append((stored.position, reason, detail))

    def committable(self) -> dict[Place, int]:
        return {(each.topic, each.partition): each.position for each in self.work.handled().records}


# What can be committed


@given(
    wanted=st.lists(st.booleans(), min_size=1, max_size=30),
    gaps=st.lists(st.integers(1, 3), min_size=30, max_size=30),
    data=st.data(),
)
def test_what_can_be_committed_is_what_stands_before_the_first_that_is_open(
    wanted: Sequence[bool], gaps: Sequence[int], data: st.DataObject
) -> None:
    """In whatever order things are done, with positions left out and records that nobody wants."""
    partition = _Partition(("calls", 0), now=0.0)
    positions: list[int] = []
    position = 0
    for gap in gaps[: len(wanted)]:
        position += gap
        positions.append(position)
    undone: set[int] = set()
    added = 0
    while added < len(positions) or undone:
        choices = [*sorted(undone)]
        if added < len(positions):
            choices.append(-1)
        choice = data.draw(st.sampled_from(choices))
        if choice != -1:
            partition.finish(choice)
            undone.remove(choice)
        elif wanted[added]:
            partition.open.append(positions[added])
            undone.add(positions[added])
            added += 1
        else:
            partition.skip(positions[added])
            added += 1
        seen = positions[:added]
        before = [each for each in seen if not undone or each < min(undone)]
        assert partition.handled == (before[-1] if before else None)


async def test_what_was_committed_is_not_committed_again() -> None:
    bench = Bench()
    for position in range(3):
        bench.work.add(stored("1", position))
    await until(lambda: len(bench.seen) == 3)
    await asyncio.sleep(0)
    handled = bench.work.handled()
    assert [each.position for each in handled.records] == [2]
    assert bench.committable() == {("calls", 0): 2}  # it may have failed
    handled.committed()
    assert bench.committable() == {}


async def test_what_nobody_wants_is_passed_over_and_committed() -> None:
    bench = Bench()
    other = stored("1", 5)
    other.headers = (("ce_type", b"dialstream.message.received"), ("ce_id", b"x"))
    bench.work.add(other)
    tombstone = stored("1", 6)
    tombstone.value = None
    bench.work.add(tombstone)
    assert bench.committable() == {("calls", 0): 6}
    assert bench.seen == []


async def test_a_record_of_others_is_handled_if_it_is_an_event_and_else_rejected() -> None:
    bench = Bench()
    plain = stored("1", 1)
    plain.headers = ()
    bench.work.add(plain)
    garbage = StoredRecord("calls", 0, 2, 0, b"", b"\xff{}", ())
    bench.work.add(garbage)
    for position, value in (
        (3, b"[]"),
        (4, b'{"type":1,"id":"x"}'),
        (5, b'{"type":"a.b","id":null}'),
    ):
        bench.work.add(StoredRecord("calls", 0, position, 0, b"", value, ()))
    await until(lambda: bench.committable() == {("calls", 0): 5})
    assert bench.seen == [1]
    assert [(at, reason) for at, reason, _ in bench.rejected] == [
        (at, "unreadable") for at in (2, 3, 4, 5)
    ]


# Waiting


async def test_no_more_is_fetched_than_can_wait() -> None:
    release = asyncio.Event()

    async def wait(call: Call) -> None:
        await release.wait()

    bench = Bench(wait, queue_max=10)
    for position in range(10):
        bench.work.add(stored(f"leg{position}", position))
    room = asyncio.create_task(bench.work.room())
    await asyncio.sleep(0.05)
    assert not room.done()
    release.set()
    async with asyncio.timeout(20):
        await room
    assert bench.work.waiting <= 5


async def test_what_waits_in_a_paused_partition_takes_no_room() -> None:
    async def never(call: Call) -> None:
        raise NotNowError(3600)

    bench = Bench(never, queue_max=10)
    for position in range(50):
        bench.work.add(stored(f"leg{position}", position))
    await until(lambda: bool(bench.held))
    assert bench.held == [{("calls", 0)}]
    async with asyncio.timeout(20):
        await bench.work.room()
    assert bench.work.waiting == 0


async def test_an_event_that_is_never_done_does_not_let_a_partition_run_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("consumers.subscribe.work._SPAN", 20)
    release = asyncio.Event()
    seen: list[int] = []

    async def handle(call: Call) -> None:
        if call.call_id == "slow":
            await release.wait()
        seen.append(int(call.custom_data or "-1"))

    bench = Bench(handle)
    bench.work.add(stored("slow", 0))
    for position in range(1, 25):
        bench.work.add(stored("quick", position))
    await until(lambda: len(seen) == 24)
    assert bench.held == [{("calls", 0)}]
    assert bench.committable() == {}
    release.set()
    await until(lambda: bench.committable() == {("calls", 0): 24})
    assert bench.held == [{("calls", 0)}, set()]


@pytest.mark.parametrize("how", ["hangs", "fails"])
async def test_one_key_with_thousands_behind_it_keeps_no_other_partition_waiting(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.subscribe.work._STILL_S", 0.05)
    release = asyncio.Event()
    seen: list[tuple[str, int]] = []

    async def handle(call: Call, event: Event[Call]) -> None:
        if call.call_id == "stuck":
            if how == "hangs":
                await release.wait()
            elif not release.is_set():
                raise OSError
        seen.append((call.call_id, event.position))

    bench = Bench(handle, queue_max=10)
    for route in bench.routes:
        route.retry = Retry(tries=None, first_s=0.01, most_s=0.02)
    for position in range(14):
        bench.work.add(stored("stuck", position))

    async def have_room() -> None:
        room = asyncio.create_task(bench.work.room())
        async with asyncio.timeout(60):
            while not room.done():
                bench.work.make_room()
                await asyncio.sleep(0.01)

    await have_room()
    assert bench.held == [{("calls", 0)}]
    # What stands in the other one does not stand still, and waits for room as ever.
    for position in range(40):
        await have_room()
        bench.work.add(stored("good", position, partition=1))
    await until(lambda: len(seen) == 40)
    assert seen == [("good", position) for position in range(40)]
    assert bench.work.waiting == 0
    assert bench.held == [{("calls", 0)}]
    release.set()
    await until(lambda: len(seen) == 54)
    assert seen[40:] == [("stuck", position) for position in range(14)]
    await until(lambda: bench.committable() == {("calls", 0): 13, ("calls", 1): 39})
    assert bench.work.waiting == 0
    assert bench.held == [{("calls", 0)}, set()]


async def test_what_moves_waits_for_room_however_long_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("consumers.subscribe.work._STILL_S", 3600.0)
    release = asyncio.Event()

    async def wait(call: Call) -> None:
        await release.wait()

    bench = Bench(wait, queue_max=10)
    for position in range(12):
        bench.work.add(stored("1", position))
    room = asyncio.create_task(bench.work.room())
    await asyncio.sleep(0)
    bench.work.make_room()
    await asyncio.sleep(0)
    assert not room.done()
    assert bench.held == []
    release.set()
    await room


async def test_a_large_event_takes_the_room_of_several() -> None:
    release = asyncio.Event()

    async def wait(call: Call) -> None:
        await release.wait()

    bench = Bench(wait, queue_max=10)
    large = stored("1", 0)
    large.value = (large.value or b"").replace(b'"raw":{}', b'"raw":"%s"' % (b"x" * 640_000))
    bench.work.add(large)
    room = asyncio.create_task(bench.work.room())
    await asyncio.sleep(0)
    assert not room.done()
    release.set()
    async with asyncio.timeout(60):
        await room
    assert bench.work.waiting == 0


async def test_a_reject_that_cannot_be_stored_waits_and_the_handler_is_not_called_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("consumers.subscribe.work._STORE_AGAIN_S", 0.01)
    calls: list[str] = []

    async def reject(call: Call) -> None:
        calls.append(call.call_id)
        raise RejectError("no", "because")

    bench = Bench(reject)
    bench.refuses = 3
    bench.work.add(stored("1", 0))
    await until(lambda: bool(bench.rejected))
    assert bench.rejected == [(0, "no", "because")]
    assert calls == ["1"]
    assert bench.refuses == 0


async def test_several_handlers_get_an_event_one_after_the_other_each_until_it_has_it() -> None:
    order: list[str] = []

    async def first(call: Call) -> None:
        order.append("first")

    async def second(call: Call) -> None:
        order.append("second")
        if order.count("second") == 1:
            raise OSError

    bench = Bench(first)
    bench.routes.add(event_route(Call, second, (), Retry(tries=2, first_s=0.01), None))
    bench.work.add(stored("1", 0))
    await until(lambda: bench.committable() == {("calls", 0): 0})
    assert order == ["first", "second", "second"]


async def test_a_handler_that_says_itself_that_it_was_cancelled_has_failed() -> None:
    """As when something that it waits for was cancelled by others. Nobody has asked for that."""
    tries = 0

    async def cancelled(call: Call) -> None:
        nonlocal tries
        tries += 1
        raise asyncio.CancelledError

    bench = Bench(cancelled)
    bench.work.add(stored("1", 0))
    bench.work.add(stored("1", 1))
    await until(lambda: len(bench.rejected) == 2)
    assert tries == 4
    assert [reason for _, reason, _ in bench.rejected] == ["CancelledError", "CancelledError"]


class OutcomeError(BaseException):
    """As test frameworks raise them."""


async def test_whatever_a_handler_raises_is_a_failure_of_its_event() -> None:
    async def odd(call: Call) -> None:
        raise OutcomeError

    bench = Bench(odd)
    bench.work.add(stored("1", 0))
    bench.work.add(stored("1", 1))
    await until(lambda: bench.committable() == {("calls", 0): 1})
    assert [reason for _, reason, _ in bench.rejected] == ["OutcomeError", "OutcomeError"]


@pytest.mark.parametrize("way_out", [SystemExit, KeyboardInterrupt])
async def test_a_handler_that_wants_out_gets_out_and_no_other_is_called_meanwhile(
    way_out: type[BaseException],
) -> None:
    calls = 0

    async def leave(call: Call) -> None:
        nonlocal calls
        calls += 1
        raise way_out

    bench = Bench(leave, parallel=2)
    for position in range(50):
        bench.work.add(stored(f"leg{position}", position))
    await asyncio.wait([bench.work.fault], timeout=60)
    assert isinstance(bench.work.fault.exception(), way_out)
    handled = await bench.work.leave(None, 1.0)
    assert handled.records == []
    assert bench.rejected == []
    assert calls <= 2


async def test_what_cannot_be_read_is_set_aside_once_however_many_handlers_it_has() -> None:
    bench = Bench()

    async def other(call: Call) -> None: ...

    bench.routes.add(event_route(Call, other, (), Retry(), None))
    broken = stored("1", 0)
    broken.value = (broken.value or b"").replace(b'"call_id":"1"', b'"call_id":""')
    bench.work.add(broken)
    await until(lambda: bench.committable() == {("calls", 0): 0})
    assert bench.rejected == [(0, "unreadable", "data.call_id: string_too_short")]


async def test_poison_events_among_good_ones_are_set_aside_however_many_they_are() -> None:
    """Only those in a row say that it is the handler that is broken."""

    async def handle(call: Call, event: Event[Call]) -> None:
        if event.position % 2:
            raise OSError

    bench = Bench(handle)
    for route in bench.routes:
        route.retry = Retry(tries=1)
    for position in range(30):
        bench.work.add(stored("1", position))
    await until(lambda: bench.committable() == {("calls", 0): 29})
    assert [position for position, _, _ in bench.rejected] == list(range(1, 30, 2))


async def test_what_nobody_has_thought_of_ends_it_and_leaves_no_key_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key that nobody comes back to would wait for ever, and nobody would hear of it."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def reject(call: Call) -> None:
        raise RejectError("no")

    bench = Bench(reject)
    monkeypatch.setattr(bench.work, "_reject", fail)
    bench.work.add(stored("1", 0))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(bench.work.fault, 60)
    handled = await bench.work.leave(None, 1.0)
    assert handled.records == []


async def test_who_cancels_a_worker_from_outside_ends_it() -> None:
    async def wait(call: Call) -> None:
        await asyncio.sleep(3600)

    bench = Bench(wait)
    bench.work.add(stored("1", 0))
    await asyncio.sleep(0)
    (worker,) = bench.work.workers
    assert worker.task is not None
    worker.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(bench.work.fault, 60)


@pytest.mark.parametrize("after_s", [0.0304, 0.05, 1 / 3 / 10])
def test_a_pause_ends_by_a_clock_that_counts_milliseconds(
    after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uvloop rounds timers to a millisecond: they fire when it is too early by a part of one."""
    monkeypatch.setattr("consumers.subscribe.events._LEAST_S", 0.0)
    tries = 0

    async def not_now(call: Call) -> None:
        nonlocal tries
        tries += 1
        if tries < 20:
            raise NotNowError(after_s)

    async def play() -> None:
        bench = Bench(not_now)
        bench.work.add(stored("1", 0))
        await until(lambda: bench.committable() == {("calls", 0): 0})

    uvloop.run(play())
    assert tries == 20


async def test_a_handler_that_does_not_mind_its_time_keeps_its_worker_only() -> None:
    """One that swallows its cancellation and goes on is taken at its word."""
    ended = 0

    async def stubborn(call: Call) -> None:
        nonlocal ended
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        ended += 1

    bench = Bench(stubborn)
    for route in bench.routes:
        route.timeout_s = 0.05
    for position in range(3):
        bench.work.add(stored("1", position))
    async with asyncio.timeout(20):
        while ended < 3:
            bench.work.cancel_late()
            await asyncio.sleep(0.01)
    await until(lambda: bench.committable() == {("calls", 0): 2})
    assert bench.rejected == []


def test_what_others_say_is_such_that_it_can_be_kept() -> None:
    """Whatever is raised can be stored, does not spin, and ends."""
    plain = RejectError("no_such_account", "acme has none")
    assert (plain.reason, plain.detail) == ("no_such_account", "acme has none")
    error = OSError("+15551230001")
    assert RejectError(error).reason == "OSError"  # type: ignore[arg-type]
    odd = RejectError("\udc80" + "x" * 5000, "\udc80" + "y" * 5000)
    assert odd.reason == "?" + "x" * 99
    assert odd.detail == "?" + "y" * 999
    asked = [5.0, 0.0, -1.0, float("nan"), float("inf")]
    assert [NotNowError(after_s).after_s for after_s in asked] == [5.0, 0.1, 0.1, 0.1, 86_400.0]


# Leaving


async def test_who_was_given_up_and_has_not_minded_works_no_more() -> None:
    """Its worker counts as cancelled: what else it handled could not be told from given up."""
    partitions: list[int] = []

    async def stubborn(call: Call, event: Event[Call]) -> None:
        partitions.append(event.partition)
        if event.partition == 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        else:
            await asyncio.sleep(3600)

    bench = Bench(stubborn, parallel=1)
    for route in bench.routes:
        route.timeout_s = 0.01
    bench.work.add(stored("1", 0))
    bench.work.add(stored("2", 0, partition=1))
    await asyncio.sleep(0)
    handled = await bench.work.leave([("calls", 0)], 0.0)
    assert [each.position for each in handled.records] == [0]
    async with asyncio.timeout(60):
        while not bench.rejected:
            bench.work.cancel_late()
            await asyncio.sleep(0.01)
    assert partitions == [0, 1, 1]
    assert bench.rejected == [(0, "TimeoutError", bench.rejected[0][2])]


@pytest.mark.parametrize("tries", [1, 2])
async def test_what_a_handler_makes_of_being_given_up_is_not_the_events_fault(tries: int) -> None:
    """As clients of databases that say that the connection has failed."""

    async def converts(call: Call) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise ConnectionError from None

    bench = Bench(converts)
    for route in bench.routes:
        route.retry = Retry(tries=tries)
    bench.work.add(stored("1", 0))
    await asyncio.sleep(0)
    handled = await bench.work.leave(None, 0.0)
    assert handled.records == []
    assert bench.rejected == []
    assert bench.work.counts["converts", "failed"] == 0


async def test_what_is_left_behind_has_no_holes() -> None:
    """What stands before what has begun is handled, too: else that would come again."""
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}
    seen: list[tuple[str, int]] = []

    async def handle(call: Call) -> None:
        if call.call_id in gates:
            await gates[call.call_id].wait()
        seen.append((call.call_id, int(call.custom_data or "-1")))

    bench = Bench(handle, parallel=2)
    # Two workers: a and b have begun, the second of a stands before b, c behind.
    for position, leg in enumerate(["a", "a", "b", "b", "c"]):
        bench.work.add(stored(leg, position))
    await asyncio.sleep(0.01)
    leaving = asyncio.create_task(bench.work.leave([("calls", 0)], 20.0))
    await asyncio.sleep(0.01)
    gates["b"].set()
    await asyncio.sleep(0.01)
    assert not leaving.done()
    gates["a"].set()
    handled = await leaving
    assert sorted(seen) == [("a", 0), ("a", 1), ("b", 2)]
    assert [each.position for each in handled.records] == [2]
    assert bench.committable() == {}


async def test_what_is_to_be_tried_again_is_not_waited_for() -> None:
    seen: list[str] = []

    async def handle(call: Call) -> None:
        if call.call_id == "fails":
            raise OSError
        seen.append(call.call_id)

    bench = Bench(handle)
    for route in bench.routes:
        route.retry = Retry(first_s=3600, most_s=3600)
    for position, leg in enumerate(["a", "fails", "b"]):
        bench.work.add(stored(leg, position))
    await until(lambda: seen == ["a", "b"])
    async with asyncio.timeout(20):
        handled = await bench.work.leave(None, 3600)
    assert [each.position for each in handled.records] == [0]


async def test_what_waits_in_a_paused_partition_is_not_waited_for() -> None:
    async def handle(call: Call) -> None:
        if call.call_id == "away":
            raise NotNowError(3600)

    bench = Bench(handle)
    for position, leg in enumerate(["a", "away", "b", "b"]):
        bench.work.add(stored(leg, position))
    await until(lambda: bool(bench.held))
    async with asyncio.timeout(20):
        handled = await bench.work.leave(None, 3600)
    assert [each.position for each in handled.records] == [0]


async def test_what_is_no_proper_request_on_the_groups_topic_is_passed_over() -> None:
    bench = Bench()
    for position, headers in enumerate(
        [
            (),
            (("reject_from", b"calls/0/1"),),
            (("redriven_at", b""), ("ce_type", b"\xff"), ("ce_id", b"x")),
            (("redriven_at", b""), ("reject_from", b"\xff")),
        ]
    ):
        record = stored("1", position)
        record.topic, record.headers = "rejects.crm", headers
        bench.work.add(record)
    await until(lambda: bench.committable() == {("rejects.crm", 0): 3})
    assert bench.seen == [3]  # it is an event, and somebody has asked for it
    assert bench.rejected == []


async def test_what_is_lost_is_given_up_at_once() -> None:
    cancelled: list[str] = []

    async def hang(call: Call) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(call.call_id)
            raise

    bench = Bench(hang, parallel=2)
    for position, leg in enumerate(["a", "b", "c"]):
        bench.work.add(stored(leg, position))
    bench.work.add(stored("d", 0, partition=1))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(20):
        handled = await bench.work.leave([("calls", 0)], 0.0)
    assert sorted(cancelled) == ["a", "b"]
    assert handled.records == []
    # What is ours goes on.
    await until(lambda: any(worker.item for worker in bench.work.workers))
    async with asyncio.timeout(20):
        await bench.work.leave(None, 0.0)
    assert sorted(cancelled) == ["a", "b", "d"]


def stubborn_until(over: asyncio.Event) -> Callable[[Call], Awaitable[None]]:
    """A handler that ends by nothing else."""

    async def stubborn(call: Call) -> None:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    return stubborn


async def test_whoever_does_not_end_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("consumers.subscribe.work._CANCEL_S", 0.05)
    over = asyncio.Event()
    bench = Bench(stubborn_until(over))
    bench.work.add(stored("1", 7))
    await asyncio.sleep(0.01)
    with capture_logs() as logs:
        async with asyncio.timeout(20):
            await bench.work.leave(None, 0.01)
    over.set()
    named = [(line["handler"], line["position"]) for line in logs if "does_not" in line["event"]]
    assert named == [("stubborn", 7)]


async def test_whoever_hangs_although_its_time_is_over_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It keeps its worker and its key, and nothing else would say so."""
    monkeypatch.setattr("consumers.subscribe.work._CANCEL_S", 0.05)
    over = asyncio.Event()
    bench = Bench(stubborn_until(over))
    for route in bench.routes:
        route.timeout_s = 0.05
    bench.work.add(stored("1", 7))
    with capture_logs() as logs:
        async with asyncio.timeout(60):
            while not logs:
                bench.work.cancel_late()
                await asyncio.sleep(0.01)
    over.set()
    (line,) = logs
    assert line["event"] == "handler_does_not_end"
    assert (line["handler"], line["topic"], line["position"]) == ("stubborn", "calls", 7)


async def test_a_partition_that_comes_back_begins_where_the_log_says() -> None:
    bench = Bench()
    bench.work.add(stored("1", 5))
    await until(lambda: bench.seen == [5])
    await bench.work.leave([("calls", 0)], 20.0)
    bench.work.add(stored("1", 2, ident="another"))
    await until(lambda: bench.seen == [5, 2])
    assert bench.committable() == {("calls", 0): 2}


@pytest.mark.parametrize("is_slow", [False, True])
async def test_a_state_that_others_may_have_followed_by_another_is_no_repeat(
    *, is_slow: bool
) -> None:
    """While the partition was theirs, b came after a; now a is news again.

    Also if a handler was still busy with a when the partition went.
    """
    seen: list[int] = []
    may_end = asyncio.Event()

    async def note(_: Conversation, event: Event[Conversation]) -> None:
        seen.append(event.position)
        await may_end.wait()

    def row(position: int) -> StoredRecord:
        record = conversation("7", "a")
        return StoredRecord(record.topic, 0, position, 0, record.key, record.value, record.headers)

    bench = Bench()
    bench.routes.add(event_route(Conversation, note, (), Retry(), None))
    bench.work.add(row(1))
    await until(lambda: seen == [1])
    if not is_slow:
        may_end.set()
        bench.work.add(row(2))
        await until(lambda: bench.committable() == {("ledger", 0): 2})
    leaving = asyncio.create_task(bench.work.leave([("ledger", 0)], 60.0))
    await asyncio.sleep(0)
    may_end.set()
    await leaving
    bench.work.add(row(4))
    await until(lambda: bench.committable() == {("ledger", 0): 4})
    assert seen == [1, 4]


# All of it together


class Play:
    """A log of three partitions, members that take turns with it, handlers that do as they like."""

    PARTITIONS, EVENTS = 3, 60

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.records = [
            stored(f"{partition}-{self.chance.randrange(4)}", position, partition)
            for position in range(self.EVENTS)
            for partition in range(self.PARTITIONS)
        ]
        self.committed = dict.fromkeys(range(self.PARTITIONS), -1)
        #: (key, position) of what was handled or rejected.
        self.done: set[tuple[bytes, int]] = set()
        self.faults: list[str] = []
        #: Whether nothing fails any more.
        self.well = False

    @property
    def left(self) -> list[StoredRecord]:
        return [one for one in self.records if one.position > self.committed[one.partition]]

    async def handle(self, call: Call, event: Event[Call]) -> None:
        key, position = event.key.encode(), event.position
        for one in self.records:
            if one.key == key and one.position < position and (key, one.position) not in self.done:
                self.faults.append(f"{event}: {one.position} was skipped")
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)
        if not self.well:
            self._fail()
        self.done.add((key, position))

    def _fail(self) -> None:
        way = self.chance.randrange(50)
        if way < 5:
            raise OSError
        if way < 8:
            raise NotNowError(0.001)
        if way < 11:
            raise RejectError("no")
        if way < 12:
            raise asyncio.CancelledError

    async def reject(self, record: StoredRecord, reason: str, detail: str) -> None:
        if self.chance.random() < 0.2:
            raise PublishError("disk_full")
        self.done.add((record.key, record.position))

    async def turn(self) -> None:
        """A member comes, does something, and goes in good order or not."""
        routes = Routes()
        retry = Retry(tries=2, first_s=0.001, most_s=0.001)
        routes.add(event_route(Call, self.handle, (), retry, None))
        work = Work(
            "crm",
            routes,
            self.reject,
            lambda _: None,
            parallel=self.chance.randint(1, 6),
            queue_max=30,
            seen_max=self.chance.choice([2, 1000]),
        )
        for record in self.left[: self.chance.randint(20, 180)]:
            work.add(record)
            if self.chance.random() < 0.3:
                await asyncio.sleep(0)
        fetching = asyncio.create_task(work.room())
        for _ in range(4):
            await asyncio.sleep(self.chance.random() / 400)
            work.make_room()
        handled = await work.leave(None, self.chance.choice([0.0, 0.02]))
        assert work.waiting == 0
        await fetching
        for each in handled.records:
            assert each.position >= self.committed[each.partition]
            self.committed[each.partition] = each.position


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_nothing_is_skipped_and_keys_keep_their_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.subscribe.events._LEAST_S", 0.0)
    monkeypatch.setattr("consumers.subscribe.work._STILL_S", 0.0)
    play = Play(seed)
    turns = 0
    while play.left:
        turns += 1
        play.well = turns > 20
        await play.turn()
    assert play.faults == []
    assert play.done == {(one.key, one.position) for one in play.records}
