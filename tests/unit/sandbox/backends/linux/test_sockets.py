"""The sockets that a sandbox passes its host: they are of its own network."""

import os
import subprocess
import sys

import pytest

_OURS = """
import contextlib, types
from agentd.linux import abi, anyip, net
from agentd.linux.kernel import KERNEL
from agentd.model.errors import SandboxError
from agentd.sandbox.backends.linux.network import admitted
KERNEL.unshare(abi.CLONE_NEWNET)
net.loopback_up()
sockets = anyip.capture()  # as a sandbox would that has its host's network
plan = types.SimpleNamespace(table={"rules": [], "hosts": {}})
try:
    with contextlib.ExitStack() as undo:
        admitted(plan, sockets, undo)
        print("admitted")
except SandboxError as error:
    print(error.message, [sock.fileno() for sock in sockets])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
def test_of_the_hosts_network_none_is_taken() -> None:
    """The relay would accept what the host itself dials."""
    done = subprocess.run(
        [sys.executable, "-c", _OURS], capture_output=True, text=True, check=True, timeout=120
    )
    said = done.stdout.strip()
    assert said.startswith("the sandbox passed a socket of the host's network"), said
    assert set(said.partition("[")[2].strip("]").split(", ")) == {"-1"}  # they are closed
