"""Dialgood's words and ours: theirs in small letters on the left, our enum's value on the right.

Words are compared without case. Statuses: the External API's own rule,
https://apidocs.dialgood.com/get-normalized-call-status-and-cdr-details-for-a-campaign-29776047e0
Fields: https://apidocs.dialgood.com/partner-api-2171894m0. All lists of words are open.
"""

from schemas.call import Direction, Outcome

#: The third word, that of web calls, is not documented. They have no direction that we know, and
#: mostly no numbers; the word stays in `raw`.
DIRECTIONS: dict[str, str] = {
    "inbound": Direction.INBOUND.value,
    "outbound": Direction.OUTBOUND.value,
    "web": Direction.UNKNOWN.value,
}

#: A call's status → what Dialgood makes of it. Everything else is `FAILED` to it, a call that still
#: runs included.
NORMALIZED: dict[str, str] = {
    "completed": "completed",
    "success": "completed",
    "no-answer": "no-answer",
    "no answer": "no-answer",
    "unanswered": "no-answer",
}
FAILED = "failed"

#: Which of these it is says the direction.
NEVER_ANSWERED = frozenset({"no-answer", "no answer", "unanswered"})

OUTCOMES: dict[str, str] = {
    "completed": Outcome.ANSWERED.value,
    "success": Outcome.ANSWERED.value,
    "busy": Outcome.BUSY.value,
    "failed": Outcome.FAILED.value,
}

#: Those that are said to be ignored where agents are written are those of its database.
_OF_THE_DATABASE = {"_id", "__v", "id", "created_at"}

AGENT_FIELDS = frozenset(
    _OF_THE_DATABASE
    | {
        "agentId",
        "agentName",
        "metadata",
        "owner",
        "phoneNumbers",
        "rights",
        "settings",
        "updated_at",
        "userId",
    }
)

RECORD_FIELDS = frozenset(
    {"botId", "campaignId", "contactId", "conversationId", "created_at", "data"}
)

#: Of the object under ``data``.
CALL_FIELDS = frozenset({"callDuration", "callStatus", "direction", "from", "to"})

#: ``updates`` only where a single version is read.
VERSION_FIELDS = frozenset(
    {"agent_id", "commit_message", "metadata", "updates", "version_id", "version_number"}
)

#: Of a version's ``metadata``.
METADATA_FIELDS = frozenset({"timestamp", "user", "userId"})
