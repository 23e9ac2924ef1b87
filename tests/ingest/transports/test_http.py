"""Every answer of the public port: what it is, when it comes, and what was done by then."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
import uvicorn

from ingest.delivery import Delivery, Source, Verified
from ingest.errors import PublishError
from ingest.eventlog.lanes import Lane, Room
from ingest.eventlog.log import Publisher, Receipt, Record, Settled
from ingest.pipeline import Pipeline
from ingest.providers import PROVIDERS
from ingest.settings import Connection
from ingest.transports import http as transport
from ingest.transports.http import Hooks
from schemas.event import Event
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.kit import (
    OTHER_SECRET,
    SECRET,
    Answer,
    Product,
    call,
    chunked,
    free_ports,
    new_leg,
    request,
    samples,
    sign,
)

NEW_SECRET = "the-secret-after-the-rotation-of-today"

HOOK = "/webhooks/acme"
CHUNKED = (("Transfer-Encoding", "chunked"),)
MIB = 1024 * 1024


def connection(*secrets: str) -> dict[str, object]:
    return {"provider": "dialpad", "secrets": list(secrets)}


def assert_problem(answer: Answer | httpx.Response, status: int, reason: str) -> None:
    """https://www.rfc-editor.org/rfc/rfc9457"""
    if isinstance(answer, httpx.Response):
        answer = Answer(answer.status_code, answer.headers, answer.content)
    assert answer.status == status
    problem = answer.problem
    assert problem["status"] == status
    assert problem["reason"] == reason
    assert problem["title"]
    assert problem["detail"]
    assert problem["type"] == "about:blank"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """Two connections with different secrets, one of them being rotated."""
    connections = {"acme": connection(SECRET), "other": connection(OTHER_SECRET, NEW_SECRET)}
    with Product(tmp_path_factory.mktemp("http"), {"connections": connections}) as running:
        yield running


# What an answer says


def test_a_delivery_that_is_stored_gets_204_without_a_body(product: Product) -> None:
    answer = product.post(sign(call(new_leg(), 0)))
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers  # RFC 9110 section 8.6


def test_a_204_means_that_readers_in_other_processes_see_it(product: Product) -> None:
    leg = new_leg()
    assert product.post(sign(call(leg, 3))).status == 204
    (event,) = product.story(leg)
    assert event["data"]["raw"] == call(leg, 3)


def test_a_repeat_gets_204_and_is_not_written_again(product: Product) -> None:
    leg, before = new_leg(), product.metrics()
    answers = {product.post(sign(call(leg, 0))).status for _ in range(3)}
    assert answers == {204}
    assert len(product.story(leg)) == 1
    after = product.metrics()
    assert after.outcomes()["repeat"] - before.outcomes()["repeat"] == 2


def test_the_same_fact_with_other_bytes_is_kept_under_the_same_id(product: Product) -> None:
    leg = new_leg()
    payload = call(leg, 0)
    product.post(sign(payload))
    product.post(sign({**payload, "talk_time": 123}))
    first, second = product.story(leg)
    assert first["id"] == second["id"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b'{"call_id": 1, "state": "ringing"}', "unsigned"),
        (b"." * 1_000_000, "not_a_jws"),
        (b"\xff" * 100, "not_a_jws"),
        (sign(call(1, 1), OTHER_SECRET), "bad_signature"),
        (sign(call(1, 1))[:-5], "bad_signature"),
    ],
)
def test_what_does_not_verify_gets_401_with_its_reason(
    product: Product, body: bytes, reason: str
) -> None:
    assert_problem(product.post(body), 401, reason)


def test_a_refusal_says_nothing_of_what_it_refuses(product: Product) -> None:
    answer = product.post(b'{"name": "Canary Person", "number": "+15557654321"}')
    assert b"Canary" not in answer.body
    assert b"7654321" not in answer.body


