"""Whatever DialLink might notify of: an event that every reader reads, or a reject."""

import copy
import json
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ingest.delivery import Delivery, Verified
from ingest.errors import UnreadableError
from ingest.providers.diallink.webhook import Webhook
from ingest.settings import Connection
from schemas.event import Envelope, Event, encode
from schemas.export import documents
from schemas.subjects import SUBJECTS

SAMPLES = Path(__file__).parents[3] / "samples" / "diallink"

SECRET = "whsec_aW52ZW50ZWQtZGlhbGxpbmstc2VjcmV0LW5vLTAwMDE="
SOURCE = Webhook.of(Connection.model_validate({"provider": "diallink", "secrets": [SECRET]}))

RECEIVED_MS = 1_790_000_126_500

REASONS = {"not_json", "unexpected_shape", "unknown_kind"}

TYPES = [
    "call.started",
    "call.answered",
    "call.completed",
    "call.missed",
    "recording.ready",
    "voicemail.received",
    "message.received",
    "contact.updated",
    "queue.opened",
]

VALIDATORS = {
    document["$id"]: Draft202012Validator(document)
    for _, document in documents()
    if "$id" in document
}


def no_constants(word: str) -> NoReturn:
    raise ValueError(word)


def check(payload: bytes) -> Event | None:
    """An event of which all holds that readers rely on; None for a reject of a known reason."""
    delivery = Delivery(
        connection="line",
        via="notification",
        headers=[(b"webhook-id", b"msg:1%")],
        body=payload,
        received_ms=RECEIVED_MS,
    )
    try:
        (event,) = SOURCE.normalize(Verified(payload), delivery)
        again, *_ = SOURCE.normalize(Verified(payload), delivery)
    except UnreadableError as error:
        assert type(error) is UnreadableError  # noqa: PT017 - an event is right too
        assert error.reason in REASONS  # noqa: PT017 - an event is right too
        return None
    assert again.id == event.id

    line = encode(event)
    assert b"\n" not in line
    assert b"\r" not in line
    written = json.loads(line, parse_constant=no_constants)
    spliced = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    assert line.endswith(b'"raw":' + spliced + b"}}")

    kind = event.subject_kind
    assert written["type"] == f"dialstream.{kind}.{event.what}"
    assert written["via"] == "notification"
    VALIDATORS["urn:dialstream:schema:event:1"].validate(written)
    VALIDATORS[written["dataschema"]].validate(written["data"])
    Envelope.model_validate_json(line)
    SUBJECTS[kind].model_validate(written["data"])
    assert written["data"].keys() == SUBJECTS[kind].model_fields.keys()

    provider, connection, what, ident, *rest = event.id.split(":")
    assert (provider, connection, what) == ("diallink", "line", kind)
    about = event.subject.removeprefix(f"{kind}/")
    assert unquote(ident) == about
    if kind == "notification":
        assert (about, rest, event.key) == ("msg:1%", [], "line")
    else:
        assert len(rest) == 2
        assert event.key == f"line/{about}"
        assert about == written["data"][f"{kind}_id"]
    return event


_numbers = (
    st.integers()
    | st.integers(2**62, 2**66)
    | st.integers(1_700_000_000_000, 1_800_000_000_000)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_texts = st.text(max_size=12) | st.sampled_from(
    [
        "0",
        "anonymous",
        "+15551230001",
        "a:b%c",
        "INBOUND",
        "outbound",
        "MISSED",
        "1790000000000",
        "2026-09-21T14:15:20.000Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59.999999-23:59",
        "12:00",
        "nan",
        "1e999",
        "x" * 300,
    ]
)
_leaves = st.none() | st.booleans() | _numbers | _texts
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("id"), inner, max_size=3)
    ),
    max_leaves=6,
)

_record = json.loads((SAMPLES / "calls-page-assumed.json").read_bytes())["data"][0]
_contact = json.loads((SAMPLES / "contact.json").read_bytes())
_bases = [
    _record,
    _contact,
    {"id": "r1", "callId": "c1", "url": "https://example.com/r1", "duration": 3},
    {"id": "m1", "from": "+15551230001", "to": ["+15551230101"], "text": "Hello"},
    {"id": "thin"},
]


@st.composite
def _notifications(draw: st.DrawFn) -> dict[str, Any]:
    data = copy.deepcopy(draw(st.sampled_from(_bases)))
    keys = st.sampled_from([*_record, *_contact, "callId", "text", "to"]) | st.text(max_size=5)
    for key in draw(st.lists(keys, max_size=4)):
        if draw(st.booleans()):
            data[key] = draw(_values)
        else:
            data.pop(key, None)
    envelope: dict[str, Any] = {
        "type": draw(st.sampled_from(TYPES) | _values),
        "timestamp": draw(st.just("2026-09-21T14:15:20.000Z") | _values),
    }
    match draw(st.sampled_from(["inside", "inside", "inside", "spread", "odd"])):
        case "inside":
            return {**envelope, "data": data}
        case "spread":
            return {**data, **envelope}
        case _:
            return {**envelope, "data": draw(_values)}


@settings(max_examples=600)
@given(notification=_notifications(), indent=st.sampled_from([None, 1]))
def test_a_notification_of_any_values_is_an_event_or_a_reject(
    notification: dict[str, Any], indent: int | None
) -> None:
    check(json.dumps(notification, indent=indent).encode())


@settings(max_examples=200)
@given(payload=st.binary(max_size=80) | _values.map(lambda value: json.dumps(value).encode()))
@example(b'{"type":"call.started","data":{"id":"a"}}\n')
@example(b'{"type":"call.started","data":{"id":"a","duration":1e308}}')
@example(b'{"type":"call.started","data":{"id":"a","duration":1e999}}')
@example(b'{"type":"queue.opened","data":1e999}')
@example(b'{"type":"call.started","data":{"id":18446744073709551617,"duration":1e400}}')
@example(b'{"type":"queue.opened","data":[18446744073709551617]}')
@example(b'{"type":"queue.opened","data":' + b"[" * 189 + b"]" * 189 + b"}")
@example(b'{"type":"call.\\ud800","data":1}')
def test_any_bytes_are_an_event_or_a_reject(payload: bytes) -> None:
    check(payload)


@settings(max_examples=200)
@given(place=st.integers(0, 600), cut=st.integers(0, 3), put=st.binary(max_size=3))
def test_a_damaged_sample_is_an_event_or_a_reject(place: int, cut: int, put: bytes) -> None:
    body = json.loads((SAMPLES / "notification-signed.json").read_bytes())["body"].encode()
    check(body[:place] + put + body[place + cut :])


@settings(max_examples=200)
@given(type_=st.sampled_from(TYPES[:8]), order=st.randoms(), data=st.sampled_from(_bases))
def test_the_order_of_keys_makes_no_other_fact(
    type_: str, order: Any, data: dict[str, Any]
) -> None:
    def shuffled(value: dict[str, Any]) -> dict[str, Any]:
        items = list(value.items())
        order.shuffle(items)
        return dict(items)

    notification = {"type": type_, "data": data}  # without a clock: a digest is part of the id
    other = shuffled({**notification, "data": shuffled(data)})
    first, second = check(orjson.dumps(notification)), check(orjson.dumps(other))
    assert first is not None
    assert second is not None
    assert first.id == second.id
    assert first.data == second.data
