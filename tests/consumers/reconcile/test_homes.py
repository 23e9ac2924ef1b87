"""Which connections are reconciled together, and where."""

from typing import Any

import pytest

from consumers.reconcile.role import components, pairs_of
from ingest.settings import Settings

PUSHED: dict[str, Any] = {"provider": "dialpad", "secrets": ["a-secret-that-is-long-enough"]}
READ: dict[str, Any] = {"provider": "dialgood", "api_key": "key"}


def configured(*pairs: tuple[str, str], **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "connections": {"acme": PUSHED, "bots": READ, "line": PUSHED, "also": READ},
            "reconcile": {"pairs": [{"pushed": a, "recorded": b, **more} for a, b in pairs]},
        }
    )


@pytest.mark.parametrize(
    ("pairs", "homes"),
    [
        ([], {"acme": ["acme"], "bots": ["bots"], "line": ["line"], "also": ["also"]}),
        ([("line", "bots")], {"acme": ["acme"], "bots": ["bots", "line"], "also": ["also"]}),
        (
            [("acme", "bots"), ("line", "also")],
            {"acme": ["acme", "bots"], "also": ["also", "line"]},
        ),
        (
            [("acme", "bots"), ("line", "also"), ("line", "bots")],
            {"acme": ["acme", "also", "bots", "line"]},
        ),
    ],
)
def test_connections_that_pairs_join_are_at_home_where_the_smallest_name_is(
    pairs: list[tuple[str, str]], homes: dict[str, list[str]]
) -> None:
    settings = configured(*pairs)
    assert components(settings) == homes
    assert sum(len(pairs_of(settings, names)) for names in homes.values()) == len(pairs)


def test_a_pair_is_reason_enough_to_reconcile() -> None:
    assert not configured().reconciled
    assert configured(("acme", "bots")).reconciled


def test_what_is_set_for_a_pair_is_what_it_goes_by() -> None:
    settings = configured(
        ("acme", "bots"),
        numbers=["+15551230001"],
        gate_s=60,
        ambiguity_margin_s=2.5,
        recorded_start="end",
        recorded_duration="total",
    )
    (setup,) = pairs_of(settings, ["acme", "bots"])
    assert (setup.pushed, setup.recorded) == ("acme", "bots")
    assert setup.numbers == {"+15551230001"}
    assert (setup.rules.gate_ms, setup.rules.ambiguity_margin_ms) == (60_000, 2_500)
    assert (setup.rules.start_tolerance_ms, setup.rules.duration_tolerance_ms) == (15_000, 3_000)
    assert setup.from_end
    assert not setup.from_connect
    assert setup.overlap_ms == 7_200_000
