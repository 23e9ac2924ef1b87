"""DialLink's API: where it is, what it is assumed to allow, how its lists are asked for.

https://developers.diallink.com   (introduction to "Get an API key"; no more is public)
https://diallink.com/api-terms-of-service   (there is a limit of requests, and no figure)
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import orjson

from ingest.api import Api, ApiError, Facts, Reason, read_json, shape
from ingest.api import open_api as open_any
from ingest.providers.diallink.assumptions import Assumptions
from ingest.providers.diallink.keys import KeyWatch, shows, watch_of
from ingest.providers.diallink.lists import (
    Clock,
    Page,
    Pages,
    by_change,
    by_number,
    by_start,
    twice,
)
from ingest.settings import Connection

#: Of an error's text that is no JSON.
_ERROR_LETTERS = 500

_ADMIN = (
    "its user may not do that: make a key as a user that is an admin and put it into "
    "connections.{name}"
)


def facts_of(connection: Connection, watch: KeyWatch) -> Facts:
    """They depend on what the connection assumes (A-DL-5, A-DL-6)."""
    assumed = Assumptions.of(connection)

    def needs(reason: Reason, _: str) -> str:
        if reason == "unauthorized":
            return watch.why_refused()
        return _ADMIN if reason == "forbidden" else ""

    return Facts(
        base_url="https://api.diallink.com",
        limits={},
        needs=needs,
        key_header="X-API-KEY",
        key_prefix="",
        rest_s=(assumed.rest_s, max(assumed.rest_s, assumed.rest_most_s)),
        error_text=partial(error_text, names=assumed.error_fields),
    )


def error_text(body: bytes, names: tuple[str, ...]) -> str:
    """What an error's answer says (A-DL-6): the first text under one of ``names``, else all of it.

    The text may also stand in the ``message`` of an object under a name, or of those in a list.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    for name in names if isinstance(answer, dict) else ():
        found = answer.get(name)
        said = "; ".join(filter(None, map(_message, found if isinstance(found, list) else [found])))
        if said:
            return said
    return body[: 4 * _ERROR_LETTERS].decode(errors="replace").strip()[:_ERROR_LETTERS]


def _message(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("message")
    return value.strip() if isinstance(value, str) else ""


class _Answer(msgspec.Struct):
    """A list's answer. Nothing else in ``paging`` is believed: its own examples disagree."""

    data: list[msgspec.Raw] | None
    paging: msgspec.Raw = msgspec.Raw(b"{}")


class _Paging(msgspec.Struct):
    has_next: bool | None = msgspec.field(name="hasNextPage", default=None)


class DialLinkApi:
    """What one connection asks DialLink. Use `open_api`.

    Paths are as in DialLink's documentation (``/v1/phone-system/calls``), ids in them
    percent-encoded. All calls of a connection's name in this process share one budget. Every
    method raises ApiError.
    """

    def __init__(self, api: Api, connection: Connection, watch: KeyWatch) -> None:
        self._api = api
        self._connection = connection
        self._assumed = Assumptions.of(connection)
        #: What is known of how long the key lives.
        self.watch = watch
        #: Path → items on a page, where the usual number was refused.
        self._sizes: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<DialLinkApi {self._api.name}>"

    def is_ours(self, shown: str) -> bool:
        """Whether a key in the list of keys, where most of it is masked, can be this one."""
        return shows(shown, self._connection.key().strip())

    async def read(self, path: str, id_name: str = "id") -> bytes:
        """The object at ``path``, exactly as it came; of ``{"data": {…}}`` what is in it.

        ``id_name``: what has a field of this name is the thing itself.
        """
        answer = await self._api.ask("GET", path)
        fields = read_json(answer, dict[str, msgspec.Raw], f"GET {shape(path)}")
        inner = bytes(fields.get("data", b""))
        return inner if inner.startswith(b"{") and id_name not in fields else answer

    def all(self, path: str) -> Pages:
        """The pages of a whole list, none of them empty; what has last changed comes first.

        What changes meanwhile moves to the front, and so others come twice; something that goes
        may hide another. Where DialLink does not sort it, it is read twice: without a sort its
        order is that of the database, which moves.
        """
        return self._refusable(
            lambda: self.pages(path, {"sort": "-updatedAt"}),
            lambda: twice(lambda: self.pages(path)),
        )

    async def _refusable(self, walk: Callable[[], Pages], other: Callable[[], Pages]) -> Pages:
        try:
            async for items in walk():
                yield items
        except ApiError as error:
            if error.reason != "refused":
                raise
        else:
            return
        async for items in other():
            yield items

    def by_change(self, path: str, name: str, changed: Clock, since_ms: int) -> Pages:
        """What has changed since then; ``name``: the field with the time of the change (A-DL-2).

        See `lists.by_change`: `ApiError` ``refused`` or `DisorderError` where there is no such
        order.
        """

        async def fetch(since_ms: int, number: int) -> Page:
            asked = {"sort": f"+{name}", name: f"gte::{since_ms}"}
            return await self._page(path, asked, number)

        return by_change(fetch, changed, since_ms, _call(path))

    def by_start(self, path: str, name: str, started: Clock, from_ms: int) -> Pages:
        """What began since then, the latest first, and some from before (A-DL-2).

        In two walks: what goes while the first one is under way hides others from it.
        """
        fetch = partial(self._page, path, {"sort": f"-{name}"})
        return twice(lambda: by_start(fetch, started, from_ms, _call(path)))

    def pages(self, path: str, params: Mapping[str, object] | None = None) -> Pages:
        """The pages of a list by their numbers, none of them empty; see `lists.by_number`."""
        return by_number(partial(self._page, path, params or {}), _call(path))

    async def _page(self, path: str, params: Mapping[str, object], number: int) -> Page:
        """Of `page_size` items; where so many are refused, of `page_size_fallback` (A-DL-4)."""
        size = self._sizes.get(path, self._assumed.page_size)
        fewer = self._assumed.page_size_fallback
        try:
            return await self._ask(path, params, number, size)
        except ApiError as error:
            # Only a walk's first page: pages of another size are other pages.
            if error.reason != "refused" or number > 1 or fewer >= size:
                raise
        page = await self._ask(path, params, number, fewer)
        self._sizes[path] = fewer
        return page

    async def _ask(self, path: str, params: Mapping[str, object], number: int, size: int) -> Page:
        asked = {**params, "pageNumber": number, "pageSize": size}
        answer = read_json(await self._api.ask("GET", path, params=asked), _Answer, _call(path))
        return Page([bytes(item) for item in answer.data or ()], _has_next(answer.paging))


def _has_next(paging: msgspec.Raw) -> bool | None:
    try:
        found: _Paging | None = msgspec.json.decode(paging, type=_Paging | None)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if found is None else found.has_next


def _call(path: str) -> str:
    return f"GET {shape(path)}"


@asynccontextmanager
async def open_api(name: str, connection: Connection) -> AsyncIterator[DialLinkApi]:
    """Be ready to ask DialLink; the key is read anew. Raises ConfigError if there is none."""
    watch = watch_of(name, connection)
    async with open_any(name, connection, facts_of(connection, watch)) as api:
        yield DialLinkApi(api, connection, watch)
