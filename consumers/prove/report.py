"""What came of `dialstream prove`: for people, and as data."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from consumers.prove.load import TIMEOUT_S
from consumers.prove.oracle import WORST_S, Verdict
from consumers.prove.trouble import Happened


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the operator wants."""

    connection: str
    for_s: float
    rate: float
    senders: int
    trouble: str | None
    every_s: float
    #: What was acknowledged may take so long to come to the log, or out of a spool.
    wait_s: float
    #: Post to the receiver that runs, whose topics are the real ones.
    really: bool
    #: Where; None: where the settings say.
    to: str | None
    config: Path | None


@dataclass(slots=True)
class Result:
    verdict: Verdict
    #: Where the deliveries were posted to.
    url: str
    #: Of all answers, and of all records on their way to the log, sorted.
    answered_s: list[float]
    to_log_s: list[float]
    took_s: float
    troubles: list[Happened] = field(default_factory=list)
    #: Starts of the experiment's own receiver; None: it had none.
    starts: int | None = None
    #: Where what is left of it lies, if something went wrong.
    left: list[str] = field(default_factory=list)
    raw_is_kept: bool = True


def percentile(sorted_s: Sequence[float], share: float) -> float:
    """The least that at least this share of all does not exceed; 0 of none."""
    return sorted_s[math.ceil(len(sorted_s) * share) - 1] if sorted_s else 0.0


def _spread(sorted_s: list[float]) -> str:
    p50, p99, worst = (percentile(sorted_s, share) for share in (0.5, 0.99, 1.0))
    return f"p50 {1000 * p50:,.0f} ms, p99 {1000 * p99:,.0f} ms, worst {worst:.2f} s"


def as_data(result: Result, plan: Plan) -> dict[str, Any]:
    verdict = result.verdict
    return {
        "offered": verdict.offered,
        "acknowledged": verdict.acknowledged,
        "answers": {
            "none" if status is None else str(status): count
            for status, count in sorted(verdict.answers.items(), key=lambda it: it[0] or 0)
        },
        "lost": verdict.lost,
        "changed": verdict.changed,
        "out_of_order": verdict.disordered,
        "set_aside": sorted(verdict.set_aside),
        "repeats": verdict.repeats,
        "answer_p50_s": round(percentile(result.answered_s, 0.5), 4),
        "answer_p99_s": round(percentile(result.answered_s, 0.99), 4),
        "answer_worst_s": round(verdict.worst_s, 4),
        "to_log_p50_s": round(percentile(result.to_log_s, 0.5), 3),
        "to_log_p99_s": round(percentile(result.to_log_s, 0.99), 3),
        "to_log_worst_s": round(max(result.to_log_s, default=0.0), 3),
        "took_s": round(result.took_s, 1),
        "troubles": [
            {"at_s": round(each.at_s, 1), "exit": each.code, "output": each.output}
            for each in result.troubles
        ],
        "receiver_starts": result.starts,
        "left": result.left,
        "contents_compared": result.raw_is_kept,
        "one_receiver": plan.to is None,
    }


def show(result: Result, plan: Plan) -> None:
    console = Console(highlight=False, soft_wrap=True)
    verdict = result.verdict
    for what, figure, note, style in _lines(result, plan):
        console.print(f"  {what:<14}{figure:>10}   {note}".rstrip(), style=style, markup=False)
    if not result.raw_is_kept:
        console.print("  Contents were not compared: privacy.drop leaves out what was posted.")
    if verdict.broken:
        console.print("\nThe promise was broken.", style="bold red")
        for text in _doubts(result, plan):
            console.print(f"  {text}", markup=False)
    elif verdict.acknowledged:
        console.print(
            "\nNothing that was acknowledged is missing, changed or out of order.",
            style="bold green",
        )
    for where in result.left:
        console.print(f"  left for you to look at: {where}", markup=False)


def _lines(result: Result, plan: Plan) -> Iterator[tuple[str, str, str, str]]:
    """Each as what it is, its figure, a note and a style."""
    verdict = result.verdict
    pace = verdict.offered / result.took_s if result.took_s else 0.0
    behind = "" if pace > 0.9 * plan.rate else f", not {plan.rate:g}: a sender waits for its 2xx"
    yield "offered", f"{verdict.offered:,}", f"{pace:,.0f} a second{behind}", ""
    yield "acknowledged", f"{verdict.acknowledged:,}", "", ""
    refusals = {s: n for s, n in verdict.answers.items() if s and not 200 <= s < 300}  # noqa: PLR2004
    told = ", ".join(f"{n:,} times {s}" for s, n in sorted(refusals.items()))
    yield "refused", f"{sum(refusals.values()):,}", told, ""
    unanswered = f"no answer within {TIMEOUT_S:g} s, or the connection ended before one"
    yield "unanswered", f"{verdict.answers[None]:,}", unanswered, ""
    for what, ids in (
        ("lost", verdict.lost),
        ("changed", verdict.changed),
        ("out of order", verdict.disordered),
    ):
        yield what, f"{len(ids):,}", f"first {ids[0]}" if ids else "", "bold red" if ids else ""
    if verdict.set_aside:
        yield "set aside", f"{len(verdict.set_aside):,}", "too large for the topic: rejects", ""
    yield "repeated", f"{verdict.repeats:,}", "readers know them by their ids", ""
    slow = "" if verdict.worst_s < WORST_S else ": Dialpad hangs up after 5 s"
    yield "answered", "", f"after {_spread(result.answered_s)}{slow}", ""
    yield "on the log", "", f"after {_spread(result.to_log_s)}, through a spool or not", ""
    if plan.trouble is not None:
        yield _trouble(result.troubles)
    if result.starts is not None:
        yield "receiver", f"{result.starts:,}", "starts of its own, the first included", ""


def _trouble(troubles: Sequence[Happened]) -> tuple[str, str, str, str]:
    if not troubles:
        return "trouble", "0", "the first was due after half of --every", "yellow"
    failed = sum(each.code != 0 for each in troubles)
    return "trouble", f"{len(troubles):,}", f"{failed} exited other than with 0", ""


def _doubts(result: Result, plan: Plan) -> Iterator[str]:
    """What else it can be, where the receiver is not the experiment's own."""
    verdict = result.verdict
    if plan.really and len(verdict.lost) == verdict.acknowledged:
        yield (
            f"Not one is on the log that your settings name: does what answers at {result.url} "
            "write to that one?"
        )
    if plan.to is not None and verdict.disordered:
        yield (
            "Order on the log is promised for one receiver. Between several behind one address the "
            "provider's clock decides: post to one of them to be sure."
        )
