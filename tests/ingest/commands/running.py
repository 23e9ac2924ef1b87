"""A server in a thread, so that commands can be run beside it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def running(server: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """It serves as long as the block lasts."""
    loop = asyncio.new_event_loop()
    up, ending = threading.Event(), asyncio.Event()
    found: list[T] = []

    async def serve() -> None:
        async with server as made:
            found.append(made)
            up.set()
            await ending.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(20)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(20)
