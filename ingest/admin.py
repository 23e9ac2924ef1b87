"""The admin port: is it alive, can it acknowledge, how much has it done. Never public."""

from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ingest.metrics import REGISTRY


def create_admin(
    refusing: Callable[[], str | None], degraded: Callable[[], Sequence[str]]
) -> Starlette:
    """``refusing``: why nothing can be acknowledged, if so; ``degraded``: what else is wrong."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        reason = refusing()
        body = {"ready": reason is None, "reason": reason, "degraded": list(degraded())}
        return JSONResponse(body, 200 if reason is None else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
    )
