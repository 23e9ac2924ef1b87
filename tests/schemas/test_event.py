"""The envelope as readers get it, and what ids are made of."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.event import (
    CONTENT_TYPE,
    Envelope,
    Event,
    Via,
    digest,
    digest_of_bytes,
    encode,
    id_part,
)
from schemas.subjects import SUBJECTS
from schemas.times import LAST_MS, minute, rfc3339
from schemas.topics import TOPIC_OF, TOPICS

# --- parts of ids -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (None, "-"),
        ("", ""),
        ("-", "-"),
        ("0", "0"),
        (0, "0"),
        (5000000000001101, "5000000000001101"),
        (9007199254740993123, "9007199254740993123"),
        ("hangup", "hangup"),
        ("a:b", "a%3Ab"),
        ("100%", "100%25"),
        ("%3A", "%253A"),
        (":%:", "%3A%25%3A"),
        ("a b/c?d#e", "a b/c?d#e"),
        ("ünbekannt", "ünbekannt"),
    ],
)
def test_parts_of_ids_hold_no_separator(part: str | int | None, expected: str) -> None:
    assert id_part(part) == expected


@settings(max_examples=100)
@given(first=st.lists(st.text(max_size=6), min_size=1), second=st.lists(st.text(max_size=6)))
def test_other_parts_make_another_id(first: list[str], second: list[str]) -> None:
    ids = [":".join(map(id_part, parts)) for parts in (first, second)]
    assert (ids[0] == ids[1]) == (first == second or (first == [""] and second == []))


# --- digests ------------------------------------------------------------------------------------

#: Made with jq 1.6 and GNU coreutils 9.1:
#: printf %s "$value" | jq -S -c . | tr -d '\n' | sha256sum | cut -c1-16
DIGESTS = {
    r'{"b":[1,2.5,true,null],"a":{"z":"\u00e9\u260e \"q\" \\ \/ \t","y":""},"A":-7,'
    '"é":5000000000001101}': "015a7702e39d766f",
    "{}": "44136fa355b3678a",
    "[]": "4f53cda18c2baa0c",
    "null": "74234e98afe7498f",
    '"x"': "ba2df4903a2c14e8",
    '{"event":"Deleted","contact":{"id":"5000000000003001","type":"local"}}': "d4e0218a6994a3d1",
}


@pytest.mark.parametrize("text", DIGESTS)
def test_digests_are_those_of_another_tool(text: str) -> None:
    assert digest(orjson.loads(text)) == DIGESTS[text]


def test_the_spelling_of_a_value_does_not_change_its_digest() -> None:
    spellings = (
        '{"a":1,"b":{"c":"é","d":[1,2]}}',
        ' { "b" : { "d":[1, 2], "c":"\\u00e9" },\n"a":1 } ',
    )
    assert len({digest(orjson.loads(text)) for text in spellings}) == 1
    for other in ('{"a":1,"b":{"c":"é","d":[2,1]}}', '{"a":"1","b":{"c":"é","d":[1,2]}}', "{}"):
        assert digest(orjson.loads(other)) != digest(orjson.loads(spellings[0]))


def test_bytes_have_digests_of_their_own() -> None:
    # printf 'no json' | sha256sum | cut -c1-16; the same of nothing
    assert digest_of_bytes(b"no json") == "5ad3040044b6d872"
    assert digest_of_bytes(b"") == "e3b0c44298fc1c14"


# --- times --------------------------------------------------------------------------------------

#: Made with GNU coreutils 9.1: date -u -d @1790000000.418 +%Y-%m-%dT%H:%M:%S.%3NZ, and
#: +%Y%m%d%H%M for the minute.
INSTANTS = [
    (0, "1970-01-01T00:00:00.000Z", "197001010000"),
    (1_007, "1970-01-01T00:00:01.007Z", "197001010000"),
    (951_782_399_999, "2000-02-28T23:59:59.999Z", "200002282359"),
    (1_709_164_800_000, "2024-02-29T00:00:00.000Z", "202402290000"),
    (1_790_000_000_000, "2026-09-21T14:13:20.000Z", "202609211413"),
    (1_790_000_000_418, "2026-09-21T14:13:20.418Z", "202609211413"),
    (253_402_300_799_999, "9999-12-31T23:59:59.999Z", "999912312359"),
]


@pytest.mark.parametrize(("ms", "text", "minute_text"), INSTANTS)
def test_instants_are_those_of_another_tool(ms: int, text: str, minute_text: str) -> None:
    for _ in range(2):  # the second time from memory
        assert rfc3339(ms) == text
        assert minute(ms) == minute_text


def test_no_instant_is_later_than_rfc_3339_can_say() -> None:
    last_ms, *_ = INSTANTS[-1]
    assert last_ms == LAST_MS


# --- the envelope -------------------------------------------------------------------------------

EVENT = Event(
    type="dialstream.message.received",
    subject_kind="message",
    id="dialpad:acme:message:7:pending:-:9",
    subject="message/7",
    key="acme/7",
    time_ms=1_790_000_000_418,
    recorded_ms=1_790_000_000_950,
    via="webhook",
    provider="dialpad",
    connection="acme",
    data={"message_id": "7", "text": 'é "☎"\n'},
    raw=b'{"id": 7, "big": 123456789012345678901234567890, "a": 1.10, "a": 2}',
)

LINE = (
    '{"specversion":"1.0","id":"dialpad:acme:message:7:pending:-:9","source":"/dialpad/acme",'
    '"type":"dialstream.message.received","subject":"message/7",'
    '"time":"2026-09-21T14:13:20.418Z","datacontenttype":"application/json",'
    '"dataschema":"urn:dialstream:schema:message:1","partitionkey":"acme/7",'
    '"recordedtime":"2026-09-21T14:13:20.950Z","via":"webhook","provider":"dialpad",'
    '"connection":"acme","data":{"message_id":"7","text":"é \\"☎\\"\\n",'
    '"raw":{"id": 7, "big": 123456789012345678901234567890, "a": 1.10, "a": 2}}}'
)


def test_an_event_is_one_line_of_json_with_the_providers_value_at_its_end() -> None:
    assert encode(EVENT).decode() == LINE


def test_writing_an_event_changes_nothing_in_it() -> None:
    before = dict(EVENT.data)
    assert encode(EVENT) == encode(EVENT)
    assert EVENT.data == before


def test_only_a_late_push_says_that_it_is_stale() -> None:
    assert "stale" not in json.loads(encode(EVENT))
    assert json.loads(encode(replace(EVENT, stale=True)))["stale"] is True


def test_what_we_derive_has_no_raw_and_us_as_its_source() -> None:
    derived = replace(EVENT, provider="dialstream", via="derived", raw=None)
    written = json.loads(encode(derived))
    assert written["source"] == "/dialstream/acme"
    assert written["provider"] == "dialstream"
    assert "raw" not in written["data"]


def test_surprises_are_ours_and_not_written() -> None:
    assert encode(replace(EVENT, surprises=(("field", "new"),))) == encode(EVENT)


@pytest.mark.parametrize("via", list(Via))
def test_what_is_written_is_an_envelope(via: Via) -> None:
    envelope = Envelope.model_validate_json(encode(replace(EVENT, via=via.value, stale=True)))
    assert envelope.via is via
    assert envelope.stale
    assert (envelope.id, envelope.type) == (EVENT.id, "dialstream.message.received")
    assert envelope.time.timestamp() == 1_790_000_000.418


def test_the_content_type_is_that_of_structured_mode() -> None:
    assert CONTENT_TYPE == b"application/cloudevents+json; charset=utf-8"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_has_one_topic_and_one_schema(subject: str) -> None:
    event = replace(EVENT, type=f"dialstream.{subject}.happened", subject_kind=subject)
    assert event.what == "happened"
    assert event.topic == TOPIC_OF[subject]
    assert [t.name for t in TOPICS.values() if subject in t.subjects] == [event.topic]
    written = json.loads(encode(event))
    assert written["type"] == f"dialstream.{subject}.happened"
    assert written["dataschema"] == f"urn:dialstream:schema:{subject}:1"
