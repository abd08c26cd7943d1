import subprocess
import sys

import agentd

SOURCE = str(agentd.__path__[0]).removesuffix("/agentd")
# Leaves holes of many sizes in its heap, and tells how much memory a forked copy takes when it
# allocates a few objects of each.
SCATTER = """
import gc, os, sys
sys.path.insert(0, sys.argv[1])
from agentd.guest.zygote import holes
gc.disable()
data = [bytes(n % 450) for n in range(60_000)]
for at in range(0, 60_000, 37):
    data[at] = None
held = holes.fill() if sys.argv[2] == "filled" else []
def private():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
if os.fork() == 0:
    before = private()
    made = [bytes(n % 450) for n in range(1200)]
    print(private() - before, sum(map(len, held)), flush=True)
    os._exit(0)
os.wait()
"""


def taken(how: str) -> tuple[int, int]:
    argv = [sys.executable, "-I", "-S", "-E", "-c", SCATTER, SOURCE, how]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=True)
    copied, held = map(int, done.stdout.split())
    return copied, held


def test_a_copy_allocates_side_by_side():
    scattered, _ = taken("as it is")
    dense, held = taken("filled")
    assert dense < scattered / 2
    assert held < 4 << 20
