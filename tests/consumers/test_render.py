"""Lines for people."""

from typing import Any

import pytest

from consumers.render import line, masked, printable
from ingest.gaps import gap_event
from schemas.consent import Consent, ConsentState
from schemas.directory import Directory, DirectoryKind


def shown(type_: str, data: dict[str, Any]) -> str:
    event = {
        "type": f"dialstream.{type_}",
        "time": "2026-09-21T14:15:21.300Z",
        "connection": "acme",
        "data": data,
    }
    return line(event).plain


NOON_MS = 1_790_164_800_000  # 2026-09-23T12:00:00Z


def gap(to_ms: int | None, found: int | None) -> str:
    event = gap_event(
        "acme", "websocket", NOON_MS, to_ms=to_ms, reason="cut", found=found, now_ms=NOON_MS
    )
    return shown(event.type.removeprefix("dialstream."), dict(event.data))


def test_a_gap_says_since_when_and_what_was_found() -> None:
    assert gap(None, None) == (
        "14:15:21  gap.opened                  acme  websocket deaf 2026-09-23 12:00:00  cut"
    )
    assert gap(NOON_MS + 90_000_000, 1200) == (
        "14:15:21  gap.closed                  acme  websocket deaf 2026-09-23 12:00:00"
        " to 2026-09-24 13:00:00  cut  found 1,200"
    )
    assert gap(NOON_MS + 60_000, 0).endswith("deaf 2026-09-23 12:00:00 to 12:01:00  cut  found 0")


def test_what_is_read_from_lists_says_what_it_is() -> None:
    consent = Consent(number="+15551230001", state=ConsentState.OPTED_OUT, channel="sms", raw={})
    assert shown("consent.changed", consent.model_dump(mode="json")).endswith(
        "  acme  +15551230001  opted out  sms"
    )
    someone = Directory(kind=DirectoryKind.USER, id="5000000000001", name="Agent One", raw={})
    assert shown("directory.listed", someone.model_dump(mode="json")).endswith(
        "  acme  user  Agent One"
    )


def test_the_longest_type_is_not_grown_together_with_the_connection() -> None:
    told = shown(
        "change.much_longer_than_every_other",
        {"note": "n", "action": "a", "changed_by": {"withheld": True}},
    )
    assert told == "14:15:21  change.much_longer_than_every_other  acme  n  by withheld"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, 你好 \U0001f468\u200d\U0001f469", "Grüße, 你好 \U0001f468\u200d\U0001f469"),
        ("two\nlines\tand\xa0a blank", "two lines and a blank"),
        ("\x1b[2J\x9b31m\x07\u202eevil", "\ufffd[2J\ufffd31m\ufffd\ufffdevil"),
        ("\udcff", "\ufffd"),
    ],
)
def test_nothing_that_a_terminal_obeys(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_who_writes_to_us_cannot_forge_a_line() -> None:
    somebody = {"withheld": False, "name": None, "number": "+12065550123", "id": None}
    data = {
        "contact": somebody,
        "target": somebody,
        "direction": "inbound",
        "status": None,
        "text": "hi\n14:15:21  call.missed  \x1b[1mMallory",
    }
    assert shown("message.received", data).endswith("“hi 14:15:21  call.missed  \ufffd[1mMallory”")


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("+12065550123", "+1…0123"),
        # Of a number of eight digits six would be known.
        ("+49301234", "…"),
        ("101", "…"),
        ("", None),
        (None, None),
    ],
)
def test_masks(number: str | None, shown: str | None) -> None:
    assert masked(number) == shown
