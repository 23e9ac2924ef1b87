"""The role ``sink``: subscribers for each connection that is to be told something, and is ours.

One process tells a connection at a time, so that its rate is kept; the others stand by.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

import structlog

from consumers.sinks.dialedin.events import MODELS, Rules
from consumers.sinks.dialedin.executor import DISK_PAUSE_S, Executor, KeyRefusedError
from consumers.sinks.dialedin.ledger import Ledger, LedgerError, LedgerLostError
from consumers.sinks.dialedin.rules import Command
from consumers.subscribe import Event, NotNowError, RejectError, Retry, Subscriber
from ingest.errors import ConfigError
from ingest.metrics import SINK_COMMANDS, SINK_PASSED_OVER
from ingest.providers import PROVIDERS
from ingest.providers.dialedin.api import FailedError, open_api
from ingest.providers.dialedin.assumptions import Assumptions
from ingest.runner import Stopping
from ingest.service import Service, open_standby_service
from ingest.settings import Settings, sink_groups
from ingest.work import Job, save_patiently, share_until_stopping
from schemas.base import Model
from schemas.times import now_ms

log = structlog.get_logger()

ROLE = "sinks"

#: Whose work is shared; and the name of our checkpoint.
_WORK = SOURCE = "sink"

#: A token that was refused is tried again after so long, and at SIGHUP.
STOPPED_S = 900.0

#: A topic that is missing is looked for again after so long.
_TOPICS_S = 60.0

#: A ledger that cannot be read any more is made anew after so long.
_AGAIN_S = 1.0

#: What is under way gets so long at the end; less than `ingest.work.GRACE_S`.
_LEAVE_S = 3.0

#: What DialedIn says no to is tried again for a while: an opt-out for a quarter of an hour.
_OPT_OUTS = Retry(tries=20, first_s=1.0, most_s=60.0)
_OTHERS = Retry(tries=5, first_s=1.0, most_s=30.0)
_RETRIES: Mapping[str, Retry] = {"dnc_on_stop": _OPT_OUTS, "dnc_on_consent": _OPT_OUTS}


def sink_connections(settings: Settings) -> list[str]:
    """Those that are to be told something."""
    return [
        name
        for name, connection in settings.connections.items()
        if connection.sink.rules and PROVIDERS[connection.provider].takes_commands
    ]


def ledger_path(path: Path, connection: str) -> Path:
    """Where it stands what a connection was told."""
    return path / "sink" / f"{connection}.sqlite"


async def sink_alone(settings: Settings, stopping: Stopping) -> None:
    """Be a sink and nothing else. Raises ConfigError if there is nobody to be told anything."""
    if not sink_connections(settings):
        raise ConfigError(
            "connections: none is to be told anything: set a rule of [connections.<name>.sink] of "
            "one whose provider is dialedin, such as dnc_on_stop = true"
        )
    async with open_standby_service(settings, ROLE, stopping) as service:
        await sink(service)


async def sink(service: Service) -> None:
    """Tell the connections that are ours until the service is stopping."""
    sinks: dict[str, _Sink] = {}

    def troubles() -> Sequence[str]:
        return [word for each in sinks.values() for word in each.troubles()]

    def reload() -> None:
        for each in sinks.values():
            each.reload()

    async def run(job: Job) -> None:
        sinks[job.connection] = each = _Sink(service, job)
        try:
            await each.run()
        finally:
            del sinks[job.connection]

    service.troubles.append(troubles)
    service.reloads.append(reload)
    await share_until_stopping(service, ROLE, _WORK, sink_connections(service.settings), run)


class _Sink:
    """One connection while it is ours."""

    def __init__(self, service: Service, job: Job) -> None:
        self._service = service
        self._job = job
        self._connection = service.settings.connections[job.connection]
        self._groups: Sequence[_Group] = ()

    def troubles(self) -> Sequence[str]:
        stopped = any(each.stopped for each in self._groups)
        return [f"sink_stopped:{self._job.connection}"] if stopped else []

    def reload(self) -> None:
        for each in self._groups:
            each.reload()

    async def run(self) -> None:
        """Tell it until cancelled. Raises what ends a subscriber."""
        while True:
            ledger = await self._open_ledger()
            try:
                await self._tell(ledger)
            except LedgerLostError:
                await asyncio.sleep(_AGAIN_S)  # then it is made anew
            finally:
                await ledger.close()

    async def _open_ledger(self) -> Ledger:
        path = ledger_path(self._service.settings.eventlog.path, self._job.connection)
        while True:
            try:
                return await asyncio.to_thread(Ledger.open, path)
            except LedgerError:
                _tell_disk(self._job.connection)
                await asyncio.sleep(DISK_PAUSE_S)

    async def _tell(self, ledger: Ledger) -> NoReturn:
        """Raises LedgerLostError, and what else ends one of the groups."""
        assume = Assumptions.of(self._connection)
        since_ms, sure_from_ms = await self._adopt(ledger, round(assume.look_after_s * 1000))
        rules = Rules(self._connection, since_ms)
        self._groups = [
            _Group(self._service.settings, self._job.connection, group, names, rules)
            for group, names in sink_groups(self._job.connection, self._connection.sink).items()
        ]
        telling = [
            asyncio.create_task(each.run(ledger, assume.look_after_s, sure_from_ms))
            for each in self._groups
        ]
        try:
            done, _ = await asyncio.wait(telling, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _cancel(telling)
        faults = [fault for task in done if (fault := task.exception())]
        raise faults[0]

    async def _adopt(self, ledger: Ledger, look_after_ms: int) -> tuple[Mapping[str, int], int]:
        """Since when each rule that is on has been: before, it was none of our business.

        And from when on what the ledger does not know was begun by nobody: where the last one that
        told the connection anything had another ledger, something of his may still be under way.
        """
        known = self._job.checkpoint(SOURCE) or {}
        since_ms = {
            rule: known.get("since_ms", {}).get(rule, now_ms())
            for rule in self._connection.sink.rules
        }
        sure_from_ms: int = known.get("sure_from_ms", 0)
        if known and known.get("ledger") != ledger.ident:
            sure_from_ms = now_ms() + look_after_ms
        state = {"since_ms": since_ms, "ledger": ledger.ident, "sure_from_ms": sure_from_ms}
        if {**known, **state} != known:
            await save_patiently(self._job, SOURCE, state)
        return since_ms, sure_from_ms


class _Group:
    """A group that tells a connection something. What stops it stops no other one.

    So opt-outs go out where leads are refused, and have neither their pauses nor their sockets.
    """

    def __init__(
        self, settings: Settings, name: str, group: str, names: Sequence[str], rules: Rules
    ) -> None:
        """``name``: of the connection; ``names``: of the group's rules."""
        self._settings = settings
        self._name = name
        self._connection = settings.connections[name]
        self._group = group
        self._names = names
        self._rules = rules
        #: Whether nothing is told: the token or the account is refused, or a topic is missing.
        self.stopped = False
        self._fault: asyncio.Future[Exception] | None = None
        self._reloaded = asyncio.Event()

    def reload(self) -> None:
        """There may be another token."""
        self._reloaded.set()

    async def run(self, ledger: Ledger, look_after_s: float, sure_from_ms: int) -> None:
        """Tell it until cancelled; what stops it is tried again after a while.

        Raises LedgerLostError, and what else ends a subscriber.
        """
        while True:
            self._reloaded.clear()
            key = self._key()
            try:
                await self._tell(ledger, look_after_s, sure_from_ms)
            except KeyRefusedError as error:
                if self._key() != key:
                    continue  # another one was put into its file
                self._stop(str(error), STOPPED_S, said=error.said)
                await self._rest(STOPPED_S)
            except ConfigError as error:
                self._stop(str(error), _TOPICS_S)
                await self._rest(_TOPICS_S)
                self.stopped = False  # perhaps it can begin now

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reloaded.wait()

    def _key(self) -> str:
        with suppress(ConfigError):
            return self._connection.key()
        return ""

    async def _tell(self, ledger: Ledger, look_after_s: float, sure_from_ms: int) -> None:
        """Raises KeyRefusedError, also if there is no token; ConfigError if a topic is missing.

        Besides LedgerLostError, and what else ends a subscriber.
        """
        self._fault = fault = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            try:
                api = await stack.enter_async_context(open_api(self._name, self._connection))
            except ConfigError as error:
                raise KeyRefusedError(str(error)) from None
            executor = Executor(
                self._name,
                api,
                ledger,
                campaign=self._connection.sink.lead_campaign,
                look_after_s=look_after_s,
                sure_from_ms=sure_from_ms,
                clock_ms=now_ms,
            )
            subscriber = self._subscriber(self._handler(executor))
            telling = asyncio.create_task(subscriber.run())
            try:
                await asyncio.wait([telling, fault], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _end(subscriber, telling)
        if fault.done():
            raise fault.result()

    def _subscriber(self, handler: Callable[..., Any]) -> Subscriber:
        subscriber = Subscriber(self._group, leave_s=_LEAVE_S, settings=self._settings)
        for rule in self._names:
            # How long it takes goes by the rate: it gives up by itself.
            retry = _RETRIES.get(rule, _OTHERS)
            subscriber.on(MODELS[rule], retry=retry, timeout_s=None)(handler)
        return subscriber

    def _handler(self, executor: Executor) -> Callable[..., Any]:
        async def tell_dialedin(_: Model, event: Event[Model]) -> None:
            rule, decision = self._rules.decide(event, now_ms)
            if decision.nothing:
                SINK_PASSED_OVER.labels(self._name, rule, decision.nothing).inc()
            failed: FailedError | None = None
            for command in decision.commands:
                try:
                    await self._carry_out(executor, command)
                except FailedError as error:
                    failed = error
            if failed is not None:
                raise failed
            if decision.outside:
                SINK_PASSED_OVER.labels(self._name, rule, "not_plus_one").inc(decision.outside)
                log.warning(
                    "sink_refused", connection=self._name, rule=rule, count=decision.outside
                )
                raise RejectError("not_plus_one", "DialedIn takes numbers of +1 only")

        return tell_dialedin

    async def _carry_out(self, executor: Executor, command: Command) -> None:
        try:
            outcome = await executor.carry_out(command)
        except (KeyRefusedError, LedgerLostError) as error:
            if self._fault is not None and not self._fault.done():
                self._fault.set_result(error)
            raise NotNowError(STOPPED_S) from None
        except LedgerError:
            _tell_disk(self._name)
            raise NotNowError(DISK_PAUSE_S) from None
        except FailedError as error:
            SINK_COMMANDS.labels(self._name, command.action, "failed").inc()
            log.error("sink_failed", connection=self._name, action=command.action, said=error.said)
            raise
        if self.stopped and outcome != "repeat":
            self.stopped = False
            log.info("sink_resumed", connection=self._name, group=self._group)
        SINK_COMMANDS.labels(self._name, command.action, outcome).inc()
        log.info("sink_told", connection=self._name, action=command.action, outcome=outcome)

    def _stop(self, detail: str, retry_in_s: float, said: str = "") -> None:
        self.stopped = True
        log.error(
            "sink_stopped",
            connection=self._name,
            group=self._group,
            detail=detail,
            said=said,
            retry_in_s=retry_in_s,
        )


def _tell_disk(connection: str) -> None:
    log.warning("sink_waits", connection=connection, reason="disk", retry_in_s=DISK_PAUSE_S)


async def _cancel(tasks: "Sequence[asyncio.Task[None]]") -> None:
    """Return once all have ended. They are cancelled once, and again with us."""
    for task in tasks:
        task.cancel()
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise


async def _end(subscriber: Subscriber, telling: "asyncio.Task[None]") -> None:
    """Let what is under way end, and what is done be committed. Raises what has ended it."""
    subscriber.stop()
    try:
        await asyncio.wait([telling])
    except asyncio.CancelledError:
        await _cancel([telling])
        raise
    telling.result()
