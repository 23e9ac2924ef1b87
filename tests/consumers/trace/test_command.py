"""`dialstream trace` on a journal and on Kafka, as people and scripts meet it."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.trace.find import Wanted, read_wanted
from ingest.errors import ConfigError
from ingest.eventlog.journal import JournalPublisher
from ingest.eventlog.kinds import open_log
from ingest.eventlog.log import Publisher, Record, records_of
from ingest.eventlog.spool import spool_folder
from ingest.rejects import reject_event
from ingest.settings import load_settings
from tests.consumers.trace.events import NUMBER, T0, call, party, row, stored, verdict
from tests.kafka.cluster import Cluster
from tests.kit import SECRET, Product, Ran, sign

TOPICS = ("calls", "verdicts", "ledger", "rejects")

RINGING = call("5001", "ringing", 0, conversation_id="5001")
#: Rang again somewhere else; only this leg tells that both belong together.
TRANSFERRED: dict[str, Any] = {"conversation_id": "5001", "related_call_ids": ["5001"]}
ANOTHER: dict[str, Any] = {"from_number": "+13035550100", "external": party("+13035550100")}
STORY = [
    *(call(f"9{n:03d}", "ringing", n, **ANOTHER) for n in range(200)),
    RINGING,
    call("5001", "connected", 4000, related_call_ids=[]),
    call("5002", "ringing", 20_000, **TRANSFERRED),
    call("5002", "ringing", 20_000, via="websocket", **TRANSFERRED),
    call("5001", "ended", 21_000),
    call("5002", "ended", 46_000, **TRANSFERRED),
    verdict("5001", "matched", 1, 950_000),
    verdict("5002", "matched", 1, 951_000),
    row("5001", ["5001", "5002"], 951_000, complete=True),
    row("9001", ["9001"], 951_000),
]


def record_of(event: dict[str, Any]) -> Record:
    topic = {"verdict": "verdicts", "conversation": "ledger"}.get(
        event["type"].split(".")[1], "calls"
    )
    found = stored(event, 0, 0, key=f"{event['connection']}/{event['subject'].partition('/')[2]}")
    headers = (("ce_type", event["type"].encode()), ("ce_id", event["id"].encode()))
    return Record(topic, found.key, found.value, headers)


async def publish(log: Publisher, events: Sequence[dict[str, Any]]) -> None:
    for event in events:
        deadline = asyncio.get_running_loop().time() + 60
        await log.publish([record_of(event)]).wait(deadline)


def fill(product: Product, events: Sequence[dict[str, Any]], *others: Sequence[Record]) -> None:
    async def run() -> None:
        async with open_log(load_settings(product.config), "receiver") as log:
            await publish(log, events)
            for records in others:
                await log.publish(records).wait(asyncio.get_running_loop().time() + 60)

    asyncio.run(run())


@pytest.fixture(params=["journal", "kafka"])
def product(request: pytest.FixtureRequest, tmp_path: Path) -> Product:
    """One that is not started; its log has the story."""
    connections = {name: {"provider": "dialpad", "secrets": [SECRET]} for name in ("acme", "beta")}
    made = Product(tmp_path / "product")
    settings: dict[str, Any] = {"connections": connections, "eventlog": {"path": str(made.data)}}
    if request.param == "kafka":
        kafka: Cluster = request.getfixturevalue("kafka")
        prefix = request.getfixturevalue("topic_prefix")
        for topic in TOPICS:
            kafka.create_topic(prefix + topic, partitions=5)
        settings["eventlog"]["kind"] = "kafka"
        settings["kafka"] = kafka.settings(prefix)
    made.configure(settings)
    fill(made, STORY)
    return made


def told(ran: Ran) -> list[tuple[str, str]]:
    """Each moment's leg and type."""
    (story,) = json.loads(ran.stdout)["stories"]
    return [(moment["of"], moment["type"]) for moment in story["moments"]]


WHOLE = [
    ("5001", "call.connected"),
    ("5001", "call.ended"),
    ("5001", "call.ringing"),
    ("5001", "conversation.updated"),
    ("5001", "verdict.matched"),
    ("5002", "call.ended"),
    ("5002", "call.ringing"),
    ("5002", "call.ringing"),
    ("5002", "verdict.matched"),
]


def test_the_whole_conversation_by_whatever_names_it(product: Product) -> None:
    for what in (
        "5002",
        f"dialpad:acme:call:5002:ended:{T0 + 46_000}",
        f"conversation:acme:5001:{951_000:016x}",
        NUMBER,
    ):
        since = ("--since", "2026-09-01") if what == NUMBER else ()
        ran = product.run("trace", what, "--json", *since)
        assert ran.code == 0, (what, ran.output)
        assert sorted(told(ran)) == WHOLE, what
    unknown = ["5001", "--connection", "beta"], ["5003"], ["+12065550199", "--since", "9d"]
    for arguments in unknown:
        assert product.run("trace", *arguments).code == 1
    assert "+15551230001" in product.run("trace", "(206) 555-0123").stdout
    # The call is there, the event is not.
    ran = product.run("trace", f"dialpad:acme:call:5002:ended:{T0 + 46_001}")
    assert ran.code == 1
    assert "has no event" in ran.stdout


