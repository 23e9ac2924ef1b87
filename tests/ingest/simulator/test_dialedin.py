"""The simulated DialedIn as somebody sees it who gives it commands.

What is expected is what its help pages say, by hand: see `ingest.simulator.dialedin`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from ingest.simulator.dialedin_server import SimulatedDialedIn, simulated_dialedin
from ingest.simulator.faults import Faults

LEAD = {"Campaign": "Example Campaign", "PrimaryPhone": "5551230001", "ClientId": "one"}


class Caller:
    def __init__(self, dialedin: SimulatedDialedIn, http: httpx.AsyncClient) -> None:
        self.dialedin = dialedin
        self.http = http

    async def tell(self, file: str, **form: str) -> httpx.Response:
        given = {"token": self.dialedin.token, "accid": self.dialedin.account} | form
        answer = await self.http.post(f"/HttpImport/{file}.php", data=given)
        assert answer.status_code == 200, "also of what has failed"
        return answer

    async def operate(self, action: str, **form: str) -> httpx.Response:
        return await self.tell("LeadOperations", Action=action, **form)


@asynccontextmanager
async def calling(**options: Any) -> AsyncIterator[Caller]:
    async with (
        simulated_dialedin(**options) as dialedin,
        httpx.AsyncClient(base_url=dialedin.base_url, trust_env=False) as http,
    ):
        yield Caller(dialedin, http)


def plain(answer: httpx.Response) -> str:
    text = answer.text
    assert text.startswith(("<br><br>Result: ", "<br>\nResult: ")), text
    return " ".join(text.replace("<br>", " ").split())


async def test_a_lead_is_found_and_its_number_rings_unless_it_is_only_imported() -> None:
    async with calling() as caller:
        assert plain(await caller.tell("InjectLead", **LEAD, ImportOnly="1")) == "Result: OK"
        assert caller.dialedin.floor.rung == []
        hot = LEAD | {"PrimaryPhone": "5551230002", "ClientId": "two"}
        assert plain(await caller.tell("InjectLead", **hot)) == "Result: OK"
        assert caller.dialedin.floor.rung == ["5551230002"]
        for by, wanted in (("ClientId", "one"), ("Phone", "5551230001"), ("LeadId", "1000001")):
            found = await caller.operate("SearchLead", SearchField=by, Identifier=wanted)
            assert found.json() == {"id": 1000001, "LeadExists": True}
        nothing = await caller.operate("SearchLead", SearchField="ClientId", Identifier="three")
        assert nothing.json() == {"id": None, "LeadExists": False}
        detailed = await caller.operate(
            "SearchLead", SearchField="Phone", Identifier="5551230002", Detailed="1"
        )
        assert [lead["ClientId"] for lead in detailed.json()["Leads"]] == ["two"]


async def test_a_number_that_a_campaign_has_is_a_duplicate_and_changes_nothing() -> None:
    async with calling(campaigns=("Example Campaign", "Other")) as caller:
        await caller.tell("InjectLead", **LEAD, ImportOnly="1")
        again = await caller.tell("InjectLead", **LEAD | {"ClientId": "two"})
        assert plain(again) == "Result: CURL error[500]: Duplicated phone number. Lead ignored."
        elsewhere = await caller.tell("InjectLead", **LEAD | {"Campaign": "Other"}, ImportOnly="1")
        assert plain(elsewhere) == "Result: OK"
        everywhere = await caller.tell(
            "InjectLead", **LEAD | {"Campaign": "Other"}, DuplicatesCheck="2"
        )
        assert "Duplicated" in everywhere.text
        allowed = await caller.tell("InjectLead", **LEAD, DuplicatesCheck="1")
        assert plain(allowed) == "Result: OK"
        assert len(caller.dialedin.floor.leads) == 3
        assert caller.dialedin.floor.rung == []  # dialling duplicates is another switch


async def test_a_number_on_the_list_is_scrubbed_and_not_rung() -> None:
    async with calling() as caller:
        await caller.tell("InjectLead", **LEAD, ImportOnly="1")
        for _ in range(2):
            assert plain(await caller.operate("InsertDnc", Number="5551230001")) == "Result: OK"
        await caller.operate("InsertDnc", Number="5551230002")
        floor = caller.dialedin.floor
        assert floor.dnc == {"5551230001", "5551230002"}
        assert floor.leads[0].scrubbed
        await caller.tell("InjectLead", **LEAD | {"PrimaryPhone": "5551230002", "ClientId": "two"})
        assert floor.rung == []
        await caller.operate("DeleteDnc", Number="5551230001")
        assert floor.dnc == {"5551230002"}
        assert floor.leads[0].scrubbed


async def test_an_update_sets_what_a_lead_has_and_makes_none() -> None:
    async with calling() as caller:
        await caller.tell("InjectLead", **LEAD, ImportOnly="1", FirstName="Old")
        told = {"SearchField": "Phone", "FirstName": "New", "Shoe": "44"}
        done = await caller.tell("UpdateLead", **told, Identifier="5551230001")
        assert plain(done) == "Result: OK"
        assert caller.dialedin.floor.leads[0].fields["FirstName"] == "New"
        assert "Shoe" not in caller.dialedin.floor.leads[0].fields
        missing = await caller.tell("UpdateLead", **told, Identifier="5551230009")
        assert plain(missing) != "Result: OK"
        assert len(caller.dialedin.floor.leads) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": "another"},
        {"accid": "another"},
        {"Campaign": "None such"},
        {"PrimaryPhone": "15551230001"},
        {"PrimaryPhone": "555-123-0001"},
        {"ClientId": "x" * 51},
    ],
)
async def test_what_is_wrong_is_said_with_200_and_nothing_is_done(wrong: dict[str, str]) -> None:
    async with calling() as caller:
        assert plain(await caller.tell("InjectLead", **LEAD | wrong)) != "Result: OK"
        assert caller.dialedin.floor.leads == []
        assert caller.dialedin.floor.rung == []


async def test_a_token_in_an_address_works_and_is_a_scandal() -> None:
    async with calling() as caller:
        params = {"token": caller.dialedin.token, "accid": "example", **LEAD, "ImportOnly": "1"}
        await caller.http.get("/HttpImport/InjectLead.php", params=params)
        assert len(caller.dialedin.floor.leads) == 1
        assert caller.dialedin.scandals == 1


async def test_answers_are_lost_after_and_before_it_is_done() -> None:
    faults = Faults()
    async with calling(faults=faults) as caller:
        for fault, leads in (("undone", 0), ("answers_lost", 1)):
            faults.force(fault)
            with pytest.raises(httpx.ReadTimeout):
                await caller.http.post(
                    "/HttpImport/InjectLead.php",
                    data={"token": caller.dialedin.token, "accid": "example", **LEAD},
                    timeout=0.2,
                )
            assert len(caller.dialedin.floor.leads) == leads
        faults.force("odd_texts")
        odd = await caller.operate("InsertDnc", Number="5551230001")
        assert " ".join(odd.text.replace("<br>", " ").split()) != "Result: OK"
        assert caller.dialedin.floor.dnc == {"5551230001"}
        assert faults.counts == {"undone": 1, "answers_lost": 1, "odd_texts": 1}
