"""What goes over the wire to DialedIn, byte for byte, and what comes of the answers."""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest.api import ApiError
from ingest.providers.dialedin.api import DialedInApi, FailedError, open_api
from ingest.providers.dialedin.assumptions import Assumptions
from ingest.settings import Connection
from tests.ingest.scripted import Response, Scripted, answer, cut, good, scripted, silent

TOKEN = "Canary+Token/x7Qz="
SAMPLES = Path(__file__).parents[3] / "samples" / "dialedin"
YES = answer(200, b"<br><br>Result:  OK", content_type="text/html")


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=6):
        yield


def connection(base_url: str, **more: Any) -> Connection:
    return Connection.model_validate(
        {
            "provider": "dialedin",
            "api_key": TOKEN,
            "account_id": "example",
            "base_url": base_url,
            "sink": {"requests_per_s": 20},
            **more,
        }
    )


@asynccontextmanager
async def telling(*responses: Response, **more: Any) -> AsyncIterator[tuple[DialedInApi, Scripted]]:
    async with (
        scripted(*responses) as server,
        open_api("floor", connection(server.url, **more)) as api,
    ):
        yield api, server


def forms(server: Scripted) -> list[dict[str, str]]:
    """What was posted; and that it was posted as it has to be."""
    for asked in server.asked:
        assert asked.method == "POST"
        assert "?" not in asked.target
        assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
        assert "authorization" not in asked.headers
        assert TOKEN not in asked.target + str(asked.headers)
    return [dict(parse_qsl(asked.body.decode(), strict_parsing=True)) for asked in server.asked]


ACCESS = {"token": TOKEN, "accid": "example"}


async def inject(api: DialedInApi, **more: Any) -> str:
    given: dict[str, Any] = {
        "campaign": "Example Campaign",
        "number": "5551230001",
        "client_id": "dialstream-0001",
        "fields": {"FirstName": "Example", "LastName": "Customer"},
        "dial": False,
    }
    return await api.inject_lead(**given | more)


async def test_each_command_is_one_form_as_the_contract_has_it() -> None:
    found = (SAMPLES / "search-found.json").read_bytes()
    async with telling(YES, YES, answer(200, found), YES) as (api, server):
        assert await api.insert_dnc("5551230001") == "ok"
        assert await api.update_lead("5551230001", {"FirstName": "Ärger & Söhne"}) == "ok"
        assert await api.lead_exists("ClientId", "dialstream-0001") is True
        assert await inject(api) == "ok"
        assert forms(server) == [
            {**ACCESS, "Action": "InsertDnc", "Number": "5551230001"},
            {
                **ACCESS,
                "SearchField": "Phone",
                "Identifier": "5551230001",
                "FirstName": "Ärger & Söhne",
            },
            {
                **ACCESS,
                "Action": "SearchLead",
                "SearchField": "ClientId",
                "Identifier": "dialstream-0001",
                "Detailed": "0",
            },
            {
                **ACCESS,
                "Campaign": "Example Campaign",
                "PrimaryPhone": "5551230001",
                "ClientId": "dialstream-0001",
                "ImportOnly": "1",
                "AllowDialingDups": "0",
                "DuplicatesCheck": "0",
                "DialNonCallables": "0",
                "FirstName": "Example",
                "LastName": "Customer",
            },
        ]
        assert [asked.path for asked in server.asked] == [
            "/HttpImport/LeadOperations.php",
            "/HttpImport/UpdateLead.php",
            "/HttpImport/LeadOperations.php",
            "/HttpImport/InjectLead.php",
        ]


async def test_the_sample_of_a_request_has_the_same_parameters() -> None:
    sample = dict(parse_qsl((SAMPLES / "inject-request.txt").read_text()))
    async with telling(YES) as (api, server):
        await inject(api, fields={"FirstName": "Example", "LastName": "Customer"})
        [sent] = forms(server)
        ours = {"AllowDialingDups", "DuplicatesCheck", "DialNonCallables"}
        assert sent.keys() - ours == sample.keys() - {"adv_Order__Number"}
        assert sent["ImportOnly"] == sample["ImportOnly"] == "1"


