"""Threat: memory of the kernel's that no control group counts, past the limit of memory: access
lists of files in memory, netlink's answers that nobody reads, what sockets keep of their options,
neighbours of IPv6 in a network in which every address is local.

Controls: seccomp, by the size of an attribute and by asking the agent, which lets a sandbox have 32
netlink sockets; the network namespace's own net.core.optmem_max; rules of its packet filter.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LISTS = """
def entry(tag, id_):
    return struct.pack("<HHI", tag, 7, id_)
NOBODY = 0xFFFFFFFF
def acl(entries):
    more = entry(2, os.getuid()) * (entries - 4)
    return struct.pack("<I", 2) + entry(1, NOBODY) + more + b"".join(
        entry(tag, NOBODY) for tag in (4, 0x10, 0x20))
os.mkdir("/tmp/d")
fd = os.open("/tmp/d", os.O_RDONLY)
BOTH = b"system.posix_acl_access", b"system.posix_acl_default"
path = b"/tmp/d\\0"
def all_ways(value):
    n = len(value)
    for name in BOTH:
        yield call("setxattr", path, name, value, n, 0)
        yield call("lsetxattr", path, name, value, n, 0)
        yield call("fsetxattr", fd, name, value, n, 0)
# struct xattr_args: u64 value, u32 size, u32 flags
room = ctypes.create_string_buffer(acl(8000))
args = ctypes.create_string_buffer(struct.pack("=QII", ctypes.addressof(room), 64004, 0))
said("new call", call("setxattrat", -100, path, 0, BOTH[0], args, 16))
said("large", sorted(set(map(str, all_ways(acl(8000))))))
said("a little large", sorted(set(map(str, all_ways(acl(128))))))
said("small", sorted(set(map(str, all_ways(acl(127))))))
os.mkdir("/tmp/d/e")
said("handed on", len(os.getxattr("/tmp/d/e", BOTH[1])))
"""
SOCKETS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
def fill(most=200):
    held = []
    while len(held) < most:
        made = call("socket", socket.AF_NETLINK, socket.SOCK_RAW, 0)
        if isinstance(made, str):
            return held, made
        held.append(made)
    return held, "no end"
one, why = fill()
said("of one", len(one)), said("why", why)
parts = socket.socketpair()
for at in range(10):  # what is on its way counts, too
    socket.send_fds(parts[0], [b"x"], [one[at]])
    os.close(one[at])
pid = os.fork()
if not pid:
    said("of another", len(fill()[0]))
    os._exit(0)
os.waitpid(pid, 0)
for fd in one[10:]:
    os.close(fd)
said("given back", len(fill()[0]))
"""
OPTIONS = """
def groups(family=socket.AF_INET6):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for number in range(1000):
            group = socket.inet_pton(family, f"ff05::{number + 256:x}") + struct.pack("=I", 1)
            try:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            except OSError as error:
                return errno.errorcode[error.errno], number < 200
    return "no end", False
said("groups", groups())
def keys():  # TCP_MD5SIG: each peer has one
    with socket.socket() as sock:
        for number in range(1000):
            to = struct.pack("=HHI", socket.AF_INET, 0, number + 1) + bytes(120)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, 14, to + struct.pack("=BBHI", 0, 0, 80, 0)
                                + b"k" * 80)
            except OSError as error:
                return errno.errorcode[error.errno], number < 200
    return "no end", False
said("keys", keys())
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:  # IPV6_2292PKTOPTIONS
    info = struct.pack("=QII", 36, socket.IPPROTO_IPV6, 50) + bytes(24)
    said("options", tried(sock.setsockopt, socket.IPPROTO_IPV6, 6, info * 1000))
"""
PASSED = """
ours, theirs = socket.socketpair()
fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(253)]
for _ in range(3):
    socket.send_fds(ours, [b"x"], fds)
said("passed", len(socket.recv_fds(theirs, 1, 253)[1]))
"""
pytestmark = pytest.mark.parametrize("wall", ["linux", "oci"])
NEIGHBOURS = """
def neighbours():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:  # RTM_GETNEIGH, all of IPv6
        head = struct.pack("=IHHII", 28, 30, 0x301, 1, 0)
        sock.send(head + struct.pack("=BxHiHBB", 10, 0, 0, 0, 0, 0))
        found = 0
        while True:
            told, at = sock.recv(1 << 20), 0
            while at + 16 <= len(told):
                length, kind = struct.unpack_from("=IH", told, at)
                if kind == 3:  # NLMSG_DONE
                    return found
                found += kind == 28
                at += length + 3 & ~3
def any_address(sock, number):
    sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
    sock.bind((f"2001:db8:1::{number:x}", 0))
import contextlib
six = socket.AF_INET6
with socket.socket(six, socket.SOCK_DGRAM) as sock:
    for port in (9, 443, 53):
        for number in range(200):
            tried(sock.sendto, b"x", (f"2001:db8:{port}::{number:x}", port))
    for number in range(1, 100):
        tried(sock.sendto, b"x", (f"ff02::{number:x}", 9, 0, 1))
said("by datagrams", neighbours() <= 65)
def open_once(action):
    with socket.socket(six) as sock, contextlib.suppress(OSError):
        sock.settimeout(0.05)
        action(sock)
        sock.connect(("::1", 7777))
for number in range(100):
    open_once(lambda sock: sock.connect((f"2001:db8:7::{number:x}", 443)))
with socket.create_server(("::", 7777), family=six), socket.socket(six, 2) as here:
    here.bind(("::", 7777))
    for number in range(100):
        open_once(lambda sock: any_address(sock, number))
        with socket.socket(six, socket.SOCK_DGRAM) as sock:
            any_address(sock, number)
            tried(sock.sendto, b"x", ("::1", 7777))
            tried(here.sendto, b"y", here.recvfrom(10)[1])
said("all", neighbours() <= 67)
with socket.socket(six, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"x", ("2001:db8:53::1", 53))
said("asked again", "sent")
"""
per_namespace = pytest.mark.skipif(
    not Path("/proc/sys/net/core/txrehash").exists(),
    reason="before Linux 6.8 the machine has one number for all sockets",
)


