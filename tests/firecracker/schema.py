"""Firecracker's OpenAPI file as a judge of requests: what it does not name is refused.

The real parser denies unknown fields, which Swagger 2.0 allows unless told otherwise: each object
is closed here. Which release has which field is not in one file: ``_SINCE`` takes newer ones out.
"""

import copy
import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import yaml

DATA = Path(__file__).resolve().parent.parent / "data" / "firecracker"
FILES = {"1.16.1": DATA / "1.16.1.yaml", "1.17.0-dev": DATA / "1.17.0-dev.yaml"}
# (definition, field, release): fields that came after 1.14.
_SINCE = (
    ("SnapshotLoadParams", "vsock_override", (1, 16, 0)),
    ("SerialDevice", "rate_limiter", (1, 16, 0)),
    ("NetworkInterface", "mtu", (1, 16, 0)),
    ("Pmem", "rate_limiter", (1, 16, 0)),
)
# When, where the file's own words do not say.
_PHASES = {
    ("PUT", "/actions"): "any",  # by its action
    ("PUT", "/logger"): "pre",
    ("PUT", "/metrics"): "pre",
    ("PUT", "/serial"): "pre",
    ("PUT", "/balloon"): "pre",
    ("PUT", "/hotplug/memory"): "pre",
    ("PATCH", "/hotplug/memory"): "post",
    ("PATCH", "/vm"): "post",
    ("PATCH", "/balloon"): "post",
}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where there is one: 5 times as fast


class Refused(Exception):
    """The text is a fault message."""


class Operation(NamedTuple):
    path: str
    body: dict[str, Any] | None  # a JSON schema
    phase: str  # "pre", "post" or "any"


class Api:
    """One release's: ``find`` an operation, ``check`` a body."""

    def __init__(self, version: str) -> None:
        file = FILES["1.17.0-dev" if release(version) >= (1, 17, 0) else "1.16.1"]
        text = yaml.load(file.read_text(), Loader=_LOADER)  # noqa: S506 both are safe ones
        self.version = version
        self.definitions = _closed(text["definitions"], release(version))
        self._operations = [
            (method.upper(), _pattern(path), self._operation(method.upper(), path, operation))
            for path, methods in text["paths"].items()
            for method, operation in methods.items()
        ]

    def find(self, method: str, path: str) -> Operation:
        for known, pattern, operation in self._operations:
            if known == method and pattern.fullmatch(path):
                return operation
        raise Refused(f"Invalid request method and/or path: {method} {path}.")

    def check(self, operation: Operation, body: object) -> None:
        schema = {**(operation.body or {}), "definitions": self.definitions}
        errors = sorted(_VALIDATOR(schema).iter_errors(body), key=str)
        if errors:
            raise Refused(
                "An error occurred when deserializing the json body of a request: "
                f"{errors[0].json_path}: {errors[0].message}."
            )

    def _operation(self, method: str, path: str, operation: dict[str, Any]) -> Operation:
        bodies = [p["schema"] for p in operation.get("parameters", ()) if p["in"] == "body"]
        words = f"{operation.get('summary', '')} {operation.get('description', '')}".lower()
        phase = _PHASES.get((method, path))
        if phase is None:
            phase = "pre" if "pre-boot only" in words else "any"
            phase = "post" if "post-boot only" in words else phase
        return Operation(path, bodies[0] if bodies else None, phase)


@functools.cache
def load(version: str) -> Api:
    """The same again, for reading a file takes longer than most tests."""
    return Api(version)


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{\w+\\}|\{\w+\}", "[A-Za-z0-9_]+", re.escape(path)))


def _closed(definitions: dict[str, Any], version: tuple[int, ...]) -> dict[str, Any]:
    found = copy.deepcopy(definitions)
    for name, field, since in _SINCE:
        if version < since:
            found[name]["properties"].pop(field)
    for schema in found.values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return found


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # 1.0 is none to serde


_VALIDATOR = jsonschema.validators.extend(
    jsonschema.Draft4Validator,
    type_checker=jsonschema.Draft4Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)
