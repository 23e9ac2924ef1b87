"""`dialstream prove` as a process: against what keeps the promise, and against what does not."""

import json
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

from tests.conftest import MakeProduct
from tests.kafka.cluster import Cluster
from tests.kit import OTHER_SECRET, SECRET, Product, Ran, sign

KILL = "kill -9 $DIALSTREAM_PROVE_PID && echo killed"

#: Everything but `--for` may take that long on a machine with other things to do.
PATIENT_S = 180

DIALLINK = {"provider": "diallink", "secrets": ["whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"]}


def prove(product: Product, *arguments: str, for_: str = "6s") -> tuple[Ran, dict[str, Any]]:
    ran = product.run("prove", "--json", "--for", for_, *arguments, timeout_s=PATIENT_S)
    return ran, json.loads(ran.stdout) if ran.stdout else {}


def assert_kept(ran: Ran, found: dict[str, Any]) -> None:
    assert ran.code == 0, ran.output
    assert [found[name] for name in ("lost", "changed", "out_of_order")] == [[], [], []]
    assert found["acknowledged"] > 5


def test_the_receiver_is_killed_again_and_again(make_product: MakeProduct) -> None:
    product = make_product()
    ran, found = prove(product, "--trouble", KILL, "--every", "5s", for_="10s")
    assert_kept(ran, found)
    assert found["acknowledged"] <= found["offered"]
    assert [each["exit"] for each in found["troubles"]][:2] == [0, 0]
    assert found["troubles"][0]["output"] == "killed\n"
    assert found["receiver_starts"] > 2
    assert 0 < found["answer_p50_s"] <= found["answer_p99_s"] <= found["answer_worst_s"]
    # Nothing of it is left, and nothing is on the real topics.
    assert not list(product.data.glob("prove-*"))
    assert product.events() == []


def test_on_kafka(kafka: Cluster, tmp_path: Path, topic_prefix: str) -> None:
    settings = {"eventlog": {"kind": "kafka"}, "kafka": kafka.settings(topic_prefix)}
    settings["kafka"] |= {"replication_factor": 1, "min_insync_replicas": 1, "partitions": 3}
    product = Product(tmp_path / "product", settings)
    ran, found = prove(product, "--trouble", KILL, "--every", "3s")
    assert_kept(ran, found)
    assert found["left"] == []
    assert not [name for name in kafka.topics() if name.startswith(topic_prefix)]


def test_of_another_provider(make_product: MakeProduct) -> None:
    product = make_product(settings={"connections": {"line": DIALLINK}})
    assert_kept(*prove(product, for_="2s"))


@pytest.mark.parametrize("really", [False, True])
def test_where_contents_are_not_kept(make_product: MakeProduct, *, really: bool) -> None:
    private = {"provider": "dialpad", "secrets": [SECRET], "privacy": {"drop": ["content", "raw"]}}
    product = make_product(settings={"connections": {"acme": private}}).start()
    ran, found = prove(product, *(["--really"] * really), for_="2s")
    assert_kept(ran, found)
    assert not found["contents_compared"]


def test_ctrl_c_ends_it_sooner_and_tells_what_it_has_found(make_product: MakeProduct) -> None:
    product = make_product(
        command=("prove", "--for", "1h", "--trouble", "echo there", "--every", "2s")
    )
    process = product.spawn()
    until = time.monotonic() + 60
    while "there" not in product.stderr:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(SIGINT)
    assert process.wait(60) == 0
    assert "Nothing that was acknowledged is missing" in product.stdout
    assert not list(product.data.glob("prove-*"))


def test_what_is_running_is_killed_by_somebody_else(make_product: MakeProduct) -> None:
    product = make_product().start()
    ended = threading.Event()

    def restart() -> None:
        while not ended.wait(1.5):
            product.kill()
            product.start()

    killing = threading.Thread(target=restart)
    killing.start()
    try:
        ran, found = prove(product, "--really")
    finally:
        ended.set()
        killing.join()
    assert_kept(ran, found)
    assert found["receiver_starts"] is None
    assert found["answers"].get("none"), "no kill has hit a delivery"
    events = product.events()
    assert {event["type"] for event in events} == {"dialstream.call.unknown"}
    assert {event["data"]["provider_state"] for event in events} == {"dialstream_prove"}
    assert len({event["id"] for event in events}) >= found["acknowledged"]


