"""``agent``: whether somebody is on duty and can take a call."""

from enum import StrEnum

from schemas.base import Data, Id


class DutyStatus(StrEnum):
    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"
    OCCUPIED = "occupied"
    WRAPUP = "wrapup"
    BUSY = "busy"
    #: The provider used a word that we have no translation for; see ``provider_duty_status``.
    UNKNOWN = "unknown"


class Agent(Data):
    agent_id: Id
    name: str | None = None
    email: str | None = None
    duty_status: DutyStatus | None = None
    provider_duty_status: str | None = None
    duty_reason: str | None = None
    available: bool | None = None
    call_center_ids: list[str] = []
