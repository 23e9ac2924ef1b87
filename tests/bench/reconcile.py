"""What reconciliation costs: calls that were pushed once and listed once, read from a log.

Reading, judging, rows, verdicts, and the state in its file; publishing is not in it. One process,
one core. ``python -m tests.bench.reconcile [calls]``, or the scene ``reconcile``.
"""

import gc
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

from consumers.reconcile.core import Core
from consumers.reconcile.facts import read_fact
from consumers.reconcile.state import State
from consumers.reconcile.verdicts import Rules
from ingest.eventlog.log import StoredRecord
from ingest.reading import unknown_call
from schemas.times import rfc3339
from tests.bench.errors import BenchError

T0 = 1_789_999_200_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
LENGTH_MS = 120_000

#: As the role does it.
COMMIT_RECORDS = 5_000
TIDY_MS = HOUR_MS

#: Made at a time, outside of what counts.
READ_RECORDS = 1000

#: Memory is looked at so often.
STEPS = 30


def event(nth: int, what: str, end_ms: int, at_ms: int, *, same_numbers: bool) -> StoredRecord:
    call_id = str(5_000_000_000_000_000 + nth)
    number = "+14155550100" if same_numbers else f"+1415{nth % 10_000_000:07}"
    data = {
        **unknown_call(call_id, what),
        "direction": "inbound",
        "external": {"kind": "contact", "number": number, "withheld": False},
        "internal": {"kind": "user", "id": str(nth % 500), "name": "Somebody"},
        "target": {"kind": "user", "id": str(nth % 500), "name": "Somebody"},
        "started_at": rfc3339(end_ms - LENGTH_MS),
        "connected_at": rfc3339(end_ms - LENGTH_MS + 10_000),
        "ended_at": rfc3339(end_ms),
        "total_duration_s": LENGTH_MS / 1000,
        "talk_duration_s": LENGTH_MS / 1000 - 10,
        "outcome": "answered",
        "raw": {"call_id": call_id, "filling": "x" * 900},
    }
    envelope = {
        "specversion": "1.0",
        "id": f"dialpad:acme:{what}:{call_id}:{end_ms}",
        "type": f"dialstream.call.{what}",
        "time": rfc3339(end_ms),
        "recordedtime": rfc3339(at_ms),
        "via": "poll" if what == "recorded" else "webhook",
        "provider": "dialpad",
        "connection": "acme",
        "data": data,
    }
    key = f"acme/{call_id}".encode()
    return StoredRecord("calls", 0, nth, at_ms, key, orjson.dumps(envelope), ())


def day(calls: int, over_ms: int, *, same_numbers: bool) -> Iterator[StoredRecord]:
    """In the order of the log: a call's record is read two minutes after its end."""
    every_ms = max(1, over_ms // calls)
    behind = 120_000 // every_ms + 1
    for nth in range(calls + behind):
        if nth < calls:
            end_ms = T0 + nth * every_ms
            yield event(nth, "ended", end_ms, end_ms + 500, same_numbers=same_numbers)
        if nth >= behind:
            end_ms = T0 + (nth - behind) * every_ms
            at_ms = end_ms + behind * every_ms + 500
            yield event(nth - behind, "recorded", end_ms, at_ms, same_numbers=same_numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of calls that were pushed once and listed once."""

    calls: int
    #: Of CPU a call: both of its facts and all that is made of them, the state in its file.
    call_us: float
    #: At even steps.
    rss_bytes: Sequence[int]

    @property
    def growth(self) -> float:
        """By how much of itself RSS has grown since a third."""
        return self.rss_bytes[-1] / self.rss_bytes[len(self.rss_bytes) // 3] - 1


def run(
    calls: int,
    over_ms: int,
    folder: Path,
    *,
    same_numbers: bool = False,
    window_ms: int = 3 * WEEK_MS,
) -> Cost:
    """Reconcile so many calls that are spread over that time."""
    # As `ingest.runner` does it for every role.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    state = State.open(folder / f"{calls}-{same_numbers}.sqlite")
    core = Core(
        state,
        Rules(),
        connections=["acme"],
        judged={"acme": 7_200_000},
        since_ms=0,
        window_ms=window_ms,
    )
    process = psutil.Process()
    spent_s, verdicts, tidied_ms = 0.0, 0, 0
    sizes: list[int] = []
    some: list[StoredRecord] = []

    def work(until_ms: int | None) -> None:
        nonlocal spent_s, verdicts, tidied_ms
        begun_s = time.process_time()
        for stored in some:
            fact = read_fact(stored)
            assert fact is not None
            core.take(fact)
        if until_ms is not None:
            core.advance(until_ms)
        if until_ms is not None or len(core.out) > COMMIT_RECORDS:
            state.commit({("calls", 0): 0}, core.clock_ms, core.watermarks, core.out)
            verdicts += sum(b"verdict." in each.headers[1][1] for each in core.out)
            core.out = []
            if core.clock_ms > tidied_ms + TIDY_MS:
                tidied_ms = core.clock_ms
                core.forget(state.tidy(core.clock_ms, window_ms))
        spent_s += time.process_time() - begun_s
        some.clear()

    for nth, stored in enumerate(day(calls, over_ms, same_numbers=same_numbers)):
        some.append(stored)
        if len(some) == READ_RECORDS:
            work(None)
        if nth % (2 * calls // STEPS or 1) == 0:
            sizes.append(process.memory_info().rss)
    work(T0 + over_ms + 24 * 3_600_000)
    sizes.append(process.memory_info().rss)
    state.close()
    if verdicts != calls or core.too_late:
        raise BenchError(f"{verdicts} verdicts of {calls} calls, {core.too_late} facts too late")
    return Cost(calls=calls, call_us=spent_s / calls * 1e6, rss_bytes=sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What came of it."""

    week: Cost
    #: All between the same two numbers in an hour; each of twice as many as the one before.
    crowds: Sequence[Cost]
    #: Ten days, of which only an hour is remembered.
    long: Cost

    @property
    def crowding(self) -> float:
        """How much more a call costs in the largest crowd than in the smallest."""
        return self.crowds[-1].call_us / self.crowds[0].call_us - 1


def measure(folder: Path, calls: int) -> Reconciled:
    """Each part in a process of its own, or one would have the memory of the others.

    Raises BenchError if one does not come to its end.
    """
    crowds = [calls // 8, calls // 4, calls // 2]
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as alone:
        return Reconciled(
            week=alone.submit(run, calls, WEEK_MS, folder).result(),
            crowds=[
                alone.submit(run, crowd, HOUR_MS, folder, same_numbers=True).result()
                for crowd in crowds
            ],
            long=alone.submit(run, calls + 1, 10 * DAY_MS, folder, window_ms=HOUR_MS).result(),
        )


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        found = measure(Path(folder), calls)
    print(f"{found.week.calls:,} calls in a week: {found.week.call_us:.0f} µs of CPU a call")
    for crowd in found.crowds:
        print(f"{crowd.calls:,} between two numbers in an hour: {crowd.call_us:.0f} µs a call")
    sizes = [size // 1024**2 for size in found.long.rss_bytes]
    print(f"{found.long.calls:,} in ten days, window of an hour: RSS in MiB {sizes}")


if __name__ == "__main__":
    main()
