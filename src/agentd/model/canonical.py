"""Canonical JSON (RFC 8785, JCS): one sequence of bytes for a JSON value, to be signed or hashed.

Strict, both ways: whatever two programs could read as different values is refused. Numbers are
IEEE 754 doubles, as to RFC 8785 and I-JSON (RFC 7493): whole ones that they cannot tell apart are
refused, not rounded.
"""

import json
from json.encoder import encode_basestring as _quoted
from typing import Any, NoReturn

from agentd.model.errors import InvalidInput

MAX_DEPTH = 64  # objects and arrays in each other
MAX_BYTES = 16 << 20
MAX_WHOLE = (1 << 53) - 1  # RFC 7493 §2.2: beyond it two whole numbers share a double
_MAX_DIGITS = 400  # of a number's text; the longest double that a program prints has fewer


def canonical(value: Any) -> bytes:
    """Return the one form of ``value``: dict with text keys, list or tuple, str, int, float, bool,
    None.

    Raises InvalidInput for everything else, NaN and infinities, lone surrogates, whole numbers
    beyond 2**53, and what is nested deeper than MAX_DEPTH.
    """
    try:
        return _text(value, MAX_DEPTH).encode()
    except UnicodeEncodeError as error:
        raise _surrogate(error) from None


def loads_strict(data: bytes, *, limit: int = MAX_BYTES) -> Any:
    """Return a JSON value from UTF-8 text of at most ``limit`` bytes.

    ``canonical`` takes what this gives, and this gives the same again for what that made. Raises
    InvalidInput for what is no JSON, keys that are there twice, and what ``canonical`` refuses.
    """
    if len(data) > limit:
        raise InvalidInput(
            f"the JSON has {len(data)} bytes, and at most {limit} are read",
            remediation="send less, or a file of its own",
        )
    try:
        value = _decode(data.decode())
    except InvalidInput:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # of JSON, and of UTF-8
        raise InvalidInput(
            "this is no JSON", cause=str(error), remediation="write one value of it, in UTF-8"
        ) from None
    # What could nest too deeply, or spell a lone surrogate, has as many of these.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH or b"\\u" in data:
        canonical(value)
    return value


def _text(value: Any, left: int) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is dict:
        return _object(value, left)
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        if -MAX_WHOLE <= value <= MAX_WHOLE:
            return str(value)
        raise _too_large(value)
    if value is None:
        return "null"
    if kind is list or kind is tuple:
        if not left:
            raise _too_deep()
        # Most values are texts, here and below: they are written without a call of ours for each.
        items = [_quoted(v) if type(v) is str else _text(v, left - 1) for v in value]
        return f"[{','.join(items)}]"
    if kind is float:
        return number(value)
    raise InvalidInput(f"a {kind.__name__} is no JSON value")


def _object(value: dict[Any, Any], left: int) -> str:
    if not left:
        raise _too_deep()
    try:
        keys = sorted(value)
        if not "".join(keys).isascii():
            # RFC 8785 §3.2.3: by UTF-16 code units; code points beyond U+FFFF come in between.
            keys.sort(key=lambda key: key.encode("utf-16-be"))
    except UnicodeEncodeError as error:
        raise _surrogate(error) from None
    except TypeError:
        raise InvalidInput("a JSON object has texts as keys, and this one has others") from None
    members = [
        f"{_quoted(key)}:{_quoted(v) if type(v := value[key]) is str else _text(v, left - 1)}"
        for key in keys
    ]
    return f"{{{','.join(members)}}}"


def number(value: float) -> str:
    """Return a double as ECMAScript prints it (ECMA-262, Number::toString). Raises InvalidInput."""
    if value == 0:
        return "0"  # also the negative one
    text = repr(value)  # the shortest digits that give the same double again: ECMAScript's, too
    sign = "-" if text[0] == "-" else ""
    mantissa, _, exponent = text.removeprefix("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    if not whole.isdigit():
        raise InvalidInput(f"{text} is no JSON number", remediation="leave it out, or send a text")
    point = len(whole) + int(exponent or 0)  # where it stands, before zeros are dropped
    digits = (whole + fraction).lstrip("0")
    point -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    return sign + _placed(digits, point)


def _placed(digits: str, point: int) -> str:
    """``digits`` with the decimal point after the first ``point`` of them."""
    if len(digits) <= point <= 21:
        return digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{rest}e{point - 1:+d}"


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidInput(
            f"the key {twice[:64]!r} is there twice in one object", remediation="give it once"
        )
    return found


def _whole(text: str) -> int | float:
    if len(text) > _MAX_DIGITS:
        raise _too_large(text)
    value = int(text)
    if -MAX_WHOLE <= value <= MAX_WHOLE:
        return value
    # Written as a double is: then it is that double, and nothing is lost.
    double = float(text)
    if double in (float("inf"), float("-inf")) or number(double) != text:
        raise _too_large(text)
    return double


def _double(text: str) -> float:
    value = float(text) if len(text) <= _MAX_DIGITS else float("inf")
    if value in (float("inf"), float("-inf")):
        raise InvalidInput(f"the number {text[:32]} is larger than a double can be")
    return value


def _constant(text: str) -> NoReturn:
    raise InvalidInput(f"{text} is no JSON number", remediation="leave it out, or send a text")


_decode = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_whole, parse_float=_double, parse_constant=_constant
).decode


def _too_large(value: str | int) -> InvalidInput:
    # A huge int has no text: int.__str__ refuses.
    text = value[:32] if isinstance(value, str) else f"of {value.bit_length()} bits"
    return InvalidInput(
        f"the whole number {text} is beyond 2**53",
        cause="programs that read JSON round it, each in its own way",
        remediation="send it as a text",
    )


def _too_deep() -> InvalidInput:
    return InvalidInput(
        f"the JSON is nested deeper than {MAX_DEPTH} levels", remediation="flatten it"
    )


def _surrogate(error: UnicodeEncodeError) -> InvalidInput:
    return InvalidInput(
        "a text of the JSON has half of a surrogate pair",
        cause=f"at character {error.start}",
        remediation="send text, or bytes as base64",
    )
