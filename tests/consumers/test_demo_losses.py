"""What the demo says of the endings that it drops: of no more than it knows."""

from typing import Any

from consumers.demo_losses import Losses
from ingest.reading import unknown_call

END_MS = 1_790_000_000_000  # 2026-09-21T14:13:20Z
CALL = "5000000000001101"


def verdict(word: str, call_id: str = CALL, connection: str = "dev") -> dict[str, Any]:
    return {
        "type": f"dialstream.verdict.{word}",
        "time": "2026-09-21T14:13:30.000Z",
        "connection": connection,
        "via": "derived",
        "data": {"verdict": word, "call_id": call_id, "reason": None},
    }


def ending(via: str, call_id: str = CALL) -> dict[str, Any]:
    return {
        "type": "dialstream.call.ended",
        "time": "2026-09-21T14:13:20.000Z",
        "connection": "dev",
        "via": via,
        "data": {
            **unknown_call(call_id, "ended"),
            "ended_at": "2026-09-21T14:13:20.000Z",
            "outcome": "answered",
        },
    }


def hear(losses: Losses, event: dict[str, Any], after_s: float = 18.0) -> str | None:
    shown = losses.hear(event, END_MS + round(after_s * 1000))
    return None if shown is None else shown.plain


def summary(losses: Losses) -> list[str]:
    return [text.plain.strip() for text in losses.summary()]


def test_a_dropped_ending_is_told_of_three_times() -> None:
    losses = Losses("dev")
    assert losses.drop(CALL, "Maya Ito → Femi Cole", END_MS).plain == (
        "14:13:20  dropped on purpose          dev  …001101  the end of Maya Ito → Femi Cole"
    )
    assert hear(losses, verdict("push_missing")) == (
        "14:13:38  verdict.push_missing        dev  …001101  in the provider's list, "
        "found after 18 s"
    )
    assert hear(losses, ending("backfill")) == (
        "14:13:38  call.ended                  dev  …001101  Maya Ito → Femi Cole, "
        "mended by its record"
    )
    assert summary(losses) == [
        "1 dropped on purpose   1 found   1 mended   18 to 18 s after the call",
        "1 call judged: 0.0 % pushed to their end, 100 % on the stream",
        "dialstream explain 5000000000001101 shows what was found of the last one",
    ]


def test_what_was_not_found_yet_is_not_said_to_be() -> None:
    losses = Losses("dev")
    losses.drop(CALL, "Maya Ito → Femi Cole", END_MS)
    losses.drop("7", "Maya Ito → Femi Cole", END_MS)
    for nth in range(17):
        hear(losses, verdict("matched", f"1{nth}"))
    hear(losses, verdict("push_missing"), 17.0)
    assert summary(losses) == [
        "2 dropped on purpose   1 found   0 mended   17 to 17 s after the call",
        "18 calls judged: 94.4 % pushed to their end, 94.4 % on the stream",
        "1 not found yet: that takes some 20 s",
        "dialstream explain 5000000000001101 shows what was found of the last one",
    ]


def test_what_nobody_has_dropped_on_purpose_is_shown_as_what_it_is() -> None:
    losses = Losses("dev")
    losses.drop(CALL, "Maya Ito → Femi Cole", END_MS)
    assert "found" not in (hear(losses, verdict("push_missing", "12")) or "")
    assert "found" not in (hear(losses, verdict("push_missing", CALL, "dev_line")) or "")
    assert "mended" not in (hear(losses, ending("webhook")) or "")
    assert "mended" not in (hear(losses, ending("backfill", "12")) or "")
    assert summary(losses)[0] == "1 dropped on purpose   0 found   0 mended"


def test_the_verdict_that_holds_counts() -> None:
    losses = Losses("dev")
    losses.drop(CALL, "Maya Ito → Femi Cole", END_MS)
    hear(losses, verdict("push_missing", "12"))
    hear(losses, verdict("late", "12"))
    hear(losses, verdict("record_missing", "13"))
    assert summary(losses)[1] == "1 call judged: 100 % pushed to their end, 100 % on the stream"


def test_all_is_well_is_not_worth_a_line() -> None:
    losses = Losses("dev")
    assert hear(losses, verdict("matched")) is None
    assert hear(losses, verdict("matched", connection="dev_line")) is None
    assert summary(losses) == []
