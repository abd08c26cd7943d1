"""Protocol v1, sans I/O: one JSON request a line, one JSON reply a line; docs/guest-protocol.md.

The first agent parsed with Rust's serde_json. Where Python's ``json`` is laxer or stricter, the
rules here are serde's.
"""

import base64
import gc
import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

# The first agent had no bound, and took 20 MB. A small machine's is smaller: see budget.py.
MAX_LINE = 32 << 20
# An empty object takes three bytes of a line, and some 130 of memory. A program can be given two
# million arguments at the most (execve(2)). A small machine's is smaller, too.
MAX_VALUES = 1 << 20
MAX_OUTPUT = 64 << 20
# epoll counts its wait in milliseconds in an int: about 23 days fit.
MAX_TIMEOUT_MS = 2_000_000_000

# Unicode's White_Space property. str.strip() alone would also take U+001C to U+001F.
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_FIELDS = ("command", "args", "cwd", "env", "stdin")
_KNOWN = frozenset({*_FIELDS, "timeout_ms"})
# Python refuses to convert decimal numbers of more than 4300 digits, an unknown field may hold one.
_MAX_DIGITS = 18
# One match for each array, object and further element, and two at the end. What texts hold is
# passed over, to the end where a quote is missing: it always matches, so nothing is seen twice.
_VALUE = re.compile(r'(?:[^",\[{]++|"(?:[^"\\]++|\\.?)*+"?)*+(?:[,\[{]|\Z)', re.DOTALL)
# Raw bytes a piece of a reply; a multiple of three, so that padding comes only at the end.
_PIECE = 48 << 10


class InvalidRequest(Exception):
    """The line is no request; the message says why, for the reply's ``error``."""


class NotText(Exception):
    """The line is not UTF-8: the connection ends without a reply."""


class V1Request(NamedTuple):
    """A v1 request to run a command. No text holds a surrogate, all may hold NUL.

    ``env`` is merged over the agent's environment; names may be empty or hold ``=``. ``cwd`` None
    is the agent's directory, ``stdin`` None is /dev/null and ``b""`` an empty pipe.
    """

    command: str
    args: tuple[str, ...]
    cwd: str | None
    env: dict[str, str]
    stdin: bytes | None
    timeout_ms: int | None


class _Object:
    """A JSON object as parsed: pairs in order, duplicates kept."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        self.pairs = pairs


class _Huge:
    """A number that is not converted."""


_HUGE = _Huge()


def is_blank(line: bytes) -> bool:
    """Return whether the line holds Unicode white space only. Raises NotText."""
    return not _decode(line).strip(_WHITE_SPACE)


def parse_request(line: bytes, max_values: int = MAX_VALUES) -> V1Request:
    """Parses a line, with or without its newline. Raises InvalidRequest, or NotText for no UTF-8.

    The first agent trimmed a line as Rust does, and gave its JSON library the rest.
    """
    text = _decode(line).strip(_WHITE_SPACE)
    if _has_more_values(text, max_values):
        raise InvalidRequest(f"it has over {max_values} values: give fewer arguments or fields")
    value = _parse_json(text)
    if isinstance(value, _Object):
        fields = _unique_fields(value)
    elif isinstance(value, list):
        fields = _positional_fields(value)
    else:
        raise InvalidRequest(f"expected an object, got {_kind(value)}")
    if "command" not in fields:
        raise InvalidRequest("missing field `command`")
    stdin = _optional_text(fields.get("stdin"), "stdin")
    return V1Request(
        command=_text(fields["command"], "command"),
        args=_texts(fields.get("args", [])),
        cwd=_optional_text(fields.get("cwd"), "cwd"),
        env=_environment(fields.get("env", _Object([]))),
        stdin=None if stdin is None else stdin.encode(),
        timeout_ms=_timeout(fields.get("timeout_ms")),
    )


def spawn_error(number: int, text: str = "") -> str:
    """Says ``error`` of a command that was not started: the kernel's error number, or a text."""
    reason = f"{os.strerror(number)} (os error {number})" if number else text
    return f"Failed to spawn process: {reason}"


