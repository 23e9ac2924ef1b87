"""Whatever Dialpad sends: an event that every reader can read, or a reject with its reason.

The tables are written from the design and from what is known of Dialpad, not from the code.
"""

import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import orjson
import pydantic
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_structured_event
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from ingest.delivery import Delivery, Verified
from ingest.errors import UnreadableError, VerificationError
from ingest.providers.dialpad import PROVIDER
from ingest.providers.dialpad.webhook import Webhook
from ingest.settings import Connection
from schemas.event import CONTENT_TYPE, Envelope, Event, digest, encode
from schemas.export import documents
from schemas.subjects import SUBJECTS
from schemas.topics import TOPICS

SAMPLES_FOLDER = Path(__file__).parents[3] / "samples" / "dialpad"

#: Payloads of events; the others are REST answers and a delivery in its wire form.
SAMPLES: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_bytes())
    for path in sorted(SAMPLES_FOLDER.glob("*.json"))
    if not path.stem.startswith(("rest-", "signed-"))
}

REASONS = {"not_json", "unexpected_shape", "unknown_kind"}

#: 2026-09-21T14:18:20Z; five minutes after the samples begin.
NOW_MS = 1_790_000_300_000
HOUR_MS = 3_600_000

SECRET = b"invented-secret-at-least-32-bytes-long!"
SOURCE = Webhook(secrets=[SECRET], region="US", claims_leeway_s=18000)


def test_the_samples_are_there() -> None:
    assert len(SAMPLES) == 38


# --- helpers ------------------------------------------------------------------------------------


def dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def normalize(
    payload: bytes,
    *,
    via: str = "webhook",
    hint: str | None = None,
    received_ms: int = NOW_MS,
    connection: str = "acme",
    source: Webhook = SOURCE,
) -> Sequence[Event]:
    delivery = Delivery(
        connection=connection,
        via=via,
        headers=[],
        body=b"never looked at",
        received_ms=received_ms,
        hint=hint,
    )
    return source.normalize(Verified(payload), delivery)


def event_of(payload: object, **options: Any) -> Event:
    (event,) = normalize(payload if isinstance(payload, bytes) else dump(payload), **options)
    return event


def data_of(payload: object, **options: Any) -> dict[str, Any]:
    return event_of(payload, **options).data


def reason_of(payload: object) -> str:
    with pytest.raises(UnreadableError) as caught:
        event_of(payload)
    assert caught.value.reason in REASONS
    return caught.value.reason


def sample(name: str, **changes: object) -> dict[str, Any]:
    return {**SAMPLES[name], **changes}


def call(**changes: object) -> dict[str, Any]:
    """A call of the fewest keys, and what a test adds."""
    return {"call_id": 5, "state": "ringing", "event_timestamp": 1_790_000_000_500, **changes}


def no_constants(word: str) -> NoReturn:
    raise ValueError(word)


def strict_json(text: bytes) -> Any:
    """As a reader that knows the standard reads: no NaN, no infinities."""
    return json.loads(text, parse_constant=no_constants)


# --- what must hold of every event --------------------------------------------------------------

FORMATS = FormatChecker()
RFC3339_UTC_MS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


# jsonschema checks this format only where another package is installed.
@FORMATS.checks("date-time")
def is_time(value: object) -> bool:
    return not isinstance(value, str) or RFC3339_UTC_MS.fullmatch(value) is not None


VALIDATORS = {
    document["$id"]: Draft202012Validator(document, format_checker=FORMATS)
    for _, document in documents()
    if "$id" in document
}

#: Parts of an id after provider and connection: none but the separators may be a bare colon.
PARTS = {"call": 4, "message": 5, "contact": 5, "agent": 5, "change": 5}

#: Where the ids of the subject come from: names of fields in `data`, in the order of the parts.
ID_FIELDS: dict[str, Mapping[int, Callable[[dict[str, Any]], str | None]]] = {
    "call": {1: lambda d: d["call_id"], 2: lambda d: d["provider_state"]},
    "message": {
        1: lambda d: d["message_id"],
        2: lambda d: d["provider_status"],
        3: lambda d: d["delivery_result"],
        4: lambda d: d["target"]["id"],
    },
    "contact": {1: lambda d: d["contact_id"], 2: lambda d: d["change"]},
    "agent": {1: lambda d: d["agent_id"], 3: lambda d: d["provider_duty_status"]},
    "change": {2: lambda d: d["action"], 3: lambda d: d["target"]["id"]},
}


def models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in models_in(inner)]


def check_fields(value: object, model: type[pydantic.BaseModel], path: str) -> None:
    """Exactly the model's fields, in the objects inside it too."""
    assert isinstance(value, dict)
    assert value.keys() == model.model_fields.keys(), path
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        if inner and value[name] is not None:
            items = value[name] if isinstance(value[name], list) else [value[name]]
            for item in items:
                check_fields(item, inner[0], f"{path}.{name}")


def check_event(event: Event, payload: bytes) -> None:
    """Everything that holds of every event of Dialpad's."""
    line = encode(event)
    assert b"\n" not in line
    assert b"\r" not in line

    # Every reader reads the same.
    written = strict_json(line)
    assert orjson.loads(line).keys() == written.keys()
    headers = {"content-type": CONTENT_TYPE}
    key = event.key.encode()
    parsed = from_structured_event(KafkaMessage(headers=headers, key=key, value=line))
    assert parsed.get_id() == event.id
    assert parsed.get_data() == written["data"]

    # The provider's value, byte for byte, at the end of the line.
    spliced = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    assert line.endswith(b'"raw":' + spliced + b"}}")
    assert written["data"]["raw"] == json.loads(payload)

    # The published schemas and the models.
    kind = event.subject_kind
    assert written["dataschema"] == f"urn:dialstream:schema:{kind}:1"
    VALIDATORS["urn:dialstream:schema:event:1"].validate(written)
    VALIDATORS[written["dataschema"]].validate(written["data"])
    Envelope.model_validate_json(line)
    SUBJECTS[kind].model_validate(written["data"])
    check_fields(written["data"], SUBJECTS[kind], kind)
    assert kind in TOPICS[event.topic].subjects

    # The envelope.
    assert written["type"] == f"dialstream.{kind}.{event.what}"
    assert written["source"] == "/dialpad/acme"
    assert (written["provider"], written["connection"]) == ("dialpad", "acme")
    assert written["partitionkey"] == event.key
    assert written["subject"].startswith(f"{kind}/")
    if kind == "change":
        assert event.key == "acme"
    else:
        assert event.key == "acme/" + written["subject"].removeprefix(f"{kind}/")

    # The id: a fixed number of parts, none empty by mistake, each the encoded fact.
    head, connection, *parts = event.id.split(":")
    assert (head, connection, parts[0]) == ("dialpad", "acme", kind)
    assert len(parts) == PARTS[kind]
    for place, fact in ID_FIELDS[kind].items():
        value = fact(written["data"])
        assert unquote(parts[place]) == ("-" if value is None else value)


