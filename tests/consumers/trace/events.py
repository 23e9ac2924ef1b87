"""Events by hand, as they stand on the log."""

import json
from typing import Any

from ingest.eventlog.log import StoredRecord

NUMBER = "+12065550123"

#: 2026-09-21T14:13:20Z, in milliseconds since 1970.
T0 = 1_790_000_000_000


def instant(ms: int) -> str:
    """``ms`` behind T0."""
    minutes, rest = divmod(13 * 60_000 + 20_000 + ms, 60_000)
    hours, minutes = divmod(14 * 60 + minutes, 60)
    days, hours = divmod(hours, 24)
    return f"2026-09-{21 + days:02d}T{hours:02d}:{minutes:02d}:{rest / 1000:06.3f}Z"


def party(number: str | None = None) -> dict[str, Any]:
    names = ("kind", "id", "name", "email", "number", "number_raw")
    return {**dict.fromkeys(names), "number": number, "withheld": False}


def call(leg: str, state: str, at: int, recorded: int | None = None, **more: Any) -> dict[str, Any]:
    """A call event; times in milliseconds behind T0."""
    data: dict[str, Any] = {
        "call_id": leg,
        "conversation_id": leg,
        "related_call_ids": [],
        "state": state,
        "provider_state": state,
        "direction": "inbound",
        "from_number": NUMBER,
        "to_number": "+15551230101",
        "external": {**party(NUMBER), "name": "Secret Customer"},
        "internal": party("+15551230101"),
        "target": party("+15551230101"),
        "started_at": instant(0),
        "ended_at": instant(at) if state in ("ended", "recorded") else None,
        "talk_duration_s": 42.5 if state in ("ended", "recorded") else None,
        "outcome": "answered" if state in ("ended", "recorded") else None,
    }
    event = _event(
        f"dialpad:acme:call:{leg}:{state}:{T0 + at}",
        f"call.{state}",
        f"call/{leg}",
        at,
        recorded if recorded is not None else at + 200,
        {**data, **{name: more.pop(name) for name in list(more) if name in data}},
    )
    return event | more


def verdict(leg: str, word: str, n: int, at: int, **more: Any) -> dict[str, Any]:
    data = {
        "verdict": word,
        "n": n,
        "call_id": leg,
        "pushed_call_id": leg,
        "recorded_call_id": leg,
        "pushed_connection": "acme",
        "recorded_connection": "acme",
        "reason": None,
        "differences": [],
        "revises": None,
    }
    ident = f"verdict:acme:{leg}:acme:{n}:0123456789abcdef"
    return _event(ident, f"verdict.{word}", f"call/{leg}", at, at, {**data, **more}, via="derived")


def row(name: str, legs: list[str], at: int, **more: Any) -> dict[str, Any]:
    """A row of the ledger."""
    data = {
        "conversation_id": name,
        "call_ids": legs,
        "legs": [{"call_id": leg} for leg in legs],
        "direction": "inbound",
        "external": party(NUMBER),
        "started_at": instant(0),
        "outcome": "answered",
        "flags": [],
        "counterparts": [],
        "merged_from": [],
        "complete": False,
        **more,
    }
    ident = f"conversation:acme:{name}:{at:016x}"
    subject = f"conversation/{name}"
    return _event(ident, "conversation.updated", subject, at, at, data, via="derived")


def _event(
    ident: str,
    kind: str,
    subject: str,
    at: int,
    recorded: int,
    data: dict[str, Any],
    via: str = "webhook",
) -> dict[str, Any]:
    return {
        "id": ident,
        "type": f"dialstream.{kind}",
        "subject": subject,
        "time": instant(at),
        "recordedtime": instant(recorded),
        "via": via,
        "connection": "acme",
        "data": data,
    }


def stored(
    event: dict[str, Any] | None,
    position: int,
    written: int,
    topic: str = "calls",
    key: str | None = None,
    partition: int = 3,
) -> StoredRecord:
    """The event's record; ``written``: behind T0."""
    if key is None:
        assert event is not None
        key = f"acme/{event['subject'].partition('/')[2]}"
    value = None if event is None else json.dumps(event).encode()
    return StoredRecord(topic, partition, position, T0 + written, key.encode(), value, ())
