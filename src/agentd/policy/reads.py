"""Which members of the input a compiled policy can read at all: the rest need not be handed over.

Handing the input over is most of a decision's time, and a file's content is no matter of most
policies. Found in the engine's plan, where ``input`` is the local 0 and each local has one meaning
in the whole plan. Anything that is not plainly "take the member of that name" reads it all.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# Member -> the names of what is read of it (None: all of it). None: all of the input.
Reads = dict[str, frozenset[str] | None] | None
_INPUT = 0
_NO_LOCALS = {"file", "row", "col", "index", "capacity"}
_RULE = "g0."  # what calls of rules begin with; their first argument is the input, unchanged


def reads(plan: Any) -> Reads:
    """Of the plan.json that the engine saves with a bundle."""
    strings = [str(each["value"]) for each in plan["static"]["strings"]]
    statements = list(_statements(plan["plans"])) + list(_statements(plan["funcs"]))
    top: dict[int, str] = {}
    for kind, body in statements:
        key = _taken(kind, body, {_INPUT}, strings)
        if key is not None:
            top[body["target"]] = key
        elif _INPUT in _mentions(kind, body):
            return None
    found: dict[str, frozenset[str] | None] = {name: frozenset() for name in top.values()}
    for kind, body in statements:
        key = _taken(kind, body, set(top), strings)
        if key is not None:
            name = top[body["source"]["value"]]
            had = found[name]
            found[name] = None if had is None else had | {key}
            continue
        for local in _mentions(kind, body):
            if local in top and not _makes(kind, body, local, strings):
                found[top[local]] = None
    return found


def pruned(document: Any, read: Reads) -> Any:
    """The document without what is not read."""
    if read is None or type(document) is not dict:
        return document
    return {
        name: {key: value[key] for key in keys if key in value}
        if keys is not None and type(value) is dict
        else value
        for name, keys in read.items()
        if (value := document.get(name, _ABSENT)) is not _ABSENT
    }


_ABSENT = object()


def _statements(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, dict):
        if isinstance(value.get("stmt"), dict):
            yield str(value.get("type")), value["stmt"]
        for member in value.values():
            yield from _statements(member)
    elif isinstance(value, list):
        for member in value:
            yield from _statements(member)


def _taken(kind: str, body: Mapping[str, Any], of: set[int], strings: list[str]) -> str | None:
    """The name, where the statement takes the member of that name of one of these locals."""
    if kind != "DotStmt":
        return None
    source, key = body["source"], body["key"]
    if source["type"] != "local" or source["value"] not in of or key["type"] != "string_index":
        return None
    return str(strings[key["value"]])


def _makes(kind: str, body: Mapping[str, Any], local: int, strings: list[str]) -> bool:
    return body.get("target") == local and _taken(kind, body, {_INPUT}, strings) is not None


def _mentions(kind: str, body: Mapping[str, Any]) -> Iterator[int]:
    """Every number that may be a local; those of nested statements are theirs."""
    for key, value in body.items():
        if key in _NO_LOCALS or (kind == "MakeNumberIntStmt" and key == "value"):
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        elif isinstance(value, dict) and value.get("type") == "local":
            yield int(value["value"])
        elif key == "args" and isinstance(value, list):
            skipped = 1 if str(body.get("func")).startswith(_RULE) else 0
            for each in value[skipped:]:
                if each.get("type") == "local":
                    yield int(each["value"])
        elif isinstance(value, list) and key != "blocks":
            for each in value:
                if isinstance(each, int):
                    yield each
                elif isinstance(each, dict) and each.get("type") == "local":
                    yield int(each["value"])
