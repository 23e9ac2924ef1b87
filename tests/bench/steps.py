"""What each step of the hot path costs: ``python -m tests.bench.steps``."""

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from ingest.delivery import Delivery
from ingest.eventlog.lanes import Lane, Room
from ingest.eventlog.log import Record, records_of
from ingest.eventlog.producer import Producer, _partition
from ingest.eventlog.topic import TopicWriter
from ingest.providers.dialpad.webhook import Webhook
from schemas.times import now_ms
from tests.bench.bodies import SECRET, make_slices
from tests.bench.broker import PARTITIONS

_TIMES = 5
_BODIES = 5000
_GROUPS = (1, 16, 64)

#: Of a partition: a group is shared out among all of them.
_BATCHES = (1, 5, 64)


def steps(
    path: Annotated[Path, typer.Option(help="Where the journal is made, and removed.")] = Path(
        "/var/tmp"
    ),
) -> None:
    """Measure every step alone, over different bodies, in one thread. The best of five tries."""
    table = Table("step", title="µs per delivery", title_justify="left")
    table.add_column("CPU", justify="right")
    table.add_column("wall", justify="right")
    with tempfile.TemporaryDirectory(prefix="dialstream-steps-", dir=path) as folder:
        [bodies] = make_slices(Path(folder) / "bodies", [_BODIES], lambda _: None)
        for name, cpu_us, wall_us in _measure_all([*bodies.lines()], Path(folder)):
            table.add_row(name, f"{cpu_us:.1f}", f"{wall_us:.1f}")
    Console().print(table)


def _measure_all(bodies: Sequence[bytes], folder: Path) -> Sequence[tuple[str, float, float]]:
    source = Webhook([SECRET.encode()], None, 0)
    deliveries = [
        Delivery(connection="acme", via="webhook", headers=(), body=body, received_ms=now_ms())
        for body in bodies
    ]
    payloads = [source.verify(delivery) for delivery in deliveries]
    signed = list(zip(payloads, deliveries, strict=True))
    events = [event for pair in signed for event in source.normalize(*pair)]
    records = [record for event in events for record in records_of(event)]
    keys = [(record.topic, record.key, PARTITIONS) for record in records]

    def all_of(delivery: Delivery) -> list[Record]:
        [event] = source.normalize(source.verify(delivery), delivery)
        return records_of(event)

    gc.freeze()  # what was made for the measurement is no part of it
    return [
        ("verify", *_cost(lambda: _each(source.verify, [(d,) for d in deliveries]))),
        ("parse, normalize", *_cost(lambda: _each(source.normalize, signed))),
        ("encode", *_cost(lambda: _each(records_of, [(event,) for event in events]))),
        ("lane", *_cost(lambda: uvloop.run(_through_lane(lambda record: [record], records)))),
        (
            "these four, one after the other",
            *_cost(lambda: uvloop.run(_through_lane(all_of, deliveries))),
        ),
        ("partition, of a key's first", *_cost(lambda: _each(_first_partition, keys))),
        ("partition, after that", *_cost(lambda: _each(_partition, keys))),
        *(
            (
                f"record batch of {size}",
                *_cost(lambda size=size: uvloop.run(_build_batches(records, size))),  # type: ignore[misc]
            )
            for size in _BATCHES
        ),
        *(
            (
                f"journal, {size} at a time",
                *_cost(lambda size=size: _commit(folder / str(size), records, size)),  # type: ignore[misc]
            )
            for size in _GROUPS
        ),
    ]


def _cost(work: Callable[[], object]) -> tuple[float, float]:
    """Microseconds per delivery: of CPU, and by the clock."""
    tries = []
    for _ in range(_TIMES):
        began_cpu, began = time.process_time(), time.perf_counter()
        work()
        tries.append((time.process_time() - began_cpu, time.perf_counter() - began))
    cpu_s, wall_s = map(min, zip(*tries, strict=True))
    return 1e6 * cpu_s / _BODIES, 1e6 * wall_s / _BODIES


def _each(step: Callable[..., object], items: Sequence[tuple[Any, ...]]) -> None:
    for item in items:
        step(*item)  # nothing is kept, as in the receiver


async def _through_lane(
    make: Callable[[Any], Sequence[Record]], items: Sequence[Any], size: int = 64
) -> None:
    async def commit(_: Sequence[Record]) -> str:
        return "nowhere"

    lane = Lane(commit, Room(1 << 30))
    for at in range(0, len(items), size):
        for item in items[at : at + size]:
            lane.append(make(item)).then(float("inf"), lambda _: None)
        await lane.drained()


def _first_partition(topic: str, key: bytes, count: int) -> None:
    _partition.cache_clear()
    _partition(topic, key, count)


async def _build_batches(records: Sequence[Record], size: int) -> None:
    producer = Producer({})
    for at in range(0, len(records), size):
        producer._batch("calls", 0, records[at : at + size])
    await producer.close()


def _commit(folder: Path, records: Sequence[Record], size: int) -> None:
    folder.mkdir(exist_ok=True)
    writer = TopicWriter(folder / "calls")
    for at in range(0, len(records), size):
        writer.append(records[at : at + size])
    writer.close()


if __name__ == "__main__":
    typer.run(steps)
