"""One round: as much as a server takes, or a fixed rate; and what it cost the server."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.bodies import Slice
from tests.bench.peers import LOAD_CORE, BenchError, Server

STEADY_CONNECTIONS = 64

_LUA = Path(__file__).with_name("post.lua")
_SAMPLE_S = 0.1
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
    #: After a third of the round, and at its end.
    rss_third_bytes: int
    rss_end_bytes: int

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


def saturate(server: Server, bodies: Slice, connections: int, seconds: float) -> Round:
    """Every connection posts its next request as soon as it has its answer."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds + 1:.0f}s", "--timeout", "8s"]
    command += ["-s", str(_LUA), server.url, "--"]
    return _measure(server, [*command, *_words(bodies), str(seconds)])


def steady(server: Server, bodies: Slice, rate: float) -> Round:
    """Requests come when they come: `rate` a second."""
    command = [sys.executable, "-m", "tests.bench.steady"]
    command += [server.url, str(STEADY_CONNECTIONS), str(rate)]
    return _measure(server, [*command, *_words(bodies)])


def _words(bodies: Slice) -> list[str]:
    return [str(bodies.path), str(bodies.offset), str(bodies.count)]


def _measure(server: Server, command: Sequence[str]) -> Round:
    before_s = server.cpu_s()
    shot = subprocess.Popen(
        ["taskset", "-c", LOAD_CORE, *command],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with ThreadPoolExecutor(1) as threads:
        sampling = threads.submit(_sample, server, shot)
        output, _ = shot.communicate()
        sizes = sampling.result()
    cpu_s = server.cpu_s() - before_s
    _, found, result = output.partition("RESULT")
    if not found or shot.returncode:
        raise BenchError(f"the load generator gave no result: {output[-1000:]}")
    figures: dict[str, Any] = json.loads(result)
    return Round(
        **figures,
        cpu_s=cpu_s,
        rss_third_bytes=sizes[len(sizes) // 3],
        rss_end_bytes=sizes[-1],
    )


def _sample(server: Server, shot: subprocess.Popen[str]) -> list[int]:
    sizes = [server.rss_bytes()]
    while shot.poll() is None:
        time.sleep(_SAMPLE_S)
        sizes.append(server.rss_bytes())
    return sizes
