"""What the tests share: the product as a process, raw HTTP, payloads, signatures, metrics.

Nothing here uses the code under test, except to start it: PyJWT signs, sockets post, the
Prometheus client's parser reads the metrics.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGABRT, SIGTERM, Signals
from types import TracebackType
from typing import IO, Any, Self

import jwt
import psutil
import tomli_w
from prometheus_client.parser import text_string_to_metric_families

from tests.commands import run_forked

PROJECT = Path(__file__).parents[1]
SAMPLES = PROJECT / "tests" / "samples" / "dialpad"

#: The console script of the environment that runs the tests.
SCRIPT = Path(sys.executable).with_name("dialstream")

SECRET = "invented-secret-at-least-32-bytes-long!"
OTHER_SECRET = "another-invented-secret-of-some-length!!"

#: What a busy machine may take for what takes a moment, in seconds.
PATIENCE_S = 60.0

OUTCOMES = ("stored", "repeat", "refused", "rejected", "unavailable")

#: Below what the kernel hands out for outgoing connections, so that nobody takes them meanwhile.
_PORTS = range(20_000, 32_000)

#: Tests begin with the same seed; those that run at the same time must not choose alike.
_chance = random.SystemRandom()


# Payloads and signatures


def call(leg: int, seq: int, **more: object) -> dict[str, Any]:
    """The ``seq``-th event of a leg: a payload of Dialpad's usual size, no two alike."""
    state = ("ringing", "connected", "hold")[min(seq, 1 + seq % 2)] if seq else "calling"
    begun = 1_790_000_000_000 + leg % 100_000
    return {
        "call_id": leg,
        "state": state,
        "direction": "inbound",
        "event_timestamp": begun + seq * 1000,
        "date_started": begun,
        "date_rang": begun + 300,
        "date_first_rang": begun + 300,
        "date_queued": None,
        "date_connected": begun + 1000 if seq else None,
        "date_ended": None,
        "duration": seq * 1000.25,
        "total_duration": seq * 1000.75,
        "talk_time": seq * 900,
        "hold_time": seq * 100,
        "external_number": f"+1555{leg % 10_000_000:07d}",
        "internal_number": "+15551230101",
        "selected_caller_id": None,
        "contact": {
            "id": 5_000_000_000_000_901,
            "type": "local",
            "email": "",
            "phone": f"+1555{leg % 10_000_000:07d}",
            "name": "Example Customer",
        },
        "target": {
            "id": 5_000_000_000_000_201,
            "type": "user",
            "email": "agent.one@example.com",
            "phone": "+15551230101",
            "name": "Agent One",
            "office_id": 5_000_000_000_000_100,
        },
        "target_availability_status": "open",
        "entry_point_call_id": None,
        "entry_point_target": {},
        "operator_call_id": None,
        "proxy_target": {},
        "group_id": None,
        "master_call_id": None,
        "is_internal": False,
        "is_transferred": False,
        "transferred_from": {},
        "labels": ["inbound"],
        "routing_breadcrumbs": [],
        "was_recorded": False,
        "call_recording_ids": [],
        "recording_details": [],
        "integrations": {},
        "admin_recording_urls": [],
        "custom_data": f"leg {leg}, event {seq}",
        **more,
    }


def sign(payload: object, secret: str = SECRET) -> bytes:
    """The compact JWS of JSON bytes, or of what becomes JSON; by PyJWT."""
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return jwt.api_jws.encode(raw, secret, algorithm="HS256").encode()


def samples() -> dict[str, dict[str, Any]]:
    """What Dialpad pushes, by the name of its file."""
    return {
        path.stem: json.loads(path.read_bytes())
        for path in sorted(SAMPLES.glob("*.json"))
        if not path.stem.startswith(("rest-", "signed-"))
    }


_next_leg = iter(range(7_000_000_000_000_000 + random.randrange(10**9) * 1000, 9 * 10**15))


def new_leg() -> int:
    """A call id that no test has had."""
    return next(_next_leg)


# HTTP over a bare socket


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> Any:
        """The body as a problem of RFC 9457."""
        assert self.headers["content-type"] == "application/problem+json"
        return json.loads(self.body)


