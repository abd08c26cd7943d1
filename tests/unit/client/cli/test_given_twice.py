"""What is given twice on one command line: lists add up, and of two single values none is taken."""

import argparse
from collections.abc import Iterator
from importlib import import_module

import pytest

from agentd.client.cli import main as cli
from agentd.client.cli.command import environment
from agentd.client.cli.options import parse_run, sandbox_options


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[list[str], argparse.Action]]:
    """Yield each option with a value, and which command it is of."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)
        elif action.option_strings and action.nargs != 0:
            yield parser.prog.split()[1:], action


ALL = [
    option
    for module, _ in cli.COMMANDS.values()
    for option in _options(import_module(module)._parser())
]
LISTS = [(words, each) for words, each in ALL if isinstance(each, argparse._AppendAction)]


def test_a_single_value_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    for command, action in ALL:
        if (command, action) in LISTS:
            continue
        value, option = (action.choices or ["1"])[0], action.option_strings[-1]
        assert cli.main([*command, option, value, f"{option}={value}"]) == 2
        said = capsys.readouterr().err
        assert f"{option}: it is given twice, and has one value (see agentd {command[0]}" in said


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["kill", "sbx-abc", "--process", "prc-abc"], "--signal"),  # it was KILL
        (["shell", "sbx-abc"], "--shell"),
        (["port", "sbx-abc", "80", "--link"], "--ttl"),
        (["print-seccomp"], "--level"),
        (["image", "pull", "dir:/nowhere"], "--name"),
        *((["image", "build"], option) for option in ("--name", "--base", "--kernel", "--rootfs")),
        *((["image", "build", "."], option) for option in ("--tag", "--file", "--target")),
    ],
)
def test_an_option_that_names_nothing_is_not_left_out(
    words: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a variable that is not set."""
    assert cli.main([*words, f"{option}="]) == 2
    assert f"{option}: it is empty, and names nothing" in capsys.readouterr().err


def test_what_adds_up_says_so_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(LISTS) > 20
    for command in {tuple(command) for command, _ in LISTS}:
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.count("may be repeated") == sum(tuple(each) == command for each, _ in LISTS)


def test_networks_add_up() -> None:
    words = ["--net", "pypi,npm", "--net", "", "--net=api.example.com", "--", "true"]
    assert sandbox_options(parse_run(words))["net"] == "pypi,npm,api.example.com"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("create --net none --net pypi", "'none' is a network of its own"),
        ("create --net host --net host", "'host' is a network of its own"),
        ("create --label job=1 --label job=2", "label 'job' is given twice"),
        ("ls --label job=1 --label job=2", "label 'job' is given twice"),
        ("image build -t m --build-arg V=1 --build-arg V=2 .", "--build-arg V is given twice"),
        ("create --secret T@a.com --secret T@b.com", "secret T is there twice"),
        ("create --mount /usr:/data --mount /etc:/data", "'/data'"),
        ("create --volume a:/data --volume b:/data", "'/data'"),
    ],
)
def test_one_name_has_one_value(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    assert said in capsys.readouterr().err


def test_of_a_variable_the_last_holds() -> None:
    assert environment(parse_run(["-eA=1", "-eB=3", "-eA=2", "--", "true"])) == {"A": "2", "B": "3"}
