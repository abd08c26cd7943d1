"""What comes after the question mark: each parameter declared, unknown ones refused."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from agentd.model.errors import InvalidInput

_MOST = 64
_TAKES: Mapping[type | str, str] = {
    int: "a whole number, in decimal",
    bool: "true or false",
    "mode": "an octal number, as 644",
}


class Parameter(msgspec.Struct, frozen=True):
    """``kind`` is str, int, bool, or "mode" for an octal number. One without a default is
    required. ``repeat`` makes it a tuple."""

    name: str
    kind: type | str = str
    default: Any = msgspec.UNSET
    repeat: bool = False
    help: str = ""


def parse(query: bytes, declared: Sequence[Parameter]) -> dict[str, Any]:
    """Raises InvalidInput."""
    if not query:
        return {p.name: _value(p, None) for p in declared}
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST, errors="strict"
        )
    except ValueError as error:
        raise InvalidInput("the query is malformed", cause=str(error)) from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    known = {p.name for p in declared}
    for name in given.keys() - known:
        raise InvalidInput(
            f"there is no query parameter {name[:64]!r}",
            remediation=f"there are: {', '.join(sorted(known)) or 'none'}",
        )
    return {p.name: _value(p, given.get(p.name)) for p in declared}


def _value(parameter: Parameter, given: list[str] | None) -> Any:
    if given is None:
        if parameter.default is msgspec.UNSET:
            raise InvalidInput(f"the query parameter {parameter.name!r} is missing")
        return parameter.default
    values = tuple(_convert(parameter, text) for text in given)
    if parameter.repeat:
        return values
    if len(values) > 1:
        raise InvalidInput(f"the query parameter {parameter.name!r} is there twice")
    return values[0]


def _convert(parameter: Parameter, text: str) -> Any:
    kind = parameter.kind
    if kind is bool:
        found = {"true": True, "1": True, "": True, "false": False, "0": False}.get(text.lower())
        if found is not None:
            return found
    elif kind is int:
        # int() would take "1_0", " 1" and digits of other scripts.
        if text.isascii() and text.isdigit() and len(text) < 19:
            return int(text)
    elif kind == "mode":
        if 1 <= len(text) <= 5 and not set(text) - set("01234567") and int(text, 8) <= 0o7777:
            return int(text, 8)
    else:
        if "\0" in text:
            raise InvalidInput(f"the query parameter {parameter.name!r} has a zero byte in it")
        return text
    told = f"the query parameter {parameter.name}={text[:64]!r} cannot be read"
    raise InvalidInput(told, remediation=f"give {_TAKES[kind]}")


def labels(pairs: Sequence[str]) -> Mapping[str, str]:
    """Read labels from ``k=v`` texts. Raises InvalidInput."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InvalidInput(f"label={pair[:64]!r} is not of the form key=value")
        found[key] = value
    return found
