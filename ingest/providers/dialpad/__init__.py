"""Dialpad: events about calls, SMS, contacts, duty and settings, and its own lists of them.

https://developers.dialpad.com/docs/event-subscriptions
https://developers.dialpad.com/reference
"""

from typing import TYPE_CHECKING

from ingest.delivery import Provider, Signed
from ingest.providers.dialpad.records import open_records
from ingest.providers.dialpad.stream import open_stream
from ingest.providers.dialpad.webhook import Webhook
from ingest.signing import payload_of_jws, sign_compact_jws

if TYPE_CHECKING:
    from ingest.settings import Connection


def _sign(payload: bytes, connection: "Connection") -> Signed:
    secret, *_ = connection.signing_secrets()
    return Signed({"content-type": "application/jwt"}, sign_compact_jws(payload, secret))


PROVIDER = Provider(
    name="dialpad",
    webhook=Webhook.of,
    sign=_sign,
    payload_of=payload_of_jws,
    stream=open_stream,
    records=open_records,
    also=("transcripts", "recaps", "contacts", "consents", "directory", "duty_status"),
)
