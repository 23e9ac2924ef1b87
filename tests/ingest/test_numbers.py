"""E.164 where a number can be, and otherwise what the provider wrote."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.numbers import is_withheld, normalize_number

E164 = re.compile(r"\+[1-9][0-9]{6,14}")


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        # Already E.164, wherever we are.
        ("+15551230001", "US", "+15551230001"),
        ("+15551230001", "DE", "+15551230001"),
        ("+15551230001", None, "+15551230001"),
        ("+442071838750", "US", "+442071838750"),
        # With a country and in somebody's spelling.
        ("+1 (555) 123-0001", None, "+15551230001"),
        ("+1-555-123-0001", "US", "+15551230001"),
        ("+44 20 7183 8750", "US", "+442071838750"),
        ("\uff0b1 555 123 0001", None, "+15551230001"),
        # National, so the region decides.
        ("(555) 123-0101", "US", "+15551230101"),
        ("5551230101", "US", "+15551230101"),
        ("15551230101", "US", "+15551230101"),
        ("1-555-123-0101", "CA", "+15551230101"),
        ("020 7183 8750", "GB", "+442071838750"),
        ("030 123456", "DE", "+4930123456"),
        ("011 44 20 7183 8750", "US", "+442071838750"),
    ],
)
def test_numbers_become_e164(text: str, region: str | None, expected: str) -> None:
    assert normalize_number(text, region) == expected


@pytest.mark.parametrize("text", ["(555) 123-0101", "5551230101", "0207 183 8750", "12345"])
def test_without_a_region_national_numbers_stay_as_they_are(text: str) -> None:
    assert normalize_number(text, None) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0",
        "+",
        "+0",
        "101",  # an extension
        "12345",  # short codes, from which messages come
        "262966",
        "911",
        "123-0001",  # no area code: whoever calls it from elsewhere reaches somebody else
        "2530000",
        "55512301010101010101",
        "Example Customer",
        "Spam Likely",
        "blocked",
        "sip:agent.one@example.com",
        "agent.one@example.com",
        "1" * 10_000,
        "\0",
        "☎",
    ],
)
def test_what_can_be_no_number_of_the_region_stays_as_it_is(text: str) -> None:
    assert normalize_number(text, "US") == text


@pytest.mark.parametrize("word", ["blocked", "Blocked", "ANONYMOUS", "private", "restricted"])
def test_a_word_in_place_of_a_number_says_that_it_is_withheld(word: str) -> None:
    assert is_withheld(word)


@pytest.mark.parametrize("text", ["+15551230001", "(555) 123-0001", "block", "Spam Likely", "0"])
def test_everything_else_is_not_withheld(text: str) -> None:
    assert not is_withheld(text)


_spellings = st.text(alphabet="0123456789+-() .ext;=#*aA☎٣", max_size=30)


@settings(max_examples=200)
@given(
    text=st.text(max_size=30) | _spellings, region=st.sampled_from([None, "US", "DE", "GB", "XX"])
)
@example(text="911", region="DE")
@example(text="253-0000", region="US")
def test_any_text_becomes_e164_or_stays_and_a_second_time_changes_nothing(
    text: str, region: str | None
) -> None:
    found = normalize_number(text, region)
    assert found == text or E164.fullmatch(found)
    assert normalize_number(found, region) == found
