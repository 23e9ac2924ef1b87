"""``change``: somebody changed the settings of the phone system."""

from pydantic import JsonValue

from schemas.base import Data, Party


class Change(Data):
    action: str | None = None
    note: str | None = None
    target: Party
    changed_by: Party
    details: JsonValue = None
