"""A compiled bundle in this process. For the worker alone: the engine is native code, which a
deep enough document crashes and nothing interrupts.

What must be known of rego-cpp 1.5: a text within it is what stands between the quotes in JSON,
escapes and all. A raw one ends at its first NUL, and goes into the answer as it is, quotes too.
So texts go in as JSON has them, and an answer is read by ``agentd.policy.answer``.
"""

import ctypes
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import regopy  # type: ignore[import-untyped]
from regopy import rego_shared

from agentd.policy.errors import BundleProblem
from agentd.policy.reads import Reads, reads

MAX_DEPTH = 64
_INT64 = 1 << 63
_ERROR = re.compile(r"\(error (?:\d+:)?([^|\s]*)\|(\d+)\|\d+\s+\(errormsg \d+:(.*)\)")
_UNSAID = "a function had an argument of a wrong type, or rules of one name disagree"
_MESSAGE = re.compile(r"\(errormsg \d+:(.*)\)")

# Builds of an input are many calls that take a microsecond: releasing the lock costs more.
_lib = ctypes.PyDLL(rego_shared.path)
_new = _lib.regoNewInput
_new.restype = ctypes.c_void_p
_free = _lib.regoFreeInput
_text, _integer, _float = _lib.regoInputString, _lib.regoInputInt, _lib.regoInputFloat
_bool, _null = _lib.regoInputBoolean, _lib.regoInputNull
_item, _object, _array = _lib.regoInputObjectItem, _lib.regoInputObject, _lib.regoInputArray
_free.argtypes = [ctypes.c_void_p]
_integer.argtypes = [ctypes.c_void_p, ctypes.c_int64]
_float.argtypes = [ctypes.c_void_p, ctypes.c_double]
_set_input = rego_shared.rego.regoSetInput
_encode = msgspec.json.encode


class Uncompiled(Exception):
    def __init__(self, problems: list[BundleProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Unevaluated(Exception):
    """The engine has no answer."""


def compile_to(
    path: str, modules: Mapping[str, str], data: bytes, entrypoints: Sequence[str]
) -> tuple[list[str], Reads]:
    """Writes the compiled bundle to ``path``; the functions that it calls, and what it reads.

    Raises Uncompiled.
    """
    builder = regopy.Interpreter()
    builder.log_level = regopy.LogLevel.NONE
    try:
        builder.add_data_json(data.decode())
        for name, text in modules.items():
            builder.add_module(name, text)
        bundle = builder.build(None, entrypoints)
        if not bundle._impl or not bundle.ok():
            raise regopy.RegoError("it cannot be built")
        plan = _save(path, builder, bundle)
    except regopy.RegoError as error:
        raise Uncompiled(_problems(str(error), modules)) from error
    called = plan["static"].get("builtin_funcs") or []
    return [str(each["name"]) for each in called], reads(plan)


class Program:
    def __init__(self, path: str) -> None:
        self._interpreter = regopy.Interpreter()
        self._interpreter.log_level = regopy.LogLevel.NONE
        # Else what a function cannot answer is undefined, and a rule that denies would not.
        self._interpreter.strict_built_in_errors = True
        self._bundle = self._interpreter.load_bundle(path, regopy.BundleFormat.Binary)
        if not self._bundle._impl or not self._bundle.ok():
            raise Unevaluated(f"the engine cannot load {path}")

    def query(self, entrypoint: str, document: Any) -> str:
        """Return the engine's own text, or "undefined". Raises Unevaluated."""
        self._set(document)
        raw = rego_shared.rego.regoBundleQueryEntrypoint(
            self._interpreter._impl, self._bundle._impl, entrypoint.encode()
        )
        if not raw:
            raise Unevaluated(rego_shared.rego_get_error(self._interpreter._impl)[:500])
        try:
            text = str(rego_shared.rego_output_string(raw))
            if not rego_shared.rego_output_ok(raw) or not text.startswith(("{", "undefined")):
                found = _MESSAGE.search(text)
                raise Unevaluated(found[1] if found else _UNSAID)
            return text
        finally:
            rego_shared.rego_free_output(raw)

    def _set(self, document: Any) -> None:
        handle = ctypes.c_void_p(_new())
        try:
            _add(handle, document, MAX_DEPTH)
            if _set_input(self._interpreter._impl, handle):
                raise Unevaluated("the engine does not take the document")
        finally:
            _free(handle)


def _add(handle: ctypes.c_void_p, value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str:
        _text(handle, _encode(value)[1:-1])
    elif kind is dict:
        if not depth:
            raise Unevaluated(f"the document is more than {MAX_DEPTH} deep")
        for key, member in value.items():
            _text(handle, _encode(key)[1:-1])
            _add(handle, member, depth - 1)
            _item(handle)
        _object(handle, len(value))
    elif kind is list:
        if not depth:
            raise Unevaluated(f"the document is more than {MAX_DEPTH} deep")
        for member in value:
            _add(handle, member, depth - 1)
        _array(handle, len(value))
    elif kind is bool:
        _bool(handle, value)
    elif kind is int:
        if not -_INT64 <= value < _INT64:
            raise Unevaluated("a number is too large for the engine")
        _integer(handle, value)
    elif kind is float:
        _float(handle, value)
    else:
        _null(handle)


def _save(path: str, builder: Any, bundle: Any) -> Any:
    """Save it as the engine's own file, and its plan, which that file does not show."""
    builder.save_bundle(path, bundle, regopy.BundleFormat.Binary)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        builder.save_bundle(folder, bundle, regopy.BundleFormat.JSON)
        with open(os.path.join(folder, "plan.json"), "rb") as file:
            return msgspec.json.decode(file.read())


def _problems(report: str, modules: Mapping[str, str]) -> list[BundleProblem]:
    found = [
        BundleProblem(name, _line(modules.get(name, ""), int(offset)), message)
        for name, offset, message in _ERROR.findall(report)
    ]
    others = [BundleProblem("", 0, message) for message in _MESSAGE.findall(report)]
    return found or others or [BundleProblem("", 0, report.strip()[:500])]


def _line(text: str, offset: int) -> int:
    return text.encode()[:offset].count(b"\n") + 1
