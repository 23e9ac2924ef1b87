"""Who takes part: Dialpad's targets and contacts."""

from functools import lru_cache
from typing import Any

from ingest.fields import Fields
from ingest.numbers import is_withheld, normalize_number
from ingest.providers.dialpad.tables import TARGET_KINDS

PARTY_FIELDS = frozenset({"email", "id", "name", "office_id", "phone", "phone_number", "type"})


def party(who: Fields, number_raw: str | None) -> dict[str, Any]:
    """`schemas.base.Party` of a Dialpad target or contact, with the number that is its own here."""
    who.note_unknown(PARTY_FIELDS)
    withheld = number_raw is not None and is_withheld(number_raw)
    number = None if number_raw is None or withheld else normalize_number(number_raw, who.region)
    kind = who.text("type")
    return {
        "kind": None if kind is None else snake_kind(kind),
        "id": who.id("id"),
        "name": who.text("name"),
        "email": who.text("email"),
        "number": number,
        "number_raw": number_raw,
        "withheld": withheld,
    }


@lru_cache(maxsize=256)
def snake_kind(word: str) -> str:
    """`CallCenter`, `callcenter` and `call_center` are one kind."""
    plain = word.replace("_", "").lower()
    return TARGET_KINDS.get(plain, plain)
