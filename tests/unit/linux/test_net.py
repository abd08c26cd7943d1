import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.linux import net

# A network namespace of its own, in a user namespace where that takes a privilege.
CONNECT = """
import os, socket
from agentd.linux import abi, net
from agentd.linux.kernel import KERNEL
KERNEL.unshare(abi.CLONE_NEWNET | (abi.CLONE_NEWUSER if os.geteuid() else 0))
for _ in range({times}):
    net.loopback_up()
try:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), 5).close()
    print("done")
except OSError as error:
    print(error.errno)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs uid 0")
@pytest.mark.parametrize(("times", "outcome"), [(0, "101"), (1, "done"), (2, "done")])
def test_localhost_works_in_a_new_namespace_once_it_is_up(times: int, outcome: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONNECT.format(times=times)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": str(Path(net.__file__).parents[2])},
    )
    assert done.stdout.strip() == outcome, done.stderr
