"""What DialedIn's replies come to. The samples are as public clients have seen them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.providers.dialedin.assumptions import Assumptions
from ingest.providers.dialedin.replies import lead_exists, read_reply

SAMPLES = Path(__file__).parents[3] / "samples" / "dialedin"
ASSUME = Assumptions()


def kind(body: bytes | str) -> str:
    return read_reply(body.encode() if isinstance(body, str) else body, ASSUME).kind


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inject-ok.txt", "ok"),
        ("inject-ok-newline.txt", "ok"),
        ("inject-duplicate.txt", "duplicate"),
        ("error-campaign.txt", "failed"),
        ("error-html.txt", "page"),
        ("search-found.json", "json"),
        ("search-not-found.json", "json"),
        ("search-detailed-found.json", "json"),
        ("search-detailed-not-found.json", "json"),
    ],
)
def test_the_samples(name: str, expected: str) -> None:
    assert kind((SAMPLES / name).read_bytes()) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<br><br>Result:&nbsp; OK", "ok"),
        ("\ufeffResult: OK\r\n", "ok"),
        ("<html><body>Result: OK</body></html>", "ok"),
        ("Result: OKAY", "failed"),
        ("Result: OK but not really", "failed"),
        ("It says Result: OK", "failed"),
        ("result: ok", "failed"),
        ("OK", "failed"),
        ("", "failed"),
        ("<br>", "failed"),
        ("<", "failed"),
        ("\x00\xff", "failed"),
        ("Result: CURL error[500]: Campaign not found.", "failed"),
        ("<!DOCTYPE html><p>Duplicated phone number", "page"),
        ("<?xml version='1.0'?><error>invalid token</error>", "page"),
        ("<br>Result: Invalid Token.", "refused"),
        ("Result: ACCID is wrong", "refused"),
        ("Result: Unauthorized", "refused"),
        (" [1]", "json"),
    ],
)
def test_a_reply_is_a_yes_only_if_it_is_nothing_but_that(body: str, expected: str) -> None:
    assert kind(body) == expected


def test_a_word_that_only_quotes_what_was_sent_refuses_no_token() -> None:
    said = b"<br>Result: LastName Tokenov is not allowed"
    assert read_reply(said, ASSUME).kind == "refused"
    assert read_reply(said, ASSUME, ["Tokenov"]).kind == "failed"


def test_words_are_settings() -> None:
    assume = Assumptions(ok=("Done",), duplicate=("is there",), refused=("no entry",))
    read = {body: read_reply(body, assume).kind for body in (b"Done", b"It is there", b"No entry!")}
    assert read == {b"Done": "ok", b"It is there": "duplicate", b"No entry!": "refused"}
    assert read_reply(b"Result: OK", assume).kind == "failed"


@given(st.binary(max_size=300))
def test_whatever_comes_is_read_and_hardly_anything_is_a_yes(body: bytes) -> None:
    reply = read_reply(body, ASSUME)
    assert "\n" not in reply.text
    if reply.kind == "ok":
        assert b"Result:" in body
        assert b"OK" in body
    assert lead_exists(body) in (True, False, None)


_BLANK = st.sampled_from(["", " ", "\n", "\t ", "<br>", "<br/>\n", "<b class='x'>", "&nbsp;"])


@given(st.lists(_BLANK, max_size=4), st.lists(_BLANK, max_size=4), st.lists(_BLANK, max_size=4))
def test_tags_and_blanks_around_a_yes_do_not_matter(
    before: list[str], between: list[str], after: list[str]
) -> None:
    body = "".join([*before, "Result:", *between, "OK", *after])
    assert kind(body) == "ok"


@given(st.text("abcdefgORKesultd: ", min_size=1, max_size=30))
def test_words_around_a_yes_make_it_none(more: str) -> None:
    if more.strip():
        assert kind(f"{more} Result: OK") != "ok"
        assert kind(f"Result: OK {more}") != "ok"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"id": 1, "LeadExists": true}', True),
        ('{"id": null, "LeadExists": false}', False),
        ('{"id": 0, "LeadExists": "False"}', False),
        ('{"LeadExists": "true"}', True),
        ('{"Leads": []}', False),
        ('{"Leads": [{"LeadId": "1"}]}', True),
        ('{"id": 1}', None),
        ('{"LeadExists": null}', None),
        ('{"LeadExists": 0}', None),
        ('{"LeadExists": "no"}', None),
        ('{"LeadExists": fal', None),
        ("[]", None),
        ("", None),
        ("Result: OK", None),
    ],
)
def test_a_search_that_does_not_say_no_is_no_no(body: str, expected: object) -> None:
    assert lead_exists(body.encode()) is expected


def test_searches_of_the_samples() -> None:
    found = {
        name: lead_exists((SAMPLES / f"search-{name}.json").read_bytes())
        for name in ("found", "not-found", "detailed-found", "detailed-not-found")
    }
    assert found == {
        "found": True,
        "not-found": False,
        "detailed-found": True,
        "detailed-not-found": False,
    }