def check(payload: bytes, **options: Any) -> Event | None:
    """An event for which all that holds, or an UnreadableError of a known reason."""
    try:
        (event,) = normalize(payload, **options)
    except UnreadableError as error:
        assert type(error) is UnreadableError  # noqa: PT017 - an event is right too
        assert error.reason in REASONS  # noqa: PT017 - an event is right too
        return None
    check_event(event, payload)
    return event


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_one_event_that_every_reader_reads(name: str) -> None:
    payload = (SAMPLES_FOLDER / f"{name}.json").read_bytes()
    assert check(payload) is not None


# --- mutated samples ----------------------------------------------------------------------------

_numbers = (
    st.integers()
    | st.integers(2**62, 2**66)
    | st.integers(10**20, 10**40)
    | st.integers(1_700_000_000_000, 1_800_000_000_000)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_texts = st.text(max_size=12) | st.sampled_from(
    [
        "0",
        "blocked",
        "+15551230001",
        "a:b%c",
        "call:",
        "TRUE",
        "1790000000000",
        "nan",
        "1e999",
        "x" * 300,
    ]
)
_leaves = st.none() | st.booleans() | _numbers | _texts
_values: st.SearchStrategy[Any] = st.recursive(
    _leaves | st.sampled_from([{}, "", 0, [], "0", 0.0, None]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["id", "type", "url"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)

#: Keys that a payload of one kind may borrow from another.
_keys = sorted({key for payload in SAMPLES.values() for key in payload})


@st.composite
def payloads(draw: st.DrawFn) -> dict[str, Any]:
    """A sample with a few things in it dropped, replaced, added or spelled otherwise."""
    name = draw(st.sampled_from(sorted(SAMPLES)))
    payload: dict[str, Any] = json.loads(json.dumps(SAMPLES[name]))
    for _ in range(draw(st.integers(1, 5))):
        inner = [value for value in payload.values() if isinstance(value, dict) and value]
        place = draw(st.sampled_from([payload, payload, payload, *inner]))
        if not place:
            continue
        key = draw(st.sampled_from(sorted(place)))
        match draw(st.sampled_from(["drop", "replace", "id", "text", "absent", "add", "borrow"])):
            case "drop":
                del place[key]
            case "replace":
                place[key] = draw(_values)
            case "id":
                place[key] = draw(st.integers(1, 10**30) | st.integers(1, 10**30).map(str))
            case "text":
                place[key] = str(place[key])
            case "absent":
                place[key] = draw(st.sampled_from([{}, "", 0, None, []]))
            case "add":
                place[draw(st.text(max_size=8))] = draw(_values)
            case _:
                place[draw(st.sampled_from(_keys))] = draw(_values)
    return payload


def respelled(value: dict[str, Any], how: int) -> bytes:
    """The same value in other bytes: order of keys, white space, escapes."""
    match how:
        case 0:
            return json.dumps(_reversed(value), indent=2, ensure_ascii=False).encode()
        case 1:
            return json.dumps(value, ensure_ascii=True, separators=(" ,\r\n", "\t: ")).encode()
        case 2:
            return json.dumps(_reversed(value), ensure_ascii=True).replace("/", "\\/").encode()
        case _:
            return b"\n " + json.dumps(value, separators=(",", ":")).encode() + b"\r\n"


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=250)
@given(payload=payloads(), how=st.integers(0, 3))
def test_mutated_samples_are_events_or_rejects_and_keep_one_id(
    payload: dict[str, Any], how: int
) -> None:
    plain = dump(payload)
    event = check(plain)
    other = check(respelled(payload, how), via="websocket")
    if event is None or other is None:
        assert event is other
    else:
        assert other.id == event.id
        assert other.type == event.type
        assert other.data == event.data


@settings(max_examples=100)
@given(payload=st.dictionaries(st.sampled_from(_keys) | st.text(max_size=6), _values, max_size=6))
def test_objects_of_any_keys_are_events_or_rejects(payload: dict[str, Any]) -> None:
    assume(not payload.keys() & {"exp", "nbf"})  # then they may be refused
    check(dump(payload))


@settings(max_examples=150)
@given(payload=st.binary(max_size=60) | _values.map(dump))
def test_signed_bytes_of_any_kind_are_events_or_rejects(payload: bytes) -> None:
    assume(b'"exp"' not in payload and b'"nbf"' not in payload)  # then they may be refused
    check(payload)


@settings(max_examples=100)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    place=st.floats(0, 1, exclude_max=True),
    data=st.binary(max_size=3),
    cut=st.integers(0, 3),
)
def test_damaged_payloads_are_events_or_rejects(
    name: str, place: float, data: bytes, cut: int
) -> None:
    text = dump(SAMPLES[name])
    at = int(len(text) * place)
    check(text[:at] + data + text[at + cut :])


@pytest.mark.parametrize(
    "payload",
    [
        {"event": [], "contact": {"id": "1"}},
        {"event": {}, "contact": {"id": "1"}},
        {"event": ["Updated"], "on_duty_status": "busy", "target": {"id": 1}},
        {"event": {"Updated": 1}, "id": 1, "from_number": "+15551230001"},
    ],
)
def test_an_event_that_is_no_word_breaks_nothing(payload: dict[str, Any]) -> None:
    """Lists and objects cannot be looked up in a table."""
    check(dump(payload))


# --- what is no JSON ----------------------------------------------------------------------------

_GOOD = b'{"call_id":5,"state":"ringing","event_timestamp":1790000000500,"x":%s}'

NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n",
    "a text without quotes": b"this is no json",
    "cut off": _GOOD[:40],
    "two values": (_GOOD % b"1") * 2,
    "something after it": _GOOD % b"1" + b";",
    "a comma too many": _GOOD % b"[1,]",
    "single quotes": _GOOD % b"'x'",
    "a comment": _GOOD % b"1 /* x */",
    "a byte order mark": b"\xef\xbb\xbf" + _GOOD % b"1",
    "UTF-16": (_GOOD % b"1").decode().encode("utf-16"),
    "NaN": _GOOD % b"NaN",
    "Infinity": _GOOD % b"Infinity",
    "-Infinity": _GOOD % b"-Infinity",
    "NaN deep inside": _GOOD % b'[{"a":[NaN]}]',
    "1e999": _GOOD % b"1e999",
    "-1e999": _GOOD % b"-1e999",
    "an integer of 6,000 digits": _GOOD % (b"9" * 6000),
    "a leading zero": _GOOD % b"01",
    "a hexadecimal number": _GOOD % b"0x10",
    "a leading half surrogate": _GOOD % rb'"\ud800"',
    "a trailing half surrogate": _GOOD % rb'"\udc00"',
    "half surrogates in the wrong order": _GOOD % rb'"\udc00\ud800"',
    "a half surrogate as a key": _GOOD % rb'{"\ud800":1}',
    "invalid UTF-8": _GOOD % b'"\xff\xfe"',
    "an overlong form": _GOOD % b'"\xc0\xaf"',
    "a surrogate in UTF-8": _GOOD % b'"\xed\xa0\x80"',
    "a line break in a text": _GOOD % b'"a\nb"',
    "a NUL in a text": _GOOD % b'"a\0b"',
    "nested 1,100 deep": _GOOD % (b"[" * 1100 + b"]" * 1100),
    "nested 20,000 deep": _GOOD % (b"[" * 20_000 + b"]" * 20_000),
    "objects nested 20,000 deep": _GOOD % (b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "opened 100,000 times": b"[" * 100_000,
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_some_reader_could_not_read_is_no_json(name: str) -> None:
    assert reason_of(NOT_JSON[name]) == "not_json"


DEEP = {
    "an unknown field": b'{"call_id":5,"state":"ringing","event_timestamp":1790000000500,"x":%s}',
    "a call without a clock": b'{"call_id":5,"state":"ringing","x":%s}',
    "labels": b'{"call_id":5,"state":"ringing","event_timestamp":1790000000500,"labels":%s}',
    "a contact": b'{"event":"Updated","contact":{"id":"1","x":%s}}',
    "an agent": b'{"on_duty_status":"busy","target":{"id":1},"date":1790000000500,"x":%s}',
    "details of a change": b'{"action":"x","note":"y","date":1790000000500,"additional_data":%s}',
    "a message": b'{"id":1,"from_number":"+15551230001","direction":"inbound","to_number":%s}',
    "an id beyond 64 bits": b'{"call_id":%d,"state":"ringing","x":%%s}' % 10**30,
}


@pytest.mark.parametrize("depth", [100, 252, 253, 254, 255, 300, 600, 890, 905, 1020, 1030])
@pytest.mark.parametrize("name", DEEP)
def test_deep_payloads_break_nothing(name: str, depth: int) -> None:
    """An event that can be written and read again, or no JSON; never a fault of ours."""
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        payload = DEEP[name] % (opening * depth + b"1" + closing * depth)
        try:
            event = event_of(payload)
        except UnreadableError as error:
            assert error.reason == "not_json"  # noqa: PT017 - an event is right too
            assert depth > 100
        else:
            line = encode(event)
            assert orjson.loads(line)["data"]["raw"] == orjson.loads(payload)


@pytest.mark.parametrize("payload", [[1], "x", 5, None, True, 1.5, [{"call_id": 5, "state": "x"}]])
def test_json_that_is_no_object_has_an_unexpected_shape(payload: object) -> None:
    assert reason_of(payload) == "unexpected_shape"


@pytest.mark.parametrize("scalar", [b"5", b"null", b"true", b'"x"', b"[]", b"1." + b"0" * 3000])
def test_json_that_is_no_object_is_as_unexpected_when_it_is_long(scalar: bytes) -> None:
    assert reason_of(scalar + b" " * 3000) == "unexpected_shape"


# --- the spliced value --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b'{"zz":1,"state":"ringing","aa":2,"call_id":5}',
        b'{"call_id":5,"state":"ringing","big":123456789012345678901234567890}',
        b'{"call_id":5,"state":"ringing","float":1.10000000000000000000001,"exp":9E+11}',
        b'{"call_id":5,"state":"ringing","state":"hangup","x":1,"x":{"y":2,"y":3}}',
        b'{"call_id":5,"state":"ringing","text":"\\u0041\\/\\u00e9\\ud83d\\ude00 \xc3\xa9"}',
        b'\t{ "call_id" : 5 ,\t"state" : "ringing" , "n\\nl" : "a\\r\\nb" } ',
        '{"call_id":5,"state":"ringing","text":"\u2028\u2029\u0085"}'.encode(),
    ],
)
def test_raw_is_what_was_signed_byte_for_byte(payload: bytes) -> None:
    event = event_of(payload)
    assert encode(event).endswith(b'"raw":' + payload + b"}}")


