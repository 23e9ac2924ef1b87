"""A backfill from its first request to its end: at which rate it asked, and its memory."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import psutil

from tests.bench.broker import Broker
from tests.bench.dialpad import STEP_MS
from tests.bench.errors import BenchError
from tests.bench.load import thinned
from tests.bench.peers import Stored, backfill

#: The most that the settings take.
ALLOWED_PER_S = 20.0

_LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Readback:
    """What came of it."""

    calls: int
    stored: Stored
    requests: int
    allowed_per_s: float
    #: From the first request to the last.
    elapsed_s: float
    #: Of the whole process, its start included.
    cpu_s: float
    #: Over this time, at even times.
    rss_bytes: Sequence[int]

    @property
    def per_s(self) -> float:
        return (self.requests - 1) / self.elapsed_s

    @property
    def of_allowed(self) -> float:
        return self.per_s / self.allowed_per_s

    @property
    def tenth_bytes(self) -> int:
        return self.rss_bytes[len(self.rss_bytes) // 10]

    @property
    def growth(self) -> float:
        """By how much of itself RSS has grown since a third."""
        return self.rss_bytes[-1] / self.rss_bytes[len(self.rss_bytes) // 3] - 1


def read_back(home: Path, broker: Broker, dialpad_url: str, calls: int) -> Readback:
    """Raises BenchError if it does not do all of it."""
    to = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    from_ = to - timedelta(milliseconds=STEP_MS * calls)
    began = time.monotonic()
    sizes: list[tuple[float, int]] = []
    cpu_s = 0.0
    with backfill(
        home,
        broker,
        dialpad_url,
        from_=from_.isoformat(),
        to=to.isoformat(),
        requests_per_s=ALLOWED_PER_S,
    ) as server:
        while server.process.poll() is None:
            try:
                sizes.append((time.monotonic(), server.rss_bytes()))
                cpu_s = server.cpu_s()
            except psutil.NoSuchProcess:  # it has ended this moment
                break
            time.sleep(_LOOK_S)
        assert server.stored is not None
        stored = server.stored()
    with urlopen(f"{dialpad_url}/bench/asked") as answer:
        asked = json.load(answer)
    if len(asked) < 2:
        raise BenchError(f"nothing was asked for in {time.monotonic() - began:.0f} s")
    return Readback(
        calls=calls,
        stored=stored,
        requests=len(asked),
        allowed_per_s=ALLOWED_PER_S,
        elapsed_s=asked[-1] - asked[0],
        cpu_s=cpu_s,
        rss_bytes=thinned([size for at, size in sizes if asked[0] <= at <= asked[-1]]),
    )
