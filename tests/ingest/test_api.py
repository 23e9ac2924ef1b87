"""The client against a server on a real socket; nothing here waits for a real backoff."""

import asyncio
import gzip
import logging
import re
import socket
import ssl
import time
import traceback
import unicodedata
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import stamina
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest import api as client
from ingest.api import (
    Api,
    ApiError,
    Budget,
    Deadlines,
    Facts,
    Rests,
    budgets_of,
    masked,
    open_api,
    read_json,
    shape,
    take_turn,
    walk,
)
from ingest.errors import ConfigError
from ingest.metrics import REGISTRY
from ingest.settings import Connection
from tests.ingest.scripted import (
    Asked,
    Response,
    Scripted,
    answer,
    cut,
    dripping,
    good,
    scripted,
    silent,
)

KEY = "Canarykeyx7Qz"
FACTS = Facts(
    base_url="http://127.0.0.1:1",
    limits={"GET /narrow/{id}": (2, 60.0)},
    needs=lambda reason, call: "",
)
QUICK = Deadlines(connect_s=5, read_s=0.2, call_s=0.5)


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=6):
        yield


def connection(base_url: str, **more: Any) -> Connection:
    return Connection.model_validate(
        {
            "provider": "dialpad",
            "api_key": KEY,
            "base_url": base_url,
            "poll": {"requests_per_s": 20.0},
            **more,
        }
    )


@asynccontextmanager
async def asking(
    *responses: Response,
    deadlines: Deadlines | None = None,
    name: str = "acme",
    facts: Facts = FACTS,
    **more: Any,
) -> AsyncIterator[tuple[Api, Scripted]]:
    async with (
        scripted(*responses) as server,
        open_api(name, connection(server.url, **more), facts, deadlines) as api,
    ):
        yield api, server


async def fails(api: Api, method: str = "GET", path: str = "/list", **more: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await api.ask(method, path, **more)
    return raised.value


def counted(outcome: str, name: str) -> float:
    labels = {"connection": name, "outcome": outcome}
    return REGISTRY.get_sample_value("dialstream_api_requests_total", labels) or 0.0


# What is sent, what comes back


async def test_a_good_answer_comes_back_to_the_byte_and_the_key_goes_in_its_header() -> None:
    body = b'{"id": 12345678901234567890123,  "x":"\\u00e9"}'
    async with asking(answer(200, body)) as (api, server):
        assert await api.ask("GET", "/list", params={"a": 1, "b": None, "c": "x&y"}) == body
        [asked] = server.asked
        assert (asked.method, asked.path) == ("GET", "/list")
        assert asked.query == {"a": "1", "c": "x&y"}
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in asked.target


async def test_a_body_is_sent_as_json() -> None:
    async with asking() as (api, server):
        await api.ask("POST", "/things", body={"endpoint_id": 5000000000004001, "name": "é"})
        [asked] = server.asked
        assert asked.headers["content-type"] == "application/json"
        assert asked.body == '{"endpoint_id":5000000000004001,"name":"é"}'.encode()


async def test_a_connection_is_used_again_also_after_refusals() -> None:
    refusal = answer(404, b'{"error": "no"}')
    async with asking(good({}), refusal, good({}), answer(204), good({})) as (api, server):
        await api.ask("GET", "/list")
        assert (await fails(api)).reason == "not_found"
        for _ in range(3):
            await api.ask("GET", "/list")
        assert len(server.asked) == 5
        assert server.connections == 1


async def test_chunks_and_gzip_are_read() -> None:
    packed = gzip.compress(b'{"a":1}')
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"b":2}') + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    async with asking(answer(200, packed, content_encoding="gzip"), head + chunks) as (api, _):
        assert await api.ask("GET", "/list") == b'{"a":1}'
        assert await api.ask("GET", "/list") == b'{"b":2}'


@pytest.mark.parametrize("path", ["https://elsewhere.example/x", "//elsewhere.example/x", "", "x"])
async def test_the_key_goes_nowhere_else(path: str) -> None:
    async with asking() as (api, server):
        with pytest.raises(ValueError, match="no path"):
            await api.ask("GET", path)
        assert server.asked == []


