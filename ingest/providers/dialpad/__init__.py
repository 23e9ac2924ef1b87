"""Dialpad: events about calls, SMS, contacts, duty and settings.

https://developers.dialpad.com/docs/event-subscriptions
"""

from ingest.delivery import Provider
from ingest.providers.dialpad.webhook import Webhook
from ingest.signing import sign_compact_jws

PROVIDER = Provider(
    name="dialpad",
    webhook=Webhook.of,
    sign=sign_compact_jws,
)
