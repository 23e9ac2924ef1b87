"""Phone numbers: E.164 where they can be."""

import re
from functools import lru_cache

import phonenumbers

#: What is longer is no number in any spelling.
_LONGEST = 64

_E164 = re.compile(r"\+[1-9][0-9]{6,14}\Z")

#: What stands where a number is kept from us. Seen: "blocked"; the others are neighbours' words.
_WITHHELD = frozenset(
    {"anonymous", "blocked", "private", "restricted", "unavailable", "unknown", "withheld"}
)


def is_withheld(text: str) -> bool:
    """Whether the provider says that there is a number, and does not say which. Not for ``""``."""
    return text[0] != "+" and text.lower() in _WITHHELD


def normalize_number(text: str, region: str | None) -> str:
    """E.164 if ``text`` is a possible number, else ``text`` itself.

    ``region``: ISO 3166 code for numbers without a country; without it they stay as they are.
    """
    if _E164.match(text) or len(text) > _LONGEST:
        return text
    return _parsed(text, region)


@lru_cache(maxsize=4096)
def _parsed(text: str, region: str | None) -> str:
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return text
    reason = phonenumbers.is_possible_number_with_reason(number)
    if reason != phonenumbers.ValidationResult.IS_POSSIBLE:
        return text
    formatted = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    return formatted if _E164.match(formatted) else text