def test_for_people(product: Product) -> None:
    ran = product.run("trace", RINGING["id"])
    assert ran.code == 0
    lines = ran.stdout.splitlines()
    assert lines[0] == ("conversation 5001  acme  inbound from +1…0123, answered, complete")
    assert [line.split() for line in lines[1:3]] == [["leg", "1", "5001"], ["leg", "2", "5002"]]
    (asked,) = [line for line in lines if "asked for" in line]
    # With its date, for the log has another one.
    assert asked.split()[:2] == ["09-21", "14:13:20.000"]
    assert "call.ringing" in asked
    (repeat,) = [line for line in lines if "repeat" in line]
    assert "websocket" in repeat
    assert "Secret" not in ran.output
    assert "5550123" not in ran.output


def test_two_calls_of_a_number_are_listed(product: Product) -> None:
    fill(product, [call("6001", "missed", 0)])
    ran = product.run("trace", "+1 (206) 555-0123", "--since", "2026-09-01")
    assert ran.code == 0
    listed = [line.split()[2] for line in ran.stdout.splitlines() if line.startswith("  2026")]
    assert sorted(listed) == ["5001", "5002", "6001"]


# There is no spool before a journal.
@pytest.mark.parametrize("product", ["kafka"], indirect=True)
def test_what_waits_in_a_spool(product: Product) -> None:
    async def spool() -> None:
        journal = JournalPublisher(spool_folder(product.data, "receiver"), where="spool")
        await publish(journal, [call("5002", "recording_ready", 60_000, **TRANSFERRED)])
        await journal.close()

    asyncio.run(spool())
    ran = product.run("trace", "5001", "--json")
    (story,) = json.loads(ran.stdout)["stories"]
    assert sorted(told(ran)) == sorted([*WHOLE, ("5002", "call.recording_ready")])
    waiting = [moment for moment in story["moments"] if moment["spool"]]
    assert [(m["spool"], m["partition"], m["marks"]) for m in waiting] == [
        ("receiver", None, ["in_spool"])
    ]


def test_used_wrongly(product: Product) -> None:
    for arguments in (
        ["dialpad:acme:message:77:-:-:1"],
        ["+x"],
        ["5001", "--since", "yesterday"],
        ["\udcff"],
        ["5001", "--connection", "\udcff"],
    ):
        ran = product.run("trace", *arguments)
        assert ran.code == 2, ran.output
        assert "Traceback" not in ran.output


@given(st.text())
def test_any_text_is_an_id_or_is_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert read_wanted(text, None).ident in text or "%" in text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5001", ("5001", "beta", None, 0)),
        (
            "dialpad:acme:call:5001:hangup:1790000000000",
            ("5001", "acme", "dialpad:acme:call:5001:hangup:1790000000000", 1_789_913_600_000),
        ),
        ("dialgood:bots:record:a%3Ab:0123", ("a:b", "bots", "dialgood:bots:record:a%3Ab:0123", 0)),
        ("verdict:acme:7:acme:2:00", ("7", "acme", "verdict:acme:7:acme:2:00", 0)),
        ("conversation:acme:8:00", ("8", "acme", "conversation:acme:8:00", 0)),
    ],
)
def test_ids_of_events(text: str, wanted: tuple[str, str, str | None, int]) -> None:
    assert read_wanted(text, "beta") == Wanted(*wanted)


def test_connections_that_are_no_longer_configured_are_looked_at(tmp_path: Path) -> None:
    beta = {"provider": "dialpad", "secrets": [SECRET]}
    product = Product(tmp_path / "product", {"connections": {"beta": beta}})
    product.configure({"connections": {"beta": beta}, "eventlog": {"path": str(product.data)}})
    fill(product, [RINGING])
    assert product.run("trace", "5001").code == 1
    # As a receiver leaves it.
    (product.data / "connections.json").write_text('{"acme": 1790000000.0, "beta": 1790000000.0}')
    ran = product.run("trace", "5001", "--json")
    assert ran.code == 0
    assert told(ran) == [("5001", "call.ringing")]


def rejected(leg: int) -> list[Record]:
    body = sign({"call_id": leg, "odd": True})
    what = "acme", "unknown_kind", "odd keys"
    return records_of(reject_event(*what, via="webhook", received_ms=T0, body=body, headers={}))


