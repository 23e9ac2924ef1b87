"""`rejects list`, `show` and `redrive`, as somebody uses them whose provider had changed something.

Rejects of an earlier version are made by hand here: what they hold is readable today.
"""

import asyncio
import base64
import fcntl
import json
import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from consumers.subscribe import RejectError, Subscriber
from ingest.commands.rejects import _Redrive
from ingest.eventlog.kinds import open_log, open_reader
from ingest.eventlog.log import Publisher, Record, StoredRecord, records_of
from ingest.rejects import group_reject, group_topic, is_retry_request, reject_event
from ingest.settings import Settings, load_settings
from schemas.call import Call
from schemas.event import Event
from schemas.times import rfc3339
from tests.conftest import MakeProduct
from tests.ingest.commands.here import everything_in, run_quietly
from tests.ingest.commands.on_kafka import settings_for
from tests.kafka.cluster import Cluster
from tests.kit import (
    OTHER_SECRET,
    SECRET,
    Product,
    assert_no_traceback,
    call,
    new_leg,
    samples,
    sign,
)

#: 2026-09-21T14:13:20Z
RECEIVED_MS = 1_790_000_000_000

Make = Callable[..., Product]


@pytest.fixture(params=["journal", "kafka"])
def make(request: pytest.FixtureRequest, make_product: MakeProduct, topic_prefix: str) -> Make:
    """Products on either event log, its topics made."""

    def product(**more: Any) -> Product:
        settings: dict[str, Any] = dict(more)
        if request.param == "kafka":
            cluster: Cluster = request.getfixturevalue("kafka")
            settings |= settings_for(cluster, topic_prefix)
        made = make_product(settings=settings)
        if request.param == "kafka":
            for group in ("crm", "billing"):
                assert made.run("topics", "create", "--group", group).code == 0
        return made

    return product


def settings_of(product: Product) -> Settings:
    """As its own processes have them, whatever folder this one is in."""
    settings = load_settings(product.config, {})
    eventlog = settings.eventlog.model_copy(update={"path": product.data})
    return settings.model_copy(update={"eventlog": eventlog})


def put(product: Product, *records: Record) -> None:
    """Straight onto the log."""

    async def publish() -> None:
        settings = settings_of(product)
        if settings.eventlog.kind == "kafka":
            for topic in {record.topic for record in records}:
                (product.data / "spool" / "test" / topic).mkdir(parents=True, exist_ok=True)
        async with open_log(settings, "test") as log:
            for receipt in [log.publish([record]) for record in records]:
                await receipt.wait(math.inf)

    asyncio.run(publish())


def on_log(product: Product, topic: str) -> list[StoredRecord]:
    async def read() -> list[StoredRecord]:
        found: list[StoredRecord] = []
        async with open_reader(settings_of(product), [topic]) as reader:
            while True:
                more = await reader.fetch(wait_s=0.2)
                found += more
                if not more and await reader.caught_up():
                    return found

    return asyncio.run(read())


def values(product: Product, topic: str) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"null") for record in on_log(product, topic)]


def rejected(body: bytes, reason: str = "unknown_kind", **more: Any) -> Event:
    usual: dict[str, Any] = {"via": "webhook", "received_ms": RECEIVED_MS, "headers": {}}
    return reject_event("acme", reason, "why it is one", body=body, **{**usual, **more})


def digest(body: bytes) -> str:
    return sha256(body).hexdigest()[:16]


def listed(product: Product, *arguments: str) -> list[dict[str, Any]]:
    ran = run_quietly(product, "rejects", "list", "--json", *arguments)
    assert ran.stderr == ""
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.code == int(any(line["redriven_at"] is None for line in lines))
    return lines


def redriven(product: Product, *arguments: str, code: int = 0) -> dict[str, Any]:
    ran = run_quietly(product, "rejects", "redrive", "--json", *arguments)
    assert (ran.code, ran.stderr) == (code, "")
    return cast("dict[str, Any]", json.loads(ran.stdout))


def in_a_process(product: Product, *arguments: str) -> list[dict[str, Any]]:
    """What another process prints, where this one has its own things to do."""
    ran = product.run("rejects", *arguments, "--json", "--group", "crm")
    assert ran.stderr == ""
    return [json.loads(line) for line in ran.stdout.splitlines()]


