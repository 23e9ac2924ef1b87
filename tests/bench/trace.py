"""What `dialstream trace` takes on a log of a month: ``python -m tests.bench.trace [records]``.

Two thirds of the records are calls of two legs, two events each; the rest are their verdicts
and rows. Written plainly, with times spread over 30 days, to a journal and to a Kafka of one broker
and 12 partitions. Then the command is run as a process, once for each way to ask.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import tomli_w
from confluent_kafka import Producer

from ingest.eventlog.journal import journal_folder
from ingest.eventlog.log import Record
from ingest.eventlog.segments import Segment, segment_paths
from ingest.eventlog.topic import SEGMENT_BYTES
from ingest.reading import unknown_call
from schemas.event import Event, encode
from schemas.times import now_ms, rfc3339
from schemas.topics import TOPICS
from tests.bench.broker import PARTITIONS
from tests.kafka.cluster import Cluster
from tests.kit import SCRIPT, clean_environment

DAYS = 30
CALL_RECORDS = 6

_BATCH = 2000

Written = tuple[int, Record]


def month(calls: int) -> Iterator[Written]:
    """(milliseconds since 1970, record) of each, oldest first."""
    end_ms = now_ms() - 60_000
    begin_ms = end_ms - DAYS * 86_400_000
    for nth in range(calls):
        at_ms = begin_ms + (end_ms - begin_ms) * nth // calls
        first, second = name(nth), name(nth, 1)
        for leg, state, behind_ms in (
            *((first, "ringing", 0), (second, "ringing", 900)),
            *((second, "ended", 20_000), (first, "ended", 20_500)),
        ):
            yield at_ms + behind_ms, _call(nth, leg, state, at_ms, at_ms + behind_ms)
        yield at_ms + 21_000, _verdict(first, at_ms)
        yield at_ms + 22_000, _row(nth, first, second, at_ms)


def name(nth: int, leg: int = 0) -> str:
    return str(5_000_000_000_000_000 + 10 * nth + leg)


def number(nth: int) -> str:
    return f"+1415{nth % 10_000_000:07}"


def _call(nth: int, leg: str, state: str, begun_ms: int, at_ms: int) -> Record:
    party = {"kind": "contact", "number": number(nth), "withheld": False}
    data: dict[str, Any] = {
        **unknown_call(leg, state),
        "conversation_id": name(nth),
        "related_call_ids": [name(nth)] if leg != name(nth) else [],
        "direction": "inbound",
        "from_number": number(nth),
        **{who: {**party, "number": None} for who in ("internal", "target")},
        "external": party,
        "started_at": rfc3339(begun_ms),
    }
    raw = b'{"call_id": %b, "filling": "%b"}' % (leg.encode(), b"x" * 1500)
    return _record("call", state, f"dialpad:acme:call:{leg}:{state}:{at_ms}", leg, at_ms, data, raw)


def _verdict(leg: str, at_ms: int) -> Record:
    sides = {"pushed_connection": "acme", "recorded_connection": "acme"}
    data: dict[str, Any] = {
        "verdict": "matched",
        "n": 1,
        "call_id": leg,
        "started_at": rfc3339(at_ms),
        **sides,
        "reason": None,
        "differences": [],
        "revises": None,
    }
    ident = f"verdict:acme:{leg}:acme:1:0123456789abcdef"
    return _record("verdict", "matched", ident, leg, at_ms, data)


def _row(nth: int, first: str, second: str, at_ms: int) -> Record:
    data: dict[str, Any] = {
        "conversation_id": first,
        "call_ids": [first, second],
        "direction": "inbound",
        "legs": [{"call_id": leg} for leg in (first, second)],
        "outcome": "answered",
        "external": {"number": number(nth), "withheld": False},
        "started_at": rfc3339(at_ms),
        "flags": [],
        "counterparts": [],
        "merged_from": [],
        "complete": True,
    }
    ident = f"conversation:acme:{first}:0123456789abcdef"
    return _record("conversation", "updated", ident, first, at_ms, data)


def _record(
    subject: str,
    what: str,
    ident: str,
    about: str,
    at_ms: int,
    data: Mapping[str, Any],
    raw: bytes | None = None,
) -> Record:
    event = Event(
        type=f"dialstream.{subject}.{what}",
        subject_kind=subject,
        id=ident,
        subject=f"{subject}/{about}",
        key=f"acme/{about}",
        time_ms=at_ms,
        recorded_ms=at_ms,
        via="webhook" if subject == "call" else "derived",
        provider="dialpad",
        connection="acme",
        data=dict(data),
        raw=raw,
    )
    headers = (("ce_type", event.type.encode()), ("ce_id", ident.encode()))
    return Record(event.topic, event.key.encode(), encode(event), headers)


def to_journal(path: Path, records: Iterator[Written]) -> None:
    """With the times that are wanted, which the journal's own way in does not take."""
    segments: dict[str, Segment] = {}
    for batch in _batches(records):
        for topic in {record.topic for _, record in batch}:
            these = [record for _, record in batch if record.topic == topic]
            folder = journal_folder(path) / topic
            if topic not in segments:
                folder.mkdir(parents=True)
                Segment.create(folder, 1)
                segments[topic] = Segment(segment_paths(folder)[-1])
            segment = segments[topic]
            segment.append(these, batch[0][0])
            segment.checkpoint()
            if segment.size >= SEGMENT_BYTES:
                segment.seal()
                Segment.create(folder, segment.following())
                segment.close(checkpoint=True)
                segments[topic] = Segment(segment_paths(folder)[-1])
    for segment in segments.values():
        with closing(segment):
            pass


