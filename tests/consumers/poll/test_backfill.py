"""`dialstream backfill`: counts, publishes, goes on where it was, and says how it ended."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from consumers.poll.backfill import Progressed, _resume, _Work
from consumers.poll.seen import CALLS, Seen
from ingest.runner import Stopping
from ingest.settings import Connection, EventLog, Settings
from tests.conftest import MakeProduct
from tests.consumers.poll.fakes import Call
from tests.consumers.poll.small_dialpad import SmallDialpad
from tests.kit import SCRIPT, Product, Ran, assert_no_traceback, clean_environment


@pytest.fixture
def product(make_product: MakeProduct, dialpad: SmallDialpad) -> Product:
    """Settings and a folder; nothing runs."""
    return make_product(command=("poll",), settings={"connections": {"acme": dialpad.connection()}})


def days_ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def between(first: str, last: str) -> tuple[str, ...]:
    return ("--from", first, "--to", last)


def backfill(product: Product, *arguments: str) -> Ran:
    ran = product.run("backfill", "acme", *arguments)
    assert_no_traceback(ran.output)
    return ran


def recorded(product: Product) -> Counter[str]:
    events = product.events("call", "--type", "call.recorded")
    return Counter(event["id"].split(":")[3] for event in events)


def numbers(count: int, first: int = 0) -> set[str]:
    return {str(5_000_000_000_100_000 + first + n) for n in range(count)}


def state_files(product: Product) -> list[Path]:
    return sorted((product.data / "backfill").glob("*"))


def test_a_stretch_is_read_and_nothing_beside_it(product: Product, dialpad: SmallDialpad) -> None:
    dialpad.add(70, hours_ago=60)
    dialpad.add(5, hours_ago=100)
    dialpad.add(5, hours_ago=1)
    ran = backfill(product, *between(days_ago(3), days_ago(1)))
    assert ran.code == 0, ran.output
    assert "70 calls, 70 of them published" in ran.stdout
    assert ran.stderr == ""
    assert recorded(product) == dict.fromkeys(numbers(70), 1)
    assert {e["via"] for e in product.events("call")} == {"backfill"}
    assert state_files(product) == []  # it is done


def test_a_dry_run_counts_and_publishes_nothing(product: Product, dialpad: SmallDialpad) -> None:
    dialpad.add(70, hours_ago=60)
    stretch = between(days_ago(3), days_ago(1))
    ran = backfill(product, *stretch, "--dry-run", "--json")
    assert ran.code == 0, ran.output
    told = json.loads(ran.stdout)
    assert (told["calls"], told["new"], told["done"], told["published"]) == (70, 70, True, False)
    assert not (product.data / "journal" / "calls").exists()
    assert state_files(product) == []


def test_what_the_poller_has_published_is_not_published_again(
    product: Product, dialpad: SmallDialpad
) -> None:
    dialpad.add(70, hours_ago=60)
    dialpad.add(60, hours_ago=20)
    stretch = between(days_ago(3), days_ago(0))
    with product:
        product.wait_for_log("started")
        until = time.monotonic() + 60
        while recorded(product) != dict.fromkeys(numbers(60, 70), 1):
            assert time.monotonic() < until, product.stderr
        # Beside a poller at work.
        told = json.loads(backfill(product, *stretch, "--dry-run", "--json").stdout)
        assert (told["calls"], told["new"]) == (130, 70)
        told = json.loads(backfill(product, *stretch, "--json").stdout)
        assert (told["calls"], told["new"]) == (130, 70)
        assert product.stop() == 0
    assert recorded(product) == dict.fromkeys(numbers(130), 1)


def test_the_memory_of_a_poller_of_another_log_is_not_believed(
    product: Product, dialpad: SmallDialpad
) -> None:
    dialpad.add(60, hours_ago=20)
    with product:
        until = time.monotonic() + 60
        while len(recorded(product)) != 60:
            assert time.monotonic() < until, product.stderr
        assert product.stop() == 0
    (product.data / "journal").rename(product.folder / "journal.old")
    ran = backfill(product, *between(days_ago(3), days_ago(0)))
    assert "60 calls, 60 of them published" in ran.stdout
    assert recorded(product) == dict.fromkeys(numbers(60), 1)


def spawn(product: Product, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [SCRIPT, "backfill", "acme", *arguments],
        cwd=product.folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_it_goes_on_where_it_was(
    product: Product, dialpad: SmallDialpad, number: signal.Signals
) -> None:
    dialpad.add(120, hours_ago=90)
    dialpad.add(120, hours_ago=60)
    stretch = between(days_ago(4), days_ago(1))
    killed = threading.Event()
    go_on = threading.Event()

    def kill(request: int) -> None:
        if request == 6:  # three pages of the first day, one of the second, and one on its way
            process.send_signal(number)
            killed.set()
            go_on.wait(30)

    dialpad.on_request = kill
    process = spawn(product, stretch)
    assert killed.wait(30)
    out, errors = process.communicate(timeout=30)
    go_on.set()
    assert_no_traceback(errors.decode())
    if number != signal.SIGKILL:
        assert process.returncode == 1
        assert "not done" in out.decode()
    before = recorded(product)
    assert 120 <= len(before) < 240
    dialpad.on_request = lambda _: None
    asked = len(dialpad.asked_at)
    told = json.loads(backfill(product, *stretch, "--json").stdout)
    assert (told["calls"], told["done"]) == (240, True)
    assert recorded(product) == dict.fromkeys(numbers(240), 1)
    assert len(dialpad.asked_at) - asked <= 4  # the first day is not read again


def test_other_times_begin_anew(product: Product, dialpad: SmallDialpad) -> None:
    dialpad.add(120, hours_ago=60)
    dialpad.on_request = lambda n: setattr(dialpad, "status", 403 if n == 3 else None)
    ran = backfill(product, *between(days_ago(3), days_ago(1)))
    assert ran.code == 1
    assert "calls:list" in ran.stdout  # what the key lacks
    assert "run it again to go on there" in ran.stdout
    assert state_files(product)
    told = json.loads(backfill(product, *between(days_ago(3.1), days_ago(1)), "--json").stdout)
    assert (told["calls"], told["new"]) == (120, 120)
    assert set(recorded(product)) == numbers(120)


def test_a_program_is_told_why_it_is_not_done(product: Product, dialpad: SmallDialpad) -> None:
    dialpad.on_request = lambda _: setattr(dialpad, "status", 403)
    ran = backfill(product, *between(days_ago(3), days_ago(1)), "--json")
    assert ran.code == 1
    told = json.loads(ran.stdout)
    assert not told["done"]
    assert "calls:list" in told["error"]  # what the key lacks


def test_two_at_a_time_are_refused(product: Product, dialpad: SmallDialpad) -> None:
    dialpad.add(60, hours_ago=60)
    waiting, go_on = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        waiting.set()
        go_on.wait(30)

    dialpad.on_request = hold
    stretch = between(days_ago(3), days_ago(1))
    first = spawn(product, stretch)
    assert waiting.wait(30)
    ran = backfill(product, *stretch)
    assert ran.code == 2
    assert "a backfill is running" in ran.stderr
    go_on.set()
    first.communicate(timeout=30)
    assert first.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("backfill", "acne", *between("2026-09-20", "2026-09-21")), "did you mean 'acme'?"),
        (("backfill", "acme", *between("2026-09-21", "2026-09-21")), "--to is not after --from"),
        (("backfill", "acme", *between("2026-09-22", "2026-09-21T10:00:00Z")), "--to is not after"),
        (("backfill", "acme", *between("yesterday", "2026-09-21")), "--from: 'yesterday' is no"),
        (("backfill", "acme", *between("2026-09-21T10:00", "2026-09-22")), "has no zone"),
        (("backfill", "acme", *between("1950-01-01", "2026-09-22")), "before 1970"),
        (("backfill", "keyless", *between("2026-09-20", "2026-09-21")), "keyless.api_key"),
        (("backfill", "acme", "--from", "2026-09-20"), "--to"),
    ],
)
def test_used_wrongly_it_says_how_and_exits_with_2(
    make_product: MakeProduct, dialpad: SmallDialpad, arguments: tuple[str, ...], told: str
) -> None:
    keyless = {"provider": "dialpad", "secrets": ["an-invented-secret-of-32-bytes!!!"]}
    product = make_product(
        settings={"connections": {"acme": dialpad.connection(), "keyless": keyless}}
    )
    ran = product.run(*arguments)
    assert ran.code == 2
    assert told in ran.output
    assert_no_traceback(ran.output)
    assert dialpad.asked_at == []


def test_the_rate_that_is_given_counts(product: Product, dialpad: SmallDialpad) -> None:
    dialpad.add(300, hours_ago=30)
    begun = time.monotonic()
    ran = backfill(product, *between(days_ago(1.5), days_ago(1)), "--rate", "3")
    assert ran.code == 0
    assert len(dialpad.asked_at) == 6
    assert time.monotonic() - begun > 5 / 3


def test_a_terminal_sees_how_far_it_is(product: Product, dialpad: SmallDialpad) -> None:
    dialpad.add(120, hours_ago=30)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [SCRIPT, "backfill", "acme", *between(days_ago(1.5), days_ago(1)), "--rate", "5"],
        cwd=product.folder,
        env=clean_environment(TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # its other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(30) == 0
    assert b"calls" in shown
    assert b"%" in shown
    assert process.stdout is not None
    assert b"120 calls" in process.stdout.read()
    process.stdout.close()


async def test_it_stops_when_it_is_asked_to_though_the_log_says_nothing(
    tmp_path: Path, dialpad: SmallDialpad, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        connections={"acme": Connection(**dialpad.connection())}, eventlog=EventLog(path=tmp_path)
    )
    Seen.open(tmp_path / "poll" / "acme.sqlite").close()
    asking = asyncio.Event()

    async def silent(_: Settings) -> None:
        asking.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("consumers.poll.backfill.read_checkpoints", silent)
    progressed = Progressed(0, 1000, 0)
    work = _Work(settings, "acme", settings.connections["acme"], progressed, None)
    stopping = Stopping()
    counting = asyncio.create_task(work.count(stopping))
    async with asyncio.timeout(20):
        await asking.wait()
        stopping.ask()
        await counting
    assert not progressed.done


def test_what_was_published_on_another_log_is_published_on_this(tmp_path: Path) -> None:
    page = [Call(1, 0, 0).event("backfill")]
    own = Seen.open(tmp_path / "acme.sqlite")
    assert _resume(own, "journal", 0, 1000) == Progressed(0, 1000, 0)
    own.remember(CALLS, page)
    own.set_note("progressed", '{"from_ms":0,"to_ms":1000,"at_ms":500,"calls":1,"new":1}')
    own.close()

    own = Seen.open(tmp_path / "acme.sqlite")
    assert _resume(own, "journal", 0, 1000) == Progressed(0, 1000, 500, calls=1, new=1)
    assert own.fresh(CALLS, page) == []
    assert _resume(own, "kafka:9092 telephony.", 0, 1000) == Progressed(0, 1000, 0)
    assert own.fresh(CALLS, page) == page
    # Killed before the first page, the next run has not come any further.
    assert _resume(own, "kafka:9092 telephony.", 0, 1000) == Progressed(0, 1000, 0)
    own.close()
