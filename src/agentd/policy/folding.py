"""A compiled policy without what its data settles already: the data of a bundle never changes.

The engine looks up ``data.policy.network`` anew at each use, and compares it with "any" each time.
Here, in the engine's plan, such members become constants, constants are compared, and what then
cannot hold is left out. Whatever else a statement does (a call, an error) stays as it is, and so
does all of a plan with ``with``, which replaces data. As for ``agentd.policy.reads``, a local has
one meaning in the whole plan; 0 is the input and 1 the data.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

_DATA = 1
_ARGUMENTS = 2  # of a rule: input and data
_UNDERSTOOD = {
    *("ArrayAppendStmt", "AssignVarStmt", "AssignVarOnceStmt", "BlockStmt", "BreakStmt"),
    *("CallStmt", "DotStmt", "EqualStmt", "IsArrayStmt", "IsDefinedStmt", "IsObjectStmt"),
    *("IsSetStmt", "IsUndefinedStmt", "LenStmt", "MakeArrayStmt", "MakeNullStmt", "MakeObjectStmt"),
    *("MakeNumberIntStmt", "MakeNumberRefStmt", "MakeSetStmt", "NotStmt", "NotEqualStmt"),
    *("ObjectInsertStmt", "ObjectInsertOnceStmt", "ObjectMergeStmt", "ResetLocalStmt"),
    *("ResultSetAddStmt", "ReturnLocalStmt", "ScanStmt", "SetAddStmt"),
}
_TAKES = {  # which of their operands may be constants
    "ArrayAppendStmt": ("value",),
    "AssignVarStmt": ("source",),
    "AssignVarOnceStmt": ("source",),
    "EqualStmt": ("a", "b"),
    "NotEqualStmt": ("a", "b"),
    "ObjectInsertStmt": ("key", "value"),
    "ObjectInsertOnceStmt": ("key", "value"),
    "SetAddStmt": ("value",),
}
_MUTE = {  # they can do no more than fail, and give a local its value
    *("AssignVarStmt", "DotStmt", "EqualStmt", "IsArrayStmt", "IsDefinedStmt", "IsObjectStmt"),
    *("IsSetStmt", "IsUndefinedStmt", "LenStmt", "MakeArrayStmt", "MakeNullStmt", "MakeObjectStmt"),
    *("MakeNumberIntStmt", "MakeNumberRefStmt", "MakeSetStmt", "NotEqualStmt", "ResetLocalStmt"),
}
_WRITES = ("target", "result", "object", "array", "set")
_NO_LOCALS = {"file", "row", "col", "index", "capacity"}
_PLAIN = re.compile(r"[ !#-\[\]-~]*")  # the engine takes an escape for another text

_Statement = dict[str, Any]  # {"type", "stmt"}
_Values = dict[int, Any]  # of locals


class _Part(NamedTuple):
    """What is left of statements. ``fails`` if the last one never holds; ``mute`` if up to there
    nothing is done but to give locals their values."""

    left: list[_Statement]
    fails: bool = False
    mute: bool = True


def folded(plan: Any, data: Mapping[str, Any]) -> Any:
    """The plan.json that the engine saves, changed in place."""
    statements = list(_statements(_parts(plan)))
    writes = Counter(local for each in statements for local in _written(each))
    if {each["type"] for each in statements} <= _UNDERSTOOD and not writes[_DATA]:
        mentions = Counter(local for each in statements for local in _mentioned(each))
        folding = _Folding(plan["static"]["strings"], writes, mentions)
        known = {_DATA: {key: value for key, value in data.items() if key != "agentd"}}
        more = True
        while more:
            for part in _parts(plan):
                for block in part["blocks"]:
                    block["stmts"] = folding.block(block["stmts"], dict(known)).left
            _drop_unused(plan, folding.settled)
            more = folding.learn(plan["funcs"]["funcs"])
        _drop_uncalled(plan)
    return plan


class _Folding:
    def __init__(
        self, strings: list[Any], writes: Mapping[int, int], mentions: Mapping[int, int]
    ) -> None:
        self._strings = strings
        self._writes = writes
        self._mentions = mentions
        self.settled: dict[int, _Statement] = {}  # by id: look-ups that cannot fail
        self._rules: dict[str, dict[str, Any]] = {}  # those that are constants

    def learn(self, functions: Iterable[Any]) -> bool:
        """Finds rules that became constants; whether there are new ones."""
        before = len(self._rules)
        for each in functions:
            source = _returned(each)
            if self._value(source) is not None:
                self._rules[each["name"]] = source
        return len(self._rules) > before

    def block(self, statements: Iterable[_Statement], known: _Values) -> _Part:
        """``known`` gets what becomes known on the way."""
        left: list[_Statement] = []
        mute = True
        for each in statements:
            self._insert(each, known)
            part = self._statement(each, known)
            left += part.left
            mute = mute and part.mute
            if part.fails:
                return _Part(left, True, mute)
        return _Part(left, False, mute)

    def _statement(self, each: _Statement, known: _Values) -> _Part:
        kind, body = each["type"], each["stmt"]
        if kind == "BlockStmt":
            return self._blocks(each, known)
        if kind == "NotStmt":
            return self._not(each, known)
        if kind == "ScanStmt":
            body["block"]["stmts"] = self.block(body["block"]["stmts"], dict(known)).left
        elif kind == "DotStmt":
            return self._member(each, known)
        elif kind == "AssignVarStmt":
            return self._assign(each, self._value(body["source"]), known)
        elif kind == "CallStmt" and body["func"] in self._rules:
            source = self._rules[body["func"]]
            each = _assignment(source, body["result"])
            return self._assign(each, self._value(source), known)
        elif kind == "CallStmt" and body["func"] == "neq":
            same = self._same(*body["args"])
            if same is not None:
                return self._assign(_assignment(_truth(not same), body["result"]), not same, known)
        elif kind in ("EqualStmt", "NotEqualStmt"):
            same = self._same(body["a"], body["b"])
            if same is not None:
                fails = same != (kind == "EqualStmt")
                return _Part([each] if fails else [], fails)
        elif kind == "IsDefinedStmt" and body["source"] in known:
            return _Part([])
        return _Part([each], False, kind in _MUTE)

    def _blocks(self, each: _Statement, known: _Values) -> _Part:
        kept = []
        for block in each["stmt"]["blocks"]:
            inside = _count(block["stmts"])
            part = self.block(block["stmts"], dict(known))
            if not self._is_nothing(part, inside):
                kept.append({"stmts": part.left})
        each["stmt"]["blocks"] = kept
        return _Part([each], False, False) if kept else _Part([])

    def _not(self, each: _Statement, known: _Values) -> _Part:
        block = each["stmt"]["block"]
        inside = _count(block["stmts"])
        part = self.block(block["stmts"], dict(known))
        if self._is_nothing(part, inside):
            return _Part([])
        block["stmts"] = part.left
        if not part.fails and self._holds(part.left):
            return _Part([each], True)
        return _Part([each], False, False)

    def _holds(self, statements: Sequence[_Statement]) -> bool:
        """Whether they hold, whatever was before: assignments, and that those were made."""
        made = set()
        for each in statements:
            kind, body = each["type"], each["stmt"]
            if kind == "ResetLocalStmt":
                made.discard(body["target"])
            elif kind == "AssignVarStmt" and body["source"]["type"] != "local":
                made.add(body["target"])
            elif id(each) not in self.settled and not (
                kind == "IsDefinedStmt" and body["source"] in made
            ):
                return False
        return True

    def _is_nothing(self, part: _Part, inside: Mapping[int, int]) -> bool:
        """Whether a block that had these mentions of locals fails, and nobody would notice."""
        if not (part.fails and part.mute):
            return False
        written = (local for each in _statements(part.left) for local in _written(each))
        return all(self._mentions[local] == inside[local] for local in written)

    def _member(self, each: _Statement, known: _Values) -> _Part:
        source, key = each["stmt"]["source"], each["stmt"]["key"]
        of = known.get(source["value"]) if source["type"] == "local" else None
        if type(of) is not dict or key["type"] != "string_index":
            return _Part([each])
        name = str(self._strings[key["value"]]["value"])
        if name not in of or not _PLAIN.fullmatch(name):
            return _Part([each])
        # The engine cannot tell this assignment, where it is used at all, from the look-up.
        constant = self._constant(of[name])
        each = _assignment(constant, each["stmt"]["target"]) if constant else each
        self.settled[id(each)] = each
        return self._assign(each, of[name], known)

    def _assign(self, each: _Statement, value: Any, known: _Values) -> _Part:
        """A statement that gives its target this value, and cannot fail."""
        target = each["stmt"]["target"]
        if value is not None and self._writes[target] == 1:
            known[target] = value
        return _Part([each])

    def _insert(self, each: _Statement, known: _Values) -> None:
        """Constants for the operands that are known."""
        body = each["stmt"]
        for name in _TAKES.get(each["type"], ()):
            body[name] = self._operand(body[name], known)
        if each["type"] == "CallStmt":
            body["args"] = [self._operand(argument, known) for argument in body["args"]]

    def _operand(self, operand: dict[str, Any], known: _Values) -> dict[str, Any]:
        value = known.get(operand["value"]) if operand["type"] == "local" else None
        return self._constant(value) or operand

    def _constant(self, value: Any) -> dict[str, Any] | None:
        if type(value) is bool:
            return _truth(value)
        if type(value) is str and _PLAIN.fullmatch(value):
            return {"type": "string_index", "value": self._index(f'"{value}"')}
        return None

    def _index(self, text: str) -> int:
        for index, each in enumerate(self._strings):
            if each["value"] == text:
                return index
        self._strings.append({"value": text})
        return len(self._strings) - 1

    def _value(self, operand: dict[str, Any]) -> str | bool | None:
        """A constant's; None for others."""
        if operand.get("type") == "bool":
            return bool(operand["value"])
        if operand.get("type") != "string_index":
            return None
        text = str(self._strings[operand["value"]]["value"])
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        return text[1:-1] if quoted and _PLAIN.fullmatch(text[1:-1]) else None

    def _same(self, a: dict[str, Any], b: dict[str, Any]) -> bool | None:
        one, other = self._value(a), self._value(b)
        if one is None or type(one) is not type(other):
            return None
        return one == other


