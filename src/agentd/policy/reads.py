"""Which members of the input a compiled policy can read at all: the rest need not be handed over.

Handing the input over is most of a decision's time, and a file's content is no matter of most
policies. Found in the engine's plan, where ``input`` is the local 0 and each local has one meaning
in the whole plan. Anything that is not plainly "take the member of that name" reads it all.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

# Member -> what is read of it, in the same way; None: all of it. What is read most is first, where
# the engine finds it soonest.
Reads = dict[str, Any] | None
_INPUT = 0
_NO_LOCALS = {"file", "row", "col", "index", "capacity"}
_RULE = "g0."  # what calls of rules begin with; their first argument is the input, unchanged

_Node = dict[str, Any]


def reads(plan: Any) -> Reads:
    """Find what a plan reads: the plan.json that the engine saves with a bundle."""
    strings = [str(each["value"]) for each in plan["static"]["strings"]]
    statements = list(_statements(plan["plans"])) + list(_statements(plan["funcs"]))
    nodes: dict[int, _Node] = {_INPUT: {}}
    times: Counter[int] = Counter()
    for kind, body in statements:
        key = _taken(kind, body, nodes, strings)
        if key is not None:
            node = nodes[body["source"]["value"]].setdefault(key, {})
            if nodes.setdefault(body["target"], node) is not node:
                return None
            times[id(node)] += 1
    whole = {
        local
        for kind, body in statements
        for local in _mentions(kind, body)
        if local in nodes and not _passes(kind, body, local, nodes, strings)
    }
    if _INPUT in whole:
        return None
    return _shape(nodes[_INPUT], {id(nodes[local]) for local in whole}, times) or {}


def _shape(node: _Node, whole: set[int], times: Mapping[int, int]) -> Reads:
    if not node or id(node) in whole:
        return None
    names = sorted(node, key=lambda name: -times[id(node[name])])
    return {name: _shape(node[name], whole, times) for name in names}


def _statements(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, dict):
        if isinstance(value.get("stmt"), dict):
            yield str(value.get("type")), value["stmt"]
        for member in value.values():
            yield from _statements(member)
    elif isinstance(value, list):
        for member in value:
            yield from _statements(member)


def _taken(
    kind: str, body: Mapping[str, Any], of: Mapping[int, Any], strings: list[str]
) -> str | None:
    """Return the name, where the statement takes the member of that name of one of these locals."""
    if kind != "DotStmt":
        return None
    source, key = body["source"], body["key"]
    if source["type"] != "local" or source["value"] not in of or key["type"] != "string_index":
        return None
    return str(strings[key["value"]])


def _passes(
    kind: str, body: Mapping[str, Any], local: int, of: Mapping[int, Any], strings: list[str]
) -> bool:
    """Return whether the statement only takes a member of the local, or makes it so."""
    if _taken(kind, body, of, strings) is None:
        return False
    return local in (body["source"]["value"], body["target"])


def _mentions(kind: str, body: Mapping[str, Any]) -> Iterator[int]:
    """Yield every number that may be a local; those of nested statements are theirs."""
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
