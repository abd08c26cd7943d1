import pytest

from agentd.policy.engine import pruned
from agentd.policy.example import example
from agentd.policy.program import compile_to
from agentd.policy.reads import reads


@pytest.fixture
def reads_of(tmp_path):
    def compiled(rules):
        text = f"package agentd\n\nimport rego.v1\n\n{rules}\n"
        return compile_to(str(tmp_path / "out"), {"a.rego": text}, b"{}", ["agentd/decision"])[1]

    return compiled


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("decision := 1", {}),
        ("decision := input.a.b", {"a": {"b"}}),
        ("decision := input.a.b.c", {"a": {"b": {"c"}}}),
        ("decision := [input.a.b.c, input.a.b]", {"a": {"b"}}),
        ("decision := [input.a.b.c, input.a.d]", {"a": {"b": {"c"}, "d": None}}),
        ("decision := input.a.b[data.key]", {"a": {"b"}}),
        ("decision := x if { some x in input.a.b.c }", {"a": {"b": {"c"}}}),
        ("decision := [input.a.b, input.a.c]", {"a": {"b", "c"}}),
        ("decision := input.a", {"a": None}),
        ("decision := [input.a.b, input.a]", {"a": None}),
        ('decision := object.get(input.a, "b", 1)', {"a": None}),
        ("decision := count(input.a)", {"a": None}),
        ("decision := [x | some x in input.a]", {"a": None}),
        ("decision := input.a[data.key]", {"a": None}),
        ("decision := f(input.a)\nf(x) := x.b", {"a": None}),
        ("decision := x\nx := y\ny := input.a.b", {"a": {"b"}}),
        ("decision := true if not input.a.b", {"a": {"b"}}),
        ("decision := x if { y := input.a; x := y.b }", {"a": None}),
    ],
)
def test_what_is_read_is_found(reads_of, rules, expected):
    assert reads_of(rules) == _tree(expected)


def _tree(expected):
    """A set is short for members that are read as a whole."""
    if isinstance(expected, dict):
        return {name: _tree(of) for name, of in expected.items()}
    return expected if expected is None else dict.fromkeys(expected)


def test_what_is_read_most_is_first(reads_of):
    found = reads_of("decision := [input.a.b, input.c.d, input.c.e, input.c.e]")
    assert list(found) == ["c", "a"] and list(found["c"]) == ["e", "d"]


@pytest.mark.parametrize(
    "rules",
    [
        "decision := input",
        "decision := count(input)",
        "decision := input[data.key]",
        "decision := [x | some x in input]",
        "decision := [p | walk(input, [p, _])]",
        "decision := f(input)\nf(x) := x.a",
        "decision := x if { y := input; x := y.a }",
        "decision := x if { x := y with input.a as 1 }\ny := input.a",
        "decision := object.keys(input)",
    ],
)
def test_where_it_is_not_plain_all_is_read(reads_of, rules):
    assert reads_of(rules) is None


def test_a_statement_that_is_not_known_reads_all():
    plan = {
        "static": {"strings": []},
        "plans": {},
        "funcs": [{"type": "NewStmt", "stmt": {"anything": 0}}],
    }
    assert reads(plan) is None


def test_pruning_keeps_what_is_read():
    document = {"a": {"b": 1, "c": 2}, "d": {"e": 3}, "f": [1], "g": None, "h": {"i": {"j": 1}}}
    assert pruned(document, {"a": {"b": None}, "d": None, "f": {"x": None}}) == {
        "a": {"b": 1},
        "d": {"e": 3},
        "f": [1],
    }
    assert pruned(document, {"lacking": None, "g": {"b": None}}) == {"g": None}
    assert pruned(document, {"h": {"i": {"k": None}}}) == {"h": {"i": {}}}
    assert pruned(document, None) is document


def test_the_shipped_ones_do_not_read_contents(store):
    for name in ("permissive", "strict", "paranoid"):
        read = store(name)._now.built.reads
        assert read is not None
        assert "request" not in read
        assert not {"content", "command", "args", "env", "code"} & read["parameters"].keys()
        assert "level" not in read["capability"]["needs"]


def test_a_policy_may_read_all_and_then_does(bundle, store):
    rules = """
decision := {"allow": true, "reasons": [input.request.via, input[member].name]}

member := "capability"
"""
    decision = store(bundle(rules)).decide(example("x.v1", {}))
    assert decision.reasons == ("cli", "x.v1")
