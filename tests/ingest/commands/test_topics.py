"""`topics create`: what it makes, what it leaves alone, and what it says of what differs."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ingest.commands.topics import rejects_of, what_differs
from ingest.eventlog.cluster import FoundTopic
from schemas.topics import TOPICS
from tests.conftest import MakeProduct
from tests.ingest.commands.on_kafka import SETTINGS, found, run_here, settings_for
from tests.kafka.cluster import PASSWORDS, READER, WRITER, Cluster
from tests.kit import SCRIPT, Product, assert_no_traceback, clean_environment, free_ports

DAY_MS = 86_400_000

#: The table of the design: name without the prefix → for how long; None is compacted.
DESIGN = {
    "calls": 30,
    "messages": 30,
    "contacts": None,
    "agents": 30,
    "changes": 90,
    "consents": None,
    "directory": None,
    "notifications": 30,
    "gaps": 90,
    "verdicts": 90,
    "ledger": None,
    "rejects": 30,
    "checkpoints": None,
}


def states(output: str) -> dict[str, str]:
    """Topic → the first word of its line."""
    return {
        words[1]: words[0]
        for words in map(str.split, output.splitlines())
        if words[0] in ("made", "there", "differs", "failed")
    }


def partitions(kafka: Cluster, topic: str) -> list[Any]:
    listed = kafka.ask(lambda admin: admin.list_topics(timeout=5))
    found = list(listed.topics[topic].partitions.values())
    assert len(found) == 3
    return found


# Comparing


@pytest.mark.parametrize("topic", TOPICS)
def test_what_is_as_it_should_be_does_not_differ(topic: str) -> None:
    assert what_differs(found(topic), TOPICS[topic], SETTINGS) == []


@pytest.mark.parametrize(
    ("topic", "state", "told"),
    [
        (found(cleanup_policy="compact"), "bad", "cleanup.policy is compact, not delete"),
        (found(cleanup_policy="compact,delete"), "bad", "cleanup.policy is compact,delete"),
        (found("contacts", cleanup_policy="delete"), "bad", "cleanup.policy is delete"),
        (found("contacts", cleanup_policy="compact,delete"), "bad", "not compact"),
        (found(retention_ms=str(7 * DAY_MS)), "bad", "retention.ms is 604800000 (7 days)"),
        (found(retention_ms=str(31 * DAY_MS)), "odd", "retention.ms is"),
        (found(retention_ms="-1"), "odd", "for ever"),
        (found(retention_bytes="1000000"), "odd", "retention.bytes is 1000000"),
        (found(max_message_bytes="1048588"), "bad", "max.message.bytes is 1048588, not 4194304"),
        (found(max_message_bytes="9999999"), "odd", "max.message.bytes is 9999999"),
        (found(min_insync_replicas="1"), "bad", "min.insync.replicas is 1, not 2"),
        (found(min_insync_replicas="3"), "odd", "min.insync.replicas is 3, not 2"),
        (found("checkpoints", min_compaction_lag_ms="0"), "bad", "min.compaction.lag.ms is 0"),
        (found(unclean_leader_election_enable="true"), "bad", "unclean.leader.election.enable"),
        (found(count=24), "odd", "24 partition(s), not 12"),
        (found(count=3), "odd", "3 partition(s), not 12"),
        (found(replicas=2), "bad", "replication factor is 2, not 3"),
        (found(replicas=5), "odd", "replication factor is 5, not 3"),
        (replace(found(), configs=None), "odd", "configuration may not be read"),
    ],
)
def test_what_differs_is_told_and_whether_it_breaks_a_promise(
    topic: FoundTopic, state: str, told: str
) -> None:
    kind = TOPICS[topic.name.removeprefix("telephony.")]
    (fault,) = what_differs(topic, kind, SETTINGS)
    assert fault.state == state
    assert told in fault.what
    assert fault.mend
    assert "secret" not in fault.what + fault.mend


def test_more_in_sync_replicas_than_there_are_let_nothing_be_written() -> None:
    faults = what_differs(found(min_insync_replicas="4"), TOPICS["calls"], SETTINGS)
    assert [fault.state for fault in faults] == ["odd", "bad"]
    assert "nothing can be written" in faults[1].what


def test_all_that_differs_is_told() -> None:
    topic = found(count=1, replicas=1, retention_ms="1", cleanup_policy="compact")
    assert len(what_differs(topic, TOPICS["calls"], SETTINGS)) == 5


def test_the_mend_is_a_command_for_that_cluster_and_topic() -> None:
    (fault,) = what_differs(found(max_message_bytes="1"), TOPICS["calls"], SETTINGS)
    assert fault.mend == (
        "kafka-configs.sh --bootstrap-server 127.0.0.1:9092 --alter --entity-type topics "
        "--entity-name telephony.calls --add-config max.message.bytes=4194304"
    )
    secure = SETTINGS.model_copy(update={"security_protocol": "SASL_SSL"})
    (fault,) = what_differs(found(max_message_bytes="1"), TOPICS["calls"], secure)
    assert "--command-config" in fault.mend


def test_a_group_has_rejects_of_its_own() -> None:
    topic = rejects_of("billing")
    assert (topic.name, topic.retention_s) == ("rejects.billing", 30 * 86_400)


# The journal


def test_on_the_journal_a_group_has_a_folder(make_product: MakeProduct) -> None:
    product = make_product()
    ran = run_here(product, "topics", "create", "--group", "billing.v2")
    assert ran.code == 0
    assert states(ran.stdout)["rejects.billing.v2"] == "made"
    assert (product.data / "journal" / "rejects.billing.v2").is_dir()


@pytest.mark.parametrize("group", ["", "a b", "a/b", "é", "a\n", "x" * 201])
def test_a_group_that_cannot_be_part_of_a_name_is_wrong_use(
    make_product: MakeProduct, group: str
) -> None:
    product = make_product()
    ran = run_here(product, "topics", "create", "--group", group)
    assert ran.code == 2
    assert "--group" in ran.stderr
    assert not product.data.exists()


# Kafka


def test_topics_are_made_as_the_design_has_them(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(kafka, topic_prefix, partitions=3))
    ran = product.run("topics", "create", "--group", "billing")
    assert (ran.code, ran.stderr) == (0, "")
    days = {**DESIGN, "rejects.billing": 30}
    assert states(ran.stdout) == {topic_prefix + name: "made" for name in days}
    for name, kept in days.items():
        # Nobody has to wait: it can be read and written.
        assert {partition.leader for partition in partitions(kafka, topic_prefix + name)} == {0}
        config = kafka.topic_config(topic_prefix + name)
        assert config["max.message.bytes"] == "4194304"
        assert config["min.insync.replicas"] == "1"
        if kept is None:
            assert config["cleanup.policy"] == "compact"
            lag_days = 3 if name == "checkpoints" else 0
            assert config["min.compaction.lag.ms"] == str(lag_days * DAY_MS)
        else:
            assert config["cleanup.policy"] == "delete"
            assert config["retention.ms"] == str(kept * DAY_MS)
    again = product.run("topics", "create")
    assert (again.code, again.stderr) == (0, "")
    assert states(again.stdout) == {topic_prefix + name: "there" for name in DESIGN}


def test_what_differs_is_left_as_it_is(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    config = {"retention.ms": "1000", "max.message.bytes": "1000", "cleanup.policy": "delete"}
    kafka.create_topic(f"{topic_prefix}calls", partitions=3, config=config)
    kafka.create_topic(f"{topic_prefix}contacts", config={"cleanup.policy": "delete"})
    before = kafka.topic_config(f"{topic_prefix}calls")
    product = make_product(settings=settings_for(kafka, topic_prefix))
    ran = run_here(product, "topics", "create")
    assert ran.code == 1
    shown = states(ran.stdout)
    assert {name for name, state in shown.items() if state == "differs"} == {
        f"{topic_prefix}calls",
        f"{topic_prefix}contacts",
    }
    assert sum(state == "made" for state in shown.values()) == len(DESIGN) - 2
    for told in (
        "retention.ms is 1000",
        "max.message.bytes is 1000, not 4194304",
        "it has 3 partition(s), not 2",
        "cleanup.policy is delete, not compact",
        f"--entity-name {topic_prefix}contacts --add-config cleanup.policy=compact",
    ):
        assert told in ran.stdout
    assert kafka.topic_config(f"{topic_prefix}calls") == before


def test_more_than_is_asked_for_is_told_and_good_enough(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(kafka, topic_prefix))
    assert run_here(product, "topics", "create").code == 0
    kafka.alter_topic(f"{topic_prefix}calls", {"retention.ms": str(60 * DAY_MS)})
    ran = run_here(product, "topics", "create")
    assert ran.code == 0
    assert states(ran.stdout)[f"{topic_prefix}calls"] == "differs"
    assert "60 days" in ran.stdout


def test_two_at_the_same_moment_make_each_topic_once(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(kafka, topic_prefix))
    running = [
        subprocess.Popen(
            [SCRIPT, "topics", "create"],
            cwd=product.folder,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    made = [name for output in outputs for name, state in states(output).items() if state == "made"]
    assert sorted(made) == sorted(topic_prefix + name for name in DESIGN)


def test_more_replicas_than_brokers_are_refused_with_the_mend(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(kafka, topic_prefix, replication_factor=3))
    ran = run_here(product, "topics", "create")
    assert ran.code == 1
    assert set(states(ran.stdout).values()) == {"failed"}
    assert "the cluster has 1 broker(s), and kafka.replication_factor is 3" in ran.stderr
    assert "set kafka.replication_factor = 1" in ran.stderr
    assert not [name for name in kafka.topics() if name.startswith(topic_prefix)]


def test_a_name_that_kafka_does_not_take_is_told_in_its_words(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(kafka, topic_prefix.ljust(100, "x")))
    ran = run_here(product, "topics", "create", "--group", "g" * 150)
    assert ran.code == 1
    assert "the cluster refuses: " in ran.stderr
    shown = states(ran.stdout)
    assert [name for name, state in shown.items() if state == "failed"] == [
        name for name in shown if name.endswith("g" * 150)
    ]


# Kafka that cannot be reached


@contextlib.contextmanager
def server(*, says: bytes | None = None) -> Iterator[int]:
    """Listens; without words it takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if says is not None:
            script = (
                "import socket, sys\n"
                "listening = socket.socket(fileno=int(sys.argv[1]))\n"
                "while True:\n"
                "    other, _ = listening.accept()\n"
                "    other.recv(1000)\n"
                f"    other.sendall({says!r})\n"
                "    other.close()\n"
            )
            with subprocess.Popen(
                [sys.executable, "-c", script, str(listening.fileno())],
                pass_fds=[listening.fileno()],
            ) as process:
                try:
                    yield listening.getsockname()[1]
                finally:
                    process.kill()
        else:
            yield listening.getsockname()[1]