def _batches(records: Iterator[Written]) -> Iterator[list[Written]]:
    while batch := list(itertools.islice(records, _BATCH)):
        yield batch


def to_kafka(bootstrap: str, prefix: str, records: Iterator[Written]) -> None:
    settings = {"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 20}
    producer = Producer(settings)
    for count, (at_ms, record) in enumerate(records):
        producer.produce(
            prefix + record.topic,
            record.value,
            record.key,
            timestamp=at_ms,
            headers=list(record.headers),
        )
        if count % 10_000 == 0:
            producer.flush()
    producer.flush()


def ask(folder: Path, calls: int, say: Callable[[str], None]) -> None:
    """Run the command for each way to ask."""
    old, new = calls // 10, calls - calls // 100
    for what, arguments in {
        "an old conversation": [name(old)],
        "a new conversation": [name(new)],
        "an old second leg": [name(old, 1)],
        "a new second leg": [name(new, 1)],
        "an event of a new call": [_first_event(folder, name(new, 1))],
        "a call that is not there": ["5999999999999999"],
        "a number, of 24 h": [number(new)],
        "a number, of 30 d": [number(old), "--since", "31d"],
    }.items():
        begun = time.perf_counter()
        done = subprocess.run(
            [SCRIPT, "trace", *arguments, "--json"],
            cwd=folder,
            env=clean_environment(),
            capture_output=True,
            check=False,
        )
        taken_s = time.perf_counter() - begun
        found = done.stdout.count(b'"writtentime"')
        say(f"  {what:<26} {taken_s:6.2f} s   exit {done.returncode}, {found} records")


def _first_event(folder: Path, leg: str) -> str:
    done = subprocess.run(
        [SCRIPT, "trace", leg, "--json"],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        check=True,
    )
    return next(
        part for part in done.stdout.decode().split('"') if part.startswith("dialpad:acme:call:")
    )


def main() -> None:
    os.nice(10)
    calls = int(sys.argv[1] if len(sys.argv) > 1 else 1_000_000) // CALL_RECORDS
    connections = {"acme": {"provider": "dialpad", "secrets": ["x" * 32]}}

    def say(text: str) -> None:
        print(text, flush=True)

    with tempfile.TemporaryDirectory(prefix="dialstream-trace-", dir="/var/tmp") as name_:
        folder = Path(name_)
        begun = time.perf_counter()
        to_journal(folder / "data", month(calls))
        made_s = time.perf_counter() - begun
        say(f"journal, {calls * CALL_RECORDS:,} records, made in {made_s:.0f} s")
        config = folder / "dialstream.toml"
        config.write_text(tomli_w.dumps({"connections": connections}))
        ask(folder, calls, say)
    with (
        tempfile.TemporaryDirectory(prefix="dialstream-trace-", dir="/var/tmp") as name_,
        Cluster(folder=Path(name_) / "kafka") as cluster,
    ):
        folder = Path(name_)
        for topic in TOPICS:
            kept = {"retention.ms": "-1"}
            cluster.create_topic(f"bench.{topic}", partitions=PARTITIONS, config=kept)
        begun = time.perf_counter()
        to_kafka(cluster.bootstrap, "bench.", month(calls))
        made_s = time.perf_counter() - begun
        say(f"Kafka, {calls * CALL_RECORDS:,} records, made in {made_s:.0f} s")
        settings = {
            "connections": connections,
            "eventlog": {"kind": "kafka"},
            "kafka": cluster.settings("bench."),
        }
        (folder / "dialstream.toml").write_text(tomli_w.dumps(settings))
        ask(folder, calls, say)


if __name__ == "__main__":
    main()
