"""What DialedIn's documentation leaves open: ``[connections.<name>.assume]``.

https://docs.chasedatacorp.com/content-user-guide/docs-page-user-guide-other.html
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from ingest.settings import Section

if TYPE_CHECKING:
    from ingest.settings import Connection

_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_File = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,60}\.php$")]
_Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
_Seconds = Annotated[float, Field(gt=0, le=3600)]

#: What a parameter may never be called because a setting says so, in small letters: these mean
#: something to DialedIn, and one of them lets a phone ring.
RESERVED = frozenset(
    (
        *("token", "accid", "groupid", "securitycode"),
        *("action", "searchfield", "identifier", "detailed", "number", "leadid", "clientid"),
        *("campaign", "subcampaign", "primaryphone", "importonly", "timezone"),
        *("allowdialingdups", "duplicatescheck", "dialnoncallables", "callstatus", "rep"),
        *("callbackagent", "callbackdate", "callbacknotes"),
    )
)

#: What a contact of ours has to tell.
ContactField = Literal[
    "first_name", "last_name", "display_name", "company_name", "job_title", "email"
]


class Files(Section):
    """Below ``/HttpImport/``."""

    inject_lead: _File = "InjectLead.php"
    update_lead: _File = "UpdateLead.php"
    lead_operations: _File = "LeadOperations.php"


class Assumptions(Section):
    """The number of each is that of the README's table."""

    #: A-DI-1
    files: Files = Files()
    #: Field of a contact → field of a lead, as the account's database has it; ``adv_`` and double
    #: underscores for blanks where it is the account's own. A lead that lacks it ignores it.
    contact_fields: Mapping[ContactField, str] = {
        "first_name": "FirstName",
        "last_name": "LastName",
    }
    #: A-DI-3: what a reply says, tags and white space aside: the whole of it when all is well,
    ok: tuple[_Text, ...] = ("Result: OK",)
    #: a part of it when the lead is there already,
    duplicate: tuple[_Text, ...] = ("Duplicated phone number",)
    #: and, without case, when it is the token or the account that is refused.
    refused: tuple[_Text, ...] = ("token", "accid", "unauthorized", "access denied")
    #: A-DI-4: so long after an injection of which nobody knows whether it was done, its lead is
    #: looked for.
    look_after_s: _Seconds = 60.0
    #: A-DI-5: how long an answer may take.
    timeout_s: _Seconds = 15.0
    #: A-DI-6: whether it posts calls to us. ``token``: with a static one in `push_header`.
    push: Literal["off", "token"] = "off"
    push_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] = "authorization"

    @field_validator("contact_fields")
    @classmethod
    def _are_fields(cls, value: Mapping[ContactField, str]) -> Mapping[ContactField, str]:
        for name in value.values():
            plain = name.isascii() and name.replace("_", "").isalnum() and len(name) <= 100  # noqa: PLR2004
            if not plain or name.lower() in RESERVED:
                raise ValueError(
                    f"{name!r} is no field that may be set: write FirstName, adv_Company"
                )
        return value

    @classmethod
    def of(cls, connection: "Connection") -> "Assumptions":
        return cls.model_validate(connection.assume)
