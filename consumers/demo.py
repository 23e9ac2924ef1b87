"""`dialstream up --demo`: a simulated company on the phone, seen by three simulated providers.

They are servers of their own on this machine. Dialpad and DialLink post to our public port what
happens; all three are read back by the poller, as the real ones would be. Now and then Dialpad
keeps the end of a call to itself: reconciliation finds that out, and mends it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from itertools import islice

import orjson
from pydantic import SecretStr
from rich.console import Console
from rich.text import Text

from consumers.demo_losses import Losses
from consumers.tail import Wanted
from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_reader
from ingest.metrics import TALLIES
from ingest.service import url_of
from ingest.settings import DEFAULT_CONNECTION, Connection, Poll, Settings
from ingest.simulator.clock import Clock
from ingest.simulator.dialgood_server import SimulatedDialgood, simulated_dialgood
from ingest.simulator.diallink_delivery import new_secret
from ingest.simulator.diallink_server import SimulatedDialLink, simulated_diallink
from ingest.simulator.dialpad import MAX_LAG_MS
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.facts import Leg
from ingest.simulator.faults import Faults
from ingest.simulator.world import World
from schemas.times import now_ms

#: Beside `DEFAULT_CONNECTION`, which is a Dialpad's.
LINE, BOTS = f"{DEFAULT_CONNECTION}_line", f"{DEFAULT_CONNECTION}_bots"

#: Who watches does not want to wait. Nothing is older than the demo.
_QUICK = {
    "every_s": 5.0,
    # Longer than the simulated clocks are off: else a list is read before it holds a call.
    "lag_s": 3.0,
    "overlap_s": 60.0,
    "requests_per_s": 5.0,
    "first_read_s": 60.0,
}
#: How long after its end a call is judged at the earliest; the log's clock is some 15 s behind.
_SETTLE_S = 3.0

#: The company takes no calls before we may be listening.
_OPENS_AFTER_MS = 2_000

#: Of so many calls the ending is never pushed: a few a minute. Of one of the first for certain.
_DROPPED = 1 / 15
_FIRST_DROPPED = 4

_SEED = 1


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
        self._losses = Losses(DEFAULT_CONNECTION)
        self._lost = 0

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
                while True:
                    found = await reader.fetch(wait_s=0.5)
                    self._show_dropped(console)
                    # A verdict before what comes of it, which is on another topic.
                    for stored in sorted(found, key=lambda each: each.topic != "verdicts"):
                        if stored.value is not None:
                            self._show(console, stored.value)
        finally:
            console.print(_summary())
            for text in self._losses.summary():
                console.print(text)

    def _show_dropped(self, console: Console) -> None:
        """Say what the simulator has dropped since it was last asked."""
        lost = self._dialpad.lost_calls
        for call_id, ended_ms in islice(lost.items(), self._lost, None):
            leg = self._dialpad.world.legs[call_id]
            _print(console, self._losses.drop(str(call_id), _story(leg), ended_ms))
        self._lost = len(lost)

    def _show(self, console: Console, value: bytes) -> None:
        shown = self._losses.hear(orjson.loads(value), self._dialpad.clock.now_ms)
        if shown is not None:
            _print(console, shown)


def _print(console: Console, event: Text) -> None:
    """One line on a terminal; elsewhere nothing is cut off."""
    if console.is_terminal:
        event.truncate(console.width, overflow="ellipsis")
    console.print(event)


@asynccontextmanager
async def open_demo(settings: Settings) -> AsyncIterator[Demo]:
    """Open the simulated providers.

    Where `DEFAULT_CONNECTION` is all that there is, as without a settings file, connections to
    DialLink and Dialgood join it, and all are read back and reconciled; else only Dialpad is
    played, since the others are meant for real. Raises ConfigError if there is nothing to play to.
    """
    if DEFAULT_CONNECTION not in settings.connections:
        raise ConfigError(
            f"--demo posts invented events to a connection named {DEFAULT_CONNECTION!r}, and there "
            "is none: run it where there is no settings file, or add one"
        )
    faults = Faults(repeated=1 / 15, forged=1 / 20)
    async with AsyncExitStack() as stack:
        if len(settings.connections) > 1:
            dialpad = await stack.enter_async_context(simulated_dialpad(faults=faults, remember=0))
            yield Demo(settings, dialpad, None)
            return
        faults.endings_dropped = _DROPPED
        faults.force("endings_dropped", after=_FIRST_DROPPED)
        # No payload's clock is ahead of ours when it is sent.
        clock = Clock(now_ms() - MAX_LAG_MS)
        world = World(_SEED, clock.now_ms + _OPENS_AFTER_MS)
        dialpad = await stack.enter_async_context(
            simulated_dialpad(world=world, clock=clock, faults=faults, remember=0)
        )
        diallink = await stack.enter_async_context(
            simulated_diallink(world=world, clock=clock, remember=0)
        )
        dialgood = await stack.enter_async_context(
            simulated_dialgood(world=world, clock=clock, remember=0)
        )
        connections = {
            DEFAULT_CONNECTION: _to_dialpad(settings.connections[DEFAULT_CONNECTION], dialpad),
            LINE: _to_diallink(diallink),
            BOTS: _to_dialgood(dialgood),
        }
        # Of calls of an earlier demo nobody will ever know more.
        since = datetime.fromtimestamp(world.start_ms / 1000, UTC)
        common = {"enabled": True, "since": since, "settle_s": _SETTLE_S}
        update = {
            "connections": connections,
            "reconcile": settings.reconcile.model_copy(update=common),
        }
        yield Demo(settings.model_copy(update=update), dialpad, diallink)


def _to_dialpad(connection: Connection, dialpad: SimulatedDialpad) -> Connection:
    update = {
        "base_url": dialpad.base_url,
        "api_key": SecretStr(dialpad.api_key),
        "poll": Poll(**_QUICK),
    }
    return connection.model_copy(update=update)


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
    reconciled = LINE in settings.connections
    if reconciled:
        lines = [
            (name, f"POST {hooks}/{each}, and read from {_address(settings, each)}")
            for name, each in (("Dialpad", DEFAULT_CONNECTION), ("DialLink", LINE))
        ]
        lines.append(("Dialgood", f"read from {_address(settings, BOTS)}"))
    admin = url_of(settings.admin)
    lines += [
        ("health", f"{admin}/readyz"),
        ("metrics", f"{admin}/metrics"),
        ("the stream", "dialstream tail --from-beginning"),
    ]
    for what, where in lines:
        text.append(f"  {what:<12}", "dim").append(f"{where}\n")
    if reconciled:
        text.append(
            "\n  Now and then Dialpad does not push that a call has ended. Its list tells, and"
            "\n  some 20 s later that is mended. Verdicts that all is well, and the ledger, are not"
            "\n  shown here.\n",
            "dim",
        )
    return text.append("\n  Ctrl-C ends it.\n", "dim")


def _story(leg: Leg) -> str:
    outside, inside = leg.outsider.name or leg.outsider.number, leg.host.name
    return f"{inside} → {outside}" if leg.outbound else f"{outside} → {inside}"


def _address(settings: Settings, connection: str) -> str:
    return settings.connections[connection].base_url or ""


def _summary() -> Text:
    sums = TALLIES.sums()
    text = Text("\n")
    for word in ("received", "stored", "repeat", "refused", "rejected", "unavailable"):
        text.append(f"{sums[word]:,}", "bold").append(f" {word}   ", "dim")
    polled = sum(tally.events.total() for (_, via), tally in TALLIES if via == "poll")
    return text.append(f"{polled:,}", "bold").append(" read back", "dim") if polled else text
