"""A host with neighbours, in network namespaces of its own: run as a program, it prints JSON.

The host is this process. Its neighbour answers at 203.0.113.9, 10.9.0.9 and 2001:db8::9, each with
its address, and nobody is at 203.0.113.8.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from tests.captured import Captured, Names, relayed

from agentd.egress.admitted import Admitted
from agentd.egress.compile import compile_table
from agentd.linux import abi, net
from agentd.linux.kernel import KERNEL

NEIGHBOUR = """
import os, socket, sys, threading
from agentd.linux import abi
from agentd.linux.kernel import KERNEL
KERNEL.unshare(abi.CLONE_NEWNET)
print("ready", flush=True)
sys.stdin.readline()
def serve(family, address):
    with socket.create_server((address, 7), family=family) as listener:
        while True:
            with listener.accept()[0] as sock:
                sock.sendall(sock.getsockname()[0].encode())
for family, address in ((socket.AF_INET, "203.0.113.9"), (socket.AF_INET, "10.9.0.9"),
                        (socket.AF_INET6, "2001:db8::9")):
    threading.Thread(target=serve, args=(family, address), daemon=True).start()
print("serves", flush=True)
sys.stdin.read()
"""
ADDRESSES = ("203.0.113.{}/24", "10.9.0.{}/24", "2001:db8::{}/64")
NAMES = {
    "far.example": ["203.0.113.9"],
    "second.example": ["203.0.113.8", "203.0.113.9"],
    "six.example": ["2001:db8::9"],
    "both.example": ["127.0.0.1", "203.0.113.9"],
    "mine.example": ["10.9.0.9"],
    "wild.evil.example": ["10.9.0.9"],
    "host.example": ["203.0.113.1"],
    "mapped.example": ["::ffff:203.0.113.1"],
    "translated.example": ["64:ff9b::203.0.113.1"],
    "denied.example": ["64:ff9b::203.0.113.9"],
    "mappedfar.example": ["::ffff:203.0.113.9"],
}
RULES = ("far.example:7", "second.example:7", "six.example:7", "both.example:7", "mine.example:7")
RULES += ("mapped.example:7", "translated.example:7", "mappedfar.example:7", "late.example:7")
RULES += ("denied.example:7", "![64:ff9b::/96]")
RULES += ("*.evil.example:7", "host.example:7", "203.0.113.0/24:*")


def main() -> None:
    user, group = os.geteuid(), os.getegid()
    KERNEL.unshare(abi.CLONE_NEWNET | (abi.CLONE_NEWUSER if user else 0))
    if user:
        KERNEL.write("/proc/self/setgroups", "deny")
        KERNEL.write("/proc/self/uid_map", f"0 {user} 1")
        KERNEL.write("/proc/self/gid_map", f"0 {group} 1")
    net.loopback_up()
    neighbour = subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert neighbour.stdin and neighbour.stdout
    neighbour.stdout.readline()
    pid = str(neighbour.pid)
    ip("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", pid)
    enter = ("nsenter", f"--net=/proc/{pid}/ns/net")
    for address in ADDRESSES:
        nodad = ("nodad",) if ":" in address else ()
        ip("address", "add", address.format(1), "dev", "near", *nodad)
        ip("address", "add", address.format(9), "dev", "far", *nodad, inside=enter)
    ip("link", "set", "near", "up")
    ip("link", "set", "far", "up", inside=enter)
    ip("-6", "route", "add", "default", "via", "2001:db8::9")
    neighbour.stdin.write("\n")
    neighbour.stdin.flush()
    neighbour.stdout.readline()
    print(json.dumps(tried()))
    neighbour.kill()
    neighbour.communicate()


def ip(*argv: str, inside: tuple[str, ...] = ()) -> None:
    subprocess.run([*inside, "ip", *argv], check=True)


def tried() -> dict[str, Any]:
    found: dict[str, Any] = {}
    own = socket.create_server(("203.0.113.1", 7))
    threading.Thread(target=_serve, args=(own,), daemon=True).start()
    captured = Captured()
    with relayed(**NAMES) as (keeper, names):
        admitted = keeper.admit(captured.sockets, compile_table(RULES))
        for name in (*NAMES, "203.0.113.9", "203.0.113.1", "10.9.0.9"):
            address = name if name[0].isdigit() else captured.ask(f"resolve({name!r})")[1]
            found[name] = captured.ask(f"talk({address!r}, 7)") if address else None
        found["closed"] = captured.ask("talk('203.0.113.9', 8)")
        found["late"] = changed_meanwhile(captured, admitted, names)
        found["rows"] = [
            (row["name"] or row["address"], row["allowed"], row["reason"])
            for row in admitted.connections().rows
        ]
    captured.close()
    return found


def _serve(listener: socket.socket) -> None:
    while True:
        with listener.accept()[0] as sock:
            sock.sendall(b"the host")


class Late:
    """A name that is resolved at once, and then not before it is let go."""

    def __init__(self) -> None:
        self.asked, self.let_go = threading.Event(), threading.Event()
        self._known = False

    def __call__(self) -> list[str]:
        if self._known:
            self.asked.set()
            self.let_go.wait(60)
        self._known = True
        return ["10.9.0.9"]


def changed_meanwhile(captured: Captured, admitted: Admitted, names: Names) -> Any:
    """What came of dialling a name whose address is forbidden while it is looked up."""
    late = names.answers["late.example"] = Late()
    names.ttl = 1
    address = captured.ask("resolve('late.example')")[1]
    time.sleep(1.5)  # the answer is kept for a second, from before we had it
    captured.begin(f"talk({address!r}, 7)")
    assert late.asked.wait(60)
    admitted.set(compile_table(["late.example:7", "!10.0.0.0/8"]))
    admitted.connections()  # the relay has been told then
    late.let_go.set()
    return captured.answer()


if __name__ == "__main__":
    main()
