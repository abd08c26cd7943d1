"""What is wrong on the command line of ``agentd serve``, or with the place that calls are kept in,
is told by the name that it was given by."""

import os
from pathlib import Path

import pytest

from agentd.client.cli.main import main


def test_a_profile_that_is_none_is_told_by_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--profile", "servr"]) == 2
    told = capsys.readouterr().err
    assert told == "agentd serve: --profile 'servr' is unknown (did you mean 'server'?)\n"


def test_no_lines_are_promised_of_what_no_file_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "--state", str(tmp_path / "state"), "--listen", "0.0.0.0:7077"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "listen[0].address" in told and "give cert and key" in told
    assert "agentd config check" not in told
    wrong = tmp_path / "agentd.toml"
    wrong.write_text('[daemon]\ndrain = "soon"\n')
    assert main([*words, "--config", str(wrong)]) == 2
    assert "agentd config check shows it line by line" in capsys.readouterr().err


def test_a_runtime_that_no_backend_has_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agentd.toml"
    named = '[[template]]\nname = "a"\nruntime = "cruun"\n'
    file.write_text(named + '[[template]]\nname = "b"\nruntime = "crun"\n')
    main(["config", "check", str(file)])
    told = capsys.readouterr()
    warned = f"{file}:3: warning: template[0].runtime: names the runtime 'cruun', which no backend"
    assert warned in told.out + told.err
    assert "use one of: runc, crun, " in told.out + told.err
    assert "template[1]" not in told.out + told.err


def test_who_cannot_keep_calls_is_told_what_moves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(file / "state"))
    params = '{"path": "."}'
    assert main(["call", "fs.list.v1", "--embedded", "--params", params]) == 125
    variable = "XDG_STATE_HOME" if os.geteuid() else "AGENTD_DAEMON__STATE"
    assert f"set {variable} to a folder that you can write to" in capsys.readouterr().err
