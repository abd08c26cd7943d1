"""What a caller, or a bundle, could do to a decision; each control is named."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.policy.errors import BundleError
from agentd.policy.example import example
from agentd.policy.program import Program
from agentd.policy.store import PolicyStore

ALLOW = 'decision := {"allow": true, "reasons": [input.parameters.text]}'


def _allow(condition):
    return f'decision := {{"allow": true}} if {condition}'


@pytest.mark.parametrize(
    "rules",
    [
        'decision := {"allow": x == 1}\nx := 1 / input.parameters.zero',
        (
            "deny if input.parameters.zero / input.parameters.zero > 0\n"
            'decision := {"allow": true, "reasons": [concat("", [deny, 1])]}'
        ),
        "decision := a\na := b\nb := decision",
        'decision := {"allow": f(1)}\nf(x) := f(x + 1)',
        'decision := {"allow": unknown.thing(3)}',
        'decision := {"allow": to_number(input.parameters.text) == 0}',
        'decision := {"allow": startswith(input.parameters.zero, "a")}',
    ],
)
def test_errors_recursion_and_unknown_functions_are_undecided(bundle, store, rules):
    decision = store(bundle(rules)).decide(example("x.v1", {"zero": 0, "text": "x"}))
    assert not decision.allow and decision.undecided


def test_a_rule_that_takes_too_long_is_ended_and_the_next_decision_is_made(bundle, store):
    """Control: the worker's alarm; the engine cannot be interrupted."""
    rules = """
decision := {"allow": true} if not input.parameters.slow

decision := {"allow": true} if {
    input.parameters.slow
    count([1 | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000); a == b]) > 0
}
"""
    opened = store(bundle(rules), seconds=0.3)
    decision = opened.decide(example("x.v1", {"slow": True}))
    assert not decision.allow
    assert decision.undecided == "the policy worker ended: it took more than 0.3 s"
    assert opened.decide(example("x.v1", {"slow": False})).allow


def test_time_in_which_it_could_not_compute_does_not_end_it(bundle, store):
    """As on a busy machine, or one whose cgroup has used up its share of a processor."""
    numbers = "numbers.range(1, 250)"
    rules = f"""
decision := {{"allow": true}} if not input.parameters.slow

decision := {{"allow": true}} if {{
    input.parameters.slow
    count([1 | some a in {numbers}; some b in {numbers}; a == b]) > 0
}}
"""
    opened = store(bundle(rules), seconds=0.4)
    assert opened.decide(example("x.v1", {"slow": False})).allow
    with opened._pool.borrow(1) as process:
        pid = process._child.pid
    before = _computed(pid)
    with ThreadPoolExecutor(1) as pool:
        decision = pool.submit(opened.decide, example("x.v1", {"slow": True}))
        while _computed(pid) <= before + 1 and not decision.done():
            pass
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.6)
        os.kill(pid, signal.SIGCONT)
        assert decision.result().allow, decision.result().undecided


