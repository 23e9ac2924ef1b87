"""The role ``sink``: subscribers for each connection that is to be told something, and is ours.

One process tells a connection at a time, so that its rate is kept; the others stand by.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import structlog

from consumers.sinks.dialedin.events import MODELS, Rules
from consumers.sinks.dialedin.executor import DISK_PAUSE_S, Executor, KeyRefusedError
from consumers.sinks.dialedin.ledger import Ledger, LedgerError
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
        self._name = job.connection
        self._connection = service.settings.connections[job.connection]
        #: Why nothing is told, if that is so.
        self._stopped = ""
        self._refused: asyncio.Future[KeyRefusedError] | None = None
        self._reloaded = asyncio.Event()

    def troubles(self) -> Sequence[str]:
        return [f"sink_stopped:{self._name}"] if self._stopped else []

    def reload(self) -> None:
        """There may be another token."""
        self._reloaded.set()

    async def run(self) -> None:
        """Tell it until cancelled; where the token is refused, again after a while."""
        rules = Rules(self._connection, await self._adopt())
        path = ledger_path(self._service.settings.eventlog.path, self._name)
        ledger = await asyncio.to_thread(Ledger.open, path)
        try:
            while True:
                self._reloaded.clear()
                key = self._key()
                try:
                    await self._tell(rules, ledger)
                except KeyRefusedError as error:
                    if self._key() != key:
                        continue  # another one was put into its file
                    self._stop(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(STOPPED_S):
                        await self._reloaded.wait()
        finally:
            await ledger.close()

    def _key(self) -> str:
        with suppress(ConfigError):
            return self._connection.key()
        return ""

    async def _adopt(self) -> Mapping[str, int]:
        """Since when each rule that is on has been: before, it was none of our business."""
        known = (self._job.checkpoint(SOURCE) or {}).get("since_ms", {})
        since_ms = {rule: known.get(rule, now_ms()) for rule in self._connection.sink.rules}
        if since_ms != known:
            await save_patiently(self._job, SOURCE, {"since_ms": since_ms})
        return since_ms

    async def _tell(self, rules: Rules, ledger: Ledger) -> None:
        """Raises KeyRefusedError, also if there is no token."""
        self._refused = refused = asyncio.get_running_loop().create_future()
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
                look_after_s=Assumptions.of(self._connection).look_after_s,
                clock_ms=now_ms,
            )
            groups = sink_groups(self._name, self._connection.sink)
            subscribers = [
                self._subscriber(group, names, self._handler(rules, executor))
                for group, names in groups.items()
            ]
            telling = [asyncio.create_task(each.run()) for each in subscribers]
            try:
                await asyncio.wait([*telling, refused], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _end(subscribers, telling)
        if refused.done():
            raise refused.result()

    def _subscriber(
        self, group: str, rules: Sequence[str], handler: Callable[..., Any]
    ) -> Subscriber:
        subscriber = Subscriber(group, leave_s=_LEAVE_S, settings=self._service.settings)
        for rule in rules:
            # How long it takes goes by the rate: it gives up by itself.
            retry = _RETRIES.get(rule, _OTHERS)
            subscriber.on(MODELS[rule], retry=retry, timeout_s=None)(handler)
        return subscriber

    def _handler(self, rules: Rules, executor: Executor) -> Callable[..., Any]:
        async def tell_dialedin(_: Model, event: Event[Model]) -> None:
            rule, decision = rules.decide(event, now_ms)
            if decision.nothing:
                SINK_PASSED_OVER.labels(self._name, rule, decision.nothing).inc()
            for command in decision.commands:
                await self._carry_out(executor, command)
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
        except KeyRefusedError as error:
            if self._refused is not None and not self._refused.done():
                self._refused.set_result(error)
            raise NotNowError(STOPPED_S) from None
        except LedgerError:
            log.warning("sink_waits", connection=self._name, reason="disk", retry_in_s=DISK_PAUSE_S)
            raise NotNowError(DISK_PAUSE_S) from None
        except FailedError as error:
            SINK_COMMANDS.labels(self._name, command.action, "failed").inc()
            log.error("sink_failed", connection=self._name, action=command.action, said=error.said)
            raise
        if self._stopped:
            self._stopped = ""
            log.info("sink_resumed", connection=self._name)
        SINK_COMMANDS.labels(self._name, command.action, outcome).inc()
        log.info("sink_told", connection=self._name, action=command.action, outcome=outcome)

    def _stop(self, error: KeyRefusedError) -> None:
        self._stopped = str(error)
        log.error(
            "sink_stopped",
            connection=self._name,
            detail=self._stopped,
            said=error.said,
            retry_in_s=STOPPED_S,
        )


async def _end(subscribers: Sequence[Subscriber], telling: "Sequence[asyncio.Task[None]]") -> None:
    """Let what is under way end, and what is done be committed. Raises what has ended one."""
    for each in subscribers:
        each.stop()
    try:
        await asyncio.wait(telling)
    except asyncio.CancelledError:
        for task in telling:
            task.cancel()
        await asyncio.wait(telling)
        raise
    for task in telling:
        task.result()
