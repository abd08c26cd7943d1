"""Threat: what a command does with sockets this kernel does, behind a wall that says otherwise.

Control: gVisor's network is its own (runsc's --network=none), beside a network namespace of ours.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("runsc"), pytest.mark.timeout(300)]
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
