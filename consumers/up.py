"""`dialstream up`: every role that is configured, in one process."""

import asyncio
from collections.abc import Callable, Coroutine

from ingest.logs import setup_logs
from ingest.receiver import ROLE, receive, reserve_port
from ingest.runner import Stopping, run
from ingest.service import Service, open_service
from ingest.settings import Settings


def run_everything(settings: Settings, *, demo: bool) -> int:
    """Run until a signal; the exit code. Raises ConfigError if it cannot start."""
    quiet = demo and settings.logging.format == "auto"  # the events are the output
    logs = setup_logs(settings.logging.format, "error" if quiet else settings.logging.level)

    async def main(stopping: Stopping) -> None:
        if not demo:
            await _run_roles(settings, stopping)
            return
        # Nobody else wants it.
        from consumers.demo import open_demo  # noqa: PLC0415

        async with open_demo(settings) as playing:
            await _run_roles(playing.settings, stopping, playing.play)

    try:
        return run(main)
    finally:
        logs.close()


async def _run_roles(
    settings: Settings,
    stopping: Stopping,
    play: Callable[[asyncio.Event], Coroutine[None, None, None]] | None = None,
) -> None:
    """Run what is configured; ``play``, too, which is told when the public port is served."""
    ready = asyncio.Event()
    with reserve_port(settings) as public_socket:
        async with (
            open_service(settings, ROLE, stopping) as service,
            asyncio.TaskGroup() as tasks,
        ):
            receiving = tasks.create_task(receive(service, public_socket, ready))
            for role in other_roles(settings):
                tasks.create_task(role(service))
            if play is not None:
                playing = tasks.create_task(play(ready))
                await asyncio.wait([receiving])
                playing.cancel()


def other_roles(settings: Settings) -> list[Callable[[Service], Coroutine[None, None, None]]]:
    """What is configured beside the receiver."""
    # What nobody has configured is not loaded.
    roles: list[Callable[[Service], Coroutine[None, None, None]]] = []
    if any(connection.stream.enabled for connection in settings.connections.values()):
        from ingest.listener import listen  # noqa: PLC0415

        roles.append(listen)
    if any(connection.has_key for connection in settings.connections.values()):
        from consumers.poll.role import poll, polled_connections  # noqa: PLC0415
        from ingest.watchdog import watch  # noqa: PLC0415

        roles.append(watch)
        if polled_connections(settings):
            roles.append(poll)
    if settings.reconcile.enabled is not False and settings.connections:
        from consumers.reconcile.role import reconcile  # noqa: PLC0415

        if settings.reconciled:
            roles.append(reconcile)
    if any(connection.sink.rules for connection in settings.connections.values()):
        from consumers.sinks.dialedin.role import sink  # noqa: PLC0415

        roles.append(sink)
    return roles
