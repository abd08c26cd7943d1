"""What helps where a body does not fit: the field that was meant, or those that there are."""

import re
from difflib import get_close_matches
from typing import Any, get_args

import msgspec

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]{0,64})`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]{0,64})`")
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`\Z")
_INDEX = re.compile(r"\[[^]]*\]")  # in what is listed


def remediation(kind: Any, said: str) -> str:
    """Say the fix: ``kind`` is the body's type, ``said`` what msgspec found wrong with it."""
    if not _is_struct(kind):
        return ""
    path = _path(said)
    where = _at(kind, path)
    prefix = "".join(f"{part}." for part in path)
    if where is not None and (unknown := _UNKNOWN.match(said)):
        return _meant(where, unknown["name"], prefix)
    if where is not None and (missing := _MISSING.match(said)):
        return f"give {prefix}{missing['name']}; the fields are: {', '.join(_names(where))}"
    return f"the fields of {kind.__name__} are in docs/api.md, and in /openapi.json"


def _meant(kind: Any, name: str, prefix: str) -> str:
    for field in msgspec.structs.fields(kind):
        inner = _struct_of(field.type)
        if inner is not None and name in _names(inner):
            nested = f'{{"{field.encode_name}": {{"{name}": ...}}}}'
            return f"did you mean {prefix}{field.encode_name}.{name}? write it as {nested}"
    near = get_close_matches(name, _names(kind), n=1)
    known = f"the fields are: {', '.join(_names(kind))}"
    return f"did you mean {prefix}{near[0]}? {known}" if near else known


def _at(kind: Any, path: list[str]) -> Any:
    """Return the type of what is at ``path``, if its fields are known."""
    for part in path:
        types = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        kind = _struct_within(types.get(_INDEX.sub("", part)))
        if kind is None:
            return None
    return kind


def _path(said: str) -> list[str]:
    found = _AT.search(said)
    return [part for part in found["path"].split(".") if part] if found else []


def _names(kind: Any) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def _struct_of(kind: Any) -> Any:
    return next((each for each in (kind, *get_args(kind)) if _is_struct(each)), None)


def _struct_within(kind: Any) -> Any:
    """Return the type of fields that a value, or what it lists, may have."""
    inner = (_struct_within(each) for each in get_args(kind))
    return kind if _is_struct(kind) else next((each for each in inner if each is not None), None)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
