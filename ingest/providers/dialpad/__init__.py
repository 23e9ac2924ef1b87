"""Dialpad: events about calls, SMS, contacts, duty and settings, and its own lists of them.

https://developers.dialpad.com/docs/event-subscriptions
https://developers.dialpad.com/reference
"""

from ingest.delivery import Provider
from ingest.providers.dialpad.records import open_records
from ingest.providers.dialpad.stream import open_stream
from ingest.providers.dialpad.webhook import Webhook
from ingest.signing import sign_compact_jws

PROVIDER = Provider(
    name="dialpad",
    webhook=Webhook.of,
    sign=sign_compact_jws,
    stream=open_stream,
    records=open_records,
)