# What goes wrong


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "refused"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "not_found"),
        (405, "refused"),
        (409, "conflict"),
        (413, "refused"),
        (422, "refused"),
        (300, "unexpected"),
        (304, "unexpected"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
async def test_what_will_not_get_better_is_asked_once(
    method: str, status: int, reason: str
) -> None:
    response = f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
    async with asking(cut(response)) as (api, server):
        error = await fails(api, method)
        assert (error.reason, error.status) == (reason, status)
        assert not error.reached
        assert error.mend
        assert str(error).startswith(f"{method} /list: answered {status}: ")
        assert "\n" not in str(error)
        assert len(server.asked) == 1


TROUBLES: dict[str, Response] = {
    "500": answer(500, b"oops"),
    "502 as a web page": answer(502, b"<html>", content_type="text/html"),
    "503": answer(503),
    "408": answer(408),
    "no answer": cut(),
    "half a head": cut(b"HTTP/1.1 200 OK\r\ncontent-le"),
    "half a body": cut(answer(200, b'{"a":1}')[:-3]),
    "half a chunk": cut(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"),
    "not http": cut(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "silence": silent(),
    "a body without end": dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b"x"),
    "a head without end": dripping(b"HTTP/1.1 200 OK\r\nx: ", b"x"),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_what_may_get_better_is_tried_again(method: str, trouble: Response) -> None:
    async with asking(trouble, good({"a": 1}), deadlines=QUICK) as (api, server):
        assert await api.ask(method, "/list") == b'{"a": 1}'
        assert len(server.asked) == 2


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_a_post_that_may_have_had_its_effect_is_not_repeated(trouble: Response) -> None:
    async with asking(trouble, good({}), deadlines=QUICK) as (api, server):
        error = await fails(api, "POST", body={})
        assert error.reason == "unavailable"
        assert error.reached
        assert len(server.asked) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
async def test_too_many_requests_had_no_effect_and_are_repeated(method: str) -> None:
    async with asking(answer(429), answer(429, retry_after="0"), good({})) as (api, server):
        assert await api.ask(method, "/list", body={}) == b"{}"
        assert len(server.asked) == 3


async def test_it_is_not_tried_for_ever() -> None:
    async with asking(answer(503)) as (api, server):
        error = await fails(api)
        assert (error.reason, error.status) == ("unavailable", 503)
        assert len(server.asked) == client.ATTEMPTS


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_a_connection_everything_is_tried_again(method: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        name = f"refused_{method.lower()}"
        async with open_api(name, connection(url), FACTS) as api:
            error = await fails(api, method)
    assert error.reason == "unavailable"
    assert not error.reached
    assert str(error) == f"{method} /list: no connection: try again later"
    assert counted("unavailable", name) == client.ATTEMPTS


async def test_a_connection_that_does_not_come_about_has_a_deadline() -> None:
    with socket.socket() as full, ExitStack() as others:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(8):  # nobody accepts them; further ones hear nothing
            other = others.enter_context(socket.socket())
            other.settimeout(0)
            other.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        deadlines = Deadlines(connect_s=0.1)
        async with open_api("hung", connection(url), FACTS, deadlines) as api:
            error = await fails(api, "POST")
    assert (error.reason, error.reached) == ("unavailable", False)
    assert "no connection within the deadline" in str(error)
    assert counted("unavailable", "hung") == client.ATTEMPTS


async def test_the_whole_answer_has_a_deadline_although_pieces_come() -> None:
    body = dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b"x")
    async with asking(body, deadlines=Deadlines(read_s=30, call_s=0.3)) as (api, server):
        error = await fails(api, "POST")
        assert error.reason == "unavailable"
        assert "deadline" in str(error)
        assert len(server.asked) == 1


async def test_a_refusal_keeps_its_reason_however_slowly_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "_READ_REFUSAL_S", 0.05)
    slow = dripping(b"HTTP/1.1 403 No\r\ncontent-length: 100000\r\n\r\n", b"x")
    short = cut(b"HTTP/1.1 403 No\r\ncontent-length: 100000\r\n\r\nx")
    async with asking(slow, short) as (api, server):
        assert (await fails(api)).reason == "forbidden"
        assert (await fails(api)).reason == "forbidden"
        assert len(server.asked) == 2


async def test_an_answer_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 1000)
    bomb = answer(200, gzip.compress(bytes(10_000_000)), content_encoding="gzip")
    endless = dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 999, every_s=0)
    exact = answer(200, b"x" * 1000)
    async with asking(answer(200, b"x" * 1001), bomb, endless, exact) as (api, server):
        for _ in range(3):
            error = await fails(api)
            assert (error.reason, error.status) == ("unexpected", 200)
            assert "larger than 1000 bytes" in str(error)
        assert await api.ask("GET", "/list") == b"x" * 1000
        assert len(server.asked) == 4


async def test_what_cannot_be_unpacked_is_unexpected() -> None:
    async with asking(answer(200, b"no gzip", content_encoding="gzip")) as (api, server):
        assert (await fails(api)).reason == "unexpected"
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with scripted() as elsewhere, asking() as (api, server):
        server.play(answer(status, location=f"{elsewhere.url}/login"))
        error = await fails(api, "POST")
        assert error.reason == "unexpected"
        assert "base_url" in error.mend
        assert str(elsewhere.port) not in str(error)
        assert elsewhere.asked == []
        assert len(server.asked) == 1


