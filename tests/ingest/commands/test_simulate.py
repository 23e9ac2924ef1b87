"""`dialstream simulate dialpad` as people meet it."""

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.kit import SCRIPT, SECRET, Product, assert_no_traceback, clean_environment, run


class Simulator:
    """The command while it runs; at its end, what it told and its exit code."""

    def __init__(self, process: "subprocess.Popen[str]", told: str) -> None:
        self.process = process
        self.told = told
        self.api = re.findall(r"http://127\.0\.0\.1:\d+(?=/api/v2\n)", told)[0]
        self.key = re.findall(r" key +(\S+)\n", told)[0]
        self.errors = ""
        self.code: int | None = None

    def get(self, path: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.get(f"{self.api}/api/v2{path}", headers=headers, trust_env=False)

    def end(self) -> None:
        if self.code is None:
            self.process.send_signal(signal.SIGINT)
            rest, self.errors = self.process.communicate(timeout=20)
            self.told += rest
            self.code = self.process.returncode


@contextmanager
def simulating(folder: Path, *arguments: str) -> Iterator[Simulator]:
    process = subprocess.Popen(
        [SCRIPT, "simulate", "dialpad", "--port", "0", "--days", "0.01", *arguments],
        cwd=folder,
        env=clean_environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        simulator = Simulator(process, _until_it_serves(process.stdout))
        yield simulator
        simulator.end()
    finally:
        process.kill()
        process.communicate()


def _until_it_serves(stdout: IO[str]) -> str:
    told = ""
    for line in stdout:
        told += line
        if "Ctrl-C" in line:
            break
    return told


def test_it_says_what_it_serves_and_at_the_end_what_became_of_it(tmp_path: Path) -> None:
    (tmp_path / "faults.toml").write_text('limited = 1.0\nmissing_scopes = ["calls:list"]\n')
    with simulating(tmp_path, "--faults", "faults.toml") as simulator:
        assert [simulator.get("/company").status_code for _ in range(3)] == [429] * 3
    assert (simulator.code, simulator.errors) == (0, "")
    assert f'base_url = "{simulator.api}"' in simulator.told
    assert f'api_key = "{simulator.key}"' in simulator.told
    assert re.search(r"requests +3 429 ", simulator.told)
    assert re.search(r"faults +3 limited ", simulator.told)
    assert list(tmp_path.iterdir()) == [tmp_path / "faults.toml"]


def test_its_settings_are_ones_that_dialstream_reads(tmp_path: Path) -> None:
    with simulating(tmp_path) as simulator:
        assert len(simulator.get("/call").json()["items"]) == 50
        lines = simulator.told.partition("[connections.sim]")[2].partition("Then")[0].splitlines()
        file = "\n".join(["[connections.sim]", *(line.strip() for line in lines)])
        (tmp_path / "dialstream.toml").write_text(file)
        planned = run("dialpad", "sync", "--dry-run", "--json", cwd=tmp_path)
        assert planned.code == 1  # there is something to do
        assert "webhook" in planned.stdout
    assert (simulator.code, simulator.errors) == (0, "")


def test_it_posts_without_being_asked_to_by_the_api(product: Product, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    to = f"http://127.0.0.1:{product.port}/webhooks/acme"
    with simulating(tmp_path, "--to", to, "--secret-file", "secret", "--rate", "200") as simulator:
        events = product.events("--count", "5", "--follow")
        assert len(events) == 5
        assert f"posts to  {to}" in simulator.told
    assert simulator.code == 0
    assert re.search(r"deliveries +\d[\d,]* 204 ", simulator.told)


def test_what_cannot_be_used_is_told_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "faults.toml").write_text("dropt = 0.1\nlimited = 2\n")
    ran = run("simulate", "dialpad", "--faults", "faults.toml", cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[1:] == [
        "  - dropt: there is no such fault: did you mean dropped?",
        "  - limited: a share between 0 and 1, not 2",
    ]
    for arguments in (("--faults", "none.toml"), ("--secret-file", "none"), ("--to", "none:80")):
        ran = run("simulate", "dialpad", *arguments, cwd=tmp_path)
        assert ran.code == 2
        assert "none" in ran.stderr
        assert_no_traceback(ran.stderr)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = run("simulate", "dialpad", "--port", port, "--days", "0", cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    assert f"port {port} " in ran.stderr
    assert_no_traceback(ran.stderr)


@pytest.mark.parametrize(
    "arguments", [("--rate", "0"), ("--pace", "0"), ("--days", "-1"), ("--port", "70000")]
)
def test_wrong_use_ends_with_2(tmp_path: Path, arguments: tuple[str, str]) -> None:
    ran = run("simulate", "dialpad", *arguments, cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    assert arguments[0] in ran.stderr
    assert_no_traceback(ran.stderr)


@pytest.fixture
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    settings = {"connections": {"acme": {"provider": "dialpad", "secrets": [SECRET]}}}
    with Product(tmp_path_factory.mktemp("product"), settings) as running:
        yield running
