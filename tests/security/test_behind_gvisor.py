"""Threat: this kernel does what a command behind gVisor asks, or it has what its agent has.

Controls: gVisor's network is its own (runsc's --network=none), beside a network namespace of ours;
no_new_privs, and an agent that is not dumpable, in gVisor's kernel.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("runsc"), pytest.mark.timeout(900)]
_LISTEN = """
listening = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listening.getsockname())
print("listening", flush=True)
time.sleep(600)
"""


def test_this_kernel_has_no_socket_of_a_command(sandbox: Callable[..., Any]) -> None:
    box = sandbox("gvisor")
    start = f"""
import subprocess
script = "import socket, time" + {_LISTEN!r}
child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
said("child", child.stdout.readline().strip())
"""
    assert box.attack(start)["child"] == "listening"
    of_its_namespace = Path(f"/proc/{box.wall.pid}/net/tcp").read_text().splitlines()
    assert of_its_namespace[1:] == []


def test_a_command_gains_nothing_and_has_nothing_of_the_agents(
    sandbox: Callable[..., Any],
) -> None:
    said = sandbox("gvisor").attack("""
said("no_new_privs", ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))
said("memory", opens("/proc/1/mem"))
said("trace", call("ptrace", 16, 1, 0, 0))
""")
    assert said["no_new_privs"] == "1"
    assert said["memory"] != "opened" and said["trace"] in ("EPERM", "EACCES")
