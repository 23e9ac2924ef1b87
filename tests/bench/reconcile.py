"""What reconciliation costs: calls that were pushed once and listed once, read from a log.

Reading, judging, rows, verdicts, and the state in its file; publishing is not in it. One process,
one core. ``python -m tests.bench.reconcile [calls]``.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from consumers.reconcile.core import Core
from consumers.reconcile.facts import read_fact
from consumers.reconcile.state import State
from consumers.reconcile.verdicts import Rules
from ingest.eventlog.log import StoredRecord
from ingest.reading import unknown_call
from schemas.times import rfc3339

T0 = 1_789_999_200_000
WEEK_MS = 7 * 24 * 3_600_000
LENGTH_MS = 120_000

#: As the role does it.
COMMIT_RECORDS = 5_000


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


def run(calls: int, over_ms: int, folder: Path, *, same_numbers: bool = False) -> float:
    """µs of CPU for each call, both of its facts and all that is made of them."""
    state = State.open(folder / f"{calls}-{same_numbers}.sqlite")
    core = Core(
        state,
        Rules(),
        connections=["acme"],
        judged={"acme": 7_200_000},
        since_ms=0,
        window_ms=3 * WEEK_MS,
    )
    spent_s, verdicts = 0.0, 0
    some: list[StoredRecord] = []

    def work(until_ms: int | None) -> None:
        nonlocal spent_s, verdicts
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
        spent_s += time.process_time() - begun_s
        some.clear()

    for stored in day(calls, over_ms, same_numbers=same_numbers):
        some.append(stored)
        if len(some) == 1000:
            work(None)
    work(T0 + over_ms + 24 * 3_600_000)
    state.close()
    assert verdicts == calls, f"{verdicts} verdicts of {calls} calls"
    return spent_s / calls * 1e6


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with tempfile.TemporaryDirectory() as folder:
        print(f"{calls} calls in a week: {run(calls, WEEK_MS, Path(folder)):.0f} µs of CPU a call")
        for crowd in (calls // 4, calls):
            cost = run(crowd, 3_600_000, Path(folder), same_numbers=True)
            print(f"{crowd} calls between two numbers in an hour: {cost:.0f} µs of CPU a call")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"memory at most {peak} MiB")


if __name__ == "__main__":
    main()
