"""`quarantine list`, `show` and `requeue`, as somebody uses them whose secret was wrong."""

import base64
import fcntl
import hashlib
import hmac
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from ingest.commands.quarantine import _Ready, _Requeue
from ingest.delivery import Delivery, Verified
from ingest.eventlog.journal import open_journal
from ingest.eventlog.log import Record
from ingest.providers.dialpad.webhook import Webhook
from ingest.quarantine import File, Refused, Shelf, files_in
from ingest.settings import Quarantine
from schemas.event import Event
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.ingest.commands.here import everything_in, run_quietly
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import Cluster
from tests.kit import (
    OTHER_SECRET,
    SCRIPT,
    SECRET,
    Product,
    assert_no_traceback,
    call,
    clean_environment,
    new_leg,
    request,
    samples,
    sign,
)

CANARY = "CanaryOfTheContent"


def connections(**secrets: str) -> dict[str, Any]:
    return {
        "connections": {
            name: {"provider": "dialpad", "secrets": [secret], "region": "US"}
            for name, secret in secrets.items()
        }
    }


def folder(product: Product, connection: str = "acme") -> Path:
    return product.data / "quarantine" / connection


def kept(product: Product, count: int, connection: str = "acme") -> list[File]:
    """What is there, once there are so many."""
    until = time.monotonic() + 60
    while len(found := files_in(folder(product, connection))) < count:
        assert time.monotonic() < until, found
        time.sleep(0.02)
    assert len(found) == count
    return found


def listed(product: Product, *arguments: str) -> list[dict[str, Any]]:
    ran = run_quietly(product, "quarantine", "list", "--json", *arguments)
    assert ran.stderr == ""
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.code == int(bool(lines))
    return lines


def requeued(product: Product, *arguments: str, code: int = 0) -> dict[str, Any]:
    ran = run_quietly(product, "quarantine", "requeue", "--json", *arguments)
    assert (ran.code, ran.stderr) == (code, "")
    return cast("dict[str, Any]", json.loads(ran.stdout))


def put(product: Product, body: bytes, received_ms: int, *, via: str = "webhook") -> None:
    """As a receiver would have kept it."""
    put_all(product, {received_ms: body}, via=via)


def put_all(product: Product, bodies: Mapping[int, bytes], *, via: str = "webhook") -> None:
    """Each by when it was received."""
    shelf = Shelf(folder(product), Quarantine(max_count=10**6, max_age_s=10**9))
    for received_ms, body in bodies.items():
        refused = Refused(
            connection="acme",
            via=via,
            hint=None,
            reason="bad_signature",
            received_ms=received_ms,
            headers=[],
            body=body,
        )
        assert shelf.put(refused)


@pytest.fixture(params=["journal", "kafka"])
def product(
    request: pytest.FixtureRequest, make_product: MakeProduct, topic_prefix: str
) -> Product:
    """Not started, on either event log, its topics made."""
    if request.param == "journal":
        return make_product()
    kafka: Cluster = request.getfixturevalue("kafka")
    made = make_product(settings=settings_for(kafka, topic_prefix))
    assert made.run("topics", "create").code == 0
    return made


def test_once_the_secret_is_mended_what_was_refused_is_published(product: Product) -> None:
    usual = dict(product.settings)
    leg = new_leg()
    calls = [call(leg, seq) for seq in range(3)]
    product.start()
    for one in calls:
        assert product.post(sign(one, OTHER_SECRET)).status == 401
    assert product.post(b"garbage").status == 401
    files = kept(product, 4)
    assert {file.path.stat().st_mode & 0o777 for file in files} == {0o600}
    product.stop()
    assert product.events() == []

    assert requeued(product, code=1)["stays"] == {"unknown_secret": 3, "garbage": 1}
    kept(product, 4)

    product.configure(usual | connections(acme=OTHER_SECRET))
    would = requeued(product, "--dry-run", code=1)
    assert (would["requeued"], would["published"]) == (3, False)
    assert product.events() == []
    kept(product, 4)
    done = requeued(product, code=1)
    assert (done["wanted"], done["requeued"], done["stays"]) == (4, 3, {"garbage": 1})
    (left,) = kept(product, 1)
    assert left.reason == "not_a_jws"

    events = product.events()
    assert [event["id"] for event in events] == [
        f"dialpad:acme:call:{leg}:{one['state']}:{one['event_timestamp']}" for one in calls
    ]
    came = {file.received_ms for file in files}
    for event, one in zip(events, calls, strict=True):
        assert event["via"] == "webhook"
        assert event["data"]["raw"] == one
        assert milliseconds(event["recordedtime"]) in came, "when it came first"


