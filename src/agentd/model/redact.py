"""No secret in a log: fields are hidden by their name, known forms of secrets by their look, and
the values that a caller says are secret wherever they appear."""

import functools
import re
from collections.abc import Iterable, Mapping
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
_MAX_VALUES = 4096  # of one event, however nested
# A shorter one is hidden where it stands alone: "1" is part of half of all words.
_MIN_PART = 4
_MIN_LINE = 8  # of a secret of several lines, each of which may be quoted alone


class Redactor:
    """Redacts one event. ``secrets`` are values that must not appear in it, as text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {secret for secret in secrets if secret}
        parts = {secret for secret in known if len(secret) >= _MIN_PART}
        for secret in known:
            if "\n" in secret:
                parts.update(line for line in secret.splitlines() if len(line) >= _MIN_LINE)
        self._known = known
        # The longest first: one may be a part of another.
        self._parts = sorted(parts, key=len, reverse=True)
        self._left = _MAX_VALUES

    def fields(self, event: Mapping[str, Any], depth: int = _MAX_DEPTH) -> dict[str, Any]:
        """Return a copy with nothing secret in it, and every value bounded."""
        found: dict[str, Any] = {}
        for count, (key, value) in enumerate(event.items()):
            if count == _MAX_ITEMS:
                found["..."] = f"{len(event) - count} more"
                break
            name = self.text(str(key))
            found[name] = HIDDEN if is_secret(str(key)) else self._value(value, depth)
        return found

    def text(self, words: str) -> str:
        # Before anything is cut: what is left of a secret is a secret.
        for part in self._parts:
            if part in words:
                words = words.replace(part, HIDDEN)
        if words in self._known:
            return HIDDEN
        # Cut first: a pattern must not be run over megabytes of somebody's output.
        cut = words[: 4 * _MAX_TEXT]
        # Whatever has one of the forms has one of these; most words have none, and cost little.
        if " " in cut or "://" in cut or "agd_" in cut or "eyJ" in cut:
            for pattern, instead in _FORMS:
                cut = pattern.sub(instead, cut)
        if len(cut) > _MAX_TEXT:
            cut = f"{cut[:_MAX_TEXT]}... ({len(words)} characters)"
        return cut if cut.isprintable() else "".join(map(_plain, cut))

    def _value(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            return "..."
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return self._number(value)
        # Deeper ones are not written as a text, in which no name would hide a value.
        if isinstance(value, Mapping):
            return self.fields(value, depth - 1) if depth else f"... {len(value)} members"
        if isinstance(value, list | tuple | set | frozenset):
            return self._items(list(value), depth) if depth else f"... {len(value)} items"
        if isinstance(value, bytes | bytearray | memoryview):
            return f"{len(value)} bytes"  # output or a file of somebody's, never a word of ours
        return self.text(str(value))

    def _items(self, values: list[Any], depth: int) -> list[Any]:
        found = [self._value(item, depth - 1) for item in values[:_MAX_ITEMS]]
        return found if len(values) <= _MAX_ITEMS else [*found, f"... {len(values)} items"]

    def _number(self, value: float) -> Any:
        if isinstance(value, int) and value.bit_length() > 64:
            return f"an integer of {value.bit_length()} bits"
        return HIDDEN if self._known and str(value) in self._known else value


def _plain(char: str) -> str:
    """Replace control characters beyond ASCII, and lone surrogates. JSON encoders escape the
    controls of ASCII, and leave those beyond it as they are: a terminal obeys them, and some
    readers end a line at one. Lone surrogates are no UTF-8."""
    return char if char.isprintable() or char < " " else ascii(char)[1:-1]


def fields(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with nothing secret in it, by names and looks, and every value bounded."""
    return Redactor().fields(event)


def text(words: str) -> str:
    return Redactor().text(words)


@functools.lru_cache(4096)
def is_secret(name: str) -> bool:
    return any(part.lower() in _SECRET_WORDS for part in _PART.findall(name)) or (
        "apikey" in name.lower()
    )
