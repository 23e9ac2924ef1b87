"""``consent``: whether a number may be contacted."""

from enum import StrEnum

from schemas.base import Data


class ConsentState(StrEnum):
    OPTED_OUT = "opted_out"
    OPTED_IN = "opted_in"
    UNKNOWN = "unknown"


class Consent(Data):
    number: str
    state: ConsentState
    channel: str | None = None
    scope: str | None = None
