"""A systemd of an ordinary user's where none is PID 1: what a scope is asked of, in three seconds.

Cgroup v2 and root are needed. Its tree is ``USERS``: the manager's part is delegated, and a login
session beside it belongs to root, as in a machine that systemd has booted.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

UID, NAME, HOME = 4343, "agentd-scoped", "/tmp/agentd-scoped"
SYSTEMD = "/usr/lib/systemd/systemd"
NEEDED = (SYSTEMD, "/usr/bin/busctl", "/usr/lib/systemd/user/dbus.socket")  # dbus-user-session
USERS = Path("/sys/fs/cgroup/user")
_RUNTIME = Path(f"/run/user/{UID}")
_SHARED = "+memory +pids +cpu"
_SECONDS = 120.0


def add_user() -> None:
    argv = ["useradd", "--uid", str(UID), "--create-home", "--home-dir", HOME, NAME]
    subprocess.run(argv, check=True, capture_output=True)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """One of the user's own, and its D-Bus."""
    add_user()
    Path("/run/systemd/system").mkdir(parents=True, exist_ok=True)  # sd_booted(3)
    _RUNTIME.mkdir(parents=True)
    shutil.chown(_RUNTIME, UID, UID)
    _RUNTIME.chmod(0o700)
    USERS.mkdir()
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text(_SHARED)
    for name in ("manager", "session"):
        (USERS / name).mkdir()
    (USERS / "cgroup.subtree_control").write_text(_SHARED)
    for path in (USERS, USERS / "cgroup.procs", *(USERS / "manager").iterdir(), USERS / "manager"):
        shutil.chown(path, UID, UID)
    argv = [SYSTEMD, "--user", "--log-target=null"]
    manager = subprocess.Popen(within("manager", *argv), stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _SECONDS
        while not (_RUNTIME / "bus").exists():
            if manager.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the user's systemd has no bus (status {manager.poll()})")
            time.sleep(0.05)
        yield
    finally:
        manager.kill()
        manager.wait()


def within(part: str, *argv: str) -> Sequence[str]:
    """The command as that user, in the group ``part``."""
    user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    env = [f"HOME={HOME}", f"USER={NAME}", f"XDG_RUNTIME_DIR={_RUNTIME}"]
    move = f'echo $$ >{USERS}/{part}/cgroup.procs; exec "$@"'
    keep = [f"{name}={os.environ[name]}" for name in ("PATH", "LANG") if name in os.environ]
    return ["sh", "-ec", move, "sh", *user, "env", "-i", *keep, *env, *argv]
