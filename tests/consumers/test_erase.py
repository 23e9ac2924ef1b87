"""Erasure: tombstones for whom they are meant, and the truth about what stays."""

import asyncio
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from consumers.erase import Whom, _find, erase
from ingest.errors import ConfigError
from ingest.eventlog.journal import open_journal
from ingest.eventlog.log import Record
from ingest.settings import EventLog, Settings, load_settings
from tests.conftest import MakeProduct
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import Cluster
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
    assert summary["kept"] == {"consents": 1}
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
    assert "Erase at the provider first" in shown
    assert "consents        1  stay" in shown
    assert NUMBER[1:] not in shown
    # 30 days, and the week in which a file takes records.
    written = time.time()
    until = re.findall(r"stay until (\S+):", shown)
    assert len(until) == 2
    for day in until:
        gone = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
        assert written + 35.5 * 86_400 < gone <= written + 37 * 86_400


def test_who_is_not_on_the_log_is_said_to_be_not(product: Product) -> None:
    ran = product.run("erase", "+15550000000", "--yes")
    assert (ran.code, ran.stdout.splitlines()[0]) == (0, "Nothing on the log tells of them.")


def test_on_kafka_a_tombstone_stands_behind_what_it_buries(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(kafka, topic_prefix))
    assert product.run("topics", "create").code == 0
    with product:
        assert product.post(sign(samples()["contact-created"])).status == 204
    done = product.run("erase", NUMBER, "--yes", "--json")
    assert (done.code, json.loads(done.stdout)["erased"]) == (0, {"contacts": 1, "ledger": 0})
    buried, tombstone = kafka.records(f"{topic_prefix}contacts")
    # Compaction looks at one partition at a time.
    assert (tombstone.partition(), tombstone.key()) == (buried.partition(), buried.key())
    assert buried.value() is not None
    assert tombstone.value() is None


def test_tombstones_that_wait_for_kafka_are_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    product = Product(tmp_path)
    asyncio.run(put(product.data, [("ledger", "acme/1", row({"number": NUMBER}))]))
    settings = load_settings(product.config).model_copy(
        update={"eventlog": EventLog(path=product.data)}
    )
    monkeypatch.setattr("consumers.erase.waiting_in_spool", lambda *_: 1)
    whom = Whom.of(NUMBER, None)
    code = erase(settings, whom, with_consents=False, dry_run=False, sure=True, as_json=False)
    assert code == 1
    assert "1 tombstones wait for Kafka: `dialstream spool drain`" in capfd.readouterr().out


async def test_part_of_an_id_is_nobody(tmp_path: Path) -> None:
    """The contact 77 is not in what tells of number …77…, nor of the contact a77."""
    product = Product(tmp_path)
    event = {"contact": {"id": "77"}}
    others = ({"call_id": "1770"}, {"id": "a77"}, {"number": "+15551234577"})
    await put(
        product.data,
        [
            ("calls", "acme/1", json.dumps({"data": event}).encode()),
            *(("calls", "acme/2", json.dumps({"data": other}).encode()) for other in others),
        ],
    )
    settings = load_settings(product.config).model_copy(
        update={"eventlog": EventLog(path=product.data)}
    )
    found = await _find(settings, Whom.of("77", None), with_consents=False)
    assert {topic: left.records for topic, left in found.left.items()} == {"calls": 1}


async def test_a_number_that_is_stored_as_it_came_is_found_as_it_stands(tmp_path: Path) -> None:
    """Of a connection without a region; and a short one."""
    product = Product(tmp_path)
    await put(
        product.data,
        [
            ("ledger", "acme/1", row({"number": "4155550100"})),
            ("ledger", "acme/2", row({"number": "72345"})),
            ("ledger", "acme/3", b"none of ours"),
        ],
    )
    settings = load_settings(product.config).model_copy(
        update={"eventlog": EventLog(path=product.data)}
    )
    for given, key in (("4155550100", b"acme/1"), ("72345", b"acme/2")):
        found = await _find(settings, Whom.of(given, None), with_consents=False)
        assert found.keys == {"contacts": set(), "ledger": {key}}


def test_a_contact_with_more_numbers_is_told_of(product: Product) -> None:
    contact = {**samples()["contact-created"]["contact"], "phones": [NUMBER, OTHER]}
    with product:
        assert product.post(sign({"event": "Updated", "contact": contact})).status == 204
    shown = product.run("erase", NUMBER, "--dry-run").stdout
    assert "other numbers, too" in shown
    assert OTHER[1:] not in shown


def test_a_reject_that_holds_the_number_is_counted(make_product: MakeProduct) -> None:
    product = make_product()
    with product:
        assert product.post(sign({"what": "no kind that we know", "of": NUMBER})).status == 204
    found = json.loads(product.run("erase", NUMBER, "--dry-run", "--json").stdout)
    assert found["left"]["rejects"]["records"] == 1


def test_without_anybody_to_ask_nothing_is_erased(product: Product) -> None:
    ran = product.run("erase", NUMBER)
    assert ran.code == 2
    assert ran.stderr.startswith("dialstream cannot do that:\n  - ")
    assert "--yes" in ran.stderr
    assert tombstones(product) == set()


def test_on_a_terminal_it_asks(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Settings = load_settings(product.config)
    monkeypatch.chdir(product.folder)
    monkeypatch.setattr(Console, "is_terminal", True)
    asked: list[str] = []

    def answer(_: Console, prompt: object, **__: object) -> str:
        asked.append(str(prompt))
        return "n"

    monkeypatch.setattr(Console, "input", answer)
    whom = Whom.of(NUMBER, None)
    code = erase(settings, whom, with_consents=False, dry_run=False, sure=False, as_json=True)
    assert code == 1
    assert "1 of contacts, 2 of ledger" in asked[0]
    assert tombstones(product) == set()


@pytest.mark.parametrize("given", ["+15551230001", "+1 555 123 0001", "+1 (555) 123-0001"])
def test_a_number_is_read_in_any_spelling_that_has_its_country(given: str) -> None:
    assert Whom.of(given, None) == Whom(NUMBER, None, numbers={NUMBER})


@pytest.mark.parametrize("given", ["", " "])
def test_nobody_is_not_everybody(given: str) -> None:
    with pytest.raises(ConfigError, match="name a number"):
        Whom.of(given, None)


@pytest.mark.parametrize("given", ["(415) 555-0100", "415 555 0100", "+999 999"])
def test_a_number_without_its_country_is_told_how_to_be_written(given: str) -> None:
    with pytest.raises(ConfigError, match="with their country"):
        Whom.of(given, None)
