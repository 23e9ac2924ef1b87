"""What the models of all subjects share."""

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

Id = Annotated[str, Field(min_length=1, description="Opaque; compare, never compute.")]
Time = Annotated[AwareDatetime, Field(description="RFC 3339, UTC, milliseconds.")]
Seconds = Annotated[float, Field(description="Seconds.")]


CONTENT = Field(json_schema_extra={"x-privacy": "content"})
"""Marks what was said or written; see the setting ``privacy.drop``.

What has no mark is a fact about it, and always kept.
"""

RAW = Field(json_schema_extra={"x-privacy": "raw"})
"""Marks JSON of the provider's that nobody has read: anything may be in it."""


class Model(BaseModel):
    """A value of the stream. Readers ignore what they do not know, so that fields can be added."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class Data(Model):
    """``data`` of an event that a provider caused."""

    raw: JsonValue = Field(
        description="The provider's JSON value as it was verified, never re-serialised.",
        json_schema_extra={"x-privacy": "raw"},
    )


class Party(Model):
    """Somebody or something that takes part: a person, a queue, a line."""

    kind: str | None = Field(
        default=None,
        description="The provider's word in snake case, e.g. user, office, call_center, shared.",
    )
    id: str | None = None
    name: str | None = None
    email: str | None = None
    number: str | None = Field(
        default=None, description="E.164 where it can be, else as given; null if withheld."
    )
    number_raw: str | None = Field(default=None, description="The number as the provider has it.")
    withheld: bool = Field(default=False, description="There is a number, and it is kept from us.")


class PhoneNumber(Model):
    """A phone number, with the provider's spelling kept."""

    number: str = Field(description="E.164 where it can be, else as given.")
    number_raw: str


class Link(Model):
    """Something that can be fetched with the provider's permission."""

    url: str
