"""Who is compared: the yardstick first, then whoever does the job.

A peer is a line of `PEERS` and a context manager that starts it, and whatever it needs besides.
It answers 204 at /webhooks/acme.
"""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.bodies import SECRET
from tests.bench.broker import LOAD_CORE, PARTITIONS, Broker
from tests.bench.errors import BenchError

SERVER_CORE = "0"
PATH = "/webhooks/acme"

_SCRIPT = str(Path(sys.executable).with_name("dialstream"))
_START_S = 15
_STOP_S = 30


@dataclass(frozen=True, slots=True)
class Stored:
    """What a peer has in the end."""

    records: int
    #: Different ids among them, where repeats are legal: when Kafka came back late.
    distinct: int

    @classmethod
    def once(cls, records: int) -> "Stored":
        """Where a repeat would be a fault."""
        return cls(records, records)


@dataclass(frozen=True, slots=True)
class Server:
    """A peer that is running."""

    process: psutil.Popen
    port: int
    #: End it, and count what it has stored; None stores nothing.
    stored: Callable[[], Stored] | None = None
    #: Where its metrics are, if it has any.
    admin_port: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}/metrics"

    def cpu_s(self) -> float:
        """Seconds of CPU until now, of all its threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def spooled(self) -> int:
        """Records that wait on its disk for Kafka."""
        with urllib.request.urlopen(self.metrics_url) as answer:
            text = answer.read().decode()
        return round(
            sum(
                sample.value
                for family in text_string_to_metric_families(text)
                if family.name == "dialstream_spool_records"
                for sample in family.samples
            )
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_STOP_S)


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    #: In a folder of its own.
    start: Callable[[Path, Broker], AbstractContextManager[Server]]


@contextmanager
def noop(home: Path, broker: Broker) -> Iterator[Server]:
    port = free_port()
    with running(
        [sys.executable, str(Path(__file__).with_name("noop.py")), str(port)], home, port
    ) as process:
        yield Server(process, port)


@contextmanager
def plain(home: Path, broker: Broker) -> Iterator[Server]:
    port, topic = free_port(), "plain.calls"
    broker.create_topic(topic)
    script = Path(__file__).with_name("plain.py")
    command = [sys.executable, str(script), str(port), broker.servers, topic, SECRET]
    with running(command, home, port) as process:

        def stored() -> Stored:
            server.stop()
            return Stored.once(broker.size(topic))

        server = Server(process, port, stored)
        yield server


@contextmanager
def journal(home: Path, broker: Broker) -> Iterator[Server]:
    ours = _configure(home, 'eventlog = { kind = "journal", path = "data" }\n')
    with running(ours.command, home, ours.port) as process:

        def stored() -> Stored:
            server.stop()
            return Stored.once(rows_in(home / "data/journal/calls"))

        server = Server(process, ours.port, stored)
        yield server


@contextmanager
def kafka(home: Path, broker: Broker) -> Iterator[Server]:
    ours = _configure(home, _on_kafka(broker, "telephony."))
    _create_topics(home)
    with running(ours.command, home, ours.port) as process:

        def stored() -> Stored:
            server.stop()
            return Stored(broker.size(CALLS), broker.ids(CALLS))

        server = Server(process, ours.port, stored, ours.admin_port)
        with _quoting(home, "receiver"):
            yield server


@contextmanager
def listener(home: Path, broker: Broker, dialpad_url: str) -> Iterator[Server]:
    """Ours on Kafka, with topics of its own, at the other end of a websocket."""
    ours = _configure(
        home, _on_kafka(broker, "listener."), _api(dialpad_url) + ", stream = { enabled = true }"
    )
    _create_topics(home)
    with running([_SCRIPT, "listen"], home, ours.admin_port) as process:

        def stored() -> Stored:
            server.stop()
            return Stored(broker.size("listener.calls"), broker.ids("listener.calls"))

        server = Server(process, ours.port, stored, ours.admin_port)
        with _quoting(home, "listener"):
            yield server


@contextmanager
def backfill(
    home: Path, broker: Broker, dialpad_url: str, *, from_: str, to: str, requests_per_s: float
) -> Iterator[Server]:
    """Ours on Kafka, with topics of its own, reading back; its process ends once it is done."""
    poll = f", poll = {{ requests_per_s = {requests_per_s} }}"
    ours = _configure(home, _on_kafka(broker, "backfill."), _api(dialpad_url) + poll)
    _create_topics(home)
    command = [_SCRIPT, "backfill", "acme", "--from", from_, "--to", to]
    with _started(command, home, SERVER_CORE) as process:

        def stored() -> Stored:
            if process.wait():
                raise BenchError(f"it exits with {process.returncode}")
            return Stored(broker.size("backfill.calls"), broker.ids("backfill.calls"))

        with _quoting(home, "backfill"):
            yield Server(process, ours.port, stored)


@contextmanager
def dialpad(home: Path) -> Iterator[str]:
    """The Dialpad of `tests.bench.dialpad`, on the core of the load: its address."""
    port, websocket_port = free_port(), free_port()
    command = [sys.executable, "-m", "tests.bench.dialpad", str(port), str(websocket_port)]
    with running(command, home, port, LOAD_CORE):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def poller(
    home: Path, dialgood_url: str, *, page: int, requests_per_s: float
) -> Iterator[tuple[Server, Callable[[], int]]]:
    """Ours on the journal, reading a connection's agents once; and how much it has stored."""
    admin_port = free_port()
    # Once: the next pass is due long after the end.
    (home / "dialstream.toml").write_text(
        f'admin.port = {admin_port}\nlogging.format = "json"\n'
        'eventlog = { kind = "journal", path = "data" }\n'
        f'[connections.bots]\nprovider = "dialgood"\nbase_url = "{dialgood_url}"\n'
        'api_key = "invented"\nregion = "US"\n'
        f'assume = {{ time_unit = "ms", page_limit = {page} }}\n'
        f"poll = {{ every_s = 864000, sweep_every_s = 864000, requests_per_s = {requests_per_s}, "
        "also = [] }\n"
    )

    def rows() -> int:
        return rows_in(home / "data/journal/calls")

    with running([_SCRIPT, "poll"], home, admin_port) as process:

        def stored() -> Stored:
            server.stop()
            return Stored.once(rows())

        server = Server(process, admin_port, stored, admin_port)
        with _quoting(home, "poller"):
            yield server, rows


