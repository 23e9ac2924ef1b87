"""DialedIn (ChaseData): a dialler that we tell things; it lists nothing.

https://docs.chasedatacorp.com/content-user-guide/docs-page-user-guide-other.html
"""

from ingest.delivery import Provider
from ingest.providers.dialedin.assumptions import Assumptions
from ingest.providers.dialedin.webhook import sign, webhook

PROVIDER = Provider(
    name="dialedin",
    webhook=webhook,
    sign=sign,
    takes_commands=True,
    assumptions=Assumptions,
)
