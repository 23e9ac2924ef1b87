"""``call``: one party's part of a call (a leg), pushed by a provider or read from its records."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.base import CONTENT, Data, Id, Model, Party, Seconds, Time

#: ``provider_state`` of the marked events of ``dialstream prove``: nobody was on the phone.
PROVE_STATE = "dialstream_prove"


class CallState(StrEnum):
    """What has just happened to the leg; also the last word of the event's type."""

    CALLING = "calling"
    PREANSWER = "preanswer"
    RINGING = "ringing"
    QUEUED = "queued"
    CONNECTED = "connected"
    HELD = "held"
    PARKED = "parked"
    MERGED = "merged"
    MISSED = "missed"
    BLOCKED = "blocked"
    ENDED = "ended"
    VOICEMAIL = "voicemail"
    VOICEMAIL_UPLOADED = "voicemail_uploaded"
    VOICEMAIL_TRANSCRIBED = "voicemail_transcribed"
    RECORDING_READY = "recording_ready"
    TRANSCRIPT_READY = "transcript_ready"
    RECAP_READY = "recap_ready"
    DISPOSITIONED = "dispositioned"
    WRAPPED_UP = "wrapped_up"
    SURVEYED = "surveyed"
    SUPERVISED = "supervised"
    #: Read from the provider's own call records.
    RECORDED = "recorded"
    #: The provider used a word that we have no translation for; see ``provider_state``.
    UNKNOWN = "unknown"


class Direction(StrEnum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"
    INTERNAL = "internal"
    UNKNOWN = "unknown"


class Outcome(StrEnum):
    """How the leg came out. Never answered is ``missed`` inbound, ``unanswered`` outbound."""

    ANSWERED = "answered"
    MISSED = "missed"
    UNANSWERED = "unanswered"
    VOICEMAIL = "voicemail"
    ABANDONED = "abandoned"
    BLOCKED = "blocked"
    BUSY = "busy"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Group(Model):
    """The department, main line or queue that a call belongs to."""

    kind: str | None = Field(default=None, description="The provider's word in snake case.")
    id: str


class Recording(Model):
    recording_id: str | None = None
    url: str | None = None
    kind: str | None = Field(default=None, description="The provider's word.")
    started_at: Time | None = None
    duration_s: Seconds | None = None


class Voicemail(Model):
    """A message that a caller really left."""

    recording_id: str | None = None
    url: str | None = None
    text: Annotated[str | None, CONTENT] = None
    duration_s: Seconds | None = None


class Transcript(Model):
    url: str | None = None
    lines: Annotated[list[str], CONTENT] = []


class Recap(Model):
    """What the provider's own AI wrote about the call."""

    summary: Annotated[str | None, CONTENT] = None
    outcome: Annotated[str | None, CONTENT] = None
    purposes: Annotated[list[str], CONTENT] = []
    action_items: Annotated[list[str], CONTENT] = []


class Quality(Model):
    mos: float | None = Field(default=None, description="Mean opinion score, 1 to 5.")
    csat: str | None = Field(
        default=None, description="The customer's rating as the provider has it."
    )


class Call(Data):
    """One leg as it stands after this event."""

    call_id: Id
    conversation_id: Id = Field(
        description="A hint: the smallest of the leg's ids. related_call_ids unite legs."
    )
    related_call_ids: list[str] = []
    state: CallState
    provider_state: str | None = None
    direction: Direction
    from_number: str | None = None
    to_number: str | None = None
    external: Party
    internal: Party
    target: Party
    group: Group | None = None
    started_at: Time | None = None
    rang_at: Time | None = None
    connected_at: Time | None = None
    ended_at: Time | None = None
    ring_duration_s: Seconds | None = None
    talk_duration_s: Seconds | None = None
    hold_duration_s: Seconds | None = None
    total_duration_s: Seconds | None = None
    outcome: Outcome | None = Field(default=None, description="Set once it is known.")
    provider_outcome: str | None = None
    transferred: bool | None = None
    recordings: list[Recording] = []
    voicemail: Voicemail | None = None
    transcript: Transcript | None = None
    recap: Recap | None = None
    labels: list[str] = []
    dispositions: list[str] = []
    quality: Quality | None = None
    campaign_id: str | None = None
    custom_data: Annotated[str | None, CONTENT] = None
