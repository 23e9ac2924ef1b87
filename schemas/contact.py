"""``contact``: an address-book entry; each event carries its full state."""

from enum import StrEnum

from schemas.base import Data, Id, PhoneNumber


class ContactChange(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


class Contact(Data):
    contact_id: Id
    contact_kind: str | None = None
    change: ContactChange
    display_name: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    phone_numbers: list[PhoneNumber] = []
    emails: list[str] = []
    company_name: str | None = None
    job_title: str | None = None
    urls: list[str] = []