def test_a_refusal_leaves_a_count_and_no_event(product: Product) -> None:
    leg, before = new_leg(), product.metrics()
    product.post(sign(call(leg, 0), OTHER_SECRET))
    after = product.metrics()
    name, labels = "dialstream_refusals_total", {"connection": "acme", "reason": "bad_signature"}
    assert after.sum(name, **labels) == before.sum(name, **labels) + 1
    assert not product.story(leg)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/webhooks",
        "/webhooks/",
        "/webhooks/nobody",
        "/webhooks/nobody/call",
        "/webhooks/ACME",
        "/webhooks/acme/call/more",
        "/webhooks/acme%2fcall%2fmore",
        "//webhooks/acme",
        "/x/webhooks/acme",
        "/webhook/acme",
        "/webhooks/acme ".replace(" ", "%20"),
        "/livez",
        "/readyz",
        "/metrics",
        "/docs",
        "/webhooks/" + "a" * 5000,
    ],
)
def test_an_unknown_address_gets_404(product: Product, path: str) -> None:
    with product.wire() as wire:
        answer = wire.ask(request(path, sign(call(1, 1))))
    assert answer.status == 404
    assert answer.problem["reason"] == "not_found"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_gets_405_with_the_one_that_is_allowed(
    product: Product, method: str
) -> None:
    answer = httpx.request(method, product.url, trust_env=False)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_head_gets_405_without_a_body(product: Product) -> None:
    with product.wire() as wire:
        wire.send(request(HOOK, method="HEAD") + request(HOOK, sign(call(new_leg(), 0))))
        status, _ = wire.head()
        assert status == 405
        # A body would stand in front of this.
        assert wire.answer().status == 204


def test_another_method_does_not_store_what_it_carries(product: Product) -> None:
    leg = new_leg()
    httpx.put(product.url, content=sign(call(leg, 0)), trust_env=False)
    assert not product.story(leg)


# Size


