"""Threat: padding hides from a policy what it looks for, or keeps it from deciding at all.

Control: a policy has a digest, a length and a prefix in the place of a long text, which is no text:
a rule that reads it as one fails, and then the request is refused. Tried by every way in.
"""

import json
from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, fixture, running

from agentd.client.sandbox import Sandbox

# eve may say anything but one word, which is looked for in all that she asks for.
POLICY = """
decision := {"allow": false, "reasons": ["test.word: it says the word"]} if {
	input.principal.name == "eve"
	said
} else := {"allow": false, "reasons": ["test.long: it is too long"]} if {
	input.principal.name == "frank"
	input.parameters.content.length > 400000
} else := {"allow": true}

said if contains(input.parameters.content, "evil")

said if contains(input.parameters.code, "evil")

said if {
	some arg in input.parameters.args
	contains(arg, "evil")
}
"""
LONG = 300 << 10

daemon = fixture(policy=POLICY)


@pytest.fixture(scope="module", params=["permissive", "strict", "none"])
def shipped(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with running(f'[policy]\nbundle = "{request.param}"\n') as made:
        yield made


def large() -> dict[str, dict[str, object]]:
    code = "x = '" + "y" * LONG + "'\nprint(len(x))"
    args = ["-c", "cat > /dev/null; echo $#", "sh", *["z" * 100_000] * 3]
    return {
        "fs.write.v1": {"path": "/workspace/large", "content": "c" * LONG},
        "python.exec.v1": {"code": code},
        "shell.exec.v1": {"command": "sh", "args": args},
    }


@pytest.mark.parametrize("name", large())
def test_large_parameters_are_decided_by_a_call(shipped: Daemon, name: str) -> None:
    key = shipped.key("bob")
    id_ = shipped.sandbox(key)
    called = shipped.call(name, large()[name], sandbox=id_, key=key)
    assert called.status == 200 and called.json["status"] == "ok", called.body[:500]


def test_large_arguments_are_decided_by_rest_the_sdk_and_the_command_line(shipped: Daemon) -> None:
    key = shipped.key("bob")
    id_ = shipped.sandbox(key)
    cmd = ["sh", "-c", "echo $#", "sh", *["z" * 100_000] * 3]
    ran = shipped.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": cmd}, key=key)
    assert ran.status == 200 and ran.json["stdout"] == "3\n", ran.body[:500]
    with Sandbox.connect(id_, url=shipped.url, api_key=key) as box:
        assert box.run(cmd).stdout == b"3\n"
        found = box.call("python.exec.v1", large()["python.exec.v1"])
        assert found.value["stdout"] == f"{LONG}\n"
    (shipped.folder / "params.json").write_text(json.dumps(large()["fs.write.v1"]))
    words = ("fs.write.v1", "--sandbox", id_, "--params", f"@{shipped.folder}/params.json")
    done = shipped.cli("call", *words, key=key)
    assert done.returncode == 0, done.stderr
    assert shipped.cli("exec", id_, "--", *cmd, key=key).stdout == b"3\n"


def test_what_is_over_the_bound_is_too_large_and_says_so(shipped: Daemon) -> None:
    called = shipped.call("fs.write.v1", {"path": "a", "content": "c" * (8 << 20)})
    assert (called.status, called.code) == (413, "too_large")
    assert "the parameters of fs.write.v1 are over 8 MiB" in called.json["message"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fs.write.v1", {"path": "a", "content": "{}"}),
        ("python.exec.v1", {"code": "#{}"}),
        ("shell.exec.v1", {"command": "true", "args": ["{}"]}),
        ("shell.exec.v1", {"command": "true", "args": ["z"] * 4000 + ["{}"]}),
    ],
)
@pytest.mark.parametrize("padding", [("", "p" * LONG), ("p" * LONG, ""), ("p" * 20_000, "")])
def test_padding_hides_nothing(
    daemon: Daemon, name: str, parameters: dict[str, object], padding: tuple[str, str]
) -> None:
    text = "evil".join(padding)
    if name == "shell.exec.v1":  # the kernel takes no longer ones
        text = text[:100_000] if text.startswith("evil") else text[-100_000:]
    asked = json.loads(json.dumps(parameters).replace("{}", text))
    eve, other = daemon.key("eve"), daemon.key("other")
    refused = daemon.call(name, asked, key=eve)
    assert refused.code in ("policy_denied", "policy_undecided"), refused.body[:500]
    allowed = daemon.call(name, asked, key=other)
    # Where the rule does not hold for the caller, it is not even asked.
    assert allowed.status == 200 or allowed.code == "policy_undecided", allowed.body[:500]


def test_what_was_sent_is_cut_in_what_is_said_of_it(daemon: Daemon) -> None:
    long, key = "A" * (3 << 20), daemon.key("bob")
    bodies: list[tuple[str, dict[str, object]]] = [
        ("/v1/sandboxes", {"image": long}),
        ("/v1/sandboxes", {"user": "\n" * (3 << 20)}),
        ("/v1/sandboxes", {"template": long}),
        ("/v1/call", {"capability": "fs.read.v1", "parameters": {long: 1}}),
        ("/v1/keys", {"name": long, "scopes": []}),
    ]
    for path, body in bodies:
        refused = daemon.ask("POST", path, body, key=key)
        assert 400 <= refused.status < 500
        assert len(refused.body) < 100_000, (path, list(body))
    message = daemon.ask("POST", "/v1/sandboxes", {"image": long}, key=key).json["message"]
    assert message.startswith("image 'AAA") and message.endswith("AAA' is not a name")
    whole = len(f"image {long!r} is not a name")
    assert f"... ({whole} characters in all) ..." in message and len(message) == 8000


def test_padding_hides_nothing_from_rest_either(daemon: Daemon) -> None:
    eve = daemon.key("eve")
    id_ = daemon.sandbox(eve)
    cmd = ["true", "p" * 100_000 + "evil"]
    refused = daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": cmd}, key=eve)
    assert refused.code in ("policy_denied", "policy_undecided"), refused.body[:500]


def test_a_rule_sees_how_long_a_text_is_that_was_cut(daemon: Daemon) -> None:
    frank = daemon.key("frank")
    id_ = daemon.sandbox(frank)
    for size, status in ((100, 200), (LONG, 200), (500_000, 403)):
        content = {"path": "/workspace/a", "content": "c" * size}
        assert daemon.call("fs.write.v1", content, sandbox=id_, key=frank).status == status


def test_a_path_that_is_too_long_to_be_judged_is_refused() -> None:
    with running('[policy]\nbundle = "strict"\n') as strict:
        key = strict.key("bob")
        id_ = strict.sandbox(key)
        path = "/workspace/" + "../" * 10_000 + "etc/x"
        refused = strict.call("fs.write.v1", {"path": path, "content": ""}, sandbox=id_, key=key)
        assert refused.status >= 400, refused.body
        where = f"/v1/sandboxes/{id_}/files?path={path}"
        assert strict.ask("PUT", where, b"x", key=key).status >= 400
