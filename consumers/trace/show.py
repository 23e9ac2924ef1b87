"""Stories for people: a line for each record, aligned, the clocks next to each other."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.console import Console
from rich.text import Text

from consumers.render import printable
from consumers.trace.find import Call
from consumers.trace.story import Moment, Story
from schemas.times import rfc3339

#: A hop that takes longer is shown in a colour: that is no network any more.
_LONG_MS = 10_000

#: A terminal that is narrower gets no absolute times of our clock and the log's.
_WIDE = 120

_STYLES = {"call": "cyan", "verdict": "magenta", "conversation": "blue", "reject": "red"}

_MARKS = {
    "repeat": ("repeat", "dim"),
    "spooled": ("lay in a spool", "yellow"),
    "in_spool": ("waits in a spool", "bold yellow"),
    "out_of_order": ("out of order", "yellow"),
    "stale": ("stale", "yellow"),
    "late": ("after the verdict", "yellow"),
    "mended": ("mended: its push was lost", "bold yellow"),
    "redriven": ("redriven", "green"),
    "revised": ("void: revised", "dim"),
    "tombstone": ("deleted", "dim"),
}


class Show:
    """Prints stories."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._wide = not self._console.is_terminal or self._console.width >= _WIDE

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def story(self, story: Story, asked: str | None) -> None:
        """``asked``: the id of the event that was asked for."""
        print_ = self._console.print
        title = _text(f"conversation {story.conversation_id or '-'}", "bold")
        title.append(f"  {story.connection}", "bold")
        complete = {None: "not in the ledger", True: "complete", False: "open"}[story.complete]
        direction = story.direction or ""
        way = {"inbound": "inbound from", "outbound": "outbound to"}.get(direction, direction)
        facts = [
            f"{way} {story.external or ''}".strip(),
            story.outcome,
            complete,
            *(flag.replace("_", " ") for flag in story.flags),
        ]
        print_(title.append(f"  {', '.join(filter(None, facts))}", "not bold"))
        for number, call_id in enumerate(story.call_ids, 1):
            print_(_text(f"  leg {number}  {call_id}"))
        for connection, call_id in story.counterparts:
            print_(
                Text("  the same call  ", "dim").append(
                    printable(
                        f"{call_id} at {connection}: dialstream trace {call_id} "
                        f"--connection {connection}"
                    )
                )
            )
        print_()
        legs = {call_id: str(n) for n, call_id in enumerate(story.call_ids, 1)}
        for line in _aligned(self._table(story.moments, legs, asked)):
            print_(line)
        print_()

    def _table(
        self, moments: Sequence[Moment], legs: dict[str, str], asked: str | None
    ) -> Iterable[list[Text]]:
        if self._wide:
            head = ["provider's clock", "our clock", "", "the log's", ""]
        else:
            head = ["provider's clock", "to us", "to the log"]
        several = ["leg"] if len(legs) > 1 else []
        head += [*several, "event", "via", "on the log at", ""]
        yield [Text(each, "dim") for each in head]
        day = ""
        for moment in moments:
            written = rfc3339(moment.written_ms)
            if written[:10] != day:
                day = written[:10]
                yield [Text(day, "bold")]
            yield self._row(moment, legs, several=bool(several), asked=asked)

    def _row(
        self, moment: Moment, legs: dict[str, str], *, several: bool, asked: str | None
    ) -> list[Text]:
        # What we derive has no provider's clock, and is written when the log's clock is so far.
        derived = moment.via == "derived"
        row = [_clock(None if derived else moment.time_ms, moment.written_ms)]
        for at_ms, hop_ms in (
            (moment.recorded_ms, None if derived else moment.to_us_ms),
            (moment.written_ms, moment.to_log_ms),
        ):
            if self._wide:
                row.append(_clock(at_ms, moment.written_ms))
            row.append(_hop(hop_ms, is_odd=not derived and "mended" not in moment.marks))
        if several:
            row.append(Text("" if moment.topic == "ledger" else legs.get(moment.of, "")))
        subject = moment.type.partition(".")[0]
        row += [
            Text(moment.type or "-", _STYLES.get(subject, "")),
            Text(moment.via),
            Text(_place(moment), "dim"),
        ]
        notes = _text(moment.said)
        for mark in moment.marks:
            words, style = _MARKS[mark]
            notes.append("  " if notes else "").append(words, style)
        if asked is not None and moment.id == asked:
            notes.append("  " if notes else "").append("← asked for", "bold")
        return [*row, notes]

    def calls(self, calls: Sequence[Call]) -> None:
        """The calls of a number."""
        heads = "began", "call", "connection", "direction", "outcome", "events"
        table = [[Text(each, "dim") for each in heads]]
        table += [
            [
                Text((call.started_at or "-")[:19].replace("T", " ")),
                _text(call.call_id, "cyan"),
                Text(call.connection),
                Text(call.direction),
                Text(call.outcome or "-"),
                Text(f"{call.events:,}"),
            ]
            for call in calls
        ]
        for line in _aligned(table):
            self._console.print(line)


def _text(text: str, style: str = "") -> Text:
    """What is the provider's word."""
    return Text(printable(text), style)


def _aligned(rows: Iterable[list[Text]]) -> Iterable[Text]:
    """Each row as a line, its columns as wide as their widest cell; a lone cell is a heading."""
    table = list(rows)
    columns = zip_longest(*(row for row in table if len(row) > 1), fillvalue=Text())
    widths = [max(cell.cell_len for cell in column) for column in columns]
    for row in table:
        line = Text("  ")
        for cell, width in zip(row, widths, strict=False):
            line.append(cell).append(" " * (width - cell.cell_len + 2))
        line.rstrip()
        yield line


def _clock(ms: int | None, beside_ms: int) -> Text:
    """The time of day, with its date where that is another one than the log's."""
    if ms is None:
        return Text("-", "dim")
    text, beside = rfc3339(ms), rfc3339(beside_ms)
    return Text(text[11:23] if text[:10] == beside[:10] else f"{text[5:10]} {text[11:23]}")


def _hop(ms: int | None, *, is_odd: bool) -> Text:
    """``is_odd``: if it takes long."""
    if ms is None:
        return Text("")
    return Text(_span(ms), "bold yellow" if is_odd and abs(ms) > _LONG_MS else "dim")


def _span(ms: int) -> str:
    """``+0.21 s``; a clock that is behind makes ``-3.00 s``."""
    sign, seconds = ("-" if ms < 0 else "+"), abs(ms) / 1000
    for unit, size, least in (("d", 86400, 2), ("h", 3600, 2), ("min", 60, 2)):
        if seconds >= size * least:
            return f"{sign}{seconds / size:.1f} {unit}"
    return f"{sign}{seconds:.2f} s" if seconds < 10 else f"{sign}{seconds:.0f} s"  # noqa: PLR2004


def _place(moment: Moment) -> str:
    if moment.spool is not None:
        return f"spool of {moment.spool} @{moment.position}"
    return f"{moment.topic} {moment.partition} @{moment.position}"
