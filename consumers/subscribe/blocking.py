"""Notices when the event loop does not turn, and who keeps it from turning."""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: A loop that stands still for longer is blocked, in seconds: others wait, heartbeats too.
BLOCKED_S = 0.5

_BEAT_S = 0.1

#: Of a stack, the innermost frames.
_FRAMES = 5

Told = Callable[["asyncio.Task[object] | None", float, list[str]], None]
"""Called in a thread of its own with the task that runs, seconds so far, and where it is.

Once when the loop is blocked, then each time that the seconds have doubled.
"""


@contextmanager
def watch_loop(told: Told) -> Iterator[None]:
    """Watch the running loop from a thread until the end of the block."""
    loop = asyncio.get_running_loop()
    watch = _Watch(loop, told)
    beating = loop.create_task(watch.beat())
    thread = threading.Thread(target=watch.run, name="blocking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.over.set()
        beating.cancel()


class _Watch:
    def __init__(self, loop: asyncio.AbstractEventLoop, told: Told) -> None:
        self._loop = loop
        self._told = told
        self._thread = threading.get_ident()
        self._beat = time.monotonic()
        self.over = threading.Event()

    async def beat(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT_S)

    def run(self) -> None:
        next_s = BLOCKED_S
        while not self.over.wait(_BEAT_S):
            still_s = time.monotonic() - self._beat - _BEAT_S
            if still_s < BLOCKED_S:
                next_s = BLOCKED_S
            elif still_s >= next_s:
                next_s = 2 * still_s
                frame = sys._current_frames().get(self._thread)  # noqa: SLF001 - there is no other
                stack = traceback.extract_stack(frame)[-_FRAMES:] if frame else []
                where = [f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in stack]
                self._told(asyncio.current_task(self._loop), still_s, where)
