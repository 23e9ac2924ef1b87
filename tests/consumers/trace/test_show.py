"""What people see of a timeline: by hand."""

import re
from typing import Any

import pytest

from consumers.trace.find import Call
from consumers.trace.show import Show
from consumers.trace.story import Spooled, Story, tell
from tests.consumers.trace.events import call, party, row, stored, verdict

DAY = 86_400_000

HEADS = ["event", "via", "on", "the", "log", "at"]


def printed(capsys: pytest.CaptureFixture[str], story: Story) -> list[str]:
    capsys.readouterr()
    Show().story(story, None)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("read_ms", "written_ms", "hops"),
    [
        (210, 220, ["+0.21 s", "+0.01 s"]),
        # Its clock is ahead of ours, and the log's is behind.
        (-3000, -3500, ["-3.00 s", "-0.50 s"]),
        (9_994, 9_994 + 14_400, ["+9.99 s", "+14 s"]),
        (119_000, 119_000 + 120_000, ["+119 s", "+2.0 min"]),
        (7_199_000, 7_199_000 + 2 * DAY, ["+120.0 min", "+2.0 d"]),
        (3 * 3_600_000, 30 * 3_600_000, ["+3.0 h", "+27.0 h"]),
    ],
)
def test_hops(
    capsys: pytest.CaptureFixture[str], read_ms: int, written_ms: int, hops: list[str]
) -> None:
    story = tell("acme", [stored(call("1001", "ringing", 0, read_ms), 1, written_ms)])
    (line,) = [line for line in printed(capsys, story) if "call.ringing" in line]
    assert re.findall(r"[+-][0-9.]+ [a-z]+", line) == hops


def test_each_clock_has_its_date_where_it_is_not_the_log_s(
    capsys: pytest.CaptureFixture[str],
) -> None:
    story = tell("acme", [stored(call("1001", "ringing", 0, 200), 1, DAY)])
    assert [line.split() for line in printed(capsys, story) if line.startswith("  ")] == [
        ["leg", "1", "1001"],
        [*("provider's", "clock", "our", "clock", "the", "log's"), *HEADS],
        ["2026-09-22"],
        [
            *("09-21", "14:13:20.000", "09-21", "14:13:20.200", "+0.20", "s"),
            *("14:13:20.000", "+24.0", "h", "call.ringing", "webhook", "calls", "3", "@1"),
            *("lay", "in", "a", "spool"),
        ],
    ]


def test_marks_are_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    mended = call("1001", "ended", 0, via="backfill")
    mended["id"] = "dialpad:acme:call:1001:hangup:backfilled"
    void = verdict("1001", "push_missing", 1, 0)
    records = [
        stored(call("1001", "connected", 5000), 1, 5300),
        stored(call("1001", "ringing", 0, 5400, stale=True), 2, 5400),
        stored(call("1001", "ringing", 0, 5500), 3, 5500),
        stored(mended, 4, 6000),
        stored(void, 1, 5600, "verdicts"),
        stored(call("1001", "held", 6000, 7000, via="replay"), 5, 90_000),
        stored(verdict("1001", "late", 2, 0, revises=void["id"]), 2, 91_000, "verdicts"),
        stored(None, 1, 92_000, "ledger", "acme/1001"),
    ]
    waiting = [Spooled("receiver", stored(call("1001", "wrapped_up", 9000), 7, 93_000))]
    lines = printed(capsys, tell("acme", records, waiting))
    notes = [re.split(r"@\d+ *", line)[1] for line in lines if "@" in line]
    assert notes == [
        "",
        "stale  out of order",
        "repeat",
        "no. 1  void: revised",
        "answered, talk 42.5 s  mended: its push was lost",
        "after the verdict  redriven",
        "no. 2",
        "deleted",
        "waits in a spool",
    ]
    assert "spool of receiver @7" in lines[-2]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    for name, text in {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("narrow")
def test_on_a_narrow_terminal_there_are_hops_and_no_more_clocks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    story = tell("acme", [stored(call("1001", "ringing", 0, 200), 1, 300)])
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in printed(capsys, story)]
    (line,) = [line for line in lines if "call.ringing" in line]
    assert line.split() == [
        *("14:13:20.000", "+0.20", "s", "+0.10", "s", "call.ringing", "webhook"),
        *("calls", "3", "@1"),
    ]
    assert len(line) <= 80


def test_legs_counterparts_and_what_is_odd(capsys: pytest.CaptureFixture[str]) -> None:
    other = {"connection": "bots", "call_id": "r1"}
    more: dict[str, Any] = {"flags": ["late_event"], "counterparts": [other], "complete": True}
    records = [
        stored(call("1002", "ringing", 0), 1, 300),
        stored(row("1001", ["1001", "1002"], 400, **more), 1, 400, "ledger"),
    ]
    lines = printed(capsys, tell("acme", records))
    assert lines[:4] == [
        "conversation 1001  acme  inbound from +1…0123, answered, complete, late event",
        "  leg 1  1002",
        "  leg 2  1001",
        "  the same call  r1 at bots: dialstream trace r1 --connection bots",
    ]


def test_of_whom_nothing_is_known_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = {"direction": "unknown", "external": party()}
    story = tell("acme", [stored(row("r1", ["r1"], 0, **nobody), 1, 400, "ledger")])
    assert printed(capsys, story)[0] == "conversation r1  acme  answered, open"


def test_nothing_in_it_is_obeyed_by_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "9\x1b[2J[bold]"
    unknown = call(odd, "unknown", 0, provider_state="\x1b]0;x\x07")
    out = "\n".join(printed(capsys, tell("acme", [stored(unknown, 1, 300)])))
    facts: dict[str, Any] = {"direction": "inbound", "started_at": None, "outcome": None}
    Show().calls([Call(connection="acme", call_id=odd, conversation_id=odd, **facts)])
    out += capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert out.count("9\ufffd[2J[bold]") == 3
