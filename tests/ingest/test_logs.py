"""Log lines, metrics, answers and commands tell what happened, and never what was said.

Every text of every sample is replaced by a canary, posted in every way that we could think of, and
then looked for in everything that the product says, plain and encoded.
"""

import ast
import base64
import fcntl
import itertools
import json
import os
import random
import string
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import pytest

from ingest.logs import CATALOGUE, LineWriter
from ingest.metrics import LOG_LINES_DROPPED
from tests.conftest import MakeProduct
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import Cluster
from tests.kit import (
    PROJECT,
    SECRET,
    Product,
    call,
    clean_environment,
    new_leg,
    request,
    samples,
    sign,
)

HOOK = "/webhooks/acme"
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")

#: A secret that may not be told either, and what the forgers sign with.
SECRETS = ["canarysecret" + "0123456789abcdefghij", "canarysecret" + "of-the-rotation-9876543210"]
FORGED = "canaryforger" + "klmnopqrstuvwxyz012345"


# Canaries


@dataclass
class Aviary:
    """Makes canaries, and finds those that have flown."""

    dice: random.Random = field(default_factory=lambda: random.Random(os.urandom(8)))
    made: set[str] = field(default_factory=set)
    #: Those whose forms are known, and the forms by their beginning.
    _known: set[str] = field(default_factory=set)
    _forms: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def text(self) -> str:
        return self._keep("".join(self.dice.choices(string.ascii_letters, k=14)))

    def digits(self, count: int) -> str:
        return self._keep("".join(self.dice.choices("23456789", k=count)))

    def _keep(self, canary: str) -> str:
        self.made.add(canary)
        return canary

    def instead_of(self, value: object, key: str, *, words_too: bool) -> object:
        """A canary of the kind of the value; what the kind of a payload is told by stays."""
        if isinstance(value, str) and value:
            is_word = key in ("state", "event", "direction", "type")
            return value if is_word and not words_too else self._instead_of_text(value)
        if type(value) is int and value > 10**12 and "date" not in key and "timestamp" not in key:
            return int(self.digits(16))
        return value

    def _instead_of_text(self, value: str) -> str:
        if value.startswith("+"):
            return f"+1{self.digits(10)}"
        if value.startswith("http"):
            return f"https://{self.text()}.example/{self.text()}?{self.text()}={self.text()}"
        if "@" in value:
            return f"{self.text()}@{self.text()}.example"
        if value.isdigit():
            return self.digits(16)
        return f'{self.text()} \u00fc\u4e16 "{self.text()}"'

    def taint(self, value: Any, key: str = "", *, words_too: bool = False) -> Any:
        """The same shape with a canary in the place of every text and every id."""
        if isinstance(value, dict):
            return {k: self.taint(inner, k, words_too=words_too) for k, inner in value.items()}
        if isinstance(value, list):
            return [self.taint(inner, key, words_too=words_too) for inner in value]
        return self.instead_of(value, key, words_too=words_too)

    def flown(self, said: str) -> set[str]:
        """The canaries that stand in what was said, in whatever clothes."""
        said = said.lower()
        for canary in self.made - self._known:
            self._known.add(canary)
            for form in map(str.lower, _forms(canary)):
                self._forms.setdefault(form[:_GRAM], []).append((form, canary))
        grams = {said[at : at + _GRAM] for at in range(len(said))}
        return {
            canary
            for gram in grams & self._forms.keys()
            for form, canary in self._forms[gram]
            if form in said
        }


#: Every form of a canary is at least as long.
_GRAM = 9


