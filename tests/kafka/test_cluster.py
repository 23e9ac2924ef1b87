"""The Kafka that tests run does to its clients what it is asked to."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tests.kafka.cluster import READER, WRITER, Cluster, Foreign
from tests.kafka.jars import ClusterError
from tests.kafka.proxy import Proxy
from tests.kit import PROJECT, free_ports

IMPATIENT = {"delivery.timeout.ms": 1000}


def write(
    cluster: Cluster, topic: str, *values: bytes, settings: Mapping[str, Any] | None = None
) -> None:
    """Write records; raises KafkaException with what became of the last one that failed."""
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    usual = {"acks": "all", "delivery.timeout.ms": 20_000, "linger.ms": 0}
    producer = Producer(cluster.client({**usual, **(settings or {})}))
    for value in values:
        producer.produce(topic, value, on_delivery=delivered)
    assert producer.flush(30) == 0
    if failed:
        raise KafkaException(failed[-1])


def values(cluster: Cluster, topic: str) -> list[bytes | None]:
    return [message.value() for message in cluster.records(topic)]


# One broker


def test_topics(kafka: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    kafka.create_topic(topic, partitions=3, config={"retention.ms": "5000000"})
    assert topic in kafka.topics()
    assert kafka.topic_config(topic)["retention.ms"] == "5000000"

    kafka.alter_topic(topic, {"max.message.bytes": "2000"})
    changed = kafka.topic_config(topic)
    assert (changed["max.message.bytes"], changed["retention.ms"]) == ("2000", "5000000")

    write(kafka, topic, b"one", b"two", b"three")
    assert sorted(filter(None, values(kafka, topic))) == [b"one", b"three", b"two"]
    for partition in range(3):
        kafka.delete_records(topic, partition)
    assert values(kafka, topic) == []

    kafka.delete_topic(topic)
    assert topic not in kafka.topics()
    kafka.create_topic(topic)
    assert values(kafka, topic) == []


def test_what_was_written_survives_a_kill(proxied_kafka: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    write(proxied_kafka, topic, b"before")
    proxied_kafka.kill()
    with pytest.raises(ClusterError, match="broker 0 does not run"):
        proxied_kafka.wait()
    proxied_kafka.start_broker()
    proxied_kafka.wait()
    write(proxied_kafka, topic, b"after")
    assert values(proxied_kafka, topic) == [b"before", b"after"]


def test_a_frozen_broker_is_silent(proxied_kafka: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    proxied_kafka.freeze()
    with pytest.raises(KafkaException) as raised:
        write(proxied_kafka, topic, b"lost", settings=IMPATIENT)
    assert raised.value.args[0].code() == KafkaError._MSG_TIMED_OUT
    proxied_kafka.thaw()
    proxied_kafka.wait()
    write(proxied_kafka, topic, b"there")
    assert values(proxied_kafka, topic)[-1] == b"there"


def test_a_process_dies_with_the_one_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, signal, time\n"
        "from pathlib import Path\n"
        "from tests.kafka.cluster import _spawn\n"
        "process = _spawn(['sleep', '60'], Path(sys.argv[1]))\n"
        "process.send_signal(signal.SIGSTOP)\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    gone, _ = psutil.wait_procs([child], timeout=10)
    # Where nobody reaps orphans it stays a zombie.
    assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_one_that_is_there_already(kafka: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    with Foreign(kafka.bootstrap) as foreign:
        foreign.create_topic(topic)
        write(foreign, topic, b"one")
        assert values(foreign, topic) == values(kafka, topic) == [b"one"]
        for hurt in (foreign.kill, foreign.freeze, foreign.lose_data, foreign.proxy):
            with pytest.raises(ClusterError, match="not ours"):
                hurt()
        foreign.wait()
    kafka.wait()


# Three


def test_one_of_three_loses_its_disk(three_brokers: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    three_brokers.create_topic(topic, replicas=3, config={"min.insync.replicas": "2"})
    write(three_brokers, topic, b"before")
    lost = three_brokers.leader(topic)
    three_brokers.stop_broker(lost)
    three_brokers.lose_data(lost)
    write(three_brokers, topic, b"meanwhile")
    assert three_brokers.leader(topic) != lost
    three_brokers.start_broker(lost)
    three_brokers.wait()
    three_brokers.wait_in_sync(topic)
    assert three_brokers.in_sync(topic) == {0, 1, 2}
    assert values(three_brokers, topic) == [b"before", b"meanwhile"]


def test_assignment(three_brokers: Cluster, topic_prefix: str) -> None:
    topic = f"{topic_prefix}calls"
    three_brokers.create_topic(topic, assignment=[[2, 0], [1, 2]])
    assert [three_brokers.leader(topic, partition) for partition in (0, 1)] == [2, 1]
    assert three_brokers.in_sync(topic) == {0, 2}


# Security


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
def test_passwords(sasl_kafka: Cluster, topic_prefix: str, mechanism: str) -> None:
    topic = f"{topic_prefix}calls"
    sasl_kafka.create_topic(topic)
    write(sasl_kafka, topic, b"mine", settings=sasl_kafka.sasl(mechanism=mechanism))
    assert values(sasl_kafka, topic) == [b"mine"]

    reported: list[int] = []
    wrong = {
        **sasl_kafka.sasl(password="wrong", mechanism=mechanism),
        "error_cb": lambda error: reported.append(error.code()),
    }
    producer = Producer(sasl_kafka.client(wrong))
    producer.produce(topic, b"not mine")
    until = time.monotonic() + 20
    while KafkaError._AUTHENTICATION not in reported:
        assert time.monotonic() < until, reported
        producer.poll(0.1)
    producer.purge()
    producer.flush(10)
    assert values(sasl_kafka, topic) == [b"mine"]


def test_rights(sasl_kafka: Cluster, topic_prefix: str) -> None:
    topic, other = f"{topic_prefix}calls", f"{topic_prefix}messages"
    sasl_kafka.create_topic(topic)
    sasl_kafka.create_topic(other)

    def answer(topic: str, user: str) -> int:
        try:
            write(sasl_kafka, topic, b"", settings=sasl_kafka.sasl(user))
        except KafkaException as error:
            return int(error.args[0].code())
        return KafkaError.NO_ERROR

    assert answer(topic, WRITER) == KafkaError.NO_ERROR
    assert answer(topic, READER) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    sasl_kafka.revoke_write(topic)
    assert answer(topic, WRITER) == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert answer(other, WRITER) == KafkaError.NO_ERROR
    sasl_kafka.grant_write(topic)
    assert answer(topic, WRITER) == KafkaError.NO_ERROR
    assert answer(topic, READER) == KafkaError.TOPIC_AUTHORIZATION_FAILED


# The proxy


@pytest.fixture
def echo() -> Iterator[Proxy]:
    """A proxy before a server that says what it hears."""
    port, server_port = free_ports(2)
    program = (
        "import socketserver, sys\n"
        "class Echo(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while data := self.request.recv(65536): self.request.sendall(data)\n"
        "server = socketserver.ThreadingTCPServer(('127.0.0.1', int(sys.argv[1])), Echo)\n"
        "print(flush=True)\n"
        "server.serve_forever()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(server_port)], stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        proxy = Proxy(port, server_port)
        yield proxy
        proxy.close()
        server.kill()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def take(line: socket.socket, size: int) -> bytes:
    with line.makefile("rb") as file:
        return file.read(size)


def ask(line: socket.socket, data: bytes = b"hello") -> bytes:
    line.sendall(data)
    return take(line, len(data))


def gone(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def silent(line: socket.socket) -> bool:
    line.settimeout(0.2)
    try:
        ask(line)
    except TimeoutError:
        return True
    finally:
        line.settimeout(5)
    return False


def test_a_proxy_passes_and_is_cut(echo: Proxy) -> None:
    with connect(echo) as line:
        assert ask(line) == b"hello"
        data = os.urandom(3_000_000)
        with ThreadPoolExecutor(1) as other:
            sending = other.submit(line.sendall, data)
            assert take(line, len(data)) == data
            sending.result()
        echo.cut()
        assert gone(line)
    with connect(echo) as line:
        assert ask(line) == b"hello"


def test_a_proxy_refuses(echo: Proxy) -> None:
    with connect(echo) as line:
        assert ask(line) == b"hello"
        echo.refuse()
        assert gone(line)
    with pytest.raises(ConnectionRefusedError):
        connect(echo)
    echo.restore()
    with connect(echo) as line:
        assert ask(line) == b"hello"


def test_a_proxy_swallows(echo: Proxy) -> None:
    with connect(echo) as line:
        assert ask(line) == b"hello"
        echo.black_hole()
        assert silent(line)
        with connect(echo) as other:
            assert silent(other)
            echo.restore()
            assert gone(line)
            assert gone(other)
    with connect(echo) as line:
        assert ask(line) == b"hello"


def test_a_proxy_is_late(echo: Proxy) -> None:
    with connect(echo) as line:
        echo.delay(0.5)
        begun = time.monotonic()
        for _ in range(3):
            line.sendall(b"hello")
        assert take(line, 15) == b"hello" * 3
        # Each is late, and not one after the other.
        assert 0.5 <= time.monotonic() - begun < 1.4
        echo.restore()
        begun = time.monotonic()
        assert ask(line) == b"hello"
        assert time.monotonic() - begun < 0.4


@pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.black_hole])
def test_clients_reach_a_broker_by_its_proxy_alone(
    proxied_kafka: Cluster, topic_prefix: str, fault: Callable[[Proxy], None]
) -> None:
    topic = f"{topic_prefix}calls"
    proxied_kafka.create_topic(topic)
    write(proxied_kafka, topic, b"before")
    fault(proxied_kafka.proxy())
    with pytest.raises(KafkaException):
        write(proxied_kafka, topic, b"meanwhile", settings=IMPATIENT)
    proxied_kafka.wait()
    proxied_kafka.proxy().restore()
    write(proxied_kafka, topic, b"after")
    assert values(proxied_kafka, topic) == [b"before", b"after"]


# For people


def test_a_folder_that_is_named_is_kept_and_no_other(tmp_path: Path) -> None:
    named, own = Cluster(folder=tmp_path / "named"), Cluster()
    for cluster in (named, own):
        (cluster.folder / "data-0").mkdir()
        cluster.close()
    assert (named.folder / "data-0").exists()
    assert not own.folder.exists()


def test_make_kafka_says_that_its_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 9092))
            taken.listen()
        except OSError:
            pass  # by somebody else: just as well
        done = subprocess.run(
            [sys.executable, "-m", "tests.kafka"],
            check=False,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.returncode == 2
    assert done.stderr == "port 9092 is taken: is a Kafka running already?\n"
