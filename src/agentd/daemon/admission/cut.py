"""Long texts of a request as policies see them: a digest, a length and how they begin.

A policy is asked in a fraction of a second about what may have 8 MiB. What stands in the place of a
long text is no text, so that a rule that reads it as one fails, and the request with it: padding
hides nothing from a rule that looks for something.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

MAX_TEXT = 16 << 10  # bytes of UTF-8; a path has 4 KiB at most
PREFIX = 1 << 10
_MAX_DEPTH = 64


def cut(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """``value`` with texts of at most MAX_TEXT; one that has none is given back as it is."""
    if isinstance(value, str):
        return value if len(value) * 4 <= MAX_TEXT else _cut_text(value)
    if not depth:
        return value  # too deep for a policy, which will say so
    if isinstance(value, Mapping):
        return {name: cut(member, depth - 1) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [cut(member, depth - 1) for member in value]
    return value


def _cut_text(text: str) -> Any:
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_TEXT:
        return text
    return {
        "truncated": True,
        "length": len(data),
        "sha256": sha256(data).hexdigest(),
        "prefix": data[:PREFIX].decode("utf-8", "ignore"),
    }
