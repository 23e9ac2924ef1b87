"""A connection's stream is open whenever it can be, and whenever it is not there is a gap."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from pydantic import SecretStr
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection

from ingest import listener
from ingest.api import ApiError
from ingest.delivery import Stream
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.kinds import open_log, open_reader
from ingest.listener import Habits, Listener, listen, listen_alone, reconnect_delays
from ingest.metrics import REGISTRY, TALLIES
from ingest.providers.dialpad import PROVIDER
from ingest.quarantine import files_in
from ingest.runner import Stopping
from ingest.service import Service
from ingest.settings import Connection, EventLog, Poll, Settings
from ingest.simulator.dialpad_server import simulated_dialpad
from ingest.simulator.faults import Faults
from ingest.simulator.story import COMPRESSED
from ingest.transports.websocket import Timing
from ingest.work import Job
from schemas.times import now_ms, rfc3339
from tests.ingest.sockets import SOON_S, TOKEN, Peer, PlayLog, api_of, peer, until
from tests.kit import OTHER_SECRET, SECRET, Metrics, Product, call, new_leg, sign

#: Pauses do not matter to these tests, and nothing is judged steady soon.
QUICK = Habits(steady_s=0.05, sign_every_s=0.05, refused_s=0.05, down_s=0.0)

_names = (f"line_{number}" for number in range(10_000))


def soon() -> Iterator[float]:
    while True:
        yield 0.02


class FakeStream:
    """Gives the address of a peer, or raises."""

    def __init__(self, at: Peer) -> None:
        self.peer = at
        self.error: Exception | None = None
        #: By the loop's clock.
        self.asked_at: list[float] = []

    @property
    def asked(self) -> int:
        return len(self.asked_at)

    async def url(self) -> str:
        self.asked_at.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error
        return self.peer.url


class FakeJob:
    """A connection that is ours, and its checkpoint."""

    def __init__(self, connection: str, checkpoint: Mapping[str, Any] | None = None) -> None:
        self.connection = connection
        self.saved: list[Mapping[str, Any]] = [] if checkpoint is None else [checkpoint]
        self.fails = False

    def checkpoint(self, source: str) -> Mapping[str, Any] | None:
        assert source == "websocket"
        return self.saved[-1] if self.saved else None

    async def save(self, source: str, checkpoint: Mapping[str, Any]) -> None:
        assert source == "websocket"
        if self.fails:
            raise PublishError("disk_full")
        self.saved.append(checkpoint)


class Stage:
    """A listener in this process, of which single connections are run by hand."""

    def __init__(self, at: Peer, name: str, log: PlayLog, running: Listener) -> None:
        self.peer = at
        self.name = name
        self.log = log
        self.listener = running
        self.stream = FakeStream(at)
        self.tally = TALLIES.of(name, "websocket")

    @asynccontextmanager
    async def running(self, checkpoint: Mapping[str, Any] | None = None) -> AsyncIterator[FakeJob]:
        """Own the connection; at the end it is taken away as `share_work` does."""
        job = FakeJob(self.name, checkpoint)
        task = asyncio.create_task(self.listener.run(job))
        try:
            yield job
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                async with asyncio.timeout(5):  # no more is allowed
                    await task

    async def connected(self) -> None:
        lines = self.listener._lines
        await until(lambda: self.name in lines and lines[self.name].up)

    def gaps(self) -> list[dict[str, Any]]:
        return self.log.values("gaps")

    def raws(self) -> Iterator[Any]:
        """What the provider has said, of every event on the log but rejects."""
        for record in self.log.records:
            if record.value and record.topic not in ("rejects", "gaps"):
                yield json.loads(record.value)["data"]["raw"]

    def metrics(self) -> Metrics:
        return Metrics(generate_latest(REGISTRY).decode())


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    async with peer() as at, staged(at, tmp_path, monkeypatch) as found:
        yield found


@asynccontextmanager
async def staged(
    at: Peer,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    habits: Habits = QUICK,
    refresh_s: float = 3000,
    delays: Any = soon,
) -> AsyncIterator[Stage]:
    name, log = next(_names), PlayLog()
    connections = {
        name: Connection.model_validate(
            {
                "provider": "dialpad",
                "secrets": [SECRET],
                "stream": {"enabled": True, "refresh_s": refresh_s},
            }
        )
    }
    settings = Settings(eventlog=EventLog(path=path), connections=connections)

    @asynccontextmanager
    async def open_stream(_: str, __: Connection) -> AsyncIterator[Stream]:
        yield found.stream

    monkeypatch.setattr(listener, "PROVIDERS", {"dialpad": replace(PROVIDER, stream=open_stream)})
    service = Service(settings, log, Stopping(), "")
    running = Listener(service, habits=habits, delays=delays)
    found = Stage(at, name, log, running)
    yield found
    await running.close()


# Open, and open again


async def test_frames_come_through_and_are_told_by_metrics(stage: Stage) -> None:
    async with stage.running():
        await stage.connected()
        leg = new_leg()
        await stage.peer.send(sign(call(leg, 0)))
        await stage.peer.send(b"{}")
        await until(lambda: sum(stage.tally.outcomes.values()) == 2)
        metrics, labels = stage.metrics(), {"connection": stage.name}
        assert metrics.sum("dialstream_stream_connected", **labels) == 1
        assert metrics.sum("dialstream_stream_connection_age_seconds", **labels) < 600
        last_s = metrics.sum("dialstream_stream_last_frame_timestamp_seconds", **labels)
        assert abs(last_s - time.time()) < 600
        frames = {"via": "websocket", **labels}
        assert metrics.sum("dialstream_deliveries_total", outcome="stored", **frames) == 1
        assert metrics.sum("dialstream_refusals_total", reason="unsigned", **frames) == 1
        assert stage.listener.troubles() == []
        assert stage.gaps() == []
    assert "dialstream_stream_connected{" + f'connection="{stage.name}"' not in (
        generate_latest(REGISTRY).decode()
    )


async def test_a_lost_socket_is_a_gap_until_there_is_another(stage: Stage) -> None:
    async with stage.running() as job:
        await stage.connected()
        await until(lambda: job.saved)
        before = job.saved[-1]
        assert before["connected_ms"] <= before["alive_ms"]
        stage.stream.error = ApiError("unavailable")
        heard_ms = now_ms()
        await stage.peer.send(sign(call(new_leg(), 0)))
        await until(lambda: stage.tally.outcomes["stored"] == 1)
        with capture_logs() as lines:
            await stage.peer.clients[0].close(1012)
            await until(stage.gaps)
            await until(lambda: stage.listener.troubles() == [f"stream_down:{stage.name}"])
            await until(lambda: any(line["event"] == "stream_refused" for line in lines))
            stage.stream.error = None
            await stage.connected()
        (gap,) = stage.gaps()
        from_ms = int(gap["id"].split(":")[-2])
        assert heard_ms <= from_ms <= now_ms()
        assert gap["id"] == f"gap:{stage.name}:websocket:{from_ms}:opened"
        assert gap["type"] == "dialstream.gap.opened"
        assert gap["data"] == {
            "channel": "websocket",
            "from": rfc3339(from_ms),
            "to": None,
            "reason": "closed",
            "found": None,
        }
        lost = next(line for line in lines if line["event"] == "stream_lost")
        assert (lost["reason"], lost["code"]) == ("closed", 1012)
        # While it lasts, nothing newer is said to be there.
        assert any(sign["alive_ms"] == from_ms for sign in job.saved)
        await until(lambda: job.saved[-1]["connected_ms"] > from_ms)
        assert job.saved[-1]["alive_ms"] >= job.saved[-1]["connected_ms"]
        assert stage.listener.troubles() == []
        labels = {"connection": stage.name}
        assert stage.metrics().sum("dialstream_stream_reconnects_total", reason="closed", **labels)


async def test_what_an_old_socket_takes_along_before_the_new_one_is_steady_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    habits = Habits(steady_s=2, sign_every_s=0.05)
    async with (
        peer() as at,
        staged(at, tmp_path, monkeypatch, habits=habits, refresh_s=5) as stage,
        stage.running(),
    ):
        await until(lambda: len(at.clients) == 2)  # the new one is up, the old one not left yet
        assert stage.gaps() == []
        at.clients[0].transport.abort()
        await until(stage.gaps)
        (gap,) = stage.gaps()
        from_ms = int(gap["id"].split(":")[-2])
        assert gap["data"]["reason"] == "cut"
        assert gap["data"]["from"] == rfc3339(from_ms)
        assert rfc3339(from_ms) < gap["data"]["to"] <= rfc3339(now_ms())


async def test_signs_of_life_go_on_while_connected(stage: Stage) -> None:
    async with stage.running() as job:
        await stage.connected()
        await until(lambda: len(job.saved) > 5)
        assert len({sign["connected_ms"] for sign in job.saved}) == 1
        job.fails = True
        with capture_logs() as lines:
            await until(lambda: any(line["event"] == "sign_not_saved" for line in lines))
        job.fails = False
        saved = len(job.saved)
        await until(lambda: len(job.saved) > saved)


async def test_what_is_in_flight_is_not_said_to_be_durable(stage: Stage) -> None:
    async with stage.running() as job:
        await stage.connected()
        stage.log.refusal = "disk_full"
        before_ms = now_ms()
        await stage.peer.send(sign(call(new_leg(), 0)))
        await until(lambda: stage.tally.received == 1)
        arrived_ms = stage.listener._inlets[stage.name].oldest_ms
        assert arrived_ms is not None
        assert arrived_ms >= before_ms
        saved = len(job.saved)
        await stage.peer.clients[0].close(1000)
        await until(lambda: len(job.saved) > saved + 5)
        assert job.saved[-1]["alive_ms"] <= arrived_ms
        stage.log.refusal = None
        await until(lambda: stage.tally.outcomes["stored"] == 1)
        await until(lambda: job.saved[-1]["connected_ms"] > arrived_ms)


@pytest.mark.parametrize("away_ms", [0, 5_000, 3_600_000])
async def test_every_start_ends_a_gap_from_the_last_sign_of_life(
    stage: Stage, away_ms: int
) -> None:
    alive_ms = now_ms() - away_ms
    async with stage.running({"connected_ms": 1, "alive_ms": alive_ms}) as job:
        await stage.connected()
        await until(stage.gaps)
        (gap,) = stage.gaps()
        assert gap["id"] == f"gap:{stage.name}:websocket:{alive_ms}:opened"
        assert gap["data"]["reason"] == "not_listening"
        await until(lambda: job.saved[-1]["connected_ms"] > alive_ms)


async def test_a_start_that_does_not_get_through_keeps_the_gap_where_it_began(
    stage: Stage,
) -> None:
    stage.stream.error = ApiError("unauthorized", status=401)
    alive_ms = now_ms() - 7_000
    checkpoint: Mapping[str, Any] = {"connected_ms": 1, "alive_ms": alive_ms}
    for _ in range(2):
        async with stage.running(checkpoint) as job:
            await until(lambda: stage.stream.asked > 3)
            await until(lambda: len(job.saved) > 1)
            checkpoint = job.saved[-1]
            assert checkpoint["alive_ms"] == alive_ms
    assert {gap["id"] for gap in stage.gaps()} == {f"gap:{stage.name}:websocket:{alive_ms}:opened"}


async def test_before_the_first_socket_ever_nothing_is_missed(stage: Stage) -> None:
    stage.stream.error = ApiError("unauthorized", status=401)
    async with stage.running() as job:
        await until(lambda: stage.stream.asked > 3)
        assert stage.listener.troubles() == [f"stream_down:{stage.name}"]
    assert (job.saved, stage.gaps()) == ([], [])


async def test_at_the_end_what_has_been_read_is_durable_and_we_say_goodbye(stage: Stage) -> None:
    stage.log.takes_s = 0.3
    async with stage.running() as job:
        await stage.connected()
        legs = [new_leg() for _ in range(50)]
        for leg in legs:
            await stage.peer.send(sign(call(leg, 0)))
        await until(lambda: stage.tally.received)
    assert stage.tally.received == stage.tally.outcomes["stored"]
    assert len(stage.log.legs()) == stage.tally.received
    await until(lambda: stage.peer.codes)
    assert stage.peer.codes == [1001]
    await until(stage.gaps)
    assert job.saved[-1]["alive_ms"] == int(stage.gaps()[0]["id"].split(":")[-2])
    assert job.saved[-1]["alive_ms"] >= job.saved[-1]["connected_ms"]


async def test_at_the_end_a_log_that_takes_nothing_makes_the_gap_longer(stage: Stage) -> None:
    async with stage.running() as job:
        await stage.connected()
        stage.log.refusal = "disk_full"
        await stage.peer.send(sign(call(new_leg(), 0)))
        await until(lambda: stage.tally.received == 1)
        arrived_ms = stage.listener._inlets[stage.name].oldest_ms
    assert job.saved[-1]["alive_ms"] == arrived_ms


# How often


async def test_who_accepts_and_closes_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer() as at:
        given: list[float] = []

        def delays() -> Iterator[float]:
            delay_s = 0.1
            while True:
                given.append(delay_s)
                yield delay_s
                delay_s *= 2

        async def close(connection: ServerConnection) -> None:
            await connection.close(4001)

        at.welcome = close
        async with (
            staged(at, tmp_path, monkeypatch, delays=delays) as stage,
            stage.running() as job,
        ):
            await until(lambda: len(given) == 5)
            assert given == [0.1, 0.2, 0.4, 0.8, 1.6]
            apart = [after - before for before, after in pairwise(stage.stream.asked_at)]
            for least, found in zip(given, apart, strict=False):
                assert found >= least * 0.99
            # None of them was ever a stream: there is nothing to be missed.
            assert (stage.gaps(), job.saved) == ([], [])
            at.welcome = None
            await stage.connected()
            # It holds, but nothing has come: the next pause is longer all the same.
            at.cut()
            await until(lambda: len(given) == 6)
            assert given[-1] == 3.2
            await until(lambda: len(at.clients) == 1)
            await stage.peer.send(b"forged")
            await stage.peer.send(sign(call(new_leg(), 0)))
            await until(lambda: stage.tally.outcomes["stored"] == 1)
            await stage.connected()
            at.cut()
            await until(lambda: len(given) == 7)
            assert given[-1] == 0.1


async def test_forged_frames_are_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer() as at:
        given: list[int] = []

        def delays() -> Iterator[float]:
            for number in range(1000):
                given.append(number)
                yield 0.001

        async def forge_and_close(connection: ServerConnection) -> None:
            await connection.send(sign(call(1, 0), OTHER_SECRET), text=True)
            await connection.send("{}")
            await connection.close()

        at.welcome = forge_and_close
        async with staged(at, tmp_path, monkeypatch, delays=delays) as stage, stage.running():
            await until(lambda: len(given) > 10)
        assert given == list(range(len(given)))
        assert stage.tally.outcomes["refused"] >= 20


def test_the_pauses_between_tries_are_a_second_at_least_and_a_minute_at_most() -> None:
    for _ in range(50):
        delays = [delay for delay, _ in zip(reconnect_delays(), range(12), strict=False)]
        assert 1.0 <= delays[0] <= 1.5
        assert all(2**n <= delay <= min(1.5 * 2**n, 60) for n, delay in enumerate(delays[:6]))
        assert all(delay == 60.0 for delay in delays[6:])


@pytest.mark.parametrize(
    ("error", "slow"),
    [
        (ApiError("unauthorized", "the key is no good", status=401, mend="make one"), True),
        (ApiError("forbidden", "it may not", status=403, mend="ask an admin"), True),
        (ConfigError("api_key_file: x cannot be read"), True),
        (ApiError("unavailable", "it is away", status=503), False),
        (ApiError("rate_limited", "too often", status=429), False),
        (ApiError("unexpected", "it is no JSON"), False),
    ],
    ids=["401", "403", "settings", "503", "429", "html"],
)
async def test_what_the_api_says_is_told_in_words_and_tried_again(
    error: Exception,
    slow: bool,  # noqa: FBT001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    habits = Habits(steady_s=0.05, refused_s=1000.0)
    async with peer() as at, staged(at, tmp_path, monkeypatch, habits=habits) as stage:
        stage.stream.error = error
        with capture_logs() as lines:
            async with stage.running():
                await until(lambda: lines)
                line = lines[0]
                assert (line["event"], line["connection"]) == ("stream_refused", stage.name)
                said = str(error)
                assert line["mend"] == said
                if slow:
                    assert line["again_s"] == 1000.0
                    asked = stage.stream.asked
                    # SIGHUP: the key may be another one now.
                    stage.stream.error = None
                    stage.listener.reload()
                    await stage.connected()
                    assert stage.stream.asked == asked + 1
                else:
                    stage.stream.error = None
                    await stage.connected()


async def test_one_connection_that_fails_is_not_the_others_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer() as at, peer() as closed:
        streams = {"good": FakeStream(at), "bad": FakeStream(closed)}
        closed.refusal = 500

        @asynccontextmanager
        async def open_stream(name: str, _: Connection) -> AsyncIterator[Stream]:
            yield streams[name]

        monkeypatch.setattr(
            listener, "PROVIDERS", {"dialpad": replace(PROVIDER, stream=open_stream)}
        )
        enabled = {"provider": "dialpad", "secrets": [SECRET], "stream": {"enabled": True}}
        settings = Settings(
            eventlog=EventLog(path=tmp_path),
            connections={
                "good": Connection.model_validate(enabled),
                "bad": Connection.model_validate(enabled),
                "posted": Connection.model_validate({"provider": "dialpad", "secrets": [SECRET]}),
            },
        )
        async with open_log(settings, "listener") as log:
            service = Service(settings, log, Stopping(), "")
            task = asyncio.create_task(listen(service))
            await until(lambda: at.clients)
            leg = new_leg()
            await at.send(sign(call(leg, 0)))
            await until(lambda: streams["bad"].asked >= 2)
            await until(lambda: TALLIES.of("good", "websocket").outcomes["stored"] == 1)
            service.stopping.ask()
            async with asyncio.timeout(SOON_S):
                await task
        assert at.codes == [1001]
        assert await stored(settings, "calls") == [f"leg {leg}, event 0"]


async def stored(settings: Settings, topic: str) -> list[Any]:
    """What a topic of the journal holds: custom_data of calls, else the whole events."""
    found: list[Any] = []
    async with open_reader(settings, [topic]) as reader:
        while not await reader.caught_up():
            for record in await reader.fetch(wait_s=0.1):
                assert record.value is not None
                event = json.loads(record.value)
                found.append(event["data"]["custom_data"] if topic == "calls" else event)
    return found


# The hour


async def test_twenty_four_hours_with_a_new_socket_each_and_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour takes 0.4 s; what is cut after it would be a gap."""
    async with peer() as at:
        at.life_s = 20.0  # there is no telling how busy the machine is
        async with staged(at, tmp_path, monkeypatch, refresh_s=0.4) as stage:
            legs = [new_leg() for _ in range(8)]
            sent = 0
            async with stage.running() as job:
                await stage.connected()
                reached: list[int] = []
                while len(at.opened) < 26:
                    reached += [await at.send(sign(call(leg, sent))) for leg in legs]
                    sent += 1
                    await asyncio.sleep(0.005)
                await until(lambda: set(job.saved[-1]) and stage.listener._lines[stage.name].up)
                assert stage.gaps() == []
                assert len({sign["connected_ms"] for sign in job.saved}) == 1
                assert max(reached) == 2, "never were there two"
                assert min(reached) >= 1, "there was none"
            found = stage.log.legs()
            for leg in legs:
                assert found[str(leg)] == [f"leg {leg}, event {n}" for n in range(sent)]
            # What came by two sockets is there once.
            assert len(stage.log.values("calls")) == sent * len(legs)
            assert stage.tally.outcomes["repeat"] > 0
            assert not stage.tally.refusals
            labels = {"connection": stage.name, "reason": "refresh"}
            assert stage.metrics().sum("dialstream_stream_reconnects_total", **labels) >= 24
        assert set(at.codes[:-2]) == {1000}


