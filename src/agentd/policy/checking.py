"""What is wrong with a bundle, before it decides anything.

The engine itself compiles names that nothing defines; they show when a decision is made, so a call
of each kind is tried, too.
"""

import os
import re

import msgspec

from agentd.model.decision import Asked
from agentd.policy import build, lint, source
from agentd.policy.build import Built
from agentd.policy.engine import PolicyEngine
from agentd.policy.errors import BundleError, BundleProblem
from agentd.policy.example import example
from agentd.policy.source import MANIFEST, BundleSource
from agentd.policy.workplace import workplace

_DECISION = re.compile(r"^(default\s+)?decision\b", re.MULTILINE)


def check(where: str) -> list[BundleProblem]:
    """List all problems of the bundle at a path, or of the shipped one of that name."""
    try:
        found = source.read(where)
        problems = _decides(found) + _unused(found)
        return problems + _compiles(found)
    except BundleError as error:
        return error.problems


def _decides(found: BundleSource) -> list[BundleProblem]:
    own = [text for text in found.modules.values() if lint.package(text) == "agentd"]
    if any(_DECISION.search(text) for text in own):
        return []
    return [BundleProblem("", 0, "no module of the package agentd has a rule named decision")]


def _unused(found: BundleSource) -> list[BundleProblem]:
    problems = []
    for name, text in found.modules.items():
        package = lint.package(text)
        others = [t for n, t in found.modules.items() if n != name]
        if package != "agentd" and not any(package in t for t in others):
            problems.append(
                BundleProblem(MANIFEST, 0, f"{name} is unused: nothing names {package}")
            )
    for key in msgspec.json.decode(found.data, type=dict[str, object]):
        uses = re.compile(rf"\bdata(\.{re.escape(key)}\b|\[)")
        if not any(uses.search(text) for text in found.modules.values()):
            problems.append(BundleProblem(MANIFEST, 0, f"data.{key} is unused"))
    return problems


def _compiles(found: BundleSource) -> list[BundleProblem]:
    with workplace() as folder:
        path = os.path.join(folder, "policy")
        done = build.compiled(found, path)
        build.compiled(found, os.path.join(folder, "tests"), found.tests)
        engine = PolicyEngine(Built(found.digest, path, done.reads), workers=1, seconds=5.0)
        try:
            reasons = {engine.decide(asked).undecided: asked for asked in _samples()}
        finally:
            engine.close()
    return [
        BundleProblem("", 0, f"a call of {asked.capability['name']} is undecided: {why}")
        for why, asked in reasons.items()
        if why
    ]


def _samples() -> list[Asked]:
    return [
        example(name, parameters, scopes=scopes)
        for scopes in ((), ("run", "read", "files", "create"), ("admin",))
        for name, parameters in (
            ("shell.exec.v1", {"command": "true", "args": []}),
            ("fs.read.v1", {"path": "/etc/passwd"}),
            ("fs.write.v1", {"path": "/workspace/a", "content": "a"}),
            ("http.fetch.v1", {"url": "https://example.org/", "method": "GET"}),
            ("sandbox.create.v1", {"isolation": "namespace"}),
            ("some.other.v1", {}),
        )
    ]
