import threading

import pytest

from agentd.model.decision import Decision, Obligations
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.policy.engine import MAX_ASKED, MAX_REMEMBERED, Fired
from agentd.policy.example import example

CALL = example("shell.exec.v1", {"command": "ls"}, principal="bob", scopes=["run"])


def test_a_decision_has_all_that_the_policy_said(bundle, store):
    path = bundle("""
decision := {"allow": true, "reasons": {"a", "b"}, "obligations": {
    "level": "microvm", "limits": {"memory": 1024, "cpus": 0.5}, "no_network": true,
    "approve": true}}
""")
    opened = store(path)
    assert opened.decide(CALL) == Decision(
        allow=True,
        reasons=("a", "b"),
        obligations=Obligations(
            IsolationLevel.MICROVM, Limits(memory=1024, cpus=0.5), no_network=True, approve=True
        ),
        bundle=opened.digest,
    )


@pytest.mark.parametrize(
    "rules",
    [
        "other := 1",
        "decision := 1",
        "decision := true",
        'decision := "allow"',
        'decision := {"allow": 1}',
        'decision := {"allow": "true"}',
        'decision := {"allow": null}',
        'decision := {"reasons": []}',
        'decision := {"allow": true, "reasons": "all"}',
        'decision := {"allow": true, "reasons": [1]}',
        'decision := {"allow": true, "more": 1}',
        'decision := {"allow": true, "obligations": {"more": 1}}',
        'decision := {"allow": true, "obligations": {"level": "wall"}}',
        'decision := {"allow": true, "obligations": {"level": 4}}',
        'decision := {"allow": true, "obligations": {"limits": {"memory": -1}}}',
        'decision := {"allow": true, "obligations": {"limits": {"memory": 1.5}}}',
        'decision := {"allow": true, "obligations": {"no_network": null}}',
        'decision := {"allow": true} if input.request.nothing',
        'decision := {"allow": true, "reasons": [sprintf("%d", [input.nothing])]}',
        'decision := {"allow": true}\n\ndecision := {"allow": false}',
    ],
)
def test_what_is_no_decision_is_undecided(bundle, store, rules):
    decision = store(bundle(rules)).decide(CALL)
    assert not decision.allow
    assert decision.undecided
    assert decision.bundle


def test_a_denial_is_no_lack_of_a_decision(bundle, store):
    decision = store(bundle('decision := {"allow": false, "reasons": ["no"]}')).decide(CALL)
    assert (decision.allow, decision.undecided, decision.reasons) == (False, "", ("no",))


def test_what_is_asked_again_is_not_asked_of_the_engine(bundle, store):
    opened = store(bundle('decision := {"allow": input.capability.name == "shell.exec.v1"}'))
    first = opened.decide(CALL)
    assert first.allow
    opened._pool.close()  # nobody is left who could decide
    assert opened.decide(CALL) is first
    other = opened.decide(example("fs.read.v1", {}))
    assert not other.allow and other.undecided == "the policy engine is closed"


def test_what_differs_in_a_member_that_is_read_is_asked_anew(bundle, store):
    opened = store(bundle('decision := {"allow": input.parameters.a == 1}'))
    assert opened.decide(example("x.v1", {"a": 1})).allow
    assert not opened.decide(example("x.v1", {"a": 2})).allow
    assert opened.decide(example("x.v1", {"a": 1, "b": 2})).allow
    assert len(opened._now.answers) == 2


def test_what_is_remembered_is_bounded(bundle, store, monkeypatch):
    monkeypatch.setattr("agentd.policy.engine.MAX_REMEMBERED", 3)
    opened = store(bundle('decision := {"allow": input.parameters.a > 0}'))
    for a in range(8):
        opened.decide(example("x.v1", {"a": a}))
        assert len(opened._now.answers) <= 3
    assert MAX_REMEMBERED == 1024
    opened.decide(example("x.v1", {"a": "a" * 5000}))
    assert all(len(document) < 5000 for document in opened._now.answers)


def test_threads_have_their_own_answers(bundle, store):
    opened = store(
        bundle('decision := {"allow": true, "reasons": [input.parameters.who]}'),
        workers=2,
        remember=False,
    )
    wrong = []

    def ask(who):
        for _ in range(50):
            decision = opened.decide(example("x.v1", {"who": who}))
            if decision.reasons != (who,):
                wrong.append(decision)

    threads = [threading.Thread(target=ask, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_a_policy_reads_is_bounded_and_what_it_does_not_read_is_nothing_to_it(bundle, store):
    large = example("x.v1", {"content": "a" * (10 << 20)})
    opened = store(bundle('decision := {"allow": true} if input.parameters.content != ""'))
    opened._pool.close()  # it is not even asked
    decision = opened.decide(large)
    assert not decision.allow
    assert decision.undecided == (
        "the policy reads 10240 KiB of the request, and 1024 KiB are the most that it may"
    )
    assert MAX_ASKED == 1 << 20
    other = store(bundle('decision := {"allow": true} if input.capability.name == "x.v1"'))
    assert other.decide(large).allow


@pytest.mark.parametrize("odd", [object(), {1: object()}, 1 << 70, {"a": 1 << 64}, "\ud800"])
def test_what_is_not_json_is_undecided(bundle, store, odd):
    opened = store(bundle('decision := {"allow": true} if input.parameters.odd'))
    decision = opened.decide(example("x.v1", {"odd": odd}))
    assert not decision.allow and decision.undecided


def test_an_explanation_has_every_rule_that_spoke(store):
    asked = example("fs.write.v1", {"path": "/etc/x"}, principal="bob", scopes=["files"])
    found = store("strict").explain(asked)
    assert not found.decision.allow
    assert found.fired == (
        Fired("deny", "filesystem.outside", "it writes outside /workspace and /tmp"),
        Fired("grant", "scopes.held", "bob holds the scope files"),
    )


def test_an_explanation_of_no_decision_says_why(bundle, store):
    found = store(bundle("other := 1")).explain(CALL)
    assert found.fired == ()
    assert found.decision.undecided == "data.agentd.decision is undefined"


def test_a_bundle_without_sets_of_reasons_has_nothing_fired(bundle, store):
    found = store(bundle('decision := {"allow": true}')).explain(CALL)
    assert found.decision.allow and found.fired == ()


def test_after_close_there_is_no_decision(bundle, store):
    opened = store(bundle('decision := {"allow": true}'))
    assert opened.decide(CALL).allow
    opened.close()
    decision = opened.decide(CALL)
    assert not decision.allow and "closed" in decision.undecided
