import json
import sys

import pytest

from agentd.client.cli import policy as cli
from agentd.model.errors import InvalidInput, NotFound, OperationFailed

EXPLAIN = ["explain", "--bundle", "strict", "--as", "bob", "--scopes", "files,run"]
RECORD = """
from agentd.policy.example import example
from agentd.policy.learning import VARIABLE, record
import os
print("out of the command")
record(example("fs.read.v1", {"path": "a/b"}, scopes=["read"]), os.environ[VARIABLE])
"""


def test_check_says_all_is_well(capsys):
    assert cli.main(["check", "strict"]) == 0
    assert capsys.readouterr().out == "strict: all is well\n"
    assert cli.main(["check", "strict", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"bundle": "strict", "ok": True, "problems": []}


def test_check_says_where_it_is_wrong(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text('{"name": "a", "modules": ["a.rego"]}')
    (tmp_path / "a.rego").write_text("package agentd\n\ndecision := {{\n")
    assert cli.main(["check", str(tmp_path)]) == 1
    assert "a.rego:3: " in capsys.readouterr().out
    assert cli.main(["check", str(tmp_path), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]


def test_test_runs_them(capsys):
    assert cli.main(["test", "paranoid"]) == 0
    assert capsys.readouterr().out.endswith(" passed, 0 failed\n")
    assert cli.main(["test", "paranoid", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and all(test["passed"] for test in found["tests"])


def test_a_test_that_fails_is_shown(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text('{"name": "a", "modules": ["a.rego"]}')
    (tmp_path / "a.rego").write_text('package agentd\n\ndecision := {"allow": true}\n')
    (tmp_path / "a_test.rego").write_text("package agentd.a_test\n\ntest_a := false\n")
    assert cli.main(["test", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "FAIL  agentd.a_test.test_a" in out and "a_test.rego:3: it is not true" in out


def test_explain_says_which_rules_spoke(capsys):
    words = [*EXPLAIN, "--call", "fs.write.v1", "--params", '{"path": "/etc/x", "content": ""}']
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert "decision  denied" in out
    assert "deny    filesystem.outside  it writes outside /workspace and /tmp" in out
    assert cli.main([*words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["explanation"]["fired"][0]["rule"] == "filesystem.outside"


def test_explain_takes_the_sandbox_as_it_is_told(capsys):
    words = [*EXPLAIN, "--call", "shell.exec.v1", "--params", '{"command": "ls"}']
    assert cli.main(words) == 0
    assert "level     namespace or more" in capsys.readouterr().out
    assert cli.main([*words, "--sandbox", '{"net": "host"}']) == 1
    assert "network.host" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sandbox", "told"),
    [
        ({"network": "host"}, "a policy sees no 'network' of a sandbox"),
        ({"net": 5}, "'net' of a sandbox is '5', and to a policy it is text"),
        ({"mounts": "/srv"}, "'mounts' of a sandbox is '/srv', and to a policy it is a list"),
        ({"runtime": ["crun"]}, "to a policy it is text"),
        ({"writable": "yes"}, "to a policy it is true or false"),
    ],
)
def test_explain_refuses_what_no_sandbox_is_to_a_policy(sandbox, told):
    """No rule would look at it: allowed was told of what is denied by another name."""
    call = ["--call", "fs.list.v1", "--sandbox", json.dumps(sandbox)]
    with pytest.raises(InvalidInput) as refused:
        cli.main([*EXPLAIN, *call])
    assert told in str(refused.value) and refused.value.remediation


def test_explain_asks_the_configured_bundle(tmp_path, monkeypatch, capsys):
    (tmp_path / "manifest.json").write_text('{"name": "a", "modules": ["a.rego"]}')
    rules = 'package agentd\n\ndecision := {"allow": true, "reasons": ["configured"]}\n'
    (tmp_path / "a.rego").write_text(rules)
    (tmp_path / "agentd.toml").write_text(f'[policy]\nbundle = "{tmp_path}"\n')
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))
    words = ["explain", "--as", "bob", "--call", "fs.list.v1"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "why       configured" in out
    assert f"policy    {tmp_path}, as {tmp_path}/agentd.toml:2 says" in out
    monkeypatch.setenv("AGENTD_POLICY", "paranoid")
    assert cli.main(words) == 0
    assert "policy    paranoid, as AGENTD_POLICY" in capsys.readouterr().out
    monkeypatch.setenv("AGENTD_POLICY", "none")
    assert cli.main(words) == 0
    assert "why       no policy is configured" in capsys.readouterr().out


def test_explain_takes_permissive_and_the_usual_scopes_where_nothing_is_said(monkeypatch, capsys):
    monkeypatch.setenv("AGENTD_CONFIG", "")
    monkeypatch.delenv("AGENTD_POLICY", raising=False)
    monkeypatch.setattr("os.path.exists", lambda path: False)
    words = ["explain", "--as", "bob", "--call", "shell.exec.v1", "--params", '{"command": "ls"}']
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "policy    permissive, as the default says" in out
    assert "who       bob, with run, create, files, read, ports, snapshot\n" in out
    assert cli.main([*words, "--scopes", ""]) == 1
    assert "who       bob, with no scope\n" in capsys.readouterr().out


def test_explain_asks_what_a_call_would_ask(capsys):
    """The capability's own needs and defaults; what it would refuse is no question."""
    with pytest.raises(NotFound, match=r"did you mean shell\.exec\.v1"):
        cli.main([*EXPLAIN, "--call", "shel.exec.v1"])
    with pytest.raises(NotFound, match=r"did you mean sandbox\.create\.v1"):
        cli.main([*EXPLAIN, "--call", "sandbox.creat.v1"])
    with pytest.raises(InvalidInput, match="parameter comand is unknown"):
        cli.main([*EXPLAIN, "--call", "shell.exec.v1", "--params", '{"comand": "ls"}'])
    with pytest.raises(InvalidInput, match="unknown scope 'ran'"):
        cli.main(["explain", "--as", "bob", "--scopes", "ran", "--call", "fs.list.v1"])
    # strict looks at what git.clone.v1 needs, which its registry entry alone says.
    words = ["--params", '{"url": "https://example.org/a", "path": "a"}']
    assert cli.main([*EXPLAIN, "--call", "git.clone.v1", *words]) == 1
    assert "network" in capsys.readouterr().out
    create = ["explain", "--bundle", "strict", "--as", "bob", "--call", "sandbox.create.v1"]
    assert cli.main(create) == 0


def test_learn_writes_what_a_command_did(tmp_path, capfd):
    out = str(tmp_path / "policy")
    assert cli.main(["learn", "--out", out, "--json", "--", sys.executable, "-c", RECORD]) == 0
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert (found["ok"], found["seen"], found["exit_code"]) == (True, 1, 0)
    assert "out of the command" in captured.err
    assert cli.main(["test", out]) == 0


@pytest.mark.parametrize("ends", ["both, as Ctrl-C", "SIGTERM to us"])
def test_learning_goes_on_after_the_signal_that_ends_the_command(tmp_path, capfd, ends):
    """As of a daemon: Ctrl-C is sent to both, SIGTERM to us alone."""
    script = (
        RECORD
        + f"""
import signal, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    if {ends!r} == "SIGTERM to us":
        os.kill(os.getppid(), signal.SIGTERM)
    else:
        os.kill(os.getppid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    while True:  # pause() would wait behind a signal that has come already
        time.sleep(0.05)
except KeyboardInterrupt:
    raise SystemExit(7)
"""
    )
    out = str(tmp_path / "policy")
    assert cli.main(["learn", "--out", out, "--", sys.executable, "-c", script]) == 0
    assert capfd.readouterr().out == f"{out}: 1 call seen, 5 tests; the command ended with 7\n"


def test_learn_runs_nothing_where_it_could_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    ran = tmp_path / "ran"
    with pytest.raises(InvalidInput, match="is not empty"):
        cli.main(["learn", "--out", str(tmp_path), "--", "touch", str(ran)])
    with pytest.raises(OperationFailed, match="/file: Not a directory"):
        cli.main(["learn", "--out", str(tmp_path / "file"), "--", "touch", str(ran)])
    with pytest.raises(OperationFailed, match="/file/new: Not a directory"):
        cli.main(["learn", "--out", str(tmp_path / "file/new"), "--", "touch", str(ran)])
    with pytest.raises(InvalidInput, match="cannot run"):
        cli.main(["learn", "--out", str(tmp_path / "new"), "--", "/no/such"])
    assert not ran.exists() and not (tmp_path / "new").exists()


def test_learn_of_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="nothing to learn from"):
        cli.main(["learn", "--out", str(tmp_path / "a"), "--", "true"])
    with pytest.raises(InvalidInput, match="cannot run '/no/such': No such file") as caught:
        cli.main(["learn", "--out", str(tmp_path / "a"), "--", "/no/such"])
    assert caught.value.remediation.startswith("name a program of PATH, or the path of one")
    with pytest.raises(InvalidInput, match="no command given"):
        cli.main(["learn", "--out", str(tmp_path / "a")])


def test_wrong_words_are_refused():
    with pytest.raises(InvalidInput, match="--params is no JSON object"):
        cli.main([*EXPLAIN, "--call", "x.v1", "--params", "[1]"])
    with pytest.raises(InvalidInput, match="runs no command"):
        cli.main(["check", "strict", "--", "ls"])
    with pytest.raises(InvalidInput, match="required"):
        cli.main([])


def test_a_folder_that_is_not_there_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "/nope"]) == 1
    told = capsys.readouterr()
    assert told.out == (
        "cannot read /nope: No such file or directory: "
        "give the path of a folder, or one of permissive, strict, paranoid\n"
    )
