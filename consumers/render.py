"""What people see: events, a line each; numbers masked; texts that no terminal obeys."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

_STYLES = {
    "call": "cyan",
    "message": "green",
    "contact": "blue",
    "agent": "yellow",
    "change": "magenta",
    "reject": "red",
    "gap": "red",
    "verdict": "bright_black",
    "conversation": "bright_black",
    "completeness": "bright_black",
}
_STRONG = {"ended": "bold", "missed": "bold red", "blocked": "bold red"}

#: Of a number that is no longer than that nothing is shown: too little of it would be hidden.
_SHORT_NUMBER = 9

#: Joins what becomes one emoji. It counts as not printable.
_JOINER = "\u200d"


def masked(number: str | None) -> str | None:
    """A number by its beginning and its end: enough to know it again, not to call it."""
    if not number:
        return None
    return f"{number[:2]}…{number[-4:]}" if len(number) > _SHORT_NUMBER else "…"


def printable(text: str) -> str:
    """On one line, and nothing that a terminal obeys: whoever sends an SMS has written it."""
    return "".join(map(_printable, text))


def _printable(letter: str) -> str:
    if letter.isprintable() or letter == _JOINER:
        return letter
    return " " if letter.isspace() else "\ufffd"


def line(event: Mapping[str, Any]) -> Text:
    """``14:13:29  call.connected  acme  +15551230001 → Agent One  …``"""
    subject, what = event["type"].removeprefix("dialstream.").split(".", 1)
    style = _STYLES.get(subject, "white")
    text = Text(overflow="ellipsis", no_wrap=True)
    text.append(event["time"][11:19], "dim")
    text.append(f"  {subject}.{what}".ljust(28), f"{style} {_STRONG.get(what, '')}".strip())
    text.append(f"  {event['connection']}  ", "dim")
    text.append(printable(_story(subject, event["data"])))
    if event.get("stale"):
        text.append("  stale", "dim")
    return text


def _story(subject: str, data: Mapping[str, Any]) -> str:
    tell = _STORIES.get(subject)
    return tell(data) if tell else ""


def _call(data: Mapping[str, Any]) -> str:
    outside, inside = _who(data["external"]), _who(data["target"])
    way = f"{inside} → {outside}" if data["direction"] == "outbound" else f"{outside} → {inside}"
    facts = [
        _length("talk", data["talk_duration_s"]) if data["ended_at"] else "",
        _length("on hold", data["hold_duration_s"]) if data["ended_at"] else "",
        data["outcome"] or "",
        "voicemail left" if data["voicemail"] else "",
    ]
    return "  ".join([way, *filter(None, facts)])


def _message(data: Mapping[str, Any]) -> str:
    outside, inside = _who(data["contact"]), _who(data["target"])
    way = f"{inside} → {outside}" if data["direction"] == "outbound" else f"{outside} → {inside}"
    status = data["provider_status"] if data["status"] not in (None, "pending") else None
    return "  ".join(filter(None, [way, f"“{data['text']}”" if data["text"] else "", status]))


def _contact(data: Mapping[str, Any]) -> str:
    numbers = ", ".join(number["number"] for number in data["phone_numbers"])
    return "  ".join(filter(None, [data["display_name"], data["company_name"], numbers]))


def _agent(data: Mapping[str, Any]) -> str:
    reason = f" ({data['duty_reason']})" if data["duty_reason"] else ""
    return f"{data['name'] or data['agent_id']} is {data['provider_duty_status']}{reason}"


def _change(data: Mapping[str, Any]) -> str:
    by = _who(data["changed_by"])
    return f"{data['note'] or data['action']}  by {by}"


def _consent(data: Mapping[str, Any]) -> str:
    facts = [data["state"].replace("_", " "), data["channel"], data["scope"]]
    return "  ".join(filter(None, [data["number"], *facts]))


def _directory(data: Mapping[str, Any]) -> str:
    return "  ".join(filter(None, [data["kind"], data["name"] or data["id"]]))


_HOLES = {
    "webhook": "webhook deaf",
    "websocket": "websocket deaf",
    "push": "pushes lost",
    "records": "records unread",
}


def _gap(data: Mapping[str, Any]) -> str:
    """With days: it may be long, or long ago."""
    begin, end = data["from"], data["to"]
    until = ""
    if end:
        until = f" to {end[11:19] if end[:10] == begin[:10] else end[:19].replace('T', ' ')}"
    found = "" if data["found"] is None else f"found {data['found']:,}"
    told = f"{_HOLES.get(data['channel'], data['channel'])} {begin[:19].replace('T', ' ')}{until}"
    return "  ".join(filter(None, [told, data["reason"].replace("_", " "), found]))


def _verdict(data: Mapping[str, Any]) -> str:
    reason = (data["reason"] or "").replace("_", " ")
    return "  ".join(filter(None, [f"call {data['call_id']}", reason]))


def _conversation(data: Mapping[str, Any]) -> str:
    legs = len(data["legs"])
    facts = [
        _who(data["external"]),
        data["direction"],
        "1 leg" if legs == 1 else f"{legs} legs",
        data["outcome"] or "",
        _length("talk", data["talk_duration_s"]),
        "complete" if data["complete"] else "",
    ]
    return "  ".join(filter(None, facts))


def _completeness(data: Mapping[str, Any]) -> str:
    counts = f"{data['pushed']:,} pushed, {data['recorded']:,} recorded, {data['both']:,} both"
    return f"{data['hour'][:13].replace('T', ' ')} h  {counts}"


def _reject(data: Mapping[str, Any]) -> str:
    return f"{data['detail']}  ({data['via']})"


_STORIES = {
    "call": _call,
    "message": _message,
    "contact": _contact,
    "agent": _agent,
    "change": _change,
    "consent": _consent,
    "directory": _directory,
    "gap": _gap,
    "reject": _reject,
    "verdict": _verdict,
    "conversation": _conversation,
    "completeness": _completeness,
}


def _who(party: Mapping[str, Any]) -> str:
    if party["withheld"]:
        return "withheld"
    return party["name"] or party["number"] or party["id"] or "somebody"


def _length(word: str, seconds: float | None) -> str:
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{word} {minutes}:{rest:02d}"
