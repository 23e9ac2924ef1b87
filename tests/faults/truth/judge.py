"""Says what each call deserves, and whether it has it: by the design, from what happened.

It shares no code with the accused, and knows what these must not: what the faults did, and when
each thing has reached us.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.faults.truth.heard import GivenVerdict, Heard, ms_of
from tests.faults.truth.pairs import MOMENT_MS, SETTLE_MS, judge_pairs, push_id, row_id
from tests.faults.truth.verdict import Found
from tests.faults.truth.world import DAY_MS, HOUR_MS, Asked, Call, World

#: `[reconcile]` and `[connections.x.poll]` as nobody has changed them.
_HOLD_MS = 21_600_000
_EVERY_S, _LAG_S, _OVERLAP_MS = 300.0, 300.0, 7_200_000

#: After a failure the poller tries again so much later at most.
_BACKOFF_MS = 300_000


class Judge:
    """Knows the world and what was heard."""

    def __init__(
        self,
        world: World,
        asked: Sequence[Asked],
        heard: Heard,
        interruptions: Mapping[int, int],
        lives: int,
        look_s: float,
    ) -> None:
        """``asked``: of Dialpad's list; ``interruptions``: from when to when; ``lives``: how many.

        ``look_s``: how long the poller does not look at whether there is something to do.
        """
        self._world = world
        self._asked = asked
        self.heard = heard
        self._interruptions = interruptions
        self._lives = lives
        self._look_s = look_s
        self._found = Found()

    def judge(self) -> Found:
        """Look at all of it."""
        self._found = found = Found(lives=self._lives)
        world, heard = self._world, self.heard
        found.legs = len(world.calls)
        found.conversations = len({call.leg.conversation_id for call in world.by_start})
        found.pushes = world.pushes
        found.rows = sum(map(len, world.rows.values()))
        found.unknowable = sum(not call.is_known for call in world.by_start)
        found.wrong["ids with two contents"] += sorted(heard.unlike)
        standing, given = heard.standing(), list(heard.verdicts.values())
        self._judge_calls(standing)
        judge_pairs(found, world, standing, given)
        self._judge_absences(given)
        self._judge_mended()
        self._judge_ledger()
        self._judge_hours()
        self._judge_gaps()
        return found

    # Within the connection

    def _judge_calls(self, standing: Sequence[GivenVerdict]) -> None:
        found = self._found
        given: defaultdict[str, list[GivenVerdict]] = defaultdict(list)
        for each in standing:
            if each.data.is_within:
                given[each.data.call_id].append(each)
        near, swept = self._marks()
        for call in self._world.by_start:
            if not call.is_known:
                continue
            found.judged += 1
            ident = push_id(call)
            verdicts = given.pop(ident, [])
            if len(verdicts) != 1:
                found.wrong["calls without one final verdict"].append(f"{ident}: {len(verdicts)}")
                continue
            (data,) = (each.data for each in verdicts)
            found.words[data.verdict] += 1
            wanted = self._wanted(call, near, swept)
            why = None if data.verdict == "record_missing" else data.fields or data.reason
            if (data.verdict, why) == wanted:
                found.right += 1
            else:
                found.wrong["wrong verdicts"].append(f"{ident}: {data.verdict} {why} not {wanted}")
        found.wrong["verdicts on no call"] += given

    def _marks(self) -> tuple["_Marks", "_Marks"]:
        """When the list was read up to where: by near passes, by deep sweeps."""
        near, swept = _Marks(), _Marks()
        for asked in self._asked:
            # What is read of a gap ends with the gap, and is no mark.
            if asked.to_ms == asked.begun_ms - _LAG_S * 1000:
                near.add(asked)
                if asked.to_ms - asked.from_ms > DAY_MS:
                    swept.add(asked)
        return near, swept

    def _wanted(self, call: Call, near: "_Marks", swept: "_Marks") -> tuple[str, str | None]:
        """The verdict on a call of which its own provider has told, and why, or in which field."""
        listed_ms, ending_ms = call.record.served_ms, call.ending_ms
        if listed_ms is None:
            return "record_missing", None
        if ending_ms is None:
            return "push_missing", "never_pushed" if call.pushed_ms is None else "ending_missing"
        if call.record.wrong_ms:
            return "mismatch", "total_duration_s"
        assert call.knowing_ms is not None
        due_ms = call.ended_ms + SETTLE_MS
        is_long = call.ended_ms - call.leg.started_ms > _OVERLAP_MS
        passed_ms = (swept if is_long else near).passed_ms(call.ended_ms)
        # When the record counts as missing, had it not come.
        absent_ms = max(due_ms, call.knowing_ms, min(passed_ms, call.ended_ms + _HOLD_MS))
        is_late = ending_ms > max(due_ms, listed_ms) or listed_ms > absent_ms
        return "late" if is_late else "matched", None

    def _judge_absences(self, given: Sequence[GivenVerdict]) -> None:
        """What was said to be missing had not come by then, whatever came later."""
        by_row = {row_id(call): call for call in self._world.by_start if call.row is not None}
        for each in given:
            data = each.data
            came_ms: int | None = None
            if data.verdict == "push_missing" and not data.is_within:
                if data.reason == "never_pushed":
                    came_ms = by_row[data.recorded_call_id or ""].knowing_ms
            elif data.verdict.endswith("_missing"):
                call = self._world.calls[int(data.call_id)]
                if data.verdict == "push_missing":
                    came_ms = call.ending_ms
                elif data.reason in ("not_listed", "list_not_read"):
                    entry = call.record if data.is_within else call.row_entry
                    came_ms = None if entry is None else entry.served_ms
            known_ms = each.at_ms if data.is_within else each.at_ms - MOMENT_MS
            if came_ms is not None and came_ms <= known_ms:
                self._found.wrong["calls that had come, and were said to be missing"].append(
                    f"{data.call_id}: {data.verdict} {data.recorded_connection}"
                )

    def _judge_mended(self) -> None:
        found = self._found
        for call in self._world.by_start:
            if call.ending_ms is None and call.record.served_ms is not None:
                found.lost_endings += 1
                if push_id(call) in self.heard.mended:
                    found.mended += 1
                else:
                    found.wrong["lost endings that were not mended"].append(push_id(call))

    # The ledger

    def _judge_ledger(self) -> None:
        found, rows = self._found, self.heard.rows()
        for calls in _conversations([call for call in self._world.by_start if call.is_known]):
            ids = sorted(map(push_id, calls))
            there = {ident: rows.pop(("acme", ident), []) for ident in ids}
            found.in_ledger += sum(len(each) > 0 for each in there.values())
            found.ledger_repeats += sum(max(0, len(each) - 1) for each in there.values())
            if any(len(each) != 1 for each in there.values()):
                found.wrong["calls that are not in one row of the ledger"].append(ids[0])
                continue
            ((row,),) = [each for ident, each in there.items() if ident == ids[0]]
            if sorted(row["call_ids"]) != ids:
                found.wrong["rows with other calls"].append(ids[0])
            else:
                self._judge_row(row, calls)
        for call in self._world.by_start:
            if call.row_entry is not None and call.row_entry.served_ms is not None:
                times = len(rows.pop(("voice", row_id(call)), []))
                found.ledger_repeats += max(0, times - 1)
                if times != 1:
                    found.wrong["Dialgood's calls that are not in one row"].append(row_id(call))
        found.wrong["rows of no call"] += [ident for _, ident in rows]

    def _judge_row(self, row: Mapping[str, Any], calls: Sequence[Call]) -> None:
        is_over = all(call.knowing_ms or call.record.served_ms for call in calls)
        if row["complete"] != is_over:
            self._found.wrong["rows that are complete, or are not"].append(row["conversation_id"])
        legs = [call.leg for call in calls]
        answered = [leg.answered_ms for leg in legs if leg.answered_ms is not None]
        wanted = [
            min(leg.started_ms for leg in legs),
            min(answered, default=None),
            max(call.ended_ms for call in calls),
        ]
        said = [
            None if row[name] is None else ms_of(row[name])
            for name in ("started_at", "connected_at", "ended_at")
        ]
        if is_over and said != wanted:
            self._found.wrong["rows with other times"].append(row["conversation_id"])

    # Hours

    def _judge_hours(self) -> None:
        found, told = self._found, self.heard.hours()
        for hour_ms, (pushed, recorded, both) in self._hours().items():
            found.hours += 1
            wanted = {
                "pushed": pushed,
                "recorded": recorded,
                "both": both,
                "push": round(both / recorded, 6) if recorded else None,
                "record": round(both / pushed, 6) if pushed else None,
            }
            data = told.pop(hour_ms, {})
            said = {name: data.get(name) for name in wanted}
            if said == wanted:
                found.hours_right += 1
            else:
                found.wrong["hours with other sums"].append(f"{hour_ms}: {said} not {wanted}")
        found.wrong["hours of nothing"] += map(str, told)

    def _hours(self) -> dict[int, tuple[int, int, int]]:
        """Hour → how many calls of it were pushed to their end, recorded, both."""
        sums: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for call in self._world.by_start:
            if call.is_known:
                hour = sums[call.leg.started_ms // HOUR_MS * HOUR_MS]
                is_recorded = call.record.served_ms is not None
                is_pushed = call.ending_ms is not None or not is_recorded
                hour["pushed"] += is_pushed
                hour["recorded"] += is_recorded
                hour["both"] += is_pushed and is_recorded
        return {
            hour_ms: (hour["pushed"], hour["recorded"], hour["both"])
            for hour_ms, hour in sums.items()
        }

    # Gaps

    def _judge_gaps(self) -> None:
        """From the end of an interruption, or from when it was told of, to its closing."""
        found = self._found
        told = set()
        for gap in self.heard.gaps.values():
            found.gaps += 1
            told.add(gap.from_ms)
            to_ms = self._interruptions[gap.from_ms] if gap.to_ms is None else gap.to_ms
            name = f"{gap.channel} {gap.from_ms}"
            if gap.closed_ms is None:
                found.wrong["gaps that are open"].append(name)
                continue
            end_ms = max(to_ms, gap.opened_ms)
            took_s = (gap.closed_ms - end_ms) / 1000
            net_s = took_s - self._reading_s(end_ms, gap.closed_ms)
            found.worst_gap_s = max(found.worst_gap_s, took_s)
            found.worst_gap_net_s = max(found.worst_gap_net_s, net_s)
            if net_s > _EVERY_S + _LAG_S + self._look_s:
                found.wrong["gaps closed too late"].append(f"{name}: {took_s:.0f} {net_s:.0f}")
        found.wrong["interruptions that were not told of"] += [
            str(from_ms) for from_ms in self._interruptions if from_ms not in told
        ]

    def _reading_s(self, from_ms: int, to_ms: int) -> float:
        """How much of that time the poller was waiting for the provider's answers, or for it."""
        away_ms, back_ms = self._world.lists_away
        back_ms += _BACKOFF_MS
        if from_ms < back_ms and away_ms < to_ms:
            before_s, after_s = 0.0, 0.0
            if from_ms < away_ms:
                before_s = self._reading_s(from_ms, away_ms)
            if back_ms < to_ms:
                after_s = self._reading_s(back_ms, to_ms)
            return before_s + (min(back_ms, to_ms) - max(away_ms, from_ms)) / 1000 + after_s
        first = bisect_left(self._asked, from_ms, key=lambda asked: asked.ended_ms)
        read_s = 0.0
        for asked in self._asked[first:]:
            if asked.begun_ms >= to_ms:
                break
            read_s += (min(asked.ended_ms, to_ms) - max(asked.begun_ms, from_ms)) / 1000
        return read_s


class _Marks:
    """When the list was read up to where; both only grow."""

    def __init__(self) -> None:
        self._to: list[int] = []
        self._at: list[int] = []

    def add(self, asked: Asked) -> None:
        self._to.append(asked.to_ms)
        self._at.append(asked.ended_ms)

    def passed_ms(self, end_ms: int) -> int:
        """When it had been read up to there; the end of all time if it never was."""
        nth = bisect_left(self._to, end_ms)
        return self._at[nth] if nth < len(self._at) else 10**15


def _conversations(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Calls by which of them name each other, directly or not."""
    parents: dict[int, int] = {}

    def root(ident: int) -> int:
        while (above := parents.get(ident, ident)) != ident:
            ident = above
        return ident

    for call in calls:
        leg = call.leg
        named = leg.through_leg_id
        if leg.through is None:
            named = leg.handed_by_leg_id or leg.conversation_id
        if named is not None:
            parents[root(leg.id)] = root(named)
    groups: defaultdict[int, list[Call]] = defaultdict(list)
    for call in calls:
        groups[root(call.leg.id)].append(call)
    yield from groups.values()
