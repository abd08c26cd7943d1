"""Makes every object of this process immortal, so that its forked copies share the pages.

A reference count lies in its object, so a forked copy writes to, and thereby copies, every page
with an object that it merely looks at. Since Python 3.12 a count of a certain value is never
written again (PEP 683). The interpreter has no call for that, so the value is put there here; what
it means is in Include/object.h (3.12, 3.13) and Include/refcount.h (3.14). An immortal object is as
mutable as it was; it is never freed.
"""

import ctypes
import gc
import sys
from types import CodeType

# Lower half of the count. Its sign bit is what Py_DECREF looks at; one more is zero, which is what
# Py_INCREF of 3.12 and 3.13 looks at; 3.14 takes anything from 3 << 30 on.
_IMMORTAL = 0xFFFFFFFF
_KNOWN = ((3, 12), (3, 13), (3, 14))


def supported() -> bool:
    """Return whether the counts of this interpreter are known: CPython 3.12 to 3.14, 64 bits, with
    GIL."""
    return (
        sys.implementation.name == "cpython"
        and sys.version_info[:2] in _KNOWN
        and sys.maxsize > 1 << 32
        and sys.byteorder == "little"
        and "t" not in sys.abiflags  # free-threaded: the count is in two other fields
        and "d" not in sys.abiflags  # a debug build counts its counts
    )


def immortalise() -> int:
    """Every object that the collector knows, and what those refer to; returns how many.

    Does nothing, and returns 0, where the interpreter is not ``supported``. Objects in the
    collector's permanent generation are not seen: call it before ``gc.freeze``.
    """
    if not supported():
        return 0
    addresses: set[int] = set()
    found = gc.get_objects()
    while found:
        fresh = [thing for thing in found if id(thing) not in addresses]
        addresses.update(map(id, fresh))
        found = [inner for thing in fresh for inner in _within(thing)]
    for address in addresses - {id(addresses)}:
        make_immortal(address)
    return len(addresses)


def make_immortal(address: int) -> None:
    """Makes the object at this address so; only where the interpreter is ``supported``."""
    ctypes.c_uint32.from_address(address).value = _IMMORTAL


def _within(thing: object) -> list[object]:
    """Return what ``thing`` refers to. The collector does not look into code.

    Only what a code object holds already: its other attributes are made when they are asked for.
    """
    if not isinstance(thing, CodeType):
        return gc.get_referents(thing)
    return [
        thing.co_consts,
        thing.co_exceptiontable,
        thing.co_filename,
        thing.co_linetable,
        thing.co_name,
        thing.co_names,
        thing.co_qualname,
    ]