async def test_what_a_simulated_dialpad_gave_to_a_socket_is_there_whatever_else_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour takes 2 s. Every third handshake fails, every tenth frame is none of Dialpad's."""
    faults = Faults(
        repeated=0.1,
        forged=0.1,
        sockets_refused=0.2,
        sockets_closed=0.2,
        frames_binary=0.05,
        frames_html=0.05,
        frames_odd=0.05,
    )
    tempo = replace(COMPRESSED, calls_a_day=1500)
    dialpads = simulated_dialpad(faults=faults, tempo=tempo, pace=1800, lasts_s=7 * 3600)
    async with peer() as at, dialpads as dialpad:
        dialpad.subscribe_socket(SECRET)
        async with staged(at, tmp_path, monkeypatch, refresh_s=0.8) as stage:
            monkeypatch.setattr(listener, "PROVIDERS", {"dialpad": PROVIDER})
            stage.listener._settings = {
                stage.name: stage.listener._settings[stage.name].model_copy(
                    update={
                        "api_key": SecretStr(dialpad.api_key),
                        "base_url": dialpad.base_url,
                        "poll": Poll(requests_per_s=20),
                    }
                )
            }
            async with stage.running():
                await asyncio.wait_for(dialpad.told.wait(), 90)
                await dialpad.settled()
            stored = [json.dumps(value, sort_keys=True) for value in stage.raws()]
            given = [
                json.dumps(json.loads(delivery.body), sort_keys=True)
                for delivery in dialpad.delivered
                if delivery.genuine and delivery.sockets
            ]
            assert len(given) > 200
            # On a machine that stands still for a second a socket is cut before it is replaced.
            assert not set(given) - set(stored) or stage.gaps()
            assert dialpad.sockets.opened > 6
            assert stage.tally.outcomes["repeat"] > 0
            assert stage.tally.outcomes["rejected"] > 0
            assert stage.tally.refusals["binary"] > 0
            assert stage.tally.refusals["not_a_jws"] > 0
            assert dialpad.api_key not in str(stage.log.records)


