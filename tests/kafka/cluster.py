"""A real Kafka on 127.0.0.1 that can be killed, frozen, emptied and cut off.

    with Cluster(3) as kafka:
        kafka.create_topic("calls", partitions=4, replicas=3)
        kafka.kill(kafka.leader("calls"))

Each broker is a controller, too. It has one listener for clients, behind a proxy if one is asked
for, and another for the other brokers and for what this file asks: a fault of the clients' line
is none of theirs.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from confluent_kafka import (
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined] # it re-exports, undeclared
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    PartitionMetadata,
    ResourcePatternType,
    ResourceType,
)

from tests.kafka.certificates import Certificates, make_certificates
from tests.kafka.jars import ClusterError, fetch_jars, tool
from tests.kafka.proxy import Proxy
from tests.kit import free_ports

#: Who may do everything with topics, who may only read, and their passwords.
WRITER, READER = "dialstream", "reader"
PASSWORDS = {WRITER: "invented-password-of-dialstream", READER: "invented-password-of-reader"}

_CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"

_JAVA_OPTIONS = (
    "-Xms64m",
    "-Xmx400m",
    "-XX:+UseSerialGC",
    # The rest is for a quick start.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-BytecodeVerificationRemote",
)

#: What passes by itself, while brokers start and leaders move.
_PASSING = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)

_SILENT = logging.getLogger("tests.kafka")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False

_T = TypeVar("_T")


@dataclass(slots=True)
class Broker:
    """One node; its id is its place in the cluster."""

    id: int
    folder: Path
    #: Where clients connect: the proxy's, if there is one.
    port: int
    #: Where it listens for clients.
    client_port: int
    #: Where other brokers connect, and this file.
    internal_port: int
    controller_port: int
    proxy: Proxy | None = None
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False

    @property
    def properties(self) -> Path:
        return self.folder / f"broker-{self.id}.properties"

    @property
    def data(self) -> Path:
        return self.folder / f"data-{self.id}"

    @property
    def log(self) -> Path:
        """What it says, over all its lives."""
        return self.folder / f"broker-{self.id}.log"

    @property
    def alive(self) -> bool:
        """Whether there is a process, be it frozen."""
        return self.process is not None and self.process.poll() is None

    @property
    def internal(self) -> str:
        return f"127.0.0.1:{self.internal_port}"


class Cluster:
    """Brokers 0, 1, … on one host.

    ``proxied``: clients connect through a `Proxy` to each. ``secured``: clients need SASL_SSL, and
    rights. ``ports``: where clients connect; free ones if not given. ``folder``: keeps data and
    logs; without one they end with the cluster. ``properties``: Kafka's, over the usual ones.
    """

    def __init__(
        self,
        count: int = 1,
        *,
        proxied: bool = False,
        secured: bool = False,
        ports: Sequence[int] = (),
        folder: Path | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="dialstream-kafka-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._properties = dict(properties or {})
        self._proxied = proxied
        #: Whether a broker may be in no state to answer.
        self._hurt = False
        #: Of a secured cluster.
        self.certificates: Certificates | None = None
        if secured:
            self.certificates = make_certificates(self.folder)
        free = iter(free_ports(4 * count))
        self.brokers: list[Broker] = []
        for number in range(count):
            port, client_port, internal, controller = (next(free) for _ in range(4))
            port = ports[number] if ports else port
            if not proxied:
                client_port = port
            self.brokers.append(
                Broker(number, self.folder, port, client_port, internal, controller)
            )
        #: Where clients begin.
        self.bootstrap = ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    # Processes

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Start every broker that is not alive, on the data it has, and wait for all."""
        self._write_properties()
        for broker in self.brokers:
            if self._proxied and broker.proxy is None:
                broker.proxy = Proxy(broker.port, broker.client_port)
        self._format([broker for broker in self.brokers if not broker.data.exists()])
        for broker in self.brokers:
            if not broker.alive:
                self.start_broker(broker.id)
        self.wait()
        if self.certificates is not None:
            self._give_rights()
        return self

    def stop(self) -> None:
        """Kill every broker; data and proxies stay."""
        for broker in self.brokers:
            if broker.alive:
                self.kill(broker.id)

    def close(self) -> None:
        """End everything."""
        self.stop()
        for broker in self.brokers:
            if broker.proxy is not None:
                broker.proxy.close()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def mend(self) -> None:
        """Undo every fault: restore the proxies, thaw what is frozen, start what is dead."""
        for broker in self.brokers:
            if broker.proxy is not None:
                broker.proxy.restore()
            if not broker.alive:
                self._hurt = True
                self._format([] if broker.data.exists() else [broker])
                self.start_broker(broker.id)
            elif broker.frozen:
                self.thaw(broker.id)
        if self._hurt:
            self.wait()
            self._hurt = False

    def broker(self, broker: int = 0) -> Broker:
        return self.brokers[broker]

    def proxy(self, broker: int = 0) -> Proxy:
        """What clients of this broker connect to, in a proxied cluster."""
        found = self.broker(broker).proxy
        if found is None:
            raise ClusterError("no proxy: the cluster was not made with proxied=True, or is new")
        return found

    def start_broker(self, broker: int = 0) -> None:
        """Start a dead one on the data it has; `wait` for it."""
        it = self.broker(broker)
        assert not it.alive, f"broker {broker} is alive"
        it.process = _spawn(_java("kafka.Kafka", str(it.properties)), it.log)

    def stop_broker(self, broker: int = 0, timeout_s: float = 30) -> None:
        """Have it hand over what it leads, and end."""
        process = self._alive(broker)
        process.terminate()
        process.wait(timeout_s)

    def kill(self, broker: int = 0) -> None:
        """SIGKILL."""
        process = self._alive(broker)
        process.kill()
        process.wait(10)
        self.broker(broker).frozen = False

    def freeze(self, broker: int = 0) -> None:
        """SIGSTOP: it neither answers nor goes away."""
        process = self._alive(broker)
        self.broker(broker).frozen = True
        process.send_signal(signal.SIGSTOP)
        _until(
            lambda: os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG) is not None,
            f"broker {broker} freezes",
        )

    def thaw(self, broker: int = 0) -> None:
        """SIGCONT; `wait` for it if it was frozen for long."""
        self._alive(broker).send_signal(signal.SIGCONT)
        self.broker(broker).frozen = False

    def lose_data(self, broker: int = 0) -> None:
        """Take a dead one's disk away; it gets a new one, empty."""
        it = self.broker(broker)
        assert not it.alive, f"broker {broker} is alive"
        shutil.rmtree(it.data)
        self._format([it])

    def wait(self, *brokers: int, timeout_s: float = 60) -> None:
        """Until these, or all, answer and each knows the others."""
        waited = [self.broker(broker) for broker in brokers] or self.brokers
        ids = {broker.id for broker in waited}

        def answers(broker: Broker) -> bool:
            if not broker.alive:
                raise ClusterError(f"broker {broker.id} does not run\n{_end_of(broker.log)}")
            ports = (broker.client_port, broker.internal_port)
            return all(map(_accepts, ports)) and ids <= _known(broker.internal)

        for broker in waited:
            _until(partial(answers, broker), f"broker {broker.id} answers", timeout_s)

    def _alive(self, broker: int) -> subprocess.Popen[bytes]:
        """What is about to be hurt."""
        process = self.broker(broker).process
        assert process is not None, f"broker {broker} was never started"
        assert process.poll() is None, f"broker {broker} is dead"
        self._hurt = True
        return process

    def _format(self, brokers: Sequence[Broker]) -> None:
        options = ["-t", _CLUSTER_ID]
        if self.certificates is not None:
            for user, password in PASSWORDS.items():
                options += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
        started = [
            _spawn(
                _java("kafka.tools.StorageTool", "format", *options, "-c", str(it.properties)),
                it.log,
            )
            for it in brokers
        ]
        for it, process in zip(brokers, started, strict=True):
            if process.wait(60):
                raise ClusterError(f"broker {it.id}: its disk is not formatted\n{_end_of(it.log)}")

    def _write_properties(self) -> None:
        count = len(self.brokers)
        voters = ",".join(f"{it.id}@127.0.0.1:{it.controller_port}" for it in self.brokers)
        for it in self.brokers:
            internal = f"INTERNAL://{it.internal}"
            values = {
                "process.roles": "broker,controller",
                "node.id": it.id,
                "controller.quorum.voters": voters,
                "controller.listener.names": "CONTROLLER",
                "inter.broker.listener.name": "INTERNAL",
                "listeners": f"CLIENT://127.0.0.1:{it.client_port},{internal},"
                f"CONTROLLER://127.0.0.1:{it.controller_port}",
                "advertised.listeners": f"CLIENT://127.0.0.1:{it.port},{internal}",
                "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,"
                "CONTROLLER:PLAINTEXT",
                "log.dirs": it.data,
                "auto.create.topics.enable": "false",
                "default.replication.factor": min(3, count),
                "min.insync.replicas": min(2, count),
                "offsets.topic.replication.factor": min(3, count),
                "offsets.topic.num.partitions": 4,
                "transaction.state.log.replication.factor": min(3, count),
                "transaction.state.log.min.isr": min(2, count),
                "transaction.state.log.num.partitions": 4,
                "group.initial.rebalance.delay.ms": 0,
                # Shorter than by default, 9 s: a dead one is missed when this is over. It is let in
                # again no sooner, too, and where it is alone nobody misses it.
                "broker.session.timeout.ms": 2000 if count == 1 else 3000,
                "broker.heartbeat.interval.ms": 250,
                "log.index.size.max.bytes": 1024 * 1024,
                **(self._security(self.certificates) if self.certificates else {}),
                **self._properties,
            }
            text = "".join(f"{name}={value}\n" for name, value in values.items())
            it.properties.write_text(text)

    # Security

    @staticmethod
    def _security(certificates: Certificates) -> dict[str, object]:
        module = "org.apache.kafka.common.security"
        users = " ".join(f'user_{user}="{password}"' for user, password in PASSWORDS.items())
        listener = "listener.name.client"
        return {
            "listener.security.protocol.map": "CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,"
            "CONTROLLER:PLAINTEXT",
            f"{listener}.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            f"{listener}.scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule"
            " required;",
            f"{listener}.plain.sasl.jaas.config": f"{module}.plain.PlainLoginModule"
            f" required {users};",
            f"{listener}.ssl.keystore.type": "PEM",
            f"{listener}.ssl.keystore.location": certificates.broker,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # Those who come by the internal listener.
            "super.users": "User:ANONYMOUS",
        }

    def sasl(
        self, user: str = WRITER, password: str | None = None, mechanism: str = "SCRAM-SHA-512"
    ) -> dict[str, Any]:
        """What a confluent-kafka client of a secured cluster needs besides."""
        assert self.certificates is not None, "not made with secured=True"
        return {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.certificates.authority),
            "sasl.mechanism": mechanism,
            "sasl.username": user,
            "sasl.password": PASSWORDS[user] if password is None else password,
        }

    def settings(self, prefix: str) -> dict[str, Any]:
        """What a ``[kafka]`` section needs to reach it as the user that may write."""
        values: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "topic_prefix": prefix,
        }
        if self.certificates is not None:
            values |= {
                "security_protocol": "SASL_SSL",
                "ssl_cafile": str(self.certificates.authority),
                "sasl_username": WRITER,
                "sasl_password": PASSWORDS[WRITER],
            }
        return values

    def revoke_write(self, topic: str, user: str = WRITER) -> None:
        """Deny this user to write to this topic, from now on."""
        self._add_rights([_right(user, topic, AclOperation.WRITE, denied=True)])

    def grant_write(self, topic: str, user: str = WRITER) -> None:
        """Take back what `revoke_write` did."""
        denied = _filter_of(_right(user, topic, AclOperation.WRITE, denied=True))
        self.ask(lambda admin: _one(admin.delete_acls([denied], request_timeout=10)))
        _until(lambda: not self._rights(denied), f"{user} may write to {topic}")

    def _give_rights(self) -> None:
        group = ResourceType.GROUP
        self._add_rights(
            [
                _right(WRITER, "*", AclOperation.ALL),
                _right(WRITER, "*", AclOperation.ALL, group),
                _right(READER, "*", AclOperation.READ),
                _right(READER, "*", AclOperation.READ, group),
            ]
        )

    def _add_rights(self, rights: list[AclBinding]) -> None:
        for right in rights:
            self.ask(partial(_add_right, right))
            _until(partial(self._rights, _filter_of(right)), f"{right} is in force")

    def _rights(self, wanted: AclBindingFilter) -> list[AclBinding]:
        rights: list[AclBinding] = self.ask(
            lambda admin: admin.describe_acls(wanted, request_timeout=10).result(20)
        )
        return rights

    # Topics

    def client(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Settings of a confluent-kafka client of this cluster that keeps quiet."""
        return {**_quiet(self.bootstrap), **(more or {})}

    def create_topic(
        self,
        topic: str,
        *,
        partitions: int = 1,
        replicas: int = -1,
        assignment: Sequence[Sequence[int]] | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Create one, and return once it can be used. ``assignment``: each partition's brokers."""
        new = NewTopic(topic, partitions, replicas, config=dict(config or {}))
        if assignment is not None:
            brokers = [list(replicated) for replicated in assignment]
            new = NewTopic(topic, len(brokers), replica_assignment=brokers, config=new.config)
        self.ask(lambda admin: _one(admin.create_topics([new], request_timeout=10)))

        def usable(view: str) -> bool:
            partitions = self._partitions(topic, view)
            return len(partitions) == new.num_partitions and all(
                partition.leader in partition.isrs for partition in partitions.values()
            )

        for view in self._views():
            _until(partial(usable, view), f"{topic} can be used")

    def delete_topic(self, topic: str) -> None:
        """Delete it, and return once no broker knows it."""
        self.ask(lambda admin: _one(admin.delete_topics([topic], request_timeout=10)))

        def gone(view: str) -> bool:
            return not self._partitions(topic, view)

        for view in self._views():
            _until(partial(gone, view), f"{topic} goes")

    def topics(self) -> list[str]:
        """All but Kafka's own."""
        names = self.ask(lambda admin: list(admin.list_topics(timeout=5).topics))
        return sorted(name for name in names if not name.startswith("__"))

    def topic_config(self, topic: str) -> dict[str, str]:
        """The configuration in force."""
        wanted = ConfigResource(ResourceType.TOPIC, topic)
        found = self.ask(lambda admin: _one(admin.describe_configs([wanted], request_timeout=10)))
        return {name: entry.value for name, entry in found.items()}

    def alter_topic(self, topic: str, config: Mapping[str, str]) -> None:
        """Change these settings and no others, and return once they are in force."""
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in config.items()
        ]
        change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        self.ask(lambda admin: _one(admin.incremental_alter_configs([change], request_timeout=10)))
        _until(lambda: config.items() <= self.topic_config(topic).items(), f"{topic} changes")

    def delete_records(self, topic: str, partition: int = 0, before: int = OFFSET_END) -> None:
        """Delete what stands before this offset; everything there is, without one."""
        place = TopicPartition(topic, partition, before)
        self.ask(lambda admin: _one(admin.delete_records([place], request_timeout=10)))

    def records(self, topic: str, timeout_s: float = 30) -> list[Message]:
        """Everything in a topic: partition by partition, each in its order."""
        found: list[Message] = []
        places = [TopicPartition(topic, number, 0) for number in self._partitions(topic)]
        # A leader that is new does not know at once how much is durable. It refuses to say so,
        # while readers meet an end that is none.
        ends = {place.partition: self._end(topic, place.partition) for place in places}
        until = time.monotonic() + timeout_s
        consumer = Consumer(
            {
                **_quiet(",".join(self._views())),
                "group.id": "tests",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
            }
        )
        try:
            consumer.assign(places)
            while ends:
                if time.monotonic() > until:
                    raise ClusterError(f"{topic} cannot be read to the end: {ends}")
                for message in consumer.consume(1000, timeout=0.05):
                    error, partition, offset = message.error(), *_place(message)
                    if error is None:
                        found.append(message)
                        offset += 1
                    elif error.code() != KafkaError._PARTITION_EOF:
                        continue
                    if offset >= ends.get(partition, offset + 1):
                        del ends[partition]
        finally:
            consumer.close()
        return sorted(found, key=_place)

    def _end(self, topic: str, partition: int) -> int:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        places = {TopicPartition(topic, partition): latest}
        end: int = self.ask(
            lambda admin: _one(admin.list_offsets(places, request_timeout=10)).offset
        )
        return end

    # Replicas

    def leader(self, topic: str, partition: int = 0, timeout_s: float = 30) -> int:
        """The broker that leads; waits until one that runs does."""
        found = -1

        def leads() -> bool:
            nonlocal found
            found = self._partitions(topic)[partition].leader
            return found != -1 and self._runs(found)

        _until(leads, f"somebody leads {topic}/{partition}", timeout_s)
        return found

    def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        """The replicas that have everything, as the cluster sees it now."""
        return set(self._partitions(topic)[partition].isrs)

    def wait_in_sync(self, topic: str, timeout_s: float = 60) -> None:
        """Until each replica of each partition has everything."""

        def complete() -> bool:
            partitions = self._partitions(topic).values()
            return all(set(each.isrs) == set(each.replicas) for each in partitions)

        _until(complete, f"{topic} is in sync", timeout_s)

    # Asking

    def ask(
        self, question: Callable[[AdminClient], _T], *, view: str = "", timeout_s: float = 30
    ) -> _T:
        """Ask brokers that run, again while leaders move. ``view``: as this one sees it."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                return question(AdminClient(_quiet(view or ",".join(self._views()))))
            except KafkaException as error:
                if error.args[0].code() not in _PASSING or time.monotonic() > until:
                    raise
            time.sleep(0.1)

    def _partitions(self, topic: str, view: str = "") -> dict[int, PartitionMetadata]:
        """None if there is no such topic."""

        def partitions(admin: AdminClient) -> dict[int, PartitionMetadata]:
            found = admin.list_topics(topic, timeout=5).topics[topic]
            return {} if found.error else found.partitions

        return self.ask(partitions, view=view)

    def _views(self) -> list[str]:
        views = [broker.internal for broker in self.brokers if self._runs(broker.id)]
        if not views:
            raise ClusterError("no broker runs")
        return views

    def _runs(self, broker: int) -> bool:
        return self.brokers[broker].alive and not self.brokers[broker].frozen


class Foreign(Cluster):
    """A Kafka that is there already: whatever needs its processes raises ClusterError."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__(0)
        self.bootstrap = bootstrap

    def start(self) -> Self:
        self.topics()
        return self

    def broker(self, broker: int = 0) -> Broker:
        raise ClusterError(
            f"the Kafka at {self.bootstrap} is not ours to kill, freeze or look into"
        )

    def wait(self, *brokers: int, timeout_s: float = 60) -> None:
        if brokers:
            self.broker()
        self.ask(lambda admin: admin.list_topics(timeout=5), timeout_s=timeout_s)

    def _views(self) -> list[str]:
        return [self.bootstrap]

    def _runs(self, broker: int) -> bool:
        return True


