"""LIBRARY METHOD URL: prints the status that the library was answered."""

import asyncio
import os
import sys
from typing import Any

library, method, url = sys.argv[1:]
headers = {"X-Client": library}
if token := os.environ.get("API_TOKEN"):
    headers["Authorization"] = f"Bearer {token}"


def urllib() -> int:
    import urllib.error
    import urllib.request

    asked = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(asked) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def requests() -> int:
    import requests

    return int(requests.request(method, url, headers=headers, timeout=60).status_code)


def httpx() -> int:
    import httpx

    return int(httpx.request(method, url, headers=headers).status_code)


def aiohttp() -> int:
    import aiohttp

    async def ask() -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=headers) as answer,
        ):
            return answer.status

    return int(asyncio.run(ask()))


print({"urllib": urllib, "requests": requests, "httpx": httpx, "aiohttp": aiohttp}[library]())