def test_of_line_breaks_spaces_are_made_and_nothing_else_changes() -> None:
    payload = b'\r\n{\n"call_id": 5,\r\n"state": "ringing", "text": "a\\nb"\n}\n'
    line = encode(event_of(payload))
    assert line.endswith(b'"raw":  { "call_id": 5,  "state": "ringing", "text": "a\\nb" } }}')
    for line_break in (b"\n", b"\r"):
        payload = b'{"call_id":5,%s"state":"ringing"}' % line_break
        assert encode(event_of(payload)).endswith(b'"raw":{"call_id":5, "state":"ringing"}}}')


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_one_fact_has_one_id_however_and_whenever_it_comes(name: str) -> None:
    first = event_of(SAMPLES[name])
    for how in range(4):
        text = respelled(SAMPLES[name], how)
        for via in ("webhook", "websocket", "replay"):
            for hint in (None, "call", "sms"):
                event = event_of(text, via=via, hint=hint, received_ms=NOW_MS + 30_000)
                assert event.id == first.id
                assert event.via == via
    if first.subject_kind != "contact":
        assert event_of(SAMPLES[name], received_ms=NOW_MS + HOUR_MS).id == first.id


def test_other_samples_are_other_facts() -> None:
    ids = {name: event_of(payload).id for name, payload in SAMPLES.items()}
    assert len(set(ids.values())) == len(SAMPLES)


def test_the_connection_is_part_of_the_id() -> None:
    for payload in SAMPLES.values():
        assert event_of(payload, connection="other").id.startswith("dialpad:other:")


def test_call_state_and_clock_make_another_fact_of_a_call_and_nothing_else_does() -> None:
    base = sample("call-inbound-hangup-user")
    first = event_of(base).id
    assert first == "dialpad:acme:call:5000000000001101:hangup:1790000121300"
    for change in (
        {"call_id": 5000000000001102},
        {"state": "connected"},
        {"event_timestamp": 1790000121301},
    ):
        assert event_of({**base, **change}).id != first
    fresher: tuple[dict[str, Any], ...] = (
        {"date_ended": None},
        {"labels": ["x"]},
        {"new": {}},
        {"talk_time": 7},
        {"call_id": "5000000000001101"},
        {"event_timestamp": "1790000121300"},
    )
    for change in fresher:
        assert event_of({**base, **change}).id == first


