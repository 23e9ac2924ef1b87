"""Posts at a fixed rate, whatever the server does: ``python -m tests.bench.steady``.

Latency counts from the moment at which a request was due, not from when there was a connection
for it, so that a server that stalls cannot hide the requests that would have come meanwhile.
SIGTERM: post nothing more, wait for the answers that are out, tell what came of it.
"""

import asyncio
import gc
import json
import signal
import sys
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from urllib.parse import SplitResult, urlsplit

import uvloop

from tests.bench.bodies import Slice
from tests.bench.disk import at

#: Later than this it ends, whatever it has not come to post; and how long an answer may take then.
_GIVE_UP_S, _ANSWER_S = 10.0, 10.0


class Load:
    """All requests of a round."""

    def __init__(self, requests: Iterator[bytes], count: int, rate: float) -> None:
        self.requests = requests
        self.count = count
        self.rate = rate
        self.idle: deque[Connection] = deque()
        self.latencies_s = array("d")
        self.late_s = array("d")
        self.refused = 0
        self.broken = 0
        self.began = 0.0
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()

    async def run(self) -> float:
        """Post everything; return the seconds that it took."""
        self.began = perf_counter()
        self._tick()
        for limit_s in (self.count / self.rate + _GIVE_UP_S, _ANSWER_S):
            await asyncio.wait([self._done], timeout=limit_s)
            self.stop()
        if not self._done.done():
            self.broken += self.count - len(self.latencies_s) - self.refused
        return perf_counter() - self.began

    def stop(self) -> None:
        """Post nothing more."""
        self.count = len(self.late_s)

    def _tick(self) -> None:
        # Timers of the loop are a millisecond coarse, so this turns and turns; it has its own core.
        now = perf_counter()
        nth = len(self.late_s)
        while nth < self.count and self.idle:
            due = self.began + nth / self.rate
            if due > now:
                break
            self.idle.popleft().send(next(self.requests), due)
            self.late_s.append(now - due)
            nth += 1
        if len(self.latencies_s) + self.refused < self.count and not self.broken:
            self._loop.call_soon(self._tick)
        elif not self._done.done():
            self._done.set_result(None)


class Connection(asyncio.Protocol):
    """One request at a time on a connection that stays."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._due = 0.0
        self._answer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._load.idle.append(self)

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._answer.endswith(b"\r\n\r\n"):
            return
        if self._answer.startswith(b"HTTP/1.1 204"):
            self._load.latencies_s.append(perf_counter() - self._due)
        else:
            self._load.refused += 1
        self._answer = b""
        self._load.idle.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._load.broken += 1


def requests(to: SplitResult, bodies: Slice) -> Iterator[bytes]:
    head = f"POST {to.path} HTTP/1.1\r\nHost: {to.netloc}\r\nContent-Type: application/jwt\r\n"
    for body in bodies.lines():
        yield b"%sContent-Length: %d\r\n\r\n%s" % (head.encode(), len(body), body)


async def main(url: str, connections: int, rate: float, bodies: Slice) -> None:
    to = urlsplit(url)
    loop = asyncio.get_running_loop()
    load = Load(requests(to, bodies), bodies.count, rate)
    loop.add_signal_handler(signal.SIGTERM, load.stop)
    for _ in range(connections):
        await loop.create_connection(lambda: Connection(load), to.hostname or "", to.port or 80)
    gc.freeze()
    gc.disable()
    elapsed_s = await load.run()
    if not load.latencies_s:
        sys.exit("nothing was answered")
    result = {
        "answered": len(load.latencies_s),
        "refused": load.refused,
        "broken": load.broken,
        "elapsed_s": elapsed_s,
        "p50_ms": 1000 * at(0.5, load.latencies_s),
        "p99_ms": 1000 * at(0.99, load.latencies_s),
        "late_p99_ms": 1000 * at(0.99, load.late_s),
    }
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    url, connections, rate, path, offset, count = sys.argv[1:]
    bodies = Slice(Path(path), int(offset), int(count))
    uvloop.run(main(url, int(connections), float(rate), bodies))
