"""Reading what DialedIn answers: text with tags, and status 200 also when it has failed (A-DI-3).

https://docs.chasedatacorp.com/content-user-guide/docs-page-user-guide-other.html describes the one
answer that is JSON; the others are as public clients have seen them.
"""

import html
import re
from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from ingest.providers.dialedin.assumptions import Assumptions

Kind: TypeAlias = Literal["ok", "duplicate", "json", "refused", "page", "failed"]

#: More of a reply is not looked at: a page for people may be long.
_MAX_BYTES = 64 * 1024

_TAG = re.compile(r"<[^<>]*>")
_PAGE = re.compile(r"\s*(<!doctype|<html|<head|<body|<\?xml)", re.IGNORECASE)


class Reply(Struct, frozen=True):
    """What a reply comes to."""

    #: ``refused``: the token or the account; ``page``: somebody else has answered, or nobody can;
    #: ``failed``: anything that is none of the others.
    kind: Kind
    #: Without tags, in one line; it may quote what was sent.
    text: str


def read_reply(body: bytes, assume: Assumptions, sent: Iterable[str] = ()) -> Reply:
    """What ``body`` says, however it looks. Never raises.

    ``sent``: texts that it may quote; a word in one of them is none of DialedIn's.
    """
    whole = _decoded(body)
    text = _plain(whole)
    if text[:1] in ("{", "["):
        return Reply("json", text)
    said = _bare(text)
    if any(said == _bare(ok) for ok in assume.ok):
        return Reply("ok", text)
    if _PAGE.match(whole):
        return Reply("page", text)
    if any(" ".join(part.split()) in text for part in assume.duplicate):
        return Reply("duplicate", text)
    own = without(text, sent).lower()
    if any(part.lower() in own for part in assume.refused):
        return Reply("refused", text)
    return Reply("failed", text)


def words_of(body: bytes) -> str:
    """What a reply says to people: without tags, in one line."""
    return _plain(_decoded(body))


def without(text: str, sent: Iterable[str]) -> str:
    """A reply's words but for those that quote what was sent."""
    for value in sorted(sent, key=len, reverse=True):
        text = re.sub(re.escape(" ".join(value.split())), "…", text, flags=re.IGNORECASE)
    return text


def _decoded(body: bytes) -> str:
    return body[:_MAX_BYTES].decode("utf-8-sig", "replace")


def _plain(text: str) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", text)).split())


def _bare(text: str) -> str:
    return "".join(text.split())


class _Found(Struct):
    exists: bool | str | None = msgspec.field(name="LeadExists", default=None)
    leads: list[msgspec.Raw] | None = msgspec.field(name="Leads", default=None)


def lead_exists(body: bytes) -> bool | None:
    """What ``SearchLead`` has found; None where it does not say so, which means nothing."""
    try:
        found = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"), type=_Found)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if isinstance(found.exists, str):
        return {"true": True, "false": False}.get(found.exists.strip().lower())
    if found.exists is None and found.leads is not None:
        return bool(found.leads)
    return found.exists
