"""What the data settles is left out of a compiled policy, and what it decides stays the same."""

import json

import pytest
import regopy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.policy import source
from agentd.policy.build import ENTRYPOINTS
from agentd.policy.folding import folded
from agentd.policy.program import Program, Unevaluated, compile_to

DATA = {
    "p": {"word": "any", "yes": True, "no": False, "list": ["a"], "back": "a\\b", "nil": None},
    "a\\nb": {"c": "word"},
}


class Compiler:
    def __init__(self, folder):
        self.folder = folder

    def plain(self, modules, data, entrypoints=("agentd/decision",)):
        builder = self._builder(modules, data)
        path = str(self.folder / "plain")
        bundle = builder.build(None, list(entrypoints))
        builder.save_bundle(path, bundle, regopy.BundleFormat.Binary)
        return Program(path)

    def folded(self, modules, data, entrypoints=("agentd/decision",)):
        path = str(self.folder / "folded")
        compile_to(path, modules, data.encode(), list(entrypoints))
        return Program(path)

    def plan(self, rules, data=DATA):
        builder = self._builder(module(rules), json.dumps(data))
        bundle = builder.build(None, ["agentd/decision"])
        builder.save_bundle(str(self.folder / "json"), bundle, regopy.BundleFormat.JSON)
        return json.loads((self.folder / "json" / "plan.json").read_bytes())

    def _builder(self, modules, data):
        builder = regopy.Interpreter()
        builder.log_level = regopy.LogLevel.NONE
        builder.add_data_json(data)
        for name, text in modules.items():
            builder.add_module(name, text)
        return builder


@pytest.fixture
def compiler(tmp_path):
    return Compiler(tmp_path)


def module(rules):
    return {"a.rego": f"package agentd\n\nimport rego.v1\n\n{rules}\n"}


def ask(program, document, entrypoint="agentd/decision"):
    try:
        return program.query(entrypoint, document)
    except Unevaluated as error:
        return f"none: {error}"


def kinds(plan):
    found = []
    text = json.dumps(plan)
    for kind in ("Dot", "Equal", "NotEqual", "Call"):
        found += [kind] * text.count(f'"{kind}Stmt"')
    return found


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ("decision := data.p.word", []),
        ('decision if data.p.word == "any"', []),
        ('decision if data.p.word == "none"', []),
        ('decision if data.p.word != "any"', []),
        ('decision if not data.p.word == "any"', []),
        ('decision if { word == "any"; data.p.yes }\n\nword := data.p.word', []),
        ('decision if { data.p.word == "none"; input.a == 1; count(input.b) > 0 }', []),
        ('decision := 1 if { data.p.word == "none" } else := 2', []),
        # What the data does not settle, or could do something besides, is still there.
        ('decision if data.p.back == "a"', ["Dot", "Equal"]),
        ("decision if data.p.lacking == 1", ["Dot", "Equal"]),
        (
            'decision if { count(input.a) > 0; data.p.word == "none" }',
            ["Dot", "Equal", "NotEqual"],
        ),
    ],
)
def test_what_is_left(compiler, rules, left):
    found = kinds(folded(compiler.plan(rules), DATA))
    if left:
        assert set(found) == {"Call", *left}
    else:
        assert found in ([], ["Call"])  # of the entrypoint