def reply_pieces(
    exit_code: int, stdout: bytes | bytearray, stderr: bytes | bytearray, error: str | None
) -> Iterator[bytes]:
    """Yields a reply in pieces of 64 KiB at most: large outputs are not held in several copies."""
    yield b'{"exit_code":%d,"stdout":"' % exit_code
    yield from _base64_pieces(stdout)
    yield b'","stderr":"'
    yield from _base64_pieces(stderr)
    text = "null" if error is None else json.dumps(error, ensure_ascii=False)
    yield b'","error":%s}\n' % text.encode("utf-8", "replace")


class LineBuffer:
    """Bytes in, lines out. A line over ``limit`` comes out as None, once, and its rest is dropped.

    Holds at most ``limit`` bytes and what one ``feed`` brought.
    """

    def __init__(self, limit: int = MAX_LINE) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._dropping = False

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data
        if self._dropping:
            self._drop()

    def lines(self) -> Iterator[bytes | None]:
        """Yields complete lines, newline included, until more must be fed."""
        while not self._dropping:
            end = self._buffer.find(b"\n", self._searched) + 1
            if not end and len(self._buffer) <= self.limit:
                self._searched = len(self._buffer)
                return
            self._searched = 0
            if end and end - 1 <= self.limit:
                yield self._take(end)
                continue
            self._dropping = True
            self._drop()
            yield None

    def rest(self) -> bytes:
        """Returns the last line of a stream that ended without a newline, or nothing."""
        return b"" if self._dropping else self._take(len(self._buffer))

    def _take(self, end: int) -> bytes:
        line = bytes(memoryview(self._buffer)[:end])
        del self._buffer[:end]
        return line

    def _drop(self) -> None:
        end = self._buffer.find(b"\n") + 1
        self._dropping = not end
        del self._buffer[: end or len(self._buffer)]


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise NotText(f"line is not UTF-8 at byte {error.start}") from None


def _has_more_values(text: str, limit: int) -> bool:
    if sum(map(text.count, ",[{")) <= limit:
        return False
    return next(islice(_VALUE.finditer(text), limit + 2, None), None) is not None


def _parse_json(text: str) -> object:
    # The collector would go over all that is made again and again, and there is nothing to collect.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{error.msg.lower()} at column {error.colno}") from None
    except RecursionError:
        raise InvalidRequest("nested too deep") from None
    finally:
        if collecting:
            gc.enable()


def _refuse_constant(name: str) -> object:
    raise InvalidRequest(f"{name} is not JSON")


def _integer(digits: str) -> object:
    return int(digits) if len(digits) <= _MAX_DIGITS else _HUGE


def _unique_fields(value: _Object) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, field in value.pairs:
        _text(name, "a field name")
        if name in fields and name in _KNOWN:
            raise InvalidRequest(f"duplicate field `{name}`")
        fields[name] = field
    return fields


def _positional_fields(values: list[object]) -> dict[str, object]:
    if len(values) > len(_FIELDS):
        raise InvalidRequest(f"expected {len(_FIELDS)} elements at most, got {len(values)}")
    return dict(zip(_FIELDS, values, strict=False))


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string, got {_kind(value)}")
    try:
        # Free for ASCII, and for others a tenth of what a search by a regular expression costs.
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name} holds a lone surrogate") from None
    return value


# Made once: json.loads makes one for each call that has hooks.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_Object,
    parse_constant=_refuse_constant,
    parse_int=_integer,
    parse_float=lambda _: _HUGE,
)


def _optional_text(value: object, name: str) -> str | None:
    return None if value is None else _text(value, name)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidRequest(f"args must be an array of strings, got {_kind(value)}")
    return tuple(_text(item, "an element of args") for item in value)


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, _Object):
        raise InvalidRequest(f"env must be an object of strings, got {_kind(value)}")
    return {_text(k, "a name in env"): _text(v, "a value in env") for k, v in value.pairs}


def _timeout(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TIMEOUT_MS:
        raise InvalidRequest(f"timeout_ms must be an integer from 1 to {MAX_TIMEOUT_MS}")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "an array", _Object: "an object"}
    return names.get(type(value), "a number")


def _base64_pieces(data: bytes | bytearray) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(view), _PIECE):
        yield base64.b64encode(view[start : start + _PIECE])
