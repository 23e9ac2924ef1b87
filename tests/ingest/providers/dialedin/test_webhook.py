"""A push of DialedIn's: off, or a notification that is kept whole."""

from typing import Any

import orjson
import pytest

from ingest.delivery import Delivery
from ingest.errors import ConfigError, UnreadableError, VerificationError
from ingest.providers.dialedin.webhook import sign
from ingest.providers.dialedin.webhook import webhook as source_of
from ingest.settings import Connection
from schemas.event import encode

TOKEN = "an-invented-token-of-their-push"


def connection(**assume: Any) -> Connection:
    return Connection.model_validate(
        {"provider": "dialedin", "api_key": "k", "secrets": [TOKEN], "assume": assume}
    )


def delivery(body: bytes, headers: dict[str, str]) -> Delivery:
    return Delivery(
        connection="floor",
        via="notification",
        headers=[(name.encode(), text.encode()) for name, text in headers.items()],
        body=body,
        received_ms=1_790_000_000_000,
    )


def test_it_is_off_and_a_secret_says_that_somebody_thinks_otherwise() -> None:
    with pytest.raises(ConfigError, match=r"assume\.push"):
        source_of(connection())


@pytest.mark.parametrize(
    ("body", "raw"),
    [
        (b'{"CallId": "1",\n "Phone": "5551230001"}', {"CallId": "1", "Phone": "5551230001"}),
        (
            b"CallId=1&Phone=%2B15551230001&Agent=",
            {"CallId": "1", "Phone": "+15551230001", "Agent": ""},
        ),
    ],
)
def test_json_and_forms_are_kept_whole(body: bytes, raw: dict[str, str]) -> None:
    webhook = source_of(connection(push="token", push_header="x-token"))
    signed = sign(body, connection(push="token", push_header="x-token"))
    assert signed.headers["x-token"] == TOKEN
    sent = delivery(signed.body, dict(signed.headers))
    [event] = webhook.normalize(webhook.verify(sent), sent)
    [again] = webhook.normalize(webhook.verify(sent), sent)
    assert event.id == again.id
    assert event.type == "dialstream.notification.received"
    assert orjson.loads(encode(event))["data"]["raw"] == raw


def test_who_does_not_know_the_token_is_refused() -> None:
    webhook = source_of(connection(push="token"))
    for headers in ({}, {"authorization": "Bearer another-token-altogether"}, {"x-token": TOKEN}):
        with pytest.raises(VerificationError):
            webhook.verify(delivery(b"{}", headers))


@pytest.mark.parametrize("body", [b"", b"[]", b"hello", b"a=1&b", b"\xff=1", b'{"a": NaN}'])
def test_what_is_neither_is_unreadable(body: bytes) -> None:
    webhook = source_of(connection(push="token"))
    sent = delivery(body, {"authorization": f"Bearer {TOKEN}"})
    with pytest.raises(UnreadableError):
        webhook.normalize(webhook.verify(sent), sent)