async def test_who_waits_for_a_connection_does_not_lose_its_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "_MAX_CONNECTIONS", 1)

    async def slowly(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(answer(200, b"{}", connection="close"))
        await writer.drain()

    async with asking(slowly, slowly, name="crowded") as (api, server):
        await asyncio.gather(api.ask("POST", "/a"), api.ask("POST", "/b"))
        assert len(server.asked) == 2


async def test_a_web_page_instead_of_the_api_is_told() -> None:
    page = answer(403, b"<html>", content_type="text/html; charset=utf-8")
    async with asking(page) as (api, _):
        error = await fails(api)
        assert error.reason == "forbidden"
        assert "web page" in error.mend


async def test_a_try_can_be_cancelled_and_the_next_call_is_fine() -> None:
    async with asking() as (api, server):
        arrived = asyncio.Event()

        def respond(_: Asked) -> Response:
            arrived.set()
            return silent()

        server.respond = respond
        task = asyncio.create_task(api.ask("GET", "/list"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.play(good({}))
        assert await api.ask("GET", "/list") == b"{}"


# Keys


async def test_a_key_that_was_changed_is_read_again_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old\n")

    def respond(asked: Asked) -> bytes:
        right = asked.headers["authorization"] == "Bearer new"
        return good({}) if right else answer(401)

    async with asking(api_key=None, api_key_file=file) as (api, server):
        server.respond = respond
        file.write_text("new\n")
        assert await api.ask("POST", "/things", body={"a": 1}) == b"{}"
        assert [asked.headers["authorization"] for asked in server.asked] == [
            "Bearer old",
            "Bearer new",
        ]
        assert server.asked[0].body == server.asked[1].body
        await api.ask("GET", "/list")
        assert len(server.asked) == 3
        file.write_text("wrong\n")
        server.respond = lambda _: answer(401)
        assert (await fails(api)).reason == "unauthorized"
        assert len(server.asked) == 5


async def test_a_key_that_stays_wrong_is_told(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old")
    async with asking(answer(401), api_key=None, api_key_file=file) as (api, server):
        error = await fails(api)
        assert error.reason == "unauthorized"
        assert "connections.acme" in error.mend
        file.unlink()
        assert (await fails(api)).reason == "unauthorized"
        assert len(server.asked) == 2


async def test_without_a_key_nothing_is_opened(tmp_path: Path) -> None:
    missing = connection("http://127.0.0.1:1", api_key=None, api_key_file=tmp_path / "none")
    with pytest.raises(ConfigError, match="api_key_file"):
        async with open_api("acme", missing, FACTS):
            pass


# Rates


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        await asyncio.sleep(0)

    def budget(self, allowed: int, period_s: float) -> Budget:
        return Budget(allowed, period_s, clock=self, sleep=self.sleep)


@settings(max_examples=50)
@given(
    st.integers(1, 5),
    st.floats(0.1, 60),
    st.lists(st.floats(0, 100), min_size=1, max_size=30),
)
async def test_no_period_has_more_than_it_may(
    allowed: int, period_s: float, pauses: list[float]
) -> None:
    clock = Clock()
    budget = clock.budget(allowed, period_s)
    times = []
    for pause_s in pauses:
        clock.now += pause_s
        await take_turn(budget)
        times.append(clock.now)
    for early, late in zip(times, times[allowed:], strict=False):
        assert late - early >= period_s * 0.999999


async def test_what_a_period_has_free_is_not_waited_for() -> None:
    clock = Clock()
    budget = clock.budget(3, 10.0)
    times = []
    for _ in range(8):
        await take_turn(budget)
        times.append(clock.now - 1000)
    assert times == [0, 0, 0, 10, 10, 10, 20, 20]


async def test_who_waits_is_served_in_turn_and_who_gives_up_has_used_nothing() -> None:
    gate = asyncio.Semaphore(0)
    clock = Clock()

    async def sleep(seconds: float) -> None:
        await gate.acquire()
        clock.now += seconds

    budget = Budget(1, 10.0, clock=clock, sleep=sleep)
    await take_turn(budget)
    served: list[int] = []

    async def wait(number: int) -> None:
        await take_turn(budget)
        served.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)
    for number in (0, 2):  # the one whose turn is next, and one behind it
        tasks[number].cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    for _ in range(3):
        gate.release()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert served == [1, 3, 4]
    assert clock.now == 1030.0  # as if the other two had never been


async def test_a_narrow_queue_holds_up_nobody_else() -> None:
    clock = Clock()
    stuck = asyncio.Event()
    narrow = Budget(1, 60.0, clock=clock, sleep=lambda _: stuck.wait())
    whole = clock.budget(1, 0.2)
    await take_turn(narrow, whole)
    waiting = asyncio.create_task(take_turn(narrow, whole))
    await asyncio.sleep(0)
    for _ in range(5):
        await take_turn(whole)
    assert not waiting.done()
    clock.now += 60
    stuck.set()
    await waiting


async def test_a_rest_holds_everybody_until_it_is_over() -> None:
    clock = Clock()
    budget = clock.budget(1, 0.2)
    budget.rest(30)
    budget.rest(5)  # the longer one counts
    await take_turn(budget)
    assert clock.now == 1030.0


async def test_all_of_a_connections_name_share_one_budget() -> None:
    async with asking(good({}), name="shared") as (one, server):
        same = connection(server.url)
        async with open_api("shared", same, FACTS) as two:
            began = time.monotonic()
            await asyncio.gather(*(api.ask("GET", "/x") for api in (one, two) for _ in range(3)))
            assert time.monotonic() - began >= 5 / 20 - 0.01
        assert len(server.asked) == 6


async def test_the_rate_is_the_one_last_set_and_other_names_have_their_own() -> None:
    first = budgets_of("a", 5.0, {})
    assert budgets_of("a", 10.0, {}) is first
    assert first.whole.period_s == 0.1
    assert budgets_of("b", 5.0, {}) is not first


async def test_calls_with_a_limit_of_their_own_wait_alone() -> None:
    async with asking(name="limited") as (api, server):
        for ident in (1, 2):
            await api.ask("GET", f"/narrow/{ident}")
        third = asyncio.create_task(api.ask("GET", "/narrow/3"))
        await api.ask("GET", "/list")
        await api.ask("DELETE", "/narrow/1")
        assert [asked.path for asked in server.asked].count("/narrow/3") == 0
        third.cancel()


async def test_who_wants_to_be_left_alone_is() -> None:
    with stamina.set_testing(testing=True, attempts=1):
        async with asking(answer(429, retry_after="60"), good({}), name="rest") as (api, server):
            error = await fails(api)
            assert (error.reason, error.retry_after_s) == ("rate_limited", 60.0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await api.ask("GET", "/other")
            assert len(server.asked) == 1


async def test_a_narrow_limit_that_is_reached_closes_only_itself() -> None:
    with stamina.set_testing(testing=True, attempts=1):
        async with asking(answer(429, retry_after="60"), good({}), name="one") as (api, server):
            await fails(api, path="/narrow/1")
            await api.ask("GET", "/list")
            assert len(server.asked) == 2


async def test_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait itself is the library's; what it is told is ours."""
    error = ApiError("unavailable", retry_after_s=7.0)
    wait_s = client._again("GET", error)
    assert 7.0 <= wait_s <= 8.0
    assert client._again("GET", ApiError("unavailable")) is True
    assert client._again("GET", ApiError("forbidden", retry_after_s=7.0)) is False
    assert client._again("GET", ValueError()) is False


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "3600"}, 60.0),
        ({"retry-after": "99999999999999999999"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:09 GMT", "date": DATE}, 9.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT", "date": DATE}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT", "date": DATE}, 60.0),
        ({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}, 60.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "nonsense"}, 0.0),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert client._retry_after_s(httpx.Headers(headers)) == seconds


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_stands_in_retry_after_is_bounded(after: str, date: str) -> None:
    headers = httpx.Headers(
        [(b"retry-after", after.encode()), (b"date", date.encode())], encoding="utf-8"
    )
    found = client._retry_after_s(headers)
    assert found is None or 0 <= found <= 60


# A provider that locks the whole key out


#: Rests that a test can wait for.
RESTING = replace(FACTS, rest_s=(0.01, 0.05))
LONG = replace(FACTS, rest_s=(60.0, 900.0))


async def test_where_the_key_is_locked_out_it_rests_and_who_asks_is_told_for_how_long() -> None:
    async with asking(answer(429), facts=LONG) as (api, server):
        error = await fails(api, path="/narrow/1")
        assert error.reason == "rate_limited"
        assert error.retry_after_s is not None
        assert 60 <= error.retry_after_s <= 66
        for path in ("/list", "/narrow/2"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await api.ask("GET", path)
        assert len(server.asked) == 1


async def test_retry_after_beats_the_usual_rest_and_may_be_as_long_as_the_longest() -> None:
    for number, (said, rests_s) in enumerate((("0", 0.0), ("300", 300.0), ("7200", 900.0))):
        limited = answer(429, retry_after=said)
        async with asking(limited, facts=LONG, name=f"said{number}") as (api, _):
            assert (await fails(api)).retry_after_s == rests_s


async def test_rests_double_up_to_the_longest_and_begin_anew_after_a_success() -> None:
    limited = answer(429)
    async with asking(limited, limited, limited, limited, good({}), limited, facts=RESTING) as (
        api,
        server,
    ):
        rests = [(await fails(api)).retry_after_s or 0 for _ in range(4)]
        await api.ask("GET", "/list")
        rests.append((await fails(api)).retry_after_s or 0)
        for rest_s, usual_s in zip(rests, (0.01, 0.02, 0.04, 0.05, 0.01), strict=True):
            assert usual_s <= rest_s <= usual_s * 1.1
        assert len(server.asked) == 6


async def test_what_else_fails_is_tried_again_there_too() -> None:
    async with asking(answer(503), cut(), good({}), facts=LONG) as (api, server):
        assert await api.ask("GET", "/list") == b"{}"
        assert len(server.asked) == 3


async def test_without_an_earlier_success_403_is_what_it_says() -> None:
    async with asking(answer(403), facts=RESTING) as (api, _):
        error = await fails(api)
        assert (error.reason, error.retry_after_s) == ("forbidden", None)


async def test_elsewhere_403_is_what_it_says_whatever_was_before() -> None:
    async with asking(good({}), answer(403)) as (api, _):
        await api.ask("GET", "/list")
        assert (await fails(api)).reason == "forbidden"


async def test_403_after_a_success_may_be_the_rate_but_not_for_ever() -> None:
    async with asking(good({}), answer(403), facts=RESTING) as (api, _):
        await api.ask("GET", "/list")
        found = [await fails(api, path=path) for path in ("/a", "/b", "/c", "/a")]
        reasons = [error.reason for error in found]
        assert reasons == ["rate_limited", "rate_limited", "forbidden", "forbidden"]
        assert found[0].status == 403
        assert found[1].retry_after_s
        assert found[2].retry_after_s is None


async def test_after_the_next_success_403_may_be_the_rate_again() -> None:
    async with asking(good({}), answer(403), facts=RESTING) as (api, server):
        await api.ask("GET", "/list")
        for _ in range(3):
            last = await fails(api)
        assert last.reason == "forbidden"
        server.play(good({}), answer(403))
        await api.ask("GET", "/list")
        assert (await fails(api)).reason == "rate_limited"


async def test_a_call_that_alone_is_forbidden_does_not_rest_the_others_for_ever() -> None:
    def respond(asked: Asked) -> bytes:
        return answer(403) if asked.path == "/contacts" else good({})

    async with asking(facts=RESTING) as (api, server):
        server.respond = respond
        reasons = []
        for _ in range(4):
            await api.ask("GET", "/list")
            reasons.append((await fails(api, path="/contacts")).reason)
        assert reasons == ["rate_limited", "rate_limited", "forbidden", "forbidden"]


async def test_success_is_known_of_the_whole_connection_not_of_one_client() -> None:
    async with asking(good({}), answer(403), facts=RESTING, name="both") as (one, server):
        await one.ask("GET", "/list")
        async with open_api("both", connection(server.url), RESTING) as two:
            assert (await fails(two)).reason == "rate_limited"
        async with open_api("other", connection(server.url), RESTING) as three:
            assert (await fails(three)).reason == "forbidden"


def test_what_was_under_way_when_a_rest_began_is_the_same_refusal() -> None:
    now = 0.0
    rests = Rests(clock=lambda: now)
    rests.succeeded("GET /a", begun=0.0)
    for _ in range(5):  # all asked at 1, refused at 2
        now = 2.0
        assert rests.may_be_rate("GET /a", begun=1.0)
        assert 60 <= rests.next_s(60, 900, begun=1.0) <= 66
    rests.succeeded("GET /a", begun=1.0)  # says nothing of what is now
    now = 70.0
    assert rests.may_be_rate("GET /a", begun=69.0)
    assert 120 <= rests.next_s(60, 900, begun=69.0) <= 132
    assert not rests.may_be_rate("GET /a", begun=300.0)


def test_rests_are_bounded_however_often() -> None:
    rests = Rests(clock=lambda: 0.0)
    assert max(rests.next_s(60, 900, begun=1.0) for _ in range(5000)) <= 990


# What the provider said


def text_of(body: bytes) -> str:
    return body.decode(errors="replace")


SAYING = replace(FACTS, error_text=text_of)


async def test_what_the_provider_said_is_kept_apart() -> None:
    body = f"No rights for {KEY}: ask bo@example.com\n or +1 555 123 4567, id 5000000000001101"
    async with asking(answer(403, body.encode()), facts=SAYING) as (api, _):
        error = await fails(api)
        assert error.said == "No rights for …: ask … or +…, id …"
        assert str(error) == "GET /list: answered 403: the key lacks a scope or a role"


async def test_nothing_is_said_where_nothing_is_to_be_read() -> None:
    async with asking(answer(400, b"because"), answer(404), silent(), deadlines=QUICK) as (api, _):
        for _ in range(3):
            assert (await fails(api, "POST")).said == ""
    async with asking(answer(200, b"<"), answer(400), facts=SAYING) as (api, _):
        await api.ask("GET", "/list")
        assert (await fails(api)).said == ""


@pytest.mark.parametrize("body", [b"word " * 100_000, b"@" * 300_000, b"1" * 300_000])
async def test_of_a_long_refusal_the_beginning_is_read(body: bytes) -> None:
    read: list[int] = []

    def reading(body: bytes) -> str:
        read.append(len(body))
        return text_of(body)

    async with asking(answer(400, body), facts=replace(FACTS, error_text=reading)) as (api, _):
        assert 0 < len((await fails(api)).said) <= 500
    assert read == [64 * 1024]


async def test_of_a_refusal_that_breaks_off_what_came_is_read() -> None:
    async with asking(cut(answer(400, b"half a sentence")[:-4]), facts=SAYING) as (api, _):
        assert (await fails(api)).said == "half a sent"


UUIDS = "0b8f3c1e-7a2d-4f6b-9c3e-1d2f3a4b5c6d+9e8d7c6b-5a49-4838-a271-605f4e3d2c1b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("  two\r\n lines\t", "two lines"),
        ("\x1b[31mred\x07", "[31mred"),
        ("a\u202eb\u200bc\ufeff", "abc"),
        ("page 1234 of 5678", "page 1234 of 5678"),
        ("id 12345", "id …"),
        ("id \uff11\uff12\uff13\uff14\uff15", "id …"),
        ("1\u200b2\u200b3\u200b4\u200b5", "…"),
        ("call (555) 123-0001 now", "call (… now"),
        ("call +44 20 7946 0018", "call +…"),
        ("from anna.b@example.com, to <c%40d.example>", "from …, to <…>"),
        (f"key {UUIDS}!", "key …!"),
        (f"key {UUIDS.upper()}!", "key …!"),
        (f"?k={UUIDS.replace('+', '%2B')}", "?k=…"),
        (f"of {UUIDS[37:]} only", "of … only"),
        (f"cut off: {UUIDS[:20]}", "cut off: "),
        (f"cut off: {UUIDS[:60]}", "cut off: …+"),
        (f"cut off: {UUIDS.replace('+', '%2B')[:62].upper()}", "cut off: …%2B"),
        ("naïve, 東京 → ok", "naïve, 東京 → ok"),
    ],
)
def test_what_is_shown_of_a_text(text: str, shown: str) -> None:
    assert masked(text, UUIDS) == shown


PIECES = st.one_of(
    st.text(max_size=8),
    st.text("0123456789 -+()./\u200b\u0661\uff12", max_size=14),
    st.sampled_from([UUIDS, UUIDS[37:], KEY, "a@b.example", "x%40y", "\x00", "\x1b[0m", "@", "…"]),
)


@given(
    st.lists(PIECES, max_size=12).map("".join), st.sampled_from([UUIDS, KEY, "k", "a b@c1234567"])
)
def test_nothing_of_a_text_is_shown_that_is_not_to_be_seen(text: str, key: str) -> None:
    shown = masked(text, key)
    assert len(shown) <= 500
    assert key.lower() not in shown.lower()
    assert not re.search(r"\d{5}", shown)
    assert not re.search(r"\d(?:[ -]?\d){6}", shown)  # as numbers of phones are written
    assert "@" not in shown
    assert "%40" not in shown
    assert not any(unicodedata.category(char)[0] == "C" for char in shown)
    assert not {"\u2028", "\u2029", "\n"} & set(shown)


@given(st.text(max_size=3000))
def test_what_is_shown_is_short_whatever_came(text: str) -> None:
    assert len(masked(text, KEY)) <= 500


@given(st.text("abcdefghij .,:!?", max_size=400))
def test_harmless_words_stay_as_they_are(text: str) -> None:
    assert masked(text, KEY) == " ".join(text.split())


# Lists


@settings(max_examples=200)
@given(st.data())
async def test_whatever_a_list_leads_to_it_has_an_end(data: st.DataObject) -> None:
    """Pages in any number, with cursors that lead anywhere."""
    pages = data.draw(
        st.lists(
            st.tuples(
                st.lists(st.sampled_from([b"1", b"2", b"3"]), max_size=2),
                st.none() | st.just("") | st.integers(0, 7).map(str),
            ),
            min_size=8,
            max_size=8,
        )
    )
    walked: list[list[bytes]] = []
    asked: list[str | None] = []

    async def fetch(cursor: str | None) -> tuple[list[bytes], str | None]:
        asked.append(cursor)
        return pages[int(cursor or 0)]

    with suppress(ApiError):
        async for page in walk(fetch, "GET /list"):
            walked.append(page)  # noqa: PERF401 - kept also where it ends in an error
    assert len(asked) == len(set(asked))  # no cursor is followed twice
    assert len({tuple(page) for page in walked}) == len(walked)
    assert [] not in walked


async def test_a_list_is_walked_to_its_end() -> None:
    pages: dict[str | None, tuple[list[bytes], str | None]] = {
        None: ([b"1", b"2"], "a"),
        "a": ([], "b"),
        "b": ([b"2", b"3"], None),
    }

    async def fetch(cursor: str | None) -> tuple[list[bytes], str | None]:
        return pages[cursor]

    assert [page async for page in walk(fetch, "x")] == [[b"1", b"2"], [b"2", b"3"]]


async def test_a_list_may_have_many_empty_pages_but_not_in_a_row() -> None:
    async def fetch(cursor: str | None) -> tuple[list[bytes], str | None]:
        number = int(cursor or 0)
        items = [b"%d" % number] if number % 3 == 0 else []
        return items, str(number + 1) if number < 3 * client.MAX_EMPTY_PAGES else None

    pages = [page async for page in walk(fetch, "x")]
    assert len(pages) == client.MAX_EMPTY_PAGES + 1


@pytest.mark.parametrize(
    ("page", "most"),
    [
        (lambda n: ([b"%d" % n], "same"), 2),  # a cursor leads to itself
        (lambda n: ([b"1"], str(n)), 2),  # new cursors, the same page
        (lambda n: ([], str(n)), client.MAX_EMPTY_PAGES + 1),  # nothing, for ever
    ],
)
async def test_a_list_that_goes_in_circles(
    page: Callable[[int], tuple[list[bytes], str | None]], most: int
) -> None:
    asked = 0

    async def fetch(cursor: str | None) -> tuple[list[bytes], str | None]:
        nonlocal asked
        asked += 1
        return page(asked)

    with pytest.raises(ApiError) as raised:
        async for _ in walk(fetch, "GET /list"):
            pass
    assert raised.value.reason == "cursor_loop"
    assert asked == most


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Sign in</html>",
        b'{"a":',
        b"[]",
        b'"text"',
        b"null",
        b'{"a":NaN}',
        b'{"a":1}{"b":2}',
        b"\xff\xfe",
        b'{"a":"\xff"}',
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_what_is_no_object_is_unexpected(body: bytes) -> None:
    with pytest.raises(ApiError) as raised:
        read_json(body, dict, "GET /list")
    assert raised.value.reason == "unexpected"
    assert raised.value.__context__ is None


def test_integers_are_read_exactly() -> None:
    assert read_json(b'{"id":12345678901234567890123}', dict, "x") == {
        "id": 12345678901234567890123
    }


# Who is told what


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/api/v2/call", "/api/v2/call"),
        ("/api/v2/call/5000000000001101", "/api/v2/call/{id}"),
        ("/api/v2/call/12/ai_recap", "/api/v2/call/{id}/ai_recap"),
        ("/api/v2/contacts/shared%3A1", "/api/v2/contacts/{id}"),
        ("/api/v22/x?apikey=1", "/api/{id}/{id}"),
        ("/HttpImport/", "/HttpImport/"),
        ("/v1/phone-system/calls", "/v1/phone-system/calls"),
        (
            "/v1/phone-system/calls/f47ac10b-58cc-4372-a567-0e02b2c3d479",
            "/v1/phone-system/calls/{id}",
        ),
        (
            "/partner/v1/agents/aBcDefGhIjkLmN-_pqRstU/call-logs",
            "/partner/v1/agents/{id}/call-logs",
        ),
    ],
)
def test_paths_are_shown_without_ids(path: str, shown: str) -> None:
    assert shape(path) == shown


