"""What an ordinary user who is logged in gets: limits by a scope that its systemd delegates.

``python -m tests.machine.scope_checks`` is run by root of a machine with systemd as PID 1, and goes
on as a user in a session of its own.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.machine import manager
from tests.machine.checks import BOMB, memory_limit

from agentd.client.sandbox import Sandbox

AGENTD = [sys.executable, "-m", "agentd"]
USER, NAME, _HOME = manager.UID, manager.NAME, manager.HOME
_FORKS = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 & done"
_SECONDS = 120.0


def scoped() -> object:
    """Of each way in, as that user: what it said. Then what is left of the scopes."""
    with Path("/etc/pam.d/common-session").open("a") as file:
        file.write("session optional pam_systemd.so\n")  # where packages were unpacked alone
    manager.add_user()
    absent = _outside("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    found = {name: _as_user(name) for name in ("embedded", "command", "served", "killed")}
    subprocess.run(["loginctl", "enable-linger", NAME], check=True)
    subprocess.run(["systemctl", "start", f"user@{USER}.service"], check=True)
    run, user = ["systemd-run", "--quiet"], f"--uid={USER}"
    return found | {
        "absent": absent,
        "bounded": _outside(*run, "--scope", "-p", "MemoryMax=1G", user),
        "first": _outside(*run, "--pipe", "--wait", f"--working-directory={os.getcwd()}", user),
    }


def _outside(*prefix: str) -> str:
    """What a user is told of memory where no session is around it."""
    argv = [*prefix, "env", f"HOME={_HOME}", sys.executable, "-m", "tests.machine.scope_checks"]
    done = subprocess.run([*argv, "why"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr[-2000:]


def why() -> object:
    with Sandbox.create(backend="linux") as sandbox:
        control = sandbox.enforcement["memory"]
        return [control.enforced, control.detail]


def _as_user(name: str) -> Any:
    words = [sys.executable, "-m", "tests.machine.scope_checks", name]
    script = f"cd {shlex.quote(os.getcwd())} && PYTHONUNBUFFERED=1 exec {shlex.join(words)}"
    argv = ["su", "-l", "-s", "/bin/sh", "-c", script, NAME]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines and not done.returncode else done.stderr[-2000:]


def _scopes() -> list[str]:
    here = Path(f"/sys/fs/cgroup/user.slice/user-{USER}.slice/user@{USER}.service")
    return [str(folder.relative_to(here)) for folder in here.rglob("agentd-*.scope")]


def _group() -> str:
    return Path("/proc/self/cgroup").read_text().strip()


def embedded() -> object:
    """The SDK in this process: memory, then pids and cpus of one sandbox."""
    before = _group()
    memory = memory_limit()
    with Sandbox.create(backend="linux", pids=8, cpus=0.5) as sandbox:
        detail = {name: sandbox.enforcement[name].detail for name in ("pids", "cpus")}
        forked = sandbox.run(_FORKS)
    return {
        "before": before.rpartition("/")[2],
        "memory": memory,
        "limits": detail,
        "fork refused": "fork" in forked.stderr.decode().lower(),
    }


def limits() -> object:
    """All three of one sandbox, and its pause, for a machine in which every second counts."""
    with Sandbox.create(backend="linux", memory="64M", pids=8, cpus=0.5) as sandbox:
        held = {n: sandbox.enforcement[n].detail for n in ("memory", "cpus", "pids")}
        return {
            "held": {name: detail.partition(",")[0] for name, detail in held.items()},
            "bomb": sandbox.run(BOMB).cause.code,
            "fork refused": "fork" in sandbox.run(_FORKS).stderr.decode().lower(),
            "frozen": _frozen_by_pause(sandbox),
            "after": sandbox.run("echo on").text,
        }


def _frozen_by_pause(sandbox: Sandbox) -> list[str]:
    """What version 2 says of its group while it is paused, and after it."""
    scope = Path(f"/sys/fs/cgroup{_group().removeprefix('0::')}").parent
    [events] = scope.glob("agentd/sbx-*/cgroup.events")
    sandbox.pause()
    during = events.read_text()
    sandbox.resume()
    lines = (during + events.read_text()).splitlines()
    return [line for line in lines if line.startswith("frozen")]


def command() -> object:
    """``agentd run``, whose zygote is begun before anything else; the quota of its processors is
    read from outside. ``agentd doctor``, in words."""
    argv = [*AGENTD, "run", "--json", "--backend", "linux", "--cpus", "0.5", "--", "sleep", "2"]
    run = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    quota = ""
    while not quota and run.poll() is None:
        quota = _quota(run.pid)
        time.sleep(0.05)
    answer = json.loads(run.communicate()[0])
    doctor = subprocess.run([*AGENTD, "doctor"], capture_output=True, text=True, check=True)
    words = " ".join(doctor.stdout.split())
    return {
        "quota": quota,
        "cpus": answer["enforcement"]["cpus"]["enforced"],
        "memory": answer["enforcement"]["memory"]["enforced"],
        "doctor": "limited by a scope of your systemd (agentd-" in words,
        "not limited": "not limited" in words,
    }


def _quota(pid: int) -> str:
    try:
        own = Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")
        scope = Path(f"/sys/fs/cgroup{own}").parent
        [found] = scope.glob("agentd/sbx-*/cpu.max")
        text = found.read_text().strip()
    except (OSError, ValueError):
        return ""
    return "" if text.startswith("max") else text


def served() -> object:
    """A daemon of that user's, found by the SDK at its usual socket."""
    daemon = subprocess.Popen([*AGENTD, "serve"], stdout=subprocess.DEVNULL)
    try:
        socket = Path(os.environ["XDG_RUNTIME_DIR"], "agentd", "agentd.sock")
        deadline = time.monotonic() + _SECONDS
        while not socket.exists() and daemon.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        with Sandbox.create(url=f"unix:{socket}", backend="linux", memory="64M") as sandbox:
            control = sandbox.enforcement["memory"]
            return {"enforced": control.enforced, "detail": control.detail}
    finally:
        daemon.terminate()
        daemon.wait()


def killed() -> object:
    """One that is killed with its sandbox running: its scope ends, the session goes on."""
    argv = [*AGENTD, "run", "--backend", "linux", "--", "sh", "-c", "echo on; exec sleep 600"]
    run = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    on = run.stdout.readline().strip()
    own = {line for line in _scopes() if f"agentd-{run.pid}-" in line}
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + _SECONDS
    while (left := own & set(_scopes())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return {"on": on, "scopes": len(own), "left": sorted(left)}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
