"""JSON into types, from any thread; and a value of one type made of another's fields.

msgspec learns a type's fields when the type is first used, and lets other threads see what it has
of them so far: two that use a new type at once can end the process (SIGSEGV, msgspec 0.22). Here
one thread learns it, and the others wait.
"""

import re
import threading
from itertools import islice
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
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


def like(kind: type[S], source: object, **others: Any) -> S:
    """Make a ``kind`` of ``others`` and, for the rest of its fields, of those that ``source`` has
    by the same names. Raises TypeError where one is missing that has no default."""
    rest = [name for name in kind.__struct_fields__ if name not in others]
    known = {name: getattr(source, name) for name in rest if hasattr(source, name)}
    return kind(**known, **others)


# One match for each array, object and further element, and two at the end. What texts hold is
# passed over, to the end where a quote is missing: it always matches, so nothing is seen twice.
_VALUE = re.compile(rb'(?:[^",\[{]++|"(?:[^"\\]++|\\.?)*+"?)*+(?:[,\[{]|\Z)', re.DOTALL)


def has_more_values(raw: bytes, most: int) -> bool:
    """Return whether the JSON in ``raw`` has more than ``most`` values, before any of them is made:
    three bytes of one, an empty object, take over a hundred of memory."""
    if sum(map(raw.count, (b",", b"[", b"{"))) <= most:
        return False
    return next(islice(_VALUE.finditer(raw), most + 2, None), None) is not None
