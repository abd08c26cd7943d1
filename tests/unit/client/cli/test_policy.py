import json
import sys

import pytest

from agentd.client.cli import policy as cli
from agentd.model.errors import InvalidInput

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
    words = [*EXPLAIN, "--call", "fs.write.v1", "--json", '{"path": "/etc/x"}']
    assert cli.main(words) == 1
    out = capsys.readouterr().out
    assert "decision  denied" in out
    assert "deny    filesystem.outside  it writes outside /workspace and /tmp" in out
    assert cli.main([*words, "--as-json"]) == 1
    assert json.loads(capsys.readouterr().out)["fired"][0]["rule"] == "filesystem.outside"


def test_explain_takes_the_sandbox_as_it_is_told(capsys):
    words = [*EXPLAIN, "--call", "shell.exec.v1", "--json", '{"command": "ls"}']
    assert cli.main(words) == 0
    assert "level     namespace or more" in capsys.readouterr().out
    assert cli.main([*words, "--sandbox", '{"net": "host"}']) == 1
    assert "network.host" in capsys.readouterr().out


def test_explain_asks_the_configured_bundle(tmp_path, monkeypatch, capsys):
    (tmp_path / "manifest.json").write_text('{"name": "a", "modules": ["a.rego"]}')
    rules = 'package agentd\n\ndecision := {"allow": true, "reasons": ["configured"]}\n'
    (tmp_path / "a.rego").write_text(rules)
    (tmp_path / "agentd.toml").write_text(f'[policy]\nbundle = "{tmp_path}"\n')
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))
    assert cli.main(["explain", "--as", "bob", "--call", "x.v1"]) == 0
    assert "configured" in capsys.readouterr().out


def test_learn_writes_what_a_command_did(tmp_path, capfd):
    out = str(tmp_path / "policy")
    assert cli.main(["learn", "--out", out, "--json", "--", sys.executable, "-c", RECORD]) == 0
    captured = capfd.readouterr()
    found = json.loads(captured.out)
    assert (found["ok"], found["seen"], found["exit_code"]) == (True, 1, 0)
    assert "out of the command" in captured.err
    assert cli.main(["test", out]) == 0


def test_learn_of_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="nothing to learn from"):
        cli.main(["learn", "--out", str(tmp_path / "a"), "--", "true"])
    with pytest.raises(InvalidInput, match="cannot run"):
        cli.main(["learn", "--out", str(tmp_path / "a"), "--", "/no/such"])
    with pytest.raises(InvalidInput, match="no command given"):
        cli.main(["learn", "--out", str(tmp_path / "a")])


def test_wrong_words_are_refused():
    with pytest.raises(InvalidInput, match="--json is no JSON object"):
        cli.main([*EXPLAIN, "--call", "x.v1", "--json", "[1]"])
    with pytest.raises(InvalidInput, match="runs no command"):
        cli.main(["check", "strict", "--", "ls"])
    with pytest.raises(InvalidInput, match="required"):
        cli.main([])
