import pytest

from agentd.policy.source import SHIPPED, read
from agentd.policy.testing import test as run_tests


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_ones_pass_theirs(name):
    results = run_tests(name)
    assert len(results) > 30
    assert [result for result in results if not result.passed] == []
    assert {result.file for result in results} == {
        f"{module}_test.rego" for module in ("base", "filesystem", "network", "sandbox", "shell")
    }


TESTS = """package agentd.a_test

import rego.v1

test_true if true

test_value := 1

test_false := false

test_undefined if 1 == 2

test_error := 1 + "a"

test_conflict := 1

test_conflict := 2

test_policy if {
    decision := data.agentd.decision with input.capability as {"name": "a"}
    decision.allow
}

todo_test_later if false

helper if false
"""


def test_a_test_passes_where_it_is_true(bundle):
    path = bundle(
        'decision := {"allow": true} if input.capability.name == "a"',
        files={"a_test.rego": TESTS},
    )
    results = {result.name.removeprefix("agentd.a_test."): result for result in run_tests(path)}
    assert {name for name, result in results.items() if result.passed} == {
        "test_true",
        "test_policy",
    }
    assert set(results) - {"test_true", "test_policy"} == {
        "test_value",
        "test_false",
        "test_undefined",
        "test_error",
        "test_conflict",
    }
    assert all(result.message for result in results.values() if not result.passed)
    assert (results["test_value"].file, results["test_value"].line) == ("a_test.rego", 7)
    assert all(result.seconds > 0 for result in results.values())


def test_a_test_that_takes_too_long_fails_and_the_others_run(bundle, monkeypatch):
    monkeypatch.setattr("agentd.policy.testing.SECONDS", 0.2)
    tests = """package agentd.a_test

import rego.v1

test_slow if {
    count([1 | some a in numbers.range(1, 90000); some b in numbers.range(1, 90000); a == b]) > 0
}

test_true if true
"""
    results = run_tests(bundle('decision := {"allow": true}', files={"a_test.rego": tests}))
    assert [result.passed for result in results] == [False, True]
    assert "took more than 0.2 s" in results[0].message


def test_a_bundle_without_tests_has_no_results(bundle):
    assert run_tests(read(bundle('decision := {"allow": true}'))) == []
