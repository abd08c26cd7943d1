"""One noun of the service contract, by HTTP."""

import functools
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, NoneType, UnionType
from typing import Any

from agentd.client import arguments
from agentd.client.http.client import HttpClient

# What an annotation says: the types that fit it, and how they are called.
_KINDS: dict[object, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
    bytes: (arguments.BYTES, "bytes"),
    NoneType: ((NoneType,), "None"),
    Mapping: ((Mapping,), "a mapping"),
    Callable: ((Callable,), "a function"),  # type: ignore[dict-item]
}
_SEVERAL = {Sequence: "a list", Iterable: "an iterable"}
_ONE = (str, *arguments.BYTES, Mapping)  # iterable as well, and meant as one thing


class HttpNoun:
    """Turns its methods into requests. Each looks at what it is given, by its own annotations: a
    wrong type is told by the argument's name, as InvalidInput."""

    def __init__(self, requests: HttpClient) -> None:
        self._requests = requests

    def __init_subclass__(cls) -> None:
        for name, member in list(vars(cls).items()):
            if isinstance(member, FunctionType) and not name.startswith("_"):
                setattr(cls, name, _checked(member))


class _Wanted(typing.NamedTuple):
    types: tuple[type, ...]
    words: str
    several: bool

    def takes(self, value: object) -> bool:
        if isinstance(value, bool) and bool not in self.types:
            return False
        if isinstance(value, self.types):
            return True
        return self.several and isinstance(value, Iterable) and not isinstance(value, _ONE)

    def fix(self, value: object) -> str:
        """Say how a text is written that stands for several; "" where that is not it."""
        if not self.several or not isinstance(value, str):
            return ""
        is_of_texts = self.words == _SEVERAL[Sequence]  # what takes any iterable wants bytes
        return f"write it as [{value!r}]" if is_of_texts else "encode it"


def _checked(method: FunctionType) -> Callable[..., Any]:
    names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    wanted: dict[str, _Wanted] = {}

    @functools.wraps(method)
    def call(self: HttpNoun, *args: Any, **options: Any) -> Any:
        if not wanted:
            wanted.update(_wanted(method))
        for name, value in (*zip(names, args, strict=False), *options.items()):
            if name in wanted and not wanted[name].takes(value):
                raise arguments.wrong(name, value, wanted[name].words, wanted[name].fix(value))
        return method(self, *args, **options)

    return call


def _wanted(method: FunctionType) -> dict[str, _Wanted]:
    """Return what each argument takes, as far as that is told by a type."""
    found = ((name, _of(hint)) for name, hint in method.__annotations__.items())
    return {name: wanted for name, wanted in found if wanted is not None}


def _of(hint: Any) -> _Wanted | None:
    is_union = isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union
    types: list[type] = []
    words: list[str] = []
    several = False
    for part in typing.get_args(hint) if is_union else (hint,):
        kind = typing.get_origin(part) or part
        if kind in _KINDS:
            fitting, said = _KINDS[kind]
        elif kind in _SEVERAL:
            several, fitting, said = True, (), _SEVERAL[kind]
        elif isinstance(part, type):
            article = "an" if part.__name__[0] in "AEIOU" else "a"
            fitting, said = (part,), f"{article} {part.__name__}"
        else:
            return None
        types += fitting
        words.append(said)
    return _Wanted(tuple(types), " or ".join(words), several)
