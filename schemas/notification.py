"""``notification``: what a provider notified of and no other subject holds."""

from typing import Annotated

from pydantic import JsonValue

from schemas.base import RAW, Data


class Notification(Data):
    notification_type: str | None = None
    details: Annotated[JsonValue, RAW] = None
