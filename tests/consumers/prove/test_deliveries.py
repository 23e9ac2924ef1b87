"""The deliveries are what providers would send, and become the events that the judge expects."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.prove.command import new_name, span_s
from consumers.prove.deliveries import Delivery, maker_for
from ingest import delivery as wire
from ingest.errors import ConfigError
from ingest.providers import PROVIDERS
from ingest.settings import Connection
from schemas.event import encode
from schemas.times import now_ms
from tests.kit import SECRET

DIALPAD = {"provider": "dialpad", "secrets": [SECRET]}
DIALLINK = {"provider": "diallink", "secrets": ["whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"]}

TYPES = {"dialpad": "dialstream.call.unknown", "diallink": "dialstream.notification.received"}


@pytest.mark.parametrize("settings", [DIALPAD, DIALLINK], ids=lambda it: str(it["provider"]))
def test_each_becomes_the_event_that_is_expected(settings: dict[str, Any]) -> None:
    connection = Connection.model_validate(settings)
    maker = maker_for("acme", connection)
    source = PROVIDERS[connection.provider].webhook(connection)
    ids = set()
    for leg, seq in ((1, 0), (1, 1), (2, 0)):
        delivery = Delivery(maker, leg, seq, now_ms() + seq)
        signed = maker.sign(delivery)
        received = wire.Delivery(
            connection="acme",
            via=source.via,
            headers=[(k.encode(), v.encode()) for k, v in signed.headers.items()],
            body=signed.body,
            received_ms=now_ms(),
        )
        (event,) = source.normalize(source.verify(received), received)
        assert (event.id, event.topic) == (delivery.id, maker.topic)
        assert event.type == TYPES[connection.provider]
        value = encode(event)
        assert delivery.payload is not None
        assert delivery.payload in value
        assert maker.mark in value
        # Known to all: nobody takes it for a real call.
        word = event.data.get("provider_state") or event.data.get("notification_type")
        assert word in ("dialstream_prove", "dialstream.prove")
        assert event.data.get("state", "unknown") == "unknown"
        assert 1000 < len(delivery.payload) < 3000
        ids.add(event.id)
        # A retry is the same fact.
        assert maker.sign(delivery).body == signed.body
        assert delivery.id == event.id
    assert len(ids) == 3


def test_two_runs_have_nothing_in_common() -> None:
    connection = Connection.model_validate(DIALPAD)
    first, second = maker_for("acme", connection), maker_for("acme", connection)
    assert Delivery(first, 1, 0, 5).id != Delivery(second, 1, 0, 5).id
    assert first.mark != second.mark
    assert len({new_name() for _ in range(10)}) == 10


def test_what_is_not_kept_cannot_be_compared() -> None:
    dropping = {**DIALPAD, "privacy": {"drop": ["content", "raw"]}}
    maker = maker_for("acme", Connection.model_validate(dropping))
    assert Delivery(maker, 1, 0, 5).payload is None
    assert json.loads(maker.payload(Delivery(maker, 1, 0, 5)))["state"] == "dialstream_prove"


@pytest.mark.parametrize(
    "settings",
    [
        {"provider": "dialgood", "api_key": "k", "secrets": ["s"]},
        {**DIALLINK, "assume": {"notifications": "token"}},
        {"provider": "dialpad"},
    ],
)
def test_connections_that_nobody_can_prove_anything_on(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        maker_for("acme", Connection.model_validate(settings))


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("90", 90), ("1.5m", 90), ("2h", 7200), ("0.5", 0.5)]
)
def test_spans(text: str, seconds: float) -> None:
    assert span_s("--for", text) == seconds


@given(st.text())
def test_any_text_is_a_span_or_is_refused(text: str) -> None:
    try:
        seconds = span_s("--for", text)
    except ConfigError as error:
        assert str(error).startswith("--for: ")  # noqa: PT017 - either is right
    else:
        assert seconds > 0
