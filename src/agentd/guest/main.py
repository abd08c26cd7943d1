"""``agentd-guest``: where to listen, and PID 1 or not."""

import contextlib
import os
import select
import signal
import socket
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd._version import __version__
from agentd.guest.init import Init, say

if TYPE_CHECKING:
    from agentd.guest.agent import Agent

DEFAULT = "vsock:5000"
FORMS = "vsock:PORT, unix:PATH, stdio, virtio:NAME or fd:N"
HELP = f"""usage: agentd-guest [--listen WHERE]

The agentd guest agent: runs the host's commands inside a sandbox. As PID 1 it is the init, too.

  --listen WHERE   {FORMS}
                   (default: {DEFAULT})
  --version        print the version and exit
  -h, --help       print this and exit

examples:
  agentd-guest                                   in a virtual machine: any CID, port 5000
  agentd-guest --listen unix:/run/agentd.sock    connections at a socket, mode 0600
  agentd-guest --listen stdio                    one connection, at stdin and stdout
  agentd-guest --listen virtio:agent.0           one after the other, at a virtio-serial port
  agentd-guest --listen fd:3                     an inherited socket, connected or listening
  echo '{{"command":"uname"}}' | agentd-guest --listen stdio
"""
VIRTIO_PORTS = "/sys/class/virtio-ports"
# How often a port that has no host is looked at: its readiness cannot be waited for, as a port
# without a host is always ready to read an end of file.
VIRTIO_POLL_S = 0.2
_MAX_PORT = 0xFFFFFFFE  # VMADDR_PORT_ANY is one more
_EX_FAILED, _EX_USAGE = 1, 2


