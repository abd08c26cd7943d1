"""The commands that talk to a daemon: what is wrong is one line, before anybody is asked."""

import os
import sys
import time

import pytest
from rich.cells import cell_len

from agentd.client.cli import main as cli
from agentd.client.cli import remote, table
from agentd.client.cli.attach import only
from agentd.model import units
from agentd.model.errors import InvalidInput, NotFound


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ls", "--url", "nonsense"], "is not the address of a daemon"),
        (["ls", "--label", "x"], "label 'x' is not usable (write it as KEY=VALUE)"),
        (["create", "--memory", "lots"], "is not a size"),
        (["create", "-e", "=x"], "environment variable"),
        (["exec", "sbx"], "no command given (write it after --"),
        (["exec", "-t", "--json", "sbx", "--", "ls"], "drop -t"),
        (["exec", "sbx", "--timeout", "2s", "--", "ls"], "exec --timeout ... sbx -- ls"),
        (["exec", "-d", "-i", "sbx", "--", "ls"], "-d and -i cannot go together"),
        (["exec", "-t", "sbx", "--", "ls"], "--tty needs a terminal"),
        (["kill", "--signal", "TERM", "sbx"], "--signal is for a process"),
        (["kill", "--process", "p", "--signal", "NONE", "sbx"], "signal 'NONE' is not known"),
        (["kill", "--process", "p", "a", "b"], "--process is of one sandbox"),
        (["renew", "sbx", "soon"], "ttl 'soon' is not a time"),
        (["cp", "a", "b"], "one of the two must be inside a sandbox"),
        (["cp", "sbx:/a", "sbx:/b"], "one of the two must be inside a sandbox"),
        (["cp", "sbx:a", "."], "path 'a' inside is not absolute (write sbx:/workspace/a)"),
        (["cp", "nowhere-at-all", "sbx:/a"], "does not exist"),
        (["logs"], "the following arguments are required"),
    ],
)
def test_wrong_input_is_one_line_and_2(words, said, capsys, tmp_path, monkeypatch):
    if not any(word.startswith("--url") for word in words):
        monkeypatch.setenv("AGENTD_URL", f"unix:{tmp_path}/none")
    monkeypatch.setattr(os, "isatty", lambda fd: False)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith(f"agentd {words[0]}: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["ls"], ["stats"], ["key ls"], ["create"], ["exec", "x", "--", "ls"], ["kill", "x"]],
)
def test_no_daemon_there_is_125(words, capsys, tmp_path):
    assert cli.main([*words[0].split(), "--url", f"unix:{tmp_path}/none", *words[1:]]) == 125
    err = capsys.readouterr().err
    assert "no daemon answers" in err and "agentd serve" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["ls"],
        ["snapshot", "ls"],
        ["snapshot", "take", "x"],
        ["image", "commit", "x", "y"],
    ],
)
def test_no_daemon_at_its_place_is_125_too(words, capsys, monkeypatch):
    monkeypatch.delenv("AGENTD_URL", raising=False)
    assert cli.main(words) == 125
    err = capsys.readouterr().err
    assert "no daemon at" in err and "agentd serve" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["key", "create"], ["key", "create", "--name", "n", "--scopes", "x"]]
)
def test_a_key_needs_a_name_and_known_scopes(words, capsys, tmp_path):
    assert cli.main([*words, "--url", f"unix:{tmp_path}/none"]) == 2
    assert "the scopes are: run, create" in capsys.readouterr().err


def test_what_others_chose_does_not_reach_the_terminal(capsys):
    table.show(("A", "B"), [("x\x1b[2J", "y\n"), ("long value", "z")])
    assert capsys.readouterr().out == ("A           B\nx\\x1b[2J    y\\n\nlong value  z\n")
    assert remote.safe("plain \N{SNOWMAN}") == "plain \N{SNOWMAN}"


