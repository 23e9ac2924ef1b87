"""``gap``: a stretch of time in which a channel was deaf."""

from pydantic import Field

from schemas.base import Model, Time


class Gap(Model):
    channel: str
    from_: Time = Field(alias="from")
    to: Time | None = None
    reason: str
    found: int | None = Field(
        default=None, description="Events read back; null until it is closed."
    )
