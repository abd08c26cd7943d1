"""What is wrong with a configuration, and what the nearest right thing would be."""

import difflib
from collections.abc import Iterable

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """``line`` is the file's, from 1; 0 where it is not the file that says it.

    ``key`` is dotted, or the name of an environment variable. ``suggestion`` may be empty.
    """

    line: int
    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        hint = f" ({self.suggestion})" if self.suggestion else ""
        key = f"{self.key}: " if self.key else ""
        return f"{where}{key}{self.message}{hint}"


def nearest(word: str, known: Iterable[str], least: float = 0.6) -> str | None:
    """Find the one most like it, of ``least`` likeness as difflib counts it: 1 is the same."""
    found = difflib.get_close_matches(word.lower()[:100], list(known), n=1, cutoff=least)
    return found[0] if found else None


def dotted(path: Iterable[str | int]) -> str:
    """Write ``("listen", 0, "mode")`` as ``listen[0].mode``; quoted as TOML wants it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + quoted(part)
    return text


def quoted(key: str) -> str:
    if key and key.isascii() and key.replace("-", "").replace("_", "").isalnum():
        return key
    return basic_string(key)


def basic_string(text: str) -> str:
    """Write it as TOML does: a JSON string, but for the DEL that TOML wants escaped."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
