"""A receiver of the experiment's own, as the settings have it but for its ports, topics and data.

Run as a program it is that receiver. Whatever ends it, it is started again, as a supervisor would.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from ingest.errors import ConfigError
from ingest.settings import Settings, load_settings

_READY_S = 30.0
_LOOK_S = 0.1
_AGAIN_S = 0.2

#: The last lines of what it said, where it does not start.
_LINES = 5


def own_settings(settings: Settings, name: str, port: int, admin_port: int) -> Settings:
    """The same in another place: data and topics below, or behind, ``name``; local ports."""
    here = {"host": "127.0.0.1"}
    kafka = settings.kafka
    return settings.model_copy(
        update={
            "receiver": settings.receiver.model_copy(update={**here, "port": port}),
            "admin": settings.admin.model_copy(update={**here, "port": admin_port}),
            "eventlog": settings.eventlog.model_copy(
                update={"path": settings.eventlog.path / name}
            ),
            "kafka": kafka.model_copy(update={"topic_prefix": f"{kafka.topic_prefix}{name}."}),
        }
    )


class OwnReceiver:
    """The process. Use `of`, then `running`."""

    def __init__(self, settings: Settings, arguments: list[str]) -> None:
        self.settings = settings
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self.starts = 0

    @classmethod
    def of(cls, settings: Settings, name: str, config: Path | None) -> Self:
        """One that is not started yet; ``config``: the file that the settings are from."""
        port, admin_port = _free_port(), _free_port()
        given = {"name": name, "port": port, "admin_port": admin_port}
        return cls(
            own_settings(settings, name, port, admin_port),
            [json.dumps(given), *([] if config is None else [str(config)])],
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.receiver.port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def said(self) -> Path:
        """What it writes to stderr."""
        return self.settings.eventlog.path / "receiver.log"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It is ready, and started again whenever it ends. Raises ConfigError if it cannot be."""
        try:
            await self._start()
            keeping = asyncio.create_task(self._keep())
            try:
                yield
            finally:
                keeping.cancel()
                await asyncio.wait([keeping])
        finally:
            await self._stop()

    async def _start(self) -> None:
        await self._spawn()
        assert self._process is not None
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as client:
            try:
                async with asyncio.timeout(_READY_S):
                    while not await self._ready(client):
                        if self._process.returncode is not None:
                            raise ConfigError(self._why("it has ended"))
                        await asyncio.sleep(_LOOK_S)
            except TimeoutError:
                raise ConfigError(self._why(f"it is not ready after {_READY_S:.0f} s")) from None

    async def _keep(self) -> None:
        assert self._process is not None
        while True:
            await self._process.wait()
            await asyncio.sleep(_AGAIN_S)
            await self._spawn()

    async def _stop(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _spawn(self) -> None:
        self.said.parent.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        with self.said.open("ab") as said:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "consumers.prove.receiver", *self._arguments),
                # It ends when we do, however that comes about.
                stdin=asyncio.subprocess.PIPE,
                stdout=said,
                stderr=said,
                # Ctrl-C is for us.
                start_new_session=True,
            )

    async def _ready(self, client: httpx.AsyncClient) -> bool:
        with suppress(httpx.HTTPError):
            admin = self.settings.admin
            answer = await client.get(f"http://{admin.host}:{admin.port}/readyz")
            return answer.is_success
        return False

    def _why(self, what: str) -> str:
        lines = self.said.read_text(errors="replace").splitlines()[-_LINES:]
        return "\n".join([f"the receiver of the experiment does not start: {what}", *lines])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The process itself


def main() -> int:
    """Be the receiver that the arguments describe."""
    from ingest.logs import setup_logs  # noqa: PLC0415 - the parent needs none of it
    from ingest.receiver import receive_alone  # noqa: PLC0415
    from ingest.runner import run  # noqa: PLC0415

    given: dict[str, Any] = json.loads(sys.argv[1])
    config = Path(sys.argv[2]) if len(sys.argv) > 2 else None  # noqa: PLR2004
    settings = own_settings(load_settings(config), **given)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logs = setup_logs("json", settings.logging.level)
    try:
        return run(lambda stopping: receive_alone(settings, stopping))
    finally:
        logs.close()


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
