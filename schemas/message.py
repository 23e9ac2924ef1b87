"""``message``: one SMS or MMS, or news of its delivery."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.base import CONTENT, Data, Id, Link, Party
from schemas.call import Direction


class MessageStatus(StrEnum):
    PENDING = "pending"
    SENT = "sent"
    DELIVERED = "delivered"
    FAILED = "failed"
    UNDELIVERED = "undelivered"
    #: The provider used a word that we have no translation for; see ``provider_status``.
    UNKNOWN = "unknown"


class Message(Data):
    message_id: Id
    direction: Direction
    from_number: str | None = None
    to_numbers: list[str] = []
    text: Annotated[str | None, CONTENT] = None
    text_available: bool = Field(
        description="False where there is no text or our key may not read it."
    )
    media: list[Link] = []
    status: MessageStatus | None = None
    provider_status: str | None = None
    delivery_result: str | None = Field(default=None, description="The provider's word.")
    internal: bool = Field(default=False, description="Both ends are in the company.")
    contact: Party
    target: Party
    sender_id: str | None = Field(
        default=None, description="Who really sent it, where the target is a group."
    )