async def test_while_no_new_socket_is_to_be_had_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        peer() as at,
        staged(at, tmp_path, monkeypatch, refresh_s=0.2) as stage,
        stage.running(),
    ):
        await stage.connected()
        at.refusal = 503
        asked = stage.stream.asked
        await until(lambda: stage.stream.asked > asked + 5)
        assert len(at.clients) == 1
        at.refusal = None

        async def close(connection: ServerConnection) -> None:
            await connection.close(1013)

        at.welcome = close
        opened = len(at.opened)
        await until(lambda: len(at.opened) > opened + 3)
        await stage.peer.send(sign(call(new_leg(), 0)))
        await until(lambda: stage.tally.outcomes["stored"] == 1)
        assert stage.gaps() == []
        at.welcome = None
        opened = len(at.opened)
        await until(lambda: len(at.opened) > opened + 2)
        assert stage.gaps() == []


async def test_who_is_silent_is_given_up_and_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    habits = replace_habits(socket=Timing(ping_every_s=0.1, ping_wait_s=0.3, close_s=0.3))
    async with (
        peer() as at,
        staged(at, tmp_path, monkeypatch, habits=habits) as stage,
        stage.running(),
    ):
        await stage.connected()
        at.clients[0].transport.pause_reading()
        await until(stage.gaps)
        assert stage.gaps()[0]["data"]["reason"] == "silent"
        await stage.connected()


