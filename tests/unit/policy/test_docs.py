"""docs/policy.md is true."""

import json
import re
import shlex
from pathlib import Path

import msgspec
import pytest

from agentd.client.cli.main import main
from agentd.daemon import config
from agentd.daemon.admission import acts
from agentd.daemon.admission.acts import cut
from agentd.model.decision import Asked
from agentd.policy.checking import check
from agentd.policy.example import example
from agentd.policy.source import shipped
from agentd.policy.testing import test as run_tests

PAGE = (Path(__file__).parents[3] / "docs" / "policy.md").read_text()


def _blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def ours(tmp_path):
    nights, _, _ = _blocks("rego")
    (tmp_path / "manifest.json").write_text(_blocks("json")[0])
    (tmp_path / "nights.rego").write_text(nights)
    (tmp_path / "data.json").write_bytes((shipped("strict") / "data.json").read_bytes())
    return str(tmp_path)


def test_the_module_that_is_added_denies_on_sundays(ours, store):
    assert check(ours) == []
    opened = store(ours)
    asked = example("shell.exec.v1", {"command": "ls"}, scopes=["run"])
    for day, allowed in ((1_800_000_000, True), (1_800_000_000 + 2 * 86400, False)):
        request = {**asked.request, "time": day}
        decision = opened.decide(msgspec.structs.replace(asked, request=request))
        assert decision.undecided == ""
        assert decision.allow is allowed, decision


def test_the_module_that_is_added_decides_by_the_time_that_it_is(ours, capsys):
    """Which has a fraction; functions of time take none."""
    words = ["policy", "explain", "--bundle", ours, "--as", "bob", "--scopes", "run", "--json"]
    code = main([*words, "--call", "shell.exec.v1", "--params", '{"command": "ls"}'])
    decision = json.loads(capsys.readouterr().out)["explanation"]["decision"]
    assert decision["undecided"] == ""
    assert decision["allow"] is (code == 0)


def test_a_bundle_without_a_test_says_so(ours, capsys):
    assert main(["policy", "test", ours]) == 1
    assert capsys.readouterr().out == (
        "no tests: they are rules test_... of *_test.rego files in the folder\n"
    )
    assert main(["policy", "test", ours, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_the_bundle_of_one_module_passes_the_tests_of_the_page(tmp_path, capsys):
    _, module, tests = _blocks("rego")
    assert main(["policy", "check", str(tmp_path)]) == 1
    (manifest,) = re.findall(r"has a manifest `(.*?)`", PAGE)
    assert f"there is none: write {manifest}" in capsys.readouterr().out
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "mine.rego").write_text(module)
    (tmp_path / "mine_test.rego").write_text(tests)
    assert check(str(tmp_path)) == []
    assert [result.passed for result in run_tests(str(tmp_path))] == [True, True]


def test_the_rules_on_long_texts_are_as_the_page_says(tmp_path, store):
    section = PAGE.partition("### Long texts")[2].partition("\n## ")[0]
    shape, rules = re.findall(r"^~~~\w+\n(.*?)^~~~", section, re.MULTILINE | re.DOTALL)
    assert list(json.loads(shape)) == list(cut("a" * (1 << 20)))
    manifest = json.loads(_blocks("json")[0])
    manifest["modules"][-1] = "notes.rego"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "notes.rego").write_text(rules)
    (tmp_path / "data.json").write_bytes((shipped("strict") / "data.json").read_bytes())
    assert check(str(tmp_path)) == []
    opened = store(str(tmp_path))
    for content, allowed in (
        ("a", True),
        ("forbidden", False),
        ("a" * (1 << 19) + "forbidden", True),
        ("a" * (1 << 20), False),
    ):
        asked = example("fs.write.v1", cut({"path": "a", "content": content}), scopes=["files"])
        decision = opened.decide(asked)
        assert decision.undecided == "" and decision.allow is allowed, decision


def test_the_document_is_the_one_that_is_asked():
    members = re.findall(r"`input\.(\w+)` \|", PAGE)
    assert tuple(members) == Asked.__struct_fields__


def test_the_answer_of_the_page_is_one(bundle, store):
    answer = re.search(r"^   ```json\n(.*?)^   ```", PAGE, re.MULTILINE | re.DOTALL)
    assert answer is not None
    decision = store(bundle(f"decision := {answer[1]}")).decide(example("x.v1", {}))
    assert decision.allow and decision.obligations.approve


def test_the_command_of_the_page_says_what_it_says(capsys):
    from agentd.client.cli import policy

    console = PAGE.partition("$ agentd policy explain ")[2].partition("```")[0]
    command, _, said = console.replace("\\\n", "").partition("\n")
    assert policy.main(["explain", *shlex.split(command)]) == 1
    out = re.sub(r"sha256:[0-9a-f]{64}", "sha256:...", capsys.readouterr().out)
    assert out == said


def test_what_is_judged_has_the_names_that_are_asked_about():
    table = PAGE.partition("| asked for | judged as |")[2].partition("\n\n")[0]
    named = re.findall(r"^\|[^|]*\| `([\w.]+)` \|", table, re.M)
    assert sorted(named) == sorted([*acts.OPERATIONS, acts.SHELL, acts.READ, acts.WRITE, acts.LIST])


def test_profiles_have_the_policies_that_it_says():
    found = re.findall(r"`(\w+)`\s+has\s+`(\w+)`", PAGE)
    assert sorted(name for name, _ in found) == sorted(config.PROFILES)
    for profile, bundle in found:
        assert config.load(None, {"AGENTD_PROFILE": profile}).policy.bundle == bundle


def test_the_settings_are_those_that_there_are(tmp_path):
    (settings,) = _blocks("toml")
    (tmp_path / "agentd.toml").write_text(settings.replace("/etc/agentd/policy", str(tmp_path)))
    assert config.check(str(tmp_path / "agentd.toml"), {}) == []
