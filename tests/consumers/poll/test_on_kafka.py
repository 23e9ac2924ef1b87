"""`dialstream poll` on a real cluster: two of them, of which one works."""

import time
from collections import Counter
from pathlib import Path

from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialpad import SmallDialpad
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import Cluster
from tests.kit import Product


def recorded(product: Product) -> Counter[str]:
    return Counter(event["id"] for event in product.events("call", "--type", "call.recorded"))


def wait_for(product: Product, count: int) -> None:
    until = time.monotonic() + 90
    while len(recorded(product)) < count:
        assert time.monotonic() < until, product.stderr
        time.sleep(0.5)


def place(product: Product) -> str:
    """What it last said of its part: ``connection_taken``, ``standing_by``, ..."""
    words = ("started", "connection_taken", "connection_left", "standing_by")
    said: list[str] = [line["event"] for line in product.log() if line["event"] in words]
    return said[-1]


def test_one_of_two_works_and_the_other_takes_over(
    make_product: MakeProduct,
    dialpad: SmallDialpad,
    kafka: Cluster,
    topic_prefix: str,
    tmp_path: Path,
) -> None:
    dialpad.add(120, hours_ago=20)
    settings = {
        **settings_for(kafka, topic_prefix),
        "connections": {"acme": dialpad.connection()},
        "logging": {"level": "debug"},
    }
    one, other = (make_product(name, command=("poll",), settings=settings) for name in "ab")
    assert one.run("topics", "create").code == 0
    one.start()
    other.start()
    # Whoever was first may have to give it up when the second one joins.
    until = time.monotonic() + 60
    while {place(one), place(other)} != {"connection_taken", "standing_by"}:
        assert time.monotonic() < until, one.stderr + other.stderr
        time.sleep(0.5)
    wait_for(one, 120)
    first, second = (one, other) if place(one) == "connection_taken" else (other, one)
    idle = len(second.log("poll_pass"))
    first.wait_for_log("poll_pass", len(first.log("poll_pass")) + 3)
    assert place(second) == "standing_by"
    assert len(second.log("poll_pass")) == idle
    first.kill()
    killed_at = time.monotonic()
    dialpad.add(5, hours_ago=0.1)
    second.wait_for_log("poll_pass", idle + 1)
    assert time.monotonic() - killed_at < 60
    wait_for(second, 125)
    assert len(recorded(second)) == 125
    assert second.stop() == 0
