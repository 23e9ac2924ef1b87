"""``reject``: an authentic delivery that we cannot read, kept whole."""

from pydantic import Field

from schemas.base import Model, Time


class Reject(Model):
    reason: str = Field(description="A short word; also the last word of the event's type.")
    detail: str = Field(description="What exactly, without content.")
    via: str
    received_at: Time
    headers: dict[str, str] = Field(default={}, description="Those that sign the body.")
    body_base64: str = Field(
        description="The body as it was delivered. Empty if `redriven`: the reject has it."
    )
    events: list[str] = Field(default=[], description="If `redriven`: ids of what it became.")