def _forms(canary: str) -> Iterator[str]:
    raw = canary.encode()
    yield canary
    yield canary[::-1]
    yield raw.hex()
    yield "".join(f"\\u{ord(letter):04x}" for letter in canary)
    yield "".join(f"%{byte:02x}" for byte in raw)
    # In the middle of something encoded: the letters that all three alignments leave certain.
    for before in range(3):
        padded = b"\0" * before + raw
        coded = base64.b64encode(padded)[before and before + 1 : len(padded) * 8 // 6]
        yield coded.decode()
        yield coded.replace(b"+", b"-").replace(b"/", b"_").decode()
    if len(canary) == 10 and canary.isdigit():  # a phone number
        area, exchange, rest = canary[:3], canary[3:6], canary[6:]
        yield f"({area}) {exchange}-{rest}"
        yield f"{area}-{exchange}-{rest}"
        yield f"{area} {exchange} {rest}"


def test_a_canary_is_found_in_all_its_clothes() -> None:
    aviary = Aviary()
    canary, number = aviary.text(), aviary.digits(10)
    for before in range(4):
        text = b"x" * before + canary.encode() + b"yz"
        for coded in (base64.b64encode(text), base64.urlsafe_b64encode(text)):
            assert aviary.flown(f'{{"a": "{coded.decode()}"}}') == {canary}
    for said in (canary, canary.upper(), canary.encode().hex(), sign({"name": canary}).decode()):
        assert aviary.flown(f"<{said}>") == {canary}
    assert aviary.flown(f"({number[:3]}) {number[3:6]}-{number[6:]}") == {number}
    assert aviary.flown("nothing of the kind") == set()


# What is posted


def _wrong_types(value: Any) -> Any:
    """Every text where a list or an object is expected, and the other way round."""
    if isinstance(value, dict):
        return {k: _wrong_types(inner) for k, inner in value.items()} or "x"
    if isinstance(value, list):
        return {str(at): _wrong_types(inner) for at, inner in enumerate(value)}
    return [value, {"in": value, str(value): value}]


def bodies(aviary: Aviary, payload: dict[str, Any]) -> Iterator[bytes]:
    """A sample, in every way that it could come."""
    tainted = aviary.taint(payload)
    yield sign(tainted, SECRETS[0])
    yield sign(tainted, SECRETS[0])  # again
    yield sign(aviary.taint(payload), SECRETS[1])
    yield sign(aviary.taint(payload), FORGED)
    yield json.dumps(aviary.taint(payload)).encode()
    yield sign(json.dumps(aviary.taint(payload)).encode()[:-5], SECRETS[0])
    yield sign(json.dumps([aviary.taint(payload)]).encode(), SECRETS[0])
    yield sign({"unknown": aviary.taint(payload), aviary.text(): 1}, SECRETS[0])
    yield sign(aviary.taint(payload, words_too=True), SECRETS[0])
    yield sign(_wrong_types(aviary.taint(payload, words_too=True)), SECRETS[0])
    yield sign({**aviary.taint(payload), aviary.text(): aviary.text()}, SECRETS[0])
    yield sign({key: aviary.text() for key in payload}, SECRETS[0])


def one_by_one(aviary: Aviary, payload: dict[str, Any], seen: set[str]) -> Iterator[bytes]:
    """A canary under one key at a time: what one place sets aside must not hide another."""
    kind = "call" if "call_id" in payload else "other"
    for key in payload:
        if f"{kind} {key}" not in seen:
            seen.add(f"{kind} {key}")
            yield sign({**payload, key: aviary.text()}, SECRETS[0])
            yield sign({**payload, key: {aviary.text(): aviary.text()}}, SECRETS[0])


def oddities(aviary: Aviary) -> Iterator[bytes]:
    """Requests that carry canaries in other places than the body."""
    good = sign(call(new_leg(), 0), SECRETS[0])
    names = ("Authorization", "User-Agent", "X-Forwarded-For", "Cookie", "Host", "Content-Type")
    yield request(HOOK, good, headers=[(name, aviary.text()) for name in names])
    yield request(HOOK, b"x", headers=[(name, aviary.text()) for name in names])
    yield request(f"{HOOK}/{aviary.text()}", good)
    yield request(f"{HOOK}?token={aviary.text()}", good)
    yield request(f"/webhooks/{aviary.text()}", good)
    yield request(f"/webhooks/{aviary.text()}", method="GET")
    yield request(f"/{aviary.text()}/%00{aviary.text()}", good)
    yield request(HOOK, aviary.text().encode() * 90_000)
    yield request(HOOK, aviary.text().encode(), length=2_000_000)
    yield request(HOOK, aviary.text().encode(), length=1000)
    yield request(HOOK, good, headers=[("Upgrade", aviary.text()), ("Connection", "upgrade")])
    yield request(HOOK, good, method=aviary.text().upper())
    yield f"{aviary.text()} {aviary.text()}\r\n{aviary.text()}: {aviary.text()}\r\n\r\n".encode()
    yield f"POST {HOOK} HTTP/1.1\r\n{aviary.text()}\r\n{aviary.text()}: \0\r\n\r\n".encode()
    yield f"POST {HOOK} HTTP/1.1\r\nContent-Length: {aviary.text()}\r\n\r\n".encode()
    yield f"POST http://{aviary.text()}:{aviary.text()}/ HTTP/1.1\r\n\r\n".encode()


@dataclass
class Spoken:
    """Everything that a receiver and its commands have said about tainted deliveries."""

    aviary: Aviary
    product: Product
    #: By where it was said.
    said: dict[str, str]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    aviary = Aviary()
    aviary.made |= {*SECRETS, FORGED}
    settings = {
        "logging": {"level": "debug"},
        "receiver": {"body_timeout_s": 0.5},
        "connections": {"acme": {"provider": "dialpad", "secrets": SECRETS, "region": "US"}},
    }
    with Product(tmp_path_factory.mktemp("taint"), settings) as product:
        answers = []
        seen: set[str] = set()
        with product.wire() as wire:
            for payload in samples().values():
                for body in (*bodies(aviary, payload), *one_by_one(aviary, payload, seen)):
                    answer = wire.ask(request(HOOK, body))
                    answers.append(f"{answer.status} {answer.headers} {answer.body!r}")
        for data in oddities(aviary):
            with product.wire() as wire, suppress(OSError):
                wire.send(data)
                answer = wire.answer()
                answers.append(f"{answer.status} {answer.headers} {answer.body!r}")
        said = {"answers": "\n".join(answers)}
        for path in ("/metrics", "/readyz", "/livez", f"/{aviary.text()}"):
            answer = product.admin(path)
            said[path] = f"{answer.headers} {answer.body.decode()}"
        for ran in _commands(aviary, product):
            said[" ".join(ran[0])] = ran[1]
        product.stop()
        said["stderr"] = product.stderr
        said["stdout"] = product.stdout
        yield Spoken(aviary, product, said)


def _commands(aviary: Aviary, product: Product) -> Iterator[tuple[tuple[str, ...], str]]:
    good, bad = product.folder / "good.json", product.folder / "bad.json"
    good.write_text(json.dumps(aviary.taint(samples()["sms-inbound-user"])))
    bad.write_text(f"{aviary.text()} no json {aviary.text()}")
    for arguments in (
        ("doctor",),
        ("doctor", "--json"),
        ("config", "show"),
        ("config", "show", "--json"),
        ("send", "good.json"),
        ("send", "bad.json"),
        ("send", "good.json", "--connection", "nobody"),
        ("send", "good.json", "--to", f"http://127.0.0.1:{product.port}/nothing"),
        ("send", "good.json", "--to", "http://127.0.0.1:1/"),
        ("receive",),  # a second one
    ):
        yield arguments, product.run(*arguments).output


def test_what_was_posted_is_what_the_tests_mean(spoken: Spoken) -> None:
    """The canaries have been there: they are on the log, and every outcome is among the counts."""
    events = spoken.product.events()
    stored = json.dumps(events, ensure_ascii=False)
    assert len(spoken.aviary.flown(stored)) > len(spoken.aviary.made) / 4
    assert {event["type"].split(".")[1] for event in events} >= {
        "call",
        "message",
        "contact",
        "agent",
        "change",
        "reject",
    }
    told = {line["event"] for line in map(json.loads, spoken.said["stderr"].splitlines())}
    assert told >= {
        "delivery_stored",
        "delivery_refused",
        "delivery_rejected",
        "delivery_unavailable",
    }


def test_no_canary_is_told_anywhere(spoken: Spoken) -> None:
    flown = {where: spoken.aviary.flown(text) for where, text in spoken.said.items()}
    assert {where: canaries for where, canaries in flown.items() if canaries} == {}


def test_no_token_and_no_part_of_one_is_told(spoken: Spoken) -> None:
    for where, text in spoken.said.items():
        assert "eyJ" not in text, where


def test_every_line_is_one_json_object_as_the_catalogue_has_it(spoken: Spoken) -> None:
    lines = spoken.said["stderr"].splitlines()
    assert len(lines) > 500
    for text in lines:
        line = json.loads(text)
        assert isinstance(line, dict)
        _, fields = CATALOGUE[line["event"]]
        assert line.keys() >= {"event", "level", "timestamp"}
        assert line.keys() <= {"event", "level", "timestamp", *fields.split()}
        assert line["level"] in LEVELS
        assert line["timestamp"].endswith("Z")
    assert spoken.said["stdout"] == ""


def test_a_delivery_leaves_a_line_with_what_is_needed_to_find_it(spoken: Spoken) -> None:
    lines = [json.loads(text) for text in spoken.said["stderr"].splitlines()]
    stored = [line for line in lines if line["event"] == "delivery_stored"]
    for line in stored:
        assert line["connection"] == "acme"
        assert line["via"] == "webhook"
        assert line["kind"].startswith("dialstream.")
        assert line["outcome"] in ("stored", "repeat")
        assert line["stored_in"] == "journal"
        assert line["size_bytes"] > 0
        assert line["duration_ms"] >= 0
        assert len(line["ids"]) <= 8
    assert {line["outcome"] for line in stored} == {"stored", "repeat"}


def test_labels_of_metrics_are_from_fixed_sets(spoken: Spoken) -> None:
    """A label for each canary would be a leak, and a leak of memory."""
    lines = [line for line in spoken.said["/metrics"].split("\\n") if not line.startswith("#")]
    assert len(spoken.said["/metrics"].splitlines()) < 400, lines[:5]


# The same where the log is Kafka, and it goes away


@pytest.fixture(scope="module")
def spoken_on_kafka(
    tmp_path_factory: pytest.TempPathFactory, proxied_kafka: Cluster
) -> Iterator[Spoken]:
    aviary = Aviary()
    password = "canarypassword" + "of-kafka-0123456789"
    aviary.made |= {*SECRETS, password}
    prefix = f"taint-{os.urandom(3).hex()}."
    settings = settings_for(
        proxied_kafka, prefix, publish_timeout_s=0.5, sasl_password=password, partitions=1
    )
    settings |= {
        "logging": {"level": "debug"},
        "connections": {"acme": {"provider": "dialpad", "secrets": SECRETS, "region": "US"}},
    }
    # Too small for a call, so that Kafka refuses them; agents has no topic at all.
    for topic in ("calls", "rejects", "messages", "contacts"):
        size = {"calls": "1500", "rejects": "2000"}.get(topic, "100000")
        proxied_kafka.create_topic(prefix + topic, config={"max.message.bytes": size})
    with Product(tmp_path_factory.mktemp("taint"), settings) as product:
        said = {}
        answers = []
        for away in (False, True):
            if away:
                proxied_kafka.proxy().refuse()
            with product.wire() as wire:
                for payload in samples().values():
                    answer = wire.ask(request(HOOK, sign(aviary.taint(payload), SECRETS[0])))
                    answers.append(f"{answer.status} {answer.headers} {answer.body!r}")
        for path in ("/metrics", "/readyz"):
            answer = product.admin(path)
            said[path] = f"{answer.headers} {answer.body.decode()}"
        said["answers"] = "\n".join(answers)
        for arguments in (("spool", "show"), ("spool", "show", "--json"), ("spool", "drain")):
            said[" ".join(arguments)] = product.run(*arguments).output
        product.stop()
        said["tail"] = product.run("tail", "--count", "1").output
        said["stderr"] = product.stderr
        said["stdout"] = product.stdout
        yield Spoken(aviary, product, said)
    proxied_kafka.mend()


def test_no_canary_is_told_where_the_log_is_kafka(spoken_on_kafka: Spoken) -> None:
    said = spoken_on_kafka.said
    flown = {where: spoken_on_kafka.aviary.flown(text) for where, text in said.items()}
    assert {where: canaries for where, canaries in flown.items() if canaries} == {}
    assert not any("eyJ" in text for text in said.values())
    lines = [json.loads(text) for text in said["stderr"].splitlines()]
    for line in lines:
        _, fields = CATALOGUE[line["event"]]
        assert line.keys() <= {"event", "level", "timestamp", *fields.split()}
    assert {line["event"] for line in lines} >= {
        "delivery_stored",
        "kafka_connected",
        "record_refused",
        "spool_begun",
    }
    assert {line.get("stored_in") for line in lines} >= {"kafka", "spool"}
    assert said["stdout"] == ""
    spool = (spoken_on_kafka.product.data / "spool").rglob("*.sqlite*")
    there = "".join(path.read_bytes().decode(errors="replace") for path in spool)
    assert spoken_on_kafka.aviary.flown(there), "what could have been told was there"


# Libraries


def test_of_what_a_library_repeats_a_line_in_ten_seconds_is_told(tmp_path: Path) -> None:
    program = (
        "import logging, time\n"
        "from unittest.mock import patch\n"
        "from ingest.logs import setup_logs\n"
        "writer = setup_logs('json', 'info')\n"
        "library = logging.getLogger('library')\n"
        "now = 100.0\n"
        "with patch('ingest.logs.time.monotonic', lambda: now):\n"
        "    for number in range(50):\n"
        "        library.warning('try %d failed', number)\n"
        "        library.error('another kind')\n"
        "    logging.getLogger('aiokafka').error('Unable connect to %s', 'secret')\n"
        "    logging.getLogger('aiokafka.conn').warning('Unable connect to %s', 'secret')\n"
        "    library.info('too little to be told')\n"
        "    now = 111.0\n"
        "    library.warning('try %d failed', 50)\n"
        "    try:\n"
        "        raise ValueError('secret')\n"
        "    except ValueError:\n"
        "        library.exception('it broke')\n"
        "        library.exception('it broke')\n"
        "writer.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=PROJECT,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert "secret" not in done.stdout + done.stderr
    lines = [json.loads(text) for text in done.stderr.splitlines()]
    told = [(line["event"], line.get("message"), line.get("suppressed")) for line in lines]
    assert told == [
        ("library", "try 0 failed", None),
        ("library", "another kind", None),
        ("library", "try 50 failed", 49),
        ("unexpected_error", None, None),
    ]
    assert lines[3]["error"] == "ValueError"
    assert {line["logger"] for line in lines} == {"library"}


# The code against the catalogue


@dataclass(frozen=True)
class Said:
    """A call of a logger in the code."""

    where: str
    events: frozenset[str]
    fields: frozenset[str]


def calls_of_loggers() -> list[Said]:
    found: list[Said] = []
    for package in ("ingest", "consumers", "schemas"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            found += _Finder(path).found
    return found


class _Finder(ast.NodeVisitor):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text())
        self.found: list[Said] = []
        self._functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = []
        self.visit(self.tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._functions.append(node)
        self.generic_visit(node)
        self._functions.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment] # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if not self._is_logger(node.func):
            return
        level = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        event = node.args[1 if level == "log" else 0]
        fields = {keyword.arg for keyword in node.keywords}
        if "exc_info" in fields:
            fields = fields - {"exc_info"} | {"error", "where"}
        where = f"{self.path.relative_to(PROJECT)}:{node.lineno}"
        if None in fields:  # only where libraries' lines are taken over
            assert self.path.name == "logs.py", where
            fields = set()
        events = frozenset(self._texts(event))
        assert events, f"{where}: the name of the line cannot be told"
        self.found.append(Said(where, events, frozenset(f for f in fields if f)))

    def _is_logger(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Attribute) and node.attr in (*LEVELS, "log"):
            return ast.unparse(node.value) in ("log", "structlog.get_logger()")
        if isinstance(node, ast.Name):  # say = log.warning
            return any(
                isinstance(value, ast.Attribute) and self._is_logger(value)
                for value in self._values(node.id)
            )
        return False

    def _values(self, name: str) -> Iterator[ast.expr]:
        """What is assigned to a name in the functions around, or passed for it in this file."""
        for function in self._functions:
            for node in ast.walk(function):
                if isinstance(node, ast.Assign):
                    for target in node.targets:
                        yield from _assigned(target, node.value, name)
            parameters = [argument.arg for argument in function.args.args]
            if name in parameters:
                yield from self._passed(function.name, parameters, name)

    def _passed(self, function: str, parameters: list[str], name: str) -> Iterator[ast.expr]:
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith(function):
                continue
            is_method = parameters[0] == "self"
            at = parameters.index(name) - is_method
            yield from node.args[at : at + 1]
            yield from (keyword.value for keyword in node.keywords if keyword.arg == name)

    def _texts(self, node: ast.expr) -> Iterator[str]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.IfExp):
            yield from itertools.chain(self._texts(node.body), self._texts(node.orelse))
        elif isinstance(node, ast.Name):
            for value in self._values(node.id):
                yield from self._texts(value)


def _assigned(target: ast.expr, value: ast.expr, name: str) -> Iterator[ast.expr]:
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts, strict=True):
            yield from _assigned(one, its, name)


