"""A poller from its first page to its last record: what a record costs, and its memory."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil

from tests.bench.dialgood import AGENTS
from tests.bench.errors import BenchError
from tests.bench.load import thinned
from tests.bench.peers import Server, Stored, dialgood, poller

#: The most records on a page, and the most requests a second, that the settings take.
PAGE, ALLOWED_PER_S = 1000, 20.0

_LOOK_S = 0.2

#: Nothing is asked for: it is over, or stuck.
_STILL_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """What came of it."""

    records: int
    stored: Stored
    requests: int
    #: From the first page until all of it is durable.
    elapsed_s: float
    #: Of the poller's process over this time, all threads.
    cpu_s: float
    #: Over this time, at even times.
    rss_bytes: Sequence[int]

    @property
    def per_cpu_s(self) -> float:
        return self.records / self.cpu_s

    @property
    def per_s(self) -> float:
        return self.records / self.elapsed_s

    @property
    def growth(self) -> float:
        """By how much of itself RSS has grown since a third."""
        return self.rss_bytes[-1] / self.rss_bytes[len(self.rss_bytes) // 3] - 1


def poll_records(home: Path, records: int) -> Polled:
    """Raises BenchError if it does not do all of it."""
    records -= records % AGENTS
    with (
        dialgood(_folder(home, "dialgood"), records) as url,
        poller(_folder(home, "poller"), url, page=PAGE, requests_per_s=ALLOWED_PER_S) as (
            server,
            rows,
        ),
    ):
        watch = _Watch(server, url)
        while not watch.asked["asked"]:
            watch.look()
        began, cpu_s = time.monotonic(), server.cpu_s()
        while watch.asked["served"] < records:
            watch.look()
        while rows() < records:
            watch.look()
        ended, cpu_s = time.monotonic(), server.cpu_s() - cpu_s
        assert server.stored is not None
        return Polled(
            records=records,
            stored=server.stored(),
            requests=watch.asked["asked"],
            elapsed_s=ended - began,
            cpu_s=cpu_s,
            rss_bytes=thinned([size for at, size in watch.sizes if began <= at <= ended]),
        )


class _Watch:
    def __init__(self, server: Server, url: str) -> None:
        self._server, self._url = server, url
        self.asked = {"asked": 0, "served": 0}
        self._changed = time.monotonic()
        self.sizes: list[tuple[float, int]] = []

    def look(self) -> None:
        time.sleep(_LOOK_S)
        with urlopen(f"{self._url}/bench/asked") as answer:
            asked = json.load(answer)
        now = time.monotonic()
        if asked != self.asked:
            self.asked, self._changed = asked, now
        if now - self._changed > _STILL_S:
            raise BenchError(f"nothing is asked for after {asked['served']} records")
        try:
            self.sizes.append((now, self._server.rss_bytes()))
        except psutil.NoSuchProcess:
            raise BenchError("the poller has ended") from None


def _folder(home: Path, name: str) -> Path:
    folder = home / name
    folder.mkdir(exist_ok=True)
    return folder