def counts(found: Mapping[str, Any]) -> tuple[int, int, int]:
    return found["wanted"], found["redriven"], found["events"]


# Redriving


def test_what_is_readable_now_is_published_in_order_with_the_ids_that_it_would_have_had(
    make: Make,
) -> None:
    product = make()
    leg = new_leg()
    calls = [call(leg, seq) for seq in range(3)]
    still = sign({"of": "no known kind"})
    bodies = [sign(calls[0]), sign(calls[1]), still, sign(calls[2]), sign(calls[1])]
    put(product, *(record for body in bodies for record in records_of(rejected(body))))

    before = everything_in(product.data)
    would = redriven(product, "--dry-run", code=1)
    assert everything_in(product.data) == before
    assert (counts(would), would["published"]) == ((4, 3, 3), False)
    assert values(product, "calls") == []

    done = redriven(product, code=1)
    assert counts(done) == (4, 3, 3)
    assert [(one["reason"], one["count"]) for one in done["stays"]] == [("unknown_kind", 1)]
    found = values(product, "calls")
    assert [event["id"] for event in found] == [
        f"dialpad:acme:call:{leg}:{one['state']}:{one['event_timestamp']}" for one in calls
    ]
    for event, one in zip(found, calls, strict=True):
        assert (event["via"], event["recordedtime"]) == ("replay", rfc3339(RECEIVED_MS))
        assert event["data"]["raw"] == one

    # It is on record, and a second one does nothing.
    notes = [event for event in values(product, "rejects") if event["type"].endswith("redriven")]
    assert [note["id"] for note in notes] == [
        f"reject:acme:redriven:{digest(sign(one))}" for one in calls
    ]
    assert [note["data"]["events"] for note in notes] == [[event["id"]] for event in found]
    assert notes[0]["data"]["received_at"] == rfc3339(RECEIVED_MS)
    assert counts(redriven(product, code=1)) == (1, 0, 0)
    assert len(values(product, "calls")) == 3
    assert [line["id"] for line in listed(product)] == [f"reject:acme:unknown_kind:{digest(still)}"]
    assert len(listed(product, "--all")) == 4

    # Unless somebody insists: the same ids again.
    assert counts(redriven(product, "--again", code=1)) == (4, 3, 3)
    again = values(product, "calls")
    assert [event["id"] for event in again] == 2 * [event["id"] for event in found]