def milliseconds(rfc3339: str) -> int:
    return round(datetime.fromisoformat(rfc3339).timestamp() * 1000)


def test_a_receiver_goes_on_beside_it_and_tells_the_old_secret(make_product: MakeProduct) -> None:
    secret = {"provider": "dialpad", "secret_files": ["secret"]}
    product = make_product(settings={"connections": {"acme": secret}})
    file = product.folder / "secret"
    file.write_text(SECRET)
    product.start()
    file.write_text(OTHER_SECRET)
    product.signal(signal.SIGHUP)
    product.wait_for_log("secrets_reloaded")
    leg = new_leg()
    assert product.post(sign(call(leg, 0))).status == 401
    kept(product, 1)
    (line,) = listed(product)
    assert (line["diagnosis"], line["text"]) == ("old_secret", "signed with the old secret")

    # It was the right one after all.
    file.write_text(SECRET)
    assert [line["diagnosis"] for line in listed(product)] == ["verifies_now"]
    assert requeued(product)["requeued"] == 1
    product.signal(signal.SIGHUP)
    product.wait_for_log("secrets_reloaded", 2)
    assert product.post(sign(call(leg, 1))).status == 204
    assert [event["type"].rpartition(".")[2] for event in product.story(leg)] == [
        "calling",
        "connected",
    ]


def test_each_is_told_why_it_did_not_verify(make_product: MakeProduct) -> None:
    product = make_product(settings=connections(acme=SECRET, beta=OTHER_SECRET)).start()
    bodies = [
        sign(call(1, 0), OTHER_SECRET),
        json.dumps(call(1, 0)).encode(),
        b"\0\0garbage",
        sign(call(1, 0), "nobody's, and longer than 32 bytes"),
        sign({"exp": 1}),
    ]
    for body in bodies:
        assert product.post(body).status == 401
    kept(product, 5)
    assert sorted(line["text"] for line in listed(product)) == [
        "garbage",
        "signed with a secret that is not in the settings",
        "signed with the secret of connection beta",
        f"signed, but expired {round(time.time() / 86400):,} d before it came",
        "unsigned JSON: the webhook has no secret at Dialpad",
    ]
    ran = run_quietly(product, "quarantine", "list")
    assert ran.code == 1
    assert "       1  signed with the secret of connection beta\n" in ran.stdout
    assert len(listed(product, "--connection", "beta")) == 0
    assert len(listed(product, "--since", "1h")) == 5
    assert listed(product, "--since", "2999-01-01") == []
    metrics = product.metrics()
    assert metrics.sum("dialstream_quarantined_total", connection="acme", outcome="kept") == 5


def test_only_what_is_asked_for_is_requeued(make_product: MakeProduct) -> None:
    product = make_product()
    legs = [new_leg() for _ in range(3)]
    for number, leg in enumerate(legs):
        put(product, sign(call(leg, 0)), now_ms() - 1000 * (3 - number))
    first, second, third = files_in(folder(product))
    assert requeued(product, second.ident)["wanted"] == 1
    assert requeued(product, third.ident[-8:])["requeued"] == 1
    assert [event["subject"] for event in product.events()] == [f"call/{leg}" for leg in legs[1:]]
    assert files_in(folder(product)) == [first]
    assert requeued(product, "no-such-one")["wanted"] == 0


def test_nothing_of_the_content_is_shown_unless_it_is_asked_for(make_product: MakeProduct) -> None:
    product = make_product().start()
    token = f"Bearer {CANARY}-token".encode()
    with product.wire() as wire:
        body = json.dumps({"text": CANARY, CANARY: "+15557654321", "\x1b]0;": "\x07"}).encode()
        head = (
            b"POST /webhooks/acme HTTP/1.1\r\nhost: x\r\nauthorization: %b\r\n"
            b"x-%b: 1\r\ncontent-length: %d\r\n\r\n"
        )
        assert wire.ask(head % (token, b"odd", len(body)) + body).status == 401
    (file,) = kept(product, 1)
    quiet = [
        run_quietly(product, "quarantine", "list"),
        run_quietly(product, "quarantine", "list", "--json"),
        run_quietly(product, "quarantine", "show", file.ident),
        run_quietly(product, "quarantine", "show", file.ident, "--json"),
        product.run("quarantine", "requeue"),
        product.run("quarantine", "requeue", "--dry-run", "--json"),
    ]
    assert all(file.ident[-8:] in ran.stdout for ran in quiet[:4])
    everything = "".join(ran.output for ran in quiet) + product.stderr
    for telltale in (CANARY, "5557654321", base64.b64encode(body).decode()[:20]):
        assert telltale not in everything
        assert telltale.lower() not in product.admin("/metrics").body.decode().lower()

    shown = run_quietly(product, "quarantine", "show", file.ident, "--reveal")
    assert CANARY in shown.stdout
    assert f"{CANARY}-token" not in shown.stdout, "it may sign for somebody"
    assert not {"\x1b", "\x07"} & set(shown.stdout)
    shown = run_quietly(product, "quarantine", "show", file.ident, "--reveal", "--json")
    (told,) = map(json.loads, shown.stdout.splitlines())
    assert base64.b64decode(told["body_base64"]) == body
    assert ["authorization", f"({len(token)} bytes)"] in told["headers"]