def replace_habits(**more: Any) -> Habits:
    return Habits(steady_s=0.05, sign_every_s=0.05, refused_s=0.05, down_s=0.0, **more)


# Secrets and settings


async def test_secrets_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    settings = {
        "provider": "dialpad",
        "secret_files": [path],
        "stream": {"enabled": True},
    }
    stage.listener._settings = {stage.name: Connection.model_validate(settings)}
    async with stage.running():
        await stage.connected()
        path.write_text(OTHER_SECRET)
        stage.listener.reload()
        await stage.peer.send(sign(call(new_leg(), 0), OTHER_SECRET))
        await stage.peer.send(sign(call(new_leg(), 0), SECRET))
        await until(lambda: sum(stage.tally.outcomes.values()) == 2)
        assert stage.tally.outcomes["stored"] == 1
        folder = tmp_path / "quarantine" / stage.name
        await until(lambda: files_in(folder))
        (kept,) = (file.read() for file in files_in(folder))
        assert kept is not None
        assert (kept.via, kept.former) == ("websocket", True), "signed with the old secret"
        path.write_text("")
        with pytest.raises(ConfigError, match=f"connections.{stage.name}.secret_files"):
            stage.listener.reload()
        await stage.peer.send(sign(call(new_leg(), 0), OTHER_SECRET))
        await until(lambda: stage.tally.outcomes["stored"] == 2)


