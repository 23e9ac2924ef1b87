"""How a cluster is asked: our options, reasons in words, topics that promise too little."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from pydantic import SecretStr

from ingest.errors import ConfigError
from ingest.eventlog import cluster
from ingest.eventlog.cluster import (
    ClusterError,
    client_options,
    describe,
    explain,
    open_cluster,
    weak_topics,
)
from ingest.settings import Kafka
from tests.kafka.cluster import Cluster

SETTINGS = Kafka(sasl_username="us", sasl_password=SecretStr("invented-and-secret"))


def test_the_options_are_those_of_the_settings() -> None:
    options = client_options(Kafka(bootstrap_servers="one:9092, two:9093"))
    assert sorted(options.pop("bootstrap_servers")) == ["one:9092", "two:9093"], "in any order"
    assert options == {
        "client_id": "dialstream",
        "request_timeout_ms": 10_000,
        "security_protocol": "PLAINTEXT",
    }
    options = client_options(SETTINGS.model_copy(update={"security_protocol": "SASL_SSL"}))
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert options["sasl_plain_username"] == "us"
    assert options["sasl_plain_password"] == "invented-and-secret"
    assert options["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname


def test_the_password_is_read_again_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "password"
    kafka = Kafka(security_protocol="SASL_PLAINTEXT", sasl_username="us", sasl_password_file=file)
    for password in ("first", "second"):
        file.write_text(password + "\n")
        assert client_options(kafka)["sasl_plain_password"] == password
    file.unlink()
    with pytest.raises(ConfigError, match="sasl_password_file"):
        client_options(kafka)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "nobody listens"),
        (socket.gaierror(-2, "Name or service not known"), "a name that nobody knows"),
        (TimeoutError(), "does not answer within 4 s"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), "we find no common TLS"),
        (ConnectionResetError(104, "reset"), "hangs up"),
        (KafkaConnectionError("Connection at h:1 closed"), "hangs up"),
        (OSError(113, "No route to host"), "cannot be reached: No route to host"),
        (ValueError("Server sent wrong signature!"), "does not talk like Kafka (ValueError)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_a_reason_and_a_mend(error: Exception, told: str) -> None:
    fault = explain(error, "h:1", SETTINGS)
    assert fault.what.startswith("Kafka at h:1 ")
    assert told in fault.what
    assert fault.mend
    assert "secret" not in fault.what + fault.mend
    assert "{" not in fault.what + fault.mend


def settings_for(kafka: Cluster, prefix: str, min_insync_replicas: int) -> Kafka:
    return Kafka(
        bootstrap_servers=kafka.bootstrap,
        topic_prefix=prefix,
        min_insync_replicas=min_insync_replicas,
    )


async def test_topics_that_promise_too_little_are_found(kafka: Cluster, topic_prefix: str) -> None:
    for topic, replicas in {"calls": "1", "agents": "2", "gaps": "3"}.items():
        kafka.create_topic(f"{topic_prefix}{topic}", config={"min.insync.replicas": replicas})
    # A client as a producer has one, not one of our own making.
    client = AIOKafkaClient(bootstrap_servers=kafka.bootstrap)
    await client.bootstrap()
    try:
        for wanted, weak in {1: [], 2: ["calls"], 3: ["calls", "agents"]}.items():
            found = await weak_topics(settings_for(kafka, topic_prefix, wanted), client)
            assert sorted(found) == sorted(weak)
    finally:
        await client.close()


async def test_who_asks_for_a_topic_does_not_make_it(
    creating_kafka: Cluster, topic_prefix: str
) -> None:
    settings = settings_for(creating_kafka, topic_prefix, 1)
    async with open_cluster(settings) as link:
        assert link.faults == []
        assert (await describe(link, [f"{topic_prefix}calls"])).topics == {}
        assert await weak_topics(settings, link.client) == []
    assert not [topic for topic in creating_kafka.topics() if topic.startswith(topic_prefix)]


async def test_a_cluster_that_falls_silent_does_not_hold_us_up(
    proxied_kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ADDRESS_S", 0.5)
    begun = asyncio.get_running_loop().time()
    async with open_cluster(settings_for(proxied_kafka, "t.", 1)) as link:
        proxied_kafka.proxy().black_hole()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await describe(link, ["t.calls"])
    proxied_kafka.proxy().refuse()
    with pytest.raises(ClusterError, match="nobody listens"):
        async with open_cluster(settings_for(proxied_kafka, "t.", 1)):
            pass
    proxied_kafka.proxy().black_hole()
    with pytest.raises(ClusterError, match="does not answer within 4 s"):
        async with open_cluster(settings_for(proxied_kafka, "t.", 1)):
            pass
    assert asyncio.get_running_loop().time() - begun < 6
