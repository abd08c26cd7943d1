"""No secret in a log: fields are hidden by their name, and known forms of secrets by their look."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"
# Any part of a field's name, as split at "_", "-" and ".".
_SECRET_WORDS = frozenset(
    (
        *("authorization", "cookie", "credential", "credentials", "env", "environment", "jwt"),
        *("key", "passphrase", "passwd", "password", "private", "pwd", "secret", "secrets"),
        *("session", "signature", "stdin", "token", "tokens"),
    )
)
_PART = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\bagd_([a-z2-7]{4,16})_[A-Za-z0-9_-]+"), rf"agd_\1_{HIDDEN}"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), HIDDEN),  # a JSON web token
    (re.compile(r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"://[^/\s:@]*:[^/\s@]+@"), f"://{HIDDEN}@"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END|\Z)", re.S), HIDDEN),
)
_MAX_TEXT = 4096
_MAX_ITEMS = 64
_MAX_DEPTH = 4


def fields(event: Mapping[str, Any], depth: int = _MAX_DEPTH) -> dict[str, Any]:
    """A copy with nothing secret in it, and every value bounded."""
    found = {}
    for name, value in list(event.items())[:_MAX_ITEMS]:
        found[str(name)] = HIDDEN if is_secret(str(name)) else _value(value, depth)
    return found


def is_secret(name: str) -> bool:
    return any(part.lower() in _SECRET_WORDS for part in _PART.findall(name)) or (
        "apikey" in name.lower()
    )


def text(words: str) -> str:
    # Cut first: a pattern must not be run over megabytes of somebody's output.
    cut = words[: 4 * _MAX_TEXT]
    for pattern, instead in _FORMS:
        cut = pattern.sub(instead, cut)
    return cut if len(cut) <= _MAX_TEXT else f"{cut[:_MAX_TEXT]}... ({len(words)} characters)"


def _value(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return text(value)
    if depth > 0 and isinstance(value, Mapping):
        return fields(value, depth - 1)
    if depth > 0 and isinstance(value, list | tuple | set | frozenset):
        return [_value(item, depth - 1) for item in list(value)[:_MAX_ITEMS]]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"  # output or a file of somebody's, never a word of ours
    return text(str(value))
