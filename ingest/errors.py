"""Everything that can go wrong, one class per reaction.

* DeliveryError
    * VerificationError   not from the provider      -> refuse, change nothing
    * UnreadableError     authentic, not understood  -> set aside as a reject, acknowledge
    * PublishError        understood, not yet stored -> ask to be sent it again
* ConfigError             stands apart, so that nothing absorbs it: the start stops, exit 2

``reason`` is a short word from a fixed set; it labels the log line and the counter. Where an
error carries more, it is written by us: never content, never a secret.
"""


class DeliveryError(Exception):
    """What one delivery can meet."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class VerificationError(DeliveryError):
    """Nobody who holds the secret has sent this."""


class UnreadableError(DeliveryError):
    """The provider has sent this, and we cannot read it."""


class PublishError(DeliveryError):
    """This is not durable, and we cannot tell when it will be."""


class ConfigError(Exception):
    """The settings are wrong. ``faults`` holds one line for each, with its mend."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults
