"""Parameters against a JSON Schema: bounded first, then checked, and their defaults filled in."""

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.capability import problem
from agentd.model.capability import About
from agentd.model.errors import InvalidInput, TooLarge

if TYPE_CHECKING:
    import jsonschema_rs

MAX_BYTES = 8 << 20
MAX_DEPTH = 64
MAX_ITEMS = 250_000
MAX_SCHEMA = 256 << 10  # bytes of its JSON
_MAX_COMPILED = 256
# Integers beyond these are not the same number for every reader of JSON (RFC 8259, section 6).
_MAX_INTEGER = 1 << 64


def check(about: About, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with the schema's defaults; a copy. Raises InvalidInput that names the
    first wrong one, what is wrong with it and the fix."""
    if not isinstance(parameters, Mapping):
        raise InvalidInput(
            f"the parameters of {about.name} are not an object",
            remediation='write them as {"name": value, ...}',
        )
    bound(parameters, f"the parameters of {about.name}")
    given = dict(parameters)
    import jsonschema_rs  # late: it takes a moment

    try:
        validator(about).validate(given)  # to its first error: all of them take hours to list
    except jsonschema_rs.ValidationError as error:
        raise problem.of(about, error) from None
    filled: dict[str, Any] = _filled(about.schema, given)
    return filled


def check_schema(about: About) -> None:
    """Check that it can be used for ``check``; compile nothing. Raises InvalidInput."""
    schema = about.schema
    wrong = ""
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA:
        wrong = f"it is over {MAX_SCHEMA} bytes"
    elif schema.get("type") != "object":
        wrong = 'its "type" is not "object"'
    elif schema.get("additionalProperties") is not False:
        wrong = "it lets unknown parameters through"
    elif not isinstance(schema.get("properties", {}), Mapping):
        wrong = 'its "properties" are not an object'
    if wrong:
        raise InvalidInput(
            f"the schema of {about.name} cannot be used: {wrong}",
            remediation='give it {"type": "object", "additionalProperties": false, ...}',
        )


def validator(about: About) -> "jsonschema_rs.Draft202012Validator":
    """Compiled once a schema. Raises InvalidInput for what is no JSON Schema."""
    return _compiled(about.name, msgspec.json.encode(about.schema))


@functools.lru_cache(_MAX_COMPILED)
def _compiled(name: str, schema: bytes) -> "jsonschema_rs.Draft202012Validator":
    import jsonschema_rs

    try:
        return jsonschema_rs.Draft202012Validator(
            msgspec.json.decode(schema),
            offline=True,  # a "$ref" reads no file and asks no server
            # Linear in the text: the default engine backtracks.
            pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20),
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise InvalidInput(
            f"the schema of {name} is not a JSON Schema",
            cause=str(error).partition("\n")[0][:500],
            remediation="fix the capability",
        ) from None


def bound(value: object, what: str) -> None:
    """JSON of at most 8 MiB, 64 levels and 250 000 values. Raises InvalidInput, TooLarge.

    Without recursion, and before anything else looks at it.
    """
    size = count = 0
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            size += _size(item, what, below)
            if size > MAX_BYTES:
                raise TooLarge(
                    f"{what} are over {MAX_BYTES >> 20} MiB",
                    remediation="put large data into a file",
                )
        count += len(below)
        if count > MAX_ITEMS:
            raise _over(what, f"{MAX_ITEMS} values", "put large data into a file")
        if not below:
            return
        level = below
    raise _over(what, f"{MAX_DEPTH} levels", "nest them less")


def _size(item: object, what: str, below: list[object]) -> int:
    """Bytes of JSON but for escapes; what is inside goes to ``below``."""
    if isinstance(item, str):
        return _text_size(item, what)
    if isinstance(item, Mapping):
        below += item.values()
        return sum(_key_size(key, what) for key in item) + 2
    if isinstance(item, (list, tuple)):
        below += item
        return len(item) + 2
    if item is None or isinstance(item, bool):
        return 4
    if isinstance(item, int) and abs(item) <= _MAX_INTEGER:
        return 8
    if isinstance(item, float) and math.isfinite(item):
        return 8
    raise InvalidInput(
        f"{what} hold what JSON has no value for: {str(type(item).__name__)[:50]}",
        remediation="send text, finite numbers of up to 64 bits, true, false, null, lists, objects",
    )


def _text_size(text: str, what: str) -> int:
    try:
        return len(text.encode()) + 2
    except UnicodeEncodeError:
        raise InvalidInput(
            f"{what} hold half of a surrogate pair", remediation="send text, or bytes as base64"
        ) from None


def _key_size(key: object, what: str) -> int:
    if not isinstance(key, str):
        raise InvalidInput(f"{what} hold a name that is no text", remediation="use text")
    return _text_size(key, what) + 2


def _over(what: str, limit: str, fix: str) -> InvalidInput:
    return InvalidInput(f"{what} are over {limit}", remediation=fix)


def _filled(schema: Any, value: Any) -> Any:
    """Return a copy with the defaults of ``properties`` and ``items``, and 2.0 as 2 where an
    integer is asked for. References and alternatives are not looked into."""
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, Mapping):
        known = schema.get("properties") or {}
        made = {name: _filled(known.get(name), item) for name, item in value.items()}
        for name, about in known.items():
            if name not in made and isinstance(about, Mapping) and "default" in about:
                made[name] = _copied(about["default"])
        return made
    if isinstance(value, (list, tuple)):
        return [_filled(schema.get("items"), item) for item in value]
    if isinstance(value, float) and schema.get("type") == "integer":
        return int(value)  # a float without a fraction passes for an integer in JSON Schema
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(item) for name, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value
