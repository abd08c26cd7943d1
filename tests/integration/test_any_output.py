"""Every command prints where standard output has no UTF-8, and of names that are none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
