"""Dialgood's Partner API: where it is, what we ask of it, and what we never do.

https://apidocs.dialgood.com/partner-api-2171894m0

Of an agent it also gives the credentials, decrypted. Nobody here may ask for them, not by mistake
and not because an id says so: every path goes through `checked` just before it is asked.

Its lists may change while they are read, so no list is believed to be whole because its pages came
to an end: see `_walk`.
"""

import re
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import msgspec
from msgspec import Raw, Struct

from ingest.api import MAX_EMPTY_PAGES, Api, ApiError, Facts, Reason, read_json
from ingest.api import open_api as open_any
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.settings import Connection

T = TypeVar("T")

_AGENTS = "/partner/v1/agents"

#: What may be asked of an agent.
_CALL_LOGS = "call-logs"
_VERSIONS = "versions"

#: Everything that may be asked, ids as they are once nothing in them is encoded any more: one
#: segment, with a letter or a digit, in which no server finds another segment, a parameter, a
#: query, or an end.
_PATHS = re.compile(
    rf"{_AGENTS}"
    r"(?:/(?=[^/]*\w)[^/\\?#;%\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]+"
    rf"/(?:{_CALL_LOGS}|{_VERSIONS}))?"
)

#: Nowhere in a path, in whatever spelling.
_NEVER = "credentials"

#: Nobody encodes what is encoded more often than that.
_MOST_DECODINGS = 8

#: Without a page of at least so many records, nothing says that a server holds back some: it is
#: the number that it gives if it is asked for none.
_SMALLEST_CAP = 10

#: How often a list is read that changes while it is.
_LOOKS = 4


def _needs(reason: Reason, call: str) -> str:
    if reason != "forbidden":
        return ""
    return (
        "partner access has to be switched on for the user of the key of connections.{name}: ask "
        "Dialgood for it"
    )


class _Refusal(Struct):
    error: str = ""


def _error_text(body: bytes) -> str:
    """``{"error": "text"}``"""
    try:
        return msgspec.json.decode(body, type=_Refusal).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


#: The key could also stand in the query, and would then stand in logs.
FACTS = Facts(
    base_url="https://api.dialgood.com",
    limits={},
    needs=_needs,
    key_header="api_token",
    key_prefix="",
    error_text=_error_text,
)


# Paths


def path_of(agent_id: str, what: str) -> str:
    """``what`` of an agent, whose id may be anything: `checked` tells whether it can be asked."""
    return f"{_AGENTS}/{quote(agent_id, safe='', errors='replace')}/{what}"


def checked(path: str) -> str:
    """The path, if it is one of those that we ask for, whatever a server makes of it.

    Raises ApiError `unexpected`.
    """
    plain, before = path, ""
    for _ in range(_MOST_DECODINGS):
        plain, before = unicodedata.normalize("NFKD", unquote(plain)), plain
        if plain == before:
            break
    letters = "".join(re.findall("[a-z]", plain.upper().lower()))
    if plain != before or not _PATHS.fullmatch(plain) or _NEVER in letters:
        raise ApiError("unexpected", "an id is such that it may not stand in a path")
    return path


def can_be_asked(agent_id: str) -> bool:
    """Whether an agent's id may stand in a path."""
    try:
        checked(path_of(agent_id, _CALL_LOGS))
    except ApiError:
        return False
    return True


# Answers


class _LogsAnswer(Struct, rename="camel"):
    data: list[Raw]
    total_pages: Any = None
    total_records: Any = None


class _SkipAnswer(Struct, rename="camel", kw_only=True):
    total_count: Any = None
    has_more: Any = None

    @property
    def items(self) -> list[Raw]:
        raise NotImplementedError


class _AgentsAnswer(_SkipAnswer):
    agents: list[Raw]

    @property
    def items(self) -> list[Raw]:
        return self.agents


class _VersionsAnswer(_SkipAnswer):
    versions: list[Raw]

    @property
    def items(self) -> list[Raw]:
        return self.versions


_NOTHING = Raw(b"")


class _Ends(Struct, frozen=True, rename={"from_": "from"}):
    from_: Raw = _NOTHING
    to: Raw = _NOTHING


class _LogItem(Struct, rename={"bot_id": "botId", "conversation_id": "conversationId"}):
    bot_id: Raw = _NOTHING
    conversation_id: Raw = _NOTHING
    created_at: Raw = _NOTHING
    data: _Ends = _Ends()


class _AgentItem(Struct, rename={"id": "agentId"}):
    id: Raw = _NOTHING


class _VersionItem(Struct, rename={"id": "version_id"}):
    id: Raw = _NOTHING


_read_log = msgspec.json.Decoder(_LogItem).decode
_read_agent = msgspec.json.Decoder(_AgentItem).decode
_read_version = msgspec.json.Decoder(_VersionItem).decode


def _log_key(item: bytes) -> int:
    """Which record it is, however it has changed."""
    try:
        log = _read_log(item)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return hash(item)
    fields = (log.bot_id, log.conversation_id, log.created_at, log.data.from_, log.data.to)
    return hash(tuple(map(bytes, fields)))


