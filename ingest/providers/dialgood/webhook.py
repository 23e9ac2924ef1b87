"""A push of Dialgood's, should there ever be one (A-DG-8): off unless the setting says otherwise.

None is documented at https://apidocs.dialgood.com/partner-api-2171894m0; a sister product posts
with a static ``Authorization`` header, and nothing signs the body. So it is a hint and no more:
what has become of calls, the poller reads.
"""

from typing import TYPE_CHECKING

from ingest.delivery import Signed
from ingest.errors import ConfigError
from ingest.notifications import TokenWebhook
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.signing import with_static_token

if TYPE_CHECKING:
    from ingest.settings import Connection

_HEADER = "authorization"


def webhook(connection: "Connection") -> TokenWebhook:
    """Raises ConfigError where secrets are wrong, or where there are any though it is off."""
    if Assumptions.of(connection).push == "off":
        raise ConfigError(
            "secrets: Dialgood is not known to push: leave them out, or, should it post to you "
            'with `Authorization: Bearer <secret>`, set assume.push to "token"'
        )
    return TokenWebhook("dialgood", connection.signing_secrets(), _HEADER, connection.region)


def sign(payload: bytes, connection: "Connection") -> Signed:
    """``payload`` with the secret as a bearer's token. Raises ConfigError if it cannot be one."""
    secret, *_ = connection.signing_secrets()
    token = with_static_token(secret, _HEADER)
    return Signed({"content-type": "application/json", **token}, payload)
