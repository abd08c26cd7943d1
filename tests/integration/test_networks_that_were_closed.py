"""What serves the networks of sandboxes is killed until they are closed, while one stands ready."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from tests.integration.read_server import serving
from tests.security.daemons import Daemon, running, until

from agentd import Sandbox
from agentd.egress import deaths

NAME = "good.example.com"


def supervisor_of(daemon: Daemon) -> int:
    """The pid of who listens at its socket: to connect there would be to take it over."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    path = str(daemon.state / "supervisor.sock")
    (inode,) = [line.split()[6] for line in sockets if line.endswith(path) and " 00010000 " in line]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"socket:[{inode}]" in [os.readlink(fd) for fd in (process / "fd").iterdir()]:
                return int(process.name)
    raise AssertionError("nobody listens there")


def relay_of(supervisor: int) -> int:
    """Its pid, 0 where there is none."""
    for task in Path(f"/proc/{supervisor}/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                if b"agentd.egress.relay.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
    return 0


@pytest.mark.timeout(900)
def test_none_with_a_network_that_was_closed_is_handed_out() -> None:
    with serving() as server:
        place = f"{NAME}:{server.server_port}"
        config = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["{place}"]
[[egress.host]]
name = "{NAME}"
address = "127.0.0.1:{server.server_port}"
[[template]]
name = "web"
net = "{place}"
min = 1
max = 1
"""
        with running(config) as daemon:
            asks = f"import urllib.request as u; print(u.urlopen('http://{place}/').status)"
            until(lambda: daemon.ask("GET", "/v1/stats").json["pool"].get("template/web") == 1)
            holder = supervisor_of(daemon)
            with Sandbox.create(url=daemon.url, net=place) as sandbox:
                for _ in range(deaths.MOST):
                    until(lambda: relay_of(holder) > 0)
                    os.kill(killed := relay_of(holder), signal.SIGKILL)
                    until(lambda killed=killed: relay_of(holder) != killed)
                # One of all was closed, and another was made for the one that stood ready.
                until(lambda: relay_of(holder) > 0)
                (row,) = sandbox.network.connections().connections
                assert row.reason.startswith("its network was closed: it died 5 times within 60 s")
                assert "200" not in sandbox.run(["python3", "-c", asks]).text
            with Sandbox.create(url=daemon.url, template="web") as sandbox:
                assert sandbox.run(["python3", "-c", asks], check=True).text == "200\n"
