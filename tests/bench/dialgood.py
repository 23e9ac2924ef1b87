"""A Dialgood that costs next to nothing: ``python -m tests.bench.dialgood PORT RECORDS``.

`AGENTS` agents share the records evenly, all of the day before it was started; listed as Dialgood
lists call logs: those of a window, the newest first, by numbered pages. What a scene wants of it
stands below ``/bench``.
"""

import sys
import time
from datetime import UTC, datetime

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

AGENTS = 20

#: They began so long ago, at the earliest and at the latest. What is younger a near pass reads
#: again.
_FIRST_S, _LAST_S = 20 * 3600, 3 * 3600

#: As in the samples; agent, number, number, clock, caller, outcome, seconds.
_RECORD = (
    b'{"botId":"agent_%04d","conversationId":"conversation_%04d_%08d","contactId":"contact_%06d",'
    b'"campaignId":"campaign_0001","created_at":"%bZ","data":{"from":"+15551230101",'
    b'"to":"+1555%07d","direction":"outbound","callStatus":"%b","callDuration":%d}}'
)
_OUTCOMES = (b"completed", b"no-answer", b"busy", b"success", b"failed")


class Dialgood:
    """What is asked of it, and how often."""

    def __init__(self, records: int) -> None:
        self._of_each = records // AGENTS
        self._first_ms = (time.time_ns() // 1_000_000) - _FIRST_S * 1000
        self._step_ms = (_FIRST_S - _LAST_S) * 1000 / self._of_each
        #: Pages of records that were asked for, and records on them.
        self._asked = self._served = 0
        self.application = Starlette(
            routes=[
                Route("/partner/v1/agents", self._agents),
                Route("/partner/v1/agents/{id}/call-logs", self._call_logs),
                Route("/bench/asked", self._count),
            ]
        )

    async def _agents(self, request: Request) -> Response:
        limit, skip = (int(request.query_params[name]) for name in ("limit", "skip"))
        agents = [
            {"agentId": f"agent_{number:04}", "agentName": f"Agent {number}", "owner": True}
            for number in range(AGENTS)[skip : skip + limit]
        ]
        more = skip + limit < AGENTS
        return JSONResponse({"agents": agents, "totalCount": AGENTS, "hasMore": more})

    async def _call_logs(self, request: Request) -> Response:
        self._asked += 1
        asked = {name: int(request.query_params[name]) for name in ("from", "to", "page", "limit")}
        agent = int(request.path_params["id"].removeprefix("agent_"))
        first, end = self._number_from(asked["from"]), self._number_from(asked["to"] + 1)
        total, limit = end - first, asked["limit"]
        last = end - (asked["page"] - 1) * limit
        numbers = range(last - 1, max(first, last - limit) - 1, -1)
        self._served += len(numbers)
        body = b'{"data":[%b],"totalPages":%d,"totalRecords":%d,"currentPage":%d}' % (
            b",".join([self._record(agent, number) for number in numbers]),
            -(-total // limit),
            total,
            asked["page"],
        )
        return Response(body, media_type="application/json")

    def _created_ms(self, number: int) -> int:
        return self._first_ms + round(number * self._step_ms)

    def _number_from(self, ms: int) -> int:
        """The first record that is as old as that, or younger."""
        number = min(max(0, int((ms - self._first_ms) / self._step_ms)), self._of_each)
        while number and self._created_ms(number - 1) >= ms:
            number -= 1
        while number < self._of_each and self._created_ms(number) < ms:
            number += 1
        return number

    def _record(self, agent: int, number: int) -> bytes:
        """Callers, outcomes and clocks are as varied as in life."""
        created = datetime.fromtimestamp(self._created_ms(number) / 1000, UTC)
        text = created.replace(tzinfo=None).isoformat(timespec="milliseconds").encode()
        caller = (number * AGENTS + agent) * 7919 % 9_000_000
        outcome = _OUTCOMES[number % len(_OUTCOMES)]
        return _RECORD % (agent, agent, number, caller, text, caller, outcome, number % 600)

    async def _count(self, _: Request) -> Response:
        return JSONResponse({"asked": self._asked, "served": self._served})


def main(port: int, records: int) -> None:
    config = uvicorn.Config(
        Dialgood(records).application,
        port=port,
        http="httptools",
        ws="none",
        access_log=False,
        log_level="error",
    )
    uvloop.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
