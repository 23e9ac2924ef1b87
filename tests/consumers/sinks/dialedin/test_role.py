"""The sink as a process: on the journal, against a simulated DialedIn, killed in the midst."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGHUP
from typing import Any

import pytest

from ingest.simulator.dialedin_server import SimulatedDialedIn, simulated_dialedin
from schemas.event import Event
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.consumers.sinks.dialedin.events import (
    consent,
    contact,
    conversation,
    event,
    message,
    put,
)
from tests.ingest.commands.running import running
from tests.kit import SECRET, Product, assert_no_traceback, samples, sign

PATIENCE_S = 90.0

ALL = {
    "dnc_on_stop": True,
    "dnc_on_consent": True,
    "lead_on_missed": True,
    "lead_campaign": "Example Campaign",
    "update_on_contact": True,
    "requests_per_s": 20,
}


@pytest.fixture
def dialedin() -> Iterator[SimulatedDialedIn]:
    with running(simulated_dialedin()) as server:
        yield server


def settings(*servers: SimulatedDialedIn, **more: Any) -> dict[str, Any]:
    """Connections acme, from which events come, and floor, floor2, … which are told of them."""
    connections: dict[str, Any] = {
        "acme": {"provider": "dialpad", "secrets": [SECRET], "region": "US"}
    }
    for nth, server in enumerate(servers, 1):
        connections["floor" if nth == 1 else f"floor{nth}"] = {
            "provider": "dialedin",
            "api_key": server.token,
            "account_id": server.account,
            "base_url": server.base_url,
            "sink": ALL,
            **more,
        }
    return {"connections": connections}


def wait(until: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def put_on(product: Product, *events: Event) -> None:
    asyncio.run(put(product.data, events))


def ready(product: Product, connection: str = "floor") -> None:
    """Once its rules are on; what is recorded from now on is their business."""
    wait(
        lambda: (
            {line["group"] for line in product.log("subscribed")}
            >= {f"sink-{connection}-{what}" for what in ("dnc", "leads", "updates")}
        ),
        "it has not begun",
    )


def test_up_tells_dialedin_of_a_text_that_says_stop(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    with make_product(settings=settings(dialedin), command=("up",)) as product:
        ready(product)
        sms = samples()["sms-inbound-user"]
        assert product.post(sign({**sms, "text": "Hello"})).status == 204
        assert (
            product.post(sign({**sms, "id": 5_000_000_000_009_001, "text": "Stop!"})).status == 204
        )
        wait(lambda: dialedin.floor.dnc, "nobody is on the list")
        assert dialedin.floor.dnc == {sms["from_number"].removeprefix("+1")}
        wait(lambda: product.log("sink_told"), "it does not say so")
        metrics = product.metrics()
        assert metrics.sum("dialstream_sink_commands_total", action="InsertDnc", outcome="ok") == 1
        passed = metrics.sum("dialstream_sink_passed_over_total", reason="not_stop")
        assert passed == 1
        assert product.stop() == 0
        for secret in (dialedin.token, sms["from_number"], sms["from_number"][2:]):
            assert secret not in product.stderr
    assert dialedin.scandals == 0


def test_each_rule_is_followed_and_a_number_elsewhere_is_a_reject_of_the_group(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    with make_product(settings=settings(dialedin), command=("sink",)) as product:
        ready(product)
        at_ms = now_ms()
        put_on(
            product,
            event(conversation(), at_ms=at_ms),
            event(conversation(recap={"summary": "x"}), at_ms=at_ms, nth=2),
            event(conversation("1102", outcome="answered"), at_ms=at_ms),
            event(consent(number="+15551230002"), at_ms=at_ms),
            event(consent("opted_in", number="+15551230003"), at_ms=at_ms),
            event(message(ident="m9", from_number="+447700900001"), at_ms=at_ms),
        )
        wait(lambda: dialedin.floor.leads and dialedin.floor.dnc, "nothing is told")
        put_on(product, event(contact(), at_ms=at_ms))
        wait(
            lambda: dialedin.floor.leads[0].fields["FirstName"] == "New", "the lead is not updated"
        )
        wait(lambda: product.log("event_rejected"), "nothing is rejected")
        assert [line["reason"] for line in product.log("event_rejected")] == ["not_plus_one"]
        assert product.stop() == 0
    assert len(dialedin.floor.injected) == 1
    assert dialedin.floor.dnc == {"5551230002"}
    assert dialedin.floor.rung == []
    assert "447700900001" not in product.stderr


def test_a_no_to_one_number_of_a_contact_keeps_back_no_other(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    numbers = ("5551230001", "5551230002")
    for number in numbers:
        lead = {"Campaign": "Example Campaign", "PrimaryPhone": number, "ImportOnly": "1"}
        dialedin.floor.inject(lead)
    with make_product(settings=settings(dialedin), command=("sink",)) as product:
        ready(product)
        dialedin.faults.force("odd_texts")
        put_on(product, event(contact(*(f"+1{number}" for number in numbers)), at_ms=now_ms()))
        wait(lambda: len(dialedin.sent("UpdateLead")) == 2, "one is not told")
        # What failed was tried again after that.
        told = [given["Identifier"] for given in dialedin.sent("UpdateLead")]
        assert told == ["5551230002", "5551230001"]
        assert product.stop() == 0


def test_what_was_there_before_the_rules_is_none_of_their_business(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    product = make_product(settings=settings(dialedin), command=("sink",))
    put_on(
        product,
        *(event(conversation(f"11{nth}"), at_ms=now_ms() - 60_000) for nth in range(30)),
        event(message(), at_ms=now_ms() - 60_000),
    )
    with product:
        ready(product)
        mark = event(message(ident="now", from_number="+15551239999"), at_ms=now_ms())
        put_on(product, mark)
        wait(lambda: dialedin.floor.dnc, "what is new is not told")
        # What came before the mark in other topics has been read by then, or is read at the stop.
        wait(
            lambda: (
                product.metrics().sum("dialstream_sink_passed_over_total", reason="before_the_rule")
                == 31
            ),
            "the old is not passed over",
        )
    assert dialedin.floor.dnc == {"5551239999"}
    assert dialedin.floor.leads == []


def test_an_opt_out_does_not_wait_for_an_address_book(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    more = {"sink": ALL | {"requests_per_s": 10}}
    with make_product(settings=settings(dialedin, **more), command=("sink",)) as product:
        ready(product)
        put_on(
            product,
            *(event(contact(contact_id=f"c{nth}"), at_ms=now_ms(), nth=nth) for nth in range(400)),
        )
        wait(lambda: len(dialedin.heard) > 3, "the address book is not read")
        put_on(product, event(message(), at_ms=now_ms()))
        wait(lambda: dialedin.floor.dnc, "the opt-out waits")
        assert len(dialedin.heard) < 200
        assert product.stop() == 0


def test_killed_again_and_again_it_loses_no_opt_out_and_makes_no_second_lead(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    calls = 30
    more = {"assume": {"look_after_s": 0.5}, "sink": ALL | {"requests_per_s": 15}}
    with make_product(settings=settings(dialedin, **more), command=("sink",)) as product:
        ready(product)
        at_ms = now_ms()
        numbers = [f"555123{nth:04d}" for nth in range(calls)]
        put_on(
            product,
            *(
                event(conversation(f"12{nth:03d}", external={"number": f"+1{number}"}), at_ms=at_ms)
                for nth, number in enumerate(numbers)
            ),
            *(
                event(message(ident=f"m{nth}", from_number=f"+1{number}"), at_ms=at_ms)
                for nth, number in enumerate(numbers)
            ),
        )
        for heard in (10, 25, 40, 60):
            wait(lambda heard=heard: len(dialedin.heard) >= heard, "it does not go on")  # type: ignore[misc]
            product.kill()
            product.start()
        floor = dialedin.floor
        wait(lambda: len(floor.dnc) == len(floor.leads) == calls, "something is missing")
        assert product.stop() == 0
        # Once more from the beginning: a group that has forgotten how far it was.
        for group in (product.data / "journal" / "groups").glob("sink-floor-*"):
            shutil.rmtree(group)
        product.start()
        wait(
            lambda: (
                product.metrics().sum("dialstream_sink_commands_total", outcome="repeat")
                == 2 * calls
            ),
            "it does not read again",
        )
        assert product.stop() == 0
    assert sorted(lead.fields["PrimaryPhone"] for lead in floor.leads) == numbers
    assert len(floor.injected) == calls
    assert dialedin.commands["InjectLead failed"] == 0
    assert floor.rung == []
    assert floor.dnc == set(numbers)


def test_a_refused_token_stops_its_connection_and_no_other(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    with running(simulated_dialedin()) as other:
        dialedin.faults.key_revoked = True
        with make_product(settings=settings(dialedin, other), command=("sink",)) as product:
            ready(product, "floor")
            ready(product, "floor2")
            put_on(product, event(message(), at_ms=now_ms()))
            wait(lambda: product.log("sink_stopped"), "it does not say that it has stopped")
            wait(lambda: other.floor.dnc, "the other one stands still")
            [stopped] = product.log("sink_stopped")
            assert (stopped["connection"], stopped["group"]) == ("floor", "sink-floor-dnc")
            assert "api_key_file" in stopped["detail"]
            wait(
                lambda: "sink_stopped:floor" in product.admin("/readyz").body.decode(),
                "it is not told as degraded",
            )
            assert product.readyz() == 200
            asked = len(dialedin.requests)
            dialedin.faults.key_revoked = False
            product.signal(SIGHUP)
            wait(lambda: dialedin.floor.dnc, "it does not go on")
            assert asked <= 3, "it went on asking"
            assert dialedin.token not in product.stderr
            assert product.stop() == 0


def test_what_is_refused_for_leads_alone_stops_no_opt_out(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    dialedin.floor.campaigns = frozenset()
    more = {"assume": {"refused": ["campaign not found"]}}
    with make_product(settings=settings(dialedin, **more), command=("sink",)) as product:
        ready(product)
        put_on(product, event(conversation(), at_ms=now_ms()))
        wait(lambda: product.log("sink_stopped"), "the leads are not stopped")
        [stopped] = product.log("sink_stopped")
        assert stopped["group"] == "sink-floor-leads"
        put_on(product, event(message(), at_ms=now_ms()))
        wait(lambda: dialedin.floor.dnc, "the opt-out waits for the leads")
        assert product.stop() == 0


def test_what_was_done_before_is_no_sign_that_the_token_is_good_again(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    with make_product(settings=settings(dialedin), command=("sink",)) as product:
        ready(product)
        put_on(product, event(message(), at_ms=now_ms()))
        wait(lambda: product.log("sink_told"), "it is not told")
        dialedin.faults.key_revoked = True
        new = message(ident="m2", from_number="+15551230002")
        put_on(product, event(new, at_ms=now_ms()))
        wait(lambda: product.log("sink_stopped"), "it is not stopped")
        put_on(product, event(message(), at_ms=now_ms(), nth=2))
        product.signal(SIGHUP)
        wait(lambda: len(product.log("sink_stopped")) == 2, "it is not tried again")
        assert not product.log("sink_resumed")
        dialedin.faults.key_revoked = False
        product.signal(SIGHUP)
        wait(lambda: product.log("sink_resumed"), "it does not go on")
        assert len(dialedin.floor.dnc) == 2
        assert product.stop() == 0


def test_what_is_under_way_at_the_end_is_heard_out(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    with make_product(settings=settings(dialedin), command=("sink",)) as product:
        ready(product)
        dialedin.faults.slow_s = 1.0
        dialedin.faults.force("slow", after=1)
        put_on(product, event(conversation(), at_ms=now_ms()))
        wait(lambda: dialedin.faults.counts["slow"], "the lead is not on its way")
        assert product.stop() == 0
        [told] = product.log("sink_told")
        assert (told["action"], told["outcome"]) == ("InjectLead", "ok")


# The ledger


def test_without_the_ledger_that_knows_what_is_under_way_leads_wait_and_opt_outs_do_not(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    more = {"assume": {"look_after_s": 3600}}
    with make_product(settings=settings(dialedin, **more), command=("sink",)) as product:
        ready(product)

        def put_missed(ident: str) -> None:
            caller = {"number": f"+1555123{ident}"}
            put_on(product, event(conversation(ident, external=caller), at_ms=now_ms()))

        def wait_told(times: int) -> None:
            """So it stands in the ledger, too."""

            def told() -> int:
                return sum(line["outcome"] == "ok" for line in product.log("sink_told"))

            wait(lambda: told() == times, f"it has not told {times} leads")

        def next_life_waits() -> None:
            said = len(product.log("partition_paused"))
            product.start()
            wait(lambda: len(product.log("partition_paused")) > said, "the lead does not wait")

        put_missed("0001")
        wait_told(1)
        # With its ledger it knows.
        product.kill()
        product.start()
        put_missed("0002")
        wait_told(2)
        assert not product.log("partition_paused")
        # As if it had gone on elsewhere.
        product.kill()
        shutil.rmtree(product.data / "sink")
        put_missed("0003")
        next_life_waits()
        put_on(product, event(message(), at_ms=now_ms()))
        wait(lambda: dialedin.floor.dnc, "the opt-out waits")
        # It does not forget that when it starts once more.
        product.kill()
        next_life_waits()
        assert {line["reason"] for line in product.log("partition_paused")} == {"not_now"}
        assert product.stop() == 0
    assert len(dialedin.sent("InjectLead")) == 2


def test_a_ledger_that_cannot_be_made_or_breaks_holds_up_no_opt_out_for_good(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    product = make_product(settings=settings(dialedin), command=("sink",))
    product.data.mkdir(parents=True, exist_ok=True)
    folder = product.data / "sink"
    folder.write_text("in the way")
    with product:
        wait(lambda: product.log("sink_waits"), "it does not say why it waits")
        assert product.log("sink_waits")[0]["reason"] == "disk"
        folder.unlink()
        ready(product)
        put_on(product, event(message(), at_ms=now_ms()))
        wait(lambda: product.log("sink_told"), "it does not go on")
        for file in folder.iterdir():
            file.write_bytes(b"overwritten " * 1000)
        number = "+15551230002"
        put_on(product, event(message(ident="m2", from_number=number), at_ms=now_ms()))
        wait(lambda: len(dialedin.floor.dnc) == 2, "it does not go on")
        assert product.log("sink_ledger_lost")
        assert not product.log("unexpected_error")
        assert product.stop() == 0


def test_a_token_that_was_replaced_in_its_file_is_taken_up_at_once(
    dialedin: SimulatedDialedIn, make_product: MakeProduct, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(dialedin.token)
    file.chmod(0o600)
    given = settings(dialedin)
    del given["connections"]["floor"]["api_key"]
    given["connections"]["floor"]["api_key_file"] = str(file)
    with make_product(settings=given, command=("sink",)) as product:
        ready(product)
        dialedin.token = "another-token-of-the-simulated-one"
        file.write_text(dialedin.token)
        put_on(product, event(message(), at_ms=now_ms()))
        wait(lambda: dialedin.floor.dnc, "it does not look into the file")
        assert not product.log("sink_stopped")
        assert product.stop() == 0


def test_a_second_one_stands_by_and_takes_over(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    with make_product(settings=settings(dialedin), command=("sink",)) as first:
        ready(first)
        second = make_product("second", settings=settings(dialedin), command=("sink",))
        second.environment["DIALSTREAM_EVENTLOG__PATH"] = str(first.data)
        with second:
            wait(lambda: second.log("standing_by"), "it does not stand by")
            put_on(first, event(message(), at_ms=now_ms()))
            wait(lambda: dialedin.floor.dnc, "the first does nothing")
            first.kill()
            put_on(first, event(message(ident="m2", from_number="+15551230002"), at_ms=now_ms()))
            wait(lambda: len(dialedin.floor.dnc) == 2, "the second does nothing")
            assert second.stop() == 0


# The command


def test_dry_run_shows_what_would_be_told_and_tells_nobody(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    product = make_product(settings=settings(dialedin))
    at_ms = now_ms()
    put_on(
        product,
        event(message("hello", ident="m0"), at_ms=at_ms),
        event(message(), at_ms=at_ms + 1),
        event(conversation(), at_ms=at_ms + 2),
        event(conversation(recap={"summary": "x"}), at_ms=at_ms + 3, nth=2),
        event(contact("+15551230007", "+447700900001", last_name="\x1b[2JName"), at_ms=at_ms + 4),
        event(consent(number="+15551230009"), at_ms=at_ms - 40 * 3_600_000),
        event(
            conversation("1102", external={"number": "+15551230008"}),
            at_ms=at_ms + 5,
            over_ms=at_ms - 40 * 3_600_000,
        ),
    )
    ran = product.run("sink", "--dry-run")
    assert (ran.code, ran.stderr) == (0, "")
    for hidden in ("5551230001", "5551230007", "447700900001", "Example", "Customer", "New"):
        assert hidden not in ran.stdout
    lines = ran.stdout.splitlines()
    assert len(lines) == 6
    assert "InsertDnc +1…0001" in lines[0]
    assert "InjectLead +1…0001  stored only" in lines[1]
    assert "UpdateLead +1…0007" in lines[2] + lines[3]
    assert "none of +1" in lines[2] + lines[3]
    assert "InjectLead +1…0008" in lines[4]
    assert lines[5].startswith("4 command(s)")

    shown = product.run("sink", "--dry-run", "--reveal")
    assert "FirstName=New  LastName=\ufffd[2JName" in shown.stdout
    assert "\x1b" not in shown.stdout
    shown = product.run("sink", "--dry-run", "--reveal", "--json", "--since", "7d")
    told = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(each["action"], each.get("number")) for each in told] == [
        ("InsertDnc", "5551230009"),
        ("InsertDnc", "5551230001"),
        ("InjectLead", "5551230001"),
        (None, None),
        ("UpdateLead", "5551230007"),
        ("InjectLead", "5551230008"),
    ]
    assert told[2]["fields"]["FirstName"] == "Example"
    assert told[2]["dial"] is False
    assert not any(each.get("told_before") for each in told)
    assert list(dialedin.requests) == []
    assert not (product.data / "sink").exists()


def test_without_a_rule_there_is_nothing_to_run(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    product = make_product(settings=settings(dialedin, sink={}))
    for arguments in ((), ("--dry-run",)):
        ran = product.run("sink", *arguments)
        assert (ran.code, ran.stdout) == (2, "")
        assert "dnc_on_stop = true" in ran.stderr
        assert_no_traceback(ran.stderr)
    ran = product.run("sink", "--reveal")
    assert ran.code == 2
