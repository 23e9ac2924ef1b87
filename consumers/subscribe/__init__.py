"""The library for those who build on the stream. What is not named here is not for others."""

from consumers.subscribe.events import Deleted, Event, NotNowError, RejectError, Retry
from consumers.subscribe.once import ONCE_TABLE, once
from consumers.subscribe.subscriber import Subscriber

__all__ = [
    "ONCE_TABLE",
    "Deleted",
    "Event",
    "NotNowError",
    "RejectError",
    "Retry",
    "Subscriber",
    "once",
]
