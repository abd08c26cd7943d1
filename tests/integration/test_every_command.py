"""What holds of every command: a reader that goes away, the exit code of what is not there."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.integration.test_client_of_a_daemon import Daemon

from agentd.client.cli.main import COMMANDS

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
    fd = broken() if sys.argv[2] == "broken" else os.memfd_create("stdout")
    os.dup2(fd, 1)
    os.close(fd)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    sys.stdout.flush()
    wrote = "" if sys.argv[2] == "broken" else os.pread(1, 1 << 20, 0).decode()
    told.append((" ".join(words), code, said.getvalue(), wrote))
print(json.dumps(told), file=sys.stderr)
os._exit(0)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("every"))
    made.start()
    yield made
    left = [view["id"] for view in json.loads(made.cli("ls", "--json").stdout)]
    if left:  # they would outlive it, and the supervisor with them
        made.cli("kill", *left)
    made.stop()


class Ended(NamedTuple):
    command: str
    code: int
    said: str  # on standard error
    wrote: str  # to standard output


def ended(daemon: Daemon, commands: list[list[str]], stdout: str) -> list[Ended]:
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
    return [Ended(*each) for each in json.loads(done.stderr)]


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
        ["template", "ls"],
        ["events"],
        ["events", "--json"],
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


_BOX = "sbx-abcdefghijkl"
_APPROVAL = "apr-0199c5d2a3f0deadbeef"


def test_what_is_named_and_is_not_there_has_one_exit_code(daemon: Daemon) -> None:
    """docs/cli.md: 125, but for call, of which that is one way to fail."""
    id_ = daemon.cli("create").stdout.decode().strip()
    process = "prc-0123456789abcdef"
    named = [
        *(["inspect", name] for name in (_BOX, "x", "../x", "a b")),
        ["renew", _BOX, "5m"],
        ["fork", _BOX],
        ["pause", _BOX],
        ["resume", _BOX],
        ["kill", _BOX],
        ["kill", id_, "--process", process],
        ["exec", _BOX, "--", "true"],
        ["shell", _BOX],
        ["attach", _BOX],
        ["attach", id_],  # nothing runs in it
        ["attach", id_, process],
        ["logs", _BOX],
        ["logs", id_],
        ["logs", id_, process],
        ["cp", f"{_BOX}:/a", "here"],
        ["cp", "/etc/hostname", f"{_BOX}:/a"],
        ["cp", f"{id_}:/nosuch", "here"],
        ["capability", "show", "nosuch.v1"],
        ["print-seccomp", "nosuch.v1"],
        ["policy", "explain", "--bundle", "strict", "--as", "a", "--call", "nosuch.v1"],
        ["key", "revoke", "abcdefgh2345"],
        *(["approval", action, _APPROVAL] for action in ("show", "approve", "deny", "withdraw")),
        ["receipt", "show", "req-0123456789abcdef"],
        ["receipt", "show", "--embedded", "nosuch"],
        ["image", "inspect", "nosuch"],
        ["image", "rm", "nosuch"],
        ["image", "verify", "nosuch"],
        ["create", "--image", "nosuch"],
        ["run", "--embedded", "--image", "nosuch", "--", "true"],
        *(["snapshot", action, path] for action in ("inspect", "rm") for path in ("no", "/etc")),
        *(["snapshot", action, "snp-0123456789abcdef"] for action in ("inspect", "rm")),
        *(["snapshot", "export", what, "x.tar"] for what in ("no", "snp-0123456789abcdef")),
        ["snapshot", "take", _BOX],
        ["create", "--snapshot", "snp-0123456789ab"],
        ["create", "--image", "nosuch", "--isolation", "microvm"],
        ["run", "--embedded", "--snapshot", "nosuch", "--", "true"],
        ["run", "--embedded", "--backend", "qemu", "--image", "nosuch", "--", "true"],
    ]
    called = [
        ["call", "nosuch.v1"],
        ["call", "--embedded", "nosuch.v1"],
        ["call", "fs.read.v1", "--sandbox", _BOX, "--params", '{"path": "/a"}'],
        ["call", "fs.read.v1", "--sandbox", id_, "--params", '{"path": "/nosuch"}'],
        ["call", "--embedded", "fs.read.v1", "--sandbox", _BOX, "--params", '{"path": "/a"}'],
    ]
    told = ended(daemon, named + called, "none")
    wanted = [125] * len(named) + [1] * len(called)
    assert [each for each, code in zip(told, wanted, strict=True) if each[1] != code] == []
    # One line each, which names the command and what it is about.
    for command, _, said, wrote in told:
        assert said.startswith(f"agentd {command.split()[0]}: ") and said.count("\n") == 1, command
        assert wrote == ""


@pytest.mark.parametrize(
    "words", ["snapshot inspect /etc", "snapshot rm /etc", "run --snapshot /etc -- true"]
)
def test_a_folder_that_is_no_snapshot_is_told_as_that(daemon: Daemon, words: str) -> None:
    said = daemon.cli(*words.split()).stderr.decode()
    assert "no snapshot at /etc: it is a folder without manifest.json" in said
    assert "is restored by agentd create)" in said
    assert "--save-snapshot" in said


def test_a_daemons_snapshot_that_is_no_folder_is_told_with_who_restores_it(daemon: Daemon) -> None:
    said = daemon.cli("run", "--snapshot", "snp-0123456789abcdef", "--", "true").stderr.decode()
    assert "/snp-0123456789abcdef: No such file" in said
    assert "agentd create --snapshot snp-0123456789abcdef" in said


def test_a_file_for_an_image_that_is_none_is_told_with_what_it_is_to_be(daemon: Daemon) -> None:
    for option, wanted in (("--kernel", "bzImage"), ("--rootfs", "ext4"), ("--initramfs", "cpio")):
        done = daemon.cli("image", "build", "--name", "x", option, "nosuch")
        said = done.stderr.decode()
        assert done.returncode == 2
        assert "nosuch is no plain file that can be read: No such file" in said, said
        assert wanted in said and f"relative paths begin at {os.getcwd()}" in said


# What prints no fact of its own: a shell's script, the daemon in the foreground, a terminal.
_NO_JSON = {"serve", "completion", "shell"}


def test_every_command_that_tells_a_fact_has_json_and_an_example(daemon: Daemon) -> None:
    commands = [name for name in COMMANDS if name not in _NO_JSON]
    helps = {name: daemon.cli(name, "--help").stdout.decode() for name in ("image", "audit")}
    assert all("examples:" in text for text in helps.values())
    parsers = {name: import_module(COMMANDS[name][0])._parser() for name in commands}
    missing = []
    for name, parser in parsers.items():
        inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        each = {f"{name} {k}": p for a in inner for k, p in a.choices.items()} or {name: parser}
        missing += [word for word, p in each.items() if "--json" not in p._option_string_actions]
        assert "\nexamples:" in f"\n{parser.format_help()}", name
    assert missing == []


def test_json_is_one_document_or_one_a_line(daemon: Daemon, tmp_path: Path) -> None:
    """Lines: what can follow, and records, which are lines where they are written."""
    id_ = daemon.cli("create").stdout.decode().strip()
    process = daemon.cli("exec", "-d", id_, "--", "true").stdout.decode().strip()
    request = json.loads(daemon.cli("exec", "--json", id_, "--", "true").stdout)["request_id"]
    (tmp_path / "request").write_text('{"capability": "fs.read.v1"}')
    one = [
        ["run", "--", "true"],
        ["doctor"],
        ["create"],
        ["ls"],
        ["inspect", id_],
        ["renew", id_, "5m"],
        ["fork", id_],
        ["exec", id_, "--", "true"],
        ["exec", "-d", id_, "--", "true"],
        ["cp", "/etc/hostname", f"{id_}:/workspace/"],
        ["capability", "ls"],
        ["capability", "show", "fs.read.v1"],
        ["call", "fs.list.v1", "--params", '{"path": "/"}'],
        ["stats"],
        ["template", "ls"],
        ["key", "ls"],
        ["sign", "--new-key", f"{tmp_path}/key.pem"],
        ["sign", f"{tmp_path}/request", "--key", f"{tmp_path}/key.pem"],
        ["approval", "ls"],
        ["config", "check"],
        ["config", "show"],
        ["policy", "check", "permissive"],
        ["policy", "explain", "--bundle", "permissive", "--as", "a", "--call", "fs.list.v1",
         "--params", '{"path": "/"}'],
        ["audit", "head"],
        ["audit", "verify"],
        ["receipt", "show", request],
        ["receipt", "key"],
        ["image", "ls"],
        ["image", "prune"],
        ["image", "verify"],
        ["guest", "--out", f"{tmp_path}/guest.pyz"],
        ["guest", "--bundle", f"{tmp_path}/guest"],
        ["print-seccomp"],
        ["kill", id_],
    ]  # fmt: skip
    lines = [["logs", id_, process], ["audit", "tail"], ["audit", "export"]]
    asked = [
        [*words[:at], "--json", *words[at:]]
        for words in lines + one
        for at in (1 if words[0] in ("exec", "run", "create") else len(words),)
    ]
    for number, each in enumerate(ended(daemon, asked, "kept")):
        assert each.code == 0, each
        found = each.wrote.splitlines()
        assert found and (number < len(lines) or len(found) == 1), each
        for line in found:
            assert isinstance(json.loads(line), dict | list), each


# What is read of the caller's own files, @ in place of the path.
_READS = (
    "run --embedded --env-file @ -- true",
    "run --embedded -w @:ro -- cat nosuch",
    "run --embedded --snapshot @ -- true",
    "run --embedded --net replay:@ -- true",
    "create --env-file @",
    "create -w @",
    "exec --env-file @ ID -- true",
    "cp @ ID:/tmp/x",
    "cp ID:/etc/passwd @",
    "net cassette ID --put @",
    "policy check @",
    "policy test @",
    "policy learn --out @ -- true",
    "image build -t x @",
    "image build -t x -f @ here",
    "image build --kernel @",
    "audit verify --dir @",
    "audit export --dir @",
    "receipt verify @ --key nosuch",
    "receipt verify request --key @",
    "snapshot export @ here.tar",
    "sign @ --key nosuch",
    "sign request --key @",
    "call --request @",
    "call fs.read.v1 --params @@",
    "config check @",
    "config show @",
)


def test_a_path_of_another_kind_is_told_in_a_line(daemon: Daemon) -> None:
    id_ = daemon.cli("create").stdout.decode().strip()
    (daemon.folder / "folder").mkdir()
    (daemon.folder / "bytes").write_bytes(bytes(range(256)) * 40_000)
    (daemon.folder / "request").write_text("{}")
    asked = []
    for line in _READS:
        for path in ("folder", "bytes", "nosuch", "bytes/below"):
            words = [word.replace("@", path, 1).replace("ID", id_) for word in line.split()]
            words = [word.replace(f"{path}@", f"@{path}") for word in words]
            at = words.index("--") if "--" in words else len(words)
            at = 1 if words[0] == "exec" else at
            asked.append([*words[:at], "--json", *words[at:]])
    for each in ended(daemon, asked, "kept"):
        lines = [line for line in each.said.splitlines() if not line.endswith(daemon.url)]
        assert each.code in (0, 1, 2, 125), each
        assert len(lines) <= 1 and "internal error" not in each.said, each
        assert each.code == 0 or lines or each.wrote, each
        if each.wrote and not each.command.startswith("audit export"):
            json.loads(each.wrote)
    daemon.cli("kill", id_)
