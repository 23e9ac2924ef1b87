"""From rounds to figures, for people and for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.bench.disk import Disk
from tests.bench.load import STEADY_CONNECTIONS, Round

#: Memory may move by so much within a round and still be called flat.
_FLAT = 0.03

#: At saturation the yardstick uses its core up, unless somebody else does.
_ALONE = 0.9

_MIB = 1024 * 1024


@dataclass(slots=True)
class Report:
    """A whole run. The first peer is the yardstick."""

    disk: Disk
    peers: Sequence[str]
    warm_up: dict[str, Round] = field(default_factory=dict)
    #: (peer, connections) → its rounds; round n of each peer stood beside round n of the others.
    saturated: dict[tuple[str, int], list[Round]] = field(default_factory=dict)
    steady: dict[str, Round] = field(default_factory=dict)
    #: Peer → the records that it has in the end.
    stored: dict[str, int] = field(default_factory=dict)

    def faults(self) -> Iterator[str]:
        """What makes the run worthless, a line each."""
        for peer in self.peers:
            rounds = self._rounds_of(peer)
            refused, broken = sum(r.refused for r in rounds), sum(r.broken for r in rounds)
            if refused or broken:
                yield f"{peer}: {refused} answers were no 2xx, {broken} requests got none"
        for peer, stored in self.stored.items():
            if stored != self.answered(peer):
                yield f"{peer}: {self.answered(peer)} answered with 2xx, but {stored} stored"

    def answered(self, peer: str) -> int:
        return sum(r.answered for r in self._rounds_of(peer))

    def most_per_s(self, peer: str) -> float:
        """What it answers at saturation, with the number of connections that suits it best."""
        return max(
            median(r.per_s for r in rounds)
            for (name, _), rounds in self.saturated.items()
            if name == peer
        )

    def ratios(self, peer: str, connections: int) -> list[float]:
        """Requests per CPU-second beside the yardstick's, round by round."""
        pairs = zip(
            self.saturated[peer, connections],
            self.saturated[self.peers[0], connections],
            strict=True,
        )
        return [ours.per_cpu_s / theirs.per_cpu_s for ours, theirs in pairs]

    def for_programs(self) -> dict[str, Any]:
        return {
            "disk": asdict(self.disk),
            "saturated": [
                {
                    "peer": peer,
                    "connections": connections,
                    "per_cpu_s": median(r.per_cpu_s for r in rounds),
                    "per_s": median(r.per_s for r in rounds),
                    "ratio": median(self.ratios(peer, connections)),
                    "rounds": [asdict(r) for r in rounds],
                }
                for (peer, connections), rounds in self.saturated.items()
            ],
            "steady": [{"peer": peer, **asdict(r)} for peer, r in self.steady.items()],
            "stored": [
                {"peer": peer, "answered": self.answered(peer), "stored": stored}
                for peer, stored in self.stored.items()
            ],
            "faults": [*self.faults()],
        }

    def show(self, console: Console) -> None:
        disk = self.disk
        console.print(
            f"fsync of 4 KiB on {disk.file_system}: median {disk.fsync_median_ms:.2f} ms, "
            f"p99 {disk.fsync_p99_ms:.2f} ms"
        )
        console.print(self._saturated_table())
        console.print(self._steady_table())
        for peer, stored in self.stored.items():
            console.print(f"{peer}: {self.answered(peer)} answered with 2xx, {stored} stored")
        busy = min(
            r.cores for (name, _), rs in self.saturated.items() for r in rs if name == self.peers[0]
        )
        if busy < _ALONE:
            console.print(
                f"disturbed: the yardstick got {busy:.0%} of its core in one round; run it again",
                style="yellow",
            )
        for fault in self.faults():
            console.print(f"worthless: {fault}", style="bold red")

    def _rounds_of(self, peer: str) -> list[Round]:
        """All of them, whatever they were for."""
        alone = (rounds[peer] for rounds in (self.warm_up, self.steady) if peer in rounds)
        saturated = (r for (name, _), r in self.saturated.items() if name == peer)
        return [*alone, *chain.from_iterable(saturated)]

    def _saturated_table(self) -> Table:
        table = _table(
            "At saturation, medians of the rounds",
            *("conn.", "req/CPU-s", "of no-op", "req/s", "cores", "p50 ms", "p99 ms", "RSS MiB"),
        )
        for (peer, connections), rounds in sorted(self.saturated.items(), key=self._place):
            ratios = self.ratios(peer, connections)
            table.add_row(
                peer,
                str(connections),
                f"{median(r.per_cpu_s for r in rounds):,.0f}",
                f"{median(ratios):.2f} ±{(max(ratios) - min(ratios)) / 2:.2f}",
                f"{median(r.per_s for r in rounds):,.0f}",
                f"{median(r.cores for r in rounds):.2f}",
                f"{median(r.p50_ms for r in rounds):.1f}",
                f"{median(r.p99_ms for r in rounds):.1f}",
                _memory(rounds[-1]),
                end_section=peer == self.peers[-1],
            )
        return table

    def _place(self, item: tuple[tuple[str, int], list[Round]]) -> tuple[int, int]:
        (peer, connections), _ = item
        return connections, self.peers.index(peer)

    def _steady_table(self) -> Table:
        table = _table(
            f"At half of that, {STEADY_CONNECTIONS} connections; latency from when it was due",
            *("req/s", "req/CPU-s", "p50 ms", "p99 ms", "posted late, p99 ms"),
        )
        for peer, r in self.steady.items():
            table.add_row(
                peer,
                f"{r.per_s:,.0f}",
                f"{r.per_cpu_s:,.0f}",
                f"{r.p50_ms:.2f}",
                f"{r.p99_ms:.2f}",
                f"{r.late_p99_ms:.2f}",
            )
        return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("peer", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _memory(r: Round) -> str:
    share = r.rss_end_bytes / r.rss_third_bytes - 1
    return f"{r.rss_end_bytes / _MIB:.0f} " + ("flat" if abs(share) < _FLAT else f"{share:+.0%}")
