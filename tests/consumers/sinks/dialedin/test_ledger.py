"""What was told is remembered, through a kill and a broken file."""

from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from consumers.sinks.dialedin.ledger import (
    Entry,
    Ledger,
    LedgerError,
    LedgerLostError,
    glance,
)

AT_MS = 1_790_000_000_000


def overwrite(folder: Path) -> None:
    for file in folder.iterdir():
        file.write_bytes(b"overwritten " * 1000)


async def test_what_was_begun_and_what_was_done_is_there_in_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "sink" / "floor.sqlite"
    ledger = Ledger.open(path)
    await ledger.begin("a", "InjectLead", AT_MS)
    await ledger.begin("b", "InjectLead", AT_MS)
    await ledger.end("b", "InjectLead", AT_MS + 1, "ok")
    await ledger.end("c", "InsertDnc", AT_MS + 2, "duplicate")
    assert ledger._db.pragma("synchronous") == 2, "a power cut takes nothing"
    # Nobody closes it.
    again = Ledger.open(path)
    assert await again.entries(["a", "b", "c", "d"]) == {
        "a": Entry(AT_MS, None),
        "b": Entry(AT_MS, "ok"),
        "c": Entry(AT_MS + 2, "duplicate"),
    }
    await again.begin("a", "InjectLead", AT_MS + 9)
    assert await ledger.entries(["a"]) == {"a": Entry(AT_MS + 9, None)}
    assert glance(path, ["a", "b", "c", "d"]) == {"b", "c"}
    await again.forget("a")
    assert (await again.entries(["a", "b"])).keys() == {"b"}
    await ledger.close()
    await again.close()


async def test_nothing_is_forgotten_however_old(tmp_path: Path) -> None:
    """Consents, contacts and conversations stand on the log for ever, and may be read again."""
    ledger = Ledger.open(tmp_path / "floor.sqlite")
    await ledger.end("a", "InsertDnc", AT_MS, "ok")
    await ledger.end("b", "InsertDnc", AT_MS + 10 * 365 * 86_400_000, "ok")
    assert (await ledger.entries(["a", "b"])).keys() == {"a", "b"}
    await ledger.close()


async def test_a_file_has_a_name_of_its_own_for_life(tmp_path: Path) -> None:
    path = tmp_path / "floor.sqlite"
    idents = []
    for life in range(4):
        ledger = Ledger.open(path)
        idents.append(ledger.ident)
        await ledger.close()
        if life == 1:
            path.unlink()
    assert idents[0] == idents[1] != idents[2] == idents[3]
    assert 0 not in idents


async def test_what_breaks_while_it_is_open_is_lost_and_the_next_one_is_good(
    tmp_path: Path,
) -> None:
    path = tmp_path / "floor.sqlite"
    ledger = Ledger.open(path)
    await ledger.end("a", "InsertDnc", AT_MS, "ok")
    overwrite(tmp_path)
    with pytest.raises(LedgerLostError):
        await ledger.entries(["a"])
    with pytest.raises(LedgerLostError):
        await ledger.begin("b", "InjectLead", AT_MS)
    await ledger.close()
    again = Ledger.open(path)
    assert again.ident != ledger.ident
    assert await again.entries(["a"]) == {}
    await again.close()


async def test_a_broken_file_is_made_anew_and_told_of(tmp_path: Path) -> None:
    path = tmp_path / "floor.sqlite"
    path.write_bytes(b"this is no database, and it is long enough to be looked at" * 100)
    with capture_logs() as lines:
        ledger = Ledger.open(path)
    assert [line["event"] for line in lines] == ["sink_ledger_lost"]
    await ledger.end("a", "InsertDnc", AT_MS, "ok")
    await ledger.close()
    assert glance(path, ["a"]) == {"a"}


def test_a_glance_makes_nothing(tmp_path: Path) -> None:
    assert glance(tmp_path / "none.sqlite", ["a"]) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "sink").write_text("a file")
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / "sink" / "floor.sqlite")


async def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "floor.sqlite")
    other = apsw.Connection(str(tmp_path / "floor.sqlite"))
    ledger._db.set_busy_timeout(1)
    other.execute("begin immediate")
    with pytest.raises(LedgerError):
        await ledger.begin("a", "InjectLead", AT_MS)
    other.execute("rollback")
    await ledger.begin("a", "InjectLead", AT_MS)
    other.close()
    await ledger.close()