@pytest.mark.parametrize(
    "rules",
    [
        "decision := data.p.word",
        "decision := data.p",
        "decision := data.p.nil",
        "decision := [data.p.yes, data.p.no, data.p.back, data.p.list, data.p.word]",
        "decision := data.p.lacking",
        "decision if data.p.no",
        "decision if not data.p.no",
        "decision if not data.p.word",
        'decision if data.p.word == "none"',
        'decision if data.p.back == "a\\\\b"',
        "decision if data.p.word == true",
        "decision if data.p.yes == data.p.no",
        'decision := {data.p.word: data.p.word, "b": data.p.yes}',
        'decision contains data.p.word if data.p.word != "none"',
        "decision := [x | some x in data.p.list]",
        'decision := data["a\\nb"].c',
        'decision := data["a\\\\nb"].c',
        "decision := data.p[input.key]",
        "decision := data.p.word.more",
        "decision := startswith(data.p.word, input.key)",
        "decision := startswith(data.p.list, input.key)",
        'decision if { startswith(input.list, "a"); data.p.word == "none" }',
        'decision := f(data.p.word)\n\nf(x) := [x, input.key] if x == "any"',
        "decision := f(data.p.yes)\n\nf(x) := 1 if x\n\nf(x) := 2 if not x",
        "decision := data.p.word\n\ndecision := input.key",
        'decision := 1 if { data.p.word == "none" } else := 2 if { data.p.yes } else := 3',
        'decision := 1 if { input.key == "word"; data.p.word == "none" } else := input.key',
        "decision := x if { x := word with data.p.word as input.key }\n\nword := data.p.word",
        'decision if { every x in data.p.list { x == "a" } }',
        'decision if { every x in data.p.list { data.p.word == "none" } }',
        'decision := [y | some x in data.p.list; y := [x, data.p.word]; data.p.word == "any"]',
        'decision if not helper\n\nhelper if { data.p.word == "none"; input.key }',
        'decision if not helper\n\nhelper if { input.key; data.p.word == "any" }',
        "decision := [word, word]\n\nword := data.p.word if data.p.yes",
        "decision := word\n\nword := data.p.word if data.p.no",
        "decision := word\n\ndefault word := 1\n\nword := data.p.word if input.key",
    ],
)
def test_the_answer_is_the_same(compiler, rules):
    text = json.dumps(DATA)
    plain, new = compiler.plain(module(rules), text), compiler.folded(module(rules), text)
    for document in ({}, {"key": "word"}, {"key": "list", "list": 5}, {"key": True, "list": "a"}):
        assert ask(new, document) == ask(plain, document)


def test_a_plan_that_is_not_understood_stays(compiler):
    plan = compiler.plan(
        "decision := x if { x := word with data.p.word as 1 }\n\nword := data.p.word"
    )
    before = json.dumps(plan)
    assert json.dumps(folded(plan, DATA)) == before


odd = st.sampled_from([None, False, 1.5, "", "none", "host", [], {}, ["run"], [{"a": 1}]])
documents = st.fixed_dictionaries(
    {
        "principal": st.fixed_dictionaries(
            {
                "name": st.just("bob") | odd,
                "scopes": st.lists(st.sampled_from(["run", "files", "read", "admin"])) | odd,
            }
        ),
        "capability": st.fixed_dictionaries(
            {
                "name": st.sampled_from(
                    ["shell.exec.v1", "fs.write.v1", "http.fetch.v1", "sandbox.create.v1", "a.b.v1"]
                ),
                "needs": st.fixed_dictionaries(
                    {}, optional=dict.fromkeys(("network", "writes", "sandbox"), st.booleans())
                )
                | odd,
            }
        ),
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "path": st.sampled_from(["a", "/etc/a", "/workspace/a", "../a", "/tmp/.."]) | odd,
                "url": st.sampled_from(["https://example.org/", "http://a:1"]) | odd,
                "net": odd,
                "mounts": odd,
                "workspace": odd,
            },
        ),
        "sandbox": st.fixed_dictionaries({}, optional={"net": odd, "mounts": odd}),
    }
)


@pytest.mark.parametrize("name", source.SHIPPED)
def test_the_shipped_ones_decide_the_same(compiler, name):
    found = source.read(name)
    text = found.data.decode()
    plain = compiler.plain(found.modules, text, ENTRYPOINTS)
    new = compiler.folded(found.modules, text, ENTRYPOINTS)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(documents)
    def same(document):
        for entrypoint in ENTRYPOINTS:
            assert ask(new, document, entrypoint) == ask(plain, document, entrypoint)

    same()