def test_every_line_in_the_code_stands_in_the_catalogue_with_its_fields() -> None:
    calls = calls_of_loggers()
    assert len(calls) > 15
    for said in calls:
        for event in said.events:
            assert event in CATALOGUE, f"{said.where}: {event}"
            surplus = said.fields - set(CATALOGUE[event][1].split())
            assert not surplus, f"{said.where}: {event} may not have {surplus}"


def test_everything_in_the_catalogue_is_said_somewhere() -> None:
    said = set().union(*(each.events for each in calls_of_loggers()))
    assert CATALOGUE.keys() == said


def test_every_field_in_the_catalogue_is_given_somewhere() -> None:
    given: dict[str, set[str]] = {event: set() for event in CATALOGUE}
    for said in calls_of_loggers():
        for event in said.events & CATALOGUE.keys():
            given[event] |= said.fields
    shared = {fields for _, fields in CATALOGUE.values() if fields.startswith("connection via")}
    for event, (_, fields) in CATALOGUE.items():
        if fields not in shared and event not in ("library", "unexpected_error"):
            assert set(fields.split()) == given[event], event


# Faults of ours

FAULTS = {
    "in the main task": "raise RuntimeError(CANARY)",
    "with a cause": "raise RuntimeError(CANARY) from ValueError(CANARY)",
    "in a group": "raise ExceptionGroup(CANARY, [ValueError(CANARY)])",
    "in a task of a group": "async with asyncio.TaskGroup() as g: g.create_task(boom())",
    "in a callback": "asyncio.get_running_loop().call_soon(int, CANARY); await asyncio.sleep(0.1)",
    "in a lost task": "asyncio.create_task(boom()); await asyncio.sleep(0.1); gc.collect()",
    "told by a library": "logging.getLogger('lib').exception(CANARY, exc_info=ValueError(CANARY))",
    "in a thread": "t = threading.Thread(target=int, args=(CANARY,)); t.start(); t.join()",
    "in a warning": "warnings.warn(CANARY)",
    "in a finalizer": "Bad()",
    "in an executor": "await asyncio.to_thread(int, CANARY)",
}