class Forgetful(BaseHTTPRequestHandler):
    """Acknowledges and stores nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_a_receiver_that_acknowledges_and_forgets_is_found(make_product: MakeProduct) -> None:
    product = make_product()
    with serving(Forgetful) as url:
        ran, found = prove(product, "--really", "--to", url, "--wait", "2s", for_="2s")
    assert ran.code == 1
    assert found["acknowledged"] > 5
    assert len(found["lost"]) == found["acknowledged"]
    assert "Traceback" not in ran.output


def forget(payload: bytes, held: dict[int, list[bytes]]) -> list[bytes]:
    """Of every ten the last."""
    held[0] = [*held.get(0, []), payload]
    return [] if len(held[0]) % 10 == 0 else [payload]


def swap(payload: bytes, held: dict[int, list[bytes]]) -> list[bytes]:
    """Two of a leg, the second one first."""
    waiting = held.setdefault(json.loads(payload)["call_id"], [])
    waiting.append(payload)
    if len(waiting) < 2:
        return []
    return [waiting.pop(), waiting.pop()]


def change(payload: bytes, held: dict[int, list[bytes]]) -> list[bytes]:
    return [payload.replace(b"filling of the", b"filling of thy", 1)]


@pytest.mark.parametrize(
    ("meddle", "found_as"), [(forget, "lost"), (swap, "out_of_order"), (change, "changed")]
)
def test_what_stands_before_a_receiver_and_meddles_is_found(
    make_product: MakeProduct,
    meddle: Callable[[bytes, dict[int, list[bytes]]], list[bytes]],
    found_as: str,
) -> None:
    product = make_product().start()
    held: dict[int, list[bytes]] = {}
    one_by_one = threading.Lock()

    class Meddler(Forgetful):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            payload = body.split(b".")[1]
            with one_by_one:
                for each in meddle(urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)), held):
                    assert product.post(sign(each)).status == 204
            self.send_response(204)
            self.end_headers()

    with serving(Meddler) as url:
        ran, found = prove(product, "--really", "--to", url, "--wait", "2s", for_="4s")
    assert ran.code == 1
    assert found[found_as]
    others = {"lost", "changed", "out_of_order"} - {found_as}
    # What is held back for the other one of its leg is lost when there is none.
    assert not [name for name in others if found[name] and (name, meddle) != ("lost", swap)]


def test_what_was_broken_is_left_to_be_looked_at(make_product: MakeProduct) -> None:
    product = make_product()
    # Whoever takes away what is stored, while nobody looks.
    steal = "kill -9 $DIALSTREAM_PROVE_PID; rm -rf data/prove-*/journal"
    ran = product.run(
        *("prove", "--for", "4s", "--every", "2s", "--wait", "2s", "--trouble", steal),
        timeout_s=PATIENT_S,
    )
    assert ran.code == 1, ran.output
    assert "The promise was broken." in ran.stdout
    (left,) = product.data.glob("prove-*")
    assert str(left.relative_to(product.folder)) in ran.stdout
    assert "killed" not in ran.stdout
    assert "trouble: exit 0" in ran.stderr


def test_what_cannot_run(make_product: MakeProduct) -> None:
    product = make_product().start()
    strangers = {
        "other": {"provider": "dialpad", "secrets": [OTHER_SECRET]},
        "bots": {"provider": "dialgood", "api_key": "k"},
        "acme": {"provider": "dialpad", "secrets": [SECRET]},
    }
    product.configure({"connections": strangers})
    for arguments, words in {
        ("--connection", "acme", "--to", product.url): "--really",
        ("--connection", "acme", "--really", "--to", "http://127.0.0.1:1/"): "does not answer",
        # It runs with settings that have no such connection.
        ("--connection", "other", "--really"): "answers 404",
        ("--connection", "bots"): "bots",
        ("--connection", "nobody"): "no connection 'nobody'",
        (): "--connection",
        ("--connection", "acme", "--for", "soon"): "--for",
        ("--connection", "other", "--really", "--to", product.url): "answers 401",
    }.items():
        ran = product.run("prove", *arguments, timeout_s=PATIENT_S)
        assert ran.code == 2, (arguments, ran.output)
        assert words in ran.stderr, arguments
        assert "Traceback" not in ran.output


def test_a_receiver_that_does_not_start(make_product: MakeProduct) -> None:
    empty = {"provider": "dialpad", "secrets": [""]}
    product = make_product(settings={"connections": {"acme": empty}})
    ran = product.run("prove", "--for", "1s", timeout_s=PATIENT_S)
    assert ran.code == 2
    assert "Traceback" not in ran.output
