"""Erasure: tombstones for whom they are meant, and the truth about what stays."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from consumers.erase import Whom, erase
from ingest.errors import ConfigError
from ingest.eventlog.journal import open_journal
from ingest.eventlog.log import Record
from ingest.settings import Settings, load_settings
from tests.conftest import MakeProduct
from tests.kit import Product, samples, sign

NUMBER, OTHER = "+15551230001", "+15559990000"


def row(external: dict[str, Any]) -> bytes:
    """As much of a ledger row as anybody asks for here."""
    nobody = dict.fromkeys(("kind", "id", "name", "email", "number", "number_raw"))
    return json.dumps({"data": {"external": {**nobody, **external}}}).encode()


def consent(number: str) -> bytes:
    return json.dumps({"data": {"number": number, "state": "opted_out"}}).encode()


async def put(path: Path, records: list[tuple[str, str, bytes]]) -> None:
    async with open_journal(path) as journal:
        for topic, key, value in records:
            headers = (("ce_type", b"dialstream.test"), ("ce_id", b"1"))
            receipt = journal.publish([Record(topic, key.encode(), value, headers)])
            await receipt.wait(asyncio.get_running_loop().time() + 30)


@pytest.fixture
def product(make_product: MakeProduct) -> Product:
    """Its log has a contact, its calls and texts, rows of the ledger, and opt-outs."""
    product = make_product()
    told = samples()
    with product:
        for name in ("contact-created", "call-inbound-hangup-user", "sms-inbound-user"):
            assert product.post(sign(told[name])).status == 204
        other = {
            **told["contact-created"]["contact"],
            "id": "77",
            "phones": [OTHER],
            "primary_phone": "",
        }
        assert product.post(sign({"event": "Created", "contact": other})).status == 204
    asyncio.run(
        put(
            product.data,
            [
                ("ledger", "acme/1", row({"number": NUMBER})),
                ("ledger", "acme/2", row({"number": OTHER})),
                ("ledger", "acme/3", row({"id": "5000000000003001", "kind": "shared"})),
                ("ledger", "beta/4", row({"number": NUMBER})),
                # Somebody else has the number by now.
                ("ledger", "acme/5", row({"number": NUMBER})),
                ("ledger", "acme/5", row({"number": OTHER})),
                ("consents", f"acme/{NUMBER}", consent(NUMBER)),
            ],
        )
    )
    return product


def tombstones(product: Product) -> set[tuple[str, str]]:
    lines = product.run("tail", "--from-beginning", "--tombstones", "--json").stdout.splitlines()
    found = map(json.loads, lines)
    return {(each["topic"], each["key"]) for each in found if each["data"] is None}


def test_a_number_is_looked_at_first_and_then_erased(product: Product) -> None:
    seen = product.run("erase", NUMBER, "--dry-run", "--json")
    assert seen.code == 0
    assert json.loads(seen.stdout)["erased"] == {"contacts": 1, "ledger": 2}
    assert tombstones(product) == set()

    done = product.run("erase", NUMBER, "--yes", "--json")
    summary = json.loads(done.stdout)
    assert summary["erased"] == {"contacts": 1, "ledger": 2}
    assert {topic: left["records"] for topic, left in summary["left"].items()} == {
        "calls": 1,
        "messages": 1,
    }
    assert tombstones(product) == {
        ("contacts", "acme/5000000000003001"),
        ("ledger", "acme/1"),
        ("ledger", "beta/4"),
    }
    again = product.run("erase", NUMBER, "--yes", "--json")
    assert json.loads(again.stdout)["erased"] == {"contacts": 0, "ledger": 0}


def test_a_contact_goes_with_its_numbers_and_an_opt_out_only_by_wish(product: Product) -> None:
    options = ("--connection", "acme", "--with-consents", "--yes")
    assert product.run("erase", "5000000000003001", *options).code == 0
    assert tombstones(product) == {
        ("contacts", "acme/5000000000003001"),
        ("ledger", "acme/1"),
        ("ledger", "acme/3"),
        ("consents", f"acme/{NUMBER}"),
    }


def test_it_says_what_stays_and_until_when(product: Product) -> None:
    shown = product.run("erase", NUMBER, "--dry-run").stdout
    assert "would be erased" in shown
    assert "retention takes them" in shown
    assert "erase at the provider first" in shown
    assert NUMBER[1:] not in shown


def test_a_reject_that_holds_the_number_is_counted(make_product: MakeProduct) -> None:
    product = make_product()
    with product:
        assert product.post(sign({"what": "no kind that we know", "of": NUMBER})).status == 204
    found = json.loads(product.run("erase", NUMBER, "--dry-run", "--json").stdout)
    assert found["left"]["rejects"]["records"] == 1


def test_without_anybody_to_ask_nothing_is_erased(product: Product) -> None:
    ran = product.run("erase", NUMBER)
    assert ran.code == 2
    assert "--yes" in ran.stderr
    assert tombstones(product) == set()


def test_on_a_terminal_it_asks(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Settings = load_settings(product.config)
    monkeypatch.chdir(product.folder)
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setattr(Console, "input", lambda *_, **__: "n")
    whom = Whom.of(NUMBER, None)
    with pytest.raises(ConfigError, match="nothing was erased"):
        erase(settings, whom, with_consents=False, dry_run=False, sure=False, as_json=True)
    assert tombstones(product) == set()


@pytest.mark.parametrize("given", ["+1 415 555 0100", "(415) 555-0100", "415 555 0100"])
def test_a_number_without_its_country_is_told_how_to_be_written(given: str) -> None:
    with pytest.raises(ConfigError, match="with their country"):
        Whom.of(given, None)
