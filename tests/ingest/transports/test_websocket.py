"""Frames become events once and durably, whatever the log and the other side do meanwhile."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import repeat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode
from websockets.utils import accept_key

from ingest.delivery import Delivery, Source, Verified
from ingest.errors import PublishError
from ingest.eventlog.log import Record
from ingest.metrics import TALLIES
from ingest.pipeline import Pipeline
from ingest.providers.dialpad.webhook import Webhook
from ingest.transports import websocket
from ingest.transports.websocket import (
    Inlet,
    Insistent,
    Lost,
    OpenError,
    Socket,
    Timing,
    open_socket,
    retry_delays,
)
from schemas.event import Event
from schemas.times import now_ms
from tests.ingest.sockets import SOON_S, TOKEN, Peer, PlayLog, peer, until
from tests.kit import OTHER_SECRET, SECRET, call, new_leg, sign

MIB = 1024 * 1024

PATIENT = Timing()

_names = (f"inlet_{number}" for number in range(10_000))


def at_once() -> Iterator[float]:
    return repeat(0.001)


class Wire:
    """An inlet on a log, and the peer that it listens to."""

    def __init__(self, at: Peer, source: Source | None = None, **more: Any) -> None:
        self.peer = at
        self.log = PlayLog()
        self.publisher = Insistent(self.log, at_once)
        self.name = next(_names)
        self.inlet = Inlet(
            self.name,
            source or Webhook([SECRET.encode()], "US", 18_000),
            Pipeline(self.publisher, 1000),
            self.publisher,
            max_body_bytes=MIB,
            now_ms=now_ms,
            **more,
        )
        self.tally = TALLIES.of(self.name, "websocket")

    async def open(self, timing: Timing = PATIENT) -> Socket:
        before = len(self.peer.clients)
        socket = await open_socket(self.peer.url, self.inlet, now_ms, timing)
        await until(lambda: len(self.peer.clients) > before)
        return socket

    async def settled(self, received: int) -> None:
        await until(lambda: self.tally.received >= received)
        async with asyncio.timeout(SOON_S):
            await self.inlet.drained()

    def outcomes(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.tally.outcomes.items() if count}


@asynccontextmanager
async def wired(source: Source | None = None, /, **more: Any) -> AsyncIterator[Wire]:
    async with peer() as at:
        wire = Wire(at, source, **more)
        yield wire
        wire.publisher.close()


def lost_of(socket: Socket) -> Lost:
    return socket.reading.result()


# The publisher that does not give up


def record(key: int, number: int) -> Record:
    return Record("calls", b"%d" % key, b"%d" % number, ())


@given(
    keys=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    script=st.lists(st.sampled_from(["store", "refuse", "fail"]), max_size=60),
)
def test_all_is_stored_once_and_each_key_in_order_whatever_fails(
    keys: list[int], script: list[str]
) -> None:
    async def scenario() -> None:
        log = PlayLog()
        log.script = list(script)
        publisher = Insistent(log, at_once)
        held = [publisher.publish([record(key, at)]) for at, key in enumerate(keys)]
        async with asyncio.timeout(SOON_S):
            await publisher.drained()
            assert [await one.wait(0) for one in held] == ["memory"] * len(keys)
        for key in set(keys):
            expected = [b"%d" % at for at, each in enumerate(keys) if each == key]
            assert [r.value for r in log.records if r.key == b"%d" % key] == expected

    asyncio.run(scenario())


async def test_a_receipt_tells_who_waits_too_little_and_becomes_durable_all_the_same() -> None:
    log = PlayLog()
    log.refusal = "disk_full"
    publisher = Insistent(log, at_once)
    held = publisher.publish([record(1, 1)])
    told: list[PublishError | None] = []
    loop = asyncio.get_running_loop()
    with pytest.raises(PublishError, match="timeout"):
        await held.wait(loop.time() + 0.02)
    held.then(loop.time() + 1000, told.append)
    assert held.durable is None
    log.refusal = None
    await until(lambda: held.durable)
    assert (told, held.where) == ([None], "memory")


async def test_a_fault_of_the_log_is_no_reason_to_give_up() -> None:
    class Broken(PlayLog):
        def publish(self, records: Sequence[Record]) -> Any:
            if self.published < 3:
                self.published += 1
                raise RuntimeError("private")
            return super().publish(records)

    log = Broken()
    held = Insistent(log, at_once).publish([record(1, 1)])
    with capture_logs():
        await until(lambda: held.durable)
    assert len(log.records) == 1


async def test_many_of_one_key_that_are_durable_at_once_do_not_go_deep() -> None:
    class Quick(PlayLog):
        def publish(self, records: Sequence[Record]) -> Any:
            group = super().publish(records)
            group.settle("memory")
            return group

    publisher = Insistent(Quick(), at_once)
    for number in range(5000):
        publisher.publish([record(1, number)])
    async with asyncio.timeout(SOON_S):
        await publisher.drained()


def test_the_pauses_between_tries_grow_to_a_few_seconds() -> None:
    delays = [delay for delay, _ in zip(retry_delays(), range(12), strict=False)]
    assert 0.1 <= delays[0] <= 0.15
    assert all(4.0 <= delay <= 6.0 for delay in delays[6:])


# Frames


async def test_signed_text_is_stored_and_counted_as_a_webhook_is() -> None:
    async with wired() as wire:
        socket = await wire.open()
        leg = new_leg()
        await wire.peer.send(sign(call(leg, 0)))
        await wire.peer.send(sign(call(leg, 0)))
        await wire.peer.send(sign(call(leg, 1)))
        await wire.settled(3)
        assert wire.outcomes() == {"stored": 2, "repeat": 1}
        assert wire.tally.events == {"call": 2}
        assert wire.log.legs() == {
            str(leg): [f"leg {leg}, event 0", f"leg {leg}, event 1"],
        }
        event = wire.log.values("calls")[0]
        assert (event["via"], event["connection"]) == ("websocket", wire.name)
        assert socket.progress
        await socket.close(CloseCode.NORMAL_CLOSURE)
        await until(lambda: wire.peer.codes)
        assert (lost_of(socket).reason, wire.peer.codes) == ("left", [1000])


FORGED = {
    "unsigned": (json.dumps(call(1, 0)).encode(), True, "unsigned"),
    "a list": (b"[1, 2]", True, "unsigned"),
    "html": (b"<html><body>502 Bad Gateway</body></html>", True, "not_a_jws"),
    "empty": (b"", True, "empty"),
    "no utf-8": (b"\xff\xfe" * 50, True, "not_a_jws"),
    "half a jws": (sign(call(1, 0)).rpartition(b".")[0], True, "not_a_jws"),
    "another secret": (sign(call(1, 0), OTHER_SECRET), True, "bad_signature"),
    "binary": (b"\x00" * 100, False, "binary"),
    "a jws in binary": (sign(call(1, 0)), False, "binary"),
    "2 MiB, signed": (sign({**call(1, 0), "x": "y" * (2 * MIB)}), True, "too_large"),
    "10 MiB": (b"x" * (10 * MIB), True, "too_large"),
}


@pytest.mark.parametrize("what", FORGED)
async def test_what_is_no_signed_event_is_refused_and_the_next_is_read(what: str) -> None:
    body, text, reason = FORGED[what]
    async with wired() as wire:
        socket = await wire.open()
        with capture_logs() as lines:
            await wire.peer.send(body, text=text)
            await wire.settled(1)
        assert not socket.progress
        await wire.peer.send(sign(call(new_leg(), 0)))
        await wire.settled(2)
        assert wire.tally.refusals == {reason: 1}
        assert wire.outcomes() == {"refused": 1, "stored": 1}
        (line,) = lines
        assert (line["event"], line["reason"], line["size_bytes"]) == (
            "delivery_refused",
            reason,
            len(body),
        )
        assert wire.log.published == 1


@given(body=st.binary(max_size=300), text=st.booleans())
def test_any_bytes_are_refused_and_end_nothing(body: bytes, text: bool) -> None:  # noqa: FBT001
    async def scenario() -> None:
        async with wired() as wire:
            await wire.open()
            await wire.peer.send(body, text=text)
            await wire.peer.send(sign(call(new_leg(), 0)))
            await wire.settled(2)
            assert wire.outcomes() == {"refused": 1, "stored": 1}

    asyncio.run(scenario())


async def test_fragments_of_text_are_one_frame() -> None:
    async with wired() as wire:
        await wire.open()
        body = sign(call(new_leg(), 0)).decode()
        await wire.peer.clients[0].send([body[:10], body[10:900], "", body[900:]])
        await wire.settled(1)
        assert wire.outcomes() == {"stored": 1}


async def test_a_frame_too_large_to_read_ends_the_socket_and_is_counted() -> None:
    async with wired() as wire:
        socket = await wire.open()
        await wire.peer.send(sign(call(new_leg(), 0)))
        await wire.peer.send(b"x" * (17 * MIB))
        await asyncio.wait([socket.reading], timeout=SOON_S)
        assert lost_of(socket) == Lost("too_large", 1009)
        await wire.settled(2)
        assert wire.tally.refusals == {"too_large": 1}
        assert wire.outcomes() == {"refused": 1, "stored": 1}


async def test_what_does_not_verify_is_handed_to_whoever_keeps_it() -> None:
    """As it came; what is no text or too large has no signature that could be looked at again."""
    kept: list[tuple[bytes, str, str]] = []

    def keep(delivery: Delivery, reason: str) -> None:
        kept.append((delivery.body, delivery.via, reason))

    forged = sign(call(1, 0), OTHER_SECRET)
    async with wired(refused=keep) as wire:
        await wire.open()
        await wire.peer.send(forged)
        await wire.peer.send(b"\xff", text=False)
        await wire.peer.send(sign(call(new_leg(), 0)))
        await wire.settled(3)
    assert kept == [(forged, "websocket", "bad_signature")]


async def test_what_verifies_and_cannot_be_read_becomes_a_reject() -> None:
    async with wired() as wire:
        socket = await wire.open()
        for body in (b'{"no": "event"}', b"no json", b"[]"):
            await wire.peer.send(sign(body))
        await wire.settled(3)
        assert wire.outcomes() == {"rejected": 3}
        assert wire.tally.rejects == {"unknown_kind": 1, "not_json": 1, "unexpected_shape": 1}
        assert [event["data"]["via"] for event in wire.log.values("rejects")] == ["websocket"] * 3
        assert socket.progress


class Faulty(Webhook):
    """Our code fails on one kind of event."""

    def __init__(self, where: str) -> None:
        super().__init__([SECRET.encode()], "US", 18_000)
        self.where = where

    def verify(self, delivery: Delivery) -> Verified:
        if self.where == "verify" and len(delivery.body) < 100:
            raise RuntimeError("private")
        return super().verify(delivery)

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        if self.where == "normalize" and payload == b'{"odd": 1}':
            raise RuntimeError("private")
        return super().normalize(payload, delivery)


async def test_what_our_own_code_fails_on_is_kept_and_holds_nobody_up() -> None:
    async with wired(Faulty("normalize")) as wire:
        await wire.open()
        with capture_logs():
            await wire.peer.send(sign(b'{"odd": 1}'))
            await wire.peer.send(sign(call(new_leg(), 0)))
            await wire.settled(2)
        assert wire.outcomes() == {"rejected": 1, "stored": 1}
        assert wire.tally.rejects == {"internal": 1}
        (kept,) = wire.log.values("rejects")
        assert kept["type"] == "dialstream.reject.internal"


async def test_what_cannot_even_be_verified_is_not_taken_for_authentic() -> None:
    async with wired(Faulty("verify")) as wire:
        await wire.open()
        with capture_logs():
            await wire.peer.send(sign(b"{}"))
            await wire.peer.send(sign(call(new_leg(), 0)))
            await wire.settled(2)
        assert wire.outcomes() == {"refused": 1, "stored": 1}
        assert wire.tally.refusals == {"internal": 1}


# The log


async def test_a_log_that_fails_for_a_while_loses_nothing_and_keeps_the_order() -> None:
    async with wired() as wire:
        await wire.open()
        legs = [new_leg() for _ in range(5)]
        wire.log.script = ["store", "fail", "refuse", "store", "refuse", "refuse", "fail"] * 6
        for seq in range(20):
            for leg in legs:
                await wire.peer.send(sign(call(leg, seq)))
        wire.log.refusal = "disk_full"
        await until(lambda: wire.tally.received == 100)
        oldest_ms = wire.inlet.oldest_ms
        assert oldest_ms is not None
        assert wire.tally.outcomes["stored"] < 100
        wire.log.refusal = None
        await wire.settled(100)
        assert wire.outcomes() == {"stored": 100}
        assert wire.inlet.oldest_ms is None
        for leg in legs:
            assert wire.log.legs()[str(leg)] == [f"leg {leg}, event {seq}" for seq in range(20)]
        assert len(wire.log.records) == 100


QUICK_PINGS = Timing(ping_every_s=0.2, ping_wait_s=0.5, close_s=0.5)


async def test_a_slow_log_does_not_get_us_cut_off_and_frames_are_read_meanwhile() -> None:
    async with wired() as wire:
        socket = await wire.open(QUICK_PINGS)
        wire.log.takes_s = 3.0
        for _ in range(200):
            await wire.peer.send(sign(call(new_leg(), 0)))
        await until(lambda: wire.tally.received == 200)
        assert wire.outcomes() == {}
        # The other side asks too, and would cut us off.
        for _ in range(6):
            async with asyncio.timeout(SOON_S):
                await (await wire.peer.clients[0].ping())
            await asyncio.sleep(0.5)
        await wire.settled(200)
        assert wire.outcomes() == {"stored": 200}
        assert not socket.reading.done()


@pytest.mark.parametrize(
    "limits", [{"max_in_flight": 10}, {"max_in_flight_bytes": 20_000}], ids=["count", "bytes"]
)
async def test_without_room_nothing_is_read_and_nothing_is_lost(limits: dict[str, int]) -> None:
    async with wired(**limits) as wire:
        socket = await wire.open(QUICK_PINGS)
        wire.log.refusal = "disk_full"
        legs = [new_leg() for _ in range(2000)]

        async def send() -> None:
            for leg in legs:
                await wire.peer.send(sign(call(leg, 0)))

        sending = asyncio.create_task(send())
        await until(lambda: wire.inlet.full)
        taken = wire.tally.received
        assert taken <= 15
        # Our pings would have gone unanswered for long: pongs wait behind the frames.
        await asyncio.sleep(2.0)
        assert wire.tally.received == taken
        assert not socket.reading.done()
        wire.log.refusal = None
        await sending
        await wire.settled(2000)
        assert wire.outcomes() == {"stored": 2000}
        assert wire.log.legs().keys() == {str(leg) for leg in legs}
        assert len(wire.log.records) == 2000


# The other side


async def test_frames_that_have_waited_do_not_say_when_the_other_side_was_there() -> None:
    async with wired(max_in_flight=10) as wire:
        socket = await wire.open(QUICK_PINGS)
        wire.log.refusal = "disk_full"
        sending = asyncio.create_task(send_calls(wire, 30))
        await until(lambda: wire.inlet.full)
        full_ms = now_ms()
        await sending
        wire.peer.cut()
        await asyncio.sleep(1.5)  # it is gone long before its last frames are read
        wire.log.refusal = None
        await asyncio.wait([socket.reading], timeout=SOON_S)
        assert lost_of(socket).reason == "cut"
        assert socket.heard_ms <= full_ms


async def test_a_pong_says_that_the_other_side_is_there_after_frames_have_waited() -> None:
    async with wired(max_in_flight=10) as wire:
        socket = await wire.open(QUICK_PINGS)
        wire.log.refusal = "disk_full"
        sending = asyncio.create_task(send_calls(wire, 30))
        await until(lambda: wire.inlet.full)
        await asyncio.sleep(1.5)
        wire.log.refusal = None
        await sending
        free_ms = now_ms()
        await until(lambda: socket.heard_ms > free_ms)
        await wire.settled(30)
        sent_ms = now_ms()
        await asyncio.sleep(0.01)
        await until(lambda: socket.heard_ms > sent_ms)


async def send_calls(wire: Wire, count: int) -> None:
    for _ in range(count):
        await wire.peer.send(sign(call(new_leg(), 0)))


async def test_who_does_not_answer_the_goodbye_is_cut_off() -> None:
    ended = asyncio.Event()

    async def accept_and_be_silent(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (key,) = re.findall(rb"(?i)sec-websocket-key: (\S+)", head)
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-accept: " + accept_key(key.decode()).encode() + b"\r\n\r\n"
        )
        with suppress(ConnectionError):
            while await reader.read(1000):
                pass
        ended.set()
        writer.close()

    async with wired() as wire:
        server = await asyncio.start_server(accept_and_be_silent, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            socket = await open_socket(f"ws://127.0.0.1:{port}", wire.inlet, now_ms)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await socket.close(CloseCode.GOING_AWAY)
            socket.abandon()
            async with asyncio.timeout(SOON_S):
                await ended.wait()


async def test_who_does_not_answer_pings_is_given_up() -> None:
    async with wired() as wire:
        socket = await wire.open(QUICK_PINGS)
        wire.peer.clients[0].transport.pause_reading()
        await asyncio.wait([socket.reading], timeout=SOON_S)
        assert lost_of(socket) == Lost("silent", None)


async def test_who_sends_but_does_not_answer_pings_is_not_given_up() -> None:
    async with wired() as wire:
        socket = await wire.open(QUICK_PINGS)
        wire.peer.clients[0].transport.pause_reading()
        for _ in range(30):
            await wire.peer.send(sign(call(new_leg(), 0)))
            await asyncio.sleep(0.1)
        assert not socket.reading.done()


async def test_what_comes_before_the_other_side_has_heard_the_goodbye_is_taken() -> None:
    async with wired() as wire:
        socket = await wire.open()
        client = wire.peer.clients[0]
        client.transport.pause_reading()  # it does not hear it yet
        closing = asyncio.create_task(socket.close(CloseCode.NORMAL_CLOSURE))
        await asyncio.sleep(0.05)
        for _ in range(50):
            await client.send(sign(call(new_leg(), 0)), text=True)
        client.transport.resume_reading()
        await closing
        await wire.settled(50)
        assert wire.outcomes() == {"stored": 50}


async def test_why_a_socket_ended_is_told() -> None:
    async with wired() as wire:
        socket = await wire.open()
        await wire.peer.clients[0].close(1012, "private")
        await asyncio.wait([socket.reading], timeout=SOON_S)
        assert lost_of(socket) == Lost("closed", 1012)

        socket = await wire.open()
        wire.peer.cut()
        await asyncio.wait([socket.reading], timeout=SOON_S)
        assert lost_of(socket) == Lost("cut", None)

        async def nonsense(connection: ServerConnection) -> None:
            connection.transport.write(b"\xff\xff\xff\xff")

        wire.peer.welcome = nonsense
        socket = await open_socket(wire.peer.url, wire.inlet, now_ms)
        await asyncio.wait([socket.reading], timeout=SOON_S)
        assert lost_of(socket) == Lost("not_websocket", 1002)


async def test_why_there_is_no_socket_is_told_without_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refused(url: str, timing: Timing = PATIENT) -> OpenError:
        with pytest.raises(OpenError) as caught:
            await open_socket(url, wire.inlet, now_ms, timing)
        error: BaseException | None = caught.value
        assert TOKEN not in f"{error} {error!r}"
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        return caught.value

    async with wired() as wire:
        wire.peer.refusal = 401
        error = await refused(wire.peer.url)
        assert (error.reason, error.status) == ("handshake_refused", 401)

        port = wire.peer.port
        for url in (f"http://x/{TOKEN}", f"ws://x:99999/{TOKEN}", f"ws://[x/{TOKEN}", TOKEN):
            assert (await refused(url)).reason == "bad_address"

        # TLS is spoken to a server that has none
        assert (await refused(f"wss://127.0.0.1:{port}/{TOKEN}")).reason == "unreachable"

    assert (await refused(f"ws://127.0.0.1:{port}/{TOKEN}")).reason == "unreachable"

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if answer:
            writer.close()
        else:
            await reader.read()
            writer.close()

    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/{TOKEN}"
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
        assert (await refused(url)).reason == "handshake_refused"
        answer = b"what?\r\n\r\n"
        assert (await refused(url)).reason == "handshake_failed"
        answer = b""
        assert (await refused(url, Timing(open_s=0.1))).reason == "timeout"

        monkeypatch.setenv("ws_proxy", f"http://127.0.0.1:{url.split(':')[2].split('/')[0]}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{url.split(':')[2].split('/')[0]}")
        answer = b"HTTP/1.1 403 no\r\ncontent-length: 0\r\n\r\n"
        assert (await refused(f"ws://elsewhere.example/{TOKEN}")).reason == "proxy"


async def test_addresses_and_frames_are_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with wired() as wire:
        with capture_logs() as lines:
            socket = await wire.open()
            await wire.peer.send(sign(call(new_leg(), 0)))
            await wire.peer.send(b"not signed")
            await wire.settled(2)
            await socket.close(CloseCode.GOING_AWAY)
            wire.peer.refusal = 500
            with pytest.raises(OpenError):
                await open_socket(wire.peer.url, wire.inlet, now_ms)
    ours = [r for r in caplog.records if not r.name.startswith("websockets.server")]
    said = f"{lines} {[r.getMessage() for r in ours]}"
    assert TOKEN not in said
    assert "not signed" not in said
    assert "1555" not in said
    assert Counter(line["event"] for line in lines)["delivery_refused"] == 1
    assert websocket.VIA == "websocket"
