"""Asking a provider's API: with deadlines, within its rate, again where that does no harm.

What a provider's module adds are facts: where its API is, which calls have narrower limits, what
each call needs. Neither the texts of errors nor log lines hold a key, an address with a token, an
id, or anything of an answer's body; nor do exceptions hang on others that do. What a provider says
of a refusal stands apart, masked: `ApiError.said`.

Proxies and authorities are those of the environment (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE), as
operators expect; only addresses of this machine are always asked directly.
"""

import asyncio
import logging
import random
import re
import ssl
import time
import unicodedata
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Literal, TypeVar
from urllib.parse import quote, quote_plus, urlencode
from weakref import WeakKeyDictionary

import httpx
import msgspec
import stamina
import structlog
from stamina.instrumentation import set_on_retry_hooks

from ingest.errors import ConfigError
from ingest.logs import Sample
from ingest.metrics import API_REQUESTS, API_SECONDS, API_WAITED_SECONDS
from ingest.settings import Connection

log = structlog.get_logger()

T = TypeVar("T")

# It logs the address of every request.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)
# Its own would log what an error says, and count in a registry that nobody reads.
set_on_retry_hooks(())

Reason = Literal[
    "unauthorized",
    "forbidden",
    "not_found",
    "conflict",
    "refused",
    "rate_limited",
    "unavailable",
    "unexpected",
    "cursor_loop",
]

#: Calls with limits of their own (``GET /api/call/{id}``) → so many requests, in so many seconds.
Limits = Mapping[str, tuple[int, float]]

#: Larger answers are not read to their end.
MAX_ANSWER_BYTES = 32 * 1024 * 1024

#: What is read of a refusal: for what it says, and so that the connection can be kept.
_MAX_REFUSAL_BYTES = 64 * 1024
_READ_REFUSAL_S = 1.0

#: A provider that wants to be left alone for longer is asked again after that.
MAX_RETRY_AFTER_S = 60.0

ATTEMPTS = 6
_FIRST_WAIT_S = 0.5
_MAX_WAIT_S = 15.0
_JITTER_S = 1.0

#: So many 403 in a row are no matter of the rate; see `Facts.rest_s`.
MOST_FORBIDDEN = 3

#: What is kept of the words of a provider, and what is looked at.
MAX_SAID = 500
_MAX_MASKED = 8 * MAX_SAID

#: So many pages in a row without an item are no list any more.
MAX_EMPTY_PAGES = 100

_MAX_CONNECTIONS = 20

_REASONS: Mapping[int, Reason] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    408: "unavailable",
    409: "conflict",
    429: "rate_limited",
}


class ApiError(Exception):
    """The provider's API did not do what it was asked for. ``str()`` is one line for people."""

    def __init__(
        self,
        reason: Reason,
        what: str = "",
        *,
        status: int | None = None,
        mend: str = "",
        reached: bool = True,
        retry_after_s: float | None = None,
        said: str = "",
    ) -> None:
        """``what``: what has happened, ``mend``: what to do about it, in words of ours."""
        super().__init__(": ".join(filter(None, (what or reason, mend))))
        self.reason: Reason = reason
        self.status = status
        self.mend = mend
        #: Whether the request may have had its effect all the same.
        self.reached = reached
        #: How long the provider wants to be left alone, if it said so, MAX_RETRY_AFTER_S at most;
        #: or how long it is left alone because of `Facts.rest_s`.
        self.retry_after_s = retry_after_s
        #: What the provider said, as `masked` leaves it; "" if nothing. Never part of ``str()``.
        self.said = said


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """In seconds; each try has them anew, and waiting for its turn does not count."""

    connect_s: float = 5.0
    #: Between two pieces of an answer.
    read_s: float = 20.0
    #: From the request to the last byte of the answer.
    call_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to know of a provider's API."""

    #: Scheme and host, where the settings name no other.
    base_url: str
    limits: Limits
    #: What a call that was refused for this reason needs; "" if there is nothing special.
    needs: Callable[[Reason, str], str]
    #: The header that the key stands in, and what stands before it.
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    #: The field of each form that it stands in instead; "" for a header.
    key_field: str = ""
    #: For a provider that locks the whole key out for some time: how long it is left alone where it
    #: does not say so with ``Retry-After``, at first and at most, in seconds. It doubles with each
    #: refusal until something succeeds. A 429 is then not tried again by `Api.ask`, and nothing of
    #: this connection is asked meanwhile. So it is with a 403 after an earlier success of the
    #: connection in this process, since the rate may be what is meant; but the third in a row,
    #: altogether or of one call (no success of it between them), is ``forbidden``, and so are all
    #: further ones: rights that were withdrawn must not look like a rate for ever.
    rest_s: tuple[float, float] | None = None
    #: What a refusal's body says to people, however it looks; "" if nothing. Never raises.
    error_text: Callable[[bytes], str] | None = None