async def test_a_phone_rings_only_if_that_is_meant_and_within_the_hours_of_its_zone() -> None:
    async with telling(YES) as (api, server):
        await inject(api, dial=True)
        [sent] = forms(server)
        assert (sent["ImportOnly"], sent["timezone"]) == ("0", "1")
        assert (sent["DialNonCallables"], sent["AllowDialingDups"]) == ("0", "0")


@pytest.mark.parametrize(
    "name", ["ImportOnly", "importonly", "DialNonCallables", "Campaign", "token"]
)
async def test_no_field_can_be_another_parameter(name: str) -> None:
    async with telling(YES) as (api, server):
        with pytest.raises(ValueError, match="no field"):
            await inject(api, fields={name: "0"})
        with pytest.raises(ValueError, match="no field"):
            await api.update_lead("5551230001", {name: "0"})
        assert server.asked == []


async def test_texts_are_cut_to_what_a_lead_can_hold() -> None:
    async with telling(YES) as (api, server):
        await inject(api, fields={"FirstName": "x" * 300, "Notes": "y" * 300})
        [sent] = forms(server)
        assert (len(sent["FirstName"]), len(sent["Notes"])) == (100, 300)


async def test_an_injection_is_asked_once_whatever_comes_of_it() -> None:
    for response in (
        cut(),
        answer(503),
        answer(429),
        answer(401),
        answer(200, b"<html>busy</html>"),
        silent(),
    ):
        async with telling(response, assume={"timeout_s": 0.3}) as (api, server):
            with pytest.raises(ApiError):
                await inject(api)
            assert len(server.asked) == 1
    async with telling(answer(200, b"Result: Campaign not found.")) as (api, server):
        with pytest.raises(FailedError) as raised:
            await inject(api)
        assert raised.value.said == "Result: Campaign not found."
        assert len(server.asked) == 1


async def test_a_duplicate_is_no_error() -> None:
    sample = (SAMPLES / "inject-duplicate.txt").read_bytes()
    async with telling(answer(200, sample)) as (api, _):
        assert await inject(api) == "duplicate"


@pytest.mark.parametrize(
    "body", [b"Result: OK", b'{"id": 1}', b"[]", b"", b"Result: Lead not found"]
)
async def test_a_search_that_says_nothing_clear_is_never_taken_for_a_no(body: bytes) -> None:
    async with telling(answer(200, body)) as (api, _):
        with pytest.raises(FailedError):
            await api.lead_exists("ClientId", "dialstream-0001")


async def test_a_refused_token_is_told_as_such_also_where_the_status_is_200() -> None:
    for response in (answer(200, b"<br>Result: Invalid token."), answer(401)):
        async with telling(response) as (api, _):
            with pytest.raises(ApiError) as raised:
                await api.insert_dnc("5551230001")
            assert raised.value.reason == "unauthorized"
            assert "connections.floor" in raised.value.mend


async def test_neither_token_nor_numbers_are_in_texts_logs_or_exceptions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quoting = f"Result: {TOKEN} 5551230001 me@example.com Campaign not found".encode()
    caplog.set_level(logging.DEBUG)
    told = ""
    with capture_logs() as lines:
        for response in (answer(200, quoting), answer(503, quoting), answer(400, quoting), cut()):
            async with telling(response) as (api, _):
                for doing in (api.insert_dnc("5551230001"), inject(api)):
                    with pytest.raises((ApiError, FailedError)) as raised:
                        await doing
                    told += "".join(traceback.format_exception(raised.value))
                    told += repr(vars(raised.value)) + repr(api)
    told += str(lines) + caplog.text
    for secret in (TOKEN, "Canary", "x7Qz", "5551230001", "me@example.com"):
        assert secret not in told, secret
    assert "POST /HttpImport/LeadOperations.php" in told


