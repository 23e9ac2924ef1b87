"""Dialpad's websocket: where it is. What comes by it means the same as what is posted.

https://developers.dialpad.com/docs/event-subscriptions-via-websocket
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ingest.api import ApiError, read_json
from ingest.delivery import Stream
from ingest.errors import ConfigError
from ingest.providers.dialpad.api import DialpadApi, open_api, text_id
from ingest.providers.dialpad.subscriptions import WEBSOCKETS, our_websocket, read_endpoint

if TYPE_CHECKING:
    from ingest.settings import Connection


@asynccontextmanager
async def open_stream(name: str, connection: "Connection") -> AsyncIterator[Stream]:
    """Be ready to ask for the websocket's address.

    Key and secrets are read anew. Raises ConfigError if they cannot be used.
    """
    try:
        secrets = [secret.decode() for secret in connection.signing_secrets()]
    except UnicodeDecodeError:
        raise ConfigError("secrets: one is not in UTF-8: Dialpad takes text") from None
    async with open_api(name, connection) as api:
        yield DialpadStream(api, secrets, plain=(connection.base_url or "").startswith("http:"))


class DialpadStream:
    """The websocket of one connection."""

    def __init__(self, api: DialpadApi, secrets: list[str], *, plain: bool) -> None:
        """``plain``: the address may be one without TLS, as the API's is."""
        self._api = api
        self._secrets = secrets
        self._plain = plain

    async def url(self) -> str:
        """A fresh address: its token lives for an hour, and so does a connection.

        Ours is the websocket that carries one of our secrets; of several the one that `dialpad
        sync` leaves.
        """
        found = await self._ours() or text_id((await self._make()).get("id"))
        address = (await self._api.get(f"{WEBSOCKETS}/{found}")).get("websocket_url")
        if not isinstance(address, str) or not address.startswith(
            ("wss://", "ws://") if self._plain else "wss://"
        ):
            raise ApiError("unexpected", "a websocket without a websocket_url that we may use")
        return address

    async def _ours(self) -> str | None:
        # What has no id is an error, not passed over: if it is ours, we would make one every hour.
        endpoints = [
            read_endpoint("websocket", read_json(item, dict, f"GET {WEBSOCKETS}"))
            async for page in self._api.pages(WEBSOCKETS)
            for item in page
        ]
        found = our_websocket(endpoints, self._secrets)
        return None if found is None else found.id

    async def _make(self) -> Any:
        return await self._api.post(WEBSOCKETS, {"secret": self._secrets[0]})
