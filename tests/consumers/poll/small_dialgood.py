"""As much of Dialgood's Partner API as a poller needs, over HTTP, as a test wants it.

https://apidocs.dialgood.com/partner-api-2171894m0
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

KEY = "an-invented-token"
HOUR_MS = 3_600_000


class SmallDialgood:
    """Agents, and the call logs of each, the newest first; for who has the key."""

    def __init__(self, agents: int = 3) -> None:
        #: Agent → its records.
        self.logs: dict[str, list[dict[str, Any]]] = {f"agent_{n:04}": [] for n in range(agents)}
        self.key = KEY
        #: Paths of all requests.
        self.paths: list[str] = []
        #: Called at each request, with its number, before it is answered.
        self.on_request: Callable[[int], None] = lambda _: None
        #: The call logs of these agents are answered like this.
        self.statuses: dict[str, int] = {}
        self._made = 0
        self._lock = threading.Lock()
        dialgood = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body = dialgood.answer(self.path, self.headers.get("api_token"))
                answer = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # killed clients
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, agent_id: str, count: int, *, hours_ago: float, apart_ms: int = 1000) -> None:
        begin = round(time.time() * 1000 - hours_ago * HOUR_MS)
        for n in range(count):
            self._made += 1
            self.logs[agent_id].append(
                {
                    "botId": agent_id,
                    "conversationId": f"conversation_{self._made:06}",
                    "created_at": _iso(begin + n * apart_ms),
                    "data": {
                        "from": "+15551230101",
                        "to": "+15551230001",
                        "direction": "outbound",
                        "callStatus": "completed",
                        "callDuration": 3,
                    },
                }
            )

    @property
    def conversations(self) -> set[str]:
        return {log["conversationId"] for log in self._all()}

    def _all(self) -> Iterator[dict[str, Any]]:
        for logs in self.logs.values():
            yield from logs

    def answer(self, target: str, key: str | None) -> tuple[int, Any]:
        with self._lock:
            self.paths.append(urlsplit(target).path)
            number = len(self.paths)
        self.on_request(number)
        if key != self.key:
            return 401, {"error": "api_token is missing or not valid"}
        address = urlsplit(target)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        parts = address.path.split("/")
        assert parts[:4] == ["", "partner", "v1", "agents"]
        if len(parts) == 4:
            return 200, self._agents(int(asked["limit"]), int(asked["skip"]))
        agent_id, what = parts[4:]
        assert what == "call-logs"
        if (status := self.statuses.get(agent_id, 200)) != 200:
            return status, {"error": "an error of the test"}
        return 200, self._logs(agent_id, asked)

    def _agents(self, limit: int, skip: int) -> dict[str, Any]:
        listed = [
            {"agentId": ident, "agentName": "Agent", "userId": "user", "phoneNumbers": []}
            for ident in self.logs
        ]
        page = listed[skip : skip + limit]
        more = skip + limit < len(listed)
        return {
            "agents": page,
            "totalCount": len(listed),
            "limit": limit,
            "skip": skip,
            "hasMore": more,
        }

    def _logs(self, agent_id: str, asked: dict[str, str]) -> dict[str, Any]:
        assert asked["tz"] == "UTC"
        from_, to = (_iso(int(asked[name])) for name in ("from", "to"))
        found = [log for log in self.logs[agent_id] if from_ <= log["created_at"] <= to]
        found.sort(key=lambda log: str(log["created_at"]), reverse=True)
        page, limit = int(asked["page"]), min(50, int(asked["limit"]))
        return {
            "data": found[(page - 1) * limit : page * limit],
            "totalPages": -(-len(found) // limit),
            "totalRecords": len(found),
            "currentPage": page,
        }

    def connection(self, **poll: Any) -> dict[str, Any]:
        """Settings of a connection."""
        return {
            "provider": "dialgood",
            "api_key": KEY,
            "base_url": self.base_url,
            "poll": {"requests_per_s": 20.0, "every_s": 0.5, "lag_s": 1.0, "also": [], **poll},
            "assume": {"time_unit": "ms"},
        }


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