def test_access_lists_are_small(sandbox: Callable[..., Any], wall: str) -> None:
    said = sandbox(wall).attack(LISTS)
    assert said == {
        "new call": "ENOSYS",
        "large": "['ENOSPC']",
        "a little large": "['ENOSPC']",
        "small": "['0']",
        "handed on": "1020",
    }


def test_off_access_lists_are_as_large_as_attributes_are(
    sandbox: Callable[..., Any], wall: str
) -> None:
    said = sandbox(wall, without={"seccomp"}).attack(LISTS)
    assert said["large"] == said["a little large"] == "['0']"


@pytest.mark.parametrize("user", [{}, {"user": "root"}], ids=["user", "root"])
def test_there_are_few_netlink_sockets_at_a_time(
    sandbox: Callable[..., Any], wall: str, user: dict[str, str]
) -> None:
    box, other = sandbox(wall, **user), sandbox(wall)
    said = box.attack(SOCKETS)
    assert said == {
        "of one": "32",
        "why": "ENOTSUP",
        "of another": "0",
        "given back": "22",
    }
    assert other.attack(SOCKETS)["of one"] == "32"


def test_off_there_are_as_many_as_descriptors(sandbox: Callable[..., Any], wall: str) -> None:
    assert sandbox(wall, without={"seccomp"}).attack(SOCKETS)["of one"] == "200"


@per_namespace
@pytest.mark.parametrize("spec", [{}, {"user": "root"}, {"net": "pypi"}], ids=str)
def test_sockets_keep_little_of_their_options(
    sandbox: Callable[..., Any], wall: str, spec: dict[str, str]
) -> None:
    said = sandbox(wall, **spec).attack(OPTIONS)
    assert said == {
        "groups": "('ENOMEM', True)",
        "keys": "('ENOMEM', True)",
        "options": "ENOBUFS",
    }


def test_few_neighbours_are_kept_of_a_network_of_rules(
    sandbox: Callable[..., Any], wall: str
) -> None:
    said = sandbox(wall, net="pypi").attack(NEIGHBOURS)
    assert said == {"by datagrams": "True", "all": "True", "asked again": "sent"}


def test_descriptors_are_passed_on_all_the_same(sandbox: Callable[..., Any], wall: str) -> None:
    assert sandbox(wall).attack(PASSED) == {"passed": "253"}