@pytest.mark.parametrize("code", FAULTS.values(), ids=FAULTS)
def test_whatever_breaks_every_line_is_json_and_quotes_nothing(tmp_path: Path, code: str) -> None:
    canary = "Canaryof" + "".join(random.choices(string.ascii_letters, k=12))
    script = tmp_path / "breaks.py"
    script.write_text(
        f"""
import asyncio, gc, logging, threading, warnings
from ingest.logs import setup_logs
from ingest.runner import run

CANARY = {canary!r}

class Bad:
    def __del__(self):
        raise RuntimeError(CANARY)

async def boom():
    raise RuntimeError(CANARY)

async def main(stopping):
    {code}

logs = setup_logs("json", "debug")
try:
    raise SystemExit(run(main))
finally:
    logs.close()
"""
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", script],
        check=False,
        cwd=PROJECT,
        env=clean_environment(),
        capture_output=True,
        timeout=30,
        text=True,
    )
    assert canary not in done.stdout + done.stderr
    assert done.returncode in (0, 1)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines, "nothing was told at all"
    for line in lines:
        assert line["event"] in ("unexpected_error", "library")
        if "error" in line:
            assert line["error"] in ("RuntimeError", "ValueError", "ExceptionGroup")
            assert line["where"] or line["error"] == "ValueError"