async def test_a_new_token_in_its_file_is_taken_up(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    async with telling(answer(401), YES, api_key=None, api_key_file=file) as (api, server):
        file.write_text("new")
        assert await api.insert_dnc("5551230001") == "ok"
        posted = [dict(parse_qsl(asked.body.decode())) for asked in server.asked]
        assert [form["token"] for form in posted] == ["old", "new"]


async def test_all_who_tell_a_connection_share_its_rate() -> None:
    async with scripted(*[YES] * 6) as server:
        table = connection(server.url, sink={"requests_per_s": 5})
        async with open_api("floor", table) as one, open_api("floor", table) as other:
            begun = time.monotonic()
            doing = [each.insert_dnc("5551230001") for each in (one, other) * 3]
            assert await asyncio.gather(*doing) == ["ok"] * 6
            assert time.monotonic() - begun >= 1.0


async def test_files_are_settings() -> None:
    files = {"inject_lead": "Other.php"}
    async with telling(YES, assume={"files": files}) as (api, server):
        await inject(api)
        assert server.asked[0].path == "/HttpImport/Other.php"


async def test_what_has_not_reached_it_is_told_so() -> None:
    async with telling(good({})) as (api, server):
        pass
    async with open_api("floor", connection(server.url)) as api:
        with pytest.raises(ApiError) as raised:
            await inject(api)
        assert not raised.value.reached


@pytest.mark.parametrize(("status", "begin"), [(200, "Result: "), (503, "")])
async def test_what_it_quotes_of_a_person_is_not_told(status: int, begin: str) -> None:
    quoting = f"{begin}Lead Example Customer (555-123-0001) of Example Campaign is not allowed"
    async with telling(answer(status, quoting.encode())) as (api, _):
        with pytest.raises((ApiError, FailedError)) as raised:
            await inject(api, fields={"FirstName": "Example  Customer", "LastName": "x"})
        said = cast("ApiError | FailedError", raised.value).said
        assert said.replace("...", "…") == f"{begin}Lead … (…) of Example Campaign is not allowed"


async def test_the_name_of_a_campaign_refuses_no_token() -> None:
    async with telling(answer(200, b"Result: Campaign Token Sale not found")) as (api, _):
        with pytest.raises(FailedError) as raised:
            await inject(api, campaign="Token Sale")
        assert raised.value.said == "Result: Campaign Token Sale not found"


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (500, b"<br>Result: CURL error[500]: Campaign not found.", "FailedError"),
        (500, b"<br>Result: Duplicated phone number. Lead ignored.", "duplicate"),
        (500, b"<br>Result: Invalid token", "unauthorized"),
        (500, b"Internal Server Error", "unavailable"),
        (503, b"<html>busy</html>", "unavailable"),
        (400, b"", "FailedError"),
        (404, b"<html>no such file</html>", "FailedError"),
        (500, b"<br>Result: OK", "unavailable"),
        (404, b"no such file", "FailedError"),
        (403, b"forbidden", "forbidden"),
    ],
)
async def test_its_own_words_count_whatever_the_status(
    status: int, body: bytes, expected: str
) -> None:
    async with telling(answer(status, body)) as (api, server):
        try:
            came = await inject(api)
        except ApiError as error:
            came = error.reason
        except FailedError:
            came = "FailedError"
        assert came == expected
        assert len(server.asked) == 1


class Recording:
    """Stands in for the client below: keeps the forms."""

    name, key = "floor", TOKEN

    def __init__(self) -> None:
        self.forms: list[dict[str, str]] = []

    async def ask(self, _: str, __: str, *, form: dict[str, str], **___: Any) -> bytes:
        self.forms.append(form)
        return b"Result: OK"


@given(
    st.text(max_size=60),
    st.text(max_size=20),
    st.dictionaries(
        st.text(max_size=12) | st.sampled_from(["ImportOnly", "IMPORTONLY", "Notes", "timezone"]),
        st.text(max_size=20) | st.just("0"),
        max_size=4,
    ),
)
def test_nothing_that_is_not_to_be_dialled_is_sent_so_that_it_is(
    campaign: str, client_id: str, fields: dict[str, str]
) -> None:
    recording = Recording()
    api = DialedInApi(cast("Any", recording), "example", Assumptions())
    with suppress(ValueError):
        asyncio.run(inject(api, campaign=campaign, client_id=client_id, fields=fields))
    for form in recording.forms:
        low = [(name.lower(), text) for name, text in form.items()]
        assert [text for name, text in low if name == "importonly"] == ["1"]
        assert [text for name, text in low if name == "dialnoncallables"] == ["0"]
        assert "timezone" not in dict(low)
