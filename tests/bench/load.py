"""One round: as much as a server takes, or a fixed rate; and what it cost the server."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.bench.bodies import Slice
from tests.bench.broker import LOAD_CORE
from tests.bench.errors import BenchError
from tests.bench.peers import SERVER_CORE, Server

STEADY_CONNECTIONS = 64

_LUA = Path(__file__).with_name("post.lua")
_SAMPLE_S = 0.1
#: So many of the samples are kept, each the largest of its stretch.
_KEPT = 60
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of it. ``answered`` is 2xx only."""

    answered: int
    refused: int
    broken: int
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    #: At a fixed rate: how late the generator itself posted, 99th percentile.
    late_p99_ms: float = 0.0
    cpu_s: float
    #: The share of the server's core that others have used.
    others: float
    #: Over the round, at even times.
    rss_bytes: Sequence[int]

    @property
    def per_cpu_s(self) -> float:
        return self.answered / self.cpu_s

    @property
    def per_s(self) -> float:
        return self.answered / self.elapsed_s

    @property
    def cores(self) -> float:
        """How much of its core it has used, or got."""
        return self.cpu_s / self.elapsed_s

    @property
    def growth(self) -> float:
        """By how much of itself RSS has grown since a third of the round."""
        return self.rss_bytes[-1] / self.rss_bytes[len(self.rss_bytes) // 3] - 1


class Shot:
    """A load generator that is running against a server."""

    def __init__(self, server: Server, command: Sequence[str], bodies: Slice, *more: str) -> None:
        self._server = server
        self._began, self._core_s, self._cpu_s = time.monotonic(), _busy_s(), server.cpu_s()
        self._process = subprocess.Popen(
            [
                *("taskset", "-c", LOAD_CORE, *command),
                *(str(bodies.path), str(bodies.offset), str(bodies.count), *more),
            ],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._thread = ThreadPoolExecutor(1)
        self._sizes = self._thread.submit(self._sample)

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it before its time; the round counts all the same."""
        self._process.send_signal(signal.SIGTERM)

    def round(self) -> Round:
        """Wait for its end."""
        output, _ = self._process.communicate()
        sizes = self._sizes.result()
        self._thread.shutdown()
        cpu_s = self._server.cpu_s() - self._cpu_s
        others_s = _busy_s() - self._core_s - cpu_s
        others = max(0.0, others_s / (time.monotonic() - self._began))
        _, found, result = output.partition("RESULT")
        if not found or self._process.returncode:
            raise BenchError(f"the load generator gave no result: {output[-1000:]}")
        figures: dict[str, Any] = json.loads(result)
        return Round(**figures, cpu_s=cpu_s, others=others, rss_bytes=thinned(sizes))

    def _sample(self) -> list[int]:
        sizes = [self._server.rss_bytes()]
        while not self.over:
            time.sleep(_SAMPLE_S)
            sizes.append(self._server.rss_bytes())
        return sizes


def thinned(sizes: Sequence[int]) -> Sequence[int]:
    """Few enough to be shown, each the largest of its stretch."""
    stretch = -(-len(sizes) // _KEPT)
    return [max(sizes[at : at + stretch]) for at in range(0, len(sizes), stretch)]


def _busy_s() -> float:
    """What the server's core has worked until now, for whomever."""
    times = psutil.cpu_times(percpu=True)[int(SERVER_CORE)]
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def saturate(server: Server, bodies: Slice, connections: int, seconds: float) -> Shot:
    """Every connection posts its next request as soon as it has its answer."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds + 1:.0f}s", "--timeout", "8s"]
    return Shot(server, [*command, "-s", str(_LUA), server.url, "--"], bodies, str(seconds))


def listen(server: Server, dialpad_url: str, bodies: Slice, seconds: float) -> Shot:
    """The websocket's other end writes as fast as it is read."""
    command = [sys.executable, "-m", "tests.bench.frames", dialpad_url]
    return Shot(server, [*command, server.metrics_url], bodies, str(seconds))


def steady(server: Server, bodies: Slice, rate: float) -> Shot:
    """Requests come when they come: `rate` a second."""
    command = [sys.executable, "-m", "tests.bench.steady"]
    return Shot(server, [*command, server.url, str(STEADY_CONNECTIONS), str(rate)], bodies)