def test_without_a_clock_the_digest_stands_in_its_place() -> None:
    # printf %s '{"call_id":5,"state":"ringing"}' | sha256sum | cut -c1-16
    for value, expected in (
        (b'{"state": "ringing", "call_id": 5}', "670bf2c90ad053d9"),
        (b'{"call_id":5,"state":"ringing","event_timestamp":null}', None),
        (b'{"call_id":5,"state":"ringing","event_timestamp":0}', None),
        (b'{"call_id":5,"state":"ringing","event_timestamp":-5}', None),
        (b'{"call_id":5,"state":"ringing","event_timestamp":[1]}', None),
        (b'{"call_id":5,"state":"ringing","event_timestamp":999999999999999999999}', None),
    ):
        event = event_of(value)
        wanted = expected or digest(orjson.loads(value))
        assert event.id == f"dialpad:acme:call:5:ringing:{wanted}"
        assert event.time_ms == NOW_MS
        assert not event.stale


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            {"call_id": "a:b%c", "state": "x:y", "event_timestamp": 7},
            "dialpad:acme:call:a%3Ab%25c:x%3Ay:7",
        ),
        (
            {"id": "%3A", "from_number": "+15551230001", "message_status": ":"},
            "dialpad:acme:message:%253A:%3A:-:-",
        ),
        ({"id": 7, "to_number": ["x"]}, "dialpad:acme:message:7:-:-:-"),
        (
            {
                "id": 7,
                "to_number": [],
                "message_delivery_result": "x",
                "target": {"id": "Office:1"},
            },
            "dialpad:acme:message:7:-:x:Office%3A1",
        ),
    ],
)
def test_parts_of_ids_are_encoded_and_null_is_a_dash(
    payload: dict[str, Any], expected: str
) -> None:
    assert event_of(payload).id == expected


def test_ids_beyond_64_bits_are_exact() -> None:
    big = 123456789012345678901234567890
    payload = call(
        call_id=big,
        master_call_id=2**64,
        operator_call_id=str(big + 1),
        contact={"id": big + 2},
        target={"id": 2**63},
        call_recording_ids=[big + 3, 7],
        recording_details=[],
        event_timestamp=1_790_000_000_500,
        mos_score=4,
        duration=7,
        talk_time=1500,
    )
    event = event_of(payload)
    assert event.id == f"dialpad:acme:call:{big}:ringing:1790000000500"
    assert event.key == f"acme/{big}"
    assert event.data["call_id"] == str(big)
    assert event.data["related_call_ids"] == [str(2**64), str(big + 1)]
    assert event.data["conversation_id"] == str(2**64)
    assert event.data["external"]["id"] == str(big + 2)
    assert event.data["target"]["id"] == str(2**63)
    assert [r["recording_id"] for r in event.data["recordings"]] == [str(big + 3), "7"]
    assert event.data["talk_duration_s"] == 1.5
    assert event.data["quality"] == {"mos": 4, "csat": None}
    check_event(event, dump(payload))


@pytest.mark.parametrize(
    "payload",
    [
        call(call_recording_ids=[10**24]),
        {"on_duty_status": "busy", "target": {"id": 1}, "date": 5, "call_center_ids": [10**24]},
    ],
)
def test_lists_of_ids_are_exact_too(payload: dict[str, Any]) -> None:
    data = data_of(payload)
    found = data.get("call_center_ids") or [r["recording_id"] for r in data["recordings"]]
    assert found == [str(10**24)]


@pytest.mark.parametrize(
    "payload",
    [
        call(target={"id": 1.5}),
        call(contact={"id": 5e15}),
        call(operator_call_id=0.0),
        call(recording_details=[{"id": 2.5, "url": "https://dialpad.example/r"}]),
        {"id": 7, "from_number": "+15551230001", "sender_id": 1.5},
        {"action": "x", "note": "y", "date": 5, "target": {"id": 1.5}},
    ],
)
def test_an_id_with_decimals_costs_no_event_that_has_its_own(payload: dict[str, Any]) -> None:
    """Every key but the event's own id is optional, and nothing is refused for its type."""
    assert event_of(payload).subject_kind in SUBJECTS


@pytest.mark.parametrize("ident", [None, "", 0, "0", {}, [], [1], True, 1.5, {"a": 1}, "x" * 257])
def test_without_an_id_of_its_own_a_payload_has_an_unexpected_shape(ident: object) -> None:
    assert reason_of({"call_id": ident, "state": "ringing"}) == "unexpected_shape"
    assert reason_of({"id": ident, "from_number": "+15551230001"}) == "unexpected_shape"
    assert reason_of({"event": "Updated", "contact": {"id": ident}}) == "unexpected_shape"
    assert reason_of({"on_duty_status": "busy", "target": {"id": ident}}) == "unexpected_shape"


def test_a_word_too_long_for_an_id_has_an_unexpected_shape() -> None:
    assert reason_of(call(state="s" * 100_000)) == "unexpected_shape"
    assert event_of(call(state="s" * 256)).what == "unknown"


@pytest.mark.parametrize("name", ["contact-created", "contact-updated"])
def test_the_minute_of_arrival_tells_a_contact_that_came_back_from_a_retry(name: str) -> None:
    payload = SAMPLES[name]
    ids = [
        event_of(payload, received_ms=NOW_MS + ms).id for ms in (0, 39_999, 40_000, HOUR_MS)
    ]  # NOW_MS is 14:18:20
    assert ids[0] == ids[1]
    assert [i.rpartition(":")[2] for i in ids[1:]] == [
        "202609211418",
        "202609211419",
        "202609211518",
    ]
    changed = {**payload, "contact": {**payload["contact"], "job_title": "Another"}}
    assert event_of(changed).id != ids[0]


_AGENT = {"target": {"id": 1}, "on_duty_status": "busy", "date": 1_790_000_000_000}
_CHANGE = {"action": "x", "note": "y", "target": {"id": 2}, "date": 1_790_000_000_000}


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        (_AGENT, "date"),
        (_AGENT, "on_duty_status"),
        (_AGENT, "availability_status"),
        (_CHANGE, "date"),
        (_CHANGE, "action"),
        (_CHANGE, "note"),
        (_CHANGE, "additional_data"),
    ],
)
def test_whatever_differs_is_another_fact_of_an_agent_or_a_change(
    payload: dict[str, Any], key: str
) -> None:
    """Two of them may share a millisecond, so the digest is part of the id."""
    changed = {**payload, key: 1_790_000_000_001 if key == "date" else "another"}
    assert event_of(changed).id != event_of(payload).id


