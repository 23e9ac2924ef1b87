"""`dialstream doctor`: what is wrong, and how to mend it."""

import asyncio
import fcntl
import json
import os
import resource
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import apsw
import phonenumbers

from ingest.commands.doctor_providers import ask_providers, judge_notifications
from ingest.commands.findings import Finding
from ingest.commands.topics import grant, hidden, leaderless, what_differs
from ingest.errors import ConfigError
from ingest.eventlog.cluster import (
    MIN_INSYNC_REPLICAS,
    Cluster,
    ClusterError,
    Fault,
    FoundTopic,
    Operation,
    describe,
    may_write,
    open_cluster,
)
from ingest.eventlog.journal import journal_folder
from ingest.eventlog.segments import Segment, segment_paths
from ingest.eventlog.spool import SPOOLS, look_into
from ingest.eventlog.topic import KEEP_FREE
from ingest.providers import PROVIDERS
from ingest.providers.dialpad.subscriptions import syncs
from ingest.service import listening
from ingest.settings import Admin, Connection, Kafka, Receiver, Settings, load_settings
from schemas.topics import TOPICS

#: HS256 keys are as strong as their length; RFC 7518 section 3.2 asks for 32 bytes.
STRONG_SECRET = 32

SLOW_FSYNC_S = 0.05
FSYNCS = 20

#: For all that is asked of Kafka, the connection included.
KAFKA_S = 15.0

#: Below this, idle connections can crowd out honest ones.
DESCRIPTORS = 4096


def diagnose(config: Path | None) -> list[Finding]:
    """Look at everything; never raises for what is wrong."""
    try:
        settings = load_settings(config)
    except ConfigError as error:
        return [Finding("bad", f"settings: {fault}", "mend the settings") for fault in error.faults]
    named = ", ".join(settings.connections) or "none"
    return [
        Finding("good", f"settings are in order; connections: {named}"),
        *_connections(settings),
        *ask_providers(settings),
        *_port("receiver", settings.receiver, settings.eventlog.path),
        *_port("admin", settings.admin, settings.eventlog.path),
        *_disk(settings.eventlog.path),
        *(
            (*_kafka(settings.kafka), *_spool(settings.eventlog.path))
            if settings.eventlog.kind == "kafka"
            else _journal(settings.eventlog.path)
        ),
        *_machine(),
    ]