async def test_requests_are_counted_by_what_came_of_them() -> None:
    responses = (good({}), answer(500), answer(404), answer(200, b"no", content_encoding="gzip"))
    name = "counted"
    async with asking(*responses, name=name) as (api, _):
        await api.ask("GET", "/a")
        await fails(api)
        await fails(api)
    outcomes = ("ok", "unavailable", "not_found", "unexpected")
    assert [counted(outcome, name) for outcome in outcomes] == [1, 1, 1, 1]
    count = REGISTRY.get_sample_value("dialstream_api_request_seconds_count", {"connection": name})
    assert count == 4


async def test_trouble_is_told_once_a_kind() -> None:
    with capture_logs() as lines:
        async with asking(answer(503)) as (api, server):
            await fails(api)
            await fails(api, path="/list")
            server.play(answer(403))
            await fails(api)
            server.play(answer(404))
            await fails(api)
    assert [(line["event"], line["call"], line["reason"], line["status"]) for line in lines] == [
        ("api_trouble", "GET /list", "unavailable", 503),
        ("api_trouble", "GET /list", "forbidden", 403),
    ]


BODY = "Canarybodyw3Rt"
NUMBER = "+15551230001"
TOKEN = "Canarytokenp9Lk"  # in addresses

SECRETIVE: dict[str, Response] = {
    **{
        str(status): answer(
            status,
            f'{{"error": "{BODY} {NUMBER} {KEY}"}}'.encode(),
            location=f"https://x.example/{TOKEN}",
            x_echo=KEY,
            retry_after=BODY,
        )
        for status in (302, 400, 401, 403, 404, 409, 429, 500)
    },
    "web page": answer(403, BODY.encode(), content_type="text/html"),
    "header of another kind": cut(f"HTTP/1.1 200 OK\r\n{KEY} {BODY}\r\n\r\n".encode()),
    "not http": cut(f"{KEY} {BODY}\r\n\r\n".encode()),
    "cut": cut(answer(200, (BODY * 3).encode())[:-3]),
    "silent": silent(),
    "no gzip": answer(200, BODY.encode(), content_encoding="gzip"),
    "no json": answer(200, f"<html>{BODY}{KEY}".encode()),
    "not an object": answer(200, f'["{BODY}{KEY}"]'.encode()),
}


