"""OpenAPI 3.1, from the table of operations and msgspec's schemas."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from agentd.ingest.rest import described
from agentd.ingest.rest.operation import Operation
from agentd.ingest.rest.pages import QUERY
from agentd.model.api import ErrorView

_REF = "#/components/schemas/{name}"
_ERROR = {"application/json": {"schema": {"$ref": _REF.format(name="ErrorView")}}}
_KINDS = {
    str: {"type": "string"},
    int: {"type": "integer", "minimum": 0},
    bool: {"type": "boolean"},
}
_MODE = {"type": "string", "pattern": "^[0-7]{1,5}$"}
_ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "a repeat with the same key is not done again",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    types = [ErrorView]
    for operation in operations:
        types += [t for t in (operation.body, operation.answer, *operation.also.values()) if t]
    kinds = [kind for kind in types if not isinstance(kind, str)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    by_type = {repr(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _one(operation, by_type)
    for path, methods in described.more_paths(_ERROR).items():
        paths[path] = {**methods, **paths.get(path, {})}
    described.narrow(components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "agentd", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            },
        },
        # On a unix socket the kernel says who asks: then none is needed.
        "security": [{}, {"key": []}, {"bearer": []}, {"certificate": []}],
    }


def _one(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    content = {operation.status: operation.answer, **operation.also}
    responses: dict[str, Any] = {
        str(status): _response(kind, schemas) for status, kind in sorted(content.items())
    }
    for status, why in sorted(described.errors(operation).items()):
        responses[str(status)] = {"description": why, "content": _ERROR}
    responses["default"] = {"description": "an error", "content": _ERROR}
    if operation.query[-2:] == QUERY:
        next_ = {"description": "the next page's cursor", "schema": {"type": "string"}}
        responses["200"]["headers"] = {"Agentd-Next": next_}
    found: dict[str, Any] = {
        "summary": operation.help,
        "description": f"Scope: {operation.scope}.",
        "operationId": _id(operation),
        "tags": [described.tag(operation.path)],
        "parameters": _parameters(operation),
        "responses": responses,
    }
    if operation.body is not None:
        found["requestBody"] = {
            "required": isinstance(operation.body, str) or _is_required(operation.body),
            "content": _content(operation.body, schemas),
        }
    if operation.scope == "none":
        found["security"] = [{}]
    return found


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)", operation.path)
    ]
    for parameter in operation.query:
        schema: Any = _MODE if parameter.kind == "mode" else _KINDS[parameter.kind]  # type: ignore[index]
        schema = {**schema, **described.QUERY.get(parameter.name, {})}
        if parameter.repeat:
            schema = {"type": "array", "items": schema}
        found.append(
            {
                "name": parameter.name,
                "in": "query",
                "required": parameter.default is msgspec.UNSET,
                "description": parameter.help,
                "schema": schema,
            }
        )
    return found + ([_ONCE] if operation.once else [])


def _response(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    if kind is None:
        return {"description": "done"}
    return {"description": "done", "content": _content(kind, schemas)}


def _content(kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    if isinstance(kind, str):
        return {kind: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": schemas[repr(kind)]}}


def _is_required(kind: Any) -> bool:
    return any(field.required for field in msgspec.structs.fields(kind))


def _id(operation: Operation) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", operation.path.removeprefix("/v1").lower()).strip("_")
    return f"{operation.method.lower()}_{words}"
