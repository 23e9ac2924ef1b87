"""`dialstream up` where one connection is pushed, and another one has records of the same calls."""

import json

from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialpad import SmallDialpad
from tests.consumers.reconcile.processes import push, push_before_listed, verdicts, wait_for
from tests.kit import SECRET, Product

MINUTE_MS = 60_000


def counterparts(product: Product) -> set[tuple[str, str]]:
    """(connection, the other's call) by the last row of each conversation."""
    last = {event["partitionkey"]: event for event in product.events("conversation")}
    return {
        (event["connection"], each["call_id"])
        for event in last.values()
        for each in event["data"]["counterparts"]
    }


def test_calls_that_two_connections_see_are_matched_and_it_goes_on_when_killed(
    make_product: MakeProduct, dialpad: SmallDialpad
) -> None:
    dialpad.add(4, hours_ago=1, apart_ms=10 * MINUTE_MS)
    dialpad.calls[:] = [
        {**item, "internal_number": "+15551230042", "external_number": "+15551239999"}
        for item in dialpad.calls
    ]
    bots = dialpad.connection()
    pair = {"pushed": "acme", "recorded": "bots", "numbers": ["+15551230042"]}
    product = make_product(
        command=("up",),
        settings={
            "connections": {"acme": {"provider": "dialpad", "secrets": [SECRET]}, "bots": bots},
            "reconcile": {"settle_s": 1, "since": "2020-01-01T00:00:00Z", "pairs": [pair]},
        },
    )
    pushed, lost = dialpad.calls[:3], dialpad.calls[3]
    # Each connection has ids of its own.
    seen = [{**item, "call_id": str(int(item["call_id"]) + 10**6)} for item in pushed]
    push_before_listed(product, dialpad, seen)
    matched = {str(int(item["call_id"]) + 10**6): "matched" for item in pushed}
    alone = {lost["call_id"]: "push_missing"}
    wait_for(lambda: final(product), matched | alone, product)
    assert not [e for e in product.events("call") if e["via"] == "backfill"]
    shown = product.run("explain", lost["call_id"])
    assert shown.code == 0, shown.output
    assert "1. push_missing" in shown.stdout
    assert "recorded at bots, and acme has pushed no call that it could be" in shown.stdout
    assert "+15551239999" not in shown.output
    product.kill()

    product.start()
    late = str(int(lost["call_id"]) + 10**6)
    push(product, {**lost, "call_id": late})
    wait_for(lambda: final(product), matched | {late: "late"}, product)
    both = {("acme", call["call_id"]) for call in dialpad.calls}
    both |= {("bots", str(int(call["call_id"]) + 10**6)) for call in dialpad.calls}
    wait_for(lambda: counterparts(product), both, product)
    (told,) = json.loads(product.run("explain", late, "--json").stdout)
    (pair_told,) = told["pairs"]
    assert [each["call_ids"] for each in pair_told["candidates"] if each["what"] == "taken"] == [
        [lost["call_id"]]
    ]
    assert [each["verdict"] for each in pair_told["verdicts"]] == ["late"]
    assert product.stop() == 0


def final(product: Product) -> dict[str, str]:
    """What a reader has in the end: without what is void."""
    found = [e for e in product.events("verdict") if e["type"].startswith("dialstream.verdict")]
    void = {event["data"]["revises"] for event in found}
    standing = {e["data"]["call_id"] for e in found if e["id"] not in void}
    return {call: word for call, word in verdicts(product).items() if call in standing}
