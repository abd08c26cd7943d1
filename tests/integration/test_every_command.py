"""What holds of every command: a reader that goes away, the exit code of what is not there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_client_of_a_daemon import Daemon

# One process for all of them: Python's start is most of the time. What each ended with goes to
# stderr, behind what it said there.
_ALL = """
import contextlib, io, json, os, sys
from agentd.client.cli.main import main

def broken():
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs

sys.stdin = open(os.devnull)
told = []
for words in json.loads(sys.argv[1]):
    fd = broken() if sys.argv[2] == "broken" else os.open(os.devnull, os.O_WRONLY)
    os.dup2(fd, 1)
    os.close(fd)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    told.append((" ".join(words), code, said.getvalue()))
print(json.dumps(told), file=sys.stderr)
os._exit(0)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("every"))
    made.start()
    yield made
    made.stop()


def ended(daemon: Daemon, commands: list[list[str]], stdout: str) -> list[tuple[str, int, str]]:
    """(command, exit code, what it said on standard error) of each."""
    folder = daemon.folder
    done = subprocess.run(
        [sys.executable, "-c", _ALL, json.dumps(commands), stdout],
        env=_env(folder, daemon.url),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stderr)]


def _env(folder: Path, url: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "XDG_STATE_HOME": str(folder / "own"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "AGENTD_STATE": str(folder / "own/agentd"),
        "AGENTD_URL": url,
    }


def test_a_reader_that_went_away_ends_each_quietly_as_it_does_other_programs(
    daemon: Daemon,
) -> None:
    id_ = daemon.cli("create").stdout.decode().strip()
    process = daemon.cli("exec", "-d", id_, "--", "echo", "out").stdout.decode().strip()
    commands = [
        ["--help"],
        ["--version"],
        ["help", "run"],
        ["image", "build", "--help"],
        ["run", "--", "echo", "out"],
        ["run", "--json", "--", "true"],
        ["exec", id_, "--", "echo", "out"],
        ["logs", id_, process],
        ["logs", "--json", id_, process],
        ["ls"],
        ["ls", "-q"],
        ["ls", "--json"],
        ["inspect", id_],
        ["stats"],
        ["doctor"],
        ["print-seccomp"],
        ["print-seccomp", "--asm"],
        ["print-seccomp", "--json"],
        ["completion", "bash"],
        ["completion", "words", "--", ""],
        ["capability", "ls"],
        ["capability", "show", "fs.read.v1"],
        ["config", "show"],
        ["config", "check"],
        ["policy", "check", "permissive"],
        ["policy", "explain", "--bundle", "permissive", "--as", "a", "--call", "fs.list.v1"],
        ["audit", "tail"],
        ["audit", "tail", "--json"],
        ["audit", "head"],
        ["audit", "verify"],
        ["audit", "export"],
        ["key", "ls"],
        ["receipt", "key"],
    ]
    told = ended(daemon, commands, "broken")
    assert [each for each in told if each[1] != 141] == []
    # The daemon that is asked is told on stderr by some; nothing else is.
    assert [each for each in told if "rror" in each[2] or "pipe" in each[2]] == []


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nor_does_python_itself_complain_at_its_exit(daemon: Daemon, unbuffered: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    env = _env(daemon.folder, daemon.url) | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        started = [
            (
                subprocess.Popen(
                    [sys.executable, "-m", "agentd", *words],
                    stdout=out, stderr=subprocess.PIPE, env=env,
                ),
                code, said,
            )
            for out, code, said in (
                (theirs, 141, b""),
                (full, 125, b"agentd ls: cannot write standard output: No space left on device"),
            )
            for words in (["--help"], ["ls", "--help"], ["ls"], ["ls", "--json"])
        ]  # fmt: skip
    os.close(theirs)
    for process, code, said in started:
        err = process.communicate(timeout=60)[1]
        assert (process.returncode, b"Traceback" in err) == (code, False), (process.args, err)
        assert said.replace(b" ls:", b"").split(b": ")[-1] in err
        assert bool(said) == bool(err)


def test_what_goes_to_a_pipe_is_not_filled_up_with_blanks_nor_one_long_line(daemon: Daemon) -> None:
    found = {
        name: daemon.cli(name, *words).stdout.decode().splitlines()
        for name, *words in (["print-seccomp"], ["doctor", "-v"], ["ls"], ["capability", "ls"])
    }
    for name, lines in found.items():
        assert lines and [line for line in lines if line != line.rstrip()] == [], name
    facts = [line for line in found["doctor"] if line.startswith("chroot")]
    assert len(facts) == 1 and facts[0].split()[0] == "chroot"
    (firecracker,) = [line for line in found["doctor"] if line.startswith("firecracker  microvm")]
    assert "; fix:" not in firecracker or "reasons" not in firecracker
    if "reasons" in firecracker:
        assert len([line for line in found["doctor"] if line.startswith("firecracker: ")]) > 1
