"""What is asked in the machine: agentd's own doors, one check a function; each prints one line.

``python -m tests.machine.checks NAME...``: those checks, in that order. A check prints
``{"check", "seconds", "value"}``, or ``"error"`` with its traceback.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from tests.machine import manager, patience

from agentd.client.sandbox import Sandbox
from agentd.linux import probe
from agentd.sandbox import backends

# The smallest machine: under two emulations each page of it takes its time.
MACHINE: dict[str, Any] = {"isolation": "microvm", "backend": "qemu", "memory": "64M", "cpus": 1}
MIB = 1 << 20
_SLOWER = 4  # than by one emulation; whoever boots this machine ends it after its own time
BOMB = f"python3 -c 'b=bytearray({256 * MIB}); b[::4096]=b\"x\"*len(b[::4096])'"


def found() -> object:
    """What ``agentd doctor`` is made of, for what matters here. The command itself looks at all
    else as well, in an interpreter of its own: under emulation that is a third of all checks."""
    facts, backend = probe.gather().as_dict(), backends.load("qemu")
    try:
        notes = backend.probe().notes
    finally:
        backend.close()
    return {"kvm": facts["kvm"], "cgroup": facts["cgroup_version"], "qemu": list(notes)}


@cache
def _machine() -> Sandbox:
    return Sandbox.create(**MACHINE)


def run() -> object:
    sandbox = _machine()
    done = sandbox.run("uname -r; id -u; cat", stdin="by stdin\n")
    return {
        "wall": sandbox.enforcement["virtual_machine"].detail,
        "lines": done.text.splitlines(),
        "status": done.status,
    }


def files() -> object:
    sandbox, data = _machine(), os.urandom(MIB)
    sandbox.files.write("/workspace/data", data)
    listed = sandbox.run("wc -c < data").text.strip()
    return {"same": sandbox.files.read("/workspace/data") == data, "size": listed}


def close() -> object:
    _machine().close()
    return os.listdir("/sys/fs/cgroup/agentd") if os.path.isdir("/sys/fs/cgroup/agentd") else []


def memory_limit() -> object:
    """Of the namespace wall, by cgroup v2: a command that outgrows it ends, the sandbox goes on."""
    with Sandbox.create(backend="linux", memory="64M") as sandbox:
        control = sandbox.enforcement["memory"]
        bomb = sandbox.run(BOMB)
        return {
            "enforced": control.enforced,
            "detail": control.detail,
            "bomb": bomb.cause.code,
            "after": sandbox.run("echo on").text,
        }


def user_scope() -> object:
    """An ordinary user's limits: by a scope that agentd asks the user's systemd for."""
    if missing := [path for path in manager.NEEDED if not os.path.exists(path)]:
        return {"missing": missing[0]}
    with manager.running():
        argv = [sys.executable, "-m", "tests.machine.scope_checks", "limits"]
        done = subprocess.run(
            manager.within("session", *argv), capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def tell(checks: Iterable[Callable[[], object]]) -> None:
    for check in checks:
        began = time.monotonic()
        try:
            told = {"value": check()}
        except Exception:
            told = {"error": traceback.format_exc()}
        seconds = round(time.monotonic() - began, 1)
        print(json.dumps({"check": check.__name__, "seconds": seconds, **told}), flush=True)


if __name__ == "__main__":
    patience.lengthen(_SLOWER)
    tell(globals()[name] for name in sys.argv[1:])