# Rates


class Budget:
    """At most ``allowed`` requests in any ``period_s``; those who wait are served in turn.

    Whoever gives up waiting has used nothing.
    """

    def __init__(
        self,
        allowed: int,
        period_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.period_s = period_s
        self._clock = clock
        self._sleep = sleep
        self._begun: deque[float] = deque(maxlen=allowed)
        self._closed_until = -float("inf")
        self._turn = asyncio.Lock()

    def rest(self, seconds: float) -> None:
        """Let nobody through for so long."""
        self._closed_until = max(self._closed_until, self._clock() + seconds)

    def _wait_s(self) -> float:
        free_at = self._closed_until
        if len(self._begun) == self._begun.maxlen:
            free_at = max(free_at, self._begun[0] + self.period_s)
        return free_at - self._clock()

    async def _queue(self, stack: AsyncExitStack) -> None:
        """Be the one whose turn it is until ``stack`` ends, and wait until a request is free."""
        await stack.enter_async_context(self._turn)
        while (wait_s := self._wait_s()) > 0:
            await self._sleep(wait_s)

    def _spend(self) -> None:
        self._begun.append(self._clock())


async def take_turn(*budgets: Budget) -> None:
    """Return once all of them have a request free, which is then used.

    The narrowest first: its queue must not hold up those who only need the others.
    """
    async with AsyncExitStack() as stack:
        for budget in budgets:
            await budget._queue(stack)  # noqa: SLF001
        for budget in budgets:
            budget._spend()  # noqa: SLF001


class Rests:
    """How often in a row a connection was refused, as `Facts.rest_s` has it.

    ``begun``: when a request began, by the clock. What was under way when a rest began tells
    nothing new.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rested = 0
        self._since = -float("inf")
        self._any_success = False
        #: 403 in a row, by call, and altogether.
        self._forbidden: Counter[str | None] = Counter()

    def succeeded(self, call: str, begun: float) -> None:
        self._any_success = True
        if begun >= self._since:
            self._rested = 0
            self._forbidden.pop(None, None)
            self._forbidden.pop(call, None)

    def may_be_rate(self, call: str, begun: float) -> bool:
        """Whether another success may come after this 403."""
        if begun >= self._since:
            self._forbidden.update((None, call))
        most = max(self._forbidden[None], self._forbidden[call])
        return self._any_success and most < MOST_FORBIDDEN

    def next_s(self, first_s: float, most_s: float, begun: float) -> float:
        """How long to leave the provider alone now."""
        if begun >= self._since:
            self._since = self._clock()
            self._rested += 1
        wanted_s = first_s * 2.0 ** min(max(self._rested - 1, 0), 32)
        return min(wanted_s, most_s) * random.uniform(1, 1.1)  # noqa: S311 - no secret


class Budgets:
    """What one connection may ask for: altogether, and by the calls with limits of their own."""

    def __init__(self, requests_per_s: float, limits: Limits) -> None:
        self.whole = Budget(1, 1 / requests_per_s)
        self.rests = Rests()
        self._narrow = {call: Budget(*limit) for call, limit in limits.items()}

    def of(self, call: str) -> tuple[Budget, ...]:
        """Narrowest first."""
        narrow = self._narrow.get(call)
        return (self.whole,) if narrow is None else (narrow, self.whole)


#: By event loop, whose things they hold; a process has one.
_BUDGETS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Budgets]] = WeakKeyDictionary()


def budgets_of(
    name: str, requests_per_s: float, limits: Mapping[str, tuple[int, float]]
) -> Budgets:
    """The one set of budgets that a connection has in this process, at the rate last set."""
    known = _BUDGETS.setdefault(asyncio.get_running_loop(), {})
    budgets = known.setdefault(name, Budgets(requests_per_s, limits))
    budgets.whole.period_s = 1 / requests_per_s
    return budgets


#: The same.
_REMEMBERED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, dict[str, Any]]] = (
    WeakKeyDictionary()
)


def remembered(name: str) -> dict[str, Any]:
    """What a provider's module wants to know of a connection for as long as the process lives."""
    return _REMEMBERED.setdefault(asyncio.get_running_loop(), {}).setdefault(name, {})


# Calls


class Api:
    """One connection's API. Use `open_api`."""

    def __init__(
        self,
        name: str,
        connection: Connection,
        facts: Facts,
        http: httpx.AsyncClient,
        budgets: Budgets,
        deadlines: Deadlines,
    ) -> None:
        self.name = name
        self._connection = connection
        self._facts = facts
        self._http = http
        self._budgets = budgets
        self._deadlines = deadlines
        self._key = _Key(connection.key().strip(), facts)
        self._samples: dict[tuple[str, str], Sample] = {}

    def __repr__(self) -> str:
        return f"<Api {self.name}>"

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, object] | None = None,
        body: object = None,
        form: Mapping[str, str] | None = None,
        once: bool = False,
    ) -> bytes:
        """Return the body of a good answer, within MAX_ANSWER_BYTES. Raises ApiError.

        ``path`` begins with a slash; ids in it are percent-encoded. Parameters that are None are
        left out; ``body`` becomes JSON, ``form`` is sent as a page would. What failed is tried
        again up to ATTEMPTS times where that cannot do it twice: a POST only if it surely has not
        reached them; with ``once`` nothing is. Where the provider is left alone (`Facts.rest_s`),
        that is up to who asks.
        """
        if not re.match(r"/[^/]", path):
            raise ValueError("no path of the API: the key must not go anywhere else")
        call = f"{method} {shape(path)}"
        request: dict[str, Any] = {
            "url": path,
            "params": {key: value for key, value in (params or {}).items() if value is not None},
        }
        if body is not None:
            request["content"] = msgspec.json.encode(body)
            request["headers"] = {"content-type": "application/json"}
        elif form is not None:
            request["content"] = urlencode(form).encode()
            request["headers"] = {"content-type": "application/x-www-form-urlencoded"}
        if once:
            return self._result(await self._exchange(method, call, request))
        async for attempt in stamina.retry_context(
            on=lambda error: not self._rests(error) and _again(method, error),
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=_FIRST_WAIT_S,
            wait_max=_MAX_WAIT_S,
            wait_jitter=_JITTER_S,
        ):
            with attempt:
                return await self._try(method, call, request)
        raise AssertionError

    def _rests(self, error: Exception) -> bool:
        """Whether this is why the provider is left alone."""
        return (
            self._facts.rest_s is not None
            and isinstance(error, ApiError)
            and error.reason == "rate_limited"
        )

    async def _try(self, method: str, call: str, request: Mapping[str, Any]) -> bytes:
        key = self._key
        answer = await self._exchange(method, call, request)
        if isinstance(answer, ApiError) and answer.reason == "unauthorized" and self._renew(key):
            answer = await self._exchange(method, call, request)
        return self._result(answer)

    def _result(self, answer: "bytes | ApiError") -> bytes:
        if isinstance(answer, ApiError):
            raise answer
        return answer

    @property
    def key(self) -> str:
        """The one that is used now, so that it can be masked."""
        return self._key.key

    def _renew(self, used: "_Key") -> bool:
        """Whether there is another key than the one that was refused."""
        if self._key is used:
            try:
                key = self._connection.key().strip()
            except ConfigError:
                return False
            if key != used.key:
                self._key = _Key(key, self._facts)
        return self._key is not used

    async def _exchange(
        self, method: str, call: str, request: Mapping[str, Any]
    ) -> "bytes | ApiError":
        """One request. The error is returned, so that it does not hang on another exception."""
        budgets = self._budgets.of(call)
        queued_at = time.monotonic()
        await take_turn(*budgets)
        begun = time.monotonic()
        API_WAITED_SECONDS.labels(self.name).inc(begun - queued_at)
        result: bytes | ApiError
        try:
            async with (
                asyncio.timeout(self._deadlines.call_s),
                self._http.stream(method, auth=self._key, **request) as answer,
            ):
                result = await self._read(call, answer, begun)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            result = self._failure(call, error)
        API_SECONDS.labels(self.name).observe(time.monotonic() - begun)
        API_REQUESTS.labels(
            self.name, result.reason if isinstance(result, ApiError) else "ok"
        ).inc()
        if isinstance(result, ApiError):
            if result.reason == "rate_limited" and result.retry_after_s is not None:
                closed = self._budgets.whole if self._rests(result) else budgets[0]
                closed.rest(result.retry_after_s)
            self._tell(call, result)
        else:
            self._budgets.rests.succeeded(call, begun)
        return result

    async def _read(self, call: str, answer: httpx.Response, begun: float) -> "bytes | ApiError":
        body = bytearray()
        if not answer.is_success:
            # Read to its end, the connection can be used again; what came is good enough.
            with suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(_READ_REFUSAL_S):
                    await _read_into(body, answer, _MAX_REFUSAL_BYTES)
            return self._refusal(call, answer, bytes(body[:_MAX_REFUSAL_BYTES]), begun)
        if not await _read_into(body, answer, MAX_ANSWER_BYTES):
            return ApiError(
                "unexpected",
                f"{call}: the answer is larger than {MAX_ANSWER_BYTES} bytes",
                status=answer.status_code,
            )
        return bytes(body)

    def _refusal(self, call: str, answer: httpx.Response, body: bytes, begun: float) -> ApiError:
        status = answer.status_code
        if status >= 500:  # noqa: PLR2004
            reason: Reason = "unavailable"
        elif status >= 400:  # noqa: PLR2004
            reason = _REASONS.get(status, "refused")
        else:
            reason = "unexpected"
        rest_s, rests = self._facts.rest_s, self._budgets.rests
        retry_after_s = _retry_after_s(answer.headers, max((MAX_RETRY_AFTER_S, *(rest_s or ()))))
        if rest_s is not None:
            if reason == "forbidden" and rests.may_be_rate(call, begun):
                reason = "rate_limited"
            if reason == "rate_limited":
                usual_s = rests.next_s(*rest_s, begun)
                retry_after_s = usual_s if retry_after_s is None else retry_after_s
        mend = self._facts.needs(reason, call) or _MENDS[reason]
        if answer.is_redirect:
            mend = "redirects are not followed: set base_url to where it leads"
        elif answer.headers.get("content-type", "").lower().startswith("text/html"):
            mend += "; the answer is a web page: is there a proxy between, or is base_url wrong?"
        return ApiError(
            reason,
            f"{call}: answered {status}",
            status=status,
            mend=mend.removeprefix("; ").format(name=self.name),
            reached=reason == "unavailable",
            retry_after_s=retry_after_s,
            said=self._said(body),
        )

    def _said(self, body: bytes) -> str:
        text = self._facts.error_text(body) if self._facts.error_text else ""
        return masked(text, self._key.key)

    def _failure(self, call: str, error: Exception) -> ApiError:
        reason, what, reached = next(
            (reason, what, reached)
            for kinds, reason, what, reached in _FAILURES
            if isinstance(error, kinds)
        )
        mend = _MENDS[reason].format(name=self.name)
        if isinstance(error, httpx.ConnectError) and _is_about_certificates(error):
            what = "its certificate is not trusted"
            mend = "is there a proxy between? then name its authority in SSL_CERT_FILE"
        return ApiError(reason, f"{call}: {what}", mend=mend, reached=reached)

    def _tell(self, call: str, error: ApiError) -> None:
        if error.reason in ("not_found", "conflict"):
            return  # an answer to who asks, no trouble
        sample = self._samples.setdefault((call, error.reason), Sample())
        suppressed = sample.take(time.monotonic())
        if suppressed is not None:
            log.warning(
                "api_trouble",
                connection=self.name,
                call=call,
                reason=error.reason,
                status=error.status,
                suppressed=suppressed,
            )


