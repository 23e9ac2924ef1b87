"""As much of DialLink as its lists need, over HTTP, as a test wants it.

What calls and recordings have is assumed; the rest is as https://developers.diallink.com shows it.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ingest.settings import Connection
from tests.ingest.scripted import Asked, Scripted, answer, good, scripted
from tests.kit import PROJECT

SAMPLES = PROJECT / "tests" / "samples" / "diallink"

#: As it looks in the examples: two UUIDs. It must turn up nowhere but in its header.
KEY = "00000000-0000-4000-8000-00000000a501+00000000-0000-4000-8000-000000000502"

CALLS = "/v1/phone-system/calls"
RECORDINGS = "/v1/phone-system/recordings"
CONTACTS = "/v1/phone-system/contacts"
USERS = "/v1/phone-system/users"
KEYS = "/v1/account-hub/api-keys"


def sample(name: str) -> Any:
    return json.loads((SAMPLES / f"{name}.json").read_bytes())


class SmallDialLink:
    """Use `small_diallink`."""

    def __init__(self) -> None:
        self.server: Scripted
        self.lists: dict[str, list[dict[str, Any]]] = {}
        #: Path → what is answered there, a status alone or an object.
        self.answers: dict[str, int | object] = {}
        #: Beginnings of ``sort`` that are refused, as with a field's name: ``+``, ``-startedAt``.
        self.refused_sorts: Sequence[str] = ()
        #: What is sorted by, but nobody sees.
        self.hidden = "_updatedAt"
        #: Larger pages are refused; those that are larger than this are cut.
        self.largest = 1000
        self.cap = 1000
        self.tells_end = True

    @property
    def asked(self) -> list[Asked]:
        return self.server.asked

    def of(self, path: str) -> list[dict[str, str]]:
        """The queries of what was asked for there."""
        return [asked.query for asked in self.asked if asked.path == path]

    def respond(self, asked: Asked) -> bytes:
        found = self.answers.get(asked.path)
        if isinstance(found, int):
            return answer(found, b'{"message": "no"}')
        if found is not None:
            return good(found)
        if asked.path in self.lists:
            return self._list(self.lists[asked.path], dict(asked.query))
        base, _, ident = asked.path.rpartition("/")
        rows = [row for row in self.lists.get(base, []) if str(row.get("id")) == ident]
        return good(rows[0]) if rows else answer(404, b"{}")

    def _list(self, rows: list[dict[str, Any]], query: dict[str, str]) -> bytes:
        number, size = int(query.pop("pageNumber")), int(query.pop("pageSize"))
        sort = query.pop("sort", "")
        refused = any(sort.startswith(refused) for refused in self.refused_sorts)
        if size > self.largest or refused:
            return answer(400, b'{"message": "no"}')
        for field, wanted in query.items():
            operator, _, least = wanted.partition("::")
            assert operator == "gte"
            rows = [row for row in rows if row.get(field) is not None and row[field] >= int(least)]
        if sort:
            direction, field = sort[0], sort[1:]
            assert direction in "+-"
            rows = sorted(
                rows,
                key=lambda row: row.get(field) or row.get(f"_{field}") or 0,
                reverse=direction == "-",
            )
        size = min(size, self.cap)
        at = (number - 1) * size
        page = [
            {name: value for name, value in row.items() if name != self.hidden}
            for row in rows[at : at + size]
        ]
        paging: dict[str, Any] = {"totalNumberOfRecords": 1, "hasMore": True}
        if self.tells_end:
            paging["hasNextPage"] = at + size < len(rows)
        return good({"data": page, "paging": paging})

    def connection(self, *, assume: dict[str, Any] | None = None, **more: Any) -> Connection:
        return Connection.model_validate(
            {
                "provider": "diallink",
                "api_key": KEY,
                "base_url": self.server.url,
                "region": "US",
                "poll": {"requests_per_s": 20.0},
                "assume": assume or {},
                **more,
            }
        )


@asynccontextmanager
async def small_diallink() -> AsyncIterator[SmallDialLink]:
    diallink = SmallDialLink()
    async with scripted() as server:
        server.respond = diallink.respond
        diallink.server = server
        yield diallink
