"""`spool show` and `spool drain`, as somebody uses them whose Kafka was away."""

import asyncio
import json
import math
import subprocess
import time
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

from ingest.eventlog.log import Record
from ingest.eventlog.segments import segment_paths
from ingest.eventlog.spool import Spool, look_into
from tests.conftest import MakeProduct
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import Cluster
from tests.kit import (
    SCRIPT,
    Product,
    assert_no_traceback,
    call,
    clean_environment,
    free_ports,
    new_leg,
    run,
    sign,
)

ROLE = Path("data") / "spool" / "receiver"


def nowhere() -> dict[str, Any]:
    """Settings for a Kafka that nobody runs."""
    (port,) = free_ports(1)
    return {"eventlog": {"kind": "kafka"}, "kafka": {"bootstrap_servers": f"127.0.0.1:{port}"}}


def fill(folder: Path, count: int, topic: str = "calls") -> None:
    """A spool that somebody has left behind."""

    async def append() -> None:
        spool = Spool(folder, 10**9)
        spool.open(topic)
        records = [Record(topic, b"k", b"%d" % number, ()) for number in range(count)]
        await spool.publish(records, lambda _: None).wait(math.inf)
        await spool.close()

    asyncio.run(append())


def shown(product: Product, *arguments: str) -> dict[str, int]:
    """Topic → records, as `spool show --json` says."""
    ran = product.run("spool", "show", "--json", *arguments)
    assert (ran.code, ran.stderr) == (0, "")
    return {line["topic"]: line["records"] for line in json.loads(ran.stdout)}


def used_wrongly(product: Product, *arguments: str, told: str) -> None:
    ran = product.run("spool", *arguments)
    assert (ran.code, ran.stdout) == (2, "")
    assert told in ran.stderr
    assert_no_traceback(ran.stderr)


# Wrong use


@pytest.mark.parametrize("command", ["show", "drain"])
def test_where_there_is_no_spool_that_is_told(make_product: MakeProduct, command: str) -> None:
    product = make_product(settings=nowhere())
    used_wrongly(product, command, told="data: there is no spool")
    used_wrongly(product, command, "elsewhere", told="elsewhere: there is no spool")
    (product.folder / "a file").touch()
    used_wrongly(product, command, "a file", told="a file: there is no spool")
    assert not product.data.exists(), "nothing is made by the way"


def test_a_spool_is_drained_to_kafka_and_nowhere_else(make_product: MakeProduct) -> None:
    product = make_product()
    fill(product.folder / ROLE, 3)
    used_wrongly(product, "drain", told='eventlog.kind is not "kafka"')
    assert shown(product) == {"calls": 3}


# Showing


def test_what_waits_is_shown_to_people_and_to_programs(make_product: MakeProduct) -> None:
    product = make_product(settings=nowhere())
    fill(product.folder / ROLE, 1234)
    fill(product.folder / "data" / "spool" / "poller", 1, "agents")
    ran = product.run("spool", "show")
    assert ran.code == 0
    for told in ("calls", "1,234", "agents", str(ROLE), "0.1"):
        assert told in ran.stdout
    lines = json.loads(product.run("spool", "show", "--json", "data").stdout)
    assert [(Path(line["folder"]).name, line["topic"], line["records"]) for line in lines] == [
        ("poller", "agents", 1),
        ("receiver", "calls", 1234),
    ]
    assert all(10_000 < line["size_bytes"] < 10**6 for line in lines)
    assert all(0 <= line["oldest_s"] < 60 for line in lines)
    assert shown(product, str(ROLE)) == {"calls": 1234}


def test_nothing_is_said_to_be_nothing(make_product: MakeProduct) -> None:
    product = make_product(settings=nowhere())
    (product.folder / ROLE / "calls").mkdir(parents=True)
    assert shown(product) == {}
    ran = product.run("spool", "show")
    assert (ran.code, ran.stdout) == (0, f"nothing waits in {ROLE}\n")


def test_a_file_that_nobody_can_read_is_no_crash(make_product: MakeProduct) -> None:
    product = make_product(settings=nowhere())
    fill(product.folder / ROLE, 3)
    fill(product.folder / ROLE, 2, "agents")
    (path,) = segment_paths(product.folder / ROLE / "calls")
    path.write_bytes(b"no database" * 10_000)
    ran = product.run("spool", "show", "--json")
    assert ran.code == 0
    assert [line["topic"] for line in json.loads(ran.stdout)] == ["agents"]
    assert "segment_unreadable" in ran.stderr
    assert path.exists(), "who only looks changes nothing"


# Draining


def test_what_a_killed_receiver_has_left_is_brought_to_kafka(
    make_product: MakeProduct, proxied_kafka: Cluster, topic_prefix: str
) -> None:
    proxied_kafka.create_topic(f"{topic_prefix}calls", partitions=2)
    settings = settings_for(proxied_kafka, topic_prefix, publish_timeout_s=1.0)
    product = make_product(settings=settings).start()
    leg = new_leg()
    assert product.post(sign(call(leg, 0))).status == 204
    proxied_kafka.proxy().refuse()
    for seq in range(1, 6):
        assert product.post(sign(call(leg, seq))).status == 204

    assert shown(product) == {"calls": 5}, "beside its owner"
    for where in ((), ("data",), (str(ROLE),)):
        used_wrongly(product, "drain", *where, told="a receiver is running")
    environment = {"DIALSTREAM_CONFIG": str(product.config)}
    inside = run("spool", "drain", ".", cwd=product.folder / ROLE, environment=environment)
    assert inside.code == 2
    assert "a receiver is running" in inside.stderr
    product.kill()

    proxied_kafka.proxy().restore()
    drained = product.run("spool", "drain")
    assert (drained.code, drained.stdout) == (0, "")
    assert shown(product) == {}
    found = [
        json.loads(message.value() or b"")["data"]["raw"]["event_timestamp"]
        for message in proxied_kafka.records(f"{topic_prefix}calls")
    ]
    assert list(dict.fromkeys(found)) == sorted(set(found))
    assert len(set(found)) == 6
    again = product.run("spool", "drain")
    assert (again.code, again.output.strip()) == (0, "")


def test_who_interrupts_keeps_what_is_left(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=nowhere())
    fill(product.folder / ROLE, 5)
    draining = subprocess.Popen(
        [SCRIPT, "spool", "drain", str(ROLE)],
        cwd=product.folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    locked = product.data / "receiver.lock"
    until = time.monotonic() + 20
    while not locked.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(1.5)  # loading Kafka's client, and not reaching anybody
    assert draining.poll() is None, "it waits for Kafka"
    draining.send_signal(SIGINT)
    output, errors = draining.communicate(timeout=20)
    assert draining.returncode == 1
    assert output == "5 records are still there: run it again to go on\n"
    assert_no_traceback(errors)
    assert look_into(product.folder / ROLE)["calls"].records == 5

    kafka.create_topic(f"{topic_prefix}calls")
    product.configure(settings_for(kafka, topic_prefix))
    assert product.run("spool", "drain", str(ROLE)).code == 0
    assert [message.value() for message in kafka.records(f"{topic_prefix}calls")] == [
        b"%d" % number for number in range(5)
    ]
