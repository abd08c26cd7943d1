"""Help of every command and action, and what is said to a slip of the finger."""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

from agentd.client.cli import main as cli

ACTIONS = {
    "approval": ("ls", "show", "approve", "deny", "withdraw"),
    "audit": ("tail", "head", "verify", "export", "accept-loss"),
    "capability": ("ls", "show"),
    "config": ("check", "show"),
    "image": ("pull", "build", "commit", "push", "ls", "inspect", "verify", "rm", "prune"),
    "key": ("create", "ls", "revoke"),
    "policy": ("check", "test", "explain", "learn"),
    "receipt": ("show", "key", "verify"),
    "snapshot": ("take", "ls", "inspect", "export", "rm"),
}
ALL = [[name] for name in cli.COMMANDS] + [[n, a] for n, names in ACTIONS.items() for a in names]


def shown(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_it_describes_has_examples_and_fits(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = shown([*words, "--help"], capsys)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    usage, described = text.split("\n\n")[:2]
    assert usage.startswith(f"usage: agentd {words[0]}") and described.strip()[0].isupper()
    examples = text.partition("\nexamples:\n")[2]
    assert f"agentd {words[0]}" in examples or "agentd-guest" in examples
    assert shown(["help", *words], capsys) == text


def test_a_narrow_terminal_breaks_a_command_so_that_it_can_be_pasted(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = shown(["serve", "--help"], capsys)
    whole = "agentd serve --profile server --listen unix:/run/agentd/agentd.sock"
    assert whole in " ".join(text.replace("\\\n", " ").split())
    assert "  # one's own daemon, on a unix socket\n  agentd serve\n" in text


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("runn", "run"),
        ("lss", "ls"),
        ("EXEC", "exec"),
        ("ps", "ls"),
        ("rm", "kill"),
        ("version", "--version"),
        ("--verison", "--version"),
        ("capabilities", "capability"),
    ],
)
def test_a_command_that_is_none_is_told_with_the_one_that_was_meant(word, meant, capsys):
    assert cli.main([word]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"agentd: unknown command {word!r} (did you mean {meant}? agentd --help lists all)\n"
    )


def test_a_command_like_none_names_all(capsys):
    assert cli.main(["walk-the-dog"]) == cli.main(["help", "walk-the-dog"]) == 2
    line = f"agentd: unknown command 'walk-the-dog' (use one of: {', '.join(cli.COMMANDS)})\n"
    assert capsys.readouterr().err == line * 2


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_a_group_alone_names_its_actions(name, capsys):
    assert cli.main([name]) == 2
    said = capsys.readouterr().err
    assert "required: " in said and said.endswith(f"(use one of: {', '.join(ACTIONS[name])})\n")


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_an_action_that_is_none_is_told_with_the_nearest(name, capsys):
    action = ACTIONS[name][0]
    assert cli.main([name, f"{action}x"]) == 2
    said = capsys.readouterr().err
    assert f"; did you mean {action}?)" in said
    assert all(each in said for each in ACTIONS[name])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["run", "--nett", "none", "--", "id"], "--net"),
        (["run", "--timout=2s", "--", "id"], "--timeout"),
        (["ls", "--labels", "a=b"], "--label"),
        (["image", "build", "--bas", "busybox"], "--base"),
    ],
)
def test_an_option_that_is_none_is_told_with_the_one_that_was_meant(words, meant, capsys):
    assert cli.main(words) == 2
    said = f"(did you mean {meant}? see agentd {words[0]}"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--bogus", "--", "id"],
        ["audit", "export", "--since", "1h"],
        ["image", "build", "--shape", "5"],
    ],
)
def test_an_option_like_none_is_told_without_a_guess(words, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "did you mean" not in said and f"see agentd {words[0]}" in said


def test_words_that_are_wrong_are_no_answer_in_json():
    words = ["run", "--embedded", "--json", "--memory", "x", "--", "true"]
    argv = [sys.executable, "-m", "agentd", *words]
    done = subprocess.run(argv, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b""), done.stderr


def test_what_a_list_has_no_place_for_is_refused(capsys):
    assert cli.main(["capability", "ls", "fs.read.v1"]) == 2
    assert "ls takes no name: show does" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--snapshot", "", "--", "id"],
        ["run", "--save-snapshot=", "--", "id"],
        ["create", "--snapshot", ""],
        ["call", "fs.list.v1", "--sandbox", ""],
        ["call", "fs.list.v1", "--bundle", ""],
        ["audit", "tail", "--dir", ""],
        ["receipt", "key", "--dir", ""],
        ["policy", "explain", "--as", "", "--call", "fs.list.v1"],
        ["policy", "explain", "--as", "x", "--bundle", "", "--call", "fs.list.v1"],
        ["policy", "check", ""],
        ["policy", "learn", "--out", "", "--", "true"],
        ["run", "--template", "", "--", "id"],
        ["create", "--template="],
        ["create", "--wait", ""],
        ["call", "fs.list.v1", "--template", ""],
        ["audit", "verify", "--head", ""],
        ["audit", "export", "--out", ""],
        ["config", "check", ""],
        ["serve", "--capability-digest", "", "--listen", ""],
        ["serve", "--config", "", "--listen", ""],
        ["serve", "--profile", "", "--listen", ""],
        ["serve", "--state", "", "--listen", ""],
        ["sign", "request.json", "--key", ""],
        ["sign", "request.json", "--key", "k", "--audience", ""],
        ["sign", "request.json", "--key", "k", "--out", ""],
        ["sign", "--new-key", ""],
        ["ls", "--state", ""],
        ["events", "--after", ""],
        ["call", "--request", ""],
        ["receipt", "verify", "", "--key", "receipt.pub"],
        ["receipt", "verify", "receipt.json", "--key", ""],
        ["guest", "--out", ""],
        ["guest", "--bundle", ""],
    ],
    ids=" ".join,
)
def test_an_empty_value_is_not_an_option_left_out(words, capsys):
    """As of a variable that is not set: a new sandbox, any policy and the usual log were taken, and
    a log was whole whatever its head."""
    assert cli.main(words) == 2
    assert "is empty, and names nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["snapshot", "delete", "x"], "rm"),
        (["image", "remove", "x"], "rm"),
        (["image", "list"], "ls"),
        (["image", "show"], "inspect"),
        (["key", "rm", "x"], "revoke"),
        (["key", "new"], "create"),
        (["capability", "inspect", "x"], "show"),
        (["config", "validate"], "check"),
        (["audit", "logs"], "tail"),
        (["approval", "reject", "x"], "deny"),
    ],
)
def test_an_action_of_other_tools_is_told_with_ours(words, meant, capsys):
    assert cli.main(words) == 2
    assert f"; did you mean {meant}?)" in capsys.readouterr().err