def test_killed_between_the_event_and_its_note_it_repeats_the_event_and_no_more(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = make_product()
    leg = new_leg()
    put(product, *records_of(rejected(sign(call(leg, 0)))))
    stored = _Redrive._stored

    async def dies(work: _Redrive, publisher: Publisher, records: Sequence[Record]) -> bool:
        await stored(work, publisher, records)
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(_Redrive, "_stored", dies)
        with pytest.raises(RuntimeError, match="killed"):
            redriven(product)
    assert len(values(product, "calls")) == 1
    assert len(listed(product)) == 1
    assert counts(redriven(product)) == (1, 1, 1)
    first, second = values(product, "calls")
    assert first == second
    assert listed(product) == []


def test_what_could_not_even_be_read_is_not_said_to_be_nothing(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.commands.rejects.carry_out", lambda *_, **__: (1, 0))
    ran = run_quietly(make_product(), "rejects", "redrive")
    assert (ran.code, ran.stdout) == (1, "")


def test_an_id_that_holds_our_clock_holds_the_one_of_then(make_product: MakeProduct) -> None:
    product = make_product()
    put(product, *records_of(rejected(sign(samples()["contact-created"]))))
    assert counts(redriven(product)) == (1, 1, 1)
    (event,) = values(product, "contacts")
    assert event["id"].startswith("dialpad:acme:contact:")
    assert event["id"].endswith(":202609211413")


def test_an_old_state_does_not_take_the_place_of_a_newer_one(make_product: MakeProduct) -> None:
    """The topic of contacts keeps the last of each: it has to stay the newest."""
    product = make_product().start()
    state = samples()["contact-updated"]
    assert product.post(sign(state)).status == 204
    product.kill()
    (newer,) = values(product, "contacts")

    def older(ident: str, name: str) -> dict[str, Any]:
        return {**state, "contact": {**state["contact"], "id": ident, "first_name": name}}

    old = [older(state["contact"]["id"], "Then"), older("77", "Before"), older("77", "After")]
    put(product, *(record for one in old for record in records_of(rejected(sign(one)))))
    found = redriven(product)
    assert counts(found) == (3, 3, 2)
    assert found["superseded"] == 1
    assert listed(product) == [], "nothing can be done about it"
    first, *more = values(product, "contacts")
    assert first == newer
    assert [event["data"]["raw"] for event in more] == old[1:]


def test_a_state_that_comes_while_it_runs_stays_the_newest(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver goes on beside it."""
    product = make()
    state = samples()["contact-updated"]
    idents = ["71", "72", "73"]
    old = [sign({**state, "contact": {**state["contact"], "id": ident}}) for ident in idents]
    put(product, *(record for body in old for record in records_of(rejected(body))))
    key, topic = b"acme/73", "contacts"
    newer = json.dumps({"recordedtime": rfc3339(RECEIVED_MS + 1000)}).encode()
    monkeypatch.setattr("ingest.commands.rejects.BATCH", 1)
    stored = _Redrive._stored

    async def beside(work: _Redrive, publisher: Publisher, records: Sequence[Record]) -> bool:
        if any(record.key == b"acme/72" for record in records):
            other = [Record(topic, key, newer, ())]
            await publisher.publish(other).wait(math.inf)
        return await stored(work, publisher, records)

    monkeypatch.setattr(_Redrive, "_stored", beside)
    found = redriven(product)
    assert (counts(found), found["superseded"]) == ((3, 3, 2), 1)
    assert [one.value for one in on_log(product, topic) if one.key == key] == [newer]


def test_no_secret_is_needed_and_none_is_looked_at(make_product: MakeProduct) -> None:
    """It was signed with one that is gone."""
    product = make_product()
    leg = new_leg()
    put(product, *records_of(rejected(sign(call(leg, 0), "a-secret-that-nobody-knows-any-more!"))))
    key = {"api_key": "invented-api-key"}
    product.configure({"connections": {"acme": {"provider": "dialpad", **key}}})
    assert counts(redriven(product)) == (1, 1, 1)
    assert [event["subject"] for event in values(product, "calls")] == [f"call/{leg}"]


def test_a_notification_keeps_the_id_that_its_sender_gave_it(make_product: MakeProduct) -> None:
    secret = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
    line = {"provider": "diallink", "secrets": [secret], "api_key": "invented"}
    product = make_product(settings={"connections": {"line": line}})
    body = b'{"type":"something.new","data":{}}'
    headers = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": "v1,x"}
    event = reject_event(
        "line",
        "unexpected_shape",
        "",
        via="notification",
        received_ms=RECEIVED_MS,
        body=body,
        headers=headers,
    )
    put(product, *records_of(event))
    assert counts(redriven(product)) == (1, 1, 1)
    (found,) = values(product, "notifications")
    assert found["id"] == "diallink:line:notification:msg_1"
    assert found["via"] == "replay"


def test_filters_leave_the_others_alone(make_product: MakeProduct) -> None:
    secrets = {"acme": SECRET, "beta": OTHER_SECRET}
    connections = {name: {"provider": "dialpad", "secrets": [its]} for name, its in secrets.items()}
    product = make_product(settings={"connections": connections})
    bodies = [sign(call(new_leg(), 0)) for _ in range(4)]
    events = [
        rejected(bodies[0]),
        rejected(bodies[1], "unexpected_shape"),
        rejected(bodies[2], received_ms=RECEIVED_MS + 86_400_000),
        rejected(bodies[3]),
    ]
    put(product, *(record for event in events for record in records_of(event)))
    assert counts(redriven(product, "--connection", "beta")) == (0, 0, 0)
    assert counts(redriven(product, "--reason", "unexpected_shape")) == (1, 1, 1)
    assert counts(redriven(product, "--since", "2026-09-22")) == (1, 1, 1)
    assert counts(redriven(product, digest(bodies[0]))) == (1, 1, 1)
    assert [line["id"] for line in listed(product)] == [events[3].id]


def test_what_can_never_be_redriven_says_what_to_do(make_product: MakeProduct) -> None:
    product = make_product()
    cut = rejected(b"{" * 100, "too_large", kept_bytes=10)
    read = rejected(b'{"call_id":1}', "unexpected_shape", via="poll")
    foreign = reject_event(
        "gone", "not_json", "", via="webhook", received_ms=RECEIVED_MS, body=b"x", headers={}
    )
    no_jws = rejected(b"no jws at all")
    put(
        product,
        *(record for event in (cut, read, foreign, no_jws) for record in records_of(event)),
    )
    found = redriven(product, code=1)
    assert counts(found) == (4, 0, 0)
    told = {one["reason"]: one["detail"] for one in found["stays"]}
    assert told.keys() == {"cut", "read_back", "no_connection", "not_a_jws"}
    assert "dialstream backfill acme" in told["read_back"]
    assert "connections.gone" in told["no_connection"]


def test_an_event_that_kafka_had_refused_goes_where_it_belongs(make_product: MakeProduct) -> None:
    product = make_product().start()
    leg = new_leg()
    assert product.post(sign(call(leg, 0, custom_data='"via":"webhook"'))).status == 204
    product.kill()
    (record,) = on_log(product, "calls")
    assert record.value is not None
    put(product, *records_of(rejected(record.value, "invalid")))
    assert counts(redriven(product)) == (1, 1, 1)
    first, second = on_log(product, "calls")
    assert second.value == first.value.replace(b'"via":"webhook"', b'"via":"replay"', 1)  # type: ignore[union-attr]
    assert (second.key, second.headers) == (first.key, first.headers)

    # What must not be on the log any more comes back by no way.
    dropping = {"provider": "dialpad", "secrets": [SECRET], "privacy": {"drop": ["raw"]}}
    product.configure({"connections": {"acme": dropping}})
    (stays,) = redriven(product, "--again", code=1)["stays"]
    assert stays["reason"] == "privacy"
    assert "connections.acme.privacy.drop" in stays["detail"]
    assert len(on_log(product, "calls")) == 2


def test_an_event_in_a_providers_words_is_none_of_ours(make_product: MakeProduct) -> None:
    """Whoever can sign for one connection must not speak for another."""
    product = make_product(
        settings={
            "connections": {
                "acme": {"provider": "dialpad", "secrets": [SECRET]},
                "beta": {"provider": "dialpad", "secrets": [SECRET]},
            }
        }
    )
    leg = new_leg()
    put(product, *records_of(rejected(sign(call(leg, 0)))))
    assert counts(redriven(product)) == (1, 1, 1)
    (ours,) = on_log(product, "calls")
    assert ours.value is not None
    posing = ours.value.replace(b'"acme"', b'"beta"')
    put(
        product,
        *records_of(rejected(sign(posing), "unexpected_shape")),
        *records_of(rejected(posing, "invalid")),
    )
    found = redriven(product, code=1)
    assert counts(found) == (2, 0, 0)
    assert {one["reason"] for one in found["stays"]} == {"unknown_kind", "no_event"}
    assert len(on_log(product, "calls")) == 1


def test_what_others_have_written_there_is_passed_over(make_product: MakeProduct) -> None:
    product = make_product()
    strange = [b"", b"null", b"[]", b'{"data":null}', b'{"data":{"reason":1}}', b"\xff"]
    good = rejected(sign(call(new_leg(), 0)))
    put(
        product,
        *(Record("rejects", b"acme", value, ()) for value in strange),
        Record("rejects", b"acme", None, ()),
        *records_of(good),
    )
    assert [line["id"] for line in listed(product)] == [good.id]
    assert counts(redriven(product)) == (1, 1, 1)


# A group's


def given_up(product: Product, group: str, stored: Sequence[StoredRecord]) -> None:
    put(
        product,
        *(group_reject(one, group, "no_customer", "KeyError", RECEIVED_MS) for one in stored),
    )


def test_a_groups_rejects_go_to_that_group_only_and_to_it_as_they_were(make: Make) -> None:
    product = make()
    legs = [new_leg(), new_leg()]
    put(product, *(record for leg in legs for record in records_of(rejected(sign(call(leg, 0))))))
    assert counts(redriven(product)) == (2, 2, 2)
    calls = sorted(on_log(product, "calls"), key=lambda one: legs.index(leg_of(one)))
    given_up(product, "crm", calls)
    lines = listed(product, "--group", "crm")
    assert {(line["reason"], line["detail"]) for line in lines} == {("no_customer", "KeyError")}
    ident = f"dialpad:acme:call:{legs[1]}:calling:{call(legs[1], 0)['event_timestamp']}"
    assert ident in {line["id"] for line in lines}

    assert counts(redriven(product, "--group", "crm", "--dry-run")) == (2, 2, 2)
    assert counts(redriven(product, "--group", "crm", ident)) == (1, 1, 1)
    on_topic = on_log(product, group_topic("crm"))
    (request,) = [one for one in on_topic if is_retry_request(one)]
    assert (request.key, request.value) == (calls[1].key, calls[1].value)
    assert set(calls[1].headers) <= set(request.headers)
    assert dict(request.headers)["reject_from"] == position_of(calls[1])
    assert len(on_log(product, "calls")) == 2, "others are not told"
    assert [line["id"] for line in listed(product, "--group", "crm")] != [ident]
    assert len(listed(product, "--group", "crm")) == 1
    assert counts(redriven(product, "--group", "crm", ident)) == (0, 0, 0)

    # It cannot handle it now either: then it is open again, and still the same one.
    given_up(product, "crm", [request])
    assert {line["id"]: line["times"] for line in listed(product, "--group", "crm")}[ident] == 2
    assert counts(redriven(product, "--group", "crm")) == (2, 2, 2)
    assert listed(product, "--group", "crm") == []
    assert listed(product) == [], "ours are another matter"


async def test_a_subscriber_handles_what_it_is_asked_to_again_and_no_other_group_does(
    make: Make,
) -> None:
    product = await asyncio.to_thread(make)
    legs = [str(new_leg()) for _ in range(3)]
    bodies = [sign(call(int(leg), 0)) for leg in legs]
    records = [record for body in bodies for record in records_of(rejected(body))]
    await asyncio.to_thread(put, product, *records)
    assert counts(await asyncio.to_thread(redriven, product)) == (3, 3, 3)

    crm, billing = (
        Subscriber(group, settings=settings_of(product)) for group in ("crm", "billing")
    )
    handled: list[tuple[str, str]] = []
    knows_customers = False

    @crm.on(Call)
    async def file_in_crm(call: Call) -> None:
        if call.call_id == legs[1] and not knows_customers:
            raise RejectError("no_customer")
        handled.append(("crm", call.call_id))

    @billing.on(Call)
    async def bill(call: Call) -> None:
        handled.append(("billing", call.call_id))

    async def until(count: int) -> None:
        async with asyncio.timeout(120):
            while len(handled) < count:  # noqa: ASYNC110 - three of these lists are waited for
                await asyncio.sleep(0.05)

    async def given_up(times: int) -> None:
        async with asyncio.timeout(120):
            while True:
                lines = await asyncio.to_thread(in_a_process, product, "list")
                if lines and lines[0]["times"] == times:
                    break
        assert [(line["reason"], line["connection"]) for line in lines] == [("no_customer", "acme")]

    async def ask_again() -> None:
        (found,) = await asyncio.to_thread(in_a_process, product, "redrive")
        assert counts(found) == (1, 1, 1)

    running = [asyncio.create_task(one.run()) for one in (crm, billing)]
    try:
        await until(5)
        await given_up(1)
        await ask_again()
        await given_up(2)
        knows_customers = True
        await ask_again()
        await until(6)
    finally:
        crm.stop()
        billing.stop()
        await asyncio.gather(*running)
    assert sorted(handled) == sorted((g, leg) for g in ("crm", "billing") for leg in legs)
    assert handled[-1] == ("crm", legs[1])
    assert await asyncio.to_thread(in_a_process, product, "list") == []


def leg_of(record: StoredRecord) -> int:
    return int(record.key.partition(b"/")[2])


def position_of(record: StoredRecord) -> bytes:
    return f"{record.topic}/{record.partition}/{record.position}".encode()


# Looking


def test_the_list_counts_by_reason_and_shows_no_content(make_product: MakeProduct) -> None:
    product = make_product()
    canary = "canary-of-the-content"
    events = [
        rejected(sign({"text": canary, "n": number}), reason)
        for number, reason in enumerate(["unknown_kind", "unknown_kind", "not_json"])
    ]
    put(product, *(record for event in events for record in records_of(event)))
    ran = run_quietly(product, "rejects", "list")
    assert ran.code == 1
    assert [line.split() for line in ran.stdout.splitlines()[:2]] == [
        ["2", "unknown_kind"],
        ["1", "not_json"],
    ]
    for event in events:
        assert event.id.rpartition(":")[2] in ran.stdout
    shown = run_quietly(product, "rejects", "show", events[0].id, "--json")
    assert shown.code == 0
    (told,) = map(json.loads, shown.stdout.splitlines())
    assert told["reason"] == "unknown_kind"
    assert (told["topic"], told["via"]) == ("rejects", "webhook")
    assert told["received_at"] == rfc3339(RECEIVED_MS)
    for output in (
        ran.output,
        shown.output,
        run_quietly(product, "rejects", "list", "--json").output,
    ):
        assert canary not in output
        assert base64.b64encode(canary.encode()).decode()[:12] not in output

    revealed = run_quietly(product, "rejects", "show", events[0].id, "--reveal", "--json")
    (told,) = map(json.loads, revealed.stdout.splitlines())
    assert base64.b64decode(told["body_base64"]) == sign({"text": canary, "n": 0})
    assert json.loads(told["content"]) == {"text": canary, "n": 0}
    assert canary in run_quietly(product, "rejects", "show", events[0].id, "--reveal").stdout


def test_what_is_revealed_gives_a_terminal_no_orders(make_product: MakeProduct) -> None:
    product = make_product()
    event = rejected(sign(b'{"\x1b]0;title\x07": "\xe2\x80\xae\r\n"}\xff'))
    put(product, *records_of(event))
    shown = run_quietly(product, "rejects", "show", event.id, "--reveal").stdout
    assert "\\x1b]0;title\\x07" in shown
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(shown)


@pytest.mark.parametrize("told", ["[/bold]", "[red]", "\x1b[2J\x07", "\u202e\x9b31m\r"])
def test_words_of_others_give_it_none_either_and_stand_there_as_they_are(
    make_product: MakeProduct, told: str
) -> None:
    """Of a group's handler, and of a provider in the id of an event."""
    product = make_product()
    event = event_of_a_call(told)
    put(product, group_reject(event, "crm", told, told, RECEIVED_MS))
    shown = f"dialpad:acme:call:1:{told}"
    (line,) = listed(product, "--group", "crm")
    assert (line["id"], line["reason"], line["detail"]) == (shown, told, told)
    for arguments in (["list"], ["show", shown], ["show", shown, "--reveal"]):
        ran = run_quietly(product, "rejects", *arguments, "--group", "crm")
        assert ran.code == int(arguments == ["list"])
        assert ran.stdout.count(told.encode("unicode_escape").decode()) >= 3
        assert not set(told) & {"\x1b", "\x07", "\u202e", "\x9b", "\r"} & set(ran.stdout)


def event_of_a_call(told: str) -> StoredRecord:
    headers = (("ce_type", b"x"), ("ce_id", f"dialpad:acme:call:1:{told}".encode()))
    value = json.dumps({"via": told}).encode()
    return StoredRecord("calls", 0, 7, RECEIVED_MS, b"acme/1", value, headers)


def test_while_the_log_takes_nothing_it_says_so_and_tries_again(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = make_product()
    put(product, *records_of(rejected(sign(call(new_leg(), 0)))))
    answers = iter([True, True])
    monkeypatch.setattr("ingest.eventlog.topic.disk_full", lambda _: next(answers, False))
    ran = run_quietly(product, "rejects", "redrive")
    assert (ran.code, ran.stderr) == (0, "redriving: disk_full, trying again\n")
    assert next(answers, None) is None
    assert len(values(product, "calls")) == 1


def test_nothing_is_said_to_be_nothing(make_product: MakeProduct) -> None:
    product = make_product()
    ran = product.run("rejects", "list")
    assert (ran.code, ran.stdout) == (0, "There are no rejects that are open.\n")
    ran = run_quietly(product, "rejects", "show", "reject:acme:not_json:0")
    assert ran.code == 1
    assert "there is no such reject" in ran.stderr
    ran = product.run("rejects", "redrive")
    assert (ran.code, ran.stdout) == (0, "nothing to redrive: no reject of these is open\n")
    assert_no_traceback(ran.stderr)


def test_a_second_redrive_at_the_same_time_is_refused(make_product: MakeProduct) -> None:
    product = make_product()
    product.data.mkdir()
    with Path(product.data, "redrive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = product.run("rejects", "redrive")
        assert ran.code == 2
        assert "a redrive is running" in ran.stderr
        assert product.run("rejects", "redrive", "--dry-run").code == 0
