"""The tests of a learned bundle: each call that was seen, and neighbours of it that were not."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from agentd.model.decision import Asked
from agentd.model.errors import InvalidInput
from agentd.policy.learning import JUDGED

_HEAD = """\
package agentd.learned_test

import rego.v1

import data.agentd.calls_test.decide
"""
_ELSEWHERE: Mapping[str, Any] = {
    "path": "/learned-nowhere/file",
    "url": "https://learned-nowhere.invalid/",
    "host": "learned-nowhere.invalid",
    "port": 0,
}


def tests(seen: Sequence[Asked]) -> str:
    """Return the text of a module. Raises InvalidInput for what cannot be written in one."""
    rules = [_HEAD]
    for number, asked in enumerate(seen, 1):
        document = _document(asked)
        rules.append(_rule(f"seen_{number}", document, "decision.allow"))
        rules += [
            _rule(f"unseen_{number}_{what}", neighbour, "not decision.allow")
            for what, neighbour in _neighbours(document)
        ]
    return "\n".join(rules)


def _document(asked: Asked) -> dict[str, Any]:
    """Write it with the parameters that are judged alone: others may be large, and secret."""
    document: dict[str, Any] = msgspec.to_builtins(asked)
    document["parameters"] = {k: v for k, v in asked.parameters.items() if k in JUDGED}
    document["sandbox"] = {
        key: asked.sandbox[key]
        for key in ("level", "net", "egress", "mounts")
        if key in asked.sandbox
    }
    document["request"] = {}
    return document


def _neighbours(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    capability = {**document["capability"], "name": "learned.unseen.v1"}
    yield "capability", {**document, "capability": capability}
    for key, other in _ELSEWHERE.items():
        if key in document["parameters"]:
            yield key, {**document, "parameters": {**document["parameters"], key: other}}
    if document["sandbox"].get("net") != "elsewhere":
        yield "net", {**document, "sandbox": {**document["sandbox"], "net": "elsewhere"}}
    # What a request asks for counts where it asks for any.
    named = "parameters" if "egress" in document["parameters"] else "sandbox"
    rules = {**document[named], "egress": ["learned-nowhere.invalid"]}
    yield "egress", {**document, named: rules}


def _rule(name: str, document: dict[str, Any], expected: str) -> str:
    text = msgspec.json.encode(document).decode()
    if "\\u" in text:
        raise InvalidInput(
            "a call with a control character in a name or path cannot be learned",
            remediation="leave that call out",
        )
    return f"test_{name} if {{\n\tdecision := decide({text})\n\t{expected}\n}}\n"
