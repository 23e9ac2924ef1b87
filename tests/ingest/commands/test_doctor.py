"""`doctor` of a Kafka: everything at once, each with its mend, whatever state the cluster is in."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ingest.commands.dialpad_sync import sync_subscriptions
from ingest.commands.doctor import judge_cluster
from ingest.commands.findings import Finding
from ingest.commands.topics import wanted_configs
from ingest.eventlog.cluster import Cluster as FoundCluster
from ingest.eventlog.cluster import FoundTopic, Operation, Partition
from ingest.settings import load_settings
from schemas.topics import TOPICS
from tests.conftest import MakeProduct
from tests.ingest.commands.on_kafka import SETTINGS, found, run_here, settings_for
from tests.ingest.commands.running_dialpad import RunningDialpad
from tests.kafka.cluster import PASSWORDS, READER, WRITER, Cluster
from tests.kit import OTHER_SECRET, SECRET, Product, Ran, assert_no_traceback, free_ports

Found = list[dict[str, str]]


def judged(*topics: FoundTopic, brokers: int = 3, hidden: tuple[str, ...] = ()) -> list[Finding]:
    """What is said of a cluster where these are not as they should be, and the others are."""
    all_topics = {topic.name: topic for topic in map(found, TOPICS)}
    all_topics |= {topic.name: topic for topic in topics}
    cluster = FoundCluster(
        cluster_id="id",
        brokers=brokers,
        topics={name: topic for name, topic in all_topics.items() if name not in hidden},
        hidden=hidden,
    )
    return list(judge_cluster(cluster, SETTINGS))


def told(findings: list[Finding], state: str) -> list[str]:
    of_state = [finding for finding in findings if finding.state == state]
    assert all(finding.mend for finding in of_state if state != "good")
    return [finding.what for finding in of_state]


def diagnosed(product: Product, run: Callable[..., Ran] = run_here) -> Found:
    begun = time.monotonic()
    ran = run(product, "doctor", "--json")
    assert time.monotonic() - begun < 20
    assert ran.stderr == ""
    assert_no_traceback(ran.stdout)
    assert not any(password in ran.stdout for password in PASSWORDS.values())
    findings: Found = json.loads(ran.stdout)
    assert ran.code == int(any(finding["state"] == "bad" for finding in findings))
    assert all(finding["mend"] for finding in findings if finding["state"] != "good")
    return findings


def of_state(state: str, findings: Found) -> list[str]:
    return [finding["what"] for finding in findings if finding["state"] == state]


# Judging


def test_a_sound_cluster_is_good() -> None:
    findings = judged()
    assert told(findings, "good") == [
        "Kafka cluster id: 3 broker(s)",
        f"{len(TOPICS)} of {len(TOPICS)} topics are as they should be",
    ]
    assert len(findings) == 2


@pytest.mark.parametrize(
    ("topic", "state", "what"),
    [
        (
            replace(found(), partitions=[Partition(leader=-1, replicas=3, in_sync=2)] * 12),
            "bad",
            "12 of 12 partitions have no leader",
        ),
        (
            replace(found(), partitions=[Partition(leader=1, replicas=3, in_sync=1)] * 12),
            "bad",
            "fewer replicas are in sync than min.insync.replicas",
        ),
        (
            replace(found(), partitions=[Partition(leader=1, replicas=3, in_sync=2)] * 12),
            "odd",
            "not all replicas are in sync",
        ),
        (found(min_insync_replicas="3"), "odd", "is the replication factor"),
        (found(replicas=1, min_insync_replicas="1"), "odd", "there is one copy"),
        (found(replicas=1, min_insync_replicas="1"), "bad", "the replication factor is 1, not 3"),
        (found(min_insync_replicas="1"), "bad", "min.insync.replicas is 1, not 2"),
        (found(unclean_leader_election_enable="true"), "bad", "acknowledged events can be lost"),
        (replace(found(), operations=frozenset({Operation.READ})), "bad", "the right Write is"),
        (replace(found(), operations=frozenset({Operation.WRITE})), "odd", "the right Read is"),
        (replace(found(), configs=None), "odd", "the configuration may not be read"),
    ],
)
def test_a_topic_that_is_not_well_is_named_and_the_others_are_good(
    topic: FoundTopic, state: str, what: str
) -> None:
    findings = judged(topic)
    assert any(
        each.startswith("telephony.calls: ") and what in each for each in told(findings, state)
    )
    assert f"{len(TOPICS) - 1} of {len(TOPICS)} topics are as they should be" in told(
        findings, "good"
    )


def test_one_fault_of_several_topics_is_told_once() -> None:
    findings = judged(found(max_message_bytes="1"), found("agents", max_message_bytes="1"))
    (finding,) = [finding for finding in findings if finding.state == "bad"]
    assert finding.what.startswith("telephony.calls, telephony.agents: max.message.bytes is 1")
    assert "--entity-name telephony.calls " in finding.mend
    assert finding.mend.endswith("likewise for the others")
    none = frozenset({Operation.READ})
    both = [replace(found(name), operations=none) for name in ("calls", "agents")]
    (finding,) = [finding for finding in judged(*both) if finding.state == "bad"]
    assert "--topic telephony. " in finding.mend, "one command for all"
    assert "likewise" not in finding.mend


def test_what_is_missing_and_what_may_not_be_seen_are_two_things() -> None:
    topics = {name: topic for name, topic in map(_named, TOPICS) if name != "telephony.calls"}
    cluster = FoundCluster(cluster_id="id", brokers=3, topics=topics, hidden=[])
    (finding,) = [each for each in judge_cluster(cluster, SETTINGS) if each.state == "bad"]
    assert finding.what.startswith("telephony.calls: missing")
    assert finding.mend == "dialstream topics create"
    (what,) = told(judged(hidden=("telephony.calls",)), "bad")
    assert what == "telephony.calls: the right Describe is missing"


def _named(name: str) -> tuple[str, FoundTopic]:
    return f"telephony.{name}", found(name)


def test_too_few_brokers_are_told() -> None:
    (what,) = told(judged(brokers=2), "odd")
    assert what.startswith("2 broker(s) are up, and kafka.replication_factor is 3")


# A real one


def test_a_kafka_of_one_broker_is_good_but_for_its_one_copy(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(kafka, topic_prefix))
    before = diagnosed(product, Product.run)
    (what,) = of_state("bad", before)
    assert what.startswith("all topics: missing")
    assert not any(name.startswith(topic_prefix) for name in kafka.topics()), "not by the way"
    assert run_here(product, "topics", "create").code == 0
    findings = diagnosed(product)
    assert of_state("bad", findings) == []
    # The spool is on the disk, which may be slow while other tests run.
    (disk,) = (f["what"] for f in findings if " flushes" in f["what"])
    (what,) = (what for what in of_state("odd", findings) if what != disk)
    assert what.startswith("all topics: there is one copy")
    good = "\n".join(of_state("good", findings))
    assert "1 broker(s)" in good
    assert "journal" not in good


def test_topics_that_were_altered_are_found(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(kafka, topic_prefix))
    assert run_here(product, "topics", "create").code == 0
    kafka.alter_topic(f"{topic_prefix}calls", {"max.message.bytes": "1000"})
    kafka.alter_topic(f"{topic_prefix}agents", {"unclean.leader.election.enable": "true"})
    kafka.delete_topic(f"{topic_prefix}gaps")
    missing, large, unclean = of_state("bad", diagnosed(product))
    assert missing.startswith(f"{topic_prefix}gaps: missing")
    assert large.startswith(f"{topic_prefix}calls: max.message.bytes is 1000, not 4194304")
    assert unclean.startswith(f"{topic_prefix}agents: unclean.leader.election.enable is true")


def test_a_kafka_that_is_away_hides_nothing_else(make_product: MakeProduct) -> None:
    (port,) = free_ports(1)
    settings = {
        "eventlog": {"kind": "kafka"},
        "kafka": {"bootstrap_servers": f"127.0.0.1:{port}"},
        "connections": {"acme": {"provider": "dialpad", "secrets": ["short"], "region": "XX"}},
    }
    findings = diagnosed(make_product(settings=settings))
    assert [what.split(":")[0] for what in of_state("bad", findings)] == [
        "acme",
        "Kafka at 127.0.0.1",
    ]
    assert any("Python" in what for what in of_state("good", findings))


def test_a_right_that_is_missing_is_found_without_writing(
    make_product: MakeProduct, sasl_kafka: Cluster, topic_prefix: str
) -> None:
    product = make_product(settings=settings_for(sasl_kafka, topic_prefix))
    assert run_here(product, "topics", "create").code == 0
    sasl_kafka.revoke_write(f"{topic_prefix}calls")
    try:
        (finding,) = [each for each in diagnosed(product) if each["state"] == "bad"]
    finally:
        sasl_kafka.grant_write(f"{topic_prefix}calls")
    assert finding["what"].startswith(f"{topic_prefix}calls: the right Write is missing")
    assert f"--allow-principal User:{WRITER} --operation Write" in finding["mend"]
    reader = {"sasl_username": READER, "sasl_password": PASSWORDS[READER]}
    product.configure(settings_for(sasl_kafka, topic_prefix, **reader))
    write, idempotent = of_state("bad", diagnosed(product))
    assert write.startswith("all topics: the right Write is missing")
    assert "idempotently" in idempotent
    for topic in ("calls", "contacts", "rejects"):
        assert sasl_kafka.records(topic_prefix + topic) == []


def test_who_is_not_let_in_is_told_why(make_product: MakeProduct, sasl_kafka: Cluster) -> None:
    product = make_product(
        settings=settings_for(sasl_kafka, "t.", sasl_password="invented-and-wrong")
    )
    (what,) = of_state("bad", diagnosed(product))
    assert f"refuses the user '{WRITER}'" in what


@pytest.fixture
def three(three_brokers: Cluster, topic_prefix: str) -> Cluster:
    """Topics on three brokers; calls have two copies, gaps one, both with one on broker 2."""
    kafka = SETTINGS
    for name, topic in TOPICS.items():
        brokers = {"calls": [1, 2], "gaps": [2]}.get(name, [0, 1, 2])
        config = wanted_configs(topic, kafka)
        if name == "gaps":
            config["min.insync.replicas"] = "1"
        three_brokers.create_topic(f"{topic_prefix}{name}", assignment=[brokers], config=config)
    return three_brokers


def test_a_broker_that_is_down_is_told_by_what_it_means_for_each_topic(
    make_product: MakeProduct, three: Cluster, topic_prefix: str
) -> None:
    more = {"partitions": 1, "replication_factor": 3, "min_insync_replicas": 2}
    product = make_product(settings=settings_for(three, topic_prefix, **more))
    odd = of_state("odd", diagnosed(product))
    assert any(
        what.startswith(f"{topic_prefix}calls: min.insync.replicas is the rep") for what in odd
    )
    assert any(what.startswith(f"{topic_prefix}gaps: there is one copy") for what in odd)
    assert not any("in sync" in what for what in odd)
    three.kill(2)
    three.leader(f"{topic_prefix}messages")
    until = time.monotonic() + 30
    while three.in_sync(f"{topic_prefix}messages") != {0, 1}:
        assert time.monotonic() < until
        time.sleep(0.2)
    findings = diagnosed(product)
    bad, odd = of_state("bad", findings), of_state("odd", findings)
    assert any(three.bootstrap.split(",")[2] in what for what in odd), "an address less, no more"
    assert any(what.startswith("2 broker(s) are up") for what in odd)
    short = [what.partition(": ")[0] for what in bad if "fewer replicas are in sync" in what]
    assert short == [f"{topic_prefix}calls"]
    assert any(
        what.startswith(f"{topic_prefix}gaps: 1 of 1 partitions have no leader") for what in bad
    )
    assert any(
        f"{topic_prefix}messages, " in what and "not all replicas are in sync" in what
        for what in odd
    )


@pytest.mark.parametrize("fault", ["refuse", "black_hole"])
def test_a_broker_whose_own_address_cannot_be_reached_is_told(
    make_product: MakeProduct,
    three_brokers: Cluster,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """The usual fault of advertised.listeners: the first answers, what it names does not."""
    monkeypatch.setattr("ingest.eventlog.cluster.ADDRESS_S", 1.0)
    first, second, _ = three_brokers.bootstrap.split(",")
    product = make_product(
        settings=settings_for(three_brokers, topic_prefix, bootstrap_servers=first)
    )
    getattr(three_brokers.proxy(1), fault)()
    findings = diagnosed(product)
    assert any("3 broker(s)" in what for what in of_state("good", findings)), "others were asked"
    (finding,) = [each for each in findings if second in each["what"]]
    assert finding["state"] == "bad", "what it leads cannot be written"
    assert "the cluster names it as a broker's address" in finding["what"]
    assert "advertised.listeners" in finding["mend"]


# Dialpad's side


@pytest.fixture
def running() -> Iterator[RunningDialpad]:
    with RunningDialpad() as found:
        yield found


def of_dialpad(product: Product) -> dict[str, list[str]]:
    """What is said of connection `acme`, by state."""
    findings = [each for each in diagnosed(product) if each["what"].startswith("acme: ")]
    told: dict[str, list[str]] = {}
    for each in findings:
        told.setdefault(each["state"], []).append(each["what"].removeprefix("acme: "))
    return told


def test_subscriptions_are_looked_at(make_product: MakeProduct, running: RunningDialpad) -> None:
    product = make_product(settings={"connections": {"acme": running.connection()}})
    assert of_dialpad(product) == {"bad": ["Dialpad sends nothing: there is no subscription"]}
    assert run_sync(product) == 0
    assert of_dialpad(product) == {
        "good": ["Dialpad takes the key", "6 subscription(s) at Dialpad are as configured"]
    }
    store = running.dialpad.resources
    (of_calls,) = store.subscriptions["call"].values()
    of_calls.fields["enabled"] = False
    (of_texts,) = store.subscriptions["sms"].values()
    store.create_subscription(
        "sms", {**of_texts.fields, "endpoint_id": of_texts.endpoint_id}, frozenset()
    )
    told = of_dialpad(product)
    assert told.keys() == {"bad", "odd"}
    assert told["bad"] == ["subscription to call: enabled off → on"]
    assert told["odd"] == [f"subscription to sms: the same as {of_texts.id}"]


def run_sync(product: Product) -> int:
    return sync_subscriptions(
        load_settings(product.config, {}), None, dry_run=False, adopt=False, as_json=True
    )


def test_a_key_that_is_refused_and_one_that_may_not_see_everything(
    make_product: MakeProduct, running: RunningDialpad
) -> None:
    polled = running.connection(poll={"enabled": True, "requests_per_s": 20})
    product = make_product(settings={"connections": {"acme": polled}})
    assert run_sync(product) == 0
    running.dialpad.faults.missing_scopes = ("calls:list", "change_log")
    told = of_dialpad(product)
    assert told == {
        "bad": [
            "GET /api/v2/call: answered 403",
            "the key may not read subscriptions of: changelog",
        ]
    }
    running.dialpad.faults.missing_scopes = ()
    running.dialpad.faults.key_revoked = True
    (what,) = of_dialpad(product)["bad"]
    assert what.endswith("answered 401")


def test_one_that_is_only_polled_needs_neither_secret_nor_subscription(
    make_product: MakeProduct, running: RunningDialpad
) -> None:
    polled = running.connection(poll={"enabled": True}, secrets=[], public_url=None)
    del polled["secrets"], polled["public_url"]
    product = make_product(settings={"connections": {"acme": polled}})
    assert of_dialpad(product) == {"good": ["Dialpad takes the key"]}


def test_an_unfinished_rotation_and_a_socket_without_a_listener_are_told(
    make_product: MakeProduct, running: RunningDialpad
) -> None:
    by_socket = running.connection(subscriptions={"transport": "websocket"})
    product = make_product(settings={"connections": {"acme": by_socket}})
    assert run_sync(product) == 0
    product.configure({"connections": {"acme": {**by_socket, "secrets": [OTHER_SECRET, SECRET]}}})
    told = of_dialpad(product)
    assert told["bad"] == ["events are to come by the websocket, and nobody listens to it"]
    assert told["odd"] == ["Dialpad signs with a secret that is not the first one"]


def test_who_does_not_answer_holds_nobody_up(
    make_product: MakeProduct, running: RunningDialpad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.commands.doctor_providers.PROVIDERS_S", 0.3)
    running.dialpad.faults.slow, running.dialpad.faults.slow_s = 1.0, 60.0
    product = make_product(settings={"connections": {"acme": running.connection()}})
    assert of_dialpad(product)["bad"] == ["Dialpad has not told everything within 0 s"]