@asynccontextmanager
async def open_api(
    name: str,
    connection: Connection,
    facts: Facts,
    deadlines: Deadlines | None = None,
    *,
    requests_per_s: float | None = None,
) -> AsyncIterator[Api]:
    """Be ready to ask; the key is read anew. Raises ConfigError if there is none.

    ``requests_per_s``: where it is not that of the poller.
    """
    deadlines = deadlines or Deadlines()
    # In a thread: the trust store takes long to read.
    http = await asyncio.to_thread(_client, connection.base_url or facts.base_url, deadlines)
    if isinstance(http, ConfigError):
        raise http
    async with http:
        budgets = budgets_of(name, requests_per_s or connection.poll.requests_per_s, facts.limits)
        yield Api(name, connection, facts, http, budgets, deadlines)


def _client(address: str, deadlines: Deadlines) -> httpx.AsyncClient | ConfigError:
    """The error is returned, so that it does not hang on one that quotes a proxy's password."""
    try:
        base_url = httpx.URL(address)
        here = _is_here(base_url.host)
    except (httpx.InvalidURL, ValueError):
        return ConfigError("base_url: that is no http(s) address")
    with_tls = base_url.scheme == "https" or not here  # a proxy may be asked by TLS
    try:
        return httpx.AsyncClient(
            base_url=base_url,
            verify=with_tls and httpx.create_ssl_context(),
            trust_env=not here,
            follow_redirects=False,
            headers={"accept": "application/json", "user-agent": "dialstream"},
            timeout=httpx.Timeout(deadlines.read_s, connect=deadlines.connect_s, pool=None),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS),
        )
    except OSError:
        return ConfigError("SSL_CERT_FILE, SSL_CERT_DIR: what they name cannot be read")
    except (ValueError, ImportError, httpx.InvalidURL):
        return ConfigError("HTTPS_PROXY, HTTP_PROXY, ALL_PROXY: that is no http(s) address")


