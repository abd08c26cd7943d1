import pytest

from agentd.client.cli.options import parse_run, run_parser
from agentd.model.errors import InvalidInput


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--", "ls", "-l"], ["ls", "-l"]),
        (["ls", "-l"], ["ls", "-l"]),
        (["--json", "ls", "--json"], ["ls", "--json"]),
        (["--", "sh", "-c", "x", "--", "y"], ["sh", "-c", "x", "--", "y"]),
        (["sh", "-c", "x", "--", "y"], ["sh", "-c", "x", "--", "y"]),
        (["--", "--", "y"], ["--", "y"]),
    ],
)
def test_what_is_the_command(words, command):
    assert parse_run(words).command == command


def test_every_option_of_the_manual():
    words = (
        "--isolation process --backend landlock -C /tmp -e A=1 --env B --env-file f "
        "-w .:cow --apply --mount /a:/b:ro --mount /c:/d --net host --timeout 2s --memory 128M "
        "--cpus 0.5 --pids 9 --disk 1G --output 1K --open-files 64 --user root --json -i -- true"
    )
    options = parse_run(words.split())
    assert (options.isolation, options.backend, options.cwd) == ("process", "landlock", "/tmp")
    assert (options.env, options.env_file) == (["A=1", "B"], ["f"])
    assert (options.workspace, options.apply) == (".:cow", True)
    assert options.mounts == ["/a:/b:ro", "/c:/d"]
    assert (options.net, options.timeout, options.memory) == ("host", "2s", "128M")
    assert (options.cpus, options.pids, options.disk) == ("0.5", "9", "1G")
    assert (options.output, options.open_files, options.user) == ("1K", "64", "root")
    assert (options.json, options.stdin, options.tty) == (True, True, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"no command given \(write it after --: agentd run -- ls\)"),
        (["--json", "--"], "no command given"),
        (["--bogus", "--", "x"], r"unrecognized arguments: --bogus \(.*see agentd run --help\)"),
        (["--mem", "1M", "--", "x"], "unrecognized arguments: --mem"),
        (["-timeout", "5", "--", "x"], r"arguments: -timeout \(did you mean --timeout\?"),
        (["--memory"], "expected one argument"),
        (["--memory", "--", "x"], "expected one argument"),
        (["--json", "-t", "--", "x"], "--json and --tty cannot go together"),
        (["--apply", "--", "x"], r"--apply needs a copy-on-write workspace.*PATH:cow"),
        (["--apply", "-w", ".:rw", "--", "x"], "--apply needs a copy-on-write workspace"),
    ],
)
def test_wrong_options_say_how_to_mend_them(words, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        parse_run(words)
    assert caught.value.remediation


def test_help_has_examples_and_exit_codes():
    text = run_parser().format_help()
    assert "agentd run -w .:cow" in text
    assert "124 timed out" in text
