"""Every subject and its model: the first word of a type → the shape of ``data``."""

from collections.abc import Mapping

from schemas.agent import Agent
from schemas.base import Model
from schemas.call import Call
from schemas.change import Change
from schemas.completeness import Completeness
from schemas.consent import Consent
from schemas.contact import Contact
from schemas.conversation import Conversation
from schemas.directory import Directory
from schemas.gap import Gap
from schemas.message import Message
from schemas.notification import Notification
from schemas.reject import Reject
from schemas.verdict import Verdict

SUBJECTS: Mapping[str, type[Model]] = {
    "call": Call,
    "message": Message,
    "contact": Contact,
    "agent": Agent,
    "change": Change,
    "consent": Consent,
    "directory": Directory,
    "notification": Notification,
    "gap": Gap,
    "verdict": Verdict,
    "conversation": Conversation,
    "completeness": Completeness,
    "reject": Reject,
}
