"""From a tree of plain values to the schema's structs, with every problem found on the way."""

import json
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import msgspec

from agentd.daemon.config.lines import Path
from agentd.daemon.config.problem import Problem, nearest
from agentd.daemon.config.schema import Config
from agentd.model.errors import InvalidInput

T = TypeVar("T", bound=msgspec.Struct)
_WRONG: Any = object()
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_MAX_INT = (1 << 63) - 1


class ConfigReader:
    def __init__(self, problem: Callable[[Path, str, str], Problem]) -> None:
        """``problem`` knows where in the file a path stands."""
        self.problems: list[Problem] = []
        self._problem = problem

    def read(self, tree: dict[str, Any]) -> Config | None:
        """Read it; None where there are problems."""
        config = self._struct(Config, tree, ())
        return None if self.problems else config

    def _struct(self, kind: type[T], value: Any, path: Path) -> T:
        if not isinstance(value, dict):
            nothing: T = self._wrong(path, "must be a table", f"write it as [{_table(path)}]")
            return nothing
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        for key in value.keys() - fields.keys():
            self._unknown(path, key, list(fields))
        for name, field in fields.items():
            if field.required and name not in value:
                self._wrong(path, f"misses {name!r}", f"it needs: {_required(kind)}")
        found = {
            name: self._value(field.type, value[name], (*path, name))
            for name, field in fields.items()
            if name in value
        }
        wrong = any(item is _WRONG for item in found.values())
        missing = any(field.required and name not in found for name, field in fields.items())
        made: T = _WRONG if wrong or missing else kind(**found)
        return made

    def _value(self, kind: Any, value: Any, path: Path) -> Any:
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            some = next(option for option in inner if option is not type(None))
            return None if value == "none" else self._value(some, value, path)
        if origin is tuple:
            return self._array(inner[0], value, path)
        if origin is dict:
            return self._map(inner[1], value, path)
        if origin is Literal:
            return self._choice(inner, value, path)
        if hasattr(kind, "of"):
            try:
                return kind.of(value)
            except InvalidInput as error:
                return self._wrong(path, error.message, error.remediation)
        if issubclass(kind, msgspec.Struct):
            return self._struct(kind, value, path)
        return self._plain(kind, value, path)

    def _array(self, kind: Any, value: Any, path: Path) -> Any:
        if not isinstance(value, list):
            double = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
            hint = f"write it as [[{_table(path)}]]" if double else "write it in brackets: [...]"
            return self._wrong(path, "must be an array", hint)
        found = tuple(self._value(kind, item, (*path, n)) for n, item in enumerate(value))
        return _WRONG if any(item is _WRONG for item in found) else found

    def _map(self, kind: Any, value: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            return self._wrong(path, "must be a table", f"write it as [{_table(path)}]")
        found = {key: self._value(kind, item, (*path, key)) for key, item in value.items()}
        return _WRONG if any(item is _WRONG for item in found.values()) else found

    def _choice(self, options: tuple[str, ...], value: Any, path: Path) -> Any:
        if isinstance(value, str) and value in options:
            return value
        near = nearest(value, options) if isinstance(value, str) else None
        hint = f"did you mean {near!r}?" if near else f"use one of: {', '.join(options)}"
        return self._wrong(path, f"{value!r} is not known here", hint)

    def _plain(self, kind: type, value: Any, path: Path) -> Any:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:  # exactly: a bool is an int to Python
            hint = ""
            if kind is str and isinstance(value, list) and all(type(one) is str for one in value):
                hint = f"write it as one text: {json.dumps(','.join(value))}"
            return self._wrong(path, f"{value!r} is not {_NAMES[kind]}", hint)
        if isinstance(value, int | float) and not 0 <= value <= _MAX_INT:  # nor NaN
            return self._wrong(path, f"{value!r} is out of range", "give 0 or more")
        if isinstance(value, str) and ("\0" in value or not value):
            return self._wrong(path, "has a zero character" if value else "is empty", "")
        return value

    def _unknown(self, path: Path, key: str, siblings: list[str]) -> None:
        near = nearest(key, siblings) or _elsewhere(key)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(siblings)}"
        if near == key:  # a section, as [limits] is, where keys of its are meant
            hint = f"[{near}] is a section of its own; known here: {', '.join(siblings)}"
        self._wrong((*path, key), "unknown key", hint)

    def _wrong(self, path: Path, message: str, suggestion: str) -> Any:
        self.problems.append(self._problem(path, message, suggestion))
        return _WRONG


def known_keys(kind: Any = Config, path: str = "") -> Iterator[str]:
    """List every key, dotted; ``*`` stands for a name of one's own."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        yield from known_keys(inner[0], path)
    elif typing.get_origin(kind) is dict:
        yield from known_keys(inner[1], f"{path}.*")
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not hasattr(kind, "of"):
        for field in msgspec.structs.fields(kind):
            name = f"{path}.{field.name}" if path else field.name
            yield name
            yield from known_keys(field.type, name)


def _elsewhere(key: str) -> str | None:
    """Return a key of that name, or nearly so, in another section."""
    by_leaf: dict[str, str] = {}
    for name in known_keys():
        by_leaf.setdefault(name.rpartition(".")[2], name)
    near = nearest(key, by_leaf, least=0.8)
    return by_leaf[near] if near else None


def _required(kind: type[msgspec.Struct]) -> str:
    return ", ".join(field.name for field in msgspec.structs.fields(kind) if field.required)


def _table(path: Path) -> str:
    return ".".join(part for part in path if isinstance(part, str))
