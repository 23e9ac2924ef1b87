"""A day on which much goes wrong, against the truth; `python -m tests.faults.truth`: a week."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.truth.heard import GivenVerdict, Heard
from tests.faults.truth.judge import Judge
from tests.faults.truth.play import Week, play
from tests.faults.truth.verdict import WORDS, Found, table, together
from tests.faults.truth.world import Weather


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    # So many calls between the same numbers that some cannot be told from each other.
    weather = Weather(heavy=(0.4, 0.1))
    week = Week(calls=2_000, days=1, seed=2, standstill_s=6 * 3600, weather=weather)
    return play(week, Path(tmp_path_factory.mktemp("truth")))


def test_every_call_has_its_one_right_verdict(judge: Judge) -> None:
    found = judge.judge()
    assert found.problems == []
    # All of it has happened.
    assert found.legs > 1_500
    assert found.in_ledger == found.legs - found.unknowable
    assert found.right == found.judged == found.in_ledger
    assert found.pair_right == found.pair_judged > 300
    assert found.mended == found.lost_endings > 100
    assert found.hours_right == found.hours > 20
    assert found.gaps > 20
    assert found.lives > 3
    assert all(found.words[word] > 0 for word in WORDS if word != "ambiguous")
    # That nothing at all comes of one that Dialgood has is rare.
    assert all(found.pair_words[word] > 0 for word in WORDS if word != "push_missing")
    assert found.pair_words["ambiguous"] == found.ties


def _first(heard: Heard, is_it: Callable[[GivenVerdict], bool]) -> GivenVerdict:
    return next(each for each in heard.standing() if is_it(each))


def _lose_a_verdict(heard: Heard) -> None:
    verdict = _first(heard, lambda each: each.data.is_within and each.data.verdict == "matched")
    del heard.verdicts[verdict.id]


def _say_another_word(heard: Heard) -> None:
    _first(heard, lambda each: each.data.verdict == "push_missing").data.verdict = "matched"


def _forget_that_it_was_late(heard: Heard) -> None:
    _first(
        heard, lambda each: each.data.is_within and each.data.verdict == "late"
    ).data.verdict = "matched"


def _choose_where_nobody_can(heard: Heard) -> None:
    verdict = _first(heard, lambda each: each.data.verdict == "ambiguous")
    verdict.data.verdict = "matched"


def _match_another(heard: Heard) -> None:
    of_pair = [
        each
        for each in heard.standing()
        if not each.data.is_within and each.data.verdict == "matched"
    ]
    one, other = of_pair[0].data, of_pair[1].data
    one.recorded_call_id, other.recorded_call_id = other.recorded_call_id, one.recorded_call_id


def _keep_a_second_row(heard: Heard) -> None:
    key, row = next(iter(heard.ledger.items()))
    heard.ledger[key + b"0"] = row


def _lose_a_row(heard: Heard) -> None:
    heard.ledger.popitem()


def _mend_one_less(heard: Heard) -> None:
    heard.mended.pop()


def _measure_another_hour(heard: Heard) -> None:
    one, other, *_ = heard.last_hours
    heard.last_hours[one] = heard.last_hours[other]


def _leave_a_gap_open(heard: Heard) -> None:
    next(iter(heard.gaps.values())).closed_ms = None


def _close_a_gap_late(heard: Heard) -> None:
    gap = next(iter(heard.gaps.values()))
    assert gap.closed_ms is not None
    gap.closed_ms += 600_000


@pytest.mark.parametrize(
    "tamper",
    [
        _lose_a_verdict,
        _say_another_word,
        _forget_that_it_was_late,
        _choose_where_nobody_can,
        _match_another,
        _keep_a_second_row,
        _lose_a_row,
        _mend_one_less,
        _measure_another_hour,
        _leave_a_gap_open,
        _close_a_gap_late,
    ],
)
def test_the_judge_sees_what_is_not_as_it_was(
    judge: Judge, tamper: Callable[[Heard], None]
) -> None:
    with _as_it_was(judge):
        tamper(judge.heard)
        assert judge.judge().problems


@contextmanager
def _as_it_was(judge: Judge) -> Iterator[None]:
    """Whatever is changed of what was heard is as it was in the end."""
    heard = judge.heard
    judge.heard = heard.copy()
    try:
        yield
    finally:
        judge.heard = heard


def test_what_is_wrong_is_told_with_where_it_is() -> None:
    well, ill = Found(legs=10_000, right=7, judged=7), Found(legs=10_000, right=6, judged=7)
    ill.wrong["false matches"] += ["1/2", "3/4"]
    ill.pair_words["ambiguous"] = 21
    assert well.problems == []
    assert ill.problems == ["2 false matches, first 1/2; 3/4", "21 calls are ambiguous"]
    shown = table(["one", "other", "both"], [well, ill, together([well, ill])]).splitlines()
    assert shown[1].split() == ["calls", "(legs)", "10,000", "10,000", "20,000"]
    right = next(line for line in shown if line.startswith("one final verdict"))
    assert right.split()[-5:] == ["%", "85.714", "%", "92.857", "%"]
