"""DialLink's words and ours: theirs in small letters on the left, our enum's value on the right.

Its enums are shown in capitals in answers and in small letters in queries, so words are compared
without case (https://developers.diallink.com). All lists are open; nothing is published of a
call's status (A-DL-1) and of notifications (A-DL-7).
"""

from schemas.call import CallState, Direction, Outcome

DIRECTIONS: dict[str, str] = {
    "inbound": Direction.INBOUND.value,
    "outbound": Direction.OUTBOUND.value,
    "internal": Direction.INTERNAL.value,
}

#: Types of notifications about a call.
CALL_STATES: dict[str, str] = {
    "call.started": CallState.RINGING.value,
    "call.answered": CallState.CONNECTED.value,
    "call.completed": CallState.ENDED.value,
    "call.missed": CallState.MISSED.value,
    "recording.ready": CallState.RECORDING_READY.value,
    "voicemail.received": CallState.VOICEMAIL_UPLOADED.value,
}

#: After these the call is over, whether or not its end is told.
ENDING_STATES = frozenset(
    {CallState.ENDED.value, CallState.MISSED.value, CallState.VOICEMAIL_UPLOADED.value}
)

#: Statuses of a call that is over, with ``_`` between words; whether a completed one was answered
#: its clocks say.
COMPLETED = "completed"
NEVER_ANSWERED = frozenset({"missed", "unanswered", "no_answer"})
OUTCOMES: dict[str, str] = {
    "voicemail": Outcome.VOICEMAIL.value,
    "abandoned": Outcome.ABANDONED.value,
    "blocked": Outcome.BLOCKED.value,
    "busy": Outcome.BUSY.value,
    "failed": Outcome.FAILED.value,
}
ENDING_STATUSES = NEVER_ANSWERED | OUTCOMES.keys() | {COMPLETED}

#: Statuses of a call that may still run.
RUNNING = frozenset(
    {
        "active",
        "answered",
        "connected",
        "held",
        "in_progress",
        "on_hold",
        "queued",
        "ringing",
        "started",
    }
)
