"""A copy out of a sandbox that a signal ends leaves nothing of it beside its target."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, fixture, until

daemon = fixture()
_MANY = "mkdir /workspace/many; cd /workspace/many; seq 1 20000 | xargs touch"
_NUMBERS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}


@pytest.mark.parametrize("number", _NUMBERS.values(), ids=_NUMBERS)
def test_an_interrupted_copy_leaves_nothing(daemon: Daemon, tmp_path: Path, number: int) -> None:
    id_ = daemon.sandbox()
    assert daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": _MANY}).json["exit_code"] == 0
    words = ["cp", f"{id_}:/workspace/many", str(tmp_path / "many")]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    with subprocess.Popen(
        [sys.executable, "-m", "agentd", *words], env=env | {"AGENTD_URL": daemon.url}
    ) as process:
        until(lambda: bool(list(tmp_path.glob(".agentd-cp-*/new/*"))))
        process.send_signal(number)
        assert (process.wait(60), os.listdir(tmp_path)) == (128 + number, [])