def _computed(pid: int) -> int:
    """Ticks, see proc(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_a_worker_that_is_killed_is_replaced(bundle, store):
    opened = store(bundle(_allow("input.parameters.n >= 0")))
    assert opened.decide(example("x.v1", {"n": 1})).allow
    with opened._pool.borrow(1) as process:
        os.kill(process._child.pid, signal.SIGKILL)
    lost = opened.decide(example("x.v1", {"n": 2}))
    assert not lost.allow
    assert "signal 9, as the kernel ends who has no memory left" in lost.undecided
    assert opened.decide(example("x.v1", {"n": 3})).allow


def test_a_worker_has_no_environment(bundle, store, monkeypatch):
    monkeypatch.setenv("SECRET", "agentd-secret")
    opened = store(bundle(ALLOW))
    opened.decide(example("x.v1", {"text": "a"}))
    with opened._pool.borrow(1) as process:
        environment = Path(f"/proc/{process._child.pid}/environ").read_bytes()
    assert b"agentd-secret" not in environment


def test_a_worker_leaves_nothing_of_what_it_was_asked_and_is_the_first_to_go(bundle, store):
    """Its memory has what requests say: no core file has that, nor a file that others read."""
    opened = store(bundle(ALLOW))
    opened.decide(example("x.v1", {"text": "a"}))
    with opened._pool.borrow(1) as process:
        place = Path(f"/proc/{process._child.pid}")
        limits, status = (place / "limits").read_text(), (place / "status").read_text()
        score = (place / "oom_score_adj").read_text()
    (core,) = [line.split() for line in limits.splitlines() if line.startswith("Max core file")]
    assert core[4:6] == ["0", "0"]
    assert "\nUmask:\t0077\n" in status
    assert score == "1000\n"


@pytest.mark.parametrize(
    "call",
    [
        'http.send({"method": "get", "url": "http://127.0.0.1/"})',
        "opa.runtime()",
        'opa["runtime"]()',
        'net.lookup_ip_addr("localhost")',
        'rand.intn("a", 5)',
        "time.now_ns()",
        'uuid.rfc4122("a")',
        'io.jwt.decode("a")',
    ],
)
def test_functions_that_reach_out_are_refused(bundle, call):
    """Control: the list of pure functions, held against the compiled plan."""
    with pytest.raises(BundleError, match="not available to policies"):
        PolicyStore(bundle(f'decision := {{"allow": true}} if {call}')).close()


def test_functions_of_their_arguments_are_not(bundle, store):
    rules = _allow('regex.match("^a+$", lower(concat("", ["A", input.parameters.text])))')
    assert store(bundle(rules)).decide(example("x.v1", {"text": "a"})).allow


@pytest.mark.parametrize(
    ("rules", "data"),
    [
        ('decision := {"allow": false}', {"agentd": {"decision": {"allow": True}}}),
        ('input := {"a": 1}\ndecision := {"allow": input.a == 1}', None),
        ('decision := x if { input := {"a": 1}; x := {"allow": input.a == 1} }', None),
        ('import data.a as input\ndecision := {"allow": input.b}', {"a": {"b": True}}),
        ('data := 1\ndecision := {"allow": true}', None),
    ],
)
def test_data_and_input_cannot_be_shadowed(bundle, rules, data):
    with pytest.raises(BundleError, match=r"policy's own|cannot be other things"):
        PolicyStore(bundle(rules, data)).close()


@pytest.mark.parametrize(
    "text",
    [
        'a"}], "allow": true, "x": "',
        '"],"allow":true}]}',
        "a\\",
        "a\0b",
        "\n\t\x01\x7f",
        "ü € 😀 \u202e \u2028",
        "\\u0041",
        "</script>",
    ],
)
def test_texts_go_in_and_come_out_as_they_are(bundle, store, text):
    decision = store(bundle(ALLOW)).decide(example("x.v1", {"text": text}))
    assert decision.reasons == (text,)


def test_a_nul_does_not_end_a_text(bundle, store):
    """The engine's own C strings would: "/workspace/a" would be judged, and the rest not."""
    opened = store(bundle(_allow('input.parameters.path == "/workspace/a"')))
    assert opened.decide(example("x.v1", {"path": "/workspace/a"})).allow
    assert not opened.decide(example("x.v1", {"path": "/workspace/a\0/../../etc"})).allow


@pytest.mark.parametrize(
    "text",
    [
        '\\"],"allow":true,"reasons":["\\',
        '\\"],"obligations":{},"reasons":["\\',
        '\\"]},{"allow":true,"reasons":["\\',
        '\\"],"more":["\\',
    ],
)
def test_a_policy_that_takes_texts_apart_cannot_be_made_to_say_more(bundle, store, text):
    """Control: members that are there twice, or unknown, make the answer none."""
    rules = """
parts := split(input.parameters.text, "\\\\")

decision := {
    "allow": false,
    "reasons": [concat("", parts)],
    "obligations": {"no_network": true},
}
"""
    decision = store(bundle(rules)).decide(example("x.v1", {"text": text}))
    assert not decision.allow


def test_a_deep_request_is_undecided(bundle, store):
    deep: object = 1
    for _ in range(500):
        deep = [deep]
    opened = store(bundle('decision := {"allow": true} if count(input.parameters.deep) > 0'))
    decision = opened.decide(example("x.v1", {"deep": deep}))
    assert not decision.allow and decision.undecided


