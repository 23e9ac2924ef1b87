"""`dialstream poll` and `backfill` of a connection with agents: killed, refused, half dead."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialgood import KEY, SmallDialgood
from tests.kit import Product, Ran, assert_no_traceback


@pytest.fixture
def dialgood() -> Iterator[SmallDialgood]:
    with SmallDialgood() as serving:
        yield serving


def poll_with(make_product: MakeProduct, dialgood: SmallDialgood, **poll: Any) -> Product:
    return make_product(
        command=("poll",),
        settings={
            "connections": {"bots": dialgood.connection(**poll)},
            "logging": {"level": "debug"},
        },
    )


def recorded(product: Product) -> Counter[str]:
    """Ids of records on the log, and how often each is there."""
    return Counter(event["id"] for event in product.events("call", "--type", "call.recorded"))


def conversations(product: Product) -> set[str]:
    return {ident.split(":")[3] for ident in recorded(product)}


def wait_until_all_are_there(product: Product, dialgood: SmallDialgood) -> None:
    until = time.monotonic() + 100
    while conversations(product) != dialgood.conversations:
        assert time.monotonic() < until, product.stderr
        time.sleep(0.2)


def test_it_reads_all_agents_and_says_so(
    make_product: MakeProduct, dialgood: SmallDialgood
) -> None:
    for agent_id in dialgood.logs:
        dialgood.add(agent_id, 70, hours_ago=20)
    product = poll_with(make_product, dialgood, also=["directory"]).start()
    wait_until_all_are_there(product, dialgood)
    dialgood.add("agent_0001", 3, hours_ago=0.01)
    wait_until_all_are_there(product, dialgood)
    assert set(recorded(product).values()) == {1}
    product.wait_for_log("poll_pass", 9)
    metrics = product.metrics()
    assert metrics.sum("dialstream_poll_published_total", connection="bots", what="calls") == 213
    assert metrics.sum("dialstream_poll_agents", connection="bots") == 3
    assert metrics.sum("dialstream_poll_behind_seconds", connection="bots") < 60
    assert 0 <= metrics.sum("dialstream_poll_watermark_age_seconds", connection="bots") < 60
    listed = {event["data"]["id"] for event in product.events("directory")}
    assert listed == set(dialgood.logs)
    assert product.stop() == 0
    assert not any("credentials" in path for path in dialgood.paths)


@pytest.mark.parametrize("at", [2, 3, 5])
def test_killed_at_any_request_nothing_is_lost_and_repeats_have_equal_ids(
    make_product: MakeProduct, dialgood: SmallDialgood, at: int
) -> None:
    """What was published before the next request was asked, and no checkpoint tells of it."""
    for agent_id in dialgood.logs:
        dialgood.add(agent_id, 120, hours_ago=20)
    product = poll_with(make_product, dialgood)
    killed = threading.Event()

    def kill(number: int) -> None:
        if number == at:
            product.kill()
            killed.set()

    dialgood.on_request = kill
    product.spawn()
    assert killed.wait(30)
    before = recorded(product)
    product.start()
    wait_until_all_are_there(product, dialgood)
    after = recorded(product)
    assert len(after) == 360
    assert set(after) >= set(before)
    assert product.stop() == 0


def test_killed_again_and_again_nothing_is_lost(
    make_product: MakeProduct, dialgood: SmallDialgood
) -> None:
    """At whatever it does: also between what it has published and its checkpoint."""
    product = poll_with(make_product, dialgood, every_s=0.1)
    for life in range(6):
        for agent_id in dialgood.logs:
            dialgood.add(agent_id, 20, hours_ago=0.01, apart_ms=1)
        product.spawn()
        asked, until = len(dialgood.paths), time.monotonic() + 60
        while len(dialgood.paths) < asked + 3 + life:
            assert time.monotonic() < until, product.stderr
            time.sleep(0.001)
        product.kill()
    product.start()
    wait_until_all_are_there(product, dialgood)
    assert product.stop() == 0


def test_a_revoked_key_stops_this_connection_and_sighup_brings_it_back(
    make_product: MakeProduct, dialgood: SmallDialgood, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    connection = {**dialgood.connection(), "api_key_file": str(key)}
    del connection["api_key"]
    with SmallDialgood() as others:
        product = make_product(
            command=("poll",),
            settings={
                "connections": {"bots": connection, "other": others.connection()},
                "logging": {"level": "debug"},
            },
        ).start()
        dialgood.add("agent_0000", 10, hours_ago=2)
        wait_until_all_are_there(product, dialgood)
        dialgood.key = "another-token"
        product.wait_for_log("poll_stopped", 1)
        assert product.readyz() == 200
        dialgood.add("agent_0001", 10, hours_ago=1)
        # The other one goes on.
        others.add("agent_0002", 4, hours_ago=1)
        until = time.monotonic() + 60
        while not others.conversations <= conversations(product):
            assert time.monotonic() < until, product.stderr
            time.sleep(0.2)
        assert b"poll_stopped:bots" in product.admin("/readyz").body
        assert b"poll_stopped:other" not in product.admin("/readyz").body
        key.write_text("another-token")
        product.signal(signal.SIGHUP)
        until = time.monotonic() + 60
        while not dialgood.conversations <= conversations(product):
            assert time.monotonic() < until, product.stderr
            time.sleep(0.2)
        product.wait_for_log("poll_resumed")
        assert {line["connection"] for line in product.log("poll_resumed")} == {"bots"}
        assert KEY not in product.stderr
        assert "another-token" not in product.stderr
        assert product.stop() == 0


# Backfill


def backfill(product: Product, *arguments: str, days: float = 3) -> Ran:
    from_ = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    to = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ran = product.run("backfill", "bots", "--from", from_, "--to", to, *arguments)
    assert_no_traceback(ran.output)
    return ran


def test_a_backfill_reads_all_agents_and_leaves_out_one_that_is_gone(
    make_product: MakeProduct, dialgood: SmallDialgood
) -> None:
    for agent_id in dialgood.logs:
        dialgood.add(agent_id, 70, hours_ago=60)
    dialgood.statuses["agent_0001"] = 404
    product = poll_with(make_product, dialgood)
    told = json.loads(backfill(product, "--json").stdout)
    assert (told["calls"], told["new"], told["done"]) == (140, 140, True)
    assert set(recorded(product).values()) == {1}
    assert len(recorded(product)) == 140
    assert not (product.data / "backfill" / "bots.sqlite").exists()


def test_an_agent_that_cannot_be_read_keeps_a_backfill_from_none_of_the_others(
    make_product: MakeProduct, dialgood: SmallDialgood
) -> None:
    for agent_id in dialgood.logs:
        dialgood.add(agent_id, 70, hours_ago=60)
    dialgood.statuses["agent_0000"] = 400
    product = poll_with(make_product, dialgood)
    ran = backfill(product, "--json")
    assert ran.code == 1
    told = json.loads(ran.stdout)
    assert (told["calls"], told["done"]) == (140, False)
    assert told["error"]
    assert len(recorded(product)) == 140


def test_what_the_poller_has_published_of_an_agent_is_not_published_again(
    make_product: MakeProduct, dialgood: SmallDialgood
) -> None:
    for agent_id in dialgood.logs:
        dialgood.add(agent_id, 20, hours_ago=60)
        dialgood.add(agent_id, 30, hours_ago=20)
    with poll_with(make_product, dialgood) as product:
        until = time.monotonic() + 60
        while len(recorded(product)) < 90:
            assert time.monotonic() < until, product.stderr
            time.sleep(0.2)
        told = json.loads(backfill(product, "--json").stdout)
        assert (told["calls"], told["new"]) == (150, 60)
        assert product.stop() == 0
    assert len(recorded(product)) == 150
    assert set(recorded(product).values()) == {1}
