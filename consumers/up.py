"""`dialstream up`: every role that is configured, in one process."""

import asyncio
from collections.abc import Callable, Coroutine

from rich.console import Console
from rich.text import Text

from consumers.tail import Shown, Wanted
from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_reader
from ingest.logs import setup_logs
from ingest.metrics import TALLIES
from ingest.receiver import ROLE, receive, reserve_port
from ingest.runner import Stopping, run
from ingest.service import Service, open_service, url_of
from ingest.settings import DEFAULT_CONNECTION, Settings


def run_everything(settings: Settings, *, demo: bool) -> int:
    """Run until a signal; the exit code. Raises ConfigError if it cannot start."""
    if demo and DEFAULT_CONNECTION not in settings.connections:
        raise ConfigError(
            f"--demo posts invented events to a connection named {DEFAULT_CONNECTION!r}, and there "
            "is none: run it where there is no settings file, or add one"
        )
    quiet = demo and settings.logging.format == "auto"  # the events are the output
    logs = setup_logs(settings.logging.format, "error" if quiet else settings.logging.level)

    async def main(stopping: Stopping) -> None:
        ready = asyncio.Event()
        with reserve_port(settings) as public_socket:
            async with (
                open_service(settings, ROLE, stopping) as service,
                asyncio.TaskGroup() as tasks,
            ):
                receiving = tasks.create_task(receive(service, public_socket, ready))
                for role in other_roles(settings):
                    tasks.create_task(role(service))
                if demo:
                    playing = tasks.create_task(_play(settings, ready))
                    await asyncio.wait([receiving])
                    playing.cancel()

    try:
        return run(main)
    finally:
        logs.close()


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
        from consumers.reconcile.role import is_on, reconcile  # noqa: PLC0415

        if is_on(settings):
            roles.append(reconcile)
    return roles


async def _play(settings: Settings, ready: asyncio.Event) -> None:
    """Post a simulated company's traffic to ourselves, and show what comes of it."""
    # Nobody else wants it.
    from ingest.simulator.dialpad_server import simulated_dialpad  # noqa: PLC0415
    from ingest.simulator.faults import Faults  # noqa: PLC0415

    secret = settings.connections[DEFAULT_CONNECTION].signing_secrets()[0].decode()
    console = Console(highlight=False, soft_wrap=True)
    await ready.wait()
    hook = f"{url_of(settings.receiver)}/webhooks/{DEFAULT_CONNECTION}"
    console.print(_banner(hook, url_of(settings.admin)))
    try:
        async with (
            open_reader(settings, Wanted.everything().topics, start="latest") as reader,
            simulated_dialpad(faults=Faults(repeated=1 / 15, forged=1 / 20), remember=0) as dialpad,
        ):
            await reader.fetch(wait_s=0)  # now its place is the end
            dialpad.subscribe(hook, secret)
            show = Shown(console)
            while True:
                for stored in await reader.fetch(wait_s=1.0):
                    if stored.value is not None:
                        show(stored)
    finally:
        console.print(_summary())


def _banner(hook: str, admin: str) -> Text:
    text = Text("\n")
    text.append("dialstream is listening, and a simulated company is on the phone.\n\n", "bold")
    for what, where in (
        ("deliveries", f"POST {hook}"),
        ("health", f"{admin}/readyz"),
        ("metrics", f"{admin}/metrics"),
        ("the stream", "dialstream tail --from-beginning"),
    ):
        text.append(f"  {what:<12}", "dim").append(f"{where}\n")
    return text.append("\n  Ctrl-C ends it.\n", "dim")


def _summary() -> Text:
    sums = TALLIES.sums()
    text = Text("\n")
    for word in ("received", "stored", "repeat", "refused", "rejected", "unavailable"):
        text.append(f"{sums[word]:,}", "bold").append(f" {word}   ", "dim")
    return text
