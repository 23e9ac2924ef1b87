"""What we tell DialedIn, and how it is asked: one form each, posted, and its reply read.

https://docs.chasedatacorp.com/content-user-guide/docs-page-user-guide-other.html

Token and account stand in the form, never in an address. `DialedInApi.inject_lead` may ring a
person's phone, and is not asked twice by anything in here.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal, TypeAlias

from msgspec import Struct

from ingest.api import Api, ApiError, Deadlines, Facts, Reason, masked
from ingest.api import open_api as open_any
from ingest.providers.dialedin.assumptions import RESERVED, Assumptions
from ingest.providers.dialedin.replies import Kind, lead_exists, read_reply, without, words_of
from ingest.settings import Connection

_PATH = "/HttpImport"

Done: TypeAlias = Literal["ok", "duplicate"]
SearchField: TypeAlias = Literal["ClientId", "Phone"]

#: Reasons for which it does not help to wait.
_SAYS_NO = ("refused", "not_found", "conflict")

#: DialedIn's own replies begin so; whatever the status.
_OWN_WORDS = "Result:"

#: Parameters that hold nothing of anybody.
_OURS = frozenset(("Action", "SearchField", "Detailed", "Campaign"))

#: Texts of so many letters, or fewer, are quoted by chance.
_QUOTED = 2

#: Longest texts of a lead's fields, of those whose length is known.
LENGTHS: Mapping[str, int] = {
    "ClientId": 50,
    "FirstName": 100,
    "LastName": 100,
    "Address": 500,
    "City": 100,
    "State": 2,
    "ZipCode": 10,
    "Campaign": 50,
}


class FailedError(Exception):
    """DialedIn has answered, and it was no yes. ``said``: its words, masked."""

    def __init__(self, said: str) -> None:
        super().__init__("DialedIn did not do as it was told")
        self.said = said


def _needs(reason: Reason, call: str) -> str:
    if reason in ("unauthorized", "forbidden"):
        return (
            "the token or the account is not accepted: put a valid token (Settings, Integration, "
            "API Tokens) into api_key_file (or api_key) of connections.{name}, and look at its "
            "account_id"
        )
    if reason == "rate_limited":
        return "set requests_per_s of connections.{name}.sink lower"
    return ""


FACTS = Facts(
    base_url="https://api.chasedatacorp.com",
    limits={},
    needs=_needs,
    key_field="token",
    error_text=words_of,
)


class DialedInApi:
    """One account's commands. Use `open_api`.

    Each raises `ApiError` if there was no answer, or none of DialedIn's: ``reached`` tells whether
    it may have been carried out all the same; ``unauthorized`` is the token, or the account. It
    raises `FailedError` if the answer was no yes. Numbers have 10 digits.
    """

    def __init__(self, api: Api, account: str, assume: Assumptions) -> None:
        self._api = api
        self._account = account
        self._assume = assume

    def __repr__(self) -> str:
        return f"<DialedInApi {self._api.name}>"

    async def insert_dnc(self, number: str) -> Done:
        """Put a number on the do-not-call list, and take it out of all leads. Again: no harm."""
        form = {"Action": "InsertDnc", "Number": number}
        return _done(await self._post(self._assume.files.lead_operations, form))

    async def update_lead(self, number: str, fields: Mapping[str, str]) -> Done:
        """Set fields of the leads with a number. Creates none, and rings nobody; again: no harm."""
        form = {"SearchField": "Phone", "Identifier": number, **_checked(fields)}
        return _done(await self._post(self._assume.files.update_lead, form))

    async def lead_exists(self, by: SearchField, value: str) -> bool:
        """Whether there is a lead of that, in any campaign. What is unclear is a `FailedError`."""
        form = {"Action": "SearchLead", "SearchField": by, "Identifier": value, "Detailed": "0"}
        answer = await self._post(self._assume.files.lead_operations, form)
        found = lead_exists(answer.body) if answer.kind == "json" else None
        if found is None:
            raise FailedError(answer.said)
        return found

    async def inject_lead(
        self,
        *,
        campaign: str,
        number: str,
        client_id: str,
        fields: Mapping[str, str],
        dial: bool,
    ) -> Done:
        """Make a lead; ``duplicate``: the campaign has one with that number already.

        With ``dial`` its phone rings at once, where the time zone of its area code allows it.
        Again may make another lead, and ring again: who has had no answer looks for ``client_id``.
        """
        form = {
            "Campaign": campaign,
            "PrimaryPhone": number,
            "ClientId": client_id,
            "ImportOnly": "0" if dial else "1",
            **({"timezone": "1"} if dial else {}),
            "AllowDialingDups": "0",
            "DuplicatesCheck": "0",
            "DialNonCallables": "0",
            **_checked(fields),
        }
        return _done(await self._post(self._assume.files.inject_lead, form, once=True))

    async def _post(self, file: str, form: Mapping[str, str], *, once: bool = False) -> "_Answer":
        call = f"POST {_PATH}/{file}"
        quotable = {name: text for name, text in form.items() if len(text) > _QUOTED}
        sent = [text for name, text in quotable.items() if name not in _OURS]
        try:
            body = await self._api.ask(
                "POST", f"{_PATH}/{file}", form={"accid": self._account, **form}, once=once
            )
        except ApiError as error:
            body = self._own_no(error, sent)
        reply = read_reply(body, self._assume, quotable.values())
        said = masked(without(reply.text, sent), self._api.key)
        if reply.kind == "refused":
            raise ApiError(
                "unauthorized",
                f"{call}: refused",
                status=200,
                mend=_needs("unauthorized", call).format(name=self._api.name),
                said=said,
            )
        if reply.kind == "page":
            raise ApiError(
                "unavailable",
                f"{call}: answered with a page for people",
                status=200,
                mend="is there a proxy between, or is base_url wrong? Else try again later",
                said=said,
            )
        return _Answer(reply.kind, body, said)

    def _own_no(self, error: ApiError, sent: Sequence[str]) -> bytes:
        """What it says itself, though with a status that is none of the good ones; never a yes.

        Raises the error where it may help to wait, and the words are none of its own.
        """
        words = error.said.encode()
        is_yes = read_reply(words, self._assume).kind == "ok"
        if is_yes or not (error.reason in _SAYS_NO or error.said.startswith(_OWN_WORDS)):
            error.said = without(error.said, sent)
            raise error
        return words or f"answered {error.status}".encode()


def _done(answer: "_Answer") -> Done:
    if answer.kind == "ok":
        return "ok"
    if answer.kind == "duplicate":
        return "duplicate"
    raise FailedError(answer.said)


class _Answer(Struct, frozen=True):
    kind: Kind
    body: bytes
    #: Without what was sent, and masked.
    said: str


def _checked(fields: Mapping[str, str]) -> dict[str, str]:
    """Fields of a lead, cut to their lengths. Raises ValueError for a name with another meaning."""
    if not RESERVED.isdisjoint(map(str.lower, fields)):
        raise ValueError("that is no field of a lead")
    return {name: text[: LENGTHS.get(name)] for name, text in fields.items()}


@asynccontextmanager
async def open_api(name: str, connection: Connection) -> AsyncIterator[DialedInApi]:
    """Be ready to tell DialedIn; the token is read anew. Raises ConfigError if there is none."""
    assume = Assumptions.of(connection)
    deadlines = Deadlines(read_s=assume.timeout_s, call_s=assume.timeout_s)
    rate = connection.sink.requests_per_s
    async with open_any(name, connection, FACTS, deadlines, requests_per_s=rate) as api:
        yield DialedInApi(api, connection.account_id or "", assume)