def _key_by(read: Callable[[bytes], _AgentItem | _VersionItem]) -> Callable[[bytes], int]:
    def key(item: bytes) -> int:
        try:
            return hash(bytes(read(item).id) or item)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return hash(item)

    return key


_agent_key = _key_by(_read_agent)
_version_key = _key_by(_read_version)


def _count(value: object) -> int | None:
    """A count that may be missing, or nonsense."""
    if type(value) is int and value >= 0:
        return value
    if type(value) is str and re.fullmatch(r"\d{1,15}", value):
        return int(value)
    return None


# Lists


class _Part(Struct):
    """One answer."""

    items: list[bytes]
    keys: list[int]
    #: How many the list is said to have.
    total: int | None
    #: Whether there is said to be more; None: nothing is said.
    more: bool | None
    #: It does not go on where the one before ended: the list has moved under us.
    torn: bool = False
    #: There is no such page.
    missing: ApiError | None = None


#: The answer of that number, the first is 1. They are asked for one after the other; with 1 a list
#: begins anew.
_Fetch = Callable[[int], Awaitable[_Part]]


class _Look:
    """One way through a list from its beginning, as far as it has come."""

    def __init__(self, call: str) -> None:
        self._call = call
        self.over = False
        #: The order of everything that was seen.
        self.mark = 0
        self._empty = 0
        #: Items, each once: where a list moves, the end of one page begins the next.
        self._seen = 0
        self._last: frozenset[int] = frozenset()
        self._marks: set[int] = set()
        self._first_total: int | None = None
        self._total: int | None = None
        self._torn = False

    def take(self, part: _Part, full: int) -> None:
        """``full``: of so many items it may be that the server gives no more at a time.

        Raises ApiError where going on would lead nowhere.
        """
        if part.total is not None:
            self._total = max(part.total, self._total or 0)
            if self._first_total is None:
                self._first_total = part.total
        self._torn = self._torn or part.torn
        keys = frozenset(part.keys)
        self._seen += len(keys - self._last)
        self.mark = hash((self.mark, *part.keys))
        if not part.items:
            self._take_empty(part)
            return
        self._empty, self._last = 0, keys
        page = hash(tuple(part.keys))
        if page in self._marks:
            # Some servers give the last page for any beyond it.
            if part.more and not self._has_all:
                raise self.circles()
            self.over = True
            return
        self._marks.add(page)
        more = self._total is None if part.more is None else part.more
        self.over = not more and not self._lacks_some and len(part.items) < full

    def _take_empty(self, part: _Part) -> None:
        self._empty += 1
        self.over = not part.more or self._has_all
        if self.over:
            return
        if part.missing is not None:
            raise part.missing
        if self._empty > MAX_EMPTY_PAGES:
            raise self.circles()

    @property
    def _has_all(self) -> bool:
        return self._total is not None and self._seen >= self._total

    @property
    def _lacks_some(self) -> bool:
        return self._total is not None and self._seen < self._total

    @property
    def sound(self) -> bool:
        """Whether nothing that was there from beginning to end can have been passed over.

        What goes from a list draws what follows it onto pages that were read; what is put at its
        head again changes places with it. Then fewer were seen than there were at the beginning,
        or two pages do not meet. What joins a list only pushes the others back, and is read with
        the next window.
        """
        return not self._torn and (self._first_total is None or self._seen >= self._first_total)

    def circles(self) -> ApiError:
        return ApiError(
            "cursor_loop",
            f"{self._call}: the list goes in circles, or changes faster than it can be read",
            mend="try again later",
        )


async def _walk(
    call: str, fetch: _Fetch, largest: Callable[[int], int]
) -> AsyncIterator[list[bytes]]:
    """The pages of a list, none of them empty; some come again.

    It ends where the list says so twice over, by its pages and by its count, and the last page is
    not as large as the largest ever, which may be all that the server gives at a time: else the
    page behind is looked at, too. A list that has changed meanwhile such that something may have
    been passed over is read again, until it has not, or is the same again: then its count lies.

    ``largest``: notes the size of a page, and gives that of the largest yet. Raises ApiError;
    `cursor_loop` where that comes to no end.
    """
    former: int | None = None
    for _ in range(_LOOKS):
        look = _Look(call)
        number = 0
        while not look.over:
            number += 1
            part = await fetch(number)
            look.take(part, largest(len(part.items)))
            if part.items:
                yield part.items
        if look.sound or look.mark == former:
            return
        former = look.mark
    raise look.circles()


