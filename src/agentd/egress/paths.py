"""Whether a pattern has a request's path, pure. Standard library: the terminator decides by it.

``*`` is what has no slash in it, ``**`` anything. A path can be read in more ways than one: with
%61 for a, with // or /./ for /, with ;parameters. What a rule allows must match every reading, what
a rule denies any of them, whatever its capitals.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

MAX_TARGET = 16 << 10
_CHARACTERS = re.compile(r"[\x21-\x7e]+")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_WORDS = re.compile(r"(\*\*|\*)")
_SLASHES = re.compile(r"/{2,}")
_HERE = re.compile(r"/(?:\./)+")  # as of apt, whose sources can be "deb https://host/debian ./"
_PARAMETERS = re.compile(r";[^/]*")
SLASH = "%2F"
_USUAL_PORTS = (80, 443)  # of a rule that names none


class RequestPath(NamedTuple):
    """``readings`` are the ways in which a server may take it, the plainest first. ``escaped``:
    it has an escaped slash, which some servers take for one."""

    readings: tuple[str, ...]
    escaped: bool = False

    def is_in(self, pattern: str) -> bool:
        """Return whether a rule with ``pattern`` allows it."""
        if self.escaped and SLASH not in pattern:
            return False
        return all(matches(pattern, reading) for reading in self.readings)

    def touches(self, pattern: str) -> bool:
        """Return whether a rule with ``pattern`` forbids it."""
        readings = self.readings
        if self.escaped:
            readings += tuple(_SLASHES.sub("/", r.replace(SLASH, "/")) for r in readings)
        # Many servers, or what they name by a path, take capitals, and a slash at the end, alike.
        readings += tuple(r.rstrip("/") for r in readings if r.endswith("/"))
        folded = pattern.lower()
        return any(matches(folded, reading.lower()) for reading in readings)


def read(target: str) -> RequestPath:
    """Return the path of a request's target. Raises ValueError, with why, for what two servers
    would take for two things."""
    if len(target) > MAX_TARGET:
        raise ValueError(f"has a target of more than {MAX_TARGET} bytes")
    if not target.startswith("/") or not _CHARACTERS.fullmatch(target) or "#" in target:
        raise ValueError("has a target that is no path")
    path = target.partition("?")[0]
    if "\\" in path:
        raise ValueError("has a backslash in its path")
    plain, bare = (_ESCAPE.sub(_unescaped, each) for each in (path, _HERE.sub("/", path)))
    lenient = _SLASHES.sub("/", _PARAMETERS.sub("", bare))
    for reading in (bare, lenient, bare.replace(SLASH, "/")):
        if any(part in (".", "..") for part in reading.split("/")):
            raise ValueError("has . or .. in its path")
    return RequestPath(tuple(dict.fromkeys((plain, bare, lenient))), SLASH in plain)


def _unescaped(found: "re.Match[str]") -> str:
    if found[1] is None:
        raise ValueError("has a % in its path that begins no escape")
    byte = int(found[1], 16)
    if byte == 0x5C or byte < 0x20 or byte == 0x7F:
        raise ValueError(f"has %{byte:02X} in its path")
    return chr(byte) if byte in _PLAIN else f"%{byte:02X}"


@lru_cache(1024)
def _words(pattern: str) -> tuple[str, ...]:
    return tuple(word for word in _WORDS.split(pattern) if word)


def matches(pattern: str, path: str) -> bool:
    """Compare without going back, so that no path takes long: ``at`` are the places that the words
    of the pattern until now can end at."""
    at = {0}
    words = _words(pattern)
    for number, word in enumerate(words):
        if word == "**":
            if number == len(words) - 1:
                return bool(at)
            at = set(range(min(at), len(path) + 1))
        elif word == "*":
            at = {end for start in _firsts(at, path) for end in _within_segment(path, start)}
        else:
            at = {start + len(word) for start in at if path.startswith(word, start)}
        if not at:
            return False
    return len(path) in at


def _firsts(at: set[int], path: str) -> Iterator[int]:
    """The first place in each segment: from there ``*`` ends wherever it does from later ones."""
    seen = -1
    for start in sorted(at):
        if start > seen:
            yield start
            found = path.find("/", start)
            seen = len(path) if found < 0 else found


def _within_segment(path: str, start: int) -> range:
    found = path.find("/", start)
    return range(start, (len(path) if found < 0 else found) + 1)


def rule_of_request(method: str, host: str, port: int | None, path: str) -> str:
    """Write the rule that allows a request. No rule has a comma: ``*`` stands for it."""
    where = host if port is None or port in _USUAL_PORTS else f"{host}:{port}"
    return f"{method} {where}{path.replace(',', '*')}"
