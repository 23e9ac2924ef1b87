"""A simulated Dialpad in a thread, so that commands can be run beside it."""

import asyncio
import threading
from types import TracebackType
from typing import Any, Self

from ingest.simulator.dialpad_rest import Rates
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from tests.kit import SECRET

PUBLIC_URL = "https://hooks.example.com"


class RunningDialpad:
    """One that serves as long as the block lasts; nothing happens in its world."""

    def __init__(self) -> None:
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self.dialpad: SimulatedDialpad

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        fast = Rates(company_per_s=10_000)
        async with simulated_dialpad(pace=None, rates=fast) as self.dialpad:
            self._up.set()
            await self._ending.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(20)

    def connection(self, **more: Any) -> dict[str, Any]:
        """Settings of a connection to it."""
        return {
            "provider": "dialpad",
            "secrets": [SECRET],
            "region": "US",
            "api_key": self.dialpad.api_key,
            "base_url": self.dialpad.base_url,
            "public_url": PUBLIC_URL,
            "poll": {"enabled": False, "requests_per_s": 20},
            **more,
        }

    def counts(self) -> dict[str, int]:
        store = self.dialpad.resources
        found = {kind: len(many) for kind, many in store.subscriptions.items()}
        return found | {"webhooks": len(store.webhooks), "websockets": len(store.websockets)}
