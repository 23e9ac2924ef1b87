"""What Dialgood's documentation leaves open: ``[connections.<name>.assume]``.

https://apidocs.dialgood.com/partner-api-2171894m0
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ingest.settings import Section
from schemas.call import Outcome

if TYPE_CHECKING:
    from ingest.settings import Connection

_Size = Annotated[int, Field(ge=1, le=1000)]


class Assumptions(Section):
    """The number of each is that of the README's table."""

    #: A-DG-1: the unit of ``from`` and ``to``. ``auto``: milliseconds, after a look.
    time_unit: Literal["auto", "ms", "s"] = "auto"
    #: A-DG-3: records on a page, and where so many are refused.
    page_limit: _Size = 100
    page_limit_fallback: _Size = Field(
        default_factory=lambda others: min(10, others.get("page_limit", 10))
    )
    #: A-DG-5: what ``created_at`` is: the start of the call, or the making of its row.
    created_at: Literal["start", "row"] = "start"
    #: A-DG-6: outcomes of further words in ``callStatus``, compared without case.
    outcomes: Mapping[str, Outcome] = {}
    #: Words of a call that still runs.
    running: tuple[str, ...] = ("in-progress", "in progress", "ringing", "queued", "initiated")
    #: Whether web calls are left out.
    hide_web_calls: bool = False
    #: A-DG-8: whether it pushes. ``token``: with ``Authorization: Bearer <secret>``.
    push: Literal["off", "token"] = "off"

    @field_validator("page_limit_fallback")
    @classmethod
    def _is_smaller(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("page_limit", value)
        if value > most:
            raise PydanticCustomError(
                "above", "{value} is above page_limit ({most})", {"value": value, "most": most}
            )
        return value

    @classmethod
    def of(cls, connection: "Connection") -> "Assumptions":
        return cls.model_validate(connection.assume)