def refused(product: Product, *told: str) -> None:
    """It ends with 1, in time, and says this."""
    begun = time.monotonic()
    ran = run_here(product, "topics", "create")
    assert time.monotonic() - begun < 14
    assert (ran.code, ran.stdout) == (1, "")
    assert_no_traceback(ran.stderr)
    for text in told:
        assert text in ran.stderr
    assert re.search(r"^    → \w", ran.stderr, re.MULTILINE), "with its mend"
    assert "invented-" not in ran.stderr


def test_every_server_that_cannot_be_reached_is_named_with_its_reason(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.eventlog.cluster.ADDRESS_S", 1.0)
    (port,) = free_ports(1)
    with server() as silent, server(says=b"HTTP/1.1 400 Bad Request\r\n\r\n") as web:
        servers = [port, silent, web]
        named = ",".join(["nowhere.invalid:9092", *(f"127.0.0.1:{each}" for each in servers)])
        settings = {"eventlog": {"kind": "kafka"}, "kafka": {"bootstrap_servers": named}}
        refused(
            make_product(settings=settings),
            "Kafka at nowhere.invalid:9092 is a name that nobody knows",
            f"Kafka at 127.0.0.1:{port} refuses the connection",
            f"Kafka at 127.0.0.1:{silent} does not answer within 4 s",
            f"Kafka at 127.0.0.1:{web} hangs up",
            "kafka.security_protocol",
        )


def test_a_wrong_server_beside_a_right_one_is_told_and_does_not_matter(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    (port,) = free_ports(1)
    servers = f"127.0.0.1:{port},{kafka.bootstrap}"
    product = make_product(settings=settings_for(kafka, topic_prefix, bootstrap_servers=servers))
    ran = run_here(product, "topics", "create")
    assert ran.code == 0
    assert f"127.0.0.1:{port} refuses the connection" in ran.stderr


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"sasl_password": "invented-and-wrong"}, f"refuses the user '{WRITER}' (SCRAM-SHA-512)"),
        ({"sasl_password": "invented-and-wrong", "sasl_mechanism": "PLAIN"}, "(PLAIN)"),
        ({"sasl_username": "nobody"}, "refuses the user 'nobody'"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, "does not know SCRAM-SHA-256"),
        ({"security_protocol": "SSL"}, "kafka.security_protocol to that of the listener"),
        ({"security_protocol": "SASL_PLAINTEXT"}, "kafka.security_protocol to that of the"),
        ({"security_protocol": "PLAINTEXT"}, "kafka.security_protocol to that of the listener"),
    ],
)
def test_who_is_not_let_in_is_told_why(
    make_product: MakeProduct, sasl_kafka: Cluster, more: dict[str, str], told: str
) -> None:
    refused(make_product(settings=settings_for(sasl_kafka, "t.", **more)), told)


