"""What the demo drops on purpose, and what becomes of it. No I/O, and no clock."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from consumers.render import line
from schemas.times import rfc3339

#: Of each call there would be several of them, and they tell nothing that its own events do not.
_NOT_SHOWN = frozenset(
    {
        "dialstream.conversation.updated",
        "dialstream.completeness.measured",
        "dialstream.verdict.matched",
    }
)

#: Verdicts of calls whose ending was pushed, and recorded.
_PUSHED = ("matched", "late", "mismatch")

_DROPPED, _FOUND, _MENDED = "bold yellow", "bold magenta", "bold green"

#: Enough of a call's id to know it again.
_TAIL = 6


class Losses:
    """Calls of one connection whose ending was dropped, until they are on the stream as a whole.

    That it was dropped is what the simulator says; all else is what the stream says. Times are
    milliseconds since 1970 of one clock, the simulator's.
    """

    def __init__(self, connection: str) -> None:
        self._connection = connection
        #: By the id of the call: when it ended, and who talked.
        self._dropped: dict[str, tuple[int, str]] = {}
        #: After how many seconds.
        self._found: dict[str, float] = {}
        self._mended: set[str] = set()
        #: The verdict of each call that holds.
        self._verdicts: dict[str, str] = {}

    def drop(self, call_id: str, who: str, ended_ms: int) -> Text:
        """Nobody is told that a call has ended; the line that says so."""
        self._dropped[call_id] = ended_ms, who
        return self._line(ended_ms, "dropped on purpose", _DROPPED, call_id, f"the end of {who}")

    def hear(self, event: Mapping[str, Any], now_ms: int) -> Text | None:
        """The line for what stands on the stream; None for what is not shown."""
        what = event["type"].removeprefix("dialstream.")
        call_id = event["data"].get("call_id")
        if event["connection"] == self._connection and what.startswith("verdict."):
            self._verdicts[call_id] = event["data"]["verdict"]
        if event["type"] in _NOT_SHOWN:
            return None
        if event["connection"] != self._connection or call_id not in self._dropped:
            return line(event)
        ended_ms, who = self._dropped[call_id]
        if what == "verdict.push_missing":
            found_s = self._found.setdefault(call_id, (now_ms - ended_ms) / 1000)
            told = f"in the provider's list, found after {found_s:.0f} s"
            return self._line(now_ms, what, _FOUND, call_id, told)
        if what == "call.ended" and event["via"] == "backfill":
            self._mended.add(call_id)
            return self._line(now_ms, what, _MENDED, call_id, f"{who}, mended by its record")
        return line(event)

    def _line(self, at_ms: int, what: str, style: str, call_id: str, told: str) -> Text:
        """In the columns of the stream's own lines."""
        text = Text()
        text.append(rfc3339(at_ms)[11:19], "dim").append(f"  {what}".ljust(28), style)
        text.append(f"  {self._connection}  ", "dim")
        return text.append(f"…{call_id[-_TAIL:]}  {told}", style)

    def summary(self) -> Iterator[Text]:
        """What was dropped and what of it was found, and what that has made of the stream."""
        dropped, found, mended = len(self._dropped), len(self._found), len(self._mended)
        if not dropped:
            return
        text = Text()
        for count, word, style in (
            (dropped, "dropped on purpose", _DROPPED),
            (found, "found", _FOUND),
            (mended, "mended", _MENDED),
        ):
            text.append(f"{count:,}", style).append(f" {word}   ", "dim")
        if found:
            least_s, *_, most_s = sorted([*self._found.values()] * 2)
            text.append(f"{least_s:.0f} to {most_s:.0f} s after the call", "dim")
        yield text
        words = Counter(self._verdicts.values())
        pushed = sum(words[word] for word in _PUSHED)
        recorded = pushed + words["push_missing"]
        if recorded:
            calls = " call judged: " if recorded == 1 else " calls judged: "
            text = Text().append(f"{recorded:,}", "bold").append(calls, "dim")
            text.append(_percent(pushed, recorded), "bold").append(" pushed to their end, ", "dim")
            whole = min(pushed + mended, recorded)
            yield text.append(_percent(whole, recorded), "bold").append(" on the stream", "dim")
        if found < dropped:
            yield Text(f"{dropped - found:,} not found yet: that takes some 20 s", "dim")
        if found:
            call_id = [*self._found][-1]
            text = Text().append(f"dialstream explain {call_id}", "bold")
            yield text.append(" shows what was found of the last one", "dim")


def _percent(part: int, whole: int) -> str:
    """Never rounded up to what it is not."""
    return "100 %" if part == whole else f"{part * 1000 // whole / 10:.1f} %"
