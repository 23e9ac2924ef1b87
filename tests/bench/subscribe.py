"""What the subscriber library costs beside a bare aiokafka loop that parses the same JSON.

``python -m tests.bench.subscribe [events]``, or the scene ``subscribe``. Both read the same topic
of a real broker from its beginning, in turns, each with a new group, in a process of their own on
core 0. The aim is half.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import confluent_kafka
import orjson
import uvloop
from aiokafka import AIOKafkaConsumer

from consumers.subscribe import Subscriber
from ingest.delivery import Delivery
from ingest.eventlog.log import records_of
from ingest.providers.dialpad.webhook import Webhook
from ingest.settings import Settings
from schemas.call import Call
from schemas.times import now_ms
from tests.bench.broker import Broker, start_broker
from tests.kit import SECRET, call, sign

EVENTS, ROUNDS, AIM = 100_000, 5, 0.5

PREFIX = "subscribe."

#: Events of a leg.
_LEG = 5

#: Before it counts.
_WARM_UP = 5_000

_US = 1_000_000


def fill(servers: str, count: int) -> int:
    """Put events of the usual size on the topic; their mean size in bytes."""
    source = Webhook([SECRET.encode()], None, 0)
    producer = confluent_kafka.Producer({"bootstrap.servers": servers, "linger.ms": 20})
    size = 0
    for nth in range(count):
        body = sign(call(5_000_000_000_000_000 + nth // _LEG, nth % _LEG))
        delivery = Delivery(
            connection="acme", via="webhook", headers=(), body=body, received_ms=now_ms()
        )
        for event in source.normalize(source.verify(delivery), delivery):
            for record in records_of(event):
                size += len(record.value or b"")
                topic, headers = PREFIX + record.topic, [*record.headers]
                while True:
                    try:
                        producer.produce(topic, record.value, record.key, headers=headers)  # type: ignore[arg-type]
                        break
                    except BufferError:
                        producer.poll(0.1)
        producer.poll(0)
    producer.flush()
    return size // count


async def bare(servers: str, group_: str, count: int, parse: Callable[[bytes], object]) -> float:
    """CPU seconds."""
    consumer = AIOKafkaConsumer(
        f"{PREFIX}calls",
        bootstrap_servers=servers,
        group_id=group_,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 * 1024 * 1024,  # as ours
    )
    await consumer.start()
    try:
        seen = 0
        begun = 0.0
        async for message in consumer:
            parse(message.value)
            seen += 1
            if seen == _WARM_UP:
                begun = time.process_time()
            if seen == count:
                return time.process_time() - begun
    finally:
        await consumer.stop()
    raise AssertionError


async def ours(servers: str, group_: str, count: int) -> float:
    """CPU seconds."""
    kafka = {"bootstrap_servers": servers, "topic_prefix": PREFIX}
    settings = Settings.model_validate({"eventlog": {"kind": "kafka"}, "kafka": kafka})
    subscriber = Subscriber(group=group_, settings=settings)
    seen, begun, taken = 0, 0.0, 0.0

    @subscriber.on(Call)
    async def count_them(call: Call) -> None:
        nonlocal seen, begun, taken
        seen += 1
        if seen == _WARM_UP:
            begun = time.process_time()
        if seen == count:
            taken = time.process_time() - begun
            subscriber.stop()

    await subscriber.run()
    return taken


TURNS = range(ROUNDS + 1)

BARE, OURS = "bare", "ours"

PEERS = (BARE, "bare, json", "bare, models", OURS)


@dataclass(frozen=True, slots=True)
class Subscribed:
    events: int
    size_bytes: int
    #: Peer → microseconds of CPU an event, round by round.
    rounds_us: Mapping[str, Sequence[float]]

    def ratios(self, peer: str = BARE) -> list[float]:
        """How many of a peer's events ours does for each second of CPU, round by round."""
        both = zip(self.rounds_us[peer], self.rounds_us[OURS], strict=True)
        return [its / our for its, our in both]

    def __str__(self) -> str:
        peers = "; ".join(
            f"{peer} {statistics.median(us):.1f} µs, ours does {statistics.median(ratios):.2f} of "
            f"that ({min(ratios):.2f} to {max(ratios):.2f})"
            for peer, us in self.rounds_us.items()
            if peer != OURS and (ratios := self.ratios(peer))
        )
        return (
            f"Subscribe: {self.events:,} events of {self.size_bytes:,} bytes, µs of CPU an event: "
            f"ours {statistics.median(self.rounds_us[OURS]):.1f}; {peers}"
        )


def play(peer: str, servers: str, group_: str, count: int) -> float:
    """One peer in this process; CPU seconds."""
    if peer == OURS:
        return uvloop.run(ours(servers, group_, count))
    parse: Callable[[bytes], object] = orjson.loads
    if peer == "bare, json":
        parse = json.loads
    if peer == "bare, models":

        def parse(value: bytes) -> object:
            return Call.model_validate(orjson.loads(value)["data"])

    return uvloop.run(bare(servers, group_, count, parse))


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in PEERS:
        # A bare loop does not let heartbeats have their turn while there is something to read.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        os.sched_setaffinity(0, {0})
        print(play(arguments[0], arguments[1], arguments[2], int(arguments[3])))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="dialstream-bench-", dir="/var/tmp") as folder,
        start_broker(Path(folder) / "broker") as broker,
    ):
        found = measure(broker, int(arguments[0]) if arguments else EVENTS)
    print(found)
    reached = statistics.median(found.ratios()) >= AIM
    print(f"the aim, of the bare loop, is {AIM}: {'reached' if reached else 'missed'}")
    return 0


def measure(broker: Broker, count: int) -> Subscribed:
    """Let all read ``count`` events, in turns."""
    found: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for topic in ("calls", *(f"rejects.{group(number, OURS)}" for number in TURNS)):
        broker.create_topic(PREFIX + topic)
    size = fill(broker.servers, count)
    for number in TURNS:
        for peer in PEERS:
            program = [sys.executable, "-m", "tests.bench.subscribe", peer, broker.servers]
            done = subprocess.run(
                [*program, group(number, peer), str(count)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                timeout=600,
            )
            if number:  # the first is for the broker to warm up
                taken = float(done.stdout.splitlines()[-1])
                found[peer].append(taken / (count - _WARM_UP) * _US)
    return Subscribed(count, size, found)


def group(number: int, peer: str) -> str:
    return f"g{number}-{PEERS.index(peer)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
