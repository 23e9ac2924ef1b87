"""A week on which everything goes wrong that can; a longer one is `python -m tests.faults.week`."""

from pathlib import Path

from tests.faults.week.play import Week, play


async def test_a_week_through_all_channels_with_all_faults(tmp_path: Path) -> None:
    week = Week(calls=750, seed=1, lasts_s=12.0)
    found = await play(week, tmp_path)
    assert found.problems == []
    assert found.legs > 1000
    assert found.facts > 6000
    # How often there was a socket depends on the machine.
    assert found.pushed["webhook"] > 0.8 * found.facts
    assert found.pushed["websocket"] > 0.05 * found.facts
    assert found.on_stream >= max(found.pushed.values())
    assert found.copies > found.on_stream
    assert found.records >= found.legs
    assert found.gaps_opened["webhook"] == 1
    assert found.gaps_opened["websocket"] >= 1
    for fault in ("dropped", "repeated", "delayed", "reordered", "forged", "late_bodies"):
        assert found.strikes[fault] > 50, fault
    for fault in ("page_changes", "page_skips", "records_late", "frames_binary"):
        assert found.strikes[fault] > 0, fault
