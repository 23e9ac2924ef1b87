"""The role ``poll``: a poller for each connection that is ours."""

import asyncio
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from consumers.poll.agents import AgentsPoller
from consumers.poll.gaps import TOPIC as GAPS
from consumers.poll.gaps import Gaps
from consumers.poll.hints import TOPIC as CALLS
from consumers.poll.hints import Hints
from consumers.poll.poller import Poller
from consumers.poll.seen import Seen
from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_reader
from ingest.providers import PROVIDERS
from ingest.runner import Stopping
from ingest.service import Service, open_standby_service
from ingest.settings import Settings
from ingest.work import Job, share_work

ROLE = "poller"

#: Whose work is shared.
_WORK = "poll"


def polled_connections(settings: Settings) -> list[str]:
    """Those with records that are to be read back."""
    return [
        name
        for name, connection in settings.connections.items()
        if connection.polled and PROVIDERS[connection.provider].records is not None
    ]


def memory_path(path: Path, connection: str) -> Path:
    """Where a connection's poller remembers what it has read."""
    return path / "poll" / f"{connection}.sqlite"


async def poll_alone(settings: Settings, stopping: Stopping) -> None:
    """Be a poller and nothing else. Raises ConfigError if there is nothing to poll."""
    if not polled_connections(settings):
        raise ConfigError(
            "connections: none is polled: set api_key or api_key_file of one, and do not set "
            "poll.enabled = false"
        )

    async with open_standby_service(settings, ROLE, stopping) as service:
        await poll(service)


async def poll(service: Service) -> None:
    """Read back the connections that are ours until the service is stopping."""
    settings = service.settings
    gaps, hints = Gaps(), Hints()
    pollers: dict[str, Poller | AgentsPoller] = {}

    def troubles() -> Sequence[str]:
        words = [word for poller in pollers.values() for word in poller.troubles()]
        return [*words, "gaps_unread"] if gaps.unread else words

    def reload() -> None:
        for poller in pollers.values():
            poller.reload()

    async def run(job: Job) -> None:
        name = job.connection
        connection = settings.connections[name]

        provider = PROVIDERS[connection.provider]
        path = memory_path(settings.eventlog.path, name)
        with closing(await asyncio.to_thread(Seen.open, path)) as seen:
            poller: Poller | AgentsPoller
            if provider.agent_records is not None:
                by_agent = partial(provider.agent_records, name, connection)
                poller = AgentsPoller(job, connection, by_agent, service.eventlog, gaps, seen)
            else:
                assert provider.records is not None
                records = partial(provider.records, name, connection)
                poller = Poller(job, connection, records, service.eventlog, gaps, seen, hints)
            pollers[name] = poller
            try:
                await poller.run()
            finally:
                del pollers[name]

    service.troubles.append(troubles)
    service.reloads.append(reload)
    async with asyncio.TaskGroup() as tasks:
        following = [
            tasks.create_task(gaps.follow(lambda: open_reader(settings, [GAPS]))),
            tasks.create_task(hints.follow(lambda: open_reader(settings, [CALLS], start="latest"))),
        ]
        sharing = tasks.create_task(share_work(service, _WORK, polled_connections(settings), run))
        service.started(ROLE)
        await service.stopping.wait()
        sharing.cancel()
        await asyncio.wait([sharing])
        for task in following:
            task.cancel()
