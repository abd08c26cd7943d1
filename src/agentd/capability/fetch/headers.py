"""The headers of a request: what may be given, what is ours, and what a redirect takes along."""

import re
from collections.abc import Mapping

from agentd.model.capability import CallFailed

MAX_HEADERS = 64
MAX_BYTES = 16 << 10
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
# They say where a message ends or who may read it: two readings of them smuggle requests.
_OURS = frozenset(
    (
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te"),
        *("trailer", "upgrade", "expect", "accept-encoding", "proxy-connection"),
        *("proxy-authorization", "proxy-authenticate", "http2-settings"),
    )
)
# All else may be a credential: X-Api-Key is as good a name for one as Authorization.
_HARMLESS = frozenset(
    (
        *("accept", "accept-language", "cache-control", "content-language", "content-type"),
        *("if-modified-since", "if-none-match", "range", "user-agent"),
    )
)
_OF_BODY = frozenset(("content-type", "content-language", "content-encoding"))


def check(given: Mapping[str, str]) -> dict[str, str]:
    """Return them with lower-case names. Raises CallFailed "header_refused"."""
    if len(given) > MAX_HEADERS:
        raise _refused(f"there are more than {MAX_HEADERS}")
    if sum(len(name) + len(value) for name, value in given.items()) > MAX_BYTES:
        raise _refused(f"they are over {MAX_BYTES} bytes")
    checked: dict[str, str] = {}
    for name, value in given.items():
        if not _NAME.fullmatch(name):
            raise _refused(f"{name[:40]!a} is no name of a header")
        if not _VALUE.fullmatch(value):
            raise _refused(f"the value of {name} holds a line end or another control character")
        if name.lower() in _OURS:
            raise _refused(f"{name} is set by the daemon", f"leave {name} out")
        if name.lower() in checked:
            raise _refused(f"{name} is given twice")
        checked[name.lower()] = value.strip("\t ")
    return checked


def across_origins(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name in _HARMLESS}


def without_body(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in _OF_BODY}


def _refused(why: str, fix: str = "fix the headers") -> CallFailed:
    return CallFailed("header_refused", f"the headers are refused: {why}", remediation=fix)
