"""What is wrong with a parameter, in words: its name, the mistake, the fix; never its value."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from agentd.model.capability import About
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    import jsonschema_rs

_MAX_NAME = 80
_MAX_PATH = 200

# JSON Schema keyword -> (what is wrong, what to do); {0} is the keyword's value.
_TEXTS = {
    "minimum": ("is below {0}", "give {0} or more"),
    "maximum": ("is above {0}", "give {0} or less"),
    "exclusiveMinimum": ("is not above {0}", "give more than {0}"),
    "exclusiveMaximum": ("is not below {0}", "give less than {0}"),
    "multipleOf": ("is no multiple of {0}", "give a multiple of {0}"),
    "minLength": ("is shorter than {0} characters", "give at least {0}"),
    "maxLength": ("is longer than {0} characters", "give at most {0}"),
    "minItems": ("has fewer than {0} items", "give at least {0}"),
    "maxItems": ("has more than {0} items", "give at most {0}"),
    "minProperties": ("has fewer than {0} members", "give at least {0}"),
    "maxProperties": ("has more than {0} members", "give at most {0}"),
    "uniqueItems": ("names something twice", "name each once"),
    "pattern": ("does not look as it should", "it must match {0}"),
    "format": ("is not a {0}", "give a {0}"),
}


def of(about: About, error: "jsonschema_rs.ValidationError") -> InvalidInput:
    """A value may be a secret or 8 MiB of text: the message says what was expected instead."""
    keyword, value = error.kind.name, error.kind.value
    where = name(error.instance_path)
    if keyword == "additionalProperties":
        return _unknown(about, error, str(value[0]))
    if keyword == "required":
        missing = name([*error.instance_path, value])
        return _wrong(about, missing, "is missing", f"add it: {_wanted(error, about, str(value))}")
    if keyword == "type":
        types = " or ".join(_article(kind) for kind in value)
        return _wrong(about, where, f"is not {types}", f"give {types}")
    if keyword in {"enum", "const"}:
        options = value if isinstance(value, list) else [value]
        text = ", ".join(str(option) for option in options)[:_MAX_PATH]
        return _wrong(about, where, "is none of those that there are", f"use one of: {text}")
    what, fix = _TEXTS.get(keyword, ("is not as the schema wants it", "see its schema"))
    text = str(value)[:_MAX_PATH]
    return _wrong(about, where, what.format(text), fix.format(text))


def name(path: Sequence[str | int]) -> str:
    """``edits[0].search``; "" for the parameters as a whole."""
    text = ""
    for part in path:
        text += (
            f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" if text else _shown(part)
        )
    return text[:_MAX_PATH]


def _unknown(about: About, error: "jsonschema_rs.ValidationError", unexpected: str) -> InvalidInput:
    schema = _at(about.schema, error.schema_path[:-1])
    known = list(schema.get("properties", {})) if isinstance(schema, Mapping) else []
    near = get_close_matches(unexpected[:_MAX_NAME], known, n=1)
    names = ", ".join(known)[:_MAX_PATH] or "none"
    fix = f"did you mean {near[0]}?" if near else f"leave it out; there are: {names}"
    return _wrong(about, name([*error.instance_path, unexpected]), "is unknown", fix)


def _wanted(error: "jsonschema_rs.ValidationError", about: About, missing: str) -> str:
    schema = _at(about.schema, error.schema_path[:-1])
    found = schema.get("properties", {}).get(missing) if isinstance(schema, Mapping) else None
    if not isinstance(found, Mapping):
        return "see its schema"
    kind = found.get("type", "value")
    described = str(found.get("description", ""))[:_MAX_PATH]
    what = _article(kind) if isinstance(kind, str) else "a value"
    return f"{what}, {described}" if described else what


def _at(schema: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        if isinstance(schema, Mapping):
            schema = schema.get(part)
        elif isinstance(schema, (list, tuple)) and isinstance(part, int) and part < len(schema):
            schema = schema[part]
        else:
            return None
    return schema


def _wrong(about: About, parameter: str, what: str, fix: str) -> InvalidInput:
    subject = f"parameter {parameter}" if parameter else "the parameters"
    return InvalidInput(f"{about.name}: {subject} {what}", remediation=fix)


def _article(kind: str) -> str:
    words = {"string": "text", "null": "null", "boolean": "true or false"}
    return words.get(kind, f"an {kind}" if kind[0] in "aeio" else f"a {kind}")


def _shown(part: str) -> str:
    cut = part[:_MAX_NAME]
    return cut if cut.isprintable() else ascii(cut)[1:-1]
