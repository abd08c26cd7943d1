"""The table in docs/api.md: each row is written above the function that answers it."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from agentd.ingest.rest.operation import Operation

F = TypeVar("F", bound=Callable[..., object])


class OperationTable(list[Operation]):
    """Holds the operations of a module, in order."""

    def row(self, method: str, path: str, scope: str, **facts: Any) -> Callable[[F], F]:
        """Add the decorated function as an operation; ``facts`` are Operation's other fields.

        A coroutine function answers by itself. ``help`` is its docstring's first line, ``answer``
        the type that the function returns; one that returns None is answered with 204.
        """

        def add(function: F) -> F:
            kind = "stream" if inspect.iscoroutinefunction(function) else "call"
            if kind == "call":
                returned = function.__annotations__["return"]
                facts.setdefault("answer", returned)
                facts.setdefault("status", 204 if returned is None else 200)
            words = (function.__doc__ or "").partition("\n")[0].removesuffix(".")
            facts.setdefault("help", words[:1].lower() + words[1:])
            facts[kind] = function
            self.append(Operation(method=method, path=path, scope=scope, **facts))
            return function

        return add
