"""Which websocket is ours, and where it is."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.api import ApiError
from ingest.errors import ConfigError
from ingest.providers import PROVIDERS
from ingest.providers.dialpad.stream import DialpadStream, open_stream
from ingest.settings import Connection
from tests.ingest.sockets import TOKEN, api_of, peer
from tests.kit import OTHER_SECRET, SECRET


def websocket(ident: object, secret: str | None = SECRET) -> dict[str, Any]:
    """As the API shows it."""
    found = {"id": ident, "websocket_url": f"wss://sockets.example/events/old-{ident}"}
    if secret is not None:
        found["signature"] = {"algo": "HS256", "secret": secret, "type": "jwt"}
    return found


class FakeApi:
    """Dialpad's websockets, as `DialpadApi` gives them."""

    def __init__(self, *websockets: object, pages: int = 1) -> None:
        self.websockets = list(websockets)
        self.pages_of = pages
        self.posted: list[object] = []
        self.address: object = None
        #: An item as it comes, beside those.
        self.raw: bytes | None = None

    async def pages(
        self, path: str, params: Mapping[str, object] | None = None, *, limit: int | None = None
    ) -> AsyncIterator[list[bytes]]:
        assert path == "/api/v2/websockets"
        for at in range(self.pages_of):
            page = self.websockets[at :: self.pages_of]
            if page:
                yield [json.dumps(item).encode() for item in page]
        if self.raw is not None:
            yield [self.raw]

    async def get(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        root, _, ident = path.rpartition("/")
        assert root == "/api/v2/websockets"
        address = self.address or f"wss://sockets.example/events/{TOKEN}-{ident}"
        return {"id": ident, "websocket_url": address}

    async def post(self, path: str, body: Mapping[str, object]) -> Any:
        assert path == "/api/v2/websockets"
        self.posted.append(body)
        self.websockets.append(websocket("77", str(body["secret"])))
        return self.websockets[-1]


async def url_of(api: FakeApi, secrets: Sequence[str] = (SECRET,), *, plain: bool = False) -> str:
    return await DialpadStream(api, list(secrets), plain=plain).url()  # type: ignore[arg-type]


async def test_the_websocket_with_our_secret_is_taken_and_its_address_is_fresh() -> None:
    api = FakeApi(websocket("1", "somebody-else's"), websocket("2", None), websocket("3"), pages=2)
    api.websockets[1] = {**websocket("2", None), "signature": None}
    assert await url_of(api) == f"wss://sockets.example/events/{TOKEN}-3"
    assert api.posted == []


async def test_without_one_it_is_made_with_the_first_secret_and_only_once() -> None:
    api = FakeApi(websocket("1", "somebody-else's"), websocket("2", None))
    for _ in range(3):
        assert await url_of(api, [SECRET, OTHER_SECRET]) == (
            f"wss://sockets.example/events/{TOKEN}-77"
        )
    assert api.posted == [{"secret": SECRET}]


async def test_while_secrets_are_rotated_either_will_do() -> None:
    rotating = [SECRET, OTHER_SECRET]
    assert (await url_of(FakeApi(websocket("5", OTHER_SECRET)), rotating)).endswith("-5")


async def test_of_several_it_is_that_with_the_first_secret_then_the_first_made() -> None:
    several = FakeApi(
        websocket("100"), websocket("20", OTHER_SECRET), websocket(99), websocket("101"), pages=3
    )
    assert (await url_of(several, [SECRET, OTHER_SECRET])).endswith("-99")
    assert (await url_of(several, [OTHER_SECRET, SECRET])).endswith("-20")


SIGNATURES = st.one_of(
    st.none(),
    st.text(),
    st.fixed_dictionaries({"secret": st.none() | st.text() | st.integers()}),
)


@given(st.lists(st.fixed_dictionaries({"id": st.integers(1)}, optional={"signature": SIGNATURES})))
async def test_odd_websockets_of_others_are_passed_over(odd: list[Any]) -> None:
    api = FakeApi(*odd, websocket("0"))
    assert (await url_of(api)).endswith("-0")


@pytest.mark.parametrize("item", [b'{"id":"1","name":"\xff"}', b'{"id":1%s}' % (b"0" * 5000)])
async def test_bytes_that_are_no_json_are_an_error_and_none_is_made(item: bytes) -> None:
    api = FakeApi()
    api.raw = item
    with pytest.raises(ApiError) as caught:
        await url_of(api)
    assert (caught.value.reason, api.posted) == ("unexpected", [])


@pytest.mark.parametrize("odd", [None, 5, "x", [], {}, websocket(None, None)], ids=repr)
async def test_what_is_no_websocket_is_an_error_and_none_is_made(odd: object) -> None:
    api = FakeApi(odd)
    with pytest.raises(ApiError) as caught:
        await url_of(api)
    assert (caught.value.reason, api.posted) == ("unexpected", [])


@pytest.mark.parametrize("ident", [None, "", {}, True], ids=repr)
async def test_ours_without_an_id_is_an_error_in_words(ident: object) -> None:
    with pytest.raises(ApiError) as caught:
        await url_of(FakeApi(websocket(ident)))
    assert caught.value.reason == "unexpected"


@pytest.mark.parametrize(
    "address",
    [f"ws://sockets.example/{TOKEN}", f"https://x/{TOKEN}", 5, TOKEN, [TOKEN]],
    ids=["no TLS", "https", "number", "no address", "list"],
)
async def test_an_address_that_we_must_not_use_is_refused_and_not_told(address: object) -> None:
    api = FakeApi(websocket("3"))
    api.address = address
    with pytest.raises(ApiError) as caught:
        await url_of(api)
    assert caught.value.reason == "unexpected"
    assert TOKEN not in f"{caught.value} {caught.value!r} {caught.value.mend}"


async def test_no_tls_is_for_apis_without() -> None:
    api = FakeApi(websocket("3"))
    api.address = "ws://127.0.0.1/x"
    assert await url_of(api, plain=True) == "ws://127.0.0.1/x"


def connection(**more: Any) -> Connection:
    return Connection(provider="dialpad", **{"secrets": (SECRET,), "api_key": "k", **more})


async def test_over_the_wire() -> None:
    assert PROVIDERS["dialpad"].stream is open_stream
    async with peer() as at, api_of(at) as api:
        async with open_stream("acme", connection(base_url=api.base_url)) as stream:
            assert await stream.url() == at.url
        assert api.asked == ["GET /api/v2/websockets", "GET /api/v2/websockets/5000000000004101"]

        api.answer = 403, b'{"error": "no"}'
        async with open_stream("acme", connection(base_url=api.base_url)) as stream:
            with pytest.raises(ApiError) as caught:
                await stream.url()
        assert (caught.value.reason, caught.value.status) == ("forbidden", 403)


async def test_settings_that_cannot_be_used_are_told() -> None:
    for bad in (connection(secrets=()), connection(api_key=None)):
        with pytest.raises(ConfigError):
            async with open_stream("acme", bad):
                pass


async def test_a_secret_that_is_no_text_is_told(tmp_path: Any) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match="UTF-8"):
        async with open_stream("acme", connection(secrets=(), secret_files=(path,))):
            pass
