"""The listener: keeps the websocket of each connection that it owns open, and tells its gaps.

A new address and a new socket come before the provider cuts the old one; both are read meanwhile,
and what came by both is there once. When there is no socket, that is a gap: it begins when we last
heard something, and lasts until a socket has been up for `steady_s`. Nothing that a provider sends
meanwhile comes again, so every start of ours is the end of a gap, too: from the last sign of life.

A sign of life is the checkpoint ``websocket``: up to ``alive_ms`` everything that has come is
durable; since ``connected_ms`` there has been a socket without a break.
"""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from msgspec import Struct
from websockets.frames import CloseCode

from ingest.api import ApiError
from ingest.delivery import Provider
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.log import records_of
from ingest.gaps import gap_event
from ingest.metrics import (
    STREAM_AGE,
    STREAM_CONNECTED,
    STREAM_LAST_FRAME,
    STREAM_RECONNECTS,
)
from ingest.pipeline import Pipeline
from ingest.providers import PROVIDERS
from ingest.quarantine import Keeper, closing_at_end, quarantine_folder
from ingest.rotation import FormerSecrets
from ingest.runner import Stopping
from ingest.service import Service, open_standby_service
from ingest.settings import Connection, Settings
from ingest.transports.websocket import (
    VIA,
    Delays,
    Inlet,
    Insistent,
    Lost,
    OpenError,
    Socket,
    Timing,
    open_socket,
)
from ingest.work import Job, share_work
from schemas.times import now_ms

log = structlog.get_logger()

ROLE = "listener"

#: The name of its group, and of its lock.
WORK = "listen"

#: At the end, in seconds, for the goodbye, for what is in flight, for the last sign of life.
#: `share_work` allows five for everything.
GOODBYE_S = 1.5
DRAIN_S = 2.0
SAVE_S = 0.5

#: Answers of an API that trying again will not change soon.
_FINAL = frozenset(("unauthorized", "forbidden", "conflict", "refused"))


class Habits(Struct, frozen=True, kw_only=True):
    """How a connection's stream is kept, in seconds."""

    #: A socket that has lasted so long counts as one; then the one before it goes.
    steady_s: float = 2.0
    #: Between two signs of life.
    sign_every_s: float = 30.0
    #: To the next try, where the API says that it is not for us.
    refused_s: float = 300.0
    #: After so long without a socket something is wrong; less is a gap and no more.
    down_s: float = 15.0
    socket: Timing = Timing()


def reconnect_delays() -> Iterator[float]:
    """From one try to the next; begun anew once an authentic event has come through."""
    delay_s = 1.0
    while True:
        yield min(delay_s * random.uniform(1.0, 1.5), 60.0)  # noqa: S311 - jitter
        delay_s = min(delay_s * 2, 60.0)


async def listen_alone(settings: Settings, stopping: Stopping) -> None:
    """Be a listener and nothing else. Raises ConfigError if it cannot start."""
    if not streamed(settings):
        raise ConfigError(
            "connections: none has a stream: set enabled = true in [connections.<name>.stream]"
        )
    async with open_standby_service(settings, ROLE, stopping) as service:
        await listen(service)


async def listen(service: Service) -> None:
    """Listen on every connection with `stream.enabled` that is ours, until the service is stopping.

    Then say goodbye, and make durable what has been read. Raises ConfigError if secrets are wrong.
    """
    listener = Listener(service)
    service.reloads.append(listener.reload)
    service.chores += [listener.look_at_secrets, listener.quarantine.tidy]
    service.troubles.append(listener.troubles)
    async with closing_at_end(listener.quarantine), asyncio.TaskGroup() as tasks:
        # Frames go to the spool while Kafka is away, and those that come to two listeners have
        # the same ids: better two than none.
        sharing = tasks.create_task(
            share_work(service, WORK, listener.connections, listener.run, goes_on=True)
        )
        service.started(ROLE)
        await service.stopping.wait()
        sharing.cancel()
    await listener.close()


