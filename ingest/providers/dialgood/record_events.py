"""From an item of Dialgood's lists to our event, or to a reject. No I/O.

https://apidocs.dialgood.com/partner-api-2171894m0
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ingest.errors import UnreadableError
from ingest.fields import Fields, time_text
from ingest.numbers import is_withheld, normalize_number
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.providers.dialgood.tables import (
    AGENT_FIELDS,
    CALL_FIELDS,
    DIRECTIONS,
    FAILED,
    METADATA_FIELDS,
    NEVER_ANSWERED,
    NORMALIZED,
    OUTCOMES,
    RECORD_FIELDS,
    VERSION_FIELDS,
)
from ingest.reading import Reading, nobody, party_by_number, unknown_call
from schemas.call import CallState, Direction, Outcome
from schemas.event import Event, digest
from schemas.times import LAST_MS

UNKNOWN = "unknown"

#: Of an agent: every write of anything moves these.
_CLOCKS_OF_AGENTS = frozenset({"updated_at", "__v"})


@dataclass(frozen=True, slots=True)
class CallWords:
    """What the settings say of a call's status (A-DG-6), and of its clock (A-DG-5)."""

    outcomes: Mapping[str, str]
    running: frozenset[str]
    #: Whether ``created_at`` is the start of the call, and not the making of its row.
    from_start: bool

    @classmethod
    def of(cls, assume: Assumptions) -> "CallWords":
        return cls(
            {_plain(word): outcome.value for word, outcome in assume.outcomes.items()},
            frozenset(map(_plain, assume.running)),
            assume.created_at == "start",
        )


def call_recorded(reading: Reading, fields: Fields, agent_id: str, words: CallWords) -> Event:
    """A record among the call logs of ``agent_id``."""
    fields.note_unknown(RECORD_FIELDS)
    bot_id = fields.key_id("botId")
    if bot_id != agent_id:
        fields.surprises.append(("agent", "botId"))
    call = fields.object("data")
    call.note_unknown(CALL_FIELDS)
    started_ms = fields.instant_ms("created_at")
    call_id = _call_id(fields, call, started_ms)

    direction = _direction(call)
    status = call.text("callStatus")
    outcome = _outcome(status, direction, words, call)
    # A call that still runs has no length yet.
    duration_s = call.seconds("callDuration")
    if outcome is None:
        duration_s = None
    ended_ms = None
    if words.from_start:
        ended_ms = _after(started_ms, duration_s)

    caller, called = party_by_number(call, "from"), party_by_number(call, "to")
    internal, external = nobody(), nobody()
    if direction == Direction.INBOUND.value:
        internal, external = called, caller
    elif direction == Direction.OUTBOUND.value:
        internal, external = caller, called
    internal = {**internal, "kind": "agent", "id": bot_id}
    contact_id = fields.id("contactId")
    if contact_id is not None:
        external = {**external, "kind": "contact", "id": contact_id}

    data = unknown_call(call_id, CallState.RECORDED.value)
    data |= {
        "provider_state": status,
        "direction": direction,
        "from_number": caller["number"],
        "to_number": called["number"],
        "external": external,
        "internal": internal,
        "target": dict(internal),
        "started_at": time_text(started_ms),
        # When it was answered is not told.
        "ended_at": time_text(ended_ms),
        # From the record's start to its end is all that the one duration is known to be. Whether
        # it counts ringing is not: nothing says that so long was talked.
        "total_duration_s": duration_s,
        "outcome": outcome,
        # Of a call that still runs, too: it is what Dialgood says.
        "provider_outcome": None if status is None else NORMALIZED.get(_plain(status), FAILED),
        "campaign_id": fields.id("campaignId"),
    }
    ident = ("record", call_id, digest(fields.value))
    return reading.event("call.recorded", ident, call_id, data, ended_ms or started_ms, fields)


