import json

import pytest

from agentd.policy.checking import check
from agentd.policy.source import SHIPPED

DECISION = 'decision := {"allow": true}'


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_wrong_with_the_shipped_ones(name):
    assert check(name) == []


def test_a_syntax_error_has_its_file_and_line(bundle):
    problems = check(bundle("a := 1\n\ndecision := {{"))
    assert ("base.rego", 7) in [(problem.file, problem.line) for problem in problems]


def test_a_line_is_counted_in_characters_of_any_size(bundle):
    problems = check(bundle("# äöü€😀\n\ndecision := {{"))
    assert ("base.rego", 7) in [(problem.file, problem.line) for problem in problems]


def test_an_error_in_a_test_is_found(bundle):
    files = {"a_test.rego": "package agentd.a_test\n\ntest_a if {{\n"}
    assert "a_test.rego" in [problem.file for problem in check(bundle(DECISION, files=files))]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("other := 1", "no module of the package agentd has a rule named decision"),
        ('decision := {"allow": lacking.thing(1)}', "Function not found"),
        ("decision := 1", "undecided"),
        ('decision := {"allow": a}\na := b\nb := a', "Recursion"),
        (DECISION + "\nx := opa.runtime()\ndeny contains x", "opa.runtime is not available"),
        (DECISION + '\nx := "\\u00e4"', "write the character itself"),
        (DECISION + "\nx if decision with input as {}", "the engine replaces members alone"),
    ],
)
def test_what_is_wrong_is_said(bundle, rules, message):
    assert message in "; ".join(map(str, check(bundle(rules))))


def test_entries_that_nothing_uses_are_named(bundle):
    path = bundle(DECISION, {"a": 1}, files={"x.rego": "package agentd.x\n\ny := 1\n"})
    assert [str(problem) for problem in check(path)] == [
        "manifest.json: x.rego is unused: nothing names agentd.x",
        "manifest.json: data.a is unused",
    ]


def test_a_package_of_somebody_else_is_refused(bundle):
    manifest = json.dumps({"name": "a", "modules": ["base.rego", "x.rego"]})
    path = bundle(DECISION, files={"x.rego": "package other\n", "manifest.json": manifest})
    assert "its package must be agentd" in str(check(path)[0])
