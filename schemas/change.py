"""``change``: somebody changed the settings of the phone system."""

from typing import Annotated

from pydantic import JsonValue

from schemas.base import CONTENT, RAW, Data, Party


class Change(Data):
    action: str | None = None
    note: Annotated[str | None, CONTENT] = None
    target: Party
    changed_by: Party
    details: Annotated[JsonValue, RAW] = None
