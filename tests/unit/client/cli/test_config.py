import json

import pytest

from agentd.client.cli import config as cli
from agentd.model.errors import InvalidInput


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
    import os

    for name in [name for name in os.environ if name.startswith("AGENTD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "agentd.toml").write_text(text)
        return str(tmp_path / "agentd.toml")

    return write


def test_a_right_file_is_well(file, capsys):
    path = file("profile = 'server'\n")
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == f"{path}: all is well\n"
    assert cli.main(["check", "--json", path]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": path, "ok": True, "problems": []}


def test_problems_are_a_line_each_as_compilers_have_them(file, capsys, monkeypatch):
    monkeypatch.setenv("AGENTD_LOG__LEVL", "x")
    path = file("[leases]\ndefualt = '5m'\n")
    assert cli.main(["check", path]) == 1
    assert capsys.readouterr().out == (
        "environment: AGENTD_LOG__LEVL: unknown key (did you mean 'level'?)\n"
        f"{path}:2: leases.defualt: unknown key (did you mean 'default'?)\n"
    )
    assert cli.main(["check", path, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert found["problems"][1] == {
        "line": 2,
        "key": "leases.defualt",
        "message": "unknown key",
        "suggestion": "did you mean 'default'?",
    }


def test_a_file_cannot_talk_to_the_terminal(file, capsys):
    file('log.level = "\\u001b[2J"\n"\\u009b" = 1\n')
    assert cli.main(["check"]) == 1
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines()) and "x1b[2J" in out


def test_what_holds_is_shown_with_its_source(file, capsys):
    file("log.level = 'debug'\n")
    assert cli.main(["show"]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("log.")] == [
        ["log.level", "=", '"debug"', "#", "line", "1"],
        ["log.format", "=", '"text"', "#", "default"],
    ]
    assert cli.main(["show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["log"]["level"] == "debug"


def test_a_wrong_configuration_is_not_shown(file):
    file("log.levl = 'debug'\n")
    with pytest.raises(InvalidInput, match=r"log.levl: unknown key .*config check"):
        cli.main(["show"])


def test_wrong_words(file):
    with pytest.raises(InvalidInput):
        cli.main(["chekc"])


def test_a_warning_is_told_and_is_no_problem(file, capsys):
    path = file("[[auth.peers]]\nuid = 'daemon'\nscopes = ['admin']\n")
    assert cli.main(["check", path]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}:1: warning: auth.peers[0]: the user daemon may read and write ")
    assert "all is well" not in out
    assert cli.main(["check", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["problems"] == []
    assert found["warnings"][0]["key"] == "auth.peers[0]"
