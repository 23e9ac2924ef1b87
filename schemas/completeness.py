"""``completeness``: how much of one hour of one connection both sides saw."""

from pydantic import Field

from schemas.base import Model, Seconds, Time


class Completeness(Model):
    hour: Time = Field(description="The UTC hour in which the calls began.")
    n: int = Field(ge=1)
    pushed: int
    recorded: int
    both: int
    push: float | None = Field(default=None, description="both / recorded")
    record: float | None = Field(default=None, description="both / pushed")
    figure: float | None = Field(default=None, description="The smaller of the two.")
    pushed_talk_s: Seconds | None = None
    recorded_talk_s: Seconds | None = None
