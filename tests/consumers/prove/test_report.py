"""What is said of an experiment: its figures, and what an operator has to know beside them."""

from dataclasses import replace
from typing import Any

import pytest

from consumers.prove.oracle import Verdict
from consumers.prove.report import Plan, Result, as_data, percentile, show
from consumers.prove.trouble import Happened

PLAN = Plan(
    connection="acme",
    for_s=10,
    rate=200,
    senders=8,
    trouble=None,
    every_s=20,
    wait_s=60,
    really=True,
    to=None,
    config=None,
)


@pytest.mark.parametrize(
    ("count", "p50", "p99", "worst"),
    [(1, 1, 1, 1), (2, 1, 2, 2), (100, 50, 99, 100), (101, 51, 100, 101), (1000, 500, 990, 1000)],
)
def test_figures_by_the_nearest_rank(count: int, p50: float, p99: float, worst: float) -> None:
    """Of 1, 2, … as every textbook has it."""
    values = [float(n) for n in range(1, count + 1)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [p50, p99, worst]


def test_of_nothing_there_are_no_figures() -> None:
    assert percentile([], 0.99) == 0


def result(verdict: Verdict, **more: Any) -> Result:
    given = {"url": "http://hooks.example.com/x", "answered_s": [0.1], "to_log_s": [0.2]}
    return Result(verdict, took_s=10, **{**given, **more})


LOST = Verdict(offered=3, acknowledged=2, lost=["a", "b"])
SWAPPED = Verdict(offered=3, acknowledged=3, disordered=["b"])

ELSEWHERE = "http://hooks.example.com/x write to that one?"
SEVERAL = "Order on the log is promised for one receiver."


@pytest.mark.parametrize(
    ("verdict", "plan", "said"),
    [
        (LOST, PLAN, [ELSEWHERE]),
        (LOST, replace(PLAN, really=False), []),
        (replace(LOST, lost=["a"]), PLAN, []),
        (SWAPPED, replace(PLAN, to="http://hooks.example.com/x"), [SEVERAL]),
        (SWAPPED, PLAN, []),
        (Verdict(offered=3, acknowledged=3), replace(PLAN, to="http://x"), []),
    ],
)
def test_what_else_it_can_be(
    capsys: pytest.CaptureFixture[str], verdict: Verdict, plan: Plan, said: list[str]
) -> None:
    show(result(verdict), plan)
    out = capsys.readouterr().out
    assert [text for text in (ELSEWHERE, SEVERAL) if text in out] == said


@pytest.mark.parametrize(
    ("troubles", "said"),
    [
        ([], "  trouble                0   the first was due after half of --every"),
        (
            [Happened(1, 0, ""), Happened(2, 127, ""), Happened(3, None, "")],
            "  trouble                3   2 exited other than with 0",
        ),
    ],
)
def test_trouble_that_was_none_is_told(
    capsys: pytest.CaptureFixture[str], troubles: list[Happened], said: str
) -> None:
    verdict = Verdict(offered=3, acknowledged=3)
    show(result(verdict, troubles=troubles), replace(PLAN, trouble="exit 127"))
    assert said in capsys.readouterr().out.splitlines()
    show(result(verdict), PLAN)
    assert "trouble" not in capsys.readouterr().out


def test_for_programs() -> None:
    verdict = Verdict(offered=3, acknowledged=2, repeats=1, lost=["a"])
    verdict.answers.update([204, 204, 503, None])
    verdict.worst_s = 0.25
    found = result(
        verdict,
        answered_s=[0.1, 0.25],
        troubles=[Happened(1.23, 1, "no\n")],
        starts=2,
        left=["data/prove-x"],
    )
    assert as_data(found, replace(PLAN, to="http://x")) == {
        "offered": 3,
        "acknowledged": 2,
        "answers": {"none": 1, "204": 2, "503": 1},
        "lost": ["a"],
        "changed": [],
        "out_of_order": [],
        "set_aside": [],
        "repeats": 1,
        "answer_p50_s": 0.1,
        "answer_p99_s": 0.25,
        "answer_worst_s": 0.25,
        "to_log_p50_s": 0.2,
        "to_log_p99_s": 0.2,
        "to_log_worst_s": 0.2,
        "took_s": 10,
        "troubles": [{"at_s": 1.2, "exit": 1, "output": "no\n"}],
        "receiver_starts": 2,
        "left": ["data/prove-x"],
        "contents_compared": True,
        "one_receiver": False,
    }
