"""What an ordinary user's sandbox may take of the counts that it shares with its caller."""

import json
import resource
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