def test_agents_and_changes_without_a_date_have_the_digest_in_its_place() -> None:
    agent = {key: value for key, value in _AGENT.items() if key != "date"}
    change = {key: value for key, value in _CHANGE.items() if key != "date"}
    agent_digest, change_digest = digest(agent), digest(change)
    assert event_of(agent).id == f"dialpad:acme:agent:1:{agent_digest}:busy:{agent_digest}"
    assert event_of(change).id == f"dialpad:acme:change:{change_digest}:x:2:{change_digest}"
    assert event_of(change).time_ms == NOW_MS


def test_a_change_of_nothing_in_particular_has_a_subject_all_the_same() -> None:
    event = event_of({"action": "x", "note": "y", "date": 5, "target": {}})
    assert event.subject == "change/-"
    assert event.key == "acme"
    assert event.id.startswith("dialpad:acme:change:5:x:-:")


# --- kinds --------------------------------------------------------------------------------------

KINDS: list[tuple[dict[str, Any], str]] = [
    ({"call_id": 1, "state": "x"}, "call"),
    ({"call_id": 1, "state": "x", "id": 2, "from_number": "y"}, "call"),
    ({"call_id": 1, "state": "x", "event": "Updated", "contact": {"id": 1}}, "call"),
    ({"event": "Created", "contact": {"id": 1}}, "contact"),
    ({"event": "Updated", "contact": {"id": 1}, "action": "x", "note": "y"}, "contact"),
    ({"event": "Deleted", "contact": {"id": 1}, "id": 1, "to_number": []}, "contact"),
    ({"event": "Updated", "contact": {"id": 1}, "call_id": 1}, "contact"),
    ({"action": "x", "changed_by": {}}, "change"),
    ({"action": "x", "note": None}, "change"),
    ({"action": "x", "note": "y", "on_duty_status": "busy", "target": {"id": 1}}, "change"),
    ({"on_duty_status": "busy", "target": {"id": 1}}, "agent"),
    ({"availability_status": "available", "target": {"id": 1}}, "agent"),
    ({"call_center_ids": [], "target": {"id": 1}}, "agent"),
    ({"call_center_ids": [], "target": {"id": 1}, "id": 1, "from_number": "x"}, "agent"),
    ({"call_center_ids": [], "target": {"id": 1}, "call_id": None}, "agent"),
    ({"id": 1, "from_number": "x"}, "message"),
    ({"id": 1, "to_number": []}, "message"),
    ({"id": 1, "message_status": None}, "message"),
]


@pytest.mark.parametrize(("payload", "kind"), KINDS)
def test_the_first_kind_whose_keys_are_there_wins(payload: dict[str, Any], kind: str) -> None:
    event = event_of(payload)
    assert event.subject_kind == kind
    for hint in PROVIDER_KINDS:
        assert event_of(payload, hint=hint).subject_kind == kind


PROVIDER_KINDS = ("call", "sms", "contact", "agent_status", "changelog", "anything")


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"something": "new"},
        {"call_id": 1},
        {"call_id": 1, "state": 5},
        {"call_id": 1, "state": None},
        {"call_id": 1, "id": 2, "from_number": "+15551230001"},
        {"event": "Exploded", "contact": {"id": 1}},
        {"event": "Updated", "contact": "x"},
        {"event": "Updated"},
        {"action": "x"},
        {"id": 1},
        {"from_number": "+15551230001"},
    ],
)
def test_a_payload_of_no_known_kind_is_set_aside_for_a_later_version(
    payload: dict[str, Any],
) -> None:
    assert reason_of(payload) == "unknown_kind"


def test_errors_quote_nothing_of_the_payload() -> None:
    canary = "canary"
    for payload in (
        dump({canary: canary}),
        dump([canary]),
        dump(call(call_id=[canary])),
        dump(call(state=canary * 100)),
        b'{"call_id":"' + canary.encode(),
        b"canary",
    ):
        with pytest.raises(UnreadableError) as caught:
            event_of(payload)
        assert canary not in f"{caught.value!r}{caught.value.detail}{caught.value.__context__!r}"


# --- states and outcomes of calls ---------------------------------------------------------------

