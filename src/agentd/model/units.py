"""Sizes and times as people write them: ``128M``, ``1.5G``, ``2s``, ``250ms``, ``1h30m``."""

import math
import re

from agentd.model.errors import InvalidInput

_SIZE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIME = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# Other words for units of time, each with an s too.
_WORDS = {
    **{"msec": "ms", "millisecond": "ms", "sec": "s", "second": "s"},
    **{"min": "m", "minute": "m", "hr": "h", "hour": "h", "day": "d"},
}
_PART = r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*"
_PARTS = re.compile(rf"\A(?:{_PART})+\Z", re.ASCII)
_EACH_PART = re.compile(_PART, re.ASCII)
_NUMBER = re.compile(r"\A(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z", re.ASCII)
MAX_COUNT = 1 << 31
_MAX_TEXT = 100  # characters of what is a size, a number or a time


def parse_size(text: str | int, what: str = "size", least: int = 1) -> int:
    """Read bytes from ``128M`` (binary units; ``MB`` and ``MiB`` are the same).

    Raises InvalidInput for anything else, for zero, and for more than 2**63 - 1. ``least`` is what
    the caller takes, for the words of that error.
    """
    # A float is no size: of what fraction of a byte, or as 1.5 of which unit?
    match = None if isinstance(text, float) else _NUMBER.match(_written(text))
    unit = re.sub(r"I?B\Z", "", match[2].upper()) if match else ""
    if match is None or unit not in _SIZE:
        raise InvalidInput(
            f"{what} {_shown(text)} is not a size", remediation="write it as 512K, 128M or 2G"
        )
    # Whole numbers exactly: a float has 53 bits.
    number = int(match[1]) if match[1].isdecimal() else float(match[1])
    value = int(number * _SIZE[unit])
    if not 0 < value < 1 << 63:
        fix = f"at least {readable_size(least)}" if value < 1 else f"at most {(1 << 63) - 1} bytes"
        raise InvalidInput(f"{what} {text!r} is out of range", remediation=f"give {fix}")
    return value


def _written(value: object) -> str:
    """As text, "" where it is too long for anything that is read here: Python makes no number of
    thousands of digits of a text, and no text of such a number."""
    if isinstance(value, int) and value.bit_length() > 3 * _MAX_TEXT:
        return ""
    text = str(value).strip()
    return text if len(text) <= _MAX_TEXT else ""


def _shown(value: object) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]!r}..."
    return repr(value) if _written(value) else f"of type {type(value).__name__}, and so long,"


def parse_count(text: str | int, what: str = "count", least: int = 1, most: int = MAX_COUNT) -> int:
    """Read a whole number, in the ten digits of ASCII. Raises InvalidInput for any other."""
    digits = _written(text)
    whole = digits.isascii() and digits.isdigit() and len(digits) < 20
    if not whole or not least <= int(digits) <= most:
        raise InvalidInput(
            f"{what} {_shown(text)} is not a count",
            remediation=f"give a number from {least} to {most}",
        )
    return int(digits)


def parse_duration(text: str | float, what: str = "duration") -> float:
    """Read seconds from ``250ms``, ``2s``, ``10 min``, ``1h30m`` or a bare number of seconds.

    Raises InvalidInput for anything else, for less than a millisecond, and for more than a year.
    """
    # A float is written by Python as 1e-05 where it is small, which nobody writes.
    value = text if isinstance(text, float) and text >= 0 else _seconds(_written(text))
    if value is None:
        raise InvalidInput(
            f"{what} {_shown(text)} is not a time",
            remediation="write it as 250ms, 2s, 10m or 1h30m",
        )
    if not 0.001 <= value <= 366 * 86400:
        raise InvalidInput(f"{what} {text!r} is out of range", remediation="between 1ms and 366d")
    return value


def parse_wait(text: str | float, most: float, what: str = "wait") -> float:
    """Read how long to wait: as parse_duration does, and 0 in any unit, which is not at all.

    Raises InvalidInput for anything else, and for more than ``most``, which is said.
    """
    seconds = _seconds(_written(text))
    if seconds == 0:
        return 0.0
    if seconds is None or seconds <= most:
        return parse_duration(text, what)
    raise InvalidInput(
        f"{what} of {format_duration(seconds)} is more than the {format_duration(most)} allowed",
        remediation="wait for less, and ask again",
    )


def _seconds(text: str) -> float | None:
    """None for what is no time. Of several units the larger comes first, and each once."""
    if match := _NUMBER.match(text):
        parts = [(match[1], match[2])]
    elif _PARTS.match(text):
        parts = _EACH_PART.findall(text)
    else:
        return None
    value, last = 0.0, math.inf
    for number, word in parts:
        unit = word.lower()
        unit = unit if unit in _TIME else _WORDS.get(unit.removesuffix("s"), unit)
        size = _TIME.get(unit, math.inf)
        if size >= last:
            return None
        value, last = value + float(number) * size, size
    return value


def format_duration(seconds: float) -> str:
    """As people write it: the largest unit that it is a whole number of, ``30d``, ``90s``, and
    ``250ms`` or ``1.5s`` where it is no whole number of seconds."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit in ("d", "h", "m"):
        if seconds % _TIME[unit] == 0:
            return f"{seconds / _TIME[unit]:.0f}{unit}"
    return f"{seconds:.10g}s"


def counted(count: int, one: str, more: str = "") -> str:
    """Write a count with its noun: ``1 file``, ``2 files``. ``more`` is what adds no s."""
    return f"{count} {one if count == 1 else more or f'{one}s'}"


def readable_size(value: float) -> str:
    """Write a size for a person: ``32 GiB``, ``1.5 MiB``, ``1 byte``."""
    for unit in ("T", "G", "M", "K"):
        if value >= _SIZE[unit]:
            return f"{value / _SIZE[unit]:.4g} {unit}iB"
    return f"{value:g} byte{'' if value == 1 else 's'}"


def format_size(value: int) -> str:
    """Return the shortest exact binary form: ``128M``, ``1536K``, ``1000``."""
    for unit in ("T", "G", "M", "K"):
        if value and value % _SIZE[unit] == 0:
            return f"{value // _SIZE[unit]}{unit}"
    return str(value)
