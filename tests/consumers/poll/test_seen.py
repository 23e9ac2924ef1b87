"""What a poller remembers: enough to say nothing twice, and no more than that."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from consumers.poll import seen as module
from consumers.poll.seen import CALLS, Seen, fact_of
from tests.consumers.poll.fake_agents import versioned
from tests.consumers.poll.fakes import Call, listed


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    found = Seen.open(tmp_path / "poll" / "acme.sqlite")
    yield found
    found.close()


def rows(seen: Seen, table: str = "seen") -> int:
    return int(seen._db.execute(f"select count(*) from {table}").get)


def test_a_call_is_new_until_it_is_remembered_and_again_when_it_changes(seen: Seen) -> None:
    first, changed = Call(1, 0, 0).event("poll"), Call(1, 0, 0, version=2).event("poll")
    assert seen.fresh(CALLS, [first]) == [first]
    seen.remember(CALLS, [first])
    assert seen.fresh(CALLS, [first, changed]) == [changed]
    seen.remember(CALLS, [changed])
    assert seen.fresh(CALLS, [first, changed]) == [first]


def test_what_stands_on_a_page_twice_is_new_once(seen: Seen) -> None:
    first, changed = Call(1, 0, 0).event("poll"), Call(1, 0, 0, version=2).event("poll")
    assert seen.fresh(CALLS, [first, first]) == [first]
    assert seen.fresh(CALLS, [first, changed, changed, first]) == [first, changed]


def test_the_recordings_of_a_call_and_the_versions_of_an_agent_are_several(seen: Seen) -> None:
    recordings = []
    for n in (1, 2):
        event = Call(1, 0, 0).event("poll")
        event.type = "dialstream.call.recording_ready"
        event.id = f"fake:acme:recording_ready:1:{n:016x}"
        recordings.append(event)
    versions = [versioned("agent-1", n) for n in (1, 2)]
    for page in (recordings, versions):
        assert seen.fresh("a list", page) == page
        seen.remember("a list", page)
        assert seen.fresh("a list", page) == []


def test_what_is_wanted_again_is_due_at_the_earlier_time(seen: Seen) -> None:
    seen.want("versions", ["a", "b"], 500)
    seen.put_off("versions", "a", 900)
    seen.want("versions", ["a"], 700)
    assert seen.next_wanted("versions") == ("b", 500, 0)
    seen.put_off("versions", "b", 2000)
    seen.want("versions", ["a"], 800)
    assert seen.next_wanted("versions") == ("a", 700, 1)


def test_the_minute_of_reading_is_no_news() -> None:
    contact = listed("contact", "7", 1)
    later = listed("contact", "7", 1)
    later.id = later.id[:-12] + "203001010000"
    assert fact_of(contact) == fact_of(later) == "fake:acme:contact:7:0000000000000001"
    directory = listed("directory", "7", 1)
    assert fact_of(directory) == "fake:acme:directory:7:0000000000000001"
    # Twelve digits that are no minute stay: this one ends in a provider's clock.
    consent = listed("consent", "+15550100", 1, state="opted_out")
    consent.id = "fake:acme:consent:+15550100:opted_out:1790000000123"
    assert fact_of(consent) == consent.id


def test_a_number_may_have_opted_out_of_several_things(seen: Seen) -> None:
    of_all, of_one = (listed("consent", "+15550100", n, state="opted_out") for n in (1, 2))
    assert seen.fresh("consents", [of_all, of_one]) == [of_all, of_one]
    seen.remember("consents", [of_all, of_one])
    assert seen.fresh("consents", [of_all, of_one]) == []


def test_it_is_there_in_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "poll" / "acme.sqlite"
    event = Call(1, 0, 0).event("poll")
    first = Seen.open(path)
    mark = first.adopt(None)
    first.remember(CALLS, [event], wanted=[("recaps", "1", 500)])
    first.close()
    second = Seen.open(path)
    assert second.adopt(mark) == mark
    assert second.fresh(CALLS, [event]) == []
    assert second.next_wanted("recaps") == ("1", 500, 0)
    # With another's mark nothing is sure, but what there was is still known.
    assert second.adopt("another") != mark
    assert second.adopt("another") != second.adopt(None)
    assert second.fresh(CALLS, [event]) == [event]
    assert second.facts(CALLS, [event]) == [f"?{event.id}"]
    second.close()


def test_what_lies_behind_the_sweep_is_forgotten(seen: Seen) -> None:
    calls = [Call(n, 0, 0).event("poll") for n in range(1000)]
    for sweep in range(20):
        turn = seen.begin(CALLS)
        seen.remember(CALLS, calls[sweep * 10 : sweep * 10 + 50])
        seen.forget_before(CALLS, turn)
    assert rows(seen) == 50
    assert seen.fresh(CALLS, calls[190:240]) == []


def test_what_is_wanted_is_bounded(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WANTED_MAX", 10)
    for n in range(25):
        seen.remember(CALLS, [], wanted=[("recaps", str(n), n)])
    assert seen.drop_oldest_wanted("recaps") == 15
    assert seen.next_wanted("recaps") == ("15", 15, 0)
    assert seen.drop_oldest_wanted("recaps") == 0


def test_a_disk_that_takes_nothing_costs_repeats_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "poll").write_text("a file where a folder ought to be")
    event = Call(1, 0, 0).event("poll")
    with capture_logs() as logs:
        seen = Seen.open(tmp_path / "poll" / "acme.sqlite")
    assert [line["event"] for line in logs] == ["poll_memory_lost"]
    seen.remember(CALLS, [event])
    assert seen.fresh(CALLS, [event]) == []
    seen.close()


def test_a_disk_that_is_full_later_does_not_stop_it(seen: Seen) -> None:
    seen.adopt(None)
    page = [Call(n, 0, 0).event("poll") for n in range(50)]
    seen._db.pragma("max_page_count", 1)
    with capture_logs() as logs:
        for _ in range(100):
            seen.remember(CALLS, page)
            page = [Call(int(e.data["call_id"]) + 50, 0, 0).event("poll") for e in page]
    assert [line["event"] for line in logs] == ["poll_memory_lost"]
    last = [Call(4950 + n, 0, 0).event("poll") for n in range(50)]
    assert seen.fresh(CALLS, last) == []


def test_a_file_that_was_left_behind_is_not_believed(tmp_path: Path) -> None:
    """What was published after the disk was full stands in no file."""
    path = tmp_path / "acme.sqlite"
    seen = Seen.open(path)
    mark = seen.adopt(None)
    call = Call(1, 0, 0)
    first = call.event("poll")
    seen.remember(CALLS, [first])
    seen._db.pragma("max_page_count", 1)
    with capture_logs():
        page = 0
        while seen.mark == mark:
            seen.remember(CALLS, [Call(page * 50 + n, 0, 0).event("poll") for n in range(2, 52)])
            page += 1
    call.version = 2
    seen.remember(CALLS, [call.event("poll")])
    saved = seen.mark
    seen.close()
    again = Seen.open(path)
    assert again.adopt(saved) != mark
    assert again.fresh(CALLS, [first]) == [first]
    again.close()


@pytest.mark.parametrize("damage", [b"", b"no database" * 2000, "middle"])
def test_a_file_that_cannot_be_read_is_made_anew(tmp_path: Path, damage: bytes | str) -> None:
    path = tmp_path / "acme.sqlite"
    first = Seen.open(path)
    for at in range(40):
        first.remember(CALLS, [Call(at * 50 + n, 0, 0).event("poll") for n in range(50)])
    first._db.wal_checkpoint()
    first.close()
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        with path.open("r+b") as file:
            file.seek(20_000)
            file.write(b"\x55" * 20_000)
    again = Seen.open(path)
    event = Call(1, 0, 0).event("poll")
    again.remember(CALLS, [event])
    assert again.fresh(CALLS, [event]) == []
    assert again.note("mark") is None
    again.close()


def test_a_glance_changes_nothing_and_needs_a_poller(tmp_path: Path) -> None:
    path = tmp_path / "acme.sqlite"
    assert Seen.glance(path) is None
    assert not path.exists()
    path.write_bytes(b"no database" * 1000)
    assert Seen.glance(path) is None
    path.unlink()
    poller = Seen.open(path)
    event = Call(1, 0, 0).event("poll")
    poller.remember(CALLS, [event])
    glance = Seen.glance(path)
    assert glance is not None
    assert glance.fresh(CALLS, [event]) == []
    glance.close()
    poller.close()
