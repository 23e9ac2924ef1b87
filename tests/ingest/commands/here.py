"""Commands that work through something, run in this process: a start takes half a second."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from structlog.testing import capture_logs

from ingest.runner import Stopping
from tests.ingest.commands.on_kafka import run_here
from tests.kit import Product, Ran


def run_quietly(product: Product, *arguments: str) -> Ran:
    """As `run_here`; the process keeps its own signals and logs."""
    with ExitStack() as stack:
        stack.enter_context(capture_logs())
        stack.enter_context(patch("ingest.logs.setup_logs", lambda *_: io.StringIO()))
        stack.enter_context(patch("ingest.commands.work.run", _run))
        return run_here(product, *arguments)


def everything_in(folder: Path) -> dict[str, bytes]:
    """But what SQLite makes and takes away beside its files, also for those who read."""
    return {
        str(path): b"" if path.suffix == ".sqlite" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


def _run(main: Callable[[Stopping], Awaitable[None]]) -> int:
    async def inner() -> None:
        await main(Stopping())

    asyncio.run(inner())
    return 0