def _returned(function: Any) -> dict[str, Any]:
    """The operand that a rule always has as its value; {} where it is not so plain."""
    result = function["return"]
    match [each for block in function["blocks"] for each in block["stmts"]]:
        case [
            {"type": "ResetLocalStmt", "stmt": {"target": reset}},
            {"type": "BlockStmt", "stmt": {"blocks": [{"stmts": [only]}]}},
            {"type": "IsDefinedStmt", "stmt": {"source": defined}},
            {"type": "ReturnLocalStmt", "stmt": {"source": returned}},
        ] if only["type"] == "AssignVarOnceStmt":
            locals_ = {reset, only["stmt"]["target"], defined, returned}
            if locals_ == {result} and len(function["params"]) == _ARGUMENTS:
                source: dict[str, Any] = only["stmt"]["source"]
                return source
    return {}


def _drop_unused(plan: Any, settled: Mapping[int, _Statement]) -> None:
    """Assignments, and look-ups that cannot fail, of locals that nothing else mentions."""
    dropped = True
    while dropped:
        mentions = _count(_parts(plan))
        mentions.update(each["return"] for each in plan["funcs"]["funcs"])
        unused = {
            id(each)
            for each in _statements(_parts(plan))
            if (each["type"] == "AssignVarStmt" or id(each) in settled)
            and mentions[each["stmt"]["target"]] == 1
        }
        for part in _parts(plan):
            part["blocks"] = _without(part["blocks"], unused)
        dropped = bool(unused)


