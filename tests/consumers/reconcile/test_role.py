"""`dialstream up` where calls are both pushed and read back: verdicts, and what is mended."""

import json
from typing import Any

import pytest

from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialpad import SmallDialpad
from tests.consumers.reconcile.processes import (
    push,
    push_before_listed,
    up_with,
    verdicts,
    wait_for,
)
from tests.kit import SECRET, Product


def complete(product: Product) -> set[str]:
    """Calls of conversations of which only artefacts may follow: here all have one entry point."""
    data = [event["data"] for event in product.events("conversation")]
    return {call_id for row in data if row["complete"] for call_id in row["call_ids"]}


@pytest.mark.timeout(400)
def test_what_was_pushed_is_matched_and_what_was_lost_is_mended(
    make_product: MakeProduct, dialpad: SmallDialpad
) -> None:
    dialpad.add(6, hours_ago=1)
    pushed, lost = dialpad.calls[:4], dialpad.calls[4:]
    product = up_with(make_product, {**dialpad.connection(), "secrets": [SECRET]})
    push_before_listed(product, dialpad, pushed)
    wanted = {str(item["call_id"]): "matched" for item in pushed}
    wanted |= {str(item["call_id"]): "push_missing" for item in lost}
    wait_for(lambda: verdicts(product), wanted, product)
    mended = [e for e in product.events("call", "--type", "call.ended") if e["via"] == "backfill"]
    assert {e["data"]["call_id"] for e in mended} == {str(item["call_id"]) for item in lost}
    product.kill()

    product.start()
    for item in lost:
        push(product, item)
    wanted = {str(item["call_id"]): "matched" for item in pushed}
    wanted |= {str(item["call_id"]): "late" for item in lost}
    wait_for(lambda: verdicts(product), wanted, product)
    wait_for(lambda: complete(product), set(wanted), product)

    def measured() -> Any:
        found = json.loads(product.run("completeness", "--json").stdout)["connections"]
        return found.get("acme")

    # A minute after the first verdict of the hour, which another process has given.
    wait_for(measured, {"pushed": 6, "recorded": 6, "both": 6, "figure": 1.0}, product)
    assert product.stop() == 0


def test_what_became_of_calls_can_be_asked_for(
    make_product: MakeProduct, dialpad: SmallDialpad
) -> None:
    dialpad.add(3, hours_ago=3)
    product = up_with(make_product, {**dialpad.connection(), "secrets": [SECRET]})
    wrong = {
        **dialpad.calls[1],
        "date_started": str(int(dialpad.calls[1]["date_started"]) - 60_000),
    }
    push_before_listed(product, dialpad, [dialpad.calls[0], wrong])
    matched, mismatch, lost = (str(item["call_id"]) for item in dialpad.calls)
    wanted = {matched: "matched", mismatch: "mismatch", lost: "push_missing"}
    wait_for(lambda: verdicts(product), wanted, product)

    shown = product.run("explain", mismatch)
    assert shown.code == 0
    assert "1. mismatch" in shown.stdout
    assert "started_at: pushed" in shown.stdout
    shown = product.run("explain", lost, "--json")
    (told,) = json.loads(shown.stdout)
    assert told["pushed"] is None
    assert [each["verdict"] for each in told["verdicts"]] == ["push_missing"]
    assert product.run("explain", "12").code == 1
