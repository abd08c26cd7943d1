"""Threat: what a program or a host says takes over the process that reads requests, which has the
secrets and the authorities of all sandboxes.

Controls: a seccomp filter that leaves no call that opens, starts, dials or makes a socket.
"""

import errno
import json
from pathlib import Path

from tests.captured import eventually
from tests.unit.egress.terminator.world import judging

from agentd.egress import terminating

ATTACKS = """
import asyncio, json, mmap, os, socket
from agentd.egress.terminator import terminator
async def tried(self):
    found = {}
    for name, attempt in {
        "open": lambda: open("/etc/passwd"),
        "list": lambda: os.listdir("/"),
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.fork(),
        "tcp": lambda: socket.socket(socket.AF_INET),
        "dns": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "dial": lambda: self._control.connect("/run/nobody"),
        "pipe": lambda: os.pipe(),
        "code": lambda: mmap.mmap(-1, 4096, prot=7),
        "kill": lambda: os.kill(os.getppid(), 0),
        "root": lambda: os.setuid(0),
    }.items():
        try:
            attempt()
            found[name] = 0
        except OSError as error:
            found[name] = error.errno
    self.records.fault(json.dumps(found))
    await terminator_serve(self)
terminator_serve = terminator.Terminator.serve
terminator.Terminator.serve = tried
"""


def test_a_terminator_that_was_taken_over_has_nothing(tmp_path: Path) -> None:
    usual = terminating.MODULE
    package = usual.rpartition(".")[0]
    try:
        terminating.MODULE = f"{package} import main; exec({ATTACKS!r}, globals()); from {usual}"
        with judging(tmp_path) as made:
            eventually(lambda: made.keeper.faults)
            found = json.loads(made.keeper.faults[0])
    finally:
        terminating.MODULE = usual
    assert set(found.values()) <= {errno.EPERM, errno.EACCES}, found
