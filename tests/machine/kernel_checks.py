"""What must hold on each kernel: walls, -w on three file systems, limits by cgroup v2, systemd.

Run in an emulated machine as ``python -m tests.machine.kernel_checks LIST``; ``plain`` needs no
systemd, ``systemd`` has it as PID 1, ``refused`` is for a kernel that is too old.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.machine.checks import memory_limit, tell
from tests.machine.scope_checks import scoped

from agentd.client.sandbox import Sandbox
from agentd.model.errors import AgentdError

AGENTD = [sys.executable, "-m", "agentd"]
USER = 4242
_CONTROLS = ("seccomp", "landlock", "no_new_privs", "capabilities")
_FORKS = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 & done"
_START_SECONDS = 2400.0
_PLACES = Path("/tmp/places")


def kernel() -> object:
    return os.uname().release


def walls() -> object:
    """Of each wall without a machine of its own: what a command says, and the controls held."""
    found: dict[str, Any] = {}
    for backend in ("linux", "landlock"):
        try:
            with Sandbox.create(backend=backend) as sandbox:
                held = [name for name in _CONTROLS if sandbox.enforcement[name].enforced]
                found[backend] = [sandbox.run("echo on").text.strip(), held]
        except AgentdError as error:
            found[backend] = str(error)
    return found


def mounts() -> object:
    """-w as root, in each mode, on each file system: what was read, and what is there after it."""
    found: dict[str, Any] = {}
    for name in ("ext4", "tmpfs", "overlay"):
        folder = _place(name)
        for mode in ("ro", "cow", "rw"):
            (folder / "there").write_text("before")
            script = "cat there; echo after > there"
            try:
                with Sandbox.create(backend="linux", workspace=f"{folder}:{mode}") as sandbox:
                    read = sandbox.run(script).text.strip()
                    found[f"{name} {mode}"] = [read, (folder / "there").read_text().strip()]
            except AgentdError as error:
                found[f"{name} {mode}"] = str(error)
    return found


def _place(name: str) -> Path:
    folder = _PLACES / name
    folder.mkdir(parents=True, mode=0o755)
    if name == "tmpfs":
        _do("mount", "-t", "tmpfs", "tmpfs", str(folder))
    elif name == "overlay":
        layers = [_PLACES / layer for layer in ("lower", "upper", "work")]
        for layer in layers:
            layer.mkdir()
        lower, upper, work = layers
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        _do("mount", "-t", "overlay", "-o", options, "overlay", str(folder))
    return folder


def pids_limit() -> object:
    with Sandbox.create(backend="linux", pids=8) as sandbox:
        done = sandbox.run(_FORKS)
        return [sandbox.enforcement["pids"].detail, "fork" in done.stderr.decode().lower()]


def pid_1() -> object:
    return Path("/proc/1/comm").read_text().strip()


def user_scope() -> object:
    """An ordinary user's session: memory is held in a scope that systemd delegates."""
    _do("useradd", "--uid", str(USER), "--create-home", "--home-dir", "/tmp/agent", "agentd-user")
    _do("systemctl", "start", f"user@{USER}.service")
    runtime = f"/run/user/{USER}"
    done = subprocess.run(
        [
            *("setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"),
            *("env", f"XDG_RUNTIME_DIR={runtime}", "HOME=/tmp/agent"),
            *("systemd-run", "--user", "--scope", "--quiet", "-p", "Delegate=yes"),
            *(sys.executable, "-m", "tests.machine.checks", "memory_limit"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip()


def units() -> object:
    """The units in deploy/: started, used, its daemon restarted beneath a sandbox."""
    os.makedirs("/opt/agentd/bin", exist_ok=True)
    os.makedirs("/etc/agentd", exist_ok=True)
    Path("/opt/agentd/bin/agentd").write_text(f'#!/bin/sh\nexec {" ".join(AGENTD)} "$@"\n')
    _do("chmod", "755", "/opt/agentd/bin/agentd")
    Path("/etc/agentd/agentd.toml").write_text('profile = "server"\n')
    for name in ("agentd.service", "agentd.socket"):
        Path(f"/etc/systemd/system/{name}").write_bytes((Path("deploy") / name).read_bytes())
    patience = Path("/etc/systemd/system/agentd.service.d/emulated.conf")
    patience.parent.mkdir()
    patience.write_text(f"[Service]\nTimeoutStartSec={_START_SECONDS:.0f}\nWatchdogSec=0\n")
    _do("systemctl", "daemon-reload")
    _started()
    url = "unix:/run/agentd/agentd.sock"
    sandbox = Sandbox.create(url=url, backend="linux", memory="64M")
    try:
        control = sandbox.enforcement["memory"]
        before = _pid()
        with contextlib.suppress(RuntimeError):
            _do("systemctl", "restart", "agentd.service")
        _started()
        return {
            "memory": [control.enforced, control.detail.split(",")[0]],
            "another daemon": before != _pid(),
            "the sandbox": sandbox.run("echo on").text.strip(),
        }
    finally:
        sandbox.close()


def _started() -> None:
    """Compiling the policy may outlast its bound here; systemd starts a unit that failed again."""
    deadline = time.monotonic() + _START_SECONDS
    with contextlib.suppress(RuntimeError):
        _do("systemctl", "start", "agentd.socket", "agentd.service")
    while _do("systemctl", "show", "-P", "ActiveState", "agentd.service").strip() != "active":
        if time.monotonic() > deadline:
            _do("systemctl", "start", "agentd.service")
        time.sleep(1)


def _pid() -> str:
    return _do("systemctl", "show", "-P", "MainPID", "agentd.service").strip()


def refusals() -> object:
    """What a run behind each wall without a machine of its own is told."""
    found = {}
    for backend in ("linux", "landlock"):
        argv = [*AGENTD, "run", "--backend", backend, "--isolation", "process", "--", "true"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        found[backend] = [done.returncode, done.stderr.strip()]
    return found


def _do(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        journal = subprocess.run(
            ["journalctl", "-b", "-n", "60", "--no-pager", "-o", "cat"],
            capture_output=True,
            text=True,
            check=False,
        )
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}\n{journal.stdout}")
    return done.stdout


LISTS = {
    "plain": (kernel, walls, mounts, memory_limit, pids_limit),
    "systemd": (kernel, pid_1, user_scope, scoped, units),
    "refused": (kernel, refusals),
}


if __name__ == "__main__":
    tell(LISTS[sys.argv[1]])
