"""A full disk, or a loss of power, leaves half of a compiled policy: it is compiled anew, and
nobody has to know where it is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.security.daemons import bundle

DENY = 'decision := {"allow": false, "reasons": ["no: not today"]}'


def denied(folder: Path) -> "subprocess.CompletedProcess[str]":
    env = {
        **os.environ,
        "AGENTD_POLICY": bundle(folder, DENY),
        "AGENTD_DAEMON__STATE": str(folder / "state"),
    }
    words = ["call", "--embedded", "http.fetch.v1", "--params", '{"url": "http://127.0.0.1/"}']
    argv = [sys.executable, "-m", "agentd", *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_the_next_call_is_decided_as_before(tmp_path: Path, part: float) -> None:
    first = denied(tmp_path)
    assert first.returncode == 125 and "no: not today" in first.stderr
    kept = tmp_path / "state/embedded/policy"
    (compiled,) = (file for file in kept.iterdir() if file.suffix != ".json")
    whole = compiled.read_bytes()
    compiled.write_bytes(whole[: int(part * len(whole))])
    again = denied(tmp_path)
    assert (again.returncode, again.stderr) == (125, first.stderr)
    assert compiled.read_bytes() == whole
