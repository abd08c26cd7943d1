"""Threat: a call is interrupted (Ctrl-C) while its policy decides, and the next call gets the
answer that was meant for it.

Control: a worker that was left before it had answered is never asked again.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.security.daemons import bundle

POLICY = """
decision := {"allow": false, "reasons": ["no: it is in /etc"]} if {
	startswith(input.parameters.path, "/etc/")
} else := {"allow": true, "reasons": ["yes"]}
"""
# The worker is stopped, so that the question is surely with it when the interrupt comes.
PROGRAM = """
import fcntl, os, select, signal, struct, termios, threading, time
from agentd import Sandbox
from agentd.daemon.calls import embedded
from agentd.model.errors import PolicyDenied

def interrupt(process):
    unread = b"\\0\\0\\0\\0"
    while not struct.unpack("i", unread)[0]:
        time.sleep(0.01)
        unread = fcntl.ioctl(process._stream, termios.TIOCOUTQ, b"\\0\\0\\0\\0")
    os.kill(os.getpid(), signal.SIGINT)

with Sandbox.create() as sandbox:
    sandbox.call("fs.write.v1", path="first.txt", content="1")
    with embedded.shared().policy._pool.borrow(60) as process:
        worker = process
    os.kill(worker._child.pid, signal.SIGSTOP)
    beside = threading.Thread(target=interrupt, args=(worker,))
    beside.start()
    try:
        sandbox.call("fs.write.v1", path="second.txt", content="2")
    except KeyboardInterrupt:
        print("interrupted")
    beside.join()
    lives = worker._child.poll() is None
    if lives:  # so that the answer that nobody waits for is surely there, alone, for the next call
        os.kill(worker._child.pid, signal.SIGCONT)
        select.select([worker._stream], [], [])
        os.kill(worker._child.pid, signal.SIGSTOP)
    for path in ("/etc/third.txt", "fourth.txt", "/etc/fifth.txt"):
        try:
            print(path, sandbox.call("fs.write.v1", path=path, content="3").decision.allow)
        except PolicyDenied as error:
            print(path, "denied:", error.cause)
        if lives:
            os.kill(worker._child.pid, signal.SIGCONT)
"""


def test_the_next_call_is_decided_on_by_itself(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "AGENTD_POLICY": bundle(tmp_path, POLICY),
        "AGENTD_DAEMON__STATE": str(tmp_path / "state"),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    env.pop("AGENTD_URL", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    expected = [
        "interrupted",
        "/etc/third.txt denied: no: it is in /etc",
        "fourth.txt True",
        "/etc/fifth.txt denied: no: it is in /etc",
    ]
    assert done.stdout.splitlines() == expected, done.stdout + done.stderr