async def test_without_a_stream_there_is_nothing_to_listen_to(tmp_path: Path) -> None:
    posted = Connection.model_validate({"provider": "dialpad", "secrets": [SECRET]})
    settings = Settings(eventlog=EventLog(path=tmp_path), connections={"acme": posted})
    with pytest.raises(ConfigError, match=r"\[connections.<name>.stream\]"):
        await listen_alone(settings, Stopping())


# As a process


def settings_of(base_url: str, **more: Any) -> dict[str, Any]:
    return {
        "logging": {"format": "json"},
        "connections": {
            "acme": {
                "provider": "dialpad",
                "secrets": [SECRET],
                "region": "US",
                "api_key": "an-invented-key",
                "base_url": base_url,
                "poll": {"enabled": False},
                "stream": {"enabled": True, **more},
            }
        },
    }


async def in_thread(do: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, do, *arguments)


async def test_a_listener_that_is_killed_has_what_it_read_past_and_goes_on(tmp_path: Path) -> None:
    async with peer() as at, api_of(at) as api:
        product = Product(tmp_path, settings_of(api.base_url), command=("listen",))
        try:
            await in_thread(product.start)
            await until(lambda: at.clients)
            legs = [new_leg() for _ in range(20)]
            seqs = dict.fromkeys(legs, 0)

            async def traffic() -> None:
                while True:
                    for leg in legs:
                        if await at.send(sign(call(leg, seqs[leg]))):
                            seqs[leg] += 1
                    await asyncio.sleep(0.002)

            sending = asyncio.create_task(traffic())
            for started in (1, 2):
                await in_thread(product.wait_for_log, "stream_connected", started, 20)
                before = await in_thread(product.metrics)
                read_past = 0
                async with asyncio.timeout(SOON_S):
                    while read_past < 500:
                        metrics = await in_thread(product.metrics)
                        read_past = metrics.outcomes()["stored"] - before.outcomes()["stored"]
                await in_thread(product.kill)
                events = await in_thread(product.events, "call")
                found: dict[str, list[str]] = {}
                for event in events:
                    found.setdefault(event["data"]["call_id"], []).append(event["id"])
                assert len(events) >= read_past
                for ids in found.values():
                    numbers = [int(ident.rpartition(":")[2]) for ident in ids]
                    assert numbers == sorted(set(numbers))
                await in_thread(product.start)
                await until(lambda: at.clients)
                gaps = await in_thread(product.events, "gap")
                assert gaps[-1]["data"]["reason"] == "not_listening"
            sending.cancel()
            assert len(gaps) == 2

            await in_thread(product.wait_for_log, "stream_connected", 3, 20)
            code = await in_thread(product.stop)
            assert code == 0
            assert at.codes[-1] == 1001
            # The goodbye, too, is the beginning of a gap; nothing newer was said to be there.
            (last,) = (await in_thread(product.events, "gap"))[2:]
            assert last["data"]["reason"] == "left"
            assert TOKEN not in product.stderr
            assert "an-invented-key" not in product.stderr
            assert SECRET not in product.stderr
            product.log()  # each line is JSON
        finally:
            product.close()


