"""What a contact of DialLink's means, as it is listed and as notifications carry it.

https://developers.diallink.com shows its fields.
"""

from typing import Any

from ingest.fields import Fields
from ingest.numbers import is_withheld, normalize_number
from schemas.contact import ContactChange

CONTACT_FIELDS = frozenset(
    {
        "addresses",
        "companyName",
        "emails",
        "favorite",
        "firstName",
        "forceSave",
        "id",
        "lastName",
        "phoneNumbers",
        "shared",
        "type",
        "updatedAt",
    }
)


def contact_data(fields: Fields) -> dict[str, Any]:
    """`schemas.contact.Contact` without ``raw``, of one that may be new or changed.

    Raises UnreadableError without an id.
    """
    fields.note_unknown(CONTACT_FIELDS)
    first, last = fields.text("firstName"), fields.text("lastName")
    kind = fields.text("type")
    numbers = _texts(fields, "phoneNumbers", "phoneNumber")
    return {
        "contact_id": fields.key_id("id"),
        "contact_kind": None if kind is None else kind.lower(),
        "change": ContactChange.UPDATED.value,
        "display_name": " ".join(name for name in (first, last) if name) or None,
        "first_name": first,
        "last_name": last,
        "phone_numbers": [
            {"number": normalize_number(raw, fields.region), "number_raw": raw}
            for raw in numbers
            if not is_withheld(raw)
        ],
        # Shown is an empty list only.
        "emails": _texts(fields, "emails", "email"),
        "company_name": fields.text("companyName"),
        "job_title": None,
        "urls": [],
    }


def _texts(fields: Fields, key: str, inner_key: str) -> list[str]:
    """The texts in a list of objects that hold one, or of texts."""
    found = []
    for item in fields.items(key):
        holder = fields.inner(item if type(item) is dict else {inner_key: item})
        text = holder.text(inner_key)
        if text is not None:
            found.append(text)
    return found
