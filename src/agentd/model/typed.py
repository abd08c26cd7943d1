"""JSON into types, from any thread.

msgspec learns a type's fields when the type is first used, and lets other threads see what it has
of them so far: two that use a new type at once can end the process (SIGSEGV, msgspec 0.22). Here
one thread learns it, and the others wait.
"""

import threading
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")
_lock = threading.Lock()
_decoders: dict[Any, "msgspec.json.Decoder[Any]"] = {}


@overload
def decoder(kind: type[T]) -> "msgspec.json.Decoder[T]": ...
@overload
def decoder(kind: Any) -> "msgspec.json.Decoder[Any]": ...
def decoder(kind: Any) -> "msgspec.json.Decoder[Any]":
    """Return the decoder of a type that is written in our source: each is kept."""
    found = _decoders.get(kind)
    if found is None:
        with _lock:
            found = _decoders.get(kind)
            if found is None:
                found = _decoders[kind] = msgspec.json.Decoder(kind)
    return found


@overload
def convert(value: object, kind: type[T]) -> T: ...
@overload
def convert(value: object, kind: Any) -> Any: ...
def convert(value: object, kind: Any) -> Any:
    """As msgspec.convert. Raises msgspec.ValidationError."""
    decoder(kind)
    return msgspec.convert(value, kind)
