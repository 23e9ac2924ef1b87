"""The yardstick: a Starlette route that reads the body and does nothing with it."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def hook(request: Request) -> Response:
    await request.body()
    return Response(status_code=204)


if __name__ == "__main__":
    uvicorn.run(
        Starlette(routes=[Route("/webhooks/{connection}", hook, methods=["POST"])]),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
    )
