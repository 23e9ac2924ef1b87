"""``verdict``: what reconciliation says of one settled call."""

from enum import StrEnum

from pydantic import Field, JsonValue

from schemas.base import Id, Model, Time


class VerdictWord(StrEnum):
    MATCHED = "matched"
    LATE = "late"
    PUSH_MISSING = "push_missing"
    RECORD_MISSING = "record_missing"
    MISMATCH = "mismatch"
    AMBIGUOUS = "ambiguous"


class Difference(Model):
    """A field that the two sides tell differently."""

    field: str
    pushed: JsonValue
    recorded: JsonValue
    tolerance: float | None = None
    taken: JsonValue = Field(default=None, description="What the ledger took.")


class Candidate(Model):
    """A call of the other side that might have been the same one."""

    call_id: Id
    connection: str
    gates: dict[str, bool] = {}
    distances: dict[str, float] = {}


class Verdict(Model):
    verdict: VerdictWord
    n: int = Field(ge=1, description="The highest n of a call and counterpart counts.")
    call_id: Id
    conversation_id: str | None = None
    pushed_call_id: str | None = None
    recorded_call_id: str | None = None
    pushed_connection: str | None = None
    recorded_connection: str | None = None
    started_at: Time | None = None
    reason: str | None = None
    differences: list[Difference] = []
    candidates: list[Candidate] = []
    revises: str | None = Field(default=None, description="Id of the verdict that this one voids.")
