"""`dialstream explain` of calls that two connections see: what it says of each verdict."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from consumers.reconcile import explain as command
from consumers.reconcile.core import Core
from consumers.reconcile.facts import CallFact, Fact, Listed
from ingest.errors import ConfigError
from ingest.eventlog.log import Behind, Keys, Start, StoredRecord
from ingest.settings import Settings
from tests.consumers.reconcile.test_pairs import (
    AGENT,
    CALLER,
    CENTRE,
    pair_core,
    pushed,
    read,
    recorded,
    who,
)
from tests.consumers.reconcile.world import (
    HOUR,
    MINUTE,
    SECOND,
    T0,
    ended,
    event,
    history,
    new_core,
    record,
    text,
)

SETTINGS = Settings.model_validate(
    {
        "connections": {
            "acme": {"provider": "dialpad", "secrets": ["secret" * 8]},
            "bots": {"provider": "dialgood", "api_key": "key"},
        },
        "reconcile": {"pairs": [{"pushed": "acme", "recorded": "bots"}]},
    }
)


def stored(fact: Fact) -> StoredRecord:
    """As it stands on the log."""
    if isinstance(fact, CallFact):
        key = f"{fact.connection}/{fact.call.call_id}"
        value: dict[str, Any] = {
            "id": fact.id,
            "type": f"dialstream.call.{fact.what}",
            "time": text(fact.time_ms),
            "recordedtime": text(fact.at_ms),
            "via": fact.via,
            "provider": fact.provider,
            "connection": fact.connection,
            "data": msgspec.to_builtins(fact.call),
        }
        topic = "calls"
    elif isinstance(fact, Listed):
        key, topic = f"{fact.connection}/agent/{fact.agent_id}", "directory"
        value = {
            "recordedtime": text(fact.at_ms),
            "connection": fact.connection,
            "data": {"kind": "agent", "id": fact.agent_id, "numbers": fact.numbers},
        }
    else:
        key, topic = f"{fact.connection}/calls/{fact.agent_id}".rstrip("/"), "checkpoints"
        value = {"generation": 1, "watermark_ms": fact.watermark_ms, "swept_ms": fact.swept_ms}
    return StoredRecord(topic, 0, 0, fact.at_ms, key.encode(), orjson.dumps(value), ())


Explain = Callable[..., str]


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Explain:
    """What is printed of a call when these facts, and what came of them, are on the log."""

    def run(
        facts: Sequence[Fact],
        call_id: str,
        *more: str,
        until_ms: int = T0 + 12 * HOUR,
        code: int = 0,
        settings: Settings = SETTINGS,
        core: Core | None = None,
        beside: Sequence[StoredRecord] = (),
    ) -> str:
        log = [*beside]
        log += [stored(fact) for fact in sorted(facts, key=lambda each: each.at_ms)]
        log += [
            StoredRecord(each.topic, 0, 0, until_ms, each.key, each.value, each.headers)
            for each in history(core or pair_core(), facts, until_ms)
            if each.topic == "verdicts"
        ]

        async def read_once(
            settings: Settings,
            topics: Sequence[str],
            start: Start = "earliest",
            keys: Keys | None = None,
            *,
            until_ms: int | None = None,
        ) -> AsyncIterator[StoredRecord]:
            for each in log:
                if each.topic in topics and (keys is None or each.key in keys[each.topic]):
                    yield each

        monkeypatch.setattr(command, "read_once", read_once)
        monkeypatch.setattr(command, "now_ms", lambda: until_ms + 15 * SECOND)
        capfd.readouterr()
        assert command.explain(settings, call_id, None, as_json="--json" in more) == code
        out = capfd.readouterr().out
        for number in (CENTRE, CALLER):
            assert number not in out
        return out

    return run


BOTH: list[Fact] = [AGENT, pushed("100", T0), recorded("r1", T0, T0 + MINUTE)]
TIE: list[Fact] = [*BOTH, recorded("r2", T0 + SECOND, T0 + MINUTE), read(T0 + HOUR, T0 + HOUR)]
FAR: list[Fact] = [
    AGENT,
    pushed("100", T0),
    recorded("r1", T0 + HOUR, T0 + HOUR),
    recorded("r2", T0, T0 + MINUTE, caller="+15559990009"),
    recorded("r3", T0, T0 + MINUTE, direction="outbound"),
    read(T0 + HOUR, T0 + HOUR),
]


def lines(out: str) -> list[str]:
    """Without the blanks that stand in a table."""
    return [" ".join(line.split()) for line in out.splitlines()]


@pytest.mark.parametrize("call_id", ["100", "r1"])
def test_a_match_is_told_from_either_side(explain: Explain, call_id: str) -> None:
    found = lines(explain(BOTH, call_id))
    assert "1. matched 2026-09-21 14:14:59 of 100: both sides tell the same" in found
    assert "100 at acme r1 at bots apart tolerated" in found
    assert "agent's number +1…0001 +1…0001" in found
    assert "connected 2026-09-21 13:58:09 2026-09-21 13:58:10 0.5 s 15 s" in found
    assert "length 110 s 110 s 0 s 5.5 s" in found
    other = "r1" if call_id == "100" else "100"
    assert f"{other} 0.5 s 0 s all open taken" in found
    assert ("It is the one since there is no other choice that leaves nobody alone.") in found
    assert any("a verdict takes the word of acme" in line for line in found)


def test_the_next_best_choice_is_told_and_whose_the_others_are(explain: Explain) -> None:
    """Were they exchanged, each would be 20 s farther off, and both lengths 60 s: 160 in all."""
    facts: list[Fact] = [
        *BOTH,
        pushed("200", T0 + MINUTE, length_ms=160 * SECOND),
        recorded("r2", T0 + MINUTE, T0 + 2 * MINUTE, length_ms=150 * SECOND),
    ]
    found = lines(explain(facts, "200"))
    # 200 connects at 13:58:29.5, r2 begins at 13:58:30; the other two at 13:58:09.5 and :10.
    assert "r2 0.5 s 0 s all open taken" in found
    assert "r1 19.5 s 40 s shut: agreement cannot be it" in found
    near: list[Fact] = [*BOTH, recorded("r2", T0 + 10 * SECOND, T0 + MINUTE)]
    found = lines(explain(near, "100"))
    assert "r2 10.5 s 0 s all open another choice is better" in found
    assert (
        "It is the one since all distances together are least so. To choose otherwise would cost "
        "10 s more; 5 s are asked for."
    ) in found
    found = lines(explain(near, "r2"))
    assert "100 10.5 s 0 s all open is that of r1" in found
    assert "It has none: each call that it could be is another's." in found


@pytest.mark.parametrize("call_id", ["100", "r1", "r2"])
def test_a_tie_names_all_that_it_could_be(explain: Explain, call_id: str) -> None:
    found = lines(explain(TIE, call_id))
    assert any(line.startswith("1. ambiguous") for line in found)
    near = [line.split()[0] for line in found if line.endswith("as likely as others")]
    assert near == (["r1", "r2"] if call_id == "100" else ["100"])
    assert "None was chosen: to choose otherwise would cost less than 5 s more." in found


def test_what_cannot_be_it_is_told_with_the_gate_that_is_shut(explain: Explain) -> None:
    found = lines(explain(FAR, "100"))
    assert any(
        line.startswith("1. record_missing") and "pushed at acme, and bots has no record" in line
        for line in found
    )
    assert "r2 0.5 s 0 s shut: numbers cannot be it" in found
    assert "r3 0.5 s 0 s shut: direction cannot be it" in found
    assert "r1 3600.5 s 0 s shut: start cannot be it" in found
    assert "No call of the other side passes all gates." in found
    found = lines(explain(FAR, "r3"))
    assert any(
        line.startswith("1. push_missing") and "recorded at bots, and acme has pushed" in line
        for line in found
    )


def test_what_was_revised_is_void(explain: Explain) -> None:
    late = pushed("100", T0)
    late.at_ms += 3 * HOUR
    for call_id in ("r1", "100"):
        found = lines(explain([AGENT, recorded("r1", T0, T0 + MINUTE), late], call_id))
        told = [line for line in found if line.startswith("1. ")]
        assert told[-1].startswith("1. late 2026-09-21 17:00:02 of 100")
        if call_id == "r1":
            assert told[0].startswith("1. push_missing")
            assert told[0].endswith("(void: a later one has revised it)")


def test_what_it_waits_for_is_told(explain: Explain) -> None:
    alone: list[Fact] = [AGENT, pushed("100", T0)]
    unread = explain(alone, "100", until_ms=T0 + HOUR)
    assert "so far it is read not at all" in unread
    mark = read(T0 - MINUTE, T0 + MINUTE)
    listed_so_far = explain([*alone, mark], "100", until_ms=T0 + HOUR)
    assert (
        "read up to its end, 2026-09-21 13:59:59.500; so far it is read up to 2026-09-21 "
        "13:59:00.000. Without that it is judged at 2026-09-21 19:59:59.500 UTC (hold_max_s)."
    ) in listed_so_far
    soon = explain(BOTH, "r1", until_ms=T0 + 5 * MINUTE)
    assert "It is judged at 2026-09-21 14:14:59.500 UTC, settle_s after its end." in soon
    running = recorded("r1", T0, T0 + MINUTE, ended_at=None, outcome=None, total_duration_s=None)
    held = explain([*alone, running], "100", until_ms=T0 + HOUR)
    assert "It waits for the end of a call that is not over as far as is known" in held


def test_a_call_that_is_judged_in_a_moment_waits_for_nobody(explain: Explain) -> None:
    """It has settled at 14:15: what has come by then is compared with it first."""
    settled = explain([AGENT, recorded("r1", T0, T0 + MINUTE)], "r1", until_ms=T0 + 15 * MINUTE)
    assert "It is judged at 2026-09-21 14:15:01.001 UTC, settle_s after its end." in settled
    assert "not over" not in settled


def test_before_reconciliation_began_nothing_is_judged(explain: Explain) -> None:
    reconcile = SETTINGS.reconcile.model_copy(update={"since": datetime(2026, 9, 22, tzinfo=UTC)})
    settings = SETTINGS.model_copy(update={"reconcile": reconcile})
    out = explain(BOTH, "100", until_ms=T0 + 5 * MINUTE, settings=settings)
    assert "It is not judged: it began before reconcile.since." in out


def test_a_crowd_is_compared_by_counts_and_seconds(explain: Explain) -> None:
    facts: list[Fact] = [AGENT]
    for nth in range(70):
        at_ms = T0 + nth * SECOND
        facts += [pushed(str(1000 + nth), at_ms), recorded(f"r{nth}", at_ms, at_ms + MINUTE)]
    facts.append(recorded("r99", T0, T0 + MINUTE))
    found = lines(explain(facts, "1050"))
    assert any(line.startswith("1. ambiguous") for line in found)
    assert any(
        "Of them 70 were pushed, 7,700 s, and 71 recorded, 7,810 s." in line for line in found
    )
    assert len([line for line in found if line.endswith("one of many")]) == 3


def test_of_several_legs_the_verdict_of_whichever_is_found(explain: Explain) -> None:
    facts: list[Fact] = [
        AGENT,
        pushed("100", T0, related_call_ids=["101"]),
        pushed("101", T0, connected_at=T0 - 50 * SECOND),
        recorded("r1", T0, T0 + MINUTE, length_ms=50 * SECOND),
    ]
    found = lines(explain(facts, "100"))
    assert "Its legs with that number are one call: 100, 101." in found
    assert any(line.startswith("1. matched 2026-09-21 14:14:59 of 101:") for line in found)
    assert "100 and 1 more at acme r1 at bots apart tolerated" in found


def test_as_data(explain: Explain) -> None:
    (told,) = json.loads(explain(TIE, "100", "--json"))
    assert told["verdicts"] == []
    (pair,) = told["pairs"]
    assert (pair["fate"], pair["reason"]) == ("ambiguous", "near_tie")
    first, second = pair["candidates"]
    assert (first["call_ids"], first["what"]) == (["r1"], "near")
    assert first["gates"] == {"numbers": True, "direction": True, "start": True, "agreement": True}
    assert (first["start_distance_s"], first["duration_distance_s"]) == (0.5, 0)
    assert first["recorded"] == {
        "numbers": ["+1…0001", "+1…0001"],
        "direction": "inbound",
        "start": "2026-09-21T13:58:10.000Z",
        "duration_s": 110,
    }
    assert second["call_ids"] == ["r2"]
    assert [each["verdict"] for each in pair["verdicts"]] == ["ambiguous"]
    (waiting,) = json.loads(explain(BOTH, "100", "--json", until_ms=T0 + MINUTE))
    assert waiting["pairs"][0]["waits_until"] == "2026-09-21T14:14:59.500Z"


def test_whose_numbers_differ_within_a_connection_they_are_masked(explain: Explain) -> None:
    """The other party that the record names is somebody else."""
    core = new_core()
    facts: list[Fact] = [
        ended("100", T0, external=who(CALLER)),
        record("100", T0 - 500, T0 + MINUTE, external=who("+15559990009")),
    ]
    out = explain(facts, "100", core=core)
    assert "external.number: pushed +1…0001, recorded +1…0009; taken +1…0009" in out
    assert "+15559990009" not in out + explain(facts, "100", "--json", core=new_core())


def test_an_id_is_a_text_and_nothing_that_a_terminal_obeys(explain: Explain) -> None:
    facts: list[Fact] = [AGENT, pushed("100", T0), recorded("[/b]\x1b[2J", T0, T0 + MINUTE)]
    out = explain(facts, "100")
    assert "[/b]" in out
    assert "\x1b" not in out


def test_calls_of_other_days_are_not_even_read_as_such(explain: Explain) -> None:
    started = str(text(T0 - 24 * HOUR)).encode()
    odd = b'{"data": {"started_at": "%b", "recordings": []}}' % started
    beside = [StoredRecord(topic, 0, 0, T0, b"acme/9", odd, ()) for topic in ("calls", "verdicts")]
    # What is behind the call's own start is another's.
    near = pushed("100", T0, recordings=[{"started_at": text(T0 - 24 * HOUR)}])
    found = lines(explain([AGENT, near, recorded("r1", T0, T0 + MINUTE)], "r1", beside=beside))
    assert "1. matched 2026-09-21 14:14:59 of 100: both sides tell the same" in found


@pytest.mark.parametrize(
    ("call", "until_ms"),
    [
        # 72 h, and a day for those that are like it and went on for longer.
        (pushed("100", T0), T0 - 500 + 96 * HOUR),
        # Nobody knows when it ends.
        (event("100", "connected", T0, started_at=T0 - 500 - 2 * MINUTE), None),
    ],
)
async def test_an_old_call_needs_no_facts_of_today(
    monkeypatch: pytest.MonkeyPatch, call: CallFact, until_ms: int | None
) -> None:
    asked: dict[tuple[str, ...], tuple[Start, int | None]] = {}

    async def read_once(
        settings: Settings,
        topics: Sequence[str],
        start: Start = "earliest",
        keys: Keys | None = None,
        *,
        until_ms: int | None = None,
    ) -> AsyncIterator[StoredRecord]:
        asked[tuple(topics)] = start, until_ms
        if keys is not None:
            yield stored(call)

    monkeypatch.setattr(command, "read_once", read_once)
    await command._read(SETTINGS, "100", "acme")
    begun_ms = T0 - 500 - 2 * MINUTE
    # Twice `gate_s`, and an hour.
    start = Behind({}, dict.fromkeys(("calls", "checkpoints", "verdicts"), begun_ms - 70 * MINUTE))
    assert asked[("calls",)] == (start, until_ms)
    assert asked[("checkpoints", "directory", "verdicts")] == (start, None)


def test_connections_that_are_no_longer_configured_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: set[bytes] = set()

    async def read_once(
        settings: Settings, topics: Sequence[str], start: Start = "earliest", *, keys: Keys
    ) -> AsyncIterator[StoredRecord]:
        asked.update(keys["calls"])
        return
        yield

    monkeypatch.setattr(command, "read_once", read_once)
    eventlog = SETTINGS.eventlog.model_copy(update={"path": tmp_path})
    settings = SETTINGS.model_copy(update={"eventlog": eventlog})
    # As a receiver leaves it.
    (tmp_path / "connections.json").write_text('{"acme": 1790000000.0, "gone": 1790000000.0}')
    assert command.explain(settings, "100", None, as_json=False) == 1
    assert asked == {b"acme/100", b"bots/100", b"gone/100"}


def test_what_is_no_id() -> None:
    for call_id, connection in (("\udcff", None), ("100", "\udcff"), ("1\x1b[2J", None)):
        with pytest.raises(ConfigError, match="is no id"):
            command.explain(SETTINGS, call_id, connection, as_json=False)


def test_of_a_call_that_nobody_knows(explain: Explain) -> None:
    assert explain(BOTH, "7", code=1) == "The stream knows of no call '7'.\n"
