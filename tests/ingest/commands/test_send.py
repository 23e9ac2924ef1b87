"""`dialstream send` against a receiver: each provider's own way of signing, end to end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import MakeProduct
from tests.kit import PROJECT, SECRET, Product, assert_no_traceback

LINE_SECRET = "whsec_aW52ZW50ZWQtZGlhbGxpbmstc2VjcmV0LW5vLTAwMDE="
OTHER_SECRET = "whsec_aW52ZW50ZWQtZGlhbGxpbmstc2VjcmV0LW5vLTAwMDA="
TOKEN = "invented-token-0001"

BODY = json.loads(
    (PROJECT / "tests" / "samples" / "diallink" / "notification-signed.json").read_bytes()
)["body"]

CONNECTIONS: dict[str, Any] = {
    "acme": {"provider": "dialpad", "secrets": [SECRET]},
    "line": {"provider": "diallink", "secrets": [LINE_SECRET]},
    "other": {"provider": "diallink", "secrets": [OTHER_SECRET]},
    "quiet": {"provider": "diallink", "secrets": [TOKEN], "assume": {"notifications": "token"}},
    "named": {
        "provider": "diallink",
        "secrets": [TOKEN],
        "assume": {"notifications": "token", "token_header": "X-Token"},
    },
    "bots": {"provider": "dialgood", "secrets": [TOKEN], "assume": {"push": "token"}},
}


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    settings = {"connections": CONNECTIONS}
    with Product(tmp_path_factory.mktemp("send"), settings) as running:
        yield running


def events(product: Product, connection: str) -> list[dict[str, Any]]:
    ran = product.run("tail", "--from-beginning", "--json", "--connection", connection)
    assert ran.code == 0
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_notification_of_diallink_arrives_as_a_call_event(
    product: Product, tmp_path: Path
) -> None:
    file = tmp_path / "call.json"
    file.write_text(BODY)
    labels = {"connection": "line", "via": "notification"}
    received = product.metrics().sum("dialstream_received_total", **labels)
    repeats = product.metrics().sum("dialstream_deliveries_total", **labels, outcome="repeat")
    for _ in range(2):  # another id and another signature: the same fact
        ran = product.run("send", str(file), "--connection", "line")
        assert (ran.code, "204" in ran.stdout) == (0, True)
    (event,) = (e for e in events(product, "line") if e["type"].startswith("dialstream.call."))
    assert event["type"] == "dialstream.call.ended"
    assert event["via"] == "notification"
    assert event["data"]["raw"] == json.loads(BODY)
    metrics = product.metrics()
    assert metrics.sum("dialstream_received_total", **labels) == received + 2
    assert metrics.sum("dialstream_deliveries_total", **labels, outcome="repeat") == repeats + 1
    assert metrics.sum("dialstream_received_total", connection="line", via="webhook") == 0


def test_each_send_is_a_notification_of_its_own(product: Product, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"type": "queue.opened", "data": {"id": 1}}')
    before = {event["id"] for event in events(product, "line")}
    for _ in range(2):
        assert product.run("send", str(file), "--connection", "line").code == 0
    after = {event["id"] for event in events(product, "line")}
    assert len(after - before) == 2


@pytest.mark.parametrize("connection", ["quiet", "named", "bots"])
def test_with_a_token_it_arrives_and_the_token_stays_out_of_sight(
    product: Product, tmp_path: Path, connection: str
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('{"type": "queue.opened"}')
    bad.write_text("<html>")
    ran = product.run("send", str(good), str(bad), "--connection", connection)
    assert ran.code == 0
    found = events(product, connection)
    assert [event["type"] for event in found if "reject" not in event["type"]] == [
        "dialstream.notification.received"
    ]
    (reject,) = [event for event in found if event["type"] == "dialstream.reject.not_json"]
    assert reject["data"]["headers"] == {}
    assert TOKEN not in json.dumps(found)
    assert TOKEN not in product.stderr
    assert TOKEN not in ran.output


def test_a_reject_of_a_notification_keeps_what_signed_it(product: Product, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text("[]")
    assert product.run("send", str(file), "--connection", "other").code == 0
    (reject,) = events(product, "other")
    assert reject["type"] == "dialstream.reject.unexpected_shape"
    assert reject["data"]["via"] == "notification"
    assert reject["data"]["headers"].keys() == {
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    }


def test_a_secret_of_another_connection_gets_401(product: Product, tmp_path: Path) -> None:
    file = tmp_path / "call.json"
    file.write_text(BODY)
    to = ("--to", f"http://127.0.0.1:{product.port}/webhooks/other")
    ran = product.run("send", str(file), "--connection", "line", *to)
    assert ran.code == 1
    assert "401 bad_signature" in ran.stdout


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("webhook-id", "a")],
        [("webhook-id", "a"), ("webhook-timestamp", "1.5"), ("webhook-signature", "v1,a")],
        [("webhook-id", "a"), ("webhook-timestamp", "9" * 5000), ("webhook-signature", "v1,a")],
        [("webhook-id", "a"), ("webhook-timestamp", "1"), ("webhook-signature", "garbage")],
        [("webhook-id", "a"), ("webhook-timestamp", "1"), ("webhook-signature", "v1,,, , v1")],
        [("webhook-id", "\xff"), ("webhook-timestamp", "\xb2"), ("webhook-signature", "\xe9")],
        [("webhook-id", "a"), ("webhook-id", "a")],
    ],
)
def test_hostile_headers_get_401_and_never_a_500(
    product: Product, headers: list[tuple[str, str]]
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    url = f"http://127.0.0.1:{product.port}/webhooks/line"
    answer = httpx.post(url, content=BODY, headers=raw, trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["reason"] in ("missing_header", "bad_header", "bad_signature")


def test_secrets_that_cannot_be_used_stop_the_start_with_all_faults(
    make_product: MakeProduct,
) -> None:
    connections = {
        "line": {"provider": "diallink", "secrets": ["short", LINE_SECRET, "whsec_c2hvcnQ="]},
        "named": {
            "provider": "diallink",
            "secrets": [TOKEN],
            "assume": {"notifications": "token", "token_header": "X-Token"},
        },
        "bots": {"provider": "dialgood", "secrets": [TOKEN]},
    }
    product = make_product(settings={"connections": connections})
    ran = product.run("receive")
    assert ran.code == 2
    assert "connections.line.secrets: number 1" in ran.output
    assert "connections.line.secrets: number 3" in ran.output
    assert "connections.bots.secrets: Dialgood is not known to push" in ran.output
    assert "c2hvcnQ" not in ran.output
    assert TOKEN not in ran.output
    assert_no_traceback(ran.output)
