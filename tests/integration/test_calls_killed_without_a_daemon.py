"""A process that calls without a daemon and is killed leaves a START: the next one ends it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.security.daemons import until


def _env(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "AGENTD_DAEMON__STATE": str(folder / "state"),
    }


def start(folder: Path, script: str) -> "subprocess.Popen[bytes]":
    words = ["call", "--embedded", "shell.exec.v1", "--json", "--params"]
    asked = json.dumps({"command": "sh", "args": ["-c", script]})
    return subprocess.Popen(
        [sys.executable, "-m", "agentd", *words, asked],
        env=_env(folder), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def agentd(folder: Path, *words: str) -> "subprocess.CompletedProcess[bytes]":
    argv = [sys.executable, "-m", "agentd", *words]
    return subprocess.run(argv, env=_env(folder), cwd=folder, capture_output=True, check=False)


def records(folder: Path, kind: str) -> list[Any]:
    lines = [
        json.loads(line)
        for file in sorted((folder / "state/embedded/audit").glob("audit-*.jsonl"))
        for line in file.read_bytes().splitlines()
    ]
    return [line for line in lines if line["kind"] == kind]


def causes(folder: Path) -> dict[str, str]:
    return {r["request"]: r["fields"]["cause"]["code"] for r in records(folder, "end")}


def test_it_is_ended_once_by_the_next_and_what_others_do_goes_on(tmp_path: Path) -> None:
    killed = start(tmp_path, "sleep 600")
    until(lambda: len(records(tmp_path, "start")) == 1)
    (dead,) = (record["request"] for record in records(tmp_path, "start"))
    living = start(tmp_path, "sleep 600")
    until(lambda: len(records(tmp_path, "start")) == 2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert causes(tmp_path) == {}
    for count in (1, 2):
        done = start(tmp_path, "true")
        _, err = done.communicate(timeout=60)
        assert done.returncode == 0, err
        ended = causes(tmp_path)
        assert ended.pop(dead) == "interrupted"
        assert list(ended.values()) == ["exited"] * count  # the living one is left alone
        assert len([r for r in records(tmp_path, "end") if r["request"] == dead]) == 1
    shown = agentd(tmp_path, "receipt", "show", "--embedded", dead, "--json")
    told = json.loads(shown.stdout)["predicate"]["execution"]
    assert (told["cause"]["code"], told["request"]) == ("interrupted", dead)
    assert agentd(tmp_path, "audit", "verify", "--embedded").returncode == 0
    living.send_signal(signal.SIGINT)
    living.communicate(timeout=60)
    assert len(causes(tmp_path)) == 4
    assert os.listdir(tmp_path / "state/embedded/writers") == []
