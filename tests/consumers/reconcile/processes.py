"""`dialstream up`, with reconciliation that judges soon, and what Dialpad would push to it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialpad import SmallDialpad
from tests.kit import Product, sign

_PATIENCE_S = 150


def up_with(make_product: MakeProduct, connection: dict[str, Any], **reconcile: Any) -> Product:
    return make_product(
        command=("up",),
        settings={
            "connections": {"acme": connection},
            "reconcile": {"settle_s": 1, "since": "2020-01-01T00:00:00Z", **reconcile},
        },
    )


def push(product: Product, item: dict[str, Any]) -> None:
    """The end of a call of Dialpad's list, as it would have been posted."""
    times = ("date_started", "date_rang", "date_connected", "date_ended", "event_timestamp")
    payload = {
        **item,
        "state": "hangup",
        "call_id": int(item["call_id"]),
        **{name: int(item[name]) for name in times if item.get(name)},
    }
    assert product.post(sign(payload)).status == 204


def push_before_listed(
    product: Product, dialpad: SmallDialpad, items: Sequence[dict[str, Any]]
) -> None:
    """Start it; nobody can read the list before these are in the log: none of them is late."""
    dialpad.status = 503
    product.start()
    for item in items:
        push(product, item)
    wait_until(lambda: len(product.events("call", "--type", "call.ended")) == len(items), product)
    dialpad.status = None


def verdicts(product: Product) -> dict[str, str]:
    """Call → the last verdict of it."""
    found = [e for e in product.events("verdict") if e["type"].startswith("dialstream.verdict")]
    return {event["data"]["call_id"]: event["data"]["verdict"] for event in found}


def wait_for(what: Callable[[], Any], wanted: Any, product: Product) -> None:
    until = time.monotonic() + _PATIENCE_S
    while (found := what()) != wanted:
        assert time.monotonic() < until, f"{found}\n{product.stderr}"
        time.sleep(0.5)


def wait_until(holds: Callable[[], Any], product: Product) -> Any:
    """What it says when it holds."""
    until = time.monotonic() + _PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < until, product.stderr
        time.sleep(0.5)
    return found
