"""From rounds to figures, for people and for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.bench.disk import Disk
from tests.bench.load import STEADY_CONNECTIONS, Round
from tests.bench.peers import BACKFILL, LISTENER, OURS, PLAIN, YARDSTICK, Stored
from tests.bench.readback import Readback
from tests.bench.reconcile import Reconciled
from tests.bench.records import Polled
from tests.bench.subscribe import Subscribed

#: Memory may move by so much within a round and still be called flat.
_FLAT = 0.03

#: Earlier nothing is known: `repeat_max` deliveries are remembered, and the memory for them grows.
_FLAT_S = 590.0

#: A backfill of fewer calls says nothing about memory: its caches fill.
_MANY_CALLS = 50_000

#: The same of records that are polled.
_MANY_RECORDS = 200_000

#: The same of calls that are reconciled.
_MANY_SETTLED = 50_000

#: More of the server's core than this is not the kernel's share, nor our own counting.
_OTHERS = 0.1

_MIB = 1024 * 1024
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Spooling:
    """Two rounds, one after the other: Kafka there, Kafka away."""

    direct: Round
    spooled: Round

    @property
    def rate(self) -> float:
        return self.spooled.per_s / self.direct.per_s

    @property
    def per_cpu(self) -> float:
        return self.spooled.per_cpu_s / self.direct.per_cpu_s


@dataclass(frozen=True, slots=True)
class Listening:
    """Two rounds, one after the other: the same events by webhook and by websocket."""

    posted: Round
    heard: Round

    @property
    def per_cpu(self) -> float:
        return self.heard.per_cpu_s / self.posted.per_cpu_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Kafka is back, and the load goes on."""

    live: Round
    #: Records that reached the topic while there was something in the spool; all of them through
    #: the spool, the live ones at its end.
    drained: int
    elapsed_s: float
    #: From when Kafka was back until the first of them.
    began_after_s: float
    #: Of them, how many had waited since before, and whether none of those is left.
    backlog: int
    emptied: bool

    @property
    def per_s(self) -> float:
        return self.drained / self.elapsed_s

    @property
    def of_live(self) -> float:
        return self.per_s / self.live.per_s


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure beside what it ought to be."""

    figure: str
    aim: str
    found: str
    #: None: this run does not tell.
    met: bool | None


@dataclass(slots=True)
class Report:
    """A whole run."""

    disk: Disk
    warm_up: dict[str, Round] = field(default_factory=dict)
    #: (peer, connections) → its rounds; round n of each peer stood beside round n of the others.
    saturated: dict[tuple[str, int], list[Round]] = field(default_factory=dict)
    steady: dict[str, Round] = field(default_factory=dict)
    listening: list[Listening] = field(default_factory=list)
    readback: Readback | None = None
    polled: Polled | None = None
    reconciled: Reconciled | None = None
    subscribed: Subscribed | None = None
    spooling: list[Spooling] = field(default_factory=list)
    drain: Drain | None = None
    soak: Round | None = None
    #: Peer → every round it was in, whatever for.
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    #: Peer → what it has in the end.
    stored: dict[str, Stored] = field(default_factory=dict)

    def faults(self) -> Iterator[str]:
        """What makes the run worthless, a line each."""
        for peer, rounds in self.rounds.items():
            refused, broken = sum(r.refused for r in rounds), sum(r.broken for r in rounds)
            if refused or broken:
                yield f"{peer}: {refused} answers were no 2xx, {broken} requests got none"
        for peer, stored in self.stored.items():
            if stored.distinct != self.answered(peer):
                yield f"{peer}: {self.answered(peer)} {_taken(peer)}, {stored.distinct} stored"
        back = self.readback
        if back and back.stored.distinct != back.calls:
            yield f"{BACKFILL}: {back.calls} calls were there, {back.stored.distinct} are stored"
        polled = self.polled
        if polled and polled.stored.records != polled.records:
            yield f"records: {polled.records} were there, {polled.stored.records} are stored"

    def answered(self, peer: str) -> int:
        return sum(r.answered for r in self.rounds[peer])

    def most_per_s(self, peer: str) -> float:
        """What it answers at saturation, with the number of connections that suits it best."""
        of_each = [
            median(r.per_s for r in rounds)
            for (name, _), rounds in self.saturated.items()
            if name == peer
        ]
        return max(of_each, default=self.warm_up[peer].per_s)

    def ratios(self, peer: str, connections: int, beside: str = YARDSTICK) -> list[float]:
        """Requests per CPU-second beside another peer's, round by round."""
        pairs = zip(
            self.saturated[peer, connections], self.saturated[beside, connections], strict=True
        )
        return [ours.per_cpu_s / theirs.per_cpu_s for ours, theirs in pairs]

    def findings(self) -> Iterator[Finding]:
        """What is aimed at, and what was found, for ours on Kafka."""
        for beside, goal, aim in (
            (YARDSTICK, 0.65, "≥ 0.65, goal 1.0"),
            (PLAIN, 4.0, "≥ 4"),
        ):
            of_each = {
                connections: self.ratios(OURS, connections, beside)
                for peer, connections in self.saturated
                if peer == OURS
            }
            yield Finding(
                f"requests per CPU-second, of the {beside}'s",
                aim,
                ", ".join(f"{_spread(ratios)} at {c}" for c, ratios in of_each.items()),
                all(median(ratios) >= goal for ratios in of_each.values()) if of_each else None,
            )
        half = self.steady.get(OURS)
        yield Finding(
            "p99 at half of its own maximum",
            "≤ 20 ms",
            f"{_latency(half)} at {half.per_s:,.0f}/s" if half else "",
            _within(half, 20) if half else None,
        )
        most = max(max(r.rss_bytes) for r in self.rounds[OURS]) / _MIB
        soaked = f", {self.soak.growth:+.1%} since a third" if self.soak else ""
        yield Finding(
            "RSS under load, flat over ten minutes",
            "≤ 100 MiB",
            f"{most:.0f} MiB at most{soaked}",
            most <= 100 and self._flat(),
        )
        heard = [pair.per_cpu for pair in self.listening]
        yield Finding(
            f"a listener's events per CPU-second, of the receiver's at {STEADY_CONNECTIONS}",
            "≥ 0.7",
            _spread(heard) if heard else "",
            median(heard) >= 0.7 if heard else None,
        )
        back = self.readback
        yield Finding(
            "a backfill's requests, of the allowed rate",
            "≥ 0.9, ≤ 1",
            f"{back.of_allowed:.2f}: {back.per_s:.1f}/s of {back.allowed_per_s:.0f}"
            if back
            else "",
            0.9 <= back.of_allowed <= 1.005 if back else None,
        )
        yield Finding(
            "RSS of a backfill, flat since a third of it",
            f"≤ +{_FLAT:.0%}",
            f"{back.growth:+.1%}; {back.rss_bytes[-1] / back.tenth_bytes - 1:+.1%} since a tenth"
            if back
            else "",
            back.growth <= _FLAT if back and back.calls >= _MANY_CALLS else None,
        )
        polled = self.polled
        yield Finding(
            "a poller's records per CPU-second, from page to journal",
            "≥ 5,000",
            f"{polled.per_cpu_s:,.0f}" if polled else "",
            polled.per_cpu_s >= 5000 if polled else None,
        )
        yield Finding(
            "RSS of a poller, flat since a third of it",
            f"≤ +{_FLAT:.0%}",
            f"{polled.growth:+.1%}" if polled else "",
            polled.growth <= _FLAT if polled and polled.records >= _MANY_RECORDS else None,
        )
        settled = self.reconciled
        yield Finding(
            "a call reconciled, its push and its record, µs of CPU",
            "≤ 60",
            f"{settled.week.call_us:.0f}" if settled else "",
            settled.week.call_us <= 60 if settled else None,
        )
        yield Finding(
            "a call among four times as many between the same two numbers, of its cost",
            "≤ +50%",
            f"{settled.crowding:+.0%}" if settled else "",
            settled.crowding <= 0.5 if settled else None,
        )
        yield Finding(
            "RSS of reconciling, window of an hour, flat since a third of ten days",
            f"≤ +{_FLAT:.0%}",
            f"{settled.long.growth:+.1%}" if settled else "",
            settled.long.growth <= _FLAT
            if settled and settled.long.calls >= _MANY_SETTLED
            else None,
        )
        ratios = self.subscribed.ratios() if self.subscribed else []
        yield Finding(
            "a subscriber's events per CPU-second, of a bare loop's",
            "≥ 0.5",
            _spread(ratios) if ratios else "",
            median(ratios) >= 0.5 if ratios else None,
        )
        rates = [pair.rate for pair in self.spooling]
        per_cpu = [pair.per_cpu for pair in self.spooling]
        yield Finding(
            "Kafka away (spool), of the direct rate",
            "≥ 0.8",
            f"{_spread(rates)}; per CPU-second {_spread(per_cpu)}" if rates else "",
            min(median(rates), median(per_cpu)) >= 0.8 if rates else None,
        )
        drain = self.drain
        yield Finding(
            "drain while live load runs at half, of the live rate",
            "≥ 2",
            f"{drain.of_live:.1f}" if drain else "",
            drain.of_live >= 2 if drain else None,
        )
        yield Finding(
            "live p99 meanwhile",
            "≤ 50 ms",
            _latency(drain.live) if drain else "",
            _within(drain.live, 50) if drain else None,
        )

    def _flat(self) -> bool | None:
        """None: nobody knows, ten minutes have not been watched."""
        if self.soak is None or self.soak.elapsed_s < _FLAT_S:
            return None
        return self.soak.growth < _FLAT

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
                    "ratio_to_plain": median(self.ratios(peer, connections, PLAIN)),
                    "rounds": [asdict(r) for r in rounds],
                }
                for (peer, connections), rounds in self.saturated.items()
            ],
            "steady": [{"peer": peer, **asdict(r)} for peer, r in self.steady.items()],
            "listening": [{"per_cpu_s": pair.per_cpu, **asdict(pair)} for pair in self.listening],
            "readback": self.readback
            and {
                "per_s": self.readback.per_s,
                "of_allowed": self.readback.of_allowed,
                **asdict(self.readback),
            },
            "polled": self.polled
            and {
                "per_cpu_s": self.polled.per_cpu_s,
                "per_s": self.polled.per_s,
                **asdict(self.polled),
            },
            "reconciled": self.reconciled and asdict(self.reconciled),
            "subscribed": self.subscribed and asdict(self.subscribed),
            "spooling": [
                {"rate": pair.rate, "per_cpu_s": pair.per_cpu, **asdict(pair)}
                for pair in self.spooling
            ],
            "drain": self.drain
            and {"per_s": self.drain.per_s, "of_live": self.drain.of_live, **asdict(self.drain)},
            "soak": self.soak and asdict(self.soak),
            "stored": [
                {"peer": peer, "answered": self.answered(peer), **asdict(stored)}
                for peer, stored in self.stored.items()
            ],
            "aims": [asdict(finding) for finding in self.findings()],
            "faults": [*self.faults()],
        }

    def show(self, console: Console) -> None:
        disk = self.disk
        console.print(
            f"fsync of 4 KiB on {disk.file_system}: median {disk.fsync_median_ms:.2f} ms, "
            f"p99 {disk.fsync_p99_ms:.2f} ms"
        )
        if self.saturated:
            console.print(self._saturated_table())
        if self.steady:
            console.print(self._steady_table())
        if self.listening:
            console.print(self._listen_table())
        self._show_records(console)
        if self.spooling:
            console.print(self._spool_table())
        if self.drain:
            _show_drain(console, self.drain)
        if self.soak:
            _show_soak(console, self.soak)
        for peer, stored in self.stored.items():
            repeats = stored.records - stored.distinct
            console.print(
                f"{peer}: {self.answered(peer):,} {_taken(peer)}, {stored.distinct:,} stored"
                + (f", {repeats:,} of them twice" if repeats else "")
            )
        console.print(self._aims_table())
        self._show_trouble(console)

    def _show_records(self, console: Console) -> None:
        if self.readback:
            _show_readback(console, self.readback)
        if self.polled:
            _show_polled(console, self.polled)
        if self.reconciled:
            _show_reconciled(console, self.reconciled)
        if self.subscribed:
            console.print(str(self.subscribed), highlight=False)

    def _show_trouble(self, console: Console) -> None:
        others = max(r.others for rounds in self.rounds.values() for r in rounds)
        if others > _OTHERS:
            console.print(
                f"disturbed: others took {others:.0%} of the server's core in one round",
                style="yellow",
            )
        for fault in self.faults():
            console.print(f"worthless: {fault}", style="bold red")

    def _saturated_table(self) -> Table:
        table = _table(
            "At saturation, medians of the rounds",
            *("peer", "conn.", "req/CPU-s", "of no-op", "of plain app"),
            *("req/s", "cores", "p50 ms", "p99 ms", "RSS MiB"),
        )
        peers = [peer for peer, _ in self.saturated]
        by_connections = sorted(self.saturated.items(), key=lambda item: item[0][1])
        for (peer, connections), rounds in by_connections:
            table.add_row(
                peer,
                str(connections),
                f"{median(r.per_cpu_s for r in rounds):,.0f}",
                _spread(self.ratios(peer, connections)),
                _spread(self.ratios(peer, connections, PLAIN)),
                f"{median(r.per_s for r in rounds):,.0f}",
                f"{median(r.cores for r in rounds):.2f}",
                f"{median(r.p50_ms for r in rounds):.1f}",
                f"{median(r.p99_ms for r in rounds):.1f}",
                _memory(rounds[-1]),
                end_section=peer == peers[-1],
            )
        return table

    def _steady_table(self) -> Table:
        table = _table(
            f"At half of that, {STEADY_CONNECTIONS} connections; latency from when it was due",
            *("peer", "req/s", "req/CPU-s", "p50 ms", "p99 ms", "posted late, p99 ms"),
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

    def _listen_table(self) -> Table:
        table = _table(
            f"One websocket beside the receiver with {STEADY_CONNECTIONS} connections, "
            "round by round",
            *("round", "posted/CPU-s", "heard/CPU-s", "ratio"),
            *("posted/s", "heard/s", "cores", "heard: cores", "RSS MiB"),
        )
        for number, pair in enumerate(self.listening, 1):
            table.add_row(
                str(number),
                f"{pair.posted.per_cpu_s:,.0f}",
                f"{pair.heard.per_cpu_s:,.0f}",
                f"{pair.per_cpu:.2f}",
                f"{pair.posted.per_s:,.0f}",
                f"{pair.heard.per_s:,.0f}",
                f"{pair.posted.cores:.2f}",
                f"{pair.heard.cores:.2f}",
                _memory(pair.heard),
            )
        return table

    def _spool_table(self) -> Table:
        table = _table(
            "Kafka frozen: what goes to the spool beside what went to Kafka, round by round",
            *("round", "direct req/s", "spooled", "ratio"),
            *("direct req/CPU-s", "spooled", "ratio", "p99 ms"),
        )
        for number, pair in enumerate(self.spooling, 1):
            table.add_row(
                str(number),
                f"{pair.direct.per_s:,.0f}",
                f"{pair.spooled.per_s:,.0f}",
                f"{pair.rate:.2f}",
                f"{pair.direct.per_cpu_s:,.0f}",
                f"{pair.spooled.per_cpu_s:,.0f}",
                f"{pair.per_cpu:.2f}",
                f"{pair.spooled.p99_ms:.1f}",
            )
        return table

    def _aims_table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("figure", "aim", "found", "met"):
            table.add_column(column)
        for finding in self.findings():
            met = {True: "[green]yes[/]", False: "[red]no[/]", None: "[dim]?[/]"}
            table.add_row(finding.figure, finding.aim, finding.found, met[finding.met])
        return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show_readback(console: Console, back: Readback) -> None:
    console.print(
        f"Backfill: {back.calls:,} calls, {back.requests:,} requests in {back.elapsed_s:.0f} s are "
        f"{back.per_s:.1f} a second of {back.allowed_per_s:.0f} that are allowed; "
        f"{back.cpu_s:.1f} s of CPU. RSS {_bars(back.rss_bytes)} "
        f"{back.tenth_bytes / _MIB:.1f} MiB after a tenth, {back.rss_bytes[-1] / _MIB:.1f} at the "
        f"end, {max(back.rss_bytes) / _MIB:.1f} at most; {back.stored.distinct:,} stored"
    )


def _show_polled(console: Console, polled: Polled) -> None:
    sizes = polled.rss_bytes
    start, middle = sizes[len(sizes) // 10], sizes[len(sizes) // 2]
    console.print(
        f"Records: {polled.records:,} polled in {polled.elapsed_s:.0f} s by {polled.requests:,} "
        f"requests, {polled.per_cpu_s:,.0f} for each second of CPU. RSS {_bars(sizes)} "
        f"{start / _MIB:.1f} MiB after a tenth, {middle / _MIB:.1f} in the middle, "
        f"{sizes[-1] / _MIB:.1f} at the end; {polled.stored.records:,} stored"
    )


def _show_reconciled(console: Console, settled: Reconciled) -> None:
    week, long = settled.week, settled.long
    crowds = ", ".join(f"{each.calls:,}: {each.call_us:.0f}" for each in settled.crowds)
    console.print(
        f"Reconcile: {week.calls:,} calls in a week, {week.call_us:.0f} µs of CPU a call; in an "
        f"hour between the same two numbers, {crowds} µs a call. {long.calls:,} in ten days, of "
        f"which an hour is remembered: RSS {_bars(long.rss_bytes)} "
        f"{long.rss_bytes[-1] / _MIB:.1f} MiB at the end"
    )


def _taken(peer: str) -> str:
    return "frames sent" if peer == LISTENER else "answered with 2xx"


def _show_drain(console: Console, drain: Drain) -> None:
    left = "until it was empty" if drain.emptied else "and it was not empty then"
    console.print(
        f"Drain: {drain.backlog:,} waited. {drain.began_after_s:.1f} s after Kafka was back they "
        f"began to go, {drain.per_s:,.0f} a second for {drain.elapsed_s:.1f} s, {left}; beside "
        f"{drain.live.per_s:,.0f} live ones a second, p99 {drain.live.p99_ms:.1f} ms"
    )


def _show_soak(console: Console, soak: Round) -> None:
    third, end = soak.rss_bytes[len(soak.rss_bytes) // 3], soak.rss_bytes[-1]
    console.print(
        f"Soak: {soak.elapsed_s:.0f} s at {soak.per_s:,.0f} a second. RSS {_bars(soak.rss_bytes)} "
        f"{third / _MIB:.1f} MiB after a third, {end / _MIB:.1f} at the end, "
        f"{max(soak.rss_bytes) / _MIB:.1f} at most"
    )


def _bars(values: Sequence[int]) -> str:
    """A bar each, from the smallest to the largest."""
    low, high = min(values), max(values)
    step = (high - low) / (len(_BARS) - 1) or 1
    return "".join(_BARS[round((value - low) / step)] for value in values)


def _spread(ratios: Sequence[float]) -> str:
    """The median, and half of the range."""
    return f"{median(ratios):.2f} ±{(max(ratios) - min(ratios)) / 2:.2f}"


def _latency(r: Round) -> str:
    own = f", but posted {r.late_p99_ms:.0f} ms late" if _late(r) else ""
    return f"{r.p99_ms:.1f} ms{own}"


def _within(r: Round, most_ms: float) -> bool | None:
    """Whether its 99th percentile is; None if that was the generator's own."""
    return True if r.p99_ms <= most_ms else None if _late(r) else False


def _late(r: Round) -> bool:
    return r.late_p99_ms > r.p99_ms / 2


def _memory(r: Round) -> str:
    flat = abs(r.growth) < _FLAT
    return f"{r.rss_bytes[-1] / _MIB:.0f} " + ("flat" if flat else f"{r.growth:+.0%}")
