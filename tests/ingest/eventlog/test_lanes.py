"""A lane keeps order, loses nothing, and its receipts tell the truth."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ingest.errors import PublishError
from ingest.eventlog import lanes
from ingest.eventlog.lanes import Group, Lane, Room
from ingest.eventlog.log import Record

ROOM_BYTES = 12_000
GROUP_RECORDS = 5
GROUP_BYTES = 4_000


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until it is moved."""

    now = 0.0

    def time(self) -> float:
        return self.now


@dataclass
class Waiter:
    """Someone who asked a receipt: what they have heard, and what they should have."""

    deadline: float
    task: asyncio.Task[None] | None = None
    heard: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    gone: bool = False

    def told(self, error: PublishError | None) -> None:
        self.heard.append("durable" if error is None else error.reason)

    def expect(self, word: str) -> None:
        if not self.expected and not self.gone:
            self.expected.append(word)


@dataclass
class Batch:
    """What one call of `append` handed over, and what should have become of it."""

    records: list[Record]
    size: int
    receipt: Group
    outcome: str | None = None
    waiters: list[Waiter] = field(default_factory=list)

    def settle(self, word: str) -> None:
        self.outcome = word
        for waiter in self.waiters:
            waiter.expect(word)


class LaneMachine(RuleBasedStateMachine):
    """Appends, commits that end well or badly, and people who wait, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds = patch.multiple(
            lanes, GROUP_MAX_RECORDS=GROUP_RECORDS, GROUP_MAX_BYTES=GROUP_BYTES
        )
        self.bounds.start()
        self.loop = VirtualLoop()
        self.reported: list[object] = []
        self.loop.set_exception_handler(lambda _, ctx: self.reported.append(ctx.get("exception")))
        self.room = Room(ROOM_BYTES)
        self.batches: list[Batch] = []
        #: Batches before this one have been given to a commit that has ended.
        self.settled = 0
        self.crashes = 0
        #: What is being committed, and how to end that.
        self.group: Sequence[Record] | None = None
        self.ending: asyncio.Future[str]
        self.loop.run_until_complete(self.open())

    async def open(self) -> None:
        self.lane = Lane(self.commit, self.room)

    async def commit(self, records: Sequence[Record]) -> str:
        assert self.group is None, "one commit at a time"
        self.group = list(records)
        self.ending = self.loop.create_future()
        try:
            return await self.ending
        finally:
            self.group = None

    def spin(self) -> None:
        for _ in range(8):
            self.loop.run_until_complete(asyncio.sleep(0))

    @rule(sizes=st.lists(st.integers(0, 1500), min_size=1, max_size=7))
    def append(self, sizes: list[int]) -> None:
        records = [Record("calls", b"k", bytes(size), ()) for size in sizes]
        used = self.room.used
        size = sum(sizes) + len(sizes) * (1 + lanes._RECORD_OVERHEAD)
        if used + size > ROOM_BYTES:
            with pytest.raises(PublishError, match="overload"):
                self.lane.append(records)
            assert self.room.used == used
        else:
            self.batches.append(Batch(records, size, self.lane.append(records)))
            assert self.batches[-1].receipt.durable is None
        self.spin()

    @precondition(lambda self: self.group is not None)
    @rule(word=st.sampled_from(["durable", "durable", "disk_full", "crash"]))
    def end_commit(self, word: str) -> None:
        for batch in self.in_flight():
            self.settled += 1
            batch.settle("internal" if word == "crash" else word)
        if word == "durable":
            self.ending.set_result("log")
        elif word == "crash":
            self.crashes += 1
            self.ending.set_exception(ValueError("a fault of ours"))
        else:
            self.ending.set_exception(PublishError(word))
        self.spin()

    @precondition(lambda self: self.batches)
    @rule(back=st.integers(0, 5), wait_s=st.integers(-1, 4), in_task=st.booleans())
    def ask(self, back: int, wait_s: int, *, in_task: bool) -> None:
        batch = self.batches[max(-1 - back, -len(self.batches))]
        waiter = Waiter(self.loop.now + wait_s)
        batch.waiters.append(waiter)
        if in_task:
            waiter.task = self.loop.create_task(self.wait(batch, waiter))
        else:
            self.loop.call_soon(batch.receipt.then, waiter.deadline, waiter.told)
        if batch.outcome is not None:
            waiter.expect(batch.outcome)
        elif wait_s <= 0:
            waiter.expect("timeout")
        self.spin()

    async def wait(self, batch: Batch, waiter: Waiter) -> None:
        try:
            assert await batch.receipt.wait(waiter.deadline) == "log"
        except PublishError as error:
            waiter.told(error)
        else:
            waiter.told(None)

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.loop.now += seconds
        for batch in self.batches:
            for waiter in batch.waiters:
                if waiter.deadline <= self.loop.now:
                    waiter.expect("timeout")
        self.spin()

    @rule(which=st.integers(0, 20))
    def someone_stops_waiting(self, which: int) -> None:
        waiting = [w for b in self.batches for w in b.waiters if w.task and not w.task.done()]
        if waiting:
            waiter = waiting[which % len(waiting)]
            assert waiter.task is not None
            waiter.gone = True
            waiter.task.cancel()
            self.spin()
            assert waiter.task.cancelled()

    def in_flight(self) -> list[Batch]:
        """The batches that are being committed: the next ones, whole, and in order."""
        if self.group is None:
            return []
        found: list[Batch] = []
        records: list[Record] = []
        while len(records) < len(self.group):
            found.append(self.batches[self.settled + len(found)])
            records += found[-1].records
        assert len(records) == len(self.group)
        assert all(a is b for a, b in zip(records, self.group, strict=True))
        return found

    @invariant()
    def the_next_records_are_being_committed_in_groups_of_bounded_size(self) -> None:
        group = self.in_flight()
        assert bool(group) == (self.settled < len(self.batches))
        if len(group) > 1:
            assert sum(len(batch.records) for batch in group) <= GROUP_RECORDS
            assert sum(batch.size for batch in group) <= GROUP_BYTES

    @invariant()
    def receipts_tell_the_truth_once(self) -> None:
        for batch in self.batches:
            receipt = batch.receipt
            assert receipt.durable is {None: None, "durable": True}.get(batch.outcome, False)
            assert receipt.where == ("log" if batch.outcome == "durable" else "")
            for waiter in batch.waiters:
                assert waiter.heard == waiter.expected

    @invariant()
    def the_room_is_that_of_what_waits(self) -> None:
        assert self.room.used == sum(batch.size for batch in self.batches[self.settled :])

    def teardown(self) -> None:
        try:
            draining = self.loop.create_task(self.lane.drained())
            while self.group is not None:
                assert not draining.done()
                self.end_commit("durable")
                self.receipts_tell_the_truth_once()
            self.spin()
            assert draining.done()
            assert self.room.used == 0
            assert len(self.reported) == self.crashes
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.spin()
            self.loop.close()
            self.bounds.stop()


TestLane = LaneMachine.TestCase
TestLane.settings = settings(max_examples=120, stateful_step_count=40)


async def test_one_who_is_told_and_fails_does_not_keep_it_from_the_others() -> None:
    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    fault = ValueError("a fault of ours")
    heard: list[PublishError | None] = []

    def fail(_: PublishError | None) -> None:
        raise fault

    async def commit(_: Sequence[Record]) -> str:
        await asyncio.sleep(0)
        return "log"

    lane = Lane(commit, Room(ROOM_BYTES))
    receipt = lane.append([Record("calls", b"k", b"v", ())])
    for told in (heard.append, fail, heard.append):
        receipt.then(loop.time() + 9, told)
    await lane.drained()

    assert heard == [None, None]
    assert reported == [fault]


class TrackedRecord(Record, weakref=True, gc=True):
    """One that tells when it is gone."""


async def test_a_receipt_keeps_no_records_alive_whatever_became_of_them() -> None:
    outcomes: list[Exception | None] = [None, PublishError("disk_full"), ValueError()]
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)

    async def commit(records: Sequence[Record]) -> str:
        mine = records  # a traceback would remember it
        await asyncio.sleep(0)
        outcome = outcomes[-1]
        if outcome is not None:
            raise outcome
        return f"log of {len(mine)}"

    lane = Lane(commit, Room(ROOM_BYTES))
    while outcomes:
        record = TrackedRecord("calls", b"k", b"v", ())
        gone = weakref.ref(record)
        receipt = lane.append([record])
        del record
        await lane.drained()
        with_error = receipt.durable is False
        assert with_error == (outcomes.pop() is not None)
        gc.collect()
        assert gone() is None


async def test_a_record_larger_than_a_group_goes_alone_and_one_larger_than_the_room_nowhere() -> (
    None
):
    commits: list[int] = []

    async def commit(records: Sequence[Record]) -> str:
        commits.append(len(records))
        await asyncio.sleep(0)
        return "log"

    room = Room(8 * lanes.GROUP_MAX_BYTES)
    lane = Lane(commit, room)
    small, large = Record("c", b"", b"", ()), Record("c", b"", bytes(3 * 1024 * 1024), ())
    for record in (small, small, large, small, small, large):
        lane.append([record])
    with pytest.raises(PublishError, match="overload"):
        lane.append([Record("c", b"", bytes(room.max_bytes), ())])
    await lane.drained()

    assert commits == [2, 1, 2, 1]
    assert room.used == 0


async def test_groups_grow_while_one_is_being_committed() -> None:
    commits: list[int] = []
    held = asyncio.Event()

    async def commit(records: Sequence[Record]) -> str:
        commits.append(len(records))
        await held.wait()
        return "log"

    lane = Lane(commit, Room(10**9))
    lane.append([Record("c", b"", b"", ())])
    await asyncio.sleep(0)
    for _ in range(2 * lanes.GROUP_MAX_RECORDS + 1):
        lane.append([Record("c", b"", b"", ())])
    held.set()
    await lane.drained()

    assert commits == [1, lanes.GROUP_MAX_RECORDS, lanes.GROUP_MAX_RECORDS, 1]
