import json
import subprocess
import sys

import agentd

SOURCE = str(agentd.__path__[0]).removesuffix("/agentd")
REHEARSE = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from agentd.guest.zygote import box
from agentd.guest.zygote.rehearsal import rehearse, rehearse_wall
from agentd.linux import seccomp

def found():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    kept = ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Threads", "Uid")
    return {
        **{name: status[name] for name in kept},
        "files": sorted(
            os.readlink(path) for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(path := f"/proc/self/fd/{fd}")  # but the one that lists
        ),
        "host": os.uname().nodename,
        "mounts": open("/proc/self/mounts").read(),
        "limits": open("/proc/self/limits").read(),
        "writes": os.access("/tmp", os.W_OK),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
    }

plain = {"uid": 1000, "net": "none", "disk": 1 << 20, "inodes": 64, "scratch_fd": None}
box.WRITABLE = ("/tmp",)  # Landlock's rules are for places that there are in a sandbox's root
before = found()
for abi in (0, 6):
    rehearse_wall({**plain, "landlock_abi": abi}, seccomp.build("sandbox"))
rehearse(3)
print(json.dumps([before, found()]))
"""


def test_nothing_of_it_is_real():
    argv = [sys.executable, "-I", "-S", "-E", "-c", REHEARSE, SOURCE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert before == after


BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
from agentd.guest.zygote import rehearsal
rehearsal._PROGRAM = "/nowhere"
rehearsal.rehearse(2)
print("over")
"""


def test_what_cannot_run_does_not_hold_it_up():
    argv = [sys.executable, "-I", "-S", "-E", "-c", BROKEN, SOURCE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "over\n", done.stderr


# As where a busy machine takes longer for it than it may.
ENDLESS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from agentd.guest.zygote import rehearsal
rehearsal._PROGRAM = "/usr/bin/yes"
rehearsal.rehearse(1)
print("left:", open(f"/proc/self/task/{os.getpid()}/children").read())
"""


def test_what_does_not_end_in_time_is_ended_and_does_not_stay_as_a_zombie():
    argv = [sys.executable, "-I", "-S", "-E", "-c", ENDLESS, SOURCE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "left: \n", done.stderr