# Processes

#: Becomes another program, which dies with the thread that started it. A pipe ends when it does.
_LEASH = """
import ctypes, os, sys
parent, pipe = map(int, sys.argv[1:3])
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
os.set_inheritable(pipe, False)
if os.getppid() == parent:
    os.execvp(sys.argv[3], sys.argv[3:])
"""

#: A thread that lives as long as we do, whichever threads and event loops of tests come and go.
_starter = ThreadPoolExecutor(1, "kafka-starter")


def _spawn(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own that cannot outlive us."""

    def spawn() -> subprocess.Popen[bytes]:
        ours, its = os.pipe()
        leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), str(its)]
        with open(ours, "rb") as pipe:  # noqa: PTH123 - no path
            try:
                with log.open("ab") as output:
                    process = subprocess.Popen(
                        [*leash, *command],
                        cwd=log.parent,
                        start_new_session=True,
                        pass_fds=[its],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
            finally:
                os.close(its)
            pipe.read()
        return process

    return _starter.submit(spawn).result()


def _java(*arguments: str) -> list[str]:
    log4j = Path(__file__).with_name("log4j2.properties")
    return [
        tool("java", "openjdk-17-jre-headless"),
        *_JAVA_OPTIONS,
        f"-Dlog4j2.configurationFile={log4j}",
        *("-cp", f"{fetch_jars()}/*"),
        *arguments,
    ]


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


# Asking


def _quiet(bootstrap: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 500,
        "log_level": 0,
        "logger": _SILENT,
    }


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _known(bootstrap: str) -> set[int]:
    """The brokers this one knows of; none while it does not answer."""
    with contextlib.suppress(KafkaException):
        return set(AdminClient(_quiet(bootstrap)).list_topics(timeout=2).brokers)
    return set()


def _add_right(right: AclBinding, admin: AdminClient) -> None:
    _one(admin.create_acls([right], request_timeout=10))


def _one(answers: Mapping[Any, Future[Any]]) -> Any:
    (answer,) = answers.values()
    return answer.result(20)


def _place(message: Message) -> tuple[int, int]:
    """Partition and offset."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return partition, offset


def _right(
    user: str,
    name: str,
    operation: AclOperation,
    kind: ResourceType = ResourceType.TOPIC,
    *,
    denied: bool = False,
) -> AclBinding:
    permission = AclPermissionType.DENY if denied else AclPermissionType.ALLOW
    literal = ResourcePatternType.LITERAL
    return AclBinding(kind, name, literal, f"User:{user}", "*", operation, permission)


def _filter_of(right: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        right.restype,
        right.name,
        right.resource_pattern_type,
        right.principal,
        right.host,
        right.operation,
        right.permission_type,
    )


def _until(true: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Raises ClusterError if it does not become true in time."""
    until = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > until:
            raise ClusterError(f"not within {timeout_s} s: {what}")
        time.sleep(0.05)
