"""`dialstream completeness`: what it shows of what was measured, and how it ends."""

import asyncio
import json

import pytest

from consumers.reconcile.completeness import HOUR_MS, Hour, completeness_event
from ingest.eventlog.journal import open_journal
from ingest.pipeline import store
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.kit import SECRET, Product

#: 2026-09-21T14:00:00Z
BEGIN_MS = 1_789_999_200_000
SINCE = ("--since", "2026-09-21T14:00:00Z")

BOTH_WAYS = {"provider": "dialpad", "secrets": [SECRET], "api_key": "invented"}


@pytest.fixture
def product(make_product: MakeProduct) -> Product:
    """One that does not run: the command reads what is on the log."""
    return make_product(settings={"connections": {"acme": BOTH_WAYS}})


def measure(product: Product, *hours: tuple[str, int, int, int, int]) -> None:
    """(connection, how many hours after `BEGIN_MS`, pushed, recorded, both), in this order."""
    told: dict[tuple[str, int], int] = {}

    async def put() -> None:
        async with open_journal(product.data) as journal:
            for name, nth, pushed, recorded, both in hours:
                n = told.get((name, nth), 0)
                told[name, nth] = n + 1
                hour = Hour(
                    connection=name,
                    hour_ms=BEGIN_MS + nth * HOUR_MS,
                    pushed=pushed,
                    recorded=recorded,
                    both=both,
                    n=n,
                )
                event = completeness_event(hour, now_ms())
                assert event is not None
                await store(journal, [event], asyncio.get_running_loop().time() + 10)

    asyncio.run(put())


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def test_hours_are_listed_and_summed(product: Product) -> None:
    measure(
        product,
        ("acme", 1, 10, 10, 9),
        ("acme", 0, 1000, 1000, 1000),
        ("acme", 1, 10, 10, 10),  # revised
        ("other", 0, 4, 3, 3),
    )
    shown = product.run("completeness", *SINCE)
    assert shown.code == 1
    bar, three_quarters = "█" * 20, "█" * 15 + "·" * 5
    assert rows(shown.stdout) == [
        ["acme,", "objective", "0.999"],
        ["hour", "(UTC)", "pushed", "recorded", "both", "complete"],
        ["2026-09-21", "14:00", "1,000", "1,000", "1,000", bar, "100", "%"],
        ["2026-09-21", "15:00", "10", "10", "10", bar, "100", "%"],
        ["all", "1,010", "1,010", "1,010", bar, "100", "%"],
        ["other,", "objective", "0.999"],
        ["hour", "(UTC)", "pushed", "recorded", "both", "complete"],
        ["2026-09-21", "14:00", "4", "3", "3", three_quarters, "75.00", "%"],
        ["all", "4", "3", "3", three_quarters, "75.00", "%"],
    ]


def test_one_lost_call_is_not_rounded_away(product: Product) -> None:
    measure(product, ("acme", 0, 99_999, 100_000, 99_999))
    assert product.run("completeness", *SINCE).code == 0
    strict = {"DIALSTREAM_RECONCILE__OBJECTIVE": "1"}
    shown = product.run("completeness", *SINCE, environment=strict)
    assert shown.code == 1
    assert "99.99 %" in shown.stdout


def test_many_hours_are_shown_by_day(product: Product) -> None:
    measure(product, *[("acme", nth, 10, 10, 10) for nth in range(49)])
    shown = product.run("completeness", *SINCE)
    assert shown.code == 0
    assert [row[:2] for row in rows(shown.stdout)[2:]] == [
        ["2026-09-21", "100"],  # from 14:00 on
        ["2026-09-22", "240"],
        ["2026-09-23", "150"],
        ["all", "490"],
    ]


def test_only_hours_that_began_since_then_count(product: Product) -> None:
    measure(product, ("acme", 0, 9, 10, 9), ("acme", 1, 10, 10, 10))
    shown = product.run("completeness", "--since", "2026-09-21T15:00:00Z", "--json")
    assert shown.code == 0
    told = json.loads(shown.stdout)
    assert told["objective"] == 0.999
    assert told["connections"] == {
        "acme": {"pushed": 10, "recorded": 10, "both": 10, "figure": 1.0}
    }
    (hour,) = told["hours"]["acme"]
    assert hour["hour"] == "2026-09-21T15:00:00.000Z"


def test_an_hour_without_calls_is_not_below_the_objective(product: Product) -> None:
    """Its calls have turned out to belong to another one."""
    measure(product, ("acme", 0, 1, 1, 1), ("acme", 0, 0, 0, 0))
    shown = product.run("completeness", *SINCE)
    assert shown.code == 0
    assert "%" not in shown.stdout


def test_where_nothing_was_measured_it_says_why(product: Product) -> None:
    def said() -> str:
        shown = product.run("completeness")
        assert shown.code == 0
        return " ".join(shown.stdout.split())

    assert "(acme). Each is measured 15 min after its end" in said()
    product.configure({"connections": {"acme": {"provider": "dialpad", "secrets": [SECRET]}}})
    assert said().startswith("By these settings nothing is compared:")
