"""What DialLink's documentation leaves open: ``[connections.<name>.assume]``.

Read: https://developers.diallink.com (introduction to "Get an API key"). Nothing is published of
call records, recordings and notifications.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ingest.settings import Section

if TYPE_CHECKING:
    from ingest.settings import Connection

_Size = Annotated[int, Field(ge=1, le=1000)]
_Name = Annotated[str, Field(min_length=1, max_length=100)]


class CallFields(Section):
    """Ours → the name that it has in a call record. Others pass through in ``raw``."""

    id: _Name = "id"
    direction: _Name = "direction"
    status: _Name = "status"
    from_number: _Name = "from"
    to_number: _Name = "to"
    started_at: _Name = "startedAt"
    answered_at: _Name = "answeredAt"
    ended_at: _Name = "endedAt"
    #: Seconds.
    duration: _Name = "duration"
    user_id: _Name = "userId"
    contact_id: _Name = "contactId"
    recording_id: _Name = "recordingId"
    updated_at: _Name = "updatedAt"


class RecordingFields(Section):
    """The same of a recording."""

    id: _Name = "id"
    call_id: _Name = "callId"
    url: _Name = "url"
    started_at: _Name = "startedAt"
    #: Seconds.
    duration: _Name = "duration"
    updated_at: _Name = "updatedAt"


class Assumptions(Section):
    """The number of each is that of the README's table."""

    #: A-DL-1
    call_fields: CallFields = CallFields()
    recording_fields: RecordingFields = RecordingFields()
    #: A-DL-2: read what is new by ``updatedAt``; ``started``: by the start, from the newest on.
    #: ``auto``: by the first, and where that is refused by the second.
    order: Literal["auto", "updated", "started"] = "auto"
    #: A-DL-4: items on a page, and where so many are refused.
    page_size: _Size = 100
    page_size_fallback: _Size = Field(
        default_factory=lambda others: min(20, others.get("page_size", 20))
    )
    #: A-DL-5: how long to leave it alone where it does not say so: at first, and at most.
    rest_s: Annotated[float, Field(gt=0)] = 60.0
    rest_most_s: Annotated[float, Field(gt=0)] = Field(
        default_factory=lambda others: max(900.0, others.get("rest_s", 900.0))
    )
    #: A-DL-6: where the text of an error stands, in this order.
    error_fields: tuple[_Name, ...] = ("message", "description", "error", "errors")
    #: A-DL-7: how notifications are signed. ``token``: a static one in `token_header`.
    notifications: Literal["standard_webhooks", "token"] = "standard_webhooks"
    token_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] = "authorization"  # noqa: S105 - a name
    #: How far from our clock a notification's may be, either way.
    tolerance_s: Annotated[float, Field(gt=0)] = 300.0

    @field_validator("page_size_fallback")
    @classmethod
    def _is_smaller(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("page_size", value)
        if value > most:
            raise PydanticCustomError(
                "above", "{value} is above page_size ({most})", {"value": value, "most": most}
            )
        return value

    @field_validator("rest_most_s")
    @classmethod
    def _is_longer(cls, value: float, info: ValidationInfo) -> float:
        first = info.data.get("rest_s", value)
        if value < first:
            raise PydanticCustomError(
                "below", "{value} is below rest_s ({first})", {"value": value, "first": first}
            )
        return value

    @classmethod
    def of(cls, connection: "Connection") -> "Assumptions":
        return cls.model_validate(connection.assume)
