"""Publishes the schemas: JSON Schema per subject, and an AsyncAPI 3 document of all topics.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.base import Model
from schemas.event import CONTENT_TYPE, SCHEMA_VERSION, Envelope
from schemas.subjects import SUBJECTS
from schemas.topics import TOPICS, Topic

PUBLISHED = Path(__file__).parent / "published"

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def export(folder: Path = PUBLISHED) -> list[Path]:
    """Write every document into ``folder``, remove what is no longer ours; return what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, document in documents():
        path = folder / name
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
        written.append(path)
    for path in set(folder.glob("*.json")) - set(written):
        path.unlink()
    return written


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """File names and contents, in a fixed order."""
    yield f"event.{SCHEMA_VERSION}.json", _json_schema("event", Envelope)
    for subject, model in SUBJECTS.items():
        yield f"{subject}.{SCHEMA_VERSION}.json", _json_schema(subject, model)
    yield "asyncapi.json", _asyncapi()


def urn(subject: str) -> str:
    return f"urn:dialstream:schema:{subject}:{SCHEMA_VERSION}"


def _json_schema(subject: str, model: type[Model]) -> dict[str, Any]:
    return {"$schema": DIALECT, "$id": urn(subject), **model.model_json_schema()}


def _asyncapi() -> dict[str, Any]:
    # Documents stand beside each other, so that `$ref` by file name works for every tool.
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "dialstream",
            "version": str(SCHEMA_VERSION),
            "description": "Everything that happens on a company's phones, as CloudEvents 1.0. "
            "The prefix `telephony.` is a setting.",
        },
        "defaultContentType": CONTENT_TYPE.decode(),
        "channels": {topic.name: _channel(topic) for topic in TOPICS.values()},
        "operations": {
            f"read_{topic.name}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{topic.name}"},
                "summary": f"dialstream writes {topic.holds}.",
            }
            for topic in TOPICS.values()
        },
        "components": {
            "messages": {subject: _message(subject) for subject in SUBJECTS},
        },
    }


def _channel(topic: Topic) -> dict[str, Any]:
    days = None if topic.retention_s is None else topic.retention_s // 86_400
    keeps = "compacted" if days is None else f"kept for {days} days"
    return {
        "address": f"telephony.{topic.name}",
        "title": topic.holds,
        "description": f"Key: {'/'.join(topic.key)}. Records are {keeps}.",
        "messages": {
            subject: {"$ref": f"#/components/messages/{subject}"} for subject in topic.subjects
        },
    }


def _message(subject: str) -> dict[str, Any]:
    data = {"$ref": f"{subject}.{SCHEMA_VERSION}.json"}
    return {
        "name": f"dialstream.{subject}",
        "contentType": CONTENT_TYPE.decode(),
        "headers": {
            "type": "object",
            "properties": {"ce_type": {"type": "string"}, "ce_id": {"type": "string"}},
        },
        "payload": {
            "allOf": [
                {"$ref": f"event.{SCHEMA_VERSION}.json"},
                {
                    "type": "object",
                    "properties": {"dataschema": {"const": urn(subject)}, "data": data},
                },
            ]
        },
    }
