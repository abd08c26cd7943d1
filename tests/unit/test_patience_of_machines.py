"""What agentd waits longer for within an emulated machine is there under its name."""

import subprocess
import sys


def test_each_wait_is_there_and_becomes_longer() -> None:
    code = (
        "from agentd.sandbox.backends.qemu import backend; before = backend.BOOT_SECONDS\n"
        "from tests.machine import patience; patience.lengthen(4)\n"
        "print(backend.BOOT_SECONDS == 4 * before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
