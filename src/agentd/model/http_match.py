"""The part of a network rule that says which requests: methods, and a pattern of paths.

GET|HEAD api.example.com/v1/*     * is what has no slash in it
read api.example.com/**           ** is anything; ``read`` is GET, HEAD and OPTIONS
!DELETE api.example.com           without a path every path is meant, without methods every method
"""

import re
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import quote

READ = ("GET", "HEAD", "OPTIONS")
_USUAL = frozenset((*READ, "POST", "PUT", "PATCH", "DELETE"))
EVERY_PATH = "/**"
MAX_METHODS = 16
MAX_PATH = 1024
MAX_WILDCARDS = 16  # each makes a comparison dearer

_METHOD = re.compile(r"[A-Z][A-Z-]{2,19}")
# RFC 3986, pchar; a comma would end the rule where rules are written in one text.
_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()+;=:@/*-]|%[0-9A-Fa-f]{2})*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_FORM = "write it as GET|HEAD api.example.com/v1/*, or read api.example.com"
_WORDS = (
    "use read, or any of GET, HEAD, OPTIONS, POST, PUT, PATCH and DELETE with | between them; "
    "another method is written in capitals"
)

Wrong = Callable[[str, str], NoReturn]


def methods(text: str, wrong: Wrong) -> tuple[str, ...] | None:
    """Return what is before a rule's host; None for every method. ``wrong`` raises."""
    if not text:
        return None
    found: set[str] = set()
    for word in text.split("|"):
        method = word.strip().upper()
        if method == "READ":
            found.update(READ)
        elif method == "CONNECT":
            wrong("allows CONNECT", "leave it out: the relay is nobody's proxy")
        elif not _METHOD.fullmatch(method):
            wrong(f"has the method {word.strip()!r}", _FORM)
        elif method not in _USUAL and word.strip() != method:  # ``reed`` would be one
            wrong(f"has the method {word.strip()!r}", _WORDS)
        else:
            found.add(method)
    if len(found) > MAX_METHODS:
        wrong(f"has more than {MAX_METHODS} methods", "leave them out: every method is meant then")
    return tuple(sorted(found))


def spelled(methods: tuple[str, ...] | None) -> str:
    """Return what stands before the host, with its space; "" for every method."""
    if methods is None:
        return ""
    return f"{'read' if methods == READ else '|'.join(methods)} "


def path(text: str, wrong: Wrong) -> str:
    """Return a pattern in its one spelling. ``wrong`` raises."""
    if len(text) > MAX_PATH:
        wrong("has a path that is too long", f"a path has at most {MAX_PATH} characters")
    if "?" in text or "#" in text:
        wrong("has a query", "leave out what follows the path: only that is compared")
    if not text.isascii():
        wrong("has a path that is not ASCII", f"write it as {quote(text, safe='/*%')}")
    if not _PATH.fullmatch(text):
        wrong("has a path that is none", "write it as /v1/*; another character as %20")
    made = canonical(text)
    if any(part in (".", "..") for part in made.split("/")):
        wrong("has . or .. in its path", "write the path that is meant")
    if "***" in made:
        wrong("has three * together", "* is what has no slash in it, ** is anything")
    if made.count("*") > MAX_WILDCARDS:
        wrong("has too many * in its path", f"use at most {MAX_WILDCARDS}")
    return made


def canonical(text: str) -> str:
    """Return a path with what needs no escape written as it is, and all others in capitals."""

    def plain(found: "re.Match[str]") -> str:
        byte = int(found[1], 16)
        return chr(byte) if byte in _PLAIN else f"%{byte:02X}"

    return _ESCAPE.sub(plain, text)


def within(inner: str, outer: str) -> bool:
    """Return whether it is certain that all that ``inner`` matches is matched by ``outer``."""
    if inner == outer:
        return True
    before = outer.removesuffix("**")
    return before != outer and "*" not in before and inner.startswith(before)