async def test_a_second_listener_stands_by_and_takes_over(tmp_path: Path) -> None:
    async with peer() as at, api_of(at) as api:
        first = Product(tmp_path, settings_of(api.base_url), command=("listen",))
        try:
            await in_thread(first.start)
            await until(lambda: at.clients)
            second = Product(
                tmp_path / "second",
                {**settings_of(api.base_url), "eventlog": {"path": str(first.data)}},
                command=("listen",),
            )
            try:
                await in_thread(second.start)
                await in_thread(second.wait_for_log, "standing_by", 1, 20)
                assert len(at.opened) == 1
                first.signal(signal.SIGKILL)
                await until(lambda: len(at.opened) == 2 and at.clients)
                leg = new_leg()
                await at.send(sign(call(leg, 0)))
                await in_thread(second.settled)
                assert second.metrics().outcomes()["stored"] == 1
                assert await in_thread(second.stop) == 0
            finally:
                second.close()
        finally:
            first.close()


async def test_a_key_that_is_no_good_is_told_and_the_process_goes_on(tmp_path: Path) -> None:
    async with peer() as at, api_of(at) as api:
        api.answer = 401, b'{"error": "private"}'
        product = Product(tmp_path, settings_of(api.base_url), command=("listen",))
        try:
            await in_thread(product.start)
            (line,) = await in_thread(product.wait_for_log, "stream_refused", 1, 20)
            assert (line["reason"], line["status"], line["again_s"]) == ("unauthorized", 401, 300.0)
            assert "acme" in line["mend"]
            api.answer = None
            product.signal(signal.SIGHUP)
            await until(lambda: at.clients)
            assert await in_thread(product.stop) == 0
        finally:
            product.close()


def test_the_job_of_the_tests_is_one() -> None:
    job: Job = FakeJob("acme")
    assert job.checkpoint("websocket") is None