def test_rejects_of_whatever_leg_are_part_of_it(product: Product) -> None:
    first = {"conversation_id": "5000001", "related_call_ids": ["5000001"]}
    second = call("5000002", "ended", 9)
    second["data"] |= first
    events = [
        call("5000001", "ringing", 0),
        second,
        row("5000001", ["5000001", "5000002"], 9),
    ]
    fill(product, events, *map(rejected, (5_000_001, 5_000_002, 7_000_000)))
    for what in ("5000001", "5000002", f"dialpad:acme:call:5000002:ended:{T0 + 9}"):
        ran = product.run("trace", what, "--json")
        assert ran.code == 0
        kinds = sorted(kind for _, kind in told(ran))
        derived = ["conversation.updated", *["reject.unknown_kind"] * 2]
        assert kinds == ["call.ended", "call.ringing", *derived], what
    # Nothing of it could be read.
    ran = product.run("trace", "7000000", "--json")
    assert ran.code == 0
    assert [kind for _, kind in told(ran)] == ["reject.unknown_kind"]


# There is no spool before a journal.
@pytest.mark.parametrize("product", ["kafka"], indirect=True)
def test_a_reject_that_waits_in_a_spool_stands_beside_that_on_the_log(product: Product) -> None:
    # Two, so that one of them has the position of that in the spool.
    fill(product, [call("5000001", "ringing", 0)], rejected(5_000_001), rejected(5_000_001))

    async def spool() -> None:
        journal = JournalPublisher(spool_folder(product.data, "receiver"), where="spool")
        other = sign({"call_id": 5_000_001, "odd": False})
        what = "acme", "not_json", "odd"
        event = reject_event(*what, via="webhook", received_ms=T0, body=other, headers={})
        await journal.publish(records_of(event)).wait(asyncio.get_running_loop().time() + 60)
        await journal.close()

    asyncio.run(spool())
    (story,) = json.loads(product.run("trace", "5000001", "--json").stdout)["stories"]
    assert [
        (each["type"], each["spool"], each["partition"] is None) for each in story["moments"]
    ] == [
        ("call.ringing", None, False),
        ("reject.unknown_kind", None, False),
        ("reject.unknown_kind", None, False),
        ("reject.not_json", "receiver", True),
    ]


def test_a_provider_s_clock_that_is_years_ahead_hides_nothing(product: Product) -> None:
    ahead: dict[str, Any] = {
        "time": "2031-01-01T00:00:00.000Z",
        "started_at": "2031-01-01T00:00:00.000Z",
    }
    ident = "dialpad:acme:call:8001:ringing:1925000000000"  # 2031-01-01T05:06:40Z
    fill(
        product,
        [
            call("8001", "ringing", 0, **ahead) | {"id": ident},
            call("8001", "ended", 9, **ahead),
            row("8001", ["8001"], 9, started_at=ahead["started_at"]),
            call("8002", "ringing", 0, **ahead, related_call_ids=["8003"]),
            call("8003", "ringing", 0, **ahead),
        ],
    )
    for what in ("8001", ident):
        ran = product.run("trace", what, "--json")
        assert ran.code == 0, what
        assert sorted(kind for _, kind in told(ran)) == [
            *("call.ended", "call.ringing", "conversation.updated")
        ], what
    assert sorted(told(product.run("trace", "8002", "--json"))) == [
        ("8002", "call.ringing"),
        ("8003", "call.ringing"),
    ]
    endless = "9" * 30
    assert product.run("trace", f"dialpad:acme:call:8001:ringing:{endless}").code == 1


def test_a_verdict_of_two_connections_is_told_at_both(product: Product) -> None:
    beta = {"connection": "beta"}
    pair = {"pushed_connection": "acme", "recorded_connection": "beta", "recorded_call_id": "r1"}
    alone = verdict("r1", "push_missing", 1, 50_000, **pair | {"pushed_call_id": None})
    both = verdict("5001", "late", 2, 60_000, **pair, revises=alone["id"])
    other = verdict("5001", "matched", 9, 70_000, **pair | {"recorded_call_id": "r2"})
    counterparts = [{"connection": "acme", "call_id": "5001"}]
    fill(
        product,
        [
            call("r1", "recorded", 46_000) | beta,
            alone | beta,
            both,
            other,
            row("r1", ["r1"], 70_000, counterparts=counterparts) | beta,
        ],
    )
    ran = product.run("trace", "r1", "--json")
    (story,) = json.loads(ran.stdout)["stories"]
    verdicts = [each for each in story["moments"] if each["topic"] == "verdicts"]
    assert sorted((each["type"], each["of"], each["marks"], each["said"]) for each in verdicts) == [
        ("verdict.late", "5001", [], "of 5001 at acme, no. 2, against beta"),
        ("verdict.push_missing", "r1", ["revised"], "no. 1, against beta"),
    ]