async def _read_into(body: bytearray, answer: httpx.Response, limit: int) -> bool:
    """Whether that was all, within the limit in bytes."""
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > limit:
            return False
    return True


#: What stands in paths beside ids: ``phone-system``, ``ai_recap``, ``InjectLead.php``, ``v2``.
_NAME = re.compile(r"[a-z_-]{0,32}|(?:[A-Z][a-z]+){1,2}(?:\.php)?|v\d")


def shape(path: str) -> str:
    """The path without its ids, which may be anything: ``/api/v2/call/{id}``."""
    return "/".join(part if _NAME.fullmatch(part) else "{id}" for part in path.split("/"))


# Answers


def read_json(body: bytes, kind: type[T], call: str) -> T:
    """Raises ApiError if it is not that."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    raise ApiError("unexpected", f"{call}: the answer is not what it should be", status=200)


async def walk(
    fetch: Callable[[str | None], Awaitable[tuple[Sequence[bytes], str | None]]], call: str
) -> AsyncIterator[list[bytes]]:
    """The pages of a list, by cursors: ``fetch(cursor)`` gives items and the next cursor.

    Pages without items are left out. Raises ApiError `cursor_loop` if a cursor or a page comes
    again, and after MAX_EMPTY_PAGES of them.
    """
    seen: set[int] = set()  # hashes: a long list must not grow in memory
    cursor: str | None = None
    empty = 0
    while True:
        items, cursor = await fetch(cursor)
        empty = 0 if items else empty + 1
        marks = {hash(("page", *items))} if items else set()
        marks |= {hash(("cursor", cursor))} if cursor else set()
        if seen & marks or empty > MAX_EMPTY_PAGES:
            raise ApiError(
                "cursor_loop", f"{call}: the list goes in circles", mend="try again later"
            )
        seen |= marks
        if items:
            yield list(items)
        if not cursor:
            return


# What a provider says


#: Whoever reads it need not know which.
_MASK = "…"

#: Parts of a key that are shorter may stand anywhere.
_TELLING = 6

#: What ends an e-mail address at the latest.
_BETWEEN_WORDS = re.compile(r"""([\s"'<>(){},;[\]]+)""")
_AT = re.compile("@|%40")
#: A run of digits, or groups of them as numbers of phones are written.
_DIGITS = re.compile(r"\d{5,}|\d(?:[ ()./-]{0,3}\d){6,}")


def masked(text: str, key: str) -> str:
    """One line that may be shown, of MAX_SAID characters at most.

    The key is cut out, parts of it too; e-mail addresses, and runs of five and more digits, so
    that no number of anybody is left. Control characters are gone.
    """
    text, key = _plain(text[:_MAX_MASKED]), _plain(key)
    parts = [part for part in (*re.split(r"[^A-Za-z0-9-]+", key), key) if len(part) >= _TELLING]
    spellings = {spelling for part in parts for spelling in (part, quote(part), quote_plus(part))}
    for spelling in sorted({*spellings, key} - {""}, key=len, reverse=True):
        text = re.sub(re.escape(spelling), _MASK, text, flags=re.IGNORECASE)
    # Cut off by whoever gave us the text, or here.
    lower = text.lower()
    cut = max(
        length
        for spelling in (*spellings, key, "")
        for length in (0, *range(_TELLING, len(spelling)))
        if lower.endswith(spelling[:length].lower())
    )
    text = text[: len(text) - cut]
    text = "".join(_MASK if _AT.search(word) else word for word in _BETWEEN_WORDS.split(text))
    return _DIGITS.sub(_MASK, text)[:MAX_SAID]


def _plain(text: str) -> str:
    """Without what only controls, marks or hides; letters and digits in their usual form."""
    spaced = "".join(
        " " if char.isspace() or unicodedata.category(char) == "Cc" else char
        for char in unicodedata.normalize("NFKC", text)
    )
    return " ".join(
        "".join(char for char in spaced if not unicodedata.category(char).startswith("C")).split()
    )


# Small things


class _Key(httpx.Auth):
    """Puts the key where it belongs, and hides it from everything that prints variables."""

    def __init__(self, key: str, facts: Facts) -> None:
        self.key = key
        self._header, self._prefix = facts.key_header, facts.key_prefix
        self._field = facts.key_field

    def __repr__(self) -> str:
        return "<key>"

    def auth_flow(self, request: httpx.Request) -> Any:
        if self._field:
            form = urlencode({self._field: self.key}).encode() + b"&" + request.content
            request.stream = httpx.ByteStream(form)
            request.headers["content-length"] = str(len(form))
        else:
            request.headers[self._header] = f"{self._prefix}{self.key}"
        yield request


#: Kinds of exceptions → reason, what has happened, whether the request may have reached them.
_FAILURES: Sequence[tuple[tuple[type[Exception], ...], Reason, str, bool]] = (
    ((httpx.ConnectTimeout,), "unavailable", "no connection within the deadline", False),
    ((httpx.ProxyError,), "unavailable", "the proxy makes no connection", False),
    ((httpx.ConnectError,), "unavailable", "no connection", False),
    ((httpx.TimeoutException, TimeoutError), "unavailable", "no answer within the deadline", True),
    ((httpx.DecodingError,), "unexpected", "the answer cannot be unpacked", True),
    ((httpx.InvalidURL, httpx.UnsupportedProtocol), "refused", "this is no address", False),
    ((httpx.LocalProtocolError,), "refused", "this cannot be sent", False),
    ((Exception,), "unavailable", "the connection broke", True),
)

_MENDS: Mapping[Reason, str] = {
    "unauthorized": "the key is not accepted: put a valid one into api_key_file (or api_key) of "
    "connections.{name}",
    "forbidden": "the key lacks a scope or a role",
    "not_found": "it does not exist, or the key may not see it",
    "conflict": "it exists already, or has changed meanwhile: look again",
    "refused": "the API does not take such a request: it may have changed",
    "rate_limited": "too many requests: set requests_per_s of connections.{name}.poll lower, or "
    "ask what else uses the provider's API",
    "unavailable": "try again later",
    "cursor_loop": "try again later",
    "unexpected": "this is not the API: is base_url of connections.{name} right?",
}


def _again(method: str, error: Exception) -> bool | float:
    """How long to wait before the next try; True: as usual; False: there is none."""
    if not isinstance(error, ApiError) or error.reason not in ("rate_limited", "unavailable"):
        return False
    if method == "POST" and error.reached:
        return False
    if error.retry_after_s is None:
        return True
    return error.retry_after_s + random.uniform(0, _JITTER_S)  # noqa: S311 - no secret


def _retry_after_s(headers: httpx.Headers, most_s: float = MAX_RETRY_AFTER_S) -> float | None:
    """What the header of that name says, in seconds or as a date; None if it says nothing."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return min(float(text), most_s)
    until = _date(text)
    if until is None:
        return None
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), most_s)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
