"""One process: its event log, its admin port, its housekeeping, its signals.

What a process is for, its roles, runs inside: `ingest.receiver` and those of `consumers`.
"""

import asyncio
import shutil
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import structlog
import uvicorn
from starlette.types import ASGIApp

from ingest.admin import create_admin
from ingest.drift import RADAR, drift_folder
from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_log
from ingest.eventlog.log import EventLog
from ingest.eventlog.ownership import one_of_several
from ingest.metrics import DISK_FREE_BYTES, QUEUE_BYTES, TALLIES
from ingest.runner import Stopping
from ingest.settings import Admin, Receiver, Settings

log = structlog.get_logger()

#: What is in flight at the end gets so long, in seconds; an answer takes four at most.
DRAIN_S = 5

HOUSEKEEPING_S = 60.0

#: The roles bring their chores and troubles before these are looked at.
_ROLES_FIRST_S = 0.2

_BACKLOG = 2048


class Service:
    """What the roles of a process share. Use `open_service`."""

    def __init__(
        self, settings: Settings, eventlog: EventLog, stopping: Stopping, admin_address: str
    ) -> None:
        self.settings = settings
        self.eventlog = eventlog
        self.stopping = stopping
        self.admin_address = admin_address
        #: What the roles say is wrong although they go on, a word each.
        self.troubles: list[Callable[[], Sequence[str]]] = [eventlog.degraded]
        #: Called at SIGHUP, to read secrets again; each may raise ConfigError.
        self.reloads: list[Callable[[], None]] = []
        #: Done once a minute; what they raise is logged.
        self.chores: list[Callable[[], Awaitable[None]]] = []

    def refusing(self) -> str | None:
        """Why nothing can be acknowledged now, if so."""
        return "stopping" if self.stopping.asked else self.eventlog.refusing()

    def degraded(self) -> list[str]:
        return [trouble for troubles in self.troubles for trouble in troubles()]

    def started(self, role: str, address: str | None = None) -> None:
        """Say that a role is ready, and where the public port is, if it has one."""
        log.info(
            "started",
            role=role,
            address=address,
            admin_address=self.admin_address,
            connections=sorted(self.settings.connections),
            eventlog=self.settings.eventlog.kind,
            path=str(self.settings.eventlog.path),
        )

    async def keep_house(self) -> None:
        """Run for as long as the process does: measure, tidy up, say what is wrong."""
        wrong: list[str] = []
        alarm = RejectsAlarm()
        await asyncio.sleep(_ROLES_FIRST_S)
        while True:
            for chore in (self._measure_disk, *self.chores):
                try:
                    await chore()
                except Exception as error:
                    log.error("housekeeping_failed", exc_info=error)
            alarm.look()
            now_wrong = self.degraded()
            if now_wrong != wrong:
                log.warning("degraded" if now_wrong else "recovered", reasons=now_wrong or wrong)
                wrong = now_wrong
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _measure_disk(self) -> None:
        DISK_FREE_BYTES.set(shutil.disk_usage(self.settings.eventlog.path).free)

    def reload(self) -> None:
        """Read secrets and certificates again."""
        faults: list[str] = []
        for reload in self.reloads:
            try:
                reload()
            except ConfigError as error:
                faults += error.faults
        if faults:
            log.error("secrets_not_reloaded", faults=faults)
        else:
            self.eventlog.reconnect()
            log.info("secrets_reloaded", connections=sorted(self.settings.connections))


@asynccontextmanager
async def open_service(settings: Settings, role: str, stopping: Stopping) -> AsyncIterator[Service]:
    """Open the event log and the admin port, and keep house until the end of the block.

    ``role``: whose spool it is. Raises ConfigError, before anything is touched, if the admin port
    is taken. What was handed to the log is durable when it closes.
    """
    with listening(settings.admin, "admin") as admin_socket:
        async with open_log(settings, role) as eventlog:
            service = Service(settings, eventlog, stopping, address_of(admin_socket))
            RADAR.open(drift_folder(settings.eventlog.path) / f"{role}.json")
            service.chores.append(RADAR.save)
            QUEUE_BYTES.set_function(lambda: eventlog.queued_bytes)
            admin = Server(server_config(create_admin(service.refusing, service.degraded)))
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reload)
            async with asyncio.TaskGroup() as tasks:
                telling = tasks.create_task(admin.serve([admin_socket]))
                keeping = tasks.create_task(service.keep_house())
                try:
                    yield service
                finally:
                    admin.should_exit = True
                    await asyncio.wait([telling])
                    keeping.cancel()
                    with suppress(OSError):  # it is a help, and no reason to fail at the end
                        await RADAR.save()
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


@asynccontextmanager
async def open_standby_service(
    settings: Settings, role: str, stopping: Stopping
) -> AsyncIterator[Service]:
    """As `open_service`, for a role that several processes on one data directory may have.

    Each has a spool of its own, also those that stand by.
    """
    with one_of_several(settings.eventlog.path, role) as number:
        name = role if number == 1 else f"{role}-{number}"
        async with open_service(settings, name, stopping) as service:
            yield service


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


def address_of(bound: socket.socket) -> str:
    """Where we really are: the port may have been left to the system."""
    host, port = bound.getsockname()[:2]
    return _url(host, port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: there are several servers in the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_config(app: ASGIApp, **more: object) -> uvicorn.Config:
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
