import json

import pytest

from agentd.client.cli.main import main


def test_json_has_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["print-seccomp", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "sandbox"
    assert len(found["digest"]) == 16
    assert {"ptrace", "bpf", "clone3"} <= {
        call for rule in found["rules"] for call in rule["calls"]
    }


def test_text_names_the_filter_as_reports_do(capsys: pytest.CaptureFixture[str]) -> None:
    main(["print-seccomp", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert main(["print-seccomp"]) == 0
    text = capsys.readouterr().out
    assert f"profile sandbox {found['digest']}" in text
    assert "(SIGSYS)" in text


def test_a_folder_mounted_rw_has_a_filter_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {}
    for words in ([], ["--rw"]):
        assert main(["print-seccomp", *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        groups[found["name"]] = {rule["group"] for rule in found["rules"]}
    assert groups["sandbox-rw"] - groups["sandbox"] == {"set-id bits"}


def test_assembly_is_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["print-seccomp", "shell.exec.v1", "--asm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0000: ")
    assert lines[-1].endswith("return ALLOW")


@pytest.mark.parametrize(
    "words",
    [["--level", "none"], ["--level", "high"], ["--json", "--asm"], ["--net", "x"]],
)
def test_wrong_usage_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["print-seccomp", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
