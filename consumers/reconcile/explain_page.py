"""What `dialstream explain` prints: in words, no content, and no whole number."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from consumers.reconcile.facts import Who
from consumers.reconcile.legs import Leg
from consumers.reconcile.matching import MOST_AROUND, Candidate
from consumers.reconcile.rivals import Rival, Sight
from consumers.reconcile.role import rules_of
from consumers.render import masked, printable
from ingest.settings import Settings
from schemas.times import rfc3339

_WORDS: Mapping[str, str] = {
    "matched": "both sides tell the same",
    "late": "both sides tell the same, and one of them came after the call had been judged",
    "push_missing": "the provider has a record of it, and its end was never pushed",
    "record_missing": "it was pushed, and the provider has no record of it",
    "mismatch": "both sides know it, and tell something differently",
    "ambiguous": "two candidates are too near to each other to choose",
}

#: Where they mean something else across a pair.
_WORDS_OF_PAIRS: Mapping[str, str] = {
    "push_missing": "recorded at {recorded}, and {pushed} has pushed no call that it could be",
    "record_missing": "pushed at {pushed}, and {recorded} has no record that it could be",
}

_REASONS: Mapping[str, str] = {
    "never_pushed": "nothing at all was pushed of it",
    "ending_missing": "earlier states were pushed, the end was not",
    "not_listed": "the provider's list was read up to its end, and it was not there",
    "list_not_read": "nobody has read the provider's list so far in time",
    "outbid": "each call that it could be is another's",
    "no_clock": "it has no time that could be compared",
    "no_number": "none of its numbers is known",
    "still_running": "its record has no end",
    "near_tie": "to choose another would cost hardly more",
    "too_many": "too many calls between these numbers at a time",
}

_GATES: Mapping[str, str] = {
    "numbers": "the numbers are the same",
    "direction": "the direction fits",
    "start": "they start within {gate:g} s",
    "agreement": "start or length is within its tolerance",
}

#: Field of a side → what it is called.
FIELDS: Mapping[str, str] = {
    "direction": "direction",
    "external": "other party",
    "started_ms": "started",
    "connected_ms": "connected",
    "ended_ms": "ended",
    "total_duration_s": "whole length",
    "talk_duration_s": "talk",
    "hold_duration_s": "on hold",
    "outcome": "outcome",
    "provider_outcome": "provider's word",
}


class Told(Struct):
    """A call at one connection, and what was said of it. Verdicts are events, oldest first."""

    leg: Leg
    verdicts: list[dict[str, Any]]
    #: Of each pair that it is in: what is known now, and what was said.
    pairs: list[tuple[Sight, list[dict[str, Any]]]] = []


_WIDE = 200


class Page:
    """What is printed."""

    def __init__(self, settings: Settings) -> None:
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=_WIDE)  # nothing is to be cut in a pipe
        self._rules = rules_of(settings.reconcile)
        since = settings.reconcile.since
        self._since_ms = 0 if since is None else round(since.timestamp() * 1000)

    def say(self, text: str, *, style: str = "", indent: int = 0) -> None:
        self._console.print(_text(" " * indent + text, style), soft_wrap=True)

    def print(self, told: Told) -> None:
        leg = told.leg
        self.say(f"{leg.call_id}  {leg.connection}", style="bold")
        self._own(leg, told.verdicts)
        self.say("")
        for verdict in told.verdicts:
            self._verdict(verdict)
        for sight, verdicts in told.pairs:
            self._pair(sight, verdicts)
        if not told.verdicts and not told.pairs:
            self.say("no verdict: it has not settled yet, or nothing is compared with it", indent=2)
        for flag in leg.flags:
            self.say(f"flagged: {flag.replace('_', ' ')}", indent=2)
        if leg.recorded is not None and leg.pushed is not None:
            self.say(
                "The ledger takes what the record says, and from the pushes what it does not say.",
                style="dim",
                indent=2,
            )
        self.say("")

    def _own(self, leg: Leg, verdicts: Sequence[Mapping[str, Any]]) -> None:
        table = _table("", "pushed", "recorded", "in the ledger")
        sides = leg.pushed, leg.recorded, leg.truth
        differing = {d["field"] for d in verdicts[-1]["data"]["differences"]} if verdicts else ()
        for name, called in FIELDS.items():
            values = [_cell(None if side is None else getattr(side, name)) for side in sides]
            if any(each != "-" for each in values):
                odd = name.replace("_ms", "_at") in differing or name in differing
                style = "red" if odd else ""
                table.add_row(_text(called, "dim"), *(_text(each, style) for each in values))
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))

    def _verdict(self, verdict: Mapping[str, Any], *, is_void: bool = False) -> None:
        data = verdict["data"]
        word = data["verdict"]
        style = "dim" if is_void else "green" if word in ("matched", "late") else "red"
        text = _text("  ").append(f"{data['n']}. {word}", f"bold {style}")
        text.append(f"  {_short(verdict['time'])}  ", "dim")
        words = _WORDS.get(word, "")
        if is_of_pair(data):
            text.append(_text(f"of {data['call_id']}: "))
            words = _WORDS_OF_PAIRS.get(word, words).format(
                pushed=data["pushed_connection"], recorded=data["recorded_connection"]
            )
        text.append(words)
        if data["reason"] in _REASONS:
            text.append(f": {_REASONS[data['reason']]}")
        if is_void:
            text.append("  (void: a later one has revised it)", "dim")
        self._console.print(text, soft_wrap=True)
        for each in map(masked_difference, data["differences"]):
            tolerance = each["tolerance"]
            within = "" if tolerance is None else f", tolerated are {tolerance:g} s"
            self.say(
                f"{each['field']}: pushed {each['pushed']}, recorded {each['recorded']}{within}; "
                f"taken {each['taken']}",
                indent=7,
            )

    # Pairs

    def _pair(self, sight: Sight, verdicts: Sequence[Mapping[str, Any]]) -> None:
        setup, entry = sight.setup, sight.entry
        other = setup.recorded if entry.is_pushed else setup.pushed
        self.say(f"together with {other}", style="bold", indent=2)
        if len(entry.call_ids) > 1:
            legs = ", ".join(entry.call_ids)
            self.say(f"Its legs with that number are one call: {legs}.", indent=2)
        void = {each["data"]["revises"] for each in verdicts}
        for verdict in verdicts:
            self._verdict(verdict, is_void=verdict["id"] in void)
        self._next_to_each_other(sight)
        self._rivals(sight)
        for line in (*self._why(sight), *self._waits(sight, verdicts)):
            self.say(line, indent=2)
        if entry.fate is not None and entry.fate.kind == "matched":
            self.say(
                f"The ledger keeps a row for each side, as that side tells it, and each names the "
                f"other; a verdict takes the word of {setup.pushed}.",
                style="dim",
                indent=2,
            )

    def _next_to_each_other(self, sight: Sight) -> None:
        """The call and the one that it is, or that is nearest to it."""
        setup, entry = sight.setup, sight.entry
        rival = next((each for each in sight.rivals if each.what == "taken"), None)
        if rival is None and sight.rivals:
            rival = sight.rivals[0]
        mine = f"{_legs(entry.call_ids)} at {setup.pushed if entry.is_pushed else setup.recorded}"
        theirs = "-" if rival is None else f"{_legs(rival.call_ids)} at {rival.connection}"
        calls: tuple[Candidate | None, Candidate | None] = (entry.call, None)
        if rival is not None:
            calls = (rival.pushed, rival.recorded)
        elif not entry.is_pushed:
            calls = (None, entry.call)
        heads = (mine, theirs) if entry.is_pushed else (theirs, mine)
        table = _table("", f"pushed\n{heads[0]}", f"recorded\n{heads[1]}", "apart", "tolerated")
        edge = None if rival is None else rival.edge
        gates = {} if edge is None else edge.gates
        start_ms = None if edge is None else edge.start_distance_ms
        length_ms = None if edge is None else edge.duration_distance_ms
        rows = [
            ("agent's number", ["-" if c is None else _number(c.agent_number) for c in calls]),
            ("other number", ["-" if c is None else _number(c.other_number) for c in calls]),
            ("direction", ["-" if c is None else c.direction for c in calls]),
            (
                "ended" if setup.from_end else "connected",
                [
                    *("-" if c is None else _cell(c.start_ms) for c in calls),
                    _apart(start_ms),
                    _apart(None if start_ms is None else self._rules.start_tolerance_ms),
                ],
            ),
            (
                "length" if setup.from_connect else "whole length",
                [
                    *("-" if c is None else _length(c.duration_ms) for c in calls),
                    _apart(length_ms),
                    "" if length_ms is None else f"{self._tolerance_s(calls):g} s",
                ],
            ),
        ]
        by_row = ("numbers", "numbers", "direction", "start", "agreement")
        for (called, values), gate in zip(rows, by_row, strict=True):
            style = "red" if gates.get(gate) is False else ""
            table.add_row(_text(called, "dim"), *(_text(each, style) for each in values))
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))

    def _tolerance_s(self, calls: Iterable[Candidate | None]) -> float:
        lengths = [each.duration_ms for each in calls if each is not None]
        longest_s = max((each for each in lengths if each is not None), default=0) / 1000
        rules = self._rules
        return max(rules.duration_tolerance_s, rules.duration_tolerance_ratio * longest_s)

    def _rivals(self, sight: Sight) -> None:
        """Each with its gates, and how far apart the two are."""
        if not sight.rivals:
            return
        table = _table(f"at {sight.rivals[0].connection}", "start", "length", "gates", "")
        for each in sight.rivals:
            gates = each.edge.gates
            shut = [name for name in _GATES if gates[name] is False]
            untold = [f"{name} not told" for name in _GATES if gates[name] is None]
            words = [f"shut: {', '.join(shut)}"] if shut else ["all open"]
            table.add_row(
                _text(_legs(each.call_ids)),
                _apart(each.edge.start_distance_ms),
                _apart(each.edge.duration_distance_ms),
                _text("; ".join(words + untold), "red" if shut else "green"),
                _text(_what(each), "bold" if each.what in ("taken", "near") else "dim"),
            )
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))
        gate_s = sight.setup.rules.gate_ms / 1000
        gates_told = ", ".join(text.format(gate=gate_s) for text in _GATES.values())
        self.say(f"Gates: {gates_told}.", style="dim", indent=2)

    def _why(self, sight: Sight) -> Iterable[str]:
        fate, rules = sight.entry.fate, sight.setup.rules
        margin_s = rules.ambiguity_margin_ms / 1000
        if fate is None:
            return
        if fate.kind == "matched" and sight.runner_up_ms is None:
            yield "It is the one since there is no other choice that leaves nobody alone."
        elif fate.kind == "matched":
            assert sight.runner_up_ms is not None
            yield (
                f"It is the one since all distances together are least so. To choose otherwise "
                f"would cost {sight.runner_up_ms / 1000:g} s more; {margin_s:g} s are asked for."
            )
        elif sight.crowd is not None:
            yield (
                f"Between these numbers so many calls lie within {rules.gate_ms / 1000:g} s "
                f"(more than {MOST_AROUND} to choose from) that none can be told from the others. "
                f"Of them {sight.crowd.pushed:,} were pushed, {sight.crowd.pushed_s:,.0f} s, and "
                f"{sight.crowd.recorded:,} recorded, {sight.crowd.recorded_s:,.0f} s."
            )
        elif fate.kind == "ambiguous":
            yield (
                f"None was chosen: to choose otherwise would cost less than {margin_s:g} s more."
            )
        elif fate.reason == "no_candidate":
            yield "No call of the other side passes all gates."
        elif fate.reason is not None:
            yield f"It has none: {_REASONS.get(fate.reason, fate.reason)}."

    def _waits(self, sight: Sight, verdicts: Sequence[Mapping[str, Any]]) -> Iterable[str]:
        """What has to happen before it is judged; nothing if it was."""
        setup, entry = sight.setup, sight.entry
        until = "" if sight.until_ms is None else f"{shown(sight.until_ms)} UTC"
        if verdicts and sight.until_ms is None:
            return
        if entry.started_ms < self._since_ms:
            yield "It is not judged: it began before reconcile.since."
        elif sight.wants_ms is not None:
            read = f"up to {shown(sight.read_ms)}" if sight.read_ms else "not at all"
            yield (
                f"It waits until what {setup.recorded} has recorded of that number is read up to "
                f"its end, {shown(sight.wants_ms)}; so far it is read {read}. Without that it is "
                f"judged at {until} (hold_max_s)."
            )
        elif sight.until_ms is not None and self._is_held(sight):
            yield (
                f"It waits for the end of a call that is not over as far as is known, at the "
                f"latest until {until} (hold_max_s)."
            )
        elif sight.until_ms is not None:
            yield f"It is judged at {until}, settle_s after its end."
        elif sight.said is None:
            yield "It is judged when it is over."
        else:
            yield f"It is judged ({sight.said['verdict']}) as soon as a reconciler comes to it."

    def _is_held(self, sight: Sight) -> bool:
        end_ms, fate = sight.entry.end_ms, sight.entry.fate
        if end_ms is None or fate is None or fate.held:
            return True
        # With a counterpart it waits for that one, if for longer than both have to settle.
        until_ms = sight.until_ms or 0
        return fate.kind == "matched" and until_ms > end_ms + self._rules.settle_ms


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(_text(column))
    return table


def _text(text: str, style: str = "") -> Text:
    """Ids are what providers say they are; line breaks are ours."""
    return Text("\n".join(map(printable, text.split("\n"))), style)


def _what(rival: Rival) -> str:
    if rival.what == "taken":
        return "taken"
    if rival.what == "near":
        return "as likely as others"
    if rival.what == "crowd":
        return "one of many"
    if rival.what == "shut":
        return "cannot be it"
    return f"is that of {rival.others[0]}" if rival.others else "another choice is better"


def _legs(call_ids: Sequence[str]) -> str:
    more = f" and {len(call_ids) - 1} more" if len(call_ids) > 1 else ""
    return call_ids[0] + more


def _apart(ms: int | None) -> str:
    return "" if ms is None else f"{ms / 1000:g} s"


def _number(number: str | None) -> str:
    return masked(number) or "-"


def _length(ms: int | None) -> str:
    return "-" if ms is None else f"{ms / 1000:g} s"


def _short(time: str) -> str:
    return time[:19].replace("T", " ")


def _cell(value: object) -> str:
    """`shown` where there is little room: times to the second."""
    text = shown(value)
    return text[:19] if isinstance(value, int) else text


def shown(value: object) -> str:
    if value is None or value in ("", "unknown"):
        return "-"
    if isinstance(value, Who):
        return masked(value.number) or ("withheld" if value.withheld else value.id or "-")
    if isinstance(value, int) and value > 10**11:
        return rfc3339(value).replace("T", " ").removesuffix("Z")
    if isinstance(value, float):
        return f"{value:g} s"
    return str(value)


def is_of_pair(data: Mapping[str, Any]) -> bool:
    return bool(data["pushed_connection"] != data["recorded_connection"])


def masked_difference(difference: Mapping[str, Any]) -> dict[str, Any]:
    if not difference["field"].endswith("number"):
        return dict(difference)
    sides = ("pushed", "recorded", "taken")
    return {**difference, **{side: masked(difference[side]) for side in sides}}
