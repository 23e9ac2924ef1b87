"""Nobody can hold what others need: time, connections, memory."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import pytest

from tests.conftest import MakeProduct
from tests.kit import Product, Wire, call, new_leg, request, sign

HOOK = "/webhooks/acme"
BODY_TIMEOUT_S = 1.0
ANSWER_WITHIN_S = 4.0

#: A connection that has said nothing at all.
SILENT_S = 5.0

#: The sweep's rhythm, and a busy machine.
SLACK_S = 0.8

#: In `crowded`, which may have 320 descriptors.
MAX_CONNECTIONS = 64


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    settings = {"receiver": {"body_timeout_s": BODY_TIMEOUT_S}}
    with Product(tmp_path_factory.mktemp("deadlines"), settings) as running:
        yield running


@pytest.fixture
def crowded(make_product: MakeProduct) -> Product:
    """A receiver that has few descriptors, and so few connections."""
    return make_product("crowded", max_files=MAX_CONNECTIONS + 256).start()


@pytest.fixture(scope="module", autouse=True)
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 12_000 if hard == resource.RLIM_INFINITY else min(hard, 12_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Trickle:
    """Sends a byte every now and then for as long as the other side takes it."""

    def __init__(self, wire: Wire, first: bytes, piece: bytes = b"x") -> None:
        wire.send(first)
        self._wire = wire
        self._piece = piece
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while not self._stop.wait(0.05):
                self._wire.send(self._piece)


def honest_posts(product: Product, count: int) -> list[float]:
    """Seconds until each of so many deliveries was stored, each on a new connection."""
    taken = []
    leg = new_leg()
    for seq in range(count):
        begun = time.monotonic()
        assert product.post(sign(call(leg, seq))).status == 204
        taken.append(time.monotonic() - begun)
    return taken


# Slow


@pytest.mark.parametrize("length", [1000, 1_000_000])
def test_a_body_that_stops_gets_503_in_time_and_the_end_of_its_connection(
    product: Product, length: int
) -> None:
    with product.wire() as wire:
        begun = time.monotonic()
        answer = wire.ask(request(HOOK, b"half a body", length=length))
        assert BODY_TIMEOUT_S - 0.1 < time.monotonic() - begun < BODY_TIMEOUT_S + SLACK_S
        assert (answer.status, answer.problem["reason"]) == (503, "slow_body")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["connection"] == "close"
        assert wire.closed_after(1) is not None


@pytest.mark.parametrize(
    "begin",
    [
        request(HOOK, b"x", length=100_000),
        request(HOOK, b"1\r\nx\r\n", headers=[("Transfer-Encoding", "chunked")]),
    ],
    ids=["sized", "chunked"],
)
def test_a_body_that_trickles_gets_503_in_time(product: Product, begin: bytes) -> None:
    piece = b"1\r\nx\r\n" if b"chunked" in begin else b"x"
    with product.wire() as wire:
        begun = time.monotonic()
        with Trickle(wire, begin, piece):
            assert wire.answer().status == 503
            assert time.monotonic() - begun < BODY_TIMEOUT_S + SLACK_S


def test_headers_that_trickle_end_in_a_closed_connection(product: Product) -> None:
    with product.wire() as wire, Trickle(wire, b"POST /webhooks/acme HTTP/1.1\r\nX-A: "):
        taken_s = wire.closed_after(8)
        assert taken_s is not None
        assert taken_s < SILENT_S + SLACK_S


def test_a_connection_that_falls_silent_before_a_request_is_closed(product: Product) -> None:
    first = (b"P", b"\r\n", b"POST /webhooks/acme HTTP/1.1\r\n", b"")
    with ExitStack() as crowd:
        wires = [crowd.enter_context(product.wire()) for _ in first]
        begun = time.monotonic()
        for wire, said in zip(wires, first, strict=True):
            wire.send(said)
        for wire in wires:
            assert wire.closed_after(begun + SILENT_S + SLACK_S - time.monotonic()) is not None


def test_the_second_request_of_a_connection_has_the_same_deadline(product: Product) -> None:
    with product.wire() as wire:
        assert wire.ask(request(HOOK, sign(call(new_leg(), 0)))).status == 204
        begun = time.monotonic()
        assert wire.ask(request(HOOK, b"half", length=100)).status == 503
        assert time.monotonic() - begun < BODY_TIMEOUT_S + SLACK_S


def test_time_between_two_requests_is_not_time_of_a_body(product: Product) -> None:
    """Senders keep their connections: a pause is no fault."""
    with product.wire() as wire:
        assert wire.ask(request(HOOK, sign(call(new_leg(), 0)))).status == 204
        time.sleep(BODY_TIMEOUT_S + 1)
        assert wire.ask(request(HOOK, sign(call(new_leg(), 1)))).status == 204


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/webhooks/nobody", "POST", 404), (HOOK, "PUT", 405)]
)
def test_a_body_that_nobody_wants_holds_no_connection_either(
    product: Product, path: str, method: str, status: int
) -> None:
    with product.wire() as wire:
        with Trickle(wire, request(path, b"x", method=method, length=1_000_000)):
            assert wire.answer().status == status
            taken_s = wire.closed_after(8)
        assert taken_s is not None
        assert taken_s < SILENT_S + SLACK_S


def test_a_slow_body_is_counted_as_unavailable(product: Product) -> None:
    before = product.metrics()
    with product.wire() as wire:
        wire.ask(request(HOOK, b"half", length=100))
    after = product.settled()
    assert after.outcomes()["unavailable"] == before.outcomes()["unavailable"] + 1
    name = "dialstream_unavailable_total"
    assert after.sum(name, reason="slow_body") == before.sum(name, reason="slow_body") + 1


def test_who_hangs_up_in_the_middle_of_a_body_is_no_delivery(product: Product) -> None:
    for _ in range(20):
        with product.wire() as wire:
            wire.send(request(HOOK, b"half", length=100))
    product.settled()
    assert not product.log("unexpected_error")


# Endless


@pytest.mark.parametrize(
    "piece",
    [b"X-Header: " + b"y" * 1000 + b"\r\n", b"a:b\r\n", b"y" * 1000],
    ids=["headers", "small headers", "one header"],
)
def test_endless_headers_are_bounded_in_bytes(product: Product, piece: bytes) -> None:
    with product.wire() as wire:
        first = b"POST /webhooks/acme HTTP/1.1\r\nX: "
        assert _bytes_taken(wire, first, piece) < 3_000_000


def test_an_endless_address_is_bounded_in_bytes(product: Product) -> None:
    with product.wire() as wire:
        assert _bytes_taken(wire, b"POST /webhooks/", b"a" * 1000) < 3_000_000


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"1\r\nx\r\n0\r\n", b"X-Trailer: y\r\n"),
        (b"1\r\nx\r\n0\r\nX-Trailer: ", b"y" * 1000),
        (b"", b"1;" + b"x" * 1000 + b"\r\na\r\n"),
        (b"", b"1\r\na\r\n"),
    ],
    ids=["trailers", "one trailer", "extensions", "small chunks"],
)
def test_what_is_around_a_body_is_bounded(product: Product, first: bytes, piece: bytes) -> None:
    """Headers may stand behind the last chunk too, and a chunk may be mostly wrapping."""
    before = product.memory_bytes
    with product.wire() as wire:
        begun = time.monotonic()
        _bytes_taken(wire, request(HOOK, first, headers=[("Transfer-Encoding", "chunked")]), piece)
        assert time.monotonic() - begun < BODY_TIMEOUT_S + 3
    assert product.memory_bytes - before < 30_000_000


def _bytes_taken(wire: Wire, first: bytes, piece: bytes) -> int:
    """How much is sent before the other side ends it; what the kernel buffers counts."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    wire.socket.settimeout(3)
    many = piece * max(1, 20_000 // len(piece))
    sent = len(first)
    try:
        wire.send(first)
        while sent < 200_000_000:
            wire.send(many)
            sent += len(many)
    except OSError:
        pass
    return sent


# Many


def test_thousands_who_say_nothing_keep_nobody_waiting(product: Product) -> None:
    with ExitStack() as crowd:
        for _ in range(3000):
            crowd.enter_context(product.wire())
        taken = honest_posts(product, 20)
        assert max(taken) < 1
        # and they do not stay
        until = time.monotonic() + SILENT_S + 2
        while product.metrics().sum("dialstream_http_connections") > 10:
            assert time.monotonic() < until
            time.sleep(0.2)


def test_thousands_of_slow_bodies_keep_nobody_waiting(make_product: MakeProduct) -> None:
    """Whoever knows the name of a connection can send these, without any secret."""
    product = make_product().start()
    first = request(HOOK, b"x" * 500, length=1000)
    with ExitStack() as crowd:
        wires = [crowd.enter_context(product.wire()) for _ in range(1500)]
        for wire in wires:
            wire.send(first)
        taken = honest_posts(product, 20)
        assert max(taken) < 1
        assert {wire.answer().status for wire in wires[::50]} == {503}
    product.settled()


def test_the_one_that_has_been_silent_longest_makes_room(crowded: Product) -> None:
    with ExitStack() as crowd:
        wires = []
        for _ in range(MAX_CONNECTIONS):
            wires.append(crowd.enter_context(crowded.wire()))
            time.sleep(0.002)
        assert max(honest_posts(crowded, 5)) < 1
        assert wires[0].closed_after(1) is not None
        assert wires[-1].closed_after(0.1) is None


@pytest.mark.parametrize("said", [request(HOOK, b"forged"), request("/", method="GET")])
def test_connections_that_were_answered_and_idle_make_room_too(
    crowded: Product, said: bytes
) -> None:
    """Otherwise a forgery on each would keep everybody out for as long as they like."""
    with ExitStack() as crowd:
        for _ in range(MAX_CONNECTIONS + 10):
            wire = crowd.enter_context(crowded.wire())
            assert wire.ask(said).status in (401, 404)
        assert max(honest_posts(crowded, 10)) < 1
        assert crowded.metrics().sum("dialstream_http_connections") <= MAX_CONNECTIONS + 1


def test_who_sends_something_is_not_the_one_that_goes(crowded: Product) -> None:
    leg = new_leg()
    with ExitStack() as crowd:
        for _ in range(MAX_CONNECTIONS - 1):
            crowd.enter_context(crowded.wire())
        body = sign(call(leg, 0))
        busy = crowd.enter_context(crowded.wire())
        busy.send(request(HOOK, body[:100], length=len(body)))
        for _ in range(MAX_CONNECTIONS // 2):
            crowd.enter_context(crowded.wire())
        assert busy.ask(body[100:]).status == 204


def test_the_limit_holds_after_senders_that_did_not_wait_for_their_answers(
    crowded: Product,
) -> None:
    leg = new_leg()
    for seq in range(100):
        with crowded.wire() as wire:
            wire.send(request(HOOK, sign(call(leg, seq))))
    crowded.settled()
    with ExitStack() as crowd:
        for _ in range(MAX_CONNECTIONS * 3):
            crowd.enter_context(crowded.wire())
        assert max(honest_posts(crowded, 5)) < 1
        assert crowded.metrics().sum("dialstream_http_connections") <= MAX_CONNECTIONS + 1
    assert not crowded.log("unexpected_error")


def test_more_connections_at_once_than_there_are_descriptors_harm_nobody_for_long(
    crowded: Product,
) -> None:
    crowd = []
    for _ in range(1000):
        each = socket.socket()
        each.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            each.connect(("127.0.0.1", crowded.port))
        crowd.append(each)
    try:
        assert max(honest_posts(crowded, 5)) < 1
    finally:
        for each in crowd:
            each.close()
    assert max(honest_posts(crowded, 5)) < 1
    assert crowded.alive
    assert not crowded.log("unexpected_error")


def test_who_never_reads_is_not_waited_for(product: Product) -> None:
    """Answers that nobody takes must not hold a place among those that are in flight."""
    some = request(HOOK, sign(call(new_leg(), 0))) * 30
    with product.wire(1, receive_buffer=4096) as wire:
        with contextlib.suppress(OSError):
            for _ in range(200):
                wire.send(some)
                time.sleep(0.005)
        assert max(honest_posts(product, 5)) < 1
        until = time.monotonic() + ANSWER_WITHIN_S
        while product.metrics().sum("dialstream_in_flight") > 0:
            assert time.monotonic() < until
            time.sleep(0.2)
