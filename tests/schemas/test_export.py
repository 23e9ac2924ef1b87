"""The published schemas are fresh and complete, and refuse what is spoilt."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from schemas.export import PUBLISHED, documents, export
from schemas.subjects import SUBJECTS
from schemas.topics import TOPICS

DOCUMENTS = dict(documents())
ASYNCAPI = DOCUMENTS["asyncapi.json"]

DAY_S = 86_400

#: name → key, days that records stay (None: compacted), subjects; from the design.
DESIGNED: dict[str, tuple[str, int | None, set[str]]] = {
    "calls": ("connection/call_id", 30, {"call"}),
    "messages": ("connection/message_id", 30, {"message"}),
    "contacts": ("connection/contact_id", None, {"contact"}),
    "agents": ("connection/agent_id", 30, {"agent"}),
    "changes": ("connection", 90, {"change"}),
    "consents": ("connection/number", None, {"consent"}),
    "directory": ("connection/kind/id", None, {"directory"}),
    "notifications": ("connection", 30, {"notification"}),
    "gaps": ("connection", 90, {"gap"}),
    "verdicts": ("connection/call", 90, {"verdict", "completeness"}),
    "ledger": ("connection/conversation", None, {"conversation"}),
    "rejects": ("connection", 30, {"reject"}),
    "checkpoints": ("connection/source", None, set()),
}


# --- freshness ----------------------------------------------------------------------------------


def test_the_committed_documents_are_fresh() -> None:
    """If not: `dialstream schemas export`."""
    committed = {path.name: json.loads(path.read_bytes()) for path in PUBLISHED.iterdir()}
    assert committed == DOCUMENTS


def test_an_export_writes_the_committed_bytes(tmp_path: Path) -> None:
    export(tmp_path)
    for path in PUBLISHED.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_an_export_mends_and_removes_and_says_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    export(folder)
    (folder / "call.1.json").write_text("{}")
    (folder / "former.1.json").write_text("{}")
    (folder / "README.md").write_text("kept")
    written = export(folder)
    assert {path.name for path in written} == DOCUMENTS.keys()
    assert {path.name for path in folder.iterdir()} == {*DOCUMENTS, "README.md"}
    assert json.loads((folder / "call.1.json").read_bytes()) == DOCUMENTS["call.1.json"]


# --- JSON Schema --------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [*SUBJECTS, "event"])
def test_every_subject_has_a_schema_that_its_urn_names(subject: str) -> None:
    document = DOCUMENTS[f"{subject}.1.json"]
    assert document["$id"] == f"urn:dialstream:schema:{subject}:1"
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(document)


def test_there_are_no_other_documents() -> None:
    assert DOCUMENTS.keys() == {f"{name}.1.json" for name in (*SUBJECTS, "event")} | {
        "asyncapi.json"
    }


PARTY: dict[str, Any] = {
    "kind": "user",
    "id": "201",
    "name": "Agent One",
    "email": None,
    "number": "+15551230101",
    "number_raw": "+15551230101",
    "withheld": False,
}
TIME = "2026-09-21T14:13:20.000Z"

#: One good `data` for each of these subjects.
GOOD: dict[str, dict[str, Any]] = {
    "call": {
        "call_id": "1101",
        "conversation_id": "1101",
        "related_call_ids": ["1102"],
        "state": "ended",
        "provider_state": "hangup",
        "direction": "inbound",
        "from_number": "+15551230001",
        "to_number": None,
        "external": PARTY,
        "internal": PARTY,
        "target": PARTY,
        "group": {"kind": "office", "id": "100"},
        "started_at": TIME,
        "ended_at": TIME,
        "talk_duration_s": 1.5,
        "outcome": "answered",
        "recordings": [{"recording_id": "1", "url": "https://dialpad.example/1", "duration_s": 2}],
        "voicemail": None,
        "quality": {"mos": 4.4, "csat": None},
        "labels": ["answered"],
        "raw": {"call_id": 1101},
    },
    "message": {
        "message_id": "7",
        "direction": "outbound",
        "from_number": "+15551230101",
        "to_numbers": ["+15551230001"],
        "text": None,
        "text_available": False,
        "media": [{"url": "https://dialpad.example/1"}],
        "status": "pending",
        "contact": PARTY,
        "target": PARTY,
        "raw": {"id": 7},
    },
    "contact": {
        "contact_id": "5",
        "change": "created",
        "phone_numbers": [{"number": "+15551230001", "number_raw": "(555) 123-0001"}],
        "emails": ["customer@example.com"],
        "raw": None,
    },
    "agent": {
        "agent_id": "201",
        "duty_status": "busy",
        "available": True,
        "call_center_ids": ["301"],
        "raw": [],
    },
    "change": {"action": "x", "target": PARTY, "changed_by": PARTY, "details": {"a": 1}, "raw": 1},
    "reject": {
        "reason": "not_json",
        "detail": "at character 3",
        "via": "webhook",
        "received_at": TIME,
        "headers": {},
        "body_base64": "bm8ganNvbg==",
    },
    "event": {
        "specversion": "1.0",
        "id": "dialpad:acme:call:1:ringing:5",
        "source": "/dialpad/acme",
        "type": "dialstream.call.ringing",
        "subject": "call/1",
        "time": TIME,
        "datacontenttype": "application/json",
        "dataschema": "urn:dialstream:schema:call:1",
        "partitionkey": "acme/1",
        "recordedtime": TIME,
        "via": "webhook",
        "provider": "dialpad",
        "connection": "acme",
        "data": {},
    },
}

MISSING = object()

#: (subject, path, spoilt value); MISSING takes the key away.
SPOILT: list[tuple[str, str, object]] = [
    ("call", "call_id", 1101),
    ("call", "call_id", ""),
    ("call", "call_id", MISSING),
    ("call", "state", "hangup"),
    ("call", "state", None),
    ("call", "direction", "sideways"),
    ("call", "from_number", ["+15551230001"]),
    ("call", "external", None),
    ("call", "external.number", 15551230001),
    ("call", "external.withheld", "no"),
    ("call", "target", MISSING),
    ("call", "group", "Office:100"),
    ("call", "group.id", MISSING),
    ("call", "ended_at", 1790000000000),
    ("call", "talk_duration_s", "1.5"),
    ("call", "outcome", "hung_up"),
    ("call", "related_call_ids", [1102]),
    ("call", "recordings", [{"duration_s": "long"}]),
    ("call", "recordings", {}),
    ("call", "quality.mos", "good"),
    ("call", "labels", "answered"),
    ("call", "raw", MISSING),
    ("message", "message_id", 7),
    ("message", "to_numbers", "+15551230001"),
    ("message", "text_available", None),
    ("message", "media", ["https://dialpad.example/1"]),
    ("message", "status", "success"),
    ("message", "raw", MISSING),
    ("contact", "contact_id", None),
    ("contact", "change", "Created"),
    ("contact", "phone_numbers", ["+15551230001"]),
    ("contact", "emails", [None]),
    ("agent", "agent_id", 201),
    ("agent", "duty_status", "napping"),
    ("agent", "available", "available"),
    ("agent", "call_center_ids", [301]),
    ("change", "target", "Office:1"),
    ("change", "raw", MISSING),
    ("reject", "reason", None),
    ("reject", "received_at", 5),
    ("reject", "body_base64", MISSING),
    ("event", "specversion", "0.3"),
    ("event", "id", ""),
    ("event", "datacontenttype", "text/plain"),
    ("event", "time", 1790000000000),
    ("event", "via", "pigeon"),
    ("event", "partitionkey", MISSING),
    ("event", "data", "x"),
]


def faults(subject: str, data: dict[str, Any]) -> list[str]:
    validator = Draft202012Validator(DOCUMENTS[f"{subject}.1.json"])
    return [error.message for error in validator.iter_errors(data)]


@pytest.mark.parametrize("subject", GOOD)
def test_good_data_fits_its_schema(subject: str) -> None:
    assert faults(subject, GOOD[subject]) == []


@pytest.mark.parametrize("subject", GOOD)
def test_readers_of_this_version_take_fields_of_a_later_one(subject: str) -> None:
    assert faults(subject, {**GOOD[subject], "added_later": 1}) == []


@pytest.mark.parametrize(("subject", "path", "value"), SPOILT)
def test_spoilt_data_does_not_fit(subject: str, path: str, value: object) -> None:
    data = copy.deepcopy(GOOD[subject])
    *outer, key = path.split(".")
    place = data
    for name in outer:
        place = place[name]
    if value is MISSING:
        del place[key]
    else:
        place[key] = value
    assert faults(subject, data) != []


# --- topics and AsyncAPI ------------------------------------------------------------------------


def test_the_topics_are_those_of_the_design() -> None:
    found = {
        topic.name: (
            "/".join(topic.key),
            None if topic.retention_s is None else topic.retention_s // DAY_S,
            set(topic.subjects),
        )
        for topic in TOPICS.values()
    }
    assert found == DESIGNED
    assert {name for name, topic in TOPICS.items() if topic.compacted} == {
        name for name, (_, days, _) in DESIGNED.items() if days is None
    }


def test_every_subject_has_a_topic() -> None:
    assert {subject for topic in TOPICS.values() for subject in topic.subjects} == SUBJECTS.keys()


@pytest.mark.parametrize("name", DESIGNED)
def test_asyncapi_names_every_topic_with_its_key_and_messages(name: str) -> None:
    key, days, subjects = DESIGNED[name]
    channel = ASYNCAPI["channels"][name]
    assert channel["address"] == f"telephony.{name}"
    assert key in channel["description"]
    assert ("compacted" if days is None else f"{days} days") in channel["description"]
    assert channel["messages"].keys() == subjects


def test_asyncapi_is_version_3_and_names_no_other_topic() -> None:
    assert re.fullmatch(r"3\.\d+\.\d+", ASYNCAPI["asyncapi"])
    assert ASYNCAPI["info"].keys() >= {"title", "version"}
    assert ASYNCAPI["channels"].keys() == DESIGNED.keys()
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] == "send"  # we write, others read


def refs(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from refs(inner)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_reference_leads_somewhere(name: str) -> None:
    for ref in refs(DOCUMENTS[name]):
        file, _, pointer = ref.partition("#")
        target: Any = DOCUMENTS[file or name]
        for part in pointer.split("/")[1:]:
            target = target[part.replace("~1", "/").replace("~0", "~")]
        assert isinstance(target, dict)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_message_of_a_subject_is_the_envelope_around_its_data(subject: str) -> None:
    message = ASYNCAPI["components"]["messages"][subject]
    assert message["contentType"] == "application/cloudevents+json; charset=utf-8"
    envelope, inner = message["payload"]["allOf"]
    assert envelope == {"$ref": "event.1.json"}
    assert inner["properties"]["data"] == {"$ref": f"{subject}.1.json"}
    assert inner["properties"]["dataschema"] == {"const": f"urn:dialstream:schema:{subject}:1"}