def test_the_largest_body_that_is_allowed_is_stored(product: Product) -> None:
    leg = new_leg()
    room = MIB - len(sign(call(leg, 0)))
    # base64 makes four letters of three bytes
    body = sign({**call(leg, 0), "x": "y" * (room * 3 // 4 - 20)})
    assert MIB - 100 < len(body) <= MIB
    assert product.post(body).status == 204


@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB])
def test_a_body_that_announces_too_much_gets_413_and_the_connection_closes(
    product: Product, size: int
) -> None:
    with product.wire() as wire:
        begun = time.monotonic()
        answer = wire.ask(request(HOOK, length=size))  # not one byte of the body
        assert time.monotonic() - begun < 0.5
        assert (answer.status, answer.problem["reason"]) == (413, "too_large")
        assert answer.headers["connection"] == "close"
        assert wire.closed_after(2) is not None


def test_who_sends_all_of_a_body_that_is_too_large_reads_the_413(product: Product) -> None:
    """A reset would look like a broken line, and the sender would try for hours."""
    for size in (MIB + 1, 2 * MIB, 8 * MIB):
        for body in (b"x" * size, iter([b"x" * 65536] * (size // 65536 + 1))):
            answer = httpx.post(product.url, content=body, timeout=10, trust_env=False)
            assert_problem(answer, 413, "too_large")


def test_who_sends_too_much_before_reading_anything_reads_the_413(product: Product) -> None:
    body = b"x" * (4 * MIB)
    for data in (
        request(HOOK, body),
        request(HOOK, headers=CHUNKED) + chunked([body[:MIB]] * 4),
    ):
        with product.wire() as wire:
            wire.send(data)
            assert wire.answer().status == 413


def test_chunks_that_grow_too_large_get_413_before_their_end(product: Product) -> None:
    with product.wire() as wire:
        wire.send(request(HOOK, headers=CHUNKED))
        piece = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)
        for _ in range(MIB // 65536 + 1):
            wire.send(piece)
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_a_body_in_chunks_is_taken_as_a_whole(product: Product) -> None:
    leg = new_leg()
    body = sign(call(leg, 0))
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    with product.wire() as wire:
        assert wire.ask(request(HOOK, chunked(pieces), headers=CHUNKED)).status == 204
        # and the connection goes on behind it
        assert wire.ask(request(HOOK, sign(call(leg, 1)))).status == 204


def test_a_body_that_comes_byte_by_byte_is_taken_as_a_whole(product: Product) -> None:
    with product.wire() as wire:
        for byte in request(HOOK, sign(b'{"call_id":%d,"state":"hold"}' % new_leg())):
            wire.send(bytes([byte]))
        assert wire.answer().status == 204


def test_who_asks_before_sending_is_told_to_go_on(product: Product) -> None:
    body = sign(call(new_leg(), 0))
    with product.wire() as wire:
        wire.send(request(HOOK, length=len(body), headers=[("Expect", "100-continue")]))
        assert wire.answer().status == 100
        assert wire.ask(body).status == 204


@pytest.mark.parametrize(("path", "length", "status"), [(HOOK, 5 * MIB, 413), ("/x", 5, 404)])
def test_who_asks_before_sending_is_told_not_to(
    product: Product, path: str, length: int, status: int
) -> None:
    with product.wire() as wire:
        asked = request(path, length=length, headers=[("Expect", "100-continue")])
        assert wire.ask(asked).status == status


# Connections and kinds


def test_each_connection_has_its_own_secrets(product: Product) -> None:
    tries = [
        ("acme", SECRET, 204),
        ("acme", OTHER_SECRET, 401),
        ("other", OTHER_SECRET, 204),
        ("other", NEW_SECRET, 204),
        ("other", SECRET, 401),
    ]
    for name, secret, status in tries:
        answer = product.post(sign(call(new_leg(), 0), secret), name)
        assert answer.status == status, (name, secret)


def test_a_fact_that_two_connections_tell_is_two_facts(product: Product) -> None:
    leg = new_leg()
    product.post(sign(call(leg, 0)), "acme")
    product.post(sign(call(leg, 0), OTHER_SECRET), "other")
    found = product.story(leg)
    assert {(e["connection"], e["source"]) for e in found} == {
        ("acme", "/dialpad/acme"),
        ("other", "/dialpad/other"),
    }
    assert len({e["id"] for e in found}) == len({e["partitionkey"] for e in found}) == 2


@pytest.mark.parametrize(("kind", "faults"), [("call", 0), ("sms", 1), ("anything", 1), (None, 0)])
def test_the_kind_in_the_address_is_a_hint_whose_faults_are_counted(
    product: Product, kind: str | None, faults: int
) -> None:
    leg, before = new_leg(), product.metrics()
    assert product.post(sign(call(leg, 0)), kind=kind).status == 204
    (event,) = product.story(leg)
    assert event["type"] == "dialstream.call.calling"
    name = "dialstream_surprises_total"
    assert product.metrics().sum(name, what="hint") - before.sum(name, what="hint") == faults


def test_every_sample_is_taken_at_every_kind_of_address(product: Product) -> None:
    for payload in samples().values():
        for kind in (None, "call", "sms", "contact", "agent_status", "changelog"):
            assert product.post(sign(payload), kind=kind).status == 204


def test_a_connection_without_a_secret_answers_503(make_product: MakeProduct) -> None:
    polled = {"provider": "dialpad", "api_key": "invented", "poll": {"enabled": False}}
    product = make_product(settings={"connections": {"polled": polled}}).start()
    for kind in (None, "call"):
        answer = product.post(sign(call(1, 1)), "polled", kind)
        assert_problem(answer, 503, "not_configured")


def test_a_connection_that_is_taken_out_answers_503_for_a_day(make_product: MakeProduct) -> None:
    both = {"acme": connection(SECRET), "gone": connection(OTHER_SECRET)}
    product = make_product(settings={"connections": both}).start()
    assert product.post(sign(call(1, 1), OTHER_SECRET), "gone").status == 204
    assert product.stop() == 0

    product.configure({"connections": {"acme": connection(SECRET)}})
    product.start()
    for kind in (None, "call"):
        answer = product.post(sign(call(1, 2), OTHER_SECRET), "gone", kind)
        assert_problem(answer, 503, "not_configured")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers.get("connection") == "close", "its body was not read"
    assert product.post(sign(call(1, 2), OTHER_SECRET), "never").status == 404
    assert product.post(sign(call(1, 2))).status == 204
    assert product.stop() == 0

    # A day later.
    file = product.data / "connections.json"
    seen = json.loads(file.read_text())
    assert seen.keys() == {"acme", "gone"}
    file.write_text(json.dumps(seen | {"gone": seen["gone"] - 24 * 3600 - 1}))
    product.start()
    assert product.post(sign(call(1, 3), OTHER_SECRET), "gone").status == 404


@pytest.mark.parametrize("text", ["[]", '{"gone": "yesterday"}', "\0" * 9])
def test_a_damaged_memory_of_connections_does_not_block_the_start(
    make_product: MakeProduct, text: str
) -> None:
    product = make_product()
    product.data.mkdir()
    (product.data / "connections.json").write_text(text)
    assert product.start().post(sign(call(1, 1))).status == 204


# Odd HTTP


def test_requests_that_do_not_wait_for_answers_are_answered_in_order(product: Product) -> None:
    leg = new_leg()
    forged, unknown = request(HOOK, b"forged"), request("/webhooks/nobody", b"x")
    events = [request(HOOK, sign(call(leg, seq))) for seq in range(30)]
    with product.wire() as wire:
        wire.send(b"".join([*events[:10], forged, *events[10:20]]))
        assert [wire.answer().status for _ in range(21)] == [204] * 10 + [401] + [204] * 10
        wire.send(unknown + b"".join(events[20:]))
        assert [wire.answer().status for _ in range(11)] == [404] + [204] * 10
    found = product.story(leg)
    assert [e["data"]["custom_data"] for e in found] == [
        f"leg {leg}, event {seq}" for seq in range(30)
    ]


def test_a_refusal_to_read_on_is_not_taken_for_the_answer_to_what_came_before(
    product: Product,
) -> None:
    with product.wire() as wire:
        good = request(HOOK, sign(call(new_leg(), 0)))
        wire.send(good + good + request(HOOK, length=2 * MIB))
        assert [wire.answer().status for _ in range(3)] == [204, 204, 413]


def test_an_answer_to_something_else_does_not_overtake_or_drop_deliveries(
    product: Product,
) -> None:
    leg = new_leg()
    with product.wire() as wire:
        wire.send(
            request(HOOK, sign(call(leg, 0)))
            + request("/", method="GET")
            + request(HOOK, sign(call(leg, 1)))
        )
        # Closing instead of answering is fair: then the sender knows nothing and sends again.
        assert wire.answer().status == 204
        told = 1
        try:
            for status in (404, 204):
                assert wire.answer().status == status
                told += status == 204
        except ConnectionError:
            pass
    found = product.story(leg)
    assert len(found) >= told


def test_a_request_that_begins_behind_a_large_body_is_read(product: Product) -> None:
    """What counts as its headers does not include the body in front of it."""
    leg = new_leg()
    large = request(HOOK, sign({**call(leg, 0), "x": "y" * 150_000}))
    small = request(HOOK, sign(call(leg, 1)))
    with product.wire() as wire:
        wire.send(large + small[:20])
        assert wire.answer().status == 204
        assert wire.ask(small[20:]).status == 204


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Type", "application/json")],
        [("Content-Type", "")],
        [("content-type", "multipart/form-data; boundary=x")],
        [("Content-Encoding", "gzip")],
        [("Connection", "close")],
        [("Connection", "keep-alive")],
        [("X-Odd", "\xe9\xff")],
        [("Cookie", "x" * 10_000)],
        [("Host", "other")],
        [("Authorization", "Bearer nothing")],
        [("X-Forwarded-For", "1.2.3.4, nonsense"), ("X-Forwarded-Proto", "gopher")],
        [(f"X-{number}", "y") for number in range(500)],
        [("Upgrade", "h2c"), ("Connection", "close")],
    ],
    ids=str,
)
def test_headers_do_not_matter(product: Product, headers: list[tuple[str, str]]) -> None:
    with product.wire() as wire:
        assert wire.ask(request(HOOK, sign(call(new_leg(), 0)), headers=headers)).status == 204


@pytest.mark.parametrize("target", ["h2c", "websocket"])
def test_an_offer_to_speak_something_else_never_loses_a_delivery(
    product: Product, target: str
) -> None:
    """Java's HTTP client offers HTTP/2 with every request; 4xx would be final."""
    headers = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", target),
        ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
    ]
    with product.wire() as wire:
        answer = wire.ask(request(HOOK, sign(call(new_leg(), 0)), headers=headers))
        assert answer.status in (204, 503)
        if answer.headers.get("connection") != "close":
            assert wire.ask(request(HOOK, sign(call(new_leg(), 0)))).status == 204


def test_http_1_0_gets_its_answer_and_the_end_of_the_connection(product: Product) -> None:
    body = sign(call(new_leg(), 0))
    head = f"POST {HOOK} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with product.wire() as wire:
        assert wire.ask(head + body).status == 204
        assert wire.closed_after(2) is not None


def test_an_absolute_address_is_an_address(product: Product) -> None:
    body = sign(call(new_leg(), 0))
    with product.wire() as wire:
        assert wire.ask(request(f"http://tests{HOOK}?retry=1#x", body)).status == 204
        assert wire.ask(request("/webhooks/%61cme", body)).status == 204
        assert wire.ask(request("/webhooks/acme/", body)).status == 204


NO_HTTP = {
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "empty lines": b"\r\n\r\n\r\n\r\nhello\r\n\r\n",
    "no version": b"POST /webhooks/acme\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"POST /webhooks/acme HTTP/9.9\r\nContent-Length: 0\r\n\r\n",
    "bytes in the path": b"POST /webhooks/\xff\xfe HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "star posted": b"POST * HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "connect": b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
    "a broken address": b"POST http://[::1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "an unknown method": b"FROB /webhooks/acme HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
} | {
    name: b"POST /webhooks/acme HTTP/1.1\r\n" + rest
    for name, rest in {
        "two lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "length and chunks": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "a negative length": b"Content-Length: -1\r\n\r\n",
        "a huge length": b"Content-Length: 99999999999999999999999\r\n\r\n",
        "a length that is no number": b"Content-Length: x\r\n\r\n",
        "a bad chunk": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "an unknown coding": b"Transfer-Encoding: gzip\r\n\r\nabc",
        "a folded header": b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "a header without a name": b": x\r\nContent-Length: 0\r\n\r\n",
        "NUL in a header": b"X: \x00\r\nContent-Length: 0\r\n\r\n",
    }.items()
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http_gets_4xx_or_nothing_and_harms_nobody(
    product: Product, data: bytes
) -> None:
    faults = len(product.log("unexpected_error"))
    with product.wire(6) as wire:
        wire.send(data)
        try:
            status = wire.answer().status
        except ConnectionError:
            status = None
        assert status in (None, 400, 401, 404, 405)
    assert product.post(sign(call(new_leg(), 0))).status == 204
    assert len(product.log("unexpected_error")) == faults


def test_a_flood_of_what_is_no_http_is_told_by_few_lines(product: Product) -> None:
    before = len(product.stderr.splitlines())
    for _ in range(100):
        with product.wire() as wire:
            wire.send(b"nonsense\r\n\r\n")
            assert wire.closed_after(2) is not None
    time.sleep(0.2)
    assert len(product.stderr.splitlines()) - before < 10


def test_a_flood_of_forgeries_is_told_by_few_lines_and_counted_in_full(product: Product) -> None:
    lines, before = len(product.stderr.splitlines()), product.metrics()
    with product.wire() as wire:
        for _ in range(300):
            assert wire.ask(request(HOOK, b"forged")).status == 401
    assert product.settled().outcomes()["refused"] - before.outcomes()["refused"] == 300
    assert len(product.stderr.splitlines()) - lines < 5


def test_who_hangs_up_before_the_answer_leaves_nothing_behind(product: Product) -> None:
    leg = new_leg()
    for seq in range(50):
        with product.wire() as wire:
            wire.send(request(HOOK, sign(call(leg, seq))))
    for _ in range(50):
        with product.wire() as wire:
            wire.send(request(HOOK, length=1000) + b"half a body")
    time.sleep(0.3)
    metrics = product.settled()
    # ours, that asks, is not on the public port
    assert metrics.sum("dialstream_http_connections") == 0


def test_the_answers_to_senders_who_never_read_them_are_bounded(product: Product) -> None:
    """Nobody can make us keep megabytes of answers."""
    before = product.memory_bytes
    some = request(HOOK, b"forged") * 100
    with product.wire(1, receive_buffer=4096) as wire:
        with contextlib.suppress(OSError):  # it takes no more: so be it
            for _ in range(1600):
                wire.send(some)
                time.sleep(0.005)
        assert product.post(sign(call(new_leg(), 0))).status == 204
        assert product.memory_bytes - before < 12 * MIB


# With an event log that does as the test says


class Slow(Publisher):
    """Takes records, and makes them durable when it is told to."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.let_through = asyncio.Event()
        self.error: PublishError | None = None
        self._lane = Lane(self._commit, Room(1 << 30))

    def publish(self, records: Sequence[Record]) -> Receipt:
        return self._lane.append(records)

    def degraded(self) -> Sequence[str]:
        return ()

    def refusing(self) -> str | None:
        return None

    async def _commit(self, records: Sequence[Record]) -> str:
        await self.let_through.wait()
        if self.error is not None:
            raise self.error
        self.records += records
        return "journal"


class Refusing(Slow):
    """Has no room."""

    def publish(self, records: Sequence[Record]) -> Receipt:
        raise PublishError("overload")


class Instant(Receipt):
    """Is durable from the beginning."""

    durable = True
    where = "journal"

    def then(self, deadline: float, settled: Settled) -> None:
        settled(None)

    async def wait(self, deadline: float) -> str:
        return self.where


class Broken(Source):
    """Has a fault that nobody foresaw."""

    via = "webhook"
    signing_headers: Sequence[bytes] = ()
    former_seen = None

    def verify(self, delivery: Delivery) -> Verified:
        return Verified(delivery.body)

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        raise RuntimeError(f"canary {payload!r}")


@asynccontextmanager
async def serving(
    publisher: Publisher,
    *,
    answer_within_s: float = 4.0,
    sources: dict[str, Source] | None = None,
    max_connections: int = 1000,
    **more: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """The public port in this process, in front of ``publisher``."""
    hooks = Hooks(
        Pipeline(publisher, 1000),
        max_body_bytes=MIB,
        body_timeout_s=1.0,
        answer_within_s=answer_within_s,
        max_connections=max_connections,
        now_ms=now_ms,
        **more,
    )
    acme = Connection.model_validate({"provider": "dialpad", "secrets": [SECRET]})
    hooks.serve(sources or {"acme": PROVIDERS["dialpad"].webhook(acme)})
    (port,) = free_ports(1)
    server = uvicorn.Server(
        uvicorn.Config(
            hooks.application,
            http=hooks.protocol,  # type: ignore[arg-type]
            interface="asgi3",
            port=port,
            lifespan="off",
            log_config=None,
            ws="none",
            timeout_graceful_shutdown=1,
        )
    )
    sweeping = asyncio.create_task(hooks.sweep())
    running = asyncio.create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.005)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await running
        sweeping.cancel()


async def test_nothing_is_answered_before_it_is_durable() -> None:
    publisher = Slow()
    async with serving(publisher) as client:
        asked = asyncio.create_task(client.post(HOOK, content=sign(call(1, 1))))
        await asyncio.sleep(0.3)
        assert not asked.done()
        publisher.let_through.set()
        assert (await asked).status_code == 204
        assert len(publisher.records) == 1


async def test_a_repeat_of_a_delivery_in_flight_waits_for_it_and_is_not_published() -> None:
    publisher = Slow()
    async with serving(publisher) as client:
        body = sign(call(1, 1))
        asked = [asyncio.create_task(client.post(HOOK, content=body)) for _ in range(5)]
        await asyncio.sleep(0.3)
        assert not any(each.done() for each in asked)
        publisher.let_through.set()
        assert {(await each).status_code for each in asked} == {204}
        assert len(publisher.records) == 1


async def test_what_could_not_be_stored_gets_503_and_is_published_anew_when_it_comes_again() -> (
    None
):
    publisher = Slow()
    publisher.error = PublishError("disk_full")
    publisher.let_through.set()
    async with serving(publisher) as client:
        body = sign(call(1, 1))
        for _ in range(2):
            answer = await client.post(HOOK, content=body)
            assert_problem(answer, 503, "disk_full")
            assert int(answer.headers["retry-after"]) > 0
            assert "connection" not in answer.headers  # its body was read
        publisher.error = None
        assert (await client.post(HOOK, content=body)).status_code == 204
        assert len(publisher.records) == 1


async def test_a_log_without_room_means_503() -> None:
    async with serving(Refusing()) as client:
        answer = await client.post(HOOK, content=sign(call(1, 1)))
        assert_problem(answer, 503, "overload")
        assert int(answer.headers["retry-after"]) > 0


async def test_a_log_that_does_not_answer_means_503_within_the_time() -> None:
    publisher = Slow()
    async with serving(publisher) as client:
        begun = time.monotonic()
        answer = await client.post(HOOK, content=sign(call(1, 1)))
        assert 3.3 < time.monotonic() - begun < 4.0, "publishing gets what is left"
        assert_problem(answer, 503, "timeout")
        publisher.let_through.set()


async def test_what_became_durable_after_its_503_is_a_repeat_when_it_comes_again() -> None:
    publisher = Slow()
    async with serving(publisher, answer_within_s=0.8) as client:
        body = sign(call(1, 1))
        assert (await client.post(HOOK, content=body)).status_code == 503
        publisher.let_through.set()
        assert (await client.post(HOOK, content=body)).status_code == 204
        assert len(publisher.records) == 1


async def test_publishing_gets_what_a_slow_body_has_left() -> None:
    publisher = Slow()
    body = sign(call(1, 1))

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:50]
        await asyncio.sleep(0.6)
        yield body[50:]

    async with serving(publisher, answer_within_s=1.5) as client:
        begun = time.monotonic()
        answer = await client.post(HOOK, content=slowly())
        assert answer.status_code == 503
        assert 0.8 < time.monotonic() - begun < 1.5
        publisher.let_through.set()


async def test_who_has_less_time_left_is_answered_first() -> None:
    """One commit serves many; each is answered within its own time."""
    publisher = Slow()
    body = sign(call(2, 1))

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:50]
        await asyncio.sleep(0.7)
        yield body[50:]

    async with serving(publisher, answer_within_s=1.6) as client:
        ahead = asyncio.create_task(client.post(HOOK, content=sign(call(3, 1))))  # being committed
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        slow = asyncio.create_task(client.post(HOOK, content=slowly()))
        await asyncio.sleep(0.6)
        quick = asyncio.create_task(client.post(HOOK, content=sign(call(4, 1))))
        assert (await slow).status_code == 503
        assert time.monotonic() - begun < 1.6
        publisher.let_through.set()
        await asyncio.gather(ahead, quick)


async def test_a_fault_of_ours_means_503_and_a_line() -> None:
    """Any 4xx would be final at the provider."""
    async with serving(Slow(), sources={"acme": Broken()}) as client:
        with structlog.testing.capture_logs() as lines:
            for _ in range(3):
                answer = await client.post(HOOK, content=b"7654321")
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) > 0
                assert "7654321" not in answer.text
    assert "unexpected_error" in {line["event"] for line in lines}
    assert all("7654321" not in str(value) for line in lines for value in _plain(line))


def _plain(line: Mapping[str, object]) -> list[object]:
    """What is told as it is; of an exception only its type and its places are."""
    return [value for key, value in line.items() if key != "exc_info"]


async def test_what_does_not_verify_is_handed_on_once_it_is_answered() -> None:
    """Whole, and nothing else is."""
    kept: list[tuple[Delivery, str]] = []

    def keep(delivery: Delivery, reason: str) -> None:
        kept.append((delivery, reason))

    forged = sign(call(1, 0), OTHER_SECRET)
    publisher = Slow()
    publisher.let_through.set()
    async with serving(publisher, refused=keep) as client:
        headers = {"x-odd": "1"}
        assert (await client.post(HOOK, content=sign(call(1, 0)))).status_code == 204
        answer = await client.post(f"{HOOK}/call", content=forged, headers=headers)
        assert answer.status_code == 401
    ((delivery, reason),) = kept
    assert (delivery.body, delivery.via, delivery.hint, reason) == (
        forged,
        "webhook",
        "call",
        "bad_signature",
    )
    assert (b"x-odd", b"1") in delivery.headers


async def test_too_many_at_a_time_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_IN_FLIGHT", 10)
    publisher = Slow()
    async with serving(publisher) as client:
        asked = [
            asyncio.create_task(client.post(HOOK, content=sign(call(leg, 1)))) for leg in range(30)
        ]
        await asyncio.sleep(0.5)
        refused = [each.result() for each in asked if each.done()]
        assert len(refused) == 20
        for answer in refused:
            assert_problem(answer, 503, "overload")
            assert int(answer.headers["retry-after"]) > 0
        publisher.let_through.set()
        statuses = [(await each).status_code for each in asked]
        assert sorted(statuses) == [204] * 10 + [503] * 20
        # and it is over when it is over
        assert (await client.post(HOOK, content=sign(call(99, 1)))).status_code == 204


async def test_half_bodies_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_PARTIAL_BYTES", 1_000_000)
    publisher = Slow()
    publisher.let_through.set()
    async with serving(publisher) as client:
        port = client.base_url.port
        writers = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(HOOK, b"x" * 300_000, length=900_000))
            await writer.drain()
            writers.append((reader, writer))
        await asyncio.sleep(0.2)
        heads = []
        for reader, writer in writers:
            try:
                async with asyncio.timeout(0.2):
                    heads.append(await reader.readuntil(b"\r\n\r\n"))
            except TimeoutError:
                pass
            writer.close()
        assert len(heads) == 1
        assert heads[0].startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in heads[0].lower()
        await asyncio.sleep(0.1)
        assert (await client.post(HOOK, content=sign(call(1, 1)))).status_code == 204


async def test_slow_bodies_take_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has proved nothing yet must not keep out who has something to say."""
    monkeypatch.setattr(transport, "MAX_IN_FLIGHT", 10)
    publisher = Slow()
    publisher.let_through.set()
    async with serving(publisher) as client:
        writers = []
        for _ in range(30):
            _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(request(HOOK, b"x", length=1000))
            writers.append(writer)
        await asyncio.sleep(0.1)
        assert (await client.post(HOOK, content=sign(call(1, 1)))).status_code == 204
        for writer in writers:
            writer.close()


async def test_two_deliveries_of_one_leg_stand_in_the_order_of_their_last_bytes() -> None:
    publisher = Slow()
    async with serving(publisher) as client:
        asked = []
        for seq in range(20):
            asked.append(asyncio.create_task(client.post(HOOK, content=sign(call(1, seq)))))
            await asyncio.sleep(0.02)  # each on a connection of its own
        publisher.let_through.set()
        assert {(await each).status_code for each in asked} == {204}
    told = [json.loads(r.value)["data"]["custom_data"] for r in publisher.records if r.value]
    assert told == [f"leg 1, event {seq}" for seq in range(20)]


def test_the_receipt_of_the_tests_is_one() -> None:
    """The interface that these tests stand in for."""
    told: list[object] = []
    receipt: Receipt = Instant()
    settled: Callable[[PublishError | None], None] = told.append
    receipt.then(0, settled)
    assert told == [None]
