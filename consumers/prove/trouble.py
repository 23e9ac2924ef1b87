"""What the operator lets go wrong: a command of the shell, again and again."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

#: It may still be at work when the load has ended.
END_S = 60.0

#: Of its output, so much is shown.
_MAX_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Happened:
    """One run of the command."""

    #: Seconds from the start of the experiment.
    at_s: float
    #: None: it did not end, and was killed.
    code: int | None
    output: str


class Trouble:
    """Runs a command every so many seconds, for the first time after half of that."""

    def __init__(
        self,
        command: str,
        every_s: float,
        variables: Callable[[], Mapping[str, str]],
        told: Callable[[Happened], None],
    ) -> None:
        """``variables``: what its environment has besides ours, asked for at each run."""
        self._command = command
        self._every_s = every_s
        self._variables = variables
        self._told = told
        self.happened: list[Happened] = []
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Begin no more."""
        self._ended.set()

    async def play(self) -> None:
        """Until `end`, and until what runs then has come to its own end."""
        begun = time.monotonic()
        due = begun + self._every_s / 2
        while not await self._ended_by(due):
            at_s = time.monotonic() - begun
            code, output = await self._run()
            happened = Happened(at_s, code, output)
            self.happened.append(happened)
            self._told(happened)
            while due <= time.monotonic():  # one that takes longer than its time takes two
                due += self._every_s

    async def _ended_by(self, due: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                await self._ended.wait()
        return self._ended.is_set()

    async def _run(self) -> tuple[int | None, str]:
        # To a file: who is left in the background by the command would keep a pipe open.
        with tempfile.TemporaryFile() as output:
            process = await asyncio.create_subprocess_shell(
                self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._variables()},
                start_new_session=True,
            )
            running = asyncio.create_task(process.wait())
            ended = asyncio.create_task(self._ended.wait())
            try:
                await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait([running], timeout=END_S)
            finally:
                ended.cancel()
                code = process.returncode
                if code is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
                running.cancel()
            output.seek(0)
            return code, output.read(_MAX_BYTES).decode(errors="replace")
