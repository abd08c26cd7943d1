"""``http.fetch.v1``: a request to a web server, from the daemon, to public addresses only."""

import base64
import binascii
from typing import Any

from agentd.capability.fetch.fetcher import Fetcher, FetchRequest, Response
from agentd.capability.port import Call, Inside
from agentd.capability.shape import choice, integer, mapping, parameters, string
from agentd.model.capability import About, Bounds, Example, Needs, Outcome
from agentd.model.characters import whole_characters
from agentd.model.errors import InvalidInput

MAX_BODY = 8 << 20  # either way
_TIMEOUT = 30.0
_SCHEMA = parameters(
    ["url"],
    url=string(1, 8192, description="absolute, http or https"),
    method=choice(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"], "GET"),
    headers=mapping(
        string(maximum=16384),
        64,
        "of the request, by name; lengths, Host and Connection are set for you",
    ),
    body=string(maximum=12 << 20),
    body_encoding=choice(["utf-8", "base64"], "utf-8", "what the parameter body is written in"),
    timeout_ms=integer(1, 300_000, int(_TIMEOUT * 1000), "for all of it, redirects included"),
    max_bytes=integer(0, MAX_BODY, 1 << 20, "of the body; what is over them is cut off"),
    max_redirects=integer(0, 10, 5, "0 gives the redirect itself"),
    encoding=choice(
        ["auto", "utf-8", "base64"],
        "auto",
        "what the answer's body is written in; auto: text where it is UTF-8",
    ),
)


class HttpFetch:
    """``fetcher`` may be replaced by one with the operator's hosts and networks."""

    about = About(
        name="http.fetch.v1",
        summary="fetch a URL from the public Internet",
        schema=_SCHEMA,
        needs=Needs(network=True, sandbox=False),
        bounds=Bounds(timeout=_TIMEOUT, output=64 << 20),
        examples=(
            Example(
                about="a cloud's metadata, which holds credentials, is out of reach",
                parameters={"url": "http://169.254.169.254/latest/meta-data/"},
                error="address_refused",
            ),
            Example(
                about="so is the daemon's own machine",
                parameters={"url": "http://127.0.0.1/", "method": "POST", "body": "{}"},
                error="address_refused",
            ),
            Example(
                about="an address in disguise is no host",
                parameters={"url": "http://2130706433/"},
                error="url_refused",
            ),
            Example(
                about="only the web's ports",
                parameters={"url": "https://example.org:22/"},
                error="port_refused",
            ),
        ),
    )

    def __init__(self, fetcher: Fetcher | None = None) -> None:
        self.fetcher = fetcher or Fetcher()

    def run(self, call: Call, inside: Inside) -> Outcome:
        given = call.parameters
        request = FetchRequest(
            url=given["url"],
            method=given.get("method", "GET"),
            headers=given.get("headers", {}),
            body=_body(given),
            timeout=min(given.get("timeout_ms", _TIMEOUT * 1000) / 1000, call.timeout),
            max_bytes=given.get("max_bytes", 1 << 20),
            max_redirects=given.get("max_redirects", 5),
        )
        response = self.fetcher.fetch(request, lambda piece: call.emit("body", piece))
        return Outcome(_value(response, given.get("encoding", "auto")))


def _body(given: dict[str, Any]) -> bytes:
    text = given.get("body", "")
    try:
        if given.get("body_encoding", "utf-8") == "base64":
            body = base64.b64decode(text, validate=True)
        else:
            body = text.encode()
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(
            "parameter body is not in its body_encoding",
            cause=str(error),
            remediation="encode it so, or correct body_encoding",
        ) from None
    if len(body) > MAX_BODY:
        raise InvalidInput(
            f"parameter body is over {MAX_BODY} bytes", remediation="send less at once"
        )
    return body


def _value(response: Response, encoding: str) -> dict[str, Any]:
    if encoding == "auto":
        encoding = "utf-8" if _is_text(response.body, response.truncated) else "base64"
    if encoding == "utf-8":
        whole = whole_characters(response.body) if response.truncated else response.body
        body = whole.decode(errors="replace")
    else:
        body = base64.b64encode(response.body).decode()
    return {
        "status": response.status,
        "url": response.url,
        "headers": dict(response.headers),
        "body": body,
        "encoding": encoding,
        "decoded": response.decoded,
        "truncated": response.truncated,
        "redirects": list(response.redirects),
        "address": response.address,
    }


def _is_text(body: bytes, truncated: bool) -> bool:
    """A cut may go through a character; NUL is in no text."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        if not truncated or error.reason != "unexpected end of data":
            return False
    return b"\0" not in body


CAPABILITY = HttpFetch()