STATES = {
    "calling": "calling",
    "preanswer": "preanswer",
    "ringing": "ringing",
    "queued": "queued",
    "connected": "connected",
    "parked": "parked",
    "merged": "merged",
    "missed": "missed",
    "blocked": "blocked",
    "voicemail": "voicemail",
    "voicemail_uploaded": "voicemail_uploaded",
    "hold": "held",
    "hangup": "ended",
    "transcription": "voicemail_transcribed",
    "recording": "recording_ready",
    "admin_recording": "recording_ready",
    "call_transcription": "transcript_ready",
    "recap_action_items": "recap_ready",
    "recap_outcome": "recap_ready",
    "recap_purposes": "recap_ready",
    "recap_summary": "recap_ready",
    "ai_playbook": "recap_ready",
    "dispositions": "dispositioned",
    "postcall": "wrapped_up",
    "csat": "surveyed",
    "pcsat": "surveyed",
    "admin": "supervised",
    "barge": "supervised",
    "eavesdrop": "supervised",
    "monitor": "supervised",
    "takeover": "supervised",
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_that_can_be_subscribed_to_has_a_word_of_ours(state: str) -> None:
    event = event_of(sample("call-inbound-hangup-user", state=state))
    assert event.type == f"dialstream.call.{STATES[state]}"
    assert event.data["state"] == STATES[state]
    assert event.data["provider_state"] == state
    assert event.surprises == ()
    check_event(event, dump(sample("call-inbound-hangup-user", state=state)))


@pytest.mark.parametrize("state", ["all", "teleported", "Ringing", "ended", "held", "ünbekannt:%"])
def test_any_other_state_is_unknown_and_noted(state: str) -> None:
    event = event_of(call(state=state))
    assert event.type == "dialstream.call.unknown"
    assert event.data["state"] == "unknown"
    assert event.data["provider_state"] == state
    assert ("state", state) in event.surprises


_AT = 1_790_000_005_000
OUTCOMES: list[tuple[dict[str, Any], str | None]] = [
    # Not known yet.
    ({"state": "calling", "direction": "outbound"}, None),
    ({"state": "ringing", "direction": "inbound"}, None),
    ({"state": "connected", "direction": "inbound", "date_connected": _AT}, None),
    ({"state": "hold", "direction": "inbound", "date_connected": _AT, "date_ended": None}, None),
    # Answered, whoever called.
    ({"state": "hangup", "direction": "inbound", "date_connected": _AT}, "answered"),
    ({"state": "hangup", "direction": "outbound", "date_connected": _AT}, "answered"),
    ({"state": "hangup", "date_connected": _AT}, "answered"),
    ({"state": "recording", "date_connected": _AT, "date_ended": _AT}, "answered"),
    # Never answered is one thing inbound and another outbound.
    ({"state": "hangup", "direction": "inbound"}, "missed"),
    ({"state": "hangup", "direction": "outbound"}, "unanswered"),
    ({"state": "hangup"}, "unknown"),
    ({"state": "hangup", "direction": "sideways"}, "unknown"),
    ({"state": "hangup", "direction": "inbound", "date_connected": 0}, "missed"),
    ({"state": "missed", "direction": "inbound"}, "missed"),
    ({"state": "missed", "direction": "inbound", "date_ended": _AT}, "missed"),
    ({"state": "blocked", "direction": "inbound"}, "blocked"),
    # A late body: newer than its state.
    ({"state": "ringing", "direction": "inbound", "date_ended": _AT}, "missed"),
    (
        {"state": "ringing", "direction": "inbound", "date_connected": _AT, "date_ended": _AT},
        "answered",
    ),
    # A link is no voicemail, and a voicemail is no answer.
    (
        {"state": "voicemail", "direction": "inbound", "date_ended": _AT, "voicemail_link": "x"},
        "missed",
    ),
    ({"state": "voicemail_uploaded", "direction": "inbound"}, "voicemail"),
    ({"state": "transcription", "direction": "inbound"}, "voicemail"),
    ({"state": "hangup", "direction": "inbound", "voicemail_recording_id": "9"}, "voicemail"),
    (
        {
            "state": "hangup",
            "direction": "inbound",
            "voicemail_recording_id": "9",
            "date_connected": _AT,
            "talk_time": 0,
        },
        "voicemail",
    ),
    (
        {
            "state": "hangup",
            "direction": "inbound",
            "voicemail_recording_id": "9",
            "date_connected": _AT,
            "talk_time": 61_000.5,
        },
        "answered",
    ),
]


@pytest.mark.parametrize(("fields", "outcome"), OUTCOMES)
def test_outcomes_are_told_once_they_are_known(fields: dict[str, Any], outcome: str | None) -> None:
    assert data_of(call(**fields))["outcome"] == outcome


VOICEMAILS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"state": "voicemail", "voicemail_link": "https://dialpad.example/v"}, None),
    ({"state": "hangup", "voicemail_link": "https://dialpad.example/v"}, None),
    ({"state": "hangup", "voicemail_link": "x", "voicemail_recording_id": ""}, None),
    ({"state": "hangup", "voicemail_link": "x", "voicemail_recording_id": 0}, None),
    ({"state": "hangup", "voicemail_link": "x", "voicemail_recording_id": {}}, None),
    (
        {"state": "hangup", "voicemail_link": "x", "voicemail_recording_id": 9},
        {"recording_id": "9", "url": "x", "text": None, "duration_s": None},
    ),
    (
        {"state": "transcription", "transcription_text": "Call me back."},
        {"recording_id": None, "url": None, "text": "Call me back.", "duration_s": None},
    ),
    (
        {
            "state": "voicemail_uploaded",
            "recording_details": [
                {"recording_type": "callrecording", "id": "1", "url": "c", "duration": 1000},
                {"recording_type": "voicemail", "id": "2", "url": "v", "duration": "21000"},
            ],
        },
        {"recording_id": "2", "url": "v", "text": None, "duration_s": 21.0},
    ),
]


@pytest.mark.parametrize(("fields", "voicemail"), VOICEMAILS)
def test_a_voicemail_is_told_only_where_somebody_left_one(
    fields: dict[str, Any], voicemail: dict[str, Any] | None
) -> None:
    """Two thirds of an account's voicemail links were dead; the recording's id is honest."""
    assert data_of(call(**fields))["voicemail"] == voicemail


def test_a_voicemail_is_no_recording_of_the_call() -> None:
    assert data_of(sample("call-voicemail-uploaded"))["recordings"] == []


def test_a_recording_in_several_lists_is_one_recording() -> None:
    data = data_of(
        call(
            recording_details=[
                {"id": "1", "url": "a", "recording_type": "callrecording"},
                "strange",
            ],
            recording_url=["a", "b"],
            admin_recording_urls=["b", "c"],
            call_recording_ids=["1"],
        )
    )
    assert [(r["recording_id"], r["url"]) for r in data["recordings"]] == [
        ("1", "a"),
        (None, "b"),
        (None, "c"),
    ]


@pytest.mark.parametrize(
    ("fields", "quality"),
    [
        ({}, None),
        ({"mos_score": None, "csat_score": None}, None),
        ({"mos_score": 4.37}, {"mos": 4.37, "csat": None}),
        ({"csat_score": "5"}, {"mos": None, "csat": "5"}),
        ({"csat_score": 5}, {"mos": None, "csat": "5"}),
        ({"csat_score": ""}, None),
        ({"csat_score": {}}, None),
        ({"mos_score": {}, "csat_score": {}}, None),
    ],
)
def test_a_score_is_told_only_where_there_is_one(
    fields: dict[str, Any], quality: dict[str, Any] | None
) -> None:
    assert data_of(call(**fields))["quality"] == quality


# --- parties, numbers, legs ---------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_a_number_that_is_kept_from_us_is_null_and_said_to_be_withheld(direction: str) -> None:
    data = data_of(
        sample("call-inbound-hangup-user", internal_number="blocked", direction=direction)
    )
    ours = "to_number" if direction == "inbound" else "from_number"
    assert data[ours] is None
    assert data["internal"]["number"] is None
    assert data["internal"]["withheld"] is True
    assert data["internal"]["number_raw"] == "blocked"
    assert data["internal"]["id"] == "5000000000000201"
    # The person's own number is another matter.
    assert data["target"]["number"] == "+15551230101"
    assert data["target"]["withheld"] is False


@pytest.mark.parametrize("word", ["blocked", "Anonymous", "RESTRICTED", "private"])
def test_a_caller_who_withholds_their_number_has_none(word: str) -> None:
    data = data_of(sample("call-inbound-hangup-user", external_number=word))
    assert data["from_number"] is None
    assert data["external"]["number"] is None
    assert data["external"]["withheld"] is True
    message = data_of(sample("sms-inbound-user", from_number=word, to_number=[word]))
    assert message["from_number"] is None
    assert word not in message["to_numbers"]


@pytest.mark.parametrize("nothing", [None, "", {}, 0, []])
def test_no_number_is_not_a_withheld_one(nothing: object) -> None:
    payload = call(external_number=nothing, contact={"phone": nothing}, target={"phone": nothing})
    data = data_of(payload)
    for party in ("external", "internal", "target"):
        assert data[party]["number"] is None
        assert data[party]["number_raw"] is None
        assert data[party]["withheld"] is False
    assert data["from_number"] is None
    assert data["to_number"] is None


