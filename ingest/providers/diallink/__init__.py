"""DialLink: notifications, and its own lists of calls, contacts, users, recordings.

https://developers.diallink.com   (introduction to "Get an API key"; no more is public)
"""

from ingest.delivery import DAY_MS, Provider
from ingest.providers.diallink.assumptions import Assumptions
from ingest.providers.diallink.records import open_records
from ingest.providers.diallink.webhook import Webhook, sign

PROVIDER = Provider(
    name="diallink",
    webhook=Webhook.of,
    sign=sign,
    records=open_records,
    also=("contacts", "directory", "recordings"),
    # What is new is read by the time of the change, up to now: there is nothing to cut.
    slice_ms=100 * 365 * DAY_MS,
    assumptions=Assumptions,
)
