"""`dialstream up`, with reconciliation that judges soon, and what Dialpad would push to it."""

from typing import Any

from tests.conftest import MakeProduct
from tests.kit import Product, sign


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