def test_national_numbers_need_the_region_of_the_connection() -> None:
    payload = call(direction="inbound", external_number="(555) 123-0001")
    assert data_of(payload)["from_number"] == "+15551230001"
    nowhere = Webhook(secrets=[SECRET], region=None, claims_leeway_s=0)
    data = data_of(payload, source=nowhere)
    assert data["from_number"] == "(555) 123-0001"
    assert data["external"]["number_raw"] == "(555) 123-0001"


def test_a_call_between_colleagues_is_internal_and_keeps_who_called_whom() -> None:
    data = data_of(sample("call-outbound-ringing", is_internal=True))
    assert data["direction"] == "internal"
    assert data["from_number"] == "+15551230101"
    assert data["to_number"] == "+15551230001"


@pytest.mark.parametrize("word", ["call_center", "callcenter", "CallCenter", "CALL_CENTER"])
def test_all_spellings_of_a_kind_are_one_kind(word: str) -> None:
    data = data_of(call(target={"id": 1, "type": word}, group_id=f"{word}:7"))
    assert data["target"]["kind"] == "call_center"
    assert data["group"] == {"kind": "call_center", "id": "7"}


LEGS: list[tuple[dict[str, Any], list[str], str]] = [
    ({}, [], "50"),
    ({"master_call_id": None, "operator_call_id": 0, "entry_point_call_id": ""}, [], "50"),
    ({"master_call_id": {}, "operator_call_id": "0"}, [], "50"),
    ({"master_call_id": 50, "operator_call_id": "50"}, [], "50"),
    ({"entry_point_call_id": 49}, ["49"], "49"),
    ({"operator_call_id": "51"}, ["51"], "50"),
    # By length, then text: 9 before 50 before 100.
    (
        {"master_call_id": 100, "operator_call_id": 9, "entry_point_call_id": "70"},
        ["9", "70", "100"],
        "9",
    ),
    ({"master_call_id": 60, "operator_call_id": "60"}, ["60"], "50"),
    ({"master_call_id": [60], "operator_call_id": True}, [], "50"),
]


@pytest.mark.parametrize(("fields", "related", "conversation"), LEGS)
def test_legs_are_united_by_all_their_ids(
    fields: dict[str, Any], related: list[str], conversation: str
) -> None:
    data = data_of(call(call_id=50, **fields))
    assert sorted(data["related_call_ids"]) == sorted(related)
    assert data["conversation_id"] == conversation


def test_the_legs_of_a_call_to_a_centre_hang_together() -> None:
    sets = [
        {data["call_id"], *data["related_call_ids"]}
        for data in map(
            data_of, (SAMPLES["call-callcenter-leg-hangup"], SAMPLES["call-operator-leg-hangup"])
        )
    ]
    assert sets[0] & sets[1] == {"5000000000001201", "5000000000001202"}


# --- messages -----------------------------------------------------------------------------------

MESSAGES = [
    ("inbound", None, "received", None),
    ("inbound", "", "received", None),
    ("inbound", "pending", "received", "pending"),
    ("outbound", None, "sent", None),
    ("outbound", "pending", "sent", "pending"),
    ("outbound", "sent", "updated", "sent"),
    ("outbound", "success", "updated", "sent"),
    ("outbound", "delivered", "updated", "delivered"),
    ("outbound", "failed", "updated", "failed"),
    ("outbound", "undelivered", "updated", "undelivered"),
    ("inbound", "delivered", "updated", "delivered"),
    ("outbound", "teleported", "updated", "unknown"),
]


@pytest.mark.parametrize(("direction", "status", "what", "ours"), MESSAGES)
def test_a_message_is_received_or_sent_once_and_then_updated(
    direction: str, status: str | None, what: str, ours: str | None
) -> None:
    event = event_of(sample("sms-inbound-user", direction=direction, message_status=status))
    assert event.type == f"dialstream.message.{what}"
    assert event.data["status"] == ours
    assert event.data["provider_status"] == (status or None)
    assert (("status", "teleported") in event.surprises) == (status == "teleported")


@pytest.mark.parametrize("to", ["+15551230101", ["+15551230101"], ["(555) 123-0101"]])
def test_recipients_are_a_list_even_if_they_came_as_a_text(to: object) -> None:
    assert data_of(sample("sms-inbound-user", to_number=to))["to_numbers"] == ["+15551230101"]


def test_status_result_and_target_make_another_fact_of_a_message_and_its_clock_does_not() -> None:
    base = sample("sms-outbound-status-sent")
    first = event_of(base).id
    for change in (
        {"id": 1},
        {"message_status": "delivered"},
        {"message_delivery_result": None},
        {"target": {**base["target"], "id": 1}},
    ):
        assert event_of({**base, **change}).id != first
    for fresher in ({"event_timestamp": 1}, {"text": "x"}, {"new": 1}, {"id": str(base["id"])}):
        assert event_of({**base, **fresher}).id == first


# --- clocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_a_push_older_than_a_day_by_the_providers_clock_is_flagged_and_kept(name: str) -> None:
    day = 24 * HOUR_MS
    fresh = event_of(SAMPLES[name])
    assert fresh.stale is False
    assert b'"stale"' not in encode(fresh)
    late = event_of(SAMPLES[name], received_ms=fresh.time_ms + day + 1)
    assert late.stale is (fresh.subject_kind != "contact")  # which have no clock
    assert (b'"stale":true' in encode(late)) is late.stale
    assert event_of(SAMPLES[name], received_ms=fresh.time_ms + day).stale is False


@pytest.mark.parametrize(
    "clock",
    [None, 0, -1, "", "soon", [1], {}, True, 253_402_300_800_000, 10**30, 1e300, "9" * 40],
)
def test_what_is_no_clock_gives_way_to_ours(clock: object) -> None:
    payload = call(event_timestamp=clock, date_started=clock)
    event = event_of(payload)
    assert event.time_ms == NOW_MS
    assert event.data["started_at"] is None
    check_event(event, dump(payload))


