"""The receiver: public port, admin port, event log, and the housekeeping of one data directory."""

import asyncio
import contextlib
import json
import resource
import shutil
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp

from ingest.admin import create_admin
from ingest.delivery import Source
from ingest.errors import ConfigError
from ingest.eventlog.journal import journal_folder
from ingest.eventlog.kinds import open_log
from ingest.eventlog.log import EventLog
from ingest.eventlog.ownership import sole_owner
from ingest.eventlog.retention import tidy
from ingest.metrics import (
    DISK_FREE_BYTES,
    HTTP_CONNECTIONS,
    IN_FLIGHT,
    JOURNAL_BYTES,
    JOURNAL_SEGMENTS,
    QUEUE_BYTES,
    TALLIES,
)
from ingest.pipeline import Pipeline
from ingest.providers import PROVIDERS
from ingest.runner import Stopping
from ingest.settings import Admin, Receiver, Settings
from ingest.transports.http import Hooks
from schemas.times import now_ms

log = structlog.get_logger()

ROLE = "receiver"

#: After SIGTERM we say that we are not ready, and go on for so long, in seconds.
UNREADY_S = 1.0

#: What is in flight then gets so long; an answer takes four seconds at most.
DRAIN_S = 5

HOUSEKEEPING_S = 60.0

#: A connection that is taken out of the settings gets 503 for so long, then 404, which is final.
REMEMBER_S = 24 * 3600

_BACKLOG = 2048


async def receive(settings: Settings, stopping: Stopping, ready: asyncio.Event) -> None:
    """Take deliveries until ``stopping`` is asked, then finish what is in flight.

    Raises ConfigError, before anything is touched, if a port or the data directory is taken.
    """
    if not settings.connections:
        raise ConfigError("connections: there is none: add [connections.<name>] to the settings")
    path = settings.eventlog.path
    with ExitStack() as stack:
        stack.enter_context(sole_owner(path, ROLE))
        public_socket = stack.enter_context(listening(settings.receiver, "receiver"))
        admin_socket = stack.enter_context(listening(settings.admin, "admin"))
        async with open_log(settings, ROLE) as eventlog:
            hooks = Hooks(
                Pipeline(eventlog, settings.eventlog.repeat_max),
                max_body_bytes=settings.receiver.max_body_bytes,
                body_timeout_s=settings.receiver.body_timeout_s,
                answer_within_s=settings.receiver.answer_within_s,
                max_connections=max_connections(),
                now_ms=now_ms,
            )
            hooks.serve(make_sources(settings), dormant_connections(path, settings))
            public = _Server(_config(hooks.application, http=hooks.protocol))
            QUEUE_BYTES.set_function(lambda: eventlog.queued_bytes)
            IN_FLIGHT.set_function(lambda: hooks.in_flight)
            HTTP_CONNECTIONS.set_function(lambda: len(public.server_state.connections))
            refusing = _refusing(eventlog, stopping)
            admin = _Server(_config(create_admin(refusing, eventlog.degraded)))
            _reload_secrets_on_hangup(hooks, settings, eventlog)
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(public.serve([public_socket]))
                telling = tasks.create_task(admin.serve([admin_socket]))
                background = [
                    tasks.create_task(hooks.sweep()),
                    tasks.create_task(_keep_house(path, settings, eventlog)),
                ]
                log.info(
                    "started",
                    role=ROLE,
                    address=_address(public_socket),
                    admin_address=_address(admin_socket),
                    connections=sorted(settings.connections),
                    eventlog=settings.eventlog.kind,
                    path=str(path),
                )
                ready.set()
                await stopping.wait()
                if not stopping.at_once:
                    await asyncio.sleep(UNREADY_S)
                public.should_exit = True
                await serving
                admin.should_exit = True
                await telling
                for task in background:
                    task.cancel()
        sums = TALLIES.sums()
        log.info(
            "stopped",
            received=sums["received"],
            stored=sums["stored"],
            repeat=sums["repeat"],
            rejected=sums["rejected"],
            refused=sums["refused"],
            unavailable=sums["unavailable"],
        )


def make_sources(settings: Settings) -> Mapping[str, Source]:
    """The source of each connection. Raises ConfigError where its secrets are wrong."""
    sources, faults = {}, []
    for name, connection in settings.connections.items():
        try:
            sources[name] = PROVIDERS[connection.provider].webhook(connection)
        except ConfigError as error:
            faults += [f"connections.{name}.{fault}" for fault in error.faults]
    if faults:
        raise ConfigError(*faults)
    return sources


