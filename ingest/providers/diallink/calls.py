"""What a call record of DialLink's means (A-DL-1), as it is listed and as notifications carry it.

https://developers.diallink.com names the list of calls and shows none of its fields: their names
are settings. Seen of times are milliseconds since 1970; ISO 8601 is read, too.
"""

from functools import lru_cache
from typing import Any, NamedTuple

from ingest.fields import Fields, time_text
from ingest.providers.diallink.assumptions import CallFields, RecordingFields
from ingest.providers.diallink.tables import (
    DIRECTIONS,
    ENDING_STATES,
    ENDING_STATUSES,
    NEVER_ANSWERED,
    OUTCOMES,
    RUNNING,
)
from ingest.reading import nobody, party_by_number, unknown_call
from schemas.call import CallState, Direction, Outcome

#: Of every enum; also of a status that we have never heard of.
UNKNOWN = "unknown"


class Clocks(NamedTuple):
    """Of one call, milliseconds since 1970, each as far as the record tells it."""

    started_ms: int | None
    answered_ms: int | None
    ended_ms: int | None
    updated_ms: int | None


def call_data(fields: Fields, assumed: CallFields, state: str) -> tuple[dict[str, Any], Clocks]:
    """`schemas.call.Call` without ``raw``, and the record's clocks.

    ``state``: what has just happened to the call, ours. Raises UnreadableError without a call id.
    Words that we have none for join the surprises of ``fields``; so do fields that nobody names.
    """
    fields.note_unknown(known_fields(assumed))
    clocks = Clocks(
        fields.instant_ms(assumed.started_at),
        fields.instant_ms(assumed.answered_at),
        fields.instant_ms(assumed.ended_at),
        fields.instant_ms(assumed.updated_at),
    )
    direction = direction_of(fields, assumed.direction)
    caller = party_by_number(fields, assumed.from_number)
    called = party_by_number(fields, assumed.to_number)
    # Of an internal call the other side is whoever calls.
    if direction == UNKNOWN:
        external, internal = nobody(), nobody()
    elif direction == Direction.OUTBOUND.value:
        external, internal = called, dict(caller)
    else:
        external, internal = caller, dict(called)
    external["id"] = fields.id(assumed.contact_id)
    internal["id"] = user_id = fields.id(assumed.user_id)
    if user_id is not None:
        internal["kind"] = "user"

    status = fields.word(assumed.status)
    talked_s = fields.seconds(assumed.duration)
    tells_answer = talked_s is not None or assumed.answered_at in fields.value
    word = _status(fields, status)
    outcome = None
    if clocks.ended_ms is not None or state in ENDING_STATES or word in ENDING_STATUSES:
        answered = bool(clocks.answered_ms or talked_s) or word == "answered"
        was_answered = answered if answered or tells_answer else None
        outcome = _outcome(state, word, direction, was_answered=was_answered)
    recording_id = fields.id(assumed.recording_id)
    voicemail, recordings = None, []
    if state == CallState.VOICEMAIL_UPLOADED.value or (
        outcome == Outcome.VOICEMAIL.value and recording_id is not None
    ):
        voicemail = {"recording_id": recording_id, "url": None, "text": None, "duration_s": None}
    elif recording_id is not None:
        recordings.append(recording(recording_id))
    data = unknown_call(fields.key_id(assumed.id), state)
    data |= {
        "provider_state": status,
        "direction": direction,
        "from_number": caller["number"],
        "to_number": called["number"],
        "external": external,
        "internal": internal,
        "target": dict(internal),
        "started_at": time_text(clocks.started_ms),
        "connected_at": time_text(clocks.answered_ms),
        "ended_at": time_text(clocks.ended_ms),
        # Assumed: it counts from the answer, and is 0 without one.
        "talk_duration_s": talked_s,
        "total_duration_s": _between(clocks.started_ms, clocks.ended_ms),
        "outcome": outcome,
        "provider_outcome": status,
        "recordings": recordings,
        "voicemail": voicemail,
    }
    return data, clocks


def recording(
    recording_id: str | None,
    url: str | None = None,
    started_ms: int | None = None,
    duration_s: float | None = None,
) -> dict[str, Any]:
    """`schemas.call.Recording`."""
    return {
        "recording_id": recording_id,
        "url": url,
        "kind": None,
        "started_at": time_text(started_ms),
        "duration_s": duration_s,
    }


def direction_of(fields: Fields, key: str) -> str:
    """`schemas.call.Direction`; a word that is none joins the surprises."""
    word = fields.word(key)
    direction = DIRECTIONS.get(_plain(word or ""), UNKNOWN)
    if word is not None and direction == UNKNOWN:
        fields.surprises.append(("direction", word))
    return direction


@lru_cache(maxsize=64)  # by the model's values: as many as there are connections
def known_fields(assumed: CallFields | RecordingFields) -> frozenset[str]:
    """The names of all fields that such an object is assumed to have."""
    return frozenset(getattr(assumed, name) for name in type(assumed).model_fields)


def _plain(word: str) -> str:
    """``NO-ANSWER``, ``No answer`` and ``no_answer`` are one word."""
    return word.strip().lower().replace("-", "_").replace(" ", "_")


def _status(fields: Fields, status: str | None) -> str | None:
    """The status in our spelling; ``unknown``, and a surprise, if we have never heard of it."""
    if status is None:
        return None
    word = _plain(status)
    if word in ENDING_STATUSES or word in RUNNING:
        return word
    fields.surprises.append(("status", status))
    return UNKNOWN


def _outcome(
    state: str, word: str | None, direction: str, *, was_answered: bool | None
) -> str | None:
    """How a call that is over came out; None if nothing is said of that.

    ``was_answered``: by its clocks; None if they do not say.
    """
    if state == CallState.VOICEMAIL_UPLOADED.value:
        return Outcome.VOICEMAIL.value
    if word in OUTCOMES:
        return OUTCOMES[word]
    if word in NEVER_ANSWERED:
        return _never_answered(direction, word)
    if state == CallState.MISSED.value and not was_answered:
        return _never_answered(direction, "missed")
    if word == UNKNOWN or was_answered is None:
        return None if word is None else UNKNOWN
    return Outcome.ANSWERED.value if was_answered else _never_answered(direction, None)


def _never_answered(direction: str, word: str | None) -> str:
    if direction == Direction.INBOUND.value:
        return Outcome.MISSED.value
    if direction == Direction.OUTBOUND.value:
        return Outcome.UNANSWERED.value
    if word is None:
        return UNKNOWN
    return Outcome.MISSED.value if word == "missed" else Outcome.UNANSWERED.value


def _between(begin_ms: int | None, end_ms: int | None) -> float | None:
    if begin_ms is None or end_ms is None or end_ms < begin_ms:
        return None
    return (end_ms - begin_ms) / 1000
