"""Threat: a sandbox speaks to agentd by a socket of agentd's that lies in a mounted folder: in an
ordinary user's home is the daemon's state, and read-only is nothing to a socket.

Control: neither the API nor the supervisor takes a process of other namespaces, whose user may be
the daemon's own. By the user alone the supervisor would start for it whatever it asks for.
"""

from typing import Any

import pytest

#: Asks each for the sandboxes that there are.
ATTACK = """
import json, socket
asked = {"n": 1, "op": "list"}
for kind, path, said in (
    (socket.SOCK_SEQPACKET, "state/supervisor.sock", json.dumps(asked)),
    (socket.SOCK_STREAM, "socket", "GET /v1/sandboxes HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n"),
):
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.settimeout(60)
        sock.connect("/users/" + path)
        try:
            sock.send(said.encode())
            print(sock.recv(100).decode().split("\\r\\n")[0])
        except OSError:
            print("")
"""
SCRIPT = """
import os, select, signal, subprocess, sys
from agentd import Sandbox
here = os.getcwd()
words = ["serve", "--listen", f"unix:{here}/socket", "--state", "state"]
daemon = subprocess.Popen([sys.executable, "-m", "agentd", *words], stdout=subprocess.PIPE)
daemon.stdout.readline()
try:
    url = f"unix:{here}/socket"
    with Sandbox.create(url=url, backend=sys.argv[1], mounts=[f"{here}:/users:ro"]) as box:
        print(box.run(["python3", "-c", sys.argv[2]], check=True).text, end="")
        print(box.run("echo the daemon has its supervisor still", check=True).text, end="")
finally:
    daemon.terminate()
    daemon.wait(60)
    supervisor = os.pidfd_open(int(open("state/supervisor.sock.lock").read()))
    signal.pidfd_send_signal(supervisor, signal.SIGTERM)
    select.select([supervisor], [], [], 60)
"""


@pytest.mark.parametrize("backend", ["linux", pytest.param("oci", marks=pytest.mark.needs("runc"))])
def test_a_sandbox_of_an_ordinary_user_is_not_that_user(as_user: Any, backend: str) -> None:
    ran = as_user.python("-c", SCRIPT, backend, ATTACK)
    assert ran.stdout.decode().splitlines() == [
        "",
        "HTTP/1.1 403 Forbidden",
        "the daemon has its supervisor still",
    ], ran.stderr.decode()