def test_the_authentic_that_cannot_be_read_becomes_a_reject(make_product: MakeProduct) -> None:
    product = make_product()
    put(product, sign({"of": "no known kind"}), now_ms())
    found = requeued(product)
    assert (found["requeued"], found["rejected"]) == (1, 1)
    assert files_in(folder(product)) == []
    (event,) = product.events()
    assert event["type"] == "dialstream.reject.unknown_kind"


def test_an_old_state_does_not_take_the_place_of_a_newer_one(make_product: MakeProduct) -> None:
    product = make_product().start()
    state = samples()["contact-updated"]
    assert product.post(sign(state)).status == 204
    product.kill()
    put(product, sign({**state, "contact": {**state["contact"], "first_name": "Then"}}), 10**12)
    put(product, sign({"of": "no known kind"}), 10**12)
    before = everything_in(product.data)
    would = requeued(product, "--dry-run")
    assert (would["requeued"], would["superseded"], would["rejected"]) == (2, 1, 1)
    assert everything_in(product.data) == before, "that was a question"
    found = requeued(product)
    assert (found["requeued"], found["superseded"], found["rejected"]) == (2, 1, 1)
    assert files_in(folder(product)) == []
    assert len(product.events("contact")) == 1


def notified(secret: str, ident: str, at_s: int, body: bytes) -> list[tuple[str, str]]:
    """The headers of Standard Webhooks, by hand."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.digest(key, f"{ident}.{at_s}.".encode() + body, "sha256")
    return [
        ("webhook-id", ident),
        ("webhook-timestamp", str(at_s)),
        ("webhook-signature", f"v1,{base64.b64encode(mac).decode()}"),
    ]


def test_whoever_signs_in_whatever_way_once_the_secret_is_mended_all_is_let_in_but_replays(
    make_product: MakeProduct,
) -> None:
    wrong, right = ("whsec_" + base64.b64encode(bytes([n] * 32)).decode() for n in (1, 2))
    others = [
        ("line", "diallink", {}),
        ("bots", "dialgood", {"push": "token"}),
        ("floor", "dialedin", {"push": "token", "push_header": "X-Token"}),
    ]

    def all_with(secret: str) -> dict[str, Any]:
        account = {"account_id": "1", "timezone": "UTC"}
        table = {
            name: {"provider": provider, "secrets": [secret], "api_key": "invented"}
            | {"assume": assume, "poll": {"enabled": False}}
            | (account if provider == "dialedin" else {})
            for name, provider, assume in others
        }
        acme = {"provider": "dialpad", "secrets": [SECRET if secret == right else OTHER_SECRET]}
        return {"connections": table | {"acme": acme}}

    product = make_product(settings=all_with(wrong)).start()
    body = b'{"type":"something.new","data":{}}'
    now_s = int(time.time())
    posts = [
        ("line", notified(right, "msg_1", now_s, body)),
        ("line", notified(right, "msg_2", now_s - 540, body)),
        ("bots", [("authorization", f"Bearer {right}")]),
        ("floor", [("x-token", right)]),
    ]
    for name, headers in posts:
        with product.wire() as wire:
            asked = request(f"/webhooks/{name}", body, headers=headers)
            assert wire.ask(asked).status == 401
    kept(product, 2, "line")
    kept(product, 1, "bots")
    kept(product, 1, "floor")
    product.stop()
    leg = new_leg()
    put(product, sign(call(leg, 0)), now_ms(), via="websocket")
    assert {line["diagnosis"] for line in listed(product)} == {"unknown_secret"}
    assert requeued(product, code=1)["requeued"] == 0

    product.configure(product.settings | all_with(right))
    texts = sorted(line["text"] for line in listed(product))
    assert texts == [
        "clock 9 min off, or sent again that much later",
        *["verifies now: requeue it"] * 4,
    ]
    done = requeued(product, code=1)
    assert (done["requeued"], done["stays"]) == (4, {"clock": 1})
    digest = hashlib.sha256(body).hexdigest()[:16]
    assert {(event["id"], event["via"]) for event in product.events()} == {
        ("diallink:line:notification:msg_1", "notification"),
        (f"dialgood:bots:notification:{digest}", "notification"),
        (f"dialedin:floor:notification:{digest}", "notification"),
        (f"dialpad:acme:call:{leg}:calling:{call(leg, 0)['event_timestamp']}", "websocket"),
    }


def test_a_state_that_comes_while_it_runs_stays_the_newest(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver goes on beside it."""
    product = make_product()
    state = samples()["contact-updated"]
    for number, ident in enumerate(["71", "72", "73"]):
        old = {**state, "contact": {**state["contact"], "id": ident}}
        put(product, sign(old), 10**12 + number)
    newer = Record("contacts", b"acme/73", b"newer", ())
    monkeypatch.setattr("ingest.commands.quarantine.BATCH", 1)
    current = _Requeue._current

    async def beside(work: _Requeue, ready: list[_Ready], *, really: bool) -> list[_Ready]:
        found = await current(work, ready, really=really)
        if work.done.requeued == 1:  # the second is about to be published
            async with open_journal(product.data) as journal:
                await journal.publish([newer]).wait(math.inf)
        return found

    monkeypatch.setattr(_Requeue, "_current", beside)
    done = requeued(product)
    assert (done["requeued"], done["superseded"]) == (3, 1)