# Who reads the lines


def _pipe(size: int = 4096) -> tuple[int, int]:
    reading, writing = os.pipe()
    with suppress(AttributeError, OSError):  # where pipes have one size only
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size)
    return reading, writing


def _drain(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    found = b""
    with suppress(BlockingIOError):
        while piece := os.read(descriptor, 65536):
            found += piece
    return found


def test_who_does_not_read_the_lines_holds_up_nobody(make_product: MakeProduct) -> None:
    product = make_product(settings={"logging": {"level": "debug"}})
    reading, writing = _pipe()
    try:
        product.start(stderr=writing)
        os.close(writing)
        body = sign(call(new_leg(), 0))
        some = request(HOOK, body) * 50
        slowest = 0.0
        with product.wire() as wire:
            for _ in range(40):
                begun = time.monotonic()
                wire.send(some)
                assert {wire.answer().status for _ in range(50)} == {204}
                slowest = max(slowest, time.monotonic() - begun)
        assert slowest < 1
        assert product.readyz() == 200
        begun = time.monotonic()
        assert product.stop(SIGTERM) == 0
        assert time.monotonic() - begun < 5
        for line in _drain(reading).splitlines()[:-1]:  # the last one may be cut off
            json.loads(line)
    finally:
        os.close(reading)


def test_lines_stay_whole_on_a_descriptor_that_does_not_block(make_product: MakeProduct) -> None:
    """A supervisor may hand us one: it decides for both ends, and others that share it."""
    product = make_product(settings={"logging": {"level": "debug"}})
    reading, writing = _pipe()
    os.set_blocking(writing, False)
    found = b""
    try:
        product.start(stderr=writing)
        os.close(writing)
        body = sign(call(new_leg(), 0))
        with product.wire() as wire:
            for _ in range(10):
                wire.send(request(HOOK, body) * 20)
                assert {wire.answer().status for _ in range(20)} == {204}
                time.sleep(0.05)
                found += _drain(reading)
        assert product.stop(SIGTERM) == 0
        found += _drain(reading)
    finally:
        os.close(reading)
    lines = [json.loads(line) for line in found.splitlines()]
    assert sum(line["event"] == "delivery_stored" for line in lines) > 50


def test_who_goes_away_takes_nothing_but_the_lines(make_product: MakeProduct) -> None:
    product = make_product(settings={"logging": {"level": "debug"}})
    reading, writing = _pipe()
    product.start(stderr=writing)
    os.close(writing)
    os.close(reading)
    leg = new_leg()
    for seq in range(20):
        assert product.post(sign(call(leg, seq))).status == 204
    assert product.metrics().sum("dialstream_log_lines_dropped_total") >= 15
    assert product.stop(SIGTERM) == 0


def test_a_writer_never_waits_and_counts_what_it_drops() -> None:
    reading, writing = _pipe()
    writer = LineWriter(writing)
    before = LOG_LINES_DROPPED._value.get()
    begun = time.monotonic()
    for number in range(30_000):
        writer.info(f'{{"event": "{number}"}}')
    assert time.monotonic() - begun < 2
    dropped = LOG_LINES_DROPPED._value.get() - before
    assert 15_000 < dropped < 30_000
    begun = time.monotonic()
    writer.close()
    assert time.monotonic() - begun < 2
    told = _drain(reading).splitlines()
    assert told[0] == b'{"event": "0"}'
    os.close(reading)  # lets its thread go


def test_what_is_waiting_is_written_at_the_end() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    for number in range(500):
        writer.info(str(number))
    writer.close()
    assert _drain(reading).split() == [str(number).encode() for number in range(500)]
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("format_", "is_json"), [("json", True), ("auto", True), ("console", False)]
)
def test_lines_in_a_pipe_are_json_unless_asked_otherwise(
    make_product: MakeProduct,
    format_: str,
    is_json: bool,  # noqa: FBT001
) -> None:
    product = make_product(settings={"logging": {"format": format_}}).start()
    product.stop(SIGINT)
    assert product.stderr.startswith("{") == is_json
    assert "\x1b[" not in product.stderr


@pytest.mark.parametrize(("level", "events"), [("error", set()), ("warning", {"delivery_refused"})])
def test_what_is_below_the_level_is_not_told(
    make_product: MakeProduct, level: str, events: Iterable[str]
) -> None:
    product = make_product(settings={"logging": {"level": level}}).start()
    product.post(sign(call(new_leg(), 0), SECRET))
    product.post(b"forged")
    product.stop(SIGINT)
    assert {line["event"] for line in product.log()} == set(events)