def show(findings: list[Finding], *, as_json: bool) -> int:
    """Print the findings; 1 if one of them is bad, else 0."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        from rich.console import Console  # noqa: PLC0415 - not for programs

        console = Console(highlight=False, soft_wrap=True)
        marks = {"good": "[green]✓[/]", "odd": "[yellow]![/]", "bad": "[red]✗[/]"}
        for finding in findings:
            console.print(marks[finding.state], end=" ")
            console.print(finding.what, markup=False)
            if finding.mend:
                console.print(f"    → {finding.mend}", markup=False, style="dim")
    return int(any(finding.state == "bad" for finding in findings))


def _connections(settings: Settings) -> Iterator[Finding]:
    if not settings.connections:
        yield Finding("bad", "no connection is configured", "add [connections.<name>]")
    for name, connection in settings.connections.items():
        secrets = connection.signing_secrets() if connection.has_secrets else ()
        weak = sum(len(secret) < STRONG_SECRET for secret in secrets)
        if weak:
            yield Finding(
                "odd",
                f"{name}: {weak} secret(s) under {STRONG_SECRET} bytes can be guessed offline",
                "make one with `openssl rand -base64 32`, set it at the provider, rotate",
            )
        if connection.region is None and not PROVIDERS[connection.provider].takes_commands:
            yield Finding(
                "odd",
                f"{name}: numbers without a country stay as they are",
                f"set connections.{name}.region, e.g. US",
            )
        elif connection.region not in (None, *phonenumbers.SUPPORTED_REGIONS):
            yield Finding(
                "bad",
                f"{name}: region {connection.region} is no ISO 3166 code",
                f"set connections.{name}.region to e.g. US or GB",
            )
        for path in filter(None, (*connection.secret_files, connection.api_key_file)):
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                yield Finding("bad", f"{path} can be read by others", f"chmod 600 {path}")
        if connection.provider == "dialpad":
            yield from _transport(name, connection)
        elif connection.provider == "diallink":
            yield judge_notifications(name, connection)


def _transport(name: str, connection: Connection) -> Iterator[Finding]:
    by_socket = connection.subscriptions.transport == "websocket"
    if by_socket and not connection.stream.enabled:
        yield Finding(
            "bad",
            f"{name}: events are to come by the websocket, and nobody listens to it",
            f"set connections.{name}.stream.enabled = true, or subscriptions.transport",
        )
    elif connection.stream.enabled and not by_socket and syncs(connection):
        yield Finding(
            "odd",
            f"{name}: `dialpad sync` makes webhooks, so nothing comes by the websocket",
            f'set connections.{name}.subscriptions.transport = "websocket", or stream.enabled',
        )


def _port(name: str, section: Receiver | Admin, path: Path) -> Iterator[Finding]:
    where = f"{name} port {section.host}:{section.port}"
    if _receiver_runs(path):
        yield Finding("good", f"{where}: a receiver is running")
    else:
        try:
            with listening(section, name):
                yield Finding("good", f"{where} is free")
        except ConfigError as error:
            what, _, mend = error.faults[0].rpartition(": ")
            yield Finding("bad", what, mend)
    if name == "admin" and section.host not in ("127.0.0.1", "::1", "localhost"):
        yield Finding(
            "odd",
            f"admin.host is {section.host}: metrics and health may be public",
            "keep it behind a firewall, or set it to 127.0.0.1",
        )


def _receiver_runs(path: Path) -> bool:
    try:
        with (path / "receiver.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _disk(path: Path) -> Iterator[Finding]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        slowest = _slowest_fsync(path)
    except OSError as error:
        yield Finding(
            "bad",
            f"eventlog.path {path} cannot be written: {error.strerror}",
            "set it to a folder that this user can write to",
        )
        return
    if slowest > SLOW_FSYNC_S:
        yield Finding(
            "odd",
            f"the disk takes {slowest * 1000:.0f} ms for the slowest of {FSYNCS} flushes",
            "answers wait for it: move eventlog.path to a quicker disk",
        )
    else:
        yield Finding("good", f"the disk flushes in {slowest * 1000:.1f} ms at worst")
    usage = shutil.disk_usage(path)
    share = usage.free / usage.total
    text = f"{usage.free / 1e9:.1f} GB free ({share:.0%}) at {path.resolve()}"
    if share < KEEP_FREE:
        yield Finding("bad", f"{text}: deliveries get 503 below {KEEP_FREE:.0%}", "make room")
    else:
        yield Finding("good", text)
    if _file_system(path) in ("tmpfs", "ramfs"):
        yield Finding(
            "bad",
            f"{path.resolve()} is in memory: what is acknowledged dies with the machine",
            "set eventlog.path to a folder on a disk",
        )


def _slowest_fsync(path: Path) -> float:
    probe = path / f".doctor.{os.getpid()}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        slowest = 0.0
        for _ in range(FSYNCS):
            os.write(descriptor, b"x" * 4096)
            begun = time.perf_counter()
            os.fsync(descriptor)
            slowest = max(slowest, time.perf_counter() - begun)
        return slowest
    finally:
        os.close(descriptor)
        probe.unlink()


def _file_system(path: Path) -> str:
    """Type of the file system, where /proc tells it; else empty."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    except OSError:
        return ""
    for line in mounts.splitlines():
        _, point, name, *_ = line.split()
        if path.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind


def _journal(path: Path) -> Iterator[Finding]:
    folder = journal_folder(path)
    if not folder.is_dir():
        yield Finding("good", "no journal yet: it is made at the first start")
        return
    files = [segment for topic in TOPICS for segment in segment_paths(folder / topic)]
    for file in files:
        if not _in_order(file):
            yield Finding(
                "bad",
                f"{file} is damaged",
                "stop the receiver and start it again: it saves what can be read",
            )
    yield from _set_aside(folder)
    size = sum(file.stat().st_size for file in files)
    yield Finding("good", f"journal: {len(files)} files, {size / 1e6:.1f} MB")


def _spool(path: Path) -> Iterator[Finding]:
    waits = False
    for folder in sorted((path / SPOOLS).glob("*/")):
        for topic, found in look_into(folder).items():
            waits = True
            yield Finding(
                "odd",
                f"{found.records:,} records of {topic} wait in {folder}, the first for "
                f"{found.oldest_s:,.0f} s",
                "mend what keeps Kafka from taking them; if their receiver will not run again: "
                f"dialstream spool drain {folder}",
            )
        yield from _set_aside(folder)
    if not waits:
        yield Finding("good", "nothing waits in the spool")


def _set_aside(folder: Path) -> Iterator[Finding]:
    for damaged in sorted(folder.glob("*/*.damaged")):
        yield Finding(
            "odd", f"{damaged} was damaged and set aside", "look at the disk; then delete it"
        )


def _in_order(file: Path) -> bool:
    try:
        segment = Segment(file)
        try:
            return segment.check()
        finally:
            segment.close()
    except apsw.Error:
        return False


