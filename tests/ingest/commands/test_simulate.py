"""`dialstream simulate` as people meet it."""

import json
import re
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from tests.conftest import MakeProduct
from tests.kit import SCRIPT, SECRET, Product, assert_no_traceback, clean_environment, run


class Simulator:
    """The command while it runs; at its end, what it told and its exit code."""

    def __init__(self, process: "subprocess.Popen[str]", told: str) -> None:
        self.process = process
        self.told = told
        #: Scheme, host and port of each API that is open, and its key.
        self.apis = re.findall(r" API +(http://127\.0\.0\.1:\d+)/", told)
        self.keys = re.findall(r" key +(\S+)\n", told)
        self.api, self.key = self.apis[0], self.keys[0]
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

    @property
    def settings(self) -> str:
        """What it shows for dialstream.toml."""
        _, _, rest = self.told.partition("In dialstream.toml")
        lines = rest.partition("\nThen ")[0].splitlines()[1:]
        return "\n".join(line.strip() for line in lines)


@contextmanager
def simulating(folder: Path, *arguments: str, what: str = "dialpad") -> Iterator[Simulator]:
    process = subprocess.Popen(
        [SCRIPT, "simulate", what, "--port", "0", "--days", "0.01", *arguments],
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
        (tmp_path / "dialstream.toml").write_text(simulator.settings)
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


def get(url: str, **headers: str) -> httpx.Response:
    named = {name.replace("__", "-"): value for name, value in headers.items()}
    return httpx.get(url, headers=named, trust_env=False)


def read_settings(folder: Path, simulator: Simulator) -> dict[str, Any]:
    """Those that are shown, as dialstream reads them; secrets are masked."""
    (folder / "dialstream.toml").write_text(simulator.settings)
    ran = run("config", "show", "--json", cwd=folder)
    assert ran.code == 0, ran.stderr
    (folder / "dialstream.toml").unlink()
    connections: dict[str, Any] = json.loads(ran.stdout)["connections"]
    return connections


def test_a_simulated_diallink_is_served_and_told_of(tmp_path: Path) -> None:
    with simulating(tmp_path, what="diallink") as simulator:
        calls = f"{simulator.api}/v1/phone-system/calls"
        assert len(get(calls, X__API__KEY=simulator.key).json()["data"]) == 20
        assert get(calls).status_code == 401
        (connection,) = read_settings(tmp_path, simulator).values()
        assert connection["provider"] == "diallink"
        assert connection["base_url"] == simulator.api
        assert simulator.key in simulator.settings
    assert (simulator.code, simulator.errors) == (0, "")
    assert re.search(r"requests +1 200 +1 401 ", simulator.told)


def test_a_simulated_dialgood_is_served_and_told_of(tmp_path: Path) -> None:
    with simulating(tmp_path, what="dialgood") as simulator:
        agents = f"{simulator.api}/partner/v1/agents"
        assert get(agents, api_token=simulator.key).json()["totalCount"] == 4
        (connection,) = read_settings(tmp_path, simulator).values()
        assert connection["provider"] == "dialgood"
        assert connection["base_url"] == simulator.api
    assert (simulator.code, simulator.errors) == (0, "")
    assert re.search(r"requests +1 200 ", simulator.told)


def test_all_of_them_see_one_company(tmp_path: Path) -> None:
    with simulating(tmp_path, what="all") as simulator:
        (dialpad, diallink, dialgood), keys = simulator.apis, simulator.keys
        key, line_key, bots_key = keys
        users = get(f"{dialpad}/api/v2/users", Authorization=f"Bearer {key}").json()["items"]
        same = get(f"{diallink}/v1/phone-system/users", X__API__KEY=line_key).json()["data"]
        assert {user["emails"][0] for user in users} == {user["email"] for user in same}
        centres = get(f"{dialpad}/api/v2/callcenters", Authorization=f"Bearer {key}").json()
        agents = get(f"{dialgood}/partner/v1/agents", api_token=bots_key).json()["agents"]
        assert [c["phone_numbers"] for c in centres["items"]] == [
            agent["phoneNumbers"] for agent in agents if agent["phoneNumbers"]
        ]
        connections = read_settings(tmp_path, simulator)
        assert [c["provider"] for c in connections.values()] == ["dialpad", "diallink", "dialgood"]
    assert (simulator.code, simulator.errors) == (0, "")
    with simulating(tmp_path, what="all") as again:
        assert again.keys == keys
        secrets = [line for line in again.settings.splitlines() if line.startswith("secrets")]
        assert secrets == [
            line for line in simulator.settings.splitlines() if line.startswith("secrets")
        ]


def test_all_of_them_post_to_a_receiver_that_has_these_settings(
    make_product: MakeProduct, tmp_path: Path
) -> None:
    """The receiver only: nothing is polled."""
    product = make_product()
    to = f"http://127.0.0.1:{product.port}"
    with simulating(tmp_path, "--to", to, "--rate", "200", what="all") as simulator:
        settings = tomllib.loads(simulator.settings)
        for connection in settings["connections"].values():
            connection.setdefault("poll", {})["enabled"] = False
        product.configure(settings)
        product.start()
        for name in ("sim", "sim_line"):
            events = product.events("--count", "5", "--follow", "--connection", name)
            assert len(events) == 5
        assert f"posts to  {to}/webhooks/sim_line" in simulator.told
    assert simulator.code == 0
    assert len(re.findall(r"deliveries.* 204 ", simulator.told)) == 2


@pytest.mark.parametrize("what", ["dialpad", "diallink", "dialgood", "all"])
def test_each_explains_itself(tmp_path: Path, what: str) -> None:
    ran = run("simulate", what, "--help", cwd=tmp_path)
    assert ran.code == 0
    assert f"Usage: dialstream simulate {what}" in ran.stdout


def test_a_secret_that_cannot_sign_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("no secret")
    ran = run("simulate", "diallink", "--secret-file", "secret", cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    assert "whsec_" in ran.stderr
    assert_no_traceback(ran.stderr)


def test_what_cannot_be_used_is_told_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "faults.toml").write_text("dropt = 0.1\nlimited = 2\n")
    ran = run("simulate", "dialpad", "--faults", "faults.toml", cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[1:] == [
        "  - dropt: there is no such fault: did you mean dropped?",
        "  - limited: a share between 0 and 1, not 2",
    ]
    ran = run("simulate", "all", "--to", "none:80", cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
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
