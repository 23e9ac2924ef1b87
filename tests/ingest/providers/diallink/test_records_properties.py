"""Whatever an item of DialLink's lists holds, it becomes an event or a reject."""

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.fields import Fields
from ingest.providers.diallink.assumptions import CallFields, RecordingFields
from ingest.providers.diallink.keys import _key, _me
from ingest.providers.diallink.record_events import (
    Began,
    call_recorded,
    contact_listed,
    recording_ready,
    user_listed,
)
from ingest.providers.diallink.records import clock
from ingest.reading import Reading
from schemas.event import Envelope, Event, encode
from schemas.subjects import SUBJECTS
from tests.ingest.providers.diallink.small_diallink import sample

Read = Callable[[Reading, Fields], Event | None]

READING = Reading("diallink", "line", "US", "poll", 1_790_000_401_234)

KINDS: dict[str, tuple[dict[str, Any], Read]] = {
    "call": (
        sample("calls-page-assumed")["data"][0],
        partial(call_recorded, names=CallFields()),
    ),
    "backfilled": (
        sample("calls-page-assumed")["data"][0],
        partial(
            call_recorded, names=CallFields(), began=Began(1_790_000_000_000, 1_800_000_000_000)
        ),
    ),
    "recording": (
        {
            "id": "r1",
            "callId": "1",
            "url": "https://x.example/r1?sig=1",
            "startedAt": 1_790_000_000_000,
            "duration": 1.5,
            "updatedAt": "2026-09-21T14:13:20Z",
        },
        partial(recording_ready, names=RecordingFields()),
    ),
    "contact": (sample("contacts-page-1")["data"][0], contact_listed),
    "user": (sample("users-list")["data"][0], user_listed),
}

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**20, 10**40)
    | st.integers(1_700_000_000_000, 1_800_000_000_000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(
        [
            "0",
            "blocked",
            "+15551230001",
            "a:b%c",
            "1790000000000",
            "2026-09-21T14:13:20.123456+02:00",
            "9999-12-31T23:59:59.9999Z",
            "0001-01-01T00:00:00",
            "1e999",
            "x" * 300,
        ]
    )
)
_values: st.SearchStrategy[Any] = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["id", "phoneNumber", "email", "status"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@st.composite
def items(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """One with a few things dropped, replaced or added."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    item = dict(KINDS[kind][0])
    for _ in range(draw(st.integers(1, 5))):
        key = draw(st.sampled_from(sorted(item) or ["id"]) | st.text(max_size=8))
        if draw(st.booleans()):
            item[key] = draw(_values)
        else:
            item.pop(key, None)
    return kind, item


def check(item: bytes, read: Read) -> Event | None:
    """An event that every reader reads, or a reject with these bytes; or none."""
    found = READING.events([item], read)
    if not found:
        return None
    (event,) = found
    line = encode(event)
    assert b"\n" not in line
    written = json.loads(line)
    Envelope.model_validate(written)
    SUBJECTS[event.subject_kind].model_validate(written["data"])
    assert event.key.startswith("line/") or event.subject_kind == "reject"
    if event.subject_kind == "reject":
        assert base64.b64decode(written["data"]["body_base64"]) == item
    else:
        assert written["data"]["raw"] == json.loads(item)
        assert all(part for part in event.id.split(":"))
    return event


@given(given_item=items())
@settings(max_examples=300)
def test_whatever_a_field_holds(given_item: tuple[str, dict[str, Any]]) -> None:
    kind, item = given_item
    found = check(json.dumps(item).encode(), KINDS[kind][1])
    again = check(json.dumps(item).encode(), KINDS[kind][1])
    assert (found and found.id) == (again and again.id)
    if found is None:
        assert kind == "backfilled"


@given(body=st.binary(max_size=60) | _values.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_an_item_is(kind: str, body: bytes) -> None:
    event = check(body, KINDS[kind][1])
    assert event is None or event.subject_kind == "reject" or b'"' in body


@given(body=st.binary(max_size=60) | items().map(lambda found: json.dumps(found[1]).encode()))
def test_whatever_an_item_is_its_clock_is_a_time_or_nothing(body: bytes) -> None:
    found = clock("updatedAt")(body)
    assert found is None or 0 < found < 253_402_300_800_000


@given(
    value=st.dictionaries(st.sampled_from(["id", "admin", "key", "enabled", "expiresAt"]), _values)
)
def test_whatever_a_key_or_a_user_holds(value: dict[str, Any]) -> None:
    shown, enabled, expires_ms = _key(Fields(value, None, exact=True))
    assert isinstance(shown, str)
    assert isinstance(enabled, bool)
    assert expires_ms is None or expires_ms > 0
    assert _me(Fields(value, None, exact=True)).admin in (None, True, False)
