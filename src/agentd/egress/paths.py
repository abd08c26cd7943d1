"""Whether a pattern has a request's path, pure. Standard library: the terminator decides by it.

``*`` is what has no slash in it, ``**`` anything. A path can be read in more ways than one: with
%61 for a, with // or /./ for /, with ;parameters. What a rule allows must match every reading, what
a rule denies any of them, whatever its capitals.
"""

import re
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
    """Compare without going back, so that no path takes long: the bits of ``at`` are the places
    that the words of the pattern until now can end at."""
    at, marks = 1, _marks(path)
    for word in _words(pattern):
        if word == "**":
            at = marks.every & -(at & -at)  # the first of them, and all behind it
        elif word == "*":
            # Adding carries each to the end of its segment.
            at |= (marks.within + (at & marks.within)) ^ marks.within
        else:
            at = marks.behind(word, at)
        if not at:
            return False
    return bool(at >> len(path))


class _PathMarks:
    """What of a path is where, a bit a place, the first place the lowest: of thousands of places
    all are looked at by one operation. ``every`` has its end, too; ``within`` are those from which
    ``*`` goes on."""

    __slots__ = ("_letters", "_path", "every", "within")

    def __init__(self, path: str) -> None:
        self._path = path
        self._letters: dict[str, int] = {}
        self.every = (1 << len(path) + 1) - 1
        self.within = self.every >> 1 & ~self._of("/")

    def behind(self, word: str, at: int) -> int:
        """Return the places behind ``word``, where that is at one of ``at``."""
        if not at & (at - 1):  # one place, mostly
            start = at.bit_length() - 1
            return 1 << start + len(word) if self._path.startswith(word, start) else 0
        for place, letter in enumerate(word):
            at &= self._of(letter) >> place
        return at << len(word)

    def _of(self, letter: str) -> int:
        found = self._letters.get(letter)
        if found is None:
            digits = bytearray(b"0" * 256)
            digits[ord(letter)] = ord("1")
            text = self._path.encode("ascii")[::-1].translate(digits)
            found = self._letters[letter] = int(text or b"0", 2)
        return found


_marks = lru_cache(16)(_PathMarks)


def rule_of_request(method: str, host: str, port: int | None, path: str) -> str:
    """Write the rule that allows a request. No rule has a comma: ``*`` stands for it."""
    where = host if port is None or port in _USUAL_PORTS else f"{host}:{port}"
    return f"{method} {where}{path.replace(',', '*')}"
