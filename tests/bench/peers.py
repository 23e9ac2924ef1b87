"""Who is compared: the yardstick first, then whoever does the job.

A peer is a line of `PEERS` and a context manager that starts it, and whatever it needs besides.
It answers 204 at /webhooks/acme.
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.bodies import SECRET

SERVER_CORE, LOAD_CORE = "0", "1"
PATH = "/webhooks/acme"

_START_S = 15
_STOP_S = 30


class BenchError(Exception):
    """The run cannot go on, or says nothing."""


@dataclass(frozen=True, slots=True)
class Server:
    """A peer that is running."""

    process: psutil.Popen
    port: int
    #: End it, and count what it has stored; None stores nothing.
    stored: Callable[[], int] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    def cpu_s(self) -> float:
        """Seconds of CPU until now, of all its threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_STOP_S)


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    #: In a folder of its own.
    start: Callable[[Path], AbstractContextManager[Server]]


@contextmanager
def noop(home: Path) -> Iterator[Server]:
    port = free_port()
    with running(
        [sys.executable, str(Path(__file__).with_name("noop.py")), str(port)], home, port
    ) as process:
        yield Server(process, port)


@contextmanager
def journal(home: Path) -> Iterator[Server]:
    port = free_port()
    (home / "dialstream.toml").write_text(
        f'receiver.port = {port}\nadmin.port = {free_port()}\nlogging.format = "json"\n'
        'eventlog = { kind = "journal", path = "data" }\n'
        f'connections.acme = {{ provider = "dialpad", secrets = ["{SECRET}"] }}\n'
    )
    script = Path(sys.executable).with_name("dialstream")
    with running([str(script), "receive"], home, port) as process:

        def stored() -> int:
            server.stop()
            return rows_in(home / "data/journal/calls")

        server = Server(process, port, stored)
        yield server


PEERS = (
    Peer("no-op", noop),
    Peer("journal", journal),
)


@contextmanager
def running(command: Sequence[str], home: Path, port: int) -> Iterator[psutil.Popen]:
    """A server's process on its core, from when it listens."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DIALSTREAM_")}
    with (home / "stderr").open("wb") as stderr:
        process = psutil.Popen(
            ["taskset", "-c", SERVER_CORE, *command],
            cwd=home,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    try:
        _wait_for(process, port, home / "stderr")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait_for(process: psutil.Popen, port: int, stderr: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise BenchError(f"a server does not start: {stderr.read_text()[-1000:]}")


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def rows_in(topic: Path) -> int:
    """Records of a journal's topic, read without our own code."""
    total = 0
    for path in topic.glob("[0-9]*.sqlite"):
        with closing(sqlite3.connect(path)) as db:
            total += db.execute("select count(*) from records").fetchone()[0]
    return total