def everything_about(error: BaseException) -> str:
    """All that any handler of it could print, also of what it hangs on."""
    texts = []
    todo: deque[BaseException | None] = deque([error])
    while todo:
        each = todo.popleft()
        if each is None:
            continue
        texts += [str(each), repr(each), repr(vars(each)), repr(each.args)]
        texts += traceback.format_exception(each)
        todo += [each.__cause__, each.__context__]
    return "\n".join(texts)


@pytest.mark.parametrize("response", SECRETIVE.values(), ids=SECRETIVE)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nothing_that_is_nobodys_business_is_told(
    method: str,
    response: Response,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    path = f"/users/{NUMBER}/{TOKEN}1"
    with capture_logs() as lines:
        async with asking(response, deadlines=QUICK) as (api, _):
            with pytest.raises(ApiError) as raised:
                read_json(
                    await api.ask(method, path, params={"q": TOKEN}, body={"secret": BODY}),
                    dict,
                    f"{method} {shape(path)}",
                )
            told = everything_about(raised.value) + repr(api) + repr(vars(api))
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    out, err = capfd.readouterr()
    told += repr(lines) + caplog.text + out + err
    for secret in (KEY, BODY, NUMBER, NUMBER[1:], TOKEN):
        assert secret not in told
    loggers = {record.name.split(".")[0] for record in caplog.records}
    assert loggers.isdisjoint({"httpx", "httpcore", "stamina"})


# The way there


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


async def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(
    environment: pytest.MonkeyPatch,
) -> None:
    async with scripted(good({"by": "proxy"})) as proxy, scripted(good({"by": "itself"})) as here:
        environment.setenv("HTTP_PROXY", proxy.url)
        async with open_api("far", connection("http://dialpad.example"), FACTS) as api:
            assert await api.ask("GET", "/list") == b'{"by": "proxy"}'
        assert proxy.asked[0].target == "http://dialpad.example/list"
        async with open_api("near", connection(here.url), FACTS) as api:
            assert await api.ask("GET", "/list") == b'{"by": "itself"}'
        environment.setenv("NO_PROXY", "dialpad.invalid")
        async with open_api("not", connection("http://dialpad.invalid"), FACTS) as api:
            assert (await fails(api)).reason == "unavailable"
        assert len(proxy.asked) == 1


async def test_a_proxy_that_refuses_is_no_reason_to_doubt_a_post(
    environment: pytest.MonkeyPatch,
) -> None:
    async with scripted(cut(b"HTTP/1.1 407 Canary\r\ncontent-length: 0\r\n\r\n")) as proxy:
        environment.setenv("HTTPS_PROXY", f"http://user:Canary@127.0.0.1:{proxy.port}")
        async with open_api("tunnel", connection("https://dialpad.example"), FACTS) as api:
            error = await fails(api, "POST")
    assert (error.reason, error.reached) == ("unavailable", False)
    assert "proxy" in str(error)
    assert "Canary" not in everything_about(error)
    assert {asked.method for asked in proxy.asked} == {"CONNECT"}
    assert KEY not in repr(proxy.asked)


@pytest.mark.parametrize("address", ["nonsense://u:Canary@x", "http://u:Canary@[::1"])
async def test_a_wrong_proxy_is_a_fault_of_the_settings(
    environment: pytest.MonkeyPatch, address: str
) -> None:
    environment.setenv("HTTPS_PROXY", address)
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as raised:
        async with open_api("acme", connection("https://dialpad.example"), FACTS):
            pass
    assert "Canary" not in everything_about(raised.value)


@pytest.mark.parametrize("host", ["[::x]", "host:port", "xn--a", "h\x7f.example"])
async def test_an_address_that_is_none_is_a_fault_of_the_settings(host: str) -> None:
    with pytest.raises(ConfigError, match="base_url") as raised:
        async with open_api("acme", connection(f"https://{host}"), FACTS):
            pass
    assert host not in everything_about(raised.value)


async def test_a_missing_authority_is_a_fault_of_the_settings(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        async with open_api("acme", connection("https://dialpad.example"), FACTS):
            pass


async def test_tls_is_checked_against_the_authorities_of_the_environment(
    environment: pytest.MonkeyPatch, certificate: Path
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with scripted(good({}), tls=tls) as server:
        async with open_api("strange", connection(server.url), FACTS) as api:
            error = await fails(api)
        assert error.reason == "unavailable"
        assert "certificate" in str(error)
        assert "SSL_CERT_FILE" in error.mend
        environment.setenv("SSL_CERT_FILE", str(certificate))
        async with open_api("known", connection(server.url), FACTS) as api:
            assert await api.ask("GET", "/list") == b"{}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody else has signed, and its key, in one file."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path