def _without(blocks: list[Any], unused: Set[int]) -> list[Any]:
    for block in blocks:
        block["stmts"] = [each for each in block["stmts"] if id(each) not in unused]
        for each in block["stmts"]:
            body = each["stmt"]
            if "blocks" in body:
                body["blocks"] = _without(body["blocks"], unused)
            elif "block" in body:
                _without([body["block"]], unused)
    return [block for block in blocks if block["stmts"]]


def _drop_uncalled(plan: Any) -> None:
    functions = {each["name"]: each for each in plan["funcs"]["funcs"]}
    called: set[str] = set()
    ahead = list(plan["plans"]["plans"])
    while ahead:
        for each in _statements(ahead.pop()):
            name = each["stmt"].get("func")
            if name in functions and name not in called:
                called.add(name)
                ahead.append(functions[name])
    plan["funcs"]["funcs"] = [each for name, each in functions.items() if name in called]


def _parts(plan: Any) -> list[Any]:
    return [*plan["plans"]["plans"], *plan["funcs"]["funcs"]]


def _assignment(source: dict[str, Any], target: int) -> _Statement:
    return {"type": "AssignVarStmt", "stmt": {"source": source, "target": target}}


def _truth(value: bool) -> dict[str, Any]:
    return {"type": "bool", "value": value}


def _count(value: Any) -> Counter[int]:
    return Counter(local for each in _statements(value) for local in _mentioned(each))


def _statements(value: Any) -> Iterator[_Statement]:
    """Those of parts, of blocks, or of a list of statements, and those within them."""
    if isinstance(value, list):
        for member in value:
            yield from _statements(member)
    elif "stmt" in value:
        yield value
        inner = value["stmt"].get("blocks") or value["stmt"].get("block")
        if inner:
            yield from _statements(inner)
    else:
        yield from _statements(value["stmts"] if "stmts" in value else value["blocks"])


def _written(each: _Statement) -> Iterator[int]:
    body = each["stmt"]
    names = ("key", "value") if each["type"] == "ScanStmt" else _WRITES
    yield from (body[name] for name in names if isinstance(body.get(name), int))


def _mentioned(each: _Statement) -> Iterator[int]:
    """At least the locals that the statement itself mentions."""
    for key, value in each["stmt"].items():
        if key in _NO_LOCALS:
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        for operand in value if key == "args" else (value,):
            if isinstance(operand, dict) and operand.get("type") == "local":
                yield operand["value"]
