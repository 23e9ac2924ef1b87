"""The receiver: the public port, and what belongs to one data directory."""

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ingest.delivery import Source
from ingest.errors import ConfigError
from ingest.eventlog.journal import journal_folder
from ingest.eventlog.ownership import sole_owner
from ingest.eventlog.retention import tidy
from ingest.life import signs_of_life
from ingest.metrics import HTTP_CONNECTIONS, IN_FLIGHT, JOURNAL_BYTES, JOURNAL_SEGMENTS
from ingest.pipeline import Pipeline
from ingest.providers import PROVIDERS
from ingest.quarantine import Keeper, closing_at_end, quarantine_folder
from ingest.rotation import FormerSecrets
from ingest.runner import Stopping
from ingest.service import Server, Service, address_of, listening, open_service, server_config
from ingest.settings import Settings
from ingest.transports.http import Hooks
from schemas.times import now_ms

ROLE = "receiver"

#: After SIGTERM we say that we are not ready, and go on for so long, in seconds.
UNREADY_S = 1.0

#: A connection that is taken out of the settings gets 503 for so long, then 404, which is final.
REMEMBER_S = 24 * 3600


async def receive_alone(settings: Settings, stopping: Stopping) -> None:
    """Be a receiver and nothing else. Raises ConfigError if it cannot start."""
    with reserve_port(settings) as public_socket:
        async with open_service(settings, ROLE, stopping) as service:
            await receive(service, public_socket, asyncio.Event())


@contextmanager
def reserve_port(settings: Settings) -> Iterator[socket.socket]:
    """Become the receiver of the data directory, with the public port for `receive`.

    Raises ConfigError, before anything is touched, if the port or the directory is taken.
    """
    if not settings.connections:
        raise ConfigError("connections: there is none: add [connections.<name>] to the settings")
    with (
        sole_owner(settings.eventlog.path, ROLE),
        listening(settings.receiver, "receiver") as public_socket,
    ):
        yield public_socket


async def receive(service: Service, public_socket: socket.socket, ready: asyncio.Event) -> None:
    """Take deliveries until the service is stopping, then finish what is in flight.

    Raises ConfigError if secrets are wrong.
    """
    settings, stopping = service.settings, service.stopping
    path = settings.eventlog.path
    quarantine = Keeper(quarantine_folder(path), settings.quarantine)
    hooks = Hooks(
        Pipeline(service.eventlog, settings.eventlog.repeat_max, settings.drops),
        max_body_bytes=settings.receiver.max_body_bytes,
        body_timeout_s=settings.receiver.body_timeout_s,
        answer_within_s=settings.receiver.answer_within_s,
        max_connections=max_connections(),
        now_ms=now_ms,
        refused=quarantine.offer,
    )

    former_secrets = FormerSecrets()

    async def look_at_secrets() -> None:
        former_secrets.look(
            {name: door.source for name, door in hooks.doors.items()}, time.monotonic()
        )

    def serve() -> None:
        sources = make_sources(settings)
        quarantine.replaced({name: door.source for name, door in hooks.doors.items()})
        hooks.serve(sources, dormant_connections(path, settings))

    async def tidy_up() -> None:
        if settings.eventlog.kind == "journal":
            await _tidy_journal(path, settings.eventlog.journal_max_bytes)
        await asyncio.to_thread(dormant_connections, path, settings)

    serve()
    service.reloads.append(serve)
    service.chores += [tidy_up, look_at_secrets, quarantine.tidy]
    public = Server(server_config(hooks.application, http=hooks.protocol))
    IN_FLIGHT.set_function(lambda: hooks.in_flight)
    HTTP_CONNECTIONS.set_function(lambda: len(public.server_state.connections))
    async with closing_at_end(quarantine), signs_of_life(service), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(public.serve([public_socket]))
        sweeping = tasks.create_task(hooks.sweep())
        service.started(ROLE, address=address_of(public_socket))
        ready.set()
        await stopping.wait()
        if not stopping.at_once:
            await asyncio.sleep(UNREADY_S)
        public.should_exit = True
        await serving
        sweeping.cancel()


def make_sources(settings: Settings) -> Mapping[str, Source]:
    """The source of each connection that is pushed to us, the secrets read anew.

    A connection without secrets has none. Raises ConfigError where secrets are wrong.
    """
    sources, faults = {}, []
    for name, connection in settings.connections.items():
        if not connection.has_secrets:
            continue
        try:
            sources[name] = PROVIDERS[connection.provider].webhook(connection)
        except ConfigError as error:
            faults += [f"connections.{name}.{fault}" for fault in error.faults]
    if faults:
        raise ConfigError(*faults)
    return sources


def dormant_connections(path: Path, settings: Settings) -> set[str]:
    """Names that get 503 and not 404, which would be final for them; remembers what is configured.

    Those that were configured within the last day and are not now, and those without a secret.
    """
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
    receiving = {name for name, at in settings.connections.items() if at.has_secrets}
    return seen.keys() - receiving


def max_connections() -> int:
    """As many as there are descriptors, less some for files. Asks for all that we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(64, min(soft - 256, 50_000))


async def _tidy_journal(path: Path, max_bytes: int) -> None:
    usage = await asyncio.to_thread(
        tidy, journal_folder(path), max_bytes=max_bytes, now_ms=now_ms()
    )
    for topic, used in usage.items():
        JOURNAL_BYTES.labels(topic).set(used.size_bytes)
        JOURNAL_SEGMENTS.labels(topic).set(used.segments)
