"""DialedIn's side of things: leads, its do-not-call list, and whose phone it has rung.

What its commands do is from https://docs.chasedatacorp.com/content-user-guide. Of its replies only
a few are known; all others here are made up.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Texts that are longer are refused.
_LENGTHS = {
    "ClientId": 50,
    "FirstName": 100,
    "LastName": 100,
    "Address": 500,
    "City": 100,
    "State": 2,
    "ZipCode": 10,
    "PrimaryPhone": 50,
    "Rep": 50,
    "CallStatus": 50,
    "Campaign": 50,
    "Subcampaign": 50,
}

#: Of the account's database: what it lacks is ignored.
_FIELDS = {*_LENGTHS, "Notes", "adv_Company", "adv_Date__of__Birth", "adv_Order__Number"}

#: Parameters of an injection that are no fields.
_SWITCHES = ("ImportOnly", "timezone", "AllowDialingDups", "DuplicatesCheck", "DialNonCallables")

_TEN_DIGITS = re.compile(r"[0-9]{10}")

DUPLICATE = "CURL error[500]: Duplicated phone number. Lead ignored."


class NoError(Exception):
    """DialedIn says no; ``str()`` is how."""


@dataclass(slots=True)
class Lead:
    lead_id: int
    fields: dict[str, str]
    #: Not to be called any more.
    scrubbed: bool = False


@dataclass(slots=True)
class Floor:
    """One account."""

    campaigns: frozenset[str]
    leads: list[Lead] = field(default_factory=list)
    #: Numbers that are not to be called.
    dnc: set[str] = field(default_factory=set)
    #: Numbers that were rung at once, in order.
    rung: list[str] = field(default_factory=list)
    #: Every injection that was taken up, in order: its parameters.
    injected: list[dict[str, str]] = field(default_factory=list)

    def inject(self, given: Mapping[str, str]) -> None:
        """Raises NoError."""
        phone, campaign = given.get("PrimaryPhone", ""), given.get("Campaign", "")
        if campaign not in self.campaigns:
            raise NoError("CURL error[500]: Campaign not found.")
        if not _TEN_DIGITS.fullmatch(phone):
            raise NoError("CURL error[500]: Invalid phone number.")
        for name, most in _LENGTHS.items():
            if len(given.get(name, "")) > most:
                raise NoError(f"CURL error[500]: {name} is too long.")
        is_duplicate = self._is_duplicate(given)
        if is_duplicate and given.get("DuplicatesCheck", "0") != "1":
            raise NoError(DUPLICATE)
        fields = {name: text for name, text in given.items() if name in _FIELDS}
        self.leads.append(Lead(1_000_001 + len(self.leads), fields, phone in self.dnc))
        self.injected.append(dict(given))
        callable_ = phone not in self.dnc or given.get("DialNonCallables") == "1"
        fresh = not is_duplicate or given.get("AllowDialingDups") == "1"
        if given.get("ImportOnly", "0") != "1" and callable_ and fresh:
            self.rung.append(phone)

    def _is_duplicate(self, given: Mapping[str, str]) -> bool:
        where = {"0": ("Campaign",), "3": ("Campaign", "Subcampaign")}
        same = ("PrimaryPhone", *where.get(given.get("DuplicatesCheck", "0"), ()))
        return any(
            all(lead.fields.get(name, "") == given.get(name, "") for name in same)
            for lead in self.leads
        )

    def update(self, given: Mapping[str, str]) -> None:
        """Raises NoError."""
        found = self.find(given)
        if not found:
            raise NoError("CURL error[500]: Lead not found.")
        fields = {name: text for name, text in given.items() if name in _FIELDS}
        for lead in found:
            lead.fields.update(fields)

    def find(self, given: Mapping[str, str]) -> list[Lead]:
        """Leads by SearchField and Identifier. Raises NoError."""
        by, wanted = given.get("SearchField", ""), given.get("Identifier", "")
        if by not in ("ClientId", "LeadId", "Phone") or not wanted:
            raise NoError("SearchField and Identifier are required.")
        found = [lead for lead in self.leads if _value(lead, by) == wanted]
        for name in ("Campaign", "Subcampaign"):
            if given.get(name):
                found = [lead for lead in found if lead.fields.get(name) == given[name]]
        return found

    def search(self, given: Mapping[str, str]) -> dict[str, Any]:
        """What is told of the leads that were found. Raises NoError."""
        found = self.find(given)
        if given.get("Detailed") == "1":
            leads = [{"LeadId": str(lead.lead_id), **lead.fields} for lead in found]
            return {"Leads": leads}
        return {"id": found[0].lead_id if found else None, "LeadExists": bool(found)}

    def insert_dnc(self, given: Mapping[str, str]) -> None:
        """Raises NoError."""
        number = given.get("Number", "")
        if not _TEN_DIGITS.fullmatch(number):
            raise NoError("Invalid number.")
        self.dnc.add(number)
        for lead in self.leads:
            lead.scrubbed |= lead.fields["PrimaryPhone"] == number

    def delete_dnc(self, given: Mapping[str, str]) -> None:
        """Leads that were marked stay marked."""
        self.dnc.discard(given.get("Number", ""))


def _value(lead: Lead, by: str) -> str:
    if by == "LeadId":
        return str(lead.lead_id)
    return lead.fields.get("PrimaryPhone" if by == "Phone" else by, "")
