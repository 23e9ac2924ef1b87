"""A former secret is counted while it is used, and told once it is not."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.delivery import Delivery
from ingest.errors import VerificationError
from ingest.metrics import REGISTRY
from ingest.providers.dialpad.webhook import Webhook
from ingest.rotation import FormerSecrets
from tests.kit import OTHER_SECRET, SECRET, call, sign

HOUR = 3600.0


def webhook(*secrets: str) -> Webhook:
    return Webhook([secret.encode() for secret in secrets], None, 0)


def post(source: Webhook, secret: str) -> None:
    body = sign(call(1, 1), secret)
    source.verify(Delivery(connection="acme", via="webhook", headers=(), body=body, received_ms=1))


def counted(name: str) -> float:
    labels = {"connection": name}
    return REGISTRY.get_sample_value("dialstream_former_secret_total", labels) or 0.0


def looked(former: FormerSecrets, source: Webhook, at_h: float, name: str) -> list[Any]:
    with capture_logs() as lines:
        former.look({name: source}, at_h * HOUR)
    return [line["event"] for line in lines]


def test_deliveries_are_counted_by_the_secret_that_has_signed_them() -> None:
    source = webhook(SECRET, OTHER_SECRET)
    for secret in (SECRET, OTHER_SECRET, SECRET, OTHER_SECRET, OTHER_SECRET):
        post(source, secret)
    with pytest.raises(VerificationError):
        post(source, "nobody-has-this-secret-of-some-length")
    assert source.former_seen == 3


def test_where_there_is_one_secret_there_is_no_former_one() -> None:
    source = webhook(SECRET)
    post(source, SECRET)
    assert source.former_seen is None
    assert looked(FormerSecrets(), source, 99, "single") == []


def test_a_former_secret_is_told_once_when_it_was_unseen_for_five_hours() -> None:
    former, source, name = FormerSecrets(), webhook(SECRET, OTHER_SECRET), "rotated"
    assert looked(former, source, 0, name) == []
    post(source, OTHER_SECRET)
    assert looked(former, source, 4.9, name) == []
    assert looked(former, source, 9.8, name) == []
    assert looked(former, source, 9.9, name) == ["former_secret_unseen"]
    assert looked(former, source, 20, name) == []
    post(source, OTHER_SECRET)  # so somebody uses it after all
    assert looked(former, source, 21, name) == []
    assert looked(former, source, 26, name) == ["former_secret_unseen"]
    assert counted(name) == 2


def test_what_was_counted_before_secrets_were_read_again_stays() -> None:
    former, name = FormerSecrets(), "reread"
    for at_h in (0, 1, 2):
        source = webhook(SECRET, OTHER_SECRET)
        post(source, OTHER_SECRET)
        looked(former, source, at_h, name)
    assert counted(name) == 3


def test_the_hours_begin_anew_when_secrets_were_read_again() -> None:
    former, name = FormerSecrets(), "anew"
    assert looked(former, webhook(SECRET, OTHER_SECRET), 0, name) == []
    source = webhook("a-new-secret-of-some-length-is-here", SECRET)
    assert looked(former, source, 4.9, name) == []
    assert looked(former, source, 5.1, name) == [], "what was in use until now is not unseen"
    assert looked(former, source, 9.8, name) == []
    assert looked(former, source, 9.9, name) == ["former_secret_unseen"]
    source = webhook("yet-another-secret-of-some-length", SECRET)
    assert looked(former, source, 20, name) == []
    assert looked(former, source, 25, name) == ["former_secret_unseen"]