def test_wide_characters_keep_columns_below_each_other(capsys, monkeypatch, tmp_path):
    path = tmp_path / "agentd.toml"
    starts = ["日本語", "\N{ROCKET}", "e\N{COMBINING ACUTE ACCENT}te", "plain"]
    rows = [f'[[template]]\nname = "t{n}"\nstart = ["{s}"]\n' for n, s in enumerate(starts)]
    path.write_text("".join(rows))
    monkeypatch.setenv("AGENTD_CONFIG", str(path))
    assert cli.main(["template", "ls", "--embedded"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    begins = {cell_len(each.rpartition("  ")[0]) for each in lines}
    assert len(lines) == len(starts) and begins == {cell_len(head.rpartition("  ")[0])}
    table.facts([("\N{ROCKET}", "a"), ("name", "b")])
    assert capsys.readouterr().out == "\N{ROCKET}    a\nname  b\n"


def test_on_a_terminal_it_is_drawn(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table.show(("ID",), [("[red]x",), (("two", "lines"),)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["ID", "[red]x", "two", "lines"]  # no markup of theirs


ROWS = [("sbx-abcdefghijkl", "ready", "linux (namespace)"), ("sbx-abcdefghijkm", "paused", "")]
TABLE = """\
ID                STATE   WALL
sbx-abcdefghijkl  ready   linux (namespace)
sbx-abcdefghijkm  paused
"""
RECORDS = """\
ID     sbx-abcdefghijkl
STATE  ready
WALL   linux (namespace)

ID     sbx-abcdefghijkm
STATE  paused
"""


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [(80, ROWS, TABLE), (24, ROWS, RECORDS), (24, [], TABLE.splitlines()[0].replace("  ", " "))],
    ids=["wide", "narrow", "empty"],
)
def test_on_a_narrow_terminal_each_row_has_lines_of_its_own(
    capsys, monkeypatch, columns, rows, expected
):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table.show(("ID", "STATE", "WALL"), rows)
    out = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
    assert out.split() == expected.split() if not rows else out == expected


def test_of_several_that_fail_each_is_told_as_the_command_s(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(tmp_path))
    assert cli.main(["volume", "rm", "--embedded", "a", "b"]) == 125
    assert [line.split("'")[0] for line in capsys.readouterr().err.splitlines()] == [
        "agentd volume: there is no volume "
    ] * 2


def test_times():
    now = time.time()
    assert table.ago(now - 90) == "90s ago"
    assert table.ago(now - 7300) == "2h ago"
    assert table.until(None) == "-"
    assert table.until(now - 1) == "now"
    assert table.until(now + 3 * 86400 + 5) == "in 3d"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(30, "30s"), (90, "90s"), (600, "10m"), (3600, "1h"), (86400, "1d"), (90 * 86400, "90d")],
)
def test_a_lease_reads_as_it_was_given(seconds, shown):
    """A moment later, too: nobody sees a list in the instant that the sandbox is made."""
    assert table.until(time.time() + seconds - 0.3) == f"in {shown}"


@pytest.mark.parametrize("text", ["30d", "1d", "12h", "90m", "90s", "1.5s", "250ms", "36h"])
def test_a_duration_is_told_as_people_write_it(text):
    assert units.format_duration(units.parse_duration(text)) == text


class P:
    def __init__(self, id_, state):
        self.id, self.state = id_, state


def test_which_process_is_meant():
    a, b = P("a", "running"), P("b", "ended")
    assert only((a, b), running=True) == "a"
    assert only((a, b), running=False) == "b"
    with pytest.raises(InvalidInput, match=r"2 commands run there \(name one: a, c\)"):
        only((a, P("c", "running")), running=True)
    with pytest.raises(NotFound, match="no commands run there"):
        only((b,), running=True)
    with pytest.raises(NotFound, match="no command has run there"):
        only((), running=False)


@pytest.mark.parametrize("module", ["exec", "ls", "create", "remote", "shell", "cp"])
def test_nothing_heavy_is_imported_to_parse(module):
    import subprocess
    import sys

    code = (
        f"import sys, agentd.client.cli.{module}\n"
        "print([m for m in ('http.client', 'rich', 'asyncio', 'msgspec', 'ssl', 'tarfile', "
        "'agentd.daemon', 'agentd.sandbox', 'agentd.transport') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout == b"[]\n"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["sbx", "--", "git", "checkout", "--", "x"], ["git", "checkout", "--", "x"]),
        (["sbx", "git", "checkout", "--", "x"], ["git", "checkout", "--", "x"]),
        (["sbx", "ls", "-l"], ["ls", "-l"]),
    ],
)
def test_dashes_within_a_command_belong_to_it(words: list[str], command: list[str]) -> None:
    from agentd.client.cli import exec as cli

    assert cli._parse(words).command == command


def test_the_variables_of_a_command_may_stand_in_a_file(tmp_path) -> None:
    from agentd.client.cli import command
    from agentd.client.cli import exec as cli

    (tmp_path / "env").write_text("A=1\nB=2\n")
    words = ["--env-file", f"{tmp_path}/env", "-e", "B=3", "sbx", "--", "env"]
    assert command.request(cli._parse(words)).env == {"A": "1", "B": "3"}
