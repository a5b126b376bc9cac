"""A stand-in for the provider, in one process: it has a limit, and refuses what is beyond it."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict, dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

SIZE = 8
TAKES_S = float(os.environ.get("PROVIDER_TAKES_S", "0.05"))
REST_EVERY = int(os.environ.get("PROVIDER_REST_EVERY", "100"))
"""After how many answers it refuses all calls for a second."""
REST_S = 1


@dataclass
class Seen:
    """What the provider has seen."""

    answered: int = 0
    inside: int = 0
    most: int = 0
    """How many calls it had at once."""
    beyond: int = 0
    """How many it has refused because it had too many."""
    resting: int = 0
    """How many it has refused while it rested."""
    rests: int = 0


seen, rests_until_s = Seen(), 0.0


async def summarize(request: Request) -> JSONResponse:
    global rests_until_s
    text = (await request.json())["text"]
    seen.most = max(seen.most, seen.inside + 1)
    left_s = rests_until_s - time.monotonic()
    if left_s > 0 or seen.inside >= SIZE:
        seen.resting, seen.beyond = seen.resting + (left_s > 0), seen.beyond + (left_s <= 0)
        return JSONResponse(
            {"error": "too many requests"}, 429, headers={"Retry-After": str(REST_S)}
        )
    seen.inside += 1
    try:
        await asyncio.sleep(TAKES_S)
    finally:
        seen.inside -= 1
    seen.answered += 1
    if seen.answered % REST_EVERY == 0:
        rests_until_s = time.monotonic() + REST_S
        seen.rests += 1
    return JSONResponse({"summary": f"{text[:20]} ..."})


async def tell(_: Request) -> JSONResponse:
    return JSONResponse(asdict(seen))


app = Starlette(routes=[Route("/summarize", summarize, methods=["POST"]), Route("/seen", tell)])