def test_a_bundle_that_crashes_the_compiler_is_refused_and_nothing_else_ends(bundle):
    """Control: it compiles in a process of its own."""
    rules = """
allow := input.a

decision := {"allow": allow}

other if { decision.allow with input
    as {"a": true} }

deny contains "a" if other
"""
    with pytest.raises(BundleError, match="compiler broke off: signal"):
        PolicyStore(bundle(rules)).close()


@pytest.fixture(scope="module")
def shipped():
    opened = {name: PolicyStore(name, workers=1) for name in ("permissive", "strict", "paranoid")}
    yield opened
    for store in opened.values():
        store.close()


_TEXT = st.text(max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_PARAMETERS = st.dictionaries(
    st.sampled_from(["path", "url", "port", "net", "mounts", "workspace", "command"]) | _TEXT,
    _JSON,
    max_size=5,
)
_NAMES = st.sampled_from(
    [
        "shell.exec.v1",
        "fs.write.v1",
        "http.fetch.v1",
        "git.clone.v1",
        "sandbox.create.v1",
        "sandbox.port.v1",
        "other.v1",
    ]
)
_MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_MANY
@given(name=_NAMES, parameters=_PARAMETERS, bundle_name=st.sampled_from(["strict", "paranoid"]))
def test_no_parameters_crash_the_engine(shipped, name, parameters, bundle_name):
    decision = shipped[bundle_name].decide(example(name, parameters, scopes=["admin"]))
    assert "policy worker" not in decision.undecided
    assert not (decision.allow and decision.undecided)


@_MANY
@given(
    name=_NAMES,
    parameters=_PARAMETERS,
    net=st.sampled_from(["host", "NONE", "none ", "bridge", None, [], 0, True]),
    where=st.sampled_from(["sandbox", "parameters", "needs", "name"]),
)
def test_paranoid_never_allows_what_has_a_network(shipped, name, parameters, net, where):
    import msgspec

    if where == "name":
        name = "http.fetch.v1"
    asked = example(name, parameters, scopes=["admin"])
    if where == "sandbox":
        asked = msgspec.structs.replace(asked, sandbox={**asked.sandbox, "net": net})
    elif where == "parameters":
        asked = msgspec.structs.replace(asked, parameters={**parameters, "net": net})
    elif where == "needs":
        needs = {**asked.capability["needs"], "network": True}
        asked = msgspec.structs.replace(asked, capability={"name": name, "needs": needs})
    assert not shipped["paranoid"].decide(asked).allow


@settings(max_examples=200)
@given(text=st.text(max_size=50))
def test_every_text_survives_the_engine(echo, text):
    try:
        document = json.loads(json.dumps({"parameters": {"text": text}}))
        answer = json.loads(echo.query("agentd/decision", document))
    except UnicodeEncodeError:
        assert any("\ud800" <= c <= "\udfff" for c in text)
        return
    assert answer == {"expressions": [text]}


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    from agentd.policy.program import compile_to

    path = str(tmp_path_factory.mktemp("echo") / "bundle")
    rules = "package agentd\n\nimport rego.v1\n\ndecision := input.parameters.text\n"
    compile_to(path, {"a.rego": rules}, b"{}", ["agentd/decision"])
    return Program(path)


def test_decisions_go_on_while_one_takes_long(bundle, store):
    rules = """
decision := {"allow": true} if not input.parameters.slow

decision := {"allow": true} if {
    input.parameters.slow
    count([1 | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000); a == b]) > 0
}
"""
    opened = store(bundle(rules), workers=2, seconds=5.0)
    slow = []
    thread = threading.Thread(
        target=lambda: slow.append(opened.decide(example("x.v1", {"slow": True})))
    )
    thread.start()
    assert opened.decide(example("x.v1", {"slow": False})).allow
    assert slow == []
    thread.join()
    assert slow[0].undecided


def test_workers_end_with_their_owner(tmp_path):
    """Control: a worker ends when its stream does, and while it decides by its own alarm."""
    code = (
        "import sys, time\n"
        "from agentd.policy.store import PolicyStore\n"
        "store = PolicyStore('permissive', workers=1, cache=sys.argv[1])\n"
        "with store._pool.borrow(1) as process:\n"
        "    print(process._child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        worker = int(owner.stdout.readline())
        watched = os.pidfd_open(worker)
        try:
            owner.kill()
            assert select.select([watched], [], [], 120)[0], "the worker goes on"
        finally:
            os.close(watched)
