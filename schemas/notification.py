"""``notification``: what a provider notified of and no other subject holds."""

from pydantic import JsonValue

from schemas.base import Data


class Notification(Data):
    notification_type: str | None = None
    details: JsonValue = None
