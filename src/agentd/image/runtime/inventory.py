"""What the agent is made of on this host: run by its interpreter, which has then loaded it all.

Standard library only, under ``-I -S -E``, and as little of it as can be, as that goes along. The
arguments are modules to import: the agent's, and what they import. ``parts`` reads what it prints.
"""

import ctypes
import importlib
import json
import os
import sys
from _frozen_importlib_external import PathFinder
from typing import Any

# Imported by the interpreter or the library by name, late or under some circumstances only.
_LATE = (
    *("encodings.aliases", "encodings.ascii", "encodings.latin_1", "encodings.utf_8"),
    *("traceback", "linecache", "tokenize", "warnings", "threading"),
)
# What a part of the library would like to have, and does without: OpenSSL and compressors.
_LEFT_OUT = ("_hashlib", "_ssl", "_bz2", "_lzma", "_uuid", "readline")
_LOADERS = ("ld-", "ld64.")


def main() -> None:
    """Print one JSON object: see ``parts.Inventory``."""
    absent: dict[str, Any] = dict.fromkeys(_LEFT_OUT)
    sys.modules.update(absent)  # an import of them fails
    for name in (*_LATE, *sys.argv[1:]):
        importlib.import_module(name)
    print(json.dumps(_inventory()))


def _inventory() -> dict[str, object]:
    stdlib = os.path.dirname(os.__file__)
    modules, extensions = {}, {}
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.name != name:
            path = _replaced(name)
        if path is None or name.partition(".")[0] in ("agentd", "__main__"):
            continue
        if path.endswith(".so"):
            extensions[os.path.basename(path)] = path
        elif path.startswith(stdlib + os.sep):
            modules[os.path.relpath(path, stdlib)] = path
    libraries = _libraries(set(map(os.path.realpath, extensions.values())))
    return {
        "executable": os.path.realpath("/proc/self/exe"),
        "loader": next((name for name in libraries if name.startswith(_LOADERS)), ""),
        "version": ".".join(map(str, sys.version_info[:3])),
        "library": os.path.join(sys.platlibdir, os.path.basename(stdlib)),
        "modules": modules,
        "extensions": extensions,
        "libraries": libraries,
    }


def _replaced(name: str) -> str | None:
    """Return the file of a module that has put another in its place, as collections.abc has in
    Python 3.13.0; None where it has no file, as os.path."""
    above = sys.modules.get(name.rpartition(".")[0])
    spec = PathFinder.find_spec(name, getattr(above, "__path__", []))
    return spec.origin if spec is not None else None


class _Loaded(ctypes.Structure):
    """The beginning of struct dl_phdr_info (dl_iterate_phdr(3))."""

    _fields_ = (("address", ctypes.c_void_p), ("name", ctypes.c_char_p))


def _libraries(extensions: set[str]) -> dict[str, str]:
    """Of the objects in this process: the name that they are asked for by -> the path."""
    found: dict[str, str] = {}

    def take(info: "ctypes._Pointer[_Loaded]", _size: int, _data: int) -> int:
        path = os.fsdecode(info.contents.name or b"")
        if path.startswith("/") and os.path.realpath(path) not in extensions:
            found[os.path.basename(path)] = os.path.realpath(path)
        return 0

    callback = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(_Loaded), ctypes.c_size_t, ctypes.c_void_p
    )
    ctypes.CDLL(None).dl_iterate_phdr(callback(take), None)
    return found
