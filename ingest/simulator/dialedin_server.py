"""DialedIn as a server: its commands over an account that nobody works in.

https://docs.chasedatacorp.com/content-user-guide/docs-page-user-guide-other.html. A write answers
with text and tags, and with 200 also when it has failed.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ingest.simulator.api_server import PROXY_PAGE, ApiServer, Asked, Front, Served
from ingest.simulator.dialedin import Floor, NoError
from ingest.simulator.faults import Faults

_ROOT = "/HttpImport"

#: What was seen, each as often as the others.
_YES = ("<br><br>Result:  OK", "<br><br>Result: OK", "<br>\nResult: OK")

#: What was not, and means nothing that anybody knows.
_ODD = ("<br><br>Result: ", "OK?", "", "<br><br>Result: OKAY", "Result\u00a0- done", "\x00\xff<br")

#: File → the actions that it takes.
_ACTIONS = {
    "InjectLead": ("InjectLead",),
    "UpdateLead": ("UpdateLead",),
    "LeadOperations": ("SearchLead", "InsertDnc", "DeleteDnc"),
}

#: (action of a form) → what it does, and what it answers; None: yes.
_Do: TypeAlias = Callable[[Mapping[str, str]], dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Heard:
    """A command that was understood, whatever became of it."""

    #: ``InjectLead``, ``UpdateLead``, or what ``Action`` says.
    action: str
    #: Without token and account.
    given: Mapping[str, str]


class SimulatedDialedIn(Served):
    """What tests and people see of a running one; made by `simulated_dialedin`."""

    def __init__(
        self, floor: Floor, faults: Faults, *, token: str, account: str, remember: int | None
    ) -> None:
        self.floor = floor
        self.faults = faults
        #: The only ones that are good.
        self.token = token
        self.account = account
        #: Requests; ``params`` are those of the address, where nothing ought to be.
        self.requests: deque[Asked] = deque(maxlen=remember)
        self.heard: deque[Heard] = deque(maxlen=remember)
        #: How many answers there were, by status; also of what was forgotten.
        self.answers: Counter[str] = Counter()
        #: What became of commands, by action; the same.
        self.commands: Counter[str] = Counter()
        #: How often somebody has put a token where everybody logs it.
        self.scandals = 0
        self._yes = count()
        self._no = count()
        app = Starlette(
            routes=[
                Route(f"{_ROOT}/{file}.php", self._answer, methods=["GET", "POST"])
                for file in _ACTIONS
            ]
        )
        self._actions: dict[str, _Do] = {
            "InjectLead": floor.inject,
            "UpdateLead": floor.update,
            "SearchLead": floor.search,
            "InsertDnc": floor.insert_dnc,
            "DeleteDnc": floor.delete_dnc,
        }
        self._server = ApiServer(
            Front(faults, self.requests, self._refuse, app, self.answers), faults
        )

    def sent(self, action: str) -> list[Mapping[str, str]]:
        """What was given with each command of an action, in order."""
        return [heard.given for heard in self.heard if heard.action == action]

    def _refuse(self, request: Request) -> Response | None:
        if "token" in request.query_params:
            self.scandals += 1
        if self.faults.strikes("limited"):
            return PlainTextResponse("Too Many Requests", 429)
        if self.faults.strikes("broken"):
            status = (500, 502, 503)[self.faults.up_to(3) - 1]
            return PlainTextResponse("something went wrong", status)
        if self.faults.strikes("html"):
            return Response(PROXY_PAGE, media_type="text/html")
        return None

    async def _answer(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
        given = {**request.query_params, **form}
        token, account = given.pop("token", None), given.pop("accid", None)
        if (token, account) != (self.token, self.account) or self.faults.key_revoked:
            return self._say("CURL error[401]: Invalid token or account.")
        file = request.url.path.removeprefix(f"{_ROOT}/").removesuffix(".php")
        action = given.get("Action", "") if file == "LeadOperations" else file
        if action not in _ACTIONS[file]:
            return self._say("Unknown action.")
        self.heard.append(Heard(action, given))
        if self.faults.strikes("undone"):
            self.commands[f"{action} not done"] += 1
            return await self._leave_waiting()
        answer = self._do(action, given)
        if self.faults.strikes("answers_lost"):
            answer = await self._leave_waiting()
        elif self.faults.strikes("odd_texts"):
            answer = PlainTextResponse(_ODD[self.faults.up_to(len(_ODD)) - 1])
        return answer

    def _do(self, action: str, given: Mapping[str, str]) -> Response:
        try:
            found = self._actions[action](given)
        except NoError as error:
            self.commands[f"{action} failed"] += 1
            return self._say(str(error))
        self.commands[action] += 1
        if found is not None:
            return JSONResponse(found)
        return Response(_YES[next(self._yes) % len(_YES)], media_type="text/html")

    async def _leave_waiting(self) -> Response:
        """Answer when nobody listens any more."""
        await asyncio.sleep(self.faults.answers_lost_s)
        return PlainTextResponse("")

    def _say(self, text: str) -> Response:
        """With tags, in one of two ways."""
        tags = "<br><br>" if next(self._no) % 2 else "<br>\n"
        return Response(f"{tags}Result: {text}", media_type="text/html")


@asynccontextmanager
async def simulated_dialedin(
    *,
    token: str = "token-of-the-simulated-dialedin",  # noqa: S107 - it protects nothing
    account: str = "example",
    campaigns: Collection[str] = ("Example Campaign",),
    faults: Faults | None = None,
    seed: int = 1,
    port: int = 0,
    remember: int | None = None,
) -> AsyncIterator[SimulatedDialedIn]:
    """Serve an empty account on this machine until the block ends.

    ``remember``: how many requests are kept to be looked at; None: all. Raises OSError if the port
    is taken.
    """
    faults = faults or Faults()
    faults.seed(seed)
    dialedin = SimulatedDialedIn(
        Floor(frozenset(campaigns)), faults, token=token, account=account, remember=remember
    )
    async with dialedin.serving(port):
        yield dialedin
