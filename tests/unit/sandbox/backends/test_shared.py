"""What an ordinary user's sandbox may take of the counts that it shares with its caller."""

import errno
import json
import resource
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = """
import json, resource, sys
from agentd import Sandbox
INSIDE = '''
import json, resource
from pathlib import Path
names = ("SIGPENDING", "MSGQUEUE", "MEMLOCK")
limits = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names}
print(json.dumps({name: hard for name, (_, hard) in limits.items()}))
'''
with Sandbox.create(backend=sys.argv[1]) as sandbox:
    ran = sandbox.run(["/usr/bin/python3", "-c", INSIDE])
    shared = ran.enforcement["shared"]
    print(json.dumps({"inside": json.loads(ran.text), "shared": [shared.enforced, shared.detail]}))
"""


@pytest.mark.parametrize("backend", ["linux", "landlock"])
def test_an_ordinary_users_sandbox_has_a_quarter_and_says_what_it_shares(
    as_user: Any, backend: str
) -> None:
    told = json.loads(as_user.python("-c", SCRIPT, backend).stdout)
    enforced, detail = told["shared"]
    assert not enforced
    assert "the caller's own user" in detail
    assert "file locks" in detail
    for name, most in told["inside"].items():
        own = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
        if own != resource.RLIM_INFINITY:
            assert 0 < most <= max(own // 4, 64 << 10)


FIRST = """
import json, os, resource
found = [resource.getrlimit(number)[1] for number in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE)]
for action in (lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
               lambda: os.nice(-1)):
    try:
        action()
        found.append("done")
    except OSError as error:
        found.append(error.errno)
print(json.dumps(found))
"""


@pytest.mark.parametrize("backend", ["linux", "landlock", "oci"])
def test_no_command_goes_before_the_hosts_programs_though_the_caller_may(backend: str) -> None:
    """A desktop gives its users a real-time priority (RLIMIT_RTPRIO of group audio)."""
    argv = [sys.executable, "-m", "agentd", "run", "--backend", backend, "--", "/usr/bin/python3"]
    given = ["prlimit", "--rtprio=40:40", "--nice=40:40"]
    if subprocess.run([*given, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no CAP_SYS_RESOURCE: the caller has no such priority to hand on")
    done = subprocess.run([*given, *argv, "-c", FIRST], capture_output=True, check=False)
    assert json.loads(done.stdout) == [0, 0, errno.EPERM, errno.EPERM], done.stderr
