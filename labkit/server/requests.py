"""What is read from a request, from anybody, and how one is refused."""

from __future__ import annotations

import asyncio
import base64
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from labkit.server.jobs import Refused

BODY_SECONDS = 120.0  # for a body to arrive


async def body(request: Request, most: int) -> bytes:
    """A body that is cut off where it is too long or too slow.

    Raises:
        Refused: it is.
    """
    too_long = Refused(413, f"a call may have {most / (1 << 20):.1f} MB; send less")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_long
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                found += chunk
                if len(found) > most:
                    raise too_long
    except TimeoutError:
        raise Refused(408, f"the call did not arrive within {BODY_SECONDS:.0f} s") from None
    return bytes(found)


def same_origin(connection: HTTPConnection) -> None:
    """Browsers say where a page is from; pages from elsewhere may not act for whoever is logged in here.

    Raises:
        Refused: it is from elsewhere.
    """
    origin = connection.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != connection.headers.get("host"):
        raise Refused(403, "this page is from another site")


def number(connection: HTTPConnection, name: str, otherwise: float) -> float:
    """A number in the address.

    Raises:
        Refused: it is none, or less than 0.
    """
    try:
        found = float(connection.query_params.get(name, otherwise))
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise Refused(400, f"{name} must be a number, 0 or more")
    return found


def plain(said: dict[str, Any]) -> dict[str, Any]:
    """A report as JSON has it; bytes in it become `{"base64": text}`."""
    return {
        name: {"base64": base64.b64encode(one).decode()} if isinstance(one, bytes) else one
        for name, one in said.items()
    }


def refusal(refused: Refused) -> Response:
    """What is refused, as JSON."""
    headers = {} if refused.after is None else {"Retry-After": str(max(1, round(refused.after)))}
    return JSONResponse({"error": refused.sentence, "after": refused.after}, refused.status, headers)
