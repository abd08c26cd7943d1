"""What callers give, looked at where they give it: a wrong type is told by the argument's name, and
not as a TypeError deep inside. Each raises InvalidInput."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from agentd.model.errors import InvalidInput

T = TypeVar("T")

BYTES = (bytes, bytearray, memoryview)
_PIECE = 1 << 20
MOST = (1 << 63) - 1  # what an offset may be


def stdin(value: bytes | str | None) -> bytes | None:
    """Return it as UTF-8."""
    if value is not None and not isinstance(value, (str, *BYTES)):
        raise wrong("stdin", value, "text or bytes")
    return value.encode() if isinstance(value, str) else value


def feed(value: bytes | str) -> bytes:
    """Return the bytes of what is written to a command that runs."""
    if not isinstance(value, (str, *BYTES)):
        raise wrong("data", value, "text or bytes")
    return value.encode() if isinstance(value, str) else value


def flags(**given: bool) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise wrong(name, value, "True or False")


def time(value: "str | float | None", name: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int, float))):
        raise wrong(name, value, "seconds or text", "write it as 30 or 10m")


def finite(body: object) -> None:
    """Look at the numbers in a body, whose fields and items are looked at too."""
    inside: list[tuple[str, object]] = [("", body)]
    while inside:
        name, item = inside.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise InvalidInput(
                f"{name or 'what is asked'} holds {item}, and JSON has no value for that",
                remediation="send finite numbers, or leave it out",
            )
        if isinstance(item, Mapping):
            inside += ((name or str(key), value) for key, value in item.items())
        elif isinstance(item, (list, tuple, set, frozenset)):
            inside += ((name, value) for value in item)
        else:
            fields = getattr(item, "__struct_fields__", getattr(item, "__dataclass_fields__", ()))
            inside += ((field, getattr(item, field, None)) for field in fields)


def function(value: "Callable[..., object] | None", name: str) -> None:
    if value is not None and not callable(value):
        raise wrong(name, value, "a function")


def open_stdin(value: bool) -> bool:
    if not isinstance(value, bool):
        raise wrong("stdin", value, "True or False", "write to the command; or run(stdin=...)")
    return value


def content(value: Any) -> Any:
    """Return what is written to a file: bytes, or an iterator of them."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, BYTES):
        return value
    if isinstance(value, Mapping) or not (hasattr(value, "read") or isinstance(value, Iterable)):
        raise wrong("data", value, "text, bytes, an iterable of bytes, or a file opened as 'rb'")
    return pieces(value)


def pieces(value: Any) -> Iterator[bytes]:
    """Yield what an iterable or an open file has, looked at piece by piece."""
    if hasattr(value, "read"):
        found = iter(lambda: value.read(_PIECE) or None, None)
    else:
        found = iter(value)
    for piece in found:
        if not isinstance(piece, BYTES):
            raise wrong("a piece of data", piece, "bytes", "encode it; open files as 'rb'")
        yield bytes(piece)


def path(value: str | os.PathLike[str], name: str = "path") -> str:
    """Return a path inside."""
    return _path(value, name, "write it as /workspace/file")


def host_path(value: str | os.PathLike[str], name: str = "host_path") -> str:
    return _path(value, name, "name a file or folder of this machine")


def _path(value: Any, name: str, fix: str) -> str:
    text = value.__fspath__() if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise wrong(name, value, "text or a path of text", fix)
    return text


def integer(value: int, name: str, fix: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(name, value, "a whole number", fix)
    return value


def whole(value: int, name: str, least: int, most: int) -> int:
    integer(value, name, f"give {least} to {most}")
    if not least <= value <= most:
        raise InvalidInput(f"{name} {value} is out of range", remediation=f"give {least} to {most}")
    return value


def mode(value: int) -> int:
    integer(value, "mode", "write it as 0o644")
    if not 0 <= value <= 0o7777:
        raise InvalidInput(f"mode {value:#o} is no mode of a file", remediation="write it as 0o644")
    return value


def text(value: str, name: str, fix: str = "") -> str:
    if not isinstance(value, str):
        raise wrong(name, value, "text", fix)
    return value


def mapping(value: "Mapping[str, T] | None", name: str, fix: str) -> "Mapping[str, T]":
    """Return ``value``, a mapping of names, or an empty one. Raises InvalidInput."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise wrong(name, value, "a mapping of names to values", fix)
    return value


def labels(value: Mapping[str, str] | None) -> dict[str, str]:
    """Return the labels of a new sandbox, those of none as none. Raises InvalidInput."""
    return dict(_labels(value))


def other_labels(value: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return labels to set, or with None to take away. Raises InvalidInput."""
    return dict(_labels(value, str, type(None)))


def _labels(value: "Mapping[str, T] | None", *types: type) -> "Mapping[str, T]":
    found = mapping(value, "labels", 'write them as {"job": "7"}')
    for key, text in found.items():
        if not isinstance(text, types or str):
            raise wrong(f"label {key!r}", text, "text", f'write it as {{"{key}": "{text}"}}')
    return found


def attached(process: str, cursors: Mapping[str, int] | None) -> tuple[str, Mapping[str, int]]:
    text(process, "process", "it looks like prc-0123456789abcdef")
    found = mapping(cursors, "cursors", 'write them as {"stdout": 0}')
    for stream, at in found.items():
        whole(at, f"the cursor of {stream}", 0, MOST)
    return process, found


def called(capability: str, parameters: Mapping[str, Any] | None, bundle: str) -> Mapping[str, Any]:
    """Return a call's parameters."""
    text(capability, "capability", "name one, as fs.read.v1")
    text(bundle, "bundle", "give the digest of a policy's bundle")
    fix = (
        'write them as {"path": "a.txt"}; one that is itself named parameters stands in there, too'
    )
    return mapping(parameters, "parameters", fix)


def wrong(name: str, value: object, wanted: str, fix: str = "") -> InvalidInput:
    kind = type(value).__name__
    what = "None" if value is None else f"of type {kind}"
    return InvalidInput(
        f"{name} is {what}, and takes {wanted}", remediation=fix or f"give {wanted}"
    )