def request(
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Sequence[tuple[str, str]] = (),
    length: int | None = None,
) -> bytes:
    """A request as bytes; ``length``: what it announces, where that is not the truth."""
    lines = [f"{method} {path} HTTP/1.1", "Host: tests"]
    names = {name.lower() for name, _ in headers}
    if "transfer-encoding" not in names and "content-length" not in names:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Wire:
    """One TCP connection to the product, spoken by hand."""

    def __init__(self, port: int, timeout_s: float = 10, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        """The next answer. Raises ConnectionError if the connection ends before it does."""
        status, headers = self.head()
        if status in (100, 204, 304):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size + 2)[:-2]
            self._until(b"\r\n")
            return Answer(status, headers, body)
        return Answer(status, headers, self._exactly(int(headers.get("content-length", 0))))

    def head(self) -> tuple[int, Mapping[str, str]]:
        """Status and headers alone: the answer to HEAD has nothing else."""
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines[1:])
        return int(lines[0].split()[1]), {name.lower(): text.strip() for name, text in pairs}

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        return self.answer()

    def closed_after(self, timeout_s: float) -> float | None:
        """Seconds until the other side has closed, whatever it says before; None if it has not."""
        begun = time.monotonic()
        while (left_s := begun + timeout_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            try:
                if not self.socket.recv(65536):
                    return time.monotonic() - begun
            except TimeoutError:
                return None
            except OSError:
                return time.monotonic() - begun
        return None

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._read:
            self._more()
        found, _, self._read = self._read.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            self._more()
        found, self._read = self._read[:size], self._read[size:]
        return found

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("closed by the other side")
        self._read += data


# Metrics


class Metrics:
    """What /metrics says, by name of the sample."""

    def __init__(self, text: str) -> None:
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def sum(self, name: str, **labels: str) -> int:
        """Over all samples of this name that have these labels."""
        return sum(
            int(sample.value)
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def outcomes(self) -> dict[str, int]:
        """``received``, and each outcome of deliveries."""
        found = {o: self.sum("dialstream_deliveries_total", outcome=o) for o in OUTCOMES}
        return {"received": self.sum("dialstream_received_total"), **found}

    def books(self) -> str:
        """Empty if they balance, else what they say."""
        found = self.outcomes()
        return "" if found["received"] == sum(map(found.__getitem__, OUTCOMES)) else str(found)


# The product as a process


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    found: list[int] = []
    while len(found) < count:
        port = _chance.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def clean_environment(**more: str) -> dict[str, str]:
    """Ours, without what could change the product's settings or output."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith("DIALSTREAM_")}
    for name in ("FORCE_COLOR", "NO_COLOR", "PYTHONWARNINGS", "PYTHONDEVMODE"):
        ours.pop(name, None)
    usual = {"PYTHONUNBUFFERED": "", "PYTHONFAULTHANDLER": "1", "COLUMNS": "200"}
    return {**ours, **usual, **more}


@dataclass(slots=True)
class Product:
    """`dialstream` in a folder of its own: with a settings file, free ports, a data directory."""

    folder: Path
    #: Sections of the settings file, over the usual ones.
    settings: dict[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ("receive",)
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    admin_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    #: Descriptors that the process may have.
    max_files: int | None = None
    _tail: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.admin_port = free_ports(2)
        self.configure(self.settings)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None:
            sys.stderr.write("".join(self.stderr.splitlines(keepends=True)[-30:]))

    @property
    def config(self) -> Path:
        return self.folder / "dialstream.toml"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the settings file; what is running goes on with what it has read."""
        values: dict[str, Any] = {
            "receiver": {"port": self.port},
            "admin": {"port": self.admin_port},
            "connections": {"acme": {"provider": "dialpad", "secrets": [SECRET], "region": "US"}},
        }
        for section, table in settings.items():
            values[section] = table if section == "connections" else values.get(section, {}) | table
        self.config.write_text(tomli_w.dumps(values))

    # Starting and ending

    def close(self) -> None:
        """End everything that was started."""
        self.kill()
        if self._tail is not None:
            self._tail.kill()
            self._tail.wait(10)

    def spawn(self, *, stderr: int | IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Start without waiting; stderr goes to a file unless told otherwise."""
        arguments = [str(SCRIPT), *self.command]
        if self.max_files is not None:
            limited = 'ulimit -n "$0" && exec "$@"'
            arguments = ["/bin/sh", "-c", limited, str(self.max_files), *arguments]
        with (
            (self.folder / "stderr.txt").open("ab") as errors,
            (self.folder / "stdout.txt").open("ab") as output,
        ):
            self.process = subprocess.Popen(
                arguments,
                cwd=self.folder,
                env=clean_environment(**self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors if stderr is None else stderr,
            )
        return self.process

    def start(
        self, *, stderr: int | IO[bytes] | None = None, timeout_s: float = PATIENCE_S
    ) -> Self:
        """Start, and return once it is ready."""
        process = self.spawn(stderr=stderr)
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if process.poll() is not None:
                raise AssertionError(f"exit {process.returncode} at the start\n{self.stderr}")
            if self.readyz() == 200:
                return self
            time.sleep(0.02)
        process.send_signal(SIGABRT)  # it tells where it stands
        process.wait(5)
        raise AssertionError(f"not ready within {timeout_s} s\n{self.stderr}")

    def readyz(self) -> int | None:
        """Status of /readyz; None if nobody answers."""
        try:
            with Wire(self.admin_port, 5) as wire:
                return wire.ask(request("/readyz", method="GET")).status
        except OSError:
            return None

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As a power cut would look to everybody else."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def signal(self, number: Signals) -> None:
        self.running.send_signal(number)

    def stop(self, number: Signals = SIGTERM, timeout_s: float = PATIENCE_S) -> int:
        """Ask it to end; the exit code."""
        self.signal(number)
        return self.running.wait(timeout_s)

    # Talking to it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webhooks/acme"

    def post(self, body: bytes, connection: str = "acme", kind: str | None = None) -> Answer:
        path = "/".join(filter(None, ("/webhooks", connection, kind)))
        with self.wire() as wire:
            return wire.ask(request(path, body))

    def wire(self, timeout_s: float = 10, *, receive_buffer: int = 0) -> Wire:
        return Wire(self.port, timeout_s, receive_buffer=receive_buffer)

    def admin(self, path: str) -> Answer:
        with Wire(self.admin_port) as wire:
            return wire.ask(request(path, method="GET"))

    def metrics(self) -> Metrics:
        return Metrics(self.admin("/metrics").body.decode())

    def settled(self, timeout_s: float = PATIENCE_S) -> Metrics:
        """Metrics, once nothing is in flight."""
        until = time.monotonic() + timeout_s
        while True:
            metrics = self.metrics()
            if metrics.sum("dialstream_in_flight") == 0 and not metrics.books():
                return metrics
            assert time.monotonic() < until, f"the books do not balance: {metrics.books()}"
            time.sleep(0.05)

    @property
    def memory_bytes(self) -> int:
        return int(psutil.Process(self.running.pid).memory_info().rss)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text(errors="replace")

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout.txt").read_text(errors="replace")

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its log lines, each of which has to be a JSON object."""
        lines = [json.loads(line) for line in self.stderr.splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def wait_for_log(
        self, event: str, count: int = 1, timeout_s: float = PATIENCE_S
    ) -> list[dict[str, Any]]:
        until = time.monotonic() + timeout_s
        while len(found := self.log(event)) < count:
            assert time.monotonic() < until, f"no line {event!r} in\n{self.stderr}"
            time.sleep(0.02)
        return found

    def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 2 * PATIENCE_S,
    ) -> "Ran":
        """Another command of the product, in the same folder."""
        more = {**self.environment, **(environment or {})}
        if not all(name.startswith("DIALSTREAM_") for name in more):
            # It may be for the interpreter, which reads it when it starts.
            return run(
                *arguments, cwd=self.folder, stdin=stdin, environment=more, timeout_s=timeout_s
            )
        return Ran.of(
            run_forked(
                [str(SCRIPT), *arguments],
                cwd=self.folder,
                stdin=stdin,
                environment=clean_environment(**more),
                timeout_s=timeout_s,
            )
        )

    def story(self, leg: int) -> list[dict[str, Any]]:
        """The events of a leg, once everything that was stored before this call can be read."""
        lines = self.folder / "story.jsonl"
        if self._tail is None:
            with lines.open("wb") as file:
                arguments = ["tail", "call", "--from-beginning", "--follow", "--json"]
                self._tail = subprocess.Popen(
                    [SCRIPT, *arguments],
                    cwd=self.folder,
                    env=clean_environment(**self.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                )
        mark = new_leg()
        assert self.post(sign(call(mark, 0))).status == 204
        until = time.monotonic() + PATIENCE_S
        while f"call/{mark}" not in (text := lines.read_text()):
            assert time.monotonic() < until, "the stream stands still"
            time.sleep(0.01)
        events = map(json.loads, text.splitlines(keepends=False))
        return [event for event in events if event["subject"] == f"call/{leg}"]

    def events(self, *arguments: str) -> list[dict[str, Any]]:
        """Everything on the log, as `dialstream tail` tells it."""
        ran = self.run("tail", "--from-beginning", "--json", *arguments)
        assert ran.code == 0, ran.stderr
        return [json.loads(line) for line in ran.stdout.splitlines()]


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @classmethod
    def of(cls, done: subprocess.CompletedProcess[bytes]) -> Self:
        return cls(done.returncode, done.stdout.decode(), done.stderr.decode())

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def run(
    *arguments: str,
    cwd: Path,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 2 * PATIENCE_S,
) -> Ran:
    """Run the console script to its end, as a user would."""
    done = subprocess.run(
        [SCRIPT, *arguments],
        check=False,
        cwd=cwd,
        env=clean_environment(**(environment or {})),
        input=stdin,
        capture_output=True,
        timeout=timeout_s,
    )
    return Ran.of(done)


def assert_no_traceback(text: str) -> None:
    assert "Traceback" not in text, text
    assert not re.search(r'File "[^"]+", line \d+', text), text


# Load


@dataclass(slots=True)
class Sent:
    """One delivery, and what came of every try."""

    leg: int
    seq: int
    payload: bytes
    body: bytes
    #: Status of each try; None where the connection ended before an answer.
    tries: list[int | None] = field(default_factory=list)

    @property
    def acknowledged(self) -> bool:
        return 204 in self.tries


class Load:
    """Many legs at once, events of each in order, every one on another connection than the last.

    An event is posted until it is acknowledged; the next one of its leg only then.
    """

    def __init__(
        self,
        port: int,
        *,
        connections: int = 16,
        pause_s: float = 0.0,
        more: Callable[[int, int], Mapping[str, object]] = lambda leg, seq: {},
    ) -> None:
        """``more``: what a leg's event has besides."""
        self.port = port
        self.sent: list[Sent] = []
        self.stopping = False
        #: The longest that anybody has waited for an answer, or for the end of a connection.
        self.worst_s = 0.0
        self._pause_s = pause_s
        self._more = more
        #: Idle connections, the one that has been idle longest first: never the last one used.
        self._idle: asyncio.Queue[_Connection] = asyncio.Queue()
        self._legs = connections - 1
        for _ in range(connections):
            self._idle.put_nowait(_Connection(port))
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def end(self) -> None:
        """Let everything that is under way be acknowledged, then end."""
        self.stopping = True
        assert self._task is not None
        await asyncio.wait_for(self._task, 30)
        while not self._idle.empty():
            self._idle.get_nowait().close()

    @property
    def acknowledged(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.acknowledged]

    @property
    def acknowledgements(self) -> int:
        """How often something was acknowledged; a delivery may be more than once."""
        return sum(sent.tries.count(204) for sent in self.sent)

    @property
    def statuses(self) -> set[int | None]:
        return {status for sent in self.sent for status in sent.tries}

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._legs):
                tasks.create_task(self._play_legs())

    async def _play_legs(self) -> None:
        while not self.stopping:
            leg = new_leg()
            for seq in range(12):
                if self.stopping:
                    return
                payload = json.dumps(call(leg, seq, **self._more(leg, seq))).encode()
                sent = Sent(leg, seq, payload, sign(payload))
                self.sent.append(sent)
                while not sent.acknowledged:
                    status = await self._post(sent.body)
                    sent.tries.append(status)
                    if status != 204:
                        await asyncio.sleep(max(0.05, self._pause_s))
                await asyncio.sleep(self._pause_s)

    async def _post(self, body: bytes) -> int | None:
        connection = await self._idle.get()
        begun = time.monotonic()
        try:
            return await connection.post(body)
        finally:
            self.worst_s = max(self.worst_s, time.monotonic() - begun)
            self._idle.put_nowait(connection)


class _Connection:
    """A keep-alive connection that opens itself when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> int | None:
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(request("/webhooks/acme", body))
            async with asyncio.timeout(10):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = re.search(r"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return None
        if "connection: close" in head:
            self.close()
        return int(head.split(" ", 2)[1])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


# Looking for what must not be there


def leaves(value: object) -> Iterator[object]:
    """Everything in a JSON value that is neither object nor array."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def chunked(pieces: Iterable[bytes]) -> bytes:
    """A body in chunks, its end included."""
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
