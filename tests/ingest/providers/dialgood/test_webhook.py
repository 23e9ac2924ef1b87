"""A push of Dialgood's: off, and where it is on a hint of which nothing is believed."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.delivery import Delivery, Verified
from ingest.errors import ConfigError, UnreadableError, VerificationError
from ingest.notifications import TokenWebhook
from ingest.pipeline import reject
from ingest.providers import PROVIDERS
from ingest.providers.dialgood.webhook import sign
from ingest.settings import Connection
from schemas.event import Event, encode
from schemas.notification import Notification

TOKEN = "invented-token-0001"
OLD_TOKEN = "invented-token-0000"

#: 2026-09-21T14:15:26.500Z
RECEIVED_MS = 1_790_000_126_500


def connection(*secrets: str, **assume: object) -> Connection:
    return Connection.model_validate(
        {
            "provider": "dialgood",
            "secrets": list(secrets or [TOKEN]),
            "assume": {"push": "token", **assume},
        }
    )


def webhook(*secrets: str, **assume: object) -> TokenWebhook:
    made = PROVIDERS["dialgood"].webhook(connection(*secrets, **assume))
    assert isinstance(made, TokenWebhook)
    return made


def delivery(body: bytes, **headers: str) -> Delivery:
    return Delivery(
        connection="bots",
        via="notification",
        headers=[(name.encode(), value.encode()) for name, value in headers.items()],
        body=body,
        received_ms=RECEIVED_MS,
    )


def event_of(body: bytes) -> Event:
    (event,) = webhook().normalize(Verified(body), delivery(body))
    return event


def refusal(source: TokenWebhook, arrived: Delivery) -> str:
    with pytest.raises(VerificationError) as caught:
        source.verify(arrived)
    return caught.value.reason


# --- off by default -----------------------------------------------------------------------------


def test_with_secrets_and_push_off_the_start_stops_and_says_what_to_set() -> None:
    for assume in ({}, {"push": "off"}):
        connection = Connection.model_validate(
            {"provider": "dialgood", "secrets": [TOKEN], "assume": assume}
        )
        with pytest.raises(ConfigError) as caught:
            PROVIDERS["dialgood"].webhook(connection)
        (fault,) = caught.value.faults
        assert 'assume.push to "token"' in fault
        assert TOKEN not in fault


def test_a_token_that_could_be_guessed_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="16 bytes"):
        webhook("short")


# --- on -----------------------------------------------------------------------------------------


def test_the_bearer_of_the_token_gets_in_and_nobody_else() -> None:
    body = b'{"conversationId": "c1"}'
    assert webhook().verify(delivery(body, authorization=f"Bearer {TOKEN}")) == body
    assert refusal(webhook(), delivery(body)) == "missing_header"
    assert refusal(webhook(), delivery(body, authorization=TOKEN)) == "bad_header"
    assert refusal(webhook(), delivery(body, authorization=f"Bearer {OLD_TOKEN}")) == "bad_token"
    assert refusal(webhook(), delivery(body, api_token=TOKEN)) == "missing_header"
    twice = delivery(body)
    twice.headers = [(b"authorization", f"Bearer {TOKEN}".encode())] * 2
    assert refusal(webhook(), twice) == "bad_header"


def test_a_former_token_is_counted_while_there_are_two() -> None:
    assert webhook().former_seen is None
    source = webhook(TOKEN, OLD_TOKEN)
    source.verify(delivery(b"{}", authorization=f"Bearer {TOKEN}"))
    assert source.former_seen == 0
    source.verify(delivery(b"{}", authorization=f"Bearer {OLD_TOKEN}"))
    assert source.former_seen == 1


def test_the_token_stands_in_no_reject() -> None:
    arrived = delivery(b"<html>", authorization=f"Bearer {TOKEN}")
    event = reject(arrived, webhook(), UnreadableError("not_json", ""))
    assert event.data["headers"] == {}
    assert TOKEN.encode() not in encode(event)


def test_a_push_is_a_notification_and_no_call() -> None:
    body = b'{"type": "call.ended",\n "conversationId": "c1", "callStatus": "completed"}'
    digest = hashlib.sha256(body).hexdigest()[:16]
    event = event_of(body)
    written = json.loads(encode(event))
    raw = written["data"].pop("raw")
    assert raw == json.loads(body)
    assert written == {
        "specversion": "1.0",
        "id": f"dialgood:bots:notification:{digest}",
        "source": "/dialgood/bots",
        "type": "dialstream.notification.received",
        "subject": f"notification/{digest}",
        "time": "2026-09-21T14:15:26.500Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:dialstream:schema:notification:1",
        "partitionkey": "bots",
        "recordedtime": "2026-09-21T14:15:26.500Z",
        "via": "notification",
        "provider": "dialgood",
        "connection": "bots",
        "data": {"notification_type": "call.ended", "details": None},
    }
    assert event.topic == "notifications"
    assert event_of(body).id == event.id
    assert event_of(body + b" ").id != event.id


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        ({}, None),
        ({"event": "done"}, "done"),
        ({"type": "", "event": "done"}, "done"),
        ({"type": 7}, None),
        ({"type": ["a"]}, None),
        ({"status": "completed"}, None),
    ],
)
def test_its_word_for_itself_is_told_if_it_has_one(payload: Any, word: str | None) -> None:
    data = event_of(json.dumps(payload).encode()).data
    assert data == {"notification_type": word, "details": None}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json"),
        (b"<html></html>", "not_json"),
        (b'{"type": "a"', "not_json"),
        (b'{"a": Infinity}', "not_json"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "not_json"),
        (b"[{}]", "unexpected_shape"),
        (b"null", "unexpected_shape"),
    ],
)
def test_what_cannot_be_read_is_set_aside_for_its_reason(body: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        event_of(body)
    assert caught.value.reason == reason


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "event", "a\n"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(body=st.binary(max_size=60) | _json.map(lambda value: json.dumps(value, indent=1).encode()))
def test_anything_else_is_an_event_or_a_reject(body: bytes) -> None:
    try:
        event = event_of(body)
    except UnreadableError as error:
        assert error.reason in ("not_json", "unexpected_shape")  # noqa: PT017 - either is right
        return
    line = encode(event)
    assert b"\n" not in line
    data = json.loads(line)["data"]
    assert data["raw"] == json.loads(body)
    Notification.model_validate(data)


def test_what_we_sign_verifies() -> None:
    signed = sign(b"{}", connection(TOKEN, OLD_TOKEN))
    arrived = delivery(signed.body, **signed.headers)
    assert webhook().verify(arrived) == b"{}"
    with pytest.raises(ConfigError):
        sign(b"{}", connection("short"))
