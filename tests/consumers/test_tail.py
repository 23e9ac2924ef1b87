"""`dialstream tail` on a log on which others have written, too."""

import asyncio
from pathlib import Path

from ingest.eventlog.journal import open_journal
from ingest.eventlog.log import Record
from tests.conftest import MakeProduct


async def put(path: Path, *records: Record) -> None:
    async with open_journal(path) as journal:
        for record in records:
            receipt = journal.publish([record])
            await receipt.wait(asyncio.get_running_loop().time() + 60)


def test_what_is_no_event_of_ours_ends_nothing_and_is_obeyed_by_no_terminal(
    make_product: MakeProduct,
) -> None:
    product = make_product()
    ours = (("ce_type", b"dialstream.contact.updated"), ("ce_id", b"1"))
    asyncio.run(
        put(
            product.data,
            Record("contacts", b"acme/[/red]\x1b[2J", None, ours),
            Record("contacts", b"acme/1", b"garbage", ours),
            Record("contacts", b"acme/2", b'{"type": "dialstream.contact.updated"}', ours),
            Record("contacts", b"acme/3", b"[]", ()),
            Record("contacts", b"acme/\xff", b"{}", ours),
        )
    )
    ran = product.run("tail", "--from-beginning", "--tombstones")
    assert (ran.code, ran.stderr) == (0, "")
    assert [line.split() for line in ran.stdout.splitlines()] == [
        ["deleted", "contacts", "acme/[/red]\N{REPLACEMENT CHARACTER}[2J"],
        *(
            ["no", "event", "of", "ours", "contacts", f"acme/{key}"]
            for key in ("1", "2", "3", "\N{REPLACEMENT CHARACTER}")
        ),
    ]
    ran = product.run("tail", "--from-beginning", "--connection", "acme", "--type", "contact.made")
    assert (ran.code, ran.output) == (0, "")