def _kafka(kafka: Kafka) -> Sequence[Finding]:
    findings: list[Finding] = []

    async def look() -> None:
        async with asyncio.timeout(KAFKA_S), open_cluster(kafka) as link:
            findings.extend(_as_found(fault) for fault in link.faults)
            cluster = await describe(link, [kafka.topic_prefix + name for name in TOPICS])
            findings.extend(judge_cluster(cluster, kafka))
            if cluster.topics and not await may_write(link):
                findings.append(
                    Finding(
                        "bad",
                        "the cluster lets us not write idempotently",
                        grant(kafka, "Write"),
                    )
                )

    try:
        asyncio.run(look())
    except ClusterError as error:
        findings += [_as_found(fault) for fault in error.faults]
    except ConfigError as error:
        findings += [Finding("bad", f"kafka.{fault}", "mend it") for fault in error.faults]
    except TimeoutError:
        findings.append(
            Finding(
                "bad",
                f"Kafka has not told everything within {KAFKA_S:.0f} s",
                "look at the brokers, then try again",
            )
        )
    return findings


def judge_cluster(cluster: Cluster, kafka: Kafka) -> Iterator[Finding]:
    """What is to be said of a cluster and our topics; of several topics with one fault, once."""
    yield Finding("good", f"Kafka cluster {cluster.cluster_id}: {cluster.brokers} broker(s)")
    if cluster.brokers < kafka.replication_factor:
        yield Finding(
            "odd",
            f"{cluster.brokers} broker(s) are up, and kafka.replication_factor is "
            f"{kafka.replication_factor}",
            "start the others, or set it to what there is; topics cannot be made meanwhile",
        )
    topics = {kafka.topic_prefix + name: topic for name, topic in TOPICS.items()}
    missing = [name for name in topics if name not in {*cluster.topics, *cluster.hidden}]
    if missing:
        yield Finding(
            "bad", f"{_named(missing)}: missing, so events wait on disk", "dialstream topics create"
        )
    if cluster.hidden:
        yield _as_found(hidden(kafka), cluster.hidden)
    faults: dict[tuple[str, str], list[tuple[str, Fault]]] = {}
    sound = 0
    for name, found in cluster.topics.items():
        wrong = [
            *leaderless(found),
            *_copies(found),
            *_rights(found, kafka),
            *what_differs(found, topics[name], kafka),
        ]
        sound += not wrong
        for fault in wrong:
            faults.setdefault((fault.state, fault.what), []).append((name, fault))
    for same in faults.values():
        yield _as_found(same[0][1], [name for name, _ in same])
    if sound:
        yield Finding("good", f"{sound} of {len(topics)} topics are as they should be")


def _copies(found: FoundTopic) -> Iterator[Fault]:
    """How many brokers may fail."""
    least = int((found.configs or {}).get(MIN_INSYNC_REPLICAS, "1"))
    factor = found.replication_factor
    led = [partition for partition in found.partitions if partition.leader >= 0]
    if any(partition.in_sync < least for partition in led):
        yield Fault(
            f"fewer replicas are in sync than {MIN_INSYNC_REPLICAS}: it takes no events, they wait "
            "on disk",
            "start the brokers that are down",
        )
    elif any(partition.in_sync < partition.replicas for partition in led):
        yield Fault(
            "not all replicas are in sync", "start the brokers that are down, or wait", "odd"
        )
    if factor == 1:
        yield Fault(
            "there is one copy: with its disk acknowledged events are gone",
            "for more than trying it out set kafka.replication_factor = 3 on three brokers",
            "odd",
        )
    elif factor == least:
        yield Fault(
            f"{MIN_INSYNC_REPLICAS} is the replication factor: while one broker is down events "
            "wait on disk",
            "have one replica more, e.g. 3 with kafka.min_insync_replicas = 2",
            "odd",
        )


def _rights(found: FoundTopic, kafka: Kafka) -> Iterator[Fault]:
    if Operation.WRITE not in found.operations:
        yield Fault("the right Write is missing: events wait on disk", grant(kafka, "Write"))
    if Operation.READ not in found.operations:
        yield Fault(
            "the right Read is missing: `tail` and consumers need it", grant(kafka, "Read"), "odd"
        )


def _as_found(fault: Fault, topics: Sequence[str] = ()) -> Finding:
    what = f"{_named(topics)}: {fault.what}" if topics else fault.what
    is_for_one = len(topics) > 1 and f" {topics[0]} " in fault.mend
    mend = f"{fault.mend}; likewise for the others" if is_for_one else fault.mend
    return Finding(fault.state, what, mend)


def _named(topics: Sequence[str]) -> str:
    return ", ".join(topics) if len(topics) < len(TOPICS) else "all topics"


def _machine() -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < DESCRIPTORS:
        yield Finding(
            "odd",
            f"at most {hard} open files: idle connections could use them up",
            f"raise the limit (ulimit -n, LimitNOFILE=) to {DESCRIPTORS} or more",
        )
    if time.time() < 1_760_000_000:  # noqa: PLR2004 - October 2025, before this was written
        yield Finding("bad", "the clock of this machine is years behind", "set it, e.g. by NTP")
    yield Finding("good", f"Python {sys.version.split()[0]}")
