"""Daemons where little is there: no user namespaces, no /tmp."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agentd.model.errors import AgentdError
from agentd.sandbox.supervisor import client

_AGENTD = [sys.executable, "-m", "agentd"]
# In it nobody can make a user namespace, root neither.
_WITHOUT = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
_UNSHARE = ["/usr/bin/unshare", "--user", "--map-current-user", "--keep-caps"]
_SECONDS = 60


class Host:
    """Runs agentd with a state and a home of its own; no virtual machine can be had."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = f"unix:{folder}/agentd.sock"
        self.env = {
            "PATH": "/nonexistent",
            "HOME": str(folder),
            "AGENTD_DAEMON__STATE": str(folder / "state"),
            "AGENTD_URL": self._socket,
        }

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*_AGENTD, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            env=self.env,
        )

    @contextmanager
    def serving(self, *before: str) -> Iterator[Path]:
        """Its log; ``before`` starts it."""
        path = self._folder / "log"
        with (
            open(path, "w") as log,
            subprocess.Popen(
                [*before, *_AGENTD, "serve", "--listen", self._socket],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.env,
            ) as daemon,
        ):
            try:
                assert daemon.stdout is not None
                assert "ready" in daemon.stdout.readline()
                yield path
            finally:
                daemon.terminate()
                daemon.wait(_SECONDS)

    def end_supervisor(self) -> None:
        path = self._folder / "state/supervisor.sock"
        if path.exists():
            with suppress(AgentdError):
                link = client.connect(str(path), lambda *_: None)
                link.ask("shutdown")
                link.close()
            until(lambda: not path.exists())


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(tmp_path)
    yield found
    found.end_supervisor()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_daemon_that_can_make_no_sandbox_says_so_and_who_wants_the_wall(host: Host) -> None:
    with host.serving(*_UNSHARE, "/bin/sh", "-c", _WITHOUT, "sh") as log:
        until(lambda: "no sandbox can be kept ready" in log.read_text())
        refused = host.run("create", "--isolation", "process")
    assert refused.returncode == 125
    assert "sandbox.minimum is namespace here: AGENTD_SANDBOX__MINIMUM=process" in refused.stderr
    host.env["AGENTD_SANDBOX__MINIMUM"] = "process"
    with host.serving(*_UNSHARE, "/bin/sh", "-c", _WITHOUT, "sh"):
        made = host.run("create", "--isolation", "process")
        assert made.returncode == 0, made.stderr
        host.run("kill", made.stdout.strip())


def test_a_daemon_keeps_sandboxes_files_where_tmpdir_says(host: Host) -> None:
    # Not in tmp_path, which is closed to the user that root's commands run as.
    with tempfile.TemporaryDirectory(prefix="room-") as room:
        os.chmod(room, 0o711)  # noqa: S103
        host.env |= {"TMPDIR": room, "AGENTD_SANDBOX__MINIMUM": "process"}
        with host.serving():
            made = host.run("create", "--isolation", "process")
            assert made.returncode == 0, made.stderr
            where = host.run("exec", made.stdout.strip(), "--", "/bin/pwd")
            host.run("kill", made.stdout.strip())
        assert where.stdout.startswith(f"{room}/"), where