def streamed(settings: Settings) -> Mapping[str, Connection]:
    """The connections with `stream.enabled`."""
    return {name: one for name, one in settings.connections.items() if one.stream.enabled}


class Listener:
    """All streams of the process."""

    def __init__(
        self,
        service: Service,
        *,
        habits: Habits = Habits(),  # noqa: B008 - frozen
        delays: Delays = reconnect_delays,
    ) -> None:
        self._settings = streamed(service.settings)
        self._habits = habits
        self._delays = delays
        self._publisher = Insistent(service.eventlog)
        path = service.settings.eventlog.path
        #: What does not verify.
        self.quarantine = Keeper(quarantine_folder(path), service.settings.quarantine)
        settings = service.settings
        pipeline = Pipeline(self._publisher, settings.eventlog.repeat_max, settings.drops)
        self._inlets = {
            name: Inlet(
                name,
                PROVIDERS[one.provider].webhook(one),
                pipeline,
                self._publisher,
                max_body_bytes=service.settings.receiver.max_body_bytes,
                now_ms=now_ms,
                refused=self.quarantine.offer,
            )
            for name, one in self._settings.items()
        }
        self._former_secrets = FormerSecrets()
        #: Those that are ours at the moment.
        self._lines: dict[str, Line] = {}

    @property
    def connections(self) -> Sequence[str]:
        return list(self._settings)

    async def run(self, job: Job) -> None:
        """Keep the stream of a connection, until it is cancelled."""
        name = job.connection
        one = self._settings[name]
        line = Line(
            job,
            one,
            PROVIDERS[one.provider],
            self._inlets[name],
            self._publisher,
            self._habits,
            self._delays,
        )
        self._lines[name] = line
        try:
            await line.run()
        finally:
            del self._lines[name]

    def reload(self) -> None:
        """Read secrets again. Raises ConfigError; then those of before go on."""
        faults = []
        for name, one in self._settings.items():
            door = self._inlets[name].door
            try:
                former, door.source = door.source, PROVIDERS[one.provider].webhook(one)
                self.quarantine.replaced({name: former})
            except ConfigError as error:
                faults += [f"connections.{name}.{fault}" for fault in error.faults]
        for line in self._lines.values():
            line.hurry()
        if faults:
            raise ConfigError(*faults)

    async def look_at_secrets(self) -> None:
        """See which secrets are still used."""
        sources = {name: inlet.door.source for name, inlet in self._inlets.items()}
        self._former_secrets.look(sources, asyncio.get_running_loop().time())

    def troubles(self) -> Sequence[str]:
        return [f"stream_down:{name}" for name, line in self._lines.items() if line.is_down]

    async def close(self) -> None:
        """Let what was handed to the log become durable, if that is soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self._publisher.drained()
        self._publisher.close()


class Line:
    """The stream of one connection while it is ours."""

    def __init__(
        self,
        job: Job,
        connection: Connection,
        provider: Provider,
        inlet: Inlet,
        publisher: Insistent,
        habits: Habits,
        delays: Delays,
    ) -> None:
        self._job = job
        self._name = job.connection
        self._connection = connection
        self._provider = provider
        self._inlet = inlet
        self._publisher = publisher
        self._habits = habits
        self._delays = delays
        self._loop = asyncio.get_running_loop()
        #: All that are open: usually one, two while one takes over from the other.
        self._sockets: set[Socket] = set()
        self._steady: set[Socket] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        #: Since when there has been a socket without a break; None before the first.
        self._connected_ms: int | None = None
        #: Since when there has been none; None while there is one, and before the first.
        self._deaf_since_ms: int | None = None
        #: When we last heard something by a steady socket that has ended.
        self._heard_ms = 0
        #: By the loop's clock.
        self._down_since = self._loop.time()
        self._hurried = asyncio.Event()
        self._save_now = asyncio.Event()

    @property
    def up(self) -> bool:
        """Whether there is a socket that has proved steady."""
        return self._connected_ms is not None and self._deaf_since_ms is None

    @property
    def is_down(self) -> bool:
        return not self.up and self._loop.time() - self._down_since > self._habits.down_s

    def hurry(self) -> None:
        """Try again now, whatever the pause would be."""
        self._hurried.set()

    async def run(self) -> None:
        """Work until it is cancelled; then there is no socket, and all that has come is durable.

        If the event log does not take it in time, the last sign of life is from before it.
        """
        labels = (self._name,)
        STREAM_CONNECTED.labels(*labels).set_function(lambda: len(self._sockets) > 0)
        STREAM_AGE.labels(*labels).set_function(self._age_s)
        STREAM_LAST_FRAME.labels(*labels).set_function(lambda: self._inlet.last_frame_ms / 1000)
        self._remember()
        saving = self._loop.create_task(self._keep_signs())
        try:
            await self._keep_connected()
        finally:
            saving.cancel()
            for gauge in (STREAM_CONNECTED, STREAM_AGE, STREAM_LAST_FRAME):
                gauge.remove(*labels)
            await self._leave()

    # Sockets

    async def _keep_connected(self) -> None:
        delays = self._delays()
        while True:
            tried_at = self._loop.time()
            try:
                socket = await self._open()
            except (ApiError, OpenError, ConfigError) as error:
                if isinstance(error, ConfigError) or error.reason in _FINAL:
                    pause_s = self._habits.refused_s
                else:
                    wanted_s = error.retry_after_s if isinstance(error, ApiError) else None
                    pause_s = max(next(delays), wanted_s or 0.0)
                self._tell_refusal(error, pause_s)
            else:
                if not await self._ended_early(socket):
                    STREAM_RECONNECTS.labels(self._name, "refresh").inc()
                    continue
                if socket.progress:
                    delays = self._delays()
                pause_s = next(delays)
            await self._pause(tried_at + pause_s)

    async def _open(self) -> Socket:
        assert self._provider.stream is not None
        async with self._provider.stream(self._name, self._connection) as stream:
            url = await stream.url()
        socket = await open_socket(url, self._inlet, now_ms, self._habits.socket)
        self._sockets.add(socket)
        socket.reading.add_done_callback(lambda reading: self._ended(socket, reading))
        return socket

    async def _ended_early(self, socket: Socket) -> bool:
        """Return once it is time for another one; whether the socket has ended before."""
        refresh_s = self._connection.stream.refresh_s
        steady_s = min(self._habits.steady_s, refresh_s / 2)
        if await _ends(socket, steady_s):
            return True
        for other in self._sockets - {socket}:
            # What comes by it before the provider has heard the goodbye is taken still.
            leaving = self._loop.create_task(other.close(CloseCode.NORMAL_CLOSURE))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
        self._steady.add(socket)
        if not self.up:
            self._hear_again(socket)
        return await _ends(socket, refresh_s - steady_s)

    def _ended(self, socket: Socket, reading: asyncio.Task[Lost]) -> None:
        self._sockets.discard(socket)
        was_steady = socket in self._steady
        if was_steady:
            self._steady.discard(socket)
            self._heard_ms = max(self._heard_ms, socket.heard_ms)
        if reading.cancelled():
            lost = Lost("left", None)
        elif (fault := reading.exception()) is not None:
            log.error("unexpected_error", exc_info=fault)
            lost = Lost("internal", None)
        else:
            lost = reading.result()
        if lost.reason != "left":
            STREAM_RECONNECTS.labels(self._name, lost.reason).inc()
            log.warning(
                "stream_lost",
                connection=self._name,
                reason=lost.reason,
                code=lost.code,
                lasted_s=round((now_ms() - socket.opened_ms) / 1000, 1),
            )
        if not self.up:
            return
        if not self._sockets:
            self._go_deaf(self._heard_ms, lost.reason)
        elif was_steady and lost.reason != "left":
            # There is another one, but what was on its way before that was opened is lost.
            opened_ms = min(other.opened_ms for other in self._sockets)
            if opened_ms > socket.heard_ms:
                self._tell_gap(socket.heard_ms, opened_ms, lost.reason)

    def _tell_refusal(self, error: ApiError | OpenError | ConfigError, pause_s: float) -> None:
        status: int | None = None
        if isinstance(error, ConfigError):
            reason, mend = "settings", "; ".join(error.faults)
        else:
            reason, status = error.reason, error.status
            mend = str(error) if isinstance(error, ApiError) else ""
        STREAM_RECONNECTS.labels(self._name, reason).inc()
        log.warning(
            "stream_refused",
            connection=self._name,
            reason=reason,
            status=status,
            mend=mend,
            again_s=round(pause_s, 1),
        )

    async def _pause(self, until: float) -> None:
        """Wait, or be hurried."""
        self._hurried.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._hurried.wait()

    # Gaps and signs of life

    def _remember(self) -> None:
        """Tell the gap between the last sign of life, whoever gave it, and now."""
        checkpoint: Mapping[str, Any] = self._job.checkpoint(VIA) or {}
        alive_ms = checkpoint.get("alive_ms")
        if isinstance(alive_ms, int):
            self._go_deaf(min(alive_ms, now_ms()), "not_listening")

    def _go_deaf(self, from_ms: int, reason: str) -> None:
        self._deaf_since_ms = from_ms
        self._down_since = self._loop.time()
        self._tell_gap(from_ms, None, reason)
        self._save_now.set()

    def _tell_gap(self, from_ms: int, to_ms: int | None, reason: str) -> None:
        gap = gap_event(
            self._name, VIA, from_ms, to_ms=to_ms, reason=reason, found=None, now_ms=now_ms()
        )
        self._publisher.publish(records_of(gap))

    def _hear_again(self, socket: Socket) -> None:
        # Behind where the gap began, for whoever compares the two.
        self._connected_ms = max(socket.opened_ms, (self._deaf_since_ms or 0) + 1)
        self._deaf_since_ms = None
        log.info("stream_connected", connection=self._name)
        self._save_now.set()

    def _alive_ms(self) -> int:
        """Up to when everything that has come is durable."""
        heard_ms = self._deaf_since_ms
        if heard_ms is None:
            heard_ms = max([self._heard_ms, *(socket.heard_ms for socket in self._steady)])
        oldest_ms = self._inlet.oldest_ms
        return heard_ms if oldest_ms is None else min(heard_ms, oldest_ms)

    async def _keep_signs(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._habits.sign_every_s):
                    await self._save_now.wait()
            self._save_now.clear()
            await self._save()

    async def _save(self) -> None:
        if self._connected_ms is None and self._deaf_since_ms is None:
            return  # it has never been up: there is nothing that could have been missed
        sign = {"connected_ms": self._connected_ms or 0, "alive_ms": self._alive_ms()}
        try:
            await self._job.save(VIA, sign)
        except PublishError as error:
            log.warning("sign_not_saved", connection=self._name, reason=error.reason)

    def _age_s(self) -> float:
        if not self._sockets:
            return 0.0
        return (now_ms() - min(socket.opened_ms for socket in self._sockets)) / 1000

    async def _leave(self) -> None:
        leaving = {
            self._loop.create_task(socket.close(CloseCode.GOING_AWAY)): socket
            for socket in self._sockets
        }
        if leaving:
            _, unfinished = await asyncio.wait(leaving, timeout=GOODBYE_S)
            for task in unfinished:
                task.cancel()
                leaving[task].abandon()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await self._inlet.drained()
        with suppress(TimeoutError):
            async with asyncio.timeout(SAVE_S):
                await self._save()


async def _ends(socket: Socket, within_s: float) -> bool:
    done, _ = await asyncio.wait([socket.reading], timeout=within_s)
    return bool(done)