def test_a_certificate_that_does_not_verify_is_told(
    make_product: MakeProduct, sasl_kafka: Cluster
) -> None:
    product = make_product(settings=settings_for(sasl_kafka, "t."))
    text = product.config.read_text()
    product.config.write_text(
        "".join(line for line in text.splitlines(keepends=True) if "ssl_cafile" not in line)
    )
    refused(product, "has a certificate that does not verify", "kafka.ssl_cafile")


# Rights


def test_who_may_do_everything_with_topics_can_make_them(
    make_product: MakeProduct, sasl_kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(sasl_kafka, topic_prefix))
    ran = run_here(product, "topics", "create")
    assert (ran.code, ran.stderr) == (0, "")
    assert set(states(ran.stdout).values()) == {"made"}


def test_the_right_that_is_missing_is_named_with_the_topics_and_the_command(
    make_product: MakeProduct, sasl_kafka: Cluster, topic_prefix: str
) -> None:
    reader = {"sasl_username": READER, "sasl_password": PASSWORDS[READER]}
    product = make_product(settings=settings_for(sasl_kafka, topic_prefix, **reader))
    sasl_kafka.create_topic(f"{topic_prefix}calls", partitions=2)
    ran = run_here(product, "topics", "create")
    assert ran.code == 1
    shown = states(ran.stdout)
    assert shown.pop(f"{topic_prefix}calls") == "there"
    assert "the configuration may not be read" in ran.stdout
    assert "--operation DescribeConfigs" in ran.stdout
    assert set(shown.values()) == {"failed"}
    assert f"the right Create is missing: {topic_prefix}messages, " in ran.stderr
    assert f"--allow-principal User:{READER} --operation Create" in ran.stderr
    assert f"--topic {topic_prefix} --resource-pattern-type prefixed" in ran.stderr
    assert PASSWORDS[READER] not in ran.output