def test_the_likelier_things_come_first(capsys):
    cli.main(["--help"])
    text = capsys.readouterr().out
    order = [text.index(f"\n  {name} ") for name in ("run", "create", "exec", "print-seccomp")]
    assert order == sorted(order)


def test_a_word_of_a_command_is_explained() -> None:
    for parser in _parsers():
        words = [a for a in parser._actions if not (a.option_strings or a.dest == "action")]
        assert [action.dest for action in words if not action.help] == [], parser.prog


def _parsers() -> Iterator[argparse.ArgumentParser]:
    for module, _ in cli.COMMANDS.values():
        parser = import_module(module)._parser()
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def test_which_command_is_meant_where_none_is_named_is_told(capsys):
    for command, meant in (("logs", "the latest"), ("attach", "the only one that runs")):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert f"(default: {meant})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [["image", "ls"], ["net", "set", "a", "b"], ["secret", "ls"]])
def test_an_option_that_an_action_has_not_is_told_with_the_help_of_that(words, capsys):
    assert cli.main([*words, "--bogus"]) == 2
    command = " ".join(words[:2])
    said = f"unrecognized arguments: --bogus (see agentd {command} --help)"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["port", "build", "99999"],
            "argument PORT: '99999' is no port; give a number from 1 to 65535",
        ),
        (
            ["create", "--net", "T@api.example.com"],
            "'T@api.example.com' has an @ (write the host, as api.example.com; a secret is for",
        ),
        (
            ["create", "--secret", "T@10.0.0.1"],
            "secret T has a host that is none: '10.0.0.1' is no name of a host",
        ),
        (["secret", "set"], "arguments are required: NAME (see agentd secret set --help)"),
        (
            ["net", "explain", "pypi.org:443", "--net", "host"],
            "'host' is no list of rules: with it a sandbox reaches all that this machine does",
        ),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_who_wrote_it(words, said, capsys):
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("key ls --name x", "unrecognized arguments: --name x (see agentd key ls --help)"),
        ("key revoke x --scopes read", "unrecognized arguments: --scopes read"),
        ("key ls x", "unrecognized arguments: x"),
        ("key revoke", "required: ID"),
        ("call --request f --memory 1G", "--request is the whole request, and memory is given"),
        ("call --request f --net pypi", "and net is given beside it"),
        ("call --request f --mount /a:/b", "and mounts is given beside it"),
        ("call --request f --sandbox s", "and sandbox is given beside it"),
        ("call --request f --keep", "and keep is given beside it"),
    ],
)
def test_what_would_have_no_effect_is_refused(line, said, capsys):
    assert cli.main(line.split()) == 2
    assert said in capsys.readouterr().err