def agent_listed(reading: Reading, fields: Fields) -> Event:
    """An agent, own or shared: the directory has both alike.

    Older servers do not say whether it is an own one: then it is. So that this is said one day is
    no change.
    """
    fields.note_unknown(AGENT_FIELDS)
    agent_id = fields.key_id("agentId")
    lasting = {key: value for key, value in fields.value.items() if key not in _CLOCKS_OF_AGENTS}
    data = {
        "kind": "agent",
        "id": agent_id,
        "name": fields.text("agentName"),
        "email": None,
        "numbers": _numbers(fields, "phoneNumbers"),
        "owner_id": fields.id("userId"),
    }
    digested = digest({"owner": True, **lasting})
    parts = ("directory", "agent", agent_id, digested, reading.minute)
    return reading.event("directory.listed", parts, f"agent/{agent_id}", data, None, fields)


def agent_versioned(reading: Reading, fields: Fields, agent_id: str) -> Event:
    """A version among those of ``agent_id``.

    What has changed in it (``updates``) lists leave out. A single version has it, and is not read
    for it: there may be secrets in an agent's settings.
    """
    fields.note_unknown(VERSION_FIELDS)
    version_id = fields.key_id("version_id")
    if fields.id("agent_id") not in (None, agent_id):
        fields.surprises.append(("agent", "agent_id"))
    metadata = fields.object("metadata")
    metadata.note_unknown(METADATA_FIELDS)
    changed_by = nobody()
    user, user_id = metadata.text("user"), metadata.id("userId")
    if user is not None or user_id is not None:
        changed_by |= {"kind": "user", "id": user_id, "name": user}
    details = {"version_number": fields.value.get("version_number")}
    if "updates" in fields.value:
        details["updates"] = fields.value["updates"]
    data = {
        "action": "versioned",
        "note": fields.text("commit_message"),
        "target": {**nobody(), "kind": "agent", "id": agent_id},
        "changed_by": changed_by,
        "details": details,
    }
    ident = ("change", agent_id, version_id)
    time_ms = metadata.ms("timestamp")
    event = reading.event("change.versioned", ident, agent_id, data, time_ms, fields)
    event.key = reading.connection  # changes of an account stay in their order
    return event


def _call_id(fields: Fields, call: Fields, started_ms: int | None) -> str:
    """A-DG-4. A record without an id has that of what never changes in it."""
    conversation_id = fields.id("conversationId")
    if conversation_id is not None:
        return conversation_id
    if ("type", "conversationId") in fields.surprises:
        raise UnreadableError("unexpected_shape", "conversationId is no id")
    if started_ms is None:
        raise UnreadableError("unexpected_shape", "neither conversationId nor created_at")
    value, ends = fields.value, call.value
    return digest([value["botId"], value["created_at"], ends.get("from"), ends.get("to")])


def _direction(call: Fields) -> str:
    word = call.text("direction")
    if word is None:
        return UNKNOWN
    direction = DIRECTIONS.get(_plain(word))
    if direction is None:
        call.surprises.append(("direction", word))
        return UNKNOWN
    return direction


def _outcome(status: str | None, direction: str, words: CallWords, call: Fields) -> str | None:
    """None while the call runs, and if nothing is said of it."""
    if status is None:
        return None
    word = _plain(status)
    found = words.outcomes.get(word)
    if found is not None:
        return found
    if word in words.running:
        return None
    if word in NEVER_ANSWERED:
        return _NEVER_ANSWERED_BY.get(direction, UNKNOWN)
    found = OUTCOMES.get(word)
    if found is None:
        call.surprises.append(("status", status))
        return UNKNOWN
    return found


_NEVER_ANSWERED_BY: Mapping[str, str] = {
    Direction.INBOUND.value: Outcome.MISSED.value,
    Direction.OUTBOUND.value: Outcome.UNANSWERED.value,
}


def _after(started_ms: int | None, duration_s: float | None) -> int | None:
    if started_ms is None or duration_s is None:
        return None
    ended_ms = started_ms + round(duration_s * 1000)
    return ended_ms if ended_ms <= LAST_MS else None


def _numbers(fields: Fields, key: str) -> list[str]:
    """Each once. What is no text is no number."""
    items = fields.items(key)
    texts = [item for item in items if type(item) is str and item]
    if len(texts) < len(items):
        fields.surprises.append(("type", key))
    numbers = (normalize_number(text, fields.region) for text in texts if not is_withheld(text))
    return list(dict.fromkeys(numbers))


def _plain(word: str) -> str:
    return word.strip().lower()
