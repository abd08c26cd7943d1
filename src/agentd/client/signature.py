"""What ``help()`` and a prompt's completion show of the SDK's methods."""

import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from agentd.model.spec import DEFAULT_IMAGE

F = TypeVar("F", bound=Callable[..., Any])
K = TypeVar("K", bound=type)

# Of the options that may not be None.
_DEFAULTS = {"mounts": (), "net": "none", "image": DEFAULT_IMAGE}


def options_shown(call: F) -> F:
    """Show every option of ``**options: Unpack[...]`` in the signature; return ``call`` itself."""
    signature = inspect.signature(call)
    *fixed, options = signature.parameters.values()
    (kind,) = typing.get_args(options.annotation)
    spelled = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=hint
        )
        for name, hint in typing.get_type_hints(kind).items()
    ]
    call.__signature__ = signature.replace(parameters=[*fixed, *spelled])  # type: ignore[attr-defined]
    return call


def documented_by(model: type) -> Callable[[K], K]:
    """Give the methods of a class the docstrings of those of ``model`` that have the same name."""

    def documented(kind: K) -> K:
        for name, member in vars(kind).items():
            found = getattr(member, "__func__", member)
            if not name.startswith("_") and not found.__doc__ and hasattr(model, name):
                found.__doc__ = getattr(model, name).__doc__
        return kind

    return documented
