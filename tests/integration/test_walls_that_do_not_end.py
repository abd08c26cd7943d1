"""A wall that does not end is told in a line, as every error of agentd's own is."""

import subprocess
import sys

_SCRIPT = """
from agentd import Sandbox, SandboxError

sandbox = Sandbox.create(embedded=True)
wall = type(sandbox._service.handle(sandbox.id).wall)
end = wall.kill

def kill(self):
    end(self)
    raise SandboxError("the wall does not end", remediation="look at dmesg")

wall.kill = kill
try:
    sandbox.close()
except SandboxError as error:
    print(error)
"""


def test_a_wall_that_does_not_end_is_told_without_a_traceback() -> None:
    argv = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert "the wall does not end (look at dmesg)" in done.stdout + done.stderr, done
    assert "Traceback" not in done.stderr, done.stderr
