"""What a timeline says of records, by hand."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.trace.story import Spooled, names, tell
from ingest.eventlog.log import StoredRecord
from tests.consumers.trace.events import T0, call, row, stored, verdict
from tests.kit import sign


def marks(*records: StoredRecord) -> list[tuple[str, list[str]]]:
    return [(moment.type, moment.marks) for moment in tell("acme", records).moments]


def test_a_plain_call() -> None:
    story = tell(
        "acme",
        [
            stored(call("1001", "ringing", 0), 10, 300),
            stored(call("1001", "connected", 4000), 11, 4250),
            stored(call("1001", "ended", 46_500), 15, 46_900),
            stored(row("1001", ["1001"], 46_500), 7, 48_000, "ledger"),
            stored(verdict("1001", "matched", 1, 950_000), 2, 950_100, "verdicts"),
            stored(row("1001", ["1001"], 950_000, complete=True), 8, 950_200, "ledger"),
        ],
    )
    assert (story.connection, story.conversation_id, story.call_ids) == ("acme", "1001", ["1001"])
    assert (story.direction, story.outcome, story.complete) == ("inbound", "answered", True)
    assert story.external == "+1…0123"
    assert [(m.type, m.topic, m.partition, m.position) for m in story.moments] == [
        ("call.ringing", "calls", 3, 10),
        ("call.connected", "calls", 3, 11),
        ("call.ended", "calls", 3, 15),
        ("conversation.updated", "ledger", 3, 7),
        ("verdict.matched", "verdicts", 3, 2),
        ("conversation.updated", "ledger", 3, 8),
    ]
    assert all(not moment.marks for moment in story.moments)
    ringing = story.moments[0]
    assert (ringing.time_ms, ringing.recorded_ms, ringing.written_ms) == (T0, T0 + 200, T0 + 300)
    assert (ringing.to_us_ms, ringing.to_log_ms) == (200, 100)
    assert ringing.as_data() == {
        "time": "2026-09-21T14:13:20.000Z",
        "recordedtime": "2026-09-21T14:13:20.200Z",
        "writtentime": "2026-09-21T14:13:20.300Z",
        "to_us_s": 0.2,
        "to_log_s": 0.1,
        "type": "call.ringing",
        "id": f"dialpad:acme:call:1001:ringing:{T0}",
        "of": "1001",
        "via": "webhook",
        "topic": "calls",
        "partition": 3,
        "position": 10,
        "spool": None,
        "marks": [],
        "said": "",
    }
    assert [m.said for m in story.moments[2:]] == [
        "answered, talk 42.5 s",
        "1 leg, answered, open",
        "no. 1",
        "1 leg, answered, complete",
    ]


def test_neither_names_nor_numbers_are_told() -> None:
    records = [
        stored(call("1001", "ended", 0), 1, 300),
        stored(row("1001", ["1001"], 0), 1, 400, "ledger"),
    ]
    told = json.dumps(tell("acme", records).as_data())
    assert "2065550123" not in told
    assert "1230101" not in told
    assert "Secret" not in told


def test_a_repeat_by_another_channel() -> None:
    again = call("1001", "ringing", 0, 500, via="websocket")
    assert marks(stored(call("1001", "ringing", 0), 1, 300), stored(again, 2, 600)) == [
        ("call.ringing", []),
        ("call.ringing", ["repeat"]),
    ]


def test_what_lay_in_a_spool_was_written_long_after_it_was_read() -> None:
    assert marks(
        stored(call("1001", "ringing", 0, 200), 1, 5_200),
        stored(call("1001", "connected", 4000, 4200), 2, 9_201),
        stored(verdict("1001", "matched", 1, 0), 1, 900_000, "verdicts"),
    ) == [("call.ringing", []), ("call.connected", ["spooled"]), ("verdict.matched", [])]


def test_order_is_the_log_s_and_what_is_out_of_order_is_marked() -> None:
    other = call("1002", "ringing", 100)
    assert marks(
        stored(call("1001", "connected", 4000), 1, 4300),
        stored(other, 2, 4400),
        stored(call("1001", "ringing", 0, 4400), 3, 4500),
    ) == [("call.connected", []), ("call.ringing", []), ("call.ringing", ["out_of_order"])]
    # Its clock has gone back: the partition's order stands all the same.
    first, second = call("1001", "ringing", 0), call("1001", "connected", 4000)
    assert marks(stored(first, 1, 4300), stored(second, 2, 300)) == [
        ("call.ringing", []),
        ("call.connected", []),
    ]


def test_what_comes_after_the_verdict_is_late_and_the_verdict_void() -> None:
    missing = verdict("1001", "push_missing", 1, 950_000, reason="ending_missing")
    late = verdict("1001", "late", 2, 1_000_200, revises=missing["id"])
    mended = call("1001", "ended", 46_500, 950_000, via="backfill")
    mended["id"] = "dialpad:acme:call:1001:hangup:backfilled"
    recording = call("1001", "recording_ready", 47_000, 1_000_300)
    story = tell(
        "acme",
        [
            stored(call("1001", "ringing", 0), 1, 300),
            stored(missing, 1, 950_100, "verdicts"),
            stored(mended, 2, 950_200),
            stored(call("1001", "ended", 46_500, 1_000_000), 3, 1_000_100),
            stored(late, 2, 1_000_250, "verdicts"),
            stored(recording, 4, 1_000_400),
        ],
    )
    assert [(moment.type, moment.marks) for moment in story.moments] == [
        ("call.ringing", []),
        ("verdict.push_missing", ["revised"]),
        ("call.ended", ["mended"]),
        ("call.ended", ["late"]),
        ("verdict.late", []),
        ("call.recording_ready", []),
    ]
    assert story.moments[1].said == "no. 1, ending missing"
    assert story.complete is None


def test_a_difference_is_named_and_not_told() -> None:
    odd = verdict(
        "1001",
        "mismatch",
        1,
        0,
        recorded_connection="bots",
        differences=[{"field": "external", "pushed": "+12065550123", "recorded": "+1"}],
    )
    (moment,) = tell("acme", [stored(odd, 1, 0, "verdicts")]).moments
    assert moment.said == "no. 1, against bots, differs: external"


def test_legs_that_became_one_conversation() -> None:
    story = tell(
        "acme",
        [
            stored(row("1002", ["1002"], 100), 1, 200, "ledger", partition=1),
            stored(row("1001", ["1001", "1002"], 300, merged_from=["1002"]), 1, 400, "ledger"),
            stored(None, 2, 401, "ledger", "acme/1002", partition=1),
        ],
    )
    assert story.conversation_id == "1001"
    assert [(moment.said, moment.marks) for moment in story.moments] == [
        ("1 leg, answered, open", []),
        ("2 legs, answered, open, merged from 1002", []),
        ("", ["tombstone"]),
    ]


def test_what_waits_in_a_spool_comes_last_and_only_if_the_log_has_it_not() -> None:
    ringing, ended = call("1001", "ringing", 0), call("1001", "ended", 46_500)
    story = tell(
        "acme",
        [stored(ringing, 1, 300)],
        [Spooled("receiver", stored(each, n, 47_000)) for n, each in enumerate((ringing, ended))],
    )
    assert [(m.type, m.marks, m.spool, m.partition) for m in story.moments] == [
        ("call.ringing", [], None, 3),
        ("call.ended", ["in_spool"], "receiver", None),
    ]


def test_a_record_that_was_read_twice_is_there_once() -> None:
    ringing = stored(call("1001", "ringing", 0), 1, 300)
    assert marks(ringing, ringing) == [("call.ringing", [])]


def reject(body: bytes, detail: str = "its keys are odd") -> dict[str, Any]:
    return {"data": {"detail": detail, "body_base64": base64.b64encode(body).decode()}}


@pytest.mark.parametrize(
    ("event", "named"),
    [
        (reject(sign({"call_id": 5000000000001101})), True),
        (reject(b'{"call_id": "5000000000001101"}'), True),
        (reject(b"", "dialpad:acme:call:5000000000001101:hangup:1 for calls: Kafka refuses"), True),
        (reject(sign({"call_id": 50000000000011010})), False),
        (reject(b"15000000000001101"), False),
        (reject(b"a.\xff.b"), False),
    ],
)
def test_rejects_that_name_a_call(event: dict[str, object], *, named: bool) -> None:
    assert names(event, {"5000000000001101"}) is named


def test_a_reject_that_was_redriven_names_what_it_became() -> None:
    event = reject(b"", "it was unknown_kind")
    event["data"] |= {"events": ["dialpad:acme:call:5000000000001101:hangup:1"]}
    assert names(event, {"5000000000001101"})
    assert not names(event, {"5000000000001102"})


def test_short_ids_name_nothing() -> None:
    assert not names(reject(b"12345"), {"12345"})


@given(st.binary())
def test_no_body_is_too_odd(body: bytes) -> None:
    assert not names(reject(body), {"5000000000001101"})


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 100_000), st.booleans()),
        min_size=1,
        max_size=20,
    )
)
def test_whatever_the_clocks_say_nothing_is_left_out_and_partitions_keep_their_order(
    told: list[tuple[int, int, bool]],
) -> None:
    records = [
        stored(call(f"100{leg}", "ringing", at), position, at if ahead else 0, partition=leg)
        for position, (leg, at, ahead) in enumerate(told)
    ]
    moments = tell("acme", records[::-1]).moments
    assert len(moments) == len(records)
    for leg in range(4):
        positions = [moment.position for moment in moments if moment.partition == leg]
        assert positions == sorted(positions)
    first = {moment.id for moment in moments if "repeat" not in moment.marks}
    assert len(first) == sum("repeat" not in moment.marks for moment in moments)