class Refused(Exception):
    """What the user asked for cannot be; the message says what and how to mend it."""


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit status. As PID 1 it does not return."""
    arguments = sys.argv[1:] if argv is None else argv
    pid1 = os.getpid() == 1
    try:
        where = parse(arguments)
    except Refused as error:
        say(str(error))
        if not pid1:
            return _EX_USAGE
        # The kernel hands words of its command line on to init, and panics if that ends.
        say(f"going on with {DEFAULT}")
        where = DEFAULT
    if where in ("help", "version"):
        print(HELP if where == "help" else f"agentd-guest {__version__}\n", end="")
        return 0
    if pid1:
        _import_all()
        Init(lambda: run(where, pid1=True)).run()
    return run(where, pid1=False)


def parse(arguments: list[str]) -> str:
    """The value of --listen, checked, or ``help`` or ``version``. Raises Refused."""
    where = DEFAULT
    words = iter(arguments)
    for word in words:
        if word in ("-h", "--help", "--version"):
            return "version" if word == "--version" else "help"
        name, equals, value = word.partition("=")
        if name != "--listen":
            raise Refused(f"unknown argument {word!r}: see agentd-guest --help")
        where = value if equals else next(words, "")
    _check(where)
    return where


def _check(where: str) -> None:
    kind, _, value = where.partition(":")
    limits = {"vsock": (1, _MAX_PORT), "fd": (3, 1 << 20)}
    if kind in limits:
        low, high = limits[kind]
        if not (value.isascii() and value.isdecimal() and low <= int(value[:12]) <= high):
            raise Refused(f"--listen {where!r}: give {kind}: and a number from {low} to {high}")
    elif where != "stdio" and not (kind in ("unix", "virtio") and value and "\0" not in value):
        raise Refused(f"--listen {where!r}: give {FORMS}")


def _import_all() -> None:
    """Before PID 1 mounts over /tmp and /run: the program itself may lie there."""
    from agentd.guest import agent, connection, listener, loop  # noqa: F401
    from agentd.linux import net, process  # noqa: F401

    agent.preload()


def run(where: str, *, pid1: bool) -> int:
    """Be the agent at ``where`` until SIGTERM, SIGINT or the end of the only connection."""
    # Imported here: --help, and an init that will only fork, do without.
    from agentd.guest.agent import create
    from agentd.guest.connection import report
    from agentd.guest.loop import Loop

    kind, _, value = where.partition(":")
    if kind == "unix":
        value = os.path.abspath(value)  # the agent works in the root directory
    protect_from_oom()
    loop = Loop(on_error=report)
    agent = create(loop, pid1=pid1)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.on_signal(number, agent.stop)
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        stack.callback(agent.processes.close)
        stack.callback(agent.stop)
        try:
            stack.callback(_OPENERS[kind](agent, value))
        except Refused as error:
            say(str(error))
            return _EX_FAILED
        except OSError as error:
            say(f"cannot listen on {where}: {error.strerror or error}")
            return _EX_FAILED
        protect_from_tracing()
        say(f"listening on {where}, version {__version__}")
        loop.run()
    say("stopped")
    return 0


def protect_from_oom() -> None:
    """Exempt the agent from the OOM killer, where it may; its commands are not."""
    from agentd.linux.process import oom_score_adj

    with contextlib.suppress(OSError):
        oom_score_adj(-1000)


def protect_from_tracing() -> None:
    """Commands of the same user cannot ptrace the agent or open its descriptors."""
    from agentd.linux.process import set_dumpable

    with contextlib.suppress(OSError):
        set_dumpable(False)


def _open_vsock(agent: "Agent", value: str) -> Callable[[], None]:
    from agentd.guest.listener import vsock_socket

    try:
        agent.listen(vsock_socket(int(value)))
    except OSError as error:
        raise Refused(
            f"no vsock here ({error.strerror}): load the kernel's vsock transport, or --listen"
            " unix:PATH, stdio, virtio:NAME or fd:N"
        ) from None
    return _nothing


def _open_unix(agent: "Agent", path: str) -> Callable[[], None]:
    from agentd.guest.listener import unix_socket

    remove_stale(path)
    agent.listen(unix_socket(path))
    ours = os.lstat(path)

    def remove() -> None:
        # Another agent may have taken the path over.
        with contextlib.suppress(OSError):
            if os.path.samestat(ours, os.lstat(path)):
                os.unlink(path)

    return remove


def remove_stale(path: str) -> None:
    """Unlink a socket that nobody listens on. Raises Refused if there is anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Refused(f"{path} exists and is no socket: remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
    raise Refused(f"something listens on {path} already: stop it or choose another path")


def _open_stdio(agent: "Agent", _: str) -> Callable[[], None]:
    if not _can_wait(0):
        raise Refused("stdin is a plain file or /dev/null: pipe it in, cat FILE | agentd-guest ...")
    pair = os.dup(0), os.dup(1)
    # What the agent opens later must not become 0 or 1, nor a stray print reach the host.
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    _serve(agent, pair, agent.stop)
    return _nothing


def _can_wait(fd: int) -> bool:
    """Whether epoll takes it: not a plain file."""
    with select.epoll() as epoll:
        try:
            epoll.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
    return True


def _open_fd(agent: "Agent", value: str) -> Callable[[], None]:
    try:
        sock = socket.socket(fileno=int(value))
    except OSError as error:
        raise Refused(f"fd:{value} is no open socket ({error.strerror}): pass one") from None
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        raise Refused(f"fd:{value} is no stream socket: pass one made with SOCK_STREAM")
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        agent.listen(sock)
    else:
        _serve(agent, sock, agent.stop)
    return _nothing


def _open_virtio(agent: "Agent", name: str) -> Callable[[], None]:
    return VirtioPort(agent, open_port(find_virtio_port(name))).close


def find_virtio_port(name: str, root: str = VIRTIO_PORTS) -> str:
    """The device of the port that the host named so. Raises Refused, naming those there are."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for port in os.listdir(root):
            with open(os.path.join(root, port, "name"), encoding="utf-8") as file:
                found[file.read().strip()] = port
    if name not in found:
        names = ", ".join(sorted(found)) or "none"
        raise Refused(f"no virtio port is named {name!r}: choose one of those here ({names})")
    return f"/dev/{found[name]}"


def open_port(path: str) -> int:
    """A descriptor of the port. Raises OSError, EBUSY where another agent has it."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)


class VirtioPort:
    """A port that serves one host after the other. It stays open: it can be opened only once."""

    def __init__(self, agent: "Agent", fd: int) -> None:
        self._agent = agent
        self._fd = fd
        self._look()

    def close(self) -> None:
        os.close(self._fd)

    def _look(self) -> None:
        poll = select.poll()
        poll.register(self._fd, 0)
        if poll.poll(0):  # POLLHUP: no host is connected
            self._later()
            return
        copy = os.dup(self._fd)
        _serve(self._agent, (copy, copy), self._later)

    def _later(self) -> None:
        self._agent.loop.after(VIRTIO_POLL_S, self._look)


def _serve(
    agent: "Agent", source: socket.socket | tuple[int, int], on_close: Callable[[], None]
) -> None:
    """Serve one stream; ``on_close`` is called when it has ended."""
    before = set(agent._streams)
    agent.serve_stream(source)
    for stream in agent._streams - before:
        inner = stream.on_close

        def closed(inner: Callable[[], None] | None = inner) -> None:
            if inner is not None:
                inner()
            on_close()

        stream.on_close = closed


def _nothing() -> None:
    """There is nothing to undo."""


_OPENERS: dict[str, Callable[["Agent", str], Callable[[], None]]] = {
    "fd": _open_fd,
    "stdio": _open_stdio,
    "unix": _open_unix,
    "virtio": _open_virtio,
    "vsock": _open_vsock,
}

if __name__ == "__main__":
    sys.exit(main())
