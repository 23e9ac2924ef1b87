"""The work between what was fetched and what can be committed.

Each key is a lane: its events are handled one after the other, lanes side by side, by at most so
many workers. A partition remembers in which order it got its events; what stands before the first
that is not done can be committed. It is given back, and its work with it, when the group says so.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import orjson
import structlog
from pydantic import ValidationError

from consumers.subscribe.events import BROKEN, NotNowError, RejectError
from consumers.subscribe.routes import Route, Routes
from consumers.subscribe.seen import Seen, is_state
from ingest.errors import PublishError
from ingest.eventlog.log import Place, StoredRecord
from ingest.logs import Sample, places
from ingest.rejects import FROM, group_topic, is_retry_request

log = structlog.get_logger()

#: Others in the process have their turn after so long, in seconds, also where no handler waits.
_TURN_S = 0.01

#: So much may stand behind an event that is not done in a partition; then it fetches no more.
_SPAN = 10_000

#: Without room for so long, what stands still makes room for other partitions, in seconds.
_STILL_S = 5.0

#: What takes as much room as one more event, in bytes.
_LARGE_BYTES = 65_536

#: A reject that could not be stored is tried again so much later, in seconds.
_STORE_AGAIN_S = 5.0

#: A handler that was cancelled may take so long to end, in seconds.
_CANCEL_S = 2.0

Rejecting = Callable[[StoredRecord, str, str], Awaitable[None]]
"""Stores a reject for a reason, with a detail. Raises PublishError."""


class _Item:
    """An event that waits for its handlers, or for its rejection."""

    __slots__ = ("at", "failures", "ident", "room", "routes", "stored", "verdict")

    def __init__(self, stored: StoredRecord) -> None:
        self.stored = stored
        #: How much room it takes.
        self.room = 1 + len(stored.value or b"") // _LARGE_BYTES
        self.routes: tuple[Route, ...] = ()
        #: Of these, how many have handled it; and how often the next one has failed.
        self.at = 0
        self.failures = 0
        #: By which a repeat is known; None where it is not to be.
        self.ident: bytes | None = None
        #: Why it can never be handled, with a detail.
        self.verdict: tuple[str, str] | None = None


class _Lane:
    """What waits of one key."""

    __slots__ = ("items", "partition")

    def __init__(self, partition: "_Partition") -> None:
        self.partition = partition
        self.items: deque[_Item] = deque()


class _Partition:
    """What is under way of a partition that is ours."""

    def __init__(self, place: Place, now: float) -> None:
        self.place = place
        #: Whether it is ours for longer than what is under way.
        self.active = True
        #: The first position that came, and when the last one was written.
        self.first_open = 0
        self.written_ms: int | None = None
        self.lanes: dict[bytes, _Lane] = {}
        #: Positions from the first that is not done, and those of them that are.
        self.open: deque[int] = deque()
        self._done: set[int] = set()
        #: Everything up to here is done; and was when it was committed the last time.
        self.handled: int | None = None
        self.committed: int | None = None
        #: How much room its items take that wait or are being handled; and workers that do that.
        self.room = 0
        self.running = 0
        #: When it was done with one the last time, by the loop's clock.
        self.moved_at = now
        #: Whether it stands still, and others have got its room.
        self.is_still = False
        #: The last position that a worker has begun.
        self.begun = -1
        #: While it goes: how many items before that are still to be handled, since what is done
        #: behind them would come again; None: none of them will be.
        self.rest: int | None = None
        #: Until then, by the loop's clock; the lanes that wait for that.
        self.paused_until: float | None = None
        self.parked: list[_Lane] = []
        self._ended: asyncio.Future[None] | None = None

    @property
    def takes_room(self) -> bool:
        """Whether its items count among those that wait."""
        return self.paused_until is None and not self.is_still

    def finish(self, position: int) -> None:
        if not self.open:
            self.handled = position
        elif self.open[0] != position:
            self._done.add(position)
        else:
            self.handled = self.open.popleft()
            while self.open and self.open[0] in self._done:
                self.handled = self.open.popleft()
                self._done.remove(self.handled)

    def skip(self, position: int) -> None:
        """Nobody wants it."""
        if self.open:
            self.open.append(position)
            self._done.add(position)
        else:
            self.handled = position

    def go(self) -> None:
        """It goes: nothing new is begun but what would leave holes behind."""
        self.active = False
        lanes = self.lanes.values()
        # What has failed stays a hole, and nothing behind it can be committed.
        if self.paused_until is None and not any(lane.items[0].failures for lane in lanes):
            self.rest = sum(
                item.stored.position <= self.begun for lane in lanes for item in lane.items
            )

    def may_begin(self, item: _Item) -> bool:
        return self.active or (self.rest is not None and item.stored.position <= self.begun)

    def drop_rest(self) -> None:
        """Begin nothing any more, be there holes or not."""
        self.rest = None
        self._look()

    def left(self) -> None:
        """A worker has no more to do with it for the moment."""
        self.running -= 1
        if not self.active:
            self._look()

    @property
    def ended(self) -> bool:
        """Whether no worker has anything to do with it, or will have."""
        return not self.running and not self.rest

    async def wait_ended(self) -> None:
        if not self.ended:
            self._ended = asyncio.get_running_loop().create_future()
            await self._ended

    def _look(self) -> None:
        if self._ended is not None and self.ended and not self._ended.done():
            self._ended.set_result(None)


class Worker:
    """One of those that handle events; it lives while there is something to do."""

    __slots__ = ("expired", "item", "partition", "route", "since", "task")

    def __init__(self) -> None:
        #: Since when a handler has it, by the loop's clock; and whether that was too long.
        self.since: float | None = None
        self.expired = False
        self.task: asyncio.Task[None] | None = None
        self.route: Route | None = None
        self.partition: _Partition | None = None
        self.item: _Item | None = None


class Work:
    """Everything that was fetched and is not done."""

    def __init__(
        self,
        group: str,
        routes: Routes,
        reject: Rejecting,
        hold: Callable[[Collection[Place]], None],
        *,
        parallel: int,
        queue_max: int,
        seen_max: int,
    ) -> None:
        """``hold``: told from which partitions nothing more is to be fetched."""
        self._group = group
        self._own_topic = group_topic(group)
        self._routes = routes
        self._reject = reject
        self._hold = hold
        self._held: frozenset[Place] = frozenset()
        self._parallel = parallel
        self._queue_max = queue_max
        self._loop = asyncio.get_running_loop()
        self._partitions: dict[Place, _Partition] = {}
        self._ready: deque[_Lane] = deque()
        self._seen = Seen(seen_max)
        self._samples: dict[tuple[str, str], Sample] = {}
        self.workers: set[Worker] = set()
        self._ending = False
        #: Items that wait or are being handled, large ones several times, but for those of
        #: partitions that are paused or stand still.
        self.waiting = 0
        self._room: asyncio.Future[None] | None = None
        #: Since when there is none, by the loop's clock.
        self._full_at = 0.0
        #: Set once a handler has ended the subscriber.
        self.fault: asyncio.Future[None] = self._loop.create_future()
        #: (handler, what became of it) → how often since somebody has looked.
        self.counts: Counter[tuple[str, str]] = Counter()

    # What comes in

    def add(self, stored: StoredRecord) -> None:
        """Take what was fetched: handle it when its turn comes."""
        if self._ending:
            return
        place = stored.topic, stored.partition
        partition = self._partitions.get(place)
        if partition is None:
            partition = self._partitions[place] = _Partition(place, self._loop.time())
            partition.first_open = stored.position
        partition.written_ms = stored.written_ms
        item = self._read(stored)
        if item is None:
            partition.skip(stored.position)
        else:
            partition.open.append(stored.position)
            self._queue(partition, item)
        if len(partition.open) >= _SPAN and place not in self._held:
            self._hold_back()

    def _queue(self, partition: _Partition, item: _Item) -> None:
        partition.room += item.room
        if partition.takes_room:
            self.waiting += item.room
        key = item.stored.key
        lane = partition.lanes.get(key)
        if lane is not None:
            lane.items.append(item)
            return
        lane = partition.lanes[key] = _Lane(partition)
        lane.items.append(item)
        self._ready.append(lane)
        self._go_on()

    def _read(self, stored: StoredRecord) -> _Item | None:
        """What is to be done with a record; None if nothing is."""
        headers = dict(stored.headers)
        topic, is_asked_for = stored.topic, False
        if topic == self._own_topic:
            if not is_retry_request(stored):
                return None
            is_asked_for = True
            topic = headers.get(FROM, b"").decode(errors="replace").rsplit("/", 2)[0]
        item = _Item(stored)
        if stored.value is None:
            item.routes = self._routes.find(topic, None)
            item.ident = b""
        else:
            type_ = headers.get("ce_type")
            item.ident = headers.get("ce_id")
            if type_ is None or item.ident is None:  # not written by us
                try:
                    event = orjson.loads(stored.value)
                    type_, item.ident = event["type"].encode(), event["id"].encode()
                except (ValueError, KeyError, TypeError, AttributeError):
                    item.verdict = "unreadable", "it is no event"
                    return item
            item.routes = self._routes.find(topic, type_.decode(errors="replace"))
        if is_asked_for:
            item.ident = None
        return item if item.routes else None

    def end(self) -> None:
        """Begin nothing any more but what would leave holes behind."""
        self._ending = True
        for partition in self._partitions.values():
            partition.go()

    async def room(self) -> None:
        """Return once more can be fetched."""
        while self.waiting >= self._queue_max:
            self._full_at = self._loop.time()
            self._room = self._loop.create_future()
            await self._room

    def make_room(self) -> None:
        """Give the room of what has stood still for long to others. To be called now and then.

        One key that is not done, and thousands behind it, keep nobody else from going on. Such a
        partition fetches nothing until most of what it has is done: so each holds as much as there
        is room for all, at most, and once more what a fetch brings.
        """
        still_since = self._loop.time() - _STILL_S
        if self._room is None or self._room.done() or self._full_at > still_since:
            return
        found = [
            each
            for each in self._partitions.values()
            if each.takes_room and each.room and each.moved_at <= still_since
        ]
        for partition in sorted(found, key=lambda each: each.room, reverse=True):
            if self.waiting > self._queue_max // 2:
                partition.is_still = True
                self._less(partition.room)
        self._hold_back()

    # Workers

    def _go_on(self) -> None:
        if self._ready and len(self.workers) < self._parallel:
            worker = Worker()
            worker.task = self._loop.create_task(self._work(worker))
            self.workers.add(worker)

    async def _work(self, worker: Worker) -> None:
        turn = self._loop.time() + _TURN_S
        assert worker.task is not None
        try:
            # One that was given up, and whose handler has not minded, makes room for another one.
            while not worker.task.cancelling() and (lane := self._next_lane()):
                partition, item = lane.partition, lane.items[0]
                worker.partition, worker.item = partition, item
                partition.running += 1
                partition.begun = max(partition.begun, item.stored.position)
                try:
                    self._settle(lane, await self._handle(worker, partition, item))
                except asyncio.CancelledError:
                    if partition.active:  # not by us
                        self.fault.cancel()
                    raise
                except Exception as error:  # noqa: BLE001 - of ours; else its key would wait for ever
                    self._end_with(error)
                finally:
                    worker.partition = worker.item = worker.route = None
                    partition.left()
                if self._loop.time() > turn:
                    await asyncio.sleep(0)
                    turn = self._loop.time() + _TURN_S
        finally:
            self.workers.discard(worker)
            self._go_on()

    def _next_lane(self) -> _Lane | None:
        """The next whose first event may be handled now."""
        while self._ready:
            lane = self._ready.popleft()
            partition = lane.partition
            if not partition.may_begin(lane.items[0]):
                continue
            if partition.paused_until is None:
                return lane
            partition.parked.append(lane)
        return None

    def _settle(self, lane: _Lane, again_s: float | None) -> None:
        """The first of a lane is done (None), or is to be tried again."""
        if again_s is None:
            self._finish(lane)
        elif not lane.partition.active:
            lane.partition.drop_rest()
        elif again_s:
            self._loop.call_later(again_s, self._again, lane)
        else:
            self._again(lane)

    async def _handle(self, worker: Worker, partition: _Partition, item: _Item) -> float | None:
        """Bring an event as far as it goes; None: it is done, else after how long to try again."""
        stored, ident = item.stored, item.ident
        if ident is not None and self._seen.is_repeat(stored, ident) and not item.at:
            self.counts[item.routes[0].name, "repeat"] += 1
            return None
        while item.verdict is not None or item.at < len(item.routes):
            if item.verdict is None:
                worker.route = route = item.routes[item.at]
                again_s = await self._call(worker, partition, item, route)
                if again_s is not None:
                    return again_s
            if item.verdict is not None and not await self._set_aside(partition, item):
                return 0.0
            item.at += 1
            item.failures = 0
        return None

    async def _call(
        self, worker: Worker, partition: _Partition, item: _Item, route: Route
    ) -> float | None:
        """Let a handler have it; None: it has, or the item's verdict says why it cannot."""
        try:
            waiting = route.call(item.stored)
        except ValueError as error:
            item.verdict = "unreadable", _what_is_wrong(error)
            item.at = len(item.routes) - 1  # the others would read it by the same model
            return None
        assert worker.task is not None
        worker.since = self._loop.time()
        try:
            await waiting
        except NotNowError as error:
            self.counts[route.name, "not_now"] += 1
            return self._pause(partition, route, item, "not_now", error.after_s)
        except RejectError as error:
            item.verdict = error.reason, error.detail
        except GeneratorExit:
            raise
        except (KeyboardInterrupt, SystemExit) as error:
            # Raised here it would end the loop, and meanwhile other handlers were called.
            return self._stop(partition, route, item, error)
        except BaseException as error:  # noqa: BLE001 - the policy says what follows
            if worker.task.cancelling() > worker.expired:
                # It was given up. Whatever it makes of that is not the event's fault.
                raise asyncio.CancelledError from None
            # It took too long; or it says so itself, and nobody has asked for that.
            is_late = worker.expired and isinstance(error, asyncio.CancelledError)
            return self._failed(partition, route, item, TimeoutError() if is_late else error)
        else:
            route.given_up = 0
            route.handled += 1
        finally:
            worker.since = None
            if worker.expired:
                worker.expired = False
                worker.task.uncancel()
        return None

    def cancel_late(self) -> None:
        """Cancel handlers that take longer than they may. To be called every now and then.

        A timer for each call would cost as much as all else that is done for an event.
        """
        now = self._loop.time()
        for worker in self.workers:
            route, since = worker.route, worker.since
            if route is None or since is None or route.timeout_s is None or worker.task is None:
                continue
            if now - since > route.timeout_s and not worker.expired:
                worker.expired = True
                worker.task.cancel()
            elif now - since > route.timeout_s + _CANCEL_S and worker.partition and worker.item:
                self._say("handler_does_not_end", worker.partition, route, worker.item)

    def _failed(
        self, partition: _Partition, route: Route, item: _Item, error: BaseException
    ) -> float | None:
        """By the policy: when to try again; None if the verdict is that it is of no use."""
        item.failures += 1
        self.counts[route.name, "failed"] += 1
        retry = route.retry
        if retry.tries is None or item.failures < retry.tries:
            again_s = retry.pause_s(item.failures)
            self._say_failed(partition, route, item, error, again_s)
            return again_s
        if retry.then == "stop":
            return self._stop(partition, route, item, error)
        self._say_failed(partition, route, item, error, None)
        if retry.then == "hold" or route.given_up >= BROKEN:
            return self._pause(partition, route, item, "failed", retry.most_s)
        route.given_up += 1
        item.verdict = type(error).__name__, f"{route.name} has failed {item.failures} times"
        return None

    def _stop(
        self, partition: _Partition, route: Route, item: _Item, error: BaseException
    ) -> float:
        self._end_with(error)
        return self._pause(partition, route, item, "stop", _STORE_AGAIN_S)

    def _end_with(self, error: BaseException) -> None:
        if not self.fault.done():
            self.fault.set_exception(error)
            self.fault.exception()  # nobody need ask for it

    async def _set_aside(self, partition: _Partition, item: _Item) -> bool:
        """Store the reject that the verdict asks for; False if that has to wait."""
        assert item.verdict is not None
        reason, detail = item.verdict
        route = item.routes[item.at] if item.routes else None
        try:
            await self._reject(item.stored, reason, detail)
        except PublishError as error:
            self._pause(partition, route, item, f"not_stored:{error.reason}", _STORE_AGAIN_S)
            return False
        item.verdict = None
        self.counts[_name_of(route), "rejected"] += 1
        self._say("event_rejected", partition, route, item, reason=reason)
        return True

    def _again(self, lane: _Lane) -> None:
        if lane.partition.active:
            self._ready.append(lane)
            self._go_on()

    def _finish(self, lane: _Lane) -> None:
        """The first of a lane is done."""
        item, partition = lane.items.popleft(), lane.partition
        # Once it has gone, others may write the next state before it comes back.
        if item.ident is not None and (partition.active or not is_state(item.stored)):
            self._seen.note(item.stored, item.ident)
        partition.finish(item.stored.position)
        if not partition.active:
            if partition.rest:
                partition.rest -= 1
            if lane.items:
                self._ready.append(lane)
            return
        partition.moved_at = self._loop.time()
        partition.room -= item.room
        if partition.takes_room:
            self._less(item.room)
        elif partition.is_still and partition.room <= self._queue_max // 4:
            partition.is_still = False
            if partition.takes_room:
                self.waiting += partition.room
            self._hold_back()
        if self._held and len(partition.open) <= _SPAN // 2 and partition.place in self._held:
            self._hold_back()
        if lane.items:
            self._ready.append(lane)
        else:
            del partition.lanes[item.stored.key]

    def _less(self, count: int) -> None:
        self.waiting -= count
        if self._room is not None and self.waiting <= self._queue_max // 2:
            room, self._room = self._room, None
            if not room.done():
                room.set_result(None)

    # Partitions that have to wait

    def _pause(
        self, partition: _Partition, route: Route | None, item: _Item, reason: str, after_s: float
    ) -> float:
        """Handle nothing of a partition for a while; when to try the item again: with the rest."""
        self._say("partition_paused", partition, route, item, reason=reason, retry_in_s=after_s)
        if not partition.active:
            return 0.0
        until = self._loop.time() + after_s
        if partition.paused_until is None:
            took_room = partition.takes_room
            partition.paused_until = until
            if took_room:
                self._less(partition.room)
            self._hold_back()
        partition.paused_until = max(until, partition.paused_until)
        self._loop.call_at(until, self._resume, partition, until)
        return 0.0

    def _resume(self, partition: _Partition, until: float) -> None:
        # Compared with what was asked for: by the clock of some loops it is too early, by less than
        # a millisecond, and nobody would come again.
        if not partition.active or until != partition.paused_until:
            return
        partition.paused_until = None
        if partition.takes_room:
            self.waiting += partition.room
        parked, partition.parked = partition.parked, []
        self._hold_back()
        for lane in parked:
            self._again(lane)

    def _hold_back(self) -> None:
        held = frozenset(
            place
            for place, each in self._partitions.items()
            if not each.takes_room
            or len(each.open) >= (_SPAN // 2 + 1 if place in self._held else _SPAN)
        )
        if held != self._held:
            self._held = held
            self._hold(held)

    # Partitions that go

    async def leave(self, places: Collection[Place] | None, grace_s: float) -> "Handled":
        """Give partitions up, all if None: return once nothing is under way in them any more.

        For ``grace_s`` handlers may go on, and what comes before what they have is handled, too;
        then they are cancelled. What was done can be committed.
        """
        if places is None:
            places = list(self._partitions)
        leaving = [self._partitions.pop(place) for place in places if place in self._partitions]
        for partition in leaving:
            if partition.active:
                partition.go()
            if not grace_s:
                partition.drop_rest()
            if partition.takes_room:
                self._less(partition.room)
        self._hold_back()
        if places:
            self._seen.forget_states()
        left = await _wait_for(leaving, grace_s)
        if left:
            await self._give_up(left)
        return Handled(leaving)

    async def _give_up(self, partitions: Collection[_Partition]) -> None:
        for partition in partitions:
            partition.drop_rest()
        for worker in list(self.workers):
            busy, item = worker.partition, worker.item
            if busy in partitions and busy and item and worker.task:
                self._say("handler_given_up", busy, worker.route, item)
                worker.task.cancel()
        left = await _wait_for(partitions, _CANCEL_S)
        for worker in self.workers:
            if worker.partition in left and worker.partition and worker.item:
                self._say("handler_does_not_end", worker.partition, worker.route, worker.item)

    def handled(self) -> "Handled":
        """What can be committed."""
        return Handled(list(self._partitions.values()))

    # What can be told

    def next_positions(self) -> Mapping[Place, int]:
        """Of each partition of which something was fetched, what comes after what is done."""
        return {
            place: (each.first_open if each.handled is None else each.handled + 1)
            for place, each in self._partitions.items()
        }

    def oldest_ms(self) -> int | None:
        """When the oldest was written that is not done, milliseconds since 1970."""
        return min(
            (
                lane.items[0].stored.written_ms
                for partition in self._partitions.values()
                for lane in partition.lanes.values()
            ),
            default=None,
        )

    def written_ms(self, place: Place) -> int | None:
        """When the last record that was taken from a partition was written."""
        partition = self._partitions.get(place)
        return None if partition is None else partition.written_ms

    def _say(
        self,
        event: str,
        partition: _Partition,
        route: Route | None,
        item: _Item,
        *,
        reason: str | None = None,
        retry_in_s: float | None = None,
    ) -> None:
        suppressed = self._sample(event, route)
        if suppressed is not None:
            log.warning(
                event,
                group=self._group,
                handler=_name_of(route),
                topic=partition.place[0],
                partition=partition.place[1],
                position=item.stored.position,
                reason=reason,
                retry_in_s=retry_in_s,
                suppressed=suppressed,
            )

    def _say_failed(
        self,
        partition: _Partition,
        route: Route,
        item: _Item,
        error: BaseException,
        retry_in_s: float | None,
    ) -> None:
        suppressed = self._sample("handler_failed", route)
        if suppressed is not None:
            log.warning(
                "handler_failed",
                group=self._group,
                handler=route.name,
                topic=partition.place[0],
                partition=partition.place[1],
                position=item.stored.position,
                retry_in_s=retry_in_s,
                suppressed=suppressed,
                # Of the handler's own error nothing is told that could be content.
                error=type(error).__name__,
                where=places(error.__traceback__),
            )

    def _sample(self, event: str, route: Route | None) -> int | None:
        """One line in ten seconds of each kind and handler."""
        sample = self._samples.setdefault((event, _name_of(route)), Sample())
        return sample.take(self._loop.time())


class Handled:
    """Up to where partitions are done, for a commit."""

    def __init__(self, partitions: Sequence[_Partition]) -> None:
        self._up_to = [
            (each, each.handled)
            for each in partitions
            if each.handled is not None and each.handled != each.committed
        ]

    @property
    def records(self) -> list[StoredRecord]:
        return [
            StoredRecord(*each.place, position, 0, b"", None, ()) for each, position in self._up_to
        ]

    def committed(self) -> None:
        for each, position in self._up_to:
            each.committed = position


async def _wait_for(partitions: Collection[_Partition], wait_s: float) -> Collection[_Partition]:
    """Those in which workers are still busy after so long."""
    busy = [each for each in partitions if not each.ended]
    if busy:
        ended = [asyncio.ensure_future(each.wait_ended()) for each in busy]
        await asyncio.wait(ended, timeout=wait_s)
        for waiting in ended:
            waiting.cancel()
    return [each for each in busy if not each.ended]


def _name_of(route: Route | None) -> str:
    return "-" if route is None else route.name


def _what_is_wrong(error: ValueError) -> str:
    """Where an event differs from its model, without what stands there."""
    if not isinstance(error, ValidationError):
        return type(error).__name__
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['type']}" for each in faults[:3])
