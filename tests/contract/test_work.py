"""What sharing work promises between processes, on every event log."""

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any, Self

import pytest

from ingest.checkpoints import read_checkpoints
from ingest.eventlog.producer import partition_of
from ingest.settings import EventLog, Kafka, Settings
from tests.kafka.cluster import Cluster
from tests.kit import clean_environment

WORKER = Path(__file__).parent / "worker.py"

#: The least that brokers allow.
SESSION_S = 6.0

PARTITIONS = 3

#: One for each partition, and one more.
CONNECTIONS = [
    *(
        next(f"c{n}" for n in range(99) if partition_of(b"c%d" % n, PARTITIONS) == partition)
        for partition in range(PARTITIONS)
    ),
    "acme",
]

SOON_S = 60.0


class Worker:
    """A process of the role, on a data directory of its own on Kafka, on a common one else."""

    def __init__(self, office: "Office", name: str, settings: Settings) -> None:
        self.name = name
        path = office.folder / f"{name}.json"
        path.write_text(settings.model_dump_json())
        self._process = subprocess.Popen(
            [
                *(sys.executable, WORKER, path, office.diary, name, str(SESSION_S)),
                *CONNECTIONS,
            ],
            env=clean_environment(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)

    def signal(self, number: Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(20)


class Office:
    """Where several work, and the diary that they keep together."""

    def __init__(self, folder: Path, kafka: Kafka | None, stack: ExitStack) -> None:
        self.folder = folder
        self.diary = folder / "diary.txt"
        self.diary.touch()
        self._kafka = kafka
        self._stack = stack

    def settings(self, name: str) -> Settings:
        if self._kafka is None:
            return Settings(eventlog=EventLog(path=self.folder / "data"))
        path = self.folder / f"data-{name}"
        return Settings(eventlog=EventLog(kind="kafka", path=path), kafka=self._kafka)

    def start(self, name: str) -> Worker:
        return self._stack.enter_context(Worker(self, name, self.settings(name)))

    def end(self, worker: Worker, number: Signals) -> None:
        """End one, and note when it was no more."""
        worker.signal(number)
        code = worker.wait()
        assert code == (-SIGKILL if number == SIGKILL else 0)
        with self.diary.open("a") as diary:
            diary.write(f"{worker.name} is gone\n")

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.diary.read_text().splitlines()]

    def until(self, true: Callable[[list[list[str]]], object]) -> None:
        """Wait for what comes to stand in the diary from now on."""
        first, give_up = len(self.lines()), time.monotonic() + SOON_S
        while not true(self.lines()[first:]):
            assert time.monotonic() < give_up, self.diary.read_text()[-5000:]
            time.sleep(0.02)


@pytest.fixture(params=["journal", "kafka"])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    kafka = None
    if request.param == "kafka":
        cluster: Cluster = request.getfixturevalue("kafka")
        prefix = request.getfixturevalue("topic_prefix")
        for topic in ("checkpoints", "rejects"):
            cluster.create_topic(prefix + topic, partitions=PARTITIONS)
        kafka = Kafka(bootstrap_servers=cluster.bootstrap, topic_prefix=prefix)
    with ExitStack() as stack:
        yield Office(tmp_path, kafka, stack)


def at_work(*workers: Worker) -> Callable[[list[list[str]]], bool]:
    """Whether every connection is worked on, each of these working on one at least."""
    names = {worker.name for worker in workers}

    def true(lines: list[list[str]]) -> bool:
        works = [line for line in lines if line[1] == "works"]
        return {line[2] for line in works} == set(CONNECTIONS) and names <= {
            line[0] for line in works
        }

    return true


def works(lines: list[list[str]], connection: str) -> int:
    """How often a connection was worked on."""
    return sum(line[1:3] == ["works", connection] for line in lines)


def check(lines: list[list[str]]) -> None:
    """No two work on a connection at once, and each goes on where the one before has come to."""
    owners: dict[str, str] = {}
    numbers: dict[str, int] = defaultdict(int)
    for name, what, *more in lines:
        if what == "begins":
            connection, number = more
            assert connection not in owners, f"{name} begins while {owners[connection]} works"
            # Who is killed may have saved one that it did not come to note.
            assert int(number) in (numbers[connection], numbers[connection] + 1)
            owners[connection] = name
        elif what == "works":
            connection, number = more
            assert owners[connection] == name
            numbers[connection] = int(number)
        elif what == "ends":
            assert owners.pop(more[0]) == name
        elif what == "is":  # gone
            owners = {key: owner for key, owner in owners.items() if owner != name}


def test_one_works_on_a_connection_whoever_comes_and_goes(office: Office) -> None:
    first = office.start("first")
    office.until(at_work(first))

    second = office.start("second")
    is_shared = "data-second" in str(office.settings("second").eventlog.path)
    if is_shared:
        office.until(at_work(first, second))
    else:
        office.until(lambda lines: ["second", "logs", "standing_by"] in lines)
        office.until(at_work(first))

    office.end(first, SIGKILL)
    begun = time.monotonic()
    office.until(at_work(second))
    assert time.monotonic() - begun < 60

    third = office.start("third")
    office.until(
        at_work(third) if is_shared else lambda lines: ["third", "logs", "standing_by"] in lines
    )
    office.end(second, SIGTERM)
    office.until(at_work(third))
    office.end(third, SIGTERM)

    lines = office.lines()
    check(lines)
    events = [line[2:] for line in lines if line[1] == "logs"]
    assert ["unexpected_error"] not in [event[:1] for event in events]
    found = asyncio.run(read_checkpoints(office.settings("first")))
    last = {line[2]: int(line[3]) for line in lines if line[1] == "works"}
    # The last one may have been saved when there was no time left to write of it.
    for name in CONNECTIONS:
        assert found[name, "numbers"]["number"] - last[name] in (0, 1)


@pytest.mark.parametrize("office", ["kafka"], indirect=True)
def test_who_starts_again_goes_on_and_nobody_else_is_disturbed(office: Office) -> None:
    first = office.start("first")
    office.until(at_work(first))
    second = office.start("second")
    office.until(at_work(first, second))
    before = len(office.lines())
    office.end(first, SIGKILL)
    office.until(at_work(office.start("first")))

    check(office.lines())
    since = office.lines()[before:]
    assert {line[1] for line in since if line[0] == "second"} == {"works"}


@pytest.mark.parametrize("office", ["kafka"], indirect=True)
def test_what_is_stopped_for_long_and_goes_on_changes_nothing(office: Office) -> None:
    """Nobody can keep it from writing once more; nobody takes it for what is so."""
    zombie = office.start("zombie")
    office.until(at_work(zombie))
    zombie.signal(SIGSTOP)
    heir = office.start("heir")
    office.until(lambda lines: all(works(lines, name) > 30 for name in CONNECTIONS))
    office.end(heir, SIGKILL)
    last = {line[2]: int(line[3]) for line in office.lines() if line[:2] == ["heir", "works"]}
    zombie.signal(SIGCONT)
    office.until(lambda lines: {line[2] for line in lines if line[1] == "begins"} == {*CONNECTIONS})

    lines = office.lines()
    begun = {line[2]: int(line[3]) for line in lines if line[:2] == ["zombie", "begins"]}
    assert all(begun[name] >= last[name] for name in CONNECTIONS)


def test_two_on_one_data_directory_share_it(office: Office) -> None:
    """Neither takes the other's name in the group."""
    twin: dict[str, Any] = {"eventlog": office.settings("first").eventlog}
    first = office.start("first")
    office.until(at_work(first))
    settings = office.settings("second").model_copy(update=twin)
    with Worker(office, "second", settings) as second:
        is_shared = settings.eventlog.kind == "kafka"
        office.until(
            at_work(first, second)
            if is_shared
            else lambda lines: ["second", "logs", "standing_by"] in lines
        )
        office.end(first, SIGKILL)
        office.until(at_work(second))
        office.end(second, SIGTERM)
    check(office.lines())
