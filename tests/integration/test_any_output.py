"""Every command prints where standard output has no UTF-8, and of names that are none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.security.daemons import Daemon

# One process for all of them: Python's start is most of the time.
_ALL = """
import json, os, sys
from agentd.client.cli.main import COMMANDS, main

sys.stdin = open(os.devnull)
failed = {}
words = [[name, "--help"] for name in COMMANDS]
words += [[os.fsdecode(bytes.fromhex(word)) for word in line] for line in json.loads(sys.argv[1])]
for line in words:
    try:
        code = main(line)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    if code not in (0, 1, 2, 125):  # 125 with a word of its own: "internal error" is looked for
        failed[repr(line)] = code
print("ended with", ascii(failed), file=sys.stderr)
"""
_ODD = b"n\xff\xc3\xa9"
_COMMANDS = [
    [b"doctor"],
    [b"image", b"ls"],
    [b"capability", b"ls"],
    [b"print-seccomp"],
    [b"config", b"show"],
    [b"config", b"check", _ODD],
    [b"config", b"check", _ODD, b"--json"],
    [b"policy", b"check", _ODD],
    [b"policy", b"check", _ODD, b"--json"],
    [b"audit", b"verify", b"--dir", _ODD],
    [b"guest", b"--out", _ODD],
    [b"capability", b"show", _ODD],
    [b"run", b"--json", b"-w", b"w" + _ODD, b"--", b"printf", _ODD],
    [b"run", b"-v", b"-w", b"w" + _ODD + b":cow", b"--", b"touch", _ODD],
    [b"nonsense" + _ODD],
]
_POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
_ASCII = _POSIX | {"PYTHONIOENCODING": "ascii:strict"}


@pytest.mark.parametrize("env", [_ASCII, {"LC_ALL": "C.UTF-8"}], ids=["ascii", "utf-8"])
def test_no_command_ends_for_what_it_has_to_print(tmp_path: Path, env: dict[str, str]) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/w" + _ODD)
    words = json.dumps([[word.hex() for word in line] for line in _COMMANDS])
    base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _ALL, words],
        env=base | {"XDG_STATE_HOME": str(tmp_path / "state")} | env,
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert b"internal error" not in done.stderr, done.stderr
    assert done.stderr.endswith(b"ended with {}\n"), done.stderr
    # What was not ASCII is told all the same, and --json stays JSON.
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    assert any("mount" in str(line.get("enforcement")) for line in lines)
    assert b"n\\udcff" in done.stdout


_SDK = """
from agentd import Sandbox
with Sandbox.create(isolation="namespace") as sandbox:
    sandbox.files.write("/workspace/\\u00e9", "\\u20ac")
    print(ascii(sandbox.run(["cat", "/workspace/\\u00e9"]).text))
    print(ascii([entry.name for entry in sandbox.files.list("/workspace")]))
"""


def test_names_are_utf8_where_python_takes_them_for_ascii(tmp_path: Path) -> None:
    """With a daemon and without, which is as blind, and by the SDK."""
    folder = tmp_path / "d\u00e9"
    folder.mkdir()
    daemon = Daemon(tmp_path, prefix=["env", *(f"{k}={v}" for k, v in _POSIX.items())])
    base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    env = base | {"XDG_STATE_HOME": str(tmp_path / "state-here")} | _POSIX

    def run(*words: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            env=env | variables,
            cwd=folder,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    daemon.start()
    try:
        for where in ({"AGENTD_URL": daemon.url}, {}):
            script = "echo \u20ac > \u00fc; ls; env >&2"
            assert run("-m", "agentd", "run", "-w", ".", "--", "sh", "-c", script, **where) == (
                "\u00fc\n"
            )
            assert (folder / "\u00fc").read_text() == "\u20ac\n"
            (folder / "\u00fc").unlink()
            parameters = '{"path":"\u00e9","content":"\u20ac"}'
            call = ("-m", "agentd", "call", "fs.write.v1", "--params", parameters)
            assert json.loads(run(*call, **where)) == {"size": 3}
            assert run("-c", _SDK, **where) == "'\\u20ac'\n['\\xe9']\n"
    finally:
        daemon.end()


def test_what_is_printed_is_ascii_there_and_no_command_has_a_variable_of_ours() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "run", "--isolation", "none", "--", "env"],
        env={"PATH": os.environ["PATH"]} | _POSIX,
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert b"PYTHONIOENCODING" not in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "nonsens\u00e9"],
        env={"PATH": os.environ["PATH"]} | _POSIX,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.startswith(b"agentd: unknown command 'nonsens\\xe9'")
