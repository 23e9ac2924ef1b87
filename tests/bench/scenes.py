"""What is played, one after the other. Each scene signs its own bodies: no peer gets one twice."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from rich.progress import Progress

from tests.bench import subscribe
from tests.bench.bodies import Slice, make_slices
from tests.bench.broker import Broker
from tests.bench.errors import BenchError
from tests.bench.load import STEADY_CONNECTIONS, Round, Shot, listen, saturate, steady
from tests.bench.peers import BACKFILL, CALLS, LISTENER, OURS, Server, dialpad, listener
from tests.bench.readback import read_back
from tests.bench.reconcile import measure
from tests.bench.records import poll_records
from tests.bench.report import Drain, Listening, Report, Spooling

#: Posted before anything counts. It warms up, and tells how many bodies a round will need.
_WARM_UP_BODIES, _WARM_UP_S = 25_000, 2.0

#: Rounds may be quicker than expected; one that runs out of bodies ends early.
_SPARE = 1.2

#: Posted to a receiver whose Kafka is frozen, so that it notices; within the seconds after it.
_NOTICE_BODIES, _NOTICE_S = 64, 3.0

#: Kafka is back: how long the backlog may take beside the live load, and how long without any.
_BESIDE_LOAD_S, _WITHOUT_S = 45.0, 120.0

_LOOK_S = 0.2


class Scene(StrEnum):
    SATURATION = "saturation"
    HALF = "half"
    LISTEN = "listen"
    BACKFILL = "backfill"
    RECORDS = "records"
    RECONCILE = "reconcile"
    SUBSCRIBE = "subscribe"
    SPOOL = "spool"
    DRAIN = "drain"
    SOAK = "soak"


#: All peers play in these, and only ours in those.
FOR_ALL = (Scene.SATURATION, Scene.HALF)
FOR_OURS = (
    Scene.LISTEN,
    Scene.BACKFILL,
    Scene.RECORDS,
    Scene.RECONCILE,
    Scene.SUBSCRIBE,
    Scene.SPOOL,
    Scene.DRAIN,
    Scene.SOAK,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long the scenes are."""

    connections: Sequence[int]
    seconds: float
    rounds: int
    #: Events that wait for Kafka when `drain` begins.
    backlog: int
    #: That `backfill` reads.
    calls: int
    #: That `records` reads.
    records: int
    #: That `reconcile` settles.
    settled: int
    #: That `subscribe` hands out.
    handled: int
    soak_s: float


