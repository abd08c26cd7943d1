"""The JSON Schema (2020-12) of a capability's parameters, a parameter a line.

``integer(1, 8, 1, "...")`` is ``{"type": "integer", "minimum": 1, "maximum": 8, "default": 1,
"description": "..."}``. A parameter without a default is left as it comes where it is not given.
"""

from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]


def parameters(required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    """Describe an object that refuses unknown properties."""
    wanted = {"required": list(required)} if required else {}
    return {"type": "object", **wanted, "additionalProperties": False, "properties": properties}


def integer(
    minimum: int, maximum: int, default: int | None = None, description: str | None = None
) -> Schema:
    return _given(
        type="integer", minimum=minimum, maximum=maximum, default=default, description=description
    )


def boolean(description: str | None = None, *, default: bool) -> Schema:
    return _given(type="boolean", default=default, description=description)


def string(
    minimum: int | None = None,
    maximum: int | None = None,
    default: str | None = None,
    description: str | None = None,
    *,
    pattern: str | None = None,
) -> Schema:
    """``minimum`` and ``maximum`` are lengths, in characters."""
    return _given(
        type="string",
        minLength=minimum,
        maxLength=maximum,
        pattern=pattern,
        default=default,
        description=description,
    )


def choice(values: Sequence[str], default: str, description: str | None = None) -> Schema:
    return _given(enum=list(values), default=default, description=description)


def array(items: Schema, maximum: int, description: str | None = None, **more: Any) -> Schema:
    """``more`` are other keywords of the schema's."""
    return _given(type="array", items=items, maxItems=maximum, **more, description=description)


def mapping(values: Schema, maximum: int, description: str | None = None, **more: Any) -> Schema:
    """Describe an object of any names; ``more`` are other keywords of the schema's."""
    return _given(
        type="object",
        maxProperties=maximum,
        additionalProperties=values,
        **more,
        description=description,
    )


def _given(**keywords: Any) -> Schema:
    return {name: value for name, value in keywords.items() if value is not None}