class RejectsAlarm:
    """Says when so much is unreadable that the provider must have changed its payloads."""

    SHARE = 0.05
    MINUTES = 5

    def __init__(self) -> None:
        #: (received, rejected) of each channel at the last looks, a minute apart.
        self._looks: deque[dict[tuple[str, str], tuple[int, int]]] = deque(maxlen=self.MINUTES + 1)

    def look(self) -> None:
        self._looks.append(
            {key: (tally.received, tally.outcomes["rejected"]) for key, tally in TALLIES}
        )
        for key, now in self._looks[-1].items():
            then = self._looks[0].get(key, (0, 0))
            received, rejected = now[0] - then[0], now[1] - then[1]
            if rejected > received * self.SHARE:
                log.error("rejects_alarm", connection=key[0], rejected=rejected, received=received)


def dormant_connections(path: Path, settings: Settings) -> set[str]:
    """Names that were configured within the last day and are not now; remembers those that are."""
    file = path / "connections.json"
    now = time.time()
    try:
        remembered = json.loads(file.read_text())
        seen = {name: at for name, at in remembered.items() if now - at < REMEMBER_S}
    except (OSError, ValueError, TypeError, AttributeError):  # it is a help, no more
        seen = {}
    seen |= dict.fromkeys(settings.connections, now)
    temporary = file.with_suffix(".new")
    with contextlib.suppress(OSError):  # a full disk must not keep us from starting
        temporary.write_text(json.dumps(seen))
        temporary.replace(file)
    return seen.keys() - settings.connections.keys()


@contextmanager
def listening(section: Receiver | Admin, name: str) -> Iterator[socket.socket]:
    """A bound socket; raises ConfigError that names the setting."""
    host, port = section.host, section.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"{name}.port: {host}:{port} cannot be listened on ({error.strerror}): stop what "
            f"is there, or set {name}.port"
        ) from None
    with bound:
        yield bound


def url_of(section: Receiver | Admin) -> str:
    """Where we are as configured."""
    return _url(section.host, section.port)


def _address(bound: socket.socket) -> str:
    """Where we really are: the port may have been left to the system."""
    host, port = bound.getsockname()[:2]
    return _url(host, port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def max_connections() -> int:
    """As many as there are descriptors, less some for files. Asks for all that we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(64, min(soft - 256, 50_000))


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: there are several servers in the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp, **more: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=DRAIN_S,
        **more,  # type: ignore[arg-type]
    )


def _refusing(eventlog: EventLog, stopping: Stopping) -> Callable[[], str | None]:
    return lambda: "stopping" if stopping.asked else eventlog.refusing()


def _reload_secrets_on_hangup(hooks: Hooks, settings: Settings, eventlog: EventLog) -> None:
    def reload() -> None:
        try:
            hooks.serve(
                make_sources(settings), dormant_connections(settings.eventlog.path, settings)
            )
        except ConfigError as error:
            log.error("secrets_not_reloaded", faults=list(error.faults))
        else:
            eventlog.reconnect()
            log.info("secrets_reloaded", connections=sorted(settings.connections))

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


async def _keep_house(path: Path, settings: Settings, eventlog: EventLog) -> None:
    """Forget what is over, measure what is left, say what is wrong."""
    wrong: tuple[str, ...] = ()
    alarm = RejectsAlarm()
    while True:
        try:
            if settings.eventlog.kind == "journal":
                await _tidy_journal(path, settings.eventlog.journal_max_bytes)
            DISK_FREE_BYTES.set(shutil.disk_usage(path).free)
            await asyncio.to_thread(dormant_connections, path, settings)
        except Exception as error:
            log.error("housekeeping_failed", exc_info=error)
        alarm.look()
        now_wrong = tuple(eventlog.degraded())
        if now_wrong != wrong:
            log.warning("degraded" if now_wrong else "recovered", reasons=list(now_wrong or wrong))
            wrong = now_wrong
        await asyncio.sleep(HOUSEKEEPING_S)


async def _tidy_journal(path: Path, max_bytes: int) -> None:
    usage = await asyncio.to_thread(
        tidy, journal_folder(path), max_bytes=max_bytes, now_ms=now_ms()
    )
    for topic, used in usage.items():
        JOURNAL_BYTES.labels(topic).set(used.size_bytes)
        JOURNAL_SEGMENTS.labels(topic).set(used.segments)
