"""Dialpad's API: where it is, what it allows, what its calls need.

https://developers.dialpad.com/docs/rate-limits
https://developers.dialpad.com/reference
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from ingest.api import Api, ApiError, Facts, Limits, Reason, read_json, shape, walk
from ingest.api import open_api as open_any
from ingest.settings import Connection

#: https://developers.dialpad.com/docs/rate-limits : 20 requests a second for a company, and these.
_LIMITS: Limits = {
    "GET /api/v2/call/{id}": (10, 60.0),
    "GET /api/v2/call/{id}/ai_recap": (12, 60.0),
    "POST /api/v2/webhooks": (100, 60.0),
    "POST /api/v2/websockets": (250, 60.0),
    "GET /api/v2/company/{id}/smsoptout": (250, 60.0),
}

_ADMIN = "the key of a company admin"

#: Path → what a key needs there and below; the first that fits. Elsewhere it is `_ADMIN`.
_NEEDS: Mapping[str, str] = {
    "/api/v2/call/{id}/ai_recap": f"{_ADMIN}, and perhaps the scope `ai_recap`",
    "/api/v2/call": f"{_ADMIN}, and the scope `calls:list`",
    "/api/v2/subscriptions/changelog": f"{_ADMIN}, and the scope `change_log`",
}


def _needs(reason: Reason, call: str) -> str:
    if reason != "forbidden":
        return ""
    path = call.partition(" ")[2] + "/"
    need = next((need for at, need in _NEEDS.items() if path.startswith(at + "/")), _ADMIN)
    return f"this needs {need}: make such a key at Dialpad and put it into connections.{{name}}"


FACTS = Facts(base_url="https://dialpad.com", limits=_LIMITS, needs=_needs)


class _Page(msgspec.Struct):
    """Where there is nothing left, ``cursor`` is absent; an empty list may lack ``items``."""

    items: list[msgspec.Raw] | None = None
    cursor: str | None = None


class DialpadApi:
    """What one connection may ask Dialpad. Use `open_api`.

    Paths are as in Dialpad's reference (``/api/v2/call``), ids in them percent-encoded. All calls
    of a connection's name in this process share one budget. Every method raises ApiError.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def __repr__(self) -> str:
        return f"<DialpadApi {self._api.name}>"

    async def get(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        """The object at ``path``, decoded."""
        return await self._object("GET", path, params=params)

    async def read(self, path: str) -> bytes:
        """The object at ``path``, exactly as it came."""
        answer = await self._api.ask("GET", path)
        read_json(answer, dict, f"GET {shape(path)}")
        return answer

    async def post(self, path: str, body: object) -> Any:
        """Make something; the object that it has become.

        After an error whose ``reached`` is true it may have been made all the same.
        """
        return await self._object("POST", path, body=body)

    async def patch(self, path: str, body: object) -> Any:
        """Change something; the object that it has become."""
        return await self._object("PATCH", path, body=body)

    async def delete(self, path: str) -> Any:
        """Remove something; the object that it was, None if Dialpad does not say.

        What a lost answer has removed already is `not_found` when it is tried again.
        """
        answer = await self._api.ask("DELETE", path)
        return read_json(answer, dict, f"DELETE {shape(path)}") if answer.strip() else None

    async def pages(
        self,
        path: str,
        params: Mapping[str, object] | None = None,
        *,
        limit: int | None = None,
    ) -> AsyncIterator[list[bytes]]:
        """The pages of a list, each item exactly as it came; none is empty.

        ``limit``: items on a page; None leaves it to Dialpad. Raises ApiError `cursor_loop` too.
        """
        call = f"GET {shape(path)}"

        async def fetch(cursor: str | None) -> tuple[list[bytes], str | None]:
            answer = await self._api.ask(
                "GET", path, params={**(params or {}), "limit": limit, "cursor": cursor}
            )
            page = read_json(answer, _Page, call)
            return [bytes(item) for item in page.items or ()], page.cursor

        async for page in walk(fetch, call):
            yield page

    async def _object(self, method: str, path: str, **more: Any) -> Any:
        answer = await self._api.ask(method, path, **more)
        return read_json(answer, dict, f"{method} {shape(path)}")


@asynccontextmanager
async def open_api(name: str, connection: Connection) -> AsyncIterator[DialpadApi]:
    """Be ready to ask Dialpad; the key is read anew. Raises ConfigError if there is none."""
    async with open_any(name, connection, FACTS) as api:
        yield DialpadApi(api)


def text_id(value: object) -> str:
    """An id of an answer as text: they come as texts, and as numbers to some.

    Raises ApiError `unexpected` if it is neither.
    """
    if isinstance(value, (str, int)) and not isinstance(value, bool) and value:
        return str(value)
    raise ApiError("unexpected", "an answer lacks an id")