# --- surprises ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "surprise"),
    [
        (call(brand_new={"a": 1}), ("field", "brand_new")),
        (call(brand_new=None), ("field", "brand_new")),
        (call(direction="sideways"), ("direction", "sideways")),
        (call(state="teleported"), ("state", "teleported")),
        (call(target=[1]), ("type", "target")),
        (call(labels={"a": 1}), ("type", "labels")),
        (call(talk_time="long"), ("type", "talk_time")),
        (call(talk_time="1e999"), ("type", "talk_time")),
        (call(talk_time="nan"), ("type", "talk_time")),
        (call(date_started={"a": 1}), ("type", "date_started")),
        (call(operator_call_id=[1]), ("type", "operator_call_id")),
        (call(target={"id": 1, "name": 5}), ("type", "name")),
        (call(contact={"id": 1, "brand_new": 5}), ("field", "brand_new")),
        (call(target={"id": 1, "brand_new": 5}), ("field", "brand_new")),
        (call(recording_details=[{"id": "1", "brand_new": 5}]), ("field", "brand_new")),
        (sample("sms-inbound-user", contact={"brand_new": 1}), ("field", "brand_new")),
        (
            sample("agent-status-available", target={"id": 1, "brand_new": 1}),
            ("field", "brand_new"),
        ),
        (sample("changelog-operator-removed", target={"brand_new": 1}), ("field", "brand_new")),
        (sample("sms-inbound-user", brand_new=1), ("field", "brand_new")),
        (sample("agent-status-available", brand_new=1), ("field", "brand_new")),
        (sample("agent-status-available", on_duty_status="napping"), ("duty_status", "napping")),
        (sample("changelog-operator-removed", brand_new=1), ("field", "brand_new")),
        (sample("contact-created", brand_new=1), ("field", "brand_new")),
        (
            {
                "event": "Updated",
                "contact": {**SAMPLES["contact-created"]["contact"], "new_one": 1},
            },
            ("field", "new_one"),
        ),
    ],
)
def test_what_we_have_no_place_or_word_for_is_kept_and_counted(
    payload: dict[str, Any], surprise: tuple[str, str]
) -> None:
    event = event_of(payload)
    assert surprise in event.surprises
    check_event(event, dump(payload))


def test_a_hint_that_disagrees_is_noted_and_the_keys_decide() -> None:
    assert event_of(SAMPLES["sms-inbound-user"], hint="sms").surprises == ()
    event = event_of(SAMPLES["sms-inbound-user"], hint="call")
    assert event.surprises == (("hint", "call"),)
    assert event.subject_kind == "message"


@pytest.mark.parametrize("word", ["occupied-end", "wrapup-end", "napping"])
def test_another_word_of_duty_is_unknown_and_kept(word: str) -> None:
    data = data_of(sample("agent-status-available", on_duty_status=word))
    assert data["duty_status"] == "unknown"
    assert data["provider_duty_status"] == word


@pytest.mark.parametrize(
    ("value", "available"),
    [
        ("available", True),
        ("unavailable", False),
        ("", None),
        (None, None),
        (True, True),
        (False, False),
    ],
)
def test_availability_is_a_word_or_a_bool(value: object, available: object) -> None:
    data = data_of(sample("agent-status-available", availability_status=value))
    assert data["available"] is available


def test_an_unset_contact_is_a_contact_all_the_same() -> None:
    payload = {"event": "Deleted", "contact": {"id": "5", "first_name": "", "emails": None}}
    event = check(dump(payload))
    assert event is not None
    assert event.type == "dialstream.contact.deleted"
    assert event.data["first_name"] is None
    assert event.data["emails"] == []
    assert event.data["phone_numbers"] == []


@pytest.mark.parametrize("listed", [None, [], "", ["+15551230002"], "+15551230002"])
def test_the_primary_number_and_mail_are_among_the_others(listed: object) -> None:
    contact = {
        "id": "5",
        "phones": listed,
        "primary_phone": "(555) 123-0001",
        "emails": listed,
        "primary_email": "customer@example.com",
    }
    data = data_of({"event": "Updated", "contact": contact})
    others = ["+15551230002"] if listed else []
    assert [p["number"] for p in data["phone_numbers"]] == ["+15551230001", *others]
    assert data["phone_numbers"][0]["number_raw"] == "(555) 123-0001"
    assert data["emails"] == ["customer@example.com", *others]


def test_strange_items_of_a_list_are_kept_in_one_spelling() -> None:
    """The order of keys is none of a fact's business."""
    first = data_of(call(labels=[{"a": 1, "b": 2}, "x", 7]))["labels"]
    assert first == data_of(call(labels=[{"b": 2, "a": 1}, "x", 7]))["labels"]
    assert first == ['{"a":1,"b":2}', "x", "7"]


@pytest.mark.parametrize("redacted", [None, {}, "Dialpad", [], {"name": None}])
def test_a_change_by_dialpads_own_staff_is_a_change(redacted: object) -> None:
    payload = sample("changelog-operator-removed", changed_by=redacted, additional_data=None)
    event = check(dump(payload))
    assert event is not None
    assert event.data["changed_by"]["id"] is None
    assert event.data["details"] is None


# --- both answers of a provider: is it theirs, and what does it mean ----------------------------


def delivery_of(body: bytes, received_ms: int = NOW_MS) -> Delivery:
    return Delivery(
        connection="acme", via="webhook", headers=[], body=body, received_ms=received_ms
    )


def signing_with(secret: bytes) -> Connection:
    return Connection.model_validate({"provider": "dialpad", "secrets": [secret.decode()]})


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_verified_is_what_was_signed(name: str) -> None:
    payload = (SAMPLES_FOLDER / f"{name}.json").read_bytes()
    delivery = delivery_of(PROVIDER.sign(payload, signing_with(SECRET)).body)
    verified = SOURCE.verify(delivery)
    assert verified == payload
    assert [event.id for event in SOURCE.normalize(verified, delivery)] == [event_of(payload).id]


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": NOW_MS // 1000 - 18_001}, "expired"),
        ({"nbf": NOW_MS // 1000 + 18_001}, "not_yet_valid"),
        ({"exp": NOW_MS // 1000 - 17_999}, None),
        ({"iat": 1, "exp": None, "iss": "dialpad", "jti": "x", "aud": [], "sub": ""}, None),
    ],
)
def test_claims_are_checked_if_present_and_are_no_surprise(
    claims: dict[str, Any], reason: str | None
) -> None:
    delivery = delivery_of(PROVIDER.sign(dump(call(**claims)), signing_with(SECRET)).body)
    if reason is None:
        (event,) = SOURCE.normalize(SOURCE.verify(delivery), delivery)
        assert event.surprises == ()
    else:
        with pytest.raises(VerificationError) as caught:
            SOURCE.normalize(SOURCE.verify(delivery), delivery)
        assert caught.value.reason == reason


def test_a_stranger_is_refused() -> None:
    signed = PROVIDER.sign(dump(call()), signing_with(b"another secret"))
    for body in (b"", dump(call()), signed.body):
        with pytest.raises(VerificationError):
            SOURCE.verify(delivery_of(body))
