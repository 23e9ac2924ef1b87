"""A push of DialedIn's, should an account have one (A-DI-6): off unless the setting says otherwise.

An integrator says that it pushes calls (https://docs.unified.to/integrations/dialedin); its fields
and how it proves itself are not public. So it is a notification and no more: JSON or a form, with a
static token, kept whole.
"""

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec

from ingest.delivery import Signed, Verified
from ingest.errors import ConfigError, UnreadableError
from ingest.notifications import TokenWebhook
from ingest.providers.dialedin.assumptions import Assumptions
from ingest.signing import with_static_token

if TYPE_CHECKING:
    from ingest.settings import Connection

_MOST_FIELDS = 1000


def webhook(connection: "Connection") -> TokenWebhook:
    """Raises ConfigError where secrets are wrong, or where there are any though it is off."""
    assume = Assumptions.of(connection)
    if assume.push == "off":
        raise ConfigError(
            "secrets: DialedIn is not known to push: leave them out, or, should it post to you "
            'with a static token, set assume.push to "token"'
        )
    secrets = connection.signing_secrets()
    return TokenWebhook(
        "dialedin", secrets, assume.push_header, connection.region, as_json=_as_json
    )


def _as_json(payload: Verified) -> Verified:
    """A form as an object of texts; of a name that comes twice the last. Raises UnreadableError."""
    if payload.lstrip()[:1] in (b"{", b"[", b"") or not payload.count(b"="):
        return payload
    try:
        pairs = parse_qsl(
            payload.decode(),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError:
        raise UnreadableError("not_json", "neither JSON nor a form") from None
    return Verified(msgspec.json.encode(dict(pairs)))


def sign(payload: bytes, connection: "Connection") -> Signed:
    """``payload`` with the secret as a static token. Raises ConfigError if it cannot be one."""
    secret, *_ = connection.signing_secrets()
    token = with_static_token(secret, Assumptions.of(connection).push_header)
    return Signed({"content-type": "application/json", **token}, payload)
