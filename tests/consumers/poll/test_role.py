"""`dialstream poll` as a process: killed, stopped, refused, and beside another one."""

import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialpad import KEY, SmallDialpad
from tests.kit import Product, run


def poll_with(make_product: MakeProduct, dialpad: SmallDialpad, **poll: Any) -> Product:
    return make_product(
        command=("poll",),
        settings={
            "connections": {"acme": dialpad.connection(**poll)},
            "logging": {"level": "debug"},
        },
    )


def recorded(product: Product) -> Counter[str]:
    """Ids of records on the log, and how often each is there."""
    return Counter(event["id"] for event in product.events("call", "--type", "call.recorded"))


def subjects(dialpad: SmallDialpad) -> set[str]:
    return {str(call["call_id"]) for call in dialpad.calls}


def wait_until_all_are_there(product: Product, dialpad: SmallDialpad) -> None:
    until = time.monotonic() + 60
    while {ident.split(":")[3] for ident in recorded(product)} != subjects(dialpad):
        assert time.monotonic() < until, product.stderr
        time.sleep(0.2)


def test_it_reads_all_that_is_there_and_says_so(
    make_product: MakeProduct, dialpad: SmallDialpad
) -> None:
    dialpad.add(120, hours_ago=20)
    product = poll_with(make_product, dialpad).start()
    wait_until_all_are_there(product, dialpad)
    dialpad.add(3, hours_ago=0.1)
    wait_until_all_are_there(product, dialpad)
    assert set(recorded(product).values()) == {1}
    product.wait_for_log("poll_pass", 3)
    metrics = product.metrics()
    assert metrics.sum("dialstream_poll_published_total", connection="acme", what="calls") == 123
    assert metrics.sum("dialstream_poll_read_total", connection="acme") >= 126
    assert metrics.sum("dialstream_events_total", via="poll", subject="call") == 123
    assert 0 <= metrics.sum("dialstream_poll_watermark_age_seconds", connection="acme") < 60
    assert product.stop() == 0
    assert {line["event"] for line in product.log()} >= {"started", "poll_pass", "stopped"}


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_killed_at_any_page_nothing_is_lost_and_repeats_have_equal_ids(
    make_product: MakeProduct, dialpad: SmallDialpad, at: int
) -> None:
    """At the third request two pages are on the log, and the watermark has not moved."""
    dialpad.add(170, hours_ago=20)
    product = poll_with(make_product, dialpad)
    killed = threading.Event()

    def kill(number: int) -> None:
        if number == at:
            product.kill()
            killed.set()

    dialpad.on_request = kill
    product.spawn()
    assert killed.wait(30)
    before = recorded(product)
    assert len(before) == (at - 1) * 50
    product.start()
    wait_until_all_are_there(product, dialpad)
    after = recorded(product)
    assert len(after) == 170
    assert set(after) >= set(before)
    assert product.stop() == 0


def test_a_revoked_key_stops_it_and_sighup_brings_it_back(
    make_product: MakeProduct, dialpad: SmallDialpad, tmp_path: Path
) -> None:
    dialpad.add(10, hours_ago=2)
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    connection = {**dialpad.connection(), "api_key_file": str(key)}
    del connection["api_key"]
    product = make_product(
        command=("poll",),
        settings={"connections": {"acme": connection, "other": dialpad.connection()}},
    ).start()
    wait_until_all_are_there(product, dialpad)
    dialpad.key = "another-key"
    product.wait_for_log("poll_stopped", 2)
    assert product.readyz() == 200
    assert b"poll_stopped:acme" in product.admin("/readyz").body
    (line, *_) = [e for e in product.log("poll_stopped") if e["connection"] == "acme"]
    assert line["reason"] == "unauthorized"
    assert KEY not in product.stderr
    key.write_text("another-key")
    product.signal(signal.SIGHUP)
    product.wait_for_log("poll_resumed")
    assert [e["connection"] for e in product.log("poll_resumed")] == ["acme"]
    assert b"poll_stopped:acme" not in product.admin("/readyz").body
    assert b"poll_stopped:other" in product.admin("/readyz").body
    assert product.stop() == 0


def test_a_second_one_stands_by_and_takes_over(
    make_product: MakeProduct, dialpad: SmallDialpad
) -> None:
    dialpad.add(60, hours_ago=20)
    first = poll_with(make_product, dialpad, requests_per_s=5.0).start()
    wait_until_all_are_there(first, dialpad)
    second = make_product(
        "second",
        command=("poll",),
        settings={
            "connections": {"acme": dialpad.connection(requests_per_s=5.0)},
            "eventlog": {"path": str(first.data)},
            "logging": {"level": "debug"},
        },
    ).start()
    second.wait_for_log("standing_by")
    first.wait_for_log("poll_pass", len(first.log("poll_pass")) + 2)
    assert second.log("poll_pass") == []
    first.kill()
    killed_at = time.monotonic()
    dialpad.add(1, hours_ago=0.1)
    second.wait_for_log("poll_pass")
    assert time.monotonic() - killed_at < 60
    wait_until_all_are_there(second, dialpad)
    assert second.stop() == 0
    asked = dialpad.asked_at
    for n in range(len(asked) - 12):  # 5 a second, with some room for how requests arrive
        assert asked[n + 12] - asked[n] > 1.0
    assert set(recorded(second).values()) <= {1, 2}


def test_without_anything_to_poll_it_says_what_is_missing(tmp_path: Path) -> None:
    ran = run("poll", cwd=tmp_path)
    assert ran.code == 2
    assert "api_key" in ran.stderr
