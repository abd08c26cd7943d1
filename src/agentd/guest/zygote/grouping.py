"""Lays the code that every sandbox runs side by side, so that its forked copies write to few pages.

The interpreter counts in the bytecode itself, at jumps and at whatever it could not specialise
(Python/bytecodes.c). As modules are imported their functions lie far apart, and a forked copy gets
a page of its own for nearly each that it runs. Here the code of those that write to themselves is
moved together, byte for byte, with all that the interpreter has learned about it.

A code object refers to itself nowhere and the collector does not know it (Include/cpython/code.h),
so a copy that is never freed is as good as the original, as long as that is not freed either.
"""

import ctypes
import gc
import sys
from collections.abc import Iterable
from types import CodeType, FunctionType

from agentd.guest.zygote import immortal

_PAGE = 4096
_ALIGNMENT = 16
_POINTER = 8
# PyFunctionObject.func_code and PyTupleObject.ob_item, in bytes from the object's begin.
_FUNC_CODE = 48
_OB_ITEM = 24

Watched = list[tuple[CodeType, bytes]]


def watch() -> Watched:
    """All code as it is now; that of functions in the permanent generation is not seen."""
    return [(code, _bytecode(code)) for code in _all_code()]


def written_to(before: Watched) -> list[CodeType]:
    """The code that has written to itself since."""
    return [code for code, bytecode in before if _bytecode(code) != bytecode]


def group(codes: Iterable[CodeType]) -> list[object]:
    """Move these together, in this order. A call that is running goes on in the old place.

    Returns what must never be freed. Does nothing where the interpreter is not known.
    """
    if not supported():
        return []
    old = list({id(code): code for code in codes}.values())
    sizes = [-(-code.__sizeof__() // _ALIGNMENT) * _ALIGNMENT for code in old]
    room = ctypes.create_string_buffer(sum(sizes) + _PAGE)
    place = -(-ctypes.addressof(room) // _PAGE) * _PAGE
    moves: dict[int, int] = {}
    for code, size in zip(old, sizes, strict=True):
        ctypes.memmove(place, id(code), code.__sizeof__())
        immortal.make_immortal(place)
        moves[id(code)] = place
        place += size
    _redirect(moves)
    return [room, old]


def supported() -> bool:
    """Whether code and functions are laid out as is assumed here: tried with CPython 3.13. The one
    before counts no jumps, so there is little to be won.

    Not with a JIT, which notes where the code is (this symbol is only in an interpreter with one).
    """
    return (
        immortal.supported()
        and sys.version_info[:2] == (3, 13)
        and not hasattr(ctypes.pythonapi, "_Py_Executors_InvalidateAll")
        and _pointer(id(_bytecode) + _FUNC_CODE).value == id(_bytecode.__code__)
    )


def _redirect(moves: dict[int, int]) -> None:
    """In functions and in the constants of what makes functions. A call then finds the new place.

    Not by assigning ``__code__``: that is a function which is changed, and not specialised again.
    """
    for code in _all_code():
        for index, constant in enumerate(code.co_consts):
            if id(constant) in moves:
                _pointer(id(code.co_consts) + _OB_ITEM + index * _POINTER).value = moves[
                    id(constant)
                ]
    for function in _functions():
        new = moves.get(id(function.__code__))
        if new is not None:
            _pointer(id(function) + _FUNC_CODE).value = new


def _all_code() -> list[CodeType]:
    found: dict[int, CodeType] = {}
    left = [function.__code__ for function in _functions()]
    while left:
        code = left.pop()
        if id(code) not in found:
            found[id(code)] = code
            left += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return list(found.values())


def _functions() -> list[FunctionType]:
    return [thing for thing in gc.get_objects() if isinstance(thing, FunctionType)]


def _bytecode(code: CodeType) -> bytes:
    """With the interpreter's counts and caches in it."""
    bytecode: bytes = code._co_code_adaptive  # type: ignore[attr-defined]
    return bytecode


_pointer = ctypes.c_void_p.from_address
