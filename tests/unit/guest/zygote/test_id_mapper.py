import subprocess
import sys

UNASKED = """
import os
from agentd.guest.zygote.id_mapper import IdMapper

mapper = IdMapper("ids", lambda: None)
mapper._ours.close()
print(os.waitpid(mapper._child, 0)[1])
"""


def test_who_is_not_asked_ends_and_does_nothing_else():
    """The zygote may have failed by then, or ended."""
    words = [sys.executable, "-c", UNASKED]
    ran = subprocess.run(words, check=False, capture_output=True, timeout=120)
    assert (ran.stdout, ran.stderr) == (b"0\n", b"")