@dataclass(frozen=True, slots=True)
class Stage:
    home: Path
    broker: Broker
    servers: Mapping[str, Server]
    report: Report
    length: Length
    progress: Progress

    def play(self, scene: Scene) -> None:
        """Raises BenchError if it cannot be played to its end."""
        how = {
            Scene.SATURATION: self._saturation,
            Scene.HALF: self._half,
            Scene.LISTEN: self._listen,
            Scene.BACKFILL: self._backfill,
            Scene.RECORDS: self._records,
            Scene.RECONCILE: self._reconcile,
            Scene.SUBSCRIBE: self._subscribe,
            Scene.SPOOL: self._spool,
            Scene.DRAIN: self._drain,
            Scene.SOAK: self._soak,
        }[scene]
        try:
            how()
        except BenchError as error:
            raise BenchError(f"{scene}: {error}") from None

    def end(self, name: str) -> None:
        """End a server, and count what it has."""
        stored = self.servers[name].stored
        if stored is not None:
            self.report.stored[name] = stored()

    def warm_up(self) -> None:
        [bodies] = self._sign("warm-up", [_WARM_UP_BODIES])
        for name in self.servers:
            self.report.warm_up[name] = self._saturate(name, bodies, seconds=_WARM_UP_S)

    def _saturation(self) -> None:
        fastest = max(r.per_s for r in self.report.warm_up.values())
        turns = [count for count in self.length.connections for _ in range(self.length.rounds)]
        shares = self._sign("saturation", [self._enough(fastest)] * len(turns))
        pairs = list(zip(turns, shares, strict=True))
        for connections, bodies in self.progress.track(pairs, description="saturation"):
            for name in self.servers:
                found = self._saturate(name, bodies, connections)
                self.report.saturated.setdefault((name, connections), []).append(found)

    def _half(self) -> None:
        rates = {name: self.report.most_per_s(name) / 2 for name in self.servers}
        # Long enough for a 99th percentile that is more than a few stalls.
        counts = {name: int(rate * 2 * self.length.seconds) for name, rate in rates.items()}
        [bodies] = self._sign("half", [max(counts.values())])
        for name, rate in self.progress.track([*rates.items()], description="half load"):
            share = replace(bodies, count=counts[name])
            found = self._finish(name, steady(self.servers[name], share, rate))
            self.report.steady[name] = found

    def _listen(self) -> None:
        home = self._folder(LISTENER)
        with (
            dialpad(self._folder("dialpad")) as url,
            listener(home, self.broker, url) as server,
        ):

            def hear(bodies: Slice, seconds: float) -> Round:
                return self._finish(LISTENER, listen(server, url, bodies, seconds))

            warm_ups = self._sign("listen", [_WARM_UP_BODIES] * 2)
            for bodies in warm_ups:
                most = hear(bodies, _WARM_UP_S).per_s
            enough = self._enough(max(most, self.report.most_per_s(OURS)))
            shares = self._sign("listen", [enough] * self.length.rounds)
            for bodies in self.progress.track(shares, description="listen"):
                posted = self._saturate(OURS, bodies)
                heard = hear(bodies, self.length.seconds)
                self.report.listening.append(Listening(posted, heard))
            assert server.stored is not None
            self.report.stored[LISTENER] = server.stored()

    def _backfill(self) -> None:
        with dialpad(self._folder("dialpad")) as url:
            self.report.readback = read_back(
                self._folder(BACKFILL), self.broker, url, self.length.calls
            )

    def _records(self) -> None:
        self.report.polled = poll_records(self._folder("records"), self.length.records)

    def _reconcile(self) -> None:
        self.report.reconciled = measure(self._folder("reconcile"), self.length.settled)

    def _subscribe(self) -> None:
        self.report.subscribed = subscribe.measure(self.broker, self.length.handled)

    def _spool(self) -> None:
        enough = self._enough(self.report.most_per_s(OURS))
        counts = [_NOTICE_BODIES, enough, enough]
        shares = self._sign("spool", counts * self.length.rounds)
        for turn in self.progress.track(range(self.length.rounds), description="Kafka away"):
            notice, *both = shares[3 * turn : 3 * turn + 3]
            direct = self._saturate(OURS, both[0])
            self._lose_kafka(notice)
            before = self._ours.spooled()
            spooled = self._saturate(OURS, both[1])
            kept = self._ours.spooled() - before
            self.broker.thaw()
            self._until_drained()
            if kept < spooled.answered:
                raise BenchError(
                    f"Kafka was away, {spooled.answered} answered with 2xx, but {kept} spooled"
                )
            self.report.spooling.append(Spooling(direct, spooled))

    def _drain(self) -> None:
        most, backlog = self.report.most_per_s(OURS), self.length.backlog
        live = int(most / 2 * (_BESIDE_LOAD_S + 2 * _NOTICE_S))
        half = backlog // 2
        notice, *stock, bodies = self._sign("drain", [_NOTICE_BODIES, *[half] * 4, live])
        before = self.broker.size(CALLS)
        self._lose_kafka(notice)
        while (waiting := self._ours.spooled()) < backlog:
            if not stock:
                raise BenchError(f"Kafka was away, but only {waiting} events were spooled")
            self._saturate(OURS, stock.pop(), seconds=1 + half / most)
        shot = steady(self._ours, bodies, most / 2)
        while self._ours.spooled() < waiting + most / 4:
            if shot.over:
                break
            time.sleep(_LOOK_S)
        drained, elapsed_s, began_after_s = self._watch_drain(shot, before)
        emptied = not self._ours.spooled()
        shot.stop()
        self.report.drain = Drain(
            live=self._finish(OURS, shot),
            drained=drained,
            elapsed_s=elapsed_s,
            began_after_s=began_after_s,
            backlog=waiting,
            emptied=emptied,
        )
        self._until_drained()

    def _soak(self) -> None:
        rate = self.report.most_per_s(OURS) / 2
        [bodies] = self._sign("soak", [int(rate * self.length.soak_s)])
        shot = steady(self._ours, replace(bodies, count=int(rate * self.length.soak_s)), rate)
        self.report.soak = self._finish(OURS, shot)

    @property
    def _ours(self) -> Server:
        return self.servers[OURS]

    def _folder(self, name: str) -> Path:
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        return folder

    def _enough(self, per_s: float) -> int:
        return int(per_s * self.length.seconds * _SPARE)

    def _sign(self, scene: str, counts: Sequence[int]) -> Sequence[Slice]:
        task = self.progress.add_task(f"signing for {scene}", total=sum(counts))
        # The bodies of the scene before have been posted.
        return make_slices(
            self.home / "bodies", counts, lambda more: self.progress.advance(task, more)
        )

    def _saturate(
        self,
        name: str,
        bodies: Slice,
        connections: int = STEADY_CONNECTIONS,
        seconds: float | None = None,
    ) -> Round:
        if seconds is None:
            seconds = self.length.seconds
        return self._finish(name, saturate(self.servers[name], bodies, connections, seconds))

    def _finish(self, name: str, shot: Shot) -> Round:
        """Every round goes through here, or the books would not balance."""
        found = shot.round()
        self.report.rounds.setdefault(name, []).append(found)
        return found

    def _lose_kafka(self, notice: Slice) -> None:
        """Freeze the broker; return once the receiver has turned to the spool."""
        self.broker.freeze()
        found = self._saturate(OURS, notice, seconds=_NOTICE_S)
        if self._ours.spooled() < found.answered:
            raise BenchError("Kafka is away, but nothing goes to the spool")

    def _watch_drain(self, shot: Shot, before: int) -> tuple[int, float, float]:
        """Give Kafka back: records that left the spool, in seconds, after seconds of none."""
        self.broker.thaw()
        returned = time.monotonic()
        while (first := self.broker.size(CALLS)) == before:
            if time.monotonic() - returned > _BESIDE_LOAD_S:
                raise BenchError("Kafka is back, but nothing leaves the spool")
            time.sleep(_LOOK_S)
        began = time.monotonic()
        while not shot.over and self._ours.spooled():
            time.sleep(_LOOK_S)
        return self.broker.size(CALLS) - first, time.monotonic() - began, began - returned

    def _until_drained(self) -> None:
        until = time.monotonic() + _WITHOUT_S
        while waiting := self._ours.spooled():
            if time.monotonic() > until:
                raise BenchError(f"Kafka is back, but {waiting} events are still spooled")
            time.sleep(_LOOK_S)