@contextmanager
def dialgood(home: Path, records: int) -> Iterator[str]:
    """The Dialgood of `tests.bench.dialgood`, on the core of the load: its address."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.dialgood", str(port), str(records)]
    with running(command, home, port, LOAD_CORE):
        yield f"http://127.0.0.1:{port}"


@dataclass(frozen=True, slots=True)
class _Ours:
    port: int
    admin_port: int
    command: Sequence[str] = (_SCRIPT, "receive")


def _configure(home: Path, eventlog: str, more: str = "") -> _Ours:
    ours = _Ours(free_port(), free_port())
    (home / "dialstream.toml").write_text(
        f"receiver.port = {ours.port}\nadmin.port = {ours.admin_port}\n"
        f'logging.format = "json"\n{eventlog}'
        f'connections.acme = {{ provider = "dialpad", secrets = ["{SECRET}"]{more} }}\n'
    )
    return ours


def _on_kafka(broker: Broker, topic_prefix: str) -> str:
    return (
        'eventlog = { kind = "kafka", path = "data" }\n'
        f'kafka.bootstrap_servers = "{broker.servers}"\nkafka.partitions = {PARTITIONS}\n'
        f'kafka.topic_prefix = "{topic_prefix}"\n'
        "kafka.replication_factor = 1\nkafka.min_insync_replicas = 1\n"
    )


def _api(dialpad_url: str) -> str:
    return f', base_url = "{dialpad_url}", api_key = "invented"'


def _create_topics(home: Path) -> None:
    made = subprocess.run(
        [_SCRIPT, "topics", "create"],
        cwd=home,
        env=_environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise BenchError(f"`dialstream topics create`: {(made.stderr or made.stdout)[-1000:]}")


@contextmanager
def _quoting(home: Path, who: str) -> Iterator[None]:
    """What goes wrong is told with what it has said itself."""
    try:
        yield
    except BenchError as error:
        said = _end_of(home / "stderr")
        raise BenchError(f"{error}\n\nWhat the {who} said:\n{said}") from None


#: Where ours puts what is posted.
CALLS = "telephony.calls"

YARDSTICK, PLAIN, OURS = "no-op", "plain app", "kafka"

#: Who plays in one scene only.
LISTENER, BACKFILL = "listener", "backfill"

PEERS = (
    Peer(YARDSTICK, noop),
    Peer(PLAIN, plain),
    Peer("journal", journal),
    Peer(OURS, kafka),
)


@contextmanager
def running(
    command: Sequence[str], home: Path, port: int, core: str = SERVER_CORE
) -> Iterator[psutil.Popen]:
    """A server's process on its core, from when it listens."""
    with _started(command, home, core) as process:
        _wait_for(process, port, home / "stderr")
        yield process


@contextmanager
def _started(command: Sequence[str], home: Path, core: str) -> Iterator[psutil.Popen]:
    with (home / "stderr").open("wb") as stderr:
        process = psutil.Popen(
            ["taskset", "-c", core, *command],
            cwd=home,
            env=_environ(),
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _environ() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("DIALSTREAM_")}


def _wait_for(process: psutil.Popen, port: int, stderr: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise BenchError(f"a server does not start:\n{_end_of(stderr)}")


def _end_of(stderr: Path) -> str:
    return "\n".join(stderr.read_text(errors="replace").splitlines()[-10:])


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def rows_in(topic: Path) -> int:
    """Records of a journal's topic, read without our own code."""
    total = 0
    for path in topic.glob("[0-9]*.sqlite"):
        with closing(sqlite3.connect(path)) as db:
            total += db.execute("select count(*) from records").fetchone()[0]
    return total
