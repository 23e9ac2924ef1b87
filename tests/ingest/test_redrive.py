"""Rejects as they stand on the log: whatever stands there, and what is open of it."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.derived import derived_event
from ingest.eventlog.log import Record, StoredRecord, records_of
from ingest.providers.dialpad.webhook import Webhook
from ingest.redrive import Redriver, Shelf, StaysError, read_kept
from ingest.rejects import (
    group_reject,
    is_retry_request,
    redriven_event,
    reject_event,
    retry_request,
)
from ingest.settings import Connection, Settings
from schemas.event import Event
from schemas.reject import Reject
from schemas.times import rfc3339
from tests.kit import SECRET, call, sign

MS = 1_790_000_000_000

SETTINGS = Settings(
    connections={
        "acme": Connection.model_validate({"provider": "dialpad", "secrets": [SECRET]}),
        "line": Connection.model_validate({"provider": "diallink", "api_key": "invented"}),
        "bots": Connection.model_validate({"provider": "dialgood", "api_key": "invented"}),
    }
)


def stored(record: Record, position: int = 1, written_ms: int = MS) -> StoredRecord:
    return StoredRecord(
        record.topic, 0, position, written_ms, record.key, record.value, record.headers
    )


def rejected(body: bytes, reason: str = "unknown_kind", **more: Any) -> Event:
    usual: dict[str, Any] = {"via": "webhook", "received_ms": MS, "headers": {}}
    return reject_event("acme", reason, "why", body=body, **{**usual, **more})


def shelf_of(events: Sequence[Event]) -> Shelf:
    shelf = Shelf()
    for position, event in enumerate(events, 1):
        (record,) = records_of(event)
        shelf.put(stored(record, position))
    return shelf


def redriven(body: bytes, at_ms: int = MS) -> Event:
    kept = read_kept(stored(records_of(rejected(body))[0]))
    assert kept is not None
    return redriven_event(
        "acme",
        kept.digest,
        reason="unknown_kind",
        via="webhook",
        received_at=kept.received_at,
        events=["an id"],
        now_ms=at_ms,
    )


# Ours


def test_what_came_several_times_is_one_and_open_until_it_is_redriven() -> None:
    one, other = b"one", b"other"
    shelf = shelf_of(
        [
            rejected(one),
            rejected(other, "not_json"),
            rejected(one, received_ms=MS + 5000),
            redriven(other, MS + 7000),
            redriven(b"one that is too long ago"),
        ]
    )
    first, second = shelf.found.values()
    assert (first.times, first.received_at, first.last_at) == (2, rfc3339(MS), rfc3339(MS + 5000))
    assert (first.position, first.redriven_at) == (1, None)
    assert (second.reason, second.times, second.redriven_at, second.events) == (
        "not_json",
        1,
        rfc3339(MS + 7000),
        ["an id"],
    )


def test_the_same_bytes_stay_redriven_though_an_older_receiver_rejects_them_once_more() -> None:
    shelf = shelf_of([rejected(b"one"), redriven(b"one"), rejected(b"one", "not_json")])
    (found,) = shelf.found.values()
    assert found.redriven_at is not None


def test_that_it_was_redriven_is_an_event_as_its_schema_says() -> None:
    (record,) = records_of(redriven(b"one"))
    event = json.loads(record.value or b"")
    Reject.model_validate(event["data"])
    assert event["type"] == "dialstream.reject.redriven"
    assert event["via"] == "derived"
    assert record.key == b"acme", "behind the reject, in its partition"


# A group's


def listed(redriven_at: str | None) -> str:
    return redriven_at or "open"


def event_of_a_call() -> StoredRecord:
    headers = (("content-type", b"x"), ("ce_type", b"dialstream.call.ended"), ("ce_id", b"an:id"))
    return StoredRecord("calls", 3, 77, MS, b"acme/1", b'{"via":"webhook","x":1}', headers)


def test_a_groups_reject_is_open_until_it_is_asked_for_again_and_after_the_next() -> None:
    event = event_of_a_call()
    shelf = Shelf()

    def put(record: Record) -> StoredRecord:
        on_topic = stored(record, len(log) + 1)
        log.append(on_topic)
        shelf.put(on_topic)
        return on_topic

    log: list[StoredRecord] = []
    reject = put(group_reject(event, "crm", "no_customer", "KeyError", MS))
    assert (reject.topic, reject.key, reject.value) == ("rejects.crm", event.key, event.value)
    assert reject.headers[:3] == event.headers
    assert not is_retry_request(reject)
    (found,) = shelf.found.values()
    assert (found.id, found.connection, found.reason) == ("an:id", "acme", "no_customer")
    assert found.via == "webhook"
    assert listed(found.redriven_at) == "open"

    request = put(retry_request(reject, MS + 1000))
    assert is_retry_request(request)
    assert (request.key, request.value) == (event.key, event.value)
    assert dict(request.headers)["reject_from"] == b"calls/3/77"
    assert listed(found.redriven_at) == rfc3339(MS + 1000)

    put(group_reject(request, "crm", "still_none", "", MS + 2000))
    assert len(shelf.found) == 1, "where the group first met it tells which one it is"
    assert (found.times, found.reason, listed(found.redriven_at)) == (2, "still_none", "open")


def test_a_deletion_can_be_a_groups_reject_too() -> None:
    event = event_of_a_call()
    event.value = None
    kept = read_kept(stored(group_reject(event, "crm", "no_customer", "", MS)))
    assert kept is not None
    assert (kept.via, kept.body, kept.id) == ("tombstone", b"", "an:id")


# Whatever stands there

jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(rfc3339(MS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@st.composite
def nearly_rejects(draw: st.DrawFn) -> bytes:
    """Ours, with something else in a place or two."""
    body = draw(st.sampled_from([sign(call(1, 0)), b"{}", b"\xff", b""]))
    reason = draw(st.sampled_from(["unknown_kind", "invalid", "too_large", "redriven"]))
    connection = draw(st.sampled_from(["acme", "line", "bots", "gone"]))
    event = json.loads(records_of(rejected(body, reason))[0].value or b"")
    event["connection"] = connection
    for _ in range(draw(st.integers(0, 2))):
        inside = draw(st.booleans())
        place = event["data"] if inside and isinstance(event["data"], dict) else event
        place[draw(st.sampled_from([*place, "more"]))] = draw(jsons)
    return json.dumps(event).encode()


@given(
    value=st.one_of(st.none(), st.binary(max_size=50), jsons.map(json.dumps).map(str.encode))
    | nearly_rejects(),
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                ["reject_reason", "reject_detail", "reject_from", "reject_at", "redriven_at", "x"]
            ),
            st.one_of(st.binary(max_size=9), st.just(rfc3339(MS).encode())),
        ),
        max_size=6,
    ),
    topic=st.sampled_from(["rejects", "rejects.crm"]),
)
def test_whatever_stands_there_is_a_reject_or_none_and_redriven_or_not(
    value: bytes | None, headers: list[tuple[str, bytes]], topic: str
) -> None:
    record = StoredRecord(topic, 0, 1, MS, b"acme", value, tuple(headers))
    shelf = Shelf()
    kept = shelf.put(record)
    shelf.put(record)
    if kept is None or topic != "rejects":
        return
    try:
        made = Redriver(SETTINGS).remake(kept)
    except StaysError:
        return
    assert made.records
    for one in made.records:
        assert one.key.partition(b"/")[0].decode() == kept.connection


def test_behind_a_deletion_that_kafka_had_refused_its_tombstone_comes_again() -> None:
    event = derived_event(
        "acme", "contact.deleted", "an:id", subject="contact/1", key="acme/1", at_ms=MS, data={}
    )
    deletion, tombstone = records_of(event)
    kept = read_kept(stored(records_of(rejected(deletion.value or b"", "invalid"))[0]))
    assert kept is not None
    again, last = Redriver(SETTINGS).remake(kept).records
    assert (again.topic, again.key, again.headers) == ("contacts", b"acme/1", deletion.headers)
    assert json.loads(again.value or b"")["id"] == "an:id"
    assert last == tombstone


def test_a_fault_of_ours_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(Webhook, "normalize", fails)
    kept = read_kept(stored(records_of(rejected(sign(call(1, 0))))[0]))
    assert kept is not None
    with pytest.raises(StaysError) as error:
        Redriver(SETTINGS).remake(kept)
    assert (error.value.reason, error.value.detail) == ("internal", "a fault of ours")
