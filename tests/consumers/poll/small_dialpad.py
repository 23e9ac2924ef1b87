"""The one list of Dialpad's that a poller cannot do without, over HTTP, as a test wants it."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.kit import SAMPLES

KEY = "an-invented-key"
HOUR_MS = 3_600_000


class SmallDialpad:
    """``GET /api/v2/call``: pages of 50 by cursor, the latest start first, for who has the key."""

    def __init__(self) -> None:
        self._sample: dict[str, Any] = json.loads((SAMPLES / "rest-call-get.json").read_bytes())
        self.calls: list[dict[str, Any]] = []
        self.key = KEY
        #: When each request came, on the steady clock.
        self.asked_at: list[float] = []
        #: Called at each request, with its number, before it is answered.
        self.on_request: Callable[[int], None] = lambda _: None
        #: Answered instead, as long as it is set.
        self.status: int | None = None
        self._lock = threading.Lock()
        dialpad = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body = dialpad.answer(self.path, self.headers.get("authorization"))
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

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

    def add(self, count: int, *, hours_ago: float, apart_ms: int = 1000) -> None:
        """Calls of a minute each, the earliest so long ago."""
        begin = round(time.time() * 1000 - hours_ago * HOUR_MS)
        for n in range(count):
            began = begin + n * apart_ms
            self.calls.append(
                self._sample
                | {
                    "call_id": str(5_000_000_000_100_000 + len(self.calls)),
                    "state": "hangup",
                    "date_started": str(began),
                    "date_rang": str(began),
                    "date_connected": str(began + 1000),
                    "date_ended": str(began + 60_000),
                    "event_timestamp": str(began + 60_000),
                }
            )

    def answer(self, target: str, authorization: str | None) -> tuple[int, bytes]:
        with self._lock:
            self.asked_at.append(time.monotonic())
            number = len(self.asked_at)
        self.on_request(number)
        if self.status is not None:
            return self.status, b"{}"
        if authorization != f"Bearer {self.key}":
            return 401, b"{}"
        address = urlsplit(target)
        assert address.path == "/api/v2/call"
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        found = sorted(
            (
                call
                for call in self.calls
                if int(asked["started_after"])
                < int(call["date_started"])
                < int(asked["started_before"])
            ),
            key=lambda call: -int(call["date_started"]),
        )
        at = int(asked.get("cursor", 0))
        page: dict[str, Any] = {"items": found[at : at + 50]}
        if at + 50 < len(found):
            page["cursor"] = str(at + 50)
        return 200, json.dumps(page).encode()

    def connection(self, **poll: Any) -> dict[str, Any]:
        """Settings of a connection that is only polled."""
        return {
            "provider": "dialpad",
            "api_key": KEY,
            "base_url": self.base_url,
            "region": "US",
            "poll": {"requests_per_s": 20.0, "every_s": 0.5, "lag_s": 1.0, **poll},
        }
