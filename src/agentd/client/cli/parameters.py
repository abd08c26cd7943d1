"""A JSON Schema of parameters as rows of a table."""

from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 4
_MAX_DEFAULT = 30
Row = tuple[str, str, str, str]


def rows(schema: Mapping[str, Any], prefix: str = "", depth: int = 0) -> list[Row]:
    """Return (name, kind, default, meaning) each; ``edits[].search`` is of each of ``edits``."""
    found: list[Row] = []
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or depth >= _MAX_DEPTH:
        return found
    required = schema.get("required", ())
    for name, about in properties.items():
        if not isinstance(about, Mapping):
            continue
        full = f"{prefix}{name}"
        meaning = str(about.get("description", ""))
        found.append((full, kind(about), _default(about, name in required), meaning))
        found += rows(about, f"{full}.", depth + 1)
        items = about.get("items")
        if isinstance(items, Mapping):
            found += rows(items, f"{full}[].", depth + 1)
    return found


def kind(about: Mapping[str, Any]) -> str:
    """Name it, as ``integer 1..16``, ``utf-8 | base64``, ``array of string``."""
    if isinstance(about.get("enum"), (list, tuple)):
        return " | ".join(map(str, about["enum"]))
    named = about.get("type", "any")
    text = named if isinstance(named, str) else " or ".join(map(str, named))
    items = about.get("items")
    if text == "array" and isinstance(items, Mapping):
        return f"array of {kind(items)}"
    least, most = about.get("minimum"), about.get("maximum")
    if least is not None or most is not None:
        return f"{text} {'' if least is None else least}..{'' if most is None else most}"
    return text


def _default(about: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    if "default" not in about:
        return "-"
    import msgspec

    text = msgspec.json.encode(about["default"]).decode()
    return text if len(text) <= _MAX_DEFAULT else f"{text[:_MAX_DEFAULT]}..."
