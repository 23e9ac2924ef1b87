"""Events as they stand on the stream, made by hand; and putting them there."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from consumers.subscribe import Event as Told
from ingest.eventlog.journal import open_journal
from ingest.eventlog.log import StoredRecord, records_of
from schemas.base import Model
from schemas.consent import Consent
from schemas.contact import Contact
from schemas.conversation import Conversation
from schemas.event import Event
from schemas.message import Message
from schemas.times import rfc3339

#: 2026-09-21T14:13:20Z
AT_MS = 1_790_000_000_000

CALLER = "+15551230001"

_NOBODY = {"kind": None, "id": None, "name": None, "email": None, "number": None}


def message(text: str | None = "STOP", ident: str = "m1", **more: Any) -> dict[str, Any]:
    return {
        "message_id": ident,
        "direction": "inbound",
        "from_number": CALLER,
        "to_numbers": ["+15551230101"],
        "text": text,
        "text_available": text is not None,
        "contact": _NOBODY,
        "target": _NOBODY,
        **more,
    }


def consent(state: str = "opted_out", number: str = CALLER, **more: Any) -> dict[str, Any]:
    return {"number": number, "state": state, **more}


def conversation(ident: str = "1101", **more: Any) -> dict[str, Any]:
    return {
        "conversation_id": ident,
        "call_ids": [ident],
        "legs": [],
        "direction": "inbound",
        "external": {**_NOBODY, "name": "Example Customer", "number": CALLER},
        "started_at": "2026-09-21T14:13:20.000Z",
        "ended_at": "2026-09-21T14:13:50.000Z",
        "outcome": "missed",
        "complete": True,
        **more,
    }


def contact(*numbers: str, **more: Any) -> dict[str, Any]:
    return {
        "contact_id": "c1",
        "change": "updated",
        "first_name": "New",
        "last_name": "Name",
        "phone_numbers": [{"number": each, "number_raw": each} for each in numbers or (CALLER,)],
        **more,
    }


def event(
    data: dict[str, Any], *, at_ms: int = AT_MS, nth: int = 1, over_ms: int | None = None
) -> Event:
    """As ``data`` looks, of connection acme; ``nth``: another one of the same.

    ``at_ms``: when it was recorded; ``over_ms``: when the call was over, if that was earlier.
    """
    if "message_id" in data:
        subject, what, key = "message", "received", data["message_id"]
    elif "conversation_id" in data:
        subject, what, key = "conversation", "updated", data["conversation_id"]
        data = {**data, "ended_at": rfc3339(at_ms if over_ms is None else over_ms)}
    elif "contact_id" in data:
        subject, what, key = "contact", "updated", data["contact_id"]
    else:
        subject, what, key = "consent", "changed", data["number"]
    return Event(
        type=f"dialstream.{subject}.{what}",
        subject_kind=subject,
        id=f"dialpad:acme:{subject}:{key}:{nth}",
        subject=f"{subject}/{key}",
        key=f"acme/{key}",
        time_ms=at_ms,
        recorded_ms=at_ms,
        via="webhook",
        provider="dialpad",
        connection="acme",
        data=data,
        raw=None if subject == "conversation" else b"{}",
    )


_MODELS: dict[str, type[Model]] = {
    "message": Message,
    "consent": Consent,
    "conversation": Conversation,
    "contact": Contact,
}


def told(made: Event) -> Told[Model]:
    """As a handler gets it."""
    record = records_of(made)[0]
    stored = StoredRecord(record.topic, 0, 1, AT_MS, record.key, record.value, record.headers)
    data = _MODELS[made.subject_kind].model_validate({"raw": {}, **made.data})
    return Told(stored, data)


async def put(path: Path, events: Iterable[Event]) -> None:
    """Append events to the journal below a data directory."""
    async with open_journal(path) as journal:
        for each in events:
            records: Sequence[Any] = records_of(each)

            await journal.publish(records).wait(asyncio.get_running_loop().time() + 60)
