"""Dialgood: agents, their call logs and their versions, polled.

https://apidocs.dialgood.com/partner-api-2171894m0
"""

from ingest.delivery import DAY_MS, Provider
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.providers.dialgood.records import open_records
from ingest.providers.dialgood.webhook import sign, webhook

PROVIDER = Provider(
    name="dialgood",
    webhook=webhook,
    sign=sign,
    records=open_records,
    agent_records=open_records,
    also=("directory", "versions"),
    slice_ms=31 * DAY_MS,
    assumptions=Assumptions,
)
