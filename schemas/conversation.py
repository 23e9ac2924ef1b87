"""``conversation``: all legs that belong together, merged; the ledger's record."""

from pydantic import Field

from schemas.base import Id, Model, Party, Seconds, Time
from schemas.call import CallState, Direction, Outcome, Recap, Recording, Transcript, Voicemail


class LegState(Model):
    state: CallState
    at: Time


class Leg(Model):
    call_id: Id
    connection: str
    target: Party
    states: list[LegState] = []
    outcome: Outcome | None = None
    ring_duration_s: Seconds | None = None
    talk_duration_s: Seconds | None = None
    hold_duration_s: Seconds | None = None
    total_duration_s: Seconds | None = None


class SeenBy(Model):
    connection: str
    via: str


class Counterpart(Model):
    """The same call at another connection."""

    connection: str
    call_id: Id


class Conversation(Model):
    conversation_id: Id
    call_ids: list[str]
    legs: list[Leg]
    direction: Direction
    external: Party
    started_at: Time | None = None
    connected_at: Time | None = None
    ended_at: Time | None = None
    outcome: Outcome | None = None
    talk_duration_s: Seconds | None = None
    total_duration_s: Seconds | None = None
    recordings: list[Recording] = []
    voicemail: Voicemail | None = None
    transcript: Transcript | None = None
    recap: Recap | None = None
    flags: list[str] = Field(default=[], description="Such as late_event, impossible_order.")
    verdicts: list[str] = []
    counterparts: list[Counterpart] = []
    seen_by: list[SeenBy] = []
    merged_from: list[str] = []
    complete: bool = Field(
        description="Every leg has ended and has settled since; only artefacts may follow."
    )
