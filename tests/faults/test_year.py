"""Weeks of an account with many agents in fast time; `python -m tests.faults.year`: a year."""

from pathlib import Path

import pytest

from tests.faults.year import live


@pytest.mark.parametrize(("agents", "days", "seed"), [(120, 28.0, 1), (25, 70.0, 2)])
def test_every_content_is_told_once_and_no_watermark_passes_an_unread_record(
    tmp_path: Path, agents: int, days: float, seed: int
) -> None:
    year = live(agents, days, seed, tmp_path)
    assert year.problems == {}
    assert year.records > 1000
    assert year.contents > 1.2 * year.records  # their changes as well
    assert year.failures > 50
    assert year.lives > 2
    # Memory follows the window: two days and a bit of records, and the agents.
    assert year.remembered < year.records / days * 4 + 20 * agents
    assert year.worst_age_s < 24 * 3600  # a night away, and a round
