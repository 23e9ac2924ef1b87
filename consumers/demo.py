"""`dialstream up --demo`: a simulated company on the phone, seen by three simulated providers.

They are servers of their own on this machine. Dialpad and DialLink post to our public port what
happens; DialLink and Dialgood are read back by the poller, as the real ones would be.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from pydantic import SecretStr
from rich.console import Console
from rich.text import Text

from consumers.tail import Shown, Wanted
from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_reader
from ingest.metrics import TALLIES
from ingest.service import url_of
from ingest.settings import DEFAULT_CONNECTION, Connection, Poll, Settings
from ingest.simulator.dialgood_server import SimulatedDialgood, simulated_dialgood
from ingest.simulator.diallink_delivery import new_secret
from ingest.simulator.diallink_server import SimulatedDialLink, simulated_diallink
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.faults import Faults

#: Beside `DEFAULT_CONNECTION`, which is a Dialpad's.
LINE, BOTS = f"{DEFAULT_CONNECTION}_line", f"{DEFAULT_CONNECTION}_bots"

#: Who watches does not want to wait. Nothing is older than the demo.
_QUICK = {
    "every_s": 5.0,
    "lag_s": 1.0,
    "overlap_s": 60.0,
    "requests_per_s": 5.0,
    "first_read_s": 60.0,
}


class Demo:
    """Providers that are open, of which nobody has heard yet. Use `open_demo`."""

    def __init__(
        self,
        settings: Settings,
        dialpad: SimulatedDialpad,
        diallink: SimulatedDialLink | None,
    ) -> None:
        #: Those to run with: connections to the providers among them.
        self.settings = settings
        self._dialpad = dialpad
        self._diallink = diallink

    async def play(self, ready: asyncio.Event) -> None:
        """Once the public port is served, have everything posted to it; show what is stored."""
        settings = self.settings
        console = Console(highlight=False, soft_wrap=True)
        await ready.wait()
        hooks = f"{url_of(settings.receiver)}/webhooks"
        console.print(_banner(settings, hooks))
        try:
            everything = Wanted.everything().topics
            async with open_reader(settings, everything, start="latest") as reader:
                await reader.fetch(wait_s=0)  # now its place is the end
                self._dialpad.subscribe(
                    f"{hooks}/{DEFAULT_CONNECTION}", _secret(settings, DEFAULT_CONNECTION)
                )
                if self._diallink is not None:
                    self._diallink.subscribe(f"{hooks}/{LINE}", _secret(settings, LINE))
                show = Shown(console)
                while True:
                    for stored in await reader.fetch(wait_s=1.0):
                        if stored.value is not None:
                            show(stored)
        finally:
            console.print(_summary())


@asynccontextmanager
async def open_demo(settings: Settings) -> AsyncIterator[Demo]:
    """Open the simulated providers.

    Where `DEFAULT_CONNECTION` is all that there is, as without a settings file, connections to
    DialLink and Dialgood join it; else only Dialpad is played, since the others are meant for real.
    Raises ConfigError if there is nothing to play to.
    """
    if DEFAULT_CONNECTION not in settings.connections:
        raise ConfigError(
            f"--demo posts invented events to a connection named {DEFAULT_CONNECTION!r}, and there "
            "is none: run it where there is no settings file, or add one"
        )
    async with AsyncExitStack() as stack:
        dialpad = await stack.enter_async_context(
            simulated_dialpad(faults=Faults(repeated=1 / 15, forged=1 / 20), remember=0)
        )
        if len(settings.connections) > 1:
            yield Demo(settings, dialpad, None)
            return
        world, clock = dialpad.world, dialpad.clock
        diallink = await stack.enter_async_context(
            simulated_diallink(world=world, clock=clock, remember=0)
        )
        dialgood = await stack.enter_async_context(
            simulated_dialgood(world=world, clock=clock, remember=0)
        )
        connections = {
            **settings.connections,
            LINE: _to_diallink(diallink),
            BOTS: _to_dialgood(dialgood),
        }
        yield Demo(settings.model_copy(update={"connections": connections}), dialpad, diallink)


def _to_diallink(diallink: SimulatedDialLink) -> Connection:
    return Connection(
        provider="diallink",
        base_url=diallink.base_url,
        api_key=SecretStr(diallink.api_key),
        secrets=(SecretStr(new_secret()),),
        region="US",
        poll=Poll(also=("contacts", "directory", "recordings"), **_QUICK),
    )


def _to_dialgood(dialgood: SimulatedDialgood) -> Connection:
    return Connection(
        provider="dialgood",
        base_url=dialgood.base_url,
        api_key=SecretStr(dialgood.api_key),
        region="US",
        poll=Poll(also=("directory", "versions"), **_QUICK),
    )


def _secret(settings: Settings, connection: str) -> str:
    return settings.connections[connection].signing_secrets()[0].decode()


def _banner(settings: Settings, hooks: str) -> Text:
    text = Text("\n")
    text.append("dialstream is listening, and a simulated company is on the phone.\n\n", "bold")
    lines = [("Dialpad", f"POST {hooks}/{DEFAULT_CONNECTION}")]
    if LINE in settings.connections:
        lines += [
            ("DialLink", f"POST {hooks}/{LINE}, and read from {_address(settings, LINE)}"),
            ("Dialgood", f"read from {_address(settings, BOTS)}"),
        ]
    admin = url_of(settings.admin)
    lines += [
        ("health", f"{admin}/readyz"),
        ("metrics", f"{admin}/metrics"),
        ("the stream", "dialstream tail --from-beginning"),
    ]
    for what, where in lines:
        text.append(f"  {what:<12}", "dim").append(f"{where}\n")
    return text.append("\n  Ctrl-C ends it.\n", "dim")


def _address(settings: Settings, connection: str) -> str:
    return settings.connections[connection].base_url or ""


def _summary() -> Text:
    sums = TALLIES.sums()
    text = Text("\n")
    for word in ("received", "stored", "repeat", "refused", "rejected", "unavailable"):
        text.append(f"{sums[word]:,}", "bold").append(f" {word}   ", "dim")
    polled = sum(tally.events.total() for (_, via), tally in TALLIES if via == "poll")
    return text.append(f"{polled:,}", "bold").append(" read back", "dim") if polled else text
