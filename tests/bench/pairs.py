"""What it costs to tell calls apart that two connections see between the same two numbers.

Each call is pushed at the one when it ends, and listed by the other within five minutes. Reading
the log is not in it; judging is, and the state in its file. What each call costs is printed, if
they all fall into one hour and if there is one a minute: ``python -m tests.bench.pairs [calls…]``.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from consumers.reconcile.core import Core
from consumers.reconcile.entries import PairSetup
from consumers.reconcile.facts import Fact, Listed, Mark, read_fact
from consumers.reconcile.state import State
from consumers.reconcile.verdicts import Rules
from ingest.eventlog.log import StoredRecord
from ingest.reading import unknown_call
from schemas.times import rfc3339

T0 = 1_789_999_200_000
HOUR_MS, LISTED_EVERY_MS = 3_600_000, 300_000
AGENT, CALLER = "+14155550100", "+14155550199"
COMMIT_RECORDS = 5_000


def event(nth: int, end_ms: int, at_ms: int, *, pushed: bool) -> Fact:
    call_id, connection = f"{'' if pushed else 'r'}{5_000_000 + nth}", "acme" if pushed else "bots"
    what, length_ms = "ended" if pushed else "recorded", 20_000 + nth * 7_919 % 200_000
    data = {
        **unknown_call(call_id, what),
        "direction": "inbound",
        "external": {"kind": "contact", "number": CALLER, "withheld": False},
        "internal": {"kind": "user", "id": "7", "number": AGENT, "withheld": False},
        "started_at": rfc3339(end_ms - length_ms),
        "connected_at": rfc3339(end_ms - length_ms),
        "ended_at": rfc3339(end_ms),
        "total_duration_s": length_ms / 1000,
        "outcome": "answered",
        "raw": {"call_id": call_id},
    }
    envelope = {
        "id": f"{connection}:{call_id}",
        "type": f"dialstream.call.{what}",
        "time": rfc3339(end_ms),
        "recordedtime": rfc3339(at_ms),
        "via": "webhook" if pushed else "poll",
        "provider": "dialpad" if pushed else "dialgood",
        "connection": connection,
        "data": data,
    }
    fact = read_fact(StoredRecord("calls", 0, nth, at_ms, b"", orjson.dumps(envelope), ()))
    assert fact is not None
    return fact


def facts(calls: int, every_ms: int) -> Iterator[Fact]:
    """In the order of the log."""
    yield Listed(connection="bots", agent_id="a", name=None, numbers=(AGENT,), at_ms=T0)
    begun = listed = 0
    for at_ms in range(T0, T0 + calls * every_ms + LISTED_EVERY_MS, LISTED_EVERY_MS):
        while begun < calls and T0 + begun * every_ms < at_ms:
            end_ms = T0 + begun * every_ms
            yield event(begun, end_ms, end_ms + 500, pushed=True)
            begun += 1
        while listed < begun:
            end_ms = T0 + listed * every_ms
            yield event(listed, end_ms + 2_000, max(at_ms, end_ms + 500), pushed=False)
            listed += 1
        yield Mark(connection="bots", agent_id="", watermark_ms=at_ms, swept_ms=None, at_ms=at_ms)


def run(calls: int, every_ms: int, path: Path) -> tuple[float, dict[str, int]]:
    """Seconds of CPU, and how many verdicts of each kind stand in the end."""
    state = State.open(path)
    core = Core(
        state,
        Rules(),
        connections=["acme", "bots"],
        judged={},
        since_ms=0,
        window_ms=30 * 24 * HOUR_MS,
        pairs=[PairSetup(pushed="acme", recorded="bots")],
    )
    spent_s = 0.0
    words: dict[str, str] = {}

    def commit() -> None:
        nonlocal spent_s
        begun_s = time.process_time()
        state.commit({}, core.clock_ms, core.watermarks, core.out)
        spent_s += time.process_time() - begun_s
        for record in core.out:
            if record.topic == "verdicts" and record.value is not None:
                data = orjson.loads(record.value)["data"]
                words[data["call_id"]] = data["verdict"]
        core.out = []

    for fact in facts(calls, every_ms):
        begun_s = time.process_time()
        core.take(fact)
        spent_s += time.process_time() - begun_s
        if len(core.out) > COMMIT_RECORDS:
            commit()
    begun_s = time.process_time()
    core.advance(T0 + calls * every_ms + 24 * HOUR_MS)
    spent_s += time.process_time() - begun_s
    commit()
    state.close()
    counts = {word: list(words.values()).count(word) for word in sorted(set(words.values()))}
    return spent_s, counts


def main() -> None:
    sizes = [int(each) for each in sys.argv[1:]] or [1_000, 5_000, 20_000, 50_000]
    with tempfile.TemporaryDirectory() as folder:
        for calls in sizes:
            for every_ms, words in ((HOUR_MS // calls, "in an hour"), (60_000, "one a minute")):
                if words == "one a minute" and calls > 10_000:
                    continue
                path = Path(folder) / f"{calls}-{every_ms}.sqlite"
                spent_s, counts = run(calls, max(1, every_ms), path)
                told = ", ".join(f"{count} {word}" for word, count in counts.items())
                each_us = spent_s / calls * 1e6
                print(f"{calls} calls, {words}: {spent_s:.1f} s, {each_us:.0f} µs a call; {told}")


if __name__ == "__main__":
    main()