class DialgoodApi:
    """What one connection asks Dialgood: agents, their call logs, their versions. Use `open_api`.

    Items come exactly as they were written. All calls of a connection's name in this process share
    one budget. Everything raises ApiError.
    """

    def __init__(self, api: Api, assume: Assumptions) -> None:
        self._api = api
        self._hide_web_calls = assume.hide_web_calls
        self._limit = assume.page_limit
        self._fallback = assume.page_limit_fallback
        #: Calls that take the smaller limit only (A-DG-3).
        self._limited: set[str] = set()
        #: The largest page yet, by call and limit.
        self._sizes: dict[tuple[str, int], int] = {}

    def __repr__(self) -> str:
        return f"<DialgoodApi {self._api.name}>"

    def agents(self) -> AsyncIterator[list[bytes]]:
        """All agents that the key may read, own and shared, a page at a time; some come again."""
        return self._by_skip(_AGENTS, _AGENTS, _AgentsAnswer, _agent_key)

    def versions(self, agent_id: str) -> AsyncIterator[list[bytes]]:
        """All versions of an agent, a page at a time, as Dialgood orders them; some come again."""
        path = path_of(agent_id, _VERSIONS)
        return self._by_skip(path, f"{_AGENTS}/{{id}}/{_VERSIONS}", _VersionsAnswer, _version_key)

    def call_logs(self, agent_id: str, from_: int, to: int) -> AsyncIterator[list[bytes]]:
        """An agent's records in [from, to], a page at a time; some come again.

        Both bounds are in whatever unit Dialgood reads them in. ``to`` is the same for all pages,
        so that what is new meanwhile cannot push the others from page to page (A-DG-2).
        """
        path = path_of(agent_id, _CALL_LOGS)
        call = f"GET {_AGENTS}/{{id}}/{_CALL_LOGS}"
        window: dict[str, object] = {
            "from": from_,
            "to": to,
            "tz": "UTC",
            "hidewebcalls": "true" if self._hide_web_calls else None,
        }

        def fetching(limit: int) -> _Fetch:
            said: int | None = None

            async def fetch(number: int) -> _Part:
                nonlocal said
                params = {**window, "page": number, "limit": limit}
                try:
                    answer = await self._read(call, path, params, _LogsAnswer)
                except ApiError as error:
                    # Behind the first page it need not be the agent that is gone.
                    if number == 1 or error.status not in _NO_PAGE:
                        raise
                    promised = said is not None and number <= said
                    return _Part([], [], None, promised, missing=error)
                pages = _count(answer.total_pages)
                if pages is not None:
                    said = max(pages, said or 0)
                items = [bytes(item) for item in answer.data]
                more = None if said is None else number < said
                keys = [_log_key(item) for item in items]
                return _Part(items, keys, _count(answer.total_records), more)

            return fetch

        return self._list(call, fetching)

    def _by_skip(
        self, path: str, shape: str, kind: type[_SkipAnswer], key: Callable[[bytes], int]
    ) -> AsyncIterator[list[bytes]]:
        """A list by how many of its items to skip; ``shape``: its path without ids.

        Each page but the first begins with the last item of the one before: if it does not, the
        list has moved. Counted is what came, not what was asked for: a server may give less.
        """
        call = f"GET {shape}"

        def fetching(limit: int) -> _Fetch:
            skip = overlap = last = 0

            async def fetch(number: int) -> _Part:
                nonlocal skip, overlap, last
                if number == 1:
                    skip = overlap = 0
                params = {"limit": limit, "skip": skip - overlap}
                answer = await self._read(call, path, params, kind)
                items = [bytes(item) for item in answer.items]
                keys = [key(item) for item in items]
                torn = overlap > 0 and keys[:1] != [last]
                if items:
                    skip += len(items) - overlap
                    last = keys[-1]
                else:
                    skip += self._fallback
                # With pages of one item there would be no getting on.
                overlap = 1 if len(items) > 1 else 0
                more = answer.has_more if type(answer.has_more) is bool else None
                return _Part(items, keys, _count(answer.total_count), more, torn)

            return fetch

        return self._list(call, fetching)

    async def _list(
        self, call: str, fetching: Callable[[int], _Fetch]
    ) -> AsyncIterator[list[bytes]]:
        """The pages of a list; from the beginning with a smaller limit if the usual is refused."""
        if call not in self._limited:
            try:
                async for items in self._walk(call, fetching, self._limit):
                    yield items
            except ApiError as error:
                if error.status != _BAD_REQUEST or self._limit <= self._fallback:
                    raise
            else:
                return
        async for items in self._walk(call, fetching, self._fallback):
            yield items
        self._limited.add(call)  # only now: it might have been refused for something else

    def _walk(
        self, call: str, fetching: Callable[[int], _Fetch], limit: int
    ) -> AsyncIterator[list[bytes]]:
        def note(size: int) -> int:
            largest = max(size, self._sizes.get((call, limit), _SMALLEST_CAP))
            self._sizes[call, limit] = largest
            return largest

        return _walk(call, fetching(limit), note)

    async def _read(self, call: str, path: str, params: Mapping[str, object], kind: type[T]) -> T:
        return read_json(await self._api.ask("GET", checked(path), params=params), kind, call)


_BAD_REQUEST = 400
_NO_PAGE = (400, 404)


@asynccontextmanager
async def open_api(name: str, connection: Connection) -> AsyncIterator[DialgoodApi]:
    """Be ready to ask Dialgood; the key is read anew. Raises ConfigError if there is none."""
    async with open_any(name, connection, FACTS) as api:
        yield DialgoodApi(api, Assumptions.of(connection))