def test_what_was_sent_several_times_is_published_once(make_product: MakeProduct) -> None:
    """DialLink, for one, tries again after 401."""
    product = make_product()
    for number in range(3):
        put(product, sign(call(7, 0)), now_ms() - 1000 + number)
    assert requeued(product)["requeued"] == 3
    assert files_in(folder(product)) == []
    assert len(product.events()) == 1


def test_a_fault_of_ours_keeps_no_other_from_it(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = make_product()
    put(product, sign({"of": "no known kind"}), now_ms() - 1000)
    put(product, sign(call(new_leg(), 0)), now_ms())
    normalize = Webhook.normalize

    def fails(source: Webhook, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        if b"no known kind" in bytes(payload):
            raise RuntimeError(CANARY)
        return normalize(source, payload, delivery)

    monkeypatch.setattr(Webhook, "normalize", fails)
    assert [line["diagnosis"] for line in listed(product)] == ["internal", "verifies_now"]
    assert requeued(product, code=1)["stays"] == {"internal": 1}
    assert len(product.events()) == len(files_in(folder(product))) == 1


def test_while_the_log_takes_nothing_it_says_so_and_tries_again(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = make_product()
    put(product, sign(call(new_leg(), 0)), now_ms())
    answers = iter([True, True])
    monkeypatch.setattr("ingest.eventlog.topic.disk_full", lambda _: next(answers, False))
    ran = run_quietly(product, "quarantine", "requeue")
    assert (ran.code, ran.stderr) == (0, "requeueing: disk_full, trying again\n")
    assert next(answers, None) is None
    assert len(product.events()) == 1


def test_a_file_that_goes_while_it_is_looked_at_is_nothing_to_tell(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver makes room for others whenever it likes."""
    product = make_product()
    put(product, sign(call(new_leg(), 0)), now_ms())
    there = files_in(folder(product))
    gone = replace(there[0], path=folder(product) / "1790000000000-empty-00000000.json")
    monkeypatch.setattr("ingest.commands.quarantine.files_in", lambda _: [gone, *there])
    assert [line["id"] for line in listed(product)] == [there[0].ident]
    assert run_quietly(product, "quarantine", "show", gone.ident).code == 1
    done = requeued(product)
    assert (done["wanted"], done["requeued"], done["left"]) == (1, 1, 0)


def test_who_may_not_look_is_told_who_may(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = make_product()
    put(product, sign(call(new_leg(), 0)), now_ms())

    def refuse(path: Path) -> list[File]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("ingest.commands.quarantine.files_in", refuse)
    for arguments in (["list"], ["show", "x"], ["requeue"]):
        ran = run_quietly(product, "quarantine", *arguments)
        assert (ran.code, ran.stdout) == (2, "")
        assert "data/quarantine/acme is for the eyes of the user that `receive` runs" in ran.stderr


def test_a_file_in_another_connections_folder_is_whose_it_says(make_product: MakeProduct) -> None:
    product = make_product(settings=connections(acme=SECRET, beta=OTHER_SECRET))
    put(product, sign(call(new_leg(), 0)), now_ms())
    folder(product).rename(folder(product, "old"))
    put(product, sign(call(new_leg(), 0)), now_ms())
    folder(product).rename(folder(product, "beta"))
    assert requeued(product)["requeued"] == 2
    assert {event["connection"] for event in product.events()} == {"acme"}


def test_killed_amid_it_nothing_is_lost_and_repeats_have_the_same_id(
    make_product: MakeProduct,
) -> None:
    """SIGKILL again and again, once as soon as the first event is on the log."""
    product = make_product()
    legs = [new_leg() for _ in range(1500)]
    begun_ms = now_ms() - 10_000
    put_all(product, {begun_ms + n: sign(call(leg, 0)) for n, leg in enumerate(legs)})
    calls = product.data / "journal" / "calls"
    for _ in range(3):
        before = len(list(folder(product).iterdir()))
        process = subprocess.Popen(
            [SCRIPT, "quarantine", "requeue"],
            cwd=product.folder,
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while process.poll() is None and len(list(folder(product).iterdir())) == before:
            assert time.monotonic() < until
            time.sleep(0.002)
        process.kill()
        process.wait(10)
        assert calls.is_dir()
    ran = product.run("quarantine", "requeue")
    assert_no_traceback(ran.stderr)
    assert files_in(folder(product)) == []
    events = product.events("call")
    assert {event["subject"] for event in events} == {f"call/{leg}" for leg in legs}
    ids = {event["subject"]: event["id"] for event in events}
    assert {event["id"] for event in events} == set(ids.values()), "a repeat is the same event"


def test_what_is_durable_but_was_not_removed_is_only_repeated(make_product: MakeProduct) -> None:
    """Killed between the two."""
    product = make_product()
    leg = new_leg()
    put(product, sign(call(leg, 0)), now_ms())
    (file,) = files_in(folder(product))
    content = file.path.read_bytes()
    assert requeued(product)["requeued"] == 1
    file.path.write_bytes(content)
    assert requeued(product)["requeued"] == 1
    first, second = product.events()
    assert first == second


def test_damaged_files_and_those_of_others_do_no_harm(make_product: MakeProduct) -> None:
    product = make_product()
    put(product, sign(call(new_leg(), 0)), now_ms())
    damaged = folder(product) / f"{now_ms():013d}-empty-00000000.json"
    damaged.write_text("{")
    (folder(product) / "notes of mine.txt").write_text("x")
    (folder(product).parent / "no folder").write_text("x")
    (folder(product).parent / "..evil").mkdir()
    assert sorted(line["diagnosis"] for line in listed(product)) == ["damaged", "verifies_now"]
    assert requeued(product, code=1)["stays"] == {"damaged": 1}
    assert run_quietly(product, "quarantine", "show", "00000000").code == 0
    assert damaged.exists()


def test_nothing_is_said_to_be_nothing(make_product: MakeProduct) -> None:
    product = make_product()
    ran = run_quietly(product, "quarantine", "list")
    assert (ran.code, ran.stdout.count("\n")) == (0, 1)
    assert "empty" in ran.stdout
    ran = run_quietly(product, "quarantine", "show", "x")
    assert (ran.code, ran.stdout) == (1, "")
    assert_no_traceback(ran.stderr)
    assert not (product.data / "quarantine").exists()


def test_a_second_requeue_at_the_same_time_is_refused(make_product: MakeProduct) -> None:
    product = make_product()
    product.data.mkdir()
    with Path(product.data, "requeue.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = product.run("quarantine", "requeue")
    assert ran.code == 2
    assert "a requeue is running" in ran.stderr


def test_a_flood_costs_its_sender_no_worse_an_answer_and_us_no_more_than_a_bit_of_disk(
    make_product: MakeProduct,
) -> None:
    settings = {"quarantine": {"max_count": 50}}
    product = make_product(settings=settings).start()
    with product.wire() as wire:
        for number in range(500):
            body = b"garbage %d" % number
            head = b"POST /webhooks/acme HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
            assert wire.ask(head % len(body) + body).status == 401
    leg = new_leg()
    assert product.post(sign(call(leg, 0))).status == 204
    assert len(product.story(leg)) == 1
    # Five in a minute; it may have been two.
    until = time.monotonic() + 60
    while not (found := files_in(folder(product))):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert len(found) <= 10
    assert os.listdir(product.data / "quarantine") == ["acme"]  # noqa: PTH208
